"""Numbers in the ring: exact at the limits, refused beyond them, rounded as promised."""

import itertools
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.errors import ConfigError, UpdateRejected
from consilia.privacy import ring
from consilia.privacy.streams import Ring
from consilia.wire.masks import MAX_SITES
from maskkit import Dice

RINGS = (8, 16, 32, 64)
MOST = {8: ring.COARSE_SITES}  # else MAX_SITES
Kind = Literal["float32", "float64"]


def floats(values: list[float], kind: Kind) -> ring.Floats:
    return np.array(values, np.float32) if kind == "float32" else np.array(values, np.float64)


def out(size: int, bits: int) -> Ring:
    found: Ring = np.empty(size, f"u{bits // 8}")
    return found


@pytest.mark.parametrize("bits", [32, 64])
@given(data=st.data())
def test_a_weighted_sum_is_as_near_as_rounding_allows(bits: int, data: st.DataObject) -> None:
    count, reach = data.draw(st.integers(1, 8)), data.draw(st.floats(0.01, 100))
    number = st.floats(-reach, reach, width=64)
    values = [
        np.array(data.draw(st.lists(number, min_size=3, max_size=3))) for _ in range(count)
    ]
    records = np.array(
        data.draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count))
    )
    weights = records / records.sum()
    scale, total = ring.scale_of(bits, reach), np.zeros_like(out(3, bits))
    for value, weight in zip(values, weights, strict=True):
        part = out(3, bits)
        ring.quantise(value, scale, float(weight), part)
        total += part
    exact = sum(w * v for w, v in zip(weights, values, strict=True))
    error = np.abs(ring.dequantise(total, scale) - exact).max()
    assert error <= count * 0.5 / scale + count * reach * 2.0**-51


@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize("reach", [0.08, 8.0, 0.1, 1e-3])
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_head_room_is_needed(bits: int, reach: float, sign: int) -> None:
    """1000 sites, every change at the very range, all rounded outwards: the sum still fits."""
    scale = ring.scale_of(bits, reach)
    part, total = out(1, bits), np.zeros_like(out(1, bits))
    edge = np.array([sign * reach], np.float32)
    up = b"\xff" if sign > 0 else b"\0"
    sites = MOST.get(bits, MAX_SITES)
    for _ in range(sites):
        ring.quantise(edge, scale, 1 / sites, part, lambda n: n * up)
        total += part
    found = float(ring.dequantise(total, scale)[0])
    assert found == pytest.approx(sign * reach, abs=(sites + 1) / scale, rel=1e-6)


@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_the_range_itself_fits_and_a_little_more_does_not(bits: int, kind: Kind) -> None:
    scale, part = ring.scale_of(bits, 8.0), out(2, bits)
    for edge in (8.0, -8.0):
        ring.quantise(floats([0, edge], kind), scale, 1.0, part)
        assert ring.dequantise(part, scale) == pytest.approx([0, edge], abs=1 / scale)
        for beyond in (edge * (1 + 1e-6), np.inf * edge):
            with pytest.raises(UpdateRejected, match=r"masking carries -8 to 8: clip"):
                ring.quantise(floats([0, beyond], kind), scale, 0.001, part)


def test_what_was_found_is_said() -> None:
    with pytest.raises(UpdateRejected, match=r"changes a weight by -9\.5"):
        ring.quantise(np.array([1, -9.5]), ring.scale_of(32, 8.0), 1.0, out(2, 32))
    with pytest.raises(UpdateRejected, match="by nan"):
        ring.quantise(np.array([1, np.nan]), ring.scale_of(32, 8.0), 1.0, out(2, 32))


@pytest.mark.parametrize("size", [0, 1, ring.PIECE - 1, ring.PIECE, ring.PIECE + 1])
def test_pieces_join_without_a_seam(size: int) -> None:
    values = np.linspace(-8, 8, size, dtype=np.float32)
    scale, found = ring.scale_of(32, 8.0), out(size, 32)
    ring.quantise(values, scale, 0.5, found)
    expected = [round(float(v) * (0.5 * scale)) % 2**32 for v in values]
    assert found.tolist() == expected


def test_a_bad_number_at_the_end_of_a_long_array_is_found() -> None:
    values = np.zeros(ring.PIECE * 2 + 5, np.float32)
    values[-1] = np.nan
    with pytest.raises(UpdateRejected):
        ring.quantise(values, ring.scale_of(32, 1.0), 1.0, out(values.size, 32))


def test_error_at_a_clip_of_0_08() -> None:
    """The promise of the benchmark: below 1e-8 with ten sites, at full range."""
    rng, scale = np.random.default_rng(1), ring.scale_of(32, 0.08)
    values = rng.uniform(-0.08, 0.08, (10, 10_000)).astype(np.float32)
    total, part = np.zeros(10_000, np.uint32), out(10_000, 32)
    for row in values:
        ring.quantise(row, scale, 0.1, part)
        total += part
    error = np.abs(ring.dequantise(total, scale) - values.astype(np.float64).mean(0)).max()
    assert 0 < error < 1e-9


# ---- stochastic rounding ---------------------------------------------------------------------


def test_stochastic_rounding_is_right_on_average_where_nearest_is_not() -> None:
    """A change of 0.3 steps: to nearest it is lost for ever, stochastically it is kept."""
    scale, count = ring.scale_of(16, 1.0), 200_000
    part, deviation = out(count, 16), (0.3 * 0.7 / count) ** 0.5
    wide = np.full(count, 0.3 / scale)
    for values in (wide, wide.astype(np.float32)):
        ring.quantise(values, scale, 1.0, part)
        assert not part.any()
        ring.quantise(values, scale, 1.0, part, Dice("rounding"))
        assert set(part.tolist()) == {0, 1}
        assert abs(part.mean() - 0.3) < 4 * deviation


@given(st.floats(-1, 1))
def test_stochastic_rounding_goes_to_a_neighbour(value: float) -> None:
    scale, part = ring.scale_of(16, 1.0), out(1, 16)
    wide = np.array([value])
    for values in (wide, wide.astype(np.float32)):
        ring.quantise(values, scale, 1.0, part, Dice("n"))
        assert abs(int(part.view(np.int16)[0]) - value * scale) <= 1 + 2.0**-9


def test_rounding_draws_no_more_than_it_needs() -> None:
    drawn: list[int] = []

    def random(size: int) -> bytes:
        drawn.append(size)
        return bytes(size)

    ring.quantise(np.zeros(ring.PIECE + 7), 1.0, 1.0, out(ring.PIECE + 7, 16), random)
    assert drawn == [4 * ring.PIECE, 28]
    ring.quantise(
        np.zeros(ring.PIECE + 7, np.float32), 1.0, 1.0, out(ring.PIECE + 7, 16), random
    )
    assert drawn[2:] == [2 * ring.PIECE, 14]


# ---- what makes no ring ----------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 7, 31, 128])
def test_rings_that_do_not_exist(bits: int) -> None:
    with pytest.raises(ConfigError, match=r"there are \[8, 16, 32, 64\]"):
        ring.scale_of(bits, 1.0)


@pytest.mark.parametrize("reach", [0.0, -1.0, float("nan"), float("inf")])
def test_ranges_that_do_not_exist(reach: float) -> None:
    with pytest.raises(ConfigError, match="needs a number above 0"):
        ring.scale_of(32, reach)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_weights_that_would_need_head_room(weight: float) -> None:
    with pytest.raises(UpdateRejected, match="needs 0 to 1"):
        ring.quantise(np.zeros(1), 1.0, weight, out(1, 32))


def test_shapes_must_agree() -> None:
    for values, places in ((np.zeros(2), 3), (np.zeros((2, 2)), 4)):
        with pytest.raises(ValueError, match="values were to go to"):
            ring.quantise(values, 1.0, 1.0, out(places, 32))


# ---- 64 bits: exact sums ---------------------------------------------------------------------


@given(st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=20))
def test_integers_are_summed_exactly(numbers: list[int]) -> None:
    total = np.zeros(1, np.uint64)
    for number in numbers:
        total += ring.encode64(np.array([number]), 0)
    assert int(total.view(np.int64)[0]) == sum(numbers)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_fixed_point_is_as_near_as_its_step(numbers: list[float]) -> None:
    total = np.zeros(1, np.uint64)
    for number in numbers:
        total += ring.encode64(np.array([number]))
    found = float(ring.decode64(total)[0])
    assert found == pytest.approx(sum(numbers), abs=len(numbers) * 2.0**-21 + 1e-6)


@pytest.mark.parametrize("fraction", [0, 20, 40])
def test_the_limit_of_64_bits(fraction: int) -> None:
    edge = 2.0 ** (53 - fraction)
    for value in (edge, -edge):
        total = np.zeros(1, np.uint64)
        for _ in range(MAX_SITES):
            total += ring.encode64(np.array([value]), fraction)
        assert ring.decode64(total, fraction)[0] == value * MAX_SITES
    for value in (np.nextafter(edge, np.inf), -2 * edge, np.nan, np.inf):
        with pytest.raises(UpdateRejected, match=f"{fraction} bits behind the point carry"):
            ring.encode64(np.array([value]), fraction)


def test_integers_beyond_the_limit_are_refused_though_float64_would_round_them() -> None:
    ring.encode64(np.array([2**53]), 0)
    with pytest.raises(UpdateRejected):
        ring.encode64(np.array([2**53 + 1]), 0)


def test_empty_arrays() -> None:
    assert ring.encode64(np.array([], np.float64)).size == 0
    for bits, kind in itertools.product(RINGS, (np.float32, np.float64)):
        ring.quantise(np.array([], kind), 1.0, 1.0, out(0, bits))
        assert ring.dequantise(out(0, bits), 1.0, kind).dtype == kind
