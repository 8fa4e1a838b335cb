"""Bound how far one site's update may move the model: the L2 norm of new minus old weights.

Two passes over the frame the release has written, in pieces, so that no model is in memory:
one sums the squares in float64, a second, only when the norm is above the bound C, rewrites
the frame as old + (new - old) * C / norm. Floating tensors count; integers pass unchanged.
Source: McMahan et al. 2018 (DP-FedAvg), per-update clipping.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consilia.algo.aggregate import Accumulator, accumulator, widen_into
from consilia.core import carried
from consilia.core.carried import Carried
from consilia.core.weights import BFLOAT16, Array, Schema, TensorSpec, narrow, widen
from consilia.privacy.noise import Stream, client_noise, local_grid
from consilia.wire import frames
from consilia.wire.v1 import Dp

_FLOATS = ("float64", "float32", "float16", "bfloat16")


def norm(new: int, old: int) -> float:
    """Return the L2 norm of the difference of two frames (descriptors) of one schema."""
    total = 0.0
    for _, a, b in _pairs(new, old, floats_only=True):
        if b is not None:
            step = _wide(a) - _wide(b)
            total += float(np.dot(step, step))
    return math.sqrt(total)


def scaled(new: int, old: int, factor: float, out: Path) -> frames.Header:
    """Write old + (new - old) * factor as a frame to `out`; return its header."""
    base = frames.read_header(old)
    unchanged = {e.digest for e in base.entries if e.stored}
    with out.open("wb") as file:
        writer = frames.FrameWriter(file.fileno(), frames.read_header(new).schema, unchanged)
        for dtype, a, b in _pairs(new, old, floats_only=False):
            if b is None or dtype not in _FLOATS:
                writer.append(frames.raw_bytes(a))
                continue
            start = _wide(b)
            moved = start + (_wide(a) - start) * factor
            writer.append(frames.raw_bytes(_as(moved, a)))
        return writer.finish()


def private(
    new: int, old: int, dp: Dp, random: Callable[[int], bytes], out: Path
) -> frames.Header:
    """Write old + clipped (new - old) + noise as a frame to `out`: client-level privacy.

    The norm is that of the whole update (McMahan et al. 2018, algorithm 1). Integers, which
    carry no noise, stay as they were.
    """
    head, base = frames.read_header(new), frames.read_header(old)
    size = sum(spec.size for spec in head.schema if spec.dtype in _FLOATS)
    grid, stream = local_grid(dp, size), Stream(random)
    factor = grid.factor(norm(new, old))
    left, right = bytearray(frames.CHUNK), bytearray(frames.CHUNK)
    before = {e.name: e for e in base.entries}
    moved = {e.name: e for e in head.entries if e.stored}
    borrowed = frames.borrowed(head, base)
    with out.open("wb") as file:
        writer = frames.FrameWriter(file.fileno(), head.schema)
        for spec in head.schema:
            source = (
                (new, head, moved[spec.name])
                if spec.name in moved
                else (old, base, borrowed[spec.name])
            )
            ours = frames.chunks(*source, left)
            theirs = frames.chunks(old, base, before[spec.name], right)
            for a, b in zip(ours, theirs, strict=True):
                if spec.dtype not in _FLOATS:
                    writer.append(frames.raw_bytes(b))
                    continue
                start = _wide(b)
                change = client_noise(_wide(a) - start, factor, grid, stream)
                writer.append(frames.raw_bytes(_as(start + change, a)))
        return writer.finish()


def carried_of(dp: Dp, schema: Schema) -> Carried:
    """Return what holds for an update of `private`; nothing at the levels of persons."""
    if dp.level != "client":
        return Carried()
    size = sum(spec.size for spec in schema if spec.dtype in _FLOATS)
    grid = local_grid(dp, size)
    bounded = carried.clipped(Carried(), grid.bound)
    return carried.noised(
        carried.gridded(bounded, grid.step, size, nearest=True), grid.std * grid.step
    )


def changes(new: int, old: int, spec: TensorSpec, size: int) -> Iterator[Accumulator]:
    """Yield new minus old of one tensor of two frames, in pieces of `size` bytes of it.

    Flat, in the precision of algo.aggregate; each piece is an array of its own.
    """
    base = frames.read_header(old)
    before = next(e for e in base.entries if e.name == spec.name)
    kind = accumulator(spec.dtype)
    theirs = frames.chunks(old, base, before, bytearray(size))
    for a, b in zip(values(new, old, spec, size), theirs, strict=True):
        change, start = np.empty(a.size, kind), np.empty(a.size, kind)
        widen_into(a, change, spec)
        widen_into(b, start, spec)
        np.subtract(change, start, out=change)
        yield change


def values(new: int, old: int, spec: TensorSpec, size: int) -> Iterator[Array]:
    """Yield one tensor of an update in pieces of `size` bytes, all in one buffer.

    One that it leaves out as unchanged is read from the base model.
    """
    head, base = frames.read_header(new), frames.read_header(old)
    own = next(e for e in head.entries if e.name == spec.name)
    source = (new, head, own)
    if not own.stored:  # the identical tensor of the base, perhaps under another name
        source = (old, base, frames.borrowed(head, base)[spec.name])
    return frames.chunks(*source, bytearray(size))


def _pairs(new: int, old: int, floats_only: bool) -> Iterator[tuple[str, Array, Array | None]]:
    """Yield (dtype, new piece, old piece) in schema order; old None where nothing changed."""
    head, base = frames.read_header(new), frames.read_header(old)
    before = {e.name: e for e in base.entries}
    left, right = bytearray(frames.CHUNK), bytearray(frames.CHUNK)
    for entry in head.entries:
        if floats_only and entry.dtype not in _FLOATS:
            continue
        other = before[entry.name]
        if not entry.stored:
            source = next(e for e in base.entries if e.stored and e.digest == entry.digest)
            if source.digest == other.digest:
                if not floats_only:
                    for piece in frames.chunks(old, base, source, left):
                        yield entry.dtype, piece, None
                continue
            pieces = frames.chunks(old, base, source, left)
        else:
            pieces = frames.chunks(new, head, entry, left)
        for a, b in zip(pieces, frames.chunks(old, base, other, right), strict=True):
            yield entry.dtype, a, b


def _wide(piece: Array) -> NDArray[np.float64]:
    return (widen(piece) if piece.dtype == BFLOAT16 else piece).astype(np.float64)


def _as(values: NDArray[np.float64], like: Array) -> Array:
    """Round to the dtype of `like`, to nearest."""
    if like.dtype == BFLOAT16:
        return narrow(values.astype(np.float32))
    return values.astype(like.dtype)
