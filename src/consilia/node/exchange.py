"""The conversation of one masked round: the hub passes words on, this site says its own.

It runs beside the training, so that keys and shares are exchanged by the time the update is
there, and goes on after the update has been delivered, until the hub says that the round is
over. What this site must not answer ends its part in the round: nothing is said from then on.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import ParamSpec

from consilia.errors import (
    AuthError,
    ConsiliaError,
    Refused,
    StorageError,
    WireError,
    WorkerError,
)
from consilia.node.backoff import Backoff
from consilia.node.link import HubLink
from consilia.node.masking import Masking, Spoken
from consilia.node.opening import Opening
from consilia.node.store import printable
from consilia.node.work import in_thread
from consilia.wire.v1 import Lease, Sealed, Word

P = ParamSpec("P")
Pause = Callable[[float], Coroutine[object, object, None]]
_ORDER = ("", "roster", "inbox", "survivors", "consents")
_LOG = logging.getLogger("consilia.node.exchange")


class Exchange:
    """One lease's part in its masked round, on the event loop."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts it connects
        self,
        lease: Lease,
        masking: Masking,
        link: HubLink,
        pause: Pause,
        rng: random.Random,
        failed: Callable[[ConsiliaError], None],
        opening: Opening | None = None,
    ) -> None:
        """`pause(seconds)` waits, but not longer than until the hub is back.

        `failed` is told, once, when this site cannot or must not go on. `opening` opens the
        sum of an encrypted round.
        """
        self._opening = opening
        self._lease = lease
        self._masking = masking
        self._link = link
        self._pause = pause
        self._rng = rng
        self._failed = failed
        self._words: asyncio.Queue[Word] = asyncio.Queue()
        self._ready = asyncio.Event()
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure: ConsiliaError | None = None
        self.heard = ""

    def start(self, spoken: Spoken | None = None) -> None:
        """Begin, or go on where a restarted agent was."""
        if spoken is not None:
            self._at(spoken)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def take(self, word: Word) -> None:
        """Take a word of the hub's; those heard before are passed over."""
        if _ORDER.index(word.step) > _ORDER.index(self.heard):
            self.heard = word.step
            self._words.put_nowait(word)

    async def ready(self, seconds: float) -> None:
        """Return when an update can be masked; raise what has made that impossible."""
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            raise WorkerError("the other sites' shares did not arrive in time") from None
        if self._failure is not None:
            raise self._failure

    async def ended(self) -> None:
        """Return when the round is over; raise what has ended this site's part before.

        There is no limit: the hub answers every poll with the rounds that are over.
        """
        await self._over.wait()
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """The round is over."""
        self._over.set()

    async def close(self) -> None:
        """Say nothing any more; what is stored stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def _name(self) -> str:
        return printable(self._lease.id, 200)

    async def _run(self) -> None:
        try:
            spoken = await self._stored(self._masking.begin, self._lease)
            self._at(spoken)
            await self._bring(spoken)
            while True:
                word = await self._words.get()
                before, opened = spoken, ""
                if self._opening is not None and word.step == "consents":
                    opened = await self._opening.opened(word)
                spoken = await self._stored(self._masking.hear, self._lease, word, opened)
                self._at(spoken)
                if spoken.said != before.said:
                    await self._bring(spoken)
        except (Refused, AuthError, WireError) as e:
            _LOG.warning("lease %s: %s", self._name, printable(str(e), 1000))
            self._fail(e if isinstance(e, Refused) else Refused(str(e)))
        except ConsiliaError as e:
            _LOG.error("lease %s: the masked round cannot go on: %s", self._name, e)
            self._fail(e)
        except Exception as e:
            _LOG.exception("lease %s: a defect ended its masked round", self._name)
            self._fail(WorkerError(f"a defect: {e!r}"))

    async def _stored(
        self, step: Callable[P, Spoken], *args: P.args, **more: P.kwargs
    ) -> Spoken:
        """Take a step, which is on disk before it is said; wait for a disk that is full."""
        backoff = Backoff(self._rng)
        while True:
            try:
                return await in_thread(step, *args, **more)
            except StorageError as e:
                _LOG.error("lease %s: cannot go on yet: %s", self._name, e)
                await asyncio.sleep(backoff.delay())

    def _at(self, spoken: Spoken) -> None:
        if _ORDER.index(spoken.heard) > _ORDER.index(self.heard):
            self.heard = spoken.heard
        if _ORDER.index(spoken.heard) >= _ORDER.index("inbox"):
            self._ready.set()

    def _fail(self, error: ConsiliaError) -> None:
        self._failure = error
        self._ready.set()
        self._over.set()
        self._failed(error)

    async def _bring(self, spoken: Spoken) -> None:
        """Say what was said, with the opened sum before the word that names it."""
        if self._opening is not None and spoken.heard == "consents":
            await self._opening.brought()
        await self._say(spoken.said)

    async def _say(self, sealed: Sealed) -> None:
        """Tell the hub, again and again while it is away."""
        backoff = Backoff(self._rng)
        while True:
            try:
                verdict = await self._link.report(sealed)
            except (ConsiliaError, OSError) as e:
                _LOG.info("lease %s: a word is not delivered yet: %s", self._name, e)
                await self._pause(backoff.delay())
                continue
            if not verdict.accepted:
                _LOG.info("lease %s: %s", self._name, printable(verdict.reason, 400))
            return
