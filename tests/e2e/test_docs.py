"""The documentation does what it says: its commands are run, its code is the examples' code."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cluster import Cluster, federation, until
from tables import write

from consilia.sim import simulate

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_QUOTED = re.compile(r"<!-- (examples/\S+) -->\n```python\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def _commands(page: Path) -> list[str]:
    blocks = _CONSOLE.findall(page.read_text())
    return [line[2:] for block in blocks for line in block.splitlines() if line[:2] == "$ "]


def test_the_how_to_for_a_hospital_works_as_written(tmp_path: Path) -> None:
    commands = _commands(ROOT / "docs/how-to/install-a-hospital.md")
    assert len(commands) >= 14
    write(tmp_path, {"heart": 150})
    with Cluster(tmp_path) as cluster:
        for command in commands:
            _as_typed(cluster, command)
        sites = cluster.json("hub", "sites", "--dir", "hub")
    assert [(s["name"], s["state"]) for s in sites] == [("north-hospital", "revoked")]


def _as_typed(cluster: Cluster, command: str) -> None:
    """Run one line of a page in the cluster's folder, with ports and hosts of this machine."""
    for written, here in (
        ("hub.example.org", "localhost"),
        (":8443", f":{cluster.people}"),
        (":8444", f":{cluster.nodes}"),
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104  # so that no test listens to the network
    ):
        command = command.replace(written, here)
    assert command.startswith("consilia ")
    words = re.findall(r"'[^']*'|\S+", command.removeprefix("consilia "))
    words = [word.strip("'") for word in words]
    source = target = None
    if "<" in words:
        words, (source,) = words[: words.index("<")], words[words.index("<") + 1 :]
    if ">" in words:
        words, (target,) = words[: words.index(">")], words[words.index(">") + 1 :]
    if words[-1] == "&":
        _serve(cluster, words[:-1])
        return
    if words[:2] == ["node", "doctor"]:
        words_done = cluster.run(*words)
        assert (
            "hub" in words_done.stdout
        )  # a machine without bubblewrap is told so, with status 1
        return
    printed = cluster.cli(*words, stdin=(cluster.root / source).read_text() if source else "")
    if target:
        (cluster.root / target).write_text(printed)


def _serve(cluster: Cluster, words: list[str]) -> None:
    party = words[0]
    cluster.spawn(party, *words)
    if party == "hub":
        until("the hub to serve", (cluster.root / "hub/run/addresses.json").exists)
    else:
        until(
            "the node to be connected",
            lambda: bool(cluster.json("node", "status", "--dir", "node")["connected"]),
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_quoted_examples_are_the_examples(page: Path) -> None:
    for name, code in _QUOTED.findall(page.read_text()):
        assert code == (ROOT / name).read_text(), f"{page} shows another {name}"


def test_the_readme_quotes_a_first_model_of_at_most_25_lines() -> None:
    quoted = _QUOTED.findall((ROOT / "README.md").read_text())
    assert [name for name, _ in quoted] == [
        "examples/first_model/tumour.py",
        "examples/first_model/run.py",
    ]
    lines = [line for _, code in quoted for line in code.splitlines() if line.strip()]
    assert len(lines) <= 25


def test_the_demo_brings_what_the_tutorial_uses() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    brought = {re.split(r"[<>=]", package)[0] for package in extras["demo"]}
    assert brought >= {"torch", "scikit-learn", "pandas"}  # pandas: print(experiment.history)


@pytest.mark.slow
def test_the_first_model_trains_as_the_tutorial_tells(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra: demo)")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: demo)")
    pytest.importorskip("pandas", reason="pandas is not installed (extra: demo)")
    code = "from pathlib import Path; import judge; judge.write_cohort(Path('data'))"
    _python(tmp_path, ["-c", code], {"PYTHONPATH": f"{ROOT / 'examples'}:{ROOT / 'src'}"})
    tables = {site: tmp_path / f"data/{site}.csv" for site in ("county", "university")}
    for path in (ROOT / "examples/first_model").glob("*.py"):
        shutil.copy(path, tmp_path)
    alone = simulate(tmp_path / "tumour.py", tables, rounds=10)
    assert alone.rounds[-1].metrics["loss"] < alone.rounds[0].metrics["loss"]

    with (
        federation(tmp_path, tables, "breast-cancer") as cluster,
        ThreadPoolExecutor(1) as pool,
    ):
        run = pool.submit(_python, tmp_path, ["run.py"], cluster.env)
        until("the plan to be offered", lambda: bool(_plans(cluster)), 60)
        for site in tables:
            cluster.decide(site, "first", _plans(cluster)[0]["digest"])
        printed = run.result()
    assert "round 10/10: loss" in printed.stderr
    assert re.search(r"^10 +2 +195 ", printed.stdout, re.MULTILINE), printed.stdout
    with np.load(tmp_path / "tumour.npz") as model:
        assert model["1.weight"].shape == (1, 30)


def _plans(cluster: Cluster) -> list[dict[str, str]]:
    found: list[dict[str, str]] = cluster.json("plan", "list")
    return found


def _python(
    folder: Path, words: list[str], env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page} links to {target}, which is not there"


def test_the_index_of_decisions_names_each_once() -> None:
    folder = ROOT / "docs" / "adr"
    pages = sorted(p.name for p in folder.glob("0*.md"))
    assert sorted(_LINK.findall((folder / "README.md").read_text())) == pages
    numbers = [name[:4] for name in pages]
    assert len(set(numbers)) == len(numbers)
    for name in pages:
        first = (folder / name).read_text().splitlines()[0]
        assert first.startswith(f"# ADR {int(name[:4])}: "), f"{name} begins {first!r}"
