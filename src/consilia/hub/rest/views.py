"""Rows of the database as the records that people's programs get."""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.hub import records, stages, tables
from consilia.hub.audit import Entry
from consilia.hub.people.roles import Seeing
from consilia.hub.pool import placement
from consilia.hub.records import PlanRecord, StudyRecord
from consilia.hub.rest.guard import Caller
from consilia.hub.siteviews import Said, advertised
from consilia.wire.people import (
    AuditView,
    PlanView,
    StudyView,
)
from consilia.wire.v1 import Advertisement


def said_by_all(db: Connection) -> Said:
    """Read what every enrolled site last said of itself."""
    return advertised(records.every_site(db))


def visible_studies(db: Connection, who: Caller) -> Callable[[str], bool]:
    """Return the test whether `who` may see the jobs and models of a study."""
    seeing = who.only
    if seeing is None:
        return lambda _: True
    return frozenset(db.execute(records.seen_studies(seeing)).scalars()).__contains__


def sees_model(db: Connection, who: Caller, study: str, stage: str | None) -> bool:
    """Tell whether `who` may see a model version of a study at a stage.

    A downstream user sees what was released, of any study or of theirs, and nothing else.
    """
    if stage == "released" and who.reaches(study) and "downstream" in who.decides_in(study):
        return True
    return visible_studies(db, who)(study)


def released_to(who: Caller) -> sa.ColumnElement[bool] | None:
    """Return which model versions `who` sees because they were released; None for none."""
    v, released = tables.versions.c, tables.versions.c.id.in_(stages.at_stage("released"))
    if "downstream" in who.roles:
        return released & (v.study == who.within) if who.within else released
    theirs = [s for s, held in who.studies.items() if "downstream" in held and who.reaches(s)]
    return released & v.study.in_(theirs) if theirs else None


def may_see_study(who: Caller, found: StudyRecord) -> bool:
    """Tell whether `who` may read a study and the plans on offer in it."""
    return who.sees(found.author, found.study.name, found.study.sites)


def may_see_all(who: Caller, found: StudyRecord) -> bool:
    """Tell whether `who` sees all sites of a study, not a data manager's own alone."""
    return who.sees(found.author, found.study.name)


def seen_sites_studies(db: Connection, who: Caller) -> Seeing | None:
    """Return what lists of studies and plans are limited to: a data manager's site's, too."""
    seeing = who.only
    if seeing is None or "data-manager" not in who.roles or not who.site:
        return seeing
    theirs = (r.study.name for r in records.every_study_of(db, who.site))
    return Seeing(seeing.author, seeing.studies | frozenset(theirs), seeing.within)


def study_view(record: StudyRecord, said: Said) -> StudyView:
    """Show a study and what each of its sites has decided."""
    sites = {site: _decision(record.digest, said.get(site)) for site in record.study.sites}
    return StudyView(
        study=record.study,
        digest=record.digest,
        state=record.state,
        author=record.author,
        sites=sites,
        degree=placement.degree(record.study, record.digest, said),
    )


def _decision(digest: str | None, said: Advertisement | None) -> str:
    """Return what a site says it has decided on a study's terms."""
    if digest is None or said is None:
        return "invited"
    decided = {"accepted": said.studies, "left": said.withdrawn, "declined": said.declined}
    return next((word for word, digests in decided.items() if digest in digests), "invited")


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
