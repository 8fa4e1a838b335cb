"""Plans over plain arrays."""

from pathlib import Path

import numpy as np
import pytest

from consilia.core.weights import Weights
from consilia.data.registry import inspect_table, to_source
from consilia.data.table import Table
from consilia.errors import PlanError
from consilia.plans.contract import Context, run_task
from consilia.plans.numpy import NumpyData, numpy_plan
from consilia.wire.v1 import Arguments


@pytest.fixture
def table(tmp_path: Path) -> Table:
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{i / 10},{3 * i / 10 + 1}\n" for i in range(50)))
    return Table(to_source(inspect_table(path, "t", (), now=0)))


def init(args: Arguments, seed: int) -> Weights:
    return {"w": np.zeros(1, np.float32), "b": np.zeros((), np.float32)}


def fit(
    weights: Weights, data: NumpyData, args: Arguments, context: Context
) -> dict[str, float]:
    """Least squares by gradient steps, on a plan's own arrays."""
    w, b = weights["w"].astype(np.float32), weights["b"].astype(np.float32)
    for _ in range(int(args["epochs"])):
        for x, y in data.batches(10, shuffle=True):
            error = x @ w + b - y.astype(np.float32)
            pull = context.proximal({"w": w, "b": b})
            w = w - np.float32(0.02) * (x.T @ error / len(x) + pull.get("w", 0))
            b = b - np.float32(0.02) * (error.mean() + pull.get("b", 0))
    weights["w"], weights["b"] = w.astype(np.float32), np.asarray(b, np.float32)
    return {"w": float(w[0])}


PLAN = numpy_plan(init, fit, features=["x"], target="y", arguments={"epochs": 60})


def test_it_learns(table: Table) -> None:
    start = run_task(PLAN, None, None, {}, Context(seed=1)).weights
    outcome = run_task(PLAN, start, table, {}, Context(seed=1))
    assert outcome.weights["w"] == pytest.approx([3.0], abs=0.1)
    assert outcome.weights["b"] == pytest.approx(1.0, abs=0.3)
    assert outcome.records == 50


def test_the_seed_is_all_the_randomness(table: Table) -> None:
    results = [
        run_task(PLAN, init({}, 0), table, {"epochs": 1}, Context(seed=seed)).metrics["w"]
        for seed in (1, 1, 2)
    ]
    assert results[0] == results[1] != results[2]


def test_fedprox_pulls_towards_the_received_model(table: Table) -> None:
    free = run_task(PLAN, init({}, 0), table, {"epochs": 3}, Context(seed=1)).metrics["w"]
    held = run_task(
        PLAN, init({}, 0), table, {"epochs": 3, "proximal_mu": 10.0}, Context(seed=1)
    ).metrics["w"]
    assert 0 < held < 0.6 * free  # curvature 8, mu 10: 8 / 18 of the way


def test_without_features_the_table_itself_arrives(table: Table) -> None:
    def train(w: Weights, data: Table, a: Arguments, c: Context) -> None:
        w["w"][:] = data.column("x").mean()

    plan = numpy_plan(init, train)
    assert plan.selection is None
    outcome = run_task(plan, init({}, 0), table, {}, Context())
    assert outcome.weights["w"] == pytest.approx([2.45])
    assert outcome.metrics == {}


def test_train_in_place_needs_no_copy(table: Table) -> None:
    def train(w: Weights, data: Table, a: Arguments, c: Context) -> None:
        np.add(w["w"], 1, out=w["w"])

    weights = init({}, 0)
    array = weights["w"]
    outcome = run_task(numpy_plan(init, train), weights, table, {}, Context())
    assert outcome.weights["w"] is array


def test_what_breaks_the_contract(table: Table) -> None:
    with pytest.raises(PlanError, match="init returned list"):
        run_task(
            numpy_plan(lambda a, s: [1.0], fit),  # type: ignore[arg-type, return-value]
            None,
            None,
            {},
            Context(),
        )
    with pytest.raises(PlanError, match="needs a dataset"):
        run_task(PLAN, init({}, 0), None, {}, Context())
