"""Routes of the privacy ledger: what has been spent on this site's patients, and the caps."""

from collections.abc import Iterator

from litestar import get, post, put
from litestar.params import FromQuery, JSONBody
from litestar.response import Stream

from consilia.core.chain import Break
from consilia.node import (
    approvals,
    budget,
    caps,
    datasets,
    ledger,
    ledgerlog,
    restores,
    studies,
)
from consilia.node.console.guard import Who, allow, anyone
from consilia.node.console.paging import bounds
from consilia.node.console.services import Here, Services
from consilia.privacy.ledger import Cap
from consilia.wire.console.site import (
    AccountStanding,
    CapProposal,
    DropCap,
    LedgerEntriesView,
    LedgerEntry,
    LedgerView,
    RestoreAsked,
    SetCap,
    VerifiedView,
    WithdrawProposal,
)
from consilia.wire.console.studies import Decide

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
    """Cap an account for good; a higher cap may have to wait for a second person."""
    caps.decide(
        here.store, data.kind, data.name, Cap(data.epsilon, data.delta), here.config().privacy,
        actor=who.name, reason=data.reason, now=here.now(),
    )  # fmt: skip
    return _view(here)


@post("/ledger/caps/drop", opt=CAPS, status_code=200, sync_to_thread=True)
def drop_cap(here: Here, who: Who, data: JSONBody[DropCap]) -> LedgerView:
    """Take a cap back; the default of node.yaml holds again."""
    caps.decide(
        here.store, data.kind, data.name, None, here.config().privacy,
        actor=who.name, reason=data.reason, now=here.now(),
    )  # fmt: skip
    return _view(here)


@post("/ledger/caps/withdraw", opt=CAPS, status_code=200, sync_to_thread=True)
def withdraw(here: Here, who: Who, data: JSONBody[WithdrawProposal]) -> LedgerView:
    """Forget a higher cap that waits for a second person."""
    caps.withdraw(here.store, data.kind, data.name, actor=who.name, now=here.now())
    return _view(here)


@post("/ledger/restore", opt=CAPS, status_code=200, sync_to_thread=True)
def restore(here: Here, who: Who, data: JSONBody[Decide]) -> LedgerView:
    """Go on with a ledger that is older than the hub's mirror; may wait for a second person."""
    restores.decide(here.store, actor=who.name, reason=data.reason, now=here.now())
    here.tell_agent()
    return _view(here)


@post("/ledger/restore/withdraw", opt=CAPS, status_code=200, sync_to_thread=True)
def withdraw_restore(here: Here, who: Who) -> LedgerView:
    """Take back the word that waits for a second person; the ledger stays held."""
    restores.withdraw(here.store, actor=who.name, now=here.now())
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
    asked = restores.waiting(here.store)
    why = (
        f"this ledger has {head.length} entries and the hub mirrors {held.length}: the node "
        "was put back to an earlier state, and every charge is refused until the newer state "
        "is put back, or a data manager decides to go on without what is missing"
        if held
        else ""
    )
    waiting = tuple(
        CapProposal(
            p.kind,
            p.name,
            p.cap.epsilon if p.cap else None,
            p.cap.delta if p.cap else None,
            p.actor,
            p.at,
            p.reason,
        )
        for p in caps.proposals(here.store)
    )
    return LedgerView(
        standings(here),
        head.length,
        head.digest,
        why,
        waiting,
        here.config().reviewers_needed > 1,
        _names(here),
        RestoreAsked(asked.actor, asked.at, asked.reason) if asked else None,
    )


def _names(here: Services) -> dict[str, tuple[str, ...]]:
    """Return what a cap can be set for, by kind, as far as this site knows names."""
    found = studies.list_studies(here.store, approvals.day(here.now()))
    authors = here.store.rows("SELECT DISTINCT author FROM plans WHERE author <> ''")
    spent = ledger.standings(here.store, here.config().privacy)
    names = {kind: {s.name for s in spent if s.kind == kind} for kind in ledger.SCOPES}
    names["dataset"] |= {r.dataset.name for r in datasets.list_datasets(here.store)}
    names["study"] |= {record.study.name for record in found}
    names["researcher"] |= {str(author) for (author,) in authors}
    return {kind: tuple(sorted(known)) for kind, known in names.items()}


ROUTES = (
    get_ledger,
    list_entries,
    export,
    verify,
    set_cap,
    drop_cap,
    withdraw,
    restore,
    withdraw_restore,
)
