"""The blob plane: tensor frames up and down, on blocking threads beside the event loop.

Large transfers on the loop would delay every poll. So each `consilia-blob/1` connection gets a
thread, mutual TLS 1.3, and one reused 256 KiB buffer; the number of threads is bounded. While
there are threads enough, each keeps its connection. Beyond half of them, a connection that has
been answered is parked (hub.blobpark): it stays open without a thread or a buffer, and gets
both again with its next request, so a thousand sites need not shake hands in every round. When
all threads are taken, the connection that has been idle longest is closed (its node connects
again); without an idle one, a handshake that dawdles; else the newcomer waits in a short queue.

    GET  /v1/blobs/{digest}    whole, or Range: bytes=a- / a-b
    HEAD /v1/uploads/{lease}   how far an upload has come
    PUT  /v1/uploads/{lease}   its next bytes; the last ones bring the verdict

Every request proves its identity again, so that a revoked site ends at its next request. What
a site may read and write is the federation's answer, never the caller's knowledge of a digest.
Time limits: the handshake, a request's head, any silence within a body, and each piece (256
KiB) of an upload. A site that has SITE_TRANSFERS requests under way, and a quarter of the
threads, has further ones cut off: one site alone cannot keep the others out.
"""

import contextlib
import os
import re
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from consilia.core import ids
from consilia.errors import AuthError, ConfigError, Conflict, ConsiliaError, NotFound, WireError
from consilia.hub.blobhttp import MAX_HEAD, Request, parse, parse_range, response
from consilia.hub.blobpark import Park
from consilia.hub.telemetry import Log
from consilia.wire.frames import CHUNK, Header
from consilia.wire.problem import problem

SITE_TRANSFERS = 16  # as many as a node starts at once
Moved = Callable[[str, str, int], None]  # site, "in" or "out", bytes
_LEASE = re.compile(r"[a-z0-9][a-z0-9._-]{0,199}")


class BlobHandle(Protocol):
    """An open frame."""

    @property
    def fd(self) -> int:
        """For pread."""

    @property
    def size(self) -> int:
        """Bytes."""

    def close(self) -> None:
        """Let go."""


class Upload(Protocol):
    """A frame on its way in; see hub.uploads."""

    @property
    def offset(self) -> int:
        """Bytes taken so far."""

    def announce(self, total: int) -> None:
        """Take note of how many bytes there will be; raise WireError when that is too many."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes."""

    def finish(self) -> Header:
        """Verify and make durable."""

    def close(self) -> None:
        """Let go, keeping what has come."""


class FrameStore(Protocol):
    """What the plane asks of the federation. Called from many threads."""

    def readable(self, site: str, digest: str) -> BlobHandle:
        """Open a frame that `site` may read now; raise Refused or NotFound."""

    def upload(self, site: str, lease: str) -> Upload:
        """Open the upload of a lease of `site`; raise Refused or NotFound."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Patience, in seconds."""

    handshake: float = 10.0
    head: float = 10.0  # from a request's first byte to its last header
    idle: float = 300.0  # between requests
    silence: float = 60.0  # within a body, either way
    drain: float = 30.0  # for the rest of a body that was refused
    dawdle: float = 2.0  # after which a handshake may be closed to make room


class _Connection:
    """One accepted socket and what its thread is doing. Guarded by the plane's lock."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        self.state = "handshake"  # handshake, idle, busy
        self.since = time.monotonic()
        self.open = True
        self.site = ""  # whose request it is answering
        self.session: _Session | None = None  # once it has shaken hands


class BlobPlane:
    """Serves blob connections that the listener hands over."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        context: ssl.SSLContext,
        identify: Callable[[bytes], str],
        frames: FrameStore,
        log: Log,
        *,
        moved: Moved = lambda _site, _way, _count: None,
        connections: int = 64,
        waiting: int = 256,
        timings: Timings | None = None,
    ) -> None:
        """`connections` bounds threads, `waiting` the sockets that wait for one."""
        self._context = context
        self._identify = identify
        self._frames = frames
        self._log = log
        self._moved = moved
        self._limit = connections
        self._waiting_limit = waiting
        self._timings = timings or Timings()
        self._lock = threading.Condition()
        self._open: set[_Connection] = set()
        self._waiting: deque[_Connection] = deque()
        self._buffers: list[bytearray] = []
        self._closing = False
        self._parked: Park[_Connection] = Park(self._unpark, _cut_parked, self._timings.idle)

    # ---- connections -------------------------------------------------------------------------

    def adopt(self, sock: socket.socket, peer: str) -> None:
        """Take over a connected socket; returns at once. Called from the event loop."""
        newcomer = _Connection(sock, peer)
        with self._lock:
            strangers = sum(c.session is None for c in self._waiting)
            if self._closing or strangers >= self._waiting_limit:
                sock.close()
                return
            if len(self._open) >= self._limit:
                self._waiting.append(newcomer)
                self._make_room()
                return
            self._begin(newcomer)

    def close(self, patience: float = 5.0) -> None:
        """End idle connections at once, busy ones after `patience` seconds. Blocks."""
        end = time.monotonic() + patience
        with self._lock:
            self._closing = True
            while self._waiting:
                self._waiting.popleft().sock.close()
        self._parked.close()
        with self._lock:
            for connection in self._open:
                if connection.state != "busy":
                    _cut(connection)
            while self._open and (left := end - time.monotonic()) > 0:
                self._lock.wait(left)
            for connection in self._open:
                _cut(connection)
            self._lock.wait_for(lambda: not self._open, timeout=patience)

    @property
    def connections(self) -> int:
        """Connections that have a thread."""
        return len(self._open)

    @property
    def parked(self) -> int:
        """Connections that wait for their next request without one."""
        return len(self._parked)

    def _begin(self, connection: _Connection) -> None:
        """Give a connection its thread. The lock is held."""
        connection.since = time.monotonic()
        self._open.add(connection)
        thread = threading.Thread(
            target=self._serve, args=(connection,), name="blob", daemon=True
        )
        thread.start()

    def _make_room(self) -> None:
        """Close the connection that can best be spared, if any. The lock is held."""
        rank = {"idle": 0, "handshake": 1}
        late = time.monotonic() - self._timings.dawdle
        spare = [
            c
            for c in self._open
            if c.state == "idle" or (c.state == "handshake" and c.since < late)
        ]
        if spare:
            chosen = min(spare, key=lambda c: (rank[c.state], c.since))
            chosen.state = "busy"  # chosen once; its thread ends at its next read
            _cut(chosen)

    def _enter(self, connection: _Connection, state: str) -> None:
        with self._lock:
            if state == "idle" and (self._waiting or self._closing):
                raise _Ended
            connection.state, connection.since = state, time.monotonic()

    def _crowded(self) -> bool:
        """Whether a connection that has been answered gives its thread up."""
        with self._lock:
            return len(self._open) > self._limit // 2 and not self._closing

    def _unpark(self, connection: _Connection) -> None:
        """Give a connection that asks again a thread, in its turn. Called by the park."""
        with self._lock:
            connection.state = "handshake"  # may be closed for room when its request dawdles
            if self._closing:
                _cut_parked(connection)
            elif len(self._open) >= self._limit:
                self._waiting.append(connection)
                self._make_room()
            else:
                self._begin(connection)

    def _admit(self, connection: _Connection, site: str) -> None:
        """Note whose request is answered; end the connection when that site has too many."""
        with self._lock:
            connection.site = site
            held = sum(c.site == site and c.state == "busy" for c in self._open)
        if held > max(SITE_TRANSFERS, self._limit // 4):
            raise _Ended(f"site {site!r} has {held} transfers at once")

    def _leave(self, connection: _Connection, buffer: bytearray, park: bool) -> None:
        with self._lock:
            if not park:
                connection.open = False
                connection.sock.close()
            self._open.discard(connection)
            self._buffers.append(buffer)
            if self._waiting and not self._closing:
                self._begin(self._waiting.popleft())
            self._lock.notify_all()
        if park:
            self._parked.add(connection, connection.sock.fileno(), connection.site)

    def _serve(self, connection: _Connection) -> None:
        """Run one connection from handshake to end. Nothing it meets may kill the hub."""
        with self._lock:
            buffer = self._buffers.pop() if self._buffers else bytearray(CHUNK)
        park = False
        try:
            again = connection.session is not None
            if connection.session is None:
                connection.session = _Session(self, connection, *self._handshake(connection))
            park = connection.session.run(memoryview(buffer), again)
        except (_Ended, OSError) as e:
            self._log.debug("blob connection ended", peer=connection.peer, cause=str(e))
        except Exception:
            self._log.error("blob connection failed", peer=connection.peer, exc_info=True)
        finally:
            self._leave(connection, buffer, park)

    def _handshake(self, connection: _Connection) -> tuple[ssl.SSLSocket, bytes]:
        connection.sock.setblocking(True)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            tls = self._context.wrap_socket(
                connection.sock, server_side=True, do_handshake_on_connect=False
            )
            connection.sock = tls
        tls.settimeout(self._timings.handshake)
        try:
            tls.do_handshake()
        except ssl.SSLError as e:
            self._log.warning("blob handshake refused", peer=connection.peer, cause=str(e))
            _let_read(tls)
            raise
        certificate = tls.getpeercert(True)
        if certificate is None:
            raise _Ended("no certificate")
        return tls, certificate


class _Ended(Exception):
    """The connection is over; nothing more can be said on it."""


class _Session:
    """The requests of one connection."""

    def __init__(
        self,
        plane: BlobPlane,
        connection: _Connection,
        tls: ssl.SSLSocket,
        certificate: bytes,
    ) -> None:
        self._plane = plane
        self._connection = connection
        self._tls = tls
        self._certificate = certificate
        self._buffer = memoryview(b"")  # of the thread that serves it
        self._extra = 0  # bytes of the body that came with the head, at `_extra_at`
        self._extra_at = 0
        self._left = 0  # bytes of the body that are still to come
        self._keep = True

    def run(self, buffer: memoryview, again: bool) -> bool:
        """Answer requests until either side has had enough; True when it is to be parked.

        `again`: it was parked, and the next request is there.
        """
        self._buffer, timings = buffer, self._plane._timings
        while self._keep:
            if not again:
                self._plane._enter(self._connection, "idle")
            patience = timings.head if again else timings.idle
            again = False
            if not (got := self._receive(self._buffer[:MAX_HEAD], patience)):
                return False
            self._plane._enter(self._connection, "busy")
            try:
                request = self._head(got)
            except WireError as e:
                self._keep = False
                self._fail(e)
                self._linger()
                return False
            self._keep = request.keep
            self._answer(request)
            if self._keep and self._plane._crowded() and not self._tls.pending():
                return bool(self._connection.site)
        return False

    def _answer(self, request: Request) -> None:
        try:
            site = self._plane._identify(self._certificate)
            self._plane._admit(self._connection, site)
            self._route(request, site)
        except ConsiliaError as e:
            self._plane._log.info(
                "blob request refused",
                peer=self._connection.peer,
                path=request.path,
                error=type(e).__name__,
                cause=str(e)[:500],
            )
            self._keep = self._keep and not isinstance(e, AuthError)
            self._fail(e, bodiless=request.method == "HEAD")
        self._linger()

    def _route(self, request: Request, site: str) -> None:
        kind, _, name = request.path.removeprefix("/v1/").partition("/")
        match request.method, kind:
            case "GET", "blobs":
                self._get(request, site, name)
            case "HEAD", "uploads":
                upload = self._plane._frames.upload(site, _lease(name))
                try:
                    self._send(200, {"Upload-Offset": upload.offset})
                finally:
                    upload.close()
            case "PUT", "uploads":
                self._put(request, site, _lease(name))
            case _:
                raise NotFound(f"{request.method} {request.path[:80]!r} is not a blob road")

    # ---- download ----------------------------------------------------------------------------

    def _get(self, request: Request, site: str, digest: str) -> None:
        try:
            blob = self._plane._frames.readable(site, ids.digest(digest))
        except ConfigError as e:
            raise WireError(str(e)) from None
        try:
            span = parse_range(request.range, blob.size)
            if span is None:
                self._send(416, {"Content-Range": f"bytes */{blob.size}"})
                return
            start, stop = span
            fields: dict[str, object] = {"Accept-Ranges": "bytes"}
            if request.range:
                fields["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
            self._send(206 if request.range else 200, fields, length=stop - start)
            self._send_file(blob.fd, start, stop, site)
        finally:
            blob.close()

    def _send_file(self, fd: int, start: int, stop: int, site: str) -> None:
        at = start
        try:
            while at < stop:
                view = self._buffer[: stop - at]
                if not (count := os.preadv(fd, [view], at)):
                    self._plane._log.error("a stored frame is shorter than it was", site=site)
                    raise _Ended("stored frame cut off")
                self._tls.sendall(view[:count])
                at += count
        finally:
            self._plane._moved(site, "out", at - start)

    # ---- upload ------------------------------------------------------------------------------

    def _put(self, request: Request, site: str, lease: str) -> None:
        start, total, length = request.upload_offset, request.upload_length, request.length
        if start is None or total is None or length is None or start + length > total:
            raise WireError(
                "PUT needs Upload-Offset, Upload-Length and Content-Length, and no more bytes "
                "than Upload-Length says"
            )
        upload = self._plane._frames.upload(site, lease)
        try:
            upload.announce(total)
            if start != upload.offset:
                self._send_problem(
                    Conflict(f"upload {lease} goes on at {upload.offset}, not at {start}"),
                    {"Upload-Offset": upload.offset},
                )
                return
            self._take(upload, site)
            fields: dict[str, object] = {"Upload-Offset": start + length}
            if start + length == total:
                fields["Frame-Digest"] = upload.finish().digest
            self._send(200, fields)
        finally:
            upload.close()

    def _take(self, upload: Upload, site: str) -> None:
        """Hand the body to `upload`; what came before a line broke is kept."""
        taken = 0
        try:
            while self._left:
                piece, whole = self._fill()
                upload.write(piece)
                taken += len(piece)
                if not whole:
                    raise _Ended(f"line broke {self._left} bytes before the end of an upload")
        finally:
            self._plane._moved(site, "in", taken)

    # ---- bytes -------------------------------------------------------------------------------

    def _receive(self, view: memoryview, patience: float) -> int:
        self._tls.settimeout(patience)
        return self._tls.recv_into(view)

    def _head(self, got: int) -> Request:
        """Read the rest of a request's head; `got` bytes of it are in the buffer."""
        end = time.monotonic() + self._plane._timings.head
        while (stop := bytes(self._buffer[:got]).find(b"\r\n\r\n")) < 0:
            left = end - time.monotonic()
            if got >= MAX_HEAD or left <= 0:
                raise WireError("request head too long or too slow")
            if not (more := self._receive(self._buffer[got:MAX_HEAD], left)):
                raise _Ended("line closed within a request's head")
            got += more
        request = parse(bytes(self._buffer[:stop]))
        self._extra_at = stop + 4
        self._extra = min(got - self._extra_at, request.length or 0)
        self._left = request.length or 0
        if got - self._extra_at > self._left:
            raise WireError("bytes after the end of a request: no pipelining here")
        return request

    def _fill(self) -> tuple[memoryview, bool]:
        """Return the next piece of the body, and False when the line broke within it."""
        if self._extra:
            piece = self._buffer[self._extra_at : self._extra_at + self._extra]
            self._left -= self._extra
            self._extra = 0
            return piece, True
        room = self._buffer[: self._left]
        got, receive = 0, self._tls.recv_into  # gives one TLS record, 16 KiB, at a time
        self._tls.settimeout(self._plane._timings.silence)
        end = time.monotonic() + self._plane._timings.silence
        with contextlib.suppress(OSError):
            while got < len(room) and (count := receive(room[got:])):
                got += count
                if got < len(room) and time.monotonic() > end:
                    break  # bytes that drip in count as silence
        self._left -= got
        return room[:got], got == len(room)

    def _linger(self) -> None:
        """Read away a refused body, so that the answer is not lost in a connection reset."""
        end = time.monotonic() + self._plane._timings.drain
        self._left -= self._extra
        self._extra = 0
        while self._left:
            # The deadline holds for every read: a body that drips in must not hold the thread.
            left = end - time.monotonic()
            if left <= 0 or not (got := self._receive(self._buffer[: self._left], left)):
                raise _Ended("rest of a refused body not read")
            self._left -= got

    def _fail(self, error: ConsiliaError, *, bodiless: bool = False) -> None:
        self._send_problem(error, {}, bodiless=bodiless)

    def _send_problem(
        self, error: ConsiliaError, fields: dict[str, object], *, bodiless: bool = False
    ) -> None:
        status, told = problem(error)
        if status >= 500:
            self._plane._log.error("blob request failed", cause=str(error))
        body = b"" if bodiless else msgspec.msgpack.encode(told)
        self._send(status, fields, body)

    def _send(
        self,
        status: int,
        fields: dict[str, object],
        body: bytes = b"",
        *,
        length: int | None = None,
    ) -> None:
        size = len(body) if length is None else length
        self._tls.settimeout(self._plane._timings.silence)
        self._tls.sendall(response(status, {"Content-Length": size, **fields}) + body)


def _lease(name: str) -> str:
    if not _LEASE.fullmatch(name):
        raise WireError(f"{name[:80]!r} is not a lease")
    return name


def _cut(connection: _Connection) -> None:
    """Wake a connection's thread with an end of stream. The lock is held.

    The base class's shutdown, since SSLSocket.shutdown would drop TLS under the thread.
    """
    if connection.open:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _cut_parked(connection: _Connection) -> None:
    """Close a connection that nobody's thread looks at."""
    connection.open = False
    connection.sock.close()


def _let_read(tls: ssl.SSLSocket) -> None:
    """Give the peer a moment to read the alert that says why; a reset would swallow it."""
    with contextlib.suppress(OSError, ValueError):
        socket.socket.shutdown(tls, socket.SHUT_WR)
        tls.settimeout(0.5)
        for _ in range(16):
            if not socket.socket.recv(tls, 4096):
                return
