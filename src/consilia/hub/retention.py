"""Which frames the hub keeps, and how the others go: first in the database, then on the disk.

    sweep   1. versions that the rule gives up are marked, uploads nobody used are dropped,
               each with its audit line; what says where a model came from stays for good
            2. a file that nothing refers to, and did not for SETTLE seconds, is deleted

Kept whatever the rule: a job's newest version and its optimizer state (every job can be
resumed), what any job started from, candidates and released versions, what live jobs hold, and
all versions of an unfinished job whose `watch` may lead it back to one of them.
`bases.check_base` refuses a base whose frame is marked, so between mark and deletion nothing
can begin to need a file; SETTLE covers what was under way. A crash between the two steps
leaves a file for the next sweep.

When a sweep fails it forgets what it suspected: while the database refuses, a close that waits
to be recorded has a file that nothing refers to yet.
"""

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.core.round import JobState
from consilia.hub import audit, tables
from consilia.hub.bases import based_on
from consilia.hub.blobs import Blobs
from consilia.hub.config import Retention
from consilia.hub.stages import KEPT, at_stage
from consilia.hub.store import Store

EVERY = 300.0  # seconds between two sweeps
SETTLE = 900.0  # seconds a file must have been unreferenced for
DAY = 86400.0
_V, _U = tables.versions.c, tables.uploads.c


@dataclass(frozen=True, slots=True)
class Kept:
    """A version whose frame is there, as far as the rule looks at it."""

    id: str
    round: int
    digest: str
    metric: float | None  # the one that `best` names


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did: versions marked, uploads dropped, files deleted."""

    versions: tuple[str, ...]
    uploads: tuple[str, ...]
    files: tuple[str, ...]


def given_up(versions: Sequence[Kept], last: int, lowest: bool) -> list[Kept]:
    """Return those of one job's `versions` that are neither among its `last` nor its best.

    The newest of several best ones counts. A metric that is missing or NaN is never best.
    """
    newest = sorted(versions, key=lambda v: v.round, reverse=True)
    measured = [v for v in newest if v.metric is not None and not math.isnan(v.metric)]
    sign = 1.0 if lowest else -1.0
    best = min(measured, key=lambda v: sign * (v.metric or 0.0), default=None)
    return [v for v in newest[last:] if v is not best]


def surplus(db: Connection, rule: Retention) -> list[Kept]:
    """Return the versions of all jobs that the rule, or the job's own wish, gives up."""
    wishes = _wishes(db)
    everywhere = rule.versions if isinstance(rule.versions, int) else None
    if everywhere is None and not wishes:
        return []
    count = sa.func.count()
    crowded = (
        sa.select(_V.job, count).where(_V.deleted.is_(None)).group_by(_V.job).having(count > 1)
    )
    based = based_on(db) | frozenset(db.execute(at_stage(*KEPT)).scalars())
    turning = _may_go_back(db)
    found: list[Kept] = []
    for job, held in db.execute(crowded).all():
        asked = [n for n in (everywhere, wishes.get(job)) if n is not None]
        if asked and held > min(asked) and job not in turning:
            mine = given_up(_kept(db, job, rule.best), min(asked), rule.best_is == "lowest")
            found += [v for v in mine if v.id not in based and v.digest not in based]
    return found


def stale_uploads(db: Connection, before: float) -> list[tuple[str, str]]:
    """Return (digest, author) of uploads from before a time that no job started from."""
    based = based_on(db)
    rows = db.execute(sa.select(_U.digest, _U.author).where(_U.at < before)).all()
    return [(digest, author) for digest, author in rows if digest not in based]


def referenced(db: Connection) -> set[str]:
    """Return the digests of all frames that something recorded refers to."""
    named = sa.union(
        sa.select(_V.digest).where(_V.deleted.is_(None)),
        sa.select(_V.optimizer).where(_V.optimizer.is_not(None)),
        sa.select(_U.digest),
    )
    based = based_on(db)
    of_bases = db.execute(sa.select(_V.id, _V.digest).where(_V.deleted.is_not(None)))
    return {
        *db.execute(named).scalars(),
        *based,
        *(digest for id, digest in of_bases if id in based),
    }


class Collector:
    """Sweeps the frames of one hub. Belongs to one event loop."""

    def __init__(  # noqa: PLR0913 - the parts it works on
        self,
        store: Store,
        blobs: Blobs,
        rule: Retention,
        now: Callable[[], float],
        *,
        live: Callable[[str], JobState | None] = lambda _: None,
        lock: asyncio.Lock | None = None,
    ) -> None:
        """`live(job)` is a job's state in memory; `lock` is held while files are judged."""
        self._store = store
        self._blobs = blobs
        self._rule = rule
        self._now = now
        self._live = live
        self._lock = lock or asyncio.Lock()
        self._suspects: dict[str, float] = {}  # unreferenced digest -> since when

    async def sweep(self) -> Swept:
        """Do one round of both steps; raises what the database or the disk says."""
        try:
            marked, dropped = await self._mark()
            files = await self._delete()
        except BaseException:
            self._suspects = {}
            raise
        return Swept(marked, dropped, files)

    async def _mark(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        now, rule = self._now(), self._rule
        doomed = await self._store.read(lambda db: surplus(db, rule))
        before = now - rule.upload_days * DAY
        stale = await self._store.read(lambda db: stale_uploads(db, before))

        def write(db: Connection) -> None:
            _restore(db, now)
            for version in doomed:
                gone = sa.update(tables.versions).where(_V.id == version.id)
                loose = _V.deleted.is_(None) & _V.id.not_in(at_stage(*KEPT))
                if db.execute(gone.where(loose).values(deleted=now)).rowcount:
                    _note(db, now, version.id, version.digest)
            for digest, author in stale:
                mine = (_U.digest == digest) & (_U.author == author) & (_U.at < before)
                if db.execute(sa.delete(tables.uploads).where(mine)).rowcount:
                    _note(db, now, digest, f"uploaded by {author}, used by no job")

        await self._store.write(write)
        return tuple(v.id for v in doomed), tuple(digest for digest, _ in stale)

    async def _delete(self) -> tuple[str, ...]:
        """Delete the files that nothing has referred to for SETTLE seconds."""
        async with self._lock:
            # In this order: what is stored and recorded in between is in neither list.
            stored = await asyncio.to_thread(self._blobs.blobs)
            wanted = await self._store.read(referenced)
            states = [self._live(id) for id in await self._store.read(_unfinished)]
            loose = stored.keys() - wanted - {s.model for s in states if s is not None}
            now = self._now()
            self._suspects = {digest: self._suspects.get(digest, now) for digest in loose}
            if any(s.closing for s in states if s is not None):
                return ()  # it may have its file by now, and its row only later
            ripe = [d for d, since in self._suspects.items() if now - since >= SETTLE]
            if ripe:
                await self._store.write(lambda db: _note_unknown(db, now, ripe))
            for digest in ripe:
                await asyncio.to_thread(self._blobs.delete, digest)
                del self._suspects[digest]
        return tuple(ripe)


def _unfinished(db: Connection) -> Sequence[str]:
    jobs = tables.jobs.c
    return db.execute(sa.select(jobs.id).where(jobs.phase != "done")).scalars().all()


def _wishes(db: Connection) -> dict[str, int]:
    """Return job -> how many versions its experiment asks to keep, where it does."""
    jobs = tables.jobs.c
    asking = sa.select(jobs.id, jobs.experiment).where(
        jobs.experiment.contains('"keep":'), ~jobs.experiment.contains('"keep":null')
    )
    found = ((id, json.loads(text).get("keep")) for id, text in db.execute(asking))
    return {id: keep for id, keep in found if isinstance(keep, int)}


def _may_go_back(db: Connection) -> frozenset[str]:
    """Return the jobs that a bad round may lead back to any of their models."""
    jobs = tables.jobs.c
    watched = sa.select(jobs.id, jobs.experiment).where(
        jobs.phase != "done", jobs.experiment.contains('"rollback":true')
    )
    found = ((id, json.loads(text).get("watch")) for id, text in db.execute(watched))
    return frozenset(id for id, watch in found if watch and watch.get("rollback"))


def _kept(db: Connection, job: str, metric: str) -> list[Kept]:
    rows = db.execute(
        sa.select(_V.id, _V.round, _V.digest, _V.metrics).where(
            _V.job == job, _V.deleted.is_(None)
        )
    )
    return [
        Kept(id, round, digest, json.loads(metrics).get(metric))
        for id, round, digest, metrics in rows
    ]


def _restore(db: Connection, now: float) -> None:
    """Unmark what a job has started from since; its file is still there."""
    based = sorted(based_on(db))
    marked = sa.select(_V.id).where(
        _V.deleted.is_not(None), _V.id.in_(based) | _V.digest.in_(based)
    )
    for id in db.execute(marked).scalars().all():
        db.execute(sa.update(tables.versions).where(_V.id == id).values(deleted=None))
        audit.append(db, now, "hub", "frame.restore", id, detail="a job started from it")


def _note(db: Connection, now: float, subject: str, detail: str) -> None:
    audit.append(db, now, "hub", "frame.delete", subject, detail=detail)


def _note_unknown(db: Connection, now: float, digests: Iterable[str]) -> None:
    """Enter the deletion of files that no version and no upload had a line for."""
    for digest in sorted(digests):
        if not db.execute(sa.select(_V.id).where(_V.digest == digest).limit(1)).first():
            _note(db, now, digest, "referred to by nothing")
