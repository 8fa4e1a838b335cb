"""What an encrypted update is made of: its cells, the numbers in them, and their marks.

The numbers are those of a masked update (privacy.masked), without a ring: for every weight of
the model the change times the site's share of the records, the shares themselves, and the
metrics. They are laid into cells (privacy.ckks) in three groups, each beginning with a cell of
its own, since what a cell holds is exact to about 2**-50 of its largest number:

    weight and metrics | floating-point tensors | integers and truth values

In every cell one place, which only the holders of the round's key know, holds the site's
*mark*: a number that follows from key, site and cell. The sum of the survivors' updates holds
the sum of their marks there. So who opens it notices when the hub has left an update out,
counted one twice, or passes one update off as the sum. Marks are no proof against a hub that
computes with ciphertexts in other ways: see docs/threat-model.md.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Array, Schema, TensorSpec
from consilia.errors import Refused
from consilia.privacy import ckks
from consilia.privacy.masked import EXTRA
from consilia.privacy.noise import Stream
from consilia.privacy.streams import random_of
from consilia.wire import masks

CELLS = "consilia.cells"
GROUPS = ("consilia.extra", "consilia.floats", "consilia.others")
DATA = ckks.SLOTS - 1  # numbers in a cell, beside its mark
OFF = 2.0**-24  # what a sum of marks may be off: sums are exact to less, marks are in 2**-32
_SLACK = 1e-6  # what rounding may add to a range or to the sum of all shares
_FLOATS = ("float32", "float16", "bfloat16", "float64")

Floats = NDArray[np.float64]


def groups(base: Schema) -> tuple[Schema, Schema, Schema]:
    """Return the three groups of a model of schema `base`, each in its own order."""
    floats = tuple(spec for spec in base if spec.dtype in _FLOATS)
    return EXTRA, floats, tuple(spec for spec in base if spec.dtype not in _FLOATS)


def counts(base: Schema) -> tuple[int, ...]:
    """Return how many cells each group takes."""
    sizes = (sum(spec.size for spec in group) for group in groups(base))
    return tuple(-(-size // DATA) for size in sizes)


def schema(base: Schema) -> Schema:
    """Return the schema of an encrypted update, and of the encrypted sum."""
    return (TensorSpec(CELLS, "uint8", (sum(counts(base)), ckks.CELL)),)


def opened(base: Schema) -> Schema:
    """Return the schema of an opened sum: one flat tensor for each group that holds numbers."""
    found = zip(GROUPS, groups(base), strict=True)
    return tuple(
        TensorSpec(name, _kind(group), (sum(spec.size for spec in group),))
        for name, group in found
        if group
    )


def _kind(group: Schema) -> str:
    small = all(spec.dtype in _FLOATS and spec.dtype != "float64" for spec in group)
    return "float32" if small else "float64"


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of a round: where they are, and what each site's are."""

    _secret: bytes = field(repr=False)
    places: NDArray[np.int64]  # of each cell

    def of(self, *sites: str) -> Floats:
        """Return the sum of these sites' marks, by cell."""
        total = np.zeros(self.places.size, np.float64)
        for site in sites:
            stream = random_of(masks.digest("marks of", self._secret, site.encode()))
            total += np.frombuffer(stream(4 * total.size), "<u4") * 2.0**-32
        return total


def marks(key: bytes, session: bytes, cells: int) -> Marks:
    """Return the marks that follow from the round's key; `cells` is how many an update has."""
    secret = masks.digest("marks", session, hashlib.sha256(key).digest())
    drawn = random_of(masks.digest("places", secret))(2 * cells)
    return Marks(secret, np.frombuffer(drawn, "<u2").astype(np.int64) % ckks.SLOTS)


def encrypt(
    cipher: ckks.Cipher, found: Marks, site: str, numbers: Sequence[Iterable[Array]]
) -> Iterator[bytes]:
    """Yield the cells of a site's update; `numbers` are each group's, in pieces of any length.

    Raises UpdateRejected for numbers beyond ckks.REACH.
    """
    own, cell = found.of(site), 0
    for group in numbers:
        for values in cut(group, DATA):
            place = int(found.places[cell])
            yield cipher.encrypt(_with(values, place, own[cell]))
            cell += 1
    if cell != own.size:
        raise ValueError(f"an update of {cell} cells, its model has {own.size}")


def open_sum(  # noqa: PLR0913 - what is opened, with what, by which rules
    cipher: ckks.Cipher,
    found: Marks,
    survivors: Sequence[str],
    cells: Iterable[bytes],
    base: Schema,
    *,
    reach: float,
    stream: Stream,
) -> Iterator[Floats]:
    """Yield the numbers of a sum in the order of `opened`, flooded, cell by cell.

    Raises Refused unless the cells are the sum of the survivors' updates, as far as marks and
    sizes tell: weights that add up to 1 at most, changes of a weight within `reach` (the
    range of wire.v1.Privacy). The caller releases nothing of it then.
    """
    expected, sizes = found.of(*survivors), [sum(s.size for s in g) for g in groups(base)]
    limits = [ckks.REACH, reach * (1 + _SLACK), ckks.REACH]
    source, number = iter(cells), 0
    for size, limit in zip(sizes, limits, strict=True):
        for start in range(0, size, DATA):
            exact = cipher.open(next(source))
            place = int(found.places[number])
            if not abs(exact[place] - expected[number]) < OFF:  # False for NaN
                raise Refused(
                    "what the hub wants opened is not the sum of the updates of "
                    f"{', '.join(survivors)}: the marks in it are not theirs. A hub that "
                    "passes on something else could read a site's update"
                )
            values = np.delete(exact, place)[: min(DATA, size - start)]
            _require_within(values, limit)
            if number == 0 and not 0 < values[0] <= 1 + _SLACK:
                raise Refused(
                    f"the weights in the sum add up to {values[0]:g}, needed above 0 and at "
                    "most 1: it is not a sum of updates weighed by their share of the records"
                )
            yield ckks.flood(values, stream)
            number += 1


def cut(pieces: Iterable[Array], size: int) -> Iterator[Floats]:
    """Yield the values of `pieces` as float64 arrays of `size`, the last perhaps shorter."""
    room, filled = np.empty(size), 0
    for piece in pieces:
        done = 0
        while done < piece.size:
            take = min(size - filled, piece.size - done)
            room[filled : filled + take] = piece[done : done + take]
            filled, done = filled + take, done + take
            if filled == size:
                yield room
                filled = 0
    if filled:
        yield room[:filled]


def _with(values: Floats, place: int, mark: float) -> Floats:
    """Return a cell's numbers: the values, and the mark at its place among them."""
    full, head = np.zeros(ckks.SLOTS), min(place, values.size)
    full[:head] = values[:head]
    full[place] = mark
    full[place + 1 : place + 1 + values.size - head] = values[head:]
    return full


def _require_within(values: Floats, limit: float) -> None:
    worst = float(np.abs(values).max())
    if not worst <= limit:  # False for NaN
        raise Refused(
            f"a number in the sum is {worst:g}, needed at most {limit:g}: no sum of updates "
            "within privacy.range is so large"
        )
