"""How good a model's predictions are: metrics with standard errors, on the records of one site.

Every metric is a mean of one part a record, in one or two strata: exactly (accuracy, Brier
score, MAE, Dice), or to first order (F1, AUC, C-index). The parts give the standard error, and
two models on the same records are compared by the difference of their parts, record by record,
so that what both find hard does not count as noise.

- AUC: Mann-Whitney; the parts are the structural components of DeLong et al. (1988).
- F1: the ratio 2 TP / (2 TP + FP + FN); parts by linearisation (delta method). Of more than
  two classes, the mean over those that occur or are predicted.
- C-index: Harrell et al. (1982), ties of the risk count one half; jackknife parts.
- Dice: of each record's mask, 2 |A and B| / (|A| + |B|); 1 where both are empty.

Pure: arrays in, numbers out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilia.errors import DataError

Floats = NDArray[np.float64]
HALF = 0.5  # where a probability becomes a case, and a mask's value a part of it
_CHUNK = 512  # records whose pairs are compared at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric's value and its parts: in each stratum one a record, whose mean is the value.

    `better` is 1 where a higher value is better, -1 where a lower one is.
    """

    value: float
    parts: tuple[Floats, ...]
    better: int = 1

    @property
    def error(self) -> float:
        """The standard error: of the sum of the strata's means. 0 when nothing varies."""
        return sqrt(sum(float(p.var(ddof=1)) / len(p) for p in self.parts if len(p) > 1))


def estimates(predicts: str, scores: Floats, targets: Floats) -> dict[str, Estimate]:
    """Return the metrics that fit what a model predicts; one that has no value is left out.

    `scores` and `targets` are records x columns. probability, margin: one column each, targets
    0 or 1. classes: a probability for each class, one target, the class's index. number: one
    each. risk: one score, higher for an earlier event; targets time and event (0 or 1). mask:
    as many of each. Raises DataError for shapes or values that do not fit.
    """
    _check(predicts, scores, targets)
    found = {name: make(scores, targets) for name, make in METRICS[predicts].items()}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def gains(model: Mapping[str, Estimate], other: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Return by how much `model` is better than `other` on the same records, metric by metric.

    Positive is better, whichever way the metric points.
    """
    return {
        name: Estimate(
            mine.better * (mine.value - theirs.value),
            tuple(a - b for a, b in zip(mine.parts, theirs.parts, strict=True)),
        )
        for name, mine in model.items()
        if (theirs := other.get(name)) is not None
    }


def auc(scores: Floats, cases: NDArray[np.bool_]) -> Estimate | None:
    """Return the probability that a case scores above a control; None without both."""
    high, low = scores[cases], scores[~cases]
    if not len(high) or not len(low):
        return None
    of_case = _below(low, high) / len(low)
    of_control = 1 - _below(high, low) / len(high)
    return Estimate(float(of_case.mean()), (of_case, of_control))


def f1(predicted: NDArray[np.bool_], cases: NDArray[np.bool_]) -> Estimate | None:
    """Return the harmonic mean of precision and recall; None where neither is defined."""
    hit = 2.0 * (predicted & cases)
    size = predicted.astype(np.float64) + cases
    if not size.any():
        return None
    value = float(hit.sum() / size.sum())
    return Estimate(value, (value + (hit - value * size) / size.mean(),))


def c_index(risks: Floats, times: Floats, events: NDArray[np.bool_]) -> Estimate | None:
    """Return the share of usable pairs whose risks are in the order of their times.

    A pair is usable when the earlier of the two had its event; of two at one time, when one
    of them had it. None without such a pair.
    """
    count = len(times)
    right, usable = np.zeros(count), np.zeros(count)
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        time, event, risk = times[rows, None], events[rows, None], risks[rows, None]
        first = event & ((time < times) | ((time == times) & ~events))
        good = first * ((risk > risks) + HALF * (risk == risks))
        right[rows] += good.sum(axis=1)
        usable[rows] += first.sum(axis=1)
        right += good.sum(axis=0)
        usable += first.sum(axis=0)
    pairs = usable.sum() / 2
    if pairs == 0:
        return None
    value = float(right.sum() / 2 / pairs)
    left = np.maximum(pairs - usable, 1e-300)
    without = np.where(pairs > usable, (right.sum() / 2 - right) / left, value)
    # pseudo-values: their variance over their number is the jackknife's
    return Estimate(value, (count * value - (count - 1) * without,))


def calibration(
    probabilities: Floats, cases: NDArray[np.bool_], least: int, grid: int = 20
) -> list[tuple[float, float, float, float, int]]:
    """Return bins of (low, high, mean probability, share of cases, records), from 0 to 1.

    The edges lie on a grid of `grid` steps, and neighbours are merged until every bin holds
    `least` cases and `least` others: none is hidden, so none follows from the rest. Empty
    when all records together are too few.
    """
    places = np.minimum((probabilities * grid).astype(np.int64), grid - 1)
    bins: list[tuple[int, int]] = []
    start = 0
    for end in range(1, grid + 1):
        inside = (places >= start) & (places < end)
        if min((inside & cases).sum(), (inside & ~cases).sum()) >= least:
            bins.append((start, end))
            start = end
    if not bins:
        return []
    bins[-1] = (bins[-1][0], grid)
    found = []
    for low, high in bins:
        inside = (places >= low) & (places < high)
        mean, share = float(probabilities[inside].mean()), float(cases[inside].mean())
        found.append((low / grid, high / grid, mean, share, int(inside.sum())))
    return found


# ---- inside ---------------------------------------------------------------------------------


def _below(others: Floats, values: Floats) -> Floats:
    """Return for each value how many of `others` lie below it, ties counting one half."""
    ranked = np.sort(others)
    left, right = np.searchsorted(ranked, values), np.searchsorted(ranked, values, "right")
    return np.asarray((left + right) / 2, np.float64)


def _mean(parts: Any, better: int = 1) -> Estimate:
    values = np.asarray(parts, np.float64)
    return Estimate(float(values.mean()), (values,), better)


def _cases(targets: Floats) -> NDArray[np.bool_]:
    return np.asarray(targets[:, 0] > HALF)


def _macro_f1(scores: Floats, targets: Floats) -> Estimate | None:
    chosen, truth = scores.argmax(axis=1), targets[:, 0].astype(np.int64)
    each = [f1(chosen == k, truth == k) for k in range(scores.shape[1])]
    found = [e for e in each if e is not None]
    if not found:
        return None
    value = float(np.mean([e.value for e in found]))
    return Estimate(value, (np.mean([e.parts[0] for e in found], axis=0),))


def _squared(scores: Floats, targets: Floats) -> Estimate:
    truth = targets[:, 0].astype(np.int64)
    return _mean(((scores - np.eye(scores.shape[1])[truth]) ** 2).sum(axis=1), -1)


def _dice(scores: Floats, targets: Floats) -> Estimate:
    mask, truth = scores > HALF, targets > HALF
    both = 2.0 * (mask & truth).sum(axis=1)
    size = mask.sum(axis=1) + truth.sum(axis=1)
    return _mean(np.where(size > 0, both / np.maximum(size, 1), 1.0))


Make = Callable[[Floats, Floats], Estimate | None]


def _two_classes(threshold: float) -> dict[str, Make]:
    return {
        "auc": lambda s, t: auc(s[:, 0], _cases(t)),
        "accuracy": lambda s, t: _mean((s[:, 0] > threshold) == _cases(t)),
        "f1": lambda s, t: f1(s[:, 0] > threshold, _cases(t)),
    }


METRICS: Mapping[str, Mapping[str, Make]] = {
    "probability": {
        **_two_classes(HALF),
        "brier": lambda s, t: _mean((s[:, 0] - _cases(t)) ** 2, -1),
    },
    "margin": _two_classes(0.0),
    "classes": {
        "accuracy": lambda s, t: _mean(s.argmax(axis=1) == t[:, 0]),
        "f1": _macro_f1,
        "brier": _squared,
    },
    "number": {"mae": lambda s, t: _mean(np.abs(s[:, 0] - t[:, 0]), -1)},
    "risk": {"c_index": lambda s, t: c_index(s[:, 0], t[:, 0], t[:, 1] > HALF)},
    "mask": {"dice": _dice},
}
_COLUMNS = {"probability": (1, 1), "margin": (1, 1), "number": (1, 1), "risk": (1, 2)}


def _check(predicts: str, scores: Floats, targets: Floats) -> None:
    if predicts not in METRICS:
        raise DataError(f"predictions of kind {predicts!r}; known: {', '.join(METRICS)}")
    if scores.ndim != 2 or targets.ndim != 2 or len(scores) != len(targets) or not len(scores):
        raise DataError(f"scores of shape {scores.shape} for targets of {targets.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(targets).all()):
        raise DataError("a prediction or a target is missing or infinite")
    columns = (scores.shape[1], targets.shape[1])
    needed = _COLUMNS.get(predicts)
    if needed is not None and columns != needed:
        raise DataError(f"{predicts}: {columns} columns of score and target, needed {needed}")
    if predicts == "mask" and columns[0] != columns[1]:
        raise DataError(f"mask: {columns[0]} predicted columns for {columns[1]} of the target")
    likely = predicts in ("probability", "classes")
    if likely and not ((scores >= -1e-6).all() and (scores <= 1 + 1e-6).all()):
        raise DataError(f"{predicts}: a prediction lies outside 0 to 1")
    if predicts == "classes":
        truth = targets[:, 0]
        if columns[1] != 1 or ((truth < 0) | (truth >= columns[0]) | (truth % 1 != 0)).any():
            raise DataError(f"classes: a target is no index of {columns[0]} classes")
    if predicts in ("probability", "margin") and not np.isin(targets, (0, 1)).all():
        raise DataError(f"{predicts}: a target is neither 0 nor 1")
