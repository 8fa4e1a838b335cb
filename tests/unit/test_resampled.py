"""Intervals over folds: held to scipy's t, and to what repeated cross-validations really do."""

import numpy as np
import pytest
from scipy.stats import t

from consilia.errors import ConfigError
from consilia.stats.pooling import Z
from consilia.stats.resampled import over_folds, student


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 49, 100])
@pytest.mark.parametrize("inside", [0.5, 0.95, 0.99])
def test_students_t_is_scipys(freedom: int, inside: float) -> None:
    wanted = float(t.ppf((1 + inside) / 2, freedom))
    assert student(freedom, inside) == pytest.approx(wanted, rel=1e-7)


def test_the_corrected_variance_is_the_one_of_the_paper() -> None:
    """Section 4.3's interval, written down with numpy and scipy."""
    values = [0.71, 0.84, 0.79, 0.90, 0.66]
    found = over_folds(values, [0.01] * 5, 5)
    variance = (1 / 5 + (1 / 5) / (4 / 5)) * np.var(values, ddof=1)
    assert found.value == pytest.approx(np.mean(values))
    assert found.error == pytest.approx(np.sqrt(variance))
    assert found.reach == pytest.approx(t.ppf(0.975, 4))


def test_folds_that_agree_by_chance_are_not_believed_beyond_their_errors() -> None:
    found = over_folds([0.8, 0.8, 0.8], [0.03, 0.03, 0.03], 3)
    assert found.error == pytest.approx(0.03 / np.sqrt(3)) and found.reach == Z
    alone = over_folds([0.8], [0.03], 3)
    assert (alone.error, alone.reach) == (0.03, Z)


def test_the_interval_holds_what_it_promises_where_independence_would_not() -> None:
    """Cross-validations of a nearest-neighbour rule: is its error on fresh records inside?"""
    random = np.random.default_rng(7)
    records, folds, times = 60, 5, 400

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = random.integers(0, 2, count)
        return random.normal(y[:, None] * 0.8, 1.0, (count, 2)), y

    def wrong(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
        nearest: np.ndarray = y[((at[:, None] - x[None]) ** 2).sum(2).argmin(1)]
        return nearest

    truth = np.mean(
        [np.mean(wrong(*drawn(48), at) != y) for _ in range(300) for at, y in [drawn(200)]]
    )
    inside = {"corrected": 0, "independent": 0}
    for _ in range(times):
        x, y = drawn(records)
        fold = np.arange(records) % folds
        values = [
            float(np.mean(wrong(x[fold != k], y[fold != k], x[fold == k]) != y[fold == k]))
            for k in range(folds)
        ]
        found = over_folds(values, [0.0] * folds, folds)
        inside["corrected"] += abs(found.value - truth) <= found.reach * found.error
        naive = np.std(values, ddof=1) / np.sqrt(folds)
        inside["independent"] += abs(found.value - truth) <= Z * naive
    assert inside["corrected"] >= 0.93 * times
    assert inside["independent"] < 0.90 * times


@pytest.mark.parametrize(("values", "folds"), [([], 3), ([0.1, 0.2], 1), ([0.1] * 4, 3)])
def test_what_makes_no_sense_is_refused(values: list[float], folds: int) -> None:
    with pytest.raises(ConfigError, match="folds: found"):
        over_folds(values, [0.0] * len(values), folds)
