"""The privacy ledger's arithmetic: a Renyi filter in exact integers. Pure; no clock, no disk.

A spend is a vector of Renyi divergences, one for each order alpha of a fixed grid, in nats. A
cap (epsilon, delta) holds while, for at least one order,

    sum of the spends at alpha  +  conversion(alpha, delta_alpha)  <=  epsilon

with the conversion of Canonne, Kamath & Steinke 2020 (arXiv:2004.00010, proposition 12):

    conversion(alpha, delta) = log(1 - 1/alpha) - (log delta + log alpha) / (alpha - 1)

Whoever asks next has seen the answers so far, and so may choose what to ask, at which noise,
by them. At one order fixed beforehand the sum bounds the loss all the same (Feldman & Zrnic
2021, theorem 3.1; Lecuyer 2021), also for jobs that run side by side (Haney et al. 2023). To
let one of several orders decide at the end, delta is shared out beforehand, by the cap alone:
half of it to the order that serves Gaussian noise best under the cap, a sixth to each of three
lower ones, which serve small samples better, nothing to the rest. The delta_alpha sum to delta,
so a union over the orders proves (epsilon, delta) for the whole history.

Sums are integers of 2**-40 nat, each spend rounded up. So a refund takes back exactly what was
reserved, the order of entries never matters, and any implementation finds the same totals.
"""

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import msgspec

from consilia.core.chain import GENESIS, Break
from consilia.errors import ConfigError

UNIT = 1 << 40  # units in one nat
MOST = 1 << 60  # units charged for an infinite divergence: more than any cap allows
MAX_EPSILON = 1000.0
MAX_DELTA = 0.01
_LOWER = 3  # orders that have a share beside the best one
_STEP = 1.5  # between (order - 1) of one and of the next

Vector = tuple[int, ...]  # units, one for each order
Kind = Literal["reserve", "begin", "settle", "refund", "cap", "uncap", "restore"]


class Cap(msgspec.Struct, frozen=True):
    """The most that may ever be spent: (epsilon, delta) of all releases together."""

    epsilon: float
    delta: float = 1e-5


@dataclass(frozen=True, slots=True)
class Filter:
    """A cap as conditions on sums of spends; made by `make_filter`."""

    cap: Cap
    conversions: tuple[float, ...]  # nats, for each order; infinite where it has no share
    room: Vector  # the largest sum at each order; negative where it cannot serve


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger. `change` is what it adds to the totals; empty for nothing.

    `epsilon` at `delta` is for the reader: what the spend alone comes to, or the cap set.
    """

    seq: int
    at: float  # Unix seconds
    kind: Kind
    lease: str = ""
    run: int = 0  # a lease that is charged again counts its charges from 1
    job: str = ""
    universe: str = ""
    dataset: str = ""
    study: str = ""
    researcher: str = ""
    level: str = ""
    epsilon: float = 0.0
    delta: float = 0.0
    change: Vector = ()
    actor: str = "agent"
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """How many entries a ledger has, and the digest of the last."""

    length: int
    digest: str


EMPTY = Head(0, GENESIS)


def check_cap(cap: Cap) -> None:
    """Raise ConfigError for a cap that caps nothing."""
    if not 0 <= cap.epsilon <= MAX_EPSILON:
        raise ConfigError(
            f"epsilon: found {cap.epsilon}, needed 0 (nothing) to {MAX_EPSILON:g}"
        )
    if not 0 < cap.delta <= MAX_DELTA:
        raise ConfigError(
            f"delta: found {cap.delta}, needed more than 0 and at most {MAX_DELTA:g}; "
            "less than one over the number of patients"
        )


def check_orders(orders: Sequence[float]) -> None:
    """Raise ValueError unless the orders rise and each is above 1 and finite."""
    rising = all(a < b for a, b in pairwise(orders))
    if not orders or not rising or not 1 < orders[0] <= orders[-1] < math.inf:
        raise ValueError(f"orders must rise from above 1, found {tuple(orders)[:8]}")


def make_filter(cap: Cap, orders: Sequence[float]) -> Filter:
    """Return a cap's conditions at `orders`; see the head of this module."""
    check_cap(cap)
    shares = _shares(cap, orders)
    found = tuple(
        conversion(order, cap.delta * shares[i]) if i in shares else math.inf
        for i, order in enumerate(orders)
    )
    # One unit less: the logarithms are rounded, and the promise must not be.
    room = tuple(
        -1 if c == math.inf else math.floor((cap.epsilon - c) * UNIT) - 1 for c in found
    )
    return Filter(cap, found, room)


def _shares(cap: Cap, orders: Sequence[float]) -> dict[int, float]:
    """Return which orders decide, by index, and each one's share of delta; they sum to 1."""
    best = max(
        range(len(orders)),
        key=lambda i: (cap.epsilon - conversion(orders[i], cap.delta / 2)) / orders[i],
    )
    targets = [(orders[best] - 1) / _STEP**k for k in range(1, _LOWER + 1)]
    lower = {_nearest(orders[: best + 1], at) for at in targets} - {best}
    if not lower:
        return {best: 1.0}
    return {best: 0.5, **dict.fromkeys(lower, 0.5 / len(lower))}


def _nearest(orders: Sequence[float], above: float) -> int:
    """Return the index of the order that is nearest to 1 + `above`, by ratio of the excess."""
    return min(range(len(orders)), key=lambda i: abs(math.log((orders[i] - 1) / above)))


def conversion(order: float, delta: float) -> float:
    """Return what is added to a Renyi divergence to have epsilon at `delta`, in nats."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def units(cost: Sequence[float], given: Sequence[float], orders: Sequence[float]) -> Vector:
    """Return a spend, known at the orders `given`, in units at `orders`, rounded up.

    Renyi divergence grows with the order, so the value at the next larger one bounds it; where
    there is none, the spend is infinite. Raises ValueError for what is no spend.
    """
    check_orders(given)
    if len(cost) != len(given):
        raise ValueError(f"a spend has one number for each of {len(given)} orders")
    if not all(value >= 0 for value in cost):  # False for NaN
        raise ValueError("a spend has a negative number, or one that is none")
    places = (bisect_left(given, order) for order in orders)
    return tuple(_units(cost[at] if at < len(cost) else math.inf) for at in places)


def _units(value: float) -> int:
    return MOST if value >= MOST / UNIT else math.ceil(value * UNIT)


def add(total: Vector, change: Vector) -> Vector:
    """Return the sum of two vectors; an empty one is zero."""
    if not total or not change:
        return total or change
    return tuple(a + b for a, b in zip(total, change, strict=True))


def negative(change: Vector) -> Vector:
    """Return what takes `change` back."""
    return tuple(-value for value in change)


def admits(held: Filter, total: Vector) -> bool:
    """Tell whether a sum of spends keeps the cap: some order has room for it."""
    return any(t <= room for t, room in zip(_whole(held, total), held.room, strict=True))


def used(held: Filter, total: Vector) -> float:
    """Return which part of a cap a sum of spends uses up: at most 1 while it is admitted.

    It grows in step with what is spent, as an epsilon does not. Infinite where the cap has
    room for nothing.
    """
    if not any(total):
        return 0.0
    pairs = zip(total, held.room, strict=True)
    return min((t / room for t, room in pairs if room > 0), default=math.inf)


def epsilon(total: Vector, delta: float, orders: Sequence[float]) -> float:
    """Return the epsilon of a sum of spends at `delta`, as an accountant states it.

    For people to read, for spends that were planned beforehand. The filter decides by a part
    of delta for each order, so a cap is used up a little before this reaches its epsilon.
    """
    if not any(total):
        return 0.0
    pairs = zip(total, orders, strict=True)
    return max(0.0, min(v / UNIT + conversion(a, delta) for v, a in pairs))


def fits(held: Filter, total: Vector, cost: Vector, most: int) -> int:
    """Return how many spends of `cost` the cap still admits after `total`, at most `most`."""
    least = 0
    for t, room, each in zip(_whole(held, total), held.room, cost, strict=True):
        if t <= room:
            least = max(least, most if each == 0 else min(most, (room - t) // each))
    return least


def _whole(held: Filter, total: Vector) -> Vector:
    return total or (0,) * len(held.room)


def body(entry: Entry) -> str:
    """Return an entry as the one line of JSON that is kept and hashed."""
    fields = {name: getattr(entry, name) for name in Entry.__slots__}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def read(text: str) -> Entry:
    """Return the entry that `body` wrote."""
    return msgspec.json.decode(text, type=Entry)


def link(previous: str, text: str) -> str:
    """Return the digest of the entry whose body is `text`, after the one named `previous`."""
    return (
        "sha256:" + hashlib.sha256(f"consilia ledger\0{previous}\0{text}".encode()).hexdigest()
    )


def verify(lines: Iterable[tuple[str, str]], after: Head = EMPTY) -> Break | Head:
    """Check (body, digest) pairs that follow the head `after`; return a break, or the head."""
    head = after
    for text, digest in lines:
        if link(head.digest, text) != digest or read(text).seq != head.length + 1:
            return Break(head.length + 1, "the entry, or one before it, was changed or removed")
        head = Head(head.length + 1, digest)
    return head
