"""An experiment driven from Python, against a real hub and real nodes."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from cluster import Cluster, federation, until
from tables import PLAN, write

from consilia import Client, Experiment, Study
from consilia.errors import ConfigError, Conflict, ConsiliaError, NotFound
from consilia.sdk.source import read_plan

SITES = {"north": 120, "south": 60}
STUDY = Study("regression", "a test", ("south", "north"), ("linear",))


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
