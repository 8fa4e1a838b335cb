"""The privacy ledger's entries: appended, read, checked and exported; never changed.

Each entry is one line of JSON, chained by digest to the one before (privacy.ledger). The head
travels to the hub inside the signed advertisement, so a ledger that was put back to an older
state is noticed (node.budget). Totals and states in other tables can be found again from the
entries alone: `verify` does so and compares.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from consilia.core.chain import GENESIS, Break
from consilia.node.store import Row, Store, Transaction
from consilia.privacy import ledger as rules
from consilia.privacy.ledger import EMPTY, Entry, Head, Vector
from consilia.wire import trail

_PAGE = 1000
_HEAD = "SELECT seq, digest FROM budget_entries ORDER BY seq DESC LIMIT 1"
_COLUMNS = (
    *("seq", "at", "kind", "lease", "run", "job", "universe", "dataset", "study"),
    *("researcher", "level", "epsilon", "delta", "actor", "detail"),
)


def append(tx: Transaction, entry: Entry) -> int:
    """Append an entry, whatever its `seq` says; return the number it got."""
    last = head_in(tx)
    seq = last.length + 1
    text = rules.body(replace(entry, seq=seq))
    tx.execute(
        "INSERT INTO budget_entries VALUES (?, ?, ?, ?)",
        (seq, entry.lease, text, rules.link(last.digest, text)),
    )
    return seq


def head(store: Store) -> Head:
    """Return how many entries there are and the digest of the last: what the hub mirrors."""
    return _head(store.rows(_HEAD))


def head_in(tx: Transaction) -> Head:
    """As `head`, inside a transaction."""
    return _head(tx.rows(_HEAD))


def history(store: Store, after: int = 0, limit: int = _PAGE) -> list[Entry]:
    """Return up to `limit` entries with a number above `after`, oldest first."""
    return [rules.read(text) for text, _ in _lines(store, after, limit)]


def latest(store: Store, count: int) -> list[Entry]:
    """Return the last `count` entries, oldest first."""
    return history(store, max(0, head(store).length - count), count)


def export_csv(store: Store) -> Iterator[str]:
    """Yield every entry as CSV, a header first. `epsilon` is of the entry alone, at `delta`."""
    yield trail.row((*_COLUMNS, "digest"))
    for text, digest in _every(store):
        entry = rules.read(text)
        yield trail.row((*(getattr(entry, name) for name in _COLUMNS), digest))


def verify(store: Store) -> Break | Head:
    """Check the chain, and that totals, states and caps are what its entries add up to."""
    books, head = _Books(), EMPTY
    while page := _lines(store, head.length, _PAGE):
        found = books.enter(page, head)
        if isinstance(found, Break):
            return found
        head = found
    with store.write() as tx:  # what was written meanwhile, and the tables of that moment
        found = books.enter(_lines(tx, head.length, -1), head)
        return found if isinstance(found, Break) else books.differs(tx, found) or found


@dataclass(slots=True)
class _Books:
    """What the entries add up to."""

    totals: dict[tuple[str, str], Vector] = field(default_factory=dict)
    states: dict[str, tuple[int, str]] = field(default_factory=dict)
    caps: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    accounts: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # by lease

    def enter(self, lines: list[tuple[str, str]], after: Head) -> Break | Head:
        """Check the next lines and take them in; return the first break, or the new head."""
        found = rules.verify(lines, after)
        if isinstance(found, Head):
            for text, _ in lines:
                self._take(rules.read(text))
        return found

    def _take(self, entry: Entry) -> None:
        if entry.kind == "reserve":
            self.accounts[entry.lease] = names(entry)
        if entry.kind in _STATES:
            self.states[entry.lease] = (entry.run, _STATES[entry.kind])
            for key in self.accounts[entry.lease]:
                self.totals[key] = rules.add(self.totals.get(key, ()), entry.change)
        if entry.kind == "cap":
            self.caps[names(entry)[0]] = (entry.epsilon, entry.delta)
        elif entry.kind == "uncap":
            del self.caps[names(entry)[0]]

    def differs(self, tx: Transaction, head: Head) -> Break | None:
        """Return the first table that says something else."""
        totals = tx.rows("SELECT kind, name, total FROM budget_totals")
        states = tx.rows("SELECT lease, run, state FROM budget_spends")
        caps = tx.rows("SELECT kind, name, epsilon, delta FROM budget_caps")
        for what, here, kept in (
            ("totals", self.totals, {(k, n): tuple(json.loads(t)) for k, n, t in totals}),
            ("states", self.states, {lease: (run, state) for lease, run, state in states}),
            ("caps", self.caps, {(k, n): (e, d) for k, n, e, d in caps}),
        ):
            if here != kept:
                return Break(head.length, f"the {what} are not what the entries add up to")
        return None


_STATES = {
    "reserve": "reserved",
    "begin": "started",
    "settle": "settled",
    "refund": "refunded",
}


def names(entry: Entry) -> list[tuple[str, str]]:
    """Return the accounts an entry names, as (kind, name)."""
    kinds = ("universe", "dataset", "study", "researcher")
    return [(kind, getattr(entry, kind)) for kind in kinds if getattr(entry, kind)]


def digest_at(tx: Transaction, seq: int) -> str | None:
    """Return the digest of one entry, None when there is no such entry."""
    if seq == 0:
        return GENESIS
    rows = tx.rows("SELECT digest FROM budget_entries WHERE seq = ?", (seq,))
    return str(rows[0][0]) if rows else None


def _head(rows: list[Row]) -> Head:
    return Head(rows[0][0], rows[0][1]) if rows else EMPTY


def _lines(source: Store | Transaction, after: int, limit: int) -> list[tuple[str, str]]:
    rows = source.rows(
        "SELECT body, digest FROM budget_entries WHERE seq > ? ORDER BY seq LIMIT ?",
        (after, limit),
    )
    return [(str(text), str(digest)) for text, digest in rows]


def _every(store: Store) -> Iterator[tuple[str, str]]:
    after = 0
    while page := _lines(store, after, _PAGE):
        yield from page
        after += len(page)
