"""Training plans over plain arrays: any function that changes named numpy arrays.

    def init(args, seed):
        return {"w": np.zeros(30, np.float32), "b": np.zeros((), np.float32)}

    def train(weights, data, args, context):
        for x, y in data.batches(256, shuffle=True):
            ...
            weights["w"] -= args["lr"] * gradient        # in place, or put a new array there
        return {"loss": loss}

    PLAN = numpy_plan(init, train, features="*", target="diagnosis", arguments={"lr": 0.1})

Without `features`, `data` is the Table itself (`data.column("age")`, `data.records`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Array, Weights
from consilia.data.contract import Selection
from consilia.data.table import Samples, Table
from consilia.errors import PlanError
from consilia.plans.contract import (
    PROXIMAL_MU,
    Context,
    Outcome,
    Predicting,
    TrainingPlan,
    check_declared,
    check_predicts,
    copy_weights,
    select,
)
from consilia.wire.v1 import Arguments, Scalar

Init = Callable[[Arguments, int], Weights]
Predict = Callable[[Weights, "NumpyData", Arguments], Array]
Train = Callable[[Weights, Any, Arguments, Context], Mapping[str, object] | None]


@dataclass(frozen=True, slots=True)
class NumpyData:
    """A site's records as arrays: `x` (records x features, float32), `y`, and batches."""

    samples: Samples

    @property
    def x(self) -> NDArray[np.float32]:
        """The feature matrix. Do not change it: it serves all rounds."""
        return self.samples.x

    @property
    def y(self) -> Array | None:
        """The target, None when the plan names none."""
        return self.samples.y

    @property
    def features(self) -> tuple[str, ...]:
        """The columns of `x`."""
        return self.samples.features

    @property
    def records(self) -> int:
        """Number of records."""
        return self.samples.records

    def batches(
        self, batch_size: int, *, shuffle: bool = False, drop_last: bool = False
    ) -> Iterator[tuple[NDArray[np.float32], Array]]:
        """Yield (x, y) of `batch_size` records; shuffled by the task's own seed."""
        return self.samples.batches(batch_size, shuffle=shuffle, drop_last=drop_last)


def numpy_plan(  # noqa: PLR0913  a declaration, written with keywords
    init: Init,
    train: Train,
    *,
    features: Sequence[str] | str | None = None,
    target: str | Sequence[str] | None = None,
    target_type: str = "float32",
    classes: Sequence[str] = (),
    fill: float | None = None,
    arguments: Mapping[str, Scalar] | None = None,
    predict: Predict | None = None,
    predicts: str = "",
) -> TrainingPlan:
    """Make a training plan of two functions over dicts of arrays (see the module's example).

    `init(args, seed)` returns the first weights; `train(weights, data, args, context)` changes
    them in the dict it is given and returns metrics, or None.

    `predict(weights, data, args)` gives one prediction for each record of `data` (it takes a
    `target`); `predicts` says what it is, as of torch_plan.
    """
    check_predicts(predicts, predict)
    selection = None
    if features is not None or target is not None:
        selection = select(features or "*", target, target_type, classes, fill)

    def start(args: Arguments, seed: int) -> Weights:
        made = init(args, seed)
        if not isinstance(made, dict):
            raise PlanError(f"init returned {type(made).__name__}; needed a dict of arrays")
        return {name: np.asarray(array) for name, array in made.items()}

    def run(
        weights: Weights, table: Table | None, args: Arguments, context: Context
    ) -> Outcome:
        if table is None:
            raise PlanError("training needs a dataset, and the task names none")
        rng = np.random.default_rng(context.seed)
        data = NumpyData(table.samples(selection, rng)) if selection else table
        if mu := args.get(PROXIMAL_MU):
            context.proximal_term = _pull(float(mu), copy_weights(weights))
        metrics = train(weights, data, args, context)
        return Outcome(weights, table.records, dict(metrics or {}))  # type: ignore[arg-type]

    declared = check_declared(arguments or {})
    judge = None if predict is None else _predicting(selection, predict, predicts)
    return TrainingPlan("numpy", start, run, declared, selection, predict=judge)


def _predicting(selection: Selection | None, predict: Predict, predicts: str) -> Predicting:
    """Return what predicts for every record of a table."""
    if selection is None or not selection.targets:
        raise PlanError("predict= needs target=: a prediction is compared with it")

    def run(
        weights: Weights, table: Table, args: Arguments, context: Context
    ) -> tuple[str, Array, Array]:
        data = NumpyData(table.samples(selection, np.random.default_rng(context.seed)))
        if data.y is None:
            raise PlanError("the plan has no target")
        return predicts, predict(copy_weights(weights), data, args), data.y

    return run


def _pull(mu: float, origin: Weights) -> Callable[[Weights], Weights]:
    """Return the gradient of mu/2 * ||w - origin||^2, tensor by tensor."""
    floats: dict[str, Any] = {n: a for n, a in origin.items() if a.dtype.kind == "f"}

    def gradient(weights: Weights) -> Weights:
        moved = {n: np.subtract(weights[n], a, dtype=a.dtype) for n, a in floats.items()}
        return {n: np.multiply(m, mu, dtype=m.dtype) for n, m in moved.items()}

    return gradient
