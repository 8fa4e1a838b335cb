"""What an asker who is allowed to ask works out about one patient, with and without the rules.

Each attack runs twice: on the raw numbers, where it succeeds, and through the site's way out,
where it must not. The asker knows the rules, the other answers and a patient's attributes,
chooses every question, and sees only what leaves.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from consilia.errors import DataError
from consilia.node.config import Disclosure
from consilia.node.disclosure import ALL, Answerer, Group, Question
from consilia.node.numbers import Numbers
from consilia.node.store import Store
from consilia.privacy.disclosure import SUPPRESSED, Suppressed
from consilia.wire.v1 import Dp, Plan, Privacy, Task, encode

Mask = NDArray[np.bool_]
TODAY = date(2026, 3, 1)
RECORDS = 400
VICTIM = 7


@dataclass
class Site:
    """A hospital's table: age, sex, a rare finding, a cost; and its way out."""

    store: Store
    exact: bool = True
    numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(5)
        self.age = rng.integers(20, 90, RECORDS).astype(np.float64)
        self.male = rng.random(RECORDS) < 0.5
        self.ill = rng.random(RECORDS) < 0.3
        self.cost = rng.gamma(2.0, 1000.0, RECORDS)
        self.age[VICTIM], self.male[VICTIM], self.ill[VICTIM] = 101.0, True, True
        self.cost[VICTIM] = 3210.0
        settings = Disclosure(counts="exact" if self.exact else "rounded")
        self.out = Answerer(self.store, settings, lambda: 0.0, os.urandom)
        self.ids = self.out.identities("patients", map(str, range(RECORDS)))

    def ask(self, *masks: Mask, predicates: tuple[str, ...] = ()) -> Question:
        """A question; each mask is a predicate of its own unless it is named."""
        names = predicates or tuple(f"p{next(self.numbers)}" for _ in masks)
        groups = tuple(Group(n, m) for n, m in zip(names, masks, strict=True))
        return Question("hearts", "patients", "table", "q" + "".join(names), self.ids, groups)

    def count(self, mask: Mask, predicate: str = "") -> int | Suppressed:
        """Through the way out."""
        return self.out.count(self.ask(mask, predicates=(predicate,) if predicate else ()))


def total(mask: Mask) -> int:
    """The raw number."""
    return int(mask.sum())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    store = Store.open(tmp_path)
    yield Site(store)
    store.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Site]:
    """One that rounds, as sites do unless told otherwise."""
    store = Store.open(tmp_path)
    yield Site(store, exact=False)
    store.close()


def test_n_is_1(site: Site) -> None:
    oldest = site.age > 100
    assert total(oldest) == 1 and site.cost[oldest].mean() == 3210.0
    assert site.count(oldest) == SUPPRESSED
    for statistic in (site.out.mean, site.out.variance):
        assert statistic(site.ask(oldest), site.cost) == SUPPRESSED
    assert site.out.quantile(site.ask(oldest), site.cost, 0.5) == SUPPRESSED
    assert site.count(site.age > 200) == SUPPRESSED, "nobody and somebody are told apart"


def test_averaging_repeats(plain: Site) -> None:
    group, rng = plain.age > 50, np.random.default_rng(1)
    noisy = [total(group) + rng.normal(0, 20) for _ in range(10_000)]
    assert round(np.mean(noisy)) == total(group)  # what noise of its own each time gives away
    question = plain.ask(group)
    answers = [plain.out.count(question) for _ in range(50)]
    assert len(set(answers)) == 1 and answers[0] != total(group)
    asked_anew = [plain.count(group) for _ in range(5)]
    assert asked_anew == [SUPPRESSED] * 5, "another name for the group gave another look"


def test_differencing_by_one_patient(site: Site) -> None:
    old, older = site.age > 60, (site.age > 60) & (site.age < 100)
    assert total(old) - total(older) == 1
    mean, without = site.cost[old].mean(), site.cost[older].mean()
    assert mean * total(old) - without * total(older) == pytest.approx(3210.0)
    assert site.count(old) == total(old)
    assert site.count(older) == SUPPRESSED
    assert site.out.mean(site.ask(older), site.cost) == SUPPRESSED


@pytest.mark.parametrize("present", [True, False])
def test_a_refusal_does_not_tell_that_somebody_is_there(site: Site, present: bool) -> None:
    if not present:
        site.age[VICTIM] = 50.0
    old = site.age > 60
    assert site.count(old) == total(old)
    assert site.count(old & (site.age < 100)) == SUPPRESSED


def test_the_complement(site: Site) -> None:
    others = site.age < 100
    assert RECORDS - total(others) == 1
    everybody = site.ask(np.ones(RECORDS, np.bool_), predicates=(ALL,))
    assert site.out.mean(everybody, site.cost) == pytest.approx(site.cost.mean())
    assert site.count(others) == SUPPRESSED
    assert site.out.mean(site.ask(others), site.cost) == SUPPRESSED
    assert site.count(site.age < 200) == SUPPRESSED, (
        "all, by another name, tells nobody is left"
    )


def test_an_individual_tracker(site: Site) -> None:
    # Schlorer 1975: C = A and B is too small to ask; T = A and not B is not
    a, b = site.male, site.age > 100
    assert total(a) - total(a & ~b) == total(a & b) == 1
    found = (site.count(a & b), site.count(a), site.count(a & ~b))
    assert found == (SUPPRESSED, total(a), SUPPRESSED)


def test_a_general_tracker(site: Site) -> None:
    # Denning, Denning and Schwartz 1979: q(C) = q(C or T) + q(C or not T) - q(all)
    c, t = site.age > 100, site.male
    assert total(c | t) + total(c | ~t) - RECORDS == total(c) == 1
    found = [site.count(c | ~t), site.count(c | t)]
    assert SUPPRESSED in found


def test_a_union_tracker_over_many_questions(site: Site) -> None:
    """A random attacker: whatever subset is answered, no combination is about one patient."""
    rng = np.random.default_rng(3)
    answered = [np.ones(RECORDS, np.bool_)]
    raw = [np.ones(RECORDS, np.bool_)]
    for _ in range(60):
        mask = (site.age > rng.integers(20, 90)) ^ (rng.random() < 0.5)
        mask = mask & (site.male if rng.random() < 0.5 else site.ill)
        raw.append(mask)
        if site.count(mask) != SUPPRESSED:
            answered.append(mask)

    def solves(groups: list[Mask]) -> int:
        """How many patients' own values follow from the sums over these groups."""
        rows = np.array(groups, float)
        kept = np.linalg.svd(rows, full_matrices=False)
        basis = kept.Vh[kept.S > 1e-9]
        return int(((basis**2).sum(axis=0) > 1 - 1e-9).sum())

    assert solves(raw) > 0, "the attack on the raw numbers found nobody"
    assert len(answered) > 5 and solves(answered) == 0


def test_after_an_opt_out(site: Site) -> None:
    question = site.ask(site.ill, predicates=("ill",))
    before = site.out.count(question)
    kept = np.arange(RECORDS) != VICTIM
    assert total(site.ill) - total(site.ill & kept) == 1  # what a fresh answer gives away
    later = Question(
        *("hearts", "patients", "table", question.query, site.ids[kept]),
        (Group("ill", site.ill[kept]),),
    )
    assert site.out.count(later) == before == total(site.ill)
    other = Question(
        *("hearts", "patients", "table", "mean", site.ids[kept]),
        (Group("ill", site.ill[kept]),),
    )
    assert site.out.mean(other, site.cost[kept]) == SUPPRESSED
    leavers = (site.ill & (np.cumsum(site.ill) < 8)) | (~site.ill & (np.cumsum(~site.ill) < 8))
    several = kept & ~leavers
    moved = Question(
        *("hearts", "patients", "table", question.query, site.ids[several]),
        (Group("ill", site.ill[several]),),
    )
    assert site.out.count(moved) == total(site.ill & several) < total(site.ill) - 4


def test_extreme_quantiles(site: Site) -> None:
    everybody = site.ask(np.ones(RECORDS, np.bool_), predicates=(ALL,))
    assert np.quantile(site.age, 1.0) == 101.0
    for at in (0.0, 0.001, 0.999, 1.0):
        with pytest.raises(DataError):
            site.out.quantile(everybody, site.age, at)
    few = site.ask(site.age > 84)
    assert 20 < total(site.age > 84) < 100 and np.quantile(site.age[site.age > 84], 0.95) > 88
    assert site.out.quantile(few, site.age, 0.95) == SUPPRESSED
    assert site.out.quantile(everybody, site.age, 0.5) == np.median(site.age)


def test_a_dominating_record(site: Site) -> None:
    cost = site.cost.copy()
    cost[VICTIM] = 1e9
    assert cost[site.ill].sum() == pytest.approx(1e9, rel=1e-3)
    assert site.out.mean(site.ask(site.ill), cost) == SUPPRESSED


def test_what_all_have_in_common(site: Site) -> None:
    group = site.age > 70
    ill = np.ones(RECORDS)
    assert ill[group].mean() == 1.0  # known of each of them
    assert site.out.mean(site.ask(group), ill) == SUPPRESSED


def test_sparse_crosstabs(site: Site) -> None:
    decades = [(site.age >= d) & (site.age < d + 10) for d in range(20, 110, 10)]
    cells = [band & side for band in decades for side in (site.male, ~site.male)]
    sizes = [total(c) for c in cells]
    assert 1 in sizes and 0 in sizes
    totals = [total(band) for band in decades]
    assert totals[-1] - sizes[-1] == 1  # the row's total less its other cell
    found = site.out.table(site.ask(*cells), (len(decades), 2))
    hidden = [i for i, f in enumerate(found) if isinstance(f, Suppressed)]
    assert {i for i, s in enumerate(sizes) if s < 5} < set(hidden), "none was hidden besides"
    assert sum(sizes[i] for i in hidden) >= 5
    assert all(f in (s, SUPPRESSED) for f, s in zip(found, sizes, strict=True))
    for row, band in enumerate(decades):
        cell = found[2 * row : 2 * row + 2]
        asked = site.count(band)
        if isinstance(cell[0], Suppressed) is not isinstance(cell[1], Suppressed):
            assert asked == SUPPRESSED, "a row's total gives its hidden cell"


def test_a_breakdown_leaves_whole_when_it_hides_nobody(site: Site) -> None:
    sexes = site.ask(site.male, ~site.male)
    assert site.out.table(sexes) == (total(site.male), total(~site.male))


def test_category_names_as_a_channel(site: Site) -> None:
    names = [f"{'ill' if site.ill[i] else 'well'}-patient-{i}" for i in range(RECORDS)]
    assert names[VICTIM] == "ill-patient-7"  # a table by such a column is the table itself
    # no name comes back: who asks has to bring it, and one that is not there looks the same
    guesses = [np.array([name == guess for name in names]) for guess in ("ill-patient-7", "-")]
    assert site.out.table(site.ask(*guesses)) == (SUPPRESSED, SUPPRESSED)


# ---- what a training task tells --------------------------------------------------------------

PLAN = "sha256:" + "7" * 64


def task(dp: bool = False) -> Task:
    privacy = Privacy(dp=Dp("record", 1.0, 1.0)) if dp else Privacy()
    return Task("train", "j", 1, "s", "hearts", PLAN, {}, ("t",), "m", 1, privacy=privacy)


def numbers(site: Site, **settings: object) -> Numbers:
    source = 'context.progress(0.5, loss=value); return {"auc": auc, "auc_records": n}'
    with site.store.write() as tx:
        tx.execute(
            "INSERT INTO plans VALUES (?, 'p', ?, '', 'approved', 0, '', '', 0, 0, '', '{}', "
            "'[]') ON CONFLICT DO NOTHING",
            (PLAN, encode(Plan("p", {"plan.py": source}, "plan:PLAN"))),
        )
    return Numbers(site.store, msgspec.convert(settings, Disclosure))


def told(out: Numbers, metrics: dict[str, float], dp: bool = False) -> dict[str, float]:
    found = out.result(task(dp), metrics, dataset="d", records=RECORDS, today=TODAY)
    return found.metrics


def test_a_metric_of_a_tiny_validation_split(site: Site) -> None:
    out = numbers(site)
    one = {"auc": float(site.ill[VICTIM]), "auc_records": 1.0}
    assert one["auc"] == 1.0  # the accuracy on one patient is that patient's label
    assert told(out, one) == {}
    assert told(out, {"auc": 0.9, "auc_records": 80.0}) == {"auc": 0.9, "auc_records": 80.0}


def test_a_loss_curve_of_one_patient(site: Site) -> None:
    curve = [float(np.exp(-i * site.ill[VICTIM])) for i in range(200)]
    assert len(set(curve)) > 100  # how it falls says what the model learns of the patient
    silent = numbers(site)
    seen = [
        silent.progress("l", task(), i / 200, {"loss": curve[i]}, RECORDS) for i in range(200)
    ]
    assert all(metrics == {} for _, metrics, _ in seen)
    assert len({fraction for fraction, _, _ in seen}) <= 21
    open_ = numbers(site, progress_metrics=True, progress_per_task=3)
    seen = [open_.progress("l", task(), 0.5, {"loss": v}, RECORDS) for v in curve]
    assert sum(bool(metrics) for _, metrics, _ in seen) == 3
    assert [first for _, metrics, first in seen if metrics] == [True, False, False]
    few = numbers(site, progress_metrics=True)
    assert few.progress("l", task(), 0.5, {"loss": 0.5}, 4)[1] == {}, "of a dataset of 4"


def test_progress_as_a_channel(site: Site) -> None:
    ages = site.age[:20] / 1000  # the plan writes a patient's age into the digits of a fraction
    seen = [numbers(site).progress("l", task(), float(a), {}, RECORDS)[0] for a in ages]
    assert len(set(ages)) > 10 and len(set(seen)) <= 3


def test_metric_names_and_digits_as_channels(site: Site) -> None:
    out = numbers(site)
    assert told(out, {f"patient-7-is-{'ill' if site.ill[7] else 'well'}": 1.0}) == {}
    secret = 0.5 + site.cost[VICTIM] / 1e9  # a cost in the digits behind the loss
    assert round((secret - 0.5) * 1e9) == 3210
    assert told(out, {"loss": secret}) == {"loss": 0.5}
    assert told(out, {"loss": 0.5}, dp=True) == {}, "a metric that the ledger knows nothing of"


def test_metrics_are_limited_in_number(site: Site) -> None:
    out = numbers(site, metrics_per_day=3)
    seen = [told(out, {"loss": 0.5}) for _ in range(5)]
    assert seen == [{"loss": 0.5}] * 3 + [{}] * 2
    assert told(numbers(site, metrics="none"), {"loss": 0.5}) == {}
