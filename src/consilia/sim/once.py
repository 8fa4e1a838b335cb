"""One job from its first round to its last, in the caller's own thread."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import msgspec

from consilia.algo.strategy import strategy
from consilia.core import ids
from consilia.data.holdout import Holdout
from consilia.errors import ConfigError, ConsiliaError, NotFound
from consilia.hub import assessing, modelversions, records
from consilia.hub.app import Hub
from consilia.hub.views import model_view
from consilia.node.inprocess import InProcess
from consilia.sdk.results import Model, Results, scratch, version_of
from consilia.sdk.source import read_plan
from consilia.sim import parts
from consilia.sim.link import copy
from consilia.sim.parts import DEADLINE, PERSON, STUDY, TAG, Site
from consilia.wire import people, strict
from consilia.wire.people import EvaluationView, JobView, ModelView, RoundView
from consilia.wire.v1 import Plan, Study, plan_digest

T = TypeVar("T")
OnRound = Callable[[RoundView], None]
_WAIT = 20.0  # seconds of one wait for events


class Simulation(Results):
    """What a simulated job leaves behind; its models live as long as this object."""

    def __init__(self, plan: Plan | None = None) -> None:
        """Made by `simulate`, of the caller's own `plan`."""
        self.plan = plan
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
        return Model(self.models[version], self.folder / "models" / version, self.plan)


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
    result = Simulation(chosen)
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
        "deadline": DEADLINE,
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
            hub, access = await stack.enter_async_context(
                parts.simulated_hub(self._root / "hub")
            )
            await self._govern(hub)
            sites = [
                stack.enter_context(parts.new_site(self._root, site, table, self._holdout))
                for site, table in self._tables.items()
            ]
            self._decide(sites)
            for site in sites:
                runner = InProcess(site=site.name, threads=self._threads, in_thread=False)
                told = parts.Telling(runner, site.name, self._broke)
                await stack.enter_async_context(parts.at_work(site, hub, access, told))
            job = await hub.engine.start(self._experiment, PERSON, self._study, self._plan)
            view = await _follow(hub, job, on_round)
            if view.state != "done":
                said = self._failures[-1] if self._failures else view.cause
                raise ConsiliaError(f"the simulated job {view.state}: {view.cause}\n{said}")
            await self._carry_out(hub, view)
            self._result.ended(view)

    def _broke(self, _: str, said: str) -> None:
        self._failures.append(said)

    async def _govern(self, hub: Hub) -> None:
        """Submit study and plan, as a researcher does through the REST API."""
        now = time.time()
        await hub.store.write(lambda db: records.add_study(db, self._study, PERSON, now))
        await hub.store.write(lambda db: records.submit_study(db, STUDY, now))
        await hub.store.write(lambda db: records.add_plan(db, self._plan, STUDY, PERSON, now))

    def _decide(self, sites: list[Site]) -> None:
        """Accept the study and approve the plan everywhere."""
        keys = {site.name: site.keys for site in sites}
        arguments = {name: (value,) for name, value in self._experiment.arguments.items()}
        for site in sites:
            parts.take_part(site, self._study, keys)
            parts.allow(site, self._plan, STUDY, arguments)

    async def _carry_out(self, hub: Hub, view: JobView) -> None:
        versions = await hub.store.read(lambda db: modelversions.of_job(db, view.id))
        self._result.evaluations = await hub.store.read(
            lambda db: assessing.of_job(db, view.id)
        )
        folder = self._root / "models"
        folder.mkdir()
        for version in versions:
            with hub.blobs.open(version.digest) as blob:
                copy(blob.fd, blob.size, folder / version.id)
            self._result.models[version.id] = model_view(version)


async def _follow(hub: Hub, job: str, on_round: OnRound) -> JobView:
    """Wait until the job ends, telling of rounds as they close; return it."""
    after, told = 0, 0
    while True:
        view = await hub.engine.reading.view(job)
        closed = [r for r in view.rounds if r.round > 0]
        for found in closed[told:]:
            on_round(found)
        told = len(closed)
        if view.state in ("done", "stopped", "failed"):
            return view
        feed = await hub.engine.reading.events(job, after, _WAIT)
        after = feed.next
