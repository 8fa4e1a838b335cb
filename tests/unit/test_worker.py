"""The worker process, spoken to over real pipes, and the tasks behind it."""

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from consilia.core.weights import Weights
from consilia.data.registry import to_source
from consilia.node import worker
from consilia.node.config import Limits
from consilia.node.launcher import environment, resources, worker_command
from consilia.wire import frames
from consilia.wire.v1 import Plan
from consilia.wire.worker import Broke, Done, FromWorker, Load, Ready, Run, Step, read, write
from workkit import plan, read_tensors, table

ADD = """
def train(weights, data, args, context):
    weights["w"] += args["n"]
    return {"sum": float(weights["w"].sum())}
"""


@dataclass
class Line:
    """A worker and its pipes."""

    process: "subprocess.Popen[bytes]"

    def say(self, message: Load | Run) -> None:
        assert self.process.stdin is not None
        write(self.process.stdin, message)  # type: ignore[arg-type]

    def hear(self) -> FromWorker | None:
        """Read one message and no byte more."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        head = _exactly(fd, 4)
        if not head:
            return None
        body = _exactly(fd, int.from_bytes(head, "little"))
        found = read(io.BytesIO(head + body), FromWorker)
        assert found is not None
        return found  # type: ignore[return-value]

    def tensors(self, done: Done) -> Weights:
        assert self.process.stdout is not None
        return read_tensors(done, self.process.stdout.fileno())


def _exactly(fd: int, count: int) -> bytes:
    got = b""
    while len(got) < count and (piece := os.read(fd, count - len(got))):
        got += piece
    return got


@contextmanager
def started(tmp_path: Path, work: Plan, with_data: bool = True) -> Iterator[Line]:
    data = to_source(table(tmp_path / "t.csv")) if with_data else None
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            worker_command(resources(Limits(), cuda=False, fork_limit=False)),
            env=environment(1),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
        ) as process,
    ):
        line = Line(process)
        try:
            line.say(Load(work, data, 1, cuda=False, site="here"))
            yield line
        finally:
            process.kill()


def task(model: Path | None, n: int = 1, **more: object) -> Run:
    kind = "init" if model is None else "train"
    run = Run(kind, 1, {"n": n}, str(model) if model else None, 7, False)
    return msgspec.structs.replace(run, **more)


def model(tmp_path: Path, weights: Weights | None = None) -> Path:
    path = tmp_path / "model.frame"
    frames.write(path, weights or {"w": np.zeros(1000, np.float32)})
    return path


def test_load_init_train_and_again(tmp_path: Path) -> None:
    with started(tmp_path, plan(ADD)) as line:
        assert line.hear() == Ready("numpy", 60, {"n": 0, "s": ""})
        line.say(task(None))
        done = line.hear()
        assert isinstance(done, Done)
        assert done.records == 0
        assert (line.tensors(done)["w"] == 0).all()
        for n in (1, 2, 3):
            line.say(task(model(tmp_path), n))
            done = line.hear()
            assert isinstance(done, Done)
            assert (done.records, done.metrics) == (60, {"sum": 1000.0 * n})
            assert (line.tensors(done)["w"] == n).all()
        assert line.process.stdin is not None
        line.process.stdin.close()
        assert line.hear() is None
        assert line.process.wait(5) == 0


def test_prints_never_reach_the_protocol(tmp_path: Path) -> None:
    body = """
import subprocess
print("while loading")
def train(weights, data, args, context):
    print("printed")
    sys.stdout.flush()
    os.write(1, b"written to 1\\n")
    subprocess.run(["echo", "from a child"], check=True)
    input_is_empty = sys.stdin.read() == ""
    return {"empty": float(input_is_empty)}
"""
    with started(tmp_path, plan(body)) as line:
        assert isinstance(line.hear(), Ready)
        line.say(task(model(tmp_path)))
        done = line.hear()
        assert isinstance(done, Done)
        assert done.metrics == {"empty": 1.0}
    said = (tmp_path / "log").read_text()
    for text in ("while loading", "printed", "written to 1", "from a child"):
        assert text in said


def test_progress_is_thinned(tmp_path: Path) -> None:
    body = """
def train(weights, data, args, context):
    for i in range(20000):
        context.progress(i / 20000, i=i)
    context.progress(1.0, i=20000)
"""
    with started(tmp_path, plan(body)) as line:
        line.hear()
        line.say(task(model(tmp_path)))
        steps = []
        while isinstance(message := line.hear(), Step):
            steps.append(message)
        assert isinstance(message, Done)
        assert 1 <= len(steps) <= 30
        assert steps[-1] == Step(1.0, {"i": 20000.0})


@pytest.mark.parametrize(
    ("body", "cause", "detail"),
    [
        ("raise KeyError('gone')", "plan-error", 'plan.py", line'),
        ("sys.exit(3)", "plan-error", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "plan-error", "KeyboardInterrupt"),
        ("return {'loss': float('nan')}", "not-finite", "training diverged"),
        ("return 5", "plan-error", "TypeError"),
        ("weights['w'] = [1]", "plan-contract", "of type list"),
        ("del weights['w']", "plan-contract", "as weights"),
        ("weights['w'] = weights['w'][:5]", "plan-contract", "changed the shape"),
        ("data.column('age')", "data-error", "column 'age'"),
        ("raise MemoryError", "memory", "MemoryError"),
        ("np.zeros(1 << 45)", "memory", "Unable to allocate"),
        ("raise OSError(28, 'full')", "disk", "full"),
        ("context.progress(2)", "plan-contract", "fraction"),
        ("import nowhere", "plan-error", "No module named"),
    ],
)
def test_a_broken_plan_is_reported_and_the_worker_goes_on(
    tmp_path: Path, body: str, cause: str, detail: str
) -> None:
    work = plan(f"""
def train(weights, data, args, context):
    if args["n"] == 0:
        return {{"ok": 1}}
    {body}
""")
    with started(tmp_path, work) as line:
        line.hear()
        for _ in range(2):
            line.say(task(model(tmp_path), 1))
            broke = line.hear()
            assert isinstance(broke, Broke)
            assert broke.cause == cause
            assert detail in broke.detail
            line.say(task(model(tmp_path), 0))
            done = line.hear()
            assert isinstance(done, Done)
            assert (line.tensors(done)["w"] == 0).all()


@pytest.mark.parametrize(
    ("work", "cause", "detail"),
    [
        (plan("1 / 0"), "plan-contract", "ZeroDivisionError"),
        (plan("sys.exit(0)"), "plan-error", "SystemExit"),
        (plan("import nowhere"), "requirements", "nowhere"),
        (
            msgspec.structs.replace(plan(ADD), requirements=("nowhere>=2",)),
            "requirements",
            "nowhere>=2: not installed",
        ),
        (
            plan(ADD + "\nPLAN = numpy_plan(init, train, features=['age'], target='y')"),
            "data-error",
            "column 'age'",
        ),
    ],
)
def test_what_does_not_load_is_reported(
    tmp_path: Path, work: Plan, cause: str, detail: str
) -> None:
    with started(tmp_path, work) as line:
        broke = line.hear()
        assert isinstance(broke, Broke)
        assert (broke.cause, detail in broke.detail) == (cause, True)
        assert line.hear() is None
        assert line.process.wait(5) == 0


def test_the_traceback_shows_the_plans_own_line(tmp_path: Path) -> None:
    with started(
        tmp_path, plan("def train(w, d, a, c):\n    return w['v']  # guilty\n")
    ) as line:
        line.hear()
        line.say(task(model(tmp_path)))
        broke = line.hear()
        assert isinstance(broke, Broke)
        assert "return w['v']  # guilty" in broke.detail


def test_context_and_every_dtype(tmp_path: Path) -> None:
    body = """
def train(weights, data, args, context):
    assert (context.site, context.round, context.seed) == ("here", 1, 7)
    weights["i"] -= 1
    weights["b"] = ~weights["b"]
    weights["t"] = np.asfortranarray(weights["t"] + 1)
"""
    weights: Weights = {
        "w": np.zeros((), np.float64),
        "i": np.arange(3, dtype=np.int64),
        "b": np.array([True, False]),
        "t": np.arange(6, dtype=np.float16).reshape(2, 3),
        "empty": np.zeros((0, 4), np.float32),
    }
    with started(tmp_path, plan(body)) as line:
        line.hear()
        for _ in range(2):
            line.say(task(model(tmp_path, weights)))
            done = line.hear()
            assert isinstance(done, Done), done
            found = line.tensors(done)
            assert found["i"].tolist() == [-1, 0, 1]
            assert found["b"].tolist() == [False, True]
            assert found["t"].tolist() == [[1, 2, 3], [4, 5, 6]]
            assert found["empty"].shape == (0, 4)


def test_another_model_after_the_first(tmp_path: Path) -> None:
    body = "def train(w, d, a, c):\n    w['w'] += 1\n"
    with started(tmp_path, plan(body)) as line:
        line.hear()
        for size in (3, 5, 3):
            line.say(task(model(tmp_path, {"w": np.zeros(size, np.float32)})))
            done = line.hear()
            assert isinstance(done, Done)
            assert line.tensors(done)["w"].tolist() == [1.0] * size


def rss(pid: int, field: str) -> int:
    """Return a memory figure of a process, bytes."""
    for text in Path(f"/proc/{pid}/status").read_text().splitlines():
        if text.startswith(field):
            return int(text.split()[1]) << 10
    raise AssertionError(field)


def test_memory_is_small_and_about_one_model(tmp_path: Path) -> None:
    size = 64 << 20
    with started(tmp_path, plan(ADD)) as line:
        line.hear()
        idle = rss(line.process.pid, "VmHWM")
        assert idle < 60 << 20
        path = model(tmp_path, {"w": np.zeros(size // 4, np.float32)})
        for n in (1, 2, 3):
            line.say(task(path, n))
            done = line.hear()
            assert isinstance(done, Done)
            assert (line.tensors(done)["w"] == n).all()
        assert rss(line.process.pid, "VmHWM") - idle < 1.2 * size


def test_nothing_heavy_is_imported_for_a_numpy_plan(tmp_path: Path) -> None:
    body = """
HEAVY = ("torch", "sklearn", "duckdb", "asyncio", "sqlalchemy", "aiohttp", "structlog", "yaml")
def train(weights, data, args, context):
    found = [name for name in HEAVY if name in sys.modules]
    assert not found, found
"""
    with started(tmp_path, plan(body)) as line:
        line.hear()
        line.say(task(model(tmp_path)))
        assert isinstance(line.hear(), Done)


def test_limits_are_set_for_good(tmp_path: Path) -> None:
    body = """
import resource
def train(weights, data, args, context):
    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1024, 1024)
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == (1 << 30, 1 << 30)
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 9 << 30
    assert open("/proc/self/oom_score_adj").read().strip() == "1000"
"""
    with started(tmp_path, plan(body)) as line:
        line.hear()
        line.say(task(model(tmp_path)))
        assert isinstance(line.hear(), Done)


def test_the_end_of_stdin_ends_a_worker_before_its_plan(tmp_path: Path) -> None:
    done = subprocess.run(
        worker_command(resources(Limits(), cuda=False, fork_limit=False)),
        env=environment(1),
        input=b"",
        capture_output=True,
        check=True,
        timeout=20,
    )
    assert done.stdout == b""


def test_tasks_without_a_process(tmp_path: Path) -> None:
    source = to_source(table(tmp_path / "t.csv"))
    tasks = worker.Tasks(Load(plan(ADD), source, 1, cuda=False))
    first = tasks.run(task(model(tmp_path), 2), lambda f, m: None)
    address = first.weights["w"].ctypes.data
    second = tasks.run(task(model(tmp_path), 3), lambda f, m: None)
    assert second.weights["w"].ctypes.data == address  # the same memory, round after round
    assert (second.weights["w"] == 3).all()


def test_a_task_that_contradicts_itself(tmp_path: Path) -> None:
    with started(tmp_path, plan(ADD)) as line:
        line.hear()
        line.say(task(None, kind="train"))
        broke = line.hear()
        assert isinstance(broke, Broke)
        assert broke.cause == "internal"
