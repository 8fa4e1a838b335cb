"""Compression, shares of noise and an adaptive clip on the road: the real hub and nodes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tables import write

from consilia.errors import ConfigError
from consilia.privacy import accountant
from consilia.sim import Simulation, simulate
from consilia.wire import frames
from consilia.wire.v1 import Dp

SIZES = {"east": 80, "north": 120, "south": 60, "west": 90}
PLAN = '''
"""Linear regression, beside weights that every site moves by the same."""

import numpy as np

from consilia.plans.numpy import numpy_plan


def init(args, seed):
    return {
        "w": np.random.default_rng(seed).normal(size=3).astype(np.float32),
        "rest": np.zeros(30_000, np.float32),
        "wide": np.zeros(10),
        "seen": np.zeros(2, np.int64),
    }


def train(weights, data, args, context):
    for x, y in data.batches(16, shuffle=True):
        error = x @ weights["w"] - y
        weights["w"] -= 0.05 * (x.T @ error) / len(x)
    weights["rest"] += np.linspace(-args["push"], args["push"], 30_000, dtype=np.float32)
    weights["wide"] += args["push"]
    weights["seen"] += 1
    return {"loss": float((error**2).mean())}


PLAN = numpy_plan(
    init, train, features=["a", "b", "c"], target="y", arguments={"push": 0.0}
)
'''


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.py"
    path.write_text(PLAN)
    return path


def run(plan: Path, sizes: dict[str, int], rounds: int, **settings: Any) -> Simulation:
    return simulate(plan, write(plan.parent, sizes), rounds=rounds, seed=1, **settings)


def weights(result: Simulation) -> dict[str, NDArray[Any]]:
    return dict(frames.read(result.folder / "models" / result.rounds[-1].model))


@pytest.mark.parametrize("compress", ["int8", "int16+top-10%"])
def test_compressed_rounds_learn_as_whole_ones_do(plan: Path, compress: str) -> None:
    settings: dict[str, Any] = {"privacy": "plain", "arguments": {"push": 1.0}}
    whole = weights(run(plan, SIZES, 5, **settings))
    result = run(plan, SIZES, 5, compress=compress, **settings)
    small = weights(result)
    # Of the largest only, what was not sent yet waits at the sites.
    near, far = (0.02, 0.05) if compress == "int8" else (0.6, 5.0)
    np.testing.assert_allclose(small["w"], whole["w"], atol=near)
    np.testing.assert_allclose(small["rest"], whole["rest"], atol=far)
    np.testing.assert_array_equal(small["seen"], whole["seen"])
    for view in result.rounds:
        assert view.bytes_in < (0.26 if compress == "int8" else 0.1 * 1.3) * 4 * 4 * 30_000
        assert view.bytes_saved + view.bytes_in == pytest.approx(4 * 120_300, rel=0.02)
    assert (result.history["bytes_saved"] > 0).all()
    # The job has ended: its sites have forgotten what they had left out.
    for site in SIZES:
        assert list((result.folder / site / "feedback").iterdir()) == []


def test_robust_rules_read_compressed_updates_side_by_side(plan: Path) -> None:
    settings: dict[str, Any] = {"privacy": "plain", "aggregate": {"name": "median"}}
    whole = weights(run(plan, SIZES, 3, **settings))
    small = weights(run(plan, SIZES, 3, compress="int16", **settings))
    np.testing.assert_allclose(small["w"], whole["w"], atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"privacy": {"aggregation": "secure", "bits": 16}},
        {"privacy": "plain", "compress": "int8+top-5%"},
    ],
    ids=["secure 16", "int8+top-5%"],
)
def test_rounding_comes_out_the_same_again_in_deterministic_mode(
    plan: Path, settings: dict[str, Any]
) -> None:
    settings = {**settings, "deterministic": True, "arguments": {"push": 0.3}}
    runs = [weights(run(plan, SIZES, 2, **settings)) for _ in range(2)]
    for name in ("w", "rest", "wide"):
        np.testing.assert_array_equal(runs[0][name], runs[1][name])


@pytest.mark.parametrize("bits", [16, 32])
def test_shares_of_noise_add_up_to_what_is_stated(plan: Path, bits: int) -> None:
    clip, noise = 2.0, 3.0 if bits == 16 else 6.0
    dp = {"level": "client", "noise_multiplier": noise, "clip": clip, "distributed": True}
    privacy = {"aggregation": "secure", "bits": bits, "range": 13 * noise / 3 * clip, "dp": dp}
    result = run(plan, SIZES, 1, privacy=privacy)
    (view,) = result.rounds
    stated = accountant.epsilon(accountant.cost(Dp("client", noise, clip)), 1e-5)
    assert view.metrics == {} and view.epsilon == stated
    found = weights(result)
    # Of four sites three are sure to stay and one of these may collude: all four together
    # bring sqrt(4 / 2) times the noise that is stated, and the mean is over four.
    stated = noise * clip * np.sqrt(2) / 4
    assert found["rest"].std() == pytest.approx(stated, rel=0.03)
    assert not found["seen"].any()  # integers carry no noise, so they stay as they were


def test_a_clip_that_adapts_grows_with_the_updates(plan: Path) -> None:
    dp = {
        "level": "client",
        "noise_multiplier": 8.0,
        "clip": 0.5,
        "distributed": True,
        "adaptive": {"quantile": 0.5, "rate": 1.0, "share": 0.9},
    }
    # Of three kinds of updates all are far beyond the clip: who counts is noise and zeros.
    privacy = {"aggregation": "secure", "range": 512.0, "dp": dp}
    result = run(plan, SIZES, 3, privacy=privacy, arguments={"push": 1.0})
    clips = [view.metrics["hub.clip"] for view in result.rounds]
    shares = [view.metrics["below_clip"] for view in result.rounds]
    assert clips[0] == 0.5
    for before, after, share in zip(clips, clips[1:], shares, strict=False):
        moved = np.exp(-(min(1.0, max(0.0, share)) - 0.5))
        assert after == pytest.approx(before * moved, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compress": "int8"}, "bits: 16} halves the bytes"),
        ({"compress": "int7", "privacy": "plain"}, "needed none, int8, int16, top-5%"),
        (
            {"privacy": {"aggregation": "plain", "compression": {"bits": 8}}},
            "it is the key `compress`",
        ),
        (
            {
                "privacy": {
                    "aggregation": "plain",
                    "dp": {
                        "level": "client",
                        "noise_multiplier": 1.0,
                        "clip": 1.0,
                        "distributed": True,
                    },
                }
            },
            "a share of the noise hides nothing",
        ),
        (
            {
                "privacy": {
                    "aggregation": "secure",
                    "range": 64.0,
                    "dp": {
                        "level": "client",
                        "noise_multiplier": 1.0,
                        "clip": 1.0,
                        "distributed": True,
                        "colluding": 3,
                    },
                }
            },
            "privacy.dp.colluding: found 3, needed at most 2",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_starts(
    plan: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said.replace("{", r"\{").replace("}", r"\}")):
        run(plan, SIZES, 1, **settings)


def test_eight_bits_under_the_mask_learn_as_whole_updates_do(plan: Path) -> None:
    settings: dict[str, Any] = {"arguments": {"push": 0.3}}
    whole = weights(run(plan, SIZES, 6, privacy={"aggregation": "secure"}, **settings))
    privacy = {"aggregation": "secure", "bits": 8, "range": 1.5}
    result = run(plan, SIZES, 6, privacy=privacy, **settings)
    small = weights(result)
    # A step of the sum is 1.5 / 95; a site is never more than one of its own behind.
    np.testing.assert_allclose(small["w"], whole["w"], atol=0.07)
    np.testing.assert_allclose(small["rest"], whole["rest"], atol=4 * 1.5 / 95)
    np.testing.assert_allclose(small["wide"], whole["wide"], atol=1e-9)
    assert result.rounds[-1].bytes_in < 0.27 * 4 * 4 * 30_000  # of float32, at four sites
    for site in SIZES:  # the job has ended, and with it what its sites had left out
        assert list((result.folder / site / "feedback").iterdir()) == []


def test_eight_bits_are_refused_where_they_do_not_fit(plan: Path) -> None:
    dp = {"level": "client", "noise_multiplier": 1.0, "clip": 1.0, "distributed": True}
    privacy = {"aggregation": "secure", "bits": 8, "range": 99.0, "dp": dp}
    with pytest.raises(ConfigError, match=r"8 with dp.distributed, needed 32 or 16"):
        run(plan, SIZES, 1, privacy=privacy)
