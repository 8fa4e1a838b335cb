"""One connection of a people's listener: uvicorn's HTTP/1.1 protocol, with bounds.

uvicorn would wait for a request's head for ever and let it grow without end; here a head has a
deadline and a size. And an answer that is ready (`Quick`) is written at once: no task, no
routing, no framework. Whoever gives one has made every check that the application makes.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MAX_HEAD = 64 << 10  # bytes of a request's line and headers
Headers = list[tuple[bytes, bytes]]  # names in lower case


@dataclass(frozen=True, slots=True)
class Ready:
    """An answer: `head` is its status line and headers, without the blank line."""

    head: bytes
    body: bytes


Quick = Callable[[bytes, Headers], Ready | None]  # (target, headers) of a GET


def no_quick(target: bytes, headers: Headers) -> Ready | None:
    """Have no answer ready."""
    return None


class Line(HttpToolsProtocol):
    """uvicorn's protocol; whoever asks for nothing does not keep a connection."""

    def __init__(
        self,
        head: float,
        quick: Quick,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        """`head` is the seconds that a request's head may take."""
        super().__init__(config, server_state, app_state)
        self._patience = head
        self._quick = quick
        self._late: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._last = 0.0  # when a quick answer was given, of the loop's clock
        self._in_head = True
        self._head_bytes = 0
        self._answered = False  # the request that is being read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take in bytes; from the first of a head on, wait for its end."""
        super().data_received(data)
        if not self._in_head:
            self._head_bytes = 0
        else:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response(f"The request's head is longer than {MAX_HEAD} bytes.")
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        for timer in (self._late, self._idle):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    # ---- the parser's callbacks --------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Note that a head has begun."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Answer at once, or hand the request to the application."""
        self._in_head = False
        idle = self.cycle is None or self.cycle.response_complete
        if (
            idle
            and not self.pipeline
            and not self.flow.write_paused
            and self.parser.get_method() == b"GET"
            and self.parser.get_http_version() == "1.1"
            and not self.parser.should_upgrade()
            and (ready := self._quick(self.url, self.headers)) is not None
        ):
            self._answered = True
            parts = [ready.head]
            for name, value in self.server_state.default_headers:
                parts += (name, b": ", value, b"\r\n")
            self.transport.write(b"".join((*parts, b"\r\n", ready.body)))
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on what belongs to a request of the application's."""
        if not self._answered:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request; a quick one keeps its line for the next, or ends it."""
        if not self._answered:
            super().on_message_complete()
            return
        self._answered = False
        if not self.parser.should_keep_alive():
            self.transport.close()
            return
        # One timer for many answers: to set and to cancel one for each costs as much as the
        # check of who asks.
        self._last = self.loop.time()
        if self._idle is None:
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._end_if_idle)

    def _end_if_idle(self) -> None:
        """End a line on which nothing has been asked since the last quick answer."""
        self._idle = None
        busy = self._in_head or (self.cycle is not None and not self.cycle.response_complete)
        if busy or self.timeout_keep_alive_task is not None:
            return  # the request's own time runs, or that of the application's answer
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return  # it has ended, or has become a WebSocket
        left = self._last + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle = self.loop.call_later(left, self._end_if_idle)
        else:
            self.transport.close()

    def _watch(self) -> None:
        if self._in_head and self._late is None:
            self._late = self.loop.call_later(self._patience, self.transport.abort)
        elif not self._in_head and self._late is not None:
            self._late.cancel()
            self._late = None
