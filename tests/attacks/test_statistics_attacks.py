"""The attack catalogue against the front of statistics: what a site sums up before it leaves.

The asker chooses every question, and sees every number of every answer; the site's rules and
memory are the real ones. What is masked is the same numbers, so that these attacks are not
the masks' to stop.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from consilia.core.weights import Weights
from consilia.errors import Refused
from consilia.node import statistics
from consilia.node.config import Disclosure
from consilia.node.disclosure import Answerer
from consilia.node.statistics import About
from consilia.node.store import Store
from consilia.stats.sums import Item
from consilia.wire.v1 import Numbers, Statistics, Subgroups

RECORDS = 400
VICTIM = 7
SEX = Subgroups("sex", ("F", "M"))
ABOUT = About("study", "patients", "table")
Told = dict[Item, float]
Mask = NDArray[np.bool_]


@dataclass
class Site:
    """A hospital with one old man whose cost the asker wants to know."""

    store: Store
    exact: bool = True

    def __post_init__(self) -> None:
        rng = np.random.default_rng(3)
        self.age = rng.integers(20, 90, RECORDS).astype(float)
        self.sex = (rng.random(RECORDS) < 0.5).astype(np.int64)
        self.cost = np.round(rng.gamma(2.0, 1000.0, RECORDS), 2)
        self.age[VICTIM], self.sex[VICTIM], self.cost[VICTIM] = 101.0, 1, 3210.0
        self.ids = np.arange(1, RECORDS + 1, dtype=np.uint64)
        self.out = self.front()

    def front(self) -> Answerer:
        """The way out, as it is after every start of the agent."""
        settings = Disclosure(counts="exact" if self.exact else "rounded")
        return Answerer(self.store, settings, lambda: 0.0, os.urandom)

    def ask(self, asked: Statistics, where: Mask | None = None) -> Told:
        """Return what leaves, nothing for a refusal; `where` is what its condition chooses."""
        every = np.ones(len(self.ids), np.bool_)
        columns: Weights = {"ids": self.ids, "where": every if where is None else where}
        if asked.by is not None:
            columns["by"] = self.sex
        known = {"cost": self.cost, "age": self.age}
        columns |= {f"number:{n.column}": known[n.column] for n in asked.numbers}
        columns |= {f"level:{s.column}": self.sex for s in asked.levels}
        for i, _ in enumerate(asked.tables):
            columns |= {f"rows:{i}": self.sex, f"across:{i}": (self.age > 100).astype(np.int64)}
        try:
            return statistics.answered(columns, asked, ABOUT, self.out)
        except Refused:
            return {}

    def total(self, where: str, chosen: Mask) -> float | None:
        """The sum of costs of those chosen, None when it is not told."""
        asked = Statistics((Numbers("cost", ("count", "mean")),), where=where)
        return self.ask(asked, chosen).get(Item("sum", "cost"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    store = Store.open(tmp_path)
    yield Site(store)
    store.close()


@pytest.fixture
def rounding(tmp_path: Path) -> Iterator[Site]:
    """One that rounds, as sites do unless told otherwise."""
    store = Store.open(tmp_path)
    yield Site(store, exact=False)
    store.close()


def test_honest_questions_are_answered(site: Site) -> None:
    asked = Statistics((Numbers("cost", ("count", "missing", "mean", "sd")),), by=SEX)
    told = site.ask(asked)
    for place, name in enumerate(SEX.levels):
        costs = site.cost[site.sex == place]
        assert (
            told[Item("records", group=name)] == told[Item("count", "cost", name)] == len(costs)
        )
        assert told[Item("sum", "cost", name)] == pytest.approx(costs.sum())
        assert told[Item("squares", "cost", name)] == pytest.approx((costs**2).sum())
        assert Item("missing", "cost", name) not in told, "none and too few look alike"


def test_n_is_1(site: Site) -> None:
    assert site.total("age > 100", site.age > 100) is None
    assert site.total("age > 200", site.age > 200) is None
    asked = Statistics((Numbers("age", ("mean",)),), where="age > 100")
    assert site.ask(asked, site.age > 100) == site.ask(asked, site.age > 200) == {}


def test_averaging_repeats(rounding: Site) -> None:
    asked = Statistics((Numbers("cost", ("count", "mean", "sd")),), by=SEX)
    first = rounding.ask(asked)
    for _ in range(5):
        rounding.out = rounding.front()  # also after a restart
        assert rounding.ask(asked) == first
    true = int((rounding.sex == 0).sum())
    assert first[Item("records", group="F")] % 5 == 0 and true % 5
    turned = Subgroups("sex", ("M", "F"))
    rounding.sex = 1 - rounding.sex  # places among the levels, now in another order
    assert rounding.ask(Statistics(asked.numbers, by=turned)) == first


@pytest.mark.parametrize("first", ["with", "without"])
def test_differencing_by_one_patient(site: Site, first: str) -> None:
    old, older = site.age > 60, (site.age > 60) & (site.age < 100)
    difference = site.cost[old].sum() - site.cost[older].sum()
    assert difference == pytest.approx(3210.0)
    asked = [("age > 60", old), ("age > 60 and age < 100", older)]
    one, other = asked if first == "with" else asked[::-1]
    assert site.total(*one) is not None
    assert site.total(*other) is None
    levels = Statistics(levels=(SEX,), where=other[0])
    assert site.ask(levels, other[1]) == {}, "by a table of the same records"


def test_the_complement_of_everybody(site: Site) -> None:
    assert site.total("", np.ones(RECORDS, np.bool_)) is not None
    assert site.total("age < 100", site.age < 100) is None


def test_a_tracker_of_two_large_groups(site: Site) -> None:
    """q(C) = q(A and not B) .. : with A = age > 60 and the tracker A and B, padded."""
    padding = site.age < 50
    target = site.age > 100
    assert site.total("age < 50", padding) is not None
    assert site.total("age < 50 or age > 100", padding | target) is None
    assert site.total("not (age < 50) and not (age > 100)", ~padding & ~target) is None


def test_extreme_quantiles_are_bins_of_few(site: Site) -> None:
    edges = (20.0, 50.0, 80.0, 100.0, 110.0)
    told = site.ask(Statistics((Numbers("age", ("count", "quantiles"), edges),)))
    assert Item("bin", "age", place=3) not in told
    assert Item("bin", "age", place=2) not in told, "from all less the others it follows"
    assert told[Item("bin", "age", place=0)] == int((site.age < 50).sum())


def test_a_sparse_crosstab(site: Site) -> None:
    old = Subgroups("age", cuts=(100.5,))
    told = site.ask(Statistics(tables=((SEX, old),)))
    cells = {item.place: value for item, value in told.items() if item.kind == "cell"}
    assert 3 not in cells, "the old man"
    assert not cells, "of two rows and two columns any other cell gives it away"


def test_category_names_as_a_channel(site: Site) -> None:
    """A level that no record has looks like one that few have; no name leaves at all."""
    named = Subgroups("sex", ("F", "M", "nobody"))
    told = site.ask(Statistics(levels=(named,)))
    assert all(isinstance(item.place, int) for item in told)
    assert Item("cell", "sex", place=2) not in told


def test_groups_that_were_asked_about_in_another_form(site: Site) -> None:
    """What chooses a group is its name: by, levels and crosstabs ask about one group once."""
    by = site.ask(Statistics(by=SEX))
    levels = site.ask(Statistics(levels=(SEX,)))
    assert levels[Item("cell", "sex", place=0)] == by[Item("records", group="F")]
    assert levels[Item("cell", "sex", place=1)] == by[Item("records", group="M")]


def test_few_missing_values_are_not_counted_out(site: Site) -> None:
    site.cost[:3] = np.nan
    asked = Statistics((Numbers("cost", ("count", "missing", "mean")),))
    told = site.ask(asked)
    assert Item("records") in told
    assert not {i for i in told if i.column == "cost"}, "all less those with a value: three"


def test_few_missing_values_of_a_site_that_rounds(rounding: Site) -> None:
    rounding.cost[:3] = np.nan
    told = rounding.ask(Statistics((Numbers("cost", ("count", "missing", "mean")),)))
    assert told[Item("count", "cost")] % 5 == 0 and Item("missing", "cost") not in told
    rest = rounding.cost[3:]
    mean = told[Item("sum", "cost")] / told[Item("weight", "cost")]
    assert mean == pytest.approx(rest.mean())


def test_one_patient_who_left_changes_nothing(site: Site) -> None:
    asked = Statistics((Numbers("cost", ("count", "mean", "sd")),), by=SEX)
    before = site.ask(asked)
    keep = np.arange(RECORDS) != VICTIM
    site.age, site.sex, site.cost = site.age[keep], site.sex[keep], site.cost[keep]
    site.ids = site.ids[keep]
    assert site.ask(asked) == before


def test_a_dominating_value_is_not_summed(site: Site) -> None:
    site.cost[VICTIM] = 1e9
    told = site.ask(Statistics((Numbers("cost", ("count", "mean", "sd")),)))
    assert Item("sum", "cost") not in told and Item("squares", "cost") not in told


def test_patients_with_several_records_are_refused(site: Site) -> None:
    site.ids[1] = site.ids[0]
    columns: Weights = {"ids": site.ids, "where": np.ones(RECORDS, np.bool_)}
    with pytest.raises(Refused, match="one record a patient"):
        statistics.answered(columns, Statistics(where="x > 1"), ABOUT, site.out)
