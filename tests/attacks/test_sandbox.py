"""Researcher code that tries to get out of its worker, for real.

Every escape is first shown to work without the sandbox where that does no harm (so a test
that could not fail is noticed), then shown to fail under bubblewrap. After each attack the
agent's side must still be able to run an honest task.
"""

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.errors import WorkerError
from consilia.node.config import Limits
from consilia.node.launcher import Bubblewrap, Launcher, PlainProcess
from consilia.node.pipes import LOG_BYTES
from consilia.wire.v1 import Plan
from workkit import Site, plan, processes_with, site, table, until

pytestmark = pytest.mark.skipif(
    (reason := Bubblewrap().available()) is not None, reason=f"no sandbox here: {reason}"
)
MIB = 1 << 20
HONEST = plan("""
    def train(weights, data, args, context):
        weights["w"] += 1
        return {"ok": 1.0}
""")


def attack(body: str) -> Plan:
    """Return a plan that reports escaped=1 when `escape(target)` of `body` returns true."""
    return plan(f"""
{body}

def train(weights, data, args, context):
    try:
        escaped = bool(escape(args["s"]))
    except Exception as error:
        print("attack failed:", type(error).__name__, error)
        escaped = False
    return {{"escaped": float(escaped)}}
""")


async def escaped(
    tmp_path: Path, launcher: Launcher, body: str, target: str = "", **more: object
) -> bool:
    """Run an attack and then an honest task; return whether the attack says it worked."""
    async with site(tmp_path / f"node-{launcher.name}", launcher) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        done, _ = await here.train(
            attack(body), dataset, model, arguments={"s": target}, job="attack", **more
        )
        await honest(here, tmp_path, model)
        return done.metrics["escaped"] == 1.0


async def honest(here: Site, tmp_path: Path, model: Path) -> None:
    """The agent's side is alive: another job trains."""
    dataset = table(tmp_path / "other.csv")
    done, weights = await here.train(HONEST, dataset, model, job="honest", timeout=20)
    assert done.metrics == {"ok": 1.0}
    assert (weights["w"] == 1).all()


async def only_without_sandbox(tmp_path: Path, body: str, target: str = "") -> None:
    assert await escaped(tmp_path, PlainProcess(), body, target), "the attack itself is wrong"
    assert not await escaped(tmp_path, Bubblewrap(), body, target)


# ---- network ---------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_tcp(tmp_path: Path, listener: int) -> None:
    await only_without_sandbox(
        tmp_path,
        """
import socket
def escape(port):
    socket.create_connection(("127.0.0.1", int(port)), 2).close()
    return True
""",
        str(listener),
    )


async def test_datagram_as_dns_would_send_it(tmp_path: Path) -> None:
    body = """
import socket
def escape(port):
    question = b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\7patient\\4evil\\4test\\0\\0\\1\\0\\1"
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(question, ("127.0.0.1", int(port)))
    return True
"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        port = str(server.getsockname()[1])
        await escaped(tmp_path, PlainProcess(), body, port)
        assert b"patient" in server.recv(512), "the attack itself is wrong"
        await escaped(tmp_path, Bubblewrap(), body, port)
        with pytest.raises(BlockingIOError):
            server.recv(512)


async def test_name_resolution(tmp_path: Path) -> None:
    body = """
import socket
def escape(_):
    return bool(socket.getaddrinfo("example.org", 443))
"""
    assert not await escaped(tmp_path, Bubblewrap(), body)


async def test_only_loopback_exists(tmp_path: Path) -> None:
    body = """
import socket
def escape(_):
    return [name for _, name in socket.if_nameindex()] != ["lo"]
"""
    assert not await escaped(tmp_path, Bubblewrap(), body)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86_64")
async def test_keys_of_the_agents_session(tmp_path: Path) -> None:
    """Session keyrings pass through namespaces: a login's tickets must not reach a worker."""
    kernel, session, user = ctypes.CDLL(None), ctypes.c_int(-3), b"user"
    search, unlink = 10, 9
    body = """
import ctypes
def escape(name):
    return ctypes.CDLL(None).syscall(250, 10, ctypes.c_int(-3), b"user", name.encode(), 0) > 0
"""
    key = kernel.syscall(248, user, b"consilia-test", b"ticket", 6, session)
    if key < 0:
        pytest.skip("no keyrings here")
    try:
        inherits = [sys.executable, "-c", f"{body}\nprint(escape('consilia-test'))"]
        assert subprocess.check_output(inherits) == b"True\n", "the attack itself is wrong"
        for launcher in (PlainProcess(), Bubblewrap()):
            assert not await escaped(tmp_path, launcher, body, "consilia-test")
        assert kernel.syscall(250, search, session, user, b"consilia-test", 0) == key
    finally:
        kernel.syscall(250, unlink, key, session)


async def test_unix_sockets(tmp_path: Path) -> None:
    """Neither the agent's control socket nor an abstract one can be reached."""
    path = tmp_path / "control.sock"
    body = """
import socket
def escape(path):
    reached = []
    for address in (path, "\\0consilia-test-" + str(len(path))):
        try:
            socket.socket(socket.AF_UNIX).connect(address)
            reached.append(address)
        except OSError:
            pass
    return reached
"""
    with (
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        named.bind(str(path))
        abstract.bind(f"\0consilia-test-{len(str(path))}")
        named.listen()
        abstract.listen()
        await only_without_sandbox(tmp_path, body, str(path))


# ---- files -----------------------------------------------------------------------------------

READ = """
def escape(path):
    return open(path, "rb").read(1)
"""


async def test_the_nodes_database_and_secrets(tmp_path: Path) -> None:
    secret = tmp_path / "node.sqlite"
    secret.write_text("approvals")
    await only_without_sandbox(tmp_path, READ, str(secret))


async def test_another_datasets_file(tmp_path: Path) -> None:
    """The folder of the registered file is not shown, only the file."""
    table(tmp_path / "neighbour.csv")
    await only_without_sandbox(tmp_path, READ, str(tmp_path / "neighbour.csv"))
    body = """
import glob
def escape(_):
    return len(glob.glob("/data/*")) != 1
"""
    assert not await escaped(tmp_path, Bubblewrap(), body)


async def test_another_jobs_models(tmp_path: Path) -> None:
    body = """
import glob
def escape(jobs):
    return len(glob.glob("/models/*")) > 1 or glob.glob(jobs + "/*")
"""
    for launcher, expected in ((PlainProcess(), True), (Bubblewrap(), False)):
        jobs = str(tmp_path / f"node-{launcher.name}" / "jobs")
        assert await escaped(tmp_path, launcher, body, jobs) is expected


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/etc/passwd", "/root", "/home", "/var", "/sys"]
)
async def test_the_systems_own_files(tmp_path: Path, path: str) -> None:
    """Parents of the Python installation may exist, but hold nothing but the way to it."""
    body = """
import os, sys
def escape(path):
    if not os.path.isdir(path):
        return open(path).read(1)
    ways = (sys.prefix, sys.base_prefix, sys.modules["consilia"].__file__)
    found = [os.path.join(path, name) for name in os.listdir(path)]
    return [f for f in found if not any(w.startswith(f) for w in ways)]
"""
    assert not await escaped(tmp_path, Bubblewrap(), body, path)


async def test_symlinks_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    body = """
import os
def escape(path):
    link = f"/tmp/link-{os.getpid()}"
    os.symlink(path, link)
    try:
        return open(link).read()
    finally:
        os.unlink(link)
"""
    await only_without_sandbox(tmp_path, body, str(secret))


async def test_writing_the_dataset(tmp_path: Path) -> None:
    body = """
import glob, os
def escape(path):
    for name in glob.glob("/data/*") or [path]:
        os.chmod(name, 0o600)
        open(name, "a").write("9,1\\n")
    return True
"""
    file = tmp_path / "cohort.csv"
    await only_without_sandbox(tmp_path, body, str(file))
    table(file)
    before = file.read_bytes()
    assert not await escaped(tmp_path, Bubblewrap(), body, str(file))
    assert file.read_bytes() == before


async def test_writing_anything_but_scratch(tmp_path: Path) -> None:
    body = """
import glob, os, sys
def escape(_):
    places = ["/", "/usr", "/models", "/data", "/dev", "/etc", "/proc/sys/kernel", sys.prefix,
              os.path.dirname(sys.modules["consilia"].__file__)]
    written = []
    for place in places:
        try:
            open(os.path.join(place, "evil"), "w").close()
            written.append(place)
        except OSError:
            pass
    for name in glob.glob("/models/*"):
        try:
            open(name, "r+b").write(b"x")
            written.append(name)
        except OSError:
            pass
    print(written)
    open("/tmp/scratch", "w").close()
    return written
"""
    assert not await escaped(tmp_path, Bubblewrap(), body)


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


# ---- other processes -------------------------------------------------------------------------


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


# ---- resources -------------------------------------------------------------------------------


async def broken(
    tmp_path: Path, body: str, limits: Limits | None = None, timeout: float = 20.0
) -> tuple[str, float]:
    """Run a plan that must fail; return the cause and the seconds it took."""
    async with site(tmp_path / "node", Bubblewrap(), limits) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        began = time.monotonic()
        with pytest.raises(WorkerError) as caught:
            await here.train(plan(body), dataset, model, job="attack", timeout=timeout)
        seconds = time.monotonic() - began
        await honest(here, tmp_path, model)
        return caught.value.cause, seconds


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
    assert 1.9 <= seconds < 4.0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_huge_output(tmp_path: Path, stream: str) -> None:
    """The log ends at its cap, and the agent's loop never waits for it."""
    body = f"""
        def train(weights, data, args, context):
            line = "x" * 9999
            for _ in range(2000):
                print(line, file=sys.{stream})
            return {{"ok": 1.0}}
    """
    lag = 0.0

    async def watch() -> None:
        nonlocal lag
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            lag = max(lag, time.monotonic() - began - 0.01)

    async with site(tmp_path / "node", Bubblewrap()) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        watching = asyncio.create_task(watch())
        done, _ = await here.train(plan(body), dataset, model, job="loud")
        watching.cancel()
        assert done.metrics == {"ok": 1.0}
        log = tmp_path / "node" / "log" / "jobs" / "loud.log"
        assert LOG_BYTES <= log.stat().st_size < LOG_BYTES + 1000
        assert "the log is full" in log.read_text()[-200:]
        assert lag < 0.5
        await honest(here, tmp_path, model)


# ---- the protocol ----------------------------------------------------------------------------

PIPE = """
def pipe():
    for fd in range(3, 64):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
            if name.startswith("pipe:") and os.write(fd, b"") == 0:
                return fd
        except OSError:
            pass
    raise AssertionError("no pipe found")
"""


@pytest.mark.parametrize(
    "garbage",
    [
        "b'\\xff' * 65536",
        "(5).to_bytes(4, 'little') + b'hello'",
        "(9 << 20).to_bytes(4, 'little') + bytes(1 << 20)",
        "(4).to_bytes(4, 'little') + b'\\x81\\xa4type'",
    ],
)
async def test_garbage_on_the_protocol_pipe(tmp_path: Path, garbage: str) -> None:
    body = (
        f"{PIPE}\ndef train(weights, data, args, context):\n    os.write(pipe(), {garbage})\n"
    )
    cause, _ = await broken(tmp_path, body + "    time.sleep(60)\n")
    assert cause == "plan-contract"


async def test_flood_of_progress(tmp_path: Path) -> None:
    """Forged progress is slowed down; the loop stays free and the time-out holds."""
    body = f"""{PIPE}
import msgspec
from consilia.wire.worker import Step
def train(weights, data, args, context):
    body = msgspec.msgpack.encode(Step(0.5, {{"loss": 1.0}}))
    message = (len(body).to_bytes(4, "little") + body) * 1000
    fd = pipe()
    while True:
        os.write(fd, message)
"""
    async with site(tmp_path / "node", Bubblewrap()) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        with pytest.raises(WorkerError) as caught:
            await here.train(plan(body), dataset, model, job="flood", timeout=3.0)
        assert caught.value.cause == "timeout"
        assert 0 < len(here.steps) < 2000
        await honest(here, tmp_path, model)


async def test_outcome_that_never_ends(tmp_path: Path) -> None:
    """A worker that promises tensors and sends none holds the reading thread no longer than
    the task's time."""
    body = f"""{PIPE}
import msgspec
from consilia.wire.worker import Done, WorkerTensor
def train(weights, data, args, context):
    done = Done(60, {{}}, (WorkerTensor("w", "float32", (1000,)),))
    body = msgspec.msgpack.encode(done)
    os.write(pipe(), len(body).to_bytes(4, "little") + body + bytes(1000))
    time.sleep(60)
"""
    cause, seconds = await broken(tmp_path, body, timeout=2.0)
    assert cause == "timeout"
    assert seconds < 4.0


# ---- the end ---------------------------------------------------------------------------------

SPAWN = """
import subprocess
def train(weights, data, args, context):
    for _ in range(3):
        subprocess.Popen(["sh", "-c", f"setsid sleep {args['s']} & sleep {args['s']}"],
                         start_new_session=True)
    context.progress(0.5)
    time.sleep(60)
"""


async def test_stop_kills_the_whole_tree_within_a_second(tmp_path: Path) -> None:
    marker = f"61.{time.time_ns() % 10**9}"
    async with site(tmp_path / "node", Bubblewrap()) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        running = asyncio.create_task(
            here.train(plan(SPAWN), dataset, model, job="attack", arguments={"s": marker})
        )
        assert await until(lambda: len(processes_with(marker)) >= 6, 10)
        began = time.monotonic()
        await here.runner.stop("attack")
        assert await until(lambda: not processes_with(marker), 1.0)
        assert time.monotonic() - began < 1.0
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
        assert await until(lambda: len(processes_with(marker)) >= 6, 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await until(lambda: not processes_with(marker), 1.0)
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
        assert await until(lambda: len(processes_with(marker)) >= 7, 20), sleeping
        agent.send_signal(signal.SIGKILL)
        agent.wait()
        assert await until(lambda: not processes_with(marker), 2.0)
    finally:
        agent.kill()
        agent.wait()
