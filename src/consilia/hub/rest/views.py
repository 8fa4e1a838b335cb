"""Rows of the database as the records that people's programs get."""

from collections.abc import Callable, Iterable

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.hub import records, tables
from consilia.hub.audit import Entry
from consilia.hub.records import PlanRecord, SiteRecord, StudyRecord
from consilia.hub.rest.guard import Caller
from consilia.wire.people import (
    AuditView,
    PlanView,
    SiteView,
    StudyView,
)
from consilia.wire.v1 import Advertisement

Said = dict[str, Advertisement]  # by site, of the sites in force


def advertised(sites: Iterable[SiteRecord]) -> Said:
    """Return what the enrolled sites last said of themselves."""
    return {
        s.name: msgspec.msgpack.decode(s.advertisement, type=Advertisement)
        for s in sites
        if s.advertisement is not None and s.state == "enrolled"
    }


def said_by_all(db: Connection) -> Said:
    """Read what every enrolled site last said of itself."""
    sites: list[SiteRecord] = []
    cursor: str | None = None
    while True:
        page = records.list_sites(db, cursor=cursor)
        sites += page.items
        if (cursor := page.next) is None:
            return advertised(sites)


def visible_studies(db: Connection, who: Caller) -> Callable[[str], bool]:
    """Return the test whether `who` may see what belongs to a study: all, or their own."""
    if who.role != "researcher":
        return lambda _: True
    t = tables.studies.c
    own = frozenset(db.execute(sa.select(t.name).where(t.author == who.name)).scalars())
    return own.__contains__


def study_view(record: StudyRecord, said: Said) -> StudyView:
    """Show a study and which of its sites have accepted it."""
    sites = {
        site: "accepted"
        if record.digest is not None and site in said and record.digest in said[site].studies
        else "invited"
        for site in record.study.sites
    }
    return StudyView(
        study=record.study,
        digest=record.digest,
        state=record.state,
        author=record.author,
        sites=sites,
    )


def plan_view(record: PlanRecord, said: Said, *, source: bool) -> PlanView:
    """Show a plan and which sites have approved it."""
    approved = sorted(site for site, words in said.items() if record.digest in words.plans)
    return PlanView(
        digest=record.digest,
        name=record.plan.name,
        study=record.study,
        author=record.author,
        created=record.created,
        approved=tuple(approved),
        plan=record.plan if source else None,
    )


def site_view(record: SiteRecord, online: bool, last_seen: float | None) -> SiteView:
    """Show a site."""
    said = advertised([record]).get(record.name)
    return SiteView(
        name=record.name,
        state=record.state,
        online=online,
        last_seen=max(filter(None, (last_seen, record.last_seen)), default=None),
        certificate_expires=record.certificate_expires,
        version=said.version if said else "",
        datasets=tuple(d.name for d in said.datasets) if said else (),
    )


def audit_view(entry: Entry) -> AuditView:
    """Show one audit line."""
    line = entry.line
    return AuditView(
        seq=line.seq,
        at=line.at,
        actor=line.actor,
        action=line.action,
        subject=line.subject,
        outcome=line.outcome,
        detail=line.detail,
        digest=entry.digest,
    )
