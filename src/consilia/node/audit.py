"""The node's audit trail: who did what, on what, with which outcome. Never records or values.

Lines are appended by `Transaction.audit` (node.store) in the transaction of what they tell.
Here they are read, checked and exported, the closed segments (node.segments) before what the
database holds; who reads need not know which lies where. The head travels to the hub inside the
signed advertisement, so the node cannot rewrite its history unseen.
"""

from collections.abc import Iterator
from itertools import islice

from consilia.core import chain
from consilia.node import segments
from consilia.node.segments import COLUMNS
from consilia.node.store import Row, Store, Value
from consilia.wire import trail

_PAGE = 1000


def lines(store: Store, after: int = 0, limit: int = _PAGE) -> list[tuple[chain.Line, str]]:
    """Return up to `limit` (line, digest) pairs with seq greater than `after`, in order."""
    return list(islice(every(store, after, limit), limit))


def every(
    store: Store, after: int = 0, page: int = _PAGE, public_key: bytes | None = None
) -> Iterator[tuple[chain.Line, str]]:
    """Yield the trail after a line, from files and database, `page` rows of that at a time.

    Raises segments.Broken where a closed segment is not what it was. `public_key` as there.
    """
    while True:
        rows = store.rows(
            f"SELECT {COLUMNS} FROM audit WHERE seq > ? ORDER BY seq LIMIT ?",  # noqa: S608
            (after, page),
        )
        segment = None
        if not rows or rows[0][0] != after + 1:  # closed, or gone
            segment = segments.holding(store, after + 1)
        if segment is not None:
            for line, digest in segments.read(store, segment, public_key):
                if line.seq > after:
                    yield line, digest
            after = segment.last
        elif rows:
            yield from map(_pair, rows)
            after = rows[-1][0]
        else:
            return


def find(store: Store, condition: str, values: tuple[Value, ...], limit: int) -> list[Row]:
    """Return up to `limit` rows of COLUMNS that fit, newest first. `condition` is SQL."""
    sql = f"SELECT {COLUMNS} FROM audit WHERE {condition} ORDER BY seq DESC LIMIT ?"  # noqa: S608
    found = store.rows(sql, (*values, limit))
    for segment in reversed(segments.closed(store)):
        if len(found) >= limit:
            break
        found += segments.rows(store, segment, sql, (*values, limit - len(found)))
    return found


def latest(store: Store, count: int) -> list[tuple[chain.Line, str]]:
    """Return the last `count` lines, oldest first."""
    length, _ = head(store)
    return lines(store, max(0, length - count), count)


def head(store: Store) -> tuple[int, str]:
    """Return how many lines there are and the digest of the last."""
    rows = store.rows("SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1")
    return (rows[0][0], rows[0][1]) if rows else (0, chain.GENESIS)


def verify(
    store: Store,
    length: int = 0,
    digest: str = chain.GENESIS,
    public_key: bytes | None = None,
) -> chain.Break | tuple[int, str]:
    """Check every line of all segments, and that the trail holds a kept head; see wire.trail.

    `public_key` is the node's: with it the signatures of closed segments are checked too.
    """
    try:
        return trail.check(every(store, public_key=public_key), length, digest)
    except segments.Broken as e:
        return chain.Break(e.seq, e.reason)


def export(store: Store, format: trail.Format) -> Iterator[str]:
    """Yield the trail as CSV with a header, or as one JSON object per line."""
    return trail.export(every(store), format)


def _pair(row: Row) -> tuple[chain.Line, str]:
    *fields, digest = row
    return chain.Line(*fields), digest
