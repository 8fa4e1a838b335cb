"""Going back: the next round of an idle job starts from the model of an earlier round.

Its rounds are counted on, so every version stays what it was. What a strategy remembers between
rounds (momentum and the like) is of the newest model, and begins anew.
"""

import asyncio
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.core.round import RolledBack
from consilia.errors import Conflict
from consilia.hub import audit, modelversions, tables
from consilia.hub.clock import Clock
from consilia.hub.job import LiveJob
from consilia.hub.modelversions import Version
from consilia.hub.store import Store
from consilia.wire.frames import Header


async def roll_back(  # noqa: PLR0913, PLR0917 - what it works with
    job: LiveJob,
    round: int,
    author: str,
    store: Store,
    header: Callable[[str], Header],
    clock: Clock,
) -> None:
    """Journal that `job` goes back to `round`.

    Raises NotFound for a round without a version, Conflict when its frame was deleted or the
    job is at work.
    """

    def read(db: Connection) -> tuple[Version, tuple[Version, ...]]:
        return modelversions.get(db, f"{job.id}.{round}"), modelversions.of_job(db, job.id)

    version, versions = await store.read(read)
    if version.deleted is not None:
        raise Conflict(f"the frame of {version.id} was deleted by the hub's retention rule")
    found = await asyncio.to_thread(header, version.digest)
    now = clock.now()

    def enter(db: Connection) -> None:
        v = tables.versions.c
        db.execute(sa.update(tables.versions).where(v.job == job.id).values(optimizer=None))
        audit.append(db, now, f"user:{author}", "job.rollback", job.id, detail=version.id)

    def then() -> None:
        job.book.base, job.book.optimizer = found, None
        job.book.versions = list(versions)

    if not await job.submit(RolledBack(now, version.digest), enter, then=then):
        raise Conflict(
            f"job {job.id} is {job.state.phase}: pause or stop it before it goes back"
        )
