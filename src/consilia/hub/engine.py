"""The hub's live jobs: events become durable, states move, commands are carried out.

One `LiveJob` each holds a state and its serial queue; this module connects them with the
sites (`presence`), the spools (`uploads`), the one folding thread and the people who steer;
those who look read through `reading`.

- A lease goes to its site the moment its round is open; a waiting poll answers at once.
- Folding and closing run in one worker thread, in the order in which they were commanded.
- A round's model, its version row, its audit line and the event `Closed` are one transaction;
  spools are deleted only after it.
- `recover` replays every unfinished journal and takes up what `core.round.outstanding` lists:
  the same leases, the accepted updates, a pending close, the timer.
"""

import asyncio
import base64
from collections.abc import Callable, Mapping

import msgspec
from sqlalchemy import Connection

from consilia.algo.strategy import strategy
from consilia.core import ids
from consilia.core.round import (
    Accepted,
    Changed,
    Event,
    Fold,
    Joined,
    Leased,
    Left,
    Paused,
    Resumed,
    RolledBack,
    Settled,
    Spoke,
    Started,
    Stopped,
    advance,
    new_job,
    outstanding,
)
from consilia.errors import ConfigError, Conflict, ConsiliaError, Wrong
from consilia.hub import (
    audit,
    encrypted,
    experiments,
    journal,
    leftovers,
    maskedevaluation,
    modelversions,
    records,
    steering,
)
from consilia.hub.blobs import Blobs
from consilia.hub.checks import records_limit
from consilia.hub.clock import Clock
from consilia.hub.driver import Driver, Limits, Meter, Parts, Uncounted
from consilia.hub.experiments import Problem
from consilia.hub.job import Also, Book, LiveJob
from consilia.hub.pool import placement
from consilia.hub.presence import Assignment, Presence
from consilia.hub.readiness import Needs, lack
from consilia.hub.reading import Reading
from consilia.hub.records import JobRecord
from consilia.hub.store import Store
from consilia.hub.uploads import Uploads
from consilia.wire import frames
from consilia.wire.people import Experiment
from consilia.wire.v1 import Advertisement, Arguments, Plan, Said, Study

CATALOGUE_AGE = 1.0  # seconds; looking asks the database, and polls are many


class Engine:
    """All jobs of the hub. Its methods belong to one event loop."""

    def __init__(  # noqa: PLR0913 - the parts it connects
        self,
        store: Store,
        blobs: Blobs,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        *,
        limits: Limits | None = None,
        meter: Meter | None = None,
        checkpoint: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`checkpoint(name)` is called, on any thread, at every step a crash could separate."""
        self.limits = limits or Limits()
        self.presence = Presence(
            clock, self._site_changed, self._delivered, self.limits.silence
        )
        self.uploads = Uploads(blobs)
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._random = random_bytes
        self._meter = meter or Uncounted()
        self._checkpoint = checkpoint
        parts = Parts(
            blobs,
            clock,
            self.presence,
            self.uploads,
            self.limits,
            self._meter,
            checkpoint,
            lambda site, tags: records_limit(self._said.get(site), tags),
        )
        self._driver = Driver(parts, self._finished)
        self._jobs: dict[str, LiveJob] = {}
        self.reading = Reading(store, clock, self._jobs, self._lacking)
        self._said: dict[str, Advertisement] = {}
        self._loading = asyncio.Lock()
        self._catalogue = (0, 0.0)  # version, and when to look again
        self.moves = 0  # changes of jobs and sites in memory, which people may see
        self.loop: asyncio.AbstractEventLoop | None = None

    # ---- life --------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up every unfinished job where its journal ends; call once, before serving."""
        self.loop = asyncio.get_running_loop()
        sites = await self._store.read(records.every_site)
        for site in sites:
            if site.state == "enrolled" and site.advertisement:
                self._said[site.name] = msgspec.msgpack.decode(
                    site.advertisement, type=Advertisement
                )
        spools = await asyncio.to_thread(self._blobs.spools)
        for name in spools:
            if leftovers.made_anew(name):
                await asyncio.to_thread(self._blobs.discard, name)
        for record in await self._store.read(records.unfinished_jobs):
            await self._load(record, expect=True)
        for name in await leftovers.find(spools, self._jobs, self._store):
            await asyncio.to_thread(self._blobs.discard, name)

    async def close(self) -> None:
        """Stop working; what is journalled goes on after the next `recover`."""
        for job in self._jobs.values():
            job.close()
        self.presence.close()
        await self._driver.close()
        for job in self._jobs.values():
            await job.settle()

    async def _load(self, record: JobRecord, *, expect: bool = False) -> LiveJob:
        """Replay a job's journal and carry out what is outstanding.

        `expect`: the hub has just started, and the sites that were ready will be back at once.
        """
        study = await self._store.read(
            lambda db: records.get_study(db, record.experiment.study)
        )
        events = await self._store.read(lambda db: journal.replay(db, record.id))
        latest = await self._store.read(lambda db: modelversions.latest(db, record.id))
        job = self._new(record, study.study, len(events))
        for _, event in events:
            job.state, _ = advance(job.state, event)
        job.book.ready = set(job.state.ready)
        job.book.optimizer = latest.optimizer if latest else None
        job.book.noted = dict(latest.metrics) if latest else {}
        went_back = any(isinstance(event, RolledBack) for _, event in events)
        if record.experiment.watch is not None or went_back or record.experiment.early_stop:
            job.book.versions = list(
                await self._store.read(lambda db: modelversions.of_job(db, record.id))
            )
        if job.state.model is not None:
            job.book.base = await asyncio.to_thread(self._header, job.state.model)
        for site in job.state.ready & self._said.keys() if expect else ():
            self.presence.expect(site)
        self._jobs[record.id] = job
        for command in outstanding(job.state):
            # A stopped job is not folded for: the close folds what is missing.
            if not isinstance(command, Fold) or job.state.phase in ("running", "closing"):
                self._driver.execute(job, command)
        self._sync(job)
        return job

    def _new(self, record: JobRecord, study: Study, seq: int) -> LiveJob:
        experiment = record.experiment
        chosen, options = strategy(experiment.strategy.name, experiment.strategy.options)
        needs = Needs(study, record.study_digest, experiment.plan)
        state = new_job(record.id, experiments.rounds_of(experiment))
        return LiveJob(
            Book(record, needs, chosen, options),
            state,
            seq,
            self._store,
            self._clock,
            self._driver.execute,
            self._checkpoint,
            self._moved,
        )

    # ---- for people --------------------------------------------------------------------------

    async def validate(self, experiment: Experiment) -> tuple[Problem, ...]:
        """Return everything that keeps an experiment from running; () when it may start."""
        refers = await self._store.read(
            lambda db: experiments.missing(db, experiment, self._blobs)
        )
        return (*experiments.problems(experiment), *refers)

    def _copies(self, study: Study) -> frozenset[str]:
        """Return the sites whose records the study's data centre holds."""
        said = {site: found for site in study.sites if (found := self.said(site)) is not None}
        return placement.held(study, experiments.digest_of(study), said)

    async def start(
        self, experiment: Experiment, author: str, study: Study, plan: Plan | None
    ) -> str:
        """Start a job and return its id; ConfigError lists every problem of the experiment.

        `plan` is None for statistics.
        """
        experiments.matches(experiment, study, plan)
        experiment = experiments.settled(experiment, study, self._copies(study))
        summed = {s for s in study.sites if (told := self.said(s)) and told.summed}
        experiment = maskedevaluation.settled(experiment, study.sites, summed)
        if found := await self.validate(experiment):
            words = "; ".join(map(str, found))
            raise ConfigError(Wrong(found[0].field, found[0].found, found[0].needed, words))
        base = await self._store.read(lambda db: experiments.base_frame(db, experiment))
        now = self._clock.now()
        record = JobRecord(
            id=ids.new_id("job", self._random(10)),
            experiment=experiment,
            study_digest=experiments.digest_of(study),
            author=author,
            created=now,
        )
        job = self._new(record, study, 0)
        job.book.versions = []
        if base is not None:
            job.book.base = await asyncio.to_thread(self._header, base)
        # Sites join first, so that the first round selects among all that are ready; the job's
        # row, and all of this, is one transaction.
        job.book.ready = {s for s in study.sites if self._lack(job, s) is None}
        first = [Joined(now, site) for site in sorted(job.book.ready)]
        started = Started(now, base, dict(experiment.arguments))
        self._jobs[record.id] = job
        try:
            events: tuple[Event, ...] = (*first, started)
            row = (lambda db: _enter(db, record, now),)
            futures = [job.submit(e, *(() if n else row)) for n, e in enumerate(events)]
            await asyncio.gather(*futures)
        except ConsiliaError:
            del self._jobs[record.id]
            raise
        return record.id

    async def stop(self, id: str, author: str) -> None:
        """Stop a job; accepted updates of its open round are kept for `resume`."""
        job = await self._live(id)
        cause = f"stopped by {author}"
        now = self._clock.now()
        line = _line(now, f"user:{author}", "job.stop", id)
        if not await job.submit(Stopped(now, cause), line):
            raise Conflict(f"job {id} is {job.state.phase}: there is nothing to stop")

    async def resume(self, id: str, rounds: int | None, author: str) -> None:
        """Go on with a stopped or failed job, or a finished one that is given more rounds."""
        job = await self._live(id, finished=rounds is not None)
        if rounds is not None and rounds < job.state.config.rounds:
            raise ConfigError(
                f"rounds is {rounds}, job {id} has {job.state.config.rounds} already: "
                "give that many or more"
            )
        await self._store.read(lambda db: records.need_terms(db, job.book.record))
        now = self._clock.now()
        self._sync(job, always=True)
        detail = "" if rounds is None else f"rounds {rounds}"
        line = _line(now, f"user:{author}", "job.resume", id, detail=detail)

        def then() -> None:
            self._sync(job)  # sites that came while this was written: an idle job is not told

        if not await job.submit(Resumed(now, rounds), line, then=then):
            if job.state.phase == "done":
                self._finished(job)
            raise Conflict(
                f"job {id} is {job.state.phase}: only a stopped or failed job goes on, or a "
                "finished one that is given more rounds"
            )

    async def pause(self, id: str, author: str) -> None:
        """Let a job open nothing after what is open; `resume` lets it go on."""
        job = await self._live(id)
        now = self._clock.now()
        line = _line(now, f"user:{author}", "job.pause", id)
        if not await job.submit(Paused(now, f"paused by {author}"), line):
            raise Conflict(f"job {id} is {job.state.phase}: there is nothing to pause")

    async def roll_back(self, id: str, round: int, author: str) -> None:
        """Let the next round of an idle job start from the version of an earlier round."""
        job = await self._live(id, finished=True)
        try:
            await steering.roll_back(job, round, author, self._store, self._header, self._clock)
        finally:
            if job.state.phase == "done":
                self._finished(job)

    async def change(self, id: str, arguments: Arguments, author: str) -> None:
        """Change arguments from the next round that opens."""
        if problem := experiments.arguments_misfit(arguments):
            raise ConfigError(Wrong(problem.field, problem.found, problem.needed))
        job = await self._live(id)
        now = self._clock.now()
        line = _line(
            now, f"user:{author}", "job.change", id, detail=", ".join(sorted(arguments))
        )
        await job.submit(Changed(now, dict(arguments)), line)

    async def _live(self, id: str, *, finished: bool = False) -> LiveJob:
        """Return a job, bringing it back to life when it is not (any more).

        Raises NotFound for an unknown job, Conflict for one that is done unless `finished`.
        """
        async with self._loading:
            if (job := self._jobs.get(id)) is not None:
                return job
            record = await self._store.read(lambda db: records.get_job(db, id))
            if record.phase == "done" and not finished:
                raise Conflict(f"job {id} is done; give it more rounds to go on with it")
            return await self._load(record)

    # ---- for the federation ------------------------------------------------------------------

    def job(self, id: str) -> LiveJob | None:
        """Return a live job, or None."""
        return self._jobs.get(id)

    def said(self, site: str) -> Advertisement | None:
        """Return what the site last said of itself."""
        return self._said.get(site)

    def advertised(self, site: str, advertisement: Advertisement) -> None:
        """Take a site's new advertisement: jobs it may now join, or has to leave, are told."""
        self._said[site] = advertisement
        self._site_changed(site)

    def catalogue_changed(self) -> None:
        """Tell the waiting sites that studies or plans have changed."""
        self._catalogue = (0, 0.0)
        self.presence.wake_all()

    def catalogue(self) -> int:
        """Return the version of studies and plans; other processes' changes within a second."""
        version, until = self._catalogue
        now = self._clock.now()
        if now >= until:
            version = self._store.generation("catalogue")
            self._catalogue = (version, now + CATALOGUE_AGE)
        return version

    def revoked(self, site: str) -> None:
        """Send a revoked site away: its leases end at once, and no round waits for them."""
        self._said.pop(site, None)
        for held in self.presence.drop(site):
            self._driver.spawn(self.settle(held, "rejected", "the site was revoked"))
        self._site_changed(site)

    async def accept(
        self,
        assignment: Assignment,
        digest: str,
        records_: int,
        metrics: Mapping[str, float],
        body: str = "",
    ) -> bool:
        """Journal an update as accepted; True once that is durable, False when it came late.

        `body` is what an evaluation has found (hub.assessing); it has no `digest`.
        """
        self._checkpoint("accept.verified")
        job = self._jobs.get(assignment.task.job)
        if job is None:
            return False
        now, told = self._clock.now(), dict(metrics)
        event = Accepted(now, assignment.lease, digest, records_, told, body)

        def then() -> None:
            self._ended(job, assignment, "accepted")

        took = await job.submit(event, then=then)
        self._checkpoint("accept.acknowledged")
        return took

    async def spoke(self, assignment: Assignment, said: Said) -> bool:
        """Journal a site's message of a masked round; False when the step is not open."""
        job = self._jobs.get(assignment.task.job)
        if job is None:
            return False
        body = base64.b64encode(said.body).decode()
        if await job.submit(Spoke(self._clock.now(), said.lease, said.step, body)):
            return True
        lease = job.state.leases.get(said.lease)
        return lease is not None and lease.words.get(said.step) == body  # said before

    async def settle(
        self, assignment: Assignment, status: "experiments.Ending", cause: str
    ) -> bool:
        """End a lease without an update, with an audit line; False when it had ended before."""
        job = self._jobs.get(assignment.task.job)
        if job is None:
            return False
        now = self._clock.now()
        event = Settled(now, assignment.lease, status, cause)
        who = f"site:{assignment.site}"
        line = _line(now, who, "lease.end", assignment.lease, outcome=status, detail=cause)

        def then() -> None:
            self._ended(job, assignment, status)
            known = job.state.leases.get(assignment.lease)
            if known is None or known.status != "accepted":  # a masked sum is made with it
                self._driver.later(lambda: self.uploads.forget(assignment.lease))

        return await job.submit(event, line, then=then)

    def reject_soon(self, assignment: Assignment, cause: str) -> None:
        """Settle a lease as rejected; from any thread, returns at once."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(
                lambda: self._driver.spawn(self.settle(assignment, "rejected", cause))
            )

    async def uploaded(self, assignment: Assignment) -> frames.Header | None:
        """Return the header of a lease's update, once it is whole, sound and durable."""
        known = self.uploads.known(assignment.lease)
        if known is not None:
            return known
        return await asyncio.to_thread(self.uploads.durable, assignment.lease, assignment.limit)

    async def opened(self, assignment: Assignment) -> frames.Header | None:
        """Return the header of the sum a site has opened, once it is whole and durable."""
        name = encrypted.opened_of(assignment.lease)
        return await asyncio.to_thread(self.uploads.durable, name, assignment.limit)

    async def ciphertexts_misfit(self, assignment: Assignment) -> str | None:
        """Say why the ciphertexts of a spooled update cannot be added, or None."""
        return await asyncio.to_thread(encrypted.update_misfit, self._blobs, assignment.lease)

    async def ending(self, id: str, lease: str) -> "Accepted | Settled | None":
        """Return how a lease ended that is not open any more, from the journal."""
        events = await self._store.read(lambda db: journal.replay(db, id))
        for _, event in reversed(events):
            if isinstance(event, Accepted | Settled) and event.lease == lease:
                return event
        return None

    def _ended(self, job: LiveJob, assignment: Assignment, outcome: str) -> None:
        if outcome != "accepted" or not assignment.task.cohort:
            self.presence.settle(assignment.site, assignment.lease)  # a masked one goes on
        job.book.progress.pop(assignment.site, None)
        self._meter.update(outcome)

    # ---- sites come and go -------------------------------------------------------------------

    def _moved(self) -> None:
        self.moves += 1

    def _finished(self, job: LiveJob) -> None:
        self._jobs.pop(job.id, None)
        self._moved()

    def _site_changed(self, site: str) -> None:
        self._moved()
        if not self.presence.online(site) and (at := self.presence.last_seen(site)) is not None:
            self._driver.spawn(self._store.write(lambda db: records.set_seen(db, {site: at})))
        for job in self._jobs.values():
            if site in job.book.needs.study.sites:
                self._sync(job, (site,))

    def _sync(
        self, job: LiveJob, sites: tuple[str, ...] | None = None, always: bool = False
    ) -> None:
        """Tell the job which sites are ready or no longer so. Idle jobs are not told."""
        if job.state.phase in ("done", "stopped", "failed") and not always:
            return
        now = self._clock.now()
        for site in job.book.needs.study.sites if sites is None else sites:
            ready = self._lack(job, site) is None
            if ready and site not in job.book.ready:
                job.book.ready.add(site)
                job.note(Joined(now, site))
            elif not ready and site in job.book.ready:
                job.book.ready.discard(site)
                job.note(Left(now, site))

    def _lack(self, job: LiveJob, site: str) -> str | None:
        return lack(site, job.book.needs, self._said.get(site), self.presence.online(site))

    def _lacking(self, job: LiveJob) -> dict[str, str | None]:
        return {site: self._lack(job, site) for site in job.book.needs.study.sites}

    def _delivered(self, lease: str) -> None:
        job = self._jobs.get(lease.split(".", 1)[0])
        known = None if job is None else job.state.leases.get(lease)
        if job is not None and known is not None and not known.delivered:
            job.note(Leased(self._clock.now(), lease), lazy=True)

    def _header(self, digest: str) -> frames.Header:
        with self._blobs.open(digest) as blob:
            return frames.read_header(blob.fd)


def _line(  # noqa: PLR0913 - the parts of an audit line
    at: float, actor: str, action: str, subject: str, *, detail: str = "", outcome: str = "done"
) -> Also:
    """Return what writes one audit line into an event's transaction."""
    return lambda db: audit.append(
        db, at, actor, action, subject, outcome=outcome, detail=detail
    )


def _enter(db: Connection, record: JobRecord, at: float) -> None:
    records.add_job(db, record)
    detail = f"study {record.experiment.study}, plan {record.experiment.plan}"
    audit.append(db, at, f"user:{record.author}", "job.start", record.id, detail=detail)
