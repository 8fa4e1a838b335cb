"""The hardest records, for the site's own staff: the right ones, explained, and audited."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: sklearn)")

import privacykit as kit
from consilia.data.registry import inspect_table
from consilia.errors import ConfigError, Refused
from consilia.node import approvals, audit, config, datasets
from consilia.node.config import Limits, NodeConfig, Sandbox
from consilia.node.console.settings import Console as Settings
from consilia.node.launcher import Bubblewrap
from consilia.node.store import Store
from consilia.wire import frames
from consilia.wire.v1 import plan_digest
from consilia.wire.worker import Audit
from consolekit import console

PLAN = kit.plan(("nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 1)", "nn.Linear(30, 1)"))
FLIPPED = (4, 17, 40)  # records with a wrong label


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node with a cohort in which three labels are wrong, and a model of the right ones."""
    folder = tmp_path_factory.mktemp("hard")
    kit.mislabelled(folder, PLAN, FLIPPED)
    directory = folder / "node"
    directory.mkdir(mode=0o700)
    sandbox: Sandbox = "off" if Bubblewrap().available() else "required"
    limits = Limits(threads=1)
    config.save(directory, NodeConfig("charite", "https://h:1", sandbox=sandbox, limits=limits))
    cohort = inspect_table(folder / "cohort.csv", "cohort", ("c",), now=0.0, patient="patient")
    with_store(directory, lambda s: datasets.add(s, cohort, actor="user:eva", now=1.0))
    digest = plan_digest(PLAN)
    with_store(
        directory, lambda s: approvals.offer(s, PLAN, digest, study="s", author="ada", now=1.0)
    )
    return directory


def with_store(directory: Path, use: Callable[[Store], object]) -> None:
    store = Store.open(directory)
    try:
        use(store)
    finally:
        store.close()


def run(node: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = (sys.executable, "-m", "consilia.cli.main", "node", "hard-cases")
    digest = plan_digest(PLAN)
    model = str(node.parent / "model.npz")
    return subprocess.run(
        [*command, model, "--plan", digest[7:19], "--dataset", "cohort", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=480,
        env={**os.environ, "CONSILIA_NODE": str(node)},
    )


def trail(node: Path) -> list[tuple[str, str]]:
    store = Store.open(node)
    lines = [line for line, _ in audit.latest(store, 20)]
    store.close()
    return [(x.subject, x.outcome) for x in lines if x.action == "hard.cases"]


def test_wrong_labels_are_found_and_explained(node: Path) -> None:
    refused = run(node)
    assert refused.returncode == Refused.exit_code and "needed an approval" in refused.stderr
    digest = plan_digest(PLAN)
    with_store(node, lambda s: approvals.approve(s, digest, actor="user:eva", now=2.0))
    done = run(node, "--top", "5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["records"] == 80 and len(found["worst"]) == 5
    assert {case["row"] for case in found["worst"][:3]} == set(FLIPPED)
    for case in found["worst"]:
        assert case["patient"] == f"p{case['row']:03}"
        assert len(case["parts"]) == 30
        shares = [abs(part["share"]) for part in case["parts"]]
        assert shares == sorted(shares, reverse=True)
    assert found["worst"][0]["loss"] > 5 * found["median"]
    people = run(node, "--top", "2").stdout.splitlines()
    assert people[0].split("\t")[0] == "row" and len(people) == 3
    assert trail(node) == [("cohort", "started"), ("cohort", "shown")] * 2
    assert not (node / "audit").exists()
    for top in ("0", "201"):
        bad = run(node, "--top", top)
        assert bad.returncode == ConfigError.exit_code and "needed 1 to 200" in bad.stderr


def test_shares_sum_to_what_they_explain(node: Path) -> None:
    """Integrated gradients are complete: nothing of the loss is left over."""
    here = inspect_table(node.parent / "here.csv", "here", ("c",), now=0.0)
    worker = kit.tasks(PLAN, here)
    found = kit.outcome(worker, Audit("explain", most=10), node.parent / "model.frame")
    weights = frames.read(node.parent / "model.frame")
    w = np.asarray(weights["0.weight"], np.float64)[0]
    b = float(np.asarray(weights["0.bias"], np.float64)[0])
    table = np.loadtxt(node.parent / "here.csv", delimiter=",", skiprows=1)
    mean = table[:, :30].mean(0)

    def loss(x: "np.ndarray[tuple[int], np.dtype[np.float64]]", y: float) -> float:
        return float(np.logaddexp(0, (1 - 2 * y) * (x @ w + b)))

    assert found["rows"].tolist() == np.argsort(-found["losses"], kind="stable")[:10].tolist()
    for at, row in enumerate(found["rows"]):
        x, y = table[row, :30], table[row, 30]
        assert found["losses"][row] == pytest.approx(loss(x, y), abs=1e-4)
        gap = loss(x, y) - loss(mean, y)
        assert found["shares"][at].sum() == pytest.approx(gap, abs=2e-3 * max(1, abs(gap)))
        np.testing.assert_allclose(found["values"][at], x, atol=1e-5)
    assert bytes(found["names"]).decode().split("\n") == [f"f{i:02}" for i in range(30)]
    assert not len(found["patients"])


async def test_the_console_shows_them_to_a_data_manager_alone(
    node: Path, tmp_path: Path
) -> None:
    roots = Settings(data_roots=(str(node.parent),))
    found = config.load(node)
    async with console(
        tmp_path, console=roots, sandbox=found.sandbox, limits=found.limits
    ) as c:
        cohort = inspect_table(
            node.parent / "cohort.csv", "cohort", ("c",), now=0.0, patient="patient"
        )
        datasets.add(c.here.store, cohort, actor="user:eva", now=1.0)
        digest = plan_digest(PLAN)
        approvals.offer(c.here.store, PLAN, digest, study="s", author="ada", now=1.0)
        approvals.approve(c.here.store, digest, actor="user:eva", now=2.0)
        wanted = {"model": str(node.parent / "model.npz"), "plan": digest, "top": 3}
        path = "/api/datasets/cohort/hard-cases"
        mara = await c.enter("mara", "data_manager")
        cases = await mara.do("POST", path, wanted)
        assert {case["row"] for case in cases["cases"]} == set(FLIPPED)
        assert all(len(case["parts"]) == 8 and case["patient"] for case in cases["cases"])
        assert ("mara", "hard.cases") in c.actions()
        outside = {**wanted, "model": "/etc/passwd"}
        assert "outside of the data roots" in await mara.refused("POST", path, outside, 403)
        rob = await c.enter("rob", "reviewer", "dpo")
        await rob.refused("POST", path, wanted, 403)
