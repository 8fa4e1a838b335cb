"""What differs between SQLite and PostgreSQL, kept in one place: connecting, errors, upgrading.

SQLite runs in WAL mode with synchronous=FULL (every COMMIT is an fsync), foreign keys on, and
explicit BEGIN, so that its driver opens no transaction of its own. A file is made with mode
0600. `sqlite://` is a database in memory for simulations and tests: one connection, one lock.
PostgreSQL is reached through psycopg 3; several hub processes may share one database.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from consilia.errors import ConfigError, Conflict, StorageError
from consilia.files import sync_folder
from consilia.hub import tables

BUSY_TIMEOUT = 10.0  # seconds to wait for another process's lock
STALE = 0.5  # seconds that PostgreSQL generations may be old
_UPGRADE_LOCK = 0x636F6E73  # advisory lock ids, any fixed numbers
_TRANSIENT = {"40001", "40P01"}  # serialisation failure, deadlock
_GENERATIONS = sa.select(tables.generations.c.name, tables.generations.c.value)
_REVISIONS = sa.Table(  # Alembic's own, as it makes it
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


class Database:
    """Two engines over one database, one to write with and one that can only read."""

    def __init__(self, url: URL, readers: int, monotonic: Callable[[], float]) -> None:
        """Make the engines; nothing is connected yet. See `open_database`."""
        self.sqlite = url.get_backend_name() == "sqlite"
        self.memory = self.sqlite and not url.database
        self.where = url.render_as_string(hide_password=True)
        # In memory there is one connection, so readers and the writer take turns.
        self.turn: AbstractContextManager[Any] = (
            threading.RLock() if self.memory else nullcontext()
        )
        if self.memory:
            self.writer = self.reader = _sqlite_memory()
        elif self.sqlite:
            self.writer = _sqlite_file(url, 1, writes=True)
            self.reader = _sqlite_file(url, readers, writes=False)
        else:
            self.writer = _postgres(url, 1, writes=True)
            self.reader = _postgres(url, readers, writes=False)
        self._watch = _Watch(self, url, monotonic)

    def connect(self) -> Connection:
        """Open the writer's connection."""
        return self.writer.connect()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read-only transaction that sees one state of the database."""
        with self.turn, self.reader.connect() as db, db.begin():
            yield db

    def intact(self, db: Connection) -> bool:
        """Whether a COMMIT would commit what was done since BEGIN.

        Both databases may drop a transaction by themselves (disk full; an error that the
        caller swallowed) and then answer a COMMIT as if all were well.
        """
        driver: Any = db.connection.driver_connection
        if self.sqlite:
            return bool(driver.in_transaction)
        return driver.info.transaction_status in (0, 2)  # IDLE (no statement yet), INTRANS

    def gone(self, db: Connection) -> bool:
        """Whether the transaction has ended by itself, so that no savepoint is left in it."""
        return db.invalidated or (self.sqlite and not self.intact(db))

    def transient(self, error: BaseException) -> bool:
        """Whether the transaction that this error rolled back may succeed when run again."""
        if not isinstance(error, DBAPIError):
            return False
        return (
            getattr(error.orig, "sqlstate", None) in _TRANSIENT or error.connection_invalidated
        )

    def generations(self) -> Mapping[str, int]:
        """Counters as of now (SQLite), or at most STALE seconds old (PostgreSQL). Cheap."""
        return self._watch.generations()

    def close(self) -> None:
        """Close every connection."""
        self._watch.close()
        self.writer.dispose()
        self.reader.dispose()


class _Watch:
    """Reads the generations only when they can have changed.

    SQLite: PRAGMA data_version on a connection of its own moves with every COMMIT of any other
    connection, in this process or another (3 us to ask). PostgreSQL: asked every STALE seconds.
    """

    def __init__(self, database: Database, url: URL, monotonic: Callable[[], float]) -> None:
        self._database = database
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._values: Mapping[str, int] = {}
        self._path = Path(url.database or "").absolute()
        self._driver: sqlite3.Connection | None = None
        self._seen: float | None = None  # data_version, or the time of the last look

    def generations(self) -> Mapping[str, int]:
        """Return the counters."""
        try:
            with self._lock:
                if self._database.memory:
                    return self._read()
                if self._database.sqlite:
                    self._look(self._connected())
                else:
                    at = self._monotonic()
                    if self._seen is None or at - self._seen >= STALE:
                        self._values, self._seen = self._read(), at
                return self._values
        except (SQLAlchemyError, sqlite3.Error) as e:
            raise translated(e) from e

    def close(self) -> None:
        """Close the connection that watches a file."""
        with self._lock:
            if self._driver is not None:
                self._driver.close()
            self._driver = None

    def _read(self) -> Mapping[str, int]:
        with self._database.reading() as db:
            return {name: value for name, value in db.execute(_GENERATIONS)}

    def _look(self, driver: sqlite3.Connection) -> None:
        # Straight on the driver: the hub's own commits move the version many times a second.
        (version,) = driver.execute("PRAGMA data_version").fetchone()
        if version != self._seen:
            rows = driver.execute("SELECT name, value FROM generations").fetchall()
            self._values, self._seen = dict(rows), version

    def _connected(self) -> sqlite3.Connection:
        if self._driver is None:
            self._driver = sqlite3.connect(
                f"{self._path.as_uri()}?mode=ro",
                uri=True,
                timeout=BUSY_TIMEOUT,
                isolation_level=None,
                check_same_thread=False,
            )
        return self._driver


def open_database(
    where: str | Path, readers: int, monotonic: Callable[[], float], migrate: bool = True
) -> Database:
    """Connect to a SQLite file, `sqlite://` (memory) or a `postgresql://` URL.

    A database that is empty or behind is brought to `tables.HEAD` (unless `migrate` is False:
    then it raises StorageError saying what to run). One made by a newer Consilia is refused.
    """
    url = _url(where)
    if url.get_backend_name() == "sqlite" and url.database:
        _make_file(Path(url.database))
    database = Database(url, readers, monotonic)
    try:
        found = revision(database)
        if found is None and migrate:
            found = _create(database)
        if found != tables.HEAD:
            if not migrate:
                raise StorageError(
                    f"database {database.where} is at {found or 'nothing'}, this Consilia "
                    f"needs {tables.HEAD}: stop the hub and start this version of it once"
                )
            upgrade(database)
    except SQLAlchemyError as e:
        database.close()
        raise translated(e) from e
    except BaseException:
        database.close()
        raise
    return database


def revision(database: Database) -> str | None:
    """The migration the database is at, None when it is empty."""
    with database.reading() as db:
        if not sa.inspect(db).has_table(_REVISIONS.name):
            return None
        return db.execute(sa.select(_REVISIONS.c.version_num)).scalar()


def _create(database: Database) -> str | None:
    """Make all tables in an empty database and return the revision it is at.

    Without Alembic, which takes 0.4 s to import: the tables are those its migrations make
    (a test compares the two). Finds the tables of a process that was faster, if there is one.
    """
    with database.turn, database.connect() as db, db.begin():
        if not database.sqlite:
            db.execute(sa.text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
        if sa.inspect(db).has_table(_REVISIONS.name):
            return db.execute(sa.select(_REVISIONS.c.version_num)).scalar()
        tables.metadata.create_all(db, checkfirst=False)
        _REVISIONS.create(db)
        db.execute(sa.insert(_REVISIONS).values(version_num=tables.HEAD))
    return tables.HEAD


def upgrade(database: Database, target: str = "head") -> None:
    """Run the migrations up to `target`, in one transaction, one process at a time."""
    _migrate(database, "upgrade", target)


def downgrade(database: Database, target: str) -> None:
    """Run the migrations back to `target` ("base": an empty database)."""
    _migrate(database, "downgrade", target)


def _migrate(database: Database, direction: str, target: str) -> None:
    # Imported here: it costs 0.1 s and 10 MB, and most starts find nothing to do.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with database.turn, database.connect() as db, db.begin():
        if not database.sqlite:
            db.execute(sa.text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
        config.attributes["connection"] = db
        try:
            getattr(command, direction)(config, target)
        except CommandError as e:
            raise StorageError(
                f"database {database.where} cannot be brought to {target}: {e}; "
                "was it made by a newer Consilia?"
            ) from e


def translated(error: BaseException) -> BaseException:
    """Return what Consilia raises for a driver's error; any other error as it is."""
    if isinstance(error, IntegrityError):
        return Conflict(f"it is there already, or refers to what is not there: {error.orig}")
    if isinstance(error, SQLAlchemyError | sqlite3.Error):
        cause = getattr(error, "orig", None) or error
        return StorageError(
            f"the hub's database refused: {str(cause).strip()}; {_cure(str(cause))}"
        )
    return error


def _cure(text: str) -> str:
    if "full" in text or "No space" in text:
        return "the disk is full: free some space, then try again"
    if "locked" in text or "lock timeout" in text:
        return "another process holds it: end that process, then try again"
    if "readonly" in text or "unable to open" in text:
        return "check that the hub's user may write to the file and its directory"
    return "check the database and its disk"


def _url(where: str | Path) -> URL:
    if isinstance(where, Path):
        return URL.create("sqlite", database=str(where))
    try:
        url = make_url(where)
    except ArgumentError:
        raise ConfigError(
            "the database is neither a path nor a URL: use sqlite:///FILE or "
            "postgresql://USER@HOST/NAME"
        ) from None
    backend = url.get_backend_name()
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigError(f"database {backend!r} is not supported: use sqlite or postgresql")
    return url.set(database=None) if url.database == ":memory:" else url


def _make_file(path: Path) -> None:
    """Make an empty file only its owner may read; SQLite gives its companions the same mode."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            sync_folder(path.parent)
    except OSError as e:
        raise StorageError(f"cannot make database {path}: {e.strerror}") from e


def _sqlite_file(url: URL, size: int, writes: bool) -> Engine:
    engine = sa.create_engine(
        url,
        poolclass=sa.QueuePool,
        pool_size=size,
        max_overflow=0,
        connect_args={"timeout": BUSY_TIMEOUT, "check_same_thread": False},
    )
    pragmas = ("journal_mode=WAL", "synchronous=FULL") if writes else ("query_only=ON",)
    _explicit_transactions(engine, pragmas, "BEGIN IMMEDIATE" if writes else "BEGIN")
    return engine


def _sqlite_memory() -> Engine:
    engine = sa.create_engine(
        "sqlite://", poolclass=sa.StaticPool, connect_args={"check_same_thread": False}
    )
    _explicit_transactions(engine, (), "BEGIN")
    return engine


def _explicit_transactions(engine: Engine, pragmas: tuple[str, ...], begin: str) -> None:
    def prepare(driver: sqlite3.Connection, _: object) -> None:
        driver.isolation_level = None
        for pragma in ("foreign_keys=ON", *pragmas):
            driver.execute(f"PRAGMA {pragma}").close()

    def start(db: Connection) -> None:
        db.exec_driver_sql(begin)

    sa.event.listen(engine, "connect", prepare)
    sa.event.listen(engine, "begin", start)


def _postgres(url: URL, size: int, writes: bool) -> Engine:
    options = "-c synchronous_commit=on -c lock_timeout=10s"
    try:
        return sa.create_engine(
            url,
            pool_size=size,
            max_overflow=0,
            pool_pre_ping=not writes,
            isolation_level="READ COMMITTED" if writes else "REPEATABLE READ",
            execution_options={} if writes else {"postgresql_readonly": True},
            connect_args={
                "connect_timeout": 10,
                "application_name": "consilia-hub",
                "options": options,
            },
        )
    except ModuleNotFoundError:
        raise ConfigError(
            "PostgreSQL needs psycopg: install consilia[postgres], or use a SQLite file"
        ) from None
