"""A site's turn to open the sum of an encrypted round.

Each survivor holds the round's key and could open the sum, and one is enough. So they take
turns, in the order of their names: the first opens it at once, the next ones when the round is
not over by then. What is opened is written before it is sent, so a restarted agent sends the
very same numbers again.

    consents -> the sum is fetched -> opened, checked, flooded -> written -> uploaded, named
"""

import asyncio
import logging
import random as jitter
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from consilia.errors import NotFound, Refused, TransferError, UpdateRejected, WorkerError
from consilia.node import encrypting
from consilia.node.backoff import Backoff
from consilia.node.link import HubLink
from consilia.node.masking import Masking, Turn
from consilia.node.store import hashed_name, printable
from consilia.node.work import in_thread, transfer
from consilia.wire import frames
from consilia.wire.v1 import Lease, Word

FOLDER = "opening"  # of the node's directory (node.release)
TURN = 10.0  # seconds that a site is given to open a sum ...
BYTE = 3e-6  # ... and for each byte of the model: about a minute for 5 million weights
OPENED = ".opened-"  # ends the name under which an opened sum is uploaded (hub.encrypted)

Pause = Callable[[float], Coroutine[object, object, None]]
_LOG = logging.getLogger("consilia.node.opening")


@dataclass(frozen=True, slots=True)
class Tools:
    """What a site opens sums with."""

    masking: Masking
    link: HubLink
    folder: Path  # where sums lie while they are needed; made when missing
    model: Callable[[str], Path]  # digest of a task's model -> where it is, or is to be brought
    threads: Executor  # for transfers
    pause: Pause  # waits, but not longer than until the hub is back
    rng: jitter.Random
    random: Callable[[int], bytes]


class Opening:
    """One lease's part in the last step of its encrypted round, on the event loop."""

    def __init__(self, lease: Lease, tools: Tools) -> None:
        """Nothing is done before `opened`."""
        self._lease = lease
        self._tools = tools
        name = hashed_name(lease.id)
        self._sum = tools.folder / f"{name}.sum"
        self._plain = tools.folder / f"{name}.plain"

    async def opened(self, word: Word) -> str:
        """Fetch the sum that a hub's `Consents` names, open it, return the plain frame's name.

        Waits for the site's turn first. Raises Refused for what must not be opened.
        """
        turn, tools = await in_thread(self._tools.masking.turn, self._lease, word), self._tools
        tools.folder.mkdir(mode=0o700, exist_ok=True)
        digest = self._lease.task.model or ""
        base = tools.model(digest)
        await self._fetched(digest, base)  # it is here, unless the cache has dropped it
        await asyncio.sleep(turn.place * (TURN + BYTE * base.stat().st_size))
        await self._fetched(turn.sum, self._sum)
        header = await in_thread(self._open, turn, base)
        return header.digest

    async def brought(self) -> None:
        """Upload what was opened, if it still lies here: the hub may have it already."""
        backoff = Backoff(self._tools.rng)
        while self._plain.exists():
            try:
                name = self._lease.id + OPENED
                link = self._tools.link
                await transfer(self._tools.threads, link.upload, name, self._plain)
                return
            except (TransferError, Refused, NotFound) as e:
                _LOG.info("lease %s: the opened sum waits: %s", self._name, e)
                await self._tools.pause(backoff.delay())

    async def _fetched(self, digest: str, path: Path) -> None:
        """Bring a frame of the round here, unless it is."""
        tools, backoff = self._tools, Backoff(self._tools.rng)
        while True:
            try:
                await transfer(tools.threads, tools.link.fetch, digest, path)
                return
            except (TransferError, Refused, NotFound) as e:
                # The line is down, the hub was restarted and makes the sum anew, or somebody
                # else has opened it: then the hub ends this site's part at the next poll.
                _LOG.info("lease %s: frame %s is not here yet: %s", self._name, digest, e)
                await tools.pause(backoff.delay())

    @property
    def _name(self) -> str:
        return printable(self._lease.id, 200)

    def _open(self, turn: Turn, base: Path) -> frames.Header:
        task, draft = self._lease.task, self._plain.with_suffix(".draft")
        try:
            header = encrypting.open_sum(task, turn, self._sum, base, draft, self._tools.random)
            draft.replace(self._plain)
            return header
        except (UpdateRejected, OSError) as e:
            raise WorkerError(f"the sum could not be opened: {e}", "transfer") from None
        finally:
            draft.unlink(missing_ok=True)
            self._sum.unlink(missing_ok=True)


def forget(folder: Path, lease: str) -> None:
    """Remove what lies here of a lease's sum: its round is over."""
    for path in files(folder, lease):
        path.unlink(missing_ok=True)


def files(folder: Path, lease: str) -> list[Path]:
    """Return what lies here of a lease's sum."""
    return list(folder.glob(f"{hashed_name(lease)}.*"))


def sweep(folder: Path, leases: Iterable[str]) -> None:
    """Remove what lies here of rounds other than those of `leases`."""
    kept = {hashed_name(lease) for lease in leases}
    for path in folder.glob("*"):
        if path.name.split(".", 1)[0] not in kept:
            path.unlink(missing_ok=True)
