"""Researcher code that tries to see, stop or outlive other processes."""

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from consilia.errors import WorkerError
from consilia.node.launcher import Bubblewrap, PlainProcess
from sandboxkit import HONEST, broken, escaped, honest, needs_bubblewrap, only_without_sandbox
from workkit import plan, processes_with, site, table, until

pytestmark = needs_bubblewrap


async def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the agent's environment is passed on, with or without a sandbox."""
    monkeypatch.setenv("CONSILIA_TEST_SECRET", "hunter2")
    body = """
import os
def escape(_):
    print(sorted(os.environ))
    return "hunter2" in str(os.environ)
"""
    for launcher in (PlainProcess(), Bubblewrap()):
        assert not await escaped(tmp_path, launcher, body)


async def test_seeing_other_processes(tmp_path: Path) -> None:
    body = """
import glob
def escape(pid):
    for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if b"pytest" in open(path, "rb").read():
                return True
        except OSError:
            pass
"""
    await only_without_sandbox(tmp_path, body)


async def test_killing_the_agent(tmp_path: Path) -> None:
    """A stand-in for the agent dies without the sandbox; with it nothing outside can be hit."""
    body = """
import os, signal, time
def escape(pid):
    for target in (int(pid), -int(pid)):
        try:
            os.kill(target, signal.SIGKILL)
        except OSError as error:
            print(error)
    return True
"""
    for launcher, dies in ((PlainProcess(), True), (Bubblewrap(), False)):
        victim = subprocess.Popen(["sleep", "60"], start_new_session=True)
        try:
            await escaped(tmp_path, launcher, body, str(victim.pid))
            await asyncio.sleep(0.1)
            assert (victim.poll() is not None) is dies
        finally:
            victim.kill()
            victim.wait()


async def test_killing_everything(tmp_path: Path) -> None:
    body = """
import os, signal
def escape(_):
    os.kill(-1, signal.SIGKILL)
"""
    victim = subprocess.Popen(["sleep", "60"])
    try:
        assert not await escaped(tmp_path, Bubblewrap(), body)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


async def test_tracing_the_agent(tmp_path: Path) -> None:
    body = """
import ctypes
def escape(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    attached = libc.ptrace(16, int(pid), 0, 0) == 0
    if attached:
        libc.ptrace(17, int(pid), 0, 0)
    return attached
"""
    victim = subprocess.Popen(["sleep", "60"])
    try:
        if os.geteuid() == 0:  # elsewhere yama forbids it even without a sandbox
            assert await escaped(tmp_path, PlainProcess(), body, str(victim.pid))
        assert not await escaped(tmp_path, Bubblewrap(), body, str(victim.pid))
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


async def test_privileges_and_new_namespaces(tmp_path: Path) -> None:
    body = """
import ctypes, os
def escape(_):
    lines = open("/proc/self/status").read().splitlines()
    status = dict(line.split(":\\t") for line in lines if ":\\t" in line)
    print(status["CapEff"], status["CapBnd"], status["NoNewPrivs"], os.getuid())
    if int(status["CapEff"], 16) or int(status["CapBnd"], 16) or status["NoNewPrivs"] != "1":
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    return any(libc.unshare(flag) == 0 for flag in (0x10000000, 0x20000, 0x40000000)) or (
        libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0)
"""
    assert not await escaped(tmp_path, Bubblewrap(), body)


async def test_time_out(tmp_path: Path) -> None:
    cause, seconds = await broken(
        tmp_path,
        """
        import signal
        def train(weights, data, args, context):
            for number in range(1, 32):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except OSError:
                    pass
            while True:
                pass
        """,
        timeout=2.0,
    )
    assert cause == "timeout"
    assert 1.9 <= seconds < 30


SPAWN = """
import subprocess
def train(weights, data, args, context):
    for _ in range(3):
        subprocess.Popen(["sh", "-c", f"setsid sleep {args['s']} & sleep {args['s']}"],
                         start_new_session=True)
    context.progress(0.5)
    time.sleep(60)
"""


async def test_stop_kills_the_whole_tree_at_once(tmp_path: Path) -> None:
    marker = f"61.{time.time_ns() % 10**9}"
    async with site(tmp_path / "node", Bubblewrap()) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        running = asyncio.create_task(
            here.train(plan(SPAWN), dataset, model, job="attack", arguments={"s": marker})
        )
        assert await until(lambda: len(processes_with(marker)) >= 6, 60)
        began = time.monotonic()
        await here.runner.stop("attack")
        assert await until(lambda: not processes_with(marker), 40)
        assert time.monotonic() - began < 40  # of 60; a second where nothing else runs
        with pytest.raises(WorkerError) as caught:
            await running
        assert caught.value.cause == "stopped"
        await honest(here, tmp_path, model)


async def test_cancelling_kills_the_whole_tree(tmp_path: Path) -> None:
    marker = f"62.{time.time_ns() % 10**9}"
    async with site(tmp_path / "node", Bubblewrap()) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        running = asyncio.create_task(
            here.train(plan(SPAWN), dataset, model, job="attack", arguments={"s": marker})
        )
        assert await until(lambda: len(processes_with(marker)) >= 6, 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await until(lambda: not processes_with(marker), 30)
        await honest(here, tmp_path, model)


AGENT = """
import asyncio, sys
from pathlib import Path
from workkit import plan, site, table
from consilia.node.launcher import Bubblewrap
sys.path.insert(0, str(Path(__file__).parent))

async def main(directory, marker):
    async with site(directory / "node", Bubblewrap()) as here:
        body = Path(directory / "spawn.py").read_text()
        model = await here.init(plan(body))
        data = table(directory / "cohort.csv")
        await here.train(plan(body), data, model, job="attack", arguments={"s": marker})

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


async def test_nothing_survives_a_killed_agent(tmp_path: Path) -> None:
    marker = f"63.{time.time_ns() % 10**9}"
    (tmp_path / "spawn.py").write_text(SPAWN)
    kit = str(Path(__file__).parent.parent)
    source = str(Path(__file__).parent.parent.parent / "src")
    agent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            AGENT.replace("sys.path.insert", "# ").strip(),
            tmp_path,
            marker,
        ],
        env={**os.environ, "PYTHONPATH": f"{kit}:{source}"},
    )
    try:
        sleeping = f"sleep {marker}"
        assert await until(lambda: len(processes_with(marker)) >= 7, 60), sleeping
        agent.send_signal(signal.SIGKILL)
        agent.wait()
        assert await until(lambda: not processes_with(marker), 30)
    finally:
        agent.kill()
        agent.wait()


async def test_what_proc_shows(tmp_path: Path) -> None:
    """Only the sandbox's own processes, none of which knows a path or a name of the site."""
    marker = f"sleep 65.{time.time_ns() % 10**9}"
    body = """
import glob, os
def escape(secret):
    found = []
    for path in glob.glob("/proc/[0-9]*"):
        for name in ("cmdline", "environ", "maps", "mem", "stack", "wchan"):
            try:
                text = open(f"{path}/{name}", "rb").read(1 << 20)
            except OSError:
                continue
            if any(s.encode() in text for s in secret.split("|")):
                found.append(f"{path}/{name}")
    others = [p for p in glob.glob("/proc/[0-9]*") if os.path.exists(p)]
    print(found, others)
    return found or len(others) > 3
"""
    victim = subprocess.Popen(shlex.split(marker), env={"TOKEN": "hunter2"})
    try:
        secrets = f"{marker.split()[1]}|hunter2|{tmp_path}/node-none/secrets"
        await only_without_sandbox(tmp_path, body, secrets)
    finally:
        victim.kill()
        victim.wait()


async def test_signals_reach_nobody_outside_the_plan(tmp_path: Path) -> None:
    """Landlock's part: not even bubblewrap's own process in the sandbox can be signalled."""
    body = """
import os
def escape(_):
    try:
        os.kill(1, 0)
        return True
    except PermissionError:
        return False
"""
    assert await escaped(tmp_path, Bubblewrap(landlocked=False), body)
    assert not await escaped(tmp_path, Bubblewrap(), body)


@pytest.mark.parametrize(
    "game",
    [
        "os.kill(os.getpid(), signal.SIGSTOP)",
        """
            for _ in range(3):
                if os.fork() == 0:
                    while True:
                        os.kill(os.getppid(), signal.SIGSTOP)
                        os.kill(os.getppid(), signal.SIGCONT)
            time.sleep(60)
        """,
        """
            for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, lambda *_: os.fork())
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            while True:
                try:
                    time.sleep(60)
                except OSError:
                    pass
        """,
    ],
    ids=["stopped", "stopped and continued", "woken for ever"],
)
async def test_time_out_of_a_worker_that_plays_with_signals(tmp_path: Path, game: str) -> None:
    """The clock is the agent's, and SIGKILL ends a stopped process too."""
    body = f"""
import signal
def train(weights, data, args, context):
{textwrap.indent(textwrap.dedent(game), "    ")}
"""
    cause, seconds = await broken(tmp_path, body, timeout=2.0)
    assert cause in ("timeout", "crashed")  # the last one may start too many processes first
    assert seconds < 30
