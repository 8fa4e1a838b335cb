"""Sums with differential privacy: how far one person moves them, and the noise that hides it.

An answer is a vector of whole numbers, in steps of 2**-20 of a record. It is made of blocks.
One record changes each block by at most 1 in L2 norm:

    records          it is in one group of `by`, or in none
    of a column      count and missing: one of the two, in one group
                     sum: its value, clipped to centre +- unit, is within -1 to 1 of them
                     squares: the square of that, within 0 to 1
                     bins: it is in one
    levels, table    it is in one cell, or in none

So b blocks change by at most sqrt(b), and noise of z sqrt(b) on every number is a Gaussian
mechanism of multiplier z, whatever the question: what z costs is told by privacy.accountant.
Where a dataset declares patient ids, the first `dp.clip` records of each patient that the
condition holds of are counted and no others. Which these are depends on the patient's own
records alone, so a patient changes a block by `dp.clip` at most. Values are rounded to whole
steps one by one and added as integers: no rounding of sums adds to that. So it is the patient
that is hidden there, at record level too. Without one of several records of theirs the next one
counts, which with `dp.clip` 1 changes a block by up to 2.

There are no thresholds: whatever the records are, all numbers are told, with noise.

Sources: Dwork, Roth 2014, "The algorithmic foundations of differential privacy", section 3.5
and appendix A (vectors, L2); Casacuberta et al. 2022, "Widespread underestimation of
sensitivity" (why integers); Kairouz, Liu, Steinke 2021, proposition 14 (shares of the noise).
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Array, Weights
from consilia.errors import ConfigError, Refused, WireError
from consilia.privacy.accountant import check as check_dp
from consilia.privacy.noise import LEAST_SHARE, WIDEST, sure_shares
from consilia.privacy.ring import FRACTION
from consilia.stats import sums
from consilia.stats.columns import BY, IDS, WHERE
from consilia.stats.sums import Item
from consilia.wire.v1 import Dp, Numbers, Statistics

UNIT = 1 << FRACTION  # steps of one record
MOST_RECORDS = 1000  # of one patient that may count
MOST_NOISE = 5e4  # records, of one block
_NEVER: frozenset[sums.Kind] = frozenset({"rounded", "weight"})

Counts = NDArray[np.int64]
Places = NDArray[np.int64]
Mask = NDArray[np.bool_]


def items(asked: Statistics) -> tuple[Item, ...]:
    """Return what the numbers of an answer with noise are, in their order."""
    return tuple(item for item in sums.items(asked) if item.kind not in _NEVER)


def blocks(asked: Statistics) -> int:
    """Return how many parts of an answer one record is in."""
    return 1 + len(asked.levels) + len(asked.tables) + sum(map(_of_column, asked.numbers))


def _of_column(asked: Numbers) -> int:
    bins = sums.bins_of(asked) > 0
    return 1 + sums.moments(asked) + ("sd" in asked.what) + bins


def sensitivity(asked: Statistics, dp: Dp) -> float:
    """Return by how much one unit moves an answer at most: its L2 norm, in records."""
    return dp.clip * math.sqrt(blocks(asked))


def problem(dp: Dp, masked: bool, asked: Statistics | None = None, sites: int = 0) -> str:
    """Say why statistics cannot carry this noise, "" where they can. Of the question alone.

    With `asked`, of that question, to `sites`: what would fail once it is paid for is told now.
    """
    try:
        check_dp(dp)
        if (found := next(_problems(dp, masked), "")) or asked is None:
            return found
        share(asked, dp, sites)  # more than the sites asked do not send keys
    except (ConfigError, Refused) as error:
        return str(error)
    return ""


def _problems(dp: Dp, masked: bool) -> Iterator[str]:
    """A sampling rate would make the charge smaller, and nothing here is sampled."""
    if dp.level not in ("record", "patient"):
        yield f"statistics with noise at {dp.level} level; needed record or patient"
    if dp.sampling != 1 or dp.steps != 1 or dp.adaptive is not None:
        yield (
            f"statistics use every record once: found sampling {dp.sampling:g}, {dp.steps} "
            "steps; needed 1 and 1, and no clip that adapts"
        )
    if not 1 <= dp.clip <= MOST_RECORDS or dp.clip != int(dp.clip):
        yield (
            f"dp.clip is how many records of a patient count: found {dp.clip:g}; needed a "
            f"whole number from 1 to {MOST_RECORDS}"
        )
    if dp.noise_multiplier * dp.clip > MOST_NOISE:
        yield f"noise of {dp.noise_multiplier * dp.clip:.3g} records leaves nothing to tell"
    if dp.distributed and not masked:
        yield "a share of the noise hides nothing outside a masked sum of three sites or more"


# ---- at a site -----------------------------------------------------------------------------


def share(asked: Statistics, dp: Dp, keyed: int = 0) -> float:
    """Return the standard deviation of a site's noise, in steps; raise ConfigError.

    All of it, or with `dp.distributed` such a share that those of the honest survivors make up
    all of it: of `keyed` sites, those that have sent keys.
    """
    whole = dp.noise_multiplier * sensitivity(asked, dp) * UNIT
    if dp.distributed:
        whole /= math.sqrt(sure_shares(dp, keyed))
    if not LEAST_SHARE <= whole <= WIDEST:
        needed = f"{LEAST_SHARE:g} to {WIDEST:g}"
        raise ConfigError(f"noise of {whole:.3g} steps, needed {needed}")
    return whole


def totals(columns: Weights, asked: Statistics, most: int) -> Counts:
    """Return a site's numbers without noise, in whole steps; never to leave as they are.

    `columns` are those of stats.columns; of each identity `most` records count.
    """
    chosen = _kept(columns[IDS], columns[WHERE], most)
    group: Places = np.zeros(len(chosen), np.int64)
    if asked.by is not None:
        group = columns[BY].astype(np.int64)
    names = sums.groups_of(asked)
    within = chosen & (group >= 0)
    found: dict[Item, int] = {}

    def put(kind: sums.Kind, column: str, cells: Counts) -> None:
        """Enter the cells (groups x places) of one column."""
        for g, row in enumerate(cells.reshape(len(names), -1).tolist()):
            for place, value in enumerate(row):
                found[Item(kind, column, names[g], place)] = value

    put("records", "", _counted(group, within, len(names)))
    for numbers in asked.numbers:
        values = columns[f"number:{numbers.column}"]
        for kind, cells in _of_numbers(numbers, values, group, within, len(names)).items():
            put(kind, numbers.column, cells)
    for levels in asked.levels:
        places = columns[f"level:{levels.column}"].astype(np.int64)
        size = len(sums.names_of(levels))
        known = within & (places >= 0)
        cells = _counted(group * size + places, known, len(names) * size)
        put("cell", levels.column, cells)
    for i, (rows, across) in enumerate(asked.tables):
        up = columns[f"rows:{i}"].astype(np.int64)
        down = columns[f"across:{i}"].astype(np.int64)
        width = len(sums.names_of(across))
        size = len(sums.names_of(rows)) * width
        cells = _counted(up * width + down, chosen & (up >= 0) & (down >= 0), size)
        for place, value in enumerate(cells.tolist()):
            found[Item("cell", rows.column, sums.WHOLE, place, across.column)] = value
    return np.array([found[item] for item in items(asked)], np.int64)


def _of_numbers(
    asked: Numbers, values: Array, group: Places, within: Mask, groups: int
) -> dict[sums.Kind, Counts]:
    """Return the cells of one column of numbers, by what they are."""
    numbers = values.astype(np.float64)
    absent = np.isnan(numbers)
    present = within & ~absent
    found: dict[sums.Kind, Counts] = {"count": _counted(group, present, groups)}
    if "missing" in asked.what:
        found["missing"] = _counted(group, within & absent, groups)
    if sums.moments(asked):
        with np.errstate(over="ignore"):  # what is too far out is at the bound, too
            scaled = np.clip((numbers[present] - asked.centre) / asked.unit, -1.0, 1.0)
        found["sum"] = _summed(group[present], scaled, groups)
        if "sd" in asked.what:
            found["squares"] = _summed(group[present], scaled * scaled, groups)
    if size := sums.bins_of(asked):
        places = np.searchsorted(asked.edges[1:-1], numbers, side="right").astype(np.int64)
        found["bin"] = _counted(group * size + places, present, groups * size)
    return found


def _kept(ids: Array, where: Array, most: int) -> Mask:
    """Choose the first `most` records of each identity that the condition holds of."""
    at = np.flatnonzero(where)
    order = at[np.argsort(ids[at], kind="stable")]
    run = ids[order]
    first = np.ones(len(run), np.bool_)
    first[1:] = run[1:] != run[:-1]
    places = np.arange(len(run))
    rank = places - np.maximum.accumulate(np.where(first, places, 0))
    chosen: Mask = np.zeros(len(ids), np.bool_)
    chosen[order[rank < most]] = True
    return chosen


def _counted(cells: Array, chosen: Mask, size: int) -> Counts:
    """Return how many of the chosen records are in each cell, in steps."""
    return np.bincount(cells[chosen], minlength=size).astype(np.int64) * UNIT


def _summed(group: Places, values: NDArray[np.float64], groups: int) -> Counts:
    """Return the sums of values from -1 to 1, each rounded to a whole step."""
    total = np.zeros(groups, np.int64)
    np.add.at(total, group, np.rint(values * UNIT).astype(np.int64))
    return total


# ---- at the hub ----------------------------------------------------------------------------


def in_sum(asked: Statistics, dp: Dp, sites: int, keyed: int) -> float:
    """Return the standard deviation of the noise in the sum of `sites` answers, in records."""
    return share(asked, dp, keyed) * math.sqrt(sites) / UNIT


def decoded(asked: Statistics, body: NDArray[np.uint64]) -> dict[Item, float]:
    """Return the numbers of an answer, or of a sum of answers; WireError for what is none."""
    every = items(asked)
    if body.shape != (len(every),):
        raise WireError(f"{body.size} numbers of statistics, asked for {len(every)}")
    values = np.ldexp(body.view(np.int64).astype(np.float64), -FRACTION)
    return dict(zip(every, values.tolist(), strict=True))
