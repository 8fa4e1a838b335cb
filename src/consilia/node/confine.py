"""What a worker does to itself before it loads anything: `python -m consilia.node.confine`.

The launcher starts this. It sets resource limits, leaves the agent's keyring, gives up what
Landlock can take and, where no launcher could do so from outside, filters its system calls.
Only then it becomes node.worker. It must come first: numpy starts threads when it is
imported, and a thread that exists already is not bound by Landlock.

Options are pairs of a name and a whole number, after them `--show` and paths (see `Plan`).
Whatever of this fails ends the process, so that no researcher code runs half confined.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import consilia
from consilia.node import landlock, seccomp
from consilia.node.landlock import DEVICE, READ, READ_DIR, READ_FILE, RUN, SCRATCH, WRITE_FILE
from consilia.node.syscalls import NUMBERS

MODELS, DATA = "/models", "/data"  # in bubblewrap's sandbox
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
CONFIGURATION = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
ALONE_NEEDS = 6  # the version of Landlock without which a worker could kill the agent
_JOIN_SESSION_KEYRING = 1
_SET_PARENT_DEATH_SIGNAL, _SET_SECCOMP, _FILTER = 1, 22, 2  # prctl(2)

_NOTHING_BUT = {  # of /dev
    "/dev/null": READ_FILE | WRITE_FILE,
    "/dev/zero": READ_FILE,  # writable, it would be memory that nobody counts
    "/dev/full": READ_FILE,
    "/dev/random": READ_FILE,
    "/dev/urandom": READ_FILE,
}
_MACHINE = (  # what numeric libraries ask about the machine, where /proc and /sys are shared
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/proc/filesystems",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/fs/cgroup",
)
_CUDA = ("/sys/module/nvidia", "/sys/devices", "/sys/bus/pci", "/proc/driver/nvidia")


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a worker is to give up. Sizes in bytes; 0 leaves a limit as it is."""

    data: int = 0  # private memory of one process
    file: int = 0  # one file
    files: int = 0  # open at once
    processes: int = 0
    landlock: int = -1  # version that the kernel must offer; -1: do without
    alone: bool = False  # narrow rules, of the container launcher; else bubblewrap's
    cuda: bool = False
    show: tuple[str, ...] = ()  # alone: the dataset and the folder of models

    def flags(self) -> list[str]:
        """Return it as command line options."""
        numbers = {n: int(getattr(self, n)) for n in _NUMBERS}
        flags = [text for n, value in numbers.items() for text in (f"--{n}", str(value))]
        return [*flags, "--show", *self.show]


_NUMBERS = ("data", "file", "files", "processes", "landlock", "alone", "cuda")


def parse(arguments: Sequence[str]) -> Confinement:
    """Read what `Confinement.flags` wrote; raise ValueError for anything else."""
    cut = arguments.index("--show")
    names = [f"--{n}" for n in _NUMBERS]
    if list(arguments[:cut:2]) != names:
        raise ValueError(f"options {arguments[:cut:2]}, needed {names}")
    data, file, files, processes, version, alone, cuda = map(int, arguments[1:cut:2])
    show = tuple(arguments[cut + 1 :])
    return Confinement(data, file, files, processes, version, bool(alone), bool(cuda), show)


def confine(wanted: Confinement) -> None:
    """Give it up, for this process and all it will start, for good. Raises OSError."""
    _limit(wanted)
    _leave_keyring()
    # when memory runs out the kernel shall take this process, not the agent
    Path("/proc/self/oom_score_adj").write_text("1000")
    if wanted.alone:
        _die_with_parent()
    if wanted.landlock >= 0:
        found = landlock.version()
        if found < wanted.landlock:
            raise OSError(
                errno.ENOSYS, f"Landlock {wanted.landlock} is needed, this kernel has {found}"
            )
        if found:
            rules = alone_rules(wanted) if wanted.alone else namespace_rules(wanted.cuda)
            landlock.restrict(rules, found)
    if wanted.alone:
        _filter(seccomp.program(os.uname().machine, alone=os.getpid(), cuda=wanted.cuda))


def namespace_rules(cuda: bool) -> dict[str, int]:
    """Return what a worker may open in bubblewrap's sandbox: what was put there for it."""
    rules = _programs()
    rules |= dict.fromkeys((MODELS, DATA, "/proc"), READ)
    rules |= dict.fromkeys(("/tmp", "/dev/shm"), SCRATCH)  # noqa: S108  private
    return rules | (_graphics() if cuda else {})


def alone_rules(wanted: Confinement) -> dict[str, int]:
    """Return what a worker may open where it shares all files with the agent.

    It can write nowhere: what is not namespaced cannot be bounded or cleared away.
    """
    rules = _programs()
    rules |= dict.fromkeys((*_MACHINE, *wanted.show), READ)
    return rules | (_graphics() if wanted.cuda else {})


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


def _programs() -> dict[str, int]:
    rules = dict.fromkeys((*SYSTEM, *python_paths()), RUN)
    rules |= dict.fromkeys(CONFIGURATION, READ)
    # Python lists the folder that a package lies in, to find the package
    rules.setdefault(str(Path(consilia.__file__).parent.parent), READ_DIR)
    return rules | _NOTHING_BUT


def _graphics() -> dict[str, int]:
    devices = map(str, Path("/dev").glob("nvidia*"))
    return dict.fromkeys(devices, DEVICE) | dict.fromkeys(_CUDA, READ)


def _limit(wanted: Confinement) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: wanted.files or resource.RLIM_INFINITY,
        resource.RLIMIT_FSIZE: wanted.file or resource.RLIM_INFINITY,
        resource.RLIMIT_DATA: wanted.data or resource.RLIM_INFINITY,
        resource.RLIMIT_NPROC: wanted.processes or resource.RLIM_INFINITY,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = hard if value == resource.RLIM_INFINITY else min(value, hard)  # noqa: PLW2901
        resource.setrlimit(kind, (value, value))


def _leave_keyring() -> None:
    """Take a new, empty session keyring: the agent's, which processes inherit through any
    namespace, may hold a login's Kerberos tickets or a network drive's password.
    """
    numbers = NUMBERS.get(os.uname().machine)
    if numbers is None:
        return
    kernel = ctypes.CDLL(None, use_errno=True)
    if kernel.syscall(numbers["keyctl"], _JOIN_SESSION_KEYRING, None) < 0:
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EPERM):  # no keyrings here, for anybody
            raise OSError(code, f"a keyring of its own: {os.strerror(code)}")


def _die_with_parent() -> None:
    parent = os.getppid()
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be asked to
        os.kill(os.getpid(), signal.SIGKILL)


def _filter(program: bytes) -> None:
    """Filter this process's system calls. Landlock has set no_new_privs, which it needs."""
    code = ctypes.create_string_buffer(program, len(program))
    sock_fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    header = ctypes.create_string_buffer(sock_fprog, len(sock_fprog))
    _prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(header))


def _prctl(option: int, *arguments: int) -> None:
    kernel = ctypes.CDLL(None, use_errno=True)
    wide = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    if kernel.prctl(option, *wide) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def probe(attempts: Iterable[str] = ("files", "write", "socket", "fork", "signal")) -> str:
    """Try what the container launcher's worker must not be able to do; name what worked."""
    import socket  # noqa: PLC0415  the worker itself needs none of it

    tries: dict[str, Callable[[], object]] = {
        "files": lambda: os.listdir("/"),  # noqa: PTH208
        "write": lambda: Path(f"/tmp/consilia-probe-{os.getpid()}").write_text(""),  # noqa: S108
        "socket": lambda: socket.socket(socket.AF_INET),
        "fork": os.fork,
        "signal": lambda: os.kill(os.getppid(), 0),
    }
    worked = []
    for name in attempts:
        try:
            tries[name]()
        except OSError:
            continue
        worked.append(name)
    return ", ".join(worked)


def main() -> None:
    """Confine this process, then be a worker."""
    trial = sys.argv[1:2] == ["--probe"]
    wanted = parse(sys.argv[1 + trial :])
    confine(wanted)
    if trial:
        sys.exit(f"not confined: {worked}" if (worked := probe()) else 0)
    if wanted.alone:
        # torch and others ask for the temporary folder when they are imported; Python finds
        # it by writing there, and must be told where nothing can be written
        import tempfile  # noqa: PLC0415  not needed in bubblewrap's sandbox

        tempfile.tempdir = "/tmp"  # noqa: S108
    from consilia.node import worker  # noqa: PLC0415  see above: its imports start threads

    worker.main()


if __name__ == "__main__":
    main()
