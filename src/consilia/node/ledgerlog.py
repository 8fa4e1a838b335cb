"""The privacy ledger's entries: appended, read, checked and exported; never changed.

Each entry is one line of JSON, chained by digest to the one before (privacy.ledger). The head
travels to the hub inside the signed advertisement, so a ledger that was put back to an older
state is noticed (node.budget). Totals and states in other tables can be found again from the
entries alone: `verify` does so and compares.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from consilia.core.chain import GENESIS, Break
from consilia.node.store import Row, Store, Transaction
from consilia.privacy import ledger as rules
from consilia.privacy.ledger import Entry, Head, Vector

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
    out = io.StringIO()
    csv.writer(out).writerow((*_COLUMNS, "digest"))
    yield out.getvalue()
    for text, digest in _every(store):
        entry, out = rules.read(text), io.StringIO()
        values = [_as_text(getattr(entry, name)) for name in _COLUMNS]
        csv.writer(out).writerow((*values, digest))
        yield out.getvalue()


def verify(store: Store) -> Break | Head:
    """Check the chain, and that totals, states and caps are what its entries add up to."""
    found = rules.verify(_every(store))
    if isinstance(found, Break):
        return found
    books = _Books()
    for text, _ in _every(store):
        books.enter(rules.read(text))
    if books.seq != found.length:  # the agent went on writing in between
        return verify(store)
    return books.differs(store) or found


@dataclass(slots=True)
class _Books:
    """What the entries add up to."""

    seq: int = 0
    totals: dict[tuple[str, str], Vector] = field(default_factory=dict)
    states: dict[str, tuple[int, str]] = field(default_factory=dict)
    caps: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    accounts: dict[str, Entry] = field(default_factory=dict)

    def enter(self, entry: Entry) -> None:
        """Take in the next entry."""
        self.seq = entry.seq
        if entry.kind == "reserve":
            self.accounts[entry.lease] = entry
        if entry.kind in _STATES:
            self.states[entry.lease] = (entry.run, _STATES[entry.kind])
            for key in names(self.accounts[entry.lease]):
                self.totals[key] = rules.add(self.totals.get(key, ()), entry.change)
        for key in names(entry) if entry.kind in ("cap", "uncap") else ():
            if entry.kind == "cap":
                self.caps[key] = (entry.epsilon, entry.delta)
            else:
                self.caps.pop(key, None)

    def differs(self, store: Store) -> Break | None:
        """Return the first table that says something else."""
        totals = {
            (k, n): tuple(json.loads(t))
            for k, n, t in store.rows("SELECT kind, name, total FROM budget_totals")
        }
        states = {
            i: (r, s) for i, r, s in store.rows("SELECT lease, run, state FROM budget_spends")
        }
        caps = {
            (k, n): (e, d)
            for k, n, e, d in store.rows("SELECT kind, name, epsilon, delta FROM budget_caps")
        }
        for what, here, kept in (
            ("totals", self.totals, totals),
            ("states", self.states, states),
            ("caps", self.caps, caps),
        ):
            if here != kept:
                return Break(self.seq, f"the {what} are not what the entries add up to")
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
    return Head(rows[0][0], rows[0][1]) if rows else Head(0, GENESIS)


def _lines(store: Store, after: int, limit: int) -> list[tuple[str, str]]:
    rows = store.rows(
        "SELECT body, digest FROM budget_entries WHERE seq > ? ORDER BY seq LIMIT ?",
        (after, limit),
    )
    return [(str(text), str(digest)) for text, digest in rows]


def _every(store: Store) -> Iterator[tuple[str, str]]:
    after = 0
    while page := _lines(store, after, _PAGE):
        yield from page
        after += len(page)


def _as_text(value: object) -> object:
    # A cell that starts with = + - @ is a formula to a spreadsheet: keep it text.
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@") else value
