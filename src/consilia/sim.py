"""A whole federation in one process: try a plan before anybody is asked to approve it.

    result = simulate("heart.py", {"north": "north.csv", "south": "south.csv"}, rounds=10)
    result.history
    result.get_model().state_dict()

The hub's engine and federation and each node's agent, policy and release are the real ones,
over an in-memory store and link; only TLS, processes and the sandbox are left out. With
`deterministic=True` the models are those of a deployed run bit by bit, on the same kind of
machine, with the same number of threads and the same sites present in every round.

The plan runs with all rights of the caller, who must own it. Tasks run one after the other:
what is simulated is the result, not the time it takes.
"""

import asyncio
import contextlib
import csv
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import msgspec

from consilia.algo.strategy import strategy
from consilia.core import ids
from consilia.data.holdout import Holdout
from consilia.data.registry import Dataset, inspect_table
from consilia.errors import ConfigError, ConsiliaError, NotFound, WireError, WorkerError
from consilia.hub import assessing, modelversions, records
from consilia.hub.access import Access
from consilia.hub.app import Hub, Outside, build
from consilia.hub.blobs import MemoryBlobs
from consilia.hub.clock import LoopClock
from consilia.hub.federation import Federation
from consilia.hub.store import Store as HubStore
from consilia.hub.telemetry import make_log
from consilia.hub.views import model_view
from consilia.node import approvals, datasets, identity, loading, peers, studies
from consilia.node import holdout as holdouts
from consilia.node.agent import Agent
from consilia.node.cache import Cache
from consilia.node.config import NodeConfig
from consilia.node.inprocess import InProcess, MemoryOutput
from consilia.node.policy import Allowed, OneOf
from consilia.node.release import Release
from consilia.node.runner import Begin, OnStep
from consilia.node.store import Store as NodeStore
from consilia.sdk.results import Model, Results, scratch, version_of
from consilia.sdk.source import read_plan
from consilia.wire import frames, people, strict, v1
from consilia.wire.frames import Header
from consilia.wire.people import EvaluationView, JobView, ModelView, RoundView
from consilia.wire.token import decode_token
from consilia.wire.v1 import FailureCause, Plan, Study, plan_digest
from consilia.wire.worker import Run

T = TypeVar("T")
Table = str | Path | Mapping[str, Sequence[object]]
OnRound = Callable[[RoundView], None]

PERSON = "you"
STUDY, TAG, DATASET = "simulation", "simulated", "table"
_URL = "https://hub.invalid:443"
_DEADLINE = 7 * 86400.0  # seconds; tasks run one after the other
_WAIT = 20.0  # seconds of one wait for events
_CHUNK = 1 << 18


class Simulation(Results):
    """What a simulated job leaves behind; its models live as long as this object."""

    def __init__(self) -> None:
        """Made by `simulate`."""
        self.folder = scratch(self, "consilia-sim-")
        self.evaluations: tuple[EvaluationView, ...] = ()  # oldest first
        self.models: dict[str, ModelView] = {}  # by version id; frames lie in folder/models
        self._job: JobView | None = None

    @property
    def job(self) -> JobView:
        """The job as it ended."""
        if self._job is None:
            raise NotFound("the simulation has not ended")
        return self._job

    def ended(self, job: JobView) -> None:
        """Take the job's last view."""
        self._job = job

    @property
    def rounds(self) -> tuple[RoundView, ...]:
        """The closed training rounds, oldest first."""
        return tuple(r for r in self.job.rounds if r.round > 0)

    def get_model(self, round: int | None = None) -> Model:
        """Return the model version after `round`, the newest by default."""
        version = version_of(self.job.rounds, round, self.job.id)
        return Model(self.models[version], self.folder / "models" / version)


def simulate(  # noqa: PLR0913  settings, written with keywords
    plan: str | Path | ModuleType | Plan,
    tables: Mapping[str, Any],
    *,
    rounds: int,
    on_round: OnRound = lambda _: None,
    threads: int = 0,
    holdout: float | Holdout = 0.0,
    **settings: Any,
) -> Simulation:
    """Run `plan` on one table a site and return its rounds and models.

    A table is a CSV, TSV or Parquet file, a pandas DataFrame, or a mapping of column names to
    values. `settings` are those of `sdk.experiment.Experiment`: arguments, strategy, seed,
    deterministic and so on; every site takes part in every round unless they say otherwise.
    `holdout` keeps a share of each site's records from training, for `evaluate`, or says which
    (data.holdout); every record counts as a patient. `on_round` is called as rounds close.
    `threads` is what a task may compute with; 0: all.

    Raises ConsiliaError when the job fails, with what the plan raised as its cause's text.
    """
    if not tables:
        raise ConfigError("a simulation needs at least one site: {'north': 'north.csv', ...}")
    chosen = plan if isinstance(plan, Plan) else read_plan(plan)
    experiment = _experiment(chosen, len(tables), rounds, settings)
    result = Simulation()
    threads = threads or len(os.sched_getaffinity(0))
    kept = holdout if isinstance(holdout, Holdout) else Holdout(share=holdout, single=True)
    simulator = _Simulator(result, chosen, experiment, tables, threads, kept)
    _run(simulator.run(on_round))
    return result


def _experiment(
    plan: Plan, sites: int, rounds: int, settings: Mapping[str, Any]
) -> people.Experiment:
    fields = {
        "study": STUDY,
        "plan": plan_digest(plan),
        "rounds": rounds,
        "min_sites": sites,
        "min_updates": sites,
        "deadline": _DEADLINE,
        **settings,
    }
    if isinstance(fields.get("strategy"), str):
        fields["strategy"] = {"name": fields["strategy"]}
    if isinstance(fields.get("privacy"), str):
        fields["privacy"] = {"aggregation": fields["privacy"]}
    plain = msgspec.to_builtins(fields)
    found = strict.convert(plain, people.Experiment, "simulation")
    strategy(found.strategy.name, found.strategy.options)  # says what is wrong with it
    return found


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; in a thread of its own where a loop runs already, as in a notebook."""
    if not _loop_runs():
        return asyncio.run(work)
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=body, name="consilia-sim")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Simulator:
    """One hub, one agent a site, one job."""

    def __init__(  # noqa: PLR0913, PLR0917 - what is simulated
        self,
        result: Simulation,
        plan: Plan,
        experiment: people.Experiment,
        tables: Mapping[str, Any],
        threads: int,
        kept: Holdout,
    ) -> None:
        self._result = result
        self._holdout = kept
        self._root = result.folder
        self._plan = plan
        self._experiment = experiment
        self._tables = {ids.name(site, "site"): table for site, table in tables.items()}
        self._threads = threads
        self._keys = {site: identity.new_keys() for site in self._tables}
        self._failures: list[str] = []
        self._study = Study(
            name=STUDY,
            purpose="simulation",
            sites=tuple(sorted(self._tables)),
            tags=(TAG,),
        )

    async def run(self, on_round: OnRound) -> None:
        """Set up, run the job to its end, and carry its models out."""
        async with AsyncExitStack() as stack:
            hub, access = await stack.enter_async_context(self._hub())
            await self._govern(hub)
            for site, table in self._tables.items():
                await stack.enter_async_context(self._node(hub, access, site, table))
            job = await hub.engine.start(self._experiment, PERSON, self._study, self._plan)
            view = await _follow(hub, job, on_round)
            if view.state != "done":
                said = self._failures[-1] if self._failures else view.cause
                raise ConsiliaError(f"the simulated job {view.state}: {view.cause}\n{said}")
            await self._carry_out(hub, view)
            self._result.ended(view)

    @asynccontextmanager
    async def _hub(self) -> AsyncIterator[tuple[Hub, Access]]:
        clock, secrets = LoopClock(), self._root / "hub"
        store = HubStore.open("sqlite://")
        try:
            secrets.mkdir(mode=0o700)
            Access.create(
                secrets,
                ("hub.invalid",),
                name="simulation",
                at=clock.now(),
                random_bytes=os.urandom,
            )
            access = Access.load(
                secrets,
                store,
                url=_URL,
                hosts=("hub.invalid",),
                now=clock.now,
                random_bytes=os.urandom,
            )
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

    async def _govern(self, hub: Hub) -> None:
        """Submit study and plan, as a researcher does through the REST API."""
        now = time.time()
        await hub.store.write(lambda db: records.add_study(db, self._study, PERSON, now))
        await hub.store.write(lambda db: records.submit_study(db, STUDY, now))
        await hub.store.write(lambda db: records.add_plan(db, self._plan, STUDY, PERSON, now))

    @asynccontextmanager
    async def _node(
        self, hub: Hub, access: Access, site: str, table: Table
    ) -> AsyncIterator[None]:
        """Enrol a site, let its staff decide, and keep its agent running inside the block."""
        directory = self._root / site
        directory.mkdir(mode=0o700)
        keys = self._keys[site]
        token = decode_token((await access.invite(site)).token)
        request = identity.request(keys.tls, site)
        await access.enrol(v1.Enrol(site, token.secret, request, keys.signing_public))
        config = NodeConfig(
            site,
            _URL,
            min_records=1,
            disclose_reasons=True,
            plain_updates=True,  # all sites are this one process
            arguments={"proximal_mu": [0.0, 1e9]},
        )
        store = NodeStore.open(directory)
        with contextlib.closing(store):
            self._decide(store, site, directory, table)
            agent = Agent(
                config=config,
                store=store,
                release=Release(
                    store, directory / "outbox", config, keys.signing, time.time, os.urandom
                ),
                cache=Cache(directory / "cache", config.cache_bytes),
                link=_Link(hub.federation, site),
                runner=_Recording(
                    InProcess(site=site, threads=self._threads, in_thread=False),
                    site,
                    self._failures,
                ),
                now=time.time,
                random_bytes=os.urandom,
            )
            running = asyncio.create_task(agent.run())
            try:
                yield
            finally:
                running.cancel()
                await asyncio.wait([running])

    def _decide(self, store: NodeStore, site: str, directory: Path, table: Table) -> None:
        """Register the table, accept the study, approve the plan: the site's own steps."""
        now, actor = time.time(), PERSON
        path = _as_file(table, directory / "table.csv")
        measured = inspect_table(path, DATASET, (TAG,), now=now)
        datasets.add(store, measured, actor=actor, now=now)
        if self._holdout.share or self._holdout.column:
            holdouts.declare(store, DATASET, self._holdout, actor=actor, now=now)
            if problems := loading.refresh(store):
                raise ConfigError(f"the hold-out of site {site!r}: {'; '.join(problems)}")
        studies.offer(store, self._study, now)
        peers.told(store, {s: k.signing_public for s, k in self._keys.items()}, now)
        studies.accept(store, STUDY, actor=actor, now=now)
        digest = plan_digest(self._plan)
        approvals.offer(store, self._plan, digest, study=STUDY, author=actor, now=now)
        given: dict[str, Allowed | None] = {
            name: OneOf((value,)) for name, value in self._experiment.arguments.items()
        }
        approvals.approve(store, digest, actor=actor, now=now, arguments=given)

    async def _carry_out(self, hub: Hub, view: JobView) -> None:
        versions = await hub.store.read(lambda db: modelversions.of_job(db, view.id))
        self._result.evaluations = await hub.store.read(
            lambda db: assessing.of_job(db, view.id)
        )
        folder = self._root / "models"
        folder.mkdir()
        for version in versions:
            with hub.blobs.open(version.digest) as blob:
                _copy(blob.fd, blob.size, folder / version.id)
            self._result.models[version.id] = model_view(version)


async def _follow(hub: Hub, job: str, on_round: OnRound) -> JobView:
    """Wait until the job ends, telling of rounds as they close; return it."""
    after, told = 0, 0
    while True:
        view = await hub.engine.view(job)
        closed = [r for r in view.rounds if r.round > 0]
        for found in closed[told:]:
            on_round(found)
        told = len(closed)
        if view.state in ("done", "stopped", "failed"):
            return view
        feed = await hub.engine.events(job, after, _WAIT)
        after = feed.next


class _Recording:
    """A Runs that keeps what went wrong, for the one person who is hub and site at once."""

    def __init__(self, runner: InProcess, site: str, failures: list[str]) -> None:
        self._runner = runner
        self._site = site
        self._failures = failures

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
        run, about = self._runner.run, (job, plan, dataset, task, model, on_step, timeout)
        try:
            return await run(*about, begin)
        except WorkerError as e:
            self._failures.append(f"at {self._site}, round {task.round}, {e.cause}:\n{e}")
            raise

    async def stop(self, job: str, cause: FailureCause = "stopped") -> None:
        await self._runner.stop(job, cause)

    async def close(self) -> None:
        await self._runner.close()


class _Link:
    """A HubLink without a network: what the listener would pass on."""

    def __init__(self, federation: Federation, site: str) -> None:
        self._federation = federation
        self._site = site

    async def poll(self, poll: v1.Poll) -> v1.Orders:
        return await self._federation.poll(self._site, poll)

    async def report(self, sealed: v1.Sealed) -> v1.Verdict:
        return await self._federation.report(self._site, sealed)

    async def advertise(self, sealed: v1.Sealed) -> v1.Verdict:
        return await self._federation.advertise(self._site, sealed)

    async def catalogue(self) -> v1.Catalogue:
        return await self._federation.catalogue(self._site)

    async def plan(self, digest: str) -> v1.Plan:
        return await self._federation.plan(self._site, digest)

    async def renew(self, renew: v1.Renew) -> v1.Enrolled:
        raise WireError("a simulated site's certificate outlives its simulation")

    def fetch(self, digest: str, path: Path, have: Sequence[Path] = ()) -> Header:
        part = path.with_name(f"{path.name}.part")
        with self._federation.readable(self._site, digest) as blob:
            _copy(blob.fd, blob.size, part)
            self._federation.moved(self._site, "out", blob.size)
        part.replace(path)
        return frames.read_header(path)

    def upload(self, lease: str, path: Path) -> str:
        upload = self._federation.upload(self._site, lease)
        try:
            with path.open("rb") as frame:
                frame.seek(upload.offset)
                while piece := frame.read(_CHUNK):
                    upload.write(memoryview(piece))
            return upload.finish().digest
        finally:
            upload.close()

    async def close(self) -> None:
        """Nothing is open."""


def _copy(fd: int, size: int, path: Path) -> None:
    with path.open("wb") as out:
        for offset in range(0, size, _CHUNK):
            out.write(os.pread(fd, min(_CHUNK, size - offset), offset))


def _as_file(table: Any, path: Path) -> Path:
    """Return the file of a table; one that is in memory is written to `path` as CSV first."""
    if isinstance(table, str | Path):
        return Path(table)
    if hasattr(table, "to_csv"):  # a pandas DataFrame
        table.to_csv(path, index=False)
        return path
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"a site's table is of type {type(table).__name__}; needed a file, a DataFrame, or "
            "a mapping of column names to values"
        )
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path
