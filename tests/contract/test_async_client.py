"""The asynchronous twin of the client: as complete as the other, and as right."""

import asyncio
import inspect
from collections.abc import Iterator

import pytest
from restkit import CONFIG, RestHub, put_version, running_hub, weights

from consilia import AsyncClient
from consilia.errors import NotFound
from consilia.hub import atrest
from consilia.sdk import areas, asynchronous, datasets
from consilia.sdk.analytics import Analytics
from consilia.sdk.client import Client
from consilia.sdk.experiment import Experiment
from consilia.sdk.people import People

JOB = "job-0000000000000001"
MADE_BY = {"attach", "of"}  # AsyncExperiments.get and .list make them here


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestHub]:
    """A hub with a researcher, ada, and her finished job of one round."""
    directory = tmp_path_factory.mktemp("async") / "hub"
    atrest.init(directory, CONFIG)
    put_version(directory, "ada", weights())
    with running_hub(directory) as hub:
        hub.add("ada", "researcher")
        yield hub


def _twin(hub: RestHub) -> AsyncClient:
    """Ada's asynchronous client."""
    return AsyncClient(hub.addresses.people, hub.tokens["ada"], hub.ca, environ={})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Client, asynchronous.AsyncClient),
        (Experiment, asynchronous.AsyncExperiment),
        (areas.Experiments, asynchronous.AsyncExperiments),
        (areas.Models, asynchronous.AsyncModels),
        (areas.PrivacyArea, asynchronous.AsyncPrivacy),
        (areas.Deployments, asynchronous.AsyncDeployments),
        (datasets.Datasets, asynchronous.AsyncDatasets),
        (Analytics, asynchronous.AsyncAnalytics),
        (People, asynchronous.AsyncPeople),
    ],
)
def test_nothing_is_missing_and_everything_is_called_alike(one: type, other: type) -> None:
    names = {name for name in dir(one) if not name.startswith("_")} - MADE_BY - {"url"}
    assert names <= set(dir(other))
    for name in names:
        mine, its = getattr(other, name), getattr(one, name)
        if inspect.isfunction(its) and inspect.isfunction(mine):
            found, needed = (list(inspect.signature(f).parameters)[1:] for f in (mine, its))
            assert found == needed, name


async def test_it_reads_what_its_twin_reads(hub: RestHub) -> None:
    with hub.client("ada") as ada:
        seen = ada.jobs(), ada.whoami()
        metrics = list(ada.experiments.get(JOB).stream_metrics())
    async with _twin(hub) as client:
        assert (await client.jobs(), await client.whoami()) == seen and metrics
        experiment = await client.experiments.get(JOB)
        assert experiment.job.id == JOB and JOB in repr(experiment)
        assert [item async for item in experiment.stream_metrics()] == metrics
        model = await experiment.get_model()
        assert set(model.weights) == set(weights())
        (again,) = await client.experiments.list(status="done")
        assert again.job.id == JOB
        branch = await experiment.branch(1, rounds=3)
        assert "not started" in repr(branch)


async def test_a_refusal_is_its_twins(hub: RestHub) -> None:
    async with _twin(hub) as client:
        with pytest.raises(NotFound):
            await client.job("job-00000000000000zz")
        with pytest.raises(NotFound):
            _ = client.experiments.create(study="s", plan="x.py", rounds=1).job


async def test_a_call_that_waits_keeps_nobody_waiting(hub: RestHub) -> None:
    """Others are answered beside a long poll, which is cancelled at once."""
    async with _twin(hub) as client:
        waiting = asyncio.create_task(client.events(JOB, after=10**6, wait=1.0))
        assert (await client.whoami()).name == "ada"
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
