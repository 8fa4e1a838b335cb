"""A metric's name is allowed everywhere or nowhere: in the plan, at the release, at the hub."""

import pytest

from consilia.errors import PlanError, WorkerError
from consilia.node.release import check_metrics
from consilia.plans.contract import numbers
from consilia.wire.metrics import metrics_misfit

GOOD = ("loss", "val.auc", "f1_score", "0-shot", "a" * 64)
BAD = (
    "",
    "a" * 65,
    " loss",
    "val loss",
    "loss\n",
    "_x",
    "-x",
    ".x",
    "Größe",
    "a\u200bb",
    "a/b",
)


@pytest.mark.parametrize("name", GOOD)
def test_a_plain_word_names_a_metric(name: str) -> None:
    assert metrics_misfit({name: 1.0}) is None
    assert numbers({name: 1.0}, "train") == {name: 1.0}
    check_metrics({name: 1.0})


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused_at_every_step(name: str) -> None:
    problem = metrics_misfit({name: 1.0})
    assert problem is not None
    assert "is not allowed" in problem
    with pytest.raises(PlanError, match="is not allowed"):
        numbers({name: 1.0}, "train")
    with pytest.raises(WorkerError, match="is not allowed"):
        check_metrics({name: 1.0})


def test_the_number_of_metrics_and_their_values_are_bounded() -> None:
    assert metrics_misfit({f"m{n}": 0.0 for n in range(64)}) is None
    assert "65 metrics" in (metrics_misfit({f"m{n}": 0.0 for n in range(65)}) or "")
    assert "needed a finite number" in (metrics_misfit({"loss": float("nan")}) or "")
