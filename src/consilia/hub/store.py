"""The hub's database behind two doors: `write`, durable when it returns, and `read`.

One thread writes. Whatever waits when it is free becomes one transaction and one COMMIT (group
commit): with many rounds in flight the disk syncs once for many events, and a single write on
an idle store waits for one sync. A function that raises is rolled back alone, and raises to its
own caller.

    await store.write(lambda db: journal.append(db, job, event))
    page = await store.read(lambda db: records.list_jobs(db, limit=50))

- What `write` returned is on disk (SQLite: WAL, synchronous=FULL; PostgreSQL: its synchronous
  commit). What raised is not, but for one case: when the line to PostgreSQL breaks inside
  COMMIT nobody can know, and the StorageError says so.
- A function given to `write` may be run again (another in its group raised, a deadlock, a lost
  connection), so it has no effect but on the database. It runs to its end even when its caller
  was cancelled.
- Both databases run the same SQLAlchemy Core code; hub/tables has the schema, hub/records,
  hub/journal and hub/audit the functions to pass in.

Errors: StorageError when the database refuses or the store is closed, Conflict when a row is
there already or refers to one that is not, and whatever the function itself raised.
"""

import asyncio
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from consilia.errors import StorageError
from consilia.hub.database import Database, open_database, translated

T = TypeVar("T")
MAX_GROUP = 512  # functions in one transaction
ATTEMPTS = 4  # runs of a function whose transaction was lost through no fault of its own


@dataclass(eq=False, slots=True)
class _Write(Generic[T]):
    """A function waiting for its COMMIT, and who waits for it."""

    run: Callable[[Connection], T]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[T]"
    value: T | None = None
    error: BaseException | None = None
    again: bool = False
    attempts: int = 0


@dataclass(slots=True)
class Counts:
    """What the writer has done since the store was opened."""

    writes: int = 0  # functions that were committed
    commits: int = 0
    failed: int = 0  # functions that raised or could not be committed


class Store:
    """A database, its writer thread and its readers. Make one with `Store.open`."""

    def __init__(
        self,
        database: Database,
        readers: int,
        committed: Callable[[float], None] = lambda _: None,
        fence: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """Start the writer over an open database; the store closes it.

        `fence(db)` begins every transaction and raises when this process may write no more.

        `committed(seconds)` hears from the writer's thread how long each COMMIT took.
        """
        self.database = database
        self._committed = committed
        self._fence = fence
        self.counts = Counts()
        self._queue: queue.SimpleQueue[_Write[Any] | None] = queue.SimpleQueue()
        self._gate = threading.Lock()  # no write is queued after close
        self._closed = False
        self._db: Connection | None = None  # the writer's, used by its thread alone
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="consilia-read")
        self._thread = threading.Thread(target=self._serve, name="consilia-write", daemon=True)
        self._thread.start()

    @classmethod
    def open(  # noqa: PLR0913 - clock, meter and fence are arguments too
        cls,
        where: str | Path,
        *,
        migrate: bool = True,
        readers: int = 4,
        monotonic: Callable[[], float] = time.monotonic,
        committed: Callable[[float], None] = lambda _: None,
        fence: Callable[[Connection], None] = lambda _: None,
    ) -> Self:
        """Open a SQLite file (path or URL), `sqlite://` (memory) or a `postgresql://` URL.

        Blocks. Runs the migrations that are due, unless `migrate` is False.
        """
        database = open_database(where, readers, monotonic, migrate)
        return cls(database, readers, committed, fence)

    async def write(self, run: Callable[[Connection], T]) -> T:
        """Run `run(db)` in the writer's next transaction; return its value after COMMIT."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._gate:
            self._check_open()
            self._queue.put(_Write(run, loop, future))
        return await future

    async def read(self, run: Callable[[Connection], T]) -> T:
        """Run `run(db)` on a reader thread, in one read-only snapshot; return its value."""
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read_now, run)

    def read_now(self, run: Callable[[Connection], T]) -> T:
        """Run `run(db)` on this thread, in one read-only snapshot; return its value. Blocks."""
        self._check_open()
        try:
            with self.database.reading() as db:
                return run(db)
        except SQLAlchemyError as e:
            raise translated(e) from e

    def generation(self, name: str) -> int:
        """How often what `name` counts has changed (records.bump), by any process.

        Any thread, a few microseconds. On PostgreSQL up to half a second old.
        """
        self._check_open()
        return self.database.generations().get(name, 0)

    def close(self) -> None:
        """Write what is queued, then close. Blocks; closing twice is harmless."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._pool.shutdown()
        self.database.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError("the hub's store is closed")

    # ---- the writer thread -------------------------------------------------------------------

    def _serve(self) -> None:
        last = False
        while not last:
            group, last = self._next_group()
            while group:
                self._attempt(group)
                done = [w for w in group if not w.again]
                group = [w for w in group if w.again]
                _settle(done)
        self._disconnect()

    def _next_group(self) -> tuple[list[_Write[Any]], bool]:
        """Wait for a write and take what else is queued; True once nothing more will come."""
        group: list[_Write[Any]] = []
        write = self._queue.get()
        while write is not None:
            group.append(write)
            if len(group) == MAX_GROUP:
                return group, False
            try:
                write = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _attempt(self, group: list[_Write[Any]]) -> None:
        """Run a group in one transaction, and note for each write how it ended."""
        for write in group:
            write.value, write.error, write.again = None, None, False
            write.attempts += 1
        try:
            with self.database.turn:
                # Savepoints cost more than what they guard, and hardly a write ever raises: so
                # first all without, and only when one has raised, all again with them.
                if not self._run(group, apart=False) and len(group) > 1:
                    self._run(group, apart=True)
        except BaseException as e:  # the transaction is gone, and everybody's work with it
            self._disconnect()
            for write in group:
                write.error = write.error or _own(e)
        for write in group:
            if write.error is None:
                self.counts.writes += 1
            elif self.database.transient(write.error) and write.attempts < ATTEMPTS:
                write.again = True
            else:
                self.counts.failed += 1

    def _run(self, group: list[_Write[Any]], apart: bool) -> bool:
        """Run and commit; unless `apart`, the first error rolls all back and returns False."""
        if self._db is None:
            self._db = self.database.connect()
        db = self._db
        transaction = db.begin()
        self._fence(db)
        for write in group:
            point = db.begin_nested() if apart else transaction
            write.error = None
            try:
                write.value = write.run(db)
                if apart:
                    point.commit()
            except BaseException as e:
                write.error = e
                if self.database.gone(db):
                    raise
                point.rollback()
                if not apart:
                    return False
        self._commit(db, transaction.commit)
        return True

    def _commit(self, db: Connection, commit: Callable[[], None]) -> None:
        if not self.database.intact(db):
            raise StorageError(
                "the database dropped the transaction after an error inside it: nothing of it "
                "was written; check the disk, then try again"
            )
        begun = time.monotonic()
        try:
            commit()
        except DBAPIError as e:
            if e.connection_invalidated:
                raise StorageError(
                    "the line to the database broke during COMMIT: this write may or may not "
                    "be there; look before repeating it"
                ) from e
            raise
        self.counts.commits += 1
        self._committed(time.monotonic() - begun)

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            try:
                db.close()
            except SQLAlchemyError:
                db.invalidate()


def _settle(writes: Iterable[_Write[Any]]) -> None:
    """Wake the callers, with one call into each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[_Write[Any]]] = defaultdict(list)
    for write in writes:
        loops[write.loop].append(write)
    for loop, done in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, done)
        except RuntimeError:  # the loop is closed: nobody waits any more
            continue


def _resolve(writes: list[_Write[Any]]) -> None:
    for write in writes:
        if write.future.cancelled():
            continue
        if write.error is None:
            write.future.set_result(write.value)
            continue
        error = translated(write.error)
        if error is not write.error:
            error.__cause__ = write.error
        write.future.set_exception(error)


def _own(error: BaseException) -> BaseException:
    """A copy of an error that ends several writes: one object raised twice mixes tracebacks."""
    return StorageError(*error.args) if isinstance(error, StorageError) else error
