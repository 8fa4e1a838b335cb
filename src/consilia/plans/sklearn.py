"""Training plans in scikit-learn: linear models trained by gradient steps or to convergence.

    def model(args):
        return SGDClassifier(loss="log_loss", alpha=args["alpha"])

    PLAN = sklearn_plan(model, classes=[0, 1], features="*", target="diagnosis",
                        arguments={"alpha": 1e-4, "epochs": 5})

An estimator with `partial_fit` (SGDClassifier, SGDRegressor, Perceptron, ...) goes over the
shuffled records `epochs` times from the received coefficients. LogisticRegression (lbfgs and
the like) is warm-started from them and runs its own iterations. What travels is `coef_` and
`intercept_`, as float64.

Importing this module imports scikit-learn; nothing else in Consilia does.
"""

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning

from consilia.core.weights import Weights
from consilia.data.table import Samples, Table
from consilia.errors import PlanError
from consilia.plans.contract import (
    PROXIMAL_MU,
    Context,
    Outcome,
    TrainingPlan,
    check_declared,
    select,
)
from consilia.wire.v1 import Arguments, Scalar

Estimator = Callable[[Arguments], Any]
_COEF, _INTERCEPT = "coef", "intercept"


def sklearn_plan(  # noqa: PLR0913  a declaration, written with keywords
    model: Estimator,
    *,
    features: Sequence[str],
    target: str,
    classes: Sequence[int] | Sequence[str] = (),
    fill: float | None = None,
    arguments: Mapping[str, Scalar] | None = None,
) -> TrainingPlan:
    """Make a training plan of a linear scikit-learn estimator.

    `model(args)` returns it unfitted. A classifier needs `classes`, all of them, since a site
    may lack some: numbers as they stand in the data, or the texts of a text target. The
    features are listed by name: their number is the size of the model.
    """
    texts = tuple(c for c in classes if isinstance(c, str))
    if texts and len(texts) < len(classes):
        raise PlanError("classes mixes texts and numbers; needed one or the other")
    labels = np.arange(len(texts)) if texts else np.sort(np.asarray(classes, np.int64))
    if isinstance(features, str):
        raise PlanError(f"features={features!r}; scikit-learn plans need the list of columns")
    kind = "int64" if len(labels) else "float32"
    selection = select(features, target, kind, texts, fill)
    width = len(selection.features or ())

    def init(args: Arguments, seed: int) -> Weights:
        rows = _rows(_made(model, args, labels, seed), labels)
        shape = (rows, width) if rows else (width,)
        return {_COEF: np.zeros(shape), _INTERCEPT: np.zeros(max(rows, 1))}

    def run(
        weights: Weights, table: Table | None, args: Arguments, context: Context
    ) -> Outcome:
        if table is None:
            raise PlanError("training needs a dataset, and the task names none")
        if args.get(PROXIMAL_MU):
            raise PlanError("FedProx needs a gradient; scikit-learn plans train without one")
        np.random.seed(context.seed % 2**32)
        random.seed(context.seed)
        estimator = _made(model, args, labels, context.seed)
        data = table.samples(selection, np.random.default_rng(context.seed))
        _put(estimator, weights, labels, width)
        if hasattr(estimator, "partial_fit"):
            metrics = _steps(estimator, data, labels, args, context)
        else:
            metrics = _warm(estimator, data, labels)
        return Outcome(_taken(estimator, weights), table.records, metrics)

    def judge(
        weights: Weights, table: Table, args: Arguments, context: Context
    ) -> tuple[str, Any, Any]:
        estimator = _made(model, args, labels, context.seed)
        data = table.samples(selection, np.random.default_rng(context.seed))
        _put(estimator, weights, labels, width)
        return _judged(estimator, data.x.astype(np.float64), _target(data), labels)

    declared = check_declared(arguments or {})
    return TrainingPlan("sklearn", init, run, declared, selection, predict=judge)


def _judged(
    estimator: Any, x: NDArray[np.float64], y: Any, labels: NDArray[np.int64]
) -> tuple[str, Any, Any]:
    """Return what the estimator predicts (wire.v1.Predicts), predictions and targets."""
    if not is_classifier(estimator):
        return "number", estimator.predict(x), y
    two = len(labels) == 2
    if hasattr(estimator, "predict_proba"):
        chances = estimator.predict_proba(x)
        if two:
            return "probability", chances[:, 1], y == labels[1]
        return "classes", chances, np.searchsorted(labels, y)
    if two:
        return "margin", estimator.decision_function(x), y == labels[1]
    name = type(estimator).__name__
    raise PlanError(f"{name} gives no probabilities of {len(labels)} classes to compare")


def _made(model: Estimator, args: Arguments, labels: NDArray[np.int64], seed: int) -> Any:
    estimator = model(args)
    name = type(estimator).__name__
    if not hasattr(estimator, "fit") or not hasattr(estimator, "get_params"):
        raise PlanError(f"model() returned {name}; needed a scikit-learn estimator")
    parameters = estimator.get_params()
    if not hasattr(estimator, "partial_fit") and "warm_start" not in parameters:
        raise PlanError(
            f"{name} cannot go on from a received model: needed partial_fit or warm_start, "
            "as SGDClassifier, SGDRegressor or LogisticRegression have"
        )
    if is_classifier(estimator) and len(labels) < 2:
        raise PlanError(f"{name} is a classifier; name all classes: classes=[0, 1]")
    if not is_classifier(estimator) and len(labels):
        raise PlanError(f"{name} is no classifier, so classes= has no meaning")
    wanted: dict[str, object] = {}
    if "random_state" in parameters and parameters["random_state"] is None:
        wanted["random_state"] = seed % 2**32
    if "warm_start" in parameters:
        wanted["warm_start"] = True
    return estimator.set_params(**wanted)


def _rows(estimator: Any, labels: NDArray[np.int64]) -> int:
    """Return the rows of coef_: one per class, one for two classes, none for a regression."""
    if not is_classifier(estimator):
        return 0
    return 1 if len(labels) == 2 else len(labels)


def _put(estimator: Any, weights: Weights, labels: NDArray[np.int64], width: int) -> None:
    rows = _rows(estimator, labels)
    shape = (rows, width) if rows else (width,)
    found = {n: a.shape for n, a in weights.items()}
    if found != {_COEF: shape, _INTERCEPT: (max(rows, 1),)}:
        raise PlanError(f"the received model has {found}; needed coef {shape} and intercept")
    estimator.coef_ = np.array(weights[_COEF], np.float64, order="C")
    estimator.intercept_ = np.array(weights[_INTERCEPT], np.float64)
    if rows:
        estimator.classes_ = labels.copy()
    estimator.n_features_in_ = width


def _steps(
    estimator: Any,
    data: Samples,
    labels: NDArray[np.int64],
    args: Arguments,
    context: Context,
) -> dict[str, float]:
    """Go over the records `epochs` times (an argument, 1 by default)."""
    epochs = args.get("epochs", 1)
    if not isinstance(epochs, int) or epochs < 1:
        raise PlanError(f"epochs={epochs!r}; needed a whole number from 1 up")
    for epoch in range(epochs):
        order = data.rng.permutation(data.records)
        x, y = data.x[order].astype(np.float64), _target(data)[order]
        if len(labels):
            estimator.partial_fit(x, y, classes=labels)
        else:
            estimator.partial_fit(x, y)
        context.progress((epoch + 1) / epochs)
    return {"score": float(estimator.score(data.x, _target(data)))}


def _warm(estimator: Any, data: Samples, labels: NDArray[np.int64]) -> dict[str, float]:
    """Let the estimator iterate from the received coefficients."""
    y = _target(data)
    if len(labels) and len(np.unique(y)) < len(labels):
        lacking = sorted(set(labels.tolist()) - set(np.unique(y).tolist()))
        raise PlanError(
            f"{type(estimator).__name__} needs records of every class, the site has none of "
            f"{lacking}; an estimator with partial_fit does not"
        )
    with warnings.catch_warnings():
        # few iterations a round are what federated training wants
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(data.x.astype(np.float64), y)
    return {"score": float(estimator.score(data.x, y))}


def _target(data: Samples) -> Any:
    if data.y is None:
        raise PlanError("a scikit-learn plan needs a target")
    return data.y


def _taken(estimator: Any, weights: Weights) -> Weights:
    coef = np.ascontiguousarray(estimator.coef_, np.float64)
    intercept = np.atleast_1d(np.asarray(estimator.intercept_, np.float64))
    if intercept.shape != weights[_INTERCEPT].shape:  # fit_intercept=False
        intercept = np.full(weights[_INTERCEPT].shape, intercept.item(), np.float64)
    return {_COEF: coef, _INTERCEPT: np.ascontiguousarray(intercept)}
