"""`./run bench compress`: what compression saves on the road, and what it costs site and hub.

One site packs an update of a float32 model (clip, feedback, coding, to disk) and the hub folds
it, each with the real functions, without a network. `whole` is the same fold of an update that
is not compressed. Times are the best of a few, as other programs only add to them.
"""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from consilia.algo import compress
from consilia.algo.aggregate import Fold, Read
from consilia.core.weights import Schema, TensorSpec
from consilia.node import clip
from consilia.node.compressing import Feedback, pack
from consilia.node.studykeys import Rest
from consilia.wire import frames
from consilia.wire.v1 import Compression, Lease, Privacy, Task

NAMES = ("int16", "int8", "top-5%", "int8+top-5%")
REPEATS = 3


def measure(folder: Path, params: int) -> dict[str, Any]:
    """Return the figures of each codec for a model of `params` float32 parameters."""
    rng = np.random.default_rng(0)
    schema = (TensorSpec("w", "float32", (params,)),)
    old = rng.standard_normal(params, np.float32)
    new = old + np.float32(0.01) * rng.standard_normal(params, np.float32)
    whole = frames.write(folder / "old", {"w": old}).total_bytes
    frames.write(folder / "new", {"w": new})
    del old, new
    plain = _fold(schema, folder / "new", folder / "old", None)
    found = {name: _one(folder, schema, name, whole) for name in NAMES}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {
        "params": params,
        "bytes_whole": whole,
        "fold_whole_ms": plain,
        "codecs": found,
        "peak_mib": peak,
        "correct": all(c["feedback_error"] < 1e-6 for c in found.values()),
    }


def _one(folder: Path, schema: Schema, name: str, whole: int) -> dict[str, Any]:
    codec = compress.named(name)
    if codec is None:
        raise ValueError(f"{name} compresses nothing")
    asked = Compression(8 if codec.bits == 8 else 16 if codec.bits == 16 else 32, codec.keep)
    feedback = Feedback(
        folder / "feedback", time.time, Rest(lambda study: bytes(32), os.urandom)
    )
    task = Task(
        "train", name, 1, "", "", "", {}, (), None, 1, privacy=Privacy(compression=asked)
    )
    lease = Lease(f"{name}.1.0.here", task, 60.0)

    def work() -> None:
        with (
            frames.opened(folder / "new", os.O_RDONLY) as new,
            frames.opened(folder / "old", os.O_RDONLY) as old,
        ):
            pack(new, old, lease, feedback, folder / "packed", 1e9)

    packing = _best(work)
    sent = (folder / "packed").stat().st_size
    return {
        "bytes": sent,
        "saved": round(1 - sent / whole, 4),
        "pack_ms": packing,
        "fold_ms": _fold(schema, folder / "packed", folder / "old", codec),
        "feedback_error": _error(folder, schema, codec, feedback.waiting(lease.id)),
    }


def _fold(schema: Schema, update: Path, base: Path, codec: compress.Codec | None) -> float:
    """Return the milliseconds that folding one more update takes."""
    fold = Fold(schema)

    def work() -> None:
        with frames.opened(update) as new, frames.opened(base) as old:
            fold.add(10, _reader(new, old, codec))

    return _best(work)


def _reader(new: int, old: int, codec: compress.Codec | None) -> Read:
    head, base = frames.read_header(new), frames.read_header(old)
    parts = {entry.name: entry for entry in head.entries}
    tensors = {entry.name: entry for entry in base.entries}
    buffer = bytearray(frames.CHUNK)

    def own(spec: TensorSpec) -> Any:
        return frames.chunks(new, head, parts[spec.name], buffer)

    if codec is None:
        return own
    return compress.restored(
        codec, own, lambda spec: frames.chunks(old, base, tensors[spec.name], buffer)
    )


def _error(folder: Path, schema: Schema, codec: compress.Codec, memory: Path) -> float:
    """Return by how much what was sent and what was kept differ from what was meant."""
    worst = 0.0
    with (
        frames.opened(folder / "packed") as packed,
        frames.opened(folder / "old") as old,
        frames.opened(folder / "new") as new,
        frames.opened(memory) as left,
    ):
        sent = compress.recut(_reader(packed, old, codec)(schema[0]), 1 << 16)
        head, base = frames.read_header(left), frames.read_header(old)
        kept = frames.chunks(left, head, head.entries[0], bytearray(4 << 16))
        start = frames.chunks(old, base, base.entries[0], bytearray(4 << 16))
        meant = clip.changes(new, old, schema[0], 4 << 16)
        for a, b, c, d in zip(sent, kept, start, meant, strict=True):
            wide = [piece.astype(np.float64) for piece in (a, b, c, d)]
            worst = max(worst, float(np.abs(wide[0] - wide[2] + wide[1] - wide[3]).max()))
    return worst


def _best(work: Callable[[], object]) -> float:
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return round(min(found) * 1e3, 1)
