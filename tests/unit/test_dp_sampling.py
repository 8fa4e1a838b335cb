"""Poisson sampling: the rate, the independence, and nothing else."""

import hashlib
import math

import numpy as np
import pytest

from consilia.errors import ConfigError
from consilia.privacy.noise import Stream
from consilia.privacy.sampling import poisson, subset


def stream(seed: int = 0) -> Stream:
    return Stream(lambda size: hashlib.shake_256(seed.to_bytes(8, "little")).digest(size))


@pytest.mark.parametrize("rate", [1e-3, 0.05, 0.5, 0.97])
def test_sizes_are_binomial(rate: float) -> None:
    units, steps = 2_000, 4_000
    source = stream(1)
    sizes = np.array([len(poisson(source, units, rate)) for _ in range(steps)])
    mean, variance = units * rate, units * rate * (1 - rate)
    assert abs(sizes.mean() - mean) < 4 * math.sqrt(variance / steps)
    # the variance of a shuffled pass would be 0
    assert abs(sizes.var() / variance - 1) < 4.5 * math.sqrt(2 / steps) + 1 / mean / steps


def test_every_unit_is_as_likely_and_none_knows_of_another() -> None:
    units, steps, rate = 60, 20_000, 0.3
    source = stream(2)
    drawn = np.zeros((steps, units))
    for line in drawn:
        line[poisson(source, units, rate)] = 1
    error = math.sqrt(rate * (1 - rate) / steps)
    assert np.abs(drawn.mean(0) - rate).max() < 4.5 * error
    apart = np.asarray(np.corrcoef(drawn.T))[~np.eye(units, dtype=bool)]
    assert np.abs(apart).max() < 5 / math.sqrt(steps)
    assert apart.std() == pytest.approx(1 / math.sqrt(steps), rel=0.1)
    # nor does a step know of the one before
    later = np.array([np.corrcoef(c[:-1], c[1:])[0, 1] for c in drawn.T])
    assert np.abs(later).max() < 4.5 / math.sqrt(steps)


@pytest.mark.parametrize("units", [0, 1, 131_071, 131_072, 131_073, 400_000])
def test_indices(units: int) -> None:
    drawn = poisson(stream(3), units, 0.5)
    assert drawn.dtype == np.int64
    assert np.array_equal(drawn, np.unique(drawn))
    assert ((drawn >= 0) & (drawn < units)).all()
    assert abs(len(drawn) - units / 2) <= 4.5 * math.sqrt(units) / 2
    assert np.array_equal(poisson(stream(3), units, 1.0), np.arange(units))
    assert len(poisson(stream(3), units, 2.0**-64)) == 0


def test_the_rate_is_exact_to_the_last_bit() -> None:
    """The coin falls exactly when a 64-bit word is below rate * 2^64."""
    word = int(stream(4).words(np.uint64, 1)[0])
    under = np.nextafter(word / 2**64, 0.0)
    over = np.nextafter(word / 2**64, 1.0)
    assert len(poisson(stream(4), 1, float(under))) == 0
    assert len(poisson(stream(4), 1, float(over))) == 1


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_what_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="sampling="):
        poisson(stream(), 5, rate)


def test_subsets() -> None:
    rows = np.arange(100, 106)
    assert np.array_equal(subset(stream(), rows, 6), rows)
    source, seen = stream(5), np.zeros(6)
    for _ in range(6_000):
        found = subset(source, rows, 2)
        assert len(found) == 2
        assert found[0] < found[1]
        seen[found - 100] += 1
    assert np.abs(seen - 2_000).max() < 4.5 * math.sqrt(6_000 * 1 / 3 * 2 / 3)
