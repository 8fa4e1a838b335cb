"""Noise: the right distribution, no trace of floats, and the sensitivity that is stated."""

import hashlib
import math
import time
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given, settings
from hypothesis import strategies as st

from consilia.errors import ConfigError
from consilia.privacy.noise import (
    GRID_STD,
    Grid,
    Stream,
    client_noise,
    discrete_gaussian,
    few_sites,
    honest_survivors,
    local_grid,
)
from consilia.wire.v1 import Dp

CLIENT = Dp("client", 1.0, 2.0)


def keyed(seed: int) -> Callable[[int], bytes]:
    """Return a stand-in for os.urandom that always gives the same key."""
    return lambda size: hashlib.shake_256(seed.to_bytes(8, "little")).digest(size)


def stream(seed: int = 0) -> Stream:
    return Stream(keyed(seed))


# ---- the stream ----------------------------------------------------------------------------


def test_the_stream_is_aes_256_in_counter_mode() -> None:
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return bytes(range(size))

    ours = Stream(random)
    theirs = Cipher(AES256(bytes(range(32))), CTR(bytes(16))).encryptor()
    for kind, size in ((np.uint64, 5), (np.uint16, 3), (np.uint64, 0), (np.uint8, 70_001)):
        words = ours.words(kind, size)
        assert words.tobytes() == theirs.update(bytes(words.nbytes))
        assert words.dtype == kind
    assert asked == [32]


# ---- the sampler ---------------------------------------------------------------------------


def exact(std: float, last: int) -> list[Decimal]:
    """The probabilities of -last ... last, to 50 digits."""
    with localcontext(prec=50):
        weights = [
            (-Decimal(x * x) / (2 * Decimal(std) * Decimal(std))).exp()
            for x in range(-last, last + 1)
        ]
        total = sum(weights)
        return [w / total for w in weights]


@pytest.mark.parametrize("std", [0.05, 0.3, 1.0, 7.7, 100.0, 1032.5])
def test_the_table_is_exact(std: float) -> None:
    sampler = discrete_gaussian(std)
    columns = len(sampler.accept)
    found: dict[int, int] = {}
    for i, (stay, other) in enumerate(zip(sampler.accept, sampler.other, strict=True)):
        value = i + sampler.low
        # a full column is written as 2^64 - 1 with itself as the other value
        found[value] = found.get(value, 0) + int(stay)
        found[int(other)] = found.get(int(other), 0) + (1 << 64) - int(stay)
    last = -sampler.low
    assert last >= 12 * std
    assert sum(found.values()) == columns << 64
    assert all(abs(v) <= last for v, mass in found.items() if mass)
    with localcontext(prec=50):
        wrong = sum(
            abs(Decimal(found[x]) / Decimal(columns << 64) - p)
            for x, p in zip(range(-last, last + 1), exact(std, last), strict=True)
        )
    assert wrong / 2 < Decimal(2) ** -63


@pytest.mark.parametrize("std", [2049.0, 1e5, GRID_STD, 1e9, 1e12])
def test_wide_gaussians_are_sums_of_smooth_ones(std: float) -> None:
    sampler = discrete_gaussian(std)
    assert sampler.narrow >= 4 * math.sqrt(1 + sampler.k**2)
    assert sampler.narrow <= 2048
    assert 1 < sampler.levels <= 5
    spread = sum(sampler.k ** (2 * j) for j in range(sampler.levels))
    assert sampler.narrow * math.sqrt(spread) == pytest.approx(std, rel=1e-12)


def test_the_sum_of_two_is_the_discrete_gaussian() -> None:
    k, narrow = 2, 9.0  # 9 >= 4 sqrt(5)
    last = 150
    one = np.array([float(p) for p in exact(narrow, last)])
    apart = np.zeros(2 * k * last + 1)
    apart[::k] = one
    both = np.convolve(one, apart)
    middle = len(both) // 2
    wide = np.array([float(p) for p in exact(narrow * math.sqrt(1 + k * k), 300)])[200:-200]
    assert np.allclose(both[middle - 100 : middle + 101], wide, rtol=1e-12, atol=0)
    # and with a step too wide for it, it is not: the condition is there for a reason
    apart = np.zeros(2 * 20 * last + 1)
    apart[::20] = one
    rough = np.convolve(one, apart)
    middle = len(rough) // 2
    wide = np.array([float(p) for p in exact(narrow * math.sqrt(401), 2500)])[2400:-2400]
    assert not np.allclose(rough[middle - 100 : middle + 101], wide, rtol=1e-2)


@pytest.mark.parametrize("std", [3.0, 1000.0, 1e5, GRID_STD])
def test_moments_and_shape(std: float) -> None:
    count = 400_000
    x = discrete_gaussian(std).draw(stream(1), count) / std
    assert abs(x.mean()) < 4 / math.sqrt(count)
    assert abs((x**2).mean() - 1) < 4 * math.sqrt(2 / count)
    assert abs((x**3).mean()) < 4 * math.sqrt(15 / count)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / count)
    # Kolmogorov-Smirnov against the normal, at the middle of each step
    values, counts = np.unique(np.rint(x * std), return_counts=True)
    below = np.cumsum(counts) / count
    normal = np.array([math.erfc(-(v + 0.5) / std / math.sqrt(2)) / 2 for v in values])
    assert np.abs(below - normal).max() < 1.95 / math.sqrt(count)  # p = 0.001


def test_tails() -> None:
    x = np.abs(discrete_gaussian(GRID_STD).draw(stream(2), 4_000_000) / GRID_STD)
    for width in (3.0, 4.0, 4.5):
        expected = len(x) * math.erfc(width / math.sqrt(2))
        assert abs((x > width).sum() - expected) < 4.5 * math.sqrt(expected)


def test_neighbours_in_the_stream_are_independent() -> None:
    x = discrete_gaussian(GRID_STD).draw(stream(3), 1_000_000) / GRID_STD
    for lag in (1, 2, 7, 1 << 15):
        assert abs(np.mean(x[:-lag] * x[lag:])) < 4.5 / math.sqrt(len(x))
    again = discrete_gaussian(GRID_STD).draw(stream(4), 1_000_000) / GRID_STD
    assert abs(np.mean(x * again)) < 4.5 / math.sqrt(len(x))


def test_a_million_values_in_well_under_a_second() -> None:
    sampler, source = discrete_gaussian(GRID_STD), stream()
    best = math.inf
    for _ in range(3):
        start = time.process_time()
        sampler.draw(source, 1_000_000)
        best = min(best, time.process_time() - start)
    assert best < 0.5


@pytest.mark.parametrize("std", [0.0, 0.049, 1.1e12, math.nan, math.inf, -1.0])
def test_widths_that_cannot_be_drawn_are_refused(std: float) -> None:
    with pytest.raises(ConfigError, match="steps"):
        discrete_gaussian(std)


# ---- no trace of floats --------------------------------------------------------------------


def test_low_bits_carry_nothing() -> None:
    """Whatever the secret, the whole number behind the output has uniform low bits."""
    grid = local_grid(CLIENT, 1)
    count = 1 << 18
    tables = []
    for seed, secret in enumerate((0.0, 1 / 3, 2 / 3, 1.75)):
        whole = grid.noised(np.full(count, secret), 1.0, stream(10 + seed))
        cells = np.bincount(whole & 0xFF, minlength=256)
        chi = float(((cells - count / 256) ** 2 / (count / 256)).sum())
        assert chi < 255 + 4.5 * math.sqrt(2 * 255)
        tables.append(cells)
    for other in tables[1:]:  # nor do they differ from one another
        expected = (tables[0] + other) / 2
        chi = float((((tables[0] - expected) ** 2 + (other - expected) ** 2) / expected).sum())
        assert chi < 255 + 4.5 * math.sqrt(2 * 255)


def test_the_attack_works_on_floats_and_not_on_the_grid() -> None:
    """Mironov 2012: a sum of floats is a multiple of its larger term's smallest unit."""
    secrets, width, near = (0.0, 4096.0), 4096.0, 256.0  # such outputs come from both

    def told(outputs: np.ndarray, unit: float) -> float:
        """The share of outputs, of those that both secrets explain, that are multiples."""
        seen = outputs[np.abs(outputs) < near]
        return float((np.rint(seen / unit) * unit == seen).mean())

    rng = np.random.default_rng(0)
    naive = [rng.normal(scale=width, size=200_000) + s for s in secrets]
    assert told(naive[0], 2.0**-41) < 0.1
    assert told(naive[1], 2.0**-41) == 1.0  # one look tells who took part
    grid = local_grid(Dp("client", 1.0, width), 1)
    for seed, secret in enumerate(secrets):
        whole = grid.noised(np.full(200_000, secret), 1.0, stream(seed))
        assert told(whole * grid.step, grid.step) == 1.0
        out = client_noise(np.full(200_000, secret), 1.0, grid, stream(seed))
        assert np.array_equal((whole * grid.step).astype(np.float32), out)


# ---- sensitivity ---------------------------------------------------------------------------


def whole_norm(units: np.ndarray, step: float) -> Fraction:
    """The squared L2 norm, in exact arithmetic."""
    return sum(int(u) ** 2 for u in units.tolist()) * Fraction(step) ** 2


@given(
    size=st.integers(1, 300),
    scale=st.floats(-30, 30),
    noise=st.floats(0.01, 100),
    clip=st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_the_stated_sensitivity_bounds_the_real_one(
    size: int, scale: float, noise: float, clip: float, seed: int
) -> None:
    values = np.random.default_rng(seed).standard_cauchy(size) * clip * 10.0**scale
    grid = local_grid(Dp("client", noise, clip), size)
    factor = grid.factor(float(np.linalg.norm(values)))
    assert whole_norm(grid.units(values, factor), grid.step) <= Fraction(clip) ** 2


@pytest.mark.parametrize("size", [1, 10, 100_000])
def test_the_worst_case_of_rounding_is_within_the_clip(size: int) -> None:
    grid = local_grid(CLIENT, size)
    # every coordinate half a step up, at the largest norm that is not clipped
    start = np.floor(grid.bound / math.sqrt(size) / grid.step)
    values = np.full(size, (start - 0.49) * grid.step)
    assert grid.factor(float(np.linalg.norm(values))) == 1.0
    assert whole_norm(grid.units(values, 1.0), grid.step) <= Fraction(grid.clip) ** 2


def test_small_contributions_are_not_changed_by_clipping() -> None:
    grid = local_grid(CLIENT, 100)
    assert grid.bound == pytest.approx(2.0, rel=1e-5)
    assert grid.factor(grid.bound) == 1.0
    assert grid.factor(2 * grid.bound) == 0.5
    assert grid.factor(0.0) == 1.0
    for norm in (math.nan, math.inf, -1.0):
        with pytest.raises(ConfigError, match="norm"):
            grid.factor(norm)


# ---- a site's own noise ---------------------------------------------------------------------


def test_client_noise_in_chunks() -> None:
    size = 300_000
    change = np.random.default_rng(0).normal(size=size).astype(np.float32)
    grid = local_grid(CLIENT, size)
    factor = grid.factor(float(np.linalg.norm(change)))
    source = stream(5)
    parts = [client_noise(c, factor, grid, source) for c in np.array_split(change, 7)]
    out = np.concatenate(parts)
    assert out.dtype == np.float32
    noise = out - change * factor
    assert noise.std() == pytest.approx(2.0, rel=0.01)  # noise_multiplier times clip
    assert abs(noise.mean()) < 4 * 2.0 / math.sqrt(size)
    # no two chunks got the same noise
    assert abs(np.corrcoef(noise[:40_000], noise[50_000:90_000])[0, 1]) < 0.03
    assert not np.array_equal(out, client_noise(change, factor, grid, source))


def test_shapes_are_kept() -> None:
    change = np.zeros((2, 3, 4), np.float32)
    assert client_noise(change, 1.0, local_grid(CLIENT, 24), stream()).shape == (2, 3, 4)


def test_who_counts_as_honest() -> None:
    assert honest_survivors(7) == 6
    assert honest_survivors(7, colluding=3) == 4


def test_few_sites_are_warned() -> None:
    assert "29 sites" in few_sites(CLIENT, 29)
    assert few_sites(CLIENT, 30) == ""
    assert few_sites(Dp("patient", 1.0, 1.0), 3) == ""


def test_the_grid_does_not_depend_on_anything_secret() -> None:
    one, other = local_grid(CLIENT, 10), local_grid(CLIENT, 10)
    assert one == other == Grid(2.0, one.bound, 2.0 / GRID_STD, GRID_STD)
