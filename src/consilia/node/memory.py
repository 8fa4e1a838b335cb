"""What a worker uses, read from /proc. Sizes in bytes.

Resident memory is not all: page tables grow with what is mapped, and files in memory (tmpfs)
and full sockets belong to no process. The launcher counts those (`WorkerProcess.unmapped`).
Memory that no number here would show is refused by the filter of system calls (node.seccomp):
memfd_create, System V shared memory, shared anonymous mappings, huge pages, vmsplice.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from consilia.node import processes

# the lines that count, by name: a worker is looked at ten times a second
_LINE = re.compile(
    rb"^(VmPTE|Threads|VmRSS|VmHWM|RssShmem|Pss|Pss_Shmem):\s*(\d+)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all processes of a worker together."""

    memory: int
    threads: int


def usage(pids: Iterable[int], limit: int, unmapped: int = 0) -> Usage:
    """Return what `pids` use together, with `unmapped` bytes that they hold otherwise.

    Pages that forked processes share count for each of them, which is cheap to find out and
    too much. Only when the sum is above `limit` are they counted once (proportional set size),
    and again when that is above it, too: a process that forks or ends while the others are read
    moves its share to them. Shared memory that is mapped is part of `unmapped`, where that is
    known.
    """
    pids = tuple(pids)
    found = [_fields(f"/proc/{pid}/status") for pid in pids]
    tables = sum(f.get("VmPTE", 0) << 10 for f in found)
    threads = sum(f.get("Threads", 0) for f in found)
    total = _together(found, "VmRSS", "RssShmem", unmapped) + tables
    if total <= limit or len(pids) == 1:
        return Usage(total, threads)
    once = _together(map(_shares, pids), "Pss", "Pss_Shmem", unmapped) + tables
    if once > limit:
        again = _together(map(_shares, pids), "Pss", "Pss_Shmem", unmapped) + tables
        once = min(once, again)
    return Usage(min(total, once), threads)


def _shares(pid: int) -> dict[str, int]:
    """Return a process's part of what it shares: all when it hides that, nothing once ended."""
    exact = _fields(f"/proc/{pid}/smaps_rollup")
    if "Pss" in exact:
        return exact
    known = _fields(f"/proc/{pid}/status")
    return {"Pss": known.get("VmRSS", 0), "Pss_Shmem": known.get("RssShmem", 0)}


def peak(pids: Iterable[int]) -> int:
    """Return the sum of the most resident memory that each process ever had."""
    return sum(_fields(f"/proc/{pid}/status").get("VmHWM", 0) << 10 for pid in pids)


def _together(
    processes: Iterable[Mapping[str, int]], whole: str, shared: str, unmapped: int
) -> int:
    private = files = 0
    for kilobytes in processes:
        files += kilobytes.get(shared, 0) << 10
        private += (kilobytes.get(whole, 0) - kilobytes.get(shared, 0)) << 10
    return private + max(files, unmapped)


def _fields(path: str) -> dict[str, int]:
    """Return the numbers that the kernel writes as `name: <number>`, sizes as `<number> kB`."""
    try:
        text = processes.told(path)
    except OSError:  # it has just ended
        return {}
    return {name.decode(): int(number) for name, number in _LINE.findall(text)}
