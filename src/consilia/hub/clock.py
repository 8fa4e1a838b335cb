"""Time as an argument: what the hub asks of a clock, and the real one."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Forget the call; harmless when it was made already."""


class Clock(Protocol):
    """Unix seconds, and calls made on the event loop when their time has come."""

    def now(self) -> float:
        """Return Unix seconds; never steps back within a process."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` on the event loop in `delay` seconds."""


class LoopClock:
    """The real clock: Unix time read once, then carried on by the monotonic clock.

    A hub whose wall clock is corrected while it runs keeps its deadlines.
    """

    def __init__(self) -> None:
        self._origin = time.time() - time.monotonic()

    def now(self) -> float:
        """Return Unix seconds."""
        return self._origin + time.monotonic()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` on the running loop in `delay` seconds."""
        return asyncio.get_running_loop().call_later(delay, callback)
