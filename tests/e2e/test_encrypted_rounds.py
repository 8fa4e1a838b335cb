"""Rounds of homomorphic encryption with real processes: the same model, no key at the hub.

Four hospitals with a quarter each of the breast cancer cohort that comes with scikit-learn.
"""

import base64
import contextlib
import csv
import os
import re
import sqlite3
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
from bench.local import STUDY
from faultkit import FOREVER, SEED, Lab, accepted, configure, journal, until

from consilia.core.select import site_seed
from consilia.node import approvals, studykeys
from consilia.node.control import poke
from consilia.node.store import Store
from consilia.privacy.secagg import Member
from consilia.sdk.client import Client
from consilia.wire import frames
from consilia.wire.people import JobView
from consilia.wire.v1 import Lease, Plan, Privacy, decode

pytest.importorskip("tenseal", reason="needs the extra consilia[he]")
cancer = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")

SITES = ("a", "b", "c", "d")
CKKS = Privacy(aggregation="ckks")
PLAN = """
import numpy as np
from consilia.plans.numpy import numpy_plan


def init(args, seed):
    return {"w": np.zeros(30, np.float32), "b": np.zeros(1, np.float64)}


def train(weights, data, args, context):
    for x, y in data.batches(16, shuffle=True):
        x = x / args["scale"] - 1
        slope = (1 / (1 + np.exp(-(x @ weights["w"] + weights["b"]))) - y) / len(x)
        weights["w"] -= 0.5 * (x.T @ slope)
        weights["b"] -= 0.5 * slope.sum()
    return {"slope": float(np.abs(slope).mean())}


PLAN = numpy_plan(init, train, features="*", target="malignant", arguments={"scale": 500.0})
"""


class Clinics(Lab):
    """Sites with a quarter of the cohort each, and its plan beside the known one."""

    def enter(self, site: str) -> None:
        """Let a site join with its quarter, and start its agent."""
        found = cancer.load_breast_cancer()
        number = SITES.index(site)  # sizes differ, and are as plain rounds tell them
        table, mine = self.root / f"{site}.csv", slice(number, 4 * (140 - 5 * number), 4)
        names = [str(name).replace(" ", "_") for name in found.feature_names]
        rows = np.column_stack((found.data, 1 - found.target))[mine]
        with table.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow([*names, "malignant"])
            writer.writerows(rows.tolist())
        self.sizes[site] = len(rows)
        self.join(site)
        self.register(site, table)
        self.start_node(site)

    def approve(self) -> str:
        """Offer the cohort's plan and have every site approve it; return its digest."""
        with self.client() as client:
            plan = Plan("tumour", {"tumour.py": PLAN}, "tumour:PLAN")
            digest = client.submit_plan(STUDY, plan).digest
        for site in SITES:
            with self.at(site) as store:
                self.wait(partial(approvals.known, store, digest), f"{site} hears of it")
                approvals.approve(store, digest, actor="test", now=0.0, arguments={})
            poke(self.node_directory(site))
        return digest


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinics]:
    with Clinics(tmp_path_factory.mktemp("encrypted")) as lab:
        lab.make_hub()
        configure(lab.hub_directory / "hub.yaml", presence_seconds=10.0)
        lab.start_hub()
        lab.each(SITES, lab.enter)
        lab.agree_all(SITES)
        yield lab


def weights(lab: Lab, client: Client, view: JobView) -> dict[str, Any]:
    path = lab.root / "found.frame"
    path.unlink(missing_ok=True)
    client.download_model(f"{view.id}.{view.rounds[-1].round}", path)
    return dict(frames.read(path))


def start(lab: Lab, client: Client, **changes: Any) -> str:
    usual = {"privacy": CKKS, "min_updates": 3, "min_sites": 4}
    return lab.start(client, **{**usual, **changes})


def said(client: Client, job: str, step: str) -> set[str]:
    found = [e.body for e in journal(client, job, "Spoke") if e.body["step"] == step]
    return {str(body["lease"]).split(".", 3)[3] for body in found}


@contextlib.contextmanager
def full_disk(lab: Lab, site: str) -> Iterator[None]:
    """Let a node's disk take no write: it says nothing that has to be stored first."""
    path = lab.node_directory(site) / "node.sqlite"
    with contextlib.closing(sqlite3.connect(path, timeout=20, isolation_level=None)) as disk:
        disk.execute("BEGIN IMMEDIATE")
        yield
        disk.execute("ROLLBACK")


def member(lab: Lab, site: str) -> Member | None:
    """What a node has stored of the masked round it takes part in."""
    row = masked_row(lab, site)
    if row is None:
        return None
    lease, kept = decode(row[0], Lease), row[1]
    with contextlib.closing(Store.open(lab.node_directory(site))) as store:
        rest = studykeys.rest_of(store, os.urandom)
        return decode(rest.unlock(lease.task.study, kept, f"masked round {lease.id}"), Member)


def masked_row(lab: Lab, site: str) -> tuple[bytes, bytes] | None:
    """The lease and, under its study's key, the secrets of the round a node takes part in."""
    path = lab.node_directory(site) / "node.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        row: tuple[bytes, bytes] | None
        row = store.execute("SELECT body, member FROM masked").fetchone()
    return row


def forgot(lab: Lab, site: str) -> bool:
    """Whether no round's secrets lie on a node's disk."""
    return masked_row(lab, site) is None


@pytest.mark.slow
def test_the_model_is_that_of_plain_rounds(lab: Clinics) -> None:
    plan = lab.approve()
    found, traffic = {}, {}
    with lab.client() as client:
        lab.ready(*SITES)
        for how in ("plain", "ckks"):
            experiment = lab.experiment(
                3,
                privacy=Privacy(aggregation=how),
                min_updates=4,
                min_sites=4,
                deterministic=True,
            )
            experiment = msgspec.structs.replace(experiment, plan=plan, arguments={})
            view = lab.finish(client, client.start(experiment).id)
            assert [r.sites for r in view.rounds[1:]] == [SITES] * 3
            assert view.rounds[-1].records == sum(lab.sizes.values())
            found[how] = weights(lab, client, view)
            last = view.rounds[-1]
            traffic[how] = (last.bytes_in, last.bytes_out, round(last.seconds, 3))
    for name, plain in found["plain"].items():
        assert plain.size and np.abs(found["ckks"][name] - plain).max() < 1e-4, name
    assert traffic["ckks"][0] > 10 * traffic["plain"][0]  # two cells each, however small
    for site in SITES:
        until(lab, f"{site} forgets", partial(forgot, lab, site))
        assert not any((lab.node_directory(site) / "opening").iterdir())
    assert lab.audit_lines("a", "mask.open") and "encrypted among 4 sites" in "".join(
        lab.audit_lines("a", "release")
    )


@pytest.mark.slow
def test_the_hub_holds_no_key_and_no_update(lab: Clinics) -> None:
    with lab.client() as client:
        job = start(lab, client, arguments=lab.slow("a"))
        until(lab, "three updates", lambda: len(accepted(client, job)) == 4)  # and a first
        secret = member(lab, "b")
        assert secret is not None and len(secret.cipher_key) > 100_000
        lab.let_go("a", job)
        view = lab.finish(client, job)
        lab.check(client, view)
    key = secret.cipher_key
    pieces = [key[at : at + 24] for at in range(1000, len(key) - 24, 4099)]
    told = [piece for raw in pieces for piece in (raw, *_in_base64(raw))]
    files = [p for p in lab.hub_directory.rglob("*") if p.is_file()]
    bodies = [p.read_bytes() for p in files]
    assert any(b"ckks" in body for body in bodies)
    for path, body in zip(files, bodies, strict=True):
        assert not any(piece in body for piece in told), f"{path} holds the sites' key"
    base = {name: w[:16] for name, w in _first(lab, view).items()}
    for site in SITES:
        for tensor in base.values():
            piece = (tensor + np.float32(_amount(lab, site))).tobytes()
            assert not any(piece in body for body in bodies), f"the hub holds {site}'s update"


def _in_base64(raw: bytes) -> list[bytes]:
    """The characters that stand for `raw` wherever it begins in a longer text."""
    return [base64.b64encode(raw[skip:])[:24] for skip in range(3)]


def _first(lab: Lab, view: JobView) -> dict[str, Any]:
    path = lab.root / "first.frame"
    path.unlink(missing_ok=True)
    with lab.client() as client:
        client.download_model(f"{view.id}.0", path)
    return dict(frames.read(path))


def _amount(lab: Lab, site: str) -> float:
    return float(np.float32(site_seed(SEED, 1, site) % 1000 / 1000))


@pytest.mark.slow
def test_another_site_opens_the_sum_when_the_first_is_lost(lab: Clinics) -> None:
    """Site a could open it first and says nothing; the hub is killed meanwhile."""
    with lab.client() as client:
        job = start(lab, client, arguments={"parameters": 12288, **lab.slow("d")})
        until(lab, "three updates", lambda: len(accepted(client, job)) == 4)
        with full_disk(lab, "a"):
            lab.let_go("d", job)
            until(lab, "consent", lambda: said(client, job, "consent") >= {"b", "c", "d"})
            lab.kill("hub")
            lab.start_hub()
            view = lab.finish(client, job)
        assert said(client, job, "unmask") == {"b"}
        assert view.rounds[1].sites == SITES and not view.rounds[1].rejected
        lab.check(client, view)
    until(lab, "a forgets", partial(forgot, lab, "a"))
    spools = lab.hub_directory / "spool"
    until(lab, "spools go", lambda: not any(spools.iterdir()))


@pytest.mark.slow
def test_two_of_four_lost_fails_closed(lab: Clinics) -> None:
    with lab.client() as client:
        # In round 2, in which all have a worker: the deadline is for what goes wrong in it.
        slow = {"wait": FOREVER, "slow": 0, "slow_round": 2}
        settings = {"rounds": 2, "grace": 5.0, "deadline": 40.0}
        job = start(lab, client, arguments={"parameters": 16384, **slow}, **settings)
        until(lab, "all train", lambda: all(lab.trained(s, job) == [1, 2] for s in SITES))
        lab.kill("a")
        lab.kill("b")
        until(lab, "the job fails", lambda: client.job(job).state == "failed")
        view = client.job(job)
        found = re.search(r"found \d of 3 (updates|sites with shares)", view.cause)
        assert found, view.cause
        assert len(view.rounds) == 2
        for site in ("a", "b"):
            lab.start_node(site)
