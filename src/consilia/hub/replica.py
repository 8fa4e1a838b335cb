"""Several hubs over one PostgreSQL and one bucket: one works, the others wait.

    take(...)      the lease in the database, when nobody holds it: a number, one higher than
                   the last holder's
    renew(...)     while this hub lives; who cannot renew any more ends itself
    fence(number)  asked inside every transaction of the holder's: after another hub has taken
                   over, nothing of the older one is written any more, however late it wakes up

Jobs, rounds and the waiting polls of sites live in the memory of the hub that holds the lease;
what it needs to go on is in the database and in the bucket. A waiting hub listens on its own
ports and passes each connection on, as it is, to the holder (hub.relay): TLS ends there, so
sites and people may call either. The times are the database's: the hubs' clocks do not matter.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.errors import ConfigError, StorageError
from consilia.hub.config import parse_listen
from consilia.hub.relay import Relay
from consilia.hub.telemetry import Log

LEASE = "hub"  # its row: all jobs of a hub go together
LOOK = 0.5  # seconds between two attempts to take it
PATIENCE = 5  # seconds for the database to answer a renewal

# The database's clock decides: extract(epoch from clock_timestamp()), Unix seconds.
_TAKE = """
INSERT INTO leases (name, number, holder, until, people, nodes)
VALUES (
    %(name)s, 1, %(holder)s, extract(epoch from clock_timestamp()) + %(seconds)s,
    %(people)s, %(nodes)s
)
ON CONFLICT (name) DO UPDATE SET number = leases.number + 1, holder = excluded.holder,
    until = excluded.until, people = excluded.people, nodes = excluded.nodes
WHERE leases.until < extract(epoch from clock_timestamp())
RETURNING number
"""
_RENEW = """
UPDATE leases SET until = extract(epoch from clock_timestamp()) + %(seconds)s
WHERE name = %(name)s AND number = %(number)s RETURNING number
"""
_END = "UPDATE leases SET until = 0 WHERE name = %(name)s AND number = %(number)s"
_LOOK = """
SELECT people, nodes FROM leases
WHERE name = %(name)s AND until >= extract(epoch from clock_timestamp())
"""
_FENCE = sa.text("SELECT 1 FROM leases WHERE name = :name AND number = :number FOR SHARE")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the other hubs reach this one: host:port each."""

    name: str
    people: str
    nodes: str


class Leases:
    """The lease's row, over a connection of its own. Every method blocks; any thread."""

    def __init__(self, url: str, place: Place, seconds: float) -> None:
        """`url` is the database's, with its password; a lease lasts `seconds` unrenewed."""
        if not url.startswith("postgresql"):
            raise ConfigError(
                "replica is set, but database is sqlite: hubs that stand in for each other "
                "need one PostgreSQL (database: postgresql://user@host/name)"
            )
        self._url = url.replace("postgresql+psycopg:", "postgresql:", 1)
        self._place = place
        self.seconds = seconds
        self._lock = threading.Lock()
        self._db: Any = None

    def take(self) -> int | None:
        """Return the fencing number when the lease is ours now, None while another has it."""
        place = self._place
        values = {"holder": place.name, "people": place.people, "nodes": place.nodes}
        row = self._ask(_TAKE, {**values, "seconds": self.seconds})
        return None if row is None else int(row[0])

    def renew(self, number: int) -> bool:
        """Return whether the lease is still ours; it then lasts again."""
        asked = {"number": number, "seconds": self.seconds}
        return self._ask(_RENEW, asked) is not None

    def end(self, number: int) -> None:
        """Give the lease back, so that nobody waits for its end."""
        self._ask(_END, {"number": number})

    def holder(self) -> tuple[str, str] | None:
        """Return the holder's addresses for people and for nodes, None when there is none."""
        row = self._ask(_LOOK, {})
        return None if row is None else (str(row[0]), str(row[1]))

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _ask(self, statement: str, values: Mapping[str, object]) -> Any:
        import psycopg  # noqa: PLC0415 - an optional extra

        with self._lock:
            try:
                if self._db is None:
                    self._db = psycopg.connect(
                        self._url,
                        autocommit=True,
                        connect_timeout=PATIENCE,
                        options=f"-c statement_timeout={PATIENCE}s",
                        application_name="consilia-hub-lease",
                    )
                cursor = self._db.execute(statement, {"name": LEASE, **values})
                return cursor.fetchone() if cursor.description else None
            except psycopg.Error as e:
                self._drop()
                raise StorageError(f"the lease of the hubs cannot be asked for: {e}") from e

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()


def unfenced(db: Connection) -> None:
    """Let a hub that stands alone write: the lock on its directory is its fence."""


def fence(number: int) -> Callable[[Connection], None]:
    """Return what the store asks at the beginning of every transaction."""

    def check(db: Connection) -> None:
        # FOR SHARE: who would take the lease over waits until this transaction has ended.
        if db.execute(_FENCE, {"name": LEASE, "number": number}).first() is None:
            raise StorageError(
                f"this hub's lease {number} was taken over by another replica: nothing more "
                "is written here; it ends, and waits its turn when it is started again"
            )

    return check


@dataclass(frozen=True, slots=True)
class Listening:
    """What a hub listens on: (host, port) for people and for nodes."""

    people: tuple[str, int]
    nodes: tuple[str, int]


Shown = Callable[[Listening], AbstractContextManager[None]]


@asynccontextmanager
async def turn(
    leases: Leases, listen: Listening, waiting: Shown, lost: Callable[[], None], log: Log
) -> AsyncIterator[tuple[int, Listening]]:
    """Enter once this hub holds the lease: its number, and the ports to listen on.

    Until then connections are passed on to the holder, and `waiting(where)` is entered. Inside
    the block the lease is renewed; `lost()` is called when it is not this hub's any more.
    """
    number = await asyncio.to_thread(leases.take)
    if number is None:
        number, listen = await _wait(leases, listen, waiting, log)
    with _ending(leases, number):
        log.info("this hub holds the lease", number=number)
        holding = asyncio.create_task(_hold(leases, number, lost, log))
        try:
            yield number, listen
        finally:
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)


async def _wait(
    leases: Leases, listen: Listening, waiting: Shown, log: Log
) -> tuple[int, Listening]:
    """Pass connections on until the lease is ours; return its number and the ports."""
    holder: list[tuple[str, str] | None] = [None]

    def target(which: int) -> tuple[str, int] | None:
        return None if holder[0] is None else parse_listen(holder[0][which], "leases")

    people, nodes = Relay(lambda: target(0)), Relay(lambda: target(1))
    try:
        open_at = Listening(
            (listen.people[0], await people.start(*listen.people)),
            (listen.nodes[0], await nodes.start(*listen.nodes)),
        )
        log.info("another hub holds the lease; this one waits and passes connections on")
        with waiting(open_at):
            while True:
                try:
                    holder[0] = await asyncio.to_thread(leases.holder)
                    number = await asyncio.to_thread(leases.take)
                except StorageError as e:
                    log.warning("the lease cannot be asked for", cause=str(e))
                    number = None
                if number is not None:
                    return number, open_at
                await asyncio.sleep(LOOK)
    finally:
        await asyncio.gather(people.close(), nodes.close())


async def _hold(leases: Leases, number: int, lost: Callable[[], None], log: Log) -> None:
    """Renew the lease until cancelled; call `lost()` and return once it is not ours."""
    loop = asyncio.get_running_loop()
    valid = loop.time() + leases.seconds
    while loop.time() < valid:
        await asyncio.sleep(leases.seconds / 4)
        begun = loop.time()
        try:
            if not await asyncio.to_thread(leases.renew, number):
                break
        except StorageError as e:
            log.warning("the lease was not renewed", cause=str(e))
        else:
            valid = begun + leases.seconds
    log.error("the lease is lost", number=number)
    lost()


@contextmanager
def _ending(leases: Leases, number: int) -> Iterator[None]:
    """Give the lease back when the block is left, if the database can still be reached."""
    try:
        yield
    finally:
        with contextlib.suppress(StorageError):
            leases.end(number)
        leases.close()
