"""Bring answers to the hub: again and again while it is away, never once they may not leave."""

import asyncio
import contextlib
import logging
import random
from concurrent.futures import Executor
from pathlib import Path

from consilia.errors import AuthError, ConsiliaError, StorageError, TransferError
from consilia.node.backoff import Backoff
from consilia.node.link import HubLink
from consilia.node.outbox import Answer
from consilia.node.release import Release
from consilia.node.store import printable
from consilia.node.work import Ending, Work, in_thread, transfer, uncancel

_LOG = logging.getLogger("consilia.node.delivery")


class Delivery:
    """Delivers one work's answer at a time; `reached` wakes those that wait for the hub."""

    def __init__(
        self, link: HubLink, release: Release, threads: Executor, rng: random.Random
    ) -> None:
        """Take the way to the hub and the outbox."""
        self._link = link
        self._release = release
        self._threads = threads
        self._rng = rng
        self._reached = asyncio.Event()

    def reached(self) -> None:
        """The hub has answered after a silence: try at once what waits."""
        self._reached.set()
        self._reached.clear()

    async def pause(self, seconds: float) -> None:
        """Wait, but not longer than until the hub is back."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for may swallow a cancellation (3.11)
                await self._reached.wait()

    async def deliver(self, work: Work, answer: Answer) -> bool:
        """Send an answer until the hub has it, or until it may no longer leave.

        Returns whether the hub has taken it.

        A task that policy or staff end meanwhile is answered with that instead; one that the
        hub takes back is not answered.
        """
        work.phase = "sending"
        while True:
            try:
                return await self._send(work, answer)
            except asyncio.CancelledError:
                if work.ending is None:
                    raise  # the agent itself is ending
                uncancel()
                ending, work.answer = work.ending, answer
            if ending.by == "hub":
                await in_thread(self._release.withdraw, answer, ending.text)
                return False
            answer = await in_thread(conclude, self._release, work, ending)

    async def _send(self, work: Work, answer: Answer) -> bool:
        name, backoff = printable(answer.lease.id, 200), Backoff(self._rng)
        while True:
            try:
                if answer.frame is not None:
                    await transfer(self._threads, self._bring, answer, answer.frame)
                verdict = await self._link.report(answer.report)
                self._release.acknowledged(answer, verdict.accepted)
                if not verdict.accepted:
                    _LOG.warning("lease %s: %s", name, printable(verdict.reason, 400))
                return verdict.accepted
            except (TransferError, AuthError, StorageError, OSError) as e:
                # The hub is away, its disk is full, or this node's certificate needs a person.
                _LOG.info("the answer to lease %s is not delivered yet: %s", name, e)
            except ConsiliaError as e:
                _LOG.warning("lease %s: the hub refused the answer: %s", name, e)
                await in_thread(self._release.withdraw, answer, f"the hub refused it: {e}")
                return False
            if work.ending is not None and work.ending.by == "hub":
                await in_thread(self._release.withdraw, answer, work.ending.text)
                return False
            await self.pause(backoff.delay())

    def _bring(self, answer: Answer, frame: Path) -> None:
        """Upload an answer's frame, opened for as long as that takes. Blocks."""
        with self._release.outbox.plain(answer, frame) as path:
            self._link.upload(answer.lease.id, path)


def conclude(release: Release, work: Work, ending: Ending) -> Answer:
    """Make the answer for a task that policy or staff have stopped. Blocks."""
    _LOG.warning("stopped lease %s: %s", printable(work.lease.id, 200), ending.text)
    if ending.by == "staff":
        return release.failed(work.lease, "stopped")
    return release.declined(work.lease, ending.reasons, "task.stop")
