"""From a worker's predictions to what a site tells of a model: measured here, under its rules.

The worker runs a plan's code; it gives one prediction for each record of the hold-out, and no
metric. This side computes them (stats.scores) and applies disclosure control: nothing about
fewer than k records; subgroups only under names that were chosen before, and only where neither
they nor what they leave over is smaller than k; calibration in bins of k cases and k others.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import DTYPES, Array, TensorSpec, Weights
from consilia.errors import DataError, Refused, WorkerError
from consilia.node.aside import read_tensors
from consilia.node.runner import TaskOutput
from consilia.privacy import disclosure
from consilia.privacy.disclosure import Rules, Suppressed, Why
from consilia.stats.scores import METRICS, Estimate, Floats, calibration, estimates, gains
from consilia.stats.sums import names_of
from consilia.wire.v1 import (
    CalibrationBin,
    Evaluated,
    Evaluation,
    Measure,
    Predicts,
    Subgroup,
    Subgroups,
)
from consilia.wire.worker import WorkerTensor

Rows = NDArray[np.bool_]  # which records

KIND = "kind:"
MOST_VALUES = 1 << 26  # of one array
_DTYPES = {"scores": "float64", "targets": "float64", "local": "float64", "levels": "int64"}
_PREDICTS: Mapping[str, Predicts] = {
    "probability": "probability",
    "margin": "margin",
    "classes": "classes",
    "number": "number",
    "risk": "risk",
    "mask": "mask",
}


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a worker predicted for the hold-out, checked for its shape."""

    predicts: Predicts
    scores: Floats
    targets: Floats
    levels: NDArray[np.int64] | None
    local: Floats | None

    def sides(self) -> tuple[Rows, ...]:
        """Return the records of each kind of which a metric needs k: cases, others, events."""
        if self.predicts in ("probability", "margin"):
            cases = self.targets[:, 0] > 0.5
            return cases, ~cases
        return (self.targets[:, 1] > 0.5,) if self.predicts == "risk" else ()


def taken(output: TaskOutput, asked: Evaluation, records: int) -> Predictions:
    """Read a worker's predictions for `records` records; WorkerError when they do not fit."""
    specs = tuple(_checked(t, asked, records) for t in output.done.tensors)
    names = [spec.name for spec in specs]
    kinds = [name.removeprefix(KIND) for name in names if name.startswith(KIND)]
    wanted = {"scores", "targets"} | ({"levels"} if asked.subgroups else set())
    wanted |= {"local"} if asked.local else set()
    if len(kinds) != 1 or {n for n in names if not n.startswith(KIND)} != wanted:
        raise WorkerError(f"an evaluation gave {sorted(names)[:8]}", "plan-contract")
    arrays: Weights = read_tensors(output, specs)
    levels = arrays.get("levels")
    return Predictions(
        _PREDICTS[kinds[0]],
        _floats(arrays["scores"]),
        _floats(arrays["targets"]),
        None if levels is None else np.asarray(levels, np.int64),
        _floats(arrays["local"]) if "local" in arrays else None,
    )


def measured(
    found: Predictions, asked: Evaluation, rules: Rules, exact: bool, why: Why
) -> Evaluated:
    """Return what may be told of the model; Refused when that is nothing."""
    try:
        whole = estimates(found.predicts, found.scores, found.targets)
        alone = {}
        if found.local is not None:
            alone = estimates(found.predicts, found.local, found.targets)
    except DataError as error:
        raise WorkerError(str(error), "plan-contract") from None
    count = len(found.scores)
    records = disclosure.release_count(count, rules, why)
    told = _Told(rules, exact, why)
    measures = told.measures(whole, found)
    if isinstance(records, Suppressed) or not measures:
        raise Refused("the hold-out is too small for anything to be told of it")
    return Evaluated(
        found.predicts,
        records,
        measures,
        _curve(found, told),
        tuple(
            group
            for place, subgroups in enumerate(asked.subgroups)
            for group in _subgroups(found, place, subgroups, told)
        ),
        told.measures(alone, found),
        told.measures(gains(whole, alone), found),
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """How a site's rules let a number out."""

    rules: Rules
    exact: bool
    why: Why

    def number(self, value: float, records: int) -> float | None:
        out = disclosure.release_metric(value, records, self.rules, self.exact, self.why)
        return None if isinstance(out, Suppressed) else out

    def measures(
        self, found: Mapping[str, Estimate], of: Predictions, inside: Rows | None = None
    ) -> dict[str, Measure]:
        """Return the metrics that may be told; of two classes each side holds k."""
        rows = np.ones(len(of.scores), np.bool_) if inside is None else inside
        count = int(rows.sum())
        few = min([count, *(int((rows & side).sum()) for side in of.sides())])
        told: dict[str, Measure] = {}
        shown = disclosure.release_count(count, self.rules, self.why)
        for name, estimate in found.items():
            value, error = self.number(estimate.value, few), self.number(estimate.error, few)
            if value is not None and error is not None and isinstance(shown, int):
                told[name] = Measure(value, error, shown)
        return told


def _curve(found: Predictions, told: _Told) -> tuple[CalibrationBin, ...]:
    if found.predicts != "probability":
        return ()
    cases = found.targets[:, 0] > 0.5
    bins = []
    least = max(told.rules.k, 1)
    for low, high, mean, share, count in calibration(found.scores[:, 0], cases, least):
        shown = disclosure.release_count(count, told.rules, told.why)
        predicted, observed = told.number(mean, count), told.number(share, count)
        if predicted is not None and observed is not None and isinstance(shown, int):
            bins.append(CalibrationBin(low, high, predicted, observed, shown))
    return tuple(bins)


def _subgroups(found: Predictions, place: int, asked: Subgroups, told: _Told) -> list[Subgroup]:
    """Return what is told of the levels of one column; the rest is as if it were not there."""
    if found.levels is None:
        return []
    names = names_of(asked)
    inside = [found.levels[:, place] == level for level in range(len(names))]
    counts = [int(rows.sum()) for rows in inside]
    shown = _shown(found, inside, told)
    groups = []
    for name, rows, count, visible in zip(names, inside, counts, shown, strict=True):
        if not visible:
            told.why(f"subgroup {asked.column}: a level is too rare, or follows from the rest")
            continue
        part = estimates(found.predicts, found.scores[rows], found.targets[rows])
        records = disclosure.release_count(count, told.rules, told.why)
        measures = told.measures(part, found, rows)
        if isinstance(records, int) and measures:
            groups.append(Subgroup(asked.column, name, records, measures))
    return groups


def _shown(found: Predictions, inside: list[Rows], told: _Told) -> tuple[bool, ...]:
    """Say which levels may be shown, so that none that is left out follows from the others.

    What is hidden must together hold k records, and k cases and k others of two classes, as
    in a table: rounding does not help, since three digits name a share of fifty records
    exactly, and the share of the hidden ones with it. What is in no level is hidden as well.
    A level or rest of nobody counts as hidden only where counts leave as they are; else one
    of two levels would always be hidden, for the sake of a rest that nobody is in.
    """
    cells = [*inside, ~np.any(inside, axis=0)]
    counts = [int(rows.sum()) for rows in cells]
    if told.rules.rounded and not told.exact:
        shown = _of_somebody(counts, counts, told.rules)
    else:
        shown = disclosure.shown_cells(counts, told.rules)
    for side in found.sides():
        few = [int((rows & side).sum()) for rows in cells]
        of_side = _of_somebody(few, counts, told.rules)
        shown = tuple(a and b for a, b in zip(shown, of_side, strict=True))
    return shown[:-1]


def _of_somebody(few: list[int], counts: list[int], rules: Rules) -> tuple[bool, ...]:
    """Return disclosure.shown_cells of `few`, over the cells that anybody is in.

    A level of cases alone is among them, with none of the others: told apart from a level of
    rare others, it would say of everybody in it that they are cases.
    """
    held = [n for n, count in zip(few, counts, strict=True) if count]
    shown = iter(disclosure.shown_cells(held, rules))
    return tuple(count > 0 and next(shown) for count in counts)


def _checked(tensor: WorkerTensor, asked: Evaluation, records: int) -> TensorSpec:
    """Return what a worker may send of a tensor; it runs a plan's code, and is not trusted."""
    spec = TensorSpec(tensor.name, tensor.dtype, tensor.shape)
    if tensor.name.startswith(KIND):
        kind = tensor.name.removeprefix(KIND)
        if kind in METRICS and (tensor.dtype, tensor.shape) == ("float64", (0, 1)):
            return spec
        raise WorkerError(f"an evaluation of kind {kind[:40]!r}", "plan-contract")
    rows = tensor.shape[0] if len(tensor.shape) == 2 else -1
    columns = tensor.shape[1] if len(tensor.shape) == 2 else -1
    fits = rows == records and columns > 0 and rows * columns <= MOST_VALUES
    if tensor.name == "levels":
        fits = fits and columns == len(asked.subgroups)
    if not fits or _DTYPES.get(tensor.name) != tensor.dtype or tensor.dtype not in DTYPES:
        shown = f"{tensor.name[:40]!r} of {tensor.dtype[:20]} {tensor.shape[:4]}"
        raise WorkerError(f"an evaluation of {records} records gave {shown}", "plan-contract")
    return spec


def _floats(array: Array) -> Floats:
    return np.asarray(array, np.float64)
