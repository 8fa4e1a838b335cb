"""The little HTTP/1.1 that the blob plane speaks: strict, bounded, without chunked bodies.

The standard library's handler parses headers as e-mail; this reads only what the three roads
of the plane use, and refuses whatever two readers could understand differently.
"""

import re
from dataclasses import dataclass

from consilia.errors import WireError

MAX_HEAD = 8 << 10  # bytes of request line and headers
MAX_FIELDS = 64

_LINE = re.compile(r"(GET|HEAD|PUT) (/[!-~]{0,1000}) HTTP/1\.1")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([ -~]*?)[ \t]*")
_NUMBER = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})")
_REASONS = {200: "OK", 206: "Partial Content", 409: "Conflict", 416: "Range Not Satisfiable"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request's head; None where a header is absent."""

    method: str
    path: str
    range: str
    length: int | None
    upload_offset: int | None
    upload_length: int | None
    keep: bool  # the connection stays open


def parse(head: bytes) -> Request:
    """Read a request's head, without its last empty line; WireError when it is unclear."""
    lines = head.decode("latin-1").split("\r\n")
    if len(lines) > MAX_FIELDS or (first := _LINE.fullmatch(lines[0])) is None:
        raise WireError("not a request of the blob plane")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        found = _FIELD.fullmatch(line)
        if found is None or found[1].lower() in fields:
            raise WireError("request header malformed or given twice")
        fields[found[1].lower()] = found[2]
    if "transfer-encoding" in fields or "content-encoding" in fields:
        raise WireError("encoded bodies are not taken; send Content-Length")
    method, path = first[1], first[2]
    if method != "PUT" and fields.get("content-length", "0") != "0":
        raise WireError(f"{method} takes no body")
    return Request(
        method,
        path,
        fields.get("range", ""),
        _number(fields, "content-length"),
        _number(fields, "upload-offset"),
        _number(fields, "upload-length"),
        fields.get("connection", "").lower() != "close",
    )


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return (start, stop) of a range of a file of `size` bytes, None when it has none such."""
    if not text:
        return 0, size
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    start = int(found[1])
    stop = min(int(found[2]) + 1, size) if found[2] else size
    return (start, stop) if start < stop else None


def response(status: int, fields: dict[str, object]) -> bytes:
    """Return an answer's head."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'See Body')}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _number(fields: dict[str, str], name: str) -> int | None:
    if (text := fields.get(name)) is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise WireError(f"header {name} is not a number")
    return int(text)
