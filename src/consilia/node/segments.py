"""Closed segments of the node's audit trail: DIR/audit/<number>.jsonl, one after the other.

The trail grows for ever, so a part that has reached SEGMENT_BYTES is closed: its lines move
from the database into a file of its own. A file is JSON lines, readable without Consilia:

    {"format", "site", "number", "first", "after"}       after: digest of the line before it
    one line of the trail each, in the form of `consilia audit export --format json`
    {"last", "head", "at", "sealed"}                     sealed: the head, signed by the node

Each begins with the digest that the last one ended with, so the chain of lines (core.chain)
goes on across files. Which segments there are stands in the database as well; lines leave it in
the transaction that says so, when their file is on the disk. A crash before leaves a file that
the next closing writes again.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core import chain
from consilia.errors import AuthError, StorageError, WireError
from consilia.files import write_whole
from consilia.node.store import Row, Store, Value
from consilia.wire import trail
from consilia.wire.seal import open_sealed, seal
from consilia.wire.v1 import AuditHead, Sealed, decode, encode

FOLDER = "audit"
FORMAT = "consilia audit segment 1"
CONTEXT = "audit-segment"
SEGMENT_BYTES = 8 << 20  # of the lines' text, about: some ten thousand lines
COLUMNS = "seq, at, actor, action, subject, outcome, detail, digest"
_PER_LINE = 120  # bytes of a line's digest, names and marks
_FIELDS = COLUMNS.split(", ")

Pair = tuple[chain.Line, str]


@dataclass(frozen=True, slots=True)
class Segment:
    """One closed segment. `after` and `head` are the digests before and at its last line."""

    number: int  # from 1
    first: int  # line
    last: int
    after: str
    head: str
    at: float  # closed, Unix seconds


class Broken(StorageError):
    """A segment that is not what was closed; `seq` is the first line that is not there."""

    def __init__(self, seq: int, reason: str) -> None:
        """Keep the place beside the words."""
        super().__init__(f"the audit trail is broken at line {seq}: {reason}")
        self.seq = seq
        self.reason = reason


def closed(store: Store) -> list[Segment]:
    """Return the closed segments, in order."""
    sql = "SELECT number, first, last, after, head, at FROM audit_segments ORDER BY number"
    return [Segment(*row) for row in store.rows(sql)]


def holding(store: Store, seq: int) -> Segment | None:
    """Return the closed segment that holds a line, None for a line that is not closed."""
    return next((s for s in closed(store) if s.first <= seq <= s.last), None)


def path_of(store: Store, segment: Segment) -> Path:
    """Return where a segment's file lies."""
    return store.path.parent / FOLDER / f"{segment.number:06}.jsonl"


def close(
    store: Store, key: Ed25519PrivateKey, site: str, now: float, size: int = SEGMENT_BYTES
) -> Segment | None:
    """Close what has been written since the last segment if it has `size` bytes; else None.

    Raises StorageError with nothing changed, when the file cannot be written.
    """
    if _bytes(store) < size:
        return None
    with store.write() as tx:
        rows = tx.rows(f"SELECT {COLUMNS} FROM audit ORDER BY seq")  # noqa: S608 - constants
        before = tx.rows("SELECT number, head FROM audit_segments ORDER BY number DESC LIMIT 1")
        number, after = before[0] if before else (0, chain.GENESIS)
        first, last, head = int(rows[0][0]), int(rows[-1][0]), str(rows[-1][-1])
        segment = Segment(int(number) + 1, first, last, str(after), head, now)
        texts = _texts(segment, rows, site, key)
        write_whole(path_of(store, segment), (text.encode() for text in texts))
        tx.execute(
            "INSERT INTO audit_segments VALUES (?, ?, ?, ?, ?, ?)",
            (segment.number, first, last, segment.after, head, now),
        )
        tx.audit(
            now, "agent", "audit.close", f"segment {segment.number}", "closed",
            f"lines {first} to {last}, head {head}",
        )  # fmt: skip
        tx.execute("DELETE FROM audit WHERE seq <= ?", (last,))
    return segment


def read(store: Store, segment: Segment, public_key: bytes | None = None) -> Iterator[Pair]:
    """Yield the lines of a segment as they stand in its file; the caller checks their chain.

    `public_key` is the node's, to check the signature with. Raises Broken for a file that is
    missing, cut off, changed, or another segment's.
    """
    path, expected, head = path_of(store, segment), segment.first, segment.after
    try:
        with path.open(encoding="utf-8") as file:
            _check_start(segment, file.readline(), path)
            for text in file:
                entry = _object(text, expected, path)
                if "last" in entry:
                    _check_end(segment, entry, (expected, head), public_key, path)
                    if file.read(1):
                        raise Broken(expected, f"{path} goes on after its end")
                    return
                line, head = _pair(entry, expected, path)
                yield line, head
                expected += 1
    except (OSError, UnicodeDecodeError) as e:
        words = getattr(e, "strerror", None) or str(e)
        raise Broken(
            expected,
            f"{path}, segment {segment.number} with lines {segment.first} to {segment.last}, "
            f"cannot be read: {words}; put it back from a backup",
        ) from None
    raise Broken(expected, f"{path} is cut off: it ends before line {segment.last} does")


def rows(store: Store, segment: Segment, sql: str, values: Sequence[Value] = ()) -> list[Row]:
    """Ask a segment's lines as the table `audit` is asked. Reads the whole file."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE audit ({COLUMNS})")
        connection.executemany(
            "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (*(getattr(line, f) for f in _FIELDS[:-1]), d)
                for line, d in read(store, segment)
            ),
        )
        return connection.execute(sql, values).fetchall()


def _bytes(store: Store) -> int:
    ((size,),) = store.rows(
        "SELECT coalesce(sum(length(actor) + length(action) + length(subject) + "
        "length(outcome) + length(detail) + ?), 0) FROM audit",
        (_PER_LINE,),
    )
    return int(size)


def _texts(
    segment: Segment, rows: list[Row], site: str, key: Ed25519PrivateKey
) -> Iterator[str]:
    start = {
        "format": FORMAT,
        "site": site,
        "number": segment.number,
        "first": segment.first,
        "after": segment.after,
    }
    yield json.dumps(start) + "\n"
    yield from trail.export(((chain.Line(*row[:-1]), str(row[-1])) for row in rows), "json")
    signed = seal(CONTEXT, site, encode(AuditHead(segment.last, segment.head)), key)
    end = {
        "last": segment.last,
        "head": segment.head,
        "at": segment.at,
        "sealed": encode(signed).hex(),
    }
    yield json.dumps(end) + "\n"


def _check_start(segment: Segment, text: str, path: Path) -> None:
    start = _object(text, segment.first, path)
    found = {name: start.get(name) for name in ("format", "number", "first", "after")}
    wanted = {
        "format": FORMAT,
        "number": segment.number,
        "first": segment.first,
        "after": segment.after,
    }
    for name, value in wanted.items():
        if found[name] != value:
            raise Broken(
                segment.first,
                f"{path} is not segment {segment.number}: {name} is {str(found[name])[:80]!r}, "
                f"needed {value!r}",
            )


def _check_end(
    segment: Segment,
    end: dict[str, Any],
    read: tuple[int, str],
    key: bytes | None,
    path: Path,
) -> None:
    """Check a file's last line; `read`: the number of the line after, and the last digest."""
    reached, head = read
    if reached != segment.last + 1:
        raise Broken(reached, f"{path} ends before line {segment.last}")
    if {head, end.get("head")} != {segment.head} or end.get("last") != segment.last:
        raise Broken(
            segment.last, f"{path} ends with another head than the one it was closed at"
        )
    if key is None:
        return
    try:
        signed = decode(bytes.fromhex(str(end.get("sealed"))), Sealed)
        named = decode(open_sealed(signed, CONTEXT, key), AuditHead)
    except (AuthError, WireError, ValueError) as e:
        raise Broken(
            segment.last, f"{path}: its head is not signed by this node: {e}"
        ) from None
    if named != AuditHead(segment.last, segment.head):
        raise Broken(segment.last, f"{path}: the signature is for another head")


def _object(text: str, seq: int, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Broken(seq, f"{path} holds something else there than a line of the trail")
    return found


def _pair(entry: dict[str, Any], seq: int, path: Path) -> Pair:
    if list(entry) != _FIELDS:
        raise Broken(seq, f"{path} holds something else there than a line of the trail")
    *fields, digest = entry.values()
    return chain.Line(*fields), str(digest)
