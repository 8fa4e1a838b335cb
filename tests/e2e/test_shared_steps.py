"""Rounds of one step at record and patient level, the noise shared: real hub, real nodes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilia.errors import ConfigError
from consilia.node import ledger
from consilia.node.store import Store
from consilia.privacy import accountant
from consilia.sim import Simulation, simulate
from consilia.wire import frames
from consilia.wire.v1 import Dp

SITES = ("east", "north", "south", "west")
EACH = 200  # records of a site
PLAN = '''
"""Logistic regression, beside weights that no record moves: they carry the noise alone."""

import torch
from torch import nn

from consilia.plans.torch import DpParts, torch_plan


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1)
        self.rest = nn.Parameter(torch.zeros(20_000))

    def forward(self, x):
        return self.line(x).squeeze(1)


def loss(model, x, y):
    return nn.functional.binary_cross_entropy_with_logits(model(x), y)


def train(model, data, args, context):
    raise AssertionError("the plan's own loop ran")


PLAN = torch_plan(
    lambda args: Model(), train, features=["a", "b"], target="y", arguments={"lr": 0.1},
    dp=DpParts(loss),
)
'''


def run(folder: Path, rounds: int, server_lr: float, dp: dict[str, Any]) -> Simulation:
    (folder / "plan.py").write_text(PLAN)
    rng, tables = np.random.default_rng(5), {}
    for site in SITES:
        a, b = rng.normal(size=(2, EACH)).round(5)
        tables[site] = {"a": a, "b": b, "y": (a - 2 * b > 0).astype(int)}
    privacy = {"aggregation": "secure", "dp": {"distributed": True, **dp}}
    strategy = {"name": "fedavgm", "options": {"server_lr": server_lr, "momentum": 0.0}}
    settings: dict[str, Any] = {"privacy": privacy, "strategy": strategy, "seed": 2}
    return simulate(folder / "plan.py", tables, rounds=rounds, **settings)


def test_the_sum_of_all_sites_has_the_stated_noise_and_learns(tmp_path: Path) -> None:
    noise, clip, rate = 2.0, 1.0, 0.5
    dp = {"level": "record", "noise_multiplier": noise, "clip": clip, "sampling": rate}
    result = run(tmp_path, 5, 6.0, dp)
    models = [dict(frames.read(result.folder / "models" / v.model)) for v in result.rounds]
    # Of four sites three are sure to stay and one may collude: all bring sqrt(4 / 2) times it.
    step = np.diff([m["rest"] for m in models[:2]], axis=0)[0]
    units = EACH * len(SITES)
    stated = 6.0 * noise * clip * np.sqrt(2) / (rate * units)
    assert step.std() == pytest.approx(stated, rel=0.03)  # six deviations of 20,000 values
    weight = models[-1]["line.weight"][0]
    assert weight[1] < -0.5 and abs(weight[1]) > 1.3 * abs(weight[0])  # a - 2 b
    each = Dp("record", noise, clip, rate)
    for view in result.rounds:
        spent = accountant.epsilon(accountant.cost(each, view.round), 1e-5)
        assert view.epsilon == pytest.approx(spent) and view.metrics == {}
    for site in SITES:
        store = Store.open(result.folder / site)
        rows = store.rows("SELECT state FROM budget_spends")
        assert [state for (state,) in rows] == ["settled"] * 5
        assert ledger.find(store, "none") is None
        store.close()


def test_what_cannot_share_is_refused_with_the_remedy(tmp_path: Path) -> None:
    one = {"level": "record", "noise_multiplier": 1.0, "clip": 1.0}
    with pytest.raises(ConfigError, match=r"steps=2: .* needed steps 1"):
        run(tmp_path, 1, 1.0, {**one, "steps": 2})
    tables = {site: {"a": [1.0] * 30, "b": [1.0] * 30, "y": [1] * 30} for site in SITES}
    shared: dict[str, Any] = {
        "privacy": {"aggregation": "secure", "dp": {"distributed": True, **one}},
        "strategy": {"name": "fedprox"},
    }
    with pytest.raises(ConfigError, match=r"fedprox with dp.distributed"):
        simulate(tmp_path / "plan.py", tables, rounds=1, **shared)
