"""Spooled updates read side by side: for rules that must see them together, and for alarms.

Piece by piece: of every update the same 256 KiB are in memory, and of the result one tensor.
What the rules compute is told in algo.robust. Everything blocks, in the folding thread.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consilia.algo.aggregate import Accumulator, Read, accumulator, cast, widen_into
from consilia.algo.robust import RULES, Choose, Floats, Rule, measure
from consilia.algo.strategy import steps
from consilia.core.weights import Array, Schema, TensorSpec
from consilia.errors import StorageError
from consilia.wire.frames import CHUNK

BLOCK = 32 << 10  # elements widened at a time; a piece of bytes holds more
_EXACT = 1 << 53


@dataclass(frozen=True, slots=True)
class Choice:
    """The rule of a job, with its options."""

    rule: Rule
    options: Mapping[str, float]


class Combined:
    """What a rule makes of updates, tensor by tensor. Not thread-safe."""

    def __init__(self, schema: Schema, reads: Sequence[Read], choice: Choice) -> None:
        """`reads` are the updates, in the order of their sites; they stay open."""
        self._schema = schema
        self._reads = tuple(reads)
        self._choice = choice
        self._last: tuple[str, Accumulator] | None = None  # the tensor made last
        self._weights: Floats | None = None

    def mean(self, spec: TensorSpec) -> Accumulator:
        """Return what the rule makes of a tensor, flat; good until another is asked for."""
        if self._last is None or self._last[0] != spec.name:
            self._last = (spec.name, self._made(spec))
        return self._last[1]

    def result_chunk(self, spec: TensorSpec, start: int, stop: int) -> Array:
        """Return elements `start` to `stop` of it in the tensor's own dtype."""
        return cast(self.mean(spec)[start:stop], spec.dtype)

    def _made(self, spec: TensorSpec) -> Accumulator:
        out = np.empty(spec.size, accumulator(spec.dtype))
        rule, options = self._choice.rule, self._choice.options
        if steps(spec) and rule.choose is not None:
            self._weigh(rule.choose, spec, out)
            return out
        # Counters and masks take the median under every rule that is not the mean.
        combine = rule.combine if steps(spec) and rule.combine else RULES["median"].combine
        if combine is None:
            raise StorageError(f"aggregate {rule.name} does not read updates side by side")
        for start, rows in blocks(spec, self._reads, accumulator(spec.dtype)):
            out[start : start + rows.shape[1]] = combine(options, rows)
        return out

    def _weigh(self, choose: Choose, spec: TensorSpec, out: Accumulator) -> None:
        """Write the weighted mean of the updates that have a weight."""
        if self._weights is None:
            self._weights = choose(self._choice.options, squares(self._schema, self._reads))
        used = np.flatnonzero(self._weights)
        shares = self._weights[used] / np.cumsum(self._weights[used])
        reads = [self._reads[i] for i in used]
        for start, rows in blocks(spec, reads, accumulator(spec.dtype)):
            mean = rows[0]
            for share, row in zip(shares[1:], rows[1:], strict=True):
                # As algo.aggregate.Fold does: equal updates give exactly that update.
                np.subtract(row, mean, out=row)
                np.multiply(row, row.dtype.type(share), out=row)
                np.add(mean, row, out=mean)
            out[start : start + rows.shape[1]] = mean


def squares(schema: Schema, reads: Sequence[Read]) -> Floats:
    """Return the squared L2 distances [n, n] between updates, over their float tensors."""
    found = np.zeros((len(reads), len(reads)))
    for spec in schema:
        if steps(spec):
            for _, rows in blocks(spec, reads, np.dtype(np.float64)):
                measure(rows, found)
    return found


def blocks(
    spec: TensorSpec,
    reads: Sequence[Read],
    dtype: "np.dtype[np.float32] | np.dtype[np.float64]",
) -> Iterator[tuple[int, "NDArray[np.float64]"]]:
    """Yield (start, values[n, m]) of a tensor, in order; the values may be overwritten.

    All readers cut the tensor alike. A reader may use one buffer for all, as each piece is
    copied before the next is asked for.
    """
    raw = np.empty((len(reads), CHUNK), np.uint8)
    rows = np.empty((len(reads), min(BLOCK, max(1, spec.size))), dtype)
    at = 0
    for pieces in _together(spec, reads, raw):
        for start in range(0, pieces[0].size, BLOCK):
            part = rows[:, : min(BLOCK, pieces[0].size - start)]
            for piece, row in zip(pieces, part, strict=True):
                _widen(piece[start : start + BLOCK], row, spec)
            yield at + start, part
        at += pieces[0].size


def _together(
    spec: TensorSpec, reads: Sequence[Read], raw: NDArray[np.uint8]
) -> Iterator[list[Array]]:
    """Yield the next piece of every update, copied into its row of `raw`."""
    streams = [read(spec) for read in reads]
    while True:
        pieces: list[Array] = []
        for stream, room in zip(streams, raw, strict=True):
            piece = next(stream, None)
            if piece is None:
                break
            kept = room[: piece.nbytes].view(piece.dtype)
            kept[...] = piece
            pieces.append(kept)
        if not pieces:
            return
        if len({piece.size for piece in pieces}) > 1 or len(pieces) < len(streams):
            raise StorageError(f"tensor {spec.name!r} is cut differently in two updates")
        yield pieces


def _widen(part: Array, row: Accumulator, spec: TensorSpec) -> None:
    """Write values in the row's dtype; integers beyond float64's reach count as its limit.

    The mean refuses those (it would be wrong without a word); here one bad site could fail
    every round with them, and for a median it is enough that they are far out.
    """
    if spec.dtype in ("int64", "uint64"):
        low = 0 if spec.dtype == "uint64" else -_EXACT
        part = part.clip(low, _EXACT)
    if row.dtype == accumulator(spec.dtype):
        widen_into(part, row, spec)
        return
    single = np.empty(part.size, accumulator(spec.dtype))
    widen_into(part, single, spec)
    row[...] = single
