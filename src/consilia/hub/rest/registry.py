"""Routes of the model registry: what people decide of model versions, and their cards."""

from litestar import get, post
from litestar.params import FromPath, JSONBody
from sqlalchemy import Connection

from consilia.errors import Refused
from consilia.hub import audit, modelcard, records, stages, withdrawals
from consilia.hub.rest.guard import Caller, Who, allow
from consilia.hub.rest.models import USERS, seen_version
from consilia.hub.rest.services import Hub
from consilia.hub.views import model_view
from consilia.wire.people import ModelCard, ModelView, SetStage

DECIDERS = allow("operator", "researcher", "reviewer")


@post("/models/{id:str}/stage", opt=DECIDERS, status_code=200)
async def set_stage(
    hub: Hub, who: Who, id: FromPath[str], data: JSONBody[SetStage]
) -> ModelView:
    """Propose, release or retire a model version. Releasing takes somebody else's word."""
    at = hub.now()

    def write(db: Connection) -> ModelView:
        version, _ = seen_version(db, who, id)
        made_by = records.get_job(db, version.job).author
        _may_decide(who, made_by, id, data.stage)
        past = stages.history(db, id)
        stages.check(version, made_by, past, data.stage, who.name, data.reason)
        reason = data.reason.strip()
        decision = stages.Decision(len(past) + 1, data.stage, who.name, at, reason)
        stages.add(db, id, decision)
        audit.append(db, at, who.actor, f"model.{data.stage}", id, detail=reason[:500])
        left = withdrawals.marks(db, (version,)).get(id, ())
        return model_view(version, data.stage, left)

    return await hub.store.write(write)


@get("/models/{id:str}/card", opt=USERS)
async def get_card(hub: Hub, who: Who, id: FromPath[str]) -> ModelCard:
    """Show all that is on record of a model version, and what its users should beware of."""

    def read(db: Connection) -> ModelCard:
        version, _ = seen_version(db, who, id)
        return modelcard.card(db, version)

    return await hub.store.read(read)


def _may_decide(who: Caller, made_by: str, id: str, stage: str) -> None:
    """Raise Refused for a researcher's release, and for another's model."""
    if who.role == "researcher" and stage == "released":
        raise Refused(f"{who.name} is researcher; a reviewer or an operator releases a model")
    if who.role == "researcher" and not who.owns(made_by):
        raise Refused(
            f"model version {id} is {made_by}'s: only they, a reviewer or an "
            "operator may decide on it"
        )
