"""A smaller update, and what it left out: kept at this site for the next round of the job.

    p = step + memory      c = clip(p)      sent = code(c)      memory' = c - restored(sent)

The memory is a frame of float32, DIR/feedback/<job>.memory, one for each floating-point tensor.
It changes only with what the hub has taken: a round's new one waits as <lease>.next, and takes
the old one's place when the hub has acknowledged the update, before that is noted; an update
that was not taken leaves the old one as it was. So a kill at any moment loses nothing, and
a power cut at most the memory, which then starts at zero: it is worth accuracy, never safety.

It goes with the last planned round of its job, and 30 days after the last change of a job that
ended in another way. It holds what training made of patients: it never leaves, mode 0600, and
lies under the key of its study (node.studykeys).

Rounding is drawn from the task's seed: the same task gives the same update. It hides nothing.
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consilia.algo import compress
from consilia.algo.compress import GROUP, Codec, Draw
from consilia.algo.strategy import steps
from consilia.core import carried
from consilia.core.carried import Carried
from consilia.core.weights import DTYPES, Array, Schema, TensorSpec
from consilia.errors import ConsiliaError, UpdateRejected
from consilia.node import clip
from consilia.node.spending import dp_of
from consilia.node.store import hashed_name
from consilia.node.studykeys import Rest, scratch
from consilia.privacy.streams import random_of
from consilia.wire import frames
from consilia.wire.v1 import Compression, Lease, Task

KEPT = 30 * 86400.0  # seconds that the memory of a job nobody ended is kept
_ROUNDING = 1 - 1e-6  # float32 rounding of what is clipped, so that it stays within the bound
_MEMORY, _NEXT = ".memory", ".next"
_LOG = logging.getLogger("consilia.node.compressing")
Single = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Packed:
    """A compressed update: its frame's header, and what holds for it."""

    header: frames.Header
    carried: Carried


class Feedback:
    """The memories of all jobs, in one folder. Methods block; one thread per lease."""

    def __init__(self, folder: Path, now: Callable[[], float], rest: Rest) -> None:
        """Nothing is made yet; `now` gives Unix seconds, `rest` seals what lies here."""
        self._folder = folder
        self._now = now
        self._rest = rest

    def memory(self, job: str) -> Path:
        """Return where the memory of a job lies, if it has one."""
        return memory_of(self._folder, job)

    def waiting(self, lease: str) -> Path:
        """Return where the memory lies that a lease's update would leave."""
        return waiting_of(self._folder, lease)

    @contextmanager
    def remembered(self, task: Task, schema: Schema) -> "Iterator[Memory]":
        """Yield what earlier rounds of a job left out; nothing where none of it fits."""
        path, memory = self.memory(task.job), Memory()
        with contextlib.ExitStack() as stack:
            try:
                opened = self._rest.opened(task.study, path, _about(task))
                fd = stack.enter_context(opened)
                header = frames.read_header(fd)
                verifier = frames.Verifier(header.total_bytes)
                verifier.feed_file(fd, header.total_bytes)
                if header.schema == schema:
                    memory = Memory(fd, header)
            except FileNotFoundError:
                pass
            except (ConsiliaError, OSError) as e:
                _LOG.warning("%s cannot be used, its job starts at zero: %s", path, e)
            yield memory

    @contextmanager
    def remembering(self, lease: Lease, wanted: bool) -> Iterator[int]:
        """Yield a descriptor for a lease's new memory, sealed at the end; -1 if not `wanted`.

        The plain bytes have no name at any time, so that no crash leaves them.
        """
        if not wanted:
            yield -1
            return
        path = self.waiting(lease.id)
        with scratch(path.parent) as fd:
            yield fd
            self._rest.keep(lease.task.study, fd, path, _about(lease.task))

    def prepare(self) -> None:
        """Make the folder, and forget what is too old for its job to go on."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another job's, just taken
                if path.stat().st_mtime < self._now() - KEPT:
                    path.unlink()

    def taken(self, lease: Lease) -> None:
        """The hub has the update: what it left out is the job's memory now."""
        waiting, memory = self.waiting(lease.id), self.memory(lease.task.job)
        asked = lease.task.privacy
        if asked.final or (asked.compression is not None and asked.compression.final):
            waiting.unlink(missing_ok=True)
            memory.unlink(missing_ok=True)
        elif waiting.exists():
            waiting.replace(memory)

    def lost(self, lease: Lease) -> None:
        """The update has not reached the model: the job's memory stays what it was."""
        self.waiting(lease.id).unlink(missing_ok=True)


def memory_of(folder: Path, job: str) -> Path:
    """Return where in `folder` the memory of a job lies, if it has one."""
    return folder / f"{hashed_name(job)}{_MEMORY}"


def waiting_of(folder: Path, lease: str) -> Path:
    """Return where in `folder` the memory lies that a lease's update would leave."""
    return folder / f"{hashed_name(lease)}{_NEXT}"


def codec_of(compression: Compression) -> Codec:
    """Return what a task asks for; ConfigError when it is no codec."""
    codec = Codec(compression.bits, compression.keep)
    compress.check(codec)
    return codec


def pack(  # noqa: PLR0913, PLR0917 - what is packed, with what, where to
    new: int, old: int, lease: Lease, feedback: Feedback, out: Path, bound: float
) -> Packed:
    """Write the compressed form of an update (a descriptor) to `out`; keep what it leaves out.

    `bound` is the L2 norm to clip to, 0 for none. At client level the update has been clipped
    and noised before: what is done here is post-processing then.
    Raises UpdateRejected when it is not finite, ConfigError when it cannot be compressed.
    """
    task = lease.task
    codec = codec_of(task.privacy.compression or Compression())
    schema = frames.read_header(new).schema
    given = Carried() if (dp := dp_of(task)) is None else clip.carried_of(dp, schema)
    kept = memory_schema(schema)
    feedback.prepare()
    with feedback.remembered(task, kept) as memory:
        factor, known = clipping(new, old, schema, memory, bound, carried.fed_back(given))
        with out.open("wb") as file, feedback.remembering(lease, bool(kept)) as rest:
            writer = frames.FrameWriter(file.fileno(), compress.compressed(schema, codec))
            left = frames.FrameWriter(rest, kept) if kept else None
            draw = _uniform(task)
            for spec in schema:
                if not steps(spec):
                    for piece in clip.values(new, old, spec, frames.CHUNK):
                        writer.append(frames.raw_bytes(piece))
                    continue
                pieces = _pieces(new, old, spec, memory, factor)
                for part in _encoded(codec, pieces, draw, left):
                    writer.append(frames.raw_bytes(part))
            if left is not None:
                left.finish()
            header = writer.finish()
    return Packed(header, carried.coded(known, compress.name(codec), compress.expansion(codec)))


def memory_schema(schema: Schema) -> Schema:
    """Return the tensors of the memory of a model of `schema`."""
    return tuple(TensorSpec(s.name, "float32", s.shape) for s in schema if steps(s))


@dataclass(frozen=True, slots=True)
class Memory:
    """What earlier rounds left out, read in pieces; zeros where there is no `header`."""

    fd: int = -1
    header: frames.Header | None = None

    def pieces(self, spec: TensorSpec) -> Iterator[Single]:
        """Yield a tensor's memory in pieces of GROUP values; each may be overwritten."""
        if self.header is None:
            yield from _zeros(spec)
            return
        entry = next((e for e in self.header.entries if e.name == spec.name), None)
        if entry is None:  # a tensor of which nothing is left out
            yield from _zeros(spec)
            return
        for piece in frames.chunks(self.fd, self.header, entry, bytearray(GROUP * 4)):
            yield piece.astype(np.float32)  # a copy


def _zeros(spec: TensorSpec) -> Iterator[Single]:
    for start in range(0, spec.size, GROUP):
        yield np.zeros(min(GROUP, spec.size - start), np.float32)


def clipping(  # noqa: PLR0913, PLR0917 - what is measured, and by what
    new: int, old: int, schema: Schema, memory: Memory, bound: float, given: Carried
) -> tuple[float, Carried]:
    """Return what to multiply step + memory with, and what then holds."""
    total = 0.0
    for spec in schema:
        if steps(spec):
            for step, left in _pieces(new, old, spec, memory, 1.0):
                del left
                wide = step.astype(np.float64)
                total += float(np.dot(wide, wide))
    norm = sqrt(total)
    if not norm < inf:
        raise UpdateRejected("the step to compress holds NaN or infinity; training diverged")
    if not bound:
        return 1.0, given
    factor = 1.0 if norm <= bound else bound / norm
    return factor * _ROUNDING, carried.clipped(given, bound)


def _pieces(
    new: int, old: int, spec: TensorSpec, memory: Memory, factor: float
) -> Iterator[tuple[Single, Single]]:
    """Yield ((step + memory) * factor, memory), GROUP values at a time."""
    size = GROUP * DTYPES[spec.dtype].itemsize
    changes = clip.changes(new, old, spec, size)
    for change, left in zip(changes, memory.pieces(spec), strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            step = ((change.astype(np.float64) + left) * factor).astype(np.float32)
        yield step, left


def _encoded(
    codec: Codec,
    pieces: Iterator[tuple[Single, Single]],
    draw: Draw,
    left: frames.FrameWriter | None,
) -> Iterator[Array]:
    """Yield a tensor's parts; write its new memory to `left` on the way."""

    def kept() -> Iterator[tuple[Single, Single]]:
        for step, memory in pieces:
            yield step, memory  # `encode` overwrites it before it asks for the next
            if left is not None:
                left.append(frames.raw_bytes(memory))

    yield from compress.encode(codec, kept(), draw)


def _about(task: Task) -> str:
    return f"feedback of job {task.job}"


def _uniform(task: Task) -> Draw:
    """Return the task's rounding: uniform numbers of 24 bits from its seed."""
    about = f"consilia rounding {task.round} {task.seed}"
    random = random_of(hashlib.sha256(about.encode()).digest())

    def draw(count: int) -> Single:
        bits = np.frombuffer(random(4 * count), "<u4") >> np.uint32(8)
        found: Single = bits.astype(np.float32) * np.float32(2.0**-24)
        return found

    return draw
