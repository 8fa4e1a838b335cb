"""Memory and processor time of process trees, sampled from outside."""

import threading
from collections.abc import Mapping
from pathlib import Path

import psutil

MB = 1e6


class Watch:
    """Samples the trees under some named processes every `period` seconds until closed.

    `peak(name)` is the largest sum of resident memory over a tree at one sample, in MB:
    pages that two processes share count twice, so it is an upper bound. `cpu()` is the
    seconds of processor time of all trees since the start, dead children included as far as
    they were seen.
    """

    def __init__(self, roots: Mapping[str, int], period: float = 0.1) -> None:
        self._roots = {name: psutil.Process(pid) for name, pid in roots.items()}
        self._period = period
        self._peaks: dict[str, float] = dict.fromkeys(roots, 0.0)
        self._cpu: dict[tuple[int, float], float] = {}
        self._before = 0.0
        self._stop = threading.Event()
        self._sample()
        self._before = sum(self._cpu.values())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def peak(self, name: str) -> float:
        """Peak resident memory of one tree, MB."""
        return self._peaks[name]

    def cpu(self) -> float:
        """Seconds of processor time of all trees since the start."""
        self._sample()
        return sum(self._cpu.values()) - self._before

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            self._sample()

    def _sample(self) -> None:
        for name, root in self._roots.items():
            resident = 0
            for process in _tree(root):
                try:
                    times = process.cpu_times()
                    self._cpu[process.pid, process.create_time()] = times.user + times.system
                    resident += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue  # it ended between two looks
            self._peaks[name] = max(self._peaks[name], resident / MB)


def resident(pid: int) -> float:
    """Resident memory of one process alone, MB."""
    return float(psutil.Process(pid).memory_info().rss) / MB


def _tree(root: psutil.Process) -> list[psutil.Process]:
    """The process and its descendants, by the kernel's own lists.

    psutil would read every process of the machine, at each look: the watcher would weigh more
    than what it watches.
    """
    found = [root.pid]
    for pid in found:
        try:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # it ended between two looks
    return [process for pid in found if (process := _process(pid)) is not None]


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
