"""Sealed uploads of studies that are over: nobody may take them any more, so they go.

What a data centre took, or a site withdrew, goes when that is said (`relay.settle`). What
nobody ever took lies here until its study ends: closed by its owner, or past its last day. Then
every sweep of the hub's housekeeping enters each upload in the audit trail and deletes it. A
crash between the two leaves the files for the next sweep, and a second line.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial

from sqlalchemy import Connection

from consilia.hub import audit, records
from consilia.hub.pool.relay import PoolRelay
from consilia.hub.records import StudyRecord
from consilia.hub.store import Store


@dataclass(frozen=True, slots=True)
class Gone:
    """A site's upload that was deleted, and why."""

    study: str
    site: str
    why: str


@dataclass(frozen=True, slots=True)
class Ending:
    """Deletes from `relay` what ended studies have left there; `now()` is Unix seconds."""

    store: Store
    relay: PoolRelay
    now: Callable[[], float]

    async def sweep(self) -> tuple[Gone, ...]:
        """Delete what is over; raises what the database says."""
        lying = await asyncio.to_thread(self.relay.studies)
        if not lying:
            return ()
        at = self.now()
        today = date.fromtimestamp(at)
        ended = await self.store.read(lambda db: over(db, lying, today))
        found = await asyncio.to_thread(self._lying, ended)
        for study, gone in found:
            await self.store.write(partial(_note, at=at, gone=gone))
            await asyncio.to_thread(self.relay.forget, study)
        return tuple(one for _, gone in found for one in gone)

    def _lying(
        self, ended: list[tuple[StudyRecord, str]]
    ) -> list[tuple[StudyRecord, list[Gone]]]:
        return [
            (study, [Gone(study.study.name, site, why) for site in self.relay.lying(study)])
            for study, why in ended
        ]


def over(db: Connection, among: Collection[str], today: date) -> list[tuple[StudyRecord, str]]:
    """Return those of the studies `among`, by their digests' hex, that have ended, and why."""
    known = [
        study
        for study in records.every_submitted(db)
        if (study.digest or "").rpartition(":")[2] in among
    ]
    return [(study, why) for study in known if (why := ended(study, today))]


def ended(study: StudyRecord, today: date) -> str:
    """Say why nothing of a study is pooled any more, "" while it is open.

    The last day of a study ends later elsewhere: the hub waits a day longer than its own.
    """
    until = study.study.until
    if study.state == "closed":
        return "the study is closed"
    if study.state == "replaced":
        return "the study has other terms now"
    if until and today > date.fromisoformat(until) + timedelta(days=1):
        return f"the study ended on {until}"
    return ""


def _note(db: Connection, at: float, gone: list[Gone]) -> None:
    lines = [
        audit.Event(
            at,
            "hub",
            "pool.discard",
            one.study,
            detail=f"sealed upload of site {one.site}, never taken: {one.why}",
        )
        for one in gone
    ]
    audit.append_all(db, lines)
