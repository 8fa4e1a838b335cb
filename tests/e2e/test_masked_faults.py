"""kill -9 of the hub, of agents and of a worker in every step of masked rounds.

A step is held open by what happens in hospitals too: an agent that stands still, a training
that takes long, a disk that takes no write. Four sites: one may be lost, with two lost the
round fails closed, says so, and is done again with fresh keys.
"""

import base64
import contextlib
import itertools
import json
import math
import os
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bench.local import STUDY
from faultkit import Lab, accepted, configure, until
from numpy.typing import NDArray

from consilia.core.select import site_seed
from consilia.sdk.client import Client
from consilia.wire import frames, masks
from consilia.wire.people import JobView
from consilia.wire.v1 import Privacy, decode

SITES = ("a", "b", "c", "d")
SECURE = Privacy(aggregation="secure")
STEPS = ("keys", "shares", "update", "consent", "unmask")
TRAINING = ("update", "consent", "unmask")  # held after all but a have sent their updates
ERROR = 4 * 8 * 2.0**-31 * 1.05 + 2.0**-22  # the ring's, and float32's, of one round
SEED = 7

sizes = itertools.count(8192, 4)


def start(
    lab: Lab, client: Client, rounds: int = 1, slow: bool = False, **changes: float
) -> str:
    """Start a masked job of a model of its own: of one model only one sum is ever opened.

    If `slow`, site a trains in round 1 until it is let go on.
    """
    usual = {"privacy": SECURE, "min_updates": 3, "min_sites": 4}
    arguments = {"parameters": next(sizes), **(lab.slow("a") if slow else {})}
    return lab.start(client, rounds, **{**usual, **changes}, arguments=arguments)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("masked")) as lab:
        lab.make_hub()
        configure(lab.hub_directory / "hub.yaml", presence_seconds=10.0)
        lab.start_hub()
        lab.each(SITES, lab.enter)
        lab.agree_all(SITES, invited=("e",))
        yield lab


def check(lab: Lab, client: Client, view: JobView) -> None:
    """The exact mean of the recorded sites, within what the ring and float32 round off."""
    lab.check(client, view)
    first, last = view.rounds[0].round, view.rounds[-1].round
    models = [model(lab, client, f"{view.id}.{n}") for n in (first, last)]
    amount = sum(mean(lab, r.round, r.sites) for r in view.rounds if r.round)
    for name, old in models[0].items():
        gap = np.abs(models[1][name].astype(np.float64) - old - amount).max()
        assert gap < last * ERROR, f"{name} is off by {gap} after {last} rounds"


def mean(lab: Lab, round: int, sites: Sequence[str]) -> float:
    amounts = [amount(round, site) for site in sites]
    return float(np.average(amounts, weights=[lab.sizes[site] for site in sites]))


def amount(round: int, site: str) -> float:
    """What a site adds to every weight in a round, as known.py has it."""
    return float(np.float32(site_seed(SEED, round, site) % 1000 / 1000))


def model(lab: Lab, client: Client, id: str) -> dict[str, NDArray[np.float32]]:
    path = lab.root / "found.frame"
    path.unlink(missing_ok=True)
    client.download_model(id, path)
    return {name: array.view(np.float32) for name, array in frames.read(path).items()}


def said(lab: Lab, job: str, step: str, attempt: int = 0) -> dict[str, bytes]:
    """What sites have said in a step of an attempt at round 1, by site.

    From the hub's own journal: people are not shown what sites say to each other.
    """
    stem = f"{job}.1.{attempt}."
    database = f"file:{lab.hub_directory / 'hub.sqlite'}?mode=ro"
    with contextlib.closing(sqlite3.connect(database, uri=True, timeout=20)) as disk:
        rows = disk.execute(
            "SELECT body FROM journal WHERE job = ? AND type = 'Spoke' ORDER BY seq", (job,)
        ).fetchall()
    events = [json.loads(body) for (body,) in rows]
    return {
        event["lease"].removeprefix(stem): base64.b64decode(event["body"])
        for event in events
        if event["step"] == step and event["lease"].startswith(stem)
    }


# ---- holding a step open ---------------------------------------------------------------------


@dataclass
class Hold:
    """What keeps a step from ending; `release` lets go of it."""

    lab: Lab
    frozen: list[str] = field(default_factory=list)
    disks: dict[str, sqlite3.Connection] = field(default_factory=dict)

    def freeze(self, site: str) -> None:
        os.killpg(self.lab.processes[site].pid, signal.SIGSTOP)
        self.frozen.append(site)

    def fill(self, *sites: str) -> None:
        """Let a node's disk take no write: nothing that has to be stored first is said."""
        for site in sites:
            path = self.lab.node_directory(site) / "node.sqlite"
            self.disks[site] = sqlite3.connect(path, timeout=20, isolation_level=None)
            self.disks[site].execute("BEGIN IMMEDIATE")

    def thaw(self) -> None:
        for site in self.frozen:
            if site in self.lab.processes:
                os.killpg(self.lab.processes[site].pid, signal.SIGCONT)
        self.frozen = []

    def release(self) -> None:
        self.thaw()
        for disk in self.disks.values():
            disk.execute("ROLLBACK")
            disk.close()
        self.disks = {}


@contextlib.contextmanager
def held(lab: Lab, client: Client, step: str, **changes: float) -> Iterator[tuple[str, Hold]]:
    """Start a job and hold its first round open in a step; let go of it at the end.

    Site d has not done the step: neither has c in consent, which ends with three. In the
    update step it is a that has not done it: it trains, until `train_on`.
    """
    lab.ready(*SITES)
    hold = Hold(lab)
    try:
        if step in ("keys", "shares"):  # c makes the first model
            hold.freeze("d" if step == "keys" else "b")
        training = step in TRAINING
        job = start(lab, client, 1, training, **changes)
        if step == "shares":
            until(lab, "d trains", lambda: lab.trained("d", job) == [1])
            until(lab, "d's keys", lambda: "d" in said(lab, job, "keys"))
            hold.fill("d")
            hold.thaw()
        if training:
            until(lab, "three updates", lambda: len(accepted(client, job)) == 4)  # and a first
            hold.fill(*{"consent": ("c", "d"), "unmask": ("d",)}.get(step, ()))
        if step != "update":
            train_on(lab, job, step)
            done = {"a", "b"} if step == "consent" else {"a", "b", "c"}
            until(lab, f"{step} held", lambda: set(said(lab, job, step)) == done)
        assert client.job(job).state == "running"
        yield job, hold
    finally:
        hold.release()


def train_on(lab: Lab, job: str, step: str, times: int = 1) -> None:
    """Let a end its training where a step was held by it, or after it, `times` times."""
    if step in TRAINING:
        lab.let_go("a", job, times)


# ---- undisturbed -----------------------------------------------------------------------------


@pytest.mark.slow
def test_four_sites_train_to_the_exact_mean(lab: Lab) -> None:
    with lab.client() as client:
        lab.ready(*SITES)
        job = start(lab, client, 5)
        view = lab.finish(client, job)
        assert [r.sites for r in view.rounds[1:]] == [SITES] * 5
        assert [r.records for r in view.rounds[1:]] == [sum(lab.sizes.values())] * 5
        check(lab, client, view)
        for round in view.rounds[1:]:
            expected = mean(lab, round.round, SITES)
            assert round.metrics["amount"] == pytest.approx(expected, abs=1e-6)
    for site in SITES:
        until(lab, f"{site} forgets", partial(no_secrets, lab, site))


def short(step: str) -> dict[str, float]:
    """A short grace; where it would end the update step too early, all updates are needed."""
    return {"grace": 4.0, "min_updates": 4 if step in ("consent", "unmask") else 3}


def back(lab: Lab, site: str) -> None:
    """Start an agent again and wait until it has a line to the hub."""
    before = lab.log(site).count("connected to")
    lab.start_node(site)
    until(lab, f"{site} is back", lambda: lab.log(site).count("connected to") > before)


def no_secrets(lab: Lab, site: str) -> bool:
    """Whether no round's secrets lie on a node's disk."""
    path = lab.node_directory(site) / "node.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        return store.execute("SELECT 1 FROM masked").fetchone() is None


# ---- the hub ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_hub_killed_in_a_step_goes_on_in_it(lab: Lab, step: str) -> None:
    """No word is lost and none asked for again: the same attempt ends with all four sites."""
    with lab.client() as client:
        with held(lab, client, step) as (job, _):
            words = {known: said(lab, job, known) for known in STEPS}
            lab.kill("hub")
            lab.start_hub()
        if step == "update":
            train_on(lab, job, step)
        view = lab.finish(client, job)
        for known, bodies in words.items():
            found = said(lab, job, known)
            assert bodies.items() <= found.items(), f"{known} were said anew"
        assert {lease.split(".")[2] for lease in accepted(client, job)} == {"0"}
        assert view.rounds[1].sites == SITES and not view.rounds[1].rejected
        assert all(lab.trained(site, job) == [1] for site in SITES), "a site trained again"
        check(lab, client, view)


# ---- agents ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_agent_killed_in_a_step_and_restarted_goes_on(lab: Lab, step: str) -> None:
    """It is back before the others have given up on it: the round has all four sites."""
    victim = "a" if step == "update" else "d"
    with lab.client() as client:
        with held(lab, client, step) as (job, _):
            lab.kill(victim)
        lab.start_node(victim)
        if step == "update":
            train_on(lab, job, step, 2)
        view = lab.finish(client, job)
        assert view.rounds[1].sites == SITES and not view.rounds[1].rejected
        assert {lease.split(".")[2] for lease in accepted(client, job)} == {"0"}
        check(lab, client, view)
        until(lab, "it forgets", partial(no_secrets, lab, victim))


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_one_of_four_may_be_lost_in_any_step(lab: Lab, step: str) -> None:
    """The round closes without it, or with its update and without its words; it comes back."""
    victim = "a" if step == "update" else "d"
    with lab.client() as client:
        with held(lab, client, step, **short(step)) as (job, _):
            lab.kill(victim)
        until(lab, "round 1 closes", lambda: len(client.job(job).rounds) > 1)
        early = step in ("keys", "shares", "update")
        rest = tuple(site for site in SITES if site != victim)
        assert client.job(job).rounds[1].sites == (rest if early else SITES)
        back(lab, victim)
        lab.finish(client, job)
        client.resume(job, 2)
        view = lab.finish(client, job)
        assert view.rounds[2].sites == SITES
        check(lab, client, view)
        until(lab, "it forgets", partial(no_secrets, lab, victim))


@pytest.mark.slow
def test_who_is_lost_after_three_have_unmasked_is_not_needed(lab: Lab) -> None:
    with lab.client() as client:
        with held(lab, client, "unmask", **short("unmask")) as (job, _):
            lab.kill("c")
            lab.kill("d")
        view = lab.finish(client, job)
        assert view.rounds[1].sites == SITES
        check(lab, client, view)
        for victim in ("c", "d"):
            back(lab, victim)
            until(lab, "it forgets", partial(no_secrets, lab, victim))


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS[:-1])
def test_two_of_four_lost_fails_closed_and_is_done_anew(lab: Lab, step: str) -> None:
    victims = ("a", "d") if step == "update" else ("c", "d")
    with lab.client() as client:
        with held(lab, client, step, **short(step), deadline=20.0) as (job, _):
            for victim in victims:
                lab.kill(victim)
        until(lab, "the job fails", lambda: client.job(job).state == "failed")
        view = client.job(job)
        assert "found 2 of 3" in view.cause, view.cause
        assert len(view.rounds) == 1, "a model was made of a round that failed"
        before = public_keys(lab, job, 0)
        for victim in victims:
            back(lab, victim)
        client.resume(job)
        if step != "update":
            train_on(lab, job, step, 2)
        view = lab.finish(client, job)
        # a trains again, and longer than grace
        assert view.rounds[1].sites == (SITES if step != "update" else ("b", "c", "d"))
        after = public_keys(lab, job, 1)
        assert len(after) == 8 and not before & after, "a key was used in two attempts"
        check(lab, client, view)
    for site in SITES:
        until(lab, f"{site} forgets", partial(no_secrets, lab, site))


def public_keys(lab: Lab, job: str, attempt: int) -> set[bytes]:
    found = [decode(body, masks.Keys) for body in said(lab, job, "keys", attempt).values()]
    return {key for keys in found for key in (keys.sealing, keys.masking)}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_stopped_in_a_step_and_resumed_begins_with_fresh_keys(lab: Lab, step: str) -> None:
    with lab.client() as client:
        with held(lab, client, step) as (job, _):
            client.stop(job)
            before = public_keys(lab, job, 0)
        for site in SITES:
            until(lab, f"{site} forgets", partial(no_secrets, lab, site))
        assert len(client.job(job).rounds) == 1
        client.resume(job)
        train_on(lab, job, step, 2)
        view = lab.finish(client, job)
        assert view.rounds[1].sites == SITES
        assert not before & public_keys(lab, job, 1)
        check(lab, client, view)


@pytest.mark.slow
def test_worker_killed_while_it_trains(lab: Lab) -> None:
    with lab.client() as client, held(lab, client, "update", grace=4.0) as (job, _):
        until(lab, "a trains", lambda: lab.trained("a", job) == [1])
        os.kill(lab.workers("a")[-1].pid, signal.SIGKILL)
        lab.finish(client, job)
        client.resume(job, 2)
        view = lab.finish(client, job)
        assert view.rounds[1].sites == ("b", "c", "d")
        assert view.rounds[1].rejected == {"a": "failed: crashed"}
        assert view.rounds[2].sites == SITES
        check(lab, client, view)


# ---- what the hub holds ----------------------------------------------------------------------


@pytest.mark.slow
def test_the_hub_holds_no_plain_update(lab: Lab) -> None:
    """Every frame it was sent looks like noise, and no file of it holds what a site trained."""
    with lab.client() as client:
        with held(lab, client, "update") as (job, _):
            spool = lab.hub_directory / "spool"
            sent = {site: (spool / f"{job}.1.0.{site}").read_bytes() for site in "bcd"}
            for site in "bcd":
                frame = lab.root / "sent.frame"
                frame.write_bytes(sent[site])
                tensors = frames.read(frame)
                for name, array in tensors.items():
                    if array.size > 1000:
                        assert uniform(array.tobytes()), f"{name} of {site} shows structure"
        train_on(lab, job, "update")
        view = lab.finish(client, job)
        check(lab, client, view)
        first = model(lab, client, f"{job}.0")
        plain = {
            site: [(w[:16] + np.float32(amount(1, site))).tobytes() for w in first.values()]
            for site in SITES
        }
        told = {site: repr(amount(1, site)).encode() for site in SITES}
        files = [p for p in lab.hub_directory.rglob("*") if p.is_file()]
        assert any(p.name.startswith("hub.sqlite") for p in files)
        assert (lab.hub_directory / "blobs").is_dir()
        for path in files:
            held_bytes = path.read_bytes()
            for site in SITES:
                assert told[site] not in held_bytes, f"{path} tells the metric of {site}"
                for piece in plain[site]:
                    assert piece not in held_bytes, f"{path} holds the update of {site}"


def uniform(body: bytes) -> bool:
    """Chi-square of the bytes' frequencies: six deviations from what chance makes of noise."""
    counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
    expected = len(body) / 256
    found = float(((counts - expected) ** 2 / expected).sum())
    return abs(found - 255) < 6 * math.sqrt(2 * 255)


def test_the_test_of_noise_tells_an_update_from_noise() -> None:
    """An update that is not masked, of the size these jobs have, fails it by far."""
    rng = np.random.default_rng(0)
    steps = np.rint(rng.normal(0, 0.01, 2048) * 2**28).astype(np.int64).astype(np.uint32)
    assert not uniform(steps.tobytes())
    assert uniform(rng.integers(0, 1 << 32, 2048, np.uint32).tobytes())


# ---- people ----------------------------------------------------------------------------------


def keys(lab: Lab, where: Path) -> dict[str, dict[str, str]]:
    """What a node shows of the study's sites and their keys."""
    shown = json.loads(lab.cli("node", "peers", STUDY, "--dir", where, "--json"))
    return {peer["site"]: peer for peer in shown}


def is_new(lab: Lab, where: Path) -> bool:
    """Whether a node knows of e's key."""
    return keys(lab, where)["e"]["key"] == "new"


@pytest.mark.slow
def test_a_site_that_joins_late_is_pinned_first(lab: Lab) -> None:
    """Until then the others refuse a round with it: the hub could have made it up."""
    with lab.client() as client:
        job = start(lab, client)
        assert lab.finish(client, job).rounds[1].sites == SITES
        lab.enter("e")
        lab.agree("e", lab.plan)
        lab.ready("e")
        client.resume(job, 2)
        until(lab, "the others refuse", lambda: client.job(job).state == "failed")
        view = client.job(job)
        assert len(view.rounds) == 2
        assert ": declined" in view.cause and "too few sites are left" in view.cause
        assert "the keys of e are not pinned" in lab.audit_lines("a", "task.stop")[-1]
        for site in SITES:
            where = lab.node_directory(site)
            until(lab, "the hub tells e's key", partial(is_new, lab, where))
            shown = keys(lab, where)
            assert {n: p["key"] for n, p in shown.items()} == dict.fromkeys(SITES, "pinned") | {
                "e": "new"
            }
            own = json.loads(
                lab.cli("node", "peers", STUDY, "--dir", lab.node_directory("e"), "--json")
            )
            mine = next(p for p in own if p["site"] == "e")
            assert shown["e"]["told"] == mine["pinned"], "not what e reads out"
            assert "pinned 1 key" in lab.cli("node", "pin", STUDY, "--dir", where)
            again = lab.run("node", "pin", STUDY, "--dir", where)
            assert again.returncode and "pinned already" in again.stderr
        client.resume(job)
        view = lab.finish(client, job)
        assert view.rounds[2].sites == (*SITES, "e")
        check(lab, client, view)
        lab.intact(*SITES, "e")


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def test_nothing_is_left_lying_about(lab: Lab) -> None:
    for site in SITES:
        assert no_secrets(lab, site)
        outbox = lab.node_directory(site) / "outbox"
        until(lab, "the outbox is emptied", partial(is_empty, outbox))
    until(lab, "spools go", lambda: not any((lab.hub_directory / "spool").iterdir()))
