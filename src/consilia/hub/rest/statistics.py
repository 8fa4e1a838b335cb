"""Routes of statistics: ask all sites of a study for sums, and read what they come to."""

from litestar import get, post
from litestar.params import FromPath, JSONBody
from sqlalchemy import Connection

from consilia.hub import questions, records, statistics
from consilia.hub.rest.governance import work_study
from consilia.hub.rest.guard import Who
from consilia.hub.rest.jobs import seen_job
from consilia.hub.rest.services import Hub
from consilia.hub.rest.snapshot import KEPT
from consilia.hub.siteviews import advertised
from consilia.wire.people import Experiment, JobView
from consilia.wire.statistics import AskStatistics, StatisticsView
from consilia.wire.v1 import Study


@post("/statistics")
async def ask_statistics(hub: Hub, who: Who, data: JSONBody[AskStatistics]) -> JobView:
    """Ask the sites of a study for sums over their records, as a job of one round."""

    def read(db: Connection) -> tuple[Study, Experiment]:
        found = work_study(db, who, data.study)
        said = advertised(records.every_site(db))
        offered = questions.offered(found.study, found.digest or "", said)
        return found.study, questions.experiment(data, found.study, offered)

    study, experiment = await hub.store.read(read)
    id = await hub.engine.start(experiment, who.name, study, None)
    return await hub.engine.reading.view(id)


@get("/jobs/{id:str}/statistics", opt=KEPT)
async def get_statistics(hub: Hub, who: Who, id: FromPath[str]) -> StatisticsView:
    """Show what the sites have told; 404 until they have."""
    await seen_job(hub, who, id)
    return await hub.store.read(lambda db: statistics.of_job(db, id))
