"""Run tasks in warm workers: one worker per job, kept from round to round.

`Runner.run` hands a task to the job's worker (starting one for the first task, or when plan
or dataset changed), follows its progress and returns a `TaskOutput`: the outcome, and the
descriptor from which node.release reads the tensors. Nothing a worker says is trusted: its
messages are bounded in size and number, its stderr is kept up to a cap, its memory, processes
and time are watched. Whatever goes wrong kills it and surfaces as a WorkerError with a cause
of wire.v1.FailureCause; only a plan that fails in an orderly way leaves it alive.

Everything here runs on the event loop; only reading `TaskOutput.tensors` blocks and belongs
in a thread. It ends when the worker is killed.
"""

import asyncio
import itertools
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from consilia.core import ids
from consilia.data.registry import Dataset, to_source
from consilia.errors import ConfigError, ConsiliaError, WorkerError
from consilia.node.config import Limits, Sandbox
from consilia.node.launcher import (
    Bubblewrap,
    Container,
    Launcher,
    PlainProcess,
    WorkerSpec,
    shown_within,
)
from consilia.node.pipes import LogPipe
from consilia.node.store import hashed_name
from consilia.node.warm import Output, Worker
from consilia.wire.v1 import FailureCause, Metrics, Plan, plan_digest
from consilia.wire.worker import Broke, Done, Load, Ready, Run, Step

_POOLS = 4  # numpy's, torch's within and between operations, one of a plan's libraries
_LOG = logging.getLogger("consilia.node.runner")

OnStep = Callable[[float, Metrics], None]
Begin = Callable[[], Awaitable[None]]


class TaskOutput(Protocol):
    """What a finished task left: its outcome, and its tensors to be read in order, once."""

    @property
    def done(self) -> Done:
        """The outcome; the tensors' bytes follow in this order, without padding."""

    @property
    def tensors(self) -> int:
        """Blocking descriptor of the tensors' bytes. Read exactly as many as `done` names."""

    @property
    def seconds(self) -> float:
        """What the task took, from the worker's start or reuse to its outcome."""

    @property
    def peak_rss(self) -> int:
        """Most resident memory of the worker so far, bytes."""

    @property
    def failure(self) -> WorkerError | None:
        """Why the worker was killed while its tensors were read, None when it was not."""

    def close(self, *, consumed: bool) -> None:
        """End the task; unless all tensors were read, the worker is killed. Idempotent."""


class Runs(Protocol):
    """What the agent needs of a runner; `Runner` uses processes, `InProcess` a thread."""

    async def run(  # noqa: PLR0913, PLR0917  all that a task needs, in reading order
        self,
        job: str,
        plan: Plan,
        dataset: Dataset | None,
        task: Run,
        model: Path | None,
        on_step: OnStep,
        timeout: float,
        begin: Begin | None = None,
    ) -> TaskOutput:
        """Run one task, starting or reusing the job's worker; raise WorkerError with a cause.

        `begin` is awaited once: when a worker is there, before it is sent the plan (which may
        look at the data), or the task if it has the plan. What ends before ran nothing at all.

        `model` is a whole tensor frame, shown to the worker (`task.model` is ignored); it and
        `dataset` are None for init. `timeout` counts, in seconds, until the output is closed.
        Cancelling kills the worker.
        """

    async def stop(self, job: str, cause: FailureCause = "stopped") -> None:
        """Kill the job's worker, if any, and end the task it runs with `cause`."""

    async def close(self) -> None:
        """Kill every worker."""


async def _free() -> None:
    """Begin what costs nothing."""


def choose_launcher(sandbox: Sandbox, launcher: Launcher | None = None) -> Launcher:
    """Return the launcher a site's configuration asks for; ConfigError when it cannot work.

    None stands in for another: which walls a site relies on is its own decision.
    """
    if sandbox == "off":
        return PlainProcess()
    launcher = launcher or (Container() if sandbox == "container" else Bubblewrap())
    if reason := launcher.available():
        other = "" if sandbox == "container" else "`sandbox: container` if this is one, or "
        raise ConfigError(
            f"researcher code may only run in a sandbox, and there is none: {reason}. "
            f"What else there is: {other}`sandbox: off`, without any, in node.yaml; "
            "every run will say so (docs/how-to/sandbox.md)"
        )
    return launcher


class Runner:
    """Runs tasks in worker processes made by `launcher`. One event loop, one instance."""

    def __init__(
        self,
        launcher: Launcher,
        directory: Path,
        limits: Limits,
        *,
        site: str = "",
        cuda: bool = False,
    ) -> None:
        """Keep models in DIR/jobs and logs in DIR/log/jobs, where DIR is the node's.

        Raises ConfigError when workers could read DIR, with the node's keys, in their sandbox.
        """
        if launcher.sandboxed and (shown := shown_within(directory)):
            raise ConfigError(
                f"{directory} lies in {shown}, which researchers' code can read in its "
                "sandbox; move the node's directory elsewhere"
            )
        self._launcher = launcher
        self._models = directory / "jobs"
        self._logs = directory / "log" / "jobs"
        self._threads = limits.threads or own_share(os.environ)
        # numeric libraries keep a pool of that many threads each: beside what a plan starts
        most = limits.processes + _POOLS * self._threads
        self._limits = msgspec.structs.replace(limits, processes=most)
        self._site = site
        self._cuda = cuda
        self._numbers = itertools.count()
        self._workers: dict[str, Worker] = {}
        self._loading: dict[str, _Loading] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        shutil.rmtree(self._models, ignore_errors=True)  # of an agent that was killed
        self._models.mkdir(mode=0o700, parents=True)

    @property
    def workers(self) -> tuple[int, ...]:
        """Process ids of the workers that are alive, for status and for tests."""
        return tuple(w.process.pid for w in self._workers.values() if w.alive)

    def processes(self) -> dict[str, tuple[int, ...]]:
        """Return every process id of each job's worker, for the site's staff."""
        return {job: w.process.pids() for job, w in self._workers.items() if w.alive}

    async def run(  # noqa: PLR0913, PLR0917  all that a task needs, in reading order
        self,
        job: str,
        plan: Plan,
        dataset: Dataset | None,
        task: Run,
        model: Path | None,
        on_step: OnStep,
        timeout: float,
        begin: Begin | None = None,
    ) -> TaskOutput:
        """Run one task (see `Runs`)."""
        if said := self._launcher.warning:
            told = {"job": job, "plan": plan.name}
            _LOG.warning("running researcher code %s", said, extra=told)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        deadline = begun + timeout
        lock = self._locks.setdefault(job, asyncio.Lock())
        await lock.acquire()
        worker: Worker | None = None
        try:
            worker = await self._worker(job, plan, dataset, deadline, begin or _free)
            worker.begin(deadline)
            inside = await worker.show(model)
            await worker.send(msgspec.structs.replace(task, model=inside))
            while True:
                message = await worker.receive()
                if isinstance(message, Step):
                    on_step(message.fraction, message.metrics)
                elif isinstance(message, Done):
                    return Output(worker, lock, message, loop.time() - begun)
                elif isinstance(message, Broke):
                    worker.log.note(f"round {task.round}: {message.cause}\n{message.detail}")
                    raise WorkerError(message.detail, message.cause)
                else:
                    raise worker.fail("plan-contract", "the worker answered out of turn")
        except BaseException as error:
            if worker is not None:
                orderly = isinstance(error, WorkerError) and worker.failure is None
                if not orderly:
                    worker.fail("stopped", "the task was cancelled")
                worker.end()
            lock.release()
            raise

    async def stop(self, job: str, cause: FailureCause = "stopped") -> None:
        """Kill the job's worker (see `Runs`)."""
        if worker := self._workers.pop(job, None):
            worker.fail(cause, "the task was stopped")
            await worker.close()
        if (lock := self._locks.get(job)) and not lock.locked():
            del self._locks[job]

    async def close(self) -> None:
        """Kill every worker."""
        loading = [known.task for known in self._loading.values()]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        await asyncio.gather(*(self.stop(job) for job in tuple(self._workers)))
        shutil.rmtree(self._models, ignore_errors=True)

    async def _worker(
        self, job: str, plan: Plan, dataset: Dataset | None, deadline: float, begin: Begin
    ) -> Worker:
        """Return the job's worker, warm or made now.

        A task that is taken back while its worker loads does not end the loading: on a slow
        machine the next task finds it warm. `stop` does end it.
        """
        key = (plan_digest(plan), _identity(dataset))
        known = self._loading.get(job)
        if known is None or known.key != key:
            worker = self._workers.get(job)
            if known is None and worker is not None and worker.alive and worker.key == key:
                await begin()
                return worker
            await self.stop(job)
            if known is not None:
                await asyncio.wait((known.task,))
            work = self._load(job, key, (plan, dataset), deadline, begin)
            task = asyncio.get_running_loop().create_task(work)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            known = self._loading[job] = _Loading(key, task)
        else:
            await begin()
        try:
            return await asyncio.shield(known.task)
        finally:
            if known.task.done() and self._loading.get(job) is known:
                del self._loading[job]

    async def _load(
        self,
        job: str,
        key: object,
        what: tuple[Plan, Dataset | None],
        deadline: float,
        begin: Begin,
    ) -> Worker:
        """Start a worker and have it load plan and dataset by `deadline` of the loop's time."""
        plan, dataset = what
        safe = file_name(job)
        # a folder of its own: the job's worker before it may still be clearing up
        models = self._models / safe / str(next(self._numbers))
        models.mkdir(mode=0o700, parents=True)
        path = Path(dataset.path) if dataset else None
        spec = WorkerSpec(job, models, path, self._limits, self._threads, self._cuda)
        process = await self._launcher.launch(spec)
        log = LogPipe(process.stderr, self._logs / f"{safe}.log")
        for lacking in self._launcher.lacks():
            log.note(f"this worker runs without {lacking}", "warning")
        worker = Worker(process, log, key, models, self._limits)
        self._workers[job] = worker
        worker.begin(deadline)
        try:
            source = to_source(dataset, process.inside(path)) if dataset and path else None
            await begin()
            await worker.send(Load(plan, source, self._threads, self._cuda, self._site))
            message = await worker.receive()
            if isinstance(message, Broke):
                log.note(f"loading: {message.cause}\n{message.detail}")
                raise WorkerError(message.detail, message.cause)
            if not isinstance(message, Ready):
                raise worker.fail("plan-contract", "the worker answered out of turn")
        except BaseException:
            worker.fail("stopped", "the task was cancelled")
            await self.stop(job)
            await worker.close()
            raise
        worker.end()
        return worker


@dataclass(frozen=True, slots=True)
class _Loading:
    """A worker that is being loaded, perhaps for nobody any more."""

    key: object
    task: "asyncio.Task[Worker]"


def _identity(dataset: Dataset | None) -> object:
    """Return what tells a worker that has loaded a dataset from one that needs another."""
    if dataset is None:
        return None
    columns = tuple(dataset.columns.items())
    read = columns, dataset.schema  # with roles and missing codes
    left_out = dataset.without, dataset.held
    return dataset.path, dataset.digest, read, dataset.loading, *left_out


def own_share(environment: Mapping[str, str]) -> int:
    """Return how many threads a task may use when its site's limits leave it open.

    OMP_NUM_THREADS of the agent's environment when its owner set one, as numeric programs
    read it; else every core that the agent may run on.
    """
    told = environment.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0))


def file_name(job: str) -> str:
    """Return a file name for a job id, which comes from outside."""
    try:
        return ids.name(job, "job")
    except ConsiliaError:
        return hashed_name(job)
