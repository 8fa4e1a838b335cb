"""Commands of `consilia` run by a process that has imported them already.

Tests run hundreds of commands, and most of what one takes is Python's start and imports. One
server for each process of the suite pays that once: it is asked over a socket, forks, and the
child runs the command as its own `main` does, with the caller's arguments, environment, folder
and descriptors. What is measured of commands, and everything that stays (hub, agents, consoles,
workers), are processes of their own.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.local import PATIENCE, Programs

_MODULES = (
    "asyncio", "hashlib", "json", "ssl", "yaml", "numpy", "httpx", "rich.console", "sqlite3",
    "consilia.cli.main", "consilia.node.app", "consilia.sdk.client", "consilia.sdk.experiment",
    "consilia.hub.atrest", "consilia.hub.app", "consilia.node.approvals",
    "consilia.node.loading",
    "consilia.data.registry", "consilia.data.table",
)  # fmt: skip
_HEAD = 8  # bytes of a length


@dataclass
class Server:
    """The process that forks; it ends when the socket to it is closed."""

    process: "subprocess.Popen[bytes]"
    line: socket.socket

    def close(self) -> None:
        """End it."""
        self.line.close()
        self.process.wait(PATIENCE)

    def run(
        self,
        words: list[str],
        stdin: str,
        environment: Mapping[str, str],
        folder: Path,
        timeout: float,
    ) -> "subprocess.CompletedProcess[str]":
        """Run one command to its end; raises TimeoutExpired, having killed it."""
        here, there = socket.socketpair()
        with here, there, contextlib.ExitStack() as files:
            given, out, err = (_scratch(files) for _ in range(3))
            given.write(stdin.encode())
            given.seek(0)
            wanted = {"words": words, "environment": dict(environment), "folder": str(folder)}
            out_fd, err_fd = out.fileno(), err.fileno()
            socket.send_fds(self.line, [b"!"], [there.fileno(), given.fileno(), out_fd, err_fd])
            there.close()
            _send(here, wanted)
            child = _receive(here)
            here.settimeout(timeout)
            try:
                code = _receive(here)
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
                raise subprocess.TimeoutExpired(words, timeout) from None
            return subprocess.CompletedProcess(words, code, _text(out), _text(err))


def _scratch(files: contextlib.ExitStack) -> IO[bytes]:
    return files.enter_context(tempfile.TemporaryFile())


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


@functools.cache
def server() -> Server:
    """Return this process's server, started when it is first asked for."""
    here, there = socket.socketpair()
    with there:
        code = f"import sys; sys.path[:0] = {sys.path!r}; import commandkit; commandkit.serve()"
        single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=there.fileno(),
            stdout=subprocess.DEVNULL,
            env={**os.environ, **single},
            start_new_session=True,  # what ends a test must not end it
        )
    found = Server(process, here)
    atexit.register(found.close)
    return found


class Commands(Programs):
    """Programs whose commands are run by the server."""

    def run(
        self, *words: object, stdin: str = "", more: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run one command to its end, whatever that is; `more` is added to its environment."""
        environment = {**self.variables(), **(more or {})}
        folder = self.folder or Path.cwd()
        return server().run(list(map(str, words)), stdin, environment, folder, PATIENCE)


# ---- in the server ---------------------------------------------------------------------------


def serve() -> None:
    """Fork for every command that is asked for on stdin, a socket, until it is closed."""
    for name in _MODULES:
        __import__(name)
    gc.freeze()  # a child's collector leaves these pages shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    with socket.socket(fileno=0) as line:
        while True:
            asked, given, _, _ = socket.recv_fds(line, 1, 4)
            if not asked:
                return
            if not os.fork():
                line.close()
                _watch(given)
            for fd in given:
                os.close(fd)


def _watch(given: list[int]) -> None:
    """Run a command in a child of this process and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=given[0]) as caller:
        wanted = _receive(caller)
        child = os.fork()
        if not child:
            caller.close()
            _become(wanted, given[1:])
        _send(caller, child)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(OSError):  # the caller has lost patience
            _send(caller, os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(wanted: Mapping[str, Any], descriptors: list[int]) -> None:
    """Be the process of a command: never returns."""
    for number, fd in enumerate(descriptors):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    time.tzset()
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = ["consilia", *wanted["words"]]
    code = 1
    try:
        from consilia.cli.main import main  # noqa: PLC0415  imported by the server

        main()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---- messages --------------------------------------------------------------------------------


def _send(line: socket.socket, message: object) -> None:
    body = json.dumps(message).encode()
    line.sendall(len(body).to_bytes(_HEAD, "big") + body)


def _receive(line: socket.socket) -> Any:
    return json.loads(_exactly(line, int.from_bytes(_exactly(line, _HEAD), "big")))


def _exactly(line: socket.socket, count: int) -> bytes:
    body = b""
    while len(body) < count:
        piece = line.recv(count - len(body))
        if not piece:
            raise EOFError("the command's process has gone")
        body += piece
    return body
