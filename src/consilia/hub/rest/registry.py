"""Routes of the model registry: what people decide of model versions, and their cards."""

from litestar import get, post
from litestar.params import FromPath, JSONBody
from sqlalchemy import Connection

from consilia.errors import Refused
from consilia.hub import audit, modelcard, records, stages, withdrawals
from consilia.hub.people.roles import Roles
from consilia.hub.rest.guard import Caller, Who
from consilia.hub.rest.models import seen_version
from consilia.hub.rest.services import Hub
from consilia.hub.views import model_view
from consilia.wire.people import ModelCard, ModelView, SetStage


@post("/models/{id:str}/stage", status_code=200)
async def set_stage(
    hub: Hub, who: Who, id: FromPath[str], data: JSONBody[SetStage]
) -> ModelView:
    """Propose, release or retire a model version. Releasing takes somebody else's word."""
    at = hub.now()

    def write(db: Connection) -> ModelView:
        version, _ = seen_version(db, who, id)
        made_by = records.get_job(db, version.job).author
        author = records.get_study(db, version.study).author
        steers = who.steers(version.study, author, made_by)
        roles = who.decides_in(version.study)
        _may_decide(who, roles, made_by, id, data.stage, steers=steers)
        past = stages.history(db, id)
        stages.check(version, made_by, past, data.stage, who.name, data.reason)
        reason = data.reason.strip()
        decision = stages.Decision(len(past) + 1, data.stage, who.name, at, reason)
        stages.add(db, id, decision)
        audit.append(db, at, who.actor, f"model.{data.stage}", id, detail=reason[:500])
        left = withdrawals.marks(db, (version,)).get(id, ())
        return model_view(version, data.stage, left)

    return await hub.store.write(write)


@get("/models/{id:str}/card")
async def get_card(hub: Hub, who: Who, id: FromPath[str]) -> ModelCard:
    """Show all that is on record of a model version, and what its users should beware of."""

    def read(db: Connection) -> ModelCard:
        version, _ = seen_version(db, who, id)
        return modelcard.card(db, version)

    return await hub.store.read(read)


def _may_decide(  # noqa: PLR0913 - what a decision is held against
    who: Caller, roles: Roles, made_by: str, id: str, stage: str, *, steers: bool
) -> None:
    """Raise Refused for a researcher's release, and for another's model.

    `roles` are those that count in the model's study, `steers` is what Caller.steers says.
    """
    if roles & {"operator", "reviewer"}:
        return
    if "researcher" not in roles:
        raise Refused(f"{who.name} may read model version {id}, and not decide on it")
    if stage == "released":
        raise Refused(f"{who.name} is researcher; a reviewer or an operator releases a model")
    if not steers:
        raise Refused(
            f"model version {id} is {made_by}'s: only they, a reviewer or an "
            "operator may decide on it"
        )
