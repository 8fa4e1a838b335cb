"""Which arms a study's governance allows, and what the folds of an arm come to."""

import numpy as np
import pytest
from scipy.stats import t

from consilia.errors import ConfigError
from consilia.sdk import compare
from consilia.wire.people import DegreeView, EvaluationView, PooledSite, StudyView
from consilia.wire.v1 import Evaluated, Measure, Study

PLAIN = Study("s", "p", ("centre", "east", "north"), ("t",))
POOLED = Study("s", "p", PLAIN.sites, ("t",), data_centre="centre", pooled=("east", "north"))


def view(study: Study, **states: str) -> StudyView:
    pooled = tuple(PooledSite(site, state) for site, state in states.items())  # type: ignore[arg-type]  # by keyword
    degree = DegreeView(0.5, None, 0.0, (), pooled, study.data_centre)
    return StudyView(study, "sha256:0", "submitted", "ada", {}, degree)


def test_without_a_data_centre_two_arms_are_allowed() -> None:
    found = compare.trainers(view(PLAIN))
    assert found["federated"] == PLAIN.sites
    assert found["hybrid"] == found["central"] == "the study names no data centre"


def test_a_copy_that_is_only_sent_allows_nothing_yet() -> None:
    found = compare.trainers(view(POOLED, east="sent", north="asked"))
    assert found["hybrid"] == "no hospital has a copy at centre (east: sent; north: asked)"
    assert "centre holds no copy of east, north" in found["central"]
    assert found["federated"] == ("east", "north")


def test_each_record_trains_once_in_every_arm() -> None:
    found = compare.trainers(view(POOLED, east="held", north="withdrawn"))
    assert found["hybrid"] == ("centre", "north")
    assert "no copy of north, and no site may be left out" in found["central"]
    every = compare.trainers(view(POOLED, east="held", north="held"))
    assert every["central"] == ("centre",)
    assert every["hybrid"] == (
        "every hospital's records lie at centre: that is the central arm"
    )


def told(value: float, records: int) -> Evaluated:
    return Evaluated("probability", records, {"auc": Measure(value, 0.03, records)})


def fold(**sites: Evaluated) -> EvaluationView:
    return EvaluationView(1, 0.0, "m", {}, sites, {})


def test_folds_are_averaged_and_a_silent_site_is_not_made_up() -> None:
    told_by = [fold(east=told(0.8, 10), north=told(0.6, 30)), fold(east=told(0.9, 10))]
    told_by += [fold(east=told(0.82, 10))]
    folds = compare._told(told_by, local=False)
    cells = {(c.site, c.metric): c for c in compare._cells("federated", folds, 3)}
    east, north, every = (cells[site, "auc"] for site in ("east", "north", compare.ALL))
    assert east.value == pytest.approx(0.84) and (east.records, east.folds) == (30, 3)
    reach, error = t.ppf(0.975, 2), np.std([0.8, 0.9, 0.82], ddof=1) * (1 / 3 + 1 / 2) ** 0.5
    assert (east.low, east.high) == pytest.approx((0.84 - reach * error, 1.0))
    assert (north.value, north.records, north.folds) == (0.6, 30, 1)
    assert north.high - north.low == pytest.approx(2 * 1.96 * 0.03, rel=1e-4)
    assert every.value == pytest.approx(((0.8 * 10 + 0.6 * 30) / 40 + 0.9 + 0.82) / 3)


def test_arms_are_told_apart_fold_by_fold() -> None:
    """Two arms whose intervals overlap widely may differ beyond doubt on the same patients."""
    values = (0.60, 0.75, 0.90, 0.80, 0.65)
    better = [fold(east=told(v + 0.05 + n / 1000, 10)) for n, v in enumerate(values)]
    arms: dict[compare.Arm, list[compare.Fold]] = {
        "hybrid": compare._told(better, local=False),
        "federated": compare._told([fold(east=told(v, 10)) for v in values], local=False),
    }
    cells = [c for arm, each in arms.items() for c in compare._cells(arm, each, 5)]
    assert max(c.low for c in cells) < min(c.high for c in cells)
    (difference, every) = compare._differences(arms, 5)
    assert (difference.arm, difference.less, difference.site) == (
        "hybrid",
        "federated",
        compare.ALL,
    )
    apart = np.arange(5) / 1000 + 0.05
    error = np.std(apart, ddof=1) * (1 / 5 + 1 / 4) ** 0.5
    assert difference.value == pytest.approx(0.052) and difference.found
    assert difference.low == pytest.approx(0.052 - t.ppf(0.975, 4) * error)
    assert every.site == "east" and every.folds == 5
    alone = {arm: each[:1] for arm, each in arms.items()}
    assert not list(compare._differences(alone, 5)), "one fold has no spread to judge by"


@pytest.mark.parametrize(
    ("folds", "arms", "settings", "said"),
    [
        (5, compare.ARMS, {"sites": ("east",)}, "sites: found a value"),
        (1, compare.ARMS, {}, "folds: found 1, needed 2 or more"),
        (5, ("lokal",), {}, "arms: found 'lokal'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    folds: int, arms: tuple[str, ...], settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        compare._check(folds, arms, settings)
