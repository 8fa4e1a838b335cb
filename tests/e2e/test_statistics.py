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
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit import ENVIRONMENT, Lab, configure

from consilia.data.registry import inspect_table
from consilia.errors import ConsiliaError
from consilia.node import datasets, studies
from consilia.sdk.client import Client
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
    with lab.client() as found:
        yield found


def test_the_commands_of_the_page(lab: Hospitals) -> None:
    """The first one is held against numpy; the others are told what they ask for."""
    _, _, first, histogram, crosstab, trail = commands()
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
