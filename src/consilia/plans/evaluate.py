"""What a task of kind "evaluate" does in the worker: predictions for the hold-out, by record.

They go to the site's agent, which measures (stats.scores) and lets out what its rules allow;
none leaves the site. With `local` the plan also trains a model on the site's own training
records, from its own start and as many rounds as the federation had, for comparison.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Weights
from consilia.data.table import Table
from consilia.errors import DataError, PlanError
from consilia.plans.contract import Context, TrainingPlan, check_arguments, run_task
from consilia.stats.columns import places
from consilia.wire.v1 import Evaluation, Predicts, Scalar

Floats = NDArray[np.float64]


def evaluate(  # noqa: PLR0913, PLR0917 - what the task is of
    plan: TrainingPlan,
    asked: Evaluation,
    weights: Weights,
    holdout: Table,
    table: Table | None,
    given: Mapping[str, Scalar],
    context: Context,
) -> Weights:
    """Return the task's arrays.

    "kind:PREDICTS" (empty), "scores" and "targets" (float64, records x columns), "levels"
    (int64, records x subgroups; places in a subgroup's levels, or between its cut points;
    -1 for none), and "local", the scores of the site's own model, where it was asked for.
    Raises PlanError when the plan cannot predict, DataError for a column that is not there.
    """
    arguments = check_arguments(plan.arguments, given)
    predicts, scores, targets = _judged(plan, weights, holdout, arguments, context)
    found: Weights = {
        f"kind:{predicts}": np.zeros((0, 1)),
        "scores": scores,
        "targets": targets,
    }
    if asked.subgroups:
        found["levels"] = np.stack([places(holdout, s) for s in asked.subgroups], axis=1)
    if asked.local:
        alone = _trained_alone(plan, asked.local, table, given, context)
        _, found["local"], _ = _judged(plan, alone, holdout, arguments, context)
    return found


def _judged(
    plan: TrainingPlan,
    weights: Weights,
    holdout: Table,
    arguments: dict[str, Scalar],
    context: Context,
) -> tuple[str, Floats, Floats]:
    if plan.predict is None:
        raise PlanError(
            f"this {plan.framework} plan cannot be evaluated; give it predict= and predicts=, "
            f"one of {', '.join(get_args(Predicts))}"
        )
    predicts, scores, targets = plan.predict(weights, holdout, arguments, context)
    found = _columns(scores, "predict"), _columns(targets, "the target")
    if len(found[0]) != holdout.records or len(found[1]) != holdout.records:
        raise PlanError(
            f"predict gave {len(found[0])} predictions for {holdout.records} records"
        )
    return predicts, *found


def _columns(values: Any, who: str) -> Floats:
    array = np.asarray(values, np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise PlanError(
            f"{who} has the shape {array.shape}; needed records, or records x columns"
        )
    if not np.isfinite(array).all():
        raise FloatingPointError(f"{who} holds NaN or infinity")
    return np.ascontiguousarray(array)


def _trained_alone(
    plan: TrainingPlan,
    rounds: int,
    table: Table | None,
    given: Mapping[str, Scalar],
    context: Context,
) -> Weights:
    """Return the plan's model after `rounds` rounds on the site's own training records."""
    if table is None or not table.records:
        raise DataError("a model of the site's own needs training records")
    weights = run_task(plan, None, None, given, replace(context, dp=None)).weights
    for number in range(1, rounds + 1):
        own = replace(context, round=number, seed=context.seed + number, report=_unheard)
        weights = run_task(plan, weights, table, given, own).weights
        context.report(number / (rounds + 1), {})
    return {name: np.array(array, copy=True) for name, array in weights.items()}


def _unheard(_: float, __: object) -> None:
    """Tell nobody how far a round of many is."""
