"""Researcher code that floods or forges what it says to the agent."""

import asyncio
import time
from pathlib import Path

import pytest

from consilia.errors import WorkerError
from consilia.node.launcher import Bubblewrap
from consilia.node.pipes import LOG_BYTES
from sandboxkit import HONEST, broken, honest, needs_bubblewrap
from workkit import plan, site, table

pytestmark = needs_bubblewrap


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
        assert lag < 3.0, "the copying held the event loop up"
        await honest(here, tmp_path, model)


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
            await here.train(plan(body), dataset, model, job="flood", timeout=6.0)
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
    assert seconds < 30


async def test_output_a_byte_at_a_time(tmp_path: Path) -> None:
    """A worker that always says a little more is ended at its time like any other."""
    body = f"""{PIPE}
import msgspec
from consilia.wire.worker import Done, WorkerTensor
def train(weights, data, args, context):
    done = Done(60, {{}}, (WorkerTensor("w", "float32", (1000,)),))
    body = msgspec.msgpack.encode(done)
    fd = pipe()
    for byte in len(body).to_bytes(4, "little") + body + bytes(4000):
        os.write(fd, bytes([byte]))
        time.sleep(0.05)
"""
    cause, seconds = await broken(tmp_path, body, timeout=3.0)
    assert cause == "timeout"
    assert seconds < 30


async def test_more_output_than_promised(tmp_path: Path) -> None:
    """What follows the last tensor is taken for the next message, and is none."""
    body = f"""{PIPE}
import msgspec
from consilia.wire.worker import Done, WorkerTensor
def train(weights, data, args, context):
    done = Done(60, {{}}, (WorkerTensor("w", "float32", (10,)),))
    body = msgspec.msgpack.encode(done)
    os.write(pipe(), len(body).to_bytes(4, "little") + body + bytes(40) + b"x" * 500000)
    time.sleep(1)
"""
    async with site(tmp_path / "node", Bubblewrap()) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        _, weights = await here.train(plan(body), dataset, model, job="attack")
        assert weights["w"].shape == (10,)
        with pytest.raises(WorkerError) as caught:
            await here.train(plan(body), dataset, model, job="attack", timeout=60)
        assert caught.value.cause == "plan-contract"
        await honest(here, tmp_path, model)
