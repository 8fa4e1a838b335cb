"""The fold against a float64 oracle; determinism, order, limits, faults."""

import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consilia.algo.aggregate import SCRATCH, Fold, cast
from consilia.core.weights import (
    DTYPES,
    Array,
    Schema,
    TensorSpec,
    Weights,
    narrow,
    schema_of,
    widen,
)
from consilia.errors import EmptyRound, UpdateRejected

Read = Callable[[TensorSpec], Iterator[Array]]
Update = tuple[int, Mapping[str, Array]]


def reader(weights: Mapping[str, Array], chunk: int = 1000) -> Read:
    """Read like a file does: one buffer, used again for every chunk."""

    def read(spec: TensorSpec) -> Iterator[Array]:
        flat = weights[spec.name].reshape(-1)
        buffer = np.empty(chunk, flat.dtype)
        for start in range(0, flat.size, chunk):
            part = buffer[: min(chunk, flat.size - start)]
            part[...] = flat[start : start + chunk]
            yield part

    return read


def schema(updates: Sequence[Update]) -> Schema:
    return schema_of(dict(updates[0][1]))


def folded(updates: Sequence[Update], chunk: int = 1000) -> Fold:
    fold = Fold(schema(updates))
    for records, weights in updates:
        fold.add(records, reader(weights, chunk))
    return fold


def oracle(updates: Sequence[Update], name: str) -> NDArray[np.float64]:
    """The record-weighted mean as written on paper, in float64."""
    total = sum(records for records, _ in updates)
    mean = np.zeros(updates[0][1][name].size)
    for records, weights in updates:
        mean += records * values(weights[name]) / total
    return mean


def values(array: Array) -> NDArray[np.float64]:
    wide = widen(array) if DTYPES["bfloat16"] == array.dtype else array
    return wide.reshape(-1).astype(np.float64)


def mean_of(updates: Sequence[Update], name: str = "w", chunk: int = 1000) -> Array:
    spec = next(s for s in schema(updates) if s.name == name)
    return folded(updates, chunk).result_chunk(spec, 0, spec.size)


records = st.integers(1, 10**6)
floats = st.lists(st.floats(-1000, 1000, width=32), min_size=3, max_size=3)


@given(st.lists(st.tuples(records, floats), min_size=1, max_size=12))
def test_float32_mean_is_exact_within_rounding(given: list[tuple[int, list[float]]]) -> None:
    updates = [(n, {"w": np.array(x, np.float32)}) for n, x in given]
    found = values(mean_of(updates))
    # Each of K steps rounds thrice, relative to numbers of at most 2 * 1000.
    bound = 3 * len(updates) * 2.0**-24 * 2000
    assert np.abs(found - oracle(updates, "w")).max() <= bound


@given(st.lists(st.tuples(records, floats), min_size=1, max_size=12))
def test_float64_mean_against_exact_fractions(given: list[tuple[int, list[float]]]) -> None:
    updates = [(n, {"w": np.array(x, np.float64)}) for n, x in given]
    found = mean_of(updates)
    total = sum(n for n, _ in given)
    for i in range(3):
        exact = sum((n * Fraction(x[i]) for n, x in given), Fraction()) / total
        assert abs(Fraction(float(found[i])) - exact) <= Fraction(1, 10**9)


@given(st.lists(st.tuples(records, floats), min_size=2, max_size=8), st.randoms())
def test_order_changes_rounding_only(
    given: list[tuple[int, list[float]]], random: Random
) -> None:
    updates = [(n, {"w": np.array(x, np.float32)}) for n, x in given]
    one = values(mean_of(updates))
    random.shuffle(updates)
    other = values(mean_of(updates))
    bound = 2 * 3 * len(updates) * 2.0**-24 * 2000
    assert np.abs(one - other).max() <= bound


def cohort(dtype: str, size: int, sites: int = 5, seed: int = 0) -> list[Update]:
    random = np.random.default_rng(seed)
    updates: list[Update] = []
    for _ in range(sites):
        values = random.standard_normal(size).astype(np.float32) * 10
        array: Array
        if dtype == "bfloat16":
            array = narrow(values)
        elif dtype == "bool":
            array = values > 0
        elif dtype.startswith("uint"):
            array = np.abs(values).astype(DTYPES[dtype])
        else:
            array = values.astype(DTYPES[dtype])
        updates.append((int(random.integers(1, 5000)), {"w": array}))
    return updates


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_gives_the_mean_in_its_own_dtype(dtype: str) -> None:
    updates = cohort(dtype, 501)
    found = mean_of(updates)
    mean = oracle(updates, "w")
    assert found.dtype == DTYPES[dtype]
    if dtype == "bool":
        assert np.array_equal(found, mean > 0.5)
    elif "int" in dtype:
        assert np.array_equal(found, np.rint(mean))
    else:
        digits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[dtype]
        held = 53 if dtype == "float64" else 24
        steps = 5 * 3 * 2.0**-held * 2 * np.abs(values(updates[0][1]["w"])).max() * 2
        assert (np.abs(values(found) - mean) <= 2.0**-digits * np.abs(mean) + steps).all()


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(("float32", "bfloat16", "int32", "bool")),
    st.integers(1, SCRATCH),
    st.integers(1, SCRATCH),
)
def test_the_same_order_is_bit_identical_however_it_is_chunked(
    dtype: str, one: int, other: int
) -> None:
    updates = cohort(dtype, SCRATCH // 4 * 2 + 37, sites=3)
    first = mean_of(updates, chunk=max(one, 512)).tobytes()
    assert mean_of(updates, chunk=max(other, 512)).tobytes() == first


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_updates_give_that_update(dtype: str) -> None:
    (_, weights), *_ = cohort(dtype, 300)
    found = mean_of([(n, weights) for n in (3, 1, 77, 10**9)])
    assert np.array_equal(values(found), values(weights["w"]))


def test_ten_thousand_sites_stay_within_1e_4_of_float64() -> None:
    random = np.random.default_rng(1)
    updates = [
        (int(random.integers(1, 1000)), {"w": random.standard_normal(50).astype(np.float32)})
        for _ in range(10_000)
    ]
    assert np.abs(values(mean_of(updates)) - oracle(updates, "w")).max() < 1e-4


def ints(dtype: str, *values: tuple[int, int]) -> int:
    updates = [(n, {"w": np.array([x], DTYPES[dtype])}) for n, x in values]
    return int(mean_of(updates)[0])


def test_integers_round_half_to_even_and_stay_in_range() -> None:
    assert ints("int64", (1, 0), (1, 1)) == 0
    assert ints("int64", (1, 1), (1, 2)) == 2
    assert ints("int64", (1, -1), (1, 0)) == 0
    assert ints("uint8", (1, 255), (1, 255), (5, 255)) == 255
    assert ints("int8", (1, -128), (7, -128)) == -128
    assert ints("int64", (1, 2**53), (1, -(2**53))) == 0
    assert ints("int64", (3, 2**53), (4, 2**53)) == 2**53


def test_cast_clips_integers_to_their_range() -> None:
    wild = np.array([-1e30, -0.6, 1e30])
    assert cast(wild, "uint8").tolist() == [0, 0, 255]
    assert cast(wild, "int16").tolist() == [-32768, -1, 32767]
    assert cast(wild, "uint32").tolist() == [0, 0, 2**32 - 1]
    assert cast(wild, "int64").tolist() == [-(2**53), -1, 2**53]


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)])
def test_integers_that_float64_cannot_hold_are_rejected(value: int) -> None:
    for updates in (((1, value),), ((1, 0), (1, value))):
        with pytest.raises(UpdateRejected, match=rf"'w' holds the integer {value}; beyond"):
            ints("int64", *updates)


def test_bool_is_the_majority_of_records_and_a_tie_is_false() -> None:
    yes, no = {"w": np.array([True])}, {"w": np.array([False])}
    assert mean_of([(3, yes), (2, no)])[0]
    assert not mean_of([(2, yes), (3, no)])[0]
    assert not mean_of([(2, yes), (2, no)])[0]


def test_float16_is_held_in_float32() -> None:
    """2048 + 1 has no float16: a float16 accumulator would lose every small update."""
    big, small = np.array([2048.0], np.float16), np.array([2049.5], np.float16)
    assert float(small[0]) == 2050
    fold = folded([(1, {"w": big})] + [(1, {"w": small})] * 3)
    assert fold.mean(TensorSpec("w", "float16", (1,)))[0] == 2049.5


def test_parts_of_a_tensor_and_of_a_model() -> None:
    weights: Weights = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.empty((0, 4), np.float32),
        "scalar": np.array(7, np.int64),
    }
    fold = folded([(2, weights)])
    assert fold.result_chunk(TensorSpec("a", "float32", (2, 3)), 2, 5).tolist() == [2, 3, 4]
    assert fold.result_chunk(TensorSpec("empty", "float32", (0, 4)), 0, 0).size == 0
    assert fold.result_chunk(TensorSpec("scalar", "int64", ()), 0, 1).tolist() == [7]
    assert (fold.records, fold.updates) == (2, 1)


def test_nothing_added_is_an_empty_round() -> None:
    fold = Fold((TensorSpec("w", "float32", (2,)),))
    with pytest.raises(EmptyRound, match="no update was accepted"):
        fold.mean(TensorSpec("w", "float32", (2,)))


@pytest.mark.parametrize("records", [0, -1])
def test_an_update_without_records_changes_nothing(records: int) -> None:
    fold = folded([(1, {"w": np.ones(3, np.float32)})])
    with pytest.raises(UpdateRejected, match=f"claims {records} records"):
        fold.add(records, reader({"w": np.zeros(3, np.float32)}))
    assert fold.mean(TensorSpec("w", "float32", (3,))).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(2, np.float32), "'w' ended after 2 elements, needs 3"),
        (np.zeros(4, np.float32), r"needs 3 elements of float32 in all"),
        (np.zeros(3, np.float64), r"got float64\[3\] after 0 elements"),
        (np.zeros(3, np.uint16), r"got uint16"),
    ],
)
def test_a_wrong_tensor_is_rejected_and_the_fold_is_used_no_more(
    wrong: Array, message: str
) -> None:
    fold = folded([(1, {"w": np.ones(3, np.float32)})])
    with pytest.raises(UpdateRejected, match=message):
        fold.add(1, reader({"w": wrong}))
    spec = TensorSpec("w", "float32", (3,))
    for use in (lambda: fold.mean(spec), lambda: fold.result_chunk(spec, 0, 3)):
        with pytest.raises(UpdateRejected, match="fold anew"):
            use()
    with pytest.raises(UpdateRejected, match="fold anew"):
        fold.add(1, reader({"w": np.ones(3, np.float32)}))


def test_chunks_must_be_flat() -> None:
    fold = Fold((TensorSpec("w", "float32", (2, 2)),))
    with pytest.raises(UpdateRejected, match=r"got float32\[2, 2\]"):
        fold.add(1, lambda _: iter([np.zeros((2, 2), np.float32)]))


def test_a_read_error_is_raised_and_the_fold_is_used_no_more() -> None:
    def broken(_: TensorSpec) -> Iterator[Array]:
        yield np.zeros(2, np.float32)
        raise OSError(5, "Input/output error")

    fold = folded([(1, {"w": np.ones(3, np.float32)})])
    with pytest.raises(OSError, match="Input/output"):
        fold.add(1, broken)
    assert (fold.records, fold.updates) == (1, 1)
    with pytest.raises(UpdateRejected, match="fold anew"):
        fold.mean(TensorSpec("w", "float32", (3,)))


def test_overflow_is_raised_and_not_averaged_into_the_model() -> None:
    fold = folded([(1, {"w": np.array([3e38], np.float32)})])
    with pytest.raises(UpdateRejected, match="'w' overflows float32"):
        fold.add(1, reader({"w": np.array([-3e38], np.float32)}))


def test_a_mean_beyond_float16_becomes_infinite_for_the_frame_writer_to_refuse() -> None:
    assert np.isinf(cast(np.array([1e6], np.float32), "float16"))[0]
    assert cast(np.array([65504.0], np.float32), "float16")[0] == 65504


def test_memory_is_one_model_and_one_scratch() -> None:
    (spec,) = layout = (TensorSpec("w", "float32", (1000, 1000)),)
    updates = [{"w": np.full((1000, 1000), x, np.float32)} for x in (1.0, 2.0, 4.0)]
    tracemalloc.start()
    try:
        fold = Fold(layout)
        for weights in updates:
            fold.add(1, reader(weights, 50_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert abs(fold.mean(spec)[0] - 7 / 3) < 1e-6
    buffer = 50_000 * 4  # the reader's
    assert peak < spec.nbytes + SCRATCH + buffer + 50_000
