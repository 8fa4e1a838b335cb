"""kill -9 of the hub, an agent, a worker, in the middle of a round: nothing accepted is lost.

The hub is restarted on its ports; on SQLite and on PostgreSQL.
"""

import contextlib
import os
import signal
from collections.abc import Container, Iterator
from functools import partial
from pathlib import Path

import pytest
from faultkit import Lab, accepted, journal, relayed, until

from pgkit import Postgres

SITES = ("a", "b", "c")
BIG = 4 << 20  # parameters: a model of 16 MiB, larger than what is sent without asking


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("sqlite")) as lab:
        lab.open(SITES)
        yield lab


@pytest.fixture(scope="module")
def postgres_lab(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Lab]:
    options = ("--database", postgres.fresh())
    with Lab(tmp_path_factory.mktemp("postgres"), hub_options=options) as lab:
        lab.open(SITES)
        yield lab


@pytest.fixture(params=["sqlite", "postgres"])
def any_lab(request: pytest.FixtureRequest) -> Lab:
    name = "lab" if request.param == "sqlite" else "postgres_lab"
    lab: Lab = request.getfixturevalue(name)
    return lab


def spooled(lab: Lab, lease: str) -> int:
    """Bytes of an update that the hub has on disk."""
    with contextlib.suppress(FileNotFoundError):
        return (lab.hub_directory / "spool" / lease).stat().st_size
    return 0


@pytest.mark.slow
def test_hub_killed_while_an_update_uploads(any_lab: Lab) -> None:
    """The same round goes on; the update goes on where it was cut, not from its start."""
    lab = any_lab
    size = BIG * 4
    with relayed(lab, "b") as relays, lab.client() as client:
        job = lab.start(client, 2, min_updates=3, arguments={"parameters": BIG})
        until(lab, "the first model", lambda: bool(journal(client, job, "Closed")))
        before = relays["b"].up
        relays["b"].hold_after(size // 2)
        until(lab, "an update half sent", lambda: spooled(lab, f"{job}.1.0.b") > size // 3)
        until(lab, "two updates", lambda: len(accepted(client, job)) == 3)
        first = accepted(client, job)
        lab.kill("hub")
        kept = spooled(lab, f"{job}.1.0.b")
        assert size // 3 < kept < size
        relays["b"].release()
        lab.start_hub()
        view = lab.finish(client, job)
        sent = relays["b"].up - before
        assert accepted(client, job)[:3] == first, "an accepted update was lost"
        check_counted_once(lab, job, rounds=2)
        lab.check(client, view)
        # Two rounds' updates, and no more than what was under way when the hub died.
        assert sent < 2 * size * 1.1, f"sent {sent} bytes, two updates have {2 * size}"


@pytest.mark.slow
def test_hub_killed_after_an_update_was_accepted(any_lab: Lab) -> None:
    """What was accepted stays and is not asked for again; the others go on training."""
    lab = any_lab
    with lab.client() as client:
        job = lab.start(client, 2, min_updates=3, arguments=lab.slow("c"))
        until(lab, "two updates", lambda: len(accepted(client, job)) == 3)  # with the init
        first = accepted(client, job)
        assert {lease.rsplit(".", 1)[1] for lease in first[1:]} == {"a", "b"}
        lab.kill("hub")
        lab.start_hub()
        view = client.job(job)
        assert (view.state, view.round) == ("running", 1)
        lab.let_go("c", job)
        view = lab.finish(client, job)
        assert accepted(client, job)[:3] == first
        check_counted_once(lab, job, rounds=2)
        for site in SITES:
            assert lab.trained(site, job) == [1, 2], f"{site} trained a round again"
        lab.check(client, view)
        lab.intact(*SITES)


def check_counted_once(lab: Lab, job: str, rounds: int) -> None:
    """Every site's update is in every round, accepted exactly once."""
    with lab.client() as client:
        view = client.job(job)
        trained = [lease.split(".", 1)[1] for lease in accepted(client, job)][1:]
    assert sorted(trained) == sorted(f"{n}.0.{s}" for n in range(1, rounds + 1) for s in SITES)
    assert [r.sites for r in view.rounds[1:]] == [SITES] * rounds
    assert not any(r.rejected for r in view.rounds)


@pytest.mark.slow
def test_agent_killed_while_it_trains(lab: Lab) -> None:
    """The round closes with the others; the agent's workers die with it; it is used again."""
    with lab.client() as client:
        job = lab.start(client, 500, min_sites=2, grace=0.5, arguments=lab.slow("c"))
        until(lab, "c trains", lambda: lab.trained("c", job) == [1])
        workers = lab.workers("c")
        assert workers
        lab.end("c", signal.SIGKILL)
        until(lab, "round 1 closes without c", lambda: len(client.job(job).rounds) > 1)
        assert client.job(job).rounds[1].sites == ("a", "b")
        until(lab, "c is seen to be away", lambda: client.job(job).sites["c"] == "away")
        assert not [w for w in workers if w.is_running() and w.status() != "zombie"]
        lab.start_node("c")

        def used_again() -> bool:
            return "c" in client.job(job).rounds[-1].sites

        until(lab, "c is used again", used_again)
        client.stop(job)
        lab.check(client, client.job(job))


@pytest.mark.slow
def test_a_released_answer_is_sent_again_and_not_trained_again(lab: Lab) -> None:
    with relayed(lab, "c") as relays, lab.client() as client:
        job = lab.start(client, 1, min_updates=3, arguments={"parameters": BIG})
        until(lab, "the first model", lambda: bool(journal(client, job, "Closed")))
        relays["c"].hold_after(BIG)
        outbox = lab.node_directory("c") / "outbox"
        until(lab, "c has released its answer", lambda: relays["c"].holding)
        released = [line for line in lab.audit_lines("c", "release") if f"{job}.1." in line]
        assert len(released) == 1 and any(outbox.iterdir())
        lab.end("c", signal.SIGKILL)
        relays["c"].release()
        lab.start_node("c")
        view = lab.finish(client, job)
        assert view.rounds[1].sites == SITES
        assert lab.trained("c", job) == [1], "c trained again what it had released"
        again = [line for line in lab.audit_lines("c", "release") if f"{job}.1." in line]
        assert again == released
        lab.check(client, view)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["sandbox", "plan"])
def test_worker_killed_while_it_trains(lab: Lab, victim: str) -> None:
    """The round's record tells that the worker crashed; the next round uses the site again."""
    with lab.client() as client:
        job = lab.start(client, 2, arguments=lab.slow("b"))
        until(lab, "b trains", lambda: lab.trained("b", job) == [1])
        workers = lab.workers("b")
        assert workers[0].name() == "bwrap" and "python" in workers[-1].name()
        os.kill(workers[0 if victim == "sandbox" else -1].pid, signal.SIGKILL)
        view = lab.finish(client, job)
        assert view.rounds[1].rejected == {"b": "failed: crashed"}
        assert view.rounds[1].sites == ("a", "c")
        assert view.rounds[2].sites == SITES and not view.rounds[2].rejected
        assert lab.trained("b", job) == [1, 2]
        assert "the worker ended with exit code" in lab.log("b")
        lab.check(client, view)


@pytest.mark.slow
def test_too_few_left_fails_with_each_sites_cause(lab: Lab) -> None:
    """A job that cannot reach its quorum says who failed and why, and can be resumed."""
    with lab.client() as client:
        job = lab.start(client, 1, min_updates=3, arguments=lab.slow("b"))
        until(lab, "the others are done", lambda: len(accepted(client, job)) == 3)
        until(lab, "b trains", lambda: lab.trained("b", job) == [1])
        os.kill(lab.workers("b")[-1].pid, signal.SIGKILL)
        until(lab, "the job fails", lambda: client.job(job).state == "failed")
        cause = client.job(job).cause
        assert "too few sites are left; found 2 of 3 updates" in cause
        assert "b: failed (crashed)" in cause
        client.resume(job)
        lab.let_go("b", job, 2)
        view = lab.finish(client, job)
        assert view.rounds[1].sites == SITES
        assert lab.trained("a", job) == lab.trained("c", job) == [1], "kept updates count"
        lab.check(client, view)


def test_nothing_is_left_lying_about(lab: Lab) -> None:
    """After all of the above no answer waits at a site, and no spool but for a resume."""
    with lab.client() as client:
        kept = {job.id for job in client.jobs() if job.state in ("stopped", "failed")}
    places = [lab.node_directory(site) / "outbox" for site in SITES]
    places.append(lab.hub_directory / "spool")
    for place in places:
        until(lab, f"{place} is empty", partial(is_empty, place, kept))
    lab.intact(*SITES)


def is_empty(folder: Path, kept: Container[str]) -> bool:
    """Tell whether nothing lies there but accepted updates of jobs that may be resumed."""
    return all(entry.name.split(".", 1)[0] in kept for entry in folder.iterdir())
