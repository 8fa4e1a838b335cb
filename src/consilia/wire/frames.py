"""Tensor frames: how weights travel and rest, in one pass and without a copy of the model.

    magic "CSLFRM1\\n" | u32 LE header length | msgpack header | zeros to a multiple of 64
    tensor 0 | zeros to a multiple of 64 | tensor 1 | zeros ...

The header lists name, dtype, shape, offset (from the start of the data), bytes, digest and
whether the tensor is stored here. It has exactly one valid encoding, and its integers have
fixed widths, so a writer knows where the data starts before it has seen a byte of it.

The frame's digest is BLAKE3-256 of everything before the first padding. As the header holds
each tensor's BLAKE3, that is a Merkle root: each data byte is hashed once, and a reader can
check tensor by tensor. A tensor's digest is taken in BLAKE3's derive-key mode with its dtype
as context, so equal digests mean equal bytes *and* equal dtype.

`stored=False`: the tensor is the one with the same digest in the model that the frame was
trained from, and its bytes are not here: unchanged layers are not sent again.

Whatever bytes arrive, `Verifier`, `parse_header` and the readers return or raise WireError
(malformed, damaged, over a limit) or UpdateRejected (NaN or infinity); memory stays in
proportion to the header, which is limited. Files are read and written with pread and pwrite:
mapped pages would count as resident memory. Source of the digest: O'Connor et al., BLAKE3.
"""

import os
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from consilia.core.weights import DTYPES, Array, Schema, TensorSpec, Weights, schema_of
from consilia.errors import ConsiliaError, StorageError, UpdateRejected, WireError
from consilia.wire.header import (
    ALIGN,
    MAGIC,
    MAX_HEADER,
    MAX_NAME,
    MAX_RANK,
    MAX_TENSORS,
    PREFIX,
    Bytes,
    Header,
    TensorEntry,
    aligned,
    check_schema,
    encode_header,
    header_length,
    header_of,
    parse_header,
)

__all__ = [
    "ALIGN",
    "CHUNK",
    "MAGIC",
    "MAX_HEADER",
    "MAX_NAME",
    "MAX_RANK",
    "MAX_TENSORS",
    "PREFIX",
    "Bytes",
    "FrameWriter",
    "Header",
    "Source",
    "TensorEntry",
    "Verifier",
    "aligned",
    "borrowed",
    "chunks",
    "encode_header",
    "header_length",
    "missing_ranges",
    "opened",
    "parse_header",
    "raw_bytes",
    "read",
    "read_header",
    "read_tensor",
    "tensor_digest",
    "write",
]

CHUNK = 256 << 10  # the size at which hashing, TLS and disk are all near their best

Source = int | str | os.PathLike[str]  # an open descriptor, or a path


# ---- one tensor's bytes: digest and finite check in the same pass ----------------------------

# A float's exponent is all ones exactly when it is infinite or NaN: read as a signed integer,
# positive ones are then the largest values, and read as unsigned, negative ones are. Two
# integer maxima over data that is in the CPU's cache need no scratch memory and are exact.
_LIMITS: Mapping[str, tuple[str, int, str, int]] = {
    "float64": ("<i8", 0x7FF << 52, "<u8", 0xFFF << 52),
    "float32": ("<i4", 0xFF << 23, "<u4", 0x1FF << 23),
    "float16": ("<i2", 0x1F << 10, "<u2", 0x3F << 10),
    "bfloat16": ("<i2", 0xFF << 7, "<u2", 0x1FF << 7),
}


def _hasher(dtype: str) -> blake3:
    return blake3(derive_key_context=f"consilia 2026 tensor {dtype}")


def tensor_digest(dtype: str, data: Bytes) -> bytes:
    """Return the digest of a tensor of `dtype` whose bytes are `data`."""
    return _hasher(dtype).update(data).digest()


class _Pass:
    """Takes the bytes of one tensor, however they are cut, and gives its digest."""

    def __init__(self, spec: TensorSpec, check_finite: bool) -> None:
        self._spec = spec
        self._hash = _hasher(spec.dtype)
        self._limits = _LIMITS.get(spec.dtype) if check_finite else None
        self._width = DTYPES[spec.dtype].itemsize
        self._tail = b""  # a value cut in two
        self.left = spec.nbytes

    def feed(self, span: memoryview) -> None:
        """Take at most `left` bytes; raise at the first value that may not travel."""
        self.left -= len(span)
        self._hash.update(span)
        if self._spec.dtype == "bool":
            if np.frombuffer(span, np.uint8).max() > 1:
                raise WireError(f"tensor {self._spec.name!r} holds a bool other than 0 and 1")
        elif self._limits is not None:
            self._scan(span, self._limits)

    def digest(self) -> bytes:
        """Return the digest of what was fed."""
        return self._hash.digest()

    def _scan(self, span: memoryview, limits: tuple[str, int, str, int]) -> None:
        if self._tail:
            need = self._width - len(self._tail)
            self._tail += bytes(span[:need])
            span = span[need:]
            if len(self._tail) < self._width:
                return
            self._compare(memoryview(self._tail), limits)
            self._tail = b""
        whole = len(span) - len(span) % self._width
        if whole < len(span):
            self._tail = bytes(span[whole:])
        if whole:
            self._compare(span[:whole], limits)

    def _compare(self, span: memoryview, limits: tuple[str, int, str, int]) -> None:
        signed, positive, unsigned, negative = limits
        if (
            np.frombuffer(span, signed).max() >= positive
            or np.frombuffer(span, unsigned).max() >= negative
        ):
            raise UpdateRejected(
                f"tensor {self._spec.name!r} holds NaN or infinity; training diverged"
            )


# ---- writing ---------------------------------------------------------------------------------


class FrameWriter:
    """Writes a frame while its tensors' bytes stream in: data first, header last.

    `fd` is open for writing; its file is overwritten and cut to the frame's length. Tensors
    whose digest is in `unchanged` (digests of the base model's tensors) are left out.
    Nothing is synced. A frame of which `finish` was not reached has no magic and is no frame.
    """

    def __init__(
        self,
        fd: int,
        schema: Schema,
        unchanged: Container[bytes] = frozenset(),
        *,
        check_finite: bool = True,
    ) -> None:
        check_schema(schema)
        self._fd = fd
        self._schema = schema
        self._unchanged = unchanged
        self._finite = check_finite
        blank = (TensorEntry(t.name, t.dtype, t.shape, 0, 0, bytes(32), True) for t in schema)
        self._start = aligned(len(encode_header(tuple(blank))))
        self._at = self._begin = self._start
        self._entries: list[TensorEntry] = []
        _pwrite(fd, bytes(PREFIX), 0)
        self._pass = _Pass(schema[0], check_finite)
        self._close_full()

    def append(self, data: Bytes) -> None:
        """Take the next bytes of the tensors, in schema order, without padding."""
        view = _flat(data)
        while len(view):
            if len(self._entries) == len(self._schema):
                raise WireError(f"{len(view)} bytes more than the frame's tensors hold")
            span = view[: self._pass.left]
            self._pass.feed(span)
            _pwrite(self._fd, span, self._at)
            self._at += len(span)
            view = view[len(span) :]
            self._close_full()

    def finish(self) -> Header:
        """Write the header and return it; raise WireError when bytes are missing."""
        if len(self._entries) < len(self._schema):
            spec = self._schema[len(self._entries)]
            raise WireError(f"tensor {spec.name!r} is {self._pass.left} bytes short")
        entries = tuple(self._entries)
        raw = encode_header(entries)
        header = header_of(entries, raw)
        _pwrite(self._fd, raw + bytes(header.data_start - len(raw)), 0)
        try:
            os.ftruncate(self._fd, header.total_bytes)
        except OSError as e:
            raise StorageError(f"could not set the length of a frame: {e}") from e
        return header

    def _close_full(self) -> None:
        """Enter every tensor that is complete (empty ones at once), and open the next."""
        while not self._pass.left and len(self._entries) < len(self._schema):
            spec = self._schema[len(self._entries)]
            digest = self._pass.digest()
            stored = digest not in self._unchanged
            offset = self._begin - self._start if stored else 0
            self._entries.append(
                TensorEntry(
                    spec.name, spec.dtype, spec.shape, offset, spec.nbytes, digest, stored
                )
            )
            if stored:
                end = aligned(self._at)
                _pwrite(self._fd, bytes(end - self._at), self._at)
                self._begin = end
            self._at = self._begin
            if len(self._entries) < len(self._schema):
                self._pass = _Pass(self._schema[len(self._entries)], self._finite)


def write(
    target: Source,
    weights: Mapping[str, Array] | Iterable[tuple[str, Array]],
    unchanged: Container[bytes] = frozenset(),
    *,
    check_finite: bool = True,
) -> Header:
    """Write `weights` to a descriptor or path in one pass and return the frame's header."""
    arrays = dict(weights)
    with opened(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        writer = FrameWriter(fd, schema_of(arrays), unchanged, check_finite=check_finite)
        for array in arrays.values():
            view = raw_bytes(np.ascontiguousarray(array))
            for start in range(0, len(view), CHUNK):
                writer.append(view[start : start + CHUNK])
        return writer.finish()


def raw_bytes(array: Array) -> memoryview:
    """Return the bytes of a C-contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


# ---- reading ---------------------------------------------------------------------------------


def read_header(source: Source) -> Header:
    """Read and check the header of a frame file."""
    with opened(source) as fd:
        stop = header_length(_pread(fd, PREFIX, 0))
        return parse_header(_pread(fd, stop, 0))


def read(source: Source) -> Weights:
    """Read every tensor into fresh writable arrays; digests were checked on arrival."""
    with opened(source) as fd:
        header = read_header(fd)
        weights: Weights = {}
        for entry in header.entries:
            weights[entry.name] = np.empty(entry.shape, DTYPES[entry.dtype])
            read_tensor(fd, header, entry, weights[entry.name])
        return weights


def read_tensor(fd: int, header: Header, entry: TensorEntry, out: Array) -> None:
    """Fill `out` (C-contiguous, of the entry's size) with a stored tensor."""
    _stored(entry)
    if out.nbytes != entry.nbytes:
        raise ValueError(f"tensor {entry.name!r} has {entry.nbytes} bytes, out {out.nbytes}")
    _preadinto(fd, raw_bytes(out), header.span(entry)[0])


def chunks(
    fd: int, header: Header, entry: TensorEntry, buffer: bytearray | NDArray[np.uint8]
) -> Iterator[Array]:
    """Yield a stored tensor as flat pieces, all in `buffer`: use each before the next."""
    _stored(entry)
    dtype = DTYPES[entry.dtype]
    room = len(buffer) - len(buffer) % dtype.itemsize
    if not room:
        raise ValueError(f"a buffer of {len(buffer)} bytes holds no {entry.dtype}")
    view = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
    whole = np.frombuffer(view[:room], dtype)
    start, stop = header.span(entry)
    while start < stop:
        take = min(room, stop - start)
        _preadinto(fd, view[:take], start)
        yield whole if take == room else whole[: take // dtype.itemsize]
        start += take


def borrowed(update: Header, base: Header) -> dict[str, TensorEntry]:
    """Return, by name, the base's entry for each tensor that `update` does not store.

    Raises UpdateRejected when the base holds no tensor of that digest.
    """
    known = {e.digest: e for e in base.entries if e.stored}
    found = {e.name: known.get(e.digest) for e in update.entries if not e.stored}
    for name, entry in found.items():
        if entry is None:
            raise UpdateRejected(
                f"tensor {name!r} is left out as unchanged, but the model it was trained from "
                "holds no such tensor"
            )
    return {name: entry for name, entry in found.items() if entry is not None}


def missing_ranges(
    header: Header, have: Container[bytes], gap: int = 0
) -> list[tuple[int, int]]:
    """Return (start, stop) positions in the file of stored tensors with digests not in `have`.

    Ranges include padding. Neighbours at most `gap` bytes apart are merged: a few bytes sent
    twice cost less than one more trip over a long line.
    """
    ranges: list[tuple[int, int]] = []
    for entry in header.entries:
        if not entry.stored or not entry.nbytes or entry.digest in have:
            continue
        start, stop = header.span(entry)
        stop = aligned(stop)
        if ranges and start - ranges[-1][1] <= gap:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((start, stop))
    return ranges


def _stored(entry: TensorEntry) -> None:
    if not entry.stored:
        raise WireError(
            f"tensor {entry.name!r} is not in this frame but in the model it was trained from"
        )


# ---- verifying -------------------------------------------------------------------------------


class Verifier:
    """Checks a frame while it streams by, in pieces of any size; raises at the first fault.

    `limit_bytes` bounds the whole frame, `expected` is its digest where it is known before.
    After a fault every further call raises it again.
    """

    def __init__(
        self, limit_bytes: int, *, check_finite: bool = True, expected: str | None = None
    ) -> None:
        self._limit = limit_bytes
        self._finite = check_finite
        self._expected = expected
        self._head = bytearray()  # until the data starts
        self._need = PREFIX
        self._todo: Iterator[TensorEntry] = iter(())
        self._entry: TensorEntry | None = None
        self._pass: _Pass | None = None
        self._padding = 0  # zero bytes due before the next tensor
        self._fault: ConsiliaError | None = None
        self.header: Header | None = None
        self.position = 0  # bytes taken so far

    @property
    def complete(self) -> bool:
        """True when the whole frame has been seen and is sound."""
        return (
            self._fault is None
            and self.header is not None
            and self.position == self.header.total_bytes
        )

    def feed(self, data: Bytes) -> None:
        """Take the next bytes; raise WireError or UpdateRejected when they break the law."""
        if self._fault is not None:
            raise self._fault
        try:
            view = _flat(data)
            while len(view):
                taken = self._data(view) if self.header else self._start(view)
                self.position += taken
                view = view[taken:]
        except ConsiliaError as e:
            self._fault = e
            raise

    def feed_file(self, fd: int, stop: int, buffer: bytearray | None = None) -> None:
        """Take the bytes from `position` to `stop` from a file, to resume a broken line."""
        view = memoryview(buffer or bytearray(CHUNK))
        while self.position < stop:
            piece = view[: stop - self.position]
            _preadinto(fd, piece, self.position)
            self.feed(piece)

    def _start(self, view: memoryview) -> int:
        """Collect prefix, header and padding; every length is checked before it is awaited."""
        taken = min(len(view), self._need - len(self._head))
        self._head += view[:taken]
        if self._head[:8] != MAGIC[: len(self._head)]:
            raise WireError(f"not a tensor frame: it starts with {bytes(self._head[:8])!r}")
        if len(self._head) == self._need == PREFIX:
            length = header_length(self._head)
            if aligned(length) > self._limit:
                raise WireError(f"frame header of {length} bytes, limit {self._limit}")
            self._need = aligned(length)
        elif len(self._head) == self._need:
            self._open(parse_header(self._head))
        return taken

    def _open(self, header: Header) -> None:
        if any(self._head[header_length(self._head) :]):
            raise WireError("padding after the frame header is not zero")
        if header.total_bytes > self._limit:
            raise WireError(f"frame of {header.total_bytes} bytes, limit {self._limit}")
        if self._expected not in (None, header.digest):
            raise WireError(f"frame {header.digest} is not the expected {self._expected}")
        self._head = bytearray()
        self.header = header
        self._todo = (e for e in header.entries if e.stored)
        self._next()

    def _next(self) -> None:
        """Go to the next tensor that has bytes; empty ones are checked on the way."""
        for entry in self._todo:
            self._entry, self._pass = entry, _Pass(entry.spec, self._finite)
            if entry.nbytes:
                return
            self._settle(entry, self._pass)
        self._entry = self._pass = None

    def _settle(self, entry: TensorEntry, done: _Pass) -> None:
        if done.digest() != entry.digest:
            raise WireError(f"tensor {entry.name!r} does not match its digest: bytes damaged")

    def _data(self, view: memoryview) -> int:
        """Take bytes of one region: padding, or the open tensor."""
        if self._padding:
            pad = view[: self._padding]
            if any(pad):
                raise WireError("padding between tensors is not zero")
            self._padding -= len(pad)
            return len(pad)
        if self._entry is None or self._pass is None:
            raise WireError(f"{len(view)} bytes after the end of the frame")
        span = view[: self._pass.left]
        self._pass.feed(span)
        if not self._pass.left:
            self._settle(self._entry, self._pass)
            self._padding = aligned(self._entry.nbytes) - self._entry.nbytes
            self._next()
        return len(span)


def _flat(data: Bytes) -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.nbytes else view[:0]


# ---- files -----------------------------------------------------------------------------------


@contextmanager
def opened(source: Source, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Yield a descriptor of a path (closed afterwards), or the given one."""
    if isinstance(source, int):
        yield source
        return
    try:
        fd = os.open(Path(source), flags | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StorageError(f"could not open frame {os.fspath(source)}: {e.strerror}") from e
    try:
        yield fd
    finally:
        os.close(fd)


def _pread(fd: int, count: int, offset: int) -> bytes:
    """Read up to `count` bytes; fewer only at the end of the file."""
    try:
        data = os.pread(fd, count, offset)
        while len(data) < count and (
            more := os.pread(fd, count - len(data), offset + len(data))
        ):
            data += more
    except OSError as e:
        raise StorageError(f"could not read a frame: {e}") from e
    return data


def _preadinto(fd: int, view: memoryview, offset: int) -> None:
    while len(view):
        try:
            count = os.preadv(fd, [view], offset)
        except OSError as e:
            raise StorageError(f"could not read a frame: {e}") from e
        if not count:
            raise WireError(f"frame cut off: {len(view)} bytes missing at {offset}")
        view, offset = view[count:], offset + count


def _pwrite(fd: int, data: Bytes, offset: int) -> None:
    view = _flat(data)
    while len(view):
        try:
            count = os.pwrite(fd, view, offset)
        except OSError as e:
            raise StorageError(f"could not write a frame: {e}") from e
        view, offset = view[count:], offset + count
