"""The route that tells what an experiment would cost, before a site is asked."""

from litestar import post
from litestar.params import JSONBody
from sqlalchemy import Connection

from consilia.hub.records import StudyRecord
from consilia.hub.rest.governance import work_study
from consilia.hub.rest.guard import Who
from consilia.hub.rest.services import Hub
from consilia.privacy.estimate import estimate as estimated
from consilia.wire.people import Experiment, PrivacyEstimateView


@post("/experiments/privacy", status_code=200)
async def estimate(hub: Hub, who: Who, data: JSONBody[Experiment]) -> PrivacyEstimateView:
    """Tell the epsilon that an experiment would add at each site of its study."""

    def read(db: Connection) -> StudyRecord:
        return work_study(db, who, data.study)

    study = await hub.store.read(read)
    return estimated(data, study.study.sites)
