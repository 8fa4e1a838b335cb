"""The statistics of a privacy report against independent ones, and against known mechanisms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilia.errors import ConfigError
from consilia.privacy import evidence
from consilia.privacy.accountant import cost, epsilon
from consilia.privacy.evidence import Flags, Floats
from consilia.wire.v1 import Dp

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed (extra: sklearn)")
metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")


def drawn(seed: int, members: int, others: int, shift: float) -> tuple[Floats, Floats]:
    """Scores with ties, as losses of discrete data have."""
    rng = np.random.default_rng(seed)
    return (
        (rng.normal(size=members) + shift).round(1),
        rng.normal(size=others).round(1),
    )


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 60), st.floats(-2, 2))
@settings(max_examples=60, deadline=None)
def test_curves_are_those_of_scikit_learn(seed: int, m: int, o: int, shift: float) -> None:
    members, others = drawn(seed, m, o, shift)
    truth, scores = np.r_[np.ones(m), np.zeros(o)], np.r_[members, others]
    assert evidence.auc(members, others) == pytest.approx(metrics.roc_auc_score(truth, scores))
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    mine = evidence.roc(members, others)
    assert np.allclose(mine[0], fpr) and np.allclose(mine[1], tpr)
    for most in (0.0, 0.01, 0.1, 0.5, 1.0):
        assert evidence.tpr_at(members, others, most) == pytest.approx(tpr[fpr <= most].max())


@pytest.mark.parametrize("trials", [1, 7, 200, 5000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_rates_are_bounded_as_by_clopper_and_pearson(trials: int, confidence: float) -> None:
    for hits in {0, 1, trials // 3, trials - 1, trials}:
        low = stats.beta.ppf(1 - confidence, hits, trials - hits + 1) if hits else 0.0
        high = stats.beta.ppf(confidence, hits + 1, trials - hits) if hits < trials else 1.0
        assert evidence.at_least(hits, trials, confidence) == pytest.approx(low, abs=1e-9)
        assert evidence.at_most(hits, trials, confidence) == pytest.approx(high, abs=1e-9)


@given(st.integers(0, 400), st.integers(1, 400), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_tails_are_those_of_scipy(least: int, trials: int, chance: float) -> None:
    expected = stats.binom.sf(least - 1, trials, chance)
    assert evidence.binomial_tail(least, trials, chance) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("m", "r", "v"), [(10, 10, 10), (100, 60, 45), (1000, 100, 97)])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
def test_canaries_follow_the_theorem(m: int, r: int, v: int, delta: float) -> None:
    """Term by term, with scipy's binomial: theorem 5.2 as it stands in the paper."""
    for eps in (0.0, 0.5, 2.0, 6.0):
        q = math.exp(eps) / (1 + math.exp(eps))
        tail = stats.binom.sf(v - 1, r, q)
        worst = max(
            (stats.binom.cdf(v - 1, r, q) - stats.binom.cdf(v - 1 - i, r, q)) / i
            for i in range(1, m + 1)
        )
        expected = min(1.0, tail + 2 * m * delta * worst)
        found = evidence.canary_p_value(m, r, v, eps, delta)
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-12)
    low = evidence.canary_epsilon(m, r, v, delta, 0.95)
    if low:
        assert evidence.canary_p_value(m, r, v, low, delta) == pytest.approx(0.05, rel=1e-6)


def test_all_right_is_what_randomised_response_allows() -> None:
    """At delta 0 and all guesses right, (e^eps / (1 + e^eps))^r = 1 - confidence."""
    low = evidence.canary_epsilon(100, 100, 100, 0.0, 0.95)
    q = 0.05**0.01
    assert low == pytest.approx(math.log(q / (1 - q)), rel=1e-9)
    assert evidence.canary_epsilon(100, 100, 50, 0.0, 0.95) == 0.0
    with pytest.raises(ValueError, match="7 right of 5 guesses on 9 canaries"):
        evidence.canary_p_value(9, 5, 7, 1.0, 0.0)


# ---- what a bound promises -------------------------------------------------------------------


@pytest.mark.parametrize(("m", "o"), [(4, 4), (30, 30), (60, 500), (400, 400)])
def test_an_area_without_leak_is_seldom_called_one(m: int, o: int) -> None:
    """At 95 % it may be wrong 1 time in 20; 2000 draws, with 4 standard errors to spare."""
    rng = np.random.default_rng(m)
    wrong = [
        evidence.area(rng.normal(size=m), rng.normal(size=o), 0.95).low > 0.5
        for _ in range(2000)
    ]
    assert np.mean(wrong) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_an_area_finds_a_leak_where_it_says_it_would() -> None:
    rng = np.random.default_rng(0)
    least = evidence.least_area(200, 200, 0.95)
    shift = math.sqrt(2) * stats.norm.ppf(least)  # AUC of two normals
    found = [
        evidence.area(rng.normal(size=200) + shift, rng.normal(size=200), 0.95).low > 0.5
        for _ in range(400)
    ]
    assert 0.4 < np.mean(found) < 0.6  # from there on more often than not
    assert evidence.area(np.ones(3), np.zeros(3), 0.95).low < 0.5  # three prove nothing


@given(st.floats(0.01, 5))
@settings(max_examples=30, deadline=None)
def test_the_largest_area_under_dp_is_that_of_randomised_response(eps: float) -> None:
    """Randomised response is the worst mechanism at (eps, 0): its two points span its ROC."""
    fpr, tpr = 1 / (1 + math.exp(eps)), 1 / (1 + math.exp(-eps))
    area = metrics.auc([0, fpr, 1], [0, tpr, 1])
    assert evidence.most_area(eps, 0.0) == pytest.approx(area)


def test_thresholds_prove_no_more_than_there_is() -> None:
    """Laplace noise of scale 1 on 0 or 1: epsilon is 1, and thresholds come near it."""
    rng, over, found = np.random.default_rng(1), 0, []
    for _ in range(60):
        members, others = rng.laplace(1, 1, 2000), rng.laplace(0, 1, 2000)
        tail = evidence.threshold_audit(members, others, 0.0, 0.95, rng)
        over += tail.epsilon > 1.0
        found.append(tail.epsilon)
    assert over <= 8  # 3 of 60 expected at most
    assert np.median(found) > 0.6
    few = evidence.threshold_audit(np.ones(3), np.zeros(3), 0.0, 0.95, rng)
    assert few.epsilon == 0.0


def test_low_scores_betray_too() -> None:
    """Nobody below 0 is a member: seen from the other side of the threshold."""
    rng = np.random.default_rng(2)
    members = rng.uniform(0, 1, 400)
    others = np.where(rng.random(400) < 0.2, -1.0, rng.uniform(0, 1, 400))
    tail = evidence.threshold_audit(members, others, 0.0, 0.95, rng)
    assert tail.side == "others" and tail.epsilon > 1.0


# ---- canaries on mechanisms of known epsilon -------------------------------------------------


def gaussian_sum(noise: float, canaries: int, seed: int) -> tuple[Floats, Flags]:
    """Sum orthogonal unit vectors, one a canary, with Gaussian noise; score by coordinate."""
    rng = np.random.default_rng(seed)
    coins = rng.random(canaries) < 0.5
    return coins + noise * rng.normal(size=canaries), coins


@pytest.mark.parametrize("noise", [0.3, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(5))
def test_canaries_of_a_gaussian_sum_stay_below_its_epsilon(noise: float, seed: int) -> None:
    true = epsilon(cost(Dp("record", noise, 1.0)), 1e-5)
    found = evidence.canary_audit(*gaussian_sum(noise, 2000, seed), 1e-5, 0.95)
    assert found.epsilon < true
    if noise <= 0.5:  # weak noise: they have to find something, and much of it
        assert found.epsilon > 1.0
    if noise == 5.0:
        assert found.epsilon < 0.4
    assert found.epsilon <= found.most and found.correct <= found.guesses <= found.planted


def test_a_broken_promise_shows() -> None:
    """Noise of 0.3 where 2 was promised."""
    promised = epsilon(cost(Dp("record", 2.0, 1.0)), 1e-5)
    found = evidence.canary_audit(*gaussian_sum(0.3, 2000, 0), 1e-5, 0.95)
    assert found.epsilon > promised


def test_canaries_without_memory_prove_nothing_but_by_chance() -> None:
    proved = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        coins = rng.random(200) < 0.5
        proved += evidence.canary_audit(rng.normal(size=200), coins, 0.0, 0.95).epsilon > 0
    assert proved <= 20  # 10 of 200 expected at most


# ---- scores ----------------------------------------------------------------------------------


def test_losses_become_confidence() -> None:
    p = np.array([0.999, 0.5, 0.01])
    assert np.allclose(evidence.confidence_of(-np.log(p)), np.log(p / (1 - p)))
    edge = evidence.confidence_of(np.array([0.0, 1e-300, 800.0]))
    assert np.isfinite(edge).all() and edge[0] == edge[1] > 0 > edge[2]
    assert evidence.confidence_of(np.array([-1.0, 2.0])).tolist() == [1.0, -2.0]


def test_calibration_takes_only_models_that_never_saw_the_record() -> None:
    target = np.array([5.0, 5.0])
    references = np.array([[1.0, 99.0], [99.0, 2.0], [3.0, 4.0]])
    inside = np.array([[False, True], [True, False], [False, False]])
    found = evidence.calibrated(target, references, inside)
    assert found.tolist() == [5.0 - 2.0, 5.0 - 3.0]
    with pytest.raises(ValueError, match="needed one without it"):
        evidence.calibrated(target, references, np.ones_like(inside))
    with pytest.raises(ValueError, match="models x records twice"):
        evidence.calibrated(target, references, inside[:2])


def test_what_is_no_score_is_refused() -> None:
    good = np.ones(3)
    for bad in (np.array([]), np.array([1.0, math.nan]), np.ones((2, 2))):
        with pytest.raises(ConfigError, match="scores of members"):
            evidence.auc(bad, good)
        with pytest.raises(ConfigError, match="scores of others"):
            evidence.area(good, bad, 0.95)
    with pytest.raises(ConfigError, match="finite scores with a coin each"):
        evidence.canary_audit(np.ones(4), np.ones(3, bool), 0.0, 0.95)


def test_correlation_is_pearsons() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(size=50)
    assert evidence.correlation(a, a + b) == pytest.approx(np.corrcoef(a, a + b)[0, 1])
    assert evidence.correlation(a, np.ones(50)) == 0.0
