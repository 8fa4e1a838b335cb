"""Tensor frames between node and hub: blocking, resumable both ways, checked as they stream.

Threads of the agent call `fetch` and `upload`; each borrows a kept-alive TLS connection with
ALPN consilia-blob/1. A broken line is taken up again where it broke: a download with a Range,
an upload with HEAD and then PUT at the offset the hub has. `wire.frames.Verifier` sees every
byte of a download before the file gets its name, so a file in the cache is whole and sound.
A download that the agent's end interrupted goes on from its `.part` file.

Tensors that a cached frame already holds (same digest) are copied from there, not fetched.
"""

import contextlib
import fcntl
import http.client
import logging
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from consilia.errors import AuthError, StorageError, TransferError, UpdateRejected, WireError
from consilia.node.line import Proxy, Retry, line_error
from consilia.node.store import printable
from consilia.wire import frames
from consilia.wire.frames import CHUNK, Header, TensorEntry, Verifier
from consilia.wire.problem import error_of
from consilia.wire.v1 import MAX_MESSAGE

T = TypeVar("T")
PROBE = 5 * CHUNK  # bytes asked for first when parts of a frame may be known already
GAP = CHUNK  # shorter known stretches are fetched with their neighbours
TIMEOUT = 60.0  # seconds of silence on a line
UNSENT = 30_000  # milliseconds after which the kernel gives up on unacknowledged bytes
SMALL = 4 << 20  # bytes that are sent without asking first how far an upload has come
EARLY = 5.0  # seconds to wait for the answer to an upload that the hub cut off
TELL = 3  # failures in a row after which the log tells why nothing moves

_BROKEN = (OSError, http.client.HTTPException)
_LOG = logging.getLogger("consilia.node.blobline")


class _Trouble(OSError):
    """The hub answered that it cannot, for now (5xx), or that an upload goes on elsewhere."""


class _Line(http.client.HTTPSConnection):
    """One connection, which notices a dead line in half a minute."""

    def connect(self) -> None:
        """Connect, through the proxy if there is one, and shake hands."""
        super().connect()
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNSENT),
        ):
            self.sock.setsockopt(level, option, value)

    @property
    def alive(self) -> bool:
        """True unless the hub has closed the idle line."""
        if self.sock is None:
            return False
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        return not poller.poll(0)


class BlobLine:
    """The blob road to one hub. Any thread may call any method."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        address: tuple[str, int],
        context: ssl.SSLContext,
        proxy: Proxy | None,
        *,
        retry: Retry,
        random: Callable[[], float],
        frame_limit: int,
    ) -> None:
        """`random` gives numbers in [0, 1); `frame_limit` bounds a download, bytes."""
        self._address = address
        self._hub = f"{address[0]}:{address[1]}"
        self._context = context
        self._proxy = proxy
        self._retry = retry
        self._random = random
        self._frame_limit = frame_limit
        self._lock = threading.Lock()
        self._idle: list[_Line] = []
        self._busy: set[_Line] = set()
        self._closed = threading.Event()

    def fetch(self, digest: str, path: Path, have: Sequence[Path] = ()) -> Header:
        """Bring frame `digest` to `path`, unless it is there, and return its header.

        `have` are cached frames that may hold some of its tensors. Callers who want the same
        path wait for each other, and one of them transfers. Raises TransferError when the line
        stays broken, WireError when what came is not the frame, and what the hub answered.
        """
        with _part(path) as fd:
            if fd is None:
                if (header := frames.read_header(path)).digest != digest:
                    raise WireError(f"{path} holds {header.digest}, needed {digest}")
                return header
            try:
                header = self._download(digest, fd, have)
            except WireError:
                if not have:
                    raise
                header = self._download(digest, fd, ())  # a cached frame was damaged
            _name(path)
            return header

    def upload(self, lease: str, path: Path) -> str:
        """Send the frame at `path` as the update of `lease`; return the digest the hub found.

        Raises UpdateRejected or WireError when the hub refuses it, TransferError when the line
        stays broken or the hub has found another digest than the file has.
        """
        with frames.opened(path) as fd:
            header = frames.read_header(fd)
            sending = _Sending(self, lease, fd, os.fstat(fd).st_size)
            digest = self._persist(sending.step, lambda: sending.offset)
        if digest != header.digest:
            raise TransferError(f"the hub has {digest}, {path.name} was {header.digest}")
        return digest

    def refusal(self) -> AuthError | None:
        """Ask whether the hub refuses this node's certificate, and if so, why."""
        try:
            with self.line() as line:
                line.request("HEAD", "/v1/uploads/none")
                response = line.getresponse()
                response.read()
        except _BROKEN as e:
            error = line_error(e, self._hub)
            return error if isinstance(error, AuthError) else None
        return AuthError("the hub refuses this node") if response.status == 401 else None

    def renewed(self) -> None:
        """Let go of idle connections: the next ones show the new certificate."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def close(self) -> None:
        """Cut every line; calls under way raise TransferError soon."""
        self._closed.set()
        self.renewed()
        with self._lock:
            for line in self._busy:
                if line.sock is not None:
                    with contextlib.suppress(OSError):  # the base's: it leaves TLS in place
                        socket.socket.shutdown(line.sock, socket.SHUT_RDWR)

    @contextmanager
    def line(self) -> Iterator[_Line]:
        """Borrow a connection; it is kept when the exchange on it ended well."""
        line = self._take()
        try:
            yield line
        except BaseException:
            with self._lock:
                self._busy.discard(line)
            line.close()
            raise
        with self._lock:
            self._busy.discard(line)
            keep = line.sock is not None and not self._closed.is_set()
            if keep:
                self._idle.append(line)
        if not keep:
            line.close()

    def _take(self) -> _Line:
        with self._lock:
            while self._idle:
                line = self._idle.pop()
                if line.alive:
                    self._busy.add(line)
                    return line
                line.close()
        if self._proxy is None:
            host, port = self._address
            line = _Line(host, port, context=self._context, timeout=TIMEOUT)
        else:
            host, port = self._proxy.host, self._proxy.port
            line = _Line(host, port, context=self._context, timeout=TIMEOUT)
            line.set_tunnel(*self._address, headers=dict(self._proxy.headers))
        with self._lock:
            self._busy.add(line)
        return line

    def _download(self, digest: str, fd: int, have: Sequence[Path]) -> Header:
        with _Download(self, digest, fd, self._frame_limit, have) as download:
            return self._persist(download.step, lambda: download.position)

    def _persist(self, step: Callable[[], T | None], position: Callable[[], int]) -> T:
        """Repeat `step` until it returns something; wait longer while nothing moves."""
        failures, mark = 0, position()
        while True:
            try:
                if (done := step()) is not None:
                    return done
            except _BROKEN as e:
                error = line_error(e, self._hub)
                if isinstance(error, AuthError):
                    raise error from None
                if position() > mark:
                    failures, mark = 0, position()
                failures += 1
                if self._closed.is_set() or failures > self._retry.attempts:
                    raise TransferError(f"{error} (tried {failures} times)") from e
                if failures == TELL:
                    _LOG.warning(
                        "a frame is held up: %s; trying again", printable(str(error), 500)
                    )
                if self._closed.wait(self._retry.delay(failures, self._random())):
                    raise TransferError(f"the transfer with {self._hub} was ended") from e


class _Download:
    """One frame on its way into a file that is exclusively ours."""

    def __init__(
        self, line: BlobLine, digest: str, fd: int, limit: int, have: Sequence[Path]
    ) -> None:
        self._line = line
        self._digest = digest
        self._fd = fd
        self._buffer = memoryview(bytearray(CHUNK))
        self._local = _Local(have)
        self._missing: list[tuple[int, int]] | None = None
        self._verifier = Verifier(limit, expected=digest)
        try:
            self._verifier.feed_file(fd, os.fstat(fd).st_size)
        except (WireError, UpdateRejected):
            self._verifier = Verifier(limit, expected=digest)
            os.ftruncate(fd, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._local.close()

    @property
    def position(self) -> int:
        return self._verifier.position

    def step(self) -> Header | None:
        """Make one request, or none when the rest is known; return the header at the end."""
        check = self._verifier
        if check.header is None:
            self._get(self.position, self.position + PROBE if self._local.known else None)
        if check.header is None:
            return None
        if self._missing is None:
            self._missing = frames.missing_ranges(check.header, self._local.known, GAP)
        for start, stop in self._missing:
            if stop > self.position:
                self._copy(check.header, start)
                self._get(self.position, stop)
                break
        else:
            self._copy(check.header, check.header.total_bytes)
        return check.header if check.complete else None

    def _get(self, start: int, stop: int | None) -> None:
        """Ask for the bytes from `start` to `stop`, or to the end, and take them."""
        with self._line.line() as line:
            line.putrequest("GET", f"/v1/blobs/{self._digest}", skip_accept_encoding=True)
            if start or stop is not None:
                line.putheader("Range", f"bytes={start}-{'' if stop is None else stop - 1}")
            line.endheaders()
            response = line.getresponse()
            if response.status not in (200, 206):
                raise _refusal(response)
            if response.length is None or (start and response.status == 200):
                raise WireError("the hub, or something before it, does not answer ranges")
            while response.length:
                if not (count := response.readinto(self._buffer)):
                    raise ConnectionError(f"line closed {response.length} bytes too early")
                self._take(self._buffer[:count])
            response.read()  # nothing left: marks the connection as free

    def _copy(self, header: Header, stop: int) -> None:
        """Take the bytes up to `stop` from frames we have."""
        for entry in header.entries:
            start, end = header.span(entry)
            if not entry.stored or end <= self.position or start >= stop:
                continue
            while self.position < end:
                piece = self._buffer[: end - self.position]
                self._local.read(entry, self.position - start, piece)
                self._take(piece)
            self._take(memoryview(bytes(frames.aligned(end) - end)))

    def _take(self, piece: memoryview) -> None:
        at, rest = self.position, piece
        try:
            while rest:
                count = os.pwrite(self._fd, rest, at)
                at, rest = at + count, rest[count:]
        except OSError as e:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)  # give the space back
            raise StorageError(f"the node's cache cannot take a model: {e.strerror}") from e
        self._verifier.feed(piece)


class _Local:
    """The tensors that cached frames hold, by digest. Frames that are gone are passed over."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.known: dict[bytes, tuple[int, int]] = {}  # descriptor and position
        self._open: list[int] = []
        for path in paths:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            self._open.append(fd)
            with contextlib.suppress(WireError, StorageError):
                header = frames.read_header(fd)
                self.known.update(
                    (e.digest, (fd, header.span(e)[0])) for e in header.entries if e.stored
                )

    def read(self, entry: TensorEntry, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset` within a known tensor; the verifier judges the bytes."""
        fd, start = self.known[entry.digest]
        while out:
            if not (count := os.preadv(fd, [out], start + offset)):
                raise WireError(f"a cached frame ends before tensor {entry.name!r} does")
            offset, out = offset + count, out[count:]

    def close(self) -> None:
        """Close the frames."""
        while self._open:
            os.close(self._open.pop())


class _Sending:
    """One frame on its way to the hub. `offset` is what the hub is known to have."""

    def __init__(self, line: BlobLine, lease: str, fd: int, total: int) -> None:
        self._line = line
        self._path = f"/v1/uploads/{lease}"
        self._fd = fd
        self._total = total
        self._sure = total <= SMALL  # a fresh one starts at 0; if not, the hub says so
        self._buffer = memoryview(bytearray(CHUNK))
        self.offset = 0

    def step(self) -> str | None:
        """Ask where to go on when that is not sure, or send the rest; return the digest."""
        if not self._sure:
            self._ask()
        self._sure = False
        with self._line.line() as line:
            try:
                self._send(line)
            except OSError as e:
                response = self._early(line, e)
            else:
                response = line.getresponse()
            told = response.getheader("Upload-Offset", "")
            if response.status in (200, 409) and told.isdecimal():
                body = response.read(MAX_MESSAGE)
                self.offset, self._sure = min(int(told), self._total), True
                if response.status == 409:
                    raise _Trouble(str(error_of(409, body)))
                if (digest := response.getheader("Frame-Digest")) is None:
                    raise _Trouble("the hub took an update whole and did not say what it found")
                return digest
            raise _refusal(response)

    def _ask(self) -> None:
        with self._line.line() as line:
            line.request("HEAD", self._path)
            response = line.getresponse()
            response.read()
            told = response.getheader("Upload-Offset", "")
            if response.status != 200 or not told.isdecimal():
                raise _refusal(response)
        if int(told) > self._total:
            raise TransferError(f"the hub has {told} bytes of a frame of {self._total}")
        self.offset = int(told)

    def _send(self, line: _Line) -> None:
        line.putrequest("PUT", self._path, skip_accept_encoding=True)
        line.putheader("Content-Length", str(self._total - self.offset))
        line.putheader("Upload-Offset", str(self.offset))
        line.putheader("Upload-Length", str(self._total))
        line.endheaders()
        at = self.offset
        while at < self._total:
            count = os.preadv(self._fd, [self._buffer[: self._total - at]], at)
            if not count:
                raise TransferError("the frame in the outbox is shorter than it was")
            line.send(self._buffer[:count])
            at += count

    def _early(self, line: _Line, error: OSError) -> http.client.HTTPResponse:
        """The hub stopped reading: return what it had to say, or raise `error`."""
        if line.sock is None:
            raise error
        try:
            line.sock.settimeout(EARLY)
            response = line.getresponse()
            response.will_close = True
        except ssl.SSLError:
            raise  # an alert: our certificate was refused
        except _BROKEN:
            raise error from None
        return response


def _refusal(response: http.client.HTTPResponse) -> Exception:
    """Return what an answer that is not the hoped-for one means."""
    body = response.read(MAX_MESSAGE)
    error = error_of(response.status, body)
    if response.status >= 500:
        return _Trouble(str(error))
    return error


@contextmanager
def _part(path: Path) -> Iterator[int | None]:
    """Yield a descriptor of `path`'s .part file, ours alone; None when `path` exists."""
    part = path.with_name(path.name + ".part")
    while True:
        if path.exists():
            yield None
            return
        try:
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise StorageError(f"the node's cache cannot be written: {e}") from e
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not path.exists() and _names(part, fd):
                yield fd
                return
        finally:
            os.close(fd)


def _names(path: Path, fd: int) -> bool:
    """Say whether `path` still names the file that `fd` has open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _name(path: Path) -> None:
    try:
        path.with_name(path.name + ".part").replace(path)
    except OSError as e:
        raise StorageError(f"the node's cache cannot be written: {e}") from e
