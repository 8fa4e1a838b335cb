"""The hub's audit chain: who did what, when, on what, with what outcome.

A line is appended in the transaction that it records, so neither is there without the other.
Lines are hash-chained (core.chain): who kept an earlier head can prove any later change to what
came before it (`check`). Lines never hold records, values or secrets.

Several hub processes on one PostgreSQL append one after another: each takes an advisory lock
that its COMMIT releases. Within a process, and on SQLite, the single writer gives the order.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from consilia.core.chain import GENESIS, Break, Line, link
from consilia.hub.tables import audit
from consilia.wire import trail
from consilia.wire.seal import seal
from consilia.wire.v1 import AuditHead, Sealed, encode

CONTEXT = "audit-head"
MAX_TEXT = 2000  # characters of one field
# Written out, as the journal's: many reads leave a line each.
_LOCK = "SELECT pg_advisory_xact_lock(1668183910)"
_HEAD = "SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1"
_INSERT = """
INSERT INTO audit (seq, at, actor, action, subject, outcome, detail, digest)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
# One statement whatever the number of lines: a statement for each cost more than the rest.
_INSERT_ARRAYS = """
INSERT INTO audit (seq, at, actor, action, subject, outcome, detail, digest)
SELECT * FROM unnest(%s::bigint[], %s::float8[], %s::text[], %s::text[], %s::text[],
                     %s::text[], %s::text[], %s::text[])
"""
_LOCKED = "consilia-audit-lock"  # the transaction that holds it, in the connection's `info`
_AFTER = sa.select(audit).where(audit.c.seq > sa.bindparam("after")).order_by(audit.c.seq)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line with its digest."""

    line: Line
    digest: str


@dataclass(frozen=True, slots=True)
class Event:
    """What a line is to say; see `append`."""

    at: float
    actor: str
    action: str
    subject: str
    outcome: str = "done"
    detail: str = ""


def append(  # noqa: PLR0913 - a line has this many parts
    db: Connection,
    at: float,
    actor: str,
    action: str,
    subject: str,
    *,
    outcome: str = "done",
    detail: str = "",
) -> Entry:
    """Append one line, to be called inside the transaction of what it records.

    `actor` is `user:<name>`, `site:<name>` or `hub`, `action` is `<thing>.<verb>`. Text from
    outside is cut at MAX_TEXT and cleared of what a database cannot hold (NUL, lone
    surrogates): no line is lost over it.
    """
    (entry,) = append_all(db, [Event(at, actor, action, subject, outcome, detail)])
    return entry


def append_all(db: Connection, events: Iterable[Event]) -> list[Entry]:
    """Append several lines as `append` does, with one look at the chain's end."""
    _lock(db)
    length, previous = head(db)
    entries: list[Entry] = []
    for e in events:
        texts = map(_storable, (e.actor, e.action, e.subject, e.outcome, e.detail))
        line = Line(length + len(entries) + 1, float(e.at), *texts)
        previous = link(previous, line)
        entries.append(Entry(line, previous))
    rows = [(*_values(entry.line), entry.digest) for entry in entries]
    if rows and db.dialect.name == "postgresql":
        db.exec_driver_sql(_INSERT_ARRAYS, tuple(map(list, zip(*rows, strict=True))))
    elif rows:
        db.exec_driver_sql(_INSERT, rows)
    return entries


def _values(line: Line) -> tuple[int | float | str, ...]:
    return (
        line.seq,
        line.at,
        line.actor,
        line.action,
        line.subject,
        line.outcome,
        line.detail,
    )


def _lock(db: Connection) -> None:
    """Wait until no other process appends; asked for once in each transaction.

    Each time within a savepoint, for its rollback would give the lock back.
    """
    if db.dialect.name != "postgresql" or db.info.get(_LOCKED) is db.get_transaction():
        return
    db.exec_driver_sql(_LOCK)
    if not db.in_nested_transaction():
        db.info[_LOCKED] = db.get_transaction()


def head(db: Connection) -> tuple[int, str]:
    """The chain's length and the digest of its last line."""
    row = db.exec_driver_sql(_HEAD).first()
    return (row.seq, row.digest) if row else (0, GENESIS)


def signed_head(db: Connection, key: Ed25519PrivateKey, hub: str = "hub") -> Sealed:
    """The head as wire.v1.AuditHead, sealed by the hub for the context "audit-head"."""
    length, digest = head(db)
    return seal(CONTEXT, hub, encode(AuditHead(length, digest)), key)


def lines(db: Connection, after: int = 0, limit: int | None = None) -> Iterator[Entry]:
    """Lines after number `after`, in order, read in batches: use it inside the transaction."""
    query = _AFTER if limit is None else _AFTER.limit(limit)
    rows = db.execution_options(yield_per=1000).execute(query, {"after": after})
    for row in rows:
        yield Entry(_line(row), row.digest)


def about(
    db: Connection, subjects: Sequence[str], after: int = 0, limit: int = 100
) -> list[Entry]:
    """Lines after number `after` whose subject is one of `subjects`, in order."""
    found = (
        sa.select(audit)
        .where(audit.c.seq > after, audit.c.subject.in_(subjects))
        .order_by(audit.c.seq)
        .limit(limit)
    )
    return [Entry(_line(r), r.digest) for r in db.execute(found)]


def check(db: Connection, length: int = 0, digest: str = GENESIS) -> Break | tuple[int, str]:
    """Check the whole chain, and that it holds a head kept earlier; see wire.trail."""
    return trail.check(((e.line, e.digest) for e in lines(db)), length, digest)


def _line(row: Any) -> Line:
    return Line(row.seq, row.at, row.actor, row.action, row.subject, row.outcome, row.detail)


def _storable(text: str) -> str:
    cleared = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return cleared if len(cleared) <= MAX_TEXT else cleared[: MAX_TEXT - 1] + "…"
