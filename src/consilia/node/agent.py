"""The agent: keeps a line to the hub, lets the site's policy decide, runs what it allows.

    poll -> policy.decide -> model into the cache -> runner -> release -> upload -> report
               |                                                 |
               +-> declined, audited, nothing started            +-> durable before it is sent

One poll is always open and is answered with what differs from what the node says it works on,
so lost answers, restarts and reconnections need no handling of their own. While the hub is
away tasks go on, and their answers wait in the outbox. A change of the site's decisions stops
what they no longer allow within a second.

The agent holds no model in memory and imports no torch: workers do.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from typing import TypeVar

from consilia.core import ids
from consilia.errors import (
    ConfigError,
    Conflict,
    ConsiliaError,
    DataError,
    Refused,
    StorageError,
    TransferError,
    WorkerError,
)
from consilia.node import catalogue, datasets, opening, optout, purge
from consilia.node.backoff import Backoff, Restraint
from consilia.node.cache import Cache
from consilia.node.config import NodeConfig
from consilia.node.delivery import Delivery, conclude
from consilia.node.exchange import Exchange
from consilia.node.link import HubLink
from consilia.node.masking import Open, Spoken, encrypts
from consilia.node.opening import Opening, Tools
from consilia.node.policy import short
from consilia.node.release import Answer, Release
from consilia.node.runner import Runs
from consilia.node.spending import Spending, dp_of
from consilia.node.standing import Grant, Standing
from consilia.node.status import AgentStatus
from consilia.node.store import Store, printable
from consilia.node.work import (
    Ending,
    Job,
    NotAllowed,
    Talk,
    Work,
    cause_of,
    in_thread,
    transfer,
    uncancel,
)
from consilia.wire.v1 import Lease, Metrics, Orders, Poll
from consilia.wire.worker import Run

WAIT = 25.0  # seconds the hub may hold a poll
TICK = 1.0  # seconds between looks at what changes by itself: days, the store
LOOK = 60.0  # seconds between looks at the datasets' files
TELL = 1.0  # seconds between two progress messages of a task
RETRY_DISK = 5.0  # seconds between attempts to write down an answer
MAX_WORKS = 64  # leases a node takes on at once
MAX_ID = 200  # characters of a lease's id: each is kept for good
TRANSFERS = 16  # uploads and downloads at once, given up ones included
NEIGHBOURS = 4  # cached models looked at for tensors that need not be fetched

_LOG = logging.getLogger("consilia.node.agent")
Found = TypeVar("Found", Answer, Answer | None)


class Agent:
    """One node's agent. Made and run on one event loop."""

    def __init__(  # noqa: PLR0913 - the parts it is made of, by keyword
        self,
        *,
        config: NodeConfig,
        store: Store,
        release: Release,
        cache: Cache,
        link: HubLink,
        runner: Runs,
        now: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        """Take the parts; `run` does the work."""
        self._config = config
        self._store = store
        self._release = release
        self._cache = cache
        self._link = link
        self._runner = runner
        self._now = now
        self._secret = random_bytes
        self._rng = random.Random(int.from_bytes(random_bytes(8), "big"))  # noqa: S311 - jitter
        self._session = ids.new_id("s", random_bytes(10))
        self._standing = Standing(store, config, now)
        self._threads = ThreadPoolExecutor(TRANSFERS, "consilia-transfer")
        self._delivery = Delivery(link, release, self._threads, self._rng)
        self._spending = Spending(store, config.privacy, now)
        self._mirrored = asyncio.Event()  # the hub's copy of the ledger's head was compared
        self._works: dict[str, Work] = {}
        self._jobs: dict[str, Job] = {}
        self._slots = asyncio.Semaphore(config.limits.tasks)
        self._background: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()  # the public state has to be advertised
        self._unclaimed: set[str] = set()  # masked rounds from before, not given again yet
        self._refused = 0  # tasks refused in a row
        self._catalogue = 0
        self._stamp = (-1, date.min, True)
        self._purged = date.min
        self._contact: float | None = None
        self._problem = "has not reached the hub yet"

    async def run(self) -> None:
        """Work until cancelled. Unfinished tasks are dropped then: the hub gives them again."""
        answers = await in_thread(self._release.pending)
        rounds = {r.lease.id: r for r in await in_thread(self._release.masking.open)}
        await in_thread(opening.sweep, self._release.opening, rounds)
        for answer in answers:
            self._take(answer.lease, answer, rounds.pop(answer.lease.id, None))
        for name, round in rounds.items():
            if self._release.answered(name):
                self._take(round.lease, None, round)  # the hub has our update
            else:
                self._unclaimed.add(name)
        self.changed()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen())
                group.create_task(self._advertise())
                group.create_task(self._keep_house())
        finally:
            await self._close()

    def changed(self) -> None:
        """Look at the site's decisions anew: somebody has changed them."""
        stamp = self._standing.stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            self._config = self._standing.config
            self._release.settle(self._config)
            self._reconsider()

    def stop_job(self, job: str) -> int:
        """Stop the tasks of a job, as the site's staff asked; return how many there were."""
        found = [w for w in self._works.values() if w.lease.task.job == job]
        for work in found:
            self._end(work, Ending("staff", ("stopped by the site's staff",)))
        return len(found)

    def empty_cache(self) -> int:
        """Remove the models that no task uses; return their bytes."""
        return self._cache.clear()

    def status(self) -> AgentStatus:
        """Return what the agent does now."""
        return AgentStatus(
            not self._problem,
            self._contact,
            self._problem,
            tuple(work.status() for work in self._works.values()),
            self._cache.bytes,
        )

    # ---- the line to the hub ---------------------------------------------------------------

    async def _listen(self) -> None:
        """Keep one poll open and do what its answers say."""
        backoff, restraint = Backoff(self._rng), Restraint()
        loop = asyncio.get_running_loop()
        while True:
            try:
                asked = loop.time()
                running = tuple(sorted(self._works))
                heard = {n: w.exchange.heard for n, w in self._works.items() if w.exchange}
                orders = await self._link.poll(
                    Poll(self._session, running, self._catalogue, WAIT, heard)
                )
                self._heard()
                backoff.reset()
                took, fresh = loop.time() - asked, self._obey(orders)
                await self._forget_unclaimed()
                if orders.catalogue != self._catalogue:
                    site = self._config.site
                    self._catalogue, news = await catalogue.sync(
                        self._link,
                        self._store,
                        site,
                        self._now,
                        self._release.take_mirror,
                    )
                    fresh = fresh or news
                    self._mirrored.set()
                if pause := restraint.pause(fresh, took, self._refused):
                    await asyncio.sleep(pause)
            except Exception as e:  # whatever happened, the node keeps its line
                self._lost(e)
                await asyncio.sleep(backoff.delay())

    def _obey(self, orders: Orders) -> bool:
        """Start what is new, end what was taken back; return whether any was useful."""
        before = len(self._works)
        for lease in orders.leases:
            if len(lease.id) > MAX_ID:
                _LOG.warning("ignored a lease with an id of %d characters", len(lease.id))
            elif lease.id not in self._works and len(self._works) < MAX_WORKS:
                self._take(lease)
        fresh = len(self._works) > before
        for word in orders.words:
            known = self._works.get(word.lease)
            if known is not None and known.exchange is not None:
                known.exchange.take(word)
                fresh = True
        for lease_id in orders.cancel:
            work = self._works.get(lease_id)
            if work is not None and work.ending is None:
                self._end(work, Ending("hub", ("taken back by the hub",)))
                fresh = True
        return fresh

    def _heard(self) -> None:
        """Note that the hub answered; after a silence, deliver what waits."""
        if self._problem:
            _LOG.info("connected to %s", self._config.hub)
            self._delivery.reached()
        self._problem, self._contact = "", self._now()

    def _lost(self, e: Exception) -> None:
        """Note that the hub did not answer, once per silence and cause."""
        problem = printable(f"{type(e).__name__}: {e}", 500)
        if problem != self._problem:
            if isinstance(e, ConsiliaError | OSError):
                _LOG.warning("no line to %s: %s", self._config.hub, problem)
            else:
                _LOG.error("a defect broke the line to the hub", exc_info=e)
        self._problem = problem
        self._news.set()  # the hub may have been restarted: it is told everything anew

    async def _advertise(self) -> None:
        """Send the public state whenever it has changed or the line was made anew."""
        backoff = Backoff(self._rng)
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await in_thread(datasets.watch, self._store, self._now())
                message = self._standing.advertisement()
                sealed = await in_thread(self._release.advertisement, message)
                verdict = await self._link.advertise(sealed)
                self._heard()
                if not verdict.accepted:
                    _LOG.warning("the hub refused this site's state: %s", verdict.reason[:300])
                backoff.reset()
            except (ConsiliaError, OSError) as e:
                _LOG.debug("advertising failed: %s", e)
                await self._delivery.pause(backoff.delay())
                self._news.set()

    # ---- the site's decisions --------------------------------------------------------------

    def _reconsider(self) -> None:
        """Stop what is no longer allowed, and tell the hub what is."""
        for work in list(self._works.values()):
            if work.phase == "waiting" or work.ending is not None:
                continue  # judged when its turn comes
            if isinstance(work.answer, Answer) and work.answer.frame is None:
                continue  # nothing of the site's data is in a refusal or failure
            decision = self._standing.judge(work.lease)
            if not decision.allowed:
                self._end(work, Ending("policy", decision.objections))
        for name, job in self._jobs.items():
            if job.lease is not None and not self._standing.judge(job.lease).allowed:
                job.lease = None  # warm between two rounds, with the plan's code and the data
                self._spawn(self._runner.stop(name))
        self._news.set()

    async def _keep_house(self) -> None:
        """Once a second: the day, changes nobody told of, idle workers, notes to write down."""
        look = self._now() + LOOK
        while True:
            await asyncio.sleep(TICK)
            try:
                if (at := self._now()) >= look:
                    look = at + LOOK
                    await in_thread(datasets.watch, self._store, at)
                self.changed()
                self._forget_jobs()
                if not any(w.phase != "sending" for w in self._works.values()):
                    await in_thread(self._release.flush)
                await self._purge_due()
                if asked := self._standing.asked():
                    await in_thread(self._standing.keep, asked)
            except (ConsiliaError, OSError) as e:
                _LOG.error("%s", e)

    async def _purge_due(self) -> None:
        """Once a day: delete what studies left here that ended long enough ago."""
        today = self._standing.today()
        if self._purged == today:
            return
        self._purged = today
        days = self._config.retention_days
        for digest in await in_thread(purge.due, self._store, days, today):
            await in_thread(
                purge.purge,
                self._store,
                self._store.path.parent,
                digest,
                actor="agent",
                now=self._now(),
                empty_cache=self._cache.clear,
                reason=f"retention_days: {days}",
            )

    def _forget_jobs(self) -> None:
        """Forget jobs that have had no task for as long as the runner keeps a worker."""
        busy = {w.lease.task.job for w in self._works.values()}
        before = asyncio.get_running_loop().time() - self._config.limits.idle_seconds
        for name, job in list(self._jobs.items()):
            if name not in busy and job.used < before:
                del self._jobs[name]
                self._cache.ended(name)

    # ---- one lease -------------------------------------------------------------------------

    def _take(
        self, lease: Lease, answer: Answer | None = None, round: Open | None = None
    ) -> None:
        """Begin to work on a lease, or go on where a restarted agent was."""
        loop = asyncio.get_running_loop()
        limit = self._config.limits.seconds
        timeout = min(limit, lease.timeout) if lease.timeout > 0 else 0.0
        work = Work(lease, self._now(), loop.time() + timeout, answer)
        if answer is not None:
            work.phase = "sending"
        if round is not None:
            work.phase = "sending" if answer is not None else "listening"
            self._join(work, round.spoken)
        self._works[lease.id] = work
        work.task = loop.create_task(self._perform(work))

    def _end(self, work: Work, ending: Ending) -> None:
        """Stop a task early. What is being sent ends by itself when the hub says so."""
        work.ending = ending
        if work.task is None or (ending.by == "hub" and work.phase == "sending"):
            return
        if ending.by == "hub" and work.phase == "listening" and work.exchange is not None:
            work.exchange.end()
            self._works.pop(work.lease.id, None)  # the hub need not say so again
            self._keep(work.task)
            return
        work.task.cancel()
        # In release a thread reads from the worker: end what it reads. The site's own word
        # also ends a worker that is still loading.
        if work.phase == "releasing" or ending.by != "hub":
            self._spawn(self._runner.stop(work.lease.task.job))

    async def _perform(self, work: Work) -> None:
        """Find the answer to a lease and deliver it, whatever happens on the way."""
        try:
            heard = work.phase == "listening"
            if not heard and work.answer is None:
                work.answer = await self._answer(work)
            if not heard and work.answer is not None:
                taken = await self._delivery.deliver(work, work.answer)
                heard = taken and work.answer.frame is not None and work.ending is None
            if heard and work.exchange is not None:
                await self._hear_out(work, work.exchange)
            await self._leave(work)
        except asyncio.CancelledError:
            if work.exchange is not None:  # the agent ends: the round goes on after its start
                await work.exchange.close()
            raise
        except Exception:
            _LOG.exception("a defect ended lease %s", printable(work.lease.id, 200))
        finally:
            if self._works.get(work.lease.id) is work:
                del self._works[work.lease.id]

    def _join(self, work: Work, spoken: Spoken | None = None) -> None:
        """Take part in the masked round that a lease belongs to."""
        masking, pause = self._release.masking, self._delivery.pause
        broke, opens = partial(self._broke, work), None
        if encrypts(work.lease.task):
            tools = Tools(
                masking,
                self._link,
                self._release.opening,
                self._cache.path,
                self._threads,
                pause,
                self._rng,
                self._secret,
            )
            opens = Opening(work.lease, tools)
        exchange = Exchange(work.lease, masking, self._link, pause, self._rng, broke, opens)
        work.exchange = exchange
        exchange.start(spoken)

    def _broke(self, work: Work, error: ConsiliaError) -> None:
        """Stop a task whose masked round this site must not go on with."""
        if isinstance(error, Refused) and work.answer is None and work.ending is None:
            self._end(work, Ending("policy", (str(error),)))

    async def _hear_out(self, work: Work, exchange: Talk) -> None:
        """Answer in a masked round until it is over, or tell the hub that this site leaves."""
        work.phase = "listening"
        find: Callable[[], Answer]
        try:
            await exchange.ended()
            return
        except asyncio.CancelledError:
            if work.ending is None:
                raise  # the agent itself is ending
            uncancel()
            find = partial(conclude, self._release, work, work.ending)
        except Refused as e:
            reason = NotAllowed((str(e),), "release.refuse")
            find = partial(self._refused_answer, work.lease, reason)
        except ConsiliaError as e:
            find = partial(self._failed, work.lease, e)
        await exchange.close()
        await self._delivery.deliver(work, await self._found(work, find))

    async def _leave(self, work: Work) -> None:
        """A lease is over: forget the secrets of its masked round."""
        if work.exchange is not None:
            await work.exchange.close()
        if work.lease.task.cohort:
            await in_thread(self._release.masking.forget, work.lease.id)
            await in_thread(opening.forget, self._release.opening, work.lease.id)

    async def _forget_unclaimed(self) -> None:
        """Forget rounds that were over while the agent was away: the hub does not ask."""
        gone = self._unclaimed.difference(self._works)
        self._unclaimed.clear()
        if gone:
            await in_thread(self._release.masking.forget, *gone)

    async def _answer(self, work: Work) -> Answer | None:
        """Run the task if it may run; return what to tell the hub, None for nothing."""
        find: Callable[[], Answer | None]
        try:
            return await self._attempt(work)
        except asyncio.CancelledError:
            if work.ending is None:
                raise  # the agent itself is ending
            uncancel()
            find = partial(self._stopped, work, work.ending)
        except NotAllowed as e:
            find = partial(self._refused_answer, work.lease, e)
        except Exception as e:  # each becomes a word of a closed list
            find = partial(self._failed, work.lease, e)
        return await self._found(work, find)

    async def _found(self, work: Work, find: Callable[[], Found]) -> Found:
        """Return what `find` makes for the hub; wait for the disk, if need be."""
        while True:
            try:
                return await in_thread(find)
            except StorageError as e:
                # Not even a refusal leaves without its audit line: wait for the disk.
                _LOG.error("cannot answer lease %s yet: %s", printable(work.lease.id, 200), e)
                await asyncio.sleep(RETRY_DISK)

    async def _attempt(self, work: Work) -> Answer:
        """Judge, prepare, run, release. Raises NotAllowed, or what went wrong."""
        lease = work.lease
        self._judge(lease, note=True)
        if lease.task.cohort:
            self._join(work)  # before its turn: the others wait for our keys, not our update
        job = self._jobs.setdefault(lease.task.job, Job())
        async with job.lock, self._slots:
            work.phase = "preparing"
            grant = self._judge(lease)  # time has passed: ask again
            job.lease = lease
            self._refused = 0
            if dp_of(lease.task) is not None:
                await self._reserve(lease, grant)
            try:
                return await self._run(work, job, grant)
            except Refused as e:
                raise NotAllowed((str(e),), "release.refuse") from None
            finally:
                await self._give_back(lease)
                job.used = asyncio.get_running_loop().time()

    async def _reserve(self, lease: Lease, grant: Grant) -> None:
        """Reserve what the task costs of the site's privacy budget, or raise NotAllowed."""
        name = grant.dataset.name if grant.dataset else None
        await self._mirrored.wait()
        try:
            await in_thread(self._spending.reserve, lease, name)
        except (Refused, Conflict, ConfigError) as e:
            raise NotAllowed((str(e),), "task.refuse") from None

    async def _give_back(self, lease: Lease) -> None:
        if dp_of(lease.task) is not None:
            await in_thread(self._spending.give_back, lease, "it never began")
            self._news.set()  # the hub keeps the ledger's new head

    def _judge(self, lease: Lease, note: bool = False) -> Grant:
        """Return what the lease may use, or raise NotAllowed; `note` remembers what it asks."""
        if self._release.answered(lease.id):
            raise NotAllowed(("this lease was answered before",), "task.refuse")
        try:  # a long one would push the plan and the dataset out of the audit trail's line
            ids.name(lease.task.job, "job")
        except ConfigError as e:
            raise NotAllowed((str(e),), "task.refuse") from None
        decision = self._standing.judge(lease, note)
        if not decision.allowed:
            raise NotAllowed(decision.objections, "task.refuse", decision.told)
        return self._standing.grant(lease, decision)

    async def _run(self, work: Work, job: Job, grant: Grant) -> Answer:
        """Run an allowed task in the job's worker and release its result."""
        lease, task, loop = work.lease, work.lease.task, asyncio.get_running_loop()
        work.records = grant.dataset.records if grant.dataset else 0
        started = loop.time()
        with self._held(task.model) as held:
            model = held
            if task.model is not None and model is None:
                model = await self._fetch(work, task.model)
            if task.model is not None:
                self._cache.newest(task.job, task.model)
            await in_thread(self._enter, lease, job, grant)
            run = Run(
                task.kind,
                task.round,
                task.arguments,
                None,
                task.seed,
                task.deterministic,
                dp=dp_of(task),
            )
            if run.dp is not None:
                await in_thread(self._spending.begin, lease)
            work.phase, work.told = "training", loop.time()
            output = await self._runner.run(
                task.job,
                grant.plan,
                grant.dataset,
                run,
                model,
                partial(self._step, work),
                work.left,
            )
            answer: Answer | None = None
            try:
                if work.exchange is not None:
                    await work.exchange.ready(work.left)
                work.phase = "releasing"
                answer = await in_thread(
                    self._release.result,
                    lease,
                    output.done,
                    output.tensors,
                    base=model,
                    available=grant.dataset.records if grant.dataset else 0,
                    least=grant.least,
                    seconds=loop.time() - started,
                    dataset=grant.dataset.name if grant.dataset else "",
                )
            except WorkerError as e:
                raise output.failure or e from None  # why it was killed says more than its end
            except asyncio.CancelledError:
                await self._runner.stop(task.job)  # ends the thread that reads from the worker
                raise
            finally:
                output.close(consumed=answer is not None)
            return answer

    @contextlib.contextmanager
    def _held(self, digest: str | None) -> Iterator[Path | None]:
        """Keep a task's model in the cache while the task lasts."""
        if digest is None:
            yield None
            return
        with self._cache.using(digest) as path:
            yield path

    async def _fetch(self, work: Work, digest: str) -> Path:
        """Bring the model into the cache, over broken lines, until the task's time is over."""
        backoff = Backoff(self._rng)
        while True:
            try:
                path = self._cache.path(digest)
                near = self._cache.paths()[:NEIGHBOURS]
                await transfer(self._threads, self._link.fetch, digest, path, near)
                return self._cache.adopt(digest)
            except TransferError as e:
                _LOG.info("model %s: %s; trying again", short(digest), e)
            if work.left <= 0:
                raise WorkerError("the model did not arrive in time", "transfer")
            await self._delivery.pause(backoff.delay())

    def _enter(self, lease: Lease, job: Job, grant: Grant) -> None:
        """Check the file, and enter in the audit trail what is about to use it.

        One line for all rounds of a job with the same facts: each result has its own.
        """
        task = lease.task
        if grant.dataset is not None:
            try:
                datasets.check_unchanged(grant.dataset)
            except DataError:
                datasets.watch(self._store, self._now())  # no further task is given it
                raise
        name = grant.dataset.name if grant.dataset else "none"
        arguments, loaded = tuple(sorted(task.arguments.items())), grant.loaded
        facts = (task.kind, task.study, task.plan, name, arguments, loaded, dp_of(task))
        if facts != job.granted:
            detail = (
                f"{task.kind} of job {task.job} from round {task.round}: plan {task.plan}, "
                f"study {task.study_name}, dataset {name}, arguments {dict(task.arguments)}"
            )
            if loaded is not None and loaded.note:
                detail = f"{loaded.note}; {detail}"
            with self._store.write() as tx:
                purge.note_job(tx, task.study, task.job)
                if loaded is not None and dp_of(task) is None:
                    optout.note_use(tx, name, loaded.patients, self._now())
                tx.audit(self._now(), "agent", "task.start", lease.id, "allowed", detail)
            job.granted = facts

    # ---- how a task ends otherwise; these block ---------------------------------------------

    def _refused_answer(self, lease: Lease, e: NotAllowed) -> Answer:
        _LOG.warning("refused lease %s: %s", printable(lease.id, 200), printable(str(e), 2000))
        self._refused += 1
        return self._release.declined(lease, e.objections, e.action, e.told)

    def _stopped(self, work: Work, ending: Ending) -> Answer | None:
        if ending.by != "hub":
            return conclude(self._release, work, ending)
        self._release.dropped(work.lease, ending.text)
        return None

    def _failed(self, lease: Lease, e: Exception) -> Answer:
        """The cause leaves; the words stay in the site's log."""
        cause, known = cause_of(e), isinstance(e, ConsiliaError | OSError)
        name, words = printable(lease.id, 200), None if known else e
        _LOG.error("lease %s failed (%s): %s", name, cause, e, exc_info=words)
        return self._release.failed(lease, cause)

    # ---- telling the hub -------------------------------------------------------------------

    def _step(self, work: Work, fraction: float, metrics: Metrics) -> None:
        """Take a worker's progress; pass it on at most once a second."""
        work.fraction = fraction
        at = asyncio.get_running_loop().time()
        if at - work.told >= TELL and not self._problem:
            work.told = at
            self._spawn(self._tell(work, fraction, metrics))

    async def _tell(self, work: Work, fraction: float, metrics: Metrics) -> None:
        lease = work.lease
        try:
            sealed = await in_thread(
                self._release.progress, lease.id, fraction, metrics, lease.task, work.records
            )
            await self._link.report(sealed)
        except (ConsiliaError, OSError) as e:
            _LOG.debug("progress of %s not sent: %s", lease.id[:200], e)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        self._keep(asyncio.get_running_loop().create_task(work))

    def _keep(self, task: "asyncio.Task[None]") -> None:
        """See to it that a task is awaited when the agent ends."""
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _close(self) -> None:
        """End every task without an answer, then the workers, then write down the rest."""
        tasks = [w.task for w in self._works.values() if w.task is not None]
        tasks += self._background
        for task in tasks:
            task.cancel()
        await self._runner.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._link.close()
        self._threads.shutdown(wait=True)
        await in_thread(self._release.flush)
        await in_thread(self._standing.keep, self._standing.asked(everything=True))
