"""Start a worker process: in a bubblewrap sandbox, or plainly when the site's owner says so.

A sandboxed worker sees a read-only system, its Python, this package, one dataset file and
the folder of its job's models; a private /tmp and /dev/shm of bounded size; no network, no
other process, no capability, no environment but ours. It cannot make further namespaces.
What it can still do is compute, and write to its pipes: what those bytes may be is decided
by node.runner and node.release.

The worker speaks wire.worker over its stdin and stdout; its stderr is text for the site.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import consilia
from consilia.errors import WorkerError
from consilia.node.config import Limits

PIPE_BYTES = 1 << 20
SCRATCH_BYTES = 1 << 30  # of a worker's /tmp; its /dev/shm has as much again
OPEN_FILES = 1024
RESERVED_BYTES = 1 << 30  # stacks and arenas that are reserved and never touched
_MODELS, _DATA = "/models", "/data"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_CONFIGURATION = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_CUDA = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
_FORK_LIMIT_COUNTS_NAMESPACE = (5, 14)  # first kernel whose RLIMIT_NPROC is per namespace


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What to start, for whom."""

    job: str
    models: Path  # folder of this job's frames; files linked in later appear in the sandbox
    dataset: Path | None
    limits: Limits
    threads: int
    cuda: bool = False


class WorkerProcess(Protocol):
    """A started worker."""

    pid: int  # of the worker itself or of what holds it
    stdin: int  # file descriptors; the holder closes them with `close`
    stdout: int
    stderr: int

    def inside(self, path: Path) -> str:
        """Return the path at which the worker sees a model or the dataset."""

    @property
    def running(self) -> bool:
        """False once the process that was started is known to have ended. Costs nothing."""

    def pids(self) -> tuple[int, ...]:
        """Return every process of the worker, as seen from outside."""

    def kill(self) -> None:
        """Kill the whole process tree. Never fails; does not wait."""

    async def wait(self) -> int:
        """Wait until it has ended; return its exit code (negative: the signal)."""

    def close(self) -> None:
        """Kill it if need be and close the pipes."""


class Launcher(Protocol):
    """Starts workers."""

    name: str
    sandboxed: bool

    def available(self) -> str | None:
        """Say why this launcher cannot work here, or None. Really tries."""

    async def launch(self, spec: WorkerSpec) -> WorkerProcess:
        """Start a worker; raise WorkerError when that fails."""


class Bubblewrap:
    """Runs the worker under `bwrap`, without privileges of its own."""

    name = "bubblewrap"
    sandboxed = True

    def __init__(self, command: str = "bwrap", scratch_bytes: int = SCRATCH_BYTES) -> None:
        self._command = shutil.which(command) or command
        self._scratch = scratch_bytes

    def available(self) -> str | None:
        """Run `true` in an empty sandbox and say why that fails, or None."""
        arguments = [self._command, *_isolation(), *_system(), "/usr/bin/true"]
        try:
            done = subprocess.run(  # noqa: S603  fixed arguments
                arguments, capture_output=True, timeout=10, check=False, env={}
            )
        except FileNotFoundError:
            return "bubblewrap is not installed: apt-get install bubblewrap"
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"bubblewrap does not start: {error}"
        if done.returncode == 0:
            return None
        said = done.stderr.decode(errors="replace").strip()[:300]
        return (
            f"bubblewrap cannot make a sandbox here: {said or f'exit {done.returncode}'}. "
            "User namespaces may be switched off: see docs/how-to/install-a-hospital.md"
        )

    async def launch(self, spec: WorkerSpec) -> WorkerProcess:
        """Start a worker in a new sandbox."""
        limits = spec.limits
        size = str(self._scratch)
        arguments = _isolation()
        arguments += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm"]  # noqa: S108
        if spec.cuda:
            arguments += _cuda_devices()
        arguments += ["--remount-ro", "/dev", "--size", size, "--tmpfs", "/tmp"]  # noqa: S108
        arguments += _system()
        for path in python_paths():
            arguments += ["--ro-bind", path, path]
        arguments += ["--ro-bind", str(spec.models), _MODELS]
        if spec.dataset is not None:
            arguments += ["--ro-bind", str(spec.dataset), f"{_DATA}/{spec.dataset.name}"]
        for name, value in environment(spec.threads).items():
            arguments += ["--setenv", name, value]
        arguments += ["--chdir", "/tmp", "--remount-ro", "/"]  # noqa: S108
        command = worker_command(limits, spec.cuda, fork_limit=_fork_limit_per_namespace())
        # not on the command line, where the worker could read the site's paths in /proc/1
        with _written("\0".join(arguments).encode()) as options:
            whole = [self._command, "--args", str(options), "--", *command]
            return await _start(whole, {}, spec, inherited=(options,))


class PlainProcess:
    """Runs the worker without a sandbox: for machines whose owner switched it off."""

    name = "none"
    sandboxed = False

    def available(self) -> str | None:
        """Return None: a process can always be started."""
        return None

    async def launch(self, spec: WorkerSpec) -> WorkerProcess:
        """Start a worker as an ordinary child. Whoever runs it warns (node.runner)."""
        command = worker_command(spec.limits, spec.cuda, fork_limit=False)
        return await _start(command, environment(spec.threads), spec)


def _isolation() -> list[str]:
    return [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
        *("--clearenv", "--die-with-parent", "--new-session", "--hostname", "worker"),
        *("--uid", "65534", "--gid", "65534"),
    ]


def _system() -> list[str]:
    """Return the arguments that show the operating system's programs and libraries."""
    arguments: list[str] = []
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    for name in _CONFIGURATION:
        arguments += ["--ro-bind-try", name, name]
    return arguments


def _cuda_devices() -> list[str]:
    numbered = sorted(str(p) for p in Path("/dev").glob("nvidia[0-9]*"))
    arguments: list[str] = []
    for device in (*_CUDA, *numbered):
        arguments += ["--dev-bind-try", device, device]
    for path in ("/sys/module/nvidia", "/sys/devices", "/sys/bus/pci"):
        arguments += ["--ro-bind-try", path, path]
    return arguments


def python_paths() -> tuple[str, ...]:
    """Return the folders that this Python, its packages and Consilia live in, outermost only.

    Only these are shown to a worker, so a virtual environment inside a home directory shows
    nothing else of that home.
    """
    found = [Path(p) for p in (sys.base_prefix, sys.prefix, sys.exec_prefix)]
    found.append(Path(consilia.__file__).parent)
    found += [Path(sys.executable).resolve().parent.parent]
    wanted: list[Path] = []
    for path in sorted({p.absolute() for p in found} | {p.resolve() for p in found}):
        if path == Path("/") or path.is_relative_to("/usr"):
            continue
        if not any(path.is_relative_to(w) for w in wanted):
            wanted.append(path)
    return tuple(map(str, wanted))


def shown_within(path: Path) -> str | None:
    """Return the folder, shown to every sandboxed worker, that `path` lies in, or None."""
    where = path.resolve()
    shown = (*_SYSTEM, *python_paths())
    return next((s for s in shown if where.is_relative_to(Path(s).resolve())), None)


def environment(threads: int) -> dict[str, str]:
    """Return the whole environment of a worker: nothing of the agent's is passed on."""
    count = str(threads)
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",  # noqa: S108  private to the sandbox
        "USER": "worker",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(consilia.__file__).parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it CUDA is not deterministic
        "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    }


def worker_command(limits: Limits, cuda: bool, fork_limit: bool) -> list[str]:
    """Return the command line of a worker; it sets these limits on itself before it listens."""
    options: Mapping[str, int] = {
        # a second layer: resident memory, of all processes together, is watched by the runner
        "--data": 0 if cuda else limits.memory_bytes + RESERVED_BYTES,
        "--file": SCRATCH_BYTES,
        "--files": OPEN_FILES,
        "--processes": limits.processes if fork_limit else 0,
    }
    flags = [text for name, value in options.items() for text in (name, str(value))]
    return [
        sys.executable,
        "-P",
        "-s",
        "-X",
        "faulthandler",
        "-m",
        "consilia.node.worker",
        *flags,
    ]


def _fork_limit_per_namespace() -> bool:
    numbers = os.uname().release.split("-")[0].split(".")
    release = tuple(int(n) for n in numbers[:2] if n.isdigit())
    return release >= _FORK_LIMIT_COUNTS_NAMESPACE


@contextlib.contextmanager
def _written(data: bytes) -> Iterator[int]:
    """A descriptor from which a child reads `data`."""
    fd = os.memfd_create("options")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


async def _start(
    command: list[str],
    env: Mapping[str, str],
    spec: WorkerSpec,
    inherited: tuple[int, ...] = (),
) -> "_Process":
    """Start `command` with three pipes of PIPE_BYTES; `inherited` are a sandbox's options."""
    ends = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = ends
    try:
        for _, write_end in ends:
            with contextlib.suppress(OSError):  # over the user's pipe budget: slower, not wrong
                fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        child = await asyncio.create_subprocess_exec(
            *command,
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
        raise WorkerError(
            f"the worker does not start: {command[0]}: {error}", "crashed"
        ) from None
    finally:
        for fd in (in_read, out_write, err_write):
            os.close(fd)
    return _Process(child, (in_write, out_read, err_read), spec, sandboxed=bool(inherited))


class _Process:
    """A worker started by either launcher."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        pipes: tuple[int, int, int],
        spec: WorkerSpec,
        sandboxed: bool,
    ) -> None:
        self._child = child
        self._spec = spec
        self._sandboxed = sandboxed
        self._open = True
        self.pid = child.pid
        self.stdin, self.stdout, self.stderr = pipes

    def inside(self, path: Path) -> str:
        """Return the path at which the worker sees a model or the dataset."""
        if not self._sandboxed:
            return str(path)
        if path == self._spec.dataset:
            return f"{_DATA}/{path.name}"
        return f"{_MODELS}/{path.relative_to(self._spec.models)}"

    @property
    def running(self) -> bool:
        """See WorkerProcess."""
        return self._child.returncode is None

    def pids(self) -> tuple[int, ...]:
        """Return the started process and all its descendants, parents first."""
        if not self.running:
            return ()
        found = [self.pid]
        for pid in found:
            found += _children(pid)
        return tuple(found)

    def kill(self) -> None:
        """Kill every process of the worker.

        Inside a sandbox it is enough to kill bwrap: the first process of the namespace dies
        with it, and the kernel then kills all others. Without one, the tree is walked.
        """
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not self._sandboxed:
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


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  text is what we want
        for thread in threads:
            with Path(f"/proc/{pid}/task/{thread}/children").open() as stream:
                found += map(int, stream.read().split())
    except OSError:  # it has just ended
        return found
    return found
