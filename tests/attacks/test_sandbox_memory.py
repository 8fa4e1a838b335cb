"""Researcher code that tries to use up the machine: memory, files, processes."""

import errno
import os
import time
from pathlib import Path

import pytest

from consilia.node.config import Limits
from consilia.node.launcher import Bubblewrap
from sandboxkit import HONEST, MIB, as_nobody, broken, escaped, needs_bubblewrap
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
    assert seconds < 60


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
            for _ in range(6):  # each time they come and go while they are looked at
                children = []
                for _ in range(4):
                    child = os.fork()
                    if child == 0:
                        time.sleep(0.25)
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


HELD = {
    "in /dev/shm": """
        def train(weights, data, args, context):
            with open("/dev/shm/kept", "wb") as file:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
    """,
    "in a removed file of /tmp": """
        def train(weights, data, args, context):
            file = open("/tmp/kept", "wb")
            os.unlink("/tmp/kept")
            while True:
                file.write(bytes(1 << 20))
                file.flush()
    """,
    "in a mapped file, unmapped": """
        import mmap
        def train(weights, data, args, context):
            for number in range(1000):
                with open(f"/dev/shm/{number}", "w+b") as file:
                    os.ftruncate(file.fileno(), 16 << 20)
                    page = mmap.mmap(file.fileno(), 16 << 20)
                    for at in range(0, len(page), 4096):
                        page[at] = 1
                    page.close()
    """,
    "in full sockets": """
        import socket
        def train(weights, data, args, context):
            for _ in range(4):  # each process may have as many again
                os.fork()
            kept = []
            for _ in range(480):
                pair = socket.socketpair()
                pair[0].setblocking(False)
                try:
                    while True:
                        pair[0].send(bytes(65536))
                except BlockingIOError:
                    kept.append(pair)
            time.sleep(60)
    """,
    "in names of empty files": """
        def train(weights, data, args, context):
            number = 0
            while True:
                number += 1
                os.close(os.open(f"/tmp/{number}", os.O_CREAT))
    """,
    "in page tables": """
        import mmap
        def train(weights, data, args, context):
            kept = []
            while True:  # pages that are only read are all the same one; their tables are not
                page = mmap.mmap(-1, 8 << 30, flags=0x4022, prot=mmap.PROT_READ)
                kept.append(page)
                for at in range(0, len(page), 2 << 20):
                    page[at]
    """,
    "in threads": """
        import threading
        def train(weights, data, args, context):
            stop = threading.Event()
            while True:
                threading.Thread(target=stop.wait, daemon=True).start()
    """,
}


@pytest.mark.parametrize("where", HELD)
async def test_memory_that_no_process_shows(tmp_path: Path, where: str) -> None:
    """Each would have held more than the limit for ever, by resident memory alone."""
    limits = Limits(threads=1, memory_bytes=300 * MIB, processes=40)
    cause, seconds = await broken(tmp_path, HELD[where], limits, timeout=240)
    # threads: seen by the watcher, or out of stacks before it looks
    assert cause in ({"crashed", "plan-error"} if where == "in threads" else {"memory"})
    assert seconds < 200


async def test_scratch_files_within_the_limit_are_fine(tmp_path: Path) -> None:
    body = plan("""
        def train(weights, data, args, context):
            for folder in ("/tmp", "/dev/shm"):
                with open(folder + "/kept", "wb") as file:
                    file.write(bytes(40 << 20))
            time.sleep(0.5)
            return {"ok": 1.0}
    """)
    limits = Limits(threads=1, memory_bytes=300 * MIB)
    async with site(tmp_path / "node", Bubblewrap(), limits) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        output = await here.start(body, dataset, model=model)
        assert output.peak_rss > 80 * MIB, "files in memory are part of what is reported"
        await here.take(output)


FORK = """
import json, os
def train(weights, data, args, context):
    children, error = [], 0
    while len(children) < 200 and not error:
        try:
            child = os.fork()
        except OSError as refused:
            error = refused.errno
            break
        if child == 0:
            time.sleep(30)
            os._exit(0)
        children.append(child)
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return {"children": len(children), "error": error}
"""
AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from consilia.node.config import Limits
from consilia.node.launcher import Bubblewrap
from workkit import plan, site, table

async def main(directory):
    assert os.getuid() == 65534
    launcher = Bubblewrap()
    assert launcher.available() is None, launcher.available()
    async with site(directory / "node", launcher, Limits(threads=1, processes=24)) as here:
        body = plan((directory / "plan.py").read_text())
        model = await here.init(body)
        dataset = table(directory / "cohort.csv")
        done, _ = await here.train(body, dataset, model)
        print("FOUND", done.metrics["children"], done.metrics["error"])

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_the_kernel_stops_a_fork_bomb_of_an_ordinary_user(tmp_path: Path) -> None:
    """RLIMIT_NPROC, which does not bind root: the agent is run as nobody, as it should be.

    The watcher would kill it as well, but later.
    """
    done = as_nobody(tmp_path, AS_NOBODY, {"plan.py": FORK})
    said = next(line for line in done.splitlines() if line.startswith("FOUND"))
    _, children, error = said.split()
    assert float(error) == errno.EAGAIN
    assert 5 < float(children) < 24 + 4  # four pools of one thread
