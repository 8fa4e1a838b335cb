"""Statistics between real processes: the masked sum of hospitals against numpy's, and the page.

One hospital is too small for anything to be told of it: it refuses, and the rest is answered.
"""

import base64
import contextlib
import csv
import json
import re
import shlex
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import yaml
from faultkit import ENVIRONMENT, Lab, configure

from consilia.data.registry import inspect_table
from consilia.errors import ConsiliaError
from consilia.node import datasets, policyhistory, studies
from consilia.node.standing import policy_of
from consilia.privacy.accountant import cost, epsilon
from consilia.sdk.client import Client
from consilia.sdk.statistics import question
from consilia.wire.statistics import AskStatistics, Noise
from consilia.wire.v1 import Study

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/statistics.md").read_text()
HEART = ROOT.parent / "shared" / "data" / "heart_disease"
SITES = ("aachen", "ghent", "leuven", "oslo")
TINY = "tiny"
SIZES = dict(zip((*SITES, TINY), (211, 187, 306, 154, 4), strict=True))
STUDY, TAG = "hearts", "heart"
Rows = list[dict[str, Any]]
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Return the page's commands, in order, without the word consilia."""
    lines = (line for block in _CONSOLE.findall(PAGE) for line in block.splitlines())
    return [shlex.split(line)[2:] for line in lines]


def people(site: str) -> Rows:
    """Make a hospital's patients; some have no cholesterol."""
    rng = np.random.default_rng(list(SIZES).index(site))
    rows = []
    for number in range(SIZES[site]):
        chol = "" if rng.random() < 0.15 else round(float(rng.normal(220, 40)), 1)
        rows.append(
            {
                "patient": f"{site}-{number}",
                "age": int(rng.integers(21, 90)),
                "sex": "FM"[int(rng.random() < 0.6)],
                "chol": chol,
                "ill": str(bool(rng.random() < 0.4)).lower(),
            }
        )
    return rows


class Hospitals(Lab):
    """A lab whose sites have patients of one record each, and count exactly."""

    def enter(self, site: str) -> None:
        """Let a site join with its patients, and start its agent."""
        self.join(site)
        configure(
            self.node_directory(site) / "node.yaml",
            min_records=1,
            plain_updates=False,
            disclosure={"counts": "exact", "k": 5},
        )
        self.add(site, TAG, people(site))
        self.start_node(site)

    def add(self, site: str, tag: str, rows: Rows) -> None:
        """Register records at a site as a dataset."""
        table = self.root / f"{site}-{tag}.csv"
        with table.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        measured = inspect_table(table, tag, (tag,), now=time.time(), patient="patient")
        with self.at(site) as store:
            datasets.add(store, measured, actor="test", now=time.time())

    def accept(self, study: str, sites: tuple[str, ...]) -> None:
        """Have the sites accept a study that is on offer to them."""
        for site in sites:
            with self.at(site) as store:

                def heard() -> bool:
                    known = studies.list_studies(store, date.today())
                    return any(record.study.name == study for record in known)

                self.wait(heard, f"{site} hears of {study}")
                studies.accept(store, study, actor="test", now=time.time())
        with self.client() as client:
            self.wait(
                lambda: set(client.study(study).sites.values()) == {"accepted"}, "all accept"
            )

    @contextlib.contextmanager
    def policy(self, *sites: str, **changes: Any) -> Iterator[None]:
        """Put another policy in force at running sites, and afterwards the one before."""
        before = {site: (self.node_directory(site) / "node.yaml").read_text() for site in sites}
        try:
            for site, text in before.items():
                self._apply(site, yaml.safe_dump({**yaml.safe_load(text), **changes}))
            yield
        finally:
            for site, text in before.items():
                self._apply(site, text)

    def _apply(self, site: str, text: str) -> None:
        with self.at(site) as store:
            of, now = partial(policy_of, store), time.time()
            where = self.node_directory(site)
            policyhistory.apply(store, where, text, "test", of, actor="test", now=now)

    def ledger(self, site: str, job: str) -> list[tuple[str, float]]:
        """What a site's ledger says of a job: state, and epsilon of the reservation."""
        database = f"file:{self.node_directory(site) / 'node.sqlite'}?mode=ro"
        with contextlib.closing(sqlite3.connect(database, uri=True, timeout=20)) as store:
            states = dict(
                store.execute(
                    "SELECT lease, state FROM budget_spends WHERE lease LIKE ?", (f"{job}.%",)
                )
            )
            bodies = [
                json.loads(b) for (b,) in store.execute("SELECT body FROM budget_entries")
            ]
        return [
            (states[entry["lease"]], entry["epsilon"])
            for entry in bodies
            if entry["kind"] == "reserve" and entry["lease"] in states
        ]

    def page(self, words: list[str]) -> str:
        """Run a command of the page as the hub's operator."""
        return self.cli(*words, more=self.operator)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    with Hospitals(tmp_path_factory.mktemp("statistics"), ENVIRONMENT, sandbox="off") as lab:
        lab.make_hub()
        lab.start_hub()
        everybody = (*SITES, TINY)
        lab.each(everybody, lab.enter)
        create, submit = commands()[:2]
        lab.page(create)
        lab.page(submit)
        lab.accept(STUDY, everybody)
        yield lab


@pytest.fixture
def client(lab: Hospitals) -> Iterator[Client]:
    lab.ready(*SIZES)  # also after a hub that was killed
    with lab.client() as found:
        yield found


def test_the_commands_of_the_page(lab: Hospitals) -> None:
    """The first one is held against numpy; the others are told what they ask for."""
    _, _, first, histogram, crosstab, _, trail = commands()
    shown = lab.page(first)
    rows = [row for site in SITES for row in people(site)]
    found = json.loads(lab.page([*first, "--json"]))  # asked again: the same answer
    assert found["masked"] and found["rounded"] == 0
    assert found["sites"] == list(SITES) and found["without"] == {TINY: "refused"}
    told = {(f["statistic"], f["column"], f["group"], f["level"]): f for f in found["figures"]}
    for sex in "FM":
        group = [row for row in rows if row["sex"] == sex]
        assert told["records", "", sex, ""]["value"] == len(group)
        chol = np.array([row["chol"] for row in group if row["chol"] != ""], float)
        ages = np.array([row["age"] for row in group], float)
        for column, values in (("age", ages), ("chol", chol)):
            assert told["count", column, sex, ""]["value"] == len(values)
            mean, sd = (told[what, column, sex, ""] for what in ("mean", "sd"))
            assert mean["value"] == pytest.approx(values.mean(), abs=1e-6)
            assert mean["low"] <= values.mean() <= mean["high"]
            assert sd["value"] == pytest.approx(values.std(ddof=1), abs=1e-5)
            assert sd["low"] <= values.std(ddof=1) <= sd["high"]
        ill = sum(row["ill"] == "true" for row in group)
        assert told["level", "ill", sex, "true"]["value"] == ill
        assert told["missing", "chol", sex, ""]["value"] == len(group) - len(chol)
        assert f"{ages.mean():.4g} ({ages.std(ddof=1):.3g})" in shown
    for line in shown.splitlines():
        assert " ".join(line.split()) in " ".join(PAGE.split()), line
    ages = np.array([row["age"] for row in rows], float)
    _histogram(json.loads(lab.page([*histogram, "--json"])), ages)
    old = [row for row in rows if row["age"] >= 40]
    cells = json.loads(lab.page(crosstab))["figures"][1:]
    assert {(c["level"], c["across_level"]): c["value"] for c in cells} == {
        (sex, ill): sum((row["sex"], row["ill"]) == (sex, ill) for row in old)
        for sex in "FM"
        for ill in ("false", "true")
    }
    node = str(lab.node_directory("leuven"))
    said = lab.page([node if word == "/srv/consilia" else word for word in trail])
    assert "sums over age, chol, ill by sex" in said and "masked" in said


def _histogram(found: dict[str, Any], ages: Any) -> None:
    figures = found["figures"]
    edges = [-np.inf, 35, 50, 65, np.inf]
    bins = [f["value"] for f in figures if f["statistic"] == "histogram"]
    assert bins == np.histogram(ages, edges)[0].tolist()
    quantiles = {f["level"]: f for f in figures if f["statistic"] == "quantile"}
    assert len(quantiles) == 7
    for at, quantile in quantiles.items():
        low, high = quantile["low"], quantile["high"]
        true = np.quantile(ages, float(at))
        assert (low is None or low <= true) and (high is None or true <= high)


def test_the_hub_has_no_sums_of_a_site(lab: Hospitals, client: Client) -> None:
    found = client.statistics(STUDY, ["age"], what=("count", "mean"), where="age < 80")
    job = found.view.job
    with contextlib.closing(sqlite3.connect(lab.hub_directory / "hub.sqlite")) as db:
        query = "SELECT body FROM journal WHERE job = ? AND type = 'Accepted'"
        bodies = [json.loads(body)["body"] for (body,) in db.execute(query, (job,))]
    assert len(bodies) == len(SITES)
    for body in bodies:
        masked = np.frombuffer(base64.b64decode(body.removeprefix("sums:")), "<u8")
        assert (masked > 1 << 40).mean() > 0.9, "numbers of patients would be small"
    assert not [e for e in client.events(job) if e.type == "Accepted" and "body" in e.body]
    assert any(line.action == "round.statistics" for line in client.job_audit(job))
    assert len(lab.audit_lines(TINY, "release.refuse")) >= 1
    assert len(lab.audit_lines("oslo", "mask.open")) >= 1


def test_unmasked_sums_are_refused_by_every_site(client: Client) -> None:
    with pytest.raises(ConsiliaError, match="declined"):
        client.statistics(STUDY, ["age"], what=("count",), aggregation="plain")


def test_what_no_site_offers_is_an_error_that_names_the_nearest(client: Client) -> None:
    with pytest.raises(ConsiliaError, match="did you mean 'age'"):
        client.statistics(STUDY, ["agee"])
    with pytest.raises(ConsiliaError, match=r"levels\.sex: found none"):
        client.statistics(STUDY, ["age"], by="sex")
    with pytest.raises(ConsiliaError, match="where: "):
        client.statistics(STUDY, ["age"], where="age >")


def test_what_was_told_outlives_a_hub_that_is_killed(lab: Hospitals) -> None:
    asked = ("statistics", STUDY, "--column", "age", "--what", "count,sd", "--json")
    before = json.loads(lab.page(list(asked)))
    lab.kill("hub")
    lab.start_hub()
    with lab.client() as client:
        kept = client.job_statistics(before["job"])
    assert [f.value for f in kept.figures] == [f["value"] for f in before["figures"]]


# ---- with differential privacy --------------------------------------------------------------


def test_noise_is_asked_for_charged_and_told(lab: Hospitals, client: Client) -> None:
    """The command of the page: all five answer, for nothing is too small with noise."""
    told = lab.run(*commands()[5], more=lab.operator)
    assert not told.returncode and "epsilon 1 at delta 1e-05 for each record" in told.stderr
    assert len(
        re.findall(r"^mean\tage\t[FM]\t[0-9.]+\t[0-9.]+ to [0-9.]+\t5$", told.stdout, re.M)
    )
    found = client.statistics(
        STUDY, ["age", "ill"], by="sex", levels={"sex": ("F", "M")}, bounds={"age": (20, 90)},
        dp=Noise(1.0),
    )  # fmt: skip
    view = found.view
    assert view.sites == tuple(sorted(SIZES)) and view.masked and not view.without
    assert view.dp is not None and view.noise is not None and view.epsilon is not None
    assert 0.99 < view.epsilon <= 1 and view.dp.distributed
    # of five sites four survive or none, one may collude: three shares are sure, five are there
    assert view.noise == pytest.approx(view.dp.noise_multiplier * sqrt(5 * 5 / 3))
    every = [row for site in SIZES for row in people(site)]
    for figure in found.figures:
        rows = [row for row in every if row["sex"] == figure.group]
        ages = np.array([row["age"] for row in rows], float)
        true = {
            "mean": ages.mean(),
            "sd": ages.std(ddof=1),
            "missing": 0,
            "level": sum(row["ill"] == figure.level for row in rows),
        }.get(figure.statistic, len(rows))
        assert figure.value is not None and figure.error is not None, figure
        assert abs(figure.value - true) < 6 * figure.error, figure
    for site in SIZES:
        ((state, spent),) = lab.ledger(site, view.job)
        assert state == "settled" and spent == pytest.approx(view.epsilon)
        (line,) = [line for line in lab.audit_lines(site, "release") if view.job in line]
        assert "a share of the noise" in line and "5 blocks" in line
    assert client.privacy.get_budget(view.job).sites == dict.fromkeys(SIZES, view.epsilon)
    lines = [line.detail for line in client.job_audit(view.job)]
    assert any("epsilon 0.99" in line or "epsilon 1" in line for line in lines)


def test_the_sum_carries_the_noise_that_is_told_and_other_sites_may_answer(
    lab: Hospitals, client: Client
) -> None:
    """Of nobody the hub sees noise alone: 2450 numbers, whose deviation is known to 1.4 %."""
    edges = [float(edge) for edge in range(51)]
    told = client.statistics(
        STUDY, ["age"], what=("histogram",), by="chol", where="age > 200",
        edges={"age": edges, "chol": edges[2:]}, dp=Noise(1.0),
    )  # fmt: skip
    values = np.array([f.value for f in told.figures])
    assert values.size > 2400 and told.view.noise is not None
    assert values.std() == pytest.approx(told.view.noise, rel=5 / sqrt(2 * values.size))
    assert len(np.unique(np.diff(np.sort(values)))) > 1000, "noise comes in many steps"


def test_a_hospital_may_insist_on_noise_and_its_cap_is_hard(
    lab: Hospitals, client: Client
) -> None:
    asked: dict[str, Any] = {"what": ("count",), "bounds": {"age": (20, 90)}}
    with lab.policy(*SIZES, dp_required=True):
        with pytest.raises(ConsiliaError, match="declined"):
            client.statistics(STUDY, ["age"], **asked)
        assert client.statistics(STUDY, ["age"], **asked, dp=Noise(0.1)).view.epsilon
    refused = lab.audit_lines("ghent", "task.refuse")
    assert any("statistics only with differential privacy" in line for line in refused)
    with pytest.raises(ConsiliaError, match="declined"):
        client.statistics(STUDY, ["age"], **asked, dp=Noise(40.0))
    newest = client.jobs()[0]
    assert newest.state == "failed" and newest.experiment.privacy is not None
    assert newest.experiment.privacy.dp is not None
    assert newest.experiment.privacy.dp.noise_multiplier < 0.5
    assert all(lab.ledger(site, newest.id) == [] for site in SIZES)
    assert any("of its cap" in line for line in lab.audit_lines("ghent", "task.refuse"))


def test_a_hub_killed_in_the_middle_charges_nobody_twice(lab: Hospitals) -> None:
    """The round goes on where it was: what sites have sent is in it, what they paid stands."""
    with lab.client() as client, held(lab, "ghent") as hold:
        job = client.ask_statistics(counting(grace=60.0)).id
        hold.when(lab, job, "Spoke", ".ghent")
        lab.wait(lambda: happened(lab, job, "Spoke", ".oslo"), "another site has begun")
        lab.kill("hub")
        assert not happened(lab, job, "Assessed")
    lab.start_hub()
    with lab.client() as client:
        lab.wait(lambda: client.job(job).state in ("done", "failed"), "the question ends")
        assert client.job(job).state == "done", client.job(job).cause
        view = client.job_statistics(job)
    assert view.sites == tuple(sorted(SIZES)) and view.epsilon is not None
    assert 0.49 < view.epsilon <= 0.5
    (records,) = [f for f in view.figures if f.statistic == "records"]
    assert records.value is not None and records.error is not None
    assert abs(records.value - sum(SIZES.values())) < 6 * records.error
    for site in SIZES:
        ((state, spent),) = lab.ledger(site, job)
        assert state == "settled" and spent == pytest.approx(view.epsilon), site


def test_a_question_asked_again_tells_what_both_attempts_have_cost(
    lab: Hospitals, client: Client
) -> None:
    """What was sent in a stopped attempt is worth nothing in the next, and is paid for."""
    with held(lab, "ghent") as hold:
        job = client.ask_statistics(counting(grace=60.0)).id
        hold.when(lab, job, "Spoke", ".ghent")
        lab.wait(lambda: happened(lab, job, "Spoke", ".oslo"), "another site has begun")
        client.stop(job)
        with pytest.raises(ConsiliaError, match="no statistics yet"):
            client.job_statistics(job)
    lab.ready(*SIZES)
    client.resume(job)
    lab.wait(lambda: client.job(job).state in ("done", "failed"), "the second attempt ends")
    assert client.job(job).state == "done", client.job(job).cause
    view = client.job_statistics(job)
    assert view.dp is not None and view.epsilon is not None
    assert view.epsilon == pytest.approx(epsilon(cost(view.dp, 2), view.dp.delta))
    for site in SIZES:
        states = [state for state, _ in lab.ledger(site, job)]
        assert len(states) <= 2 and states[-1] == "settled", (site, states)


def counting(grace: float) -> AskStatistics:
    """A question with noise for half an epsilon."""
    bounds = {"age": (20.0, 90.0)}
    asked = question(STUDY, ["age"], what=("count",), bounds=bounds, dp=Noise(0.5))
    return msgspec.structs.replace(asked, grace=grace)


def happened(lab: Hospitals, job: str, kind: str, about: str = "") -> bool:
    """Whether the hub's journal has an event of a job's, read from its file."""
    with contextlib.closing(sqlite3.connect(lab.hub_directory / "hub.sqlite")) as db:
        query = "SELECT 1 FROM journal WHERE job = ? AND type = ? AND body LIKE ?"
        return db.execute(query, (job, kind, f"%{about}%")).fetchone() is not None


@dataclass
class Held:
    """An agent that stands still from a moment on."""

    process: psutil.Process

    def when(self, lab: Hospitals, job: str, kind: str, about: str) -> None:
        """Stop it as soon as an event of its own is in the hub's journal."""
        lab.wait(lambda: happened(lab, job, kind, about), f"{kind} of {about[1:]}")
        self.process.suspend()


@contextlib.contextmanager
def held(lab: Hospitals, site: str) -> Iterator[Held]:
    """Let a site's agent go on when the block is left."""
    agent = Held(psutil.Process(lab.processes[site].pid))
    try:
        yield agent
    finally:
        agent.process.resume()


def test_two_hospitals_answer_in_the_open_or_each_with_all_of_the_noise(
    lab: Hospitals, client: Client
) -> None:
    """Patients have several visits: without noise nothing is told, with it the first is."""
    pair = ("ghent", "oslo")
    visits = {site: [row for row in people(site) for _ in range(3)] for site in pair}
    for site in pair:
        lab.add(site, "visits", visits[site])
    client.create_study(Study("visits", "to describe", pair, ("visits",), statistics=True))
    client.submit_study("visits")
    lab.accept("visits", pair)
    with pytest.raises(ConsiliaError, match="has no statistics"):
        client.statistics("visits", ["age"], what=("count",))
    dp = Noise(2.0, level="patient")
    asked: dict[str, Any] = {"what": ("count", "mean"), "bounds": {"age": (20, 90)}}
    found = client.statistics("visits", ["age"], **asked, dp=dp).view
    assert not found.masked and found.dp is not None and not found.dp.distributed
    count = {f.statistic: f for f in found.figures}["count"]
    assert count.error == pytest.approx(found.dp.noise_multiplier * sqrt(3 * 2))
    assert count.value is not None and count.error is not None
    assert abs(count.value - sum(SIZES[site] for site in pair)) < 6 * count.error
    three = client.statistics("visits", ["age"], **asked, dp=Noise(2.0, records=3)).view
    tripled = {f.statistic: f for f in three.figures}["count"]
    assert tripled.value is not None and tripled.error is not None
    assert tripled.error == pytest.approx(3 * count.error)
    assert abs(tripled.value - sum(map(len, visits.values()))) < 6 * tripled.error


def test_unmasked_sums_where_every_site_lets_them_leave(lab: Hospitals, client: Client) -> None:
    levels, edges = {"sex": ("F", "M")}, {"age": (20, 35, 50, 65, 90)}
    with lab.policy(*SIZES, plain_updates=True):
        found = client.statistics(
            STUDY, ["chol", "ill"], by="sex", levels=levels, aggregation="plain"
        )
        bins = client.statistics(
            STUDY, ["age"], what=("count", "histogram", "quantiles"), edges=edges,
            tables=[("sex", "ill")], levels=levels, aggregation="plain",
        )  # fmt: skip
    assert not found.view.masked and found.view.without == {TINY: "refused"}
    rows = [row for site in SITES for row in people(site)]
    for sex in "FM":
        group = [row for row in rows if row["sex"] == sex]
        chol = np.array([row["chol"] for row in group if row["chol"] != ""], float)
        assert found.value("records", group=sex) == len(group)
        assert found.value("count", "chol", group=sex) == len(chol)
        assert found.value("missing", "chol", group=sex) == len(group) - len(chol)
        assert found.value("mean", "chol", group=sex) == pytest.approx(chol.mean(), abs=1e-4)
        assert found.value("sd", "chol", group=sex) == pytest.approx(chol.std(ddof=1), abs=1e-4)
        ill = sum(row["ill"] == "true" for row in group)
        assert found.value("level", "ill", group=sex, level="true") == ill
    ages = np.array([row["age"] for row in rows], float)
    told = [f.value for f in bins.figures if f.statistic == "histogram"]
    assert told == np.histogram(ages, [-np.inf, 35, 50, 65, np.inf])[0].tolist()
    cells = {(f.level, f.across_level): f.value for f in bins.figures if f.statistic == "cell"}
    for sex in "FM":
        women_ill = sum((row["sex"], row["ill"]) == (sex, "true") for row in rows)
        assert cells[sex, "true"] == women_ill
    # the hub has seen each site's own numbers, and says so
    with contextlib.closing(sqlite3.connect(lab.hub_directory / "hub.sqlite")) as db:
        query = "SELECT body FROM journal WHERE job = ? AND type = 'Accepted'"
        bodies = [json.loads(b)["body"] for (b,) in db.execute(query, (found.view.job,))]
    numbers = [np.frombuffer(base64.b64decode(b.removeprefix("sums:")), "<i8") for b in bodies]
    assert {int(n[1] + n[2]) for n in numbers} == {SIZES[site] for site in SITES}


# ---- four hospitals of the real world -------------------------------------------------------


def hearts(hospital: str) -> Rows:
    """Read a hospital's records: age, sex, cholesterol (0 and ? are missing), and disease."""
    rows = []
    text = (HEART / f"processed.{hospital}.data").read_text()
    for number, line in enumerate(text.split()):
        values = line.split(",")
        chol = "" if values[4] in ("?", "0") else values[4]
        rows.append(
            {
                "patient": f"{hospital}-{number}",
                "age": float(values[0]),
                "sex": "FM"[int(float(values[1]))],
                "chol": chol,
                "ill": str(float(values[13]) > 0).lower(),
            }
        )
    return rows


@pytest.mark.skipif(not HEART.exists(), reason=f"needs the heart disease data in {HEART}")
def test_four_real_hospitals(lab: Hospitals, client: Client) -> None:
    names = dict(zip(SITES, ("cleveland", "hungarian", "switzerland", "va"), strict=True))
    for site, hospital in names.items():
        lab.add(site, "uci", hearts(hospital))
    client.create_study(Study("uci", "to describe", SITES, ("uci",), statistics=True))
    client.submit_study("uci")
    lab.accept("uci", SITES)
    levels = {"sex": ("F", "M")}
    found = client.statistics("uci", ["age", "ill"], by="sex", levels=levels)
    every = [row for hospital in names.values() for row in hearts(hospital)]
    for sex in "FM":
        ages = np.array([row["age"] for row in every if row["sex"] == sex])
        assert found.value("records", group=sex) == len(ages)
        assert found.value("mean", "age", group=sex) == pytest.approx(ages.mean(), abs=1e-6)
        assert found.value("sd", "age", group=sex) == pytest.approx(ages.std(ddof=1), abs=1e-5)
