"""What sites measure of a model, as numbers that add up: a vector a site, in the masked sum.

The hub sees the sum over the sites and no site's own (privacy.secagg). Positions of the vector,
for a grid of `bins` cells from 0 to 1 that all sites share:

| part | numbers |
|---|---|
| `kinds` | 1 at the kind of the predictions: a sum of two kinds is found out |
| `counts` | records, cases, called cases (above the threshold), cases among these |
| `measures`, `gain`, `local` | for each metric (n, n v, (n e)^2), v its value, e the error |
| `cases_low`, `cases_high`, `others_low`, `others_high` | records in each cell |
| `curve` | for each of CURVE steps: records, cases, sum of probabilities |

A metric that is a mean over records has its value on all records from n and n v. AUC and F1 of
two classes are those of all records together, too: F1 from the counts, AUC from the cells.

**Cells.** No cell of a site tells of fewer than k records: cells are merged until each group
holds k cases (of the cases), or k others. A group is counted once in its lowest cell and once
in its highest. With the cases as low as they may be and the others as high, every pair that is
in doubt counts against the model; the other way round, for it. The AUC of the records lies
between the two; what is told is the value that lies between, and `bound`, how far it may be
off. One step of the grid is the least that two records must differ by to be told apart.

Predictions of kind margin go onto the grid by the logistic function, which keeps their order.

With differential privacy (`noised`) there are counts in cells alone, not merged, with noise on
each: one record is in one cell, so it changes the vector by a norm of 1. Everything else is
worked out from them; of a probability inside a cell its middle stands for all.

Sources: Hanley & McNeil 1982 and DeLong et al. 1988 (AUC and its variance from ranks).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from consilia.errors import DataError
from consilia.privacy.ring import decode64, encode64
from consilia.stats.pooling import ADDITIVE, Pooled
from consilia.stats.scores import Estimate, Floats, calibration
from consilia.wire.v1 import CalibrationBin, Predicts

Counts = NDArray[np.float64]
Method = Literal["all records", "all records, in bins", "mean of sites"]

KINDS: tuple[Predicts, ...] = ("probability", "margin", "classes", "number", "risk", "mask")
TWO_CLASSES = frozenset({"probability", "margin"})
NAMES = ("accuracy", "auc", "brier", "c_index", "dice", "f1", "mae")  # metrics, in their order
BINS = 200  # of a site's grid, unless asked otherwise; even: the threshold is a cell's edge
NOISED_BINS = 50  # with noise on every cell
MOST_BINS = 2000
UNIT = 1024  # steps of the ring for one record: noise is drawn in steps
CURVE = 20  # steps of the calibration curve
METHOD_ALL: Method = "all records"
METHOD_BINS: Method = "all records, in bins"
METHOD_SITES: Method = "mean of sites"
_TRIPLE = 3 * len(NAMES)


@dataclass(frozen=True, slots=True)
class Judged:
    """A metric over all sites; the AUC of the records is within `bound` of the value."""

    pooled: Pooled
    method: Method
    bound: float = 0.0


@dataclass(frozen=True, slots=True)
class Sums:
    """What the sum of the sites' vectors says."""

    predicts: Predicts
    sites: int
    records: int
    metrics: dict[str, Judged]
    gain: dict[str, Pooled]
    local: dict[str, Pooled]
    calibration: tuple[CalibrationBin, ...]


def size(bins: int, noised: bool) -> int:
    """Return how many numbers a vector has; DataError for a grid that is none."""
    if not 2 <= bins <= MOST_BINS or bins % 2:
        raise DataError(f"a grid of {bins} bins; needed an even number from 2 to {MOST_BINS}")
    if noised:
        return len(KINDS) + 2 * bins
    return len(KINDS) + 4 + 3 * _TRIPLE + 4 * bins + 3 * CURVE


# ---- at a site ------------------------------------------------------------------------------


def vector(  # noqa: PLR0913 - by keyword: the parts of it
    predicts: Predicts,
    scores: Floats,
    targets: Floats,
    *,
    bins: int,
    k: int,
    measures: Mapping[str, Estimate],
    gain: Mapping[str, Estimate],
    local: Mapping[str, Estimate],
) -> NDArray[np.uint64]:
    """Return a site's vector, as fixed point of the 64-bit ring.

    `scores` and `targets` as stats.scores has them. The site has at least `k` cases and `k`
    others where there are two classes: who has fewer tells nothing, and the caller sees to it.
    """
    count = len(scores)
    head = np.zeros(len(KINDS) + 4)
    head[KINDS.index(predicts)] = 1
    head[len(KINDS)] = count
    cells = [np.zeros(4 * bins), np.zeros(3 * CURVE)]
    if predicts in TWO_CLASSES:
        places = _places(predicts, scores[:, 0], bins)
        cases = targets[:, 0] > 0.5
        called = places >= bins // 2
        head[-3:] = cases.sum(), called.sum(), (called & cases).sum()
        sides = [places[cases], places[~cases]]
        cells[0] = np.concatenate([part for p in sides for part in _merged(p, bins, k)])
    if predicts == "probability":
        cells[1] = _curve(scores[:, 0], targets[:, 0] > 0.5, k)
    triples = [_triples(found, count) for found in (measures, gain, local)]
    return encode64(np.concatenate([head, *triples, *cells]))


def noised_vector(
    predicts: Predicts, scores: Floats, targets: Floats, noise: NDArray[np.int64], bins: int
) -> NDArray[np.uint64]:
    """Return a site's vector with its share of the noise, in UNITs, a number for each cell.

    DataError for predictions that are not of two classes.
    """
    if predicts not in TWO_CLASSES:
        raise DataError(
            f"predictions of kind {predicts!r} cannot be evaluated with differential privacy; "
            f"those of {' and '.join(sorted(TWO_CLASSES))} can"
        )
    places = _places(predicts, scores[:, 0], bins)
    cases = targets[:, 0] > 0.5
    cells = np.concatenate(
        [np.bincount(p, minlength=bins) for p in (places[cases], places[~cases])]
    )
    if noise.shape != cells.shape:
        raise ValueError(f"noise of {noise.shape} for {cells.shape} cells")
    head = np.zeros(len(KINDS))
    head[KINDS.index(predicts)] = 1
    return np.concatenate([encode64(head), encode64(cells * UNIT + noise, 0)])


def _places(predicts: Predicts, scores: Floats, bins: int) -> NDArray[np.int64]:
    """Return each prediction's cell; a cell holds its upper edge, as the threshold does."""
    level = scores
    if predicts == "margin":
        half = np.exp(-np.abs(scores))
        level = np.where(scores >= 0, 1 / (1 + half), half / (1 + half))
    places = np.ceil(level * bins).astype(np.int64) - 1
    places = np.clip(places, 0, bins - 1)
    # Rounding must not carry a record over the threshold: F1 and accuracy go by it.
    above = scores > (0.5 if predicts == "probability" else 0.0)
    half_way = bins // 2
    return np.where(above, np.maximum(places, half_way), np.minimum(places, half_way - 1))


def _merged(places: NDArray[np.int64], bins: int, k: int) -> list[Counts]:
    """Return counts by lowest and by highest cell, of groups of at least `k` records."""
    counts = np.bincount(places, minlength=bins)
    low, high = np.zeros(bins), np.zeros(bins)
    groups: list[tuple[int, int, int]] = []  # first and last cell in use, records
    first, held = -1, 0
    for cell in np.flatnonzero(counts).tolist():
        first = cell if held == 0 else first
        held += int(counts[cell])
        if held >= max(k, 1):
            groups.append((first, cell, held))
            held = 0
    if held and groups:  # what is left over goes to the group before
        start, _, before = groups.pop()
        last = int(np.flatnonzero(counts)[-1])
        groups.append((start, last, before + held))
    for start, last, records in groups:
        low[start] += records
        high[last] += records
    return [low, high]


def _curve(probabilities: Floats, cases: NDArray[np.bool_], k: int) -> Counts:
    """Return records, cases and sums of probabilities, of bins that hold k of both kinds.

    A bin counts where its mean probability lies.
    """
    found = np.zeros((3, CURVE))
    for _, _, mean, share, count in calibration(probabilities, cases, max(k, 1), CURVE):
        place = min(int(mean * CURVE), CURVE - 1)
        found[:, place] += count, round(share * count), mean * count
    return found.ravel()


def _triples(found: Mapping[str, Estimate], count: int) -> Counts:
    out = np.zeros((len(NAMES), 3))
    for name, estimate in found.items():
        weight = float(count)
        out[NAMES.index(name)] = weight, weight * estimate.value, (weight * estimate.error) ** 2
    return out.ravel()


# ---- of the sum -----------------------------------------------------------------------------


def read(total: NDArray[np.uint64], bins: int, sites: int) -> Sums:
    """Return what the sum of `sites` vectors says; DataError when they do not fit together."""
    values = decode64(total)
    predicts = _kind(values, sites)
    head, rest = np.split(values, [len(KINDS) + 4])
    records, cases, called, hits = (float(n) for n in head[len(KINDS) :])
    measures, gain, local = (_means(part, sites) for part in np.split(rest[: 3 * _TRIPLE], 3))
    cells, curve = np.split(rest[3 * _TRIPLE :], [4 * bins])
    metrics = {
        name: Judged(one, METHOD_ALL if name in ADDITIVE else METHOD_SITES)
        for name, one in measures.items()
    }
    if predicts in TWO_CLASSES:
        a, b, c, d = np.split(cells, 4)
        metrics |= _of_cells(a, b, c, d, round(records), sites)
        metrics |= _f1(records, cases, called, hits, sites)
    points = tuple(_points(curve.reshape(3, CURVE)))
    return Sums(predicts, sites, round(records), metrics, gain, local, points)


def read_noised(total: NDArray[np.uint64], bins: int, sites: int, noise: float) -> Sums:
    """Return what a sum of noised vectors says; `noise` is its deviation in each cell.

    The noise is in the standard errors, to first order. DataError where it hides everything.
    """
    predicts = _kind(decode64(total[: len(KINDS)]), sites)
    counts = decode64(total[len(KINDS) :], 0) / UNIT
    cases, others = np.split(counts, 2)
    whole = float(counts.sum())
    if min(cases.sum(), others.sum()) < max(1.0, 2 * noise):
        raise DataError("the noise hides how many cases there are: ask for less of it")
    records = max(1, round(whole))

    def told(value: float, own: float, slopes: Counts, bound: float = 0.0) -> Judged:
        """`own` is the standard error of the records, `slopes` of the value by cell."""
        error = sqrt(own**2 + noise**2 * float(slopes @ slopes))
        value = min(1.0, max(0.0, value))  # noise may carry it over an edge
        return Judged(Pooled(value, error, records, sites), METHOD_BINS, bound)

    called = np.arange(bins) >= bins // 2
    right = np.concatenate([called, ~called]).astype(np.float64)
    accuracy = float(counts @ right) / whole
    spread = sqrt(max(0.0, accuracy * (1 - accuracy)) / whole)
    metrics = {"accuracy": told(accuracy, spread, (right - accuracy) / whole)}
    for name, one in _of_cells(cases, cases, others, others, records, sites).items():
        metrics[name] = told(
            one.pooled.value, one.pooled.error, _auc_slopes(cases, others), one.bound
        )
    hits, called_all = float(cases[called].sum()), float(counts @ np.tile(called, 2))
    size = float(cases.sum()) + called_all
    for name, one in _f1(whole, float(cases.sum()), called_all, hits, sites).items():
        f1 = one.pooled.value
        parts = [np.where(called, 2 - 2 * f1, -f1), np.where(called, -f1, 0.0)]
        metrics[name] = told(f1, one.pooled.error, np.concatenate(parts) / size)
    if predicts == "probability":
        middle = (np.arange(bins) + 0.5) / bins
        squares = np.concatenate([(middle - 1) ** 2, middle**2])
        brier = float(counts @ squares) / whole
        spread = sqrt(max(0.0, float(counts @ squares**2) / whole - brier**2) / whole)
        metrics["brier"] = told(brier, spread, (squares - brier) / whole, 1 / bins)
    return Sums(predicts, sites, records, metrics, {}, {}, ())


def _kind(values: Counts, sites: int) -> Predicts:
    """Return the kind that all sites' predictions are of."""
    found = [(kind, n) for kind, n in zip(KINDS, values, strict=False) if n]
    if len(found) != 1 or found[0][1] != sites:
        told = ", ".join(f"{kind} {n:g}" for kind, n in found) or "none"
        raise DataError(f"{sites} sites' predictions are of the kinds {told}, needed one")
    return found[0][0]


def _means(part: Counts, sites: int) -> dict[str, Pooled]:
    found = {}
    for name, (records, total, squares) in zip(NAMES, part.reshape(-1, 3), strict=True):
        if records >= 1:
            error = sqrt(max(0.0, float(squares))) / float(records)
            found[name] = Pooled(float(total / records), error, round(records), sites)
    return found


def _of_cells(  # noqa: PLR0913, PLR0917 - the four histograms
    cases_low: Counts,
    cases_high: Counts,
    others_low: Counts,
    others_high: Counts,
    records: int,
    sites: int,
) -> dict[str, Judged]:
    """Return the AUC with how far it may be off; nothing without both kinds."""
    if cases_low.sum() < 1 or others_low.sum() < 1:
        return {}
    least = _auc(cases_low, others_high, ties=0.0)
    most = _auc(cases_high, others_low, ties=1.0)
    cases, others = (cases_low + cases_high) / 2, (others_low + others_high) / 2
    value = _auc(cases, others, ties=0.5)
    pooled = Pooled(value, _auc_error(cases, others), records, sites)
    return {"auc": Judged(pooled, METHOD_BINS, max(value - least, most - value))}


def _auc(cases: Counts, others: Counts, ties: float) -> float:
    below = np.cumsum(others) - others + ties * others
    return float(cases @ below / (cases.sum() * others.sum()))


def _auc_slopes(cases: Counts, others: Counts) -> Counts:
    """Return by how much the AUC changes with one more record in each cell."""
    held, rest = float(cases.sum()), float(others.sum())
    value = _auc(cases, others, ties=0.5)
    of_case = (np.cumsum(others) - others / 2) / rest - value
    of_other = 1 - (np.cumsum(cases) - cases / 2) / held - value
    return np.concatenate([of_case / held, of_other / rest])


def _auc_error(cases: Counts, others: Counts) -> float:
    """Return DeLong's standard error, of scores that are known by their cell."""
    of_case = (np.cumsum(others) - others / 2) / others.sum()
    of_other = 1 - (np.cumsum(cases) - cases / 2) / cases.sum()
    total = 0.0
    for parts, counts in ((of_case, cases), (of_other, others)):
        held = float(counts.sum())
        mean = float(counts @ parts) / held
        if held > 1:
            total += max(0.0, float(counts @ (parts - mean) ** 2)) / (held - 1) / held
    return sqrt(total)


def _f1(
    records: float, cases: float, called: float, hits: float, sites: int
) -> dict[str, Judged]:
    """Return F1 of all records with its standard error (delta method), from four counts."""
    size, wrong = cases + called, cases + called - 2 * hits
    if size <= 0 or records <= 1:
        return {}
    value = 2 * hits / size
    mean = size / records
    squares = hits * (2 - 2 * value) ** 2 + wrong * value**2
    error = sqrt(max(0.0, squares) / (records - 1) / records) / mean
    return {"f1": Judged(Pooled(value, error, round(records), sites), METHOD_ALL)}


def _points(curve: NDArray[np.float64]) -> list[CalibrationBin]:
    found = []
    for place, (records, cases, probability) in enumerate(curve.T):
        if records >= 1:
            low, high = place / CURVE, (place + 1) / CURVE
            mean, share = float(probability / records), float(cases / records)
            found.append(CalibrationBin(low, high, mean, share, round(records)))
    return found
