"""Connections that stay open without a thread: one watcher tells which of them asks again.

A parked connection costs its socket and its TLS state, some 30 KB. The number of all of them is
bounded, and that of one site: the one parked longest is closed for a new one. One that asks for
nothing is closed after `idle` seconds.
"""

import contextlib
import select
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

MOST = 4096  # parked connections
EACH = 16  # of them one site's: as many as a node opens at once
SWEEP = 5.0  # seconds between two looks for those that have been idle too long

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Place(Generic[T]):
    what: T
    site: str
    since: float


class Park(Generic[T]):
    """Parked connections and their watcher, a thread that starts with the first of them."""

    def __init__(  # noqa: PLR0913 - bounds and clock are arguments
        self,
        wake: Callable[[T], None],
        cut: Callable[[T], None],
        idle: float,
        *,
        most: int = MOST,
        each: int = EACH,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wake(it)`: bytes have come for it, or its end; `cut(it)`: it has to go.

        Both are called without a lock held, from the watcher or from whoever parks another.
        """
        self._wake, self._cut = wake, cut
        self._idle, self._most, self._each, self._now = idle, most, each, now
        self._lock = threading.Lock()
        self._places: OrderedDict[int, _Place[T]] = OrderedDict()  # by descriptor, oldest first
        self._sites: dict[str, OrderedDict[int, None]] = {}
        self._poll: select.epoll | None = None
        self._stop: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._places)

    def add(self, it: T, descriptor: int, site: str) -> None:
        """Watch a connection of `site` until it asks again."""
        with self._lock:
            gone = [] if not self._closed else [it]
            if not self._closed:
                gone = self._make_room(site)
                self._places[descriptor] = _Place(it, site, self._now())
                self._sites.setdefault(site, OrderedDict())[descriptor] = None
                self._watch().register(descriptor, select.EPOLLIN | select.EPOLLRDHUP)
        for one in gone:
            self._cut(one)

    def close(self) -> None:
        """Close all that are parked, and end the watcher. Blocks for its last look."""
        with self._lock:
            self._closed = True
            gone = [self._take(descriptor) for descriptor in tuple(self._places)]
            stop, thread = self._stop, self._thread
        for one in gone:
            self._cut(one)
        if stop is not None and thread is not None:
            stop[1].close()
            thread.join()

    # ---- the lock is held --------------------------------------------------------------------

    def _make_room(self, site: str) -> list[T]:
        """Take out those that give way to one more of `site`."""
        gone, mine = [], self._sites.get(site, ())
        if len(mine) >= self._each:
            gone.append(self._take(next(iter(mine))))
        if len(self._places) >= self._most:
            gone.append(self._take(next(iter(self._places))))
        return gone

    def _take(self, descriptor: int) -> T:
        place = self._places.pop(descriptor)
        mine = self._sites[place.site]
        del mine[descriptor]
        if not mine:
            del self._sites[place.site]
        if self._poll is not None:
            with contextlib.suppress(OSError):  # closed under it
                self._poll.unregister(descriptor)
        return place.what

    def _watch(self) -> select.epoll:
        if self._poll is None:
            self._poll, self._stop = select.epoll(), socket.socketpair()
            self._poll.register(self._stop[0].fileno(), select.EPOLLIN)
            self._thread = threading.Thread(
                target=self._serve, args=(self._poll, self._stop[0]), name="park", daemon=True
            )
            self._thread.start()
        return self._poll

    # ---- the watcher -------------------------------------------------------------------------

    def _serve(self, poll: select.epoll, stop: socket.socket) -> None:
        while not self._closed:
            found = poll.poll(SWEEP)
            with self._lock:
                asking = [self._take(d) for d, _ in found if d in self._places]
                until, late = self._now() - self._idle, list[T]()
                while self._places and next(iter(self._places.values())).since <= until:
                    late.append(self._take(next(iter(self._places))))
            for one in asking:
                self._wake(one)
            for one in late:
                self._cut(one)
        with self._lock:
            self._poll = None
        poll.close()
        stop.close()
