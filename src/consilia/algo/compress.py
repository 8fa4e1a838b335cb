"""Smaller updates: a model's step in 8 or 16 bits, or its largest values only, or both.

    p = step + memory          error feedback: what earlier rounds left out is tried again
    c = clip(p, C)             |c| <= C: from here on a bound goes with the values
    q = code(c)                quantise in blocks, keep the largest of each group
    memory' = c - restore(q)   stays at the site; explicit state, an array like the model

Quantising rounds at random so that it is right on average: with scale s = max|x| / L of each
block of BLOCK values, L = 127 or 32767, q = floor(x / s + u) with u uniform in [0, 1), so that
E[q s] = x and |q s - x| < s. Keeping takes the ceil(keep m) largest of each group of m = GROUP
values.

| stage | L2 norm of what leaves it, at most | why |
|---|---|---|
| clip | C | scaled by min(1, C / |p|) |
| keep | C | a part of the values is no longer than all |
| quantise | C (1 + sqrt(BLOCK) / L) | a block's error is below sqrt(BLOCK) max|x| / L |

That bound is the sensitivity to leaving the whole site out (client level); `core.carried` takes
it from stage to stage. **Noise for differential privacy goes on a grid, not on blocks**: the
scales of blocks are themselves values of patients and would leave unprotected. So nothing that
is coded here is noised afterwards. At record level noise is in the training; whatever is
compressed after it is post-processing and needs none of this, but memory then holds what was
noised, never a raw step.

Frame form (`compressed`): a float tensor t becomes t (int8, int16 or float32), t/scale (one
float32 for each block) if quantised, t/at (uint16, where in its group each value was) if only
some are kept. Integer and bool tensors travel as they are. All is done by pieces of GROUP.

Sources: Alistarh et al., QSGD, NeurIPS 2017 (random rounding). Stich, Cordonnier, Jaggi,
Sparsified SGD with Memory, NeurIPS 2018; Karimireddy et al., Error Feedback Fixes SignSGD, ICML
2019 (memory). McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR
2018 (clip).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from consilia.algo.aggregate import Read, accumulator, cast, widen_into
from consilia.algo.strategy import steps
from consilia.core.weights import Array, Schema, TensorSpec
from consilia.errors import ConfigError, UpdateRejected

BLOCK = 1024  # values that share one scale
GROUP = 1 << 16  # values among which the largest are kept: positions fit in 16 bits
_LEVELS = {8: 127, 16: 32767}
_NAME = re.compile(
    r"int(?P<alone>8|16)|(int(?P<bits>8|16)\+)?top-(?P<share>[0-9]{1,3}(\.[0-9]{1,9})?)%"
)
_INTEGERS = {8: np.int8, 16: np.int16}
_LEAST = float(np.finfo(np.float32).tiny)  # of a scale
_MOST = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}
_ROUNDING = 1.0 + 1e-6  # float32 rounding of scales and values, in the stated bounds

Single = NDArray[np.float32]
Double = NDArray[np.float64]
Draw = Callable[[int], Single]  # so many independent numbers, uniform in [0, 1)


@dataclass(frozen=True, slots=True)
class Codec:
    """How an update is made smaller."""

    bits: int = 8  # 8 or 16; 32 leaves values as float32
    keep: float = 1.0  # share of the values that is sent; 1 sends all


def check(codec: Codec) -> None:
    """Raise ConfigError unless the codec can be used and makes anything smaller."""
    if codec.bits not in (8, 16, 32):
        raise ConfigError(f"compression bits is {codec.bits}, needs 8, 16 or 32")
    if not 0 < codec.keep <= 1:
        raise ConfigError(f"compression keep is {codec.keep}, needs to be above 0, at most 1")
    if codec.bits == 32 and codec.keep > 0.6:
        raise ConfigError(
            f"compression with 32 bits and keep {codec.keep:g} saves next to nothing: each "
            "kept value takes 6 bytes instead of 4; keep 0.6 or less, or use 8 or 16 bits"
        )


def named(text: str) -> Codec | None:
    """Return the codec that an experiment names, None for "none"; ConfigError for no codec.

    int8, int16, top-5%, int8+top-5%, int16+top-0.5%, ...
    """
    if text == "none":
        return None
    found = _NAME.fullmatch(text)
    if found is None or not text:
        raise ConfigError(
            f"compress is {text[:80]!r}; needed none, int8, int16, top-5% (only the largest "
            "values, any share) or both, as in int8+top-5%"
        )
    bits, share = found["bits"] or found["alone"], found["share"]
    codec = Codec(int(bits) if bits else 32, float(share) / 100 if share else 1.0)
    check(codec)
    return codec


def name(codec: Codec) -> str:
    """Return what `named` reads."""
    word = [f"int{codec.bits}"] if codec.bits < 32 else []
    most = [f"top-{codec.keep * 100:.10g}%"] if codec.keep < 1 else []
    return "+".join((*word, *most)) or "none"


# ---- one group of values ---------------------------------------------------------------------


def quantise(values: Single, bits: int, uniform: Single) -> tuple[Array, Single]:
    """Return integers, and a scale for each BLOCK of values, so that their product is near.

    `values` are finite; `uniform` has one number for each. Error: below the block's scale.
    """
    level = _LEVELS[bits]
    scales = _scales(values, level)
    wide = values.astype(np.float64) / np.repeat(scales, BLOCK)[: values.size]
    found = np.clip(np.floor(wide + uniform), -level, level)  # a scale may be rounded down
    return found.astype(_INTEGERS[bits]), scales


def dequantise(integers: Array, scales: Single) -> Single:
    """Return what `quantise` has made of the values."""
    wide = integers.astype(np.float64) * np.repeat(scales, BLOCK)[: integers.size]
    with np.errstate(over="ignore"):  # a bad site's scale: restore() refuses infinity
        return wide.astype(np.float32)


def _scales(values: Single, level: int) -> Single:
    if not values.size:
        return np.empty(0, np.float32)
    highest = np.maximum.reduceat(np.abs(values), np.arange(0, values.size, BLOCK))
    scales = (highest / np.float32(level)).astype(np.float32)  # never a zero to divide by
    found: Single = np.maximum(scales, np.float32(_LEAST))
    return found


def largest(values: Single, keep: float) -> NDArray[np.uint16]:
    """Return the positions of a group's largest values, ascending; of equals the first."""
    sizes, count = np.abs(values), kept(values.size, keep)
    if not count:
        return np.empty(0, np.uint16)
    edge = np.partition(sizes, values.size - count)[values.size - count]
    above = np.flatnonzero(sizes > edge)
    level = np.flatnonzero(sizes == edge)[: count - above.size]
    return np.sort(np.concatenate((above, level))).astype(np.uint16)


def kept(size: int, keep: float) -> int:
    """Return how many of a group's `size` values are sent."""
    return min(size, ceil(size * keep - 1e-9))


def expansion(codec: Codec) -> float:
    """Return by which factor coding can make values longer."""
    if codec.bits == 32:
        return 1.0
    return (1.0 + sqrt(BLOCK) / _LEVELS[codec.bits]) * _ROUNDING


# ---- a tensor, piece by piece ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Code:
    """One coded group: what travels, and what the receiver makes of it."""

    values: Array
    scales: Single
    at: NDArray[np.uint16]
    restored: Single


def _code(part: Single, codec: Codec, draw: Draw) -> _Code:
    at = largest(part, codec.keep) if codec.keep < 1 else np.empty(0, np.uint16)
    chosen = part[at] if codec.keep < 1 else part
    values: Array = chosen
    scales, back = np.empty(0, np.float32), chosen
    if codec.bits < 32:
        values, scales = quantise(chosen, codec.bits, draw(chosen.size))
        back = dequantise(values, scales)
    if codec.keep < 1:
        restored = np.zeros(part.size, np.float32)
        restored[at] = back
        back = restored
    return _Code(values, scales, at, back)


def compressed(schema: Schema, codec: Codec) -> Schema:
    """Return the tensors that a compressed update of `schema` has, in their order.

    Raises ConfigError when a tensor's name is taken by a part of another.
    """
    check(codec)
    found = tuple(part for spec in schema for part in _parts(spec, codec))
    names = [spec.name for spec in found]
    if twice := sorted({name for name in names if names.count(name) > 1})[:3]:
        raise ConfigError(f"tensors {twice} cannot be compressed: a part would have their name")
    return found


def _parts(spec: TensorSpec, codec: Codec) -> tuple[TensorSpec, ...]:
    if not steps(spec):
        return (spec,)
    sizes = [min(GROUP, spec.size - start) for start in range(0, spec.size, GROUP)]
    counts = [kept(size, codec.keep) for size in sizes]
    kind = "float32" if codec.bits == 32 else f"int{codec.bits}"
    shape = spec.shape if codec.keep == 1 else (sum(counts),)
    parts = [TensorSpec(spec.name, kind, shape)]
    if codec.bits < 32:
        scales = sum(-(-count // BLOCK) for count in counts)
        parts.append(TensorSpec(f"{spec.name}/scale", "float32", (scales,)))
    if codec.keep < 1:
        parts.append(TensorSpec(f"{spec.name}/at", "uint16", (sum(counts),)))
    return tuple(parts)


def encode(
    codec: Codec, pieces: Iterable[tuple[Single, Single]], draw: Draw
) -> Iterator[Array]:
    """Yield the bytes of a float tensor's parts, in frame order, as arrays to append.

    `pieces` are (step, memory) of GROUP elements each, the last one shorter; the step is
    clipped (over the whole model) with memory inside. Each memory is overwritten
    with what was not sent: it belongs to the next round once the update was delivered.
    """
    scales, places = [], []
    for step, memory in pieces:
        code = _code(step, codec, draw)
        np.subtract(step, code.restored, out=memory)
        scales.append(code.scales)
        places.append(code.at)
        yield code.values
    if codec.bits < 32:
        yield from scales
    if codec.keep < 1:
        yield from places


def restored(codec: Codec, read: Read, old: Read) -> Read:
    """Return how to read a compressed update as if it were a whole one.

    `read` yields the parts that `compressed` lists, `old` the base model's tensors; both as
    flat pieces of any length in buffers of their own or a common one. What is yielded has the
    dtype of the tensor asked for. UpdateRejected when a part is not what `encode` makes.
    """

    def tensor(spec: TensorSpec) -> Iterator[Array]:
        if not steps(spec):
            yield from read(spec)
            return
        parts = _parts(spec, codec)
        values = _Stream(read(parts[0]), spec.name)
        scales = _Stream(read(parts[1]), spec.name) if codec.bits < 32 else None
        places = _Stream(read(parts[-1]), spec.name) if codec.keep < 1 else None
        base = _Stream(old(spec), spec.name)
        for start in range(0, spec.size, GROUP):
            size = min(GROUP, spec.size - start)
            count = kept(size, codec.keep)
            step = values.take(count)
            if scales is not None:
                step = dequantise(step, scales.take(-(-count // BLOCK)).astype(np.float32))
            if places is not None:
                step = _spread(step, places.take(count), size, spec)
            yield _moved(base.take(size), step, spec)

    return tensor


def recut(pieces: Iterator[Array], size: int) -> Iterator[Array]:
    """Yield the same elements in pieces of `size`, the last one shorter."""
    held: list[Array] = []
    count = 0
    for piece in pieces:
        start = 0
        while start < piece.size:
            part = piece[start : start + size - count]
            start += part.size
            count += part.size
            if count == size and not held:
                yield part
                count = 0
                continue
            held.append(part.copy())
            if count == size:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)


def _spread(values: Array, at: Array, size: int, spec: TensorSpec) -> Array:
    where = at.astype(np.int64)
    if where.size and (int(where[-1]) >= size or (np.diff(where) <= 0).any()):
        raise UpdateRejected(
            f"tensor {spec.name!r} has positions that are not ascending or beyond the {size} "
            "values of a group"
        )
    found = np.zeros(size, np.float32)
    found[where] = values
    return found


def _moved(old: Array, step: Array, spec: TensorSpec) -> Array:
    """Return old + step in the tensor's dtype; refuse what is not finite."""
    new = np.empty(old.size, accumulator(spec.dtype))
    widen_into(old, new, spec)
    with np.errstate(over="ignore", invalid="ignore"):
        new += step
    most = _MOST[spec.dtype]
    if new.size and not -most <= float(new.min()) <= float(new.max()) <= most:  # nor NaN
        raise UpdateRejected(f"tensor {spec.name!r} is not finite when its step is added")
    return cast(new, spec.dtype)


class _Stream:
    """Pieces of any length, taken in other lengths."""

    def __init__(self, pieces: Iterator[Array], name: str) -> None:
        self._pieces = pieces
        self._name = name
        self._left: Array | None = None

    def take(self, count: int) -> Array:
        """Return the next `count` elements, copied; UpdateRejected when there are fewer."""
        found: list[Array] = []
        while count:
            if self._left is None or not self._left.size:
                self._left = next(self._pieces, None)
                if self._left is None:
                    raise UpdateRejected(f"tensor {self._name!r} is {count} elements short")
                self._left = self._left.copy()  # its buffer may be used for another part
            taken, self._left = self._left[:count], self._left[count:]
            count -= taken.size
            found.append(taken)
        return np.concatenate(found) if found else np.empty(0, np.float32)
