"""The people's listener: uvicorn in the hub's own event loop, over TLS 1.3.

uvicorn's parts are called one by one instead of `Server.serve`: the hub handles signals
itself, must know when the port is open, and needs sockets of its own making (one made without
naming TCP gets no TCP_NODELAY from asyncio, which costs 40 ms an answer).
"""

import asyncio
import contextlib
import math
import socket
import ssl

import uvicorn
from litestar import Litestar

from consilia.errors import StorageError

KEEP_ALIVE = 60  # seconds an idle connection is kept
HANDSHAKE = 10.0  # seconds a TLS handshake may take
GOODBYE = 1.0  # seconds to wait for the other side's end of TLS


class PeopleServer:
    """Serves one application on one port."""

    def __init__(self, app: Litestar, tls: ssl.SSLContext, connections: int) -> None:
        """`connections` bounds the open ones; more are answered 503."""
        self._app = app
        self._tls = tls
        self._connections = connections
        self._sockets: list[socket.socket] = []
        self._server: uvicorn.Server | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen on `host` and `port` (0: any free one) and return the port."""
        config = uvicorn.Config(
            self._app,
            http="h11",
            ws="none",
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
        self._server = _Uvicorn(config, self._tls)
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(self._sockets)
        self._ticking = asyncio.create_task(self._server.main_loop())
        return int(self._sockets[0].getsockname()[1])

    async def stop(self, patience: float) -> None:
        """Stop accepting, let running requests end for `patience` seconds, then cut."""
        if self._server is None or self._ticking is None:
            return
        self._server.should_exit = True
        self._server.config.timeout_graceful_shutdown = math.ceil(patience)
        self._ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticking
        await self._server.shutdown(sockets=self._sockets)


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, but strangers may not dawdle over TLS (it would give them a minute)."""

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext) -> None:
        super().__init__(config)
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept on `sockets`."""
        await self.lifespan.startup()

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )
            return made

        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                protocol,
                sock=sock,
                ssl=self._tls,
                backlog=self.config.backlog,
                ssl_handshake_timeout=HANDSHAKE,
                ssl_shutdown_timeout=GOODBYE,
            )
            for sock in sockets or []
        ]
        self.started = True


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
