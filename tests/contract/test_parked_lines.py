"""More sites than the blob plane has threads: their lines stay open, and revocation holds."""

import asyncio
import socket
import ssl
from pathlib import Path

import numpy as np
from transport_kit import Bench, running

from consilia.hub.blobsession import Timings
from consilia.node.line import client_context
from consilia.wire import frames, hello

THREADS = 2
SITES = tuple(f"site{n}" for n in range(6))
PATIENCE = 60.0
BURSTS = 5
QUICKLY = Timings(dawdle=0.1)


class Closed(Exception):
    """The hub has closed the line."""


class Site:
    """One site's line, opened again when the hub has closed it."""

    def __init__(self, bench: Bench, name: str) -> None:
        shown = bench.hub.authority.credentials(bench.directory / name, name)
        self._context = client_context(hello.BLOB, bench.hub.authority.pem, shown)
        self._port = bench.port
        self.times = 0  # opened
        self.line = self.opened()

    def opened(self) -> ssl.SSLSocket:
        self.times += 1
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
        return self._context.wrap_socket(sock, server_hostname="127.0.0.1")

    def ask(self, digest: str) -> tuple[int, bytes]:
        while True:
            try:
                return self._exchange(digest)
            except (Closed, ConnectionError):
                self.line.close()
                self.line = self.opened()

    def _exchange(self, digest: str) -> tuple[int, bytes]:
        self.line.sendall(f"GET /v1/blobs/{digest} HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._more()
        head, _, body = got.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self._more()
        return int(head[9:12]), body

    def _more(self) -> bytes:
        if not (piece := self.line.recv(65536)):
            raise Closed
        return piece


async def model(bench: Bench) -> tuple[str, bytes]:
    path = bench.directory / "model.frame"
    header = frames.write(path, {"w": np.arange(50_000, dtype=np.float32)})
    return bench.hub.keep(path, header, *SITES), path.read_bytes()


async def test_sites_keep_their_lines(tmp_path: Path) -> None:
    async with running(tmp_path, connections=THREADS) as bench:
        digest, content = await model(bench)
        sites = []
        for name in SITES:  # one after the other
            sites.append(await asyncio.to_thread(Site, bench, name))
            assert await asyncio.to_thread(sites[-1].ask, digest) == (200, content)
        for _ in range(BURSTS):  # and all at once
            asking = (asyncio.to_thread(site.ask, digest) for site in sites)
            assert set(await asyncio.gather(*asking)) == {(200, content)}
            assert bench.plane.connections <= THREADS
        # One or two whose thread waits beside it may be closed for the others in each burst.
        # Without a place to park, all but two were.
        assert sum(site.times for site in sites) <= len(SITES) + 2 * BURSTS
        async with asyncio.timeout(PATIENCE):
            while bench.plane.parked < len(SITES) - THREADS:
                await asyncio.sleep(0.01)
        bench.hub.revoked.add(SITES[0])
        status, _ = await asyncio.to_thread(sites[0].ask, digest)
        assert status == 401, "a line proves its identity with every request"
        for site in sites:
            site.line.close()  # the hub notices, and has its places back
        async with asyncio.timeout(PATIENCE):
            while bench.plane.parked or bench.plane.connections:
                await asyncio.sleep(0.01)


async def test_a_parked_line_that_sends_half_a_record_keeps_no_thread(tmp_path: Path) -> None:
    async with running(tmp_path, connections=THREADS, timings=QUICKLY) as bench:
        digest, content = await model(bench)
        sites = []
        for name in SITES[:-1]:
            sites.append(await asyncio.to_thread(Site, bench, name))
            await asyncio.to_thread(sites[-1].ask, digest)
        for site in sites:
            socket.socket.send(site.line, b"\x17\x03\x03\x40")  # four of TLS's own five bytes
        fresh = await asyncio.to_thread(Site, bench, SITES[-1])
        assert await asyncio.to_thread(fresh.ask, digest) == (200, content)
        for site in (fresh, *sites):
            site.line.close()
