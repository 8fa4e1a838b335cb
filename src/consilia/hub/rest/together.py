"""Equal work of several requests, done together: those that come while some is under way wait,
and are the next to be done, all at once.

A request on an idle hub waits for nobody. Under load one transaction, one pair of statements
and one change of threads serve many requests; each still gets its own answer or its own error.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from consilia.errors import StorageError

MOST = 256  # requests of one turn
A = TypeVar("A")
R = TypeVar("R")


class Together(Generic[A, R]):
    """Requests of one kind. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting: list[tuple[A, asyncio.Future[R]]] = []
        self._serving: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is under way."""
        return self._serving is None and not self._waiting

    async def ask(
        self, what: A, run: Callable[[Sequence[A]], Awaitable[Sequence[R | Exception]]]
    ) -> R:
        """Return what `run` gives for `what`, or raise the error that it gives for it.

        `run` gets several at once and gives one outcome for each, in order. What it raises is
        raised by all of them. It is the same function at every call.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((what, future))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve(run))
        return await future

    async def _serve(
        self, run: Callable[[Sequence[A]], Awaitable[Sequence[R | Exception]]]
    ) -> None:
        taken: list[tuple[A, asyncio.Future[R]]] = []
        try:
            while self._waiting:
                taken, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                try:
                    outcomes = await run([what for what, _ in taken])
                except Exception as e:
                    outcomes = [_own(e) for _ in taken]
                for (_, future), outcome in zip(taken, outcomes, strict=True):
                    if future.done():
                        continue  # whoever asked has gone
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
        finally:
            self._serving = None
            for _, future in (*taken, *self._waiting):
                future.cancel()  # nothing, but when the hub ends
            self._waiting.clear()


def _own(error: Exception) -> Exception:
    """A copy of an error that several get: one object raised twice mixes tracebacks."""
    return StorageError(*error.args) if isinstance(error, StorageError) else error
