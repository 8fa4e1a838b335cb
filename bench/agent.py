"""Start time and idle memory of the agent and the hub, and `consilia --help`."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.local import CONSILIA, LocalFederation
from bench.watch import resident

IDLE = 3.0  # seconds after which a process that has nothing to do is looked at


def measure(root: Path) -> dict[str, Any]:
    """Return seconds from start to first poll, and MB of resident memory when idle."""
    with LocalFederation(root) as federation:
        federation.make_hub()
        start = time.perf_counter()
        federation.start_hub()
        hub_start = time.perf_counter() - start
        federation.join("site")
        with federation.client() as client:
            start = time.perf_counter()
            federation.start_node("site")
            federation.wait(lambda: client.sites()[0].online, "the agent's first poll")
            agent_start = time.perf_counter() - start
        time.sleep(IDLE)
        return {
            "agent_start_s": agent_start,
            "agent_rss_mb": resident(federation.processes["site"].pid),
            "hub_start_s": hub_start,
            "hub_idle_rss_mb": resident(federation.processes["hub"].pid),
            "help_s": statistics.median(_seconds("--help") for _ in range(5)),
            "slowest_command_s": max(_typical(federation)),
            "bare_python_s": statistics.median(_bare() for _ in range(5)),
        }


def _typical(federation: LocalFederation) -> Iterator[float]:
    """Seconds of commands that need no network, each the median of three."""
    node, hub = str(federation.node_directory("site")), str(federation.hub_directory)
    for words in (
        ("node", "plans", "--dir", node),
        ("node", "studies", "--dir", node),
        ("node", "log", "--dir", node),
        ("dataset", "list", "--dir", node),
        ("audit", "verify", "--node", node),
        ("audit", "verify", "--hub", hub),
    ):
        yield statistics.median(_seconds(*words) for _ in range(3))


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([*CONSILIA, *arguments], capture_output=True, check=True)
    return time.perf_counter() - start


def _bare() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - start
