"""The container launcher: no namespaces, so Landlock and the narrow filter must hold alone.

Each request is made in a plain process, where it works, then in the launcher's worker.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from consilia.errors import WorkerError
from consilia.node.config import Limits
from consilia.node.launcher import Container, Launcher, PlainProcess
from sandboxkit import CALL, HONEST, MIB, broken, honest
from workkit import plan, processes_with, site, table, until

pytestmark = [
    pytest.mark.skipif(
        (reason := Container().available()) is not None, reason=f"no such sandbox: {reason}"
    ),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64"),
]

# what is tried, with `agent` (a process of this user), `own` (a folder of the agent's) and
# `port`; each either works or raises OSError
REQUESTS: Mapping[str, str] = {
    # reading
    "a secret": "open(own + '/secret').read()",
    "another job's model": "open(own + '/jobs/other/model.frame').read()",
    "a neighbour of the dataset": "open(own + '/neighbour.csv').read()",
    "a list of the agent's folder": "os.listdir(own)",
    "a list of everything": "os.listdir('/')",
    "the system's users": "open('/etc/passwd').read()",
    "the agent's environment": "open(f'/proc/{agent}/environ').read()",
    "the agent's command line": "open(f'/proc/{agent}/cmdline').read()",
    "the agent's memory": "open(f'/proc/{agent}/mem', 'rb')",
    "the agent's open files": "os.listdir(f'/proc/{agent}/fd')",
    "a list of processes": "os.listdir('/proc')",
    "a secret by its root": "open('/proc/self/root' + own + '/secret').read()",
    "a secret by a raw handle": "call(303, -100, own.encode(), handle, word, 0)",
    "what happens in a folder": "call(254, call(294, 0), own.encode(), 0xfff)",
    # changing
    "a file in /tmp": "open(f'/tmp/consilia-{os.getpid()}', 'w')",
    "a file in /dev/shm": "open(f'/dev/shm/consilia-{os.getpid()}', 'w')",
    "a file beside the secret": "open(own + '/evil', 'w')",
    "the dataset": "open(data, 'a')",
    "the dataset's length": "os.truncate(data, 0)",
    "a secret's mode": "os.chmod(own + '/secret', 0o644)",
    "a secret's mode, opened": "os.fchmod(os.open(data, os.O_RDONLY), 0o644)",
    "a secret's mode, the newest way": "call(452, -100, f'{own}/secret'.encode(), 0o644, 0)",
    "a secret's owner": "os.chown(own + '/secret', os.getuid(), os.getgid())",
    "a secret's times": "os.utime(own + '/secret', (0, 0))",
    "a secret's attributes": "os.setxattr(own + '/secret', 'user.x', b'1')",
    "a link to a secret": "os.link(own + '/secret', own + '/linked')",
    "a secret's name": "os.rename(own + '/secret', own + '/secret.2')",
    "a symbolic link": "os.symlink('/', own + '/everything')",
    "a removed file": "os.unlink(own + '/other')",
    "a new folder": "os.mkdir(own + '/made')",
    # talking
    "TCP": "socket.create_connection(('127.0.0.1', port), 2)",
    "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "a listener": "socket.create_server(('127.0.0.1', 0))",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "the agent's socket": "socket.socket(socket.AF_UNIX).connect(own + '/control.sock')",
    "datagrams by a pair": "socket.socketpair(type=socket.SOCK_DGRAM)",
    "System V memory": "call(29, 0x434f4e53, 4096, 0o1600)",
    "POSIX messages": "call(240, b'consilia', 0o102, 0o600, 0)",
    # the agent itself
    "a signal to the agent": "os.kill(agent, signal.SIGCONT)",
    "a signal to its thread": "call(234, agent, agent, signal.SIGCONT)",
    "a signal by a descriptor": "call(424, call(434, agent, 0), signal.SIGCONT, 0, 0)",
    "the agent's limits": "resource.prlimit(agent, resource.RLIMIT_CORE, (0, 0))",
    "the agent's processors": "os.sched_setaffinity(agent, os.sched_getaffinity(agent))",
    "the agent's priority": "os.setpriority(os.PRIO_PROCESS, agent, 1)",
    "tracing the agent": "call(101, 0x4206, agent, 0, 0)",
    # more of itself
    "another process": "child()",
    "another program": "subprocess.run(['true'], check=True)",
    "hidden memory": "call(319, b'x', 0)",
    "outliving the agent": "prctl(1, 0)",
    "hiding from the agent": "prctl(4, 0)",
}

TRY = (
    CALL
    + """
import json, resource, signal, socket, subprocess
word = ctypes.create_string_buffer(8)
handle = ctypes.create_string_buffer((128).to_bytes(8, "little") + bytes(128), 136)
def prctl(option, *arguments):
    if libc.prctl(option, *map(ctypes.c_ulong, arguments), 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def child():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
def train(weights, data, args, context):
    known = json.loads(args["s"])
    requests = known.pop("requests")
    known.update(globals())
    worked = []
    for name, request in requests.items():
        try:
            eval(request, known)
            worked.append(name)
        except (OSError, subprocess.CalledProcessError) as error:
            print(name, error)
    print("WORKED", json.dumps(worked))
    return {"tried": len(requests)}
"""
)


@pytest.fixture
def agent() -> Iterator[int]:
    """A process of the same user, as the agent is one."""
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    alive = process.poll() is None
    process.kill()
    process.wait()
    assert alive


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def what_works(tmp_path: Path, launcher: Launcher, agent: int) -> list[str]:
    """Make every request in a worker of `launcher`."""
    own = tmp_path / launcher.name
    (own / "jobs" / "other").mkdir(parents=True)
    for name in ("secret", "other", "neighbour.csv", "jobs/other/model.frame"):
        (own / name).write_text("patients")
    async with (
        await asyncio.start_server(_hang_up, "127.0.0.1", 0) as server,
        await asyncio.start_unix_server(_hang_up, own / "control.sock"),
        site(tmp_path / f"node-{launcher.name}", launcher) as here,
    ):
        port = server.sockets[0].getsockname()[1]
        dataset = table(own / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        known = {"agent": agent, "own": str(own), "port": port, "data": dataset.path}
        arguments = {"s": json.dumps({**known, "requests": REQUESTS})}
        done, _ = await here.train(plan(TRY), dataset, model, arguments=arguments, job="attack")
        assert done.metrics == {"tried": len(REQUESTS)}
        await honest(here, tmp_path, model)
    text = (tmp_path / f"node-{launcher.name}/log/jobs/attack.log").read_text()
    said = next(line for line in text.splitlines() if " plan: WORKED " in line)
    worked: list[str] = json.loads(said.partition("WORKED ")[2])
    return worked


async def test_nothing_outside_can_be_reached(tmp_path: Path, agent: int) -> None:
    assert await what_works(tmp_path, Container(), agent) == []


async def test_the_requests_are_well_made(tmp_path: Path, agent: int) -> None:
    refused = set(REQUESTS) - set(await what_works(tmp_path, PlainProcess(), agent))
    # limits forbid the first, some systems the second; some kernels lack the third
    assert refused <= {
        "POSIX messages",
        "tracing the agent",
        "a secret's mode, the newest way",
    }


async def test_a_worker_sees_what_it_needs(tmp_path: Path) -> None:
    """Metadata of other paths is not hidden: that is one of the walls which are missing."""
    body = plan(f"""
        def train(weights, data, args, context):
            weights["w"] += data.records
            return {{"size": os.stat("{tmp_path}/secret").st_size, "pid": os.getpid()}}
    """)
    (tmp_path / "secret").write_text("12345")
    async with site(tmp_path / "node", Container()) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        done, weights = await here.train(body, dataset, model, job="work")
        assert (weights["w"] == 60).all()
        assert done.metrics["size"] == 5
        log = (tmp_path / "node/log/jobs/work.log").read_text()
        assert "runs without namespaces" in log


async def test_a_signal_sent_by_the_kernel_for_the_plan(tmp_path: Path) -> None:
    """A process may name another that is signalled when input arrives on a descriptor."""
    body = plan("""
        import fcntl
        def train(weights, data, args, context):
            read, write = os.pipe()
            fcntl.fcntl(read, fcntl.F_SETOWN, int(args["n"]))
            fcntl.fcntl(read, fcntl.F_SETSIG, 15)
            fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC)
            os.write(write, b"x")
            time.sleep(0.2)
            return {"sent": 1.0}
    """)
    for launcher, dies in ((PlainProcess(), True), (Container(), False)):
        victim = subprocess.Popen(["sleep", "60"])
        try:
            async with site(tmp_path / launcher.name, launcher) as here:
                dataset = table(tmp_path / "cohort.csv")
                model = await here.init(HONEST, job="honest")
                done, _ = await here.train(
                    body, dataset, model, arguments={"n": victim.pid}, job="attack"
                )
                assert done.metrics == {"sent": 1.0}
            assert (victim.poll() is not None) is dies
        finally:
            victim.kill()
            victim.wait()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            """
            def train(weights, data, args, context):
                kept = []
                while True:
                    kept.append(np.ones(4 << 20, np.float64))
            """,
            {"memory"},
        ),
        (
            """
            import threading
            def train(weights, data, args, context):
                stop = threading.Event()
                while True:
                    threading.Thread(target=stop.wait, daemon=True).start()
            """,
            {"crashed", "plan-error"},  # seen by the watcher, or out of stacks before
        ),
        (
            """
            def train(weights, data, args, context):
                while True:
                    pass
            """,
            {"timeout"},
        ),
    ],
)
async def test_limits_hold(tmp_path: Path, body: str, expected: set[str]) -> None:
    limits = Limits(threads=1, memory_bytes=300 * MIB, processes=40)
    cause, seconds = await broken(tmp_path, body, limits, 8.0, Container())
    assert cause in expected
    assert seconds < 60


AGENT = """
import asyncio, sys
from pathlib import Path
from workkit import plan, site, table
from consilia.node.launcher import Container

async def main(directory):
    async with site(directory / "node", Container()) as here:
        body = plan((directory / "plan.py").read_text())
        model = await here.init(body)
        data = table(directory / sys.argv[2])
        await here.train(body, data, model, job="attack")

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_a_worker_does_not_outlive_its_agent(tmp_path: Path) -> None:
    """Not even one that never looks at its pipes and ignores every signal it may."""
    marker = f"cohort-{time.time_ns()}.csv"
    (tmp_path / "plan.py").write_text("""
import signal
for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
def train(weights, data, args, context):
    context.progress(0.5)
    while True:
        pass
""")
    here = Path(__file__).parent.parent
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, tmp_path, marker],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent / 'src'}"},
    )
    try:
        assert await until(lambda: len(processes_with(marker)) >= 2, 60)
        await asyncio.sleep(1.0)
        agent.send_signal(signal.SIGKILL)
        agent.wait()
        assert await until(lambda: not processes_with(marker), 30.0)
    finally:
        agent.kill()
        agent.wait()


async def test_a_dataset_that_is_not_there_is_an_error_and_no_escape(tmp_path: Path) -> None:
    async with site(tmp_path / "node", Container()) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        Path(dataset.path).unlink()
        with pytest.raises(WorkerError) as caught:
            await here.train(HONEST, dataset, model, job="work")
        assert caught.value.cause == "data-error"
