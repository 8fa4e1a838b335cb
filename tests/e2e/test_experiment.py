"""An experiment driven from Python, against a real hub and real nodes."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import Cluster, federation, until
from tables import PLAN, write

from consilia import Client, Experiment, Study
from consilia.errors import ConfigError, Conflict, ConsiliaError, NotFound
from consilia.sdk.source import read_plan
from consilia.sim import Federation, simulate

SITES = {"north": 120, "south": 60}
STUDY = Study("regression", "a test", ("south", "north"), ("linear",))
SAME: dict[str, Any] = {"seed": 11, "deterministic": True, "arguments": {"lr": 0.03}}
GATED = '''
"""Linear regression that begins a round only when a file beside the tables says so."""

import time
from pathlib import Path

import numpy as np

from consilia.plans.numpy import numpy_plan


def init(args, seed):
    return {{"w": np.random.default_rng(seed).normal(size=3).astype(np.float32)}}


def train(weights, data, args, context):
    while context.round > int(Path({gate!r}).read_text() or 0):
        context.progress(0.0)
        time.sleep(0.01)
    for x, y in data.batches(16, shuffle=True):
        weights["w"] -= args["lr"] * (x.T @ (x @ weights["w"] - y)) / len(x)


PLAN = numpy_plan(init, train, features=["a", "b", "c"], target="y", arguments={{"lr": 0.05}})
'''


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("experiment")
    with federation(root, write(root, SITES), "linear") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    """A researcher's connection; the sites have accepted study and plan."""
    with Client(environ=cluster.env) as client:
        digest = Experiment(client, study=STUDY, plan=PLAN, rounds=1).offer().plan
        for site in SITES:
            cluster.decide(site, "regression", digest, "fail=true,false")
        until("the hub to hear of it", lambda: len(client.plans()[0].approved) == 2)
        yield client


def experiment(client: Client, **settings: object) -> Experiment:
    fields: dict[str, object] = {"study": STUDY, "plan": PLAN, "rounds": 4, **settings}
    return Experiment(client, **fields)  # type: ignore[arg-type]


def test_rounds_are_followed_and_become_a_history(client: Client) -> None:
    run = experiment(client).start()
    followed = list(run.stream_metrics())
    assert [round for round, _ in followed] == [1, 2, 3, 4]
    assert run.wait().state == "done"
    assert list(run.history.index) == [1, 2, 3, 4]
    assert list(run.history["loss"]) == [metrics["loss"] for _, metrics in followed]
    assert set(run.history["records"]) == {180}


def test_every_round_has_a_model_that_is_downloaded_once(client: Client) -> None:
    run = experiment(client, rounds=2).start()
    run.wait()
    first, last = run.get_model(1), run.get_model()
    assert (first.view.round, last.view.round) == (1, 2)
    assert not np.array_equal(first.weights["w"], last.weights["w"])
    again = experiment(client, base=last.view.id, rounds=1).start()
    again.wait()
    assert again.get_model().view.digest != last.view.digest
    with pytest.raises(NotFound, match="no model of round 7"):
        run.get_model(7)


def test_an_argument_changes_from_the_next_round_on(client: Client) -> None:
    run = experiment(client, rounds=400).start()
    for round, _ in run.stream_metrics():
        if round == 2:
            run.change(lr=0.0)
            break
    until("the change to take effect", lambda: _steady(run))
    run.stop()
    until("the job to be stopped", lambda: run.refresh().state == "stopped")


def _steady(run: Experiment) -> bool:
    """Without a learning rate the model no longer moves."""
    last = run.refresh().rounds[-1].round
    if last < 4:
        return False
    before, after = run.get_model(last - 1).weights["w"], run.get_model(last).weights["w"]
    return bool(np.allclose(before, after))


def test_a_job_is_stopped_resumed_and_taken_up_by_its_id(client: Client) -> None:
    run = experiment(client, rounds=2000).start()
    next(run.stream_metrics())
    assert run.stop().job.state == "stopped"
    taken = Experiment.attach(client, run.job.id)
    reached = len(taken.rounds)
    taken.resume()
    until("the job to go on", lambda: len(taken.rounds) > reached)
    taken.stop()
    assert taken.wait().state == "stopped"
    with pytest.raises(Conflict, match="runs already"):
        taken.start()


def test_waiting_with_progress_tells_of_every_round(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    run = experiment(client, rounds=3).start(progress=True)
    said = capsys.readouterr().err
    for number in (1, 2, 3):
        assert f"round {number}/3: loss" in said
    assert f"job {run.job.id} done" in said


def test_a_failed_job_says_why_and_keeps_the_traceback_at_the_site(
    client: Client, cluster: Cluster
) -> None:
    run = experiment(client, arguments={"fail": True}).start()
    with pytest.raises(ConsiliaError, match=r"failed in round 1") as caught:
        run.wait()
    assert "plan-error" in str(caught.value)
    assert "asked to fail" not in str(caught.value)
    logs = [log for site in SITES for log in cluster.node(site).glob(f"log/jobs/{run.job.id}*")]
    assert any("the plan was asked to fail" in log.read_text() for log in logs)


def test_what_is_wrong_is_said_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(ConfigError, match="did you mean 'min_sites'"):
        experiment(client, min_site=2)
    with pytest.raises(NotFound, match="call start"):
        _ = experiment(client).job
    other = Study("regression", "another purpose", ("north",), ("linear",))
    with pytest.raises(Conflict, match="other content"):
        experiment(client, study=other).start()
    with pytest.raises(NotFound, match="consilia plan list"):
        experiment(client, plan="0123456789ab").offer()


def test_a_plan_is_named_in_any_way(client: Client) -> None:
    plan = read_plan(PLAN)
    digest = experiment(client, plan=plan).offer().plan
    assert experiment(client, plan=digest).offer().plan == digest
    assert experiment(client, plan=digest.removeprefix("sha256:")[:9]).offer().plan == digest
    assert experiment(client, plan=str(PLAN)).offer().plan == digest


def test_until_sites_agree_the_job_waits_and_says_for_whom(client: Client) -> None:
    study = Study("unaccepted", "nobody agreed yet", ("north", "south"), ("linear",))
    run = experiment(client, study=study).start()
    view = run.refresh()
    assert view.state == "waiting"
    assert "north" in view.cause
    stopper = threading.Timer(0.5, client.stop, [view.id])
    stopper.start()
    assert run.wait().state == "stopped"
    stopper.join()


# ---- the same job in one process -------------------------------------------------------------


def tables(cluster: Cluster) -> dict[str, Path]:
    """The files that the sites have registered."""
    return {site: cluster.root / f"{site}.csv" for site in SITES}


def gated(folder: Path) -> tuple[Path, Path]:
    """Return a plan and the file that says up to which round it trains."""
    plan, gate = folder / "plan.py", folder / "gate"
    plan.write_text(GATED.format(gate=str(gate)))
    gate.write_text("2")
    return plan, gate


def steered(run: Experiment, gate: Path) -> list[tuple[int, float, str]]:
    """Steer a job in every way; return round, learning rate and digest of its models."""
    run.start()
    until("round 3", lambda: run.refresh().round == 3)
    run.change(lr=0.01)  # from round 4 on: round 3 is open
    gate.write_text("3")
    until("round 4", lambda: run.refresh().round == 4)
    assert run.stop().refresh().state == "stopped"
    run.resume().pause()
    gate.write_text("99")
    until("the pause", lambda: run.refresh().state == "paused")
    assert [view.round for view in run.rounds] == [1, 2, 3, 4]
    assert run.resume().wait().state == "done"
    run.roll_back(2).resume(rounds=7)
    assert run.wait().state == "done"
    other = run.branch(4, rounds=1, arguments={"lr": 0.03}).start()
    assert other.wait().state == "done"
    models = [*(run.get_model(round).view for round in range(1, 8)), other.get_model().view]
    return [(view.round, float(view.arguments["lr"]), view.digest) for view in models]


def test_a_steered_job_is_the_same_simulated(
    client: Client, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    plan, gate = gated(tmp_path / "here")
    with Federation(tables(cluster)) as simulated:
        run = simulated.experiment(plan, rounds=6, study=STUDY, **SAME)
        here = steered(run, gate)
    assert [rate for _, rate, _ in here] == [0.03] * 3 + [0.01] * 4 + [0.03]
    assert len({digest for _, _, digest in here}) == 8
    plan, gate = gated(tmp_path / "there")
    run = experiment(client, plan=plan, rounds=6, grace=60, **SAME)
    digest = run.offer().plan
    for site in SITES:
        cluster.decide(site, "regression", digest, "lr=0..1")
    assert steered(run, gate) == here


def test_a_deployed_run_makes_the_same_models_as_simulate(
    client: Client, cluster: Cluster
) -> None:
    alone = simulate(PLAN, tables(cluster), rounds=4, **SAME)
    run = experiment(client, rounds=4, grace=60, **SAME).start()
    run.wait()
    assert [r.round for r in run.rounds] == [1, 2, 3, 4]
    for round in range(1, 5):
        assert alone.get_model(round).view.digest == run.get_model(round).view.digest
