"""Metrics of predictions: scikit-learn's values, and standard errors that are right."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from consilia.errors import DataError
from consilia.stats.pooling import interval, pool
from consilia.stats.scores import Estimate, Floats, c_index, calibration, estimates, gains
from consilia.wire.v1 import Measure


def binary(count: int, seed: int, shift: float = 1.0) -> tuple[Floats, Floats]:
    """Return probabilities that know something of the cases, with ties."""
    rng = np.random.default_rng(seed)
    cases = rng.random(count) < 0.4
    scores = 1 / (1 + np.exp(-rng.normal(shift * cases - 0.5, 1.0)))
    return np.round(scores, 2)[:, None], cases.astype(np.float64)[:, None]


@given(st.integers(8, 200), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_two_classes_are_as_scikit_learn_measures_them(count: int, seed: int) -> None:
    scores, targets = binary(count, seed)
    targets[:2, 0] = (0, 1)
    found = estimates("probability", scores, targets)
    truth, hard = targets[:, 0], scores[:, 0] > 0.5
    expected = {
        "auc": oracle.roc_auc_score(truth, scores[:, 0]),
        "accuracy": oracle.accuracy_score(truth, hard),
        "brier": oracle.brier_score_loss(truth, np.clip(scores[:, 0], 0, 1)),
    }
    expected["f1"] = oracle.f1_score(truth, hard)
    assert {n: e.value for n, e in found.items()} == pytest.approx(expected, abs=1e-12)
    for estimate in found.values():  # the parts of a stratum average to the value
        for part in estimate.parts:
            assert part.mean() == pytest.approx(estimate.value, abs=1e-9)


def test_of_several_classes_f1_is_the_macro_mean() -> None:
    rng = np.random.default_rng(3)
    chances = rng.dirichlet((1, 1, 1), 150)
    truth = rng.integers(0, 3, 150)
    found = estimates("classes", chances, truth[:, None].astype(np.float64))
    assert found["f1"].value == pytest.approx(
        oracle.f1_score(truth, chances.argmax(1), average="macro"), abs=1e-12
    )
    assert found["accuracy"].value == oracle.accuracy_score(truth, chances.argmax(1))


def test_numbers_and_masks() -> None:
    rng = np.random.default_rng(1)
    y, guess = rng.normal(size=(80, 1)), rng.normal(size=(80, 1))
    found = estimates("number", guess, y)
    assert found["mae"].value == pytest.approx(oracle.mean_absolute_error(y, guess))
    mask, truth = rng.random((30, 16)), (rng.random((30, 16)) > 0.5).astype(np.float64)
    truth[0] = mask[0] = 0.0  # both empty: nothing is wrong
    each = [1.0] + [
        oracle.f1_score(t, m > 0.5) for t, m in zip(truth[1:], mask[1:], strict=True)
    ]
    assert estimates("mask", mask, truth)["dice"].value == pytest.approx(np.mean(each))


def harrell(risk: Floats, time: Floats, event: Floats) -> float:
    """Count pairs one by one, as Harrell et al. (1982) define them."""
    good = pairs = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            earlier = time[i] < time[j] or (time[i] == time[j] and not event[j])
            if i != j and event[i] and earlier:
                pairs += 1
                good += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return good / pairs


def survival(seed: int, count: int = 120) -> tuple[Floats, Floats, Floats]:
    """Return risks, times and events with ties and censoring."""
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=count), 1)
    time = np.ceil(rng.exponential(np.exp(-risk)) * 10)
    return risk, time, (rng.random(count) < 0.7).astype(np.float64)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_c_index_counts_pairs(seed: int) -> None:
    risk, time, event = survival(seed)
    found = c_index(risk, time, event > 0.5)
    assert found is not None
    assert found.value == pytest.approx(harrell(risk, time, event), abs=1e-12)


def test_standard_errors_are_those_of_the_bootstrap() -> None:
    rng = np.random.default_rng(7)
    scores, targets = binary(250, 5)
    risk, time, event = survival(4, 150)
    drawn: dict[str, list[float]] = {}
    for _ in range(300):
        rows = rng.integers(0, 250, 250)
        for name, e in estimates("probability", scores[rows], targets[rows]).items():
            drawn.setdefault(name, []).append(e.value)
        rows = rng.integers(0, 150, 150)
        again = c_index(risk[rows], time[rows], event[rows] > 0.5)
        assert again is not None
        drawn.setdefault("c_index", []).append(again.value)
    found = dict(estimates("probability", scores, targets))
    found |= estimates("risk", risk[:, None], np.stack([time, event], axis=1))
    for name, values in drawn.items():
        assert found[name].error == pytest.approx(np.std(values), rel=0.2), name


def test_a_gain_counts_only_what_the_models_do_differently() -> None:
    scores, targets = binary(300, 8)
    one = estimates("probability", scores, targets)
    same = gains(one, one)
    assert all(g.value == 0 and g.error == 0 for g in same.values())
    worse = estimates("probability", np.clip(scores * 0.5, 0, 1), targets)
    found = gains(one, worse)
    assert found["brier"].value == pytest.approx(worse["brier"].value - one["brier"].value)
    assert found["auc"].value == pytest.approx(0)  # the same order
    assert found["auc"].error < one["auc"].error / 10
    other, _ = binary(300, 9)
    apart = gains(one, estimates("probability", other, targets))
    assert apart["auc"].value > 0.1 > apart["auc"].error > 0


def test_calibration_hides_no_bin_and_keeps_both_sides() -> None:
    scores, targets = binary(400, 11)
    cases = targets[:, 0] > 0.5
    bins = calibration(scores[:, 0], cases, 5)
    assert (bins[0][0], bins[-1][1]) == (0.0, 1.0)
    assert sum(b[4] for b in bins) == 400
    assert all(a[1] == b[0] for a, b in pairwise(bins))
    for _low, _high, _mean, share, count in bins:
        assert min(share, 1 - share) * count >= 5 - 1e-9
    assert calibration(scores[:20, 0], np.zeros(20, np.bool_), 5) == []


@pytest.mark.parametrize(
    ("predicts", "scores", "targets", "said"),
    [
        ("guess", [[0.5]], [[1]], "kind 'guess'"),
        ("probability", [[1.5]], [[1]], "outside 0 to 1"),
        ("probability", [[0.5]], [[2]], "neither 0 nor 1"),
        ("probability", [[0.5, 0.5]], [[1]], "needed (1, 1)"),
        ("classes", [[0.5, 0.5]], [[2]], "no index of 2 classes"),
        ("mask", [[0.5, 0.5]], [[1]], "2 predicted columns for 1"),
        ("number", [[np.nan]], [[1]], "missing or infinite"),
    ],
)
def test_what_does_not_fit_is_said(
    predicts: str, scores: list[list[float]], targets: list[list[float]], said: str
) -> None:
    with pytest.raises(DataError, match=said.replace("(", r"\(").replace(")", r"\)")):
        estimates(predicts, np.array(scores, float), np.array(targets, float))


def test_pooling_is_the_value_on_all_records() -> None:
    parts = [binary(n, n) for n in (40, 90, 200)]
    each = [estimates("probability", *p) for p in parts]
    both = estimates(
        "probability",
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
    )
    sizes = (40, 90, 200)
    for name in ("accuracy", "brier"):
        found = pool(
            Measure(e[name].value, e[name].error, n) for e, n in zip(each, sizes, strict=True)
        )
        assert found.value == pytest.approx(both[name].value, abs=1e-12)
        assert found.error == pytest.approx(both[name].error, rel=0.1)
    low, high = interval("auc", 0.98, 0.05)
    assert low == pytest.approx(0.882, abs=1e-3)
    assert high == 1.0
    assert interval("", -0.1, 0.1)[0] < -0.1


def test_one_record_has_no_error() -> None:
    assert Estimate(1.0, (np.ones(1),)).error == 0.0
