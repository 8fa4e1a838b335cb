"""A whole node in one process, and a small complete hub in memory for it to talk to.

Nothing of the node is faked: store, policy, release, cache and agent are the real ones, reports
are signed and checked, frames lie on disk. The hub obeys whatever a test tells it to ask for,
which an honest hub would not.
"""

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core.weights import Weights
from consilia.data.registry import Dataset
from consilia.errors import NotFound, TransferError
from consilia.node import approvals, audit, datasets, studies
from consilia.node.agent import Agent
from consilia.node.cache import Cache
from consilia.node.config import NodeConfig
from consilia.node.inprocess import InProcess
from consilia.node.link import HubLink
from consilia.node.release import Release
from consilia.node.runner import Begin, OnStep, Runs, TaskOutput
from consilia.node.store import Store
from consilia.wire import frames, seal
from consilia.wire.v1 import (
    Advertisement,
    Catalogue,
    Enrolled,
    FailureCause,
    Lease,
    Orders,
    Plan,
    PlanEntry,
    Poll,
    Progress,
    Renew,
    Report,
    Result,
    Sealed,
    Study,
    Task,
    Verdict,
    decode,
    plan_digest,
    study_digest,
)
from consilia.wire.worker import Run

SITE = "charite"
STUDY = Study("hearts", "to learn", (SITE, "leuven"), ("cohort",))
SOURCE = """
import time
import numpy as np
from consilia.plans.contract import Outcome, TrainingPlan

def init(args, seed):
    return {"w": np.zeros(1000, np.float32), "frozen": np.arange(500, dtype=np.float32)}

def train(weights, data, args, context):
    for i in range(int(args["wait"] * 50)):
        context.progress(i / (args["wait"] * 50), loss=1.0)
        time.sleep(0.02)
    w = weights["w"] + np.float32(args["lr"])
    return Outcome({"w": w, "frozen": weights["frozen"]}, data.records, {"loss": 0.5})

PLAN = TrainingPlan("numpy", init, train, arguments={"lr": 1.0, "wait": 0.0})
"""


def make_plan(*changes: tuple[str, str], name: str = "line") -> Plan:
    """Return the usual plan, its source changed by replacements."""
    source = SOURCE
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    return Plan(name, {"plan.py": source}, "plan:PLAN")


def write_table(
    path: Path, rows: int, name: str = "cohort", tags: tuple[str, ...] = ("cohort",)
) -> Dataset:
    """Write a CSV and return its registration, made without DuckDB."""
    path.write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(rows)))
    status = path.stat()
    return Dataset(
        name,
        str(path),
        "csv",
        tags,
        {"x": "float32", "y": "float32"},
        ("",),
        rows,
        datasets.file_digest(path),
        status.st_size,
        status.st_mtime,
        time.time(),
    )


class MemoryHub:
    """A hub in memory: polls, reports, frames and uploads, reconciled like the real one."""

    def __init__(self, folder: Path, signing_key: bytes) -> None:
        folder.mkdir()
        self.away = False  # the line is down
        self.assigned: dict[str, Lease] = {}
        self.reports: list[Report] = []
        self.uploads: dict[str, Weights] = {}
        self.states: list[Advertisement] = []
        self.offer = Catalogue(0)
        self.plans: dict[str, Plan] = {}
        self.polls = 0
        self.repeat: tuple[Lease, ...] = ()  # given on every poll, whatever the node says
        self.forged: bytes | None = None  # what one poll is answered with, as on the line
        self.upload_gate: Callable[[], None] = lambda: None
        self._folder = folder
        self._key = signing_key
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def assign(self, *leases: Lease) -> None:
        """Hand out leases, or take back all by naming none."""
        if not leases:
            self.assigned.clear()
        self.assigned.update((lease.id, lease) for lease in leases)
        self._changed.set()

    def publish(self, weights: Weights) -> str:
        """Keep a model and return its digest."""
        draft = self._folder / "draft"
        header = frames.write(draft, weights)
        draft.replace(self._folder / header.digest.removeprefix("b3:"))
        return header.digest

    def offer_all(self, studies: tuple[Study, ...], *plans: Plan) -> None:
        """Put studies, and plans for the first of them, into the catalogue."""
        self.plans.update((plan_digest(p), p) for p in plans)
        entries = tuple(
            PlanEntry(d, p.name, studies[0].name, "ada") for d, p in self.plans.items()
        )
        self.offer = Catalogue(self.offer.version + 1, studies, entries)
        self._changed.set()

    def line(self, away: bool) -> None:
        """Cut the line, or mend it. Any thread."""
        self.away = away
        self._loop.call_soon_threadsafe(self._changed.set)

    def settled(self, lease: str) -> Report | None:
        """Return the last word on a lease, None while there is none."""
        found = [r for r in self.reports if r.lease == lease and not isinstance(r, Progress)]
        return found[-1] if found else None

    async def poll(self, poll: Poll) -> Orders:
        self.polls += 1
        until = self._loop.time() + poll.wait
        while True:
            self._check()
            if self.forged is not None:
                body, self.forged = self.forged, None
                return decode(body, Orders)
            fresh = tuple(x for i, x in self.assigned.items() if i not in poll.running)
            gone = tuple(i for i in poll.running if i not in self.assigned)
            if fresh or gone or self.repeat or poll.catalogue != self.offer.version:
                await asyncio.sleep(0)
                return Orders(fresh + self.repeat, gone, self.offer.version)
            self._changed.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                return Orders(catalogue=self.offer.version)

    async def report(self, sealed: Sealed) -> Verdict:
        self._check()
        report: Report = msgspec.msgpack.decode(
            seal.open_sealed(sealed, "report", self._key), type=Report
        )
        if isinstance(report, Result) and report.lease not in self.uploads:
            raise NotFound(f"no upload for {report.lease}")
        self.reports.append(report)
        if not isinstance(report, Progress):
            self.assigned.pop(report.lease, None)
            self._changed.set()
        return Verdict(True)

    async def advertise(self, sealed: Sealed) -> Verdict:
        self._check()
        body = seal.open_sealed(sealed, "advertisement", self._key)
        self.states.append(msgspec.msgpack.decode(body, type=Advertisement))
        return Verdict(True)

    async def catalogue(self) -> Catalogue:
        self._check()
        return self.offer

    async def plan(self, digest: str) -> Plan:
        self._check()
        return self.plans[digest]

    async def renew(self, renew: Renew) -> Enrolled:
        raise NotFound("this hub certifies nobody")

    def fetch(self, digest: str, path: Path, have: Sequence[Path] = ()) -> frames.Header:
        self._check()
        source = self._folder / digest.removeprefix("b3:")
        if not source.is_file():
            raise NotFound(f"no model {digest}")
        part = path.with_name(f"{path.name}.{threading.get_ident()}.part")
        shutil.copyfile(source, part)
        part.replace(path)
        return frames.read_header(path)

    def upload(self, lease: str, path: Path) -> str:
        self.upload_gate()
        self._check()
        data = path.read_bytes()
        verifier = frames.Verifier(len(data))
        verifier.feed(data)
        assert verifier.complete and verifier.header is not None
        whole = verifier.header.whole
        self.uploads[lease] = frames.read(path) if whole else stored(path)
        return verifier.header.digest

    async def close(self) -> None:
        self._changed.set()

    def _check(self) -> None:
        if self.away:
            raise TransferError("the line to the hub is down")


def stored(path: Path) -> Weights:
    """Return the tensors that lie in a frame, without those it leaves out as unchanged."""
    fd = os.open(path, os.O_RDONLY)
    try:
        header = frames.read_header(fd)
        found: Weights = {}
        for entry in header.entries:
            if entry.stored:
                found[entry.name] = np.empty(entry.shape, entry.dtype)
                frames.read_tensor(fd, header, entry, found[entry.name])
        return found
    finally:
        os.close(fd)


class CountingRuns:
    """Passes tasks on to a real runner and counts them: what never came here never ran."""

    def __init__(self, inner: Runs) -> None:
        self.inner = inner
        self.tasks: list[str] = []

    async def run(  # noqa: PLR0917 - the signature of Runs
        self,
        job: str,
        plan: Plan,
        dataset: Dataset | None,
        task: Run,
        model: Path | None,
        on_step: OnStep,
        timeout: float,
        begin: Begin | None = None,
    ) -> TaskOutput:
        self.tasks.append(f"{job}.{task.round}")
        return await self.inner.run(job, plan, dataset, task, model, on_step, timeout, begin)

    async def stop(self, job: str, cause: FailureCause = "stopped") -> None:
        await self.inner.stop(job, cause)

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class Node:
    """A node's parts, and its agent while `running`."""

    directory: Path
    config: NodeConfig
    store: Store
    hub: MemoryHub
    key: Ed25519PrivateKey
    runs: CountingRuns
    link: HubLink
    now: Callable[[], float] = time.time
    agent: Agent = field(init=False)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Node"]:
        """Run the agent for the time of a block."""
        release = Release(
            self.store, self.directory / "outbox", self.config, self.key, self.now, os.urandom
        )
        self.agent = Agent(
            config=self.config,
            store=self.store,
            release=release,
            cache=Cache(self.directory / "cache", self.config.cache_bytes),
            link=self.link,
            runner=self.runs,
            now=self.now,
            random_bytes=os.urandom,
        )
        task = asyncio.create_task(self.agent.run())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def accept(self, plan: Plan, study: Study = STUDY, rows: int = 120) -> None:
        """Register a dataset, accept the study and approve the plan."""
        if not datasets.list_datasets(self.store):
            table = write_table(self.directory / "cohort.csv", rows)
            datasets.add(self.store, table, actor="mara", now=self.now())
        studies.offer(self.store, study, self.now())
        studies.accept(self.store, study.name, actor="mara", now=self.now())
        self.approve(plan, study)

    def approve(self, plan: Plan, study: Study = STUDY) -> None:
        """Take in and approve a plan."""
        digest = plan_digest(plan)
        approvals.offer(
            self.store, plan, digest, study=study.name, author="ada", now=self.now()
        )
        approvals.approve(self.store, digest, actor="mara", now=self.now(), reason="read it")

    def actions(self) -> list[str]:
        """Return what the audit trail says, as action:outcome."""
        return [f"{line.action}:{line.outcome}" for line, _ in audit.every(self.store)]

    def details(self, action: str) -> list[str]:
        """Return the details of the lines of one action."""
        return [line.detail for line, _ in audit.every(self.store) if line.action == action]


@contextlib.asynccontextmanager
async def node(
    folder: Path, runner: Runs | None = None, **settings: object
) -> AsyncIterator[Node]:
    """Make a node and its hub. Plans run in this process unless a runner is given."""
    directory = folder / "node"
    directory.mkdir()
    ranges: dict[str, list[object]] = {"lr": [0.0, 2.0], "wait": [0.0, 60.0]}
    given = {"min_records": 100, "arguments": ranges, **settings}
    config = msgspec.convert({"site": SITE, "hub": "https://hub:1", **given}, NodeConfig)
    key = Ed25519PrivateKey.generate()
    hub = MemoryHub(folder / "hub", key.public_key().public_bytes_raw())
    made = Node(
        directory,
        config,
        Store.open(directory),
        hub,
        key,
        CountingRuns(runner or InProcess(site=SITE)),
        hub,
    )
    try:
        yield made
    finally:
        made.store.close()  # a test may have put another in its place


def lease(
    hub: MemoryHub,
    asked: Plan,
    *,
    job: str = "job-1",
    round: int = 1,
    model: str | None = None,
    timeout: float = 30.0,
    **changes: object,
) -> Lease:
    """Return a task as an honest hub gives it, but for the `changes`."""
    task = Task(
        "init" if model is None else "train",
        job,
        round,
        study_digest(STUDY),
        STUDY.name,
        plan_digest(asked),
        {},
        STUDY.tags,
        model,
        7,
    )
    return Lease(f"{job}.{round}.0.{SITE}", msgspec.structs.replace(task, **changes), timeout)


def base_model() -> Weights:
    """Return what the usual plan's init makes."""
    return {"w": np.zeros(1000, np.float32), "frozen": np.arange(500, dtype=np.float32)}


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until `condition` holds, or fail."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        await asyncio.sleep(0.01)
