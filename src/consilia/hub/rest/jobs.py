"""Routes of experiments and jobs."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from litestar import get, post
from litestar.params import FromPath, FromQuery, JSONBody
from sqlalchemy import Connection

from consilia.core import ids
from consilia.core.events import Phase
from consilia.errors import NotFound, Refused
from consilia.hub import audit, bases, modelversions, records, tables
from consilia.hub.experiments import MAX_ROUNDS
from consilia.hub.job import TICKS
from consilia.hub.paging import MAX_LINE, MAX_PAGE, within
from consilia.hub.readiness import Needs, lack
from consilia.hub.records import PlanRecord, StudyRecord
from consilia.hub.rest.governance import seen_study, work_study
from consilia.hub.rest.guard import Caller, Who
from consilia.hub.rest.services import Hub, Services
from consilia.hub.rest.snapshot import KEPT
from consilia.hub.rest.views import audit_view, visible_studies
from consilia.wire.people import (
    AuditView,
    ChangeArguments,
    EventView,
    Experiment,
    JobView,
    Page,
    ResumeJob,
    ValidationView,
)

T = TypeVar("T")
TRUSTED = ("operator", "auditor")  # who reads the whole trail (hub.rest.trail)
ALARM = "round.alarm"  # the action of hub.closing
MAX_CURSOR = (2**31 - 1) * TICKS  # of events: a journal's number is a 32 bit integer


async def own_job(hub: Services, who: Caller, id: str) -> None:
    """Return when the caller may steer the job; NotFound when they may not even see it."""

    def read(db: Connection) -> None:
        job = records.get_job(db, id)
        study = seen_study(db, who, job.experiment.study)
        if not who.steers(job.experiment.study, study.author, job.author):
            raise Refused(f"job {id} is {job.author}'s: only they or an operator may do that")

    await hub.store.read(read)


async def seen_job(hub: Services, who: Caller, id: str) -> None:
    """Return when the caller may see the job, else raise NotFound."""

    def read(db: Connection) -> None:
        job = records.get_job(db, id)
        if not visible_studies(db, who)(job.experiment.study):
            raise NotFound(f"there is no job {id!r}")

    await hub.store.read(read)


def may_start_from(db: Connection, who: Caller, base: str) -> None:
    """Raise NotFound unless `base` is a model the caller may use, or a frame they uploaded.

    Conflict when its frame was deleted.
    A digest names a frame; it does not entitle anybody to it.
    """
    bases.check_base(db, base)
    if "operator" in who.roles or bases.has_uploaded(db, who.name, base):
        return
    v, seen = tables.versions.c, visible_studies(db, who.as_user())
    rows = db.execute(sa.select(v.study).where((v.id == base) | (v.digest == base)))
    if not any(seen(study) for study in rows.scalars()):
        raise NotFound(f"there is no model version or uploaded frame {base[:80]!r} of yours")


@post("/experiments/validate", status_code=200)
async def validate(hub: Hub, who: Who, data: JSONBody[Experiment]) -> ValidationView:
    """Tell what would keep an experiment from starting, and what it would wait for."""

    def read(db: Connection) -> StudyRecord:
        found = work_study(db, who, data.study)
        if data.base is not None:
            may_start_from(db, who, data.base)
        return found

    study = await hub.store.read(read)
    problems = await hub.engine.validate(data)
    warnings: list[str] = []
    if study.digest is not None:
        needs = Needs(study.study, study.digest, data.plan)
        for site in study.study.sites:
            why = lack(site, needs, hub.engine.said(site), hub.engine.presence.online(site))
            if why is not None:
                warnings.append(f"{site} {why}")
    return ValidationView(problems=tuple(map(str, problems)), warnings=tuple(warnings))


@post("/jobs")
async def start_job(hub: Hub, who: Who, data: JSONBody[Experiment]) -> JobView:
    """Run an experiment."""
    ids.digest(data.plan)

    def read(db: Connection) -> tuple[StudyRecord, PlanRecord]:
        study = work_study(db, who, data.study)
        if data.base is not None:
            may_start_from(db, who, data.base)
        if data.study not in records.plan_studies(db, data.plan):
            raise NotFound(f"plan {data.plan} is not offered to study {data.study!r}")
        return study, records.get_plan(db, data.plan)

    study, plan = await hub.store.read(read)
    id = await hub.engine.start(data, who.name, study.study, plan.plan)
    return await hub.engine.reading.view(id)


@get("/jobs", opt=KEPT)
async def list_jobs(  # noqa: PLR0913, PLR0917 - a query's parameters
    hub: Hub,
    who: Who,
    study: FromQuery[str | None] = None,
    status: FromQuery[Phase | None] = None,
    limit: FromQuery[int] = 50,
    cursor: FromQuery[str | None] = None,
) -> Page[JobView]:
    """List jobs, newest first, without their rounds: all, of a study, or with a status."""
    phases = None if status is None else (status,)
    if study is not None:
        await hub.store.read(lambda db: seen_study(db, who, study))
    page = await hub.engine.reading.list(
        limit=limit, cursor=cursor, study=study, author=who.only, phases=phases
    )
    return Page(items=page.items, next=page.next)


@get("/jobs/{id:str}", opt=KEPT)
async def get_job(hub: Hub, who: Who, id: FromPath[str]) -> JobView:
    """Show one job with its closed rounds."""
    await seen_job(hub, who, id)
    return await hub.engine.reading.view(id)


@post("/jobs/{id:str}/stop", status_code=200)
async def stop_job(hub: Hub, who: Who, id: FromPath[str]) -> JobView:
    """Stop a job; accepted updates of its open round are kept."""
    await own_job(hub, who, id)
    await hub.engine.stop(id, who.name)
    return await hub.engine.reading.view(id)


@post("/jobs/{id:str}/resume", status_code=200)
async def resume_job(
    hub: Hub, who: Who, id: FromPath[str], data: JSONBody[ResumeJob]
) -> JobView:
    """Go on with a stopped or failed job in the same round, perhaps with more rounds."""
    await own_job(hub, who, id)
    if data.rounds is not None:
        within(data.rounds, "rounds", 1, MAX_ROUNDS)
    await hub.engine.resume(id, data.rounds, who.name)
    return await hub.engine.reading.view(id)


@post("/jobs/{id:str}/arguments", status_code=200)
async def change_arguments(
    hub: Hub, who: Who, id: FromPath[str], data: JSONBody[ChangeArguments]
) -> JobView:
    """Set arguments from the next round on; the others stay."""
    await own_job(hub, who, id)
    await hub.engine.change(id, data.arguments, who.name)
    return await hub.engine.reading.view(id)


@get("/jobs/{id:str}/events")
async def job_events(
    hub: Hub,
    who: Who,
    id: FromPath[str],
    after: FromQuery[int] = 0,
    wait: FromQuery[float] = 0.0,
) -> Page[EventView]:
    """Return events after cursor `after`, waiting up to `wait` seconds for the first.

    `next` is the cursor to go on from, always.
    """
    await seen_job(hub, who, id)
    within(after, "after", 0, MAX_CURSOR)
    longest = min(max(0.0, wait), hub.config.limits.poll_wait)  # in this order NaN gives 0
    feed = await until_stopped(hub.stopping, hub.engine.reading.events(id, after, longest))
    if feed is None:
        return Page(items=(), next=str(after))
    items = (EventView(seq=e.seq, at=e.at, type=e.type, body=dict(e.body)) for e in feed.items)
    return Page(items=tuple(items), next=str(feed.next))


@get("/jobs/{id:str}/audit")
async def job_audit(
    hub: Hub,
    who: Who,
    id: FromPath[str],
    after: FromQuery[int] = 0,
    limit: FromQuery[int] = 100,
) -> Page[AuditView]:
    """List the audit lines about one job and its model versions, oldest first.

    Which site looked odd in a round, and by what figures, is for those who may read the trail.
    """
    await seen_job(hub, who, id)
    within(limit, "limit", 1, MAX_PAGE)
    within(after, "after", 0, MAX_LINE)

    def read(db: Connection) -> tuple[AuditView, ...]:
        subjects = [id, *(version.id for version in modelversions.of_job(db, id))]
        found = audit.about(db, subjects, after, limit)
        return tuple(_unnamed(view, who) for view in map(audit_view, found))

    items = await hub.store.read(read)
    return Page(items=items, next=str(items[-1].seq) if len(items) == limit else None)


def _unnamed(line: AuditView, who: Caller) -> AuditView:
    """Return a line as the caller may read it: an alarm names a site to the trusted only."""
    if line.action != ALARM or who.roles.intersection(TRUSTED):
        return line
    said = "what was said of the round's model stands in the job; sites and figures: operators"
    return msgspec.structs.replace(line, detail=said)


async def until_stopped(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what `work` gives, or None when the hub goes down before."""
    task, stop = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        stop.cancel()
