"""One allowed task: paid from the privacy budget, given its model, run in a worker, released.

    reserve -> model -> audit line -> worker -> release (durable before sent)

What never began costs nothing. Nothing here decides whether a task may run: node.tasks has
asked the site's policy, and hands over what was granted.
"""

import asyncio
import contextlib
import logging
import random as jitter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from consilia.errors import (
    ConfigError,
    Conflict,
    ConsiliaError,
    DataError,
    Refused,
    TransferError,
    WorkerError,
)
from consilia.node import datasets, optout, purge
from consilia.node.backoff import Backoff
from consilia.node.cache import Cache
from consilia.node.delivery import Delivery
from consilia.node.link import HubLink
from consilia.node.outbox import Answer
from consilia.node.policy import short
from consilia.node.release import Release
from consilia.node.runner import Runs, TaskOutput
from consilia.node.spending import Spending, dp_of
from consilia.node.standing import Grant, Standing
from consilia.node.store import Store
from consilia.node.work import Job, NotAllowed, Work, in_thread, transfer
from consilia.wire.v1 import Lease, Metrics
from consilia.wire.worker import Run

TELL = 1.0  # seconds between two progress messages of a task
NEIGHBOURS = 4  # cached models looked at for tensors that need not be fetched

_LOG = logging.getLogger("consilia.node.execution")


@dataclass(frozen=True, slots=True)
class Parts:
    """What an agent does its tasks with."""

    store: Store
    release: Release
    cache: Cache
    link: HubLink
    runner: Runs
    standing: Standing
    spending: Spending
    delivery: Delivery
    threads: Executor  # for transfers
    connected: Callable[[], bool]  # whether the hub answered last
    mirrored: asyncio.Event  # set once the hub's copy of the ledger's head was compared
    news: asyncio.Event  # the public state has to be advertised
    now: Callable[[], float]  # Unix seconds
    rng: jitter.Random
    random: Callable[[int], bytes]


class Execution:
    """Carries out allowed tasks, on the event loop."""

    def __init__(
        self, parts: Parts, spawn: Callable[[Coroutine[object, object, None]], None]
    ) -> None:
        """Take the parts; `spawn` starts what nobody waits for before the agent ends."""
        self._store = parts.store
        self._release = parts.release
        self._cache = parts.cache
        self._link = parts.link
        self._runner = parts.runner
        self._spending = parts.spending
        self._delivery = parts.delivery
        self._threads = parts.threads
        self._connected = parts.connected
        self._mirrored = parts.mirrored
        self._news = parts.news
        self._now = parts.now
        self._rng = parts.rng
        self._spawn = spawn
        self._sweeping = asyncio.Lock()  # what earlier agents left is given back once
        self._swept = False

    async def carry_out(self, work: Work, job: Job, grant: Grant) -> Answer:
        """Run a task with what it was granted. Raises NotAllowed, or what went wrong."""
        lease = work.lease
        if dp_of(lease.task) is not None:
            await self._reserve(lease, grant)
        try:
            return await self._run(work, job, grant)
        except Refused as e:
            raise NotAllowed((str(e),), "release.refuse") from None
        finally:
            await self._give_back(lease)
            job.used = asyncio.get_running_loop().time()

    async def _reserve(self, lease: Lease, grant: Grant) -> None:
        """Reserve what the task costs of the site's privacy budget, or raise NotAllowed."""
        name = grant.dataset.name if grant.dataset else None
        await self._mirrored.wait()
        async with self._sweeping:
            if not self._swept:
                await in_thread(self._spending.sweep)
                self._swept = True
        try:
            await in_thread(self._spending.reserve, lease, name)
        except (Refused, Conflict, ConfigError) as e:
            raise NotAllowed((str(e),), "task.refuse") from None

    async def _give_back(self, lease: Lease) -> None:
        if dp_of(lease.task) is not None:
            await in_thread(self._spending.give_back, lease, "it never began")
            self._news.set()  # the hub keeps the ledger's new head

    async def _run(self, work: Work, job: Job, grant: Grant) -> Answer:
        """Run an allowed task in the job's worker and release its result."""
        lease, task, loop = work.lease, work.lease.task, asyncio.get_running_loop()
        work.records = grant.dataset.records if grant.dataset else 0
        started = loop.time()
        with self._held(task.model) as held:
            model = held
            if task.model is not None and model is None:
                model = await self._fetch(work, task.model)
            if task.model is not None:
                self._cache.newest(task.job, task.model)
            await in_thread(self._enter, lease, job, grant)
            run = Run(
                task.kind,
                task.round,
                task.arguments,
                None,
                task.seed,
                task.deterministic,
                dp=dp_of(task),
                evaluation=task.evaluation,
                statistics=task.privacy.statistics,
            )
            work.phase, work.told = "training", loop.time()
            output = await self._runner.run(
                task.job,
                grant.plan,
                grant.dataset,
                run,
                model,
                partial(self._step, work),
                work.left,
                None if run.dp is None else partial(in_thread, self._spending.begin, lease),
            )
            answer: Answer | None = None
            try:
                if work.exchange is not None:
                    await work.exchange.ready(work.left)
                work.phase = "releasing"
                answer = await self._released(lease, output, grant, model, started)
            except WorkerError as e:
                raise output.failure or e from None  # why it was killed says more than its end
            except asyncio.CancelledError:
                await self._runner.stop(task.job)  # ends the thread that reads from the worker
                raise
            finally:
                output.close(consumed=answer is not None)
            return answer

    async def _released(
        self, lease: Lease, output: TaskOutput, grant: Grant, model: Path | None, started: float
    ) -> Answer:
        """Pass a task's outcome through the one door out."""
        seconds = asyncio.get_running_loop().time() - started
        name = grant.dataset.name if grant.dataset else ""
        if lease.task.kind == "statistics":
            return await in_thread(
                self._release.statistics, lease, output, dataset=name, seconds=seconds
            )
        if lease.task.kind == "evaluate":
            return await in_thread(
                self._release.evaluated,
                lease,
                output,
                records=grant.dataset.held_records if grant.dataset else 0,
                dataset=name,
                seconds=seconds,
            )
        return await in_thread(
            self._release.result,
            lease,
            output.done,
            output.tensors,
            base=model,
            available=grant.dataset.records if grant.dataset else 0,
            least=grant.least,
            seconds=seconds,
            dataset=name,
        )

    @contextlib.contextmanager
    def _held(self, digest: str | None) -> Iterator[Path | None]:
        """Keep a task's model in the cache while the task lasts."""
        if digest is None:
            yield None
            return
        with self._cache.using(digest) as path:
            yield path

    async def _fetch(self, work: Work, digest: str) -> Path:
        """Bring the model into the cache, over broken lines, until the task's time is over."""
        backoff = Backoff(self._rng)
        while True:
            try:
                path = self._cache.path(digest)
                near = self._cache.paths()[:NEIGHBOURS]
                await transfer(self._threads, self._link.fetch, digest, path, near)
                return self._cache.adopt(digest)
            except TransferError as e:
                _LOG.info("model %s: %s; trying again", short(digest), e)
            if work.left <= 0:
                raise WorkerError("the model did not arrive in time", "transfer")
            await self._delivery.pause(backoff.delay())

    def _enter(self, lease: Lease, job: Job, grant: Grant) -> None:
        """Check the file, and enter in the audit trail what is about to use it.

        One line for all rounds of a job with the same facts: each result has its own.
        """
        task = lease.task
        if grant.dataset is not None:
            try:
                datasets.check_unchanged(grant.dataset)
            except DataError:
                datasets.watch(self._store, self._now())  # no further task is given it
                raise
        name = grant.dataset.name if grant.dataset else "none"
        arguments, loaded = tuple(sorted(task.arguments.items())), grant.loaded
        facts = (task.kind, task.study, task.plan, name, arguments, loaded, dp_of(task))
        if facts != job.granted:
            detail = (
                f"{task.kind} of job {task.job} from round {task.round}: plan "
                f"{task.plan or 'none'}, "
                f"study {task.study_name}, dataset {name}, arguments {dict(task.arguments)}"
            )
            if loaded is not None and loaded.note:
                detail = f"{loaded.note}; {detail}"
            with self._store.write() as tx:
                purge.note_job(tx, task.study, task.job)
                if loaded is not None and dp_of(task) is None:
                    optout.note_use(tx, name, loaded.patients, self._now())
                tx.audit(self._now(), "agent", "task.start", lease.id, "allowed", detail)
            job.granted = facts

    def _step(self, work: Work, fraction: float, metrics: Metrics) -> None:
        """Take a worker's progress; pass it on at most once a second."""
        work.fraction = fraction
        at = asyncio.get_running_loop().time()
        if at - work.told >= TELL and self._connected():
            work.told = at
            self._spawn(self._tell(work, fraction, metrics))

    async def _tell(self, work: Work, fraction: float, metrics: Metrics) -> None:
        lease = work.lease
        try:
            sealed = await in_thread(
                self._release.progress, lease.id, fraction, metrics, lease.task, work.records
            )
            await self._link.report(sealed)
        except (ConsiliaError, OSError) as e:
            _LOG.debug("progress of %s not sent: %s", lease.id[:200], e)
