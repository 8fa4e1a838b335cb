"""Routes of studies and plans: what people agree on before anything runs.

A study is a draft until it is submitted; from then on it is locked under its digest, and its
sites see it. A researcher sees and moves only what is their own; an operator everything.
"""

import asyncio
import contextlib
import json
from datetime import date
from functools import partial

import msgspec
from litestar import get, post, put
from litestar.params import FromPath, FromQuery, JSONBody
from sqlalchemy import Connection

from consilia.core import ids
from consilia.core.events import Phase
from consilia.errors import ConfigError, Conflict, NotFound, PlanError, Refused
from consilia.hub import audit, records
from consilia.hub.records import StudyRecord
from consilia.hub.rest.guard import Caller, Who
from consilia.hub.rest.plancheck import check_plan
from consilia.hub.rest.services import Hub, Services
from consilia.hub.rest.views import (
    may_see_study,
    plan_view,
    said_by_all,
    seen_sites_studies,
    study_view,
)
from consilia.wire.people import Page, PlanView, StudyView, SubmitPlan
from consilia.wire.v1 import Study, plan_digest

MAX_TEXT = 4000  # characters of purpose and the like
MAX_SITES = 1000
MAX_TAGS = 64
MAX_RECORDS = 10**12
MAX_RETENTION = 36_500  # days


def own_study(db: Connection, who: Caller, name: str) -> StudyRecord:
    """Return a study the caller may move. One they may not even see does not exist for them."""
    found = seen_study(db, who, name)
    if not who.owns(found.author, name):
        raise Refused(
            f"study {name!r} is {found.author}'s: only they or an operator may do that"
        )
    return found


def seen_study(db: Connection, who: Caller, name: str) -> StudyRecord:
    """Return a study the caller may see, else raise NotFound."""
    found = records.get_study(db, name)
    if not may_see_study(who, found):
        raise NotFound(f"there is no study {name!r}")
    return found


def work_study(db: Connection, who: Caller, name: str) -> StudyRecord:
    """Return a study the caller may offer plans and run experiments in."""
    found = seen_study(db, who, name)
    if not who.works_in(name, found.author):
        raise Refused(
            f"study {name!r} is {found.author}'s: they, an operator, or who has the role "
            "researcher in it may do that"
        )
    return found


@get("/studies")
async def list_studies(
    hub: Hub, who: Who, limit: FromQuery[int] = 100, cursor: FromQuery[str | None] = None
) -> Page[StudyView]:
    """List studies by name: a researcher's own, or all."""

    def read(db: Connection) -> Page[StudyView]:
        # chosen by the database: a page of others' studies would name the last in its cursor
        seen = seen_sites_studies(db, who)
        page = records.list_studies(db, limit=limit, cursor=cursor, author=seen)
        said = said_by_all(db)
        return Page(items=tuple(study_view(s, said) for s in page.items), next=page.next)

    return await hub.store.read(read)


@post("/studies")
async def create_study(hub: Hub, who: Who, data: JSONBody[Study]) -> StudyView:
    """Make a draft."""
    study, at = checked_study(data, hub.now()), hub.now()

    def write(db: Connection) -> StudyRecord:
        made = records.add_study(db, study, who.name, at)
        audit.append(db, at, who.actor, "study.create", study.name)
        return made

    return study_view(await hub.store.write(write), {})


@get("/studies/{name:str}")
async def get_study(hub: Hub, who: Who, name: FromPath[str]) -> StudyView:
    """Show one study."""
    return await hub.store.read(
        lambda db: study_view(seen_study(db, who, name), said_by_all(db))
    )


@put("/studies/{name:str}")
async def change_study(
    hub: Hub, who: Who, name: FromPath[str], data: JSONBody[Study]
) -> StudyView:
    """Replace a draft."""
    _same_name(name, data)
    study, at = checked_study(data, hub.now()), hub.now()

    def write(db: Connection) -> StudyRecord:
        own_study(db, who, name)
        changed = records.change_study(db, study, at)
        audit.append(db, at, who.actor, "study.edit", name)
        return changed

    return study_view(await hub.store.write(write), {})


@post("/studies/{name:str}/submit", status_code=200)
async def submit_study(hub: Hub, who: Who, name: FromPath[str]) -> StudyView:
    """Lock a draft and offer it to its sites."""
    at = hub.now()

    def write(db: Connection) -> StudyView:
        checked_study(own_study(db, who, name).study, at)
        done = records.submit_study(db, name, at)
        audit.append(db, at, who.actor, "study.submit", name, detail=done.digest or "")
        return study_view(done, said_by_all(db))

    view = await hub.store.write(write)
    hub.engine.catalogue_changed()
    return view


@post("/studies/{name:str}/revise", status_code=200)
async def revise_study(
    hub: Hub, who: Who, name: FromPath[str], data: JSONBody[Study]
) -> StudyView:
    """Offer a submitted study under changed terms, which each of its sites has to accept."""
    _same_name(name, data)
    study, at = checked_study(data, hub.now()), hub.now()

    def write(db: Connection) -> StudyView:
        before = own_study(db, who, name)
        done = records.revise_study(db, study, at)
        detail = json.dumps(_changes(before.study, study), ensure_ascii=False)
        digests = f"{before.digest} -> {done.digest}"
        audit.append(db, at, who.actor, "study.revise", name, detail=f"{digests} {detail}")
        return study_view(done, said_by_all(db))

    view = await hub.store.write(write)
    hub.engine.catalogue_changed()
    return view


def _changes(old: Study, new: Study) -> dict[str, tuple[object, object]]:
    """Return each field that differs, with what it was and what it is."""
    fields = ((name, getattr(old, name), getattr(new, name)) for name in old.__struct_fields__)
    return {name: (was, now) for name, was, now in fields if was != now}


def _same_name(name: str, study: Study) -> None:
    if study.name != name:
        raise ConfigError(
            f"the body's name {study.name[:80]!r} is not the {name!r} of the address; "
            "a study keeps its name"
        )


@post("/studies/{name:str}/close", status_code=200)
async def close_study(hub: Hub, who: Who, name: FromPath[str]) -> StudyView:
    """End a study: its jobs stop, and none starts any more."""
    at = hub.now()

    def write(db: Connection) -> StudyView:
        own_study(db, who, name)
        done = records.close_study(db, name, at)
        audit.append(db, at, who.actor, "study.close", name, detail=done.digest or "")
        return study_view(done, said_by_all(db))

    view = await hub.store.write(write)
    hub.engine.catalogue_changed()
    await _stop_jobs(hub, who, name)
    return view


async def _stop_jobs(hub: Services, who: Caller, study: str) -> None:
    """Stop whatever still runs in a study that was closed."""
    phases: tuple[Phase, ...] = ("waiting", "running", "closing")
    cursor: str | None = None
    while True:
        read = partial(records.list_jobs, study=study, phases=phases, cursor=cursor)
        page = await hub.store.read(read)
        for job in page.items:
            with contextlib.suppress(Conflict):  # it ended by itself meanwhile
                await hub.engine.stop(job.id, who.name)
        if (cursor := page.next) is None:
            return


def checked_study(study: Study, now: float) -> Study:
    """Return the study with sites and tags sorted; raise ConfigError naming what is wrong."""
    ids.name(study.name, "study")
    if not study.purpose.strip():
        raise ConfigError(f"study {study.name!r} has no purpose: say what it is for")
    for field in ("purpose", "controller", "legal_basis", "ethics", "residency"):
        if len(getattr(study, field)) > MAX_TEXT:
            raise ConfigError(f"{field} has more than {MAX_TEXT} characters")
    for what, names, most in (
        ("site", study.sites, MAX_SITES),
        ("tag", study.tags, MAX_TAGS),
    ):
        if not 1 <= len(names) <= most:
            raise ConfigError(f"study {study.name!r} needs 1 to {most} {what}s")
        for name in names:
            ids.name(name, what)
    if not 0 <= study.min_records <= MAX_RECORDS:
        raise ConfigError(f"min_records is {study.min_records}, must be 0 to {MAX_RECORDS}")
    if not 0 <= study.retention_days <= MAX_RETENTION:
        raise ConfigError(
            f"retention_days is {study.retention_days}, must be 0 (not said) to {MAX_RETENTION}"
        )
    if study.until:
        _check_until(study.until, now)
    _check_pool(study)
    return msgspec.structs.replace(
        study,
        sites=tuple(sorted(set(study.sites))),
        tags=tuple(sorted(set(study.tags))),
        pooled=tuple(sorted(set(study.pooled))),
    )


def _check_pool(study: Study) -> None:
    """Raise ConfigError unless data centre and pooled sites are sites of the study, apart."""
    invited = ", ".join(sorted(study.sites)[:20])
    if study.data_centre and study.data_centre not in study.sites:
        raise ConfigError(
            f"data_centre: found {study.data_centre[:80]!r}, needed one of the study's sites "
            f"({invited}): the data centre is a node like any other"
        )
    if odd := sorted(set(study.pooled) - set(study.hospitals)):
        raise ConfigError(
            f"pooled: found {odd[0][:80]!r}, needed sites of the study other than its data "
            f"centre ({invited})"
        )
    if bool(study.data_centre) != bool(study.pooled):
        raise ConfigError(
            "data_centre and pooled: found one without the other, needed both or neither"
        )


def _check_until(until: str, now: float) -> None:
    try:
        last = date.fromisoformat(until)
    except ValueError:
        raise ConfigError(f"until {until[:40]!r} is not a date such as 2027-12-31") from None
    if last.isoformat() != until:
        raise ConfigError(f"until {until[:40]!r} is not a date such as 2027-12-31")
    if last < date.fromtimestamp(now):
        raise ConfigError(f"until {until} lies in the past")


# ---- plans ----------------------------------------------------------------------------------


@get("/plans")
async def list_plans(
    hub: Hub,
    who: Who,
    study: FromQuery[str | None] = None,
    limit: FromQuery[int] = 100,
    cursor: FromQuery[str | None] = None,
) -> Page[PlanView]:
    """List plans on offer, newest first, without their source."""

    def read(db: Connection) -> Page[PlanView]:
        if study is not None:
            seen_study(db, who, study)
        seen = seen_sites_studies(db, who)
        page = records.list_plans(db, study=study, limit=limit, cursor=cursor, author=seen)
        said = said_by_all(db)
        views = (plan_view(p, said, source=False) for p in page.items)
        return Page(items=tuple(views), next=page.next)

    return await hub.store.read(read)


@post("/plans")
async def submit_plan(hub: Hub, who: Who, data: JSONBody[SubmitPlan]) -> PlanView:
    """Offer a plan to the sites of a study. Its code is read, never run, at the hub."""
    async with hub.parsing:
        await asyncio.to_thread(check_plan, data.plan)
    at = hub.now()

    def write(db: Connection) -> PlanView:
        work_study(db, who, data.study)
        made = records.add_plan(db, data.plan, data.study, who.name, at)
        audit.append(db, at, who.actor, "plan.offer", made.digest, detail=data.study)
        return plan_view(made, said_by_all(db), source=True)

    view = await hub.store.write(write)
    hub.engine.catalogue_changed()
    return view


@get("/plans/{digest:str}")
async def get_plan(hub: Hub, who: Who, digest: FromPath[str]) -> PlanView:
    """Show one plan with its source."""
    ids.digest(digest)

    def read(db: Connection) -> PlanView:
        found = records.get_plan(db, digest)
        studies = (records.get_study(db, s) for s in records.plan_studies(db, digest))
        if not any(may_see_study(who, study) for study in studies):
            raise NotFound(f"there is no plan {digest}")
        if plan_digest(found.plan) != digest:
            raise PlanError(f"plan {digest} does not match its digest: the database is damaged")
        return plan_view(found, said_by_all(db), source=True)

    return await hub.store.read(read)
