"""Models judged by four real hospitals: in masked sums, with noise, and by who contributes."""

import base64
import contextlib
import csv
import json
import sqlite3
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
from bench.local import STUDY, TAG
from faultkit import Lab, configure, until
from test_masked_faults import uniform

from consilia.errors import ConfigError
from consilia.node import approvals
from consilia.privacy import accountant
from consilia.privacy.estimate import noise_of
from consilia.sdk.client import Client
from consilia.stats import summedscores
from consilia.wire import frames
from consilia.wire.people import Evaluate, JobView
from consilia.wire.v1 import Advertisement, Dp, Plan, Privacy, decode

cancer = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")

SITES = ("a", "b", "c", "d")
COLUMNS = 8
PLAN = """
import numpy as np
from consilia.plans.numpy import numpy_plan


def predict(weights, data, args):
    return 1 / (1 + np.exp(-(data.x @ weights["w"] + weights["b"])))


def init(args, seed):
    return {"w": np.zeros(8, np.float32), "b": np.zeros(1, np.float32)}


def train(weights, data, args, context):
    for _ in range(10):
        error = predict(weights, data, args) - data.y
        weights["w"] -= 0.5 * data.x.T @ error / len(data.y)
        weights["b"] -= 0.5 * error.mean()


PLAN = numpy_plan(init, train, features=[f"c{i}" for i in range(8)], target="bad",
                  predict=predict, predicts="probability")
"""


class Clinics(Lab):
    """Sites with a quarter of the cohort each; the last rows of each are its hold-out."""

    def enter(self, site: str) -> None:
        """Let a site join with its quarter, its hold-out declared, and start its agent."""
        with (self.root / f"{site}.csv").open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow([*(f"c{i}" for i in range(COLUMNS)), "bad", "part"])
            writer.writerows(self.rows(site))
        self.sizes[site] = len(self.rows(site))
        self.join(site)
        configure(self.node_directory(site) / "node.yaml", min_records=50)
        self.register(site, self.root / f"{site}.csv")
        words = ("--column", "part", "--value", "test", "--single")
        self.cli("dataset", "holdout", TAG, *words, "--dir", self.node_directory(site))
        self.start_node(site)

    def rows(self, site: str) -> list[list[Any]]:
        found = cancer.load_breast_cancer()
        x = (found.data - found.data.mean(0)) / found.data.std(0)
        mine = np.arange(SITES.index(site), len(x), len(SITES))
        return [
            [*(float(v) for v in x[n, :COLUMNS].round(6)), 1 - int(found.target[n]), part]
            for k, n in enumerate(mine)
            for part in ["test" if k % 2 else "train"]
        ]

    def held(self, site: str, weights: dict[str, Any]) -> tuple[Any, Any]:
        """Truth and predictions of a site's hold-out, worked out without the federation."""
        rows = [row for row in self.rows(site) if row[-1] == "test"]
        x = np.array([row[:COLUMNS] for row in rows], np.float32)
        truth = np.array([row[COLUMNS] for row in rows])
        return truth, 1 / (1 + np.exp(-(x @ weights["w"] + weights["b"])))

    def approve(self) -> str:
        """Offer the plan and have every site approve it; return its digest."""
        with self.client() as client:
            plan = Plan("judged", {"judged.py": PLAN}, "judged:PLAN")
            digest = client.submit_plan(STUDY, plan).digest
        for site in SITES:
            with self.at(site) as store:
                self.wait(partial(approvals.known, store, digest), f"{site} hears of it")
                approvals.approve(store, digest, actor="test", now=0.0, arguments={})
        return digest


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinics]:
    with Clinics(tmp_path_factory.mktemp("summed")) as lab:
        lab.make_hub()
        configure(lab.hub_directory / "hub.yaml", presence_seconds=10.0)
        lab.start_hub()
        lab.each(SITES, lab.enter)
        lab.agree_all(SITES)
        lab.plan = lab.approve()
        yield lab


def start(lab: Lab, client: Client, **changes: Any) -> str:
    lab.ready(*SITES)
    usual = {"privacy": Privacy(aggregation="secure"), "min_updates": 3, "min_sites": 4}
    experiment = lab.experiment(changes.pop("rounds", 2), **usual)
    wanted = {"arguments": {}, "evaluate": Evaluate(), **changes}
    return client.start(msgspec.structs.replace(experiment, **wanted)).id


def asks_for_sums(lab: Lab, site: str) -> bool:
    """Whether the hub has heard that a site's metrics leave in sums only."""
    database = f"file:{lab.hub_directory / 'hub.sqlite'}?mode=ro"
    with contextlib.closing(sqlite3.connect(database, uri=True, timeout=20)) as hub:
        asked = "SELECT advertisement FROM sites WHERE name = ?"
        ((said,),) = hub.execute(asked, (site,)).fetchall()
    return decode(said, Advertisement).summed


def restart(lab: Lab, *sites: str) -> None:
    """Start agents again, with other settings, and wait until they have a line to the hub."""
    for site in sites:
        lab.end(site)
        before = lab.log(site).count("connected to")
        lab.start_node(site)

        def back(site: str = site, before: int = before) -> bool:
            return lab.log(site).count("connected to") > before

        until(lab, f"{site} is back", back)


def weights(lab: Lab, client: Client, id: str) -> dict[str, Any]:
    path = lab.root / "found.frame"
    path.unlink(missing_ok=True)
    client.download_model(id, path)
    return {name: array.view(np.float32) for name, array in frames.read(path).items()}


def journalled(lab: Lab, job: str, kind: str) -> list[dict[str, Any]]:
    database = f"file:{lab.hub_directory / 'hub.sqlite'}?mode=ro"
    with contextlib.closing(sqlite3.connect(database, uri=True, timeout=20)) as hub:
        asked = "SELECT body FROM journal WHERE job = ? AND type = ? ORDER BY seq"
        return [json.loads(body) for (body,) in hub.execute(asked, (job, kind))]


def pooled(lab: Clinics, client: Client, view: JobView, sites: tuple[str, ...]) -> Any:
    """Truth and predictions of the last model on these sites' hold-outs together."""
    model = weights(lab, client, f"{view.id}.{view.rounds[-1].round}")
    each = [lab.held(site, model) for site in sites]
    return [np.concatenate(parts) for parts in zip(*each, strict=True)]


@pytest.mark.slow
def test_the_hub_learns_the_sum_and_no_site_s_metrics(lab: Clinics) -> None:
    with lab.client() as client:
        job = start(lab, client, evaluate=Evaluate(aggregation="secure", benefit=True))
        view = lab.finish(client, job)
        (found,) = client.evaluations(job)
        assert (found.aggregation, found.summed, found.sites) == ("secure", SITES, {})
        truth, chances = pooled(lab, client, view, SITES)
    exact = {
        "accuracy": metrics.accuracy_score(truth, chances > 0.5),
        "f1": metrics.f1_score(truth, chances > 0.5),
        "brier": metrics.brier_score_loss(truth, chances),
    }
    for name, value in exact.items():
        assert found.pooled[name].value == pytest.approx(value, abs=1e-4), name
    auc = found.pooled["auc"]
    assert abs(auc.value - metrics.roc_auc_score(truth, chances)) <= auc.bound < 0.1
    assert set(found.gain) == set(exact) | {"auc"} and found.calibration
    assert view.rounds[-1].metrics["holdout_auc"] == auc.value
    told = [e for e in journalled(lab, job, "Accepted") if ".e0." in e["lease"]]
    assert len(told) == len(SITES) and all(e["records"] == 1 for e in told)
    vectors = [np.frombuffer(base64.b64decode(e["body"]), "<u8") for e in told]
    assert {v.size for v in vectors} == {summedscores.size(summedscores.BINS, False)}
    for vector in vectors:
        assert uniform(vector.tobytes()), "a site's vector shows structure"


@pytest.mark.slow
def test_a_site_that_asks_for_sums_gets_them_and_a_small_one_tells_nothing(
    lab: Clinics,
) -> None:
    node = lab.node_directory("b") / "node.yaml"
    small = lab.node_directory("d") / "node.yaml"
    configure(node, disclosure__metrics="summed")
    configure(small, disclosure__k=60)  # its hold-out has fewer cases
    restart(lab, "b", "d")
    until(lab, "the hub knows", lambda: asks_for_sums(lab, "b"))
    try:
        with lab.client() as client:
            lab.ready(*SITES)
            # Of another model than before: of one model one sum is ever opened.
            view = lab.finish(client, start(lab, client, rounds=3))
            (found,) = client.evaluations(view.id)
            assert view.experiment.evaluate is not None
            assert view.experiment.evaluate.aggregation == "secure"
            assert found.summed == ("a", "b", "c") and found.without == {"d": "declined"}
            truth, chances = pooled(lab, client, view, found.summed)
            exact = metrics.accuracy_score(truth, chances > 0.5)
            assert found.pooled["accuracy"].value == pytest.approx(exact, abs=1e-4)
        assert any("too small" in line for line in lab.audit_lines("d", "release.refuse"))
    finally:
        configure(node, disclosure__metrics="rounded")
        configure(small, disclosure__k=5)
        restart(lab, "b", "d")


@pytest.mark.slow
def test_an_evaluation_of_a_private_job_is_charged_or_refused(lab: Clinics) -> None:
    private = Privacy(aggregation="secure", dp=Dp("record", 1.0, 1.0, 0.1))
    with lab.client() as client:
        base = f"{lab.finish(client, start(lab, client, evaluate=None)).id}.2"
        alone = {"rounds": 0, "base": base, "privacy": private}
        with pytest.raises(ConfigError, match=r"evaluate.noise_multiplier.*above 0"):
            start(lab, client, **alone)
        asked = Evaluate(noise_multiplier=4.0)
        job = start(lab, client, evaluate=asked, **alone)
        view = lab.finish(client, job)
        (found,) = client.evaluations(job)
        assert found.summed == SITES and set(found.pooled) == {
            "accuracy", "auc", "brier", "f1"
        }  # fmt: skip
        model = weights(lab, client, base)
        each = [lab.held(site, model) for site in SITES]
        truth, chances = (np.concatenate(parts) for parts in zip(*each, strict=True))
        auc = found.pooled["auc"]
        assert auc.low <= metrics.roc_auc_score(truth, chances) <= auc.high
        noise = noise_of(view.experiment)
        assert noise is not None
        cost = accountant.epsilon(accountant.cost(noise), 1e-5)
        assert client.estimate_privacy(view.experiment).job == pytest.approx(cost)
        too_much = start(lab, client, evaluate=Evaluate(noise_multiplier=0.2), **alone)
        until(lab, "it fails", lambda: client.job(too_much).state == "failed")
        assert "declined" in client.job(too_much).cause
    for site in SITES:
        assert _spent(lab, site, job) == ["settled"]
        assert _spent(lab, site, too_much) == []
        refused = lab.audit_lines(site, "task.refuse")
        assert any(too_much in line and "cap" in line for line in refused)


def _spent(lab: Lab, site: str, job: str) -> list[str]:
    database = f"file:{lab.node_directory(site) / 'node.sqlite'}?mode=ro"
    with contextlib.closing(sqlite3.connect(database, uri=True, timeout=20)) as store:
        asked = "SELECT state FROM budget_spends WHERE lease LIKE ?"
        return [str(s) for (s,) in store.execute(asked, (f"{job}.%",))]


@pytest.mark.slow
def test_who_contributes_by_leaving_out_and_by_what_each_has_from_it(lab: Clinics) -> None:
    with lab.client() as client:
        masked = lab.finish(client, start(lab, client, evaluate=Evaluate(benefit=True))).id
        found = client.analytics.hospital_contributions(masked)
        assert found.method == "measured at the sites" and set(found.benefit) == set(SITES)
        assert found.diversity_score == pytest.approx(1) and not found.contribution
        for ask in (
            lambda: client.analytics.hospital_contributions(masked, leave_one_out=True),
            lambda: client.analytics.cross_site(masked),
        ):
            with pytest.raises(ConfigError, match="'secure', needed 'plain'"):
                ask()
        open_job = {"privacy": Privacy(), "rounds": 1, "evaluate": None}
        plain = lab.finish(client, start(lab, client, **open_job)).id
        left = client.analytics.hospital_contributions(plain, "brier", leave_one_out=True)
        assert left.method == "leave-one-out" and set(left.contribution) == set(SITES)
        # three digits of each site's score are told
        assert left.contribution["a"] == pytest.approx(_without(lab, "a"), abs=2e-4)
        matrix = client.analytics.cross_site(plain, "brier")
    assert set(matrix.values) == set(SITES)
    assert all(set(row) == set(SITES) for row in matrix.values.values())


def _without(lab: Clinics, left: str) -> float:
    """By how much the Brier score over all hold-outs is worse without a site, from the models.

    One round from zeros: gradient steps at each site on its own training records.
    """
    scores = {}
    sizes = {s: sum(r[-1] == "train" for r in lab.rows(s)) for s in SITES}
    for name, sites in (("all", SITES), ("rest", tuple(s for s in SITES if s != left))):
        models = [_alone(lab, site) for site in sites]
        counts = [sizes[site] for site in sites]
        model = {
            key: np.average([m[key] for m in models], axis=0, weights=counts) for key in "wb"
        }
        each = [lab.held(site, model) for site in SITES]
        truth, chances = (np.concatenate(parts) for parts in zip(*each, strict=True))
        scores[name] = metrics.brier_score_loss(truth, chances)
    return float(scores["rest"] - scores["all"])


def _alone(lab: Clinics, site: str) -> dict[str, Any]:
    """What a site's round makes of zeros."""
    rows = [row for row in lab.rows(site) if row[-1] == "train"]
    x = np.array([row[:COLUMNS] for row in rows], np.float32)
    y = np.array([row[COLUMNS] for row in rows], np.float32)
    found = {"w": np.zeros(COLUMNS, np.float32), "b": np.zeros(1, np.float32)}
    for _ in range(10):
        error = 1 / (1 + np.exp(-(x @ found["w"] + found["b"]))) - y
        found["w"] -= 0.5 * x.T @ error / len(y)
        found["b"] -= 0.5 * error.mean()
    return found
