"""Routes of studies: which governed projects this site takes part in."""

from datetime import date

from litestar import get, post
from litestar.params import FromPath, JSONBody

from consilia.errors import ConfigError, Conflict, Wrong
from consilia.node import approvals, datasets, identity, peers, studies
from consilia.node.console.guard import Who, allow, anyone
from consilia.node.console.services import Here, Services
from consilia.node.peers import Peer
from consilia.node.policy import residency_problem
from consilia.node.studies import StudyRecord
from consilia.wire.console.studies import (
    AcceptStudy,
    Decide,
    PeerView,
    PinKeys,
    StudiesView,
    StudyChange,
    StudyView,
)

DECIDES = allow("data_manager", "reviewer")


@get("/studies", opt=anyone(), sync_to_thread=True)
def list_studies(here: Here) -> StudiesView:
    """List the studies this site was invited to, newest first."""
    today = approvals.day(here.now())
    found = studies.list_studies(here.store, today)
    return StudiesView(tuple(view(here, record) for record in found))


@get("/studies/{digest:str}", opt=anyone(), sync_to_thread=True)
def get_study(here: Here, digest: FromPath[str]) -> StudyView:
    """Return one study."""
    return view(here, _get(here, digest))


@post("/studies/{digest:str}/accept", opt=DECIDES, status_code=200, sync_to_thread=True)
def accept(
    here: Here, who: Who, digest: FromPath[str], data: JSONBody[AcceptStudy]
) -> StudyView:
    """Take part, pinning the keys whose words the person was shown."""
    record = _get(here, digest)
    _check_words(here, record, data.words)
    found = studies.accept(
        here.store,
        record.digest,
        actor=who.name,
        now=here.now(),
        reason=data.reason,
        until=last_day(data.until),
        datasets=data.datasets,
        words=data.words,
    )
    here.tell_agent()
    return view(here, found)


@post("/studies/{digest:str}/decline", opt=DECIDES, status_code=200, sync_to_thread=True)
def decline(here: Here, who: Who, digest: FromPath[str], data: JSONBody[Decide]) -> StudyView:
    """Decline a study."""
    record = _get(here, digest)
    if record.state != "pending":
        raise Conflict(f"study {record.study.name!r} is {record.state}, not pending")
    found = studies.decline(
        here.store, record.digest, actor=who.name, now=here.now(), reason=data.reason
    )
    here.tell_agent()
    return view(here, found)


@post("/studies/{digest:str}/leave", opt=DECIDES, status_code=200, sync_to_thread=True)
def leave(here: Here, who: Who, digest: FromPath[str], data: JSONBody[Decide]) -> StudyView:
    """Leave a study that was accepted; its tasks here are stopped."""
    record = _get(here, digest)
    found = studies.leave(
        here.store, record.digest, actor=who.name, now=here.now(), reason=data.reason
    )
    here.tell_agent()
    return view(here, found)


@post("/studies/{digest:str}/pin", opt=DECIDES, status_code=200, sync_to_thread=True)
def pin(here: Here, who: Who, digest: FromPath[str], data: JSONBody[PinKeys]) -> StudyView:
    """Pin the keys that the hub tells now, whose words the person has compared."""
    record = _get(here, digest)
    if not data.words:
        raise ConfigError("words: none given; needed are the words of the keys to pin, by site")
    _check_words(here, record, data.words)
    own = own_peer(here)
    sites, now = record.study.sites, here.now()
    peers.pin_again(here.store, record.digest, sites, who.name, now, own, data.words)
    here.tell_agent()
    return view(here, record)


def view(here: Services, record: StudyRecord) -> StudyView:
    """Return a study as people see it."""
    study, day = record.study, approvals.day(here.now())
    fitting = (
        r.dataset.name
        for r in datasets.list_datasets(here.store)
        if r.enabled and set(study.tags) <= set(r.dataset.tags)
    )
    offered = here.store.rows("SELECT plan FROM offers WHERE study = ?", (study.name,))
    earlier = (
        r.digest
        for r in studies.list_studies(here.store, day)
        if r.study.name == study.name and r.state == "accepted" and r.digest != record.digest
    )
    own, regions = own_peer(here), tuple(here.config().regions)
    return StudyView(
        digest=record.digest,
        name=study.name,
        state=record.state,
        purpose=study.purpose,
        sites=study.sites,
        tags=study.tags,
        legal_basis=study.legal_basis,
        ethics=study.ethics,
        study_until=study.until,
        until=day_text(record.until),
        min_records=study.min_records,
        offered=record.offered,
        decided=record.decided,
        by=record.actor,
        reason=record.reason,
        datasets=record.datasets,
        matching=tuple(fitting),
        peers=tuple(
            _peer(peer, own)
            for peer in peers.of_study(here.store, record.digest, study.sites, own)
        ),
        plans=tuple(sorted(str(plan) for (plan,) in offered)),
        accepted_before=next(earlier, ""),
        changes=tuple(
            StudyChange(c.field, c.old, c.new)
            for c in studies.difference(here.store, record.digest, day)
        ),
        controller=study.controller,
        retention_days=study.retention_days,
        residency=study.residency,
        region_problem=residency_problem(study.residency, regions) or "",
        statistics=study.statistics,
        data_centre=study.data_centre,
        pooled=study.pooled,
    )


def own_peer(here: Services) -> Peer:
    """Return this site with its own key, which no hub has to tell it."""
    key = identity.load(here.directory, here.site).signing.public_key().public_bytes_raw()
    return Peer(here.site, key, None)


def last_day(text: str) -> date | None:
    """Read the last day of a decision, None for ""; raise ConfigError."""
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(Wrong("until", f"{text[:40]!r}", "a day as YYYY-MM-DD")) from None


def day_text(day: date) -> str:
    """Return a last day as people see it, "" for none."""
    return "" if day == date.max else day.isoformat()


def _get(here: Services, digest: str) -> StudyRecord:
    return studies.get(here.store, digest, approvals.day(here.now()))


def _check_words(here: Services, record: StudyRecord, shown: dict[str, str]) -> None:
    """Raise Conflict when the hub tells other keys by now than the person was shown."""
    told = {
        p.site: peers.words(p.told)
        for p in peers.of_study(here.store, record.digest, record.study.sites, own_peer(here))
        if p.told is not None
    }
    for site, words in shown.items():
        if site not in record.study.sites:
            raise ConfigError(f"words: the study invites no site {site[:80]!r}")
        if told.get(site) != words:
            raise Conflict(
                f"words: the key of site {site!r} is another by now than the one shown; "
                "load the page again and compare once more"
            )
    if shown and (unseen := set(told) - set(shown) - {here.site}):
        raise Conflict(
            f"words: the keys of {', '.join(sorted(unseen))} came in after the page was shown; "
            "load it again and compare them too"
        )


def _peer(peer: Peer, own: Peer) -> PeerView:
    return PeerView(
        peer.site,
        peer.site == own.site,
        peer.state,
        peers.words(peer.pinned) if peer.pinned else "",
        peers.words(peer.told) if peer.told else "",
    )


ROUTES = (list_studies, get_study, accept, decline, leave, pin)
