"""How many streams of events are open, and the work that those at one cursor share."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class News:
    """What happened after a cursor, as the bytes of the stream, and the cursor after it."""

    text: bytes
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
    """The open streams of one hub; entered once for each."""

    def __init__(self) -> None:
        self.shared: Shared[tuple[str, int], News] = Shared()
        self.open = 0

    def __enter__(self) -> None:
        """Count one more."""
        self.open += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Count one less."""
        self.open -= 1
