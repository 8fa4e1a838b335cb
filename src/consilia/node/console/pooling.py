"""Routes of pooled datasets: a copy leaves for a study's data centre, arrives, comes back out.

The same decisions as `consilia pool`, by the same functions, with the same audit lines. Sending
names the data centre once more, so that who clicks has said who gets the records.
"""

from typing import Literal

from litestar import get, post
from litestar.params import FromPath, JSONBody

from consilia.node import approvals, datasets, hubline, peers, studies
from consilia.node.console.guard import Who, allow, anyone
from consilia.node.console.services import Here, Services
from consilia.node.console.studies import own_peer
from consilia.node.link import HttpLink
from consilia.node.loading import Loading
from consilia.node.pool import decisions, transfer
from consilia.node.studies import StudyRecord
from consilia.wire import pool as wire
from consilia.wire.console.pooling import (
    ArrivalsView,
    ArrivalView,
    LeavingView,
    PooledView,
    PoolView,
    SendCopy,
    TakeCopy,
)
from consilia.wire.console.studies import Decide

MANAGER = allow("data_manager")
MOVING = 1800.0  # seconds for a copy to move; asked for again, it goes on where it was


@get("/studies/{digest:str}/pool", opt=anyone(), sync_to_thread=True)
def get_pool(here: Here, digest: FromPath[str]) -> PoolView:
    """Return what a study asks of this site, who would get it, and what was sent or taken."""
    return _view(here, _study(here, digest))


@get("/studies/{digest:str}/pool/arrivals", opt=anyone(), sync_to_thread=True)
def list_arrivals(here: Here, digest: FromPath[str]) -> ArrivalsView:
    """At the data centre: ask the hub which sites have sent a copy, signed by their keys."""
    record = _study(here, digest)
    if record.study.data_centre != here.site:
        return ArrivalsView(())
    board = hubline.asked(here.directory, HttpLink.pool_board)
    return ArrivalsView(
        tuple(
            found
            for site in record.study.pooled
            if (found := _arrival(here, record, site, board)) is not None
        )
    )


@post("/studies/{digest:str}/pool/open", opt=MANAGER, status_code=200, sync_to_thread=True)
def open_pool(here: Here, who: Who, digest: FromPath[str], data: JSONBody[Decide]) -> PoolView:
    """At the data centre: take copies of the study's sites from now on."""
    record = _study(here, digest)
    decisions.open_channel(
        here.store,
        record.digest,
        here.random_bytes(32),
        actor=who.name,
        now=here.now(),
        reason=data.reason,
    )
    here.tell_agent()
    return _view(here, record)


@post("/studies/{digest:str}/pool/send", opt=MANAGER, status_code=200, sync_to_thread=True)
def send(here: Here, who: Who, digest: FromPath[str], data: JSONBody[SendCopy]) -> PoolView:
    """Let a copy of a dataset LEAVE this site, sealed to the data centre's key."""
    record = _study(here, digest)
    asked = transfer.Consent(
        *(record.digest, data.dataset, data.to, data.reason, who.name, here.now())
    )
    hubline.asked(
        here.directory,
        lambda line: transfer.send(here.store, line, asked, here.random_bytes),
        MOVING,
    )
    here.tell_agent()
    return _view(here, record)


@post("/studies/{digest:str}/pool/take", opt=MANAGER, status_code=200, sync_to_thread=True)
def take(here: Here, who: Who, digest: FromPath[str], data: JSONBody[TakeCopy]) -> PoolView:
    """At the data centre: open a site's copy and make it part of the study's dataset here."""
    record = _study(here, digest)
    hubline.asked(
        here.directory,
        lambda line: transfer.take(
            here.store,
            line,
            record.digest,
            data.site,
            actor=who.name,
            now=here.now(),
            reason=data.reason,
        ),
        MOVING,
    )
    here.tell_agent()
    return _view(here, record)


@post("/studies/{digest:str}/pool/withdraw", opt=MANAGER, status_code=200, sync_to_thread=True)
def withdraw(here: Here, who: Who, digest: FromPath[str], data: JSONBody[Decide]) -> PoolView:
    """Take the consent to this site's copy back; the data centre deletes it and says so."""
    record = _study(here, digest)
    decisions.withdraw(
        here.store,
        record.digest,
        actor=who.name,
        now=here.now(),
        reason=data.reason,
    )
    here.tell_agent()
    return _view(here, record)


# ---- inside --------------------------------------------------------------------------------


def _study(here: Services, digest: str) -> StudyRecord:
    return studies.get(here.store, digest, approvals.day(here.now()))


def _view(here: Services, record: StudyRecord) -> PoolView:
    study, own = record.study, own_peer(here)
    known = peers.of_study(here.store, record.digest, study.sites, own)
    centre = next((p for p in known if p.site == study.data_centre), None)
    pinned = centre.pinned if centre is not None and centre.site != here.site else None
    state = "unknown" if centre is None else centre.state
    return PoolView(
        record.digest,
        study.name,
        record.state,
        _role(here, record),
        study.data_centre,
        study.pooled,
        peers.words(pinned) if pinned else "",
        "own" if study.data_centre == here.site else state,
        record.digest in decisions.channels(here.store),
        _leaving(here, record) if here.site in study.pooled else (),
        tuple(
            PooledView(p.site, p.state, p.dataset, p.records, p.digest, p.at, p.actor)
            for p in decisions.every(here.store)
            if p.study == record.digest
        ),
    )


def _role(
    here: Services, record: StudyRecord
) -> Literal["none", "asked", "data_centre", "other"]:
    if not record.study.data_centre:
        return "none"
    if record.study.data_centre == here.site:
        return "data_centre"
    return "asked" if here.site in record.study.pooled else "other"


def _leaving(here: Services, record: StudyRecord) -> tuple[LeavingView, ...]:
    """Return the datasets that fit the study, as they would leave; measures nothing."""
    wanted, ready = set(record.study.tags), Loading(here.store)
    out = []
    for found in datasets.list_datasets(here.store):
        name = found.dataset.name
        if not wanted <= set(found.dataset.tags):
            continue
        if record.datasets and name not in record.datasets:
            continue
        loaded = ready.prepared(found.dataset, record.study.name)
        problem = loaded.problem or found.changed or ("" if found.enabled else "disabled")
        out.append(LeavingView(name, loaded.dataset.records, loaded.plan, problem))
    return tuple(out)


def _arrival(
    here: Services, record: StudyRecord, site: str, board: wire.Board
) -> ArrivalView | None:
    """Return what a site has sent that can be taken now, None for nothing."""
    own = own_peer(here)
    found = next(
        (
            p
            for p in peers.of_study(here.store, record.digest, record.study.sites, own)
            if p.site == site
        ),
        None,
    )
    if found is None or found.pinned is None:
        return None
    keys = {site: found.pinned}
    said = wire.newest(board.statements, keys, site, wire.Sent, record.digest)
    if said is None:
        return None
    gone = wire.newest(board.statements, keys, site, wire.Withdrawn, record.digest)
    if gone is not None and gone.upload == said.upload:
        return None
    taken = decisions.spent(here.store, record.digest, site, said.upload)
    return ArrivalView(site, said.upload, said.records, said.size, taken)


ROUTES = (get_pool, list_arrivals, open_pool, send, take, withdraw)
