"""The agent: keeps a line to the hub, and the tasks to the site's decisions.

    poll -> tasks: policy.decide -> execution: runner -> release -> upload -> report
                      |                                     |
                      +-> declined, audited                 +-> durable before it is sent

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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date

from consilia.core import ids
from consilia.errors import ConsiliaError, StorageError, WireError
from consilia.node import attempts, catalogue, datasets, purge
from consilia.node.backoff import Backoff, Restraint
from consilia.node.cache import Cache
from consilia.node.config import NodeConfig
from consilia.node.delivery import Delivery
from consilia.node.execution import Parts
from consilia.node.link import HubLink
from consilia.node.release import Release
from consilia.node.runner import Runs
from consilia.node.spending import Spending
from consilia.node.standing import Standing
from consilia.node.status import AgentStatus
from consilia.node.store import Store, printable
from consilia.node.tasks import Tasks
from consilia.node.work import in_thread
from consilia.wire.v1 import Poll

WAIT = 25.0  # seconds the hub may hold a poll
TICK = 1.0  # seconds between looks at what changes by itself: days, the store
LOOK = 60.0  # seconds between looks at the datasets' files
TRANSFERS = 16  # uploads and downloads at once, given up ones included

_LOG = logging.getLogger("consilia.node.agent")


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
        self._now = now
        self._rng = random.Random(int.from_bytes(random_bytes(8), "big"))  # noqa: S311 - jitter
        self._session = ids.new_id("s", random_bytes(10))
        self._standing = Standing(store, config, now)
        self._threads = ThreadPoolExecutor(TRANSFERS, "consilia-transfer")
        self._delivery = Delivery(link, release, self._threads, self._rng)
        self._mirrored = asyncio.Event()  # the hub's copy of the ledger's head was compared
        self._news = asyncio.Event()  # the public state has to be advertised
        parts = Parts(
            store=store,
            release=release,
            cache=cache,
            link=link,
            runner=runner,
            standing=self._standing,
            spending=Spending(store, config.privacy, now),
            delivery=self._delivery,
            threads=self._threads,
            connected=lambda: not self._problem,
            mirrored=self._mirrored,
            news=self._news,
            now=now,
            rng=self._rng,
            random=random_bytes,
        )
        self._tasks = Tasks(parts, config.limits.tasks)
        self._catalogue = 0
        self._stamp = (-1, date.min, True)
        self._purged = date.min
        self._contact: float | None = None
        self._problem = "has not reached the hub yet"

    async def run(self) -> None:
        """Work until cancelled. Unfinished tasks are dropped then: the hub gives them again."""
        await self._tasks.resume()
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
        return self._tasks.stop_job(job)

    def empty_cache(self) -> int:
        """Remove the models that no task uses; return their bytes."""
        return self._cache.clear()

    def status(self) -> AgentStatus:
        """Return what the agent does now."""
        return AgentStatus(
            not self._problem,
            self._contact,
            self._problem,
            self._tasks.status(),
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
                running, heard = self._tasks.running(), self._tasks.heard()
                orders = await self._link.poll(
                    Poll(self._session, running, self._catalogue, WAIT, heard)
                )
                self._heard()
                backoff.reset()
                took, fresh = loop.time() - asked, self._tasks.obey(orders)
                await self._tasks.forget_unclaimed()
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
                if pause := restraint.pause(fresh, took, self._tasks.refused):
                    await asyncio.sleep(pause)
            except Exception as e:  # whatever happened, the node keeps its line
                await self._attempted(e)
                self._lost(e)
                await asyncio.sleep(backoff.delay())

    def _heard(self) -> None:
        """Note that the hub answered; after a silence, deliver what waits."""
        if self._problem:
            _LOG.info("connected to %s", self._config.hub)
            self._delivery.reached()
        self._problem, self._contact = "", self._now()

    async def _attempted(self, e: Exception) -> None:
        """Enter an answer that no honest hub gives in the audit trail: too large, malformed."""
        if isinstance(e, WireError):
            what = ("hub.message", self._config.hub, printable(str(e), 400), self._now())
            with contextlib.suppress(StorageError):  # a full disk must not cost the line
                await in_thread(attempts.note, self._store, *what)

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
        self._tasks.reconsider()
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
                self._tasks.forget_jobs()
                if not self._tasks.computing():
                    await in_thread(self._release.outbox.flush)
                await self._purge_due()
                if asked := self._standing.asked():
                    await in_thread(self._standing.keep, asked)
            except (ConsiliaError, OSError) as e:
                _LOG.error("%s", e)

    async def _purge_due(self) -> None:
        """Once a day, and at the start: close the trail's segment, delete what is due."""
        today = self._standing.today()
        if self._purged == today:
            return
        self._purged = today
        await in_thread(self._release.close_segment)
        await in_thread(
            purge.finish,
            self._store,
            self._store.path.parent,
            now=self._now(),
            empty_cache=self._cache.clear,
        )
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

    async def _close(self) -> None:
        """End every task and its worker, then write down the rest."""
        await self._tasks.close()
        await self._link.close()
        self._threads.shutdown(wait=True)
        await in_thread(self._release.outbox.flush)
        await in_thread(self._standing.keep, self._standing.asked(everything=True))
