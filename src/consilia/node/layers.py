"""The sandbox's layers, looked at one by one: what is there, what is missing, what to do.

The launcher decides what a worker gets; this only explains, for `consilia node doctor` and for
the message about a sandbox that cannot be made. docs/explanation/sandbox.md has the whole.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from consilia.node import cgroup, landlock, seccomp

_GUIDE = "docs/how-to/sandbox.md"
_CONTAINER_MARKS = ("/run/.containerenv", "/.dockerenv")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. `present` is False when nothing of it is there."""

    name: str
    present: bool
    found: str
    remedy: str = ""


def layers(agent: int | None) -> tuple[Layer, ...]:
    """Look at what stands behind the sandbox; `agent` is the running agent's process."""
    return (_filter(), _landlock(), _group(agent))


def why_no_namespaces(root: Path = Path("/")) -> str:
    """Guess from the machine's settings why bubblewrap cannot make namespaces, and the way out.

    `root` is where /proc, /run and the marks of containers are looked for.
    """
    settings = (
        ("proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
        (
            "proc/sys/kernel/unprivileged_userns_clone",
            "0",
            "sysctl kernel.unprivileged_userns_clone=1",
        ),
        (
            "proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "install deploy/apparmor/consilia-bwrap as root",
        ),
    )
    for path, value, remedy in settings:
        with contextlib.suppress(OSError):
            if (root / path).read_text().strip() == value:
                return f"/{path} is {value}: {remedy} ({_GUIDE})"
    if any((root / mark.lstrip("/")).exists() for mark in _CONTAINER_MARKS):
        return f"this is a container, which may deny namespaces: see {_GUIDE}"
    return f"user namespaces may be denied: see {_GUIDE}"


def _filter() -> Layer:
    name = "sandbox: system calls"
    if why := seccomp.missing(os.uname().machine):
        return Layer(name, False, why, "use an x86_64 or aarch64 kernel with seccomp filters")
    return Layer(name, True, "filtered: what training needs is allowed, the rest is refused")


def _landlock() -> Layer:
    name = "sandbox: Landlock"
    found = landlock.version()
    if not found:
        remedy = "Linux 5.13 or newer with landlock in the lsm= list (/sys/kernel/security/lsm)"
        return Layer(name, False, "this kernel does not offer it", remedy)
    if gaps := landlock.gaps(found):
        remedy = "a newer kernel closes the gaps; bubblewrap covers them meanwhile"
        return Layer(name, True, f"version {found}, without rules on {gaps}", remedy)
    return Layer(name, True, f"version {found}: files, TCP, devices, signals")


def _group(agent: int | None) -> Layer:
    name = "sandbox: control group"
    if why := cgroup.missing(agent or "self"):
        found = f"none ({why}); memory is looked at ten times a second instead"
        remedy = "Delegate=memory pids in the agent's systemd unit, on control groups version 2"
        if agent is None:
            remedy = f"start the agent, then look again; {remedy}"
        return Layer(name, True, found, remedy)
    return Layer(name, True, "the kernel bounds each worker's memory and processes")
