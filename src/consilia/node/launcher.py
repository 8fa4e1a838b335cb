"""Start a worker process: in a bubblewrap sandbox, alone in a hardened container, or plainly.

In bubblewrap a worker sees a read-only system, its Python, this package, one dataset file and
the folder of its job's models; a private /tmp and /dev/shm of bounded size; no network, no
other process, no capability, no environment but ours. It cannot make further namespaces.
A filter of system calls (node.seccomp), Landlock and resource limits (node.confine) and, where
it may be made, a control group (node.cgroup) stand behind that.

Where namespaces are denied, as in most containers, `Container` relies on those alone; it
takes away more, because less holds. `PlainProcess` takes away nothing but limits.

What a worker can still do is compute, and write to its pipes: what those bytes may be is
decided by node.runner and node.release. It speaks wire.worker over its stdin and stdout; its
stderr is text for the site.
"""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import consilia
from consilia.errors import WorkerError
from consilia.node import cgroup, landlock, seccomp
from consilia.node.cgroup import Group
from consilia.node.config import Limits
from consilia.node.confine import (
    ALONE_NEEDS,
    CONFIGURATION,
    DATA,
    MODELS,
    SYSTEM,
    Confinement,
    python_paths,
)
from consilia.node.layers import why_no_namespaces
from consilia.node.processes import Place, start

SCRATCH_BYTES = 1 << 30  # of a worker's /tmp; its /dev/shm has as much again
OPEN_FILES = 1024
RESERVED_BYTES = 1 << 30  # stacks and arenas that are reserved and never touched
_PRIVATE = ("/tmp", "/dev/shm")  # noqa: S108  the sandbox's own
_CUDA = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
_FORK_LIMIT_COUNTS_NAMESPACE = (5, 14)  # first kernel whose RLIMIT_NPROC is per namespace
_OWN_PROCESSES = 2  # bubblewrap's
_NOT_INSTALLED = "bubblewrap is not installed: apt-get install bubblewrap"
_TRIAL = 20.0  # seconds a trial sandbox may take


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

    @property
    def starved(self) -> bool:
        """True when the kernel has killed one of its processes at its limit of memory."""

    def pids(self) -> tuple[int, ...]:
        """Return every process of the worker, as seen from outside."""

    def unmapped(self) -> int:
        """Return the bytes of memory it holds that its processes need not have mapped."""

    def kill(self) -> None:
        """Kill the whole process tree. Never fails; does not wait."""

    async def wait(self) -> int:
        """Wait until it has ended; return its exit code (negative: the signal)."""

    def close(self) -> None:
        """Kill it if need be and close the pipes."""


class Launcher(Protocol):
    """Starts workers."""

    name: str
    sandboxed: bool  # whether the worker sees only what was put there for it
    warning: str  # said of every run; "" for nothing

    def available(self) -> str | None:
        """Say why this launcher cannot work here, or None. Really tries."""

    def lacks(self) -> tuple[str, ...]:
        """Say which of the layers a worker runs without on this machine."""

    async def launch(self, spec: WorkerSpec) -> WorkerProcess:
        """Start a worker; raise WorkerError when that fails."""


class Bubblewrap:
    """Runs the worker under `bwrap`, without privileges of its own."""

    name = "bubblewrap"
    sandboxed = True
    warning = ""

    def __init__(
        self,
        command: str = "bwrap",
        scratch_bytes: int = SCRATCH_BYTES,
        *,
        filtered: bool = True,
        landlocked: bool = True,
    ) -> None:
        """`filtered` and `landlocked` are False in tests that look at one layer only."""
        self._command = shutil.which(command)
        self._scratch = scratch_bytes
        machine = os.uname().machine
        self._no_filter = seccomp.missing(machine) if filtered else "switched off"
        self._filters = {
            cuda: b"" if self._no_filter else seccomp.program(machine, cuda=cuda)
            for cuda in (False, True)
        }
        self._landlock = landlock.version() if landlocked else -1
        self._base: Path | None = None
        self._no_group = ""
        self._count = itertools.count()

    def available(self) -> str | None:
        """Run `true` in an empty sandbox and say why that fails, or None."""
        if self._command is None:
            return _NOT_INSTALLED
        with _written(self._filters[False]) as program:
            arguments = [self._command, *_isolation(), *self._filtered(program, cuda=False)]
            try:
                done = subprocess.run(  # noqa: S603  fixed arguments
                    [*arguments, *_system(), "/usr/bin/true"],
                    capture_output=True,
                    timeout=_TRIAL,
                    check=False,
                    env={},
                    pass_fds=(program,),
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"bubblewrap does not start: {error}"
        if done.returncode == 0:
            return None
        said = done.stderr.decode(errors="replace").strip()[:300]
        return (
            f"bubblewrap cannot make a sandbox here: {said or f'exit {done.returncode}'}; "
            f"{why_no_namespaces()}"
        )

    def lacks(self) -> tuple[str, ...]:
        """Say which second layers this machine does not offer."""
        found = []
        if self._no_filter:
            found.append(f"a filter of system calls: {self._no_filter}")
        if self._landlock <= 0:
            found.append("Landlock: not offered by this kernel, or switched off")
        elif gaps := landlock.gaps(self._landlock):
            found.append(f"Landlock's rules on {gaps}")
        if why := self._no_group or cgroup.missing():
            found.append(f"a control group: {why}")
        return tuple(found)

    async def launch(self, spec: WorkerSpec) -> WorkerProcess:
        """Start a worker in a new sandbox."""
        if self._command is None:
            raise WorkerError(f"the worker does not start: {_NOT_INSTALLED}", "crashed")
        limits = resources(spec.limits, cuda=spec.cuda, fork_limit=_fork_limit_per_namespace())
        wanted = replace(limits, landlock=self._landlock)
        group = self._group(spec)
        # not on the command line, where the worker could read the site's paths in /proc/1
        with (
            _written(self._filters[spec.cuda]) as program,
            _written("\0".join(self._arguments(spec, program)).encode()) as options,
        ):
            return await start(
                [self._command, "--args", str(options), "--", *worker_command(wanted)],
                {},
                Place(lambda path: _inside(spec, path), _PRIVATE, group),
                inherited=(options, program) if self._filters[spec.cuda] else (options,),
            )

    def _arguments(self, spec: WorkerSpec, program: int) -> list[str]:
        size = str(self._scratch)
        arguments = [*_isolation(), *self._filtered(program, spec.cuda)]
        arguments += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm"]  # noqa: S108
        if spec.cuda:
            arguments += _cuda_devices()
        arguments += ["--remount-ro", "/dev", "--size", size, "--tmpfs", "/tmp"]  # noqa: S108
        arguments += _system()
        for path in python_paths():
            arguments += ["--ro-bind", path, path]
        arguments += ["--ro-bind", str(spec.models), MODELS]
        if spec.dataset is not None:
            arguments += ["--ro-bind", str(spec.dataset), f"{DATA}/{spec.dataset.name}"]
        for name, value in environment(spec.threads).items():
            arguments += ["--setenv", name, value]
        return [*arguments, "--chdir", "/tmp", "--remount-ro", "/"]  # noqa: S108

    def _filtered(self, program: int, cuda: bool) -> list[str]:
        return ["--seccomp", str(program)] if self._filters[cuda] else []

    def _divide(self) -> None:
        """Find out, once, below which control group workers get theirs, or why below none."""
        if self._base is None and not self._no_group:
            try:
                base = cgroup.find()
                cgroup.prepare(base)
                self._base = base
            except cgroup.Unavailable as error:
                self._no_group = str(error)

    def _group(self, spec: WorkerSpec) -> Group | None:
        self._divide()
        if self._base is None:
            return None
        name = f"{os.getpid()}-{next(self._count)}"
        limits = spec.limits
        return cgroup.make(
            self._base, name, limits.memory_bytes, limits.processes + _OWN_PROCESSES
        )


class Container:
    """Runs the worker beside the agent, where namespaces are denied and Landlock is offered.

    The worker is one process that can start no other, opens only what it must read, writes
    nowhere, and has no socket and no signal for anybody else. It shares the agent's user,
    kernel and container: fewer walls than bubblewrap's, which every run says.
    """

    name = "container"
    sandboxed = True
    warning = "in a container without namespaces: Landlock and a system call filter only"

    def available(self) -> str | None:
        """Confine a trial worker, have it try to get out, and say what is missing, or None."""
        machine = os.uname().machine
        if why := seccomp.missing(machine):
            return f"the container sandbox needs a filter of system calls: {why}"
        if (found := landlock.version()) < ALONE_NEEDS:
            return (
                f"the container sandbox needs Landlock {ALONE_NEEDS} (Linux 6.12): "
                f"{landlock.gaps(found)}; this kernel, or the container's filter, has {found}"
            )
        command = worker_command(Confinement(landlock=ALONE_NEEDS, alone=True))
        command.insert(command.index("consilia.node.confine") + 1, "--probe")
        try:
            done = subprocess.run(  # noqa: S603  fixed arguments
                command,
                capture_output=True,
                timeout=_TRIAL,
                check=False,
                env=environment(1),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"a trial worker does not start: {error}"
        if done.returncode == 0:
            return None
        said = done.stderr.decode(errors="replace").strip()[-300:]
        return f"the container sandbox does not hold here: {said or done.returncode}"

    def lacks(self) -> tuple[str, ...]:
        """Say what bubblewrap would have given."""
        return ("namespaces: the container launcher has Landlock and a call filter only",)

    async def launch(self, spec: WorkerSpec) -> WorkerProcess:
        """Start a worker beside the agent."""
        shown = (spec.models,) if spec.dataset is None else (spec.models, spec.dataset)
        limits = resources(spec.limits, cuda=spec.cuda, fork_limit=False)
        show = tuple(map(str, shown))
        wanted = replace(limits, landlock=ALONE_NEEDS, alone=True, show=show)
        return await start(worker_command(wanted), environment(spec.threads), Place(str))


class PlainProcess:
    """Runs the worker without a sandbox: for machines whose owner switched it off."""

    name = "none"
    sandboxed = False
    warning = "WITHOUT a sandbox"

    def available(self) -> str | None:
        """Return None: a process can always be started."""
        return None

    def lacks(self) -> tuple[str, ...]:
        """Say that there is none."""
        return ("a sandbox: it is switched off in node.yaml",)

    async def launch(self, spec: WorkerSpec) -> WorkerProcess:
        """Start a worker as an ordinary child. Whoever runs it warns (node.runner)."""
        command = worker_command(resources(spec.limits, cuda=spec.cuda, fork_limit=False))
        return await start(command, environment(spec.threads), Place(str))


def _isolation() -> list[str]:
    return [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
        *("--clearenv", "--die-with-parent", "--new-session", "--hostname", "worker"),
        *("--uid", "65534", "--gid", "65534"),
    ]


def _system() -> list[str]:
    """Return the arguments that show the operating system's programs and libraries."""
    arguments: list[str] = []
    for path in map(Path, SYSTEM):
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    for name in CONFIGURATION:
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


def shown_within(path: Path) -> str | None:
    """Return the folder, shown to every sandboxed worker, that `path` lies in, or None."""
    where = path.resolve()
    shown = (*SYSTEM, *python_paths())
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
        # Threads that wait sleep: while they spin, two workers on one machine each train at a
        # tenth of their speed, and so does one beside anything else that computes.
        "OMP_WAIT_POLICY": "passive",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it CUDA is not deterministic
        # Batches and activations are taken from memory that is kept. Naming either threshold
        # ends glibc's own adapting of both: with one alone, every tensor of 128 KiB and more
        # is mapped and faulted in anew, which made an epoch of small batches thrice as long.
        "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    }


def worker_command(wanted: Confinement) -> list[str]:
    """Return the command line of a worker that confines itself before it listens."""
    flags = ["-P", "-s", "-X", "faulthandler", "-m", "consilia.node.confine"]
    return [sys.executable, *flags, *wanted.flags()]


def resources(limits: Limits, *, cuda: bool, fork_limit: bool) -> Confinement:
    """Return the resource limits of a worker.

    A second layer: the memory of all its processes together is watched by the runner.
    """
    return Confinement(
        data=0 if cuda else limits.memory_bytes + RESERVED_BYTES,
        file=SCRATCH_BYTES,
        files=OPEN_FILES,
        processes=limits.processes if fork_limit else 0,
        cuda=cuda,
    )


def _inside(spec: WorkerSpec, path: Path) -> str:
    if path == spec.dataset:
        return f"{DATA}/{path.name}"
    return f"{MODELS}/{path.relative_to(spec.models)}"


def _fork_limit_per_namespace() -> bool:
    numbers = os.uname().release.split("-")[0].split(".")
    release = tuple(int(n) for n in numbers[:2] if n.isdigit())
    return release >= _FORK_LIMIT_COUNTS_NAMESPACE


@contextlib.contextmanager
def _written(data: bytes) -> Iterator[int]:
    """A descriptor from which a child reads `data`."""
    fd = os.memfd_create("options", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
