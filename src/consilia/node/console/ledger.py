"""Routes of the privacy ledger: what has been spent on this site's patients, and the caps."""

from collections.abc import Iterator

from litestar import get, post, put
from litestar.params import FromQuery, JSONBody
from litestar.response import Stream

from consilia.core.chain import Break
from consilia.node import budget, ledger, ledgerlog
from consilia.node.console.guard import Who, allow, anyone
from consilia.node.console.paging import bounds
from consilia.node.console.services import Here, Services
from consilia.privacy.ledger import Cap
from consilia.wire.console.site import (
    AccountStanding,
    DropCap,
    LedgerEntriesView,
    LedgerEntry,
    LedgerView,
    SetCap,
    VerifiedView,
)

CAPS = allow("data_manager")


@get("/ledger", opt=anyone(), sync_to_thread=True)
def get_ledger(here: Here) -> LedgerView:
    """Return how the accounts stand."""
    return _view(here)


@get("/ledger/entries", opt=anyone(), sync_to_thread=True)
def list_entries(
    here: Here, before: FromQuery[int | None] = None, limit: FromQuery[int] = 100
) -> LedgerEntriesView:
    """List entries, newest first."""
    length = ledgerlog.head(here.store).length
    after, count = bounds(length, before, limit)
    found = ledgerlog.history(here.store, after, count)
    entries = tuple(
        LedgerEntry(**{name: getattr(e, name) for name in LedgerEntry.__struct_fields__})
        for e in reversed(found)
    )
    return LedgerEntriesView(entries, after + 1 if after else None)


@get("/ledger/export", opt=anyone(), sync_to_thread=True)
def export(here: Here) -> Stream:
    """Return the whole ledger as CSV."""
    return download(ledgerlog.export_csv(here.store), "text/csv", f"ledger-{here.site}.csv")


@post("/ledger/verify", opt=anyone(), status_code=200, sync_to_thread=True)
def verify(here: Here) -> VerifiedView:
    """Check the chain of entries and that the totals are what they add up to."""
    found = ledgerlog.verify(here.store)
    if isinstance(found, Break):
        return VerifiedView(False, found.seq, found.reason)
    return VerifiedView(True, found.length, found.digest)


@put("/ledger/caps", opt=CAPS, sync_to_thread=True)
def set_cap(here: Here, who: Who, data: JSONBody[SetCap]) -> LedgerView:
    """Cap an account for good."""
    cap = Cap(data.epsilon, data.delta)
    budget.set_cap(
        here.store, data.kind, data.name, cap,
        actor=who.name, reason=data.reason, now=here.now(),
    )  # fmt: skip
    return _view(here)


@post("/ledger/caps/drop", opt=CAPS, status_code=200, sync_to_thread=True)
def drop_cap(here: Here, who: Who, data: JSONBody[DropCap]) -> LedgerView:
    """Take a cap back; the default of node.yaml holds again."""
    budget.drop_cap(
        here.store, data.kind, data.name, actor=who.name, reason=data.reason, now=here.now()
    )
    return _view(here)


def standings(here: Services) -> tuple[AccountStanding, ...]:
    """Return every account as people see it."""
    return tuple(
        AccountStanding(
            s.kind, s.name, s.epsilon, s.delta, s.cap.epsilon if s.cap else None, s.used, s.open
        )
        for s in ledger.standings(here.store, here.config().privacy)
    )


def download(lines: Iterator[str], kind: str, name: str) -> Stream:
    """Return lines of text as a file to keep."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Stream(lines, media_type=f"{kind}; charset=utf-8", headers=headers)


def _view(here: Services) -> LedgerView:
    head, held = ledgerlog.head(here.store), budget.held(here.store)
    why = (
        f"this ledger has {head.length} entries and the hub mirrors {held.length}: the node "
        "was put back to an earlier state, and every charge is refused until somebody at the "
        "machine decides: consilia node budget accept-restore"
        if held
        else ""
    )
    return LedgerView(standings(here), head.length, head.digest, why)


ROUTES = (get_ledger, list_entries, export, verify, set_cap, drop_cap)
