"""Which road a TLS connection asks for: the ALPN names in its ClientHello.

Reads a copy of the first bytes and decides nothing else: whatever an attacker writes here, the
road it leads to demands its own proof. Sources: RFC 8446 (records, ClientHello), RFC 7301.
"""

from consilia.errors import WireError

MAX_HELLO = 16 << 10  # bytes; real ones have 200 to 2,000
ENROL = "consilia-enrol/1"
BLOB = "consilia-blob/1"
CONTROL = "http/1.1"

_HANDSHAKE, _CLIENT_HELLO, _ALPN = 22, 1, 16


def alpn(data: bytes) -> tuple[str, ...] | int:
    """Return the protocol names offered, or how many bytes are needed to know more.

    Raises WireError for anything that does not begin a ClientHello.
    """
    hello = bytearray()
    at, need = 0, 4
    while len(hello) < need:
        if len(data) < at + 5:
            _record(data[at:])
            return at + 5
        _record(data[at : at + 5])
        stop = at + 5 + int.from_bytes(data[at + 3 : at + 5], "big")
        hello += data[at + 5 : stop]
        if len(hello) >= 4:
            if hello[0] != _CLIENT_HELLO:
                raise WireError("not a ClientHello")
            need = 4 + int.from_bytes(hello[1:4], "big")
        if max(need, stop) > MAX_HELLO:
            raise WireError(f"ClientHello over {MAX_HELLO} bytes")
        if len(data) < stop:
            return stop
        at = stop
    return _names(bytes(hello[4:need]))


def _record(head: bytes) -> None:
    if head[:1] not in (b"", bytes([_HANDSHAKE])) or head[1:2] not in (b"", b"\x03"):
        raise WireError("not a TLS handshake")
    if len(head) == 5 and not 0 < int.from_bytes(head[3:5], "big") <= 1 << 14:
        raise WireError("TLS record of a length that no ClientHello has")


def _names(hello: bytes) -> tuple[str, ...]:
    reader = _Reader(hello)
    reader.take(2 + 32)  # version, random
    reader.vector(1)  # session id
    reader.vector(2)  # cipher suites
    reader.vector(1)  # compression
    if not reader.left:
        return ()
    extensions = _Reader(reader.vector(2))
    while extensions.left:
        kind = int.from_bytes(extensions.take(2), "big")
        body = extensions.vector(2)
        if kind == _ALPN:
            names, found = _Reader(_Reader(body).vector(2)), []
            while names.left:
                found.append(names.vector(1).decode("latin-1"))
            return tuple(found)
    return ()


class _Reader:
    """Takes bytes from the front; raises WireError when there are too few."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise WireError("ClientHello cut off within a field")
        self._at += count
        return self._data[self._at - count : self._at]

    def vector(self, width: int) -> bytes:
        return self.take(int.from_bytes(self.take(width), "big"))
