"""Tensor frames: round trips, the golden frame, every fault, every limit at the limit."""

import contextlib
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consilia.core.weights import BFLOAT16, DTYPES, TensorSpec, Weights, narrow
from consilia.errors import StorageError, UpdateRejected, WireError
from consilia.wire import frames
from consilia.wire.frames import Verifier

VECTORS = Path(__file__).parent.parent / "vectors"


def sample(seed: int = 0) -> Weights:
    """One tensor of every dtype, of awkward sizes."""
    random = np.random.default_rng(seed)
    weights: Weights = {}
    for i, (name, dtype) in enumerate(DTYPES.items()):
        shape = (3, 5 + i)
        if dtype == BFLOAT16:
            weights[name] = narrow(random.standard_normal(shape, dtype=np.float32))
        elif dtype.kind == "f":
            weights[name] = random.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            weights[name] = random.integers(0, 2, shape).astype(dtype)
        else:
            info = np.iinfo(dtype.str)
            weights[name] = random.integers(
                info.min, info.max, shape, dtype=dtype.str, endpoint=True
            )
    weights["scalar"] = np.array(1.5, "<f4")
    weights["empty"] = np.empty((0, 7), "<f4")
    weights["big"] = random.standard_normal(200_000, dtype=np.float32)
    return weights


def framed(path: Path, weights: Weights) -> bytes:
    frames.write(path, weights)
    return path.read_bytes()


def feed(data: bytes, piece: int = 1 << 20, limit: int = 1 << 30) -> Verifier:
    verifier = Verifier(limit)
    for start in range(0, len(data), piece):
        assert not verifier.complete
        verifier.feed(data[start : start + piece])
    return verifier


def with_header(data: bytes, change: Callable[[dict[str, list[list[object]]]], None]) -> bytes:
    """Re-encode a frame's header after `change`, fixed-width integers kept."""
    stop = frames.header_length(data[:12])
    start = frames.aligned(stop)
    body = msgspec.msgpack.decode(data[12:stop])
    change(body)
    entries = [msgspec.convert(e, frames.TensorEntry) for e in body["tensors"]]
    raw = frames.encode_header(tuple(entries))
    return raw + bytes(frames.aligned(len(raw)) - len(raw)) + data[start:]


def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path) -> None:
    weights = sample()
    header = frames.write(tmp_path / "f", weights)
    again = frames.read(tmp_path / "f")
    assert list(again) == list(weights)
    for name, array in weights.items():
        assert again[name].dtype == array.dtype
        assert again[name].shape == array.shape
        assert again[name].tobytes() == array.tobytes()
        assert again[name].flags.writeable
    assert frames.read_header(tmp_path / "f") == header
    assert header.total_bytes == (tmp_path / "f").stat().st_size
    assert header.whole


def test_golden_frame(tmp_path: Path) -> None:
    """The bytes of version 1, as released. If this fails, the wire has changed."""
    golden = bytes.fromhex((VECTORS / "frame-v1.hex").read_text())
    weights: Weights = {
        "layer.weight": np.arange(6, dtype="<f4").reshape(2, 3) / 4,
        "layer.half": narrow(np.array([1.0, -2.5, 3.25], np.float32)),
        "steps": np.array(7, "<i8"),
    }
    header = frames.write(tmp_path / "f", weights)
    assert (tmp_path / "f").read_bytes() == golden
    assert header.digest == (
        "b3:133e0ee0e85c0ef11c328b022981475699f94b38129f44b22562be8f2dd79b1d"
    )
    assert feed(golden).complete


def test_layout_is_as_the_reference_says(tmp_path: Path) -> None:
    data = framed(tmp_path / "f", {"a": np.ones(3, "<f4"), "b": np.ones(20, "<f4")})
    length = int.from_bytes(data[8:12], "little")
    assert data[:8] == b"CSLFRM1\n"
    body = msgspec.msgpack.decode(data[12 : 12 + length])
    assert body["v"] == 1
    (name, dtype, shape, offset, nbytes, digest, stored), second = body["tensors"]
    assert (name, dtype, shape, offset, nbytes, stored) == ("a", "float32", [3], 0, 12, True)
    assert (
        digest
        == blake3(
            np.ones(3, "<f4").tobytes(), derive_key_context="consilia 2026 tensor float32"
        ).digest()
    )
    assert second[3] == 64
    start = frames.aligned(12 + length)
    assert start % 64 == 0
    assert data[start : start + 12] == np.ones(3, "<f4").tobytes()
    assert (
        frames.read_header(tmp_path / "f").digest
        == "b3:" + blake3(data[: 12 + length]).hexdigest()
    )


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 63, 64, 1000, 1 << 18])
def test_verifier_takes_pieces_of_any_size(tmp_path: Path, piece: int) -> None:
    weights = sample()
    if piece < 64:
        del weights["big"]
    data = framed(tmp_path / "f", weights)
    verifier = feed(data, piece)
    assert verifier.complete
    assert verifier.position == len(data)
    assert verifier.header == frames.read_header(tmp_path / "f")


def test_verifier_resumes_from_a_file(tmp_path: Path) -> None:
    data = framed(tmp_path / "f", sample())
    for cut in (0, 5, 12, 100, 5000, len(data) - 1, len(data)):
        (tmp_path / "part").write_bytes(data[:cut])
        verifier = Verifier(len(data))
        with frames.opened(tmp_path / "part") as fd:
            verifier.feed_file(fd, cut)
        verifier.feed(data[cut:])
        assert verifier.complete


def test_chunks_are_pieces_in_one_buffer(tmp_path: Path) -> None:
    weights = sample()
    header = frames.write(tmp_path / "f", weights)
    buffer = bytearray(1000)  # no multiple of 8 goes into the last piece
    with frames.opened(tmp_path / "f") as fd:
        for entry in header.entries:
            pieces = [p.copy() for p in frames.chunks(fd, header, entry, buffer)]
            joined = np.concatenate(pieces) if pieces else np.empty(0, DTYPES[entry.dtype])
            assert joined.tobytes() == weights[entry.name].tobytes()
        with pytest.raises(ValueError, match="holds no float64"):
            list(frames.chunks(fd, header, header.entries[0], bytearray(7)))


def test_unchanged_tensors_are_left_out(tmp_path: Path) -> None:
    weights = sample()
    base = frames.write(tmp_path / "base", weights)
    weights["float32"] = np.full((3, 6), 0.25, "<f4")
    update = frames.write(tmp_path / "update", weights, {e.digest for e in base.entries})
    assert [e.name for e in update.entries if e.stored] == ["float32"]
    assert update.schema == base.schema
    assert update.total_bytes < base.total_bytes / 100
    assert feed((tmp_path / "update").read_bytes()).complete
    borrowed = frames.borrowed(update, base)
    assert set(borrowed) == set(weights) - {"float32"}
    assert borrowed["big"].name == "big"
    with (
        frames.opened(tmp_path / "update") as fd,
        pytest.raises(WireError, match="not in this"),
    ):
        list(frames.chunks(fd, update, update.entries[0], bytearray(64)))
    other = frames.write(tmp_path / "other", sample(1))
    with pytest.raises(UpdateRejected, match="holds no such tensor"):
        frames.borrowed(update, other)


def test_equal_bytes_of_another_dtype_are_another_tensor(tmp_path: Path) -> None:
    """Zeros as int64 must not pass for zeros as float32."""
    base = frames.write(tmp_path / "base", {"n": np.zeros(1, "<i8")})
    digests = {e.digest for e in base.entries}
    update = frames.write(tmp_path / "update", {"x": np.zeros(2, "<f4")}, digests)
    assert update.entries[0].stored


def test_missing_ranges(tmp_path: Path) -> None:
    header = frames.write(
        tmp_path / "f", {n: np.full(100, i, "<f4") for i, n in enumerate("abcde")}
    )
    start, digest = header.data_start, [e.digest for e in header.entries]
    assert frames.missing_ranges(header, ()) == [(start, header.total_bytes)]
    assert frames.missing_ranges(header, digest) == []
    two = [(start, start + 448), (start + 3 * 448, start + 4 * 448)]
    assert frames.missing_ranges(header, {digest[1], digest[2], digest[4]}) == two
    one = [(start, start + 4 * 448)]
    known = {digest[1], digest[2], digest[4]}
    assert frames.missing_ranges(header, known, gap=2 * 448) == one
    assert frames.missing_ranges(header, known, gap=2 * 448 - 1) == two


# ---- what must be refused --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("piece", [1, 3, 1 << 18])
def test_not_finite_is_refused(tmp_path: Path, dtype: str, value: float, piece: int) -> None:
    wide = np.zeros(50, np.float32)
    wide[17] = value
    array = narrow(wide) if dtype == "bfloat16" else wide.astype(DTYPES[dtype])
    weights: Weights = {"first": np.ones(3, "<f4"), "odd": array}
    with pytest.raises(UpdateRejected, match="'odd' holds NaN or infinity"):
        frames.write(tmp_path / "f", weights)
    frames.write(tmp_path / "f", weights, check_finite=False)
    data = (tmp_path / "f").read_bytes()
    with pytest.raises(UpdateRejected, match="'odd' holds NaN or infinity"):
        feed(data, piece)
    masked = Verifier(1 << 20, check_finite=False)
    masked.feed(data)
    assert masked.complete


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_largest_finite_values_pass(tmp_path: Path, dtype: str) -> None:
    info = np.finfo(dtype)
    array = np.array([info.max, info.min, info.smallest_subnormal, 0.0, -0.0], DTYPES[dtype])
    assert feed(framed(tmp_path / "f", {"x": array})).complete


def test_largest_bfloat16_passes(tmp_path: Path) -> None:
    array = np.array([0x7F7F, 0xFF7F, 0, 0x8000], "<u2").view(BFLOAT16)
    assert feed(framed(tmp_path / "f", {"x": array})).complete


def test_a_bool_is_zero_or_one(tmp_path: Path) -> None:
    array = np.array([0, 1, 2], np.uint8).view(np.bool_)
    with pytest.raises(WireError, match="other than 0 and 1"):
        frames.write(tmp_path / "f", {"x": array})


def test_ten_gigabyte_header_is_refused_from_twelve_bytes() -> None:
    verifier = Verifier(1 << 40)
    with pytest.raises(WireError, match="over the limit"):
        verifier.feed(b"CSLFRM1\n" + (0xFFFFFFFF).to_bytes(4, "little"))
    with pytest.raises(WireError, match="over the limit"):  # and it stays refused
        verifier.feed(b"")


def test_header_limit_at_the_limit() -> None:
    at = b"CSLFRM1\n" + frames.MAX_HEADER.to_bytes(4, "little")
    Verifier(1 << 40).feed(at)
    with pytest.raises(WireError, match="cut off"):
        frames.parse_header(at)
    over = b"CSLFRM1\n" + (frames.MAX_HEADER + 1).to_bytes(4, "little")
    with pytest.raises(WireError, match="over the limit"):
        Verifier(1 << 40).feed(over)


@pytest.mark.parametrize("cut", range(8))
def test_wrong_magic_is_refused_at_once(cut: int) -> None:
    Verifier(100).feed(b"CSLFRM1\n"[:cut])
    with pytest.raises(WireError, match="not a tensor frame"):
        Verifier(100).feed(b"CSLFRM1\n"[:cut] + b"X" + bytes(20)[: 7 - cut] + b"Y")


def test_size_limit_at_the_limit(tmp_path: Path) -> None:
    data = framed(tmp_path / "f", sample())
    assert feed(data, limit=len(data)).complete
    with pytest.raises(WireError, match=f"limit {len(data) - 1}"):
        feed(data, limit=len(data) - 1)


def test_a_header_alone_is_held_to_the_size_limit(tmp_path: Path) -> None:
    data = framed(tmp_path / "f", {"e": np.empty(0, "<f4")})
    assert feed(data, limit=len(data)).complete
    with pytest.raises(WireError, match="limit"):
        feed(data[:12], limit=len(data) - 1)


def test_every_single_damaged_byte_is_noticed(tmp_path: Path) -> None:
    data = framed(tmp_path / "f", {"a": np.ones(9, "<f4"), "b": np.arange(5, dtype="<i2")})
    digest = frames.read_header(tmp_path / "f").digest
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        verifier = Verifier(1 << 20, expected=digest)
        with contextlib.suppress(WireError, UpdateRejected):
            verifier.feed(damaged)
        assert not verifier.complete, f"byte {at} was changed and nobody noticed"


def test_trailing_and_missing_bytes(tmp_path: Path) -> None:
    data = framed(tmp_path / "f", sample())
    verifier = feed(data)
    with pytest.raises(WireError, match="after the end"):
        verifier.feed(b"\0")
    assert not verifier.complete
    assert not feed(data[:-1]).complete
    (tmp_path / "short").write_bytes(data[:-5000])
    with pytest.raises(WireError, match="cut off"):
        frames.read(tmp_path / "short")


def test_another_frame_than_expected(tmp_path: Path) -> None:
    data = framed(tmp_path / "f", sample())
    with pytest.raises(WireError, match="is not the expected"):
        Verifier(1 << 30, expected="b3:" + "0" * 64).feed(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b["tensors"][1].__setitem__(3, 32), "is at offset 32"),  # unaligned
        (lambda b: b["tensors"][1].__setitem__(3, 0), "is at offset 0"),  # overlapping
        (lambda b: b["tensors"][1].__setitem__(3, 128), "is at offset 128"),  # a gap
        (lambda b: b["tensors"][0].__setitem__(4, 8), "claims 8 bytes"),
        (lambda b: b["tensors"][0].__setitem__(2, [4]), "claims 12 bytes"),
        (lambda b: b["tensors"][0].__setitem__(1, "float128"), "not one that travels"),
        (lambda b: b["tensors"][0].__setitem__(1, "object"), "not one that travels"),
        (lambda b: b["tensors"][0].__setitem__(0, "b"), "twice"),
        (lambda b: b["tensors"][0].__setitem__(0, "\x1b[2J"), "printable"),
        (lambda b: b["tensors"][0].__setitem__(2, [0, 1 << 62, 1 << 62]), "too large"),
        (lambda b: b["tensors"][0].__setitem__(6, False), "is at offset 64, needs 0"),
    ],
)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, change: Callable[[dict[str, list[list[object]]]], None], message: str
) -> None:
    data = framed(tmp_path / "f", {"a": np.ones(3, "<f4"), "b": np.ones(3, "<f4")})
    assert with_header(data, lambda _: None) == data
    with pytest.raises(WireError, match=message):
        Verifier(1 << 20).feed(with_header(data, change))


def test_only_one_encoding_is_valid(tmp_path: Path) -> None:
    data = framed(tmp_path / "f", {"a": np.ones(3, "<f4")})
    stop = frames.header_length(data[:12])
    loose = msgspec.msgpack.encode(msgspec.msgpack.decode(data[12:stop]))
    head = b"CSLFRM1\n" + len(loose).to_bytes(4, "little") + loose
    with pytest.raises(WireError, match="one valid encoding"):
        frames.parse_header(head)
    future = data[12:stop].replace(b"\xa1v\x01", b"\xa1v\x02")
    with pytest.raises(WireError, match="version 2"):
        frames.parse_header(data[:12] + future)


def test_names_ranks_and_counts_at_their_limits(tmp_path: Path) -> None:
    one = np.ones(1, "<f4")
    longest = "n" * frames.MAX_NAME
    assert feed(framed(tmp_path / "f", {longest: one})).complete
    assert feed(framed(tmp_path / "f", {"r": one.reshape((1,) * frames.MAX_RANK)})).complete
    for weights in ({longest + "n": one}, {"r": one.reshape((1,) * (frames.MAX_RANK + 1))}, {}):
        with pytest.raises(WireError):
            frames.write(tmp_path / "f", weights)


def test_the_largest_count_of_tensors(tmp_path: Path) -> None:
    schema = tuple(TensorSpec(f"{i}", "uint8", (0,)) for i in range(frames.MAX_TENSORS))
    with frames.opened(tmp_path / "f", os.O_RDWR | os.O_CREAT) as fd:
        header = frames.FrameWriter(fd, schema).finish()
        assert frames.read_header(fd).digest == header.digest
        more = (*schema, TensorSpec("more", "uint8", (0,)))
        with pytest.raises(WireError, match="1 to 100000 tensors"):
            frames.FrameWriter(fd, more)


def test_writer_counts_the_bytes(tmp_path: Path) -> None:
    schema = (TensorSpec("a", "float32", (2,)), TensorSpec("b", "float32", (2,)))
    with frames.opened(tmp_path / "f", os.O_RDWR | os.O_CREAT) as fd:
        writer = frames.FrameWriter(fd, schema)
        for byte in np.arange(4, dtype="<f4").tobytes()[:-1]:
            writer.append(bytes([byte]))
        with pytest.raises(WireError, match="'b' is 1 bytes short"):
            writer.finish()
        with pytest.raises(WireError, match="not a tensor frame"):
            frames.read_header(fd)  # an unfinished frame is no frame
        writer.append(b"\x40")
        with pytest.raises(WireError, match="1 bytes more"):
            writer.append(b"\0")
        header = writer.finish()
        assert frames.read_header(fd) == header
    assert frames.read(tmp_path / "f")["b"].tolist() == [2, 3]


def test_writer_leaves_no_trace_of_a_tensor_it_left_out(tmp_path: Path) -> None:
    big, small = np.full(1000, 7, "<f4"), np.full(2, 8, "<f4")
    known = frames.tensor_digest("float32", big.tobytes())
    header = frames.write(tmp_path / "f", {"big": big, "small": small}, {known})
    data = (tmp_path / "f").read_bytes()
    assert len(data) == header.total_bytes == header.data_start + 64
    assert feed(data).complete
    assert big.tobytes()[:4] not in data[header.data_start :]


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    with frames.opened("/dev/full", os.O_WRONLY) as fd, pytest.raises(StorageError):
        frames.write(fd, {"a": np.ones(3, "<f4")})
    with pytest.raises(StorageError, match="could not open"):
        frames.read(tmp_path / "nothing")


def test_other_dtypes_and_layouts(tmp_path: Path) -> None:
    with pytest.raises(UpdateRejected, match="cannot travel"):
        frames.write(tmp_path / "f", {"a": np.ones(3, ">f4")})
    with pytest.raises(UpdateRejected, match="cannot travel"):
        frames.write(tmp_path / "f", {"a": np.array([None])})
    turned = np.arange(6, dtype="<f4").reshape(2, 3).T
    frames.write(tmp_path / "f", {"a": turned})
    assert np.array_equal(frames.read(tmp_path / "f")["a"], turned)


# ---- fuzz ------------------------------------------------------------------------------------


def _golden() -> bytes:
    return bytes.fromhex((VECTORS / "frame-v1.hex").read_text())


def _try(data: bytes, pieces: list[int]) -> None:
    verifier = Verifier(1 << 16)
    try:
        for piece in pieces:
            verifier.feed(data[:piece])
            data = data[piece:]
        verifier.feed(data)
    except (WireError, UpdateRejected):
        assert not verifier.complete


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
@example(b"", True)
def test_any_bytes_are_a_frame_or_an_error(noise: bytes, prefixed: bool) -> None:
    head = b"CSLFRM1\n" + len(noise).to_bytes(4, "little")
    _try(head + noise + bytes(64) if prefixed else noise, [5])


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_mutations_of_a_frame_are_a_frame_or_an_error(data: st.DataObject) -> None:
    frame = bytearray(_golden())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "drop"])):
            case "set":
                frame[at] = data.draw(st.integers(0, 255))
            case "cut":
                del frame[max(at, 1) :]
            case "insert":
                frame[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case "drop" if len(frame) > 1:
                del frame[at]
    _try(bytes(frame), data.draw(st.lists(st.integers(0, 100), max_size=5)))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40)
    | st.text(max_size=20) | st.floats(),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)  # fmt: skip
_ENTRY = st.tuples(
    st.text(max_size=20),
    st.sampled_from([*DTYPES, "str", ""]),
    st.lists(st.integers(0, 2**63), max_size=18),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=32, max_size=32),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({"v": st.just(1), "tensors": st.lists(_ENTRY | _JSON)}) | _JSON)
def test_any_message_as_header_is_a_frame_or_an_error(body: object) -> None:
    raw = msgspec.msgpack.encode(body)
    _try(b"CSLFRM1\n" + len(raw).to_bytes(4, "little") + raw + bytes(64), [])


def test_memory_of_a_hostile_header_is_bounded() -> None:
    """16 MiB that claim four billion tensors must not become gigabytes."""
    raw = b"\x82\xa1v\x01\xa7tensors\xdd\xff\xff\xff\xff"
    raw += b"\x90" * (frames.MAX_HEADER - len(raw))
    head = b"CSLFRM1\n" + len(raw).to_bytes(4, "little") + raw
    tracemalloc.start()
    with pytest.raises(WireError):
        Verifier(1 << 40).feed(head + bytes(64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * frames.MAX_HEADER
