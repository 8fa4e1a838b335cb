"""Routes that steer a job beside its start: pause, going back; and its evaluations."""

from litestar import get, post
from litestar.params import FromPath, JSONBody

from consilia.hub import assessing
from consilia.hub.experiments import MAX_ROUNDS
from consilia.hub.paging import within
from consilia.hub.rest.guard import Who
from consilia.hub.rest.jobs import own_job, seen_job
from consilia.hub.rest.services import Hub
from consilia.hub.rest.snapshot import KEPT
from consilia.wire.people import EvaluationView, JobView, Page, RollBack


@post("/jobs/{id:str}/pause", status_code=200)
async def pause_job(hub: Hub, who: Who, id: FromPath[str]) -> JobView:
    """Let a job finish what is open and open nothing more; resume lets it go on."""
    await own_job(hub, who, id)
    await hub.engine.pause(id, who.name)
    return await hub.engine.reading.view(id)


@post("/jobs/{id:str}/rollback", status_code=200)
async def roll_back(hub: Hub, who: Who, id: FromPath[str], data: JSONBody[RollBack]) -> JobView:
    """Let the next round of an idle job start from the model of an earlier one."""
    await own_job(hub, who, id)
    within(data.round, "round", 0, MAX_ROUNDS)
    await hub.engine.roll_back(id, data.round, who.name)
    return await hub.engine.reading.view(id)


@get("/jobs/{id:str}/evaluations", opt=KEPT)
async def list_evaluations(hub: Hub, who: Who, id: FromPath[str]) -> Page[EvaluationView]:
    """List what the sites have found of a job's models, oldest first."""
    await seen_job(hub, who, id)
    return Page(items=await hub.store.read(lambda db: assessing.of_job(db, id)))
