"""A started worker: its pipes, its processes, what it holds, its end. See node.launcher."""

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from consilia.errors import WorkerError
from consilia.node.cgroup import Group

PIPE_BYTES = 1 << 20
_SOCKET_BYTES = 512 << 10  # about the most that a unix socket holds: 2 x net.core.wmem_max
_INODE_BYTES = 1 << 10  # of a file in memory, beside its content


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs."""

    inside: Callable[[Path], str]  # the path at which it sees a model or the dataset
    private: tuple[str, ...] = ()  # its own file systems in memory; none: not in namespaces
    group: Group | None = None


class Process:
    """A worker started by any launcher."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        pipes: tuple[int, int, int],
        place: Place,
    ) -> None:
        self._child = child
        self._inside = place.inside
        self._private = place.private
        self._group = place.group
        self._open = True
        self.pid = child.pid
        self.stdin, self.stdout, self.stderr = pipes

    def inside(self, path: Path) -> str:
        """Return the path at which the worker sees a model or the dataset."""
        return self._inside(path)

    @property
    def running(self) -> bool:
        """See WorkerProcess."""
        return self._child.returncode is None

    @property
    def starved(self) -> bool:
        """See WorkerProcess."""
        return self._group is not None and self._group.starved()

    def pids(self) -> tuple[int, ...]:
        """Return the started process and all its descendants, parents first."""
        if not self.running:
            return ()
        found = [self.pid]
        for pid in found:
            found += _children(pid)
        return tuple(found)

    def unmapped(self) -> int:
        """Return the bytes of files and sockets in memory, which no process need have mapped.

        Sockets are counted as if they were full.
        """
        inner = _children(self.pid) if self._private else []
        view = f"/proc/{inner[0]}" if inner else ""
        if not view or not _elsewhere(f"{view}/root"):
            return 0  # it is just starting, and what it sees is still the machine's
        total = _sockets(f"{view}/net/sockstat") * _SOCKET_BYTES
        for path in self._private:
            # a worker cannot put a link here: these are mounts on a read-only folder
            with contextlib.suppress(OSError):  # it has just ended
                used = os.statvfs(f"{view}/root{path}")
                total += (used.f_blocks - used.f_bfree) * used.f_frsize
                total += (used.f_files - used.f_ffree) * _INODE_BYTES
        return total

    def kill(self) -> None:
        """Kill every process of the worker.

        In namespaces it is enough to kill bwrap: the first process inside dies with it, and
        the kernel then kills all others. Without them the tree is walked.
        """
        if self._group is not None:
            self._group.kill()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not self._private:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for the end."""
        return await self._child.wait()

    def close(self) -> None:
        """Kill it and close the pipes."""
        if self._child.returncode is None:
            self.kill()
        if self._open:
            self._open = False
            for fd in (self.stdin, self.stdout, self.stderr):
                os.close(fd)
            if self._group is not None:
                self._group.remove()


async def start(
    command: list[str],
    env: Mapping[str, str],
    place: Place,
    *,
    inherited: tuple[int, ...] = (),
) -> Process:
    """Start `command` with three pipes of PIPE_BYTES; raise WorkerError when it does not."""
    group = place.group
    ends = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = ends
    try:
        for _, write_end in ends:
            with contextlib.suppress(OSError):  # over the user's pipe budget: slower, not wrong
                fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        child = await asyncio.create_subprocess_exec(
            *(group.entered(command) if group else command),
            stdin=in_read,
            stdout=out_write,
            stderr=err_write,
            env=dict(env),
            pass_fds=inherited,
            start_new_session=True,
        )
    except OSError as error:
        for fd in (in_write, out_read, err_read):
            os.close(fd)
        if group is not None:
            group.remove()
        raise WorkerError(
            f"the worker does not start: {command[0]}: {error}", "crashed"
        ) from None
    finally:
        for fd in (in_read, out_write, err_write):
            os.close(fd)
    return Process(child, (in_write, out_read, err_read), place)


def told(path: str) -> bytes:
    """Return what the kernel says in a file of /proc: 64 KiB at most, at little cost."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  text is what we want
        for thread in threads:
            found += map(int, told(f"/proc/{pid}/task/{thread}/children").split())
    except OSError:  # it has just ended
        return found
    return found


def _elsewhere(root: str) -> bool:
    """Say whether a process's root is another than this process's."""
    try:
        return not os.path.samefile(root, "/")  # noqa: PTH121  a magic link, as it is
    except OSError:
        return False


def _sockets(path: str) -> int:
    """Return how many sockets a network namespace has, of every family."""
    with contextlib.suppress(OSError, ValueError, IndexError), Path(path).open() as stream:
        return int(stream.readline().split()[2])
    return 0
