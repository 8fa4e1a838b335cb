"""A listener for people: uvicorn in the caller's own event loop, over TLS or at loopback.

uvicorn's parts are called one by one instead of `Server.serve`: the party handles signals
itself, must know when the port is open, and needs sockets of its own making (one made without
naming TCP gets no TCP_NODELAY from asyncio, which costs 40 ms an answer).
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol

from consilia.errors import StorageError
from consilia.web.line import Line, Quick, no_quick

KEEP_ALIVE = 60  # seconds an idle connection is kept
HANDSHAKE = 10.0  # seconds a TLS handshake may take
HEAD = 15.0  # seconds from a connection, or a request's first byte, to the end of its head
TICK = 0.01  # seconds between two looks at what still runs when the hub ends
MAX_MESSAGE = 4096  # bytes of a WebSocket message to us: nobody has much to say there
GOODBYE = 1.0  # seconds to wait for the other side's end of TLS


class PeopleServer:
    """Serves one application on one port."""

    def __init__(
        self,
        app: Callable[..., Any],
        tls: ssl.SSLContext | None,
        connections: int,
        head: float = HEAD,
        quick: Quick = no_quick,
    ) -> None:
        """`connections` bounds the open ones; more are answered 503. `head` is in seconds.

        `quick` gives answers that are ready (consilia.web.line).

        Without `tls` it may listen on a loopback address only; that is the caller's care.
        """
        self._head = head
        self._quick = quick
        self._app = app
        self._tls = tls
        self._connections = connections
        self._sockets: list[socket.socket] = []
        self._server: _Uvicorn | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen on `host` and `port` (0: any free one) and return the port."""
        config = uvicorn.Config(
            self._app,
            http=Line,
            ws="wsproto",
            ws_max_size=MAX_MESSAGE,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=self._connections,
            timeout_keep_alive=KEEP_ALIVE,
        )
        config.load()
        self._sockets = await _listen(host, port)
        self._server = _Uvicorn(config, self._tls, self._head, self._quick)
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(self._sockets)
        self._ticking = asyncio.create_task(self._server.main_loop())
        return int(self._sockets[0].getsockname()[1])

    async def stop(self, patience: float) -> None:
        """Stop accepting, let running requests end for `patience` seconds, then cut."""
        if self._server is None or self._ticking is None:
            return
        self._server.should_exit = True
        self._ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticking
        await self._server.end(self._sockets, patience)


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, but strangers may not dawdle over TLS (it would give them a minute)."""

    def __init__(
        self, config: uvicorn.Config, tls: ssl.SSLContext | None, head: float, quick: Quick
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._head = head
        self._quick = quick

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept on `sockets`."""
        await self.lifespan.startup()

        def protocol() -> asyncio.Protocol:
            state = self.server_state
            return Line(self._head, self._quick, self.config, state, self.lifespan.state)

        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                protocol,
                sock=sock,
                ssl=self._tls,
                backlog=self.config.backlog,
                ssl_handshake_timeout=HANDSHAKE if self._tls else None,
                ssl_shutdown_timeout=GOODBYE if self._tls else None,
            )
            for sock in sockets or []
        ]
        self.started = True

    async def end(self, sockets: list[socket.socket], patience: float) -> None:
        """Stop accepting, let what runs end for `patience` seconds, then cut every line.

        uvicorn's own way out waits for each client to say goodbye, which one that keeps its
        connection for later does not, and calls that an error.
        """
        for server in self.servers:
            server.close()
        for sock in sockets:
            sock.close()
        state, loop = self.server_state, asyncio.get_running_loop()
        lines = [c for c in state.connections if isinstance(c, Line | WSProtocol)]
        for line in lines:
            line.shutdown()
        until = loop.time() + patience
        while loop.time() < until and (state.tasks or any(map(_sending, lines))):
            await asyncio.sleep(TICK)
        for line in lines:
            line.transport.abort()
        if state.tasks:  # each learns that its line is gone, and ends by itself
            await asyncio.wait(state.tasks, timeout=GOODBYE)
        for task in state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


def _sending(line: Line | WSProtocol) -> bool:
    """Whether bytes of an answer still wait to go out."""
    return line.transport.get_write_buffer_size() > 0


async def _listen(host: str, port: int) -> list[socket.socket]:
    loop, made = asyncio.get_running_loop(), list[socket.socket]()
    try:
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, _, _, address in found[:1] if port == 0 else found:
            sock = socket.socket(family, kind, socket.IPPROTO_TCP)
            made.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(1024)
            sock.setblocking(False)
    except OSError as e:
        for sock in made:
            sock.close()
        raise StorageError(f"cannot listen on {host}:{port}: {e.strerror or e}") from e
    return made
