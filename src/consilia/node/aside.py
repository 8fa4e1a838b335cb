"""What a site's staff run beside the agent, one at a time: a folder for it, and its answer.

Dry runs, privacy reports and hard cases work in a folder of their own below the node's, which
is empty at first and gone at the end, also when the one before was killed.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from consilia.core.weights import DTYPES, TensorSpec, Weights
from consilia.errors import Conflict, StorageError, WorkerError
from consilia.node.runner import TaskOutput
from consilia.wire import frames


@contextlib.contextmanager
def workplace(directory: Path, name: str, busy: str) -> Iterator[Path]:
    """Hold DIR/`name`, empty, for one user at a time; leave nothing behind but its lock.

    Raises Conflict, which begins with `busy`, when another holds it; StorageError.
    """
    folder = directory / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StorageError(f"{folder}: {e.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"{busy} in {directory}") from None
        shutil.rmtree(folder)  # of one that was killed
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(fd)


def read_tensors(output: TaskOutput, wanted: Iterable[TensorSpec]) -> Weights:
    """Read the arrays of an outcome in its order, which `wanted` is; the caller checked it."""
    arrays: Weights = {}
    for spec in wanted:
        array = np.empty(spec.shape, DTYPES[spec.dtype])
        view = frames.raw_bytes(array)
        while view:
            got = os.readv(output.tensors, [view])
            if not got:
                raise output.failure or WorkerError("the worker ended before its answer did")
            view = view[got:]
        arrays[spec.name] = array
    return arrays
