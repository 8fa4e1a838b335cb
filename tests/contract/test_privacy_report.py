"""`consilia node privacy-report` as a hospital's staff use it: in the sandbox, audited."""

import fcntl
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: sklearn)")

import privacykit as kit
from consilia.data.loading import blocks
from consilia.errors import (
    ConfigError,
    Conflict,
    DataError,
    NotFound,
    Refused,
    WorkerError,
)
from consilia.node import approvals, audit, config, datasets, ledger, loading
from consilia.node.config import Limits, NodeConfig, Sandbox
from consilia.node.launcher import Bubblewrap
from consilia.node.store import Store
from consilia.wire import auditrequest, frames
from consilia.wire.auditrequest import FORMAT, AuditRequest
from consilia.wire.people import Experiment
from consilia.wire.v1 import Arguments, Dp, Plan, plan_digest

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
    node: Path,
    *words: str,
    out: str = "out",
    model: str = "model.npz",
    command: tuple[str, str] = ("node", "privacy-report"),
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-m", "consilia.cli.main", *command),
            *(str(node.parent / model), "--dataset", "here"),
            *("--out", str(node.parent / out), *words),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=480,
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


def asked_about(
    node: Path, digest: str, named: str = "", arguments: Arguments = kit.OVERFITTED
) -> AuditRequest:
    """Write node/../asked.zip about the model, as a researcher's request; `named` another's."""
    frame = node.parent / "model.frame"
    experiment = Experiment("s", digest, 7, arguments=arguments)
    found = named or frames.read_header(frame).digest
    about = AuditRequest(FORMAT, "https://h", "ada", "job-1", "job-1.1", found, 1, experiment)
    auditrequest.write(node.parent / "asked.zip", about, frame)
    return about


def test_a_researchers_request_is_examined_and_printed(node: Path) -> None:
    pytest.importorskip("fpdf", reason="fpdf2 is not installed (extra: report)")
    digest = offer(node, kit.plan(), approved=True)
    about = asked_about(node, digest)
    words = ("--holdout", "never-seen", "--pdf", "--references", "2", "--canaries", "120")
    done = run(node, *words, model="asked.zip", command=("privacy", "audit"))
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "job-1.1: leaky"), done.stderr
    assert f"ada asks about job-1.1, trained by plan {digest}" in done.stderr
    data = json.loads((node.parent / "out" / "report.json").read_text())
    assert data["subject"]["model_digest"] == about.digest and data["subject"]["rounds"] == 1
    assert data["claim"] is None  # job-1 was charged nothing here
    pdf = node.parent / "out" / "report.pdf"
    assert pdf.read_bytes()[:5] == b"%PDF-" and pdf.stat().st_mode & 0o777 == 0o600


def test_a_request_sets_only_arguments_that_a_job_may_set(node: Path) -> None:
    digest = offer(node, kit.plan(), approved=True)
    asked_about(node, digest, arguments={"epochs": 10**9})
    done = run(node, *QUICK, model="asked.zip", command=("privacy", "audit"))
    assert done.returncode == Refused.exit_code
    assert "'epochs' = 1000000000: this site lets it keep its default" in done.stderr
    assert trail(node) == []


def test_a_request_for_another_model_is_refused(node: Path) -> None:
    digest = offer(node, kit.plan(), approved=True)
    asked_about(node, digest, named="b3:" + "0" * 64)
    done = run(node, *QUICK, model="asked.zip", command=("privacy", "audit"))
    assert done.returncode == ConfigError.exit_code
    assert "is not the model that was named" in done.stderr
    assert trail(node) == [] and not (node / "audit").exists()


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({}, "it holds nothing"),
        ({"request.json": b"{}", "model.frame": b"", "x": b""}, "it holds"),
        ({"request.json": b"{", "model.frame": b""}, "is no request"),
        ({"request.json": b'{"hubb": 1}', "model.frame": b""}, "did you mean 'hub'"),
        ({"request.json": b" " * (1 << 21), "model.frame": b""}, "has 2097152 bytes"),
    ],
)
def test_what_is_no_request_is_refused(
    tmp_path: Path, entries: dict[str, bytes], says: str
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(ConfigError, match=says):
        auditrequest.read(tmp_path / "a.zip", tmp_path / "frame")


def test_a_compressed_request_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("request.json", b"{}")
        archive.writestr("model.frame", bytes(1 << 24))
    with pytest.raises(ConfigError, match="it is compressed"):
        auditrequest.read(tmp_path / "a.zip", tmp_path / "frame")
    assert not (tmp_path / "frame").exists()


def test_a_model_that_unpacks_to_too_much_is_not_unpacked(node: Path) -> None:
    digest = offer(node, kit.plan(), approved=True)
    with zipfile.ZipFile(node.parent / "bomb.npz", "w") as archive:
        archive.writestr("w.npy", b"")
        archive.filelist[0].file_size = 1 << 40  # as the archive's index then says
    done = run(node, "--plan", digest, *QUICK, model="bomb.npz")
    assert done.returncode == ConfigError.exit_code and "unpacks to 10995" in done.stderr
    assert not (node / "audit").exists()


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


def test_records_that_a_task_would_not_get_are_not_examined(node: Path) -> None:
    """Left out by the study's data loading plan, or because the patient opted out."""
    digest = offer(node, kit.plan(), approved=True)
    asked_about(node, digest, arguments={})
    with opened(node) as store:
        few = "name: few\nblocks:\n- {block: filter, where: f00 >= 1.2}\n"
        loading.create(store, blocks.from_yaml(few, "few.yaml"), actor="user:eva", now=3.0)
        _, facts = loading.attach(store, "few", "here", study="s", actor="user:eva", now=3.0)
    assert 0 < facts.records < 20
    done = run(node, *QUICK, "--split", "0.5", model="asked.zip", command=("privacy", "audit"))
    assert done.returncode == ConfigError.exit_code
    half = round(facts.records * 0.5)
    assert f"{facts.records - half} records to recognise and {half} held out" in done.stderr


def test_one_report_at_a_time_beside_an_agent(node: Path) -> None:
    digest = offer(node, kit.plan(), approved=True)
    agents = node / "jobs" / "job-1"  # what a running agent has shown to its workers
    agents.mkdir(parents=True)
    (agents / "model").write_text("in use")
    with (node / "audit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(node, "--plan", digest, *QUICK)
        assert (
            done.returncode == Conflict.exit_code
            and "another model is being examined" in done.stderr
        )
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
