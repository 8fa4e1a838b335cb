"""Statistics without sites: layout and coding, what sums come to, and what may be asked."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replaced

from consilia.core.events import Evaluating
from consilia.core.round import (
    Accepted,
    Assessed,
    Close,
    JobState,
    Joined,
    RoundConfig,
    Started,
    advance,
    new_job,
)
from consilia.data.table import Table
from consilia.errors import ConfigError, DataError, WireError
from consilia.hub import questions
from consilia.hub.questions import Offered
from consilia.hub.statistics import misfit
from consilia.node.policy import (
    DatasetFacts,
    PlanGrant,
    Policy,
    Request,
    StudyGrant,
    decide,
)
from consilia.stats import sums
from consilia.stats.columns import columns, identities
from consilia.stats.figures import figures
from consilia.stats.sums import Item, Sum
from consilia.wire.statistics import AskStatistics
from consilia.wire.v1 import (
    Advertisement,
    MockColumn,
    MockTwin,
    Numbers,
    OfferedDataset,
    Privacy,
    Result,
    Statistics,
    Study,
    Subgroups,
    Task,
)
from consilia.wire.worker import TableSource

SEX = Subgroups("sex", ("F", "M"))
EDGES = (0.0, 10.0, 20.0, 40.0)
AGE = Numbers("age", ("count", "missing", "mean", "sd", "quantiles"), EDGES)
ASKED = Statistics((AGE,), (Subgroups("ill", ("no", "yes")),), ((SEX, SEX),), SEX)
COLUMNS = {
    "age": Offered("int64", (MockColumn("age", "int64", start=20, width=7, counts=(5, 5, 9)),)),
    "chol": Offered("float64"),
    "sex": Offered("str", (MockColumn("sex", "str", levels={"M": 5, "F": 10}),)),
    "ward": Offered("str"),
    "ill": Offered("bool"),
}


def told(
    values: Any, group: str = "", centre: float = 0.0, unit: float = 1.0
) -> dict[Item, float]:
    """What a site with these ages tells, all of it."""
    z = (np.asarray(values, float) - centre) / unit
    bins = np.histogram(values, [-np.inf, 10, 20, np.inf])[0]
    return {
        Item("records", group=group): len(z),
        Item("count", "age", group): len(z),
        Item("weight", "age", group): len(z),
        Item("sum", "age", group): float(z.sum()),
        Item("squares", "age", group): float((z**2).sum()),
        **{Item("bin", "age", group, i): int(n) for i, n in enumerate(bins)},
    }


def summed(asked: Statistics, *sites: dict[Item, float]) -> dict[Item, Sum]:
    """The sum of sites' answers, through the integers that travel."""
    total = np.zeros(2 * len(sums.items(asked)), np.uint64)
    for site in sites:
        total += sums.coded(asked, site)
    return sums.decoded(asked, total, len(sites))


@given(
    st.lists(
        st.lists(st.floats(-1e5, 1e5, allow_nan=False), min_size=2, max_size=40),
        min_size=1,
        max_size=6,
    )
)
def test_mean_and_sd_are_those_of_all_values_within_what_is_stated(
    sites: list[list[float]],
) -> None:
    asked = Statistics((Numbers("age", ("mean", "sd"), EDGES, 20.0, 1000.0),))
    every = np.concatenate([np.asarray(s) for s in sites])
    found = {
        f.statistic: f
        for f in figures(
            asked, summed(asked, *(told(s, "", 20.0, 1000.0) for s in sites)), masked=False
        )
    }
    mean, sd = found["mean"], found["sd"]
    assert mean.low is not None and mean.high is not None
    assert mean.low - 1e-9 <= every.mean() <= mean.high + 1e-9
    assert mean.high - mean.low <= 1e-3 * len(sites) / len(every) * 1.1
    assert sd.low is not None and sd.high is not None
    assert sd.low - 1e-6 <= every.std(ddof=1) <= sd.high + 1e-6
    assert found["count"].value == len(every)


@given(st.data())
def test_a_quantile_lies_between_its_ends_whatever_is_held_back(data: st.DataObject) -> None:
    """Bins that a site holds back are anywhere: the true quantile is between the ends."""
    asked = Statistics((Numbers("age", ("count", "quantiles"), EDGES),))
    sites, every = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        values = data.draw(st.lists(st.integers(-20, 59), min_size=1, max_size=60))
        one = told(values)
        for place in data.draw(st.sets(st.integers(0, 2), max_size=2)):
            del one[Item("bin", "age", place=place)]
        sites.append(one)
        every += values
    for figure in figures(asked, summed(asked, *sites), masked=False):
        if figure.statistic == "quantile" and figure.value is not None:
            true = np.quantile(every, float(figure.level), method="inverted_cdf")
            assert figure.low is None or figure.low <= true
            assert figure.high is None or true <= figure.high


def test_what_lies_in_an_outer_bin_has_no_outer_end() -> None:
    asked = Statistics((Numbers("age", ("quantiles",), EDGES),))
    found = figures(asked, summed(asked, told([-300] * 6 + [15] * 6 + [900] * 6)), masked=False)
    bins = [f.level for f in found if f.statistic == "histogram"]
    assert bins == ["below 10", "10 to 20", "from 20"]
    ends = {f.level: (f.low, f.high) for f in found if f.statistic == "quantile"}
    assert (ends["0.05"], ends["0.5"], ends["0.95"]) == ((None, 10), (10, 20), (20, None))


def test_numbers_of_fewer_than_three_sites_are_not_shown_in_a_masked_sum() -> None:
    asked = Statistics((AGE,), by=SEX)
    few, more = told([1, 2, 3], "F"), told([30, 35], "M")
    sites = [{**more, **few}, more, {**more, **few}]
    shown = {
        (f.statistic, f.group): f for f in figures(asked, summed(asked, *sites), masked=True)
    }
    assert shown["mean", "F"].value is None and shown["records", "F"].value is None
    assert shown["mean", "M"].value == pytest.approx(32.5) and shown["mean", "M"].sites == 3
    plain = {
        (f.statistic, f.group): f for f in figures(asked, summed(asked, *sites), masked=False)
    }
    assert plain["mean", "F"].value == pytest.approx(2) and plain["mean", "F"].sites == 2


def test_an_answer_that_no_site_can_have_given_is_refused() -> None:
    asked = Statistics((AGE,))
    size = len(sums.items(asked))
    with pytest.raises(WireError, match="asked for"):
        sums.decoded(asked, np.zeros(size, np.uint64), 3)
    flags = np.zeros(2 * size, np.uint64)
    flags[-1] = 4
    with pytest.raises(WireError, match="malformed"):
        sums.decoded(asked, flags, 3)
    negative = np.zeros(2 * size, np.uint64)
    negative[1] = np.uint64((1 << 64) - 1)
    with pytest.raises(WireError, match="malformed"):
        sums.decoded(asked, negative, 3)


def test_the_question_is_completed_from_what_sites_offer() -> None:
    asked = AskStatistics("hearts", ("age", "chol", "ill"), by="sex", tables=(("sex", "ill"),))
    found = questions.statistics(asked, COLUMNS)
    assert [n.column for n in found.numbers] == ["age", "chol"]
    age, chol = found.numbers
    assert (age.centre, age.unit, age.edges) == (30.5, 10.5, ())
    assert (chol.centre, chol.unit) == (0.0, 1.0)
    assert found.by == Subgroups("sex", ("F", "M"))
    assert found.levels == (Subgroups("ill", ("false", "true")),)
    bins = questions.statistics(
        AskStatistics("hearts", ("age",), what=("histogram", "quantiles")), COLUMNS
    )
    edges = bins.numbers[0].edges
    assert edges[0] <= 20 and edges[-1] >= 41 and len(set(np.round(np.diff(edges), 9))) == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (AskStatistics("h", ("agee",)), "columns: no site offers .*did you mean 'age'"),
        (AskStatistics("h", ("age",), by="ward"), r"levels\.ward: found none"),
        (AskStatistics("h", ("chol",), what=("histogram",)), r"edges\.chol: found none"),
        (
            AskStatistics("h", ("chol",), edges={"chol": (2, 1, 3)}),
            r"edges\.chol: found 2, 1, 3",
        ),
        (AskStatistics("h", ("age",), where="age + 1"), "where: found a number"),
        (AskStatistics("h", ("age",), where="agee > 1"), "where: "),
        (AskStatistics("h", ("age",), levels={"sex": ("F",)}), r"levels\.sex: found a column"),
        (AskStatistics("h", ("sex",), levels={"sex": ("F",)}), r"levels\.sex: found 1 names"),
        (AskStatistics("h", tables=(("sex", "sex"),)), "tables: found 'sex' twice"),
        (
            AskStatistics("h", tables=(("sex", "ill"), ("sex", "ill"))),
            "tables: found 'sex' and 'ill' twice",
        ),
        (AskStatistics("h"), "columns: found none"),
    ],
)
def test_a_wrong_question_names_its_field(asked: AskStatistics, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        questions.statistics(asked, COLUMNS)


def test_two_sites_cannot_be_masked() -> None:
    asked = AskStatistics("hearts", ("age",), aggregation="secure")
    pair = Study("hearts", "why", ("a", "b"), ("t",))
    with pytest.raises(ConfigError, match="aggregation: found 'secure' in a study of 2 sites"):
        questions.experiment(asked, pair, COLUMNS)
    plain = questions.experiment(AskStatistics("hearts", ("age",)), pair, COLUMNS)
    assert plain.privacy is not None and plain.privacy.aggregation == "plain"
    assert plain.plan == "" and plain.min_updates == 1


def test_hospitals_answer_and_not_the_data_centre() -> None:
    """Else a sum would be of other sites once a copy has arrived, and none opened any more."""
    study = Study("h", "why", ("a", "b", "c", "d"), ("t",), data_centre="c", pooled=("a",))
    found = questions.experiment(AskStatistics("h", ("age",)), study, COLUMNS)
    assert found.sites == ("a", "b", "d")
    assert found.privacy is not None and found.privacy.aggregation == "secure"


def test_only_datasets_offered_to_the_study_count() -> None:
    study = Study("hearts", "why", ("a", "b", "c"), ("t",))
    twin = MockTwin((MockColumn("x", "int64", start=0, width=1, counts=(9,)),))
    said = {
        "a": Advertisement(
            "1", (OfferedDataset("d", ("t",), 50, {"x": "int64"}, twin),), ("sd",)
        ),
        "b": Advertisement("1", (OfferedDataset("d", ("t",), 50, {"y": "int64"}),), ("other",)),
        "c": Advertisement("1", (OfferedDataset("d", ("u",), 50, {"z": "int64"}),), ("sd",)),
    }
    found = questions.offered(study, "sd", said)
    assert set(found) == {"x"} and found["x"].range == (0, 1)


def test_a_question_is_one_round_without_a_model() -> None:
    config = RoundConfig(
        rounds=0, min_updates=1, min_sites=1, evaluating=Evaluating(), statistics="sha256:1"
    )
    state: JobState = new_job("j", config)
    for event in (Joined(0, "a"), Joined(0, "b"), Started(0, None, {})):
        state, commands = advance(state, event)
    assert [c.kind for c in commands if hasattr(c, "kind")] == ["statistics"] * 2
    for site in "ab":
        state, commands = advance(state, Accepted(1, f"j.0.0.{site}", "", 1, {}, "sums:"))
    assert commands[-2:][0] == Close(
        0, "statistics", (("a", "j.0.0.a", "", 1), ("b", "j.0.0.b", "", 1))
    )
    state, _ = advance(state, Assessed(2, 0, "what it came to"))
    assert state.phase == "done"


TODAY = date(2026, 11, 21)
TAGS = frozenset({"hearts"})
SITES = ("a", "b", "c")
QUESTION = Privacy(aggregation="secure", statistics=Statistics((AGE,)))
GRANT = StudyGrant("hearts", TAGS, TODAY, sites=SITES, statistics=True)
POLICY = Policy({"s": GRANT}, {}, (DatasetFacts("d", TAGS, 150),), 100, failures_per_day=5)
REQUEST = Request(
    "statistics", "s", "hearts", "", TAGS, {}, None, 60.0, privacy=QUESTION, cohort=SITES
)


def allowed(request: Request = REQUEST, policy: Policy = POLICY) -> bool:
    return decide(request, policy, TODAY).allowed


def test_statistics_leave_as_study_and_site_say() -> None:
    silent = replace(POLICY, studies={"s": replace(GRANT, statistics=False)})
    assert allowed()
    assert not allowed(policy=silent)
    assert allowed(policy=replace(silent, statistics="all"))
    assert not allowed(policy=replace(POLICY, statistics="none"))
    assert not allowed(policy=replace(POLICY, dp_required=True))
    assert not allowed(policy=replace(POLICY, min_records=151))


def test_sums_of_a_site_leave_masked_unless_its_owner_said_otherwise() -> None:
    plain = replace(REQUEST, cohort=(), privacy=Privacy(statistics=Statistics((AGE,))))
    assert not allowed(plain)
    assert allowed(plain, replace(POLICY, plain_updates=True))
    assert not allowed(replace(REQUEST, cohort=("a", "b")))
    ckks = Privacy(aggregation="ckks", statistics=Statistics((AGE,)))
    assert not allowed(replace(REQUEST, privacy=ckks))


@pytest.mark.parametrize(
    "asked",
    [
        Statistics((replaced(AGE, unit=0.0),)),
        Statistics((replaced(AGE, edges=(3.0, 1.0, 2.0)),)),
        Statistics((AGE, AGE)),
        Statistics(levels=(Subgroups("ward", tuple(map(str, range(5000)))),)),
        Statistics(),
    ],
)
def test_a_question_that_the_hub_let_pass_is_checked_at_the_site(asked: Statistics) -> None:
    privacy = Privacy(aggregation="secure", statistics=asked)
    assert not allowed(replace(REQUEST, privacy=privacy))


def test_a_question_comes_with_its_own_kind_only() -> None:
    """Else a training round would be bound to the question instead of its model."""
    assert not allowed(replace(REQUEST, privacy=Privacy(aggregation="secure")))
    approved = replace(POLICY, plans={"p": PlanGrant("line", until=TODAY)})
    train = replace(REQUEST, kind="train", plan="p", model="b3:" + "1" * 64)
    assert not allowed(train, approved)
    assert allowed(replace(train, privacy=Privacy(aggregation="secure")), approved)
    assert not allowed(replace(REQUEST, plan="p"), approved), "statistics have no plan"
    assert not allowed(replace(REQUEST, arguments={"lr": 1}))


def test_a_masked_round_is_bound_to_its_question() -> None:
    """A hub that asks each site something else gets no sum: the sites' contexts differ."""
    one, other = Statistics((AGE,)), Statistics((AGE,), where="age < 30")
    assert sums.digest(one) != sums.digest(other)
    assert sums.digest(one) == sums.digest(Statistics((AGE,)))
    narrower = Statistics((AGE,), by=SEX, where="age < 30")
    assert not set(sums.parts(one)) & set(sums.parts(narrower))
    again = Statistics((Numbers("age", ("count",)), Numbers("chol")))
    assert set(sums.parts(one)) < set(sums.parts(again)), "the same column, asked in company"


def test_records_without_a_patient_id_are_who_their_values_say(tmp_path: Path) -> None:
    def read(*rows: str) -> tuple[set[int], Table]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        path.write_text("\n".join(("age,sex", *rows)) + "\n")
        table = Table(TableSource(str(path), "csv", {"age": "int64", "sex": "str"}))
        return set(identities(table, "").tolist()), table

    before, table = read("40,F", "40,F", "50,M", ",M")
    after, _ = read("50,M", "40,F", ",M", "40,F", "60,F")
    assert len(before) == 4 and before < after, "twins are two, and the order says nothing"
    found = columns(table, Statistics((AGE,), by=SEX, where="age >= 40"))
    assert found["where"].tolist() == [True, True, True, False], "no value is no match"
    assert found["by"].tolist() == [0, 0, 1, 1]
    assert np.isnan(found["number:age"]).tolist() == [False, False, False, True]
    with pytest.raises(DataError, match="identifies patients"):
        columns(table, Statistics(levels=(SEX,)), "sex")
    with pytest.raises(DataError, match="identifies patients"):
        columns(table, Statistics((AGE,), where="sex = 'F'"), "sex")


def test_one_patient_written_in_two_ways_is_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('pid,x\n" p1",1\np1,2\np2,3\n')
    table = Table(TableSource(str(path), "csv", {"pid": "str", "x": "int64"}))
    found = identities(table, "pid").tolist()
    assert found[0] == found[1] != found[2]


def test_the_hub_takes_no_answer_but_the_one_it_asked_for() -> None:
    asked = Statistics((AGE,))
    task = Task(
        *("statistics", "j", 0, "s", "hearts", "", {}, ("t",), None, 0),
        privacy=Privacy(statistics=asked),
    )
    one = sums.coded(asked, {Item("rounded"): 0.0, **told([5, 15, 25])})
    good = Result("j.0.0.a", "j", 0, None, 1, sums=one.tobytes())
    assert misfit(good, task) is None
    assert "bytes" in (misfit(replaced(good, sums=b"12345678"), task) or "")
    assert misfit(replaced(good, round=1), task)
    assert misfit(replaced(good, metrics={"auc": 1.0}), task)
    twice = (2 * one).tobytes()
    assert "malformed" in (misfit(replaced(good, sums=twice), task) or ""), "two sites' flags"
