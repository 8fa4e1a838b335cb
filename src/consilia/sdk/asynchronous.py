"""The client and its experiments for programs that run on asyncio: the same names, awaited.

    async with AsyncClient() as client:
        experiment = client.experiments.create(study="heart", plan="heart.py", rounds=20)
        await experiment.start()
        async for round, metrics in experiment.stream_metrics():
            print(round, metrics)

Each method is its twin's, run on one of a few threads of the client's own, so both say and
raise the same. A call that is cancelled goes on in its thread; the answer is dropped.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial, wraps
from itertools import islice
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from consilia.sdk.analytics import Analytics
from consilia.sdk.areas import Deployment, Deployments, Experiments, Models, PrivacyArea
from consilia.sdk.client import Client
from consilia.sdk.datasets import Datasets
from consilia.sdk.experiment import Experiment
from consilia.sdk.network import Source
from consilia.sdk.people import People
from consilia.sdk.results import Model
from consilia.wire import people
from consilia.wire.people import JobView, RoundView
from consilia.wire.v1 import Metrics, Plan, Scalar, Study

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from consilia.sdk.compare import Comparison

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
THREADS = 16  # calls of one client at once; more wait their turn


class _Twin(Generic[S]):
    """An object whose methods run on threads."""

    def __init__(self, inner: S, threads: ThreadPoolExecutor) -> None:
        self._inner = inner
        self._threads = threads

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _stream(self, items: Iterator[T]) -> AsyncIterator[T]:
        """Yield what `items` yields; each step waits on a thread."""
        while found := await self._call(lambda: list(islice(items, 1))):
            yield found[0]


def _awaited(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[_Twin[S], P], Coroutine[Any, Any, T]]:
    """Return the method's twin, with its name, signature and words."""

    @wraps(method)
    async def call(self: _Twin[S], /, *args: P.args, **named: P.kwargs) -> T:
        return await self._call(partial(method, self._inner, *args, **named))

    return call


def _steered(
    method: Callable[Concatenate[Experiment, P], Experiment],
) -> "Callable[Concatenate[AsyncExperiment, P], Coroutine[Any, Any, AsyncExperiment]]":
    """Return the twin of a method that answers with an experiment, mostly its own."""

    @wraps(method)
    async def call(
        self: "AsyncExperiment", /, *args: P.args, **named: P.kwargs
    ) -> "AsyncExperiment":
        found = await self._call(partial(method, self._inner, *args, **named))
        return self if found is self._inner else AsyncExperiment(found, self._threads)

    return call


class AsyncExperiment(_Twin[Experiment]):
    """An experiment and the job that runs it; see `sdk.experiment.Experiment`."""

    offer = _awaited(Experiment.offer)
    validate = _awaited(Experiment.validate)
    start = _steered(Experiment.start)
    wait = _awaited(Experiment.wait)
    log_to = _awaited(Experiment.log_to)
    pause = _steered(Experiment.pause)
    stop = _steered(Experiment.stop)
    resume = _steered(Experiment.resume)
    roll_back = _steered(Experiment.roll_back)
    evaluate = _steered(Experiment.evaluate)
    refresh = _awaited(Experiment.refresh)
    get_model = _awaited(Experiment.get_model)

    @property
    def job(self) -> JobView:
        """The job as last seen; NotFound before `start`."""
        return self._inner.job

    async def change(self, **arguments: Scalar) -> Self:
        """Set arguments of the plan from the next round that opens; the others stay."""
        await self._call(lambda: self._inner.change(**arguments))
        return self

    async def branch(self, round: int | None = None, **changes: Any) -> "AsyncExperiment":
        """Return a new experiment that starts from this one's model after `round`."""
        found = await self._call(lambda: self._inner.branch(round, **changes))
        return AsyncExperiment(found, self._threads)

    async def rounds(self) -> tuple[RoundView, ...]:
        """Return the closed training rounds, oldest first."""
        return await self._call(lambda: self._inner.rounds)

    async def evaluations(self) -> tuple[people.EvaluationView, ...]:
        """Return what the sites have found of the models, oldest first."""
        return await self._call(lambda: self._inner.evaluations)

    async def history(self) -> "pd.DataFrame":
        """Return the closed rounds as a DataFrame indexed by round."""
        return await self._call(lambda: self._inner.history)

    async def stream_metrics(self) -> AsyncIterator[tuple[int, Metrics]]:
        """Yield (round, metrics) as rounds close, from the first one on, until the job ends."""
        async for item in self._stream(self._inner.stream_metrics()):
            yield item

    def __repr__(self) -> str:
        """Say which job this is and how far."""
        return repr(self._inner)

    def _repr_html_(self) -> str:
        return self._inner._repr_html_()


class AsyncExperiments(_Twin[Experiments]):
    """Experiments at this hub; see `sdk.areas.Experiments`."""

    def create(
        self,
        *,
        study: str | Study,
        plan: str | Path | ModuleType | Plan,
        rounds: int,
        arguments: Mapping[str, Scalar] | None = None,
        **settings: Any,
    ) -> AsyncExperiment:
        """Return an experiment that has not started; nothing is sent yet."""
        made = self._inner.create(
            study=study, plan=plan, rounds=rounds, arguments=arguments, **settings
        )
        return AsyncExperiment(made, self._threads)

    async def list(
        self, status: str | Sequence[str] | None = None, study: str | None = None
    ) -> "list[AsyncExperiment]":
        """Return the experiments that were started, newest first."""
        found = await self._call(lambda: self._inner.list(status, study))
        return [AsyncExperiment(one, self._threads) for one in found]

    async def get(self, job: str) -> AsyncExperiment:
        """Return the experiment of a job, by its id."""
        return AsyncExperiment(await self._call(lambda: self._inner.get(job)), self._threads)

    async def compare(
        self,
        *,
        study: str,
        plan: str | Path | ModuleType | Plan,
        rounds: int,
        folds: int = 5,
        **settings: Any,
    ) -> "Comparison":
        """Compare local, federated, hybrid and central training on the same patients."""
        named = {"study": study, "plan": plan, "rounds": rounds, "folds": folds, **settings}
        return await self._call(partial(self._inner.compare, **named))


class AsyncModels(_Twin[Models]):
    """The model registry; see `sdk.areas.Models`."""

    list = _awaited(Models.list)
    get = _awaited(Models.get)
    get_best = _awaited(Models.get_best)
    card = _awaited(Models.card)
    set_stage = _awaited(Models.set_stage)


class AsyncDatasets(_Twin[Datasets]):
    """What sites offer; see `sdk.datasets.Datasets`."""

    list = _awaited(Datasets.list)
    mock = _awaited(Datasets.mock)


class AsyncAnalytics(_Twin[Analytics]):
    """Experiments side by side; see `sdk.analytics.Analytics`."""

    compare_experiments = _awaited(Analytics.compare_experiments)
    cross_site = _awaited(Analytics.cross_site)
    hospital_contributions = _awaited(Analytics.hospital_contributions)


class AsyncPrivacy(_Twin[PrivacyArea]):
    """What experiments cost in privacy; see `sdk.areas.PrivacyArea`."""

    get_budget = _awaited(PrivacyArea.get_budget)
    get_audit_log = _awaited(PrivacyArea.get_audit_log)

    async def estimate_cost(
        self, experiment: AsyncExperiment | people.Experiment
    ) -> people.PrivacyEstimateView:
        """Tell the epsilon that an experiment would add at each site, before it runs."""
        asked = experiment._inner if isinstance(experiment, AsyncExperiment) else experiment
        return await self._call(lambda: self._inner.estimate_cost(asked))


class AsyncDeployment(_Twin[Deployment]):
    """A model version that answers in this process; see `sdk.areas.Deployment`."""

    predict = _awaited(Deployment.predict)


class AsyncDeployments(_Twin[Deployments]):
    """Models put to work in this process; see `sdk.areas.Deployments`."""

    async def create(
        self,
        model: str | Model,
        *,
        plan: Source | None = None,
        module: "nn.Module | None" = None,
        features: Sequence[str] = (),
    ) -> AsyncDeployment:
        """Load a version's weights into its network and return what predicts with it."""
        named: dict[str, Any] = {"plan": plan, "module": module, "features": features}
        create = partial(self._inner.create, model, **named)
        return AsyncDeployment(await self._call(create), self._threads)


class AsyncPeople(_Twin[People]):
    """Accounts of people and machines; see `sdk.people.People`."""

    me = _awaited(People.me)
    list = _awaited(People.list)
    get = _awaited(People.get)
    change = _awaited(People.change)
    remove = _awaited(People.remove)
    end_sessions = _awaited(People.end_sessions)
    second_factor = _awaited(People.second_factor)
    confirm_second_factor = _awaited(People.confirm_second_factor)
    remove_second_factor = _awaited(People.remove_second_factor)
    invite = _awaited(People.invite)
    invitations = _awaited(People.invitations)
    accept = _awaited(People.accept)
    ask = _awaited(People.ask)
    requests = _awaited(People.requests)
    decide = _awaited(People.decide)
    keys = _awaited(People.keys)
    make_key = _awaited(People.make_key)
    revoke_key = _awaited(People.revoke_key)


class AsyncClient(_Twin[Client]):
    """A connection to one hub as one person; see `sdk.client.Client` for the arguments."""

    def __init__(  # noqa: PLR0913 - those of its twin
        self,
        url: str | None = None,
        token: str | None = None,
        ca: str | Path | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        profile: Path | None = None,
        timeout: float = 30.0,
    ) -> None:
        inner = Client(url, token, ca, environ=environ, profile=profile, timeout=timeout)
        super().__init__(inner, ThreadPoolExecutor(THREADS, "consilia-client"))

    @cached_property
    def experiments(self) -> AsyncExperiments:
        """Experiments: create, list, get."""
        return AsyncExperiments(self._inner.experiments, self._threads)

    @cached_property
    def models(self) -> AsyncModels:
        """The model registry: list, get, get_best, card, set_stage."""
        return AsyncModels(self._inner.models, self._threads)

    @cached_property
    def datasets(self) -> AsyncDatasets:
        """What sites offer: list, mock."""
        return AsyncDatasets(self._inner.datasets, self._threads)

    @cached_property
    def accounts(self) -> AsyncPeople:
        """Accounts, invitations, requests and keys."""
        return AsyncPeople(self._inner.accounts, self._threads)

    @cached_property
    def analytics(self) -> AsyncAnalytics:
        """Experiments side by side: compare_experiments, hospital_contributions."""
        return AsyncAnalytics(self._inner.analytics, self._threads)

    @cached_property
    def privacy(self) -> AsyncPrivacy:
        """What experiments cost in privacy: estimate_cost, get_budget, get_audit_log."""
        return AsyncPrivacy(self._inner.privacy, self._threads)

    @cached_property
    def deployments(self) -> AsyncDeployments:
        """Models at work in this process: create(...), then predict(...)."""
        return AsyncDeployments(self._inner.deployments, self._threads)

    async def close(self) -> None:
        """Close the connections. Calls under way fail."""
        await self._call(self._inner.close)
        self._threads.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def audit(
        self, after: int = 0, limit: int | None = None
    ) -> AsyncIterator[people.AuditView]:
        """Yield the hub's audit lines after number `after` (operator, auditor)."""
        async for line in self._stream(self._inner.audit(after, limit)):
            yield line

    whoami = _awaited(Client.whoami)
    tokens = _awaited(Client.tokens)
    new_token = _awaited(Client.new_token)
    revoke_token = _awaited(Client.revoke_token)
    sites = _awaited(Client.sites)
    invite = _awaited(Client.invite)
    revoke_site = _awaited(Client.revoke_site)
    studies = _awaited(Client.studies)
    study = _awaited(Client.study)
    offers = _awaited(Client.offers)
    create_study = _awaited(Client.create_study)
    edit_study = _awaited(Client.edit_study)
    submit_study = _awaited(Client.submit_study)
    revise_study = _awaited(Client.revise_study)
    close_study = _awaited(Client.close_study)
    plans = _awaited(Client.plans)
    plan = _awaited(Client.plan)
    submit_plan = _awaited(Client.submit_plan)
    validate = _awaited(Client.validate)
    estimate_privacy = _awaited(Client.estimate_privacy)
    start = _awaited(Client.start)
    jobs = _awaited(Client.jobs)
    job = _awaited(Client.job)
    pause = _awaited(Client.pause)
    stop = _awaited(Client.stop)
    resume = _awaited(Client.resume)
    roll_back = _awaited(Client.roll_back)
    evaluations = _awaited(Client.evaluations)
    ask_statistics = _awaited(Client.ask_statistics)
    job_statistics = _awaited(Client.job_statistics)
    statistics = _awaited(Client.statistics)
    change_arguments = _awaited(Client.change_arguments)
    events = _awaited(Client.events)
    job_audit = _awaited(Client.job_audit)
    model_versions = _awaited(Client.model_versions)
    model = _awaited(Client.model)
    model_card = _awaited(Client.model_card)
    set_stage = _awaited(Client.set_stage)
    download_model = _awaited(Client.download_model)
    upload_frame = _awaited(Client.upload_frame)
    verify_audit = _awaited(Client.verify_audit)
