"""A job ends when its metric has stopped getting better, and can be given more rounds."""

from math import inf, isnan, nan
from pathlib import Path

import numpy as np
import pytest
from hubkit import Node, Outcome, open_hub, serving
from hypothesis import given
from hypothesis import strategies as st

from consilia.algo.patience import Patience, check, enough
from consilia.core.weights import Weights
from consilia.errors import ConfigError
from consilia.wire.v1 import Task

RULE = Patience("loss", "lower", 3, 0.0)


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([5, 4, 3, 2], False),
        ([5, 4, 4, 4], False),  # two rounds without a better one
        ([5, 4, 4, 4, 4], True),
        ([5, 4, None, nan, 4.5], True),
        ([None, None, None, None], False),  # nothing was ever reported: nothing is judged
        ([nan, 4, 5, 6], False),
        ([1, 2, 3, 4], True),
        ([], False),
    ],
)
def test_patience_ends(values: list[float | None], ends: bool) -> None:
    why = enough(values, RULE)
    assert bool(why) == ends
    if ends:
        best = min(v for v in values if v is not None and not isnan(v))
        assert why == f"ended early: loss was best, {best:.6g}, 3 rounds before"


def test_higher_may_be_better_and_little_is_nothing() -> None:
    rule = Patience("auc", "higher", 2, 0.01)
    assert enough([0.7, 0.705, 0.709], rule) == (
        "ended early: auc was best, 0.7, 2 rounds before"
    )
    assert enough([0.7, 0.705, 0.711], rule) == ""


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.integers(1, 5))
def test_a_series_ends_at_its_first_long_plateau(values: list[float], rounds: int) -> None:
    rule = Patience("loss", "lower", rounds, 0.0)
    first = next((n for n in range(1, len(values) + 1) if enough(values[:n], rule)), None)
    if first is not None:
        best = min(values[: first - rounds])
        assert min(values[first - rounds : first]) >= best
        assert values.index(best) == first - rounds - 1


@pytest.mark.parametrize(
    "wrong",
    [Patience("", "lower", 1, 0), Patience("x", "lower", 0, 0), Patience("x", "lower", 1, inf)],
)
def test_settings_that_make_no_sense(wrong: Patience) -> None:
    with pytest.raises(ConfigError, match="early_stop"):
        check(wrong)


def plateau(site: str, task: Task, model: Weights) -> Outcome:
    """A loss that falls until round 3."""
    if task.kind == "init":
        return {"w": np.zeros(8, np.float32)}, 0, {}
    return (
        {"w": np.asarray(model["w"], np.float32) + np.float32(1)},
        100,
        {"loss": 1.0 / min(task.round, 3)},
    )


async def test_a_job_ends_early_and_goes_on_when_told(tmp_path: Path) -> None:
    stop = {"metric": "loss", "rounds": 2}
    async with open_hub(tmp_path, sites=("a", "b")) as hub:
        job = await hub.start(rounds=20, early_stop=stop, privacy={"aggregation": "plain"})
        async with serving(*(Node(hub, site, plateau, records=100) for site in "ab")):
            view = await hub.until(job, "done", "failed")
            assert (view.state, view.round, len(view.rounds)) == ("done", 5, 6)
            assert view.cause.startswith("ended early: loss was best, 0.333333, 2 rounds")
            await hub.engine.resume(job, 7, "ada")
            again = await hub.until(job, "done", "failed")
            assert [r.round for r in again.rounds] == list(range(7)), (
                "no better: one round more"
            )
            model = await hub.model(job, 6)
    assert model["w"].tolist() == [6.0] * 8


async def test_an_experiment_with_a_senseless_rule_is_refused(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        with pytest.raises(ConfigError, match=r"early_stop\.rounds is 0"):
            await hub.start(early_stop={"rounds": 0})
