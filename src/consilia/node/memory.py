"""How much memory processes use, read from /proc. Sizes in bytes."""

import os
from collections.abc import Iterable
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(pids: Iterable[int], limit: int) -> int:
    """Return the resident memory of `pids` together.

    Pages that forked processes share count for each of them, which is cheap to find out and
    too much. Only when the sum is above `limit` are they counted once (proportional set size).
    """
    pids = tuple(pids)
    total = sum(_statm(pid) for pid in pids)
    if total <= limit or len(pids) == 1:
        return total
    return min(total, sum(_proportional(pid) for pid in pids))


def peak(pids: Iterable[int]) -> int:
    """Return the sum of the most resident memory that each process ever had."""
    return sum(_field(Path(f"/proc/{pid}/status"), "VmHWM:") for pid in pids)


def _statm(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):  # it has just ended
        return 0


def _proportional(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _field(path: Path, name: str) -> int:
    """Return a value that the kernel writes as `name  <number> kB`."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
    except OSError:  # it has just ended
        pass
    return 0
