"""What people decide of a model version: candidate, released, retired.

    (none) --propose--> candidate --release--> released --retire--> retired --propose--> ...

Releasing takes two people: whoever proposed the version, and whoever made it, cannot release
it. A decision is a row with its reason and an audit line; none is ever changed. Retention
keeps the frames of candidates and released versions (hub/retention).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.errors import ConfigError, Conflict, Refused
from consilia.hub import tables
from consilia.hub.modelversions import Version
from consilia.wire.people import Stage

MAX_REASON = 2000  # characters
KEPT = ("candidate", "released")  # stages whose frames retention may not delete
_NEXT = {
    "": ("candidate",),
    "candidate": ("released", "retired"),
    "released": ("retired",),
    "retired": ("candidate",),
}
_S = tables.stages.c


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision on a version, in the order of `seq` from 1."""

    seq: int
    stage: str
    actor: str  # a person's name
    at: float  # Unix seconds
    reason: str


def check(  # noqa: PLR0913, PLR0917 - all that the rule looks at
    version: Version,
    made_by: str,
    history: Sequence[Decision],
    stage: Stage,
    actor: str,
    reason: str,
) -> None:
    """Raise unless `actor` may bring the version to `stage` now.

    ConfigError without a reason, Conflict for a step that does not follow, Refused for a
    release by who proposed the version or made it.
    """
    if not 1 <= len(reason.strip()) <= MAX_REASON:
        raise ConfigError(
            f"a decision needs a reason of 1 to {MAX_REASON} characters, found {len(reason)}"
        )
    now = history[-1].stage if history else ""
    if stage not in _NEXT[now]:
        raise Conflict(
            f"model version {version.id} is {now or 'not proposed'}: from there it can become "
            f"{' or '.join(_NEXT[now])}, not {stage}"
        )
    if stage in KEPT and version.deleted is not None:
        raise Conflict(
            f"the frame of model version {version.id} was deleted by the hub's retention rule: "
            f"it cannot become {stage}"
        )
    if stage == "released" and actor in (made_by, history[-1].actor):
        whose = "made" if actor == made_by else "proposed"
        raise Refused(
            f"{actor} {whose} model version {version.id}: somebody else has to release it"
        )


def history(db: Connection, model: str) -> tuple[Decision, ...]:
    """Return all decisions on a version, oldest first."""
    rows = db.execute(
        sa.select(_S.seq, _S.stage, _S.actor, _S.at, _S.reason)
        .where(_S.model == model)
        .order_by(_S.seq)
    )
    return tuple(Decision(*row) for row in rows)


def add(db: Connection, model: str, decision: Decision) -> None:
    """Record a decision; it is the version's current one from now on."""
    db.execute(sa.update(tables.stages).where(_S.model == model).values(current=False))
    db.execute(
        sa.insert(tables.stages).values(
            model=model,
            seq=decision.seq,
            stage=decision.stage,
            current=True,
            actor=decision.actor,
            at=decision.at,
            reason=decision.reason,
        )
    )


def current(db: Connection, models: Sequence[str]) -> dict[str, str]:
    """Return the stages of those of `models` that have one."""
    found = sa.select(_S.model, _S.stage).where(_S.current, _S.model.in_(models))
    return {model: stage for model, stage in db.execute(found)}


def at_stage(*stages: str) -> sa.Select[tuple[str]]:
    """Return the query of the ids of versions that are at one of `stages` now."""
    return sa.select(_S.model).where(_S.current, _S.stage.in_(stages))
