"""The page about datasets: every command on it, at a real hospital and a real researcher's."""

import contextlib
import re
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pytest
from cluster import Cluster, federation, until
from typer.testing import CliRunner

from consilia.cli.main import app
from consilia.data.registry import inspect_table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/datasets.md"
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    blocks = _CONSOLE.findall(PAGE.read_text())
    return [line[2:] for block in blocks for line in block.splitlines() if line[:2] == "$ "]


def site_tables(folder: Path) -> None:
    rng = np.random.default_rng(5)
    rows = [
        f"p{i},{int(rng.integers(30, 90)) if i % 17 else -9},{i % 2},seen by Dr. {i}"
        for i in range(200)
    ]
    (folder / "heart.csv").write_text("\n".join(["pid,age,outcome,remark", *rows]) + "\n")
    (folder / "visits").mkdir()
    for year in (2024, 2025):
        (folder / "visits" / f"{year}.csv").write_text("days\n1\n2\n")
    with duckdb.connect(folder / "warehouse.duckdb") as db:
        db.execute("CREATE TABLE stay AS SELECT range % 9 AS days FROM range(150)")
    (folder / "stays.sql").write_text("SELECT days FROM stay WHERE days > 0;\n")


def typed(cluster: Cluster, command: str) -> str:
    """Run one line in the cluster's folder; the site's own in this process, to save starts."""
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


@pytest.mark.slow
def test_the_commands_work_as_written(tmp_path: Path) -> None:
    first = tmp_path / "first.csv"
    first.write_text("a\n" + "1\n" * 120)
    with federation(tmp_path, {"north": first}, "first") as cluster:
        cluster.env["CONSILIA_NODE"] = str(cluster.root / "north")
        site_tables(cluster.root)
        cluster.cli(
            *("study", "create", "heart-failure", "--purpose", "learn"),
            *("--tag", "heart-failure", "--site", "north"),
        )
        cluster.cli("study", "submit", "heart-failure")
        until("the offer", lambda: "heart-failure" in typed(cluster, "consilia node studies"))
        typed(cluster, "consilia node accept heart-failure")
        printed = {}
        for command in commands():
            if command.startswith("consilia study"):
                until("the twin to be told", partial(_told, cluster))
            printed[command] = typed(cluster, command)
            if command == "consilia dataset schema heart --versions":
                with (cluster.root / "heart.csv").open("a") as file:
                    file.write("p200,50,1,late\n")
                typed(cluster, "consilia dataset refresh heart")
        made = inspect_table(cluster.root / "mock" / "north-heart.csv", "m", ("t",), now=0)
    assert dict(made.columns) == {"pid": "str", "age": "int64", "outcome": "int64"}
    assert made.records == 200
    assert "age.unit: '' -> 'a'" in printed["consilia dataset schema heart --versions"]
    assert "-9" not in printed["consilia dataset preview heart --rows 5"]


def _told(cluster: Cluster) -> bool:
    found = cluster.json("study", "datasets", "heart-failure")
    return any("mock" in o["dataset"] for o in found)
