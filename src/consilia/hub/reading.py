"""What people read of jobs: those in memory as they are now, the others from the store.

`hub.views` gives it the shape of the wire.
"""

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection

from consilia.core.events import Phase
from consilia.hub import modelversions, records, views
from consilia.hub.clock import Clock
from consilia.hub.job import LiveJob
from consilia.hub.paging import Page
from consilia.hub.people.roles import Seeing
from consilia.hub.records import JobRecord
from consilia.hub.store import Store
from consilia.wire.people import JobView

Lacking = Callable[[LiveJob], Mapping[str, str | None]]


class Reading:
    """Answers about jobs; belongs to the engine's event loop and changes nothing."""

    def __init__(
        self, store: Store, clock: Clock, jobs: Mapping[str, LiveJob], lacking: Lacking
    ) -> None:
        """`jobs` are the live ones, by id; `lacking` tells what keeps a job's sites away."""
        self._store = store
        self._clock = clock
        self._jobs = jobs
        self._lacking = lacking

    async def view(self, id: str) -> JobView:
        """Return a job, how far it is, and its closed rounds."""

        def read(db: Connection) -> tuple[JobRecord, tuple[modelversions.Version, ...]]:
            return records.get_job(db, id), modelversions.of_job(db, id)

        while True:
            job = self._jobs.get(id)
            if job is not None and job.book.versions is not None:
                return views.live(job, job.book.versions, self._lacking(job))
            round = None if job is None else job.state.round
            record, versions = await self._store.read(read)
            if self._jobs.get(id) is not job:
                continue  # it ended, or came back to life, meanwhile
            if job is None:
                return views.finished(record, versions)
            if job.state.round == round and not job.state.closing:
                job.book.versions = list(versions)
            if job.state.round == round:
                return views.live(job, versions, self._lacking(job))

    async def list(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        study: str | None = None,
        author: Seeing | None = None,
        phases: Sequence[Phase] | None = None,
    ) -> Page[JobView]:
        """Return jobs, newest first, without their rounds: all, or an author's studies'."""

        def read(db: Connection) -> tuple[Page[JobRecord], dict[str, int]]:
            found = records.list_jobs(
                db, limit=limit, cursor=cursor, study=study, author=author, phases=phases
            )
            return found, modelversions.last_rounds(db, [r.id for r in found.items])

        page, last = await self._store.read(read)
        items = tuple(
            views.live(self._jobs[r.id], (), self._lacking(self._jobs[r.id]))
            if r.id in self._jobs
            else views.finished(r, (), last.get(r.id, 0))
            for r in page.items
        )
        return Page(items, page.next)

    async def events(self, id: str, after: int = 0, wait: float = 0.0) -> views.Feed:
        """Return what happened after cursor `after`; wait up to `wait` s for the first."""
        until = self._clock.now() + wait
        while True:
            feed = await self._feed(id, after)
            left = until - self._clock.now()
            job = self._jobs.get(id)
            if feed.items or job is None or left <= 0:
                return feed
            await job.changed(left)

    async def _feed(self, id: str, after: int) -> views.Feed:
        job = self._jobs.get(id)
        if job is not None and not views.anything(job, after):
            return views.Feed((), after)
        sums, entries = await self._store.read(lambda db: views.read_entries(db, id, after))
        progress = () if job is None else job.book.progress.values()
        return views.feed(entries, progress, after, sums=sums)
