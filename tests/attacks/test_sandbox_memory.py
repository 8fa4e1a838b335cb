"""Researcher code that tries to use up the machine: memory, files, processes."""

import os
import time
from pathlib import Path

import pytest

from consilia.node.config import Limits
from consilia.node.launcher import Bubblewrap
from sandboxkit import HONEST, MIB, broken, escaped, needs_bubblewrap
from workkit import plan, processes_with, site, table, until

pytestmark = needs_bubblewrap


async def test_fork_bomb(tmp_path: Path) -> None:
    marker = f"{time.time_ns()}"
    cause, _ = await broken(
        tmp_path,
        f"""
        def train(weights, data, args, context):
            while True:
                try:
                    if os.fork() == 0:
                        bomb = ": {marker}; :(){{ :|:& }};: ; sleep 60"
                        os.execv("/bin/sh", ["sh", "-c", bomb])
                except OSError:
                    time.sleep(0.01)
        """,
        Limits(threads=1, processes=32),
        timeout=10,
    )
    assert cause in ("crashed", "timeout")  # over the watched count, or held by RLIMIT_NPROC
    assert await until(lambda: not processes_with(marker))


async def test_memory_bomb(tmp_path: Path) -> None:
    cause, seconds = await broken(
        tmp_path,
        """
        def train(weights, data, args, context):
            kept = []
            while True:
                kept.append(np.ones(4 << 20, np.float64))
        """,
        Limits(threads=1, memory_bytes=300 * MIB),
    )
    assert cause == "memory"
    assert seconds < 10


async def test_memory_bomb_in_many_processes(tmp_path: Path) -> None:
    cause, _ = await broken(
        tmp_path,
        """
        def train(weights, data, args, context):
            for _ in range(4):
                if os.fork() == 0:
                    kept = np.ones(16 << 20, np.float64)
                    time.sleep(60)
            time.sleep(60)
        """,
        Limits(threads=1, memory_bytes=300 * MIB),
    )
    assert cause == "memory"


async def test_shared_pages_count_once(tmp_path: Path) -> None:
    """Forked loaders that share the parent's data are no memory bomb."""
    body = """
        def train(weights, data, args, context):
            kept = np.ones(16 << 20, np.float64)
            children = []
            for _ in range(4):
                child = os.fork()
                if child == 0:
                    time.sleep(0.6)
                    os._exit(0)
                children.append(child)
            for child in children:
                os.waitpid(child, 0)
            return {"sum": float(kept[0])}
    """
    async with site(
        tmp_path / "node", Bubblewrap(), Limits(threads=1, memory_bytes=300 * MIB)
    ) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        done, _ = await here.train(plan(body), dataset, model, job="loaders")
        assert done.metrics == {"sum": 1.0}


async def test_filling_the_scratch_space(tmp_path: Path) -> None:
    """Both temporary folders end at their size; the machine's memory is not theirs."""
    body = """
import os
def escape(_):
    for path in ("/tmp/big", "/dev/shm/big"):
        total = 0
        try:
            with open(path, "wb", buffering=0) as file:
                while total < 64 << 20:
                    total += file.write(bytes(1 << 20))
        except OSError as error:
            print(path, total, error)
        os.unlink(path)
        if total > 16 << 20:
            return True
    return False
"""
    assert not await escaped(tmp_path, Bubblewrap(scratch_bytes=16 * MIB), body)
