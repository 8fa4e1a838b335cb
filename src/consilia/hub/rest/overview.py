"""Routes that show many jobs at once, run one again, and the short names of common requests."""

import asyncio
from typing import Any

import msgspec
import sqlalchemy as sa
from litestar import get, post
from litestar.params import FromPath, FromQuery, JSONBody
from sqlalchemy import Connection

from consilia import __version__
from consilia.hub import records, tables
from consilia.hub.paging import within
from consilia.hub.records import JobRecord
from consilia.hub.rest import people
from consilia.hub.rest.guard import Who
from consilia.hub.rest.jobs import seen_job, start_job
from consilia.hub.rest.services import Hub, Services
from consilia.hub.rest.snapshot import KEPT
from consilia.hub.rest.system import asked_parts
from consilia.privacy.estimate import evaluations, spent
from consilia.wire.overview import (
    BudgetView,
    CloneJob,
    HealthView,
    MetricsView,
    QueueView,
)
from consilia.wire.people import Experiment, Invite, JobView, JoinTokenView, Page, RoundView

UNFINISHED = ("waiting", "running", "closing")
MOST_QUEUED = 1000  # jobs of a queue that are shown


@get("/jobs/{id:str}/metrics", opt=KEPT)
async def job_metrics(hub: Hub, who: Who, id: FromPath[str]) -> Page[MetricsView]:
    """List the figures of a job's closed rounds, oldest first."""
    await seen_job(hub, who, id)
    view = await hub.engine.reading.view(id)
    closed = await hub.store.read(lambda db: _closed(db, id))
    items = tuple(_metrics(r, closed.get(r.round, 0.0)) for r in view.rounds)
    return Page(items=items)


def _closed(db: Connection, id: str) -> dict[int, float]:
    v = tables.versions.c
    found = db.execute(sa.select(v.round, v.created).where(v.job == id))
    return {round: at for round, at in found}


def _metrics(r: RoundView, at: float) -> MetricsView:
    return MetricsView(
        round=r.round,
        at=at,
        seconds=r.seconds,
        records=r.records,
        sites=len(r.sites),
        metrics=r.metrics,
        epsilon=r.epsilon,
    )


@get("/queue", opt=KEPT)
async def queue(hub: Hub, who: Who, limit: FromQuery[int] = 100) -> Page[QueueView]:
    """List jobs that are not over, oldest first, each with its position among all."""
    within(limit, "limit", 1, MOST_QUEUED)

    def read(db: Connection) -> list[tuple[int, JobRecord]]:
        seeing = who.only
        seen = (
            None if seeing is None else set(db.execute(records.seen_studies(seeing)).scalars())
        )
        waiting = enumerate(records.unfinished_jobs(db), 1)
        mine = [(n, r) for n, r in waiting if seen is None or r.experiment.study in seen]
        return mine[:limit]

    found = await hub.store.read(read)
    items = [_queued(n, await hub.engine.reading.view(record.id)) for n, record in found]
    return Page(items=tuple(items))


def _queued(position: int, view: JobView) -> QueueView:
    return QueueView(
        position=position,
        job=view.id,
        study=view.experiment.study,
        author=view.author,
        state=view.state,
        round=view.round,
        rounds=view.experiment.rounds,
        cause=view.cause,
        created=view.created,
    )


@get("/budgets", opt=KEPT)
async def budgets(
    hub: Hub,
    who: Who,
    study: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
    cursor: FromQuery[str | None] = None,
) -> Page[BudgetView]:
    """List what jobs with differential privacy have spent, newest first; others are left out.

    A page may so be empty and still have a next one.
    """
    page = await hub.engine.reading.list(
        limit=limit, cursor=cursor, study=study, author=who.only
    )
    items = await asyncio.to_thread(lambda: tuple(filter(None, map(_budget, page.items))))
    return Page(items=items, next=page.next)


def _budget(view: JobView) -> BudgetView | None:
    privacy = view.experiment.privacy
    if privacy is None or privacy.dp is None:
        return None
    closed = view.round if view.state == "done" else max(0, view.round - 1)
    now, all_of_it = _epsilon(view.experiment, closed), _epsilon(view.experiment)
    if now is None or all_of_it is None:
        return None  # something was told that no ledger is charged for
    if privacy.statistics is not None and view.state != "done":
        now = 0.0  # nothing was told; whether a site was charged only its ledger knows
    return BudgetView(
        job=view.id,
        study=view.experiment.study,
        state=view.state,
        delta=privacy.dp.delta,
        spent=now,
        planned=all_of_it,
    )


def _epsilon(experiment: Experiment, rounds: int | None = None) -> float | None:
    """Return a site's epsilon after rounds of a job, evaluations with them; None: after all."""
    count = experiment.rounds if rounds is None else rounds
    return spent(experiment, count, evaluations(experiment, count))


@get("/health")
async def health(hub: Hub) -> HealthView:
    """Show how the hub is: its parts, its sites, its jobs."""
    parts = await asked_parts(hub)

    def read(db: Connection) -> tuple[int, dict[str, int]]:
        j = tables.jobs.c
        counted = sa.select(j.phase, sa.func.count()).where(j.phase.in_(UNFINISHED))
        jobs = {phase: n for phase, n in db.execute(counted.group_by(j.phase))}
        return sum(s.state == "enrolled" for s in records.every_site(db)), jobs

    sites, jobs = await hub.store.read(read)
    ready = "failed" not in parts.values() and not hub.stopping.is_set()
    return HealthView(
        status="ready" if ready else "not ready",
        version=__version__,
        parts=parts,
        sites=sites,
        online=len(list(hub.engine.presence.all_online())),
        jobs=jobs,
    )


@post("/jobs/{id:str}/clone")
async def clone(hub: Hub, who: Who, id: FromPath[str], data: JSONBody[CloneJob]) -> JobView:
    """Run a job's experiment again as a job of one's own, with other values where given."""
    await seen_job(hub, who, id)
    again = _changed((await hub.engine.reading.view(id)).experiment, data)
    return await _start(hub, who, again)


def _changed(experiment: Experiment, data: CloneJob) -> Experiment:
    given: dict[str, Any] = {
        name: value
        for name in ("rounds", "seed", "base")
        if (value := getattr(data, name)) is not None
    }
    arguments = {**experiment.arguments, **data.arguments}
    return msgspec.structs.replace(experiment, arguments=arguments, **given)


# ---- short names ----------------------------------------------------------------------------


@post("/start")
async def start(hub: Hub, who: Who, data: JSONBody[Experiment]) -> JobView:
    """Run an experiment: POST /jobs by its short name."""
    return await _start(hub, who, data)


@get("/status", opt=KEPT)
async def status(hub: Hub, who: Who, limit: FromQuery[int] = 100) -> Page[QueueView]:
    """List jobs that are not over: GET /queue by its short name."""
    found: Page[QueueView] = await queue.fn(hub, who, limit)
    return found


@post("/join")
async def join(hub: Hub, who: Who, data: JSONBody[Invite]) -> JoinTokenView:
    """Make a one-time join token for a site: POST /sites by its short name."""
    found: JoinTokenView = await people.invite_site.fn(hub, who, data)
    return found


async def _start(hub: Services, who: Who, experiment: Experiment) -> JobView:
    found: JobView = await start_job.fn(hub, who, experiment)
    return found
