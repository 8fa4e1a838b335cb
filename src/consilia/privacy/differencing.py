"""What several exact answers give away together: the audit of answered groups of records.

Every answer about a group of records (a count, a sum, a mean) is one linear equation in the
records' values, whose coefficients are the group's membership, 0 or 1. What an asker can work
out from all answers is what linear combinations of these rows say: the difference of two
groups, a group's complement in the population, a tracker. `audit` tells whether some
combination other than zero has all its non-zero coefficients on fewer than k records: then
it is about those few.

The search for such a combination is hard in general, so a bound decides. With P the orthogonal
projection onto the span of the rows, a combination v in the span with its support in a set S
of records obeys v = P v, so the block of P on S has the eigenvalue 1, hence the trace of that
block, the sum of the records' leverages P_ii over S, is at least 1. Where no k - 1 records
reach 1 together there is no such v. The bound never misses one, and refuses rarely without
cause: mean leverage is the number of independent answers over the number of records. A
combination is constant on records that every group treats alike, so only kinds of record that
are rarer than k count.

Sources: Denning, Denning and Schwartz 1979, ACM TODS 4(1) (trackers); Chin and Ozsoyoglu 1982,
IEEE TSE 8(6) (auditing by linear independence); Nabar et al. 2008 (a survey of query auditing).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Group = NDArray[np.uint8]  # one bit a record, as numpy packs them; the rest is zero
PRIMES = (2_147_483_647, 2_147_483_629)  # products of two residues fit into int64
MARGIN = 1e-6  # what rounding may hide of a leverage
CONDITION = 1e10  # beyond, the leverages cannot be told
_SLICE = 4096  # bytes of a group, and kinds, unpacked at once


@dataclass(frozen=True, slots=True)
class Audit:
    """What exact answers about some groups, in their order, give away."""

    independent: frozenset[int]  # groups whose answer does not follow from earlier ones
    isolates: bool  # something may be worked out about fewer than k records, and not none


def audit(groups: Sequence[Group], k: int) -> Audit:
    """Examine answers about `groups`. `isolates` is True where it cannot be told.

    Costs about groups^2 times the kinds of record that the groups tell apart: 2 s of a core
    for 256 groups that tell all of 100,000 records apart.
    """
    kinds, sizes = _kinds(groups)
    gram = np.zeros((len(groups), len(groups)))  # how many records two groups share
    for part in _parts(len(sizes)):
        rows = _rows(kinds[part], len(groups))
        gram += (rows * sizes[part]) @ rows.T
    basis = independent(gram)
    rare = sizes < k
    if not rare.any():
        return Audit(frozenset(basis), False)  # what can be worked out is about whole kinds
    scale = 1 / np.sqrt(np.diag(gram)[basis])
    inner = gram[basis][:, basis] * scale * scale[:, None]
    if np.linalg.cond(inner) > CONDITION:
        return Audit(frozenset(basis), True)
    inverse = np.linalg.inv(inner)
    heaviest = np.zeros(0)
    kinds, sizes = kinds[rare], sizes[rare]
    for part in _parts(len(sizes)):
        rows = _rows(kinds[part], len(groups))[basis] * scale[:, None]
        leverages = np.repeat((rows * (inverse @ rows)).sum(axis=0), sizes[part])
        heaviest = -np.sort(-np.concatenate([heaviest, leverages]))[: k - 1]
    return Audit(frozenset(basis), bool(heaviest.sum() >= 1 - MARGIN))


def independent(gram: NDArray[np.float64]) -> list[int]:
    """Return the indexes of the groups that are no combination of earlier ones.

    `gram` holds how many records each two share: its rows depend on each other as the groups
    do. Exact, by elimination modulo primes: a prime can only hide a dependence's absence, so
    what either of the two finds independent is.
    """
    found = {p: _pivots(gram, p) for p in PRIMES}
    return max(found.values(), key=len)


def _pivots(gram: NDArray[np.float64], prime: int) -> list[int]:
    """Return which rows are independent of the rows before them, modulo a prime."""
    rest = np.asarray(np.rint(gram), np.int64) % prime
    found: list[int] = []
    for i in range(len(rest)):
        (columns,) = np.nonzero(rest[i])
        if not len(columns):
            continue
        found.append(i)
        pivot = columns[0]
        rest[i] = rest[i] * pow(int(rest[i, pivot]), -1, prime) % prime
        below = rest[i + 1 :]
        below -= below[:, pivot : pivot + 1] * rest[i] % prime
        below %= prime
    return found


def packed(members: NDArray[np.bool_]) -> Group:
    """Return a group as the audit takes it, from one truth value a record."""
    return np.packbits(members)


def _kinds(groups: Sequence[Group]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the memberships that occur, packed, and how many records have each.

    Records in no group are left out: nothing is said of them. Unpacks a slice of the records
    at a time, so that a million of them in a thousand groups fit.
    """
    width = max(map(len, groups), default=0)
    found: dict[bytes, int] = {}
    for start in range(0, width, _SLICE):
        rows = np.zeros((len(groups), min(_SLICE, width - start)), np.uint8)
        for row, group in zip(rows, groups, strict=True):
            part = group[start : start + _SLICE]
            row[: len(part)] = part
        columns = np.packbits(np.unpackbits(rows, axis=1), axis=0).T
        whole = np.ascontiguousarray(columns).view(np.dtype((np.void, columns.shape[1])))
        kinds, sizes = np.unique(whole[:, 0], return_counts=True)
        for kind, size in zip(map(bytes, kinds), sizes.tolist(), strict=True):
            found[kind] = found.get(kind, 0) + size
    length = -(-len(groups) // 8)
    found.pop(bytes(length), None)
    packs = np.frombuffer(b"".join(found), np.uint8).reshape(len(found), length)
    return packs, np.fromiter(found.values(), np.int64, len(found))


def _parts(kinds: int) -> Iterator[slice]:
    """Cut the kinds into pieces that are small as floats."""
    return (slice(start, start + _SLICE) for start in range(0, kinds, _SLICE))


def _rows(packs: NDArray[np.uint8], groups: int) -> NDArray[np.float64]:
    """Return memberships as 0 or 1: one row a group, one column a kind."""
    return np.unpackbits(packs, axis=1, count=groups).T.astype(np.float64)
