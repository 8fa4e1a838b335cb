"""Parked connections: woken by their bytes, bounded, and never left open."""

import socket
import threading
from collections.abc import Callable

from consilia.hub.blobpark import Park

PATIENCE = 30.0


class Lot:
    """A park, and what it has said."""

    def __init__(self, idle: float = 300.0, now: Callable[[], float] = lambda: 0.0) -> None:
        self.woken: list[str] = []
        self.cut: list[str] = []
        self.said = threading.Condition()
        self.park: Park[str] = Park(
            lambda it: self._say(self.woken, it),
            lambda it: self._say(self.cut, it),
            idle,
            most=3,
            each=2,
            now=now,
        )
        self.pairs: list[tuple[socket.socket, socket.socket]] = []

    def _say(self, where: list[str], it: str) -> None:
        with self.said:
            where.append(it)
            self.said.notify_all()

    def add(self, name: str, site: str) -> socket.socket:
        """Park a connection; return the other side of it."""
        ours, theirs = socket.socketpair()
        self.pairs.append((ours, theirs))
        self.park.add(name, ours.fileno(), site)
        return theirs

    def until(self, there: Callable[[], bool]) -> None:
        with self.said:
            assert self.said.wait_for(there, PATIENCE)

    def close(self) -> None:
        self.park.close()
        for pair in self.pairs:
            for sock in pair:
                sock.close()


def test_who_asks_or_hangs_up_is_woken_once() -> None:
    lot = Lot()
    asks, silent = lot.add("asks", "a"), lot.add("silent", "b")
    asks.sendall(b"x")
    lot.until(lambda: lot.woken == ["asks"])
    assert len(lot.park) == 1
    silent.close()
    lot.until(lambda: lot.woken == ["asks", "silent"])
    assert not lot.cut
    lot.close()
    assert not lot.cut, "what was woken is somebody else's"


def test_the_oldest_gives_way_of_its_site_first() -> None:
    lot = Lot()
    for name, site in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")):
        lot.add(name, site)
    assert lot.cut == ["a1", "a2"], "a1 for a's third, a2 for the fourth of all"
    lot.close()
    assert sorted(lot.cut) == ["a1", "a2", "a3", "b1", "c1"]
    lot.add("late", "a")
    assert lot.cut[-1] == "late", "nothing is parked at a hub that has ended"
    lot.close()


def test_who_is_silent_for_long_is_closed() -> None:
    clock = [0.0]
    lot = Lot(idle=10.0, now=lambda: clock[0])
    lot.add("old", "a")
    clock[0] = 5.0
    asks = lot.add("asks", "a")
    lot.add("young", "b")
    clock[0] = 11.0
    asks.sendall(b"x")  # the watcher looks
    lot.until(lambda: bool(lot.cut))
    assert (lot.woken, lot.cut, len(lot.park)) == (["asks"], ["old"], 1)
    lot.close()
