"""Many light agents in one process: real lines to a hub, no worker behind them.

    python -m bench.agents FOLDER FIRST COUNT URL STUDY PLAN

Agent N has its certificate and key in FOLDER/siteN. Each advertises that it takes part, polls,
brings every model it is leased, sends FOLDER/update.frame as its update, and reports. Runs
until it is ended.
"""

import asyncio
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.errors import ConsiliaError
from consilia.node.line import Credentials
from consilia.node.link import HttpLink
from consilia.wire import v1
from consilia.wire.seal import seal

TAG, RECORDS = "many", 100
BLOCKING = 8  # threads for the frames of all agents of a process
RAMP = 0.01  # seconds between two agents' first calls


class LightAgent:
    """One site's node, as far as the hub can tell."""

    def __init__(self, folder: Path, site: str, url: str, pool: ThreadPoolExecutor) -> None:
        self._folder = folder
        self._site = site
        self._pool = pool
        here = folder / site
        credentials = Credentials(here / "node.pem", here / "node.key", folder / "ca.pem")
        self._key = Ed25519PrivateKey.from_private_bytes((here / "signing.key").read_bytes())
        self._link = HttpLink(url, credentials, random=random.Random(site).random)  # noqa: S311
        self._running: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._catalogue = 0

    async def run(self, study: str, plan: str) -> None:
        """Poll for ever; a line that breaks is tried again."""
        offered = v1.OfferedDataset("table", (TAG,), RECORDS)
        said = v1.Advertisement("bench", (offered,), (study,), (plan,))
        told = False
        while True:
            try:
                if not told:
                    await self._link.advertise(self._sealed("advertisement", said))
                    told = True
                running = tuple(self._running)
                orders = await self._link.poll(
                    v1.Poll("bench", running, catalogue=self._catalogue)
                )
            except ConsiliaError:
                await asyncio.sleep(1)
                continue
            self._catalogue = orders.catalogue
            for lease in orders.leases:
                self._running.add(lease.id)
                task = asyncio.create_task(self._work(lease))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _work(self, lease: v1.Lease) -> None:
        task = lease.task
        digest = await asyncio.get_running_loop().run_in_executor(
            self._pool, self._frames, lease.id, str(task.model)
        )
        result = v1.Result(lease.id, task.job, task.round, digest, RECORDS)
        await self._link.report(self._sealed("report", result))
        self._running.discard(lease.id)

    def _frames(self, lease: str, model: str) -> str:
        """Bring the model, as every site has to, and send the update. Blocks."""
        path = self._folder / self._site / "model.frame"
        path.unlink(missing_ok=True)
        self._link.fetch(model, path)
        path.unlink()
        return self._link.upload(lease, self._folder / "update.frame")

    def _sealed(self, context: str, record: v1.Record) -> v1.Sealed:
        return seal(context, self._site, v1.encode(record), self._key)


async def main(words: list[str]) -> None:
    """Run the agents that the command line names."""
    folder, first, count, url, study, plan = words
    with ThreadPoolExecutor(BLOCKING) as pool:
        runs = []
        for n in range(int(first), int(first) + int(count)):
            agent = LightAgent(Path(folder), f"site{n}", url, pool)
            runs.append(asyncio.create_task(agent.run(study, plan)))
            await asyncio.sleep(RAMP)
        await asyncio.gather(*runs)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
