"""Rows of the database as the records that people's programs get."""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.hub import records, tables
from consilia.hub.audit import Entry
from consilia.hub.records import PlanRecord, StudyRecord
from consilia.hub.rest.guard import Caller
from consilia.hub.siteviews import Said, advertised
from consilia.wire.people import (
    AuditView,
    PlanView,
    StudyView,
)


def said_by_all(db: Connection) -> Said:
    """Read what every enrolled site last said of itself."""
    return advertised(records.every_site(db))


def visible_studies(db: Connection, who: Caller) -> Callable[[str], bool]:
    """Return the test whether `who` may see what belongs to a study: all, their own, none."""
    if who.role == "downstream":
        return lambda _: False  # they see released models, whatever study these are of
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
