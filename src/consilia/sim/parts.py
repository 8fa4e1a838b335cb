"""The hub and the sites of a simulation: the real ones, in one event loop.

A site's steps are those of its staff: a table is registered, a study accepted, a plan approved
with the arguments that may be set. Here the one person who simulates does all of it.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from consilia.core import ids
from consilia.data.holdout import Holdout
from consilia.data.registry import Dataset, inspect_table
from consilia.errors import ConfigError, WorkerError
from consilia.hub.access import Access
from consilia.hub.app import Hub, Outside, build
from consilia.hub.blobs import MemoryBlobs
from consilia.hub.clock import LoopClock
from consilia.hub.store import Store as HubStore
from consilia.hub.telemetry import make_log
from consilia.node import approvals, datasets, identity, loading, peers, studies
from consilia.node import holdout as holdouts
from consilia.node.agent import Agent
from consilia.node.arguments import Allowed, OneOf
from consilia.node.cache import Cache
from consilia.node.config import NodeConfig
from consilia.node.identity import NewKeys
from consilia.node.inprocess import InProcess, MemoryOutput
from consilia.node.release import Release
from consilia.node.runner import Begin, OnStep, Runs
from consilia.node.store import Store as NodeStore
from consilia.sim.link import Link
from consilia.sim.tables import as_file
from consilia.wire import v1
from consilia.wire.token import decode_token
from consilia.wire.v1 import FailureCause, Plan, Scalar, Study, plan_digest, study_digest
from consilia.wire.worker import Run

PERSON = "you"
STUDY, TAG, DATASET = "simulation", "simulated", "table"
DEADLINE = 7 * 86400.0  # seconds of a round; tasks run one after the other
URL = "https://hub.invalid:443"
Told = Callable[[str, str], None]  # a job, and what went wrong in it


@dataclass(frozen=True, slots=True)
class Site:
    """One simulated site: what a node's directory holds."""

    name: str
    directory: Path
    store: NodeStore
    keys: NewKeys


@asynccontextmanager
async def simulated_hub(secrets: Path) -> AsyncIterator[tuple[Hub, Access]]:
    """Run a hub in memory inside the block; only its keys lie in the folder `secrets`."""
    clock = LoopClock()
    store = HubStore.open("sqlite://")
    try:
        secrets.mkdir(mode=0o700)
        hosts, now, random = ("hub.invalid",), clock.now, os.urandom
        Access.create(secrets, hosts, name="simulation", at=now(), random_bytes=random)
        access = Access.load(secrets, store, url=URL, hosts=hosts, now=now, random_bytes=random)
        hub = build(
            store,
            MemoryBlobs(),
            access.signing_key,
            Outside(make_log(sys.stderr, "error"), clock),
        )
        await hub.engine.recover()
        try:
            yield hub, access
        finally:
            await hub.engine.close()
    finally:
        await asyncio.to_thread(store.close)


@contextmanager
def new_site(root: Path, name: str, table: Any, kept: Holdout) -> Iterator[Site]:
    """Make a site's directory below `root` and register its table; open inside the block.

    `table` is what sim.tables.as_file takes, `kept` the hold-out: {share: 0} for none.
    """
    directory = root / ids.name(name, "site")
    directory.mkdir(mode=0o700)
    with contextlib.closing(NodeStore.open(directory)) as store:
        site = Site(name, directory, store, identity.new_keys())
        now = time.time()
        path = as_file(table, directory / "table.csv")
        measured = inspect_table(path, DATASET, (TAG,), now=now)
        datasets.add(store, measured, actor=PERSON, now=now)
        if kept.share or kept.column:
            holdouts.declare(store, DATASET, kept, actor=PERSON, now=now)
            if problems := loading.refresh(store):
                raise ConfigError(f"the hold-out of site {name!r}: {'; '.join(problems)}")
        yield site


def take_part(site: Site, study: Study, keys: Mapping[str, NewKeys]) -> None:
    """Accept a study at a site, with a dataset that carries its tags; `keys`: of all sites."""
    now = time.time()
    tags = datasets.get(site.store, DATASET).dataset.tags
    if lacking := set(study.tags).difference(tags):
        tags = tuple(sorted(lacking.union(tags)))
        datasets.edit(site.store, DATASET, actor=PERSON, now=now, tags=tags)
    studies.offer(site.store, study, now)
    peers.told(site.store, {name: k.signing_public for name, k in keys.items()}, now)
    digest = study_digest(study)
    if studies.get(site.store, digest, date.fromtimestamp(now)).state != "accepted":
        studies.accept(site.store, digest, actor=PERSON, now=now)


def allow(
    site: Site, plan: Plan, study: str, arguments: Mapping[str, Collection[Scalar]]
) -> None:
    """Approve a plan at a site; `arguments` are the values that may be set, by name."""
    now, digest = time.time(), plan_digest(plan)
    approvals.offer(site.store, plan, digest, study=study, author=PERSON, now=now)
    given: dict[str, Allowed | None] = {
        name: OneOf(tuple(values)) for name, values in arguments.items()
    }
    approvals.approve(site.store, digest, actor=PERSON, now=now, arguments=given)


@asynccontextmanager
async def at_work(site: Site, hub: Hub, access: Access, runner: Runs) -> AsyncIterator[Agent]:
    """Enrol a site and keep its agent running inside the block."""
    token = decode_token((await access.invite(site.name)).token)
    request = identity.request(site.keys.tls, site.name)
    await access.enrol(v1.Enrol(site.name, token.secret, request, site.keys.signing_public))
    config = NodeConfig(
        site.name,
        URL,
        min_records=1,
        disclose_reasons=True,
        plain_updates=True,  # all sites are this one process
        arguments={"proximal_mu": [0.0, 1e9]},
    )
    outbox = site.directory / "outbox"
    agent = Agent(
        config=config,
        store=site.store,
        release=Release(site.store, outbox, config, site.keys.signing, time.time, os.urandom),
        cache=Cache(site.directory / "cache", config.cache_bytes),
        link=Link(hub.federation, site.name),
        runner=runner,
        now=time.time,
        random_bytes=os.urandom,
    )
    running = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        running.cancel()
        await asyncio.wait([running])


class Telling:
    """A Runs that tells what went wrong, for the one person who is hub and site at once."""

    def __init__(self, runner: InProcess, site: str, told: Told) -> None:
        """Run tasks by `runner`."""
        self._runner = runner
        self._site = site
        self._told = told

    async def run(  # noqa: PLR0913, PLR0917  the signature of Runs
        self,
        job: str,
        plan: Plan,
        dataset: Dataset | None,
        task: Run,
        model: Path | None,
        on_step: OnStep,
        timeout: float,
        begin: Begin | None = None,
    ) -> MemoryOutput:
        """Run one task."""
        run, about = self._runner.run, (job, plan, dataset, task, model, on_step, timeout)
        try:
            return await run(*about, begin)
        except WorkerError as e:
            self._told(job, f"at {self._site}, round {task.round}, {e.cause}:\n{e}")
            raise

    async def stop(self, job: str, cause: FailureCause = "stopped") -> None:
        """End what runs of a job."""
        await self._runner.stop(job, cause)

    async def close(self) -> None:
        """End everything."""
        await self._runner.close()
