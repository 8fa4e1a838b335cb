"""The blob plane: tensor frames up and down, on blocking threads beside the event loop.

Large transfers on the loop would delay every poll. So each `consilia-blob/1` connection gets a
thread, mutual TLS 1.3, and one reused 256 KiB buffer; the number of threads is bounded. While
there are threads enough, each keeps its connection. Beyond half of them, a connection that has
been answered is parked (hub.blobpark): it stays open without a thread or a buffer, and gets
both again with its next request, so a thousand sites need not shake hands in every round. When
all threads are taken, the connection that has been idle longest is closed (its node connects
again); without an idle one, a handshake that dawdles; else the newcomer waits in a short queue.

What is said on a connection is hub.blobsession's. A site that has SITE_TRANSFERS requests under
way, and a quarter of the threads, has further ones cut off: one site alone cannot keep the
others out.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from consilia.hub.blobpark import Park
from consilia.hub.blobsession import (
    Ended,
    FrameStore,
    Moved,
    Place,
    Served,
    Session,
    State,
    Timings,
)
from consilia.hub.telemetry import Log
from consilia.wire.frames import CHUNK

SITE_TRANSFERS = 16  # as many as a node starts at once


class _Connection:
    """One accepted socket and what its thread is doing. Guarded by the plane's lock."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        self.state: State = "handshake"
        self.since = time.monotonic()
        self.open = True
        self.site = ""  # whose request it is answering
        self.session: Session | None = None  # once it has shaken hands


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
        self._log = log
        self._limit = connections
        self._waiting_limit = waiting
        self._timings = timings or Timings()
        self._served = Served(identify, frames, log, moved, self._timings)
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

    def _enter(self, connection: _Connection, state: State) -> None:
        with self._lock:
            if state == "idle" and (self._waiting or self._closing):
                raise Ended
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
            raise Ended(f"site {site!r} has {held} transfers at once")

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
                connection.session = self._session(connection)
            park = connection.session.run(memoryview(buffer), again)
        except (Ended, OSError) as e:
            self._log.debug("blob connection ended", peer=connection.peer, cause=str(e))
        except Exception:
            self._log.error("blob connection failed", peer=connection.peer, exc_info=True)
        finally:
            self._leave(connection, buffer, park)

    def _session(self, connection: _Connection) -> Session:
        """Shake hands; what is said then has its own place."""
        place = Place(
            connection.peer,
            partial(self._enter, connection),
            partial(self._admit, connection),
            self._crowded,
        )
        return Session(self._served, place, *self._handshake(connection))

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
            raise Ended("no certificate")
        return tls, certificate


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
