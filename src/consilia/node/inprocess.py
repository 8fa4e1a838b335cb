"""Run tasks inside the agent's own process: for the simulator and for tests, never at a site.

The same plan loading, checks and outcome as in a worker process, without a process, a sandbox
or limits. Researcher code runs with all rights of the caller, who must own it.
"""

import asyncio
import os
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from consilia.core.weights import schema_of
from consilia.data.registry import Dataset, to_source
from consilia.errors import WorkerError
from consilia.node.runner import Begin, OnStep
from consilia.node.worker import Tasks, broke
from consilia.plans.contract import Outcome
from consilia.wire import frames
from consilia.wire.v1 import FailureCause, Metrics, Plan, plan_digest
from consilia.wire.worker import Done, Load, Run, WorkerTensor


class _Stopped(BaseException):
    """Raised inside a plan at its next progress, when its task has been stopped."""


@dataclass(slots=True)
class MemoryOutput:
    """A TaskOutput whose tensors lie in an anonymous file."""

    done: Done
    tensors: int
    seconds: float
    peak_rss: int = 0
    failure: WorkerError | None = None
    _open: bool = field(default=True, init=False)

    def close(self, *, consumed: bool) -> None:
        """Free the memory; `consumed` makes no difference here."""
        if self._open:
            self._open = False
            os.close(self.tensors)


class InProcess:
    """A Runs without processes. `in_thread` keeps the event loop free while a plan trains.

    Without it a task runs at once, inside the call: deterministic, and right for a virtual
    clock, which would otherwise run on while nothing seems to happen. `pool` gives the threads;
    None: asyncio's own. One of a single thread lets the tasks of all its sites take turns.
    """

    def __init__(
        self,
        *,
        site: str = "",
        threads: int = 1,
        in_thread: bool = True,
        pool: Executor | None = None,
    ) -> None:
        self._pool = pool
        self._site = site
        self._threads = threads
        self._in_thread = in_thread
        self._tasks: dict[str, tuple[object, Tasks]] = {}
        self._stopped: dict[str, FailureCause] = {}

    async def run(  # noqa: PLR0913, PLR0917  the signature of Runs
        self,
        job: str,
        plan: Plan,
        dataset: Dataset | None,
        task: Run,
        model: Path | None,
        on_step: OnStep,
        timeout: float,
        begin: Begin | None = None,
    ) -> MemoryOutput:
        """Run one task (see node.runner.Runs); time-outs and stops act at its next progress."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._stopped.pop(job, None)
        task = msgspec.structs.replace(task, model=str(model) if model else None)

        def report(fraction: float, metrics: Metrics) -> None:
            if loop.time() - begun > timeout:
                self._stopped[job] = "timeout"
            if job in self._stopped:
                raise _Stopped
            if self._in_thread:
                loop.call_soon_threadsafe(on_step, fraction, metrics)
            else:
                on_step(fraction, metrics)

        def work() -> tuple[Outcome, int]:
            outcome = self._loaded(job, plan, dataset).run(task, report)
            return outcome, _written(outcome)

        if begin is not None:
            await begin()
        try:
            outcome, fd = (
                await loop.run_in_executor(self._pool, work) if self._in_thread else work()
            )
        except (asyncio.CancelledError, KeyboardInterrupt):
            self._stopped[job] = "stopped"
            raise
        except _Stopped:
            cause = self._stopped.pop(job)
            raise WorkerError(f"the task was ended: {cause}", cause) from None
        except BaseException as error:
            message = broke(error)
            raise WorkerError(message.detail, message.cause) from error
        schema = schema_of(outcome.weights)
        tensors = tuple(WorkerTensor(t.name, t.dtype, t.shape) for t in schema)
        done = Done(outcome.records, outcome.metrics, tensors)
        return MemoryOutput(done, fd, loop.time() - begun)

    async def stop(self, job: str, cause: FailureCause = "stopped") -> None:
        """Forget the job's plan and data; a running task ends at its next progress."""
        self._stopped[job] = cause
        self._tasks.pop(job, None)

    async def close(self) -> None:
        """Forget every job."""
        for job in tuple(self._tasks):
            await self.stop(job)

    def _loaded(self, job: str, plan: Plan, dataset: Dataset | None) -> Tasks:
        loaded = dataset and (
            *(dataset.path, dataset.digest, dataset.loading),
            *(dataset.without, dataset.held),
        )
        key = (plan_digest(plan), loaded)
        found = self._tasks.get(job)
        if found is None or found[0] != key:
            source = to_source(dataset) if dataset else None
            load = Load(plan, source, self._threads, cuda=False, site=self._site)
            found = self._tasks[job] = key, Tasks(load)
        return found[1]


def _written(outcome: Outcome) -> int:
    """Return a descriptor from which the tensors' bytes can be read, in order."""
    fd = os.memfd_create("update", os.MFD_CLOEXEC)
    for array in outcome.weights.values():
        view = frames.raw_bytes(array)
        while view:
            view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
