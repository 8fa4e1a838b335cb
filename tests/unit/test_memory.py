"""What a worker is seen to use."""

import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.node import memory

MIB = 1 << 20
HOLD = """
import ctypes, mmap, os, sys, time
kept = mmap.mmap(-1, 64 << 20, flags=int(sys.argv[1]))
for at in range(0, len(kept), 4096):
    kept[at] = 1
if len(sys.argv) > 2:
    os.fork()
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # not dumpable: others may not look closely
os.write(1, b"ready\\n")
time.sleep(60)
"""


@pytest.fixture
def held(request: pytest.FixtureRequest) -> Iterator[int]:
    """A process that holds 64 MiB."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, *request.param],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("held", [[str(mmap.MAP_PRIVATE)]], indirect=True)
def test_files_in_memory_come_on_top(held: int) -> None:
    alone = memory.usage([held], 1 << 40).memory
    assert 64 * MIB < alone < 120 * MIB
    assert memory.usage([held], 1 << 40, 500 * MIB).memory == alone + 500 * MIB
    assert memory.peak([held]) >= 64 * MIB


@pytest.mark.parametrize("held", [[str(mmap.MAP_SHARED)]], indirect=True)
def test_mapped_shared_memory_is_not_counted_twice(held: int) -> None:
    alone = memory.usage([held], 1 << 40).memory
    assert alone > 64 * MIB
    assert memory.usage([held], 1 << 40, 64 * MIB).memory - alone < MIB
    assert memory.usage([held], 1 << 40, 100 * MIB).memory - alone > 35 * MIB


@pytest.mark.parametrize("held", [[str(mmap.MAP_PRIVATE), "fork"]], indirect=True)
def test_shared_pages_count_once_only_when_it_matters(held: int) -> None:
    children = Path(f"/proc/{held}/task/{held}/children").read_text()
    pids = [held, *map(int, children.split())]
    assert len(pids) == 2
    assert memory.usage(pids, 1 << 40).memory > 128 * MIB
    seen = memory.usage(pids, 1).memory
    if os.geteuid() == 0:
        assert 64 * MIB < seen < 120 * MIB
    else:  # it has hidden what is shared: counted in full, not as nothing
        assert seen > 128 * MIB


def test_threads_are_counted() -> None:
    before = memory.usage([os.getpid()], 1).threads
    done = threading.Event()
    others = [threading.Thread(target=done.wait) for _ in range(5)]
    for other in others:
        other.start()
    assert memory.usage([os.getpid()], 1).threads == before + 5
    done.set()
    for other in others:
        other.join()


def test_a_process_that_has_ended_uses_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        pid = process.pid
    assert memory.usage([pid], 1) == memory.Usage(0, 0)
