"""One live job: its serial queue of events, and what the hub remembers of it between them.

    submit(event) -> journalled (one COMMIT for all that are waiting) -> the state moves ->
    commands are carried out -> the submitter is answered

An event takes effect only after it is durable; events that change nothing are not written.
Everything here runs on the event loop.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from consilia.algo.strategy import Strategy
from consilia.core.round import Command, Event, JobState, Stopped, advance
from consilia.errors import StorageError
from consilia.hub import audit, journal, records
from consilia.hub.clock import Clock, Timer
from consilia.hub.folding import Aggregate
from consilia.hub.modelversions import Version
from consilia.hub.readiness import Needs
from consilia.hub.records import JobRecord
from consilia.hub.store import Store
from consilia.wire.frames import Header
from consilia.wire.v1 import Metrics

RETRY = 1.0  # seconds between attempts while the database refuses
TICKS = 1_000_000  # a watcher's cursor: journal number * TICKS + progress items since
LAZY = 0.05  # seconds an event that nobody waits for may wait for company

_log = logging.getLogger(__name__)
Also = Callable[[Connection], object]


@dataclass(slots=True)
class _Entry:
    """An event in the queue. `also` is written in its transaction, if it takes effect."""

    event: Event
    also: tuple[Also, ...]
    then: Callable[[], None] | None  # run when it has taken effect, before the commands
    future: "asyncio.Future[bool] | None"  # None: the hub's own event, retried until it is in
    took: bool = False


@dataclass(frozen=True, slots=True)
class Progressed:
    """Where a site is in its task; `seq` orders it among the job's events."""

    seq: int
    at: float
    lease: str
    fraction: float
    metrics: Metrics


class Traffic:
    """Tensor frame bytes of the open round, seen from the hub. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in = self._out = 0

    def received(self, count: int) -> None:
        """Count bytes that came from a site."""
        with self._lock:
            self._in += count

    def sent(self, count: int) -> None:
        """Count bytes that went to a site."""
        with self._lock:
            self._out += count

    def take(self) -> tuple[int, int]:
        """Return bytes in and out, and start again from zero."""
        with self._lock:
            taken, self._in, self._out = (self._in, self._out), 0, 0
            return taken


@dataclass(slots=True)
class Book:
    """What the engine keeps beside the state of a job."""

    record: JobRecord
    needs: Needs
    strategy: Strategy
    options: dict[str, float]
    base: Header | None = None  # header of state.model
    optimizer: str | None = None  # digest of the strategy's state
    noted: Metrics = field(default_factory=dict)  # metrics of the newest version
    aggregate: Aggregate | None = None  # of the open round; touched by the folding thread only
    ready: set[str] = field(default_factory=set)  # sites told as joined, in the queue or before
    progress: dict[str, Progressed] = field(default_factory=dict)  # by site
    traffic: Traffic = field(default_factory=Traffic)
    timer: Timer | None = None
    versions: list[Version] | None = None  # as recorded, oldest first; None: not read yet


class LiveJob:
    """A job's state machine, driven."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it drives, and with what
        self,
        book: Book,
        state: JobState,
        seq: int,
        store: Store,
        clock: Clock,
        execute: Callable[["LiveJob", Command], None],
        checkpoint: Callable[[str], None],
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        """`seq` is the journal's length; `execute` carries out one command.

        `moved()` is called whenever what people see of the job has changed.
        """
        self.book = book
        self.state = state
        self.seq = seq
        self._store = store
        self._clock = clock
        self._execute = execute
        self._checkpoint = checkpoint
        self._moved = moved
        self._queue: list[_Entry] = []
        self._pump_task: asyncio.Task[None] | None = None
        self._lazy: Timer | None = None
        self._watchers: list[asyncio.Future[None]] = []
        self._ticks = 0  # progress items since the last event
        self._closed = False

    @property
    def id(self) -> str:
        """The job's id."""
        return self.book.record.id

    # ---- events in ---------------------------------------------------------------------------

    def submit(
        self, event: Event, *also: Also, then: Callable[[], None] | None = None
    ) -> "asyncio.Future[bool]":
        """Queue an event; the future tells, once it is durable, whether it took effect.

        `also` functions run in the event's transaction, `then` before the commands; neither
        runs for an event that changes nothing. Raises StorageError through the future.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(StorageError("the hub is going down; try again"))
            return future
        self._queue.append(_Entry(event, also, then, future))
        self._start()
        return future

    def note(
        self,
        event: Event,
        *also: Also,
        then: Callable[[], None] | None = None,
        lazy: bool = False,
    ) -> None:
        """Queue an event of the hub's own, which is retried while the database refuses.

        A `lazy` one waits a little for company, so that it costs no COMMIT of its own.
        """
        self._queue.append(_Entry(event, also, then, None))
        if not lazy:
            self._start()
        elif self._lazy is None:
            self._lazy = self._clock.call_later(LAZY, self._start)

    async def settle(self) -> None:
        """Return when nothing is queued."""
        while self._pump_task is not None and not self._pump_task.done():
            await asyncio.wait({self._pump_task})

    def close(self) -> None:
        """Take no more events: the hub goes down. What is not durable is not acknowledged."""
        self._closed = True
        for entry in self._queue:
            if entry.future is not None and not entry.future.done():
                entry.future.set_exception(StorageError("the hub is going down; try again"))
        self._queue = []
        for timer in (self._lazy, self.book.timer):
            if timer is not None:
                timer.cancel()

    def _start(self) -> None:
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        if self._closed or not self._queue:
            return
        if self._pump_task is None or self._pump_task.done():
            self._pump_task = asyncio.get_running_loop().create_task(self._pump())

    async def _pump(self) -> None:
        while self._queue and not self._closed:
            batch, self._queue = self._queue, []
            try:
                await self._commit(batch)
            except Exception as e:
                self._refused(batch, e)
                return

    async def _commit(self, batch: list[_Entry]) -> None:
        before = after = self.state
        commands: list[Command] = []
        for entry in batch:
            moved, wanted = advance(after, entry.event)
            entry.took = moved is not after or bool(wanted)
            after = moved
            commands.extend(wanted)
        taken = [entry for entry in batch if entry.took]
        if taken:
            self._checkpoint("journal.before")
            self.seq = await self._store.write(
                lambda db: self._record(db, taken, before, after)
            )
            self._checkpoint("journal.after")
        self.state = after
        for entry in taken:
            if entry.then is not None:
                entry.then()
        for command in commands:
            self._execute(self, command)
        for entry in batch:
            if entry.future is not None and not entry.future.done():
                entry.future.set_result(entry.took)
        if taken:
            self._ticks = 0
            self.wake()

    def _record(
        self, db: Connection, taken: Iterable[_Entry], before: JobState, after: JobState
    ) -> int:
        seq = 0
        at = 0.0
        for entry in taken:
            for also in entry.also:
                also(db)
            seq, at = journal.append(db, self.id, entry.event), entry.event.at
        if (before.phase, before.cause) != (after.phase, after.cause):
            records.set_phase(db, self.id, after.phase, after.cause)
            if after.phase in ("done", "failed") and after.phase != before.phase:
                audit.append(
                    db, at, "hub", "job.end", self.id, outcome=after.phase, detail=after.cause
                )
        return seq

    def _refused(self, batch: list[_Entry], error: Exception) -> None:
        """Tell those who wait, and try the hub's own events again a little later."""
        _log.error("job %s: %s events not journalled: %s", self.id, len(batch), error)
        for entry in batch:
            if entry.future is not None and not entry.future.done():
                entry.future.set_exception(error)
        own = [entry for entry in batch if entry.future is None]
        if not isinstance(error, StorageError):
            # A defect would come again with every attempt: stop, and say so.
            _log.error("job %s: a defect", self.id, exc_info=error)
            if any(not isinstance(entry.event, Stopped) for entry in own):
                cause = f"a defect of the hub, {type(error).__name__}: {error}"
                own = [_Entry(Stopped(self._clock.now(), cause), (), None, None)]
        self._queue = own + self._queue
        self._clock.call_later(RETRY, self._start)

    # ---- what watchers see -------------------------------------------------------------------

    def progressed(self, site: str, lease: str, fraction: float, metrics: Metrics) -> None:
        """Note where a site is; not journalled."""
        self._ticks += 1
        seq = self.seq * TICKS + min(self._ticks, TICKS - 1)
        self.book.progress[site] = Progressed(seq, self._clock.now(), lease, fraction, metrics)
        self.wake()

    def wake(self) -> None:
        """Let everybody look who waits for a change."""
        self._moved()
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    async def changed(self, wait: float) -> None:
        """Return at the next change, or after `wait` seconds."""
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.append(watcher)
        timer = self._clock.call_later(
            wait, lambda: None if watcher.done() else watcher.set_result(None)
        )
        try:
            await watcher
        finally:
            timer.cancel()
            if watcher in self._watchers:
                self._watchers.remove(watcher)
