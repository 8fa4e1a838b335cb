"""Carrying out what the round machine commands: leases, timers, folding and closing.

One folding thread serves all jobs, in the order in which work was commanded, so that two
rounds never compete for memory and disk. The model of a round, its version row, its audit line
and the event `Closed` are durable together; spools go only after that.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection

from consilia.algo import aggregate
from consilia.algo.compress import named
from consilia.core.round import (
    CancelLease,
    Close,
    Closed,
    CloseFailed,
    Command,
    Fold,
    GiveLease,
    JobState,
    Notify,
    Tell,
    TimedOut,
    Wake,
)
from consilia.errors import ConsiliaError, StorageError
from consilia.hub import (
    assessing,
    closing,
    encrypted,
    experiments,
    maskedevaluation,
    masking,
    modelversions,
    statistics,
)
from consilia.hub.blobs import Blobs
from consilia.hub.clock import Clock
from consilia.hub.folding import Aggregate, Made, Update
from consilia.hub.job import Book, LiveJob
from consilia.hub.presence import Assignment, Presence
from consilia.hub.uploads import Uploads
from consilia.privacy import hidden, vault
from consilia.wire.v1 import Privacy, Task

_log = logging.getLogger(__name__)


class Meter(Protocol):
    """What is counted for the operator; hub.telemetry.Metrics is one."""

    def round_closed(self, seconds: float) -> None:
        """Count a closed round that was open for `seconds`."""

    def update(self, outcome: str) -> None:
        """Count the end of a lease: accepted, rejected, failed or declined."""


class Uncounted:
    """A meter for those who need none."""

    def round_closed(self, seconds: float) -> None:
        """Count nothing."""

    def update(self, outcome: str) -> None:
        """Count nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the hub grants. Durations in seconds, sizes in bytes."""

    silence: float = 15.0  # until a site that stopped polling counts as away
    close: float = 3600.0  # for making and storing one model
    init_bytes: int = 2 << 30  # of a first model
    slack_bytes: int = 64 << 10  # of an update beyond its base model


@dataclass(frozen=True, slots=True)
class Parts:
    """What a driver works with."""

    blobs: Blobs
    clock: Clock
    presence: Presence
    uploads: Uploads
    limits: Limits
    meter: Meter
    checkpoint: Callable[[str], None]  # called at every step that a crash could separate
    records: Callable[[str, tuple[str, ...]], int]  # a site advertises, at most, for tags


class Driver:
    """Executes commands. Its methods belong to the event loop."""

    def __init__(self, parts: Parts, finished: Callable[[LiveJob], None]) -> None:
        """`finished(job)` is told when a job has done its last round."""
        self._parts = parts
        self._finished = finished
        self._worker = _new_worker()
        self._words = masking.Words()
        self._sums: dict[str, tuple[bytes, asyncio.Future[str]]] = {}  # by job: what of, digest
        self._tasks: set[asyncio.Task[Any]] = set()

    def execute(self, job: LiveJob, command: Command) -> None:
        """Carry out one command; what takes time goes on in the background."""
        parts = self._parts
        match command:
            case GiveLease():
                parts.presence.assign(self._assignment(job, command))
            case CancelLease():
                parts.presence.withdraw(command.site, command.lease)
                self.later(lambda: self._forget(job, command.lease))
            case Tell():
                # One commit may hold the ends of step and job: there is nobody to tell then.
                if command.lease in job.state.leases:
                    self._tell(job, command)
            case Fold():
                self._fold(job, command)
            case Close(kind="statistics"):
                statistics.close(job, parts.clock.now())
            case Close(kind="evaluate"):
                assessing.close(job, parts.clock.now())
            case Close():
                self.spawn(self._close(job, command))
            case Wake():
                self._wake(job, command)
            case Notify():
                self._notice(job, command)

    def later(self, work: Callable[[], object]) -> None:
        """Queue `work` in the folding thread; failures are logged, nothing waits for them."""
        self._worker.submit(work).add_done_callback(_complain)

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine to its end."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("hub: %s", error, exc_info=error)

    async def close(self) -> None:
        """Stop: what runs in the folding thread ends, what is not recorded is done again."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)

    # ---- leases, timers, phases --------------------------------------------------------------

    def _assignment(self, job: LiveJob, command: GiveLease) -> Assignment:
        book, state, limits = job.book, job.state, self._parts.limits
        arguments = book.strategy.configure(book.options, command.arguments, command.round)
        final = command.round >= state.config.rounds
        privacy = experiments.protection(book.record.experiment, book.noted, final)
        task = Task(
            kind=command.kind,
            job=job.id,
            round=command.round,
            study=book.needs.study_digest,
            study_name=book.needs.study.name,
            plan=book.needs.plan,
            arguments=arguments,
            tags=book.needs.study.tags,
            model=command.model,
            seed=command.seed,
            deterministic=book.record.experiment.deterministic,
            privacy=privacy,
            cohort=command.cohort,
            researcher=book.record.author,
            total=sum(self._parts.records(s, book.needs.study.tags) for s in command.cohort),
        )
        if command.kind == "evaluate":  # no update leaves: there is nothing to protect
            judged = assessing.asked(book, state)
            experiment = book.record.experiment
            asked = maskedevaluation.protection(experiment, judged, experiment.fold)
            task = msgspec.structs.replace(task, privacy=asked)
        limit = limits.init_bytes
        if command.model is not None and book.base is not None:
            limit = book.base.total_bytes + limits.slack_bytes
            if privacy.compression is not None:  # its parts need more of a header
                limit += book.base.data_start
            if command.cohort and command.kind == "train":
                schema = hidden.schema(book.base.schema, task.privacy)
                limit += sum(spec.nbytes for spec in schema)
        until = state.opened_at + state.config.deadline
        return Assignment(command.lease, command.site, task, until, limit)

    # ---- words of masked rounds --------------------------------------------------------------

    def _tell(self, job: LiveJob, command: Tell) -> None:
        """Pass on what the step before has brought; in an encrypted round a sum, at the end."""
        state, parts = job.state, self._parts
        if state.config.encrypted and command.step == "unmask":
            self.spawn(self._tell_sum(job, state, command))
            return
        keyed = command.step != "update" or vault.dealt(masking.said(state, "shares"))
        if state.config.encrypted and not keyed:
            cause = (
                "the sites that make the key for homomorphic encryption were lost before "
                "they had; resume the job when they are back, or go on without them"
            )
            job.note(CloseFailed(parts.clock.now(), state.round, cause))
            return
        parts.presence.tell(command.site, self._words.word(state, command))

    async def _tell_sum(self, job: LiveJob, state: JobState, command: Tell) -> None:
        """Let a survivor open the sum, once it is made; it is made once for all of them."""
        about = masking.context(state)
        known = self._sums.get(job.id)
        if known is None or known[0] != about:
            known = about, asyncio.ensure_future(self._sum(job, state))
            self._sums[job.id] = known
        digest = await asyncio.shield(known[1])
        if digest and command.lease in job.state.leases:
            self._parts.presence.allow(command.site, command.lease, digest)
            word = self._words.word(state, command, digest)
            self._parts.presence.tell(command.site, word)

    async def _sum(self, job: LiveJob, state: JobState) -> str:
        """Add the survivors' updates; return the frame's digest, "" when it cannot be made."""
        base = job.book.base
        leases = [e.id for e in state.leases.values() if e.status == "accepted"]
        try:
            if base is None:
                raise StorageError("there is no model yet")
            work = partial(encrypted.write_sum, self._parts.blobs, base.schema, sorted(leases))
            made = await asyncio.get_running_loop().run_in_executor(self._worker, work)
        except ConsiliaError as e:
            _log.error("job %s: round %s has no encrypted sum: %s", job.id, state.round, e)
            cause = f"the encrypted updates could not be added: {e}"
            job.note(CloseFailed(self._parts.clock.now(), state.round, cause))
            return ""
        return made.digest

    def _forget(self, job: LiveJob, lease: str) -> None:
        """Drop a lease's spool, and what belongs to its encrypted round."""
        uploads = self._parts.uploads
        uploads.forget(lease)
        if job.state.config.encrypted:
            uploads.forget(encrypted.opened_of(lease))
            self._parts.blobs.discard(encrypted.sum_of(lease))

    def _wake(self, job: LiveJob, command: Wake) -> None:
        clock = self._parts.clock

        def due() -> None:
            job.note(TimedOut(max(clock.now(), command.at), command.round))

        if job.book.timer is not None:
            job.book.timer.cancel()
        job.book.timer = clock.call_later(max(0.0, command.at - clock.now()), due)

    def _notice(self, job: LiveJob, command: Notify) -> None:
        if command.phase not in ("done", "stopped", "failed"):
            return
        if job.book.timer is not None:
            job.book.timer.cancel()
        if not job.state.closing:
            self.later(lambda: _release(job.book))
        if command.phase == "done":
            self._sums.pop(job.id, None)
            self._finished(job)

    # ---- folding and closing -----------------------------------------------------------------

    def _fold(self, job: LiveJob, command: Fold) -> None:
        """Fold in the background; what fails here is folded again, and told, by the close."""
        base, experiment = job.state.model, job.book.record.experiment
        if base is None or experiment.deterministic or experiment.aggregate.name != "mean":
            return  # the close folds them all in the order of sites, or reads them side by side
        if job.state.config.encrypted:
            return  # they are added when it is known which sites have survived
        update = Update(command.site, command.lease, command.digest, command.records)

        def work() -> None:
            aggregate = self._aggregate(job.book, base)
            try:
                aggregate.add(update)
            except ConsiliaError as e:
                _log.warning("job %s: %s", job.id, e)
                aggregate.reset()

        self.later(work)

    def _aggregate(self, book: Book, base: str) -> Aggregate:
        """Return the round's aggregate; in the folding thread."""
        if book.aggregate is None:
            privacy = book.record.experiment.privacy or Privacy()
            means = (
                partial(masking.MaskedFold, privacy=privacy)
                if privacy.aggregation == "secure"
                else encrypted.OpenedFold
                if privacy.aggregation == "ckks"
                else aggregate.Fold
            )
            codec = named(book.record.experiment.compress)
            parts = self._parts
            book.aggregate = Aggregate(parts.blobs, base, parts.checkpoint, means, codec)
        elif book.aggregate.header.digest != base:
            book.aggregate.rebase(base)
        return book.aggregate

    async def _close(self, job: LiveJob, command: Close) -> None:
        """Make the round's model, then record it; the machine hears of it either way."""
        parts, state = self._parts, job.state
        work = closing.work(
            job.book, state, command, parts.blobs, self._aggregate, parts.checkpoint
        )
        try:
            made = await self._in_worker(job.book, work)
        except Exception as e:
            defect = None if isinstance(e, ConsiliaError) else e
            what = "job %s: round %s could not be closed: %s"
            _log.error(what, job.id, command.round, e, exc_info=defect)
            cause = str(e) if isinstance(e, ConsiliaError) else f"a defect of the hub: {e!r}"
            self.later(lambda: _release(job.book))
            job.note(CloseFailed(parts.clock.now(), command.round, cause))
            return
        parts.checkpoint("close.made")
        now = parts.clock.now()
        version = closing.version(job.book, state, command, made, now)
        old = job.book.optimizer

        def then() -> None:
            job.book.noted = version.metrics
            if job.book.versions is not None:
                job.book.versions.append(version)
            self._closed(job, command, made, old, version.seconds)

        def enter(db: Connection) -> None:
            nonlocal old
            closing.enter(db, version, command, made.alarms)
            if old is not None and modelversions.uses_optimizer(db, old):
                old = None  # a job that does just the same has this state, too

        enough = closing.enough(job.book, version)
        closed = Closed(now, command.round, made.header.digest, made.told, enough)
        job.note(closed, enter, then=then)

    def _closed(
        self, job: LiveJob, command: Close, made: Made, old: str | None, seconds: float
    ) -> None:
        """The version is durable: the next round starts from it, and the spools may go.

        `old` is the optimizer state before it, if that can go as well.
        """
        book, parts = job.book, self._parts
        book.base, book.optimizer = made.header, made.optimizer
        book.progress.clear()
        parts.meter.round_closed(seconds)
        parts.checkpoint("close.committed")

        def tidy() -> None:
            if book.aggregate is not None:
                book.aggregate.reset()
            for _, lease, _, _ in command.updates:
                self._forget(job, lease)
            parts.checkpoint("close.tidied")
            if old is not None and old != made.optimizer:
                parts.blobs.delete(old)

        self.later(tidy)

    async def _in_worker(self, book: Book, work: Callable[[], Made]) -> Made:
        """Run `work` in the folding thread; StorageError when it does not end in time."""
        loop = asyncio.get_running_loop()
        limit = self._parts.limits.close
        late: asyncio.Future[None] = loop.create_future()
        timer = self._parts.clock.call_later(
            limit, lambda: None if late.done() else late.set_result(None)
        )
        running = loop.run_in_executor(self._worker, work)
        try:
            await asyncio.wait((running, late), return_when=asyncio.FIRST_COMPLETED)
            while running.cancelled():  # it waited behind another job's work that hangs
                running = loop.run_in_executor(self._worker, work)
                await asyncio.wait((running, late), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        if running.done():
            return running.result()
        # The thread hangs. It keeps the aggregate, which nobody else may touch or close now;
        # another thread takes over what was queued.
        book.aggregate = None
        running.add_done_callback(lambda f: f.cancelled() or f.exception())
        hung, self._worker = self._worker, _new_worker()
        hung.shutdown(wait=False, cancel_futures=True)
        raise StorageError(f"the model was not made in {limit:g} s; does the disk answer?")


def _new_worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="consilia-fold")


def _release(book: Book) -> None:
    if book.aggregate is not None:
        book.aggregate.release()
        book.aggregate = None


def _complain(done: "Future[object]") -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.error("folding thread: %s", error, exc_info=error)
