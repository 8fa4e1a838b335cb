"""What readiness asks of the hub's parts: each answers None, or what is wrong.

Anybody may ask, so each looks at most once a second.
"""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from consilia.hub import records
from consilia.hub.blobs import RESERVE
from consilia.hub.clock import Clock
from consilia.hub.store import Store
from consilia.wire import hello

Probe = Callable[[], Awaitable[str | None]]
PATIENCE = 3.0  # seconds for the nodes' port to answer


def database(store: Store) -> Probe:
    """Can a row be written, durably?"""

    async def probe() -> str | None:
        await store.write(lambda db: records.bump(db, "probe"))
        return None

    return probe


def disk(blobs: Path) -> Probe:
    """Is there room where the frames lie?"""

    async def probe() -> str | None:
        free = await asyncio.to_thread(free_bytes, blobs)
        return None if free > 2 * RESERVE else f"{free} bytes are free in {blobs}"

    return probe


def node_listener(
    host: str, port: int, name: str, ca: str, patience: float = PATIENCE
) -> Probe:
    """Does the nodes' port answer a TLS hello, with a certificate for `name` in force?

    Goes the road of a site that enrols, which needs no certificate, and asks for nothing.
    """
    context = ssl.create_default_context(cadata=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([hello.ENROL])

    async def probe() -> str | None:
        try:
            async with asyncio.timeout(patience):
                _, line = await asyncio.open_connection(
                    host, port, ssl=context, server_hostname=name
                )
        except TimeoutError:
            return f"port {port} of the nodes did not answer within {patience:g} s"
        except OSError as e:  # ssl.SSLError is one
            return f"port {port} of the nodes: {e}"
        line.transport.abort()
        return None

    return probe


def seldom(clock: Clock, probe: Probe, every: float = 1.0) -> Probe:
    """Return `probe`, answering again what it found when that is at most `every` s old."""
    lock = asyncio.Lock()
    last: tuple[float, str | None] | None = None

    async def asked() -> str | None:
        nonlocal last
        async with lock:
            if last is None or clock.now() - last[0] >= every:
                last = (clock.now(), await probe())
            return last[1]

    return asked


def free_bytes(path: Path) -> int:
    """Return the bytes free for the hub's user where `path` lies."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize
