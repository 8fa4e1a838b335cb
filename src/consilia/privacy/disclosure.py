"""Which numbers about a site's records may leave it: the rules for one answer.

Every number that a site releases passes one of these functions: counts and tables, means,
variances and quantiles, coefficients, metrics, progress, record counts, durations, words. Each
returns the safe value or SUPPRESSED, which is one and the same whatever rule struck: nothing
below the threshold is told apart from nothing at all. What struck goes to `why`, for the
site's own trail. What several answers give away together is `privacy.differencing`'s subject,
and what was answered before is remembered by `node.disclosure`.

Sources: DataSHIELD's default filters (table cells and subsets of 3, parameters to records
0.33, the same seven quantiles); OHDSI's minimum cell count of 5; NHS Digital's rounding to 5;
Hundepool et al., Statistical Disclosure Control (2012), ch. 4 (p % rule, secondary
suppression).
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from consilia.errors import DataError
from consilia.wire.v1 import Metrics, Record

ROUNDING = 5  # counts leave as multiples of this
BUCKETS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)  # seconds
PARAMETERS_PER_RECORD = 0.33  # of a regression; beyond, coefficients can repeat the records
DOMINANCE = 0.10  # p % rule: how closely the second largest may know the largest
PROGRESS_STEPS = 20  # fractions that a task can report, 0 not counted
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)  # a finer grid would list the values
DIGITS = 3  # significant digits of a rounded metric or quantile
MAX_LABEL = 64  # characters of a category's name
RECORDS_OF = "_records"  # metric "auc_records" says how many records "auc" was computed on

Floats = NDArray[np.float64]
Why = Callable[[str], None]
T = TypeVar("T")


class Suppressed(Record, frozen=True, tag="suppressed"):
    """No number. It has no content, so that every refusal is the same bytes."""


SUPPRESSED: Final = Suppressed()


@dataclass(frozen=True, slots=True)
class Rules:
    """A site's thresholds, as raised by the study."""

    k: int = 5  # fewest records that a number may be about
    rounded: bool = True  # counts to multiples of 5
    digits: int = DIGITS
    categories: int = 50  # levels of one table

    def raised(self, k: int) -> "Rules":
        """Return the rules with a study's k: it can only raise the site's."""
        return Rules(max(self.k, k), self.rounded, self.digits, self.categories)


def silent(_: str) -> None:
    """Keep no note of what struck."""


# ---- counts and tables ----------------------------------------------------------------------


def release_count(count: int, rules: Rules, why: Why = silent) -> int | Suppressed:
    """Return a count of records that is k or more, to the nearest 5 where the site rounds."""
    if count < rules.k:
        return _no(why, f"{count} records, at least {rules.k} are needed")
    return _rounded(count) if rules.rounded else count


def shown_cells(counts: Sequence[int], rules: Rules) -> tuple[bool, ...]:
    """Say which cells of a table may be shown; the cells are disjoint and make up its whole.

    Whoever knows the whole subtracts the shown cells from it, so what is hidden must together
    hold k records: the smallest shown cells are hidden too until it does. An empty cell counts
    as hidden, otherwise the second hiding would tell empty from rare.
    """
    shown = [count >= rules.k for count in counts]
    order = sorted((i for i, s in enumerate(shown) if s), key=lambda i: (counts[i], i))
    for i in order:
        if all(shown) or sum(c for c, s in zip(counts, shown, strict=True) if not s) >= rules.k:
            break
        shown[i] = False
    return tuple(shown)


def release_table(
    counts: NDArray[np.int64], rules: Rules, why: Why = silent
) -> list[list[int | Suppressed]]:
    """Return a crosstab (rows x columns) with small cells and enough others suppressed.

    No row, column or whole lets its hidden cells be computed from a total: each has none
    hidden, or hidden ones of together k records or more, at least two. Totals are not part
    of it: they are the sums of what is shown.
    """
    table = np.atleast_2d(np.asarray(counts, np.int64))
    if table.ndim != 2 or (table < 0).any():
        raise DataError(f"a table of shape {table.shape}; needed two sides and counts from 0")
    if max(table.shape) > rules.categories:
        why(f"a table of {table.shape}, at most {rules.categories} levels a side")
        return [[SUPPRESSED] * table.shape[1] for _ in range(table.shape[0])]
    shown = table >= rules.k
    while _hide_one(table, shown, rules.k) or _hide_solved(table, shown):
        pass
    if hidden := int((~shown).sum()):
        why(f"{hidden} of {table.size} cells: below {rules.k}, or computable from others")
    return [
        [
            (_rounded(int(n)) if rules.rounded else int(n)) if s else SUPPRESSED
            for n, s in zip(row, flags, strict=True)
        ]
        for row, flags in zip(table, shown, strict=True)
    ]


# ---- statistics -----------------------------------------------------------------------------


def release_mean(values: Floats, rules: Rules, why: Why = silent) -> float | Suppressed:
    """Return the mean of k or more values, none of which dominates the sum."""
    found = _values(values)
    if not _may_average(found, rules, why):
        return SUPPRESSED
    return float(found.mean())


def release_variance(values: Floats, rules: Rules, why: Why = silent) -> float | Suppressed:
    """Return the variance (divided by n - 1) under the rules of the mean and of its square."""
    found = _values(values)
    if not _may_average(found, rules, why):
        return SUPPRESSED
    squares = (found - found.mean()) ** 2
    if _dominated(squares):
        return _no(why, "one record makes up nearly all of the variance")
    return float(squares.sum() / (len(found) - 1))


def release_quantile(
    values: Floats, at: float, rules: Rules, why: Why = silent
) -> float | Suppressed:
    """Return the quantile at one of QUANTILES (linear between ranks), to a few digits.

    At least k records lie on either side by rank, and so between two quantiles: the smallest
    and the largest value, and what is near them, never leave.
    """
    if at not in QUANTILES:
        raise DataError(f"a quantile at {at}; needed one of {', '.join(map(str, QUANTILES))}")
    found = np.sort(_values(values))
    place = at * (len(found) - 1)
    below, above = math.floor(place), len(found) - 1 - math.ceil(place)
    if len(found) < rules.k or min(below, above) < rules.k:
        return _no(why, f"fewer than {rules.k} records on one side of the quantile")
    return significant(float(np.quantile(found, at)), rules.digits)


def release_fit(
    coefficients: Sequence[float], records: int, rules: Rules, why: Why = silent
) -> tuple[float, ...] | Suppressed:
    """Return the coefficients of a regression on `records` records (Cox: events).

    There are at most 0.33 of them a record: a saturated model repeats its records.
    """
    if not all(map(math.isfinite, coefficients)):
        return _no(why, "a coefficient is not finite: the model does not fit the records")
    if records < rules.k or len(coefficients) > PARAMETERS_PER_RECORD * records:
        return _no(why, f"{len(coefficients)} parameters on {records} records")
    return tuple(map(float, coefficients))


# ---- training -------------------------------------------------------------------------------


def release_metric(
    value: float,
    records: int,
    rules: Rules,
    exact: bool = False,
    why: Why = silent,
) -> float | Suppressed:
    """Return one number about `records` records; `exact` leaves its digits as they are."""
    if records < rules.k:
        return _no(why, f"a metric of {records} records, at least {rules.k} are needed")
    if not math.isfinite(value):
        return _no(why, "a metric is not finite")
    return float(value) if exact else significant(value, rules.digits)


def release_metrics(  # noqa: PLR0913 - by keyword
    metrics: Metrics,
    records: int,
    rules: Rules,
    *,
    words: Collection[str],
    exact: bool = False,
    private: bool = False,
    why: Why = silent,
) -> Metrics:
    """Return those of a task's metrics that may leave, under names of `words`.

    "auc_records" is how many records "auc" was computed on; without it a metric is taken to
    be of all `records`. Such a number is a count and leaves as one. A task with differential
    privacy (`private`) tells none: it would be a release that nobody has charged.
    """
    kept: Metrics = {}
    if private:
        why("the metrics of a task with differential privacy are not charged")
        return kept
    for name, value in metrics.items():
        if not isinstance(release_text(name, words, why), str):
            continue
        answer: float | Suppressed
        if name.endswith(RECORDS_OF) and name.removesuffix(RECORDS_OF) in metrics:
            inside = 0 <= value <= records
            answer = release_count(int(value), rules, why) if inside else SUPPRESSED
        else:
            about = _whole(metrics.get(name + RECORDS_OF, records), records)
            answer = release_metric(value, about, rules, exact, why)
        if not isinstance(answer, Suppressed):
            kept[name] = float(answer)
    return kept


def release_fraction(fraction: float, last: float) -> float:
    """Return how far a task is, down to one of 20 steps and never less than was said before."""
    if not 0 <= fraction <= 1:  # NaN too
        raise DataError(f"a progress of {fraction}; needed 0 to 1")
    return max(last, math.floor(fraction * PROGRESS_STEPS + 1e-9) / PROGRESS_STEPS)


def release_records(records: int, rules: Rules) -> int:
    """Return the record count that goes with an update: its weight in the mean.

    Rounded down like the advertised one, so that a round after an opt-out does not tell it by
    a count of one less; at least 1, since the update itself says that there are records.
    """
    if not rules.rounded or records <= 0:
        return records
    return max(records // ROUNDING * ROUNDING, 1)


def release_offer(records: int, rules: Rules) -> int:
    """Return the record count that a site advertises: down to a multiple of 5, 0 below k."""
    return records // ROUNDING * ROUNDING if records >= rules.k else 0


def release_duration(seconds: float) -> float:
    """Round a duration up to the next of BUCKETS; beyond an hour, up to whole hours."""
    for limit in BUCKETS:
        if seconds <= limit:
            return float(limit)
    return math.ceil(seconds / 3600) * 3600.0


# ---- words ----------------------------------------------------------------------------------


def release_text(
    text: str, words: Collection[str], why: Why = silent, limit: int = MAX_LABEL
) -> str | Suppressed:
    """Return a word that is one of a list made before any record was looked at."""
    if text not in words or len(text) > limit:
        return _no(why, f"{text[:limit]!r} is not among the words agreed on")
    return text


def release_cause(cause: str, causes: Sequence[T], other: T) -> T:
    """Return the member of a closed list that `cause` is, `other` for anything else."""
    return next((c for c in causes if c == cause), other)


def significant(value: float, digits: int) -> float:
    """Return `value` to so many significant decimal digits."""
    return float(f"{value:.{digits - 1}e}")


# ---- inside ---------------------------------------------------------------------------------


def _no(why: Why, reason: str) -> Suppressed:
    why(reason)
    return SUPPRESSED


def _rounded(count: int) -> int:
    """To the nearest multiple of 5; a count that may be told is never told as 0."""
    return max((count + ROUNDING // 2) // ROUNDING * ROUNDING, ROUNDING)


def _whole(count: float, most: int) -> int:
    """Return a stated record count; one that cannot be is none."""
    return int(count) if math.isfinite(count) and 0 <= count <= most else 0


def _values(values: Floats) -> Floats:
    found = np.asarray(values, np.float64).ravel()
    if not np.isfinite(found).all():
        raise DataError("a statistic over missing or infinite values; leave those records out")
    return found


def _may_average(values: Floats, rules: Rules, why: Why) -> bool:
    """Apply every rule for sums over records; say which strike."""
    said: list[str] = []
    if len(values) < max(rules.k, 2):
        said.append(f"{len(values)} records, at least {rules.k} are needed")
    elif _dominated(np.abs(values)):
        said.append("one record makes up nearly all of the sum")
    kinds, held = np.unique(values, return_counts=True)
    if len(kinds) <= 2 and (len(kinds) < 2 or held.min() < rules.k):
        # a share is two counts, and what all have in common is known of each
        said.append("fewer than k records on one side of a share")
    for reason in said:
        why(reason)
    return not said


def _dominated(shares: Floats) -> bool:
    """Apply the p % rule: the rest, seen by the second largest, must blur the largest."""
    if len(shares) < 3:
        return True
    largest, second = np.partition(shares, -2)[-1], np.partition(shares, -2)[-2]
    rest = float(shares.sum() - largest - second)
    return bool(largest > 0 and rest < DOMINANCE * largest)


def _hide_one(table: NDArray[np.int64], shown: NDArray[np.bool_], k: int) -> bool:
    """Hide one more cell where a line's hidden cells follow from its total; tell if so."""
    sides = (0, 1) if min(table.shape) > 1 else (int(table.shape[0] == 1),)
    for axis in sides:
        hidden = (~shown).sum(axis=axis)
        held = np.where(shown, 0, table).sum(axis=axis)
        for line in np.flatnonzero((hidden > 0) & ((hidden < 2) | (held < k))):
            index = (slice(None), line) if axis == 0 else (line, slice(None))
            if not shown[index].any():
                continue
            cells = np.where(shown[index], table[index], np.iinfo(np.int64).max)
            shown[index][int(cells.argmin())] = False
            return True
    return False


def _hide_solved(table: NDArray[np.int64], shown: NDArray[np.bool_]) -> bool:
    """Hide one more cell where all totals together give a hidden one; tell if so."""
    rows, columns = np.nonzero(~shown)
    if not len(rows) or min(table.shape) == 1:
        return False
    totals = np.zeros((sum(table.shape), len(rows)))
    totals[rows, np.arange(len(rows))] = 1
    totals[table.shape[0] + columns, np.arange(len(rows))] = 1
    known = (np.linalg.pinv(totals) * totals.T).sum(axis=1) > 1 - 1e-9
    for cell in np.flatnonzero(known):
        near = shown.copy()
        near[np.arange(len(near)) != rows[cell]] &= False
        near[:, columns[cell]] |= shown[:, columns[cell]]
        choice = near if near.any() else shown
        if not choice.any():
            return False
        index = np.where(choice, table, np.iinfo(np.int64).max).argmin()
        shown.flat[index] = False
        return True
    return False
