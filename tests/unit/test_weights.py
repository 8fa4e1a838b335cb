"""Weights: bfloat16 rounding against an exact oracle, schemas."""

import struct
from fractions import Fraction
from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.core.weights import (
    BFLOAT16,
    DTYPES,
    TensorSpec,
    dtype_name,
    mismatch,
    narrow,
    schema_of,
    widen,
)
from consilia.errors import UpdateRejected

GOLDEN = [
    (1.0, 0x3F80),
    (-2.0, 0xC000),
    (0.0, 0x0000),
    (-0.0, 0x8000),
    (1 + 2**-8, 0x3F80),  # a tie: to even, down
    (1 + 3 * 2**-8, 0x3F82),  # a tie: to even, up
    (1 + 2**-8 + 2**-20, 0x3F81),  # just above the tie
    (3.14159265, 0x4049),
    (3.3895313892515355e38, 0x7F7F),  # the largest bfloat16
    (3.4028234663852886e38, 0x7F80),  # the largest float32 rounds to infinity
    (float("inf"), 0x7F80),
    (float("-inf"), 0xFF80),
    (2**-133, 0x0001),  # the smallest subnormal
    (2**-134, 0x0000),  # half of it: a tie to even
    (3 * 2**-134, 0x0002),
]


@pytest.mark.parametrize(("value", "bits"), GOLDEN)
def test_bfloat16_golden(value: float, bits: int) -> None:
    assert narrow(np.array([value], np.float32)).view(np.uint16)[0] == bits


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_nan_stays_nan(bits: int) -> None:
    values = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(widen(narrow(values))).all()


@given(st.integers(0, 2**32 - 1))
def test_narrow_rounds_to_the_nearest_bfloat16(bits: int) -> None:
    (value,) = struct.unpack("<f", struct.pack("<I", bits))
    found = int(narrow(np.array([bits], np.uint32).view(np.float32)).view(np.uint16)[0])
    if isnan(value):
        assert found & 0x7FFF > 0x7F80
        return
    down = bits >> 16
    if abs(value) == float("inf"):
        assert found == down
        return
    # Of the two bfloat16 around the value, the nearer; the even one of a tie. Beyond the
    # largest, infinity stands where the next number would be.
    below, above = _magnitude(down), _magnitude(down + 1)
    exact = Fraction(abs(value))
    nearer = down if exact - below < above - exact else down + 1
    tie = exact - below == above - exact
    assert found == (down + (down & 1) if tie else nearer)


def _magnitude(bits: int) -> Fraction:
    exponent, fraction = (bits >> 7) & 0xFF, bits & 0x7F
    if exponent == 0:
        return Fraction(fraction) * Fraction(2) ** -133
    return Fraction(128 + fraction) * Fraction(2) ** (exponent - 134)


def test_every_bfloat16_survives_the_round_trip() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    wide = widen(bits.view(BFLOAT16))
    number = ~np.isnan(wide)
    assert (narrow(wide).view(np.uint16)[number] == bits[number]).all()
    assert (wide.view(np.uint32)[number] >> 16 == bits[number]).all()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 4)])
def test_widen_and_narrow_keep_the_shape(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 1.5, np.float32)
    small = narrow(values)
    assert (small.shape, small.dtype) == (shape, BFLOAT16)
    assert widen(small).shape == shape
    assert np.array_equal(widen(small), values)


def test_narrow_takes_strided_arrays() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert np.array_equal(widen(narrow(values)), values)


def test_schema_names_every_dtype() -> None:
    weights = {name: np.zeros((2, 3), dtype) for name, dtype in DTYPES.items()}
    schema = schema_of(weights)
    assert [s.dtype for s in schema] == list(DTYPES)
    assert all(s.shape == (2, 3) and s.size == 6 for s in schema)
    assert [s.nbytes for s in schema] == [a.nbytes for a in weights.values()]


def test_bfloat16_is_not_uint16() -> None:
    assert dtype_name(BFLOAT16) == "bfloat16"
    assert dtype_name(np.dtype(np.uint16)) == "uint16"


@pytest.mark.parametrize("dtype", [">f4", "c16", "O", "U3", "M8[s]"])
def test_other_dtypes_cannot_travel(dtype: str) -> None:
    with pytest.raises(UpdateRejected, match="cannot travel; convert to one of float64"):
        dtype_name(np.dtype(dtype))


A, B = TensorSpec("a", "float32", (2,)), TensorSpec("b", "int64", ())


def test_mismatch_says_what_differs() -> None:
    assert mismatch((A, B), (A, B)) is None
    assert mismatch((A,), (A, B)) == "tensors ['b'] are missing or unexpected"
    assert "order" in str(mismatch((B, A), (A, B)))
    found = mismatch((TensorSpec("a", "float32", (3,)), B), (A, B))
    assert found == "tensor 'a' is float32(3,), needs float32(2,)"
    found = mismatch((TensorSpec("a", "float16", (2,)), B), (A, B))
    assert found == "tensor 'a' is float16(2,), needs float32(2,)"
    assert mismatch((A, A, B), (A, B)) is not None
