"""The node's audit trail: who did what, on what, with which outcome. Never records or values.

Lines are appended by `Transaction.audit` (node.store) in the transaction of what they tell.
Here they are read, checked and exported. The head travels to the hub inside the signed
advertisement, so the node cannot rewrite its history unseen.
"""

from collections.abc import Iterator

from consilia.core import chain
from consilia.node.store import Row, Store
from consilia.wire import trail

_COLUMNS = "seq, at, actor, action, subject, outcome, detail, digest"
_PAGE = 1000


def lines(store: Store, after: int = 0, limit: int = _PAGE) -> list[tuple[chain.Line, str]]:
    """Return up to `limit` (line, digest) pairs with seq greater than `after`, in order."""
    rows = store.rows(
        f"SELECT {_COLUMNS} FROM audit WHERE seq > ? ORDER BY seq LIMIT ?",  # noqa: S608
        (after, limit),
    )
    return [_pair(row) for row in rows]


def every(store: Store) -> Iterator[tuple[chain.Line, str]]:
    """Yield the whole trail, a page at a time."""
    after = 0
    while page := lines(store, after):
        yield from page
        after = page[-1][0].seq


def latest(store: Store, count: int) -> list[tuple[chain.Line, str]]:
    """Return the last `count` lines, oldest first."""
    length, _ = head(store)
    return lines(store, max(0, length - count), count)


def head(store: Store) -> tuple[int, str]:
    """Return how many lines there are and the digest of the last."""
    rows = store.rows("SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1")
    return (rows[0][0], rows[0][1]) if rows else (0, chain.GENESIS)


def verify(
    store: Store, length: int = 0, digest: str = chain.GENESIS
) -> chain.Break | tuple[int, str]:
    """Check every line, and that the trail holds a head that was kept; see wire.trail."""
    return trail.check(every(store), length, digest)


def export(store: Store, format: trail.Format) -> Iterator[str]:
    """Yield the trail as CSV with a header, or as one JSON object per line."""
    return trail.export(every(store), format)


def _pair(row: Row) -> tuple[chain.Line, str]:
    *fields, digest = row
    return chain.Line(*fields), digest
