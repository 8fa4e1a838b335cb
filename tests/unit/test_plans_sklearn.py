"""scikit-learn plans: real training from received coefficients."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: sklearn)")
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.preprocessing import StandardScaler

from consilia.core.weights import Weights
from consilia.data.registry import inspect_table, to_source
from consilia.data.table import Table
from consilia.errors import PlanError
from consilia.plans.contract import Context, Outcome, TrainingPlan, copy_weights, run_task
from consilia.plans.sklearn import sklearn_plan


def tabled(tmp_path: Path, x: Any, y: Any, name: str = "t") -> tuple[Table, list[str]]:
    names = [f"f{i}" for i in range(x.shape[1])]
    path = tmp_path / f"{name}.csv"
    rows = (",".join(map(repr, map(float, r))) + f",{t}" for r, t in zip(x, y, strict=True))
    path.write_text(",".join([*names, "y"]) + "\n" + "\n".join(rows) + "\n")
    return Table(to_source(inspect_table(path, name, (), now=0))), names


@pytest.fixture
def cancer(tmp_path: Path) -> tuple[Table, list[str]]:
    x, y = load_breast_cancer(return_X_y=True)
    return tabled(tmp_path, StandardScaler().fit_transform(x), y)


def _floats(outcome: Outcome, name: str) -> NDArray[np.float64]:
    return np.asarray(outcome.weights[name], np.float64)


def rounds(plan: TrainingPlan, tables: list[Table], count: int) -> tuple[Weights, list[float]]:
    """Federated averaging by hand, equal weights."""
    weights = run_task(plan, None, None, {}, Context(seed=0)).weights
    scores = []
    for round in range(count):
        outcomes = [
            run_task(plan, copy_weights(weights), t, {}, Context(round=round, seed=round))
            for t in tables
        ]
        weights = {n: np.stack([_floats(o, n) for o in outcomes]).mean(axis=0) for n in weights}
        scores.append(float(np.mean([o.metrics["score"] for o in outcomes])))
    return weights, scores


def test_sgd_classifier_learns(cancer: tuple[Table, list[str]]) -> None:
    table, names = cancer
    plan = sklearn_plan(
        lambda a: SGDClassifier(loss="log_loss", alpha=a["alpha"]),
        features=names,
        target="y",
        classes=[0, 1],
        arguments={"alpha": 1e-3, "epochs": 3},
    )
    weights, scores = rounds(plan, [table], 4)
    assert weights["coef"].shape == (1, 30)
    assert weights["intercept"].shape == (1,)
    assert scores[-1] > 0.96


def test_training_goes_on_from_the_received_coefficients(
    cancer: tuple[Table, list[str]],
) -> None:
    table, names = cancer
    plan = sklearn_plan(
        lambda a: SGDClassifier(loss="log_loss", learning_rate="constant", eta0=1e-6),
        features=names,
        target="y",
        classes=[0, 1],
    )
    given = {"coef": np.full((1, 30), 0.25), "intercept": np.array([-1.0])}
    out = run_task(plan, copy_weights(given), table, {}, Context()).weights
    assert np.allclose(out["coef"], 0.25, atol=0.01)
    assert not np.array_equal(out["coef"], given["coef"])


def test_logistic_regression_reaches_the_pooled_fit(cancer: tuple[Table, list[str]]) -> None:
    table, names = cancer
    plan = sklearn_plan(
        lambda a: LogisticRegression(max_iter=200), features=names, target="y", classes=[0, 1]
    )
    weights, _ = rounds(plan, [table], 2)
    x = np.stack([table.column(n) for n in names], 1).astype(np.float32).astype(np.float64)
    pooled = LogisticRegression(max_iter=2000, tol=1e-8).fit(x, table.column("y"))
    assert np.allclose(weights["coef"], pooled.coef_, atol=0.02)


def test_logistic_regression_is_warm_started(cancer: tuple[Table, list[str]]) -> None:
    table, names = cancer
    plan = sklearn_plan(
        lambda a: LogisticRegression(max_iter=1), features=names, target="y", classes=[0, 1]
    )
    _, scores = rounds(plan, [table], 6)
    assert scores[-1] > scores[0]


def test_three_classes_on_sites_that_lack_one(tmp_path: Path) -> None:
    x, y = load_iris(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    one, names = tabled(tmp_path, x[y != 2], y[y != 2], "one")
    two, _ = tabled(tmp_path, x, y, "two")
    plan = sklearn_plan(
        lambda a: SGDClassifier(loss="log_loss"),
        features=names,
        target="y",
        classes=[0, 1, 2],
        arguments={"epochs": 5},
    )
    weights, _ = rounds(plan, [one, two], 10)
    assert weights["coef"].shape == (3, 4)
    guess = np.argmax(x @ weights["coef"].T + weights["intercept"], axis=1)
    assert (guess == y).mean() > 0.7
    strict = sklearn_plan(
        lambda a: LogisticRegression(), features=names, target="y", classes=[0, 1, 2]
    )
    with pytest.raises(PlanError, match=r"has none of \[2\]"):
        rounds(strict, [one], 1)


def test_regression(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 4))
    table, names = tabled(tmp_path, x, x @ [1.0, -2.0, 3.0, 0.0] + 5.0)
    plan = sklearn_plan(
        lambda a: SGDRegressor(), features=names, target="y", arguments={"epochs": 10}
    )
    weights, _ = rounds(plan, [table], 3)
    assert weights["coef"].shape == (4,)
    assert np.allclose(weights["coef"], [1, -2, 3, 0], atol=0.05)
    assert np.allclose(weights["intercept"], 5.0, atol=0.05)


def test_text_classes(tmp_path: Path) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    words = np.array(["malignant", "benign"])[y]
    table, names = tabled(tmp_path, StandardScaler().fit_transform(x), words)
    plan = sklearn_plan(
        lambda a: SGDClassifier(), features=names, target="y", classes=["benign", "malignant"]
    )
    assert rounds(plan, [table], 2)[1][-1] > 0.95


def test_the_seed_is_all_the_randomness(cancer: tuple[Table, list[str]]) -> None:
    table, names = cancer
    plan = sklearn_plan(lambda a: SGDClassifier(), features=names, target="y", classes=[0, 1])
    start = run_task(plan, None, None, {}, Context()).weights
    found = [
        run_task(plan, copy_weights(start), table, {}, Context(seed=s)).weights["coef"]
        for s in (1, 1, 2)
    ]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_no_intercept(cancer: tuple[Table, list[str]]) -> None:
    table, names = cancer
    plan = sklearn_plan(
        lambda a: LogisticRegression(fit_intercept=False),
        features=names,
        target="y",
        classes=[0, 1],
    )
    weights, _ = rounds(plan, [table], 1)
    assert weights["intercept"].tolist() == [0.0]


def test_what_cannot_be_federated_is_refused(cancer: tuple[Table, list[str]]) -> None:
    table, names = cancer
    cases = [
        (lambda a: LinearRegression(), [], "cannot go on from a received model"),
        (lambda a: 5, [], "needed a scikit-learn estimator"),
        (lambda a: SGDClassifier(), [], "name all classes"),
        (lambda a: SGDRegressor(), [0, 1], "is no classifier"),
    ]
    for model, classes, message in cases:
        plan = sklearn_plan(model, features=names, target="y", classes=classes)
        with pytest.raises(PlanError, match=message):
            run_task(plan, None, None, {}, Context())
    good = sklearn_plan(lambda a: SGDClassifier(), features=names, target="y", classes=[0, 1])
    start = run_task(good, None, None, {}, Context()).weights
    with pytest.raises(PlanError, match="FedProx"):
        run_task(good, start, table, {"proximal_mu": 0.1}, Context())
    with pytest.raises(PlanError, match="needed coef"):
        run_task(good, {"coef": np.zeros((1, 2))}, table, {}, Context())
    with pytest.raises(PlanError, match="list of columns"):
        sklearn_plan(lambda a: SGDClassifier(), features="*", target="y")
