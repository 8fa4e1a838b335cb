"""The header of a tensor frame: its one valid encoding, its checks, its digest.

wire.frames tells what a frame is and is what others import. Here is the part that decides
whether a header is believed: every length is checked before anything is made from it.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Annotated

import msgspec
from blake3 import blake3

from consilia.core.weights import DTYPES, Schema, TensorSpec
from consilia.errors import WireError

MAGIC = b"CSLFRM1\n"
PREFIX = 12  # bytes of magic and header length
ALIGN = 64
MAX_HEADER = 16 << 20
MAX_TENSORS = 100_000
MAX_RANK = 16
MAX_NAME = 512
MAX_TENSOR_BYTES = 1 << 46  # keeps every size within what numpy can address

Bytes = bytes | bytearray | memoryview


class TensorEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One line of a frame's header. `offset` counts from the start of the data."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
    dtype: str
    shape: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=MAX_RANK)
    ]
    offset: int
    nbytes: int
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    stored: bool

    @property
    def spec(self) -> TensorSpec:
        """Name, dtype and shape."""
        return TensorSpec(self.name, self.dtype, self.shape)


class _HeaderBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    tensors: Annotated[
        tuple[TensorEntry, ...], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)
    ]


@dataclass(frozen=True)
class Header:
    """What a frame says about itself. Two headers are equal when their digests are."""

    entries: tuple[TensorEntry, ...]
    digest: str  # "b3:" and 64 hex characters
    data_start: int  # bytes before the first tensor
    total_bytes: int  # of the whole frame

    @cached_property
    def schema(self) -> Schema:
        """Names, dtypes and shapes, in order."""
        return tuple(e.spec for e in self.entries)

    @property
    def whole(self) -> bool:
        """True when every tensor is stored in the frame."""
        return all(e.stored for e in self.entries)

    def span(self, entry: TensorEntry) -> tuple[int, int]:
        """Return where in the file a stored tensor starts and stops, without padding."""
        start = self.data_start + entry.offset
        return start, start + entry.nbytes


# ---- header ----------------------------------------------------------------------------------


def header_length(prefix: Bytes) -> int:
    """Return the bytes of prefix and header, from a frame's first 12 bytes."""
    if len(prefix) < PREFIX:
        raise WireError(f"a tensor frame has at least {PREFIX} bytes, found {len(prefix)}")
    if bytes(prefix[:8]) != MAGIC:
        raise WireError(f"not a tensor frame: it starts with {bytes(prefix[:8])!r}")
    length = int.from_bytes(prefix[8:PREFIX], "little")
    if length > MAX_HEADER:
        raise WireError(f"frame header of {length} bytes is over the limit of {MAX_HEADER}")
    return PREFIX + length


def parse_header(head: Bytes) -> Header:
    """Return the header from the first `header_length` bytes of a frame (more may follow)."""
    stop = header_length(head)
    raw = bytes(head[:stop])
    if len(raw) < stop:
        raise WireError(f"frame header cut off after {len(raw)} of {stop} bytes")
    try:
        body = msgspec.msgpack.decode(raw[PREFIX:], type=_HeaderBody)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeError) as e:
        raise WireError(f"frame header is not valid: {e}") from None
    if body.v != 1:
        raise WireError(f"frame version {body.v}, this release reads version 1")
    check_schema(tuple(e.spec for e in body.tensors))
    _check_layout(body.tensors)
    if encode_header(body.tensors) != raw:
        raise WireError("frame header is not in its one valid encoding")
    return header_of(body.tensors, raw)


def header_of(entries: tuple[TensorEntry, ...], raw: bytes) -> Header:
    """Return the header of checked entries and their encoding."""
    start = aligned(len(raw))
    stored = (e.offset + aligned(e.nbytes) for e in entries if e.stored)
    total = start + max(stored, default=0)
    return Header(entries, "b3:" + blake3(raw).hexdigest(), start, total)


def check_schema(schema: Schema) -> None:
    """Raise WireError unless every tensor can be carried."""
    if not 1 <= len(schema) <= MAX_TENSORS:
        raise WireError(f"a frame carries 1 to {MAX_TENSORS} tensors, found {len(schema)}")
    if len({t.name for t in schema}) < len(schema):
        raise WireError("a frame names a tensor twice")
    for t in schema:
        if not (0 < len(t.name) <= MAX_NAME and t.name.isprintable()):
            raise WireError(
                f"tensor name {t.name[:40]!r} needs 1 to {MAX_NAME} printable characters"
            )
        if t.dtype not in DTYPES:
            raise WireError(
                f"tensor {t.name!r} has dtype {t.dtype[:20]!r}, not one that travels"
            )
        extent = prod(max(d, 1) for d in t.shape) * DTYPES[t.dtype].itemsize
        if len(t.shape) > MAX_RANK or extent > MAX_TENSOR_BYTES:
            raise WireError(f"tensor {t.name!r} is too large: rank or bytes over the limit")


def _check_layout(entries: tuple[TensorEntry, ...]) -> None:
    """Raise WireError unless stored tensors follow each other, aligned, without gaps."""
    expected = 0
    for e in entries:
        if e.nbytes != e.spec.nbytes:
            raise WireError(f"tensor {e.name!r} claims {e.nbytes} bytes, needs {e.spec.nbytes}")
        if e.offset != (expected if e.stored else 0):
            raise WireError(f"tensor {e.name!r} is at offset {e.offset}, needs {expected}")
        if e.stored:
            expected += aligned(e.nbytes)


def encode_header(entries: tuple[TensorEntry, ...]) -> bytes:
    """Return prefix and header: offset and bytes as uint64, all else as short as can be."""
    pack = msgspec.msgpack.encode
    count = len(entries)
    if count < 16:
        size = bytes([0x90 | count])
    elif count < 1 << 16:
        size = b"\xdc" + count.to_bytes(2, "big")
    else:
        size = b"\xdd" + count.to_bytes(4, "big")
    body = [b"\x82\xa1v\x01\xa7tensors", size]
    for e in entries:
        body += (
            b"\x97" + pack(e.name) + pack(e.dtype) + pack(e.shape),
            b"\xcf" + e.offset.to_bytes(8, "big") + b"\xcf" + e.nbytes.to_bytes(8, "big"),
            b"\xc4\x20" + e.digest + (b"\xc3" if e.stored else b"\xc2"),
        )
    header = b"".join(body)
    if len(header) > MAX_HEADER:
        raise WireError(f"frame header of {len(header)} bytes, limit {MAX_HEADER}")
    return MAGIC + len(header).to_bytes(4, "little") + header


def aligned(position: int) -> int:
    """Return the first multiple of 64 from `position` on."""
    return -(-position // ALIGN) * ALIGN
