"""An encrypted job in the simulator: the hub, the agents and the round machine as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilia.errors import ConfigError
from consilia.sim import simulate

pytest.importorskip("tenseal", reason="needs the extra consilia[he]")

PLAN = """
import numpy as np
from consilia.plans.numpy import numpy_plan


def init(args, seed):
    return {"w": np.zeros(3, np.float32), "rounds": np.zeros(1, np.int64)}


def train(weights, data, args, context):
    for x, y in data.batches(20, shuffle=False):
        weights["w"] -= 0.1 * (x.T @ (x @ weights["w"] - y)) / len(x)
    weights["rounds"] += 1
    return {"loss": float(((x @ weights["w"] - y) ** 2).mean())}


PLAN = numpy_plan(init, train, features=["a", "b", "c"], target="y")
"""


def tables(folder: Path) -> dict[str, Path]:
    """Three sites with tables of their own; sizes as plain rounds tell them."""
    found = {}
    for number, site in enumerate(("north", "south", "west")):
        rng = np.random.default_rng(number)
        x = rng.normal(number / 4, 1, (110 + 20 * number, 3))
        rows = np.column_stack((x, x @ np.array([1.0, -2.0, 0.5])))
        found[site] = folder / f"{site}.csv"
        np.savetxt(found[site], rows, "%.6f", ",", header="a,b,c,y", comments="")
    return found


def test_the_model_and_its_figures_are_those_of_plain_rounds(tmp_path: Path) -> None:
    plan = tmp_path / "line.py"
    plan.write_text(PLAN)
    jobs = {
        how: simulate(plan, tables(tmp_path), rounds=2, privacy=how)
        for how in ("plain", "ckks")
    }
    weights: dict[str, Any] = {how: job.get_model().weights for how, job in jobs.items()}
    gap = np.abs(weights["ckks"]["w"] - weights["plain"]["w"]).max()
    assert 0 < gap < 1e-4 and np.abs(weights["plain"]["w"]).max() > 0.3
    assert weights["ckks"]["rounds"].tolist() == weights["plain"]["rounds"].tolist() == [2]
    plain, hidden = jobs["plain"].rounds[-1], jobs["ckks"].rounds[-1]
    assert hidden.records == plain.records == 390
    assert hidden.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=1e-2)
    assert hidden.sites == plain.sites and not hidden.rejected


def test_a_job_that_asks_for_more_than_a_slot_holds_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "line.py"
    plan.write_text(PLAN)
    asked = {"aggregation": "ckks", "range": 1e9}
    with pytest.raises(ConfigError, match=r"privacy\.range: found 1e\+09"):
        simulate(plan, tables(tmp_path), rounds=1, privacy=asked)
