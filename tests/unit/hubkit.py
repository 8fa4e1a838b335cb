"""A whole hub without its listeners, and nodes in the same process that make real frames.

Nothing here is faked but the wire and the training: SQLite and frames lie on disk, reports
are signed, uploads are verified, and the event loop and its clock are the real ones.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core.weights import Weights
from consilia.hub import modelversions, records, tables
from consilia.hub.blobs import DiskBlobs
from consilia.hub.clock import LoopClock
from consilia.hub.driver import Limits
from consilia.hub.engine import Engine
from consilia.hub.federation import Federation
from consilia.hub.store import Store
from consilia.wire import frames
from consilia.wire.people import Experiment, JobView
from consilia.wire.seal import seal
from consilia.wire.v1 import (
    Advertisement,
    Lease,
    OfferedDataset,
    Plan,
    Poll,
    Report,
    Result,
    Study,
    Task,
    Verdict,
    encode,
    plan_digest,
    study_digest,
)

Outcome = tuple[Weights, int, dict[str, float]]
Train = Callable[[str, Task, Weights], Outcome]
SITES = ("a", "b", "c", "d")
RECORDS = {"a": 100, "b": 250, "c": 35, "d": 400}


def key_of(site: str) -> Ed25519PrivateKey:
    """Return the site's signing key, the same in every process."""
    return Ed25519PrivateKey.from_private_bytes(site.encode().ljust(32, b"."))


def first_model(seed: int = 0) -> Weights:
    """Return a small model with a float32, a float64, a float16 and an integer tensor."""
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(size=(70, 1000)).astype(np.float32),  # more than one chunk
        "b": rng.normal(size=(5,)),
        "h": rng.normal(size=(3, 2)).astype(np.float16),
        "n": np.arange(3, dtype=np.int64),
    }


def train(site: str, task: Task, model: Weights) -> Outcome:
    """Return a deterministic update: the seed of the task decides it."""
    if task.kind == "init":
        return first_model(task.seed % 1000), 0, {}
    rng = np.random.default_rng(task.seed)
    step = float(task.arguments.get("lr", 0.1))
    new: Weights = {}
    for name, old in model.items():
        if old.dtype.kind == "f":
            noise = rng.normal(size=old.shape) * step
            new[name] = (old.astype(np.float64) + noise).astype(old.dtype)
        else:
            new[name] = (old.astype(np.int64) + rng.integers(0, 5, old.shape)).astype(old.dtype)
    return new, RECORDS[site], {"loss": float(rng.random())}


@dataclass
class Hub:
    """A hub in a directory."""

    store: Store
    blobs: DiskBlobs
    engine: Engine
    federation: Federation
    study: Study
    plan: Plan

    async def start(self, **fields: object) -> str:
        """Start a job of the one study and plan."""
        return await self.engine.start(self.experiment(**fields), "ada", self.study, self.plan)

    def experiment(self, **fields: object) -> Experiment:
        """Return an experiment of the one study and plan."""
        known = {"study": self.study.name, "plan": plan_digest(self.plan)}
        defaults = {"rounds": 3, "deadline": 20.0, "grace": 5.0, "privacy": {}}
        return msgspec.convert({**known, **defaults, **fields}, Experiment)

    async def put_frame(self, model: Weights) -> str:
        """Store a base frame, as people upload one, and return its digest."""
        upload = self.engine.uploads.open("frame-1", 1 << 30)
        upload.write(memoryview(body_of(model)))
        header = upload.finish()
        upload.close()
        self.blobs.adopt("frame-1", header.digest)
        self.engine.uploads.forget("frame-1")
        return header.digest

    async def until(self, job: str, *states: str, timeout: float = 20.0) -> JobView:
        """Return the job once it is in one of `states`."""
        after = 0
        async with asyncio.timeout(timeout):
            while True:
                view = await self.engine.reading.view(job)
                if view.state in states:
                    return view
                after = (await self.engine.reading.events(job, after, 5.0)).next

    async def tidied(self) -> None:
        """Return once no spool is left."""
        async with asyncio.timeout(10):
            while self.blobs.spools():
                await asyncio.sleep(0.005)

    async def model(self, job: str, round: int) -> Weights:
        """Return the model of a round."""
        version = await self.store.read(lambda db: modelversions.get(db, f"{job}.{round}"))
        with self.blobs.open(version.digest) as blob:
            return frames.read(blob.fd)


@contextlib.asynccontextmanager
async def open_hub(
    directory: Path,
    *,
    sites: tuple[str, ...] = SITES,
    limits: Limits | None = None,
    checkpoint: Callable[[str], None] = lambda _: None,
    reserve: int = 0,
) -> AsyncIterator[Hub]:
    """Open the hub in `directory`, made with one study that invites `sites` when it is new."""
    store = await asyncio.to_thread(Store.open, directory / "hub.sqlite")
    blobs = DiskBlobs(directory, reserve=reserve)
    clock = LoopClock()
    study = Study(name="heart", purpose="test", sites=sites, tags=("cardio",))
    plan = Plan(name="p", files={"plan.py": "PLAN = 1\n"}, entry="plan:PLAN")
    await store.write(lambda db: _populate(db, study, plan))
    engine = Engine(
        store, blobs, clock, os.urandom, limits=limits or Limits(), checkpoint=checkpoint
    )
    federation = Federation(
        engine,
        store,
        blobs,
        lambda site: key_of(site).public_key().public_bytes_raw(),
        clock.now,
    )
    await engine.recover()
    try:
        yield Hub(store, blobs, engine, federation, study, plan)
    finally:
        await engine.close()
        await asyncio.to_thread(store.close)
        blobs.close()


def _populate(db: sa.Connection, study: Study, plan: Plan) -> None:
    if db.execute(sa.select(tables.sites.c.name)).first():
        return
    for site in study.sites:
        db.execute(
            sa.insert(tables.sites).values(
                name=site,
                state="enrolled",
                signing_key=key_of(site).public_key().public_bytes_raw(),
                created=0.0,
            )
        )
    records.add_study(db, study, "ada", 0.0)
    records.submit_study(db, study.name, 0.0)
    records.add_plan(db, plan, study.name, "ada", 0.0)


@dataclass
class Node:
    """One site's node, in this process. Use the steps alone, or `serve` in a task."""

    hub: Hub
    site: str
    train: Train = train
    records: int | None = None  # what it advertises
    session: str = "s1"
    catalogue: int = 0
    running: list[str] = field(default_factory=list)
    step: Callable[[str], None] = lambda _: None  # told of every piece that is uploaded
    seen: list[Lease] = field(default_factory=list)  # every lease that was delivered
    verdicts: list[Verdict] = field(default_factory=list)

    async def advertise(
        self, *, studies: bool = True, plans: bool = True, tags: tuple[str, ...] = ("cardio",)
    ) -> None:
        """Tell the hub that this site has accepted the study and approved the plan."""
        self.catalogue = (await self.hub.federation.catalogue(self.site)).version
        known = RECORDS[self.site] if self.records is None else self.records
        said = Advertisement(
            version="1",
            datasets=(OfferedDataset(name="d", tags=tags, records=known // 5 * 5),),
            studies=(study_digest(self.hub.study),) if studies else (),
            plans=(plan_digest(self.hub.plan),) if plans else (),
        )
        sealed = seal("advertisement", self.site, encode(said), key_of(self.site))
        await self.hub.federation.advertise(self.site, sealed)

    async def poll(self, wait: float = 10.0) -> tuple[Lease, ...]:
        """Poll once; return new leases, note cancelled ones."""
        poll = Poll(self.session, tuple(self.running), self.catalogue, wait)
        orders = await self.hub.federation.poll(self.site, poll)
        self.catalogue = orders.catalogue
        self.running = [x for x in self.running if x not in orders.cancel]
        self.running += (lease.id for lease in orders.leases)
        self.seen += orders.leases
        return orders.leases

    async def report(self, report: Report) -> Verdict:
        """Send one signed report."""
        sealed = seal("report", self.site, encode(report), key_of(self.site))
        return await self.hub.federation.report(self.site, sealed)

    def upload(self, lease: str, body: bytes, piece: int = 100_000) -> frames.Header:
        """Upload a frame from where the hub's spool ends. Blocks."""
        upload = self.hub.federation.upload(self.site, lease)
        try:
            while upload.offset < len(body):
                upload.write(memoryview(body)[upload.offset : upload.offset + piece])
                self.step("upload.piece")
            return upload.finish()
        finally:
            upload.close()

    def download(self, digest: str) -> Weights:
        """Read a model as the blob plane would send it. Blocks."""
        with self.hub.federation.readable(self.site, digest) as blob:
            self.hub.federation.moved(self.site, "out", blob.size)
            return frames.read(blob.fd)

    async def work(self, lease: Lease) -> Verdict:
        """Download, train, upload, report."""
        task = lease.task
        model = {} if task.model is None else await asyncio.to_thread(self.download, task.model)
        weights, count, metrics = self.train(self.site, task, model)
        header = await asyncio.to_thread(self.upload, lease.id, body_of(weights))
        verdict = await self.report(
            Result(lease.id, task.job, task.round, header.digest, count, metrics)
        )
        self.verdicts.append(verdict)
        self.running.remove(lease.id)
        return verdict

    async def serve(self) -> None:
        """Advertise, then poll and work until cancelled."""
        await self.advertise()
        while True:
            for lease in await self.poll():
                await self.work(lease)


def body_of(weights: Weights) -> bytes:
    """Return the frame of `weights` as bytes."""
    fd = os.memfd_create("frame")
    try:
        header = frames.write(fd, weights, check_finite=False)
        return os.pread(fd, header.total_bytes, 0)
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def serving(*nodes: Node) -> AsyncIterator[None]:
    """Run nodes; an error of one fails the test."""
    tasks = [asyncio.create_task(node.serve()) for node in nodes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
