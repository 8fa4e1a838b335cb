"""The page about the degree of federation: three hospitals and a data centre, as written."""

import csv
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from bench.local import PATIENCE
from faultkit import Lab, configure
from sklearn.datasets import load_breast_cancer

from consilia.data.registry import inspect_table
from consilia.node import approvals, datasets, studies
from consilia.node.arguments import Interval

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/degree-of-federation.md"
PLAN = ROOT / "examples/degree/tumour.py"
HOSPITALS = ("east", "north", "south")
SITES = ("centre", *HOSPITALS)
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands() -> dict[str, list[str]]:
    """The page's commands by their first two words."""
    lines = [line for block in _CONSOLE.findall(PAGE.read_text()) for line in block.split("\n")]
    words = [line.split()[2:] for line in lines if line]
    found = {" ".join(w[:2]): w for w in words}
    assert len(found) == len(words) == 10, "a command of the page is not run below"
    return found


def write_table(path: Path, number: int) -> Path:
    """Deal out the Wisconsin cohort that scikit-learn ships; two records a patient."""
    data: Any = load_breast_cancer()
    rows = ["patient,radius,texture,smoothness,symmetry,malignant"]
    for i in range(number, 569, 3):
        x = data.data[i]
        values = f"{x[0]},{x[1]},{x[4]},{x[8]},{1 - int(data.target[i])}"
        rows.append(f"MRN{700000 + i // 6},{values}")
    path.write_text("\n".join(rows) + "\n")
    return path


def enter(lab: Lab, site: str) -> None:
    lab.join(site)
    configure(lab.node_directory(site) / "node.yaml", min_records=10, limits={"threads": 1})
    if site in HOSPITALS:
        table = write_table(lab.root / f"{site}.csv", HOSPITALS.index(site))
        found = inspect_table(
            table, "tumours", ("tumours",), now=time.time(), patient="patient"
        )
        with lab.at(site) as store:
            datasets.add(store, found, actor="test", now=time.time())
    lab.start_node(site)


def agree(lab: Lab, site: str, plan: str) -> None:
    with lab.at(site) as store:
        lab.wait(lambda: approvals.known(store, plan), f"{site} hears of the plan")
        studies.accept(store, "tumours", actor="test", now=time.time())
        lr = {"lr": Interval(0.01, 1)}
        approvals.approve(store, plan, actor="test", now=time.time(), arguments=lr)


def until(lab: Lab, words: list[str]) -> str:
    """Run a command until it succeeds: the other site's word for it is on its way."""
    deadline = time.monotonic() + PATIENCE
    while (done := lab.run(*words)).returncode:
        assert "does not take uploads" in done.stderr or "has sent nothing" in done.stderr
        assert time.monotonic() < deadline, done.stderr
    return done.stderr


def traces(lab: Lab, secrets: list[bytes]) -> list[Path]:
    """The files of the hub, its database and spools among them, that hold one of `secrets`."""
    files = [p for p in lab.hub_directory.rglob("*") if p.is_file()]
    assert any(p.name == "hub.sqlite" for p in files)
    return [p for p in files if any(s in p.read_bytes() for s in secrets)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_page_work_as_written(tmp_path: Path) -> None:
    page = commands()
    with Lab(tmp_path, sandbox="off", folder=tmp_path) as lab:
        lab.make_hub()
        lab.start_hub()
        lab.each(SITES, lambda site: enter(lab, site))
        shutil.copy(PLAN, tmp_path)
        for step in ("study create", "study submit"):
            lab.cli(*page[step], more=lab.operator)
        offered = lab.cli(
            "plan", "submit", "tumour.py", "--study", "tumours", "--json", more=lab.operator
        )
        plan = json.loads(offered)["digest"]
        for site in SITES:
            agree(lab, site, plan)
        lab.each(HOSPITALS, lambda site: lab.cli(*page["dataset holdout"], "--dir", site))
        _pooled(lab, page)
        _compared(lab, page)
        _withdrawn(lab, page)


def _degree(lab: Lab) -> dict[str, Any]:
    with lab.client() as client:
        found = client.study("tumours").degree
    assert found is not None
    return {
        "sites": found.sites,
        "records": found.records,
        "state": {p.site: (p.state, p.records) for p in found.pooled},
    }


def _pooled(lab: Lab, page: dict[str, list[str]]) -> None:
    rows = (lab.root / "south.csv").read_text().splitlines()[1:]
    secrets = [row.encode() for row in rows] + [row.split(",")[0].encode() for row in rows]
    assert _degree(lab) == {"sites": 1.0, "records": 1.0, "state": {"south": ("asked", 0)}}
    lab.cli(*page["pool open"])
    said = until(lab, page["pool send"])
    assert "RECORDS LEAVE THIS SITE: a copy of dataset tumours goes to centre (key: " in said
    assert list(lab.hub_directory.glob("pool/*/*/*/0")), "no sealed piece lies at the hub"
    assert not traces(lab, secrets)
    until(lab, page["pool take"])
    lab.wait(lambda: _degree(lab)["state"] == {"south": ("held", 185)}, "the copy is told")
    assert _degree(lab)["sites"] == pytest.approx(2 / 3)
    assert _degree(lab)["records"] == pytest.approx(2 / 3, abs=0.02)
    shown = lab.cli(*page["study show"], more=lab.operator)
    assert "0.67 by sites" in shown and "south: held, 185 records" in shown
    (held,) = json.loads(lab.cli(*page["pool status"], "--json"))
    assert (held["site"], held["dataset"], held["state"]) == ("south", "pool-tumours", "held")
    (copy,) = lab.node_directory("centre").glob("pool/*/copies/*.csv")
    assert held["digest"] in lab.audit_lines("south", "pool.consent")[0]
    text = copy.read_text()
    assert len(text.splitlines()) == len(rows) + 1
    assert "MRN" not in text, "patients' ids have left"
    assert not traces(lab, secrets)
    assert not list(lab.hub_directory.glob("pool/*/*/*/*")), "a piece stays at the hub"


def _compared(lab: Lab, page: dict[str, list[str]]) -> None:
    said = lab.cli(*page["study compare"], "--json", more=lab.operator)
    found = json.loads(said)
    assert set(found["without"]) == {"central"}, found["without"]
    assert "centre holds no copy of east, north" in found["without"]["central"]
    with lab.client() as client:
        for arm, trained in (("hybrid", ("centre", "east", "north")), ("federated", HOSPITALS)):
            assert len(found["jobs"][arm]) == 2
            view = client.job(found["jobs"][arm][0])
            assert view.rounds[-1].sites == trained
    cells = [c for c in found["cells"] if c["metric"] == "auc"]
    assert {(c["arm"], c["site"]) for c in cells} == {
        (arm, site) for arm in ("local", "federated", "hybrid") for site in ("all", *HOSPITALS)
    }
    for cell in cells:
        assert cell["folds"] == 2 and cell["low"] <= cell["value"] <= cell["high"]
        assert cell["value"] > 0.85
    # the same patients are held out in every arm: as many, hospital by hospital
    for site in HOSPITALS:
        assert len({c["records"] for c in cells if c["site"] == site}) == 1
    out = lab.root / "compared"
    with (out / "arms.csv").open() as stream:
        states = dict(csv.reader(stream))
    assert states["hybrid"] == "done" and "holds no copy" in states["central"]
    assert (out / "auc.png").read_bytes()[:4] == b"\x89PNG" and (out / "auc.svg").exists()


def _withdrawn(lab: Lab, page: dict[str, list[str]]) -> None:
    lab.cli(*page["pool withdraw"])
    centre = lab.node_directory("centre")
    lab.wait(lambda: not list(centre.glob("pool/*/copies")), "the copy is deleted")
    lab.wait(lambda: bool(lab.audit_lines("south", "pool.deleted")), "the site is told")
    with lab.at("centre") as store:
        assert not datasets.list_datasets(store)
    (line,) = lab.audit_lines("centre", "pool.delete")
    assert "site south has withdrawn it" in line
    assert "consent-ended" in lab.audit_lines("south", "pool.withdraw")[0]
    expected = {"south": ("withdrawn", 0)}
    lab.wait(lambda: _degree(lab)["state"] == expected, "the hub hears of it")
    assert _degree(lab)["sites"] == 1.0
