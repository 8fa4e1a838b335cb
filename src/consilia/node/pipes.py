"""The agent's ends of a worker's pipes, on the event loop.

`MessagePipe` reads exactly one message at a time and never a byte more, so that the tensors
which follow a Done can be read from the same descriptor by a thread. `LogPipe` keeps what
the worker says on stderr, up to a cap. A worker that floods either pipe is slowed down, not
listened to.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from consilia.errors import WireError
from consilia.wire.worker import MAX_WORKER_MESSAGE, FromWorker

LOG_BYTES = 4 << 20  # kept of one job's stderr; as much again of its earlier workers
_TAIL = 4096  # bytes of stderr that go into the message about a crash
_BURST = 200  # messages in a second that are read at full speed
_READ = 1 << 20
_SHOWN = bytes(c if (c >= 32 and c != 127) or c in b"\t\n\r" else ord("?") for c in range(256))
_DECODER: "msgspec.msgpack.Decoder[FromWorker]" = msgspec.msgpack.Decoder(FromWorker)


class MessagePipe:
    """Reads wire.worker messages from a descriptor, without blocking the loop."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._window = 0.0
        self._count = 0
        os.set_blocking(fd, False)

    async def receive(self) -> FromWorker | None:
        """Return the next message, None at the end; raise WireError for anything else."""
        await self._pace()
        head = await self._exactly(4)
        if not head:
            return None
        size = int.from_bytes(head, "little")
        if len(head) < 4 or size > MAX_WORKER_MESSAGE:
            raise WireError(f"worker message of {size} bytes, limit {MAX_WORKER_MESSAGE}")
        body = await self._exactly(size)
        if len(body) < size:
            raise WireError(f"worker message cut off after {len(body)} of {size} bytes")
        try:
            message: FromWorker = _DECODER.decode(body)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as e:
            raise WireError(f"worker message is not valid: {e}") from None
        return message

    async def _pace(self) -> None:
        """Let others run; make a worker wait that sends more messages than anyone can read."""
        now = time.monotonic()
        if now - self._window > 1.0:
            self._window, self._count = now, 0
        self._count += 1
        if self._count > _BURST:
            await asyncio.sleep(0.05)

    async def _exactly(self, count: int) -> bytearray:
        got = bytearray()
        while len(got) < count:
            try:
                piece = os.read(self._fd, min(count - len(got), 1 << 20))
            except BlockingIOError:
                await readable(self._fd)
                continue
            if not piece:
                break
            got += piece
        return got


async def readable(fd: int) -> None:
    """Wait until `fd` can be read or has ended."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def writable(fd: int) -> None:
    """Wait until `fd` can be written."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(fd, wake)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


async def send(fd: int, data: bytes) -> None:
    """Write all of `data` to a non-blocking descriptor; OSError when its reader is gone."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await writable(fd)


class LogPipe:
    """Copies a worker's stderr to the job's log file, at most LOG_BYTES of it.

    Every line gets the time it was read at, a level, and who says it: `plan` is what the
    worker printed, `agent` what the agent notes of it. A plan cannot write a line as agent.
    """

    def __init__(self, fd: int, path: Path, now: Callable[[], float] = time.time) -> None:
        self._fd = fd
        self._path = path
        self._now = now
        self._written = 0
        self._within = False  # a line of the plan that has not ended yet
        self._tail = b""
        os.set_blocking(fd, False)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._written = path.stat().st_size
        if self._written > LOG_BYTES // 2:
            path.replace(path.with_suffix(".log.1"))
            self._written = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        if self._written and os.pread(self._file, 1, self._written - 1) != b"\n":
            self._keep(b"\n")  # the worker before ended within a line: what follows is not its
        self._task = asyncio.get_running_loop().create_task(self._copy())

    @property
    def tail(self) -> str:
        """The last that was said."""
        return self._tail.decode(errors="replace").strip()

    def note(self, text: str, level: str = "error") -> None:
        """Add lines of the agent's own."""
        head = self._head(level, "agent")
        body = text.encode(errors="replace").replace(b"\n", b"\n" + head)
        self._keep((b"\n" if self._within else b"") + head + body + b"\n")
        self._within = False

    def _headed(self, piece: bytes) -> bytes:
        """Return what a plan printed with a head before each line that begins in it."""
        head, last = self._head("info", "plan"), piece[-1:]
        begun = b"" if self._within else head
        self._within = last != b"\n"
        return begun + piece[:-1].replace(b"\n", b"\n" + head) + last

    def _head(self, level: str, who: str) -> bytes:
        at = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        return f"{at} {level.upper()} {who}: ".encode()

    async def close(self) -> None:
        """Read what is left (the worker is dead) and close the file."""
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(self._task, 1.0)
        os.close(self._file)

    async def _copy(self) -> None:
        while True:
            try:
                piece = os.read(self._fd, _READ)
            except BlockingIOError:
                await readable(self._fd)
                continue
            except OSError:
                return
            if not piece:
                return
            piece = piece.translate(_SHOWN)  # the site's staff read it in a terminal
            self._tail = (self._tail + piece)[-_TAIL:]
            if self._written < LOG_BYTES:
                self._keep(self._headed(piece))
            # a flood is taken at 20 MB/s once the file is full, so that it costs little
            await asyncio.sleep(0 if self._written < LOG_BYTES else 0.05)

    def _keep(self, piece: bytes) -> None:
        room = LOG_BYTES - self._written
        if room <= 0:
            return
        if len(piece) > room:
            full = self._head("warning", "agent") + b"the log is full; the rest is dropped\n"
            piece = piece[:room] + b"\n" + full
        self._written += len(piece)
        with contextlib.suppress(OSError):  # a full disk must not stop a task for its log
            os.write(self._file, piece)
