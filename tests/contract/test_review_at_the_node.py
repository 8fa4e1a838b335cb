"""A plan of several files: from a folder to its review, a dry run, a round; policy in force."""

import re
import shlex
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner
from typer.testing import Result as Outcome

from consilia.cli.main import app
from consilia.core.weights import TensorSpec
from consilia.data.loading import blocks
from consilia.errors import ConfigError, Conflict, NotFound, Refused
from consilia.files import write_whole
from consilia.node import (
    approvals,
    audit,
    datasets,
    dryrun,
    identity,
    loading,
    policyhistory,
    studies,
)
from consilia.node.config import Limits, NodeConfig, Sandbox, save
from consilia.node.launcher import Bubblewrap, PlainProcess
from consilia.node.runner import Runner
from consilia.node.standing import policy_of
from consilia.node.store import Store
from consilia.sdk.source import read_plan
from consilia.wire.v1 import Declined, Plan, Result, Study, plan_digest
from nodekit import SITE, SOURCE, base_model, lease, make_plan, node, until, write_table

SOURCES = Path(__file__).parents[2] / "src"
LOSSES = """
from .deep.step import STEP

def moved(w, lr):
    return w + lr * STEP
"""
PACKAGE = {
    "plan.py": SOURCE.replace("import numpy as np", "import numpy as np\nfrom . import sizes")
    .replace("import time\n", "import time\nfrom tools.losses import moved\n")
    .replace("np.zeros(1000, np.float32)", "np.zeros(sizes.WIDTH, np.float32)")
    .replace('weights["w"] + np.float32(args["lr"])', 'moved(weights["w"], args["lr"])'),
    "sizes.py": "WIDTH = 1000\n",
    "tools/losses.py": LOSSES,
    "tools/deep/__init__.py": "",
    "tools/deep/step.py": "import numpy as np\nfrom ...sizes import WIDTH\n"
    "STEP = np.float32(WIDTH / 1000)\n",
}


def folder_of(files: dict[str, str], folder: Path) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def site(
    folder: Path, plan: Plan, sandbox: Sandbox, dataset: str = "cohort"
) -> tuple[Store, str]:
    """Make a node's directory with a dataset whose file is gone, and a plan on offer."""
    folder.mkdir(mode=0o700)
    save(folder, NodeConfig(SITE, "https://hub:8444", sandbox=sandbox))
    store = Store.open(folder)
    table = write_table(folder / "t.csv", 120, dataset)
    datasets.add(store, table, actor="m", now=1.0)
    (folder / "t.csv").unlink()  # a dry run reads no record
    approvals.offer(store, plan, plan_digest(plan), study="s", author="ada", now=1.0)
    return store, plan_digest(plan)


def tried(folder: Path, plan: Plan, sandbox: Sandbox, records: int = 50) -> dryrun.Tried:
    store, digest = site(folder, plan, sandbox)
    try:
        found = dryrun.try_plan(
            store,
            folder,
            digest[7:19],
            "cohort",
            records=records,
            actor="anna",
            now=time.time,
            tell=lambda _: None,
            unprotected=sandbox == "off",
        )
        said = [line.outcome for line, _ in audit.every(store) if "dry" in line.action]
        assert said == ["started", found.cause or "ran"]
        assert approvals.get(store, digest, approvals.day(1.0)).state == "pending"
    finally:
        store.close()
    assert not (folder / "dry-run").exists(), "invented records are left behind"
    return found


def test_a_package_is_tried_on_invented_records_behind_the_walls(tmp_path: Path) -> None:
    walls = Bubblewrap().available() is None
    plan = read_plan(folder_of(PACKAGE, tmp_path / "heart"))
    found = tried(tmp_path / "node", plan, "required" if walls else "off", records=60)
    assert found.ran and found.error == "", found.error
    assert [s.what for s in found.steps] == ["init", "one round"]
    assert found.tensors == (
        TensorSpec("w", "float32", (1000,)),
        TensorSpec("frozen", "float32", (500,)),
    )
    assert found.records == 60 and found.metrics == {"loss": 0.5}
    assert 10 << 20 < found.memory < 1 << 30


def test_a_dry_run_loads_as_a_task_of_the_study_would(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    store, digest = site(folder, make_plan(), "off")
    write_table(folder / "t.csv", 120)
    given = {"actor": "anna", "now": time.time, "tell": print, "unprotected": True}

    def tried_with(where: str, study: str) -> int:
        block = f"blocks: [{{block: filter, where: '{where}'}}]"
        plan = blocks.from_yaml(f"name: l-{study}\n{block}", "l.yaml")
        loading.create(store, plan, actor="m", now=1.0)
        loading.attach(store, f"l-{study}", "cohort", actor="m", now=1.0, study=study)
        found = dryrun.try_plan(store, folder, digest, "cohort", records=60, **given)  # type: ignore[arg-type]
        assert found.ran, found.error
        return found.records

    assert tried_with("x >= 0", "another") == 60
    assert 0 < tried_with("x > 1", "s") < 60
    store.close()


def test_a_failure_is_told_with_its_traceback_in_harmless_letters(tmp_path: Path) -> None:
    plan = make_plan(("w = weights", "raise ValueError('\x1b[2J oops')\n    w = weights"))
    found = tried(tmp_path / "node", plan, "off")
    assert found.cause == "plan-error" and [s.what for s in found.steps] == ["init"]
    assert 'File "line/plan.py"' in found.error and "oops" in found.error
    assert all(c.isprintable() or c == "\n" for c in found.error)


def test_what_cannot_be_tried_is_said(tmp_path: Path) -> None:
    store, digest = site(tmp_path / "node", make_plan(), "off")
    given = {"actor": "m", "now": time.time, "tell": print}
    with pytest.raises(Refused, match="nobody has approved this one"):
        dryrun.try_plan(store, tmp_path / "node", digest, "cohort", **given)  # type: ignore[arg-type]
    given["unprotected"] = True
    for dataset, records, error in (
        ("none", 50, NotFound),
        ("cohort", 9, ConfigError),
        ("cohort", 10**6, ConfigError),
    ):
        with pytest.raises(error):
            dryrun.try_plan(store, tmp_path / "node", digest, dataset, records=records, **given)  # type: ignore[arg-type]
    store.close()


async def test_a_package_from_a_folder_trains_after_its_approval(tmp_path: Path) -> None:
    plan = read_plan(folder_of(PACKAGE, tmp_path / "heart"))
    async with node(tmp_path) as n, n.running():
        n.accept(plan)
        n.hub.assign(task := lease(n.hub, plan, model=n.hub.publish(base_model())))
        await until(lambda: n.hub.settled(task.id))
        assert isinstance(n.hub.settled(task.id), Result), n.details("task.fail")


async def test_a_warm_worker_ends_with_the_approval_it_was_started_under(
    tmp_path: Path,
) -> None:
    """Between two rounds no task runs, but the plan's code and the data are in a process."""
    plan, runner = make_plan(), Runner(PlainProcess(), tmp_path, Limits(threads=1))
    async with node(tmp_path, runner) as n, n.running():
        n.accept(plan)
        n.hub.assign(task := lease(n.hub, plan, model=n.hub.publish(base_model())))
        await until(lambda: n.hub.settled(task.id) and not n.agent.status().tasks)
        (pid,) = runner.workers
        approvals.revoke(n.store, plan_digest(plan), actor="mara", now=n.now(), reason="doubts")
        begun = time.monotonic()
        n.agent.changed()
        await until(lambda: not Path(f"/proc/{pid}").exists())
        assert time.monotonic() - begun < 40  # a second where nothing else runs


# ---- the policy in force ---------------------------------------------------------------------


async def test_an_applied_policy_stops_what_it_forbids_at_once(tmp_path: Path) -> None:
    plan = make_plan()
    async with node(tmp_path) as n, n.running():
        n.accept(plan)
        save(n.directory, n.config)
        model = n.hub.publish(base_model())
        n.hub.assign(task := lease(n.hub, plan, model=model, arguments={"wait": 60.0}))
        await until(lambda: n.runs.tasks)
        text = (n.directory / "node.yaml").read_text() + "dp_required: true\n"
        begun = time.monotonic()
        policyhistory.apply(
            n.store,
            n.directory,
            text,
            "new",
            lambda c: policy_of(n.store, c),
            actor="mara",
            now=n.now(),
        )
        n.agent.changed()
        await until(lambda: n.hub.settled(task.id))
        assert time.monotonic() - begun < 40  # of 60
        assert n.hub.settled(task.id) == Declined(task.id)
        assert "differential privacy" in n.details("task.stop")[0]
        n.hub.assign(msgspec.structs.replace(task, id="again"))
        await until(lambda: n.hub.settled("again"))
        assert n.runs.tasks == ["job-1.1"], "the next task began under the old policy"


async def test_what_was_asked_is_kept_for_the_next_change(tmp_path: Path) -> None:
    plan = make_plan()
    async with node(tmp_path) as n:
        save(n.directory, n.config)
        async with n.running():
            n.accept(plan)
            model = n.hub.publish(base_model())
            for number in range(3):
                n.hub.assign(task := lease(n.hub, plan, model=model, round=number + 1))
                await until(partial(n.hub.settled, task.id))
        strict = (n.directory / "node.yaml").read_text() + "permitted_studies: [lungs]\n"
        found = policyhistory.propose(
            n.store, n.directory, strict, "new", lambda c: policy_of(n.store, c)
        )
        assert found.keys == ("permitted_studies",) and found.asked == 3
        assert [(d.study, d.count, d.allowed) for d in found.differs] == [("hearts", 3, False)]


async def test_hours_close_on_a_task_that_runs(tmp_path: Path) -> None:
    """The clock passes the window's end: the task stops, and the hub may hear why."""
    start = time.mktime((2026, 11, 20, 6, 59, 59, 0, 0, -1))  # Friday
    begun = time.monotonic()
    plan = make_plan()
    async with node(tmp_path, hours=["mon-fri 05:00-07:00"]) as n:
        n.now = lambda: start + time.monotonic() - begun
        async with n.running():
            n.accept(plan)
            model = n.hub.publish(base_model())
            n.hub.assign(task := lease(n.hub, plan, model=model, arguments={"wait": 60.0}))
            await until(lambda: n.hub.settled(task.id))
            assert n.runs.tasks == ["job-1.1"], "it began within the hours"
            assert "only mon-fri 05:00-07:00" in n.details("task.stop")[0]


# ---- on the command line ---------------------------------------------------------------------


def consilia(folder: Path, *words: str) -> Outcome:
    return CliRunner().invoke(app, ["node", *words], env={"CONSILIA_NODE": str(folder)})


def test_the_how_to_works_as_written(tmp_path: Path) -> None:
    """Every command of docs/how-to/review-a-plan.md, in its order, at one node."""
    page = (SOURCES.parent / "docs/how-to/review-a-plan.md").read_text()
    lines = re.findall(r"^\$ consilia (.*)$", page, re.MULTILINE)
    assert len(lines) >= 18
    where, proposed = tmp_path / "node", tmp_path / "proposed.yaml"
    walls: Sandbox = "required" if Bubblewrap().available() is None else "off"
    store, digest = site(where, make_plan(), walls, dataset="heart")
    studies.offer(store, Study("heart-failure", "to learn", (SITE, "leuven"), ("cohort",)), 1.0)
    store.close()
    keys_in(where / "secrets")
    proposed.write_text((where / "node.yaml").read_text().replace("}", ", min_records: 200}"))
    for line in lines:
        here = f"{line} --unprotected" if walls == "off" and "dry-run" in line else line
        here = here.replace("3f9a1c2b", digest[7:19]).replace("proposed.yaml", str(proposed))
        done = CliRunner().invoke(app, shlex.split(here), env={"CONSILIA_NODE": str(where)})
        assert done.exit_code == 0, (line, done.output, done.exception)
    assert "min_records: 200" in (where / "node.yaml").read_text()


def keys_in(secrets: Path) -> None:
    """Make what joining a hub would have left: keys, and a certificate in the site's name."""
    keys, name = identity.new_keys(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SITE)])
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    made = x509.CertificateBuilder(name, name, keys.tls.public_key(), 1)
    made = made.not_valid_before(begin)
    pem = made.not_valid_after(begin + timedelta(days=9000)).sign(keys.tls, SHA256())
    secrets.mkdir(mode=0o700)
    raw = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for file, body in (
        ("tls.key", keys.tls.private_bytes(*raw)),
        ("signing.key", keys.signing.private_bytes(*raw)),
        ("tls.pem", pem.public_bytes(Encoding.PEM)),
        ("ca.pem", pem.public_bytes(Encoding.PEM)),
        ("hub.pub", bytes(32).hex().encode()),
    ):
        write_whole(secrets / file, body)


def test_review_from_the_command_line(tmp_path: Path) -> None:
    store, digest = site(
        tmp_path / "node", read_plan(folder_of(PACKAGE, tmp_path / "p")), "off"
    )
    store.close()
    shown = consilia(tmp_path / "node", "plan-show", digest[:19]).stdout
    assert "==== tools/deep/step.py" in shown and "note, import" in shown
    proposed = tmp_path / "new.yaml"
    head = f"site: {SITE}\nhub: https://hub:8444\nsandbox: 'off'\n"
    proposed.write_text(head + "reviewers_needed: 2\n")
    applied = consilia(tmp_path / "node", "policy", "apply", str(proposed))
    assert "reviewers_needed" in applied.stdout
    half = consilia(tmp_path / "node", "approve", digest[:19])
    assert "1 of 2 reviewers have approved it" in half.stdout, half.exception
    twice = consilia(tmp_path / "node", "approve", digest[:19])
    assert isinstance(twice.exception, Conflict)
    assert "somebody else has to read it too" in str(twice.exception)
