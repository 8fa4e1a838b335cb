"""What a researcher does by area, against a whole hub."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa
import torch
from restkit import CONFIG, put_version, running_hub, weights
from torch import nn

from consilia.errors import ConfigError, NotFound
from consilia.hub import atrest, modelversions, tables
from consilia.privacy.accountant import cost, epsilon
from consilia.sdk import areas
from consilia.sdk.analytics import Analytics, Contributions
from consilia.sdk.client import Client
from consilia.sdk.experiment import Experiment as Run
from consilia.wire.people import Experiment
from consilia.wire.v1 import Dp, Privacy

JOB = "job-0000000000000001"
DP = Dp("record", noise_multiplier=1.0, clip=1.0, sampling=0.1, steps=10)


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A researcher with a finished private job of three rounds; south missed the last two."""
    directory = tmp_path_factory.mktemp("areas") / "hub"
    atrest.init(directory, CONFIG)
    first = put_version(directory, "ada", weights())

    def enter(db: sa.Connection) -> None:
        for number, loss in ((2, {"loss": 0.3}), (3, {})):
            version = replace(
                first,
                id=f"{JOB}.{number}",
                round=number,
                sites=("north",),
                metrics={**loss, "auc": 0.6 + number / 10},
            )
            modelversions.add(db, version)
        jobs = tables.jobs
        found = db.execute(sa.select(jobs.c.experiment).where(jobs.c.id == JOB)).scalar()
        private = msgspec.structs.replace(
            msgspec.json.decode(found or "", type=Experiment), privacy=Privacy(dp=DP)
        )
        text = msgspec.json.encode(private).decode()
        db.execute(sa.update(jobs).where(jobs.c.id == JOB).values(experiment=text))

    with atrest.at_rest(directory) as (store, _):
        asyncio.run(store.write(enter))
    with running_hub(directory) as hub:
        hub.add("ada", "researcher")
        with hub.client("ada") as client:
            yield client


def test_experiments_are_listed_by_status_and_study(ada: Client) -> None:
    (done,) = ada.experiments.list(status="done")
    assert done.job.id == JOB and done.job.experiment.study == "finished"
    assert ada.experiments.list(status=("waiting", "failed")) == []
    assert ada.experiments.list(study="other") == []
    with pytest.raises(ConfigError, match=r"status: 'finished' is not a state.*Valid: closing"):
        ada.experiments.list(status="finished")
    assert ada.experiments.get(JOB).job == ada.job(JOB)
    fresh = ada.experiments.create(study="finished", plan="x.py", rounds=2, privacy="plain")
    assert "not started" in repr(fresh)
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        ada.experiments.create(study="s", plan="x.py", rounds=1, roundz=1)


def test_a_branch_starts_from_a_round(ada: Client) -> None:
    whole = ada.experiments.get(JOB)
    branch = whole.branch(2, rounds=5, arguments={"lr": 0.5}, seed=7)
    config = branch._configuration("sha256:0")  # what would be sent
    assert (config.base, config.rounds, config.seed) == (f"{JOB}.2", 5, 7)
    assert config.arguments == {"lr": 0.5} and config.study == "finished"
    assert config.privacy == whole.job.experiment.privacy
    assert whole.branch()._configuration("x").base == f"{JOB}.3"
    with pytest.raises(NotFound, match=r"no model of round 9"):
        whole.branch(9)
    assert "<table" in whole._repr_html_() and "&lt;" not in whole._repr_html_()


def test_the_best_model_is_the_best(ada: Client) -> None:
    assert ada.models.get_best("loss").view.id == f"{JOB}.2"
    assert ada.models.get_best("loss", better="higher").view.id == f"{JOB}.1"
    best = ada.models.get_best("auc", "finished")
    assert best.view.id == f"{JOB}.3"
    np.testing.assert_array_equal(best.weights["w"], weights()["w"])
    for metric, study in (("f1", None), ("auc", "other")):
        with pytest.raises(NotFound, match="has a value of"):
            ada.models.get_best(metric, study=study)


def test_the_best_model_for_a_task_is_of_its_study_its_data_or_its_plan(ada: Client) -> None:
    view = ada.model(f"{JOB}.3")
    for task in ("finished", "cardiology", ada.plan(view.plan).name):
        assert ada.models.get_best("auc", task=task).view.id == view.id
    with pytest.raises(NotFound, match=r"is for 'finishd'; did you mean 'finished'"):
        ada.models.get_best("auc", task="finishd")


def test_experiments_are_compared(ada: Client, tmp_path: Path) -> None:
    found = ada.analytics.compare_experiments([JOB], ["loss"])
    assert [(row[2], row[3]) for row in found.rows] == [(1, "loss"), (2, "loss")]
    lines = found.to_csv(tmp_path / "c.csv").read_text().splitlines()
    assert lines[:2] == ["experiment,name,round,metric,value", f"{JOB},,1,loss,0.5"]
    assert list(found.to_dataframe()["value"]) == [0.5, 0.3]
    whole = ada.analytics.compare_experiments([JOB])
    assert {row[3] for row in whole.rows} == {"loss", "auc"}
    assert whole.plot().save(tmp_path / "c.svg").read_text().lstrip().startswith("<?xml")
    with pytest.raises(NotFound, match="has the metric f1; reported are: auc, loss"):
        ada.analytics.compare_experiments([JOB], ["f1"])
    with pytest.raises(ConfigError, match="at least one"):
        ada.analytics.compare_experiments([])


def test_contributions_count_rounds(ada: Client) -> None:
    found = ada.analytics.hospital_contributions(JOB)
    assert found.sites == {"north": 3, "south": 1} and found.rounds == 3
    assert found.shares == {"north": 0.75, "south": 0.25}
    assert found.diversity_score == pytest.approx(0.8112781, abs=1e-6)
    assert Contributions("j", 2, {"a": 2, "b": 2, "c": 2}).diversity_score == pytest.approx(1)
    assert Contributions("j", 2, {"a": 2, "b": 0}).diversity_score == 0
    assert Contributions("j", 0, {"a": 0}).diversity_score == 0


def test_a_budget_counts_the_rounds_that_a_site_is_in(ada: Client) -> None:
    found = ada.privacy.get_budget(JOB)
    assert found.delta == DP.delta
    assert found.sites == {
        "north": epsilon(cost(DP, 3), DP.delta),
        "south": epsilon(cost(DP, 1), DP.delta),
    }
    cost_now = ada.privacy.estimate_cost(ada.job(JOB).experiment)
    assert cost_now.level == "record" and set(cost_now.sites) == {"north", "south"}


def test_the_audit_log_is_of_this_job(ada: Client) -> None:
    ada.models.set_stage(f"{JOB}.2", "candidate", "lowest loss")
    log = ada.privacy.get_audit_log(JOB)
    assert (log.lines[-1].action, log.lines[-1].subject) == ("model.candidate", f"{JOB}.2")
    assert {line.subject.partition(".")[0] for line in log.lines} == {JOB}
    assert list(log.to_dataframe()["actor"]) == ["user:ada"] * len(log.lines)
    assert ada.job_audit(JOB) == list(log.lines)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
def test_rounds_go_to_tensorboard_and_mlflow(ada: Client, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415 - slow
    from tensorboard.backend.event_processing.event_accumulator import (  # noqa: PLC0415
        EventAccumulator,
    )

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = ada.experiments.get(JOB).log_to(tensorboard=tmp_path / "runs", mlflow=uri)
    assert done.state == "done"
    events = EventAccumulator(str(tmp_path / "runs" / JOB))
    events.Reload()
    scalars = {(e.step, round(e.value, 5)) for e in events.Scalars("auc")}
    assert scalars == {(2, 0.8), (3, 0.9)}
    client = MlflowClient(tracking_uri=uri)
    home = client.get_experiment_by_name("finished")
    assert home is not None
    (run,) = client.search_runs([home.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["strategy"] == "fedavg"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.3)]


def test_a_deployment_answers(ada: Client) -> None:
    import pandas as pd  # noqa: PLC0415 - slow

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1000))
            self.b = nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.w[:2] + self.b[0]

    blank = Scaled()
    deployed = ada.deployments.create(f"{JOB}.1", module=blank, features=["age", "bp"])
    w = np.asarray(weights()["w"][:2], np.float32)
    table = pd.DataFrame({"bp": [1.0, 2.0], "age": [3.0, 4.0], "name": ["x", "y"]})
    expected = np.array([[3, 1], [4, 2]], np.float32) * w
    np.testing.assert_allclose(deployed.predict(table), expected, rtol=1e-6)
    np.testing.assert_allclose(deployed.predict([[3, 1], [4, 2]]), expected, rtol=1e-6)
    assert not blank.w.any(), "the caller's module was changed"
    with pytest.raises(ConfigError, match="the table lacks bp"):
        deployed.predict(table[["age"]])


def test_every_call_is_in_the_reference() -> None:
    text = (Path(__file__).parents[2] / "docs/reference/sdk.md").read_text("utf-8")
    named = {
        "experiments": areas.Experiments,
        "models": areas.Models,
        "privacy": areas.PrivacyArea,
        "deployments": areas.Deployments,
        "analytics": Analytics,
    }
    calls = [
        f"`client.{area}.{name}("
        for area, kind in named.items()
        for name in vars(kind)
        if not name.startswith("_")
    ]
    assert len(calls) >= 14
    assert [call for call in calls if call not in text] == []
    steps = {name for name in vars(Run) if not name.startswith("_")}
    shown = set(re.findall(r"[`, ](\w+)(?:\(|`)", text))
    assert steps - shown <= {"attach", "of", "offer", "validate", "job", "refresh"}
