"""The sandbox's layers, looked at one by one: what is there, what is missing, what to do.

The launcher decides what a worker gets; this only explains, for `consilia node doctor` and for
the message about a sandbox that cannot be made. docs/explanation/sandbox.md has the whole.
"""

import contextlib
import os
from pathlib import Path

from consilia.node import cgroup, landlock, seccomp
from consilia.node.healthwords import Finding, finding

_GUIDE = "docs/how-to/sandbox.md"
_CONTAINER_MARKS = ("/run/.containerenv", "/.dockerenv")


def layers(agent: int | None) -> tuple[Finding, ...]:
    """Look at what stands behind the sandbox; `agent` is the running agent's process.

    A layer is not `ok` when nothing of it is there.
    """
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


def _filter() -> Finding:
    if why := seccomp.missing(os.uname().machine):
        return finding("sandbox_calls", False, "told", "calls", text=why)
    return finding("sandbox_calls", True, "calls")


def _landlock() -> Finding:
    name, version = "sandbox_landlock", landlock.version()
    if not version:
        return finding(name, False, "no_landlock", "landlock")
    if gaps := landlock.gaps(version):
        keys = ("landlock_gaps", "landlock_gaps")
        return finding(name, True, *keys, version=version, gaps=gaps)
    return finding(name, True, "landlock", version=version)


def _group(agent: int | None) -> Finding:
    if why := cgroup.missing(agent or "self"):
        advice = "group_agent" if agent is None else "group"
        return finding("sandbox_group", True, "no_group", advice, why=why)
    return finding("sandbox_group", True, "group")
