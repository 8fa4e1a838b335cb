"""When a people's line ends by itself: never while it is used, and soon after."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from consilia.web.line import Line, Ready

ASK = b"GET /kept HTTP/1.1\r\nhost: hub\r\n\r\n"
READY = Ready(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", b"ok")


@dataclass
class Timer:
    at: float
    run: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Hours:
    """A loop's clock and timers, moved by the test."""

    now: float = 0.0
    timers: list[Timer] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, run: Callable[..., None], *words: Any) -> Timer:
        self.timers.append(Timer(self.now + delay, lambda: run(*words)))
        return self.timers[-1]

    def pass_to(self, at: float) -> None:
        """Let the time pass; what is due runs when it is due."""
        while due := [t for t in self.timers if not t.cancelled and t.at <= at]:
            first = min(due, key=lambda timer: timer.at)
            self.timers.remove(first)
            self.now = first.at
            first.run()
        self.now = at


class Wire(asyncio.Transport):
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False
        self.protocol: asyncio.BaseProtocol | None = None

    def write(self, data: Any) -> None:
        self.sent.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("the application was asked")


async def open_line() -> tuple[Line, Wire, Hours]:
    config = uvicorn.Config(_nothing, http=Line, log_config=None, timeout_keep_alive=60)
    config.load()
    line, wire, hours = Line(15.0, lambda *_: READY, config, ServerState(), {}), Wire(), Hours()
    line.loop = hours  # type: ignore[assignment]  # as much of a loop as a line asks for
    wire.protocol = line
    line.connection_made(wire)
    return line, wire, hours


async def test_a_line_in_use_stays_and_an_idle_one_ends() -> None:
    line, wire, hours = await open_line()
    for at in range(0, 300, 50):
        hours.pass_to(at)
        line.data_received(ASK)
        assert len([t for t in hours.timers if not t.cancelled]) == 1, "one timer for them all"
    assert len(wire.sent) == 6 and not wire.closed
    hours.pass_to(309)
    assert not wire.closed
    hours.pass_to(310)
    assert wire.closed


async def test_a_head_that_drips_in_has_its_own_time() -> None:
    line, wire, hours = await open_line()
    line.data_received(ASK)
    hours.pass_to(55)
    line.data_received(ASK[:10])
    hours.pass_to(69)
    assert not wire.closed, "the idle line's time is over, the head's is not"
    hours.pass_to(70)
    assert wire.closed


async def test_a_line_that_became_another_protocol_is_left_alone() -> None:
    line, wire, hours = await open_line()
    line.data_received(ASK)
    wire.protocol = asyncio.Protocol()
    hours.pass_to(1000)
    assert not wire.closed


async def test_nothing_runs_on_a_line_that_is_gone() -> None:
    line, wire, hours = await open_line()
    line.data_received(ASK)
    line.connection_lost(None)
    assert all(timer.cancelled for timer in hours.timers)
    assert wire.sent
