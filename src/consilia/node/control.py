"""How commands at the site reach a running agent: DIR/control.sock, a Unix socket of mode 0600.

One JSON line asks, one answers: {"do": "changed"}, {"do": "status"}, {"do": "stop-job", "job":
...}. Only the agent's own user can connect. Nothing here can allow anything: decisions lie in
the store, and the agent would notice them without being told.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

from consilia.errors import StorageError

NAME = "control.sock"
LIMIT = 4 << 20  # bytes of a line
TIMEOUT = 5.0  # seconds

Handler = Callable[[Mapping[str, object]], Mapping[str, object]]


def poke(directory: Path, do: str = "changed", **fields: str) -> dict[str, object] | None:
    """Ask a running agent; return its answer, or None when none runs in `directory`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(TIMEOUT)
        try:
            with _short(directory) as path:
                line.connect(path)
            line.sendall(json.dumps({"do": do, **fields}).encode() + b"\n")
            with line.makefile("rb") as stream:
                answer = stream.readline(LIMIT)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as e:
            raise StorageError(f"the agent of {directory} does not answer: {e}") from None
    if not answer:
        return None  # it was just ending
    found: dict[str, object] = json.loads(answer)
    return found


def running_pid(directory: Path) -> int | None:
    """Return the process id of the agent that runs in `directory`, None when none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line, _short(directory) as path:
        line.settimeout(TIMEOUT)
        try:
            line.connect(path)
        except OSError:
            return None
        peer = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, _, _ = struct.unpack("3i", peer)
    return int(pid)


@contextlib.asynccontextmanager
async def listening(directory: Path, handle: Handler) -> AsyncIterator[None]:
    """Answer on DIR/control.sock with `handle` while the block runs."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                line = await reader.readline()
            asked = json.loads(line)
            found: Mapping[str, object] = {"error": "one JSON object is asked for"}
            if isinstance(asked, dict):
                found = handle(asked)
            writer.write(json.dumps(found).encode() + b"\n")
            await writer.drain()
        except (ValueError, OSError, TimeoutError):
            pass  # a caller that broke off, or sent something else
        finally:
            writer.close()

    (directory / NAME).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        before = os.umask(0o177)  # the socket is private from its first moment
        try:
            with _short(directory) as path:
                listener.bind(path)
        finally:
            os.umask(before)
        server = await asyncio.start_unix_server(answer, sock=listener, limit=LIMIT)
    except OSError as e:
        listener.close()
        raise StorageError(f"{directory / NAME} cannot be made: {e}") from None
    try:
        yield
    finally:
        server.close()
        (directory / NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[str]:
    """Yield a path to the socket that fits the 108 bytes a socket address has."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{NAME}"
    finally:
        os.close(fd)
