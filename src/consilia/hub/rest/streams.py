"""How many streams of events are open, and the work that those at one cursor share."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from consilia.errors import TooMany

MOST = 5000  # streams at once
EACH = 200  # of them one person's
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class News:
    """What happened after a cursor, as the bytes of the stream, and the cursor after it."""

    text: bytes
    events: tuple[str, ...]  # the same as JSON objects, one each
    next: int
    over: bool  # the job has ended and nothing follows


class Shared(Generic[K, V]):
    """Work that several wait for is done once. Belongs to one event loop."""

    def __init__(self) -> None:
        self._open: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, make: Callable[[], Awaitable[V]]) -> V:
        """Return what `make()` gives, or what an equal call under way will give."""
        task = self._open.get(key)
        if task is None:

            async def run() -> V:
                try:
                    return await make()
                finally:
                    del self._open[key]

            task = self._open[key] = asyncio.get_running_loop().create_task(run())
            task.add_done_callback(_seen)
        return await asyncio.shield(task)


def _seen(task: "asyncio.Task[V]") -> None:
    """Look at how work ended whose last waiter has left, so that it is not called forgotten."""
    if not task.cancelled():
        task.exception()


class Streams:
    """The open streams of one hub. Belongs to one event loop."""

    def __init__(self, most: int = MOST, each: int = EACH) -> None:
        """`most` may be open at once, `each` of them by one person."""
        self.shared: Shared[tuple[str, int], News] = Shared()
        self._most, self._each = most, each
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many are open."""
        return self._open.total()

    def check(self, name: str) -> None:
        """Raise TooMany when this person may open no more for now."""
        if self.open >= self._most:
            raise TooMany(
                f"{self._most} streams are open at this hub; ask again, or poll the events", 5.0
            )
        if self._open[name] >= self._each:
            raise TooMany(
                f"{name} has {self._each} streams open, as many as one person may; close one, "
                "or poll the events",
                5.0,
            )

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Count one more of this person's while the block lasts."""
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]
