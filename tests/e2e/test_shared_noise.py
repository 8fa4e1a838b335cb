"""Rounds of one step of all sites, by real processes: what the noise is, and who is charged.

Four hospitals. The plan has weights that no record moves: of these the hub sees noise alone, so
what it holds of them tells how much noise is in the sum.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bench.local import STUDY
from faultkit import Lab, configure, until

from consilia.node import approvals
from consilia.node.arguments import Interval
from consilia.privacy.accountant import ORDERS
from consilia.sdk.client import Client
from consilia.wire import frames
from consilia.wire.people import JobView, Strategy
from consilia.wire.v1 import Dp, Plan, Privacy

pytest.importorskip("torch", reason="plans with a private loop need consilia[torch]")
dp_accounting = pytest.importorskip("dp_accounting", reason="an independent accountant")
rdp = pytest.importorskip("dp_accounting.rdp", reason="an independent accountant")

SITES = ("a", "b", "c", "d")
EACH = 200
REST = 20_000  # weights that only noise moves
DP = Dp("record", 2.0, 1.0, 0.5, distributed=True)
SERVER_LR = 6.0
PLAN = f'''
"""Logistic regression, beside weights that no record moves."""

import time

import torch
from torch import nn

from consilia.plans.torch import DpParts, torch_plan


class Model(nn.Module):
    def __init__(self, wait):
        super().__init__()
        self.line = nn.Linear(2, 1)
        self.rest = nn.Parameter(torch.zeros({REST}))
        self.wait = wait

    def forward(self, x):
        time.sleep(self.wait)
        return self.line(x).squeeze(-1)


def loss(model, x, y):
    return nn.functional.binary_cross_entropy_with_logits(model(x), y)


def train(model, data, args, context):
    raise AssertionError("the plan's own loop ran")


PLAN = torch_plan(
    lambda args: Model(args["wait"]), train, features=["a", "b"], target="y",
    arguments={{"lr": 0.1, "wait": 0.0}}, dp=DpParts(loss),
)
'''


class Clinics(Lab):
    """Sites with a line to be learned, and the plan that learns it."""

    def enter(self, site: str) -> None:
        """Let a site join with records of its own, and start its agent."""
        rng = np.random.default_rng(SITES.index(site))
        a, b = rng.normal(size=(2, EACH)).round(5)
        table = self.root / f"{site}.csv"
        rows = (f"{x},{y},{int(x - 2 * y > 0)}\n" for x, y in zip(a, b, strict=True))
        table.write_text("a,b,y\n" + "".join(rows))
        self.sizes[site] = EACH
        self.join(site)
        self.register(site, table)
        self.start_node(site)

    def approve(self) -> str:
        """Offer the plan and have every site approve it; return its digest."""
        with self.client() as client:
            files = {"steps.py": PLAN}
            digest = client.submit_plan(STUDY, Plan("steps", files, "steps:PLAN")).digest
        ranges = {"wait": Interval(0, 60), "lr": Interval(0, 1)}
        for site in SITES:
            with self.at(site) as store:
                self.wait(partial(approvals.known, store, digest), f"{site} hears of it")
                approvals.approve(store, digest, actor="test", now=0.0, arguments=ranges)
        return digest


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinics]:
    with Clinics(tmp_path_factory.mktemp("steps")) as lab:
        lab.make_hub()
        configure(lab.hub_directory / "hub.yaml", presence_seconds=10.0)
        lab.start_hub()
        lab.each(SITES, lab.enter)
        lab.agree_all(SITES)
        lab.plan = lab.approve()
        yield lab


def start(lab: Clinics, client: Client, rounds: int, **changes: Any) -> str:
    """Start private rounds that close with three of four updates."""
    lab.ready(*SITES)
    options = {"server_lr": SERVER_LR, "momentum": 0.0}
    experiment = lab.experiment(
        rounds,
        privacy=Privacy(aggregation="secure", dp=DP),
        strategy=Strategy("fedavgm", options),
        min_updates=3,
        min_sites=3,
    )
    arguments = {"wait": changes.pop("wait", 0.0)}
    wanted = msgspec.structs.replace(experiment, arguments=arguments, **changes)
    return client.start(wanted).id


def epsilon(rounds: int) -> float:
    """What dp-accounting says of so many rounds, knowing nothing of Consilia's accountant."""
    gaussian = dp_accounting.GaussianDpEvent(DP.noise_multiplier)
    step = dp_accounting.PoissonSampledDpEvent(DP.sampling, gaussian)
    whole = [order for order in ORDERS if order >= 2]
    return float(rdp.RdpAccountant(whole).compose(step, rounds).get_epsilon(DP.delta))


def rest(lab: Lab, client: Client, id: str) -> Any:
    """The weights of a model that no record moves."""
    path = lab.root / "found.frame"
    path.unlink(missing_ok=True)
    client.download_model(id, path)
    return frames.read(path)["rest"].view(np.float32).astype(np.float64)


def noises(lab: Lab, client: Client, view: JobView) -> list[float]:
    """The noise of each round's sum in units of the clip, as the hub can work it out."""
    models = [rest(lab, client, f"{view.id}.{r.round}") for r in view.rounds]
    found = []
    for before, after, round in zip(models[:-1], models[1:], view.rounds[1:], strict=True):
        units = EACH * len(round.sites)
        found.append(float((after - before).std()) / SERVER_LR * DP.sampling * units / DP.clip)
    return found


def spends(lab: Lab, site: str, job: str) -> list[str]:
    """The states of a job's spends in a site's own ledger."""
    database = f"file:{lab.node_directory(site) / 'node.sqlite'}?mode=ro"
    with contextlib.closing(sqlite3.connect(database, uri=True, timeout=20)) as store:
        asked = "SELECT state FROM budget_spends WHERE lease LIKE ? ORDER BY lease"
        return [str(state) for (state,) in store.execute(asked, (f"{job}.%",))]


def trains(lab: Lab, site: str, job: str) -> bool:
    """Whether a site's worker has begun with a task of the job."""
    return "started" in spends(lab, site, job)


@pytest.mark.slow
def test_the_hub_has_sums_with_noise_only_and_each_site_is_charged(lab: Clinics) -> None:
    with lab.client() as client:
        job = start(lab, client, 3)
        view = lab.finish(client, job)
        assert [r.sites for r in view.rounds[1:]] == [SITES] * 3
        for round in view.rounds[1:]:
            assert round.epsilon == pytest.approx(epsilon(round.round), rel=1e-6)
            assert round.metrics == {}
        # Three of four are sure to stay, one may collude: four shares of 1 / 2 of the variance.
        stated = DP.noise_multiplier * sqrt(4 / 2)
        for noise in noises(lab, client, view):
            assert noise == pytest.approx(stated, rel=0.03)  # six deviations of 20,000 values
    for site in SITES:
        assert spends(lab, site, job) == ["settled"] * 3
    _nothing_without_noise(lab, job)


def _nothing_without_noise(lab: Lab, job: str) -> None:
    """The sum without noise has zeros where no record moves: nothing the hub keeps has any.

    A part of one update or sum without noise would be a long run of zeros in a frame, or, in
    the journal, a number of the update itself: there are only masks' words and counts of sites.
    """
    plain = [np.zeros(64, kind).tobytes() for kind in (np.float32, np.uint32)]
    for folder in ("blobs", "spool"):
        for path in (lab.hub_directory / folder).rglob("*"):
            if path.is_file() and (body := path.read_bytes()).count(plain[0]):
                tensors = frames.read(path)
                zero = [n for n, t in tensors.items() if t.size == REST and not t.any()]
                assert not zero or _first(lab, job, path), f"{path}: {zero} of {len(body)}"
    database = f"file:{lab.hub_directory / 'hub.sqlite'}?mode=ro"
    with contextlib.closing(sqlite3.connect(database, uri=True, timeout=20)) as hub:
        rows = hub.execute("SELECT type, body FROM journal WHERE job = ?", (job,)).fetchall()
    updates = [json.loads(body) for kind, body in rows if kind == "Accepted"]
    assert len(updates) == 13  # of four sites in three rounds, and the first model
    for update in updates[1:]:  # what all sites advertise, for each alike
        assert update["metrics"] == {} and update["records"] == updates[1]["records"]


def _first(lab: Lab, job: str, path: Path) -> bool:
    """Whether a frame is the first model, which the plan made before it saw a record."""
    with lab.client() as client:
        return not rest(lab, client, f"{job}.0").any() and ".1." not in path.name


@pytest.mark.slow
def test_a_site_lost_in_a_round_leaves_noise_enough(lab: Clinics) -> None:
    with lab.client() as client:
        job = start(lab, client, 2, wait=4.0, grace=1.0)
        until(lab, "d trains", partial(trains, lab, "d", job))
        lab.kill("d")
        view = lab.finish(client, job)
        assert view.rounds[1].sites == ("a", "b", "c")
        # Reserved for the worst case: of keys of four, three survivors, one of them colluding.
        lost, after = noises(lab, client, view)
        assert lost == pytest.approx(DP.noise_multiplier * sqrt(3 / 2), rel=0.03)
        assert min(lost, after) >= DP.noise_multiplier * 0.98
        assert view.rounds[-1].epsilon == pytest.approx(epsilon(2), rel=1e-6)
    for site in ("a", "b", "c"):
        assert spends(lab, site, job) == ["settled"] * 2
    # It had begun: what it did with the records is spent, though its update is in no sum.
    assert spends(lab, "d", job) == ["started"]
    lab.start_node("d")


@pytest.mark.slow
def test_two_sites_lost_fail_closed(lab: Clinics) -> None:
    with lab.client() as client:
        job = start(lab, client, 1, wait=6.0, grace=1.0, deadline=40.0)
        for site in ("c", "d"):
            until(lab, f"{site} trains", partial(trains, lab, site, job))
            lab.kill(site)
        until(lab, "the job fails", lambda: client.job(job).state == "failed")
        view = client.job(job)
        assert [r.round for r in view.rounds] == [0], "a sum of two was opened"
        assert "2 of 3" in view.cause or "3 of" in view.cause, view.cause
    for site in ("c", "d"):
        lab.start_node(site)
    lab.intact(*SITES)
