"""`consilia node privacy-report` as a hospital's staff use it: in the sandbox, audited."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: sklearn)")

import privacykit as kit
from consilia.errors import (
    ConfigError,
    Conflict,
    DataError,
    NotFound,
    Refused,
    WorkerError,
)
from consilia.node import approvals, audit, config, datasets, ledger
from consilia.node.config import Limits, NodeConfig, Sandbox
from consilia.node.launcher import Bubblewrap
from consilia.node.store import Store
from consilia.wire import frames
from consilia.wire.v1 import Dp, Plan, plan_digest

QUICK = ("--references", "2", "--canaries", "20", "--rounds", "1")


@contextmanager
def opened(node: Path) -> Iterator[Store]:
    store = Store.open(node)
    try:
        yield store
    finally:
        store.close()


def offer(node: Path, plan: Plan, *, approved: bool) -> str:
    digest = plan_digest(plan)
    with opened(node) as store:
        approvals.offer(store, plan, digest, study="s", author="ada", now=1.0)
        if approved:
            approvals.approve(store, digest, actor="user:eva", now=2.0)
    return digest


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's directory with two datasets, and a model beside it."""
    sandbox: Sandbox = "off" if Bubblewrap().available() else "required"
    directory = tmp_path / "node"
    directory.mkdir(mode=0o700)
    limits = Limits(threads=1)
    config.save(directory, NodeConfig("charite", "https://h:1", sandbox=sandbox, limits=limits))
    here, never = kit.cohort(tmp_path, 120)
    with opened(directory) as store:
        for dataset in (here, never):
            datasets.add(store, dataset, actor="user:eva", now=1.0)
    model = kit.fitted(tmp_path, kit.plan(), here, kit.OVERFITTED, None, 1)
    np.savez(tmp_path / "model.npz", **frames.read(model))  # type: ignore[arg-type]
    return directory


def run(
    node: Path, *words: str, out: str = "out", model: str = "model.npz"
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-m", "consilia.cli.main", "node", "privacy-report"),
            *(str(node.parent / model), "--dataset", "here"),
            *("--out", str(node.parent / out), *words),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "CONSILIA_NODE": str(node)},
    )


def trail(node: Path) -> list[tuple[str, str]]:
    with opened(node) as store:
        lines = [line for line, _ in audit.latest(store, 20)]
    return [(x.subject, x.outcome) for x in lines if x.action == "privacy.report"]


def test_a_leaky_model_is_reported(node: Path) -> None:
    digest = offer(node, kit.plan(), approved=True)
    words = ("--plan", digest[7:19], "--holdout", "never-seen", "--canaries", "120")
    done = run(node, *words, "--references", "4", "--rounds", "1")
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "model.npz: leaky"), (
        done.stderr
    )
    out = node.parent / "out"
    data = json.loads((out / "report.json").read_text())
    assert data["verdict"]["word"] == "leaky" and data["claim"] is None
    assert data["subject"]["site"] == "charite" and data["subject"]["plan_digest"] == digest
    assert [a["members"] for a in data["attacks"]] == [120, 120]
    page = (out / "report.html").read_text()
    assert "Leaky: records can be recognised" in page and "http://" not in page
    assert {p.name: p.stat().st_mode & 0o777 for p in out.iterdir()} == {
        "report.html": 0o600,
        "report.json": 0o600,
    }
    assert trail(node) == [("here", "started"), ("here", "leaky")]
    assert not (node / "audit").exists()
    again = run(node, *words)
    assert again.returncode == ConfigError.exit_code and "is not empty" in again.stderr


def test_a_private_job_is_bounded_by_what_the_ledger_charged(node: Path) -> None:
    digest = offer(node, kit.plan(), approved=True)
    dp = Dp("record", 4.0, 1.0, 0.3, 10)
    with opened(node) as store:
        for number in range(2):
            charge = ledger.charge_for(
                dp, lease=f"job-1.{number}.1.charite", job="job-1", universe="patients",
                dataset="here", study="s", researcher="ada",
            )  # fmt: skip
            ledger.reserve(store, charge, config.load(node).privacy, now=1.0)
    experiment = node.parent / "e.yaml"
    experiment.write_text(
        f"study: s\nplan: {digest}\nrounds: 2\narguments: {{lr: 0.5}}\nprivacy:\n"
        "  dp: {level: record, noise_multiplier: 4.0, clip: 1.0, sampling: 0.3, steps: 10}\n"
    )
    words = ("--plan", digest, "--holdout", "never-seen", "--experiment", str(experiment))
    quick = ("--references", "2", "--canaries", "20")
    done = run(node, *words, *quick, "--job", "job-1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "bounded"
    data = json.loads((node.parent / "out" / "report.json").read_text())
    assert data["claim"]["source"] == "ledger"
    assert data["claim"]["epsilon"] == pytest.approx(data["planted"]["accounted"], rel=0.01)
    other = run(node, *words, *quick, "--job", "job-2", out="other")
    assert other.returncode in (0, 1), other.stderr
    data = json.loads((node.parent / "other" / "report.json").read_text())
    assert data["claim"] is None and data["verdict"]["word"] != "bounded"


def test_a_plan_needs_its_approval(node: Path) -> None:
    digest = offer(node, kit.plan(), approved=False)
    done = run(node, "--plan", digest, *QUICK)
    assert done.returncode == Refused.exit_code and "pending here" in done.stderr
    offer(node, kit.plan(), approved=True)
    with opened(node) as store:
        approvals.revoke(store, digest, actor="user:eva", now=3.0, reason="no")
    done = run(node, "--plan", digest, *QUICK)
    assert done.returncode == Refused.exit_code and "revoked here" in done.stderr
    assert trail(node) == []


def test_a_dataset_has_to_be_as_it_was_registered(node: Path) -> None:
    digest = offer(node, kit.plan(), approved=True)
    words = ("--plan", digest, *QUICK)
    missing = run(node, *words, "--holdout", "nowhere")
    assert missing.returncode == NotFound.exit_code
    with (node.parent / "never-seen.csv").open("a") as stream:
        stream.write("\n")
    changed = run(node, *words, "--holdout", "never-seen")
    assert changed.returncode == DataError.exit_code and "was changed" in changed.stderr
    with opened(node) as store:
        datasets.disable(store, "here", actor="user:eva", now=3.0)
    off = run(node, *words)
    assert off.returncode == Refused.exit_code and "is disabled" in off.stderr


def test_one_report_at_a_time_beside_an_agent(node: Path) -> None:
    digest = offer(node, kit.plan(), approved=True)
    agents = node / "jobs" / "job-1"  # what a running agent has shown to its workers
    agents.mkdir(parents=True)
    (agents / "model").write_text("in use")
    with (node / "audit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(node, "--plan", digest, *QUICK)
        assert done.returncode == Conflict.exit_code and "another privacy" in done.stderr
    silent = kit.plan((", dp=DpParts(loss)", ""))
    failed = run(node, "--plan", offer(node, silent, approved=True), *QUICK)
    assert failed.returncode == WorkerError.exit_code
    assert "does not tell the loss of one record" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (agents / "model").read_text() == "in use"
    assert trail(node) == [("here", "started"), ("here", "failed")]
    assert not (node / "audit").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"CSLFRM1\n and no more"])
@pytest.mark.parametrize("name", ["model.npz", "model.frame"])
def test_what_is_no_model_is_refused(node: Path, name: str, content: bytes) -> None:
    digest = offer(node, kit.plan(), approved=True)
    (node.parent / name).write_bytes(content)
    done = run(node, "--plan", digest, *QUICK, model=name)
    assert done.returncode == ConfigError.exit_code and "is no model" in done.stderr
    assert trail(node) == []
