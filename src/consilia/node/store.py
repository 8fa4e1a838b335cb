"""What a node must not forget: one SQLite file, DIR/node.sqlite, shared by agent and commands.

Every change goes through `write()`: one BEGIN IMMEDIATE ... COMMIT, durable when it returns
(WAL, synchronous=FULL), with its audit line inside. So an approval without its line, or a
line without its approval, cannot exist, whatever is killed when. The agent and `consilia`
commands write to the same file from different processes; the second waits for the first.

Whatever changes what may run calls `touch()` in its transaction. `revision()` then tells the
agent, cheaply and without anybody's help, whether its picture of the policy is still true.
"""

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from consilia.core import chain
from consilia.errors import ConfigError, StorageError, Wrong

FILE = "node.sqlite"
BUSY_SECONDS = 30.0  # how long a writer waits for another process's transaction
MAX_DETAIL = 4000  # characters of an audit line's detail
MAX_REASON = 1000  # characters of a reason that is given for good

Value = str | int | float | bytes | None
Row = tuple[Any, ...]  # typed by the STRICT tables below

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE meta (
            key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID""",
        "INSERT INTO meta VALUES ('revision', 1)",
        """CREATE TABLE audit (
            seq INTEGER PRIMARY KEY, at REAL NOT NULL, actor TEXT NOT NULL,
            action TEXT NOT NULL, subject TEXT NOT NULL, outcome TEXT NOT NULL,
            detail TEXT NOT NULL, digest TEXT NOT NULL) STRICT""",
        """CREATE TRIGGER audit_stays BEFORE UPDATE ON audit
            BEGIN SELECT RAISE(ABORT, 'audit lines are never changed'); END""",
        """CREATE TRIGGER audit_remains BEFORE DELETE ON audit
            BEGIN SELECT RAISE(ABORT, 'audit lines are never removed'); END""",
        """CREATE TABLE datasets (
            name TEXT PRIMARY KEY, body BLOB NOT NULL, enabled INTEGER NOT NULL,
            added REAL NOT NULL, actor TEXT NOT NULL) STRICT, WITHOUT ROWID""",
        """CREATE TABLE studies (
            digest TEXT PRIMARY KEY, name TEXT NOT NULL, body BLOB NOT NULL,
            state TEXT NOT NULL, offered REAL NOT NULL, actor TEXT NOT NULL,
            reason TEXT NOT NULL, decided REAL NOT NULL, until TEXT NOT NULL,
            datasets TEXT NOT NULL) STRICT, WITHOUT ROWID""",
        """CREATE TABLE plans (
            digest TEXT PRIMARY KEY, name TEXT NOT NULL, body BLOB NOT NULL,
            author TEXT NOT NULL, state TEXT NOT NULL, offered REAL NOT NULL,
            actor TEXT NOT NULL, reason TEXT NOT NULL, decided REAL NOT NULL,
            approved REAL NOT NULL, until TEXT NOT NULL, arguments TEXT NOT NULL,
            studies TEXT NOT NULL) STRICT, WITHOUT ROWID""",
        "CREATE INDEX plans_by_name ON plans (name, approved)",
        """CREATE TABLE offers (
            plan TEXT NOT NULL, study TEXT NOT NULL, PRIMARY KEY (plan, study))
            STRICT, WITHOUT ROWID""",
        """CREATE TABLE leases (
            id TEXT PRIMARY KEY, at REAL NOT NULL, settled INTEGER NOT NULL,
            lease BLOB, report BLOB, frame TEXT) STRICT, WITHOUT ROWID""",
        "CREATE INDEX leases_open ON leases (settled) WHERE settled = 0",
        """CREATE TABLE failures (
            plan TEXT NOT NULL, day TEXT NOT NULL, count INTEGER NOT NULL,
            PRIMARY KEY (plan, day)) STRICT, WITHOUT ROWID""",
    ),
    (  # the privacy ledger (node.ledger)
        """CREATE TABLE budget_entries (
            seq INTEGER PRIMARY KEY, lease TEXT NOT NULL, body TEXT NOT NULL,
            digest TEXT NOT NULL) STRICT""",
        "CREATE INDEX budget_entries_by_lease ON budget_entries (lease, seq)",
        """CREATE TRIGGER budget_stays BEFORE UPDATE ON budget_entries
            BEGIN SELECT RAISE(ABORT, 'ledger entries are never changed'); END""",
        """CREATE TRIGGER budget_remains BEFORE DELETE ON budget_entries
            BEGIN SELECT RAISE(ABORT, 'ledger entries are never removed'); END""",
        """CREATE TABLE budget_orders (
            id INTEGER PRIMARY KEY CHECK (id = 1), orders TEXT NOT NULL) STRICT""",
        """CREATE TABLE budget_spends (
            lease TEXT PRIMARY KEY, run INTEGER NOT NULL, state TEXT NOT NULL,
            reserve INTEGER NOT NULL REFERENCES budget_entries (seq)) STRICT, WITHOUT ROWID""",
        """CREATE INDEX budget_open ON budget_spends (state)
            WHERE state IN ('reserved', 'started')""",
        """CREATE TABLE budget_totals (
            kind TEXT NOT NULL, name TEXT NOT NULL, total TEXT NOT NULL,
            PRIMARY KEY (kind, name)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE budget_places (
            dataset TEXT PRIMARY KEY, universe TEXT NOT NULL) STRICT, WITHOUT ROWID""",
        """CREATE TABLE budget_caps (
            kind TEXT NOT NULL, name TEXT NOT NULL, epsilon REAL NOT NULL,
            delta REAL NOT NULL, PRIMARY KEY (kind, name)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE budget_mirrors (
            length INTEGER NOT NULL, digest TEXT NOT NULL, accepted INTEGER NOT NULL,
            PRIMARY KEY (length, digest)) STRICT, WITHOUT ROWID""",
    ),
    (  # secure aggregation (node.peers, node.masking)
        """CREATE TABLE peers (
            site TEXT PRIMARY KEY, key BLOB NOT NULL) STRICT, WITHOUT ROWID""",
        """CREATE TABLE pins (
            study TEXT NOT NULL, site TEXT NOT NULL, key BLOB NOT NULL,
            PRIMARY KEY (study, site)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE masked (
            lease TEXT PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL,
            heard TEXT NOT NULL, member BLOB NOT NULL, said BLOB NOT NULL)
            STRICT, WITHOUT ROWID""",
    ),
    (  # disclosure control (node.disclosure, node.numbers)
        """CREATE TABLE disclosed_metrics (
            dataset TEXT NOT NULL, day TEXT NOT NULL, count INTEGER NOT NULL,
            PRIMARY KEY (dataset, day)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE disclosed_universes (
            name TEXT PRIMARY KEY, salt BLOB NOT NULL, ids BLOB NOT NULL) STRICT""",
        """CREATE TABLE disclosed_groups (
            seq INTEGER PRIMARY KEY, universe TEXT NOT NULL, predicate TEXT NOT NULL,
            at REAL NOT NULL, members BLOB NOT NULL) STRICT""",
        "CREATE INDEX disclosed_groups_by_universe ON disclosed_groups (universe, seq)",
        """CREATE TABLE disclosed_answers (
            universe TEXT NOT NULL, query TEXT NOT NULL, rules TEXT NOT NULL,
            at REAL NOT NULL, groups TEXT NOT NULL, body BLOB NOT NULL,
            PRIMARY KEY (universe, query, rules)) STRICT, WITHOUT ROWID""",
        """CREATE TRIGGER disclosed_stays BEFORE UPDATE ON disclosed_groups
            BEGIN SELECT RAISE(ABORT, 'what was answered is never changed'); END""",
        """CREATE TRIGGER disclosed_remains BEFORE DELETE ON disclosed_groups
            BEGIN SELECT RAISE(ABORT, 'what was answered is never forgotten'); END""",
    ),
    (  # what the hub signed of its own trail (node.heads)
        """CREATE TABLE hub_heads (
            length INTEGER NOT NULL, digest TEXT NOT NULL, at REAL NOT NULL,
            problem TEXT NOT NULL, sealed BLOB NOT NULL,
            PRIMARY KEY (length, digest, problem)) STRICT, WITHOUT ROWID""",
    ),
    (  # of what a plan makes of a model, the one sum this site helps to open (node.masking)
        """CREATE TABLE sums (
            id TEXT PRIMARY KEY, survivors TEXT NOT NULL) STRICT, WITHOUT ROWID""",
    ),
    (  # who reviewed a plan, what was asked, which policies held (node.review, .policyhistory)
        """CREATE TABLE signoffs (
            plan TEXT NOT NULL, reviewer TEXT NOT NULL, at REAL NOT NULL,
            reason TEXT NOT NULL, terms TEXT NOT NULL, PRIMARY KEY (plan, reviewer))
            STRICT, WITHOUT ROWID""",
        """CREATE TABLE plan_signers (
            plan TEXT PRIMARY KEY, via TEXT NOT NULL, names TEXT NOT NULL)
            STRICT, WITHOUT ROWID""",
        """CREATE TABLE plan_classes (
            name TEXT PRIMARY KEY, at REAL NOT NULL, names TEXT NOT NULL,
            reason TEXT NOT NULL, until TEXT NOT NULL, studies TEXT NOT NULL)
            STRICT, WITHOUT ROWID""",
        """CREATE TABLE plan_reviews (
            plan TEXT NOT NULL, site TEXT NOT NULL, reviewer TEXT NOT NULL,
            at REAL NOT NULL, sealed BLOB NOT NULL, PRIMARY KEY (plan, site, reviewer))
            STRICT, WITHOUT ROWID""",
        """CREATE TABLE policies (
            seq INTEGER PRIMARY KEY, at REAL NOT NULL, actor TEXT NOT NULL,
            digest TEXT NOT NULL, body TEXT NOT NULL) STRICT""",
        """CREATE TABLE requests (
            day TEXT NOT NULL, digest TEXT NOT NULL, count INTEGER NOT NULL,
            allowed INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (day, digest))
            STRICT, WITHOUT ROWID""",
        """CREATE TABLE study_jobs (
            study TEXT NOT NULL, job TEXT NOT NULL, PRIMARY KEY (study, job))
            STRICT, WITHOUT ROWID""",
        """CREATE TABLE attempts (
            digest TEXT PRIMARY KEY, day TEXT NOT NULL) STRICT, WITHOUT ROWID""",
    ),
    (  # people's accounts at the console (consilia.accounts.store)
        """CREATE TABLE accounts (
            name TEXT PRIMARY KEY, password TEXT NOT NULL, roles TEXT NOT NULL,
            created REAL NOT NULL, actor TEXT NOT NULL, disabled INTEGER NOT NULL,
            secret TEXT NOT NULL, step INTEGER NOT NULL, proposed TEXT NOT NULL,
            last REAL NOT NULL, epoch INTEGER NOT NULL) STRICT, WITHOUT ROWID""",
        """CREATE TABLE account_attempts (
            name TEXT PRIMARY KEY, failures INTEGER NOT NULL, until REAL NOT NULL,
            at REAL NOT NULL) STRICT, WITHOUT ROWID""",
        """CREATE TABLE account_sessions (
            digest TEXT PRIMARY KEY, account TEXT NOT NULL, started REAL NOT NULL,
            seen REAL NOT NULL, epoch INTEGER NOT NULL) STRICT""",
        """CREATE TABLE account_invitations (
            id TEXT PRIMARY KEY, digest TEXT NOT NULL UNIQUE, roles TEXT NOT NULL,
            actor TEXT NOT NULL, expires REAL NOT NULL) STRICT, WITHOUT ROWID""",
    ),
    (  # schemas' versions, profiles, noticed changes, what twins were told (node.datasets)
        """CREATE TABLE dataset_schemas (
            dataset TEXT NOT NULL, version INTEGER NOT NULL, at REAL NOT NULL,
            actor TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (dataset, version))
            STRICT, WITHOUT ROWID""",
        """CREATE TABLE dataset_profiles (
            dataset TEXT PRIMARY KEY, digest TEXT NOT NULL, at REAL NOT NULL,
            body BLOB NOT NULL) STRICT, WITHOUT ROWID""",
        """CREATE TABLE dataset_changes (
            dataset TEXT PRIMARY KEY, at REAL NOT NULL, what TEXT NOT NULL)
            STRICT, WITHOUT ROWID""",
        """CREATE TABLE dataset_twins (
            dataset TEXT PRIMARY KEY, at REAL NOT NULL, basis BLOB NOT NULL,
            body BLOB NOT NULL) STRICT, WITHOUT ROWID""",
    ),
    (  # data loading plans, and patients who opted out (node.loading, node.optout)
        """CREATE TABLE loading_plans (
            name TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL,
            body BLOB NOT NULL, at REAL NOT NULL, actor TEXT NOT NULL,
            PRIMARY KEY (name, version)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE loading_attached (
            dataset TEXT NOT NULL, study TEXT NOT NULL, plan TEXT NOT NULL,
            version INTEGER NOT NULL, at REAL NOT NULL, actor TEXT NOT NULL,
            PRIMARY KEY (dataset, study)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE loading_facts (
            dataset TEXT NOT NULL, source TEXT NOT NULL, records INTEGER NOT NULL,
            columns BLOB NOT NULL, rows BLOB NOT NULL, patients BLOB NOT NULL,
            PRIMARY KEY (dataset, source)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE optouts (
            patient BLOB PRIMARY KEY, at REAL NOT NULL, actor TEXT NOT NULL)
            STRICT, WITHOUT ROWID""",
        """CREATE TABLE optout_used (
            dataset TEXT PRIMARY KEY, at REAL NOT NULL, patients BLOB NOT NULL)
            STRICT, WITHOUT ROWID""",
    ),
    (  # jobs that the site's staff have stopped (node.stops)
        """CREATE TABLE stopped_jobs (
            job TEXT PRIMARY KEY, at REAL NOT NULL, actor TEXT NOT NULL)
            STRICT, WITHOUT ROWID""",
    ),
    (  # studies whose key is destroyed, closed segments of the audit trail (.purge, .segments)
        """CREATE TABLE study_ends (
            study TEXT PRIMARY KEY, at REAL NOT NULL, actor TEXT NOT NULL,
            reason TEXT NOT NULL, done INTEGER NOT NULL) STRICT, WITHOUT ROWID""",
        """CREATE TABLE audit_segments (
            number INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL,
            after TEXT NOT NULL, head TEXT NOT NULL, at REAL NOT NULL) STRICT""",
        """CREATE TRIGGER segment_stays BEFORE UPDATE ON audit_segments
            BEGIN SELECT RAISE(ABORT, 'closed segments are never changed'); END""",
        """CREATE TRIGGER segment_remains BEFORE DELETE ON audit_segments
            BEGIN SELECT RAISE(ABORT, 'closed segments are never forgotten'); END""",
        "DROP TRIGGER audit_remains",
        """CREATE TRIGGER audit_remains BEFORE DELETE ON audit
            WHEN old.seq > (SELECT coalesce(max(last), 0) FROM audit_segments)
            BEGIN SELECT RAISE(ABORT, 'audit lines are never removed'); END""",
    ),
    (  # accounts that the hospital's directory answers for (consilia.accounts.links)
        """CREATE TABLE account_links (
            account TEXT PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL,
            checked REAL NOT NULL, UNIQUE (kind, subject)) STRICT, WITHOUT ROWID""",
    ),
    (  # higher caps that wait for a second person (.caps)
        """CREATE TABLE cap_proposals (
            kind TEXT NOT NULL, name TEXT NOT NULL, epsilon REAL, delta REAL,
            actor TEXT NOT NULL, at REAL NOT NULL, reason TEXT NOT NULL,
            PRIMARY KEY (kind, name)) STRICT, WITHOUT ROWID""",
    ),
    (  # datasets pooled at a study's data centre (.pool)
        """CREATE TABLE pooled (
            study TEXT NOT NULL, site TEXT NOT NULL, role TEXT NOT NULL, upload TEXT NOT NULL,
            state TEXT NOT NULL, dataset TEXT NOT NULL, records INTEGER NOT NULL,
            digest TEXT NOT NULL, told BLOB NOT NULL, at REAL NOT NULL, actor TEXT NOT NULL,
            PRIMARY KEY (study, site)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE pool_channels (
            study TEXT PRIMARY KEY, private BLOB NOT NULL, told BLOB NOT NULL,
            at REAL NOT NULL, actor TEXT NOT NULL) STRICT, WITHOUT ROWID""",
    ),
    (  # uploads that were taken or withdrawn: one that is told again counts for nothing (.pool)
        """CREATE TABLE pool_spent (
            study TEXT NOT NULL, site TEXT NOT NULL, upload TEXT NOT NULL,
            PRIMARY KEY (study, site, upload)) STRICT, WITHOUT ROWID""",
        """INSERT INTO pool_spent
            SELECT study, site, upload FROM pooled WHERE role = 'holder'""",
    ),
    (  # mock twins of datasets as their loading plans make them (.loadedtwins)
        """CREATE TABLE loaded_twins (
            dataset TEXT NOT NULL, study TEXT NOT NULL, source TEXT NOT NULL, at REAL NOT NULL,
            problem TEXT NOT NULL, basis BLOB NOT NULL, body BLOB NOT NULL,
            PRIMARY KEY (dataset, study)) STRICT, WITHOUT ROWID""",
        # one person's word on a restored ledger, until a second one's (.restores)
        """CREATE TABLE restores_asked (
            id INTEGER PRIMARY KEY CHECK (id = 1), length INTEGER NOT NULL,
            digest TEXT NOT NULL, actor TEXT NOT NULL, at REAL NOT NULL,
            reason TEXT NOT NULL) STRICT""",
    ),
)


class Transaction:
    """What a `write()` block may do. Valid inside that block only."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Run one statement; return how many rows it changed."""
        return self._connection.execute(sql, values).rowcount

    def rows(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """Read inside the transaction."""
        return self._connection.execute(sql, values).fetchall()

    def touch(self) -> None:
        """Say that this transaction changes what may run."""
        self._connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'revision'")

    def audit(  # noqa: PLR0913, PLR0917 - the fields of a line, in its order
        self,
        at: float,
        actor: str,
        action: str,
        subject: str,
        outcome: str,
        detail: str = "",
    ) -> chain.Line:
        """Append a line to the audit chain; it is committed with the rest or not at all."""
        last = self.rows("SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1")
        seq, head = last[0] if last else (0, chain.GENESIS)
        line = chain.Line(
            seq + 1,
            at,
            printable(actor, 200),
            action,
            printable(subject, 400),
            outcome,
            printable(detail, MAX_DETAIL),
        )
        self.execute(
            "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(line.seq, line.at, line.actor, line.action),
                *(line.subject, line.outcome, line.detail, chain.link(head, line)),
            ),
        )
        return line


class Store:
    """The node's database. Any thread may use it; writers take turns."""

    def __init__(self, path: Path) -> None:
        """Use `Store.open`."""
        self.path = path
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._writer = _connect(path)
        try:
            self._reader = _connect(path)
        except BaseException:
            self._writer.close()
            raise
        self._seen: tuple[int, int] | None = None  # (data_version, revision)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open or create DIR/node.sqlite (0600) and bring its tables up to date."""
        path = directory / FILE
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as e:
            raise StorageError(f"{path} cannot be opened: {e.strerror}") from None
        store = cls(path)
        try:
            store._migrate()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close both connections; a second call does nothing."""
        with self._writing, self._reading:
            self._writer.close()
            self._reader.close()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Run a block as one transaction: all of it is durable afterwards, or nothing."""
        with self._writing:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield Transaction(self._writer)
                    self._writer.execute("COMMIT")
                finally:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
            except sqlite3.Error as e:
                raise _storage_error(self.path, e) from e

    def rows(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """Read what is committed."""
        with self._reading:
            try:
                return self._reader.execute(sql, values).fetchall()
            except sqlite3.Error as e:
                raise _storage_error(self.path, e) from e

    def revision(self) -> int:
        """Return a number that grows whenever what may run has changed. Microseconds."""
        with self._reading:
            try:
                version = int(self._reader.execute("PRAGMA data_version").fetchone()[0])
                if self._seen is None or self._seen[0] != version:
                    found = self._reader.execute(
                        "SELECT value FROM meta WHERE key = 'revision'"
                    ).fetchone()
                    self._seen = (version, int(found[0]))
                return self._seen[1]
            except sqlite3.Error as e:
                raise _storage_error(self.path, e) from e

    def _migrate(self) -> None:
        with self.write() as tx:
            (found,) = tx.rows("PRAGMA user_version")[0]
            if found > len(_MIGRATIONS):
                raise StorageError(
                    f"{self.path} was written by a newer Consilia (schema {found}, this one "
                    f"knows {len(_MIGRATIONS)}); install that release again"
                )
            for step in _MIGRATIONS[found:]:
                for statement in step:
                    tx.execute(statement)
            if found < len(_MIGRATIONS):
                tx.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")


def printable(text: str, limit: int) -> str:
    """Return `text` as one line that no terminal can be fooled with, at most `limit` long."""
    clean = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 6] + " (cut)"


def reason_of(text: str) -> str:
    """Return a reason as it is kept; ConfigError where there is none."""
    words = printable(text.strip(), MAX_REASON)
    if not words:
        raise ConfigError(
            Wrong("reason", "none", "a sentence: it stays on record at this site")
        )
    return words


def hashed_name(word: str) -> str:
    """Return a file name for an id that comes from outside: it cannot leave its folder."""
    return hashlib.sha256(word.encode()).hexdigest()[:32]


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as e:
        raise _storage_error(path, e) from e
    try:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error as e:
        connection.close()
        raise _storage_error(path, e) from e
    return connection


def _storage_error(path: Path, e: sqlite3.Error) -> StorageError:
    return StorageError(
        f"{path}: {e}. Nothing of this step was stored; check the disk's free space "
        "and the file's permissions"
    )
