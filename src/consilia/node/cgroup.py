"""Control groups (version 2): memory and processes of one worker bounded by the kernel.

An agent may make groups below its own when whoever runs it has delegated that: a systemd
unit with `Delegate=memory pids`, or a container with a control group namespace of its own.
Without, node.memory looks at the worker ten times a second instead. Sizes are bytes.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst; systemd's CGROUP_DELEGATION.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from consilia.errors import WorkerError

_NEEDED = frozenset(("memory", "pids"))
_AGENT, _WORKER = "agent", "worker-"
_DELEGATED = ("user.delegate", "trusted.delegate")  # how systemd marks what it handed over
# Moves itself into the group, then becomes the worker: nothing of it ever runs outside.
_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


class Unavailable(Exception):
    """No groups can be made; says why."""


@dataclass(frozen=True, slots=True)
class Group:
    """A worker's control group."""

    path: Path

    def entered(self, command: list[str]) -> list[str]:
        """Return the command line that runs `command` in the group."""
        return ["/bin/sh", "-c", _ENTER, str(self.path), *command]

    def starved(self) -> bool:
        """Say whether the kernel killed a process of it for want of memory."""
        try:
            text = (self.path / "memory.events").read_text()
        except OSError:  # it is gone
            return False
        events = dict(line.split() for line in text.splitlines())
        return int(events.get("oom_kill", 0)) > 0

    def kill(self) -> None:
        """Kill all its processes at once (Linux 5.14; before, the tree is walked)."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")

    def remove(self) -> None:
        """Remove it; one that still has a dying process is removed with the next `prepare`."""
        with contextlib.suppress(OSError):
            self.path.rmdir()


def find(pid: int | str = "self", proc: Path = Path("/proc")) -> Path:
    """Return the group below which process `pid` may make others; raise Unavailable."""
    own = _own(pid, proc)
    for base in (own, own.parent):  # systemd's DelegateSubgroup= puts the agent one below
        if _handed_over(base) and os.access(base / "cgroup.subtree_control", os.W_OK):
            offered = frozenset(_words(base / "cgroup.controllers"))
            if lacking := sorted(_NEEDED - offered):
                raise Unavailable(
                    f"{base} does not offer the controllers {' and '.join(lacking)}"
                )
            return base
    raise Unavailable(f"{own} was not handed over to the agent (systemd: Delegate=memory pids)")


def missing(pid: int | str = "self") -> str | None:
    """Say why process `pid` could make no groups, or None."""
    try:
        find(pid)
    except Unavailable as error:
        return str(error)
    return None


def prepare(base: Path) -> None:
    """Have `base` bound its children; raise Unavailable when the kernel will not.

    A group that has processes of its own cannot (the root can), so those move one below.
    """
    for old in base.glob(f"{_WORKER}*"):
        Group(old).remove()
    try:
        if _NEEDED - frozenset(_words(base / "cgroup.subtree_control")):
            if (base / "cgroup.type").exists():
                (base / _AGENT).mkdir(exist_ok=True)
                for pid in _words(base / "cgroup.procs"):
                    with contextlib.suppress(ProcessLookupError):
                        (base / _AGENT / "cgroup.procs").write_text(pid)
            (base / "cgroup.subtree_control").write_text("+memory +pids")
    except OSError as error:
        raise Unavailable(f"{base} cannot be divided: {error.strerror}") from None


def make(base: Path, name: str, memory: int, processes: int) -> Group:
    """Make a group for a worker; raise WorkerError when that fails."""
    path = base / f"{_WORKER}{name}"
    limits = {
        "memory.max": str(memory),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": str(processes),
    }
    try:
        path.mkdir()
        for file, value in limits.items():
            # swap is not accounted everywhere
            with contextlib.suppress(FileNotFoundError):
                (path / file).write_text(value)
    except OSError as error:
        Group(path).remove()
        raise WorkerError(f"no control group for the worker: {error}", "internal") from None
    return Group(path)


def _own(pid: int | str, proc: Path) -> Path:
    mounts = (line.split(" - ") for line in _lines(proc / "self/mountinfo"))
    found = [left.split() for left, right in mounts if right.startswith("cgroup2 ")]
    if not found:
        raise Unavailable("no control groups of version 2 are mounted")
    root, point = found[0][3], Path(found[0][4])
    named = [line[3:] for line in _lines(proc / str(pid) / "cgroup") if line.startswith("0::")]
    if not named or not named[0].startswith(root):
        raise Unavailable("this process's control group cannot be seen from here")
    return point / named[0][len(root) :].lstrip("/")


def _handed_over(path: Path) -> bool:
    if not (path / "cgroup.subtree_control").exists():
        return False
    if not (path.parent / "cgroup.subtree_control").exists():
        return True  # the topmost that can be seen: a container's, or a machine without systemd
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    # systemd before 251 marks it for root only, but gives the group to the unit's user; in a
    # login's tree, which is the user's as well, groups are the session manager's to make
    return 0 != os.geteuid() == path.stat().st_uid and "user.slice" not in path.parts


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from None
