"""A round of one step of all sites: its grid, its shares of noise, what one person changes."""

import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from consilia.core.weights import TensorSpec, Weights
from consilia.errors import ConfigError, PlanError, Refused
from consilia.node.compressing import Feedback
from consilia.node.config import NodeConfig
from consilia.node.masking import Masking
from consilia.node.store import Store
from consilia.node.studykeys import Rest
from consilia.node.updates import Updates
from consilia.plans import dp as private
from consilia.privacy import accountant, gradients, masked
from consilia.privacy.noise import Stream, discrete_gaussian
from consilia.wire.v1 import Dp, Lease, Privacy, Task
from consilia.wire.worker import Done
from dpkit import made, opened, rows, start, trained

ONE = Dp("record", 1.0, 1.0, 1.0, distributed=True)


def sums(found: Weights) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate([a.astype(np.float64).reshape(-1) for a in found.values()])


def test_a_round_costs_what_dp_accounting_says_one_step_costs() -> None:
    dp_accounting = pytest.importorskip("dp_accounting", reason="extra: dp")
    rdp = pytest.importorskip("dp_accounting.rdp")
    dp = Dp("patient", 1.3, 0.7, 0.05, distributed=True)
    other = rdp.RdpAccountant(list(accountant.ORDERS))
    gaussian = dp_accounting.GaussianDpEvent(dp.noise_multiplier)
    other.compose(dp_accounting.PoissonSampledDpEvent(dp.sampling, gaussian), 200)
    ours = accountant.epsilon(accountant.cost(dp, 200), 1e-5)
    assert ours == pytest.approx(other.get_epsilon(1e-5), rel=1e-6)


@pytest.mark.parametrize("sites", [3, 5, 20, 1000])
def test_honest_shares_reach_the_stated_noise_and_the_sum_has_room(sites: int) -> None:
    std, most = gradients.share(ONE, sites, sites)
    honest = 2 * sites // 3 + 1 - ONE.colluding
    assert std * math.sqrt(honest) == pytest.approx(gradients.UNITS)
    assert gradients.UNITS <= most <= gradients.EXACT
    assert sites * most + 12 * std * math.sqrt(sites) < 1 << 31
    drawn = discrete_gaussian(std).draw(Stream(np.random.default_rng(1).bytes), 20_000)
    assert drawn.std() == pytest.approx(std, rel=0.03)  # six deviations


def test_shares_that_protect_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dp.colluding is 3 and of 3 sites 3"):
        gradients.share(Dp("record", 1.0, 1.0, distributed=True, colluding=3), 3, 3)
    with pytest.raises(ConfigError, match=r"steps wide, needed 4"):
        gradients.share(Dp("record", 1e-4, 1.0, distributed=True), 3, 3)
    with pytest.raises(ConfigError, match=r"do not fit a ring of 32 bits"):
        gradients.share(Dp("record", 9000.0, 1.0, distributed=True), 30, 30)
    with pytest.raises(ConfigError, match=r"more than half of the clip"):
        gradients.grid(ONE, 1 << 29)
    half = (TensorSpec("w", "float16", (2,)),)
    assert "holds no sum" in (gradients.misfit(half, Privacy(bits=32)) or "")
    assert "privacy.bits 32, found 16" in (gradients.misfit((), Privacy(bits=16)) or "")


@pytest.mark.parametrize("level", ["record", "patient"])
def test_what_a_site_sums_is_minus_its_clipped_gradients_in_whole_steps(
    tmp_path: Path, level: str
) -> None:
    table, plan = opened(tmp_path / "t.csv", rows()), made()
    clip = 0.3
    dp = Dp("record" if level == "record" else "patient", 1.0, clip, distributed=True)
    weights = start(plan)
    found = trained(plan, table, dp, weights)
    units = table.records if level == "record" else 41
    assert found.records == accountant.public_count(units) and found.metrics == {}
    flat = sums(found.weights)
    assert (flat == np.rint(flat)).all()
    size = flat.size
    mean = -flat * clip / gradients.UNITS / units
    assert 0 < np.linalg.norm(mean) <= clip
    # One unit alone, by another road: autograd of the loss, clipped by hand.
    if level == "record":
        bound = gradients.grid(dp, size).bound
        expected = np.zeros(size)
        module = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.GroupNorm(2, 8), torch.nn.Tanh(),
            torch.nn.Linear(8, 1),
        )  # fmt: skip
        module.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in weights.items()})
        x = np.stack([table.column(c).astype(np.float32) for c in "abc"], 1)
        y = table.column("y").astype(np.float32)
        for features, target in zip(x, y, strict=True):
            module.zero_grad()
            out = module(torch.from_numpy(features)[None]).squeeze(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                out, torch.tensor([float(target)])
            )
            torch.autograd.backward(loss)
            parts = [
                p.grad.numpy().reshape(-1) for p in module.parameters() if p.grad is not None
            ]
            gradient = np.concatenate(parts).astype(np.float64)
            expected += gradient * min(1.0, bound / float(np.linalg.norm(gradient)))
        step = clip / gradients.UNITS
        np.testing.assert_allclose(-flat * step, expected, atol=step * len(y))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.floats(-3, 6), st.integers(0, 2**30), st.integers(1, 40))
def test_one_unit_moves_a_sum_by_no_more_than_the_clip(
    size: int, scale: float, seed: int, others: int
) -> None:
    """With or without it, whatever the others add up to, cut or not."""
    rng = np.random.default_rng(seed)
    grid, most = gradients.grid(ONE, size), gradients.share(ONE, 200, 200)[1]
    every = torch.from_numpy(rng.normal(size=(others + 1, size)) * 10.0**scale)
    if rng.random() < 0.5:  # all one way, so that coordinates are cut
        every = every.abs() * 1e6
    without, with_it = (torch.zeros(size, dtype=torch.float64) for _ in range(2))
    private.add_clipped(without, {"w": every[:-1]}, grid)
    private.add_clipped(with_it, {"w": every}, grid)
    cut = [np.clip(t.numpy(), -most, most) for t in (without, with_it)]
    assert np.linalg.norm(cut[0] - cut[1]) <= gradients.UNITS


def test_a_change_of_the_sum_means_the_mean_clipped_gradient() -> None:
    dp = Dp("record", 1.0, 0.5, 0.25, distributed=True)
    privacy = Privacy(aggregation="secure", dp=dp)
    scale = masked.scale(TensorSpec("w", "float32", (1,)), privacy, 400)
    # 100 of 400 were drawn, each of the clip's size in this coordinate
    assert 100 * gradients.UNITS / scale == pytest.approx(0.5)


def test_models_of_which_a_part_is_not_trained_are_refused(tmp_path: Path) -> None:
    def frozen(args: object) -> torch.nn.Module:
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        module[0].weight.requires_grad_(False)
        return module

    table = opened(tmp_path / "t.csv", rows())
    with pytest.raises(PlanError, match=r"'0.weight' .* not trained, or shared"):
        trained(made(frozen), table, ONE)


@pytest.mark.parametrize("how", ["plain", "ckks", "clipped"])
def test_a_sum_without_its_noise_never_leaves(tmp_path: Path, how: str) -> None:
    """Policy refuses such a task before it runs; the door does so whatever policy said."""
    clip_norm = 1.0 if how == "clipped" else 0.0
    config = NodeConfig(site="a", hub="https://hub:1", clip_norm=clip_norm)
    store, key = Store.open(tmp_path), Ed25519PrivateKey.generate()
    masking = Masking(store, "a", key, time.time, os.urandom)
    feedback = Feedback(tmp_path / "f", time.time, Rest(lambda _: bytes(32), os.urandom))
    updates = Updates(tmp_path, config, masking, feedback, os.urandom)
    privacy = Privacy(aggregation="ckks" if how == "ckks" else "secure", dp=ONE)
    task = Task(
        "train", "j", 1, "sha256:5", "hearts", "sha256:7", {}, (), "b3:0", 1,
        privacy=privacy, cohort=() if how == "plain" else ("a", "b", "c"), total=900,
    )  # fmt: skip
    needed = r"clipped to a norm of 1 " if how == "clipped" else r"in a masked sum only"
    done = Done(100, {}, ())
    with pytest.raises(Refused, match=needed):
        updates.made(Lease("j.1.0.a", task, 60.0), done, -1, tmp_path / "b", tmp_path / "o")
    assert not (tmp_path / "o").exists()
    store.close()
