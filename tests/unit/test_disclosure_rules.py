"""The rules for one answer: at their bounds, and that every refusal is the same bytes."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from consilia.errors import DataError
from consilia.privacy.disclosure import (
    SUPPRESSED,
    Rules,
    Suppressed,
    release_cause,
    release_count,
    release_duration,
    release_fit,
    release_fraction,
    release_mean,
    release_metric,
    release_metrics,
    release_offer,
    release_quantile,
    release_records,
    release_table,
    release_text,
    release_variance,
    shown_cells,
)
from consilia.wire.v1 import encode

EXACT = Rules(rounded=False)
ROUNDED = Rules()
SPREAD = np.arange(100.0)


def test_every_refusal_is_the_same_bytes() -> None:
    said: list[str] = []
    refusals = [
        release_count(0, EXACT, said.append),
        release_count(4, EXACT, said.append),
        release_count(4, ROUNDED, said.append),
        release_mean(SPREAD[:4], EXACT, said.append),
        release_mean(np.array([1.0] * 50), EXACT, said.append),
        release_mean(np.array([1e6, *np.ones(50), 2.0]), EXACT, said.append),
        release_variance(SPREAD[:1], EXACT, said.append),
        release_quantile(SPREAD, 0.05, EXACT, said.append),
        release_quantile(SPREAD[:4], 0.5, EXACT, said.append),
        release_fit([1.0] * 40, 100, EXACT, said.append),
        release_metric(0.5, 1, EXACT, why=said.append),
        release_text("Maria Kowalska", {"male", "female"}, said.append),
        release_table(np.array([[3]]), EXACT, said.append)[0][0],
        Suppressed(),
    ]
    assert {encode(found) for found in refusals} == {encode(SUPPRESSED)}
    assert {repr(found) for found in refusals} == {repr(SUPPRESSED)}
    assert len(said) >= len(refusals) - 1, "the site was not told what struck"
    assert len(set(said)) > 8, "the site cannot tell the rules apart"


# ---- counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "exact", "rounded"),
    [(5, 5, 5), (7, 7, 5), (8, 8, 10), (12, 12, 10), (13, 13, 15), (1000, 1000, 1000)],
)
def test_counts(count: int, exact: int, rounded: int) -> None:
    assert release_count(count, EXACT) == exact
    assert release_count(count, ROUNDED) == rounded


@pytest.mark.parametrize("k", [3, 5, 8, 10])
def test_the_threshold_holds_at_every_preset(k: int) -> None:
    rules = Rules(k=k, rounded=False)
    assert all(release_count(n, rules) == SUPPRESSED for n in range(k))
    assert release_count(k, rules) == k
    assert release_count(k, Rules(k=k)) != 0, "a count that may be told is told as nobody"


def test_a_study_only_raises_k() -> None:
    assert Rules(k=5).raised(8).k == 8
    assert Rules(k=5).raised(3) == Rules(k=5) == Rules(k=5).raised(0)


# ---- tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ((20, 30), (True, True)),
        ((20, 30, 0), (False, True, False)),  # an empty cell hides like a rare one
        ((20, 30, 3), (False, True, False)),
        ((20, 30, 3, 3), (True, True, False, False)),
        ((20, 30, 2, 2), (False, True, False, False)),
        ((4,), (False,)),
        ((0, 0), (False, False)),
    ],
)
def test_what_is_hidden_cannot_be_subtracted(
    counts: tuple[int, ...], shown: tuple[bool, ...]
) -> None:
    assert shown_cells(counts, EXACT) == shown


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.sampled_from([3, 5, 8]))
def test_hidden_cells_hold_k_or_are_none_or_all(counts: list[int], k: int) -> None:
    shown = shown_cells(counts, Rules(k=k))
    hidden = [c for c, s in zip(counts, shown, strict=True) if not s]
    assert all(c >= k for c, s in zip(counts, shown, strict=True) if s)
    assert not hidden or sum(hidden) >= k or len(hidden) == len(counts)


@given(
    st.integers(2, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(0, 14), min_size=width, max_size=width),
            min_size=2,
            max_size=5,
        )
    )
)
def test_no_hidden_cell_of_a_crosstab_follows_from_its_totals(rows: list[list[int]]) -> None:
    table = np.array(rows)
    found = release_table(table, EXACT)
    hidden = np.array([[isinstance(c, Suppressed) for c in row] for row in found])
    for row, line in zip(found, rows, strict=True):
        assert all(isinstance(c, Suppressed) or c == n for c, n in zip(row, line, strict=True))
    assert hidden[table < 5].all()
    if hidden.all() or not hidden.any():
        return
    places = list(zip(*np.nonzero(hidden), strict=True))
    totals = np.array(
        [[i == r for i, _ in places] for r in range(table.shape[0])]
        + [[j == c for _, j in places] for c in range(table.shape[1])],
        float,
    )
    rank = np.linalg.matrix_rank(totals)
    for alone in np.eye(len(places)):  # a cell that follows adds nothing to the equations
        assert np.linalg.matrix_rank(np.vstack([totals, alone])) == rank + 1


def test_a_crosstab_is_rounded_where_the_site_rounds() -> None:
    assert release_table(np.array([[13, 22], [31, 41]]), ROUNDED) == [[15, 20], [30, 40]]
    wide = release_table(np.full((1, 51), 100), ROUNDED)
    assert wide == [[SUPPRESSED] * 51], "more levels than the site allows"
    with pytest.raises(DataError):
        release_table(np.array([[-1]]), ROUNDED)


# ---- statistics -----------------------------------------------------------------------------


def test_means_and_variances_are_exact() -> None:
    values = np.random.default_rng(1).normal(50, 10, 200)
    assert release_mean(values, ROUNDED) == pytest.approx(values.mean(), rel=1e-15)
    assert release_variance(values, ROUNDED) == pytest.approx(values.var(ddof=1), rel=1e-12)


@pytest.mark.parametrize("release", [release_mean, release_variance])
def test_sums_need_k_records_none_of_which_dominates(
    release: Callable[[NDArray[np.float64], Rules], float | Suppressed],
) -> None:
    assert release(SPREAD[1:5], EXACT) == SUPPRESSED
    assert release(SPREAD[1:6], EXACT) != SUPPRESSED
    assert release(np.array([1e6, 2.0, *np.ones(50)]), EXACT) == SUPPRESSED
    assert release(np.array([-1e6, 2.0, *np.ones(50)]), EXACT) == SUPPRESSED
    assert release(np.full(80, 37.0), EXACT) == SUPPRESSED, "known of each of them"
    with pytest.raises(DataError):
        release(np.array([*SPREAD, math.nan]), EXACT)


@pytest.mark.parametrize("ones", [0, 1, 4, 96, 99, 100])
def test_a_share_has_k_records_on_either_side(ones: int) -> None:
    values = np.array([1.0] * ones + [0.0] * (100 - ones))
    assert release_mean(values, EXACT) == SUPPRESSED


def test_a_share_of_enough_records_leaves() -> None:
    assert release_mean(np.array([1.0] * 5 + [0.0] * 95), EXACT) == 0.05


@pytest.mark.parametrize("at", [0.0, 0.01, 0.06, 0.99, 1.0, 1.5, math.nan])
def test_quantiles_are_at_a_few_places_only(at: float) -> None:
    with pytest.raises(DataError):
        release_quantile(SPREAD, at, EXACT)


def test_quantiles_have_k_records_on_either_side() -> None:
    assert release_quantile(SPREAD, 0.5, EXACT) == 49.5
    assert release_quantile(SPREAD[:11], 0.5, EXACT) == 5.0
    assert release_quantile(SPREAD[:10], 0.5, EXACT) == SUPPRESSED
    assert release_quantile(SPREAD * 1234.567, 0.5, EXACT) == 61100.0, "not an exact value"
    assert release_quantile(SPREAD, 0.05, EXACT) == SUPPRESSED  # 4 below
    assert release_quantile(np.arange(101.0), 0.05, EXACT) == 5.0
    assert release_quantile(np.arange(101.0), 0.95, EXACT) == 95.0


def test_a_saturated_model_stays() -> None:
    assert release_fit([0.5] * 33, 100, EXACT) == (0.5,) * 33
    assert release_fit([0.5] * 34, 100, EXACT) == SUPPRESSED
    assert release_fit([0.5], 4, EXACT) == SUPPRESSED
    assert release_fit([math.inf], 100, EXACT) == SUPPRESSED


# ---- training -------------------------------------------------------------------------------


def test_metrics_leave_rounded_under_known_names() -> None:
    metrics = {"loss": 0.123456, "auc": 0.98765, "patient 7 is ill": 1.0}
    found = release_metrics(metrics, 100, ROUNDED, words={"loss", "auc"})
    assert found == {"loss": 0.123, "auc": 0.988}
    exact = release_metrics(metrics, 100, ROUNDED, words={"loss"}, exact=True)
    assert exact == {"loss": 0.123456}


def test_a_metric_of_a_small_split_stays_with_its_size() -> None:
    metrics = {"auc": 1.0, "auc_records": 4.0, "loss": 0.5, "loss_records": 63.0}
    found = release_metrics(metrics, 100, EXACT, words=set(metrics))
    assert found == {"loss": 0.5, "loss_records": 63.0}
    for lie in (math.inf, -1.0, 101.0, math.nan):
        claimed = release_metrics({"auc": 1.0, "auc_records": lie}, 100, EXACT, words={"auc"})
        assert claimed == {}, "a size that cannot be is none"


def test_a_private_task_tells_no_metric() -> None:
    assert release_metrics({"a": 1.0}, 100, EXACT, words={"a"}, private=True) == {}


@given(st.lists(st.floats(0, 1), max_size=200))
def test_progress_takes_a_few_steps_and_never_goes_back(fractions: list[float]) -> None:
    last, told = 0.0, []
    for fraction in fractions:
        last = release_fraction(fraction, last)
        told.append(last)
    assert told == sorted(told) and len(set(told)) <= 21
    assert all(t <= max(fractions) + 1e-9 for t in told)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_no_fraction(wrong: float) -> None:
    with pytest.raises(DataError):
        release_fraction(wrong, 0.0)


def test_record_counts_of_updates_and_offers() -> None:
    assert [release_records(n, ROUNDED) for n in (0, 1, 4, 5, 119, 120, 124)] == [
        *(0, 1, 1, 5, 115, 120, 120)
    ]
    assert release_records(119, EXACT) == 119
    assert [release_offer(n, EXACT) for n in (0, 4, 5, 9, 124)] == [0, 0, 5, 5, 120]
    assert release_offer(9, Rules(k=10)) == 0


def test_words_and_durations() -> None:
    assert release_cause("memory", ("memory", "internal"), "internal") == "memory"
    assert release_cause("patient 7 is ill", ("memory", "internal"), "internal") == "internal"
    assert [release_duration(s) for s in (0.0, 59.9, 3601)] == [0.1, 60.0, 7200.0]
