"""Which arms a study's governance allows, and what the folds of an arm come to."""

import pytest

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


def test_folds_are_averaged_and_a_silent_site_is_not_made_up() -> None:
    folds = [
        EvaluationView(1, 0.0, "m", {}, {"east": told(0.8, 10), "north": told(0.6, 30)}),
        EvaluationView(1, 0.0, "m", {}, {"east": told(0.9, 10)}, {"north": "declined"}),
    ]
    cells = {(c.site, c.metric): c for c in compare._cells("federated", folds, False)}
    east, north, every = (cells[site, "auc"] for site in ("east", "north", compare.ALL))
    assert east.value == pytest.approx(0.85) and (east.records, east.folds) == (20, 2)
    error = (2 * 0.03**2) ** 0.5 / 2
    assert east.high - east.low == pytest.approx(2 * 1.96 * error, rel=1e-4)
    assert (north.value, north.records, north.folds) == (0.6, 30, 1)
    assert every.value == pytest.approx(((0.8 * 10 + 0.6 * 30) / 40 + 0.9) / 2)


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
