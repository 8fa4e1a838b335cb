"""What a training plan is, and how one is checked and run, whatever its framework.

A plan is a frozen record of two functions over named arrays. Researchers seldom write one
by hand: `torch_plan`, `sklearn_plan` and `numpy_plan` make it from code that looks like a
local training loop. The worker (node.worker) and the simulator run every plan through
`run_task`, so that a plan that breaks its contract fails at once, with a message that says
what was found and what was needed.

A plan object serves one task at a time: adapters keep their model in it between rounds.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from consilia.core.weights import Array, Weights, mismatch, schema_of
from consilia.data.contract import Selection
from consilia.data.table import Table
from consilia.errors import PlanError, UpdateRejected
from consilia.privacy.accountant import public_count
from consilia.wire.metrics import name_misfit
from consilia.wire.strict import nearest
from consilia.wire.v1 import (
    MAX_ARGUMENTS,
    MAX_METRICS,
    Arguments,
    Dp,
    Metrics,
    Predicts,
    Scalar,
)
from consilia.wire.worker import Audit

PROXIMAL_MU = "proximal_mu"  # set by the FedProx strategy; every plan accepts it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training gives back. `weights` may be the very arrays that it was given."""

    weights: Weights
    records: int  # that the weights were computed on
    metrics: Metrics


@dataclass(slots=True)
class Context:
    """What a task knows beyond its data and arguments. Made new for every task."""

    round: int = 0
    seed: int = 0
    site: str = ""
    deterministic: bool = False
    cuda: bool = False  # the site allows it; the adapter looks whether it is there
    threads: int = 1
    report: Callable[[float, Metrics], None] = lambda _fraction, _metrics: None
    dp: Dp | None = None  # differential privacy of the round
    patient: str = ""  # the dataset's column of patient ids
    random: Callable[[int], bytes] = os.urandom  # keys of noise; never the task's seed
    proximal_term: Callable[[Any], Any] | None = None  # set by the adapter when mu > 0
    proximal_used: bool = field(default=False, init=False)

    def progress(self, fraction: float, **metrics: object) -> None:
        """Tell how far the task is (0 to 1), with numbers to follow live. Cheap."""
        if not 0.0 <= fraction <= 1.0:
            raise PlanError(f"progress({fraction!r}): needed a fraction from 0 to 1")
        if self.dp is not None:  # no number leaves that is not charged; tenths tell no count
            self.report(math.floor(fraction * 10) / 10, {})
            return
        self.report(float(fraction), numbers(metrics, "progress"))

    def proximal(self, model: Any) -> Any:
        """Return the FedProx pull towards the model that the round began with.

        PyTorch: the scalar mu/2 * ||w - w_round||^2 to add to the loss. numpy: a dict of the
        gradients mu * (w - w_round) by tensor name. Without FedProx: 0.0, or {} in numpy.
        Source: Li et al. 2020 (FedProx), equation 2.
        """
        self.proximal_used = True
        if self.proximal_term is None:
            return {} if isinstance(model, Mapping) else 0.0
        return self.proximal_term(model)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """A training plan in one record.

    `init(arguments, seed)` makes the first model. `train(weights, table, arguments, context)`
    trains it at a site; it owns the arrays in `weights` and may train them in place.
    """

    framework: str  # torch, sklearn, numpy
    init: Callable[[Arguments, int], Weights]
    train: Callable[[Weights, Table | None, Arguments, Context], Outcome]
    arguments: Mapping[str, Scalar] = field(default_factory=dict)  # names and defaults
    selection: Selection | None = None  # the columns it asks for; None: it takes the table
    private: bool = False  # trains by itself with privacy at record and patient level
    audit: "Auditing | None" = None  # runs tasks of an audit of privacy (plans.attack)
    predict: "Predicting | None" = None  # of each record, to evaluate a model (plans.evaluate)
    network: Callable[[Arguments], Any] | None = None  # makes its module, with weights of any


# model, hold-out, arguments, context -> what is predicted (wire.v1.Predicts), predictions and
# targets, records x columns each
Predicting = Callable[[Weights, Table, Arguments, Context], tuple[str, Any, Any]]
# plan, task, model, whole table, arguments, round -> its context; gives the task's arrays
Auditing = Callable[
    [TrainingPlan, Audit, Weights | None, Table, Arguments, Callable[[int], Context]], Weights
]


def run_task(
    plan: TrainingPlan,
    weights: Weights | None,
    table: Table | None,
    given: Mapping[str, Scalar],
    context: Context,
) -> Outcome:
    """Run one task of `plan`: init when `weights` is None, else train. Checks both ends.

    Raises PlanError when arguments, weights, records or metrics break the contract; whatever
    the plan itself raises passes through. Of a round with differential privacy come back the
    weights and the public record count, no metric.
    """
    arguments = check_arguments(plan.arguments, given)
    if weights is None:
        made = plan.init(arguments, context.seed)
        check_weights(made, "init")
        return Outcome(made, 0, {})
    if context.dp is not None and context.dp.level != "client" and not plan.private:
        raise PlanError(
            f"the round asks for privacy at {context.dp.level} level, which Consilia's own "
            f"loop gives; this {plan.framework} plan trains with its own. Make it with "
            "torch_plan(dp=DpParts(loss=...)), or with loss= and optimizer= instead of train="
        )
    before = schema_of(weights)
    outcome = plan.train(weights, table, arguments, context)
    if not isinstance(outcome, Outcome):
        raise PlanError(f"train returned {_kind(outcome)}; needed an Outcome")
    check_weights(outcome.weights, "train")
    if problem := mismatch(schema_of(outcome.weights), before):
        raise PlanError(f"train changed the shape of the model: {problem}")
    if arguments.get(PROXIMAL_MU) and not context.proximal_used:
        raise PlanError(
            "the experiment uses FedProx, but the plan never called context.proximal(model): "
            "add it to the loss, or choose another strategy"
        )
    limit = table.records if table is not None else 0
    if not isinstance(outcome.records, int) or not 0 <= outcome.records <= limit:
        raise PlanError(f"train claims {outcome.records!r} records; the dataset has {limit}")
    if context.dp is not None:
        return Outcome(outcome.weights, public_count(outcome.records), {})
    return Outcome(outcome.weights, outcome.records, numbers(outcome.metrics, "train"))


def check_arguments(declared: Mapping[str, Scalar], given: Mapping[str, Scalar]) -> Arguments:
    """Return the declared arguments with the given values; raise PlanError for others."""
    arguments: Arguments = dict(declared)
    for name, value in given.items():
        if name == PROXIMAL_MU and name not in declared:
            default: Scalar = 0.0
        elif name in declared:
            default = declared[name]
        else:
            raise PlanError(f"the plan has no argument {name!r}{nearest(name, declared)}")
        arguments[name] = _fit(name, value, default)
    return arguments


def check_declared(arguments: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return a copy of a plan's declared arguments; raise PlanError for one that cannot be."""
    if len(arguments) > MAX_ARGUMENTS:
        raise PlanError(f"{len(arguments)} arguments declared; at most {MAX_ARGUMENTS} can be")
    for name, value in arguments.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise PlanError(f"argument name {name!r} is not a Python name")
        if not isinstance(value, bool | int | float | str):
            raise PlanError(
                f"argument {name!r} defaults to {_kind(value)}; needed bool, int, float or str"
            )
    return dict(arguments)


def select(
    features: Sequence[str] | str,
    target: Sequence[str] | str | None,
    target_type: str = "float32",
    classes: Sequence[str] = (),
    fill: float | None = None,
) -> Selection:
    """Return the Selection for an adapter's options, or raise PlanError for what is wrong.

    `features` is "*" (every numeric column but the target) or a list of column names.
    """
    if isinstance(features, str) and features != "*":
        raise PlanError(f"features={features!r}; needed a list of columns, or '*' for all")
    names = None if isinstance(features, str) else tuple(features)
    targets = target if target is None or isinstance(target, str) else tuple(target)
    selection = Selection(names, targets, target_type, tuple(classes), fill)
    if names is not None and (not names or len(set(names)) < len(names)):
        raise PlanError(f"features={list(names)}; needed at least one column, each once")
    if leaked := set(names or ()) & set(selection.targets):
        raise PlanError(f"column {min(leaked)!r} is both a feature and the target")
    if target_type not in ("float32", "int64"):
        raise PlanError(f"target_type={target_type!r}; needed 'float32' or 'int64'")
    if fill is not None and not math.isfinite(fill):
        raise PlanError(f"fill={fill}; needed a finite number")
    return selection


def check_weights(weights: object, who: str) -> None:
    """Raise PlanError unless `weights` is a non-empty dict of arrays that the wire carries."""
    if not isinstance(weights, dict) or not weights:
        raise PlanError(f"{who} gave {_kind(weights)} as weights; needed a dict of arrays")
    for name, array in weights.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise PlanError(f"{who}: tensor {name!r} is {_kind(array)}; needed a numpy array")
    try:
        schema_of(weights)
    except UpdateRejected as e:
        raise PlanError(f"{who}: {e}") from None


def numbers(metrics: object, who: str) -> Metrics:
    """Return `metrics` as finite floats (numpy and torch scalars too), or raise PlanError.

    A metric that is NaN or infinite raises FloatingPointError: training diverged.
    """
    if not isinstance(metrics, Mapping):
        raise PlanError(f"{who} gave {_kind(metrics)} as metrics; needed a dict of numbers")
    if len(metrics) > MAX_METRICS:
        raise PlanError(f"{who} gave {len(metrics)} metrics; at most {MAX_METRICS} can travel")
    out: Metrics = {}
    for name, value in metrics.items():
        if problem := name_misfit(name):
            raise PlanError(f"{who}: {problem}")
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise PlanError(
                f"{who}: metric {name!r} is {_kind(value)}; needed a number"
            ) from None
        if not math.isfinite(number):
            raise FloatingPointError(
                f"{who}: metric {name!r} is {number}; training diverged, or leave it out"
            )
        out[name] = number
    return out


def copy_weights(weights: Weights) -> Weights:
    """Return a deep copy."""
    return {name: np.array(array, copy=True) for name, array in weights.items()}


def contiguous(array: Array) -> Array:
    """Return `array` itself when it is C-contiguous and little-endian, else such a copy."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array if array.flags.c_contiguous else np.array(array, order="C", copy=True)


def check_predicts(predicts: str, predict: object) -> None:
    """Raise PlanError unless a plan says both how and what it predicts, or neither."""
    if predict is None:
        if predicts:
            raise PlanError(f"predicts={predicts!r} without predict=; needed both, or neither")
    elif predicts not in get_args(Predicts):
        raise PlanError(
            f"predicts={predicts!r}; needed what predict= gives of each record: "
            f"{', '.join(get_args(Predicts))}"
        )


def _fit(name: str, value: Scalar, default: Scalar) -> Scalar:
    needed = type(default)
    if type(value) is needed:
        fits = not isinstance(value, float) or math.isfinite(value)
    else:
        fits = needed is float and type(value) is int
        value = float(value) if fits else value
    if not fits:
        raise PlanError(
            f"argument {name}={value!r} is {_kind(value)}; needed {needed.__name__} "
            f"like its default {default!r}"
        )
    return value


def _kind(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "None" if value is None else f"of type {type(value).__name__}"
