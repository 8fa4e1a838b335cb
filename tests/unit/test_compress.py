"""Compression: error bounds, sensitivity, memory, frames, and parts that are bad."""

import os
from collections.abc import Iterator, Mapping
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consilia.algo.aggregate import Fold, Read
from consilia.algo.compress import (
    BLOCK,
    GROUP,
    Codec,
    check,
    compressed,
    dequantise,
    encode,
    expansion,
    kept,
    largest,
    quantise,
    restored,
)
from consilia.core.weights import Array, Schema, TensorSpec, Weights, schema_of
from consilia.errors import ConfigError, UpdateRejected
from consilia.wire import frames

Single = NDArray[np.float32]
CODECS = [Codec(8), Codec(16), Codec(32, 0.1), Codec(8, 0.05), Codec(16, 0.3)]
codecs = st.sampled_from(CODECS)
ROUNDING = 1.00001  # of float32, in what is compared with a bound


def draw_from(seed: int) -> "Draws":
    return Draws(np.random.default_rng(seed))


class Draws:
    """Uniform numbers from a generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def __call__(self, count: int) -> Single:
        return self._rng.random(count, np.float32)


@st.composite
def vectors(draw: st.DrawFn) -> Single:
    """Draw vectors of all kinds: smooth, one huge value, tiny, with zeros, spanning blocks."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    size = draw(st.sampled_from([1, 2, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 5]))
    found = rng.normal(size=size) * 10.0 ** draw(st.integers(-40, 30))
    if draw(st.booleans()):
        found[rng.integers(size)] *= 1e6
    if draw(st.booleans()):
        found[rng.random(size) < 0.7] = 0.0
    return found.astype(np.float32)


def sent(whole: Single, codec: Codec, draw: Draws) -> Single:
    """Return what arrives of a step, as a node codes it: all but what it leaves as memory."""
    left = np.zeros_like(whole)
    cut = range(0, whole.size, GROUP)
    for _ in encode(codec, ((whole[i : i + GROUP], left[i : i + GROUP]) for i in cut), draw):
        pass
    return whole - left


def clip(values: Single, bound: float) -> Single:
    factor = np.float64(min(1.0, bound / max(length(values), 1e-300)))
    return (values * factor).astype(np.float32)


def length(values: Array) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


# ---- quantising and keeping ------------------------------------------------------------------


@given(vectors(), st.sampled_from([8, 16]), st.integers(0, 1 << 30))
def test_no_value_is_off_by_its_scale(values: Single, bits: int, seed: int) -> None:
    integers, scales = quantise(values, bits, draw_from(seed)(values.size))
    assert integers.dtype == (np.int8 if bits == 8 else np.int16)
    back = dequantise(integers, scales).astype(np.float64)
    step = np.repeat(scales, BLOCK)[: values.size].astype(np.float64)
    assert (np.abs(back - values) <= step * (1 + 1e-6)).all()
    highest = [np.abs(values[i : i + BLOCK]).max() for i in range(0, values.size, BLOCK)]
    level = 127 if bits == 8 else 32767
    assert (scales <= np.maximum(np.array(highest) / level * (1 + 1e-6), 2e-38)).all()


@pytest.mark.parametrize("u", [0.0, np.nextafter(np.float32(1), np.float32(0))])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_ends_of_the_draw_stay_within_the_levels(u: float, bits: int) -> None:
    values = np.array([-3.0, 3.0, 0.0, 1e-30], np.float32)
    integers, scales = quantise(values, bits, np.full(4, u, np.float32))
    level = 127 if bits == 8 else 32767
    assert abs(int(integers.min())) <= level and int(integers.max()) <= level
    assert np.abs(dequantise(integers, scales) - values).max() <= scales[0] * (1 + 1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_rounding_is_right_on_average(bits: int) -> None:
    values = np.random.default_rng(0).normal(size=500).astype(np.float32)
    draw, rounds = draw_from(1), 4000
    total = np.zeros(500)
    for _ in range(rounds):
        integers, scales = quantise(values, bits, draw(500))
        total += dequantise(integers, scales)
    # A rounding is off by at most one scale: its standard deviation is at most half of it.
    error = np.abs(total / rounds - values) / (float(scales[0]) * 0.5 / sqrt(rounds))
    assert error.max() < 5 and error.mean() < 1


def test_zeros_stay_zeros() -> None:
    integers, scales = quantise(np.zeros(3000, np.float32), 8, draw_from(0)(3000))
    assert not dequantise(integers, scales).any() and (scales > 0).all()


@given(vectors(), st.floats(0.001, 1.0))
def test_the_largest_are_kept(values: Single, keep: float) -> None:
    at = largest(values, keep)
    count = kept(values.size, keep)
    assert at.size == count >= 1 and (np.diff(at.astype(int)) > 0).all()
    rest = np.delete(np.abs(values), at)
    assert not rest.size or np.abs(values[at]).min() >= rest.max()
    assert abs(count - keep * values.size) < 1 or count == 1


def test_of_equal_values_the_first_are_kept() -> None:
    values = np.array([2.0, -1.0, 1.0, 3.0, 1.0, -1.0], np.float32)
    assert largest(values, 0.5).tolist() == [0, 1, 3]
    assert largest(np.zeros(8, np.float32), 0.25).tolist() == [0, 1]


# ---- bounds ----------------------------------------------------------------------------------


@settings(max_examples=200)
@given(vectors(), vectors(), codecs, st.floats(1e-6, 1e6), st.integers(0, 1 << 30))
def test_the_stated_sensitivity_bounds_the_real_one(
    step: Single, memory: Single, codec: Codec, bound: float, seed: int
) -> None:
    """With and without the site: the difference is all it sends, whatever it sends."""
    whole = clip(step + np.resize(memory, step.shape), bound)
    arrives = sent(whole, codec, draw_from(seed))
    assert length(arrives) <= bound * expansion(codec) * ROUNDING


def test_the_bound_of_eight_bits_is_no_wild_guess() -> None:
    """The worst a block can do is nearly reached: one large value, the rest rounded up."""
    values = np.full(BLOCK, 1e-4, np.float32)
    values[0] = 1.0
    integers, scales = quantise(values, 8, np.full(BLOCK, 0.9999, np.float32))
    found = length(dequantise(integers, scales)) / length(values)
    assert 1.0 < found <= expansion(Codec(8)) < found * 1.25
    assert expansion(Codec(16)) < 1.001 and expansion(Codec(32, 0.1)) == 1.0


# ---- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_left_out_is_sent_later(codec: Codec) -> None:
    """The sum of what was sent plus the memory is the sum of the steps: nothing is lost."""
    rng, draw = np.random.default_rng(3), draw_from(4)
    memory, arrived, meant = np.zeros(3000, np.float32), np.zeros(3000), np.zeros(3000)
    lengths = []
    for _ in range(60):
        step = rng.normal(size=3000).astype(np.float32)
        out = sent(step + memory, codec, draw)
        memory = step + memory - out
        arrived, meant = arrived + out, meant + step
        lengths.append(length(memory))
    np.testing.assert_allclose(arrived + memory, meant, atol=1e-3)
    # Bounded: Stich et al. 2018, lemma 3.2, with k / d = keep, times the largest step.
    assert max(lengths) <= 2 / codec.keep * sqrt(3000) * 1.2


def test_without_memory_the_small_values_would_never_arrive() -> None:
    step = np.array([1.0, 0.3, 0.3], np.float32)
    codec, memory, arrived = Codec(32, 0.3), np.zeros(3, np.float32), np.zeros(3)
    for _ in range(40):
        out = sent(step + memory, codec, draw_from(0))
        memory = step + memory - out
        arrived += out
    np.testing.assert_allclose(arrived / 40, step, atol=0.1)
    assert sent(step, codec, draw_from(0)).tolist() == [1.0, 0.0, 0.0]


def test_clipping_keeps_memory_bounded_too() -> None:
    memory, draw = np.zeros(500, np.float32), draw_from(2)
    for _ in range(50):
        whole = clip(memory + np.float32(100.0), 1.0)
        memory = whole - sent(whole, Codec(8, 0.02), draw)
        assert length(memory) <= 1.0 * (1 + expansion(Codec(8)))


# ---- frames ----------------------------------------------------------------------------------


def model(seed: int, scale: float = 1.0) -> Weights:
    rng = np.random.default_rng(seed)
    return {
        "w": (rng.normal(size=(300, 500)) * scale).astype(np.float32),  # three groups
        "d": rng.normal(size=(4, 7)) * scale,
        "h": (rng.normal(size=9) * scale).astype(np.float16),
        "empty": np.empty((0, 3), np.float32),
        "n": rng.integers(0, 99, 5),
    }


def parts_of(codec: Codec, new: Weights, old: Weights, seed: int) -> Weights:
    """Encode as a node would: a frame written piece by piece, and read again."""
    schema, fd, draw = schema_of(new), os.memfd_create("update"), draw_from(seed)
    try:
        out = frames.FrameWriter(fd, compressed(schema, codec))
        for name, tensor in new.items():
            if tensor.dtype.kind != "f":
                out.append(frames.raw_bytes(tensor))
                continue
            step = (wide(tensor) - wide(old[name])).reshape(-1).astype(np.float32)
            memory = np.zeros(step.size, np.float32)
            cut = range(0, step.size, GROUP)
            pieces = ((step[i : i + GROUP], memory[i : i + GROUP]) for i in cut)
            for part in encode(codec, pieces, draw):
                out.append(frames.raw_bytes(part))
        out.finish()
        return frames.read(fd)
    finally:
        os.close(fd)


def wide(tensor: Array) -> NDArray[np.float64]:
    return tensor.astype(np.float64)


def reader(weights: Mapping[str, Array], chunk: int) -> Read:
    buffer = bytearray(chunk * 8)

    def read(spec: TensorSpec) -> Iterator[Array]:
        flat = weights[spec.name].reshape(-1)
        for start in range(0, flat.size, chunk):
            piece = flat[start : start + chunk]
            view = np.frombuffer(buffer, piece.dtype, piece.size)
            view[...] = piece
            yield view

    return read


def whole(codec: Codec, parts: Weights, old: Weights, schema: Schema, chunk: int) -> Weights:
    read = restored(codec, reader(parts, chunk), reader(old, 777))
    found: Weights = {}
    for spec in schema:
        pieces = [piece.copy() for piece in read(spec)]
        flat = np.concatenate(pieces) if pieces else np.empty(0, old[spec.name].dtype)
        found[spec.name] = flat.reshape(spec.shape)
    return found


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("chunk", [100, 65536, 200_000])
def test_a_frame_comes_back_near_what_it_was(codec: Codec, chunk: int) -> None:
    old, new = model(0), model(1, 1.1)
    schema = schema_of(new)
    found = whole(codec, parts_of(codec, new, old, 5), old, schema, chunk)
    assert schema_of(found) == schema
    np.testing.assert_array_equal(found["n"], new["n"])
    for name in ("w", "d", "h"):
        step = wide(new[name]) - wide(old[name])
        moved = wide(found[name]) - wide(old[name])
        sent = moved != 0
        bound = np.abs(step).max() * (1 / 127 if codec.bits == 8 else 1e-3)
        tolerance = bound + (5e-3 if name == "h" else 1e-6)
        assert np.abs(moved - step)[sent].max() <= tolerance
        share = sent.mean()
        assert share >= min(0.9, codec.keep) * 0.9


@pytest.mark.parametrize("codec", CODECS)
def test_the_stated_bytes_are_those_of_the_frame(codec: Codec) -> None:
    old, new = model(0), model(1)
    found = parts_of(codec, new, old, 0)
    stated = sum(spec.nbytes for spec in compressed(schema_of(new), codec))
    assert stated == sum(t.nbytes for t in found.values())
    large = TensorSpec("w", "float32", (1000, 1000))
    share = sum(spec.nbytes for spec in compressed((large,), codec)) / large.nbytes
    limit = {8: 0.255, 16: 0.505}[codec.bits] if codec.keep == 1 else None
    assert share < (limit or codec.keep * (codec.bits / 8 + 2.01) / 4 + 1e-3)


def test_a_compressed_update_folds_like_a_whole_one() -> None:
    old, new = model(0), model(2, 1.5)
    schema, codec = schema_of(new), Codec(16)
    parts = parts_of(codec, new, old, 3)
    fold = Fold(schema)
    fold.add(10, restored(codec, reader(parts, 4096), reader(old, 512)))
    fold.add(30, reader(old, 333))
    expected = 0.75 * wide(old["w"]) + 0.25 * wide(new["w"])
    spec = schema[0]
    found = wide(fold.result_chunk(spec, 0, spec.size)).reshape(300, 500)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_memory_is_what_was_not_sent() -> None:
    step = np.random.default_rng(8).normal(size=GROUP + 9).astype(np.float32)
    memory = np.zeros_like(step)
    cut = [(step[:GROUP], memory[:GROUP]), (step[GROUP:], memory[GROUP:])]
    values, _, scale, _, at, tail = encode(Codec(8, 0.25), cut, draw_from(0))
    assert (values.size, at.size, tail.size) == (GROUP // 4, GROUP // 4, 3)
    sent = np.zeros(GROUP, np.float32)
    sent[at] = dequantise(values, scale.astype(np.float32))
    np.testing.assert_array_equal(memory[:GROUP], step[:GROUP] - sent)


# ---- bad parts and bad choices ---------------------------------------------------------------


@pytest.mark.parametrize("at", [[1, 1], [2, 1], [0, 10], [65535, 3]])
def test_positions_must_ascend_within_their_group(at: list[int]) -> None:
    schema: Schema = (TensorSpec("w", "float32", (10,)),)
    parts: Weights = {
        "w": np.ones(2, np.float32),
        "w/at": np.array(at, np.uint16),
    }
    with pytest.raises(UpdateRejected, match="positions"):
        whole(Codec(32, 0.2), parts, {"w": np.zeros(10, np.float32)}, schema, 4)


def test_a_huge_scale_is_refused_and_not_folded() -> None:
    schema: Schema = (TensorSpec("w", "float32", (4,)),)
    parts: Weights = {
        "w": np.array([-128, 127, 1, 0], np.int8),
        "w/scale": np.array([3e38], np.float32),
    }
    with pytest.raises(UpdateRejected, match="not finite"):
        whole(Codec(8), parts, {"w": np.zeros(4, np.float32)}, schema, 4)


def test_a_part_that_is_too_short_is_refused() -> None:
    schema: Schema = (TensorSpec("w", "float32", (4,)),)
    parts: Weights = {"w": np.zeros(3, np.int8), "w/scale": np.ones(1, np.float32)}
    with pytest.raises(UpdateRejected, match="1 elements short"):
        whole(Codec(8), parts, {"w": np.zeros(4, np.float32)}, schema, 4)


@pytest.mark.parametrize(
    "codec", [Codec(4), Codec(8, 0.0), Codec(8, 1.01), Codec(32), Codec(32, 0.61)]
)
def test_a_codec_that_saves_nothing_or_makes_no_sense_is_refused(codec: Codec) -> None:
    with pytest.raises(ConfigError):
        check(codec)
    check(Codec(32, 0.6))


def test_a_name_that_is_taken_is_refused() -> None:
    schema: Schema = (
        TensorSpec("w", "float32", (4,)),
        TensorSpec("w/scale", "float32", (1,)),
    )
    with pytest.raises(ConfigError, match="w/scale"):
        compressed(schema, Codec(8))
