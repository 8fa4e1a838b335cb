"""A simulated federation that stays: jobs in it are steered while they run.

It lives on an event loop in a thread of its own; the tasks of all sites take turns on a second
thread. The caller's thread asks it through the hub's own REST API, so the SDK's `Client` and
`Experiment` do here what they do at a hub, and raise the same errors.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from consilia.core import ids
from consilia.data.holdout import Holdout
from consilia.errors import ConfigError
from consilia.node.agent import Agent
from consilia.node.inprocess import InProcess
from consilia.sdk.experiment import Experiment
from consilia.sdk.results import scratch
from consilia.sim import parts
from consilia.sim.parts import DEADLINE, PERSON, STUDY, TAG, Site
from consilia.sim.people import Inside, SimulatedClient, serve, wait
from consilia.wire.v1 import Arguments, Plan, Scalar, Study, plan_digest


class Federation:
    """A hub and its sites in this process. Close it, or use it as a context manager.

    `client` is the SDK's, of a researcher at that hub: any script that takes a `Client` runs
    with it. Everything is gone when it is closed, but for models that were downloaded.
    """

    client: SimulatedClient

    def __init__(
        self,
        tables: Mapping[str, Any],
        *,
        threads: int = 0,
        holdout: float | Holdout = 0.0,
    ) -> None:
        """Start a hub and a node for each table; both arguments as `simulate` takes them.

        Raises ConfigError or DataError for a table that no site could register.
        """
        if not tables:
            raise ConfigError(
                "a simulation needs at least one site: {'north': 'north.csv', ...}"
            )
        self.sites = tuple(sorted(ids.name(site, "site") for site in tables))
        self._threads = threads or len(os.sched_getaffinity(0))
        self._holdout = (
            holdout if isinstance(holdout, Holdout) else Holdout(share=holdout, single=True)
        )
        self._root = scratch(self, "consilia-sim-")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="consilia-sim", daemon=True
        )
        self._thread.start()
        self._stack = AsyncExitStack()
        try:
            self.client = wait(self._loop, self._open(tables))
        except BaseException:
            self.close()
            raise

    def experiment(
        self,
        plan: str | Path | ModuleType | Plan,
        *,
        rounds: int,
        study: str | Study | None = None,
        **settings: Any,
    ) -> Experiment:
        """Return an experiment of all sites, not started; settings as `Experiment` takes them.

        Every site takes part in every round unless `settings` say otherwise, as in `simulate`.
        Without `study` it belongs to one that the simulation makes.
        """
        everybody: dict[str, Any] = {
            "min_sites": len(self.sites),
            "min_updates": len(self.sites),
            "deadline": DEADLINE,
        }
        own = Study(name=STUDY, purpose="simulation", sites=self.sites, tags=(TAG,))
        return Experiment(
            self.client,
            study=own if study is None else study,
            plan=plan,
            rounds=rounds,
            **{**everybody, **settings},
        )

    def close(self) -> None:
        """End what runs, and the federation."""
        if self._loop.is_closed():
            return
        wait(self._loop, self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        """Return the federation."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the federation."""
        self.close()

    # ---- on the loop -------------------------------------------------------------------------

    async def _open(self, tables: Mapping[str, Any]) -> SimulatedClient:
        stack = self._stack
        hub, access = await stack.enter_async_context(parts.simulated_hub(self._root / "hub"))
        pool = ThreadPoolExecutor(1, "consilia-sim-task")
        stack.push_async_callback(asyncio.to_thread, pool.shutdown)
        staff = _Staff(self._loop)
        for name, table in tables.items():
            site = stack.enter_context(parts.new_site(self._root, name, table, self._holdout))
            runner = InProcess(site=name, threads=self._threads, pool=pool)
            told = parts.Telling(runner, name, staff.broke)
            agent = await stack.enter_async_context(parts.at_work(site, hub, access, told))
            staff.join(site, agent)
        token = await access.make_token(PERSON, "researcher")
        transport = Inside(await serve(hub, access), self._loop)
        client = SimulatedClient(token.secret or "", access.ca_pem.decode(), transport, staff)
        return client


class _Staff:
    """What every site's people have decided; asked from another thread than the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sites: dict[str, tuple[Site, Agent]] = {}
        self._values: dict[str, dict[str, tuple[Scalar, ...]]] = {}  # allowed, by plan
        self._said: dict[str, str] = {}  # by job

    def join(self, site: Site, agent: Agent) -> None:
        """Take in one more site, on the loop."""
        self._sites[site.name] = site, agent

    def broke(self, job: str, said: str) -> None:
        """Keep what went wrong, on the loop."""
        self._said[job] = said

    def said(self, job: str) -> str:
        """Return what went wrong last in a job."""
        return self._said.get(job, "")

    def take_part(self, study: Study) -> None:
        """Accept a study at its sites; ConfigError when it names one that is not simulated."""
        if missing := sorted(set(study.sites).difference(self._sites)):
            raise ConfigError(
                f"study {study.name!r} names the site {missing[0]!r}; simulated are "
                f"{', '.join(sorted(self._sites))}"
            )
        keys = {name: site.keys for name, (site, _) in self._sites.items()}
        self._each(study, lambda site: parts.take_part(site, study, keys))

    def allow(self, plan: Plan, study: Study, arguments: Arguments) -> None:
        """Approve a plan at a study's sites, with these values beside those of before."""
        known = self._values.setdefault(plan_digest(plan), {})
        for name, value in arguments.items():
            known[name] = (*known.get(name, ()), value)
        values: Mapping[str, Collection[Scalar]] = dict(known)
        self._each(study, lambda site: parts.allow(site, plan, study.name, values))

    def _each(self, study: Study, decide: Callable[[Site], None]) -> None:
        async def work() -> None:
            for name in study.sites:
                site, agent = self._sites[name]
                decide(site)
                agent.changed()

        wait(self._loop, work())
