"""A waiting hub's ports: every connection is passed on, byte by byte, to the hub that works.

Nothing is read of what passes: TLS ends at the other hub, whose certificate is of the same
authority. Who calls while no hub works is hung up on, and calls again, as nodes do.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable

PIECE = 256 << 10  # bytes passed on at once
CONNECT = 3.0  # seconds that the other hub may take to accept
MOST = 4096  # connections at once; more are hung up on

Target = Callable[[], tuple[str, int] | None]  # host and port of the hub that works now


class Relay:
    """Listens on one port and passes connections on. Belongs to one event loop."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen on `host` and `port` (0: any free one) and return the port."""
        self._server = await asyncio.start_server(
            self._accepted, host or None, port, family=socket.AF_INET if port == 0 else 0
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and hang up on everybody: they call again, and reach us."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accepted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        target = self._target()
        if task is None or target is None or len(self._open) >= MOST:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            await _pass(reader, writer, *target)
        except (OSError, TimeoutError, asyncio.CancelledError):
            return  # the caller sees its line end, and calls again
        finally:
            self._open.discard(task)
            writer.transport.abort()


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
) -> None:
    """Pass bytes both ways until either side has ended and the other has been told."""
    async with asyncio.timeout(CONNECT):
        back, forth = await asyncio.open_connection(host, port, limit=PIECE)
    ways = [
        asyncio.create_task(_one_way(reader, forth)),
        asyncio.create_task(_one_way(back, writer)),
    ]
    try:
        await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        forth.transport.abort()


async def _one_way(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while piece := await source.read(PIECE):
        target.write(piece)
        await target.drain()
    with contextlib.suppress(OSError):  # it has gone already
        target.write_eof()
