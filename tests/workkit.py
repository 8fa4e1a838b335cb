"""Plans, datasets and runners for tests of the worker, its sandbox and what drives them."""

import asyncio
import os
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consilia.core.weights import DTYPES, TensorSpec, Weights
from consilia.data.registry import Dataset, inspect_table
from consilia.node.config import Limits
from consilia.node.launcher import Launcher
from consilia.node.runner import Runner, Runs, TaskOutput
from consilia.wire import frames
from consilia.wire.v1 import Arguments, Metrics, Plan
from consilia.wire.worker import Done, Run

HEAD = """
import os, sys, time
import numpy as np
from consilia.plans.numpy import numpy_plan

def init(args, seed):
    return {"w": np.zeros(1000, np.float32)}
"""


def plan(body: str, name: str = "plan", **more: str) -> Plan:
    """Return a numpy plan whose `train` (or PLAN) is in `body`; more files by module name."""
    text = HEAD + textwrap.dedent(body)
    if "PLAN" not in body:
        text += "\nPLAN = numpy_plan(init, train, arguments={'n': 0, 's': ''})\n"
    return Plan(name, {"plan.py": text, **{f"{n}.py": t for n, t in more.items()}}, "plan:PLAN")


def table(path: Path, rows: int = 60, name: str = "cohort") -> Dataset:
    """Write and register a small table: x = 0, 1, 2, ... and its parity y."""
    path.write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(rows)))
    return inspect_table(path, name, ("test",), now=0.0)


@dataclass
class Site:
    """A runner with a place for models."""

    runner: Runs
    directory: Path
    steps: list[tuple[float, Metrics]]

    async def start(  # the arguments of one task
        self,
        work: Plan,
        dataset: Dataset | None,
        *,
        model: Path | None = None,
        job: str = "job",
        arguments: Arguments | None = None,
        timeout: float = 120.0,
        round: int = 1,
        seed: int = 7,
        deterministic: bool = False,
    ) -> TaskOutput:
        """Run one task up to its outcome."""
        kind = "init" if model is None else "train"
        task = Run(kind, round, arguments or {}, None, seed, deterministic)

        def step(fraction: float, metrics: Metrics) -> None:
            self.steps.append((fraction, metrics))

        return await self.runner.run(job, work, dataset, task, model, step, timeout)

    async def train(
        self, work: Plan, dataset: Dataset, model: Path, **more: object
    ) -> tuple[Done, Weights]:
        """Run a train task and read its tensors."""
        output = await self.start(work, dataset, model=model, **more)  # type: ignore[arg-type]
        return output.done, await self.take(output)

    async def init(self, work: Plan, name: str = "model", **more: object) -> Path:
        """Run an init task and keep its model as a frame."""
        output = await self.start(work, None, **more)  # type: ignore[arg-type]
        path = self.directory / f"{name}.frame"
        frames.write(path, await self.take(output))
        return path

    async def take(self, output: TaskOutput) -> Weights:
        """Read the tensors of `output` in a thread, as node.release does, and close it."""
        try:
            weights = await asyncio.to_thread(read_tensors, output.done, output.tensors)
        except EOFError:
            output.close(consumed=False)
            raise output.failure or AssertionError("cut off without a cause") from None
        output.close(consumed=True)
        return weights


def read_tensors(done: Done, fd: int) -> Weights:
    """Read the tensors that `done` names from a blocking descriptor."""
    weights: Weights = {}
    for spec in (TensorSpec(t.name, t.dtype, t.shape) for t in done.tensors):
        array = np.empty(spec.shape, DTYPES[spec.dtype])
        view = frames.raw_bytes(array)
        while view:
            count = os.readv(fd, [view])
            if not count:
                raise EOFError(spec.name)
            view = view[count:]
        weights[spec.name] = array
    return weights


@asynccontextmanager
async def site(
    directory: Path, launcher: Launcher, limits: Limits | None = None
) -> AsyncIterator[Site]:
    """A Runner with `launcher`, closed at the end."""
    directory.mkdir(exist_ok=True)
    runner = Runner(launcher, directory, limits or Limits(threads=1), site="here")
    try:
        yield Site(runner, directory, [])
    finally:
        await runner.close()
        assert runner.workers == ()


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Wait until `condition` holds; say whether it did in time."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return condition()


def processes_with(marker: str) -> list[int]:
    """Return the processes of this machine whose command line contains `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command:
                found.append(int(entry.name))
    return found
