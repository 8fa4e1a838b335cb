"""Evaluations in the simulator against scikit-learn on the same records, in one place."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score

from consilia.data.holdout import Holdout
from consilia.sim import Simulation, simulate
from consilia.wire.people import EvaluationView
from consilia.wire.v1 import Plan

HEART = Path(__file__).parents[3] / "shared" / "data" / "heart_disease"
ROUNDED = 0.02  # three digits of a value, and weights that are multiples of five
SOURCE = """
import numpy as np

from consilia.plans.numpy import numpy_plan


def predict(weights, data, args):
    return 1 / (1 + np.exp(-(data.x @ weights["w"])))


def init(args, seed):
    return {{"w": np.zeros({width}, np.float32)}}


def train(weights, data, args, context):
    for _ in range(20):
        error = predict(weights, data, args) - data.y
        weights["w"] -= 0.5 * data.x.T @ error / len(data.y)


PLAN = numpy_plan(init, train, features={features}, target="y", predict=predict,
                  predicts="probability")
"""
Table = dict[str, list[Any]]


def tabled(x: Any, y: Any, test: Any) -> Table:
    """Return one site's table: standardised columns, a one, what to predict, and the part."""
    columns = {f"c{i}": x[:, i].round(6).tolist() for i in range(x.shape[1])}
    part = np.where(test, "test", "train").tolist()
    return {**columns, "one": [1.0] * len(y), "y": y.astype(int).tolist(), "part": part}


def run(tables: dict[str, Table], **evaluate: Any) -> Simulation:
    """Train at all sites, the records of part "test" held out."""
    first = next(iter(tables.values()))
    features = [name for name in first if name not in ("y", "part")]
    source = SOURCE.format(width=len(features), features=features)
    return simulate(
        Plan("judged", {"plan.py": source}, "plan:PLAN"),
        tables,
        rounds=6,
        deterministic=True,
        holdout=Holdout("part", ("test",), single=True),
        evaluate=evaluate,
    )


def predicted(found: Simulation, table: Table, round: int) -> tuple[Any, Any]:
    """Return truth and predictions for a table's hold-out, without the federation."""
    names = [name for name in table if name not in ("y", "part")]
    inside = np.array(table["part"]) == "test"
    x = np.array([table[name] for name in names], np.float32).T[inside]
    weights = found.get_model(round).weights["w"]
    return np.array(table["y"])[inside], 1 / (1 + np.exp(-(x @ weights)))


def compared(found: Simulation, tables: dict[str, Table], view: EvaluationView) -> None:
    """Hold an evaluation against scikit-learn, site by site and on all records together."""
    each = {site: predicted(found, tables[site], view.round) for site in view.sites}
    for site, (truth, chances) in each.items():
        told = view.sites[site].measures
        assert told["auc"].value == pytest.approx(roc_auc_score(truth, chances), abs=6e-4)
        assert told["brier"].value == pytest.approx(brier_score_loss(truth, chances), abs=6e-4)
    truth, chances = (np.concatenate(parts) for parts in zip(*each.values(), strict=True))
    accuracy, brier = accuracy_score(truth, chances > 0.5), brier_score_loss(truth, chances)
    assert view.pooled["accuracy"].value == pytest.approx(accuracy, abs=ROUNDED)
    assert view.pooled["brier"].value == pytest.approx(brier, abs=ROUNDED)
    auc = view.pooled["auc"]
    assert auc.low < roc_auc_score(truth, chances) < auc.high


def test_on_a_shipped_cohort() -> None:
    data: Any = load_breast_cancer()
    x = (data.data[:, :8] - data.data[:, :8].mean(0)) / data.data[:, :8].std(0)
    rng = np.random.default_rng(1)
    site, test = rng.integers(0, 3, 569), rng.random(569) < 0.3
    tables = {
        name: tabled(x[site == i], data.target[site == i], test[site == i])
        for i, name in enumerate(("east", "north", "south"))
    }
    found = run(tables, every=3, benefit=True)
    assert [view.round for view in found.evaluations] == [3, 6]
    for view in found.evaluations:
        assert set(view.sites) == set(tables)
        compared(found, tables, view)
    for told in found.evaluations[-1].sites.values():
        assert set(told.gain) == {"auc", "accuracy", "f1", "brier"}
        gain = told.measures["auc"].value - told.local["auc"].value
        assert told.gain["auc"].value == pytest.approx(gain, abs=2e-3)
        assert told.gain["auc"].error < 0.05


def hearts() -> dict[str, Table]:
    """Read the four hospitals' complete records, in the split that others have published."""
    parts: dict[str, list[bool]] = {}
    with (HEART / "split_flamby_seed43.csv").open() as lines:
        for row in csv.DictReader(lines):
            parts.setdefault(row["hospital"], []).append(row["set"] == "test")
    rows: dict[str, Any] = {}
    for hospital in parts:
        name = {"hungary": "hungarian", "longbeach": "va", "long_beach": "va"}.get(
            hospital, hospital
        )
        found = []
        for line in (HEART / f"processed.{name}.data").read_text().split():
            values = [v for i, v in enumerate(line.split(",")) if i not in (10, 11, 12)]
            if "?" not in values:
                found.append([float(v) for v in values])
        rows[hospital] = np.array(found)
    every = np.concatenate(list(rows.values()))[:, :-1]
    middle, spread = every.mean(0), every.std(0)
    return {
        site: tabled((r[:, :-1] - middle) / spread, r[:, -1] > 0, np.array(parts[site]))
        for site, r in rows.items()
    }


@pytest.mark.skipif(not HEART.exists(), reason=f"needs the heart disease data in {HEART}")
def test_on_four_hospitals() -> None:
    tables = hearts()
    assert len(tables) == 4
    found = run(tables, subgroups={"y": ["0", "1"]})
    (view,) = found.evaluations
    assert len(view.sites) + len(view.without) == 4
    assert len(view.sites) >= 3
    compared(found, tables, view)
