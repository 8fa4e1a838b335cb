"""Many light agents in one process: real lines to a hub, no worker and no disk behind them.

    python -m bench.agents FOLDER FIRST COUNT URL STUDY PLAN

Agent N has its certificate and key in FOLDER/siteN. Each advertises that it takes part, polls,
brings every model it is leased, sends FOLDER/update.frame as its update, and reports. Runs
until it is ended.

They share the machine with the hub that is measured, so they do no more than keeps the hub at
its work: plain HTTP/1.1 written by hand on kept-alive TLS lines, models counted and thrown
away, the update's bytes read once for all. What real agents do with a model is bench/rounds'.
"""

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.node.line import Credentials, client_context
from consilia.wire import frames, hello, v1
from consilia.wire.seal import seal
from consilia.wire.token import split_url

TAG, RECORDS = "many", 100
BLOCKING = 12  # threads for the frames of all agents of a process
RAMP = 0.01  # seconds between two agents' first calls
TRIES = 20  # of a frame, before the agent gives its round up
PAUSE = 0.2  # seconds between two of them
PIECE = 256 << 10  # bytes read at once

Address = tuple[str, int]


class Broken(Exception):
    """A line ended, or the hub answered that it cannot."""


class Control:
    """Small messages on one kept-alive line."""

    def __init__(self, address: Address, context: ssl.SSLContext) -> None:
        self._address, self._context = address, context
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, path: str, message: v1.Record) -> bytes:
        """Return the answer's body; Broken when it is not 200, or the line breaks."""
        body = v1.encode(message)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._address[0]}\r\n"
            f"Content-Type: application/msgpack\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            if self._line is None:
                host, port = self._address
                self._line = await asyncio.open_connection(host, port, ssl=self._context)
            reader, writer = self._line
            writer.write(head.encode() + body)
            status, length = _told(await reader.readuntil(b"\r\n\r\n"))
            answer = await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as e:
            self.close()
            raise Broken(str(e)) from e
        if status != 200:
            raise Broken(f"{path}: {status} {answer[:200]!r}")
        return answer

    def close(self) -> None:
        """End the line, if there is one."""
        if self._line is not None:
            self._line[1].transport.abort()
        self._line = None


class Frames:
    """Models down and updates up on one kept-alive line, from blocking threads."""

    def __init__(self, address: Address, context: ssl.SSLContext) -> None:
        self._address, self._context = address, context
        self._line: ssl.SSLSocket | None = None

    def fetch(self, digest: str, buffer: memoryview) -> int:
        """Bring a frame, throw it away and return its bytes; `buffer` is written over."""
        with self._opened() as line:
            line.sendall(f"GET /v1/blobs/{digest} HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
            left = length = self._answered(line, buffer)
            while left:
                if not (got := line.recv_into(buffer[:left])):
                    raise Broken(f"a model ended {left} bytes early")
                left -= got
        return length

    def upload(self, lease: str, update: bytes, buffer: memoryview) -> None:
        """Send an update, whole."""
        size = len(update)
        with self._opened() as line:
            line.sendall(
                f"PUT /v1/uploads/{lease} HTTP/1.1\r\nHost: hub\r\nUpload-Offset: 0\r\n"
                f"Upload-Length: {size}\r\nContent-Length: {size}\r\n\r\n".encode()
            )
            line.sendall(update)
            self._answered(line, buffer)

    @contextmanager
    def _opened(self) -> Iterator[ssl.SSLSocket]:
        """Borrow the line, a new one where it broke; when something goes wrong it is closed."""
        try:
            if self._line is None:
                made = socket.create_connection(self._address, 60.0)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._line = self._context.wrap_socket(made, server_hostname=self._address[0])
            yield self._line
        except (OSError, Broken) as e:
            if self._line is not None:
                self._line.close()
            self._line = None
            raise Broken(str(e)) from e

    def _answered(self, line: ssl.SSLSocket, buffer: memoryview) -> int:
        """Read an answer's head; return the bytes of the body that are still to come."""
        got = 0
        while (stop := bytes(buffer[:got]).find(b"\r\n\r\n")) < 0:
            if not (more := line.recv_into(buffer[got:16384])):
                raise Broken("the line was closed before an answer")
            got += more
        status, length = _told(bytes(buffer[: stop + 4]))
        if status != 200:
            raise Broken(f"a frame was answered {status}")
        return length - (got - stop - 4)


def _told(head: bytes) -> tuple[int, int]:
    """Return the status and the bytes of the body that an answer's head tells."""
    first, _, fields = head.partition(b"\r\n")
    for line in fields.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(first[9:12]), int(line[15:])
    raise Broken(f"an answer of unknown length: {first!r}")


@dataclass(frozen=True, slots=True)
class Update:
    """The frame that every agent sends."""

    content: bytes
    digest: str


class LightAgent:
    """One site's node, as far as the hub can tell."""

    def __init__(
        self, folder: Path, site: str, url: str, update: "Update", pool: ThreadPoolExecutor
    ) -> None:
        here, address, ca = folder / site, split_url(url), (folder / "ca.pem").read_text()
        credentials = Credentials(here / "node.pem", here / "node.key", folder / "ca.pem")
        control, blob = (
            client_context(alpn, ca, credentials) for alpn in (hello.CONTROL, hello.BLOB)
        )
        self._site = site
        self._update = update
        self._pool = pool
        self._key = Ed25519PrivateKey.from_private_bytes((here / "signing.key").read_bytes())
        self._polling, self._reporting = (Control(address, control) for _ in range(2))
        self._frames = Frames(address, blob)
        self._running: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._catalogue = 0

    async def run(self, study: str, plan: str) -> None:
        """Poll for ever; a line that breaks is tried again."""
        offered = v1.OfferedDataset("table", (TAG,), RECORDS)
        said = v1.Advertisement("bench", (offered,), (study,), (plan,))
        told = False
        while True:
            try:
                if not told:
                    await self._report("/v1/advertise", "advertisement", said)
                    told = True
                asked = v1.Poll("bench", tuple(self._running), catalogue=self._catalogue)
                orders = v1.decode(await self._polling.call("/v1/poll", asked), v1.Orders)
            except Broken:
                await asyncio.sleep(1)
                continue
            self._catalogue = orders.catalogue
            for lease in orders.leases:
                self._running.add(lease.id)
                task = asyncio.create_task(self._work(lease))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _work(self, lease: v1.Lease) -> None:
        task, loop = lease.task, asyncio.get_running_loop()
        for _ in range(TRIES):
            with contextlib.suppress(Broken):
                await loop.run_in_executor(self._pool, self._move, lease.id, str(task.model))
                result = v1.Result(lease.id, task.job, task.round, self._update.digest, RECORDS)
                await self._report("/v1/report", "report", result)
                break
            await asyncio.sleep(PAUSE)
        self._running.discard(lease.id)

    def _move(self, lease: str, model: str) -> None:
        """Bring the model, as every site has to, and send the update. Blocks."""
        buffer = memoryview(bytearray(PIECE))
        self._frames.fetch(model, buffer)
        self._frames.upload(lease, self._update.content, buffer)

    async def _report(self, path: str, context: str, record: v1.Record) -> None:
        await self._reporting.call(
            path, seal(context, self._site, v1.encode(record), self._key)
        )


async def main(words: list[str]) -> None:
    """Run the agents that the command line names."""
    folder, first, count, url, study, plan = words
    path = Path(folder) / "update.frame"
    update = Update(path.read_bytes(), frames.read_header(path).digest)
    with ThreadPoolExecutor(BLOCKING) as pool:
        runs = []
        for n in range(int(first), int(first) + int(count)):
            agent = LightAgent(Path(folder), f"site{n}", url, update, pool)
            runs.append(asyncio.create_task(agent.run(study, plan)))
            await asyncio.sleep(RAMP)
        await asyncio.gather(*runs)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
