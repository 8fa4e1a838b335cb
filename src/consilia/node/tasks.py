"""The tasks a node is on: each from its lease until the hub has its answer.

    judged -> its turn -> execution -> upload -> report -> heard out, in a masked round
      |                      |
      +-> declined, audited  +-> stopped by the hub, the site's policy or its staff; failed

The agent brings what the hub says. One asyncio task for each lease finds the answer and has it
delivered, whatever happens on the way.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TypeVar

from consilia.core import ids
from consilia.errors import ConfigError, ConsiliaError, Refused, StorageError
from consilia.node import attempts, opening
from consilia.node.delivery import conclude
from consilia.node.exchange import Exchange
from consilia.node.execution import Execution, Parts
from consilia.node.masking import Open, Spoken, encrypts
from consilia.node.opening import Opening, Tools
from consilia.node.outbox import Answer
from consilia.node.standing import Grant
from consilia.node.status import TaskStatus
from consilia.node.store import printable
from consilia.node.work import (
    Ending,
    Job,
    NotAllowed,
    Talk,
    Work,
    cause_of,
    in_thread,
    uncancel,
)
from consilia.wire.v1 import Lease, Orders

RETRY_DISK = 5.0  # seconds between attempts to write down an answer
MAX_WORKS = 64  # leases a node takes on at once
MAX_ID = 200  # characters of a lease's id: each is kept for good

_LOG = logging.getLogger("consilia.node.tasks")
Found = TypeVar("Found", Answer, Answer | None)


class Tasks:
    """All tasks of one agent, on its event loop."""

    def __init__(self, parts: Parts, at_once: int) -> None:
        """Take the parts; `at_once` tasks run beside each other, the others wait."""
        self._parts = parts
        self._release = parts.release
        self._cache = parts.cache
        self._link = parts.link
        self._runner = parts.runner
        self._standing = parts.standing
        self._delivery = parts.delivery
        self._execution = Execution(parts, self._spawn)
        self.refused = 0  # in a row
        self._works: dict[str, Work] = {}
        self._jobs: dict[str, Job] = {}
        self._slots = asyncio.Semaphore(at_once)
        self._background: set[asyncio.Task[None]] = set()
        self._unclaimed: set[str] = set()  # masked rounds from before, not given again yet

    async def resume(self) -> None:
        """Go on where the agent was before it was restarted."""
        answers = await in_thread(self._release.outbox.pending)
        rounds = {r.lease.id: r for r in await in_thread(self._release.masking.open)}
        await in_thread(opening.sweep, self._release.opening, rounds)
        for answer in answers:
            self._take(answer.lease, answer, rounds.pop(answer.lease.id, None))
        for name, round in rounds.items():
            if self._release.outbox.answered(name):
                self._take(round.lease, None, round)  # the hub has our update
            else:
                self._unclaimed.add(name)

    # ---- what the agent asks and tells -----------------------------------------------------

    def running(self) -> tuple[str, ...]:
        """Return the leases the node is on, sorted."""
        return tuple(sorted(self._works))

    def heard(self) -> dict[str, str]:
        """Return what each masked round has heard from the hub last, by lease."""
        return {n: w.exchange.heard for n, w in self._works.items() if w.exchange}

    def status(self) -> tuple[TaskStatus, ...]:
        """Return what the site's staff see."""
        return tuple(work.status() for work in self._works.values())

    def computing(self) -> bool:
        """Return whether any does more than send its answer."""
        return any(w.phase != "sending" for w in self._works.values())

    def obey(self, orders: Orders) -> bool:
        """Start what is new, end what was taken back; return whether any was useful."""
        before = len(self._works)
        for lease in orders.leases:
            if len(lease.id) > MAX_ID:
                self._spawn(self._note_endless(lease))
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

    async def _note_endless(self, lease: Lease) -> None:
        """Enter a lease in the audit trail whose id is too long to be answered, or kept."""
        words = f"its id has {len(lease.id)} characters, at most {MAX_ID}: ignored"
        _LOG.warning("a lease: %s", words)
        with contextlib.suppress(StorageError):
            name, now = lease.id[:MAX_ID], self._parts.now()
            await in_thread(attempts.note, self._parts.store, "task.refuse", name, words, now)

    async def forget_unclaimed(self) -> None:
        """Forget rounds that were over while the agent was away: the hub does not ask."""
        gone = self._unclaimed.difference(self._works)
        self._unclaimed.clear()
        if gone:
            await in_thread(self._release.masking.forget, *gone)

    def stop_job(self, job: str) -> int:
        """Stop the tasks of a job, as the site's staff asked; return how many there were."""
        found = [w for w in self._works.values() if w.lease.task.job == job]
        for work in found:
            self._end(work, Ending("staff", ("stopped by the site's staff",)))
        return len(found)

    def reconsider(self) -> None:
        """Stop what the site's decisions no longer allow."""
        for work in list(self._works.values()):
            if work.phase == "waiting" or work.ending is not None:
                continue  # judged when its turn comes
            told = work.lease.task.kind in (
                "evaluate",
                "statistics",
            )  # an answer without a frame, of records
            if isinstance(work.answer, Answer) and work.answer.frame is None and not told:
                continue  # nothing of the site's data is in a refusal or failure
            decision = self._standing.judge(work.lease)
            if not decision.allowed:
                self._end(work, Ending("policy", decision.objections))
        for name, job in self._jobs.items():
            if job.lease is not None and not self._standing.judge(job.lease).allowed:
                job.lease = None  # warm between two rounds, with the plan's code and the data
                self._spawn(self._runner.stop(name))

    def forget_jobs(self) -> None:
        """Forget jobs that have had no task for as long as the runner keeps a worker."""
        busy = {w.lease.task.job for w in self._works.values()}
        before = asyncio.get_running_loop().time() - self._standing.config.limits.idle_seconds
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
        limit = self._standing.config.limits.seconds
        timeout = min(limit, lease.timeout) if lease.timeout > 0 else 0.0
        work = Work(lease, self._parts.now(), loop.time() + timeout, answer)
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
                goes_on = work.answer.frame is not None or work.answer.listens
                heard = taken and goes_on and work.ending is None
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
                self._parts.threads,
                pause,
                self._parts.rng,
                self._parts.random,
            )
            opens = Opening(work.lease, tools)
        exchange = Exchange(
            work.lease, masking, self._link, pause, self._parts.rng, broke, opens
        )
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
            self.refused = 0
            return await self._execution.carry_out(work, job, grant)

    def _judge(self, lease: Lease, note: bool = False) -> Grant:
        """Return what the lease may use, or raise NotAllowed; `note` remembers what it asks."""
        if self._release.outbox.answered(lease.id):
            raise NotAllowed(("this lease was answered before",), "task.refuse")
        try:  # a long one would push the plan and the dataset out of the audit trail's line
            ids.name(lease.task.job, "job")
            if lease.task.model is not None:
                ids.digest(lease.task.model)
        except ConfigError as e:
            raise NotAllowed((str(e),), "task.refuse") from None
        decision = self._standing.judge(lease, note)
        if not decision.allowed:
            raise NotAllowed(decision.objections, "task.refuse", decision.told)
        return self._standing.grant(lease, decision)

    # ---- how a task ends otherwise; these block ---------------------------------------------

    def _refused_answer(self, lease: Lease, e: NotAllowed) -> Answer:
        _LOG.warning("refused lease %s: %s", printable(lease.id, 200), printable(str(e), 2000))
        self.refused += 1
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

    # ---- what runs beside, and the end ----------------------------------------------------

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        self._keep(asyncio.get_running_loop().create_task(work))

    def _keep(self, task: "asyncio.Task[None]") -> None:
        """See to it that a task is awaited when the agent ends."""
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """End every task without an answer, then the workers: the hub gives them again."""
        tasks = [w.task for w in self._works.values() if w.task is not None]
        tasks += self._background
        for task in tasks:
            task.cancel()
        await self._runner.close()
        await asyncio.gather(*tasks, return_exceptions=True)
