"""The pages about loading plans and opt-outs: every command on them, at two real hospitals."""

import contextlib
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cluster import Cluster, federation, until
from typer.testing import CliRunner

from consilia.cli.main import app

ROOT = Path(__file__).parents[2]
LOADING = ROOT / "docs/how-to/load-and-harmonise.md"
OPT_OUT = ROOT / "docs/how-to/opt-out.md"
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_YAML = re.compile(r"^```yaml\n(name: .*?)^```$", re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    blocks = _CONSOLE.findall(page.read_text())
    return [line[2:] for block in blocks for line in block.splitlines() if line[:2] == "$ "]


def table(path: Path, seed: int, header: str, scale: float) -> Path:
    rng = np.random.default_rng(seed)
    rows = [
        f"{4700 + i},{int(rng.integers(15, 90))},{1 + i % 2},"
        f"{-9 if i % 9 == 0 else round(rng.normal(100, 15) * scale, 3)},"
        f"{rng.normal(75, 9):.1f},{rng.normal(1.7, 0.1):.2f}"
        for i in range(200)
    ]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def typed(cluster: Cluster, command: str) -> str:
    """Run one line of a page in the cluster's folder; keep what it prints where it says so.

    What asks no hub runs in this process: a page has twenty commands, and each would spend
    half a second on starting.
    """
    words, _, target = command.partition(" > ")
    found = words.split()[1:]
    if found[0] == "study":
        return cluster.cli(*found)
    with contextlib.chdir(cluster.root):
        done = CliRunner().invoke(app, found, env=cluster.env, catch_exceptions=False)
    assert done.exit_code == 0, f"{command}: {done.output}"
    if target:
        (cluster.root / target).write_text(done.stdout)
    return done.stdout


def offered(cluster: Cluster, site: str) -> bool:
    return "sugar" in typed(cluster, f"consilia node studies --dir {site}")


@pytest.mark.slow
def test_the_commands_of_both_pages_work_as_written(tmp_path: Path) -> None:
    tables = {
        "north": table(tmp_path / "n.csv", 1, "pid,age,sex,GLUC,weight,height", 1.0),
        "south": table(tmp_path / "s.csv", 2, "pid,age,sex,glucose,weight,height", 1 / 18.0156),
    }
    with federation(tmp_path, tables, "sugar") as cluster:
        for site, path in tables.items():
            add = f"consilia dataset add {path} --name lab --tag sugar --mock --patient pid"
            typed(cluster, f"{add} --dir {site}")
            typed(cluster, f"consilia dataset remove table --dir {site}")
        cluster.cli(
            *("study", "create", "sugar", "--purpose", "learn", "--tag", "sugar"),
            *("--site", "north", "--site", "south"),
        )
        cluster.cli("study", "submit", "sugar")
        for site in tables:
            until(
                f"{site} to be offered the study",
                partial(offered, cluster, site),
            )
            typed(cluster, f"consilia node accept sugar --dir {site}")
        until("the sites to tell", lambda: len(cluster.json("study", "datasets", "sugar")) == 2)
        _walk(cluster)


def _walk(cluster: Cluster) -> None:
    """Do what the pages say, as the north's data manager."""
    cluster.env["CONSILIA_NODE"] = str(cluster.root / "north")
    (written,) = _YAML.findall(LOADING.read_text())
    plan = cluster.root / "glucose.yaml"
    plan.write_text(written)
    printed = {}
    for command in commands(LOADING):
        if command == "consilia loading edit glucose.yaml":
            plan.write_text(written.replace("18", "21"))
        printed[command] = typed(cluster, command)
    assert "glucose_missing" in printed["consilia loading preview lab --file glucose.yaml"]
    assert "age >= 21" in printed["consilia loading diff glucose-si"]
    assert (cluster.root / "shared.yaml").read_text().startswith("name: glucose-si")
    proposal = (cluster.root / "proposals" / "south.yaml").read_text()
    assert "glucose: GLUC" in proposal
    assert "substance: glucose" in proposal
    accepted = printed[commands(LOADING)[-1]]
    assert "harmonise-sugar version 1 for study sugar: 200 records" in accepted
    (cluster.root / "optouts.txt").write_text("# asked in May\n4713\n4714\n")
    for command in commands(OPT_OUT):
        printed[command] = typed(cluster, command)
    assert len(json.loads(typed(cluster, "consilia node optout list --json"))) == 3
    with contextlib.chdir(cluster.root):  # an id as nobody has it
        added = CliRunner().invoke(app, ["node", "optout", "add", "04711"], env=cluster.env)
    assert "1 of the 1 given are in no dataset" in added.stderr
    typed(cluster, "consilia loading attach glucose-si lab --version 1")
    attached = json.loads(typed(cluster, "consilia loading attached --json"))
    assert [a["version"] for a in attached] == [1]
    typed(cluster, "consilia audit verify --node north")
