"""Statistics with noise: what one patient can move, the noise, its price, its figures."""

import hashlib
import math
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as replaced

from consilia.cli.statistics import statistics as describe
from consilia.core.weights import Weights
from consilia.data.loading.blocks import Filter, LoadingPlan, Missing, to_bytes
from consilia.errors import ConfigError, Refused, WireError
from consilia.hub import questions
from consilia.hub.questions import Offered
from consilia.hub.statistics import misfit
from consilia.node import privatestatistics
from consilia.node.policy import DatasetFacts, Policy, Request, StudyGrant, decide
from consilia.privacy import estimate
from consilia.privacy.accountant import cost, epsilon
from consilia.stats import noisyfigures, private, sums
from consilia.stats.sums import Item
from consilia.wire.people import Experiment
from consilia.wire.statistics import AskStatistics, Figure, Noise
from consilia.wire.v1 import (
    Dp,
    MockColumn,
    Numbers,
    Privacy,
    Result,
    Statistics,
    Study,
    Subgroups,
    Task,
)

SEX = Subgroups("sex", ("F", "M"))
ILL = Subgroups("ill", ("no", "yes", "both"))
AGE = Numbers("age", ("count", "missing", "mean", "sd"), (0, 20, 40, 60, 80, 100), 50.0, 50.0)
ASKED = Statistics((AGE, Numbers("cost", ("mean",), (), 0.0, 10.0)), (ILL,), ((SEX, ILL),), SEX)
DP = Dp("record", 2.0, 1.0)
EDGES = tuple(float(e) for e in range(51))


def keyed(seed: int) -> Callable[[int], bytes]:
    """A stand-in for os.urandom that always gives the same bytes."""
    return lambda size: hashlib.shake_256(seed.to_bytes(8, "little")).digest(size)


def table(records: int, rng: np.random.Generator, patients: int = 0) -> Weights:
    """Columns of records as a worker reads them; some values are missing, or far out."""
    ages = rng.normal(50, 30, records)
    ages[rng.random(records) < 0.2] = np.nan
    costs = rng.choice([-1e300, -11.0, -10.0, 0.0, 10.0, 1e300, np.inf, np.nan], records)
    return {
        "ids": rng.integers(0, patients or 1 << 62, records).astype(np.uint64),
        "where": rng.random(records) < 0.9,
        "by": rng.integers(-1, 2, records),
        "number:age": ages,
        "number:cost": costs,
        "level:ill": rng.integers(-1, 3, records),
        "rows:0": rng.integers(-1, 2, records),
        "across:0": rng.integers(-1, 3, records),
    }


def without(columns: Weights, patient: int) -> Weights:
    """The same records without those of a patient."""
    rest = columns["ids"] != patient
    return {name: values[rest] for name, values in columns.items()}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 60), st.booleans())
def test_no_patient_moves_an_answer_further_than_is_stated(
    seed: int, most: int, records: int, grouped: bool
) -> None:
    rng = np.random.default_rng(seed)
    columns = table(records, rng, patients=6)
    asked = ASKED if grouped else replaced(ASKED, by=None)
    stated = private.sensitivity(asked, replaced(DP, clip=float(most)))
    whole = private.totals(columns, asked, most)
    for patient in range(6):
        moved = (whole - private.totals(without(columns, patient), asked, most)) / private.UNIT
        assert np.linalg.norm(moved) <= stated * (1 + 1e-12)


def test_the_stated_sensitivity_is_reached() -> None:
    """Two records at a bound, in the same cell of every block: less would be too little."""
    one: Weights = {
        "ids": np.array([7, 7, 7], np.uint64),
        "where": np.ones(3, np.bool_),
        "by": np.zeros(3, np.int64),
        "number:age": np.full(3, 100.0),
        "number:cost": np.full(3, -10.0),
        "level:ill": np.ones(3, np.int64),
        "rows:0": np.ones(3, np.int64),
        "across:0": np.ones(3, np.int64),
    }
    moved = private.totals(one, ASKED, 2) / private.UNIT
    assert np.linalg.norm(moved) == private.sensitivity(ASKED, replaced(DP, clip=2.0))
    assert private.blocks(ASKED) == 9


def test_without_noise_an_answer_is_numpy_s_of_the_records_that_count() -> None:
    columns = table(500, np.random.default_rng(1), patients=200)
    found = _values(private.totals(columns, ASKED, 1))
    first: list[int] = []
    for n in np.flatnonzero(columns["where"]).tolist():
        if columns["ids"][n] not in columns["ids"][first]:
            first.append(n)
    kept = {name: values[first] for name, values in columns.items()}
    for place, sex in enumerate(SEX.levels):
        group = kept["by"] == place
        ages = kept["number:age"][group]
        shown = ages[~np.isnan(ages)]
        scaled = np.clip((shown - 50) / 50, -1, 1)
        assert found[Item("records", group=sex)] == group.sum()
        assert found[Item("missing", "age", sex)] == np.isnan(ages).sum()
        assert found[Item("count", "age", sex)] == len(shown)
        assert found[Item("sum", "age", sex)] == pytest.approx(scaled.sum(), abs=1e-4)
        assert found[Item("squares", "age", sex)] == pytest.approx((scaled**2).sum(), abs=1e-4)
        bins = np.histogram(shown, [-np.inf, 20, 40, 60, 80, np.inf])[0]
        assert [found[Item("bin", "age", sex, i)] for i in range(5)] == bins.tolist()
        for level in range(3):
            here = (kept["level:ill"] == level) & group
            assert found[Item("cell", "ill", sex, level)] == here.sum()
    for i, j in np.ndindex(2, 3):
        here = (kept["rows:0"] == i) & (kept["across:0"] == j)
        assert found[Item("cell", "sex", "", i * 3 + j, "ill")] == here.sum()


def _values(numbers: Any) -> dict[Item, float]:
    return private.decoded(ASKED, numbers.view(np.uint64))


# ---- noise and its price --------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_the_noise_of_the_sum_is_as_wide_as_is_told(shared: bool) -> None:
    """Of four sites without a record 2550 numbers each; their deviation is known to 1.4 %."""
    asked = Statistics((Numbers("age", ("count",), EDGES),), by=Subgroups("b", cuts=EDGES[1:]))
    nobody: Weights = {
        "ids": np.zeros(0, np.uint64),
        "where": np.zeros(0, np.bool_),
        "by": np.zeros(0, np.int64),
        "number:age": np.zeros(0),
    }
    dp = replaced(DP, distributed=shared)
    answers = [privatestatistics.noised(nobody, asked, dp, 4, keyed(n)) for n in range(4)]
    total = np.asarray(np.sum(answers, axis=0, dtype=np.uint64))
    found = np.array(list(private.decoded(asked, total).values()))
    stated = private.in_sum(asked, dp, 4, 4)
    # of four sites three survive, or none; one of the three may collude: two shares are sure
    needed = 2.0 * math.sqrt(3 * (4 / 2 if shared else 4))
    assert stated == pytest.approx(needed)
    assert found.std() == pytest.approx(stated, rel=5 / math.sqrt(2 * found.size))
    assert abs(found.mean()) < 5 * stated / math.sqrt(found.size)
    # what the two honest ones of three survivors have added
    fewer = np.asarray(np.sum(answers[:2], axis=0, dtype=np.uint64))
    least = np.array(list(private.decoded(asked, fewer).values())).std()
    assert least >= 0.95 * DP.noise_multiplier * private.sensitivity(asked, dp)


def test_what_is_charged_is_what_dp_accounting_says() -> None:
    accounting = pytest.importorskip("dp_accounting", reason="an independent accountant")
    rdp = pytest.importorskip("dp_accounting.rdp", reason="an independent accountant")
    for wanted in (0.1, 1.0, 5.0):
        dp = questions.mechanism(Noise(wanted), masked=True)
        mine = epsilon(cost(dp), dp.delta)
        other = rdp.RdpAccountant(orders=list(np.linspace(1.01, 600, 4000)))
        other.compose(accounting.GaussianDpEvent(dp.noise_multiplier))
        assert mine == pytest.approx(other.get_epsilon(1e-5), rel=2e-3)
        assert 0.99 * wanted <= mine <= wanted
        job = Experiment("s", "", 0, privacy=Privacy("secure", dp=dp, statistics=ASKED))
        assert estimate.spent(job, 0, 0) == mine
        assert estimate.estimate(job, ("a", "b")).sites == {"a": mine, "b": mine}


def test_a_site_refuses_where_nobody_else_s_share_is_left() -> None:
    dp = replaced(DP, distributed=True, colluding=3)
    columns = table(30, np.random.default_rng(2))
    with pytest.raises(Refused, match="of 4 sites 3 are sure to stay"):
        privatestatistics.noised(columns, ASKED, dp, 4, keyed(1))
    alone = replaced(DP, noise_multiplier=1e-7)
    with pytest.raises(Refused, match=r"noise of 0\.3.* steps, needed 4"):
        privatestatistics.noised(columns, ASKED, alone, 0, keyed(1))


# ---- what people read -----------------------------------------------------------------------


def test_intervals_hold_the_answer_without_noise() -> None:
    """Of 400 draws each; 95 % are promised, and nothing is drawn anew from run to run."""
    rng = np.random.default_rng(5)
    values = np.clip(rng.normal(45, 18, 900), 0, 100)
    asked = Statistics((replaced(AGE, what=(*AGE.what, "quantiles")),))
    columns: Weights = {
        "ids": np.arange(900, dtype=np.uint64),
        "where": np.ones(900, np.bool_),
        "number:age": values,
    }
    dp = replaced(DP, noise_multiplier=8.0)
    noise = private.in_sum(asked, dp, 1, 0)
    held: dict[str, list[bool]] = {}
    for seed in range(400):
        sent = privatestatistics.noised(columns, asked, dp, 0, keyed(seed))
        told = private.decoded(asked, sent)
        for f in noisyfigures.figures(asked, told, noise, 1):
            true = _true(f, values)
            low, high = f.low is None or f.low <= true, f.high is None or true <= f.high
            assert f.value is not None and f.sites == 1
            assert (f.error is None) == (f.statistic == "quantile")
            held.setdefault(f"{f.statistic} {f.level}", []).append(low and high)
    for name, found in held.items():
        assert np.mean(found) >= 0.92, name  # 95 % less three standard errors
    assert np.mean(held["mean "]) <= 0.98  # and no wider than needed


def _true(figure: Figure, values: Any) -> float:
    match figure.statistic:
        case "mean":
            return float(values.mean())
        case "sd":
            return float(values.std(ddof=1))
        case "quantile":
            return float(np.quantile(values, float(figure.level), method="inverted_cdf"))
        case "missing":
            return 0.0
        case "histogram":
            edges = [-np.inf, 20, 40, 60, 80, np.inf]
            names = sums.bin_names(AGE)
            return float(np.histogram(values, edges)[0][names.index(figure.level)])
    return float(len(values))


def test_a_mean_of_few_records_is_not_told_and_its_error_counts_both() -> None:
    asked = Statistics((AGE,))
    few = {item: 1.0 for item in private.items(asked)}
    told = {f.statistic: f for f in noisyfigures.figures(asked, few, 3.0, 3)}
    assert told["mean"].value is None and told["sd"].value is None
    assert told["count"].value == 1 and told["count"].error == 3.0
    sure = {
        Item("count", "age"): 400.0,
        Item("sum", "age"): 40.0,
        Item("squares", "age"): 104.0,
    }
    told = {
        f.statistic: f for f in noisyfigures.figures(asked, few | sure, 1e-9, 3)
    }  # as good as no noise: what is left is that 400 records are a sample
    assert told["mean"].value == pytest.approx(55)
    assert told["sd"].value == pytest.approx(25, rel=2e-3)
    assert told["mean"].error == pytest.approx(25 / 20, rel=1e-3)
    noisy = {f.statistic: f for f in noisyfigures.figures(asked, few | sure, 8.0, 3)}
    assert noisy["mean"].error == pytest.approx(
        math.hypot(1.25, 50 * 8 * 1.005 / 400), rel=1e-2
    )


# ---- what may be asked, and what a site lets pass -------------------------------------------

COLUMNS = {
    "age": Offered("int64", (MockColumn("age", "int64", start=20, width=7, counts=(5, 5, 9)),)),
    "sex": Offered("str", (MockColumn("sex", "str", levels={"M": 5, "F": 10}),)),
    "ill": Offered("bool"),
}
THREE = Study("h", "why", ("a", "b", "c"), ("t",))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (AskStatistics("h", ("age",)), r"bounds\.age: found none; with dp a mean"),
        (AskStatistics("h", ("age",), what=("histogram",)), r"edges\.age: found none"),
        (AskStatistics("h", ("ill",), by="sex"), r"levels\.sex: found none"),
        (
            AskStatistics("h", ("age",), bounds={"age": (9, 9)}),
            r"bounds\.age: found 9, 9; needed two rising numbers",
        ),
        (
            AskStatistics("h", ("age",), what=("histogram",), bounds={"age": (9, 2)}),
            r"bounds\.age: found 9, 2; needed two rising numbers",
        ),
        (AskStatistics("h", ("age",), bounds={"age": (-1e308, 1e308)}), r"bounds\.age"),
        (AskStatistics("h", ("ill",), bounds={"age": (1, 9)}), r"bounds\.age: found a column"),
        (
            AskStatistics("h", ("ill",), dp=Noise(0.0)),
            r"dp: epsilon=0\.0; needed a number above 0",
        ),
        (AskStatistics("h", ("ill",), dp=Noise(1.0, 2.0)), "delta=2"),
        (
            AskStatistics("h", ("ill",), dp=Noise(1.0, records=0)),
            r"dp\.records: found 0; needed 1 to 1000",
        ),
        (AskStatistics("h", ("ill",), dp=Noise(1.0, colluding=-1)), "colluding=-1"),
    ],
)
def test_a_question_with_noise_takes_nothing_from_data(asked: AskStatistics, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        questions.experiment(replaced(asked, dp=asked.dp or Noise(1.0)), THREE, COLUMNS)


def test_options_of_noise_are_not_ignored_without_it() -> None:
    with pytest.raises(ConfigError, match="--epsilon: found none; --delta, --level and"):
        describe("hearts", column=["age"], level="patient")
    with pytest.raises(ConfigError, match="--level: found 'clinic'"):
        describe("hearts", column=["age"], level="clinic", epsilon=1.0)


def test_bounds_are_what_values_are_clipped_to() -> None:
    asked = AskStatistics(
        "h", ("age", "ill"), by="sex", levels={"sex": ("F", "M")}, bounds={"age": (20, 90)},
        dp=Noise(1.0, level="patient", records=3),
    )  # fmt: skip
    found = questions.experiment(asked, THREE, COLUMNS).privacy
    assert found is not None and found.statistics is not None and found.dp is not None
    age = found.statistics.numbers[0]
    assert (age.centre - age.unit, age.centre + age.unit) == (20, 90)
    assert (found.dp.level, found.dp.clip, found.dp.distributed) == ("patient", 3.0, True)
    pair = replaced(THREE, sites=("a", "b"))
    alone = questions.experiment(asked, pair, COLUMNS).privacy
    assert alone is not None and alone.dp is not None and not alone.dp.distributed


GRANT = StudyGrant("h", frozenset("t"), date.max, sites=("a", "b", "c"), statistics=True)
FACTS = (DatasetFacts("t", frozenset("t"), 500),)
SITE = Policy({"sd": GRANT}, datasets=FACTS, failures_per_day=9, dp_required=True)


def asking(privacy: Privacy, kind: str = "statistics") -> tuple[str, ...]:
    """What the site's policy objects to."""
    shared = privacy.aggregation == "secure"
    request = Request(
        kind, "sd", "h", "", frozenset("t"), {}, None, 60.0,
        privacy=privacy, cohort=("a", "b", "c") if shared else (),
    )  # fmt: skip
    return decide(request, SITE, date(2026, 1, 1)).objections


def test_a_site_that_requires_noise_answers_with_it_and_only_as_it_is_charged() -> None:
    good = Privacy("secure", dp=replaced(DP, distributed=True), statistics=ASKED)
    assert not asking(good)
    twice = replaced(ASKED, tables=((SEX, ILL), (SEX, Subgroups("ill", ("no", "yes")))))
    # the cells of the one would stand in for the other's: a record would move three
    assert any("twice" in said for said in asking(replaced(good, statistics=twice)))
    (said,) = asking(replaced(good, dp=None))
    assert "only with differential privacy" in said
    for change, words in (
        ({"sampling": 0.01}, "found sampling 0.01"),
        ({"level": "client"}, "at client level"),
        ({"clip": 900.0, "noise_multiplier": 90.0}, "leaves nothing to tell"),
        ({"clip": 1.5}, "found 1.5; needed a whole number"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
    ):
        dp = replaced(DP, distributed=True, **change)
        assert any(words in said for said in asking(replaced(good, dp=dp))), change
    plain = Privacy("plain", dp=replaced(DP, distributed=True), statistics=ASKED)
    assert any("hides nothing outside" in said for said in asking(plain))


def test_an_evaluation_cannot_be_charged_as_if_it_were_sampled() -> None:
    cheap = Privacy("secure", dp=replaced(DP, distributed=True, sampling=0.001))
    assert any("sampling 0.001" in said for said in asking(cheap, "evaluate"))
    whole = Privacy("secure", dp=replaced(DP, distributed=True))
    assert not any("sampling" in said for said in asking(whole, "evaluate"))


def test_patient_level_needs_patient_ids() -> None:
    dp = replaced(DP, level="patient")
    task = Task("statistics", "j", 1, "sd", "h", "", {}, (), None, 1, privacy=Privacy(dp=dp))
    assert "consilia dataset add --patient" in privatestatistics.objection(task, "")
    assert not privatestatistics.objection(task, "pid")
    record = replaced(task, privacy=Privacy(dp=DP))
    assert not privatestatistics.objection(record, "")


def test_the_hub_takes_no_answer_of_another_form() -> None:
    task = Task(
        "statistics", "j", 1, "sd", "h", "", {}, (), None, 1,
        privacy=Privacy(dp=DP, statistics=ASKED),
    )  # fmt: skip
    body = np.zeros(len(private.items(ASKED)), "<i8")
    body[3] = -5 << 20  # noise
    good = Result("l", "j", 1, None, 1, {}, 0.1, None, body.tobytes())
    assert misfit(good, task) is None
    assert misfit(replaced(good, sums=body[:-1].tobytes()), task)
    body[0] = 1 << 60
    assert "larger" in (misfit(replaced(good, sums=body.tobytes()), task) or "")
    with pytest.raises(WireError):
        private.decoded(ASKED, np.zeros(3, np.uint64))


def test_a_median_of_all_records_is_no_value_of_one_record() -> None:
    """With half of a column missing, one patient moves the median, and with it half of all."""
    plan = LoadingPlan("p", (Filter("age > 0"), Missing(("age",), "median")))
    for kind in ("statistics", "train", "evaluate"):
        task = Task(kind, "j", 1, "sd", "h", "", {}, (), None, 1, privacy=Privacy(dp=DP))
        said = privatestatistics.objection(task, "pid", to_bytes(plan))
        assert "fills missing values with a median" in said
        kept = LoadingPlan("p", (Missing(("age",), "constant", 0.0),))
        assert not privatestatistics.objection(task, "pid", to_bytes(kept))
        whole = replaced(task, privacy=Privacy(dp=replaced(DP, level="client")))
        assert not privatestatistics.objection(whole, "pid", to_bytes(plan))
        free = replaced(task, privacy=Privacy())
        assert not privatestatistics.objection(free, "pid", to_bytes(plan))


def test_what_nobody_could_answer_is_refused_before_anybody_pays() -> None:
    lonely = replaced(DP, distributed=True, colluding=3)
    (said,) = asking(Privacy("secure", dp=lonely, statistics=ASKED))
    assert "no share of the noise is left" in said
    names = tuple(f"c{i}" for i in range(30))
    pairs = tuple(
        (Subgroups(a, ("x", "y")), Subgroups(b, ("x", "y")))
        for a in names
        for b in names
        if a < b
    )
    wide = Statistics((), (), pairs)
    noise = replaced(DP, noise_multiplier=49_999.0, distributed=False)
    (said,) = asking(Privacy("secure", dp=noise, statistics=wide))
    assert "1e+12" in said
    asked = AskStatistics("s", ("age",), bounds={"age": (0, 99)}, dp=Noise(1.0, colluding=3))
    with pytest.raises(ConfigError, match=r"dp: .*no share"):
        questions.experiment(asked, THREE, COLUMNS)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_one_of_several_records_of_a_patient_moves_two_at_most(seed: int, most: int) -> None:
    """Without it the next one counts: what epsilon hides, given ids, is the patient."""
    columns = table(30, np.random.default_rng(seed), patients=6)
    stated = private.sensitivity(ASKED, replaced(DP, clip=float(max(most, 2))))
    whole = private.totals(columns, ASKED, most)
    for record in range(30):
        rest = {name: np.delete(values, record) for name, values in columns.items()}
        moved = (whole - private.totals(rest, ASKED, most)) / private.UNIT
        assert np.linalg.norm(moved) <= stated * (1 + 1e-12)
