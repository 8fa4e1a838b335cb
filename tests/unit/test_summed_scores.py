"""Vectors of several sites, added up: against scikit-learn on all their records together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, roc_auc_score

from consilia.errors import DataError
from consilia.privacy.ring import decode64
from consilia.stats import summedscores
from consilia.stats.scores import Floats, estimates, gains
from consilia.wire.v1 import Predicts

K = 5
Site = tuple[Floats, Floats]


def site(seed: int, count: int, shift: float = 0.4) -> Site:
    """A site's predictions and targets; the sites differ in how often there is a case."""
    rng = np.random.default_rng(seed)
    cases = (rng.random((count, 1)) < 0.2 + 0.1 * (seed % 4)).astype(np.float64)
    cases[: 2 * K] = np.repeat([[0.0], [1.0]], K, axis=0)
    scores = np.clip(rng.normal(0.3 + shift * cases, 0.2), 0.001, 0.999)
    return scores, cases


def vector(one: Site, predicts: Predicts = "probability", k: int = K) -> NDArray[np.uint64]:
    scores, targets = one
    found = estimates(predicts, scores, targets)
    other = estimates(predicts, scores[::-1].copy(), targets)
    return summedscores.vector(
        predicts,
        scores,
        targets,
        bins=summedscores.BINS,
        k=k,
        measures=found,
        gain=gains(found, other),
        local=other,
    )


def summed(vectors: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    total = np.zeros(vectors[0].size, np.uint64)
    for one in vectors:
        np.add(total, one, out=total)
    return total


@settings(max_examples=40)
@given(
    st.lists(st.integers(40, 400), min_size=3, max_size=5),
    st.integers(0, 1000),
    st.floats(0, 0.5),
    st.integers(1, 12),
)
def test_the_sum_is_all_records_and_the_auc_is_within_its_bound(
    sizes: list[int], seed: int, shift: float, k: int
) -> None:
    sites = [site(seed + i, size, shift) for i, size in enumerate(sizes)]
    sites = [(s, t) for s, t in sites if min(t.sum(), (1 - t).sum()) >= k]
    if len(sites) < 3:
        return
    found = summedscores.read(
        summed([vector(one, k=k) for one in sites]), summedscores.BINS, len(sites)
    )
    scores, truth = (np.concatenate(parts)[:, 0] for parts in zip(*sites, strict=True))
    assert found.records == len(truth) and found.sites == len(sites)
    exact = {
        "accuracy": accuracy_score(truth, scores > 0.5),
        "brier": brier_score_loss(truth, scores),
        "f1": f1_score(truth, scores > 0.5),
    }
    for name, value in exact.items():
        assert found.metrics[name].pooled.value == pytest.approx(value, abs=1e-5), name
        assert found.metrics[name].method == "all records" and not found.metrics[name].bound
    auc = found.metrics["auc"]
    assert abs(auc.pooled.value - roc_auc_score(truth, scores)) <= auc.bound + 1e-12
    assert auc.method == "all records, in bins" and auc.bound < 0.25


def test_with_many_records_the_bound_is_small_and_the_error_is_delong() -> None:
    sites = [site(i, 3000, 0.3) for i in range(3)]
    auc = summedscores.read(
        summed([vector(one) for one in sites]), summedscores.BINS, 3
    ).metrics["auc"]
    scores, truth = (np.concatenate(parts) for parts in zip(*sites, strict=True))
    exact = estimates("probability", scores, truth)["auc"]
    assert auc.bound < 0.01 and abs(auc.pooled.value - exact.value) < 1e-3
    assert auc.pooled.error == pytest.approx(exact.error, rel=0.02)


def test_calibration_and_f1_have_what_the_records_have() -> None:
    sites = [site(i, 500) for i in range(3)]
    found = summedscores.read(summed([vector(one) for one in sites]), summedscores.BINS, 3)
    scores, truth = (np.concatenate(parts)[:, 0] for parts in zip(*sites, strict=True))
    counts = np.array([b.records for b in found.calibration])
    assert counts.sum() == len(truth)
    predicted = np.array([b.predicted for b in found.calibration])
    observed = np.array([b.observed for b in found.calibration])
    assert counts @ predicted == pytest.approx(scores.sum(), abs=1e-3)
    assert counts @ observed == pytest.approx(truth.sum(), abs=1e-3)
    exact = estimates("probability", scores[:, None], truth[:, None])["f1"]
    assert found.metrics["f1"].pooled.error == pytest.approx(exact.error, rel=1e-3)
    assert set(found.gain) == set(found.local) == {"auc", "accuracy", "f1", "brier"}


def test_no_cell_of_a_site_tells_of_fewer_than_k() -> None:
    values = decode64(vector(site(3, 97)))
    start = len(summedscores.KINDS) + 4 + 9 * len(summedscores.NAMES)
    cells = values[start : start + 4 * summedscores.BINS]
    assert cells[cells > 0].min() >= K
    curve = values[start + 4 * summedscores.BINS :].reshape(3, summedscores.CURVE)
    records, cases = curve[0][curve[0] > 0], curve[1][curve[0] > 0]
    assert (cases >= K).all() and (records - cases >= K).all()


def test_margins_keep_their_order_and_their_threshold() -> None:
    rng = np.random.default_rng(0)
    sites = []
    for _ in range(3):
        cases = (rng.random((300, 1)) < 0.4).astype(np.float64)
        sites.append((rng.normal(3 * cases - 1.5, 40.0 * rng.random((300, 1))), cases))
    sites[0][0][:4, 0] = (0.0, 1e-300, -1e-300, 800.0)  # on the threshold, and beside it
    found = summedscores.read(
        summed([vector(one, "margin") for one in sites]), summedscores.BINS, 3
    )
    scores, truth = (np.concatenate(parts)[:, 0] for parts in zip(*sites, strict=True))
    assert found.metrics["accuracy"].pooled.value == pytest.approx(
        accuracy_score(truth, scores > 0), abs=1e-6
    )
    assert found.metrics["f1"].pooled.value == pytest.approx(f1_score(truth, scores > 0))
    auc = found.metrics["auc"]
    assert abs(auc.pooled.value - roc_auc_score(truth, scores)) <= auc.bound


def test_other_kinds_are_means_and_kinds_do_not_mix() -> None:
    rng = np.random.default_rng(1)
    sites = [(rng.normal(size=(n, 1)), rng.normal(size=(n, 1))) for n in (50, 70, 90)]
    found = summedscores.read(
        summed([vector(one, "number") for one in sites]), summedscores.BINS, 3
    )
    scores, truth = (np.concatenate(parts) for parts in zip(*sites, strict=True))
    exact = float(np.abs(scores - truth).mean())
    assert found.metrics["mae"].pooled.value == pytest.approx(exact, abs=1e-6)
    mixed = [vector(sites[0], "number"), vector(site(1, 50)), vector(site(2, 50))]
    with pytest.raises(DataError, match="number 1"):
        summedscores.read(summed(mixed), summedscores.BINS, 3)
    with pytest.raises(DataError, match="number 3"):  # three vectors are no sum of four
        summedscores.read(
            summed([vector(one, "number") for one in sites]), summedscores.BINS, 4
        )


def test_with_noise_one_record_moves_one_number_by_one() -> None:
    """What the noise is sized for: the sensitivity of the vector."""
    scores, targets = site(5, 60)
    still = np.zeros(2 * summedscores.NOISED_BINS, np.int64)
    place = len(summedscores.KINDS)
    whole, less = (
        decode64(
            summedscores.noised_vector("probability", s, t, still, summedscores.NOISED_BINS)[
                place:
            ],
            0,
        )
        for s, t in ((scores, targets), (scores[1:], targets[1:]))
    )
    assert np.abs(whole - less).sum() == np.linalg.norm(whole - less) == summedscores.UNIT


def test_with_noise_the_intervals_hold_what_is_true() -> None:
    rng, sites = np.random.default_rng(2), [site(i, 1500) for i in range(4)]
    scores, truth = (np.concatenate(parts)[:, 0] for parts in zip(*sites, strict=True))
    exact = {
        "auc": roc_auc_score(truth, scores),
        "accuracy": accuracy_score(truth, scores > 0.5),
        "brier": brier_score_loss(truth, scores),
        "f1": f1_score(truth, scores > 0.5),
    }
    far = dict.fromkeys(exact, 0.0)
    for _ in range(40):
        noise = rng.normal(0, 10 * summedscores.UNIT, (4, 2 * summedscores.NOISED_BINS)).astype(
            np.int64
        )
        vectors = [
            summedscores.noised_vector("probability", s, t, n, summedscores.NOISED_BINS)
            for (s, t), n in zip(sites, noise, strict=True)
        ]
        found = summedscores.read_noised(summed(vectors), summedscores.NOISED_BINS, 4, 20.0)
        for name, value in exact.items():
            one = found.metrics[name]
            far[name] += ((one.pooled.value - value) / (one.pooled.error + one.bound)) ** 2 / 40
    assert all(0.01 < spread < 2 for spread in far.values()), far


def test_noise_that_hides_everything_is_said_so() -> None:
    noise = np.zeros(2 * summedscores.NOISED_BINS, np.int64)
    small = summedscores.noised_vector(
        "probability", *site(1, 30), noise, summedscores.NOISED_BINS
    )
    with pytest.raises(DataError, match="ask for less"):
        summedscores.read_noised(small, summedscores.NOISED_BINS, 1, 500.0)
    with pytest.raises(DataError, match="differential privacy"):
        summedscores.noised_vector("number", *site(1, 30), noise, summedscores.NOISED_BINS)
