"""Every command against a real hub and real nodes, as people type them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bench.local import Programs
from cluster import Cluster, environment, federation, until
from tables import PLAN, TRUTH, write

from consilia import errors

SITES = {"north": 120, "south": 60}
CONFIG = """\
study: regression
plan: linear.py
rounds: 3
arguments: {lr: 0.1}
strategy: {name: fedavg}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two sites that have accepted the study and approved the plan."""
    root = tmp_path_factory.mktemp("cluster")
    with federation(root, write(root, SITES), "linear") as cluster:
        (root / "linear.py").write_text(PLAN.read_text())
        cluster.cli(
            "study", "create", "regression", "--purpose", "a test", "--tag", "linear",
            "--site", "south", "--site", "north",
        )  # fmt: skip
        assert cluster.json("study", "show", "regression")["state"] == "draft"
        cluster.cli("study", "submit", "regression")
        digest = cluster.json("plan", "submit", "linear.py", "--study", "regression")["digest"]
        for site in SITES:
            cluster.decide(site, "regression", digest)
        yield cluster


def _digest(cluster: Cluster) -> str:
    (plan,) = cluster.json("plan", "list", "--study", "regression")
    digest: str = plan["digest"]
    return digest


# ---- a job from beginning to end -------------------------------------------------------------


def test_an_experiment_runs_and_its_model_is_downloaded(cluster: Cluster) -> None:
    config = cluster.root / "first.yaml"
    config.write_text(CONFIG)
    until(
        "the hub to hear of the approvals",
        lambda: cluster.json("experiment", "validate", config)["warnings"] == [],
    )
    done = cluster.run("experiment", "run", config, "--follow")
    assert done.returncode == 0, done.stderr
    assert "round 3/3: loss" in done.stderr
    job = done.stdout.split()[1].rstrip(":")
    assert done.stdout == f"job {job}: done\n"

    view = cluster.json("jobs", job)
    assert view["experiment"]["plan"] == _digest(cluster)
    assert [r["round"] for r in view["rounds"] if r["round"]] == [1, 2, 3]
    assert job in cluster.cli("jobs")
    assert "fedavg" in cluster.cli("jobs", job)

    assert len(cluster.json("models", "list", "--job", job)) == 4
    lineage = cluster.json("models", "get", f"{job}.3")
    assert (lineage["parent"], lineage["records"]) == (f"{job}.2", 180)
    cluster.cli("models", "download", f"{job}.3", cluster.root / "model.npz")
    np.testing.assert_allclose(np.load(cluster.root / "model.npz")["w"], TRUTH, atol=0.5)
    cluster.cli("models", "download", f"{job}.3", cluster.root / "model.frame")
    assert (cluster.root / "model.frame").stat().st_size == lineage["bytes"]


def test_a_job_is_stopped_and_resumed_with_more_rounds(cluster: Cluster) -> None:
    config = cluster.root / "long.yaml"
    config.write_text(CONFIG.replace("rounds: 3", "rounds: 2000"))
    job = cluster.json("experiment", "run", config)["id"]
    until("a round to close", lambda: cluster.json("jobs", job)["round"] > 1)
    assert cluster.json("stop", job)["state"] == "stopped"
    reached = cluster.json("jobs", job)["round"]
    assert cluster.run("stop", job).returncode == errors.Conflict.exit_code
    assert (
        cluster.run("resume", job, "--rounds", "5").returncode == errors.ConfigError.exit_code
    )
    assert cluster.json("resume", job)["state"] != "stopped"
    until("the job to go on", lambda: cluster.json("jobs", job)["round"] > reached)
    cluster.cli("stop", job)


def test_a_misspelt_key_names_the_line_and_the_nearest(cluster: Cluster) -> None:
    config = cluster.root / "wrong.yaml"
    config.write_text(CONFIG.replace("rounds", "roundz"))
    done = cluster.run("experiment", "run", config)
    assert done.returncode == errors.ConfigError.exit_code
    assert "line 3" in done.stderr
    assert "did you mean 'rounds'" in done.stderr


def test_what_keeps_an_experiment_from_starting_is_listed(cluster: Cluster) -> None:
    config = cluster.root / "refused.yaml"
    config.write_text(CONFIG.replace("rounds: 3", "rounds: 0"))
    done = cluster.run("experiment", "validate", config)
    assert done.returncode == errors.ConfigError.exit_code
    assert "rounds" in done.stdout
    assert cluster.run("experiment", "run", config).returncode == errors.ConfigError.exit_code


# ---- plans and studies -----------------------------------------------------------------------


def test_a_plan_is_named_by_eight_digits(cluster: Cluster) -> None:
    digits = _digest(cluster).removeprefix("sha256:")
    assert "def train" in cluster.cli("plan", "show", digits[:8])
    assert cluster.run("plan", "show", digits[:7]).returncode == errors.ConfigError.exit_code
    assert cluster.run("plan", "show", "0" * 12).returncode == errors.NotFound.exit_code
    node = cluster.node("north")
    assert "def train" in cluster.cli("node", "plans", digits[:8], "--dir", node)


def test_a_changed_plan_shows_its_difference(cluster: Cluster) -> None:
    changed = cluster.root / "changed.py"
    changed.write_text(PLAN.read_text().replace("0.05", "0.06"))
    text = cluster.cli("plan", "diff", _digest(cluster)[:20], changed)
    assert '+    arguments={"lr": 0.06' in text
    same = cluster.json("plan", "diff", _digest(cluster)[:20], "linear.py")
    assert same["diff"] == ""
    assert same["old"] == same["new"]


def test_studies_say_where_they_stand(cluster: Cluster) -> None:
    view = cluster.json("study", "show", "regression")
    assert view["sites"] == {"north": "accepted", "south": "accepted"}
    assert "regression" in cluster.cli("study", "list")
    assert cluster.run("study", "submit", "regression").returncode == errors.Conflict.exit_code
    assert cluster.run("study", "show", "nothing").returncode == errors.NotFound.exit_code
    cluster.cli(
        "study", "create", "short", "--purpose", "x", "--tag", "linear", "--site", "north"
    )
    cluster.cli("study", "submit", "short")
    assert cluster.json("study", "close", "short")["state"] == "closed"


# ---- at the node -----------------------------------------------------------------------------


def test_a_dataset_goes_through_its_life(cluster: Cluster) -> None:
    node = cluster.node("north")
    table = cluster.root / "second.csv"
    table.write_text("a,b\n1,2\n3,4\n")
    words = ("--name", "second", "--tag", "other", "--dir", node)
    added = cluster.json("dataset", "add", table, *words)
    assert (added["dataset"]["records"], added["enabled"]) == (2, True)
    again = cluster.run("dataset", "add", table, *words)
    assert again.returncode == errors.Conflict.exit_code
    assert "a: int64" in cluster.cli("dataset", "show", "second", "--dir", node)
    table.write_text("a,b\n1,2\n3,4\n5,6\n")
    edited = cluster.json(
        "dataset", "edit", "second", "--measure", "--tag", "third", "--dir", node
    )
    assert (edited["dataset"]["records"], edited["dataset"]["tags"]) == (3, ["third"])
    assert not cluster.json("dataset", "disable", "second", "--dir", node)["enabled"]
    assert cluster.json("dataset", "enable", "second", "--dir", node)["enabled"]
    assert "second" in cluster.cli("dataset", "list", "--dir", node)
    cluster.cli("dataset", "remove", "second", "--dir", node)
    assert table.exists()
    gone = cluster.run("dataset", "show", "second", "--dir", node)
    assert gone.returncode == errors.NotFound.exit_code


def test_an_approval_is_revoked_rejected_and_given_again(cluster: Cluster) -> None:
    node, digits = cluster.node("south"), _digest(cluster).removeprefix("sha256:")[:12]

    def do(*words: str) -> str:
        record = cluster.json("node", *words, "--dir", node)
        state: str = record["state"]
        return state

    assert do("revoke", digits, "--reason", "a test") == "revoked"
    assert do("reject", digits, "--reason", "a test") == "rejected"
    twice = cluster.run("node", "revoke", digits, "--dir", node)
    assert twice.returncode == errors.Conflict.exit_code
    past = cluster.run("node", "approve", digits, "--until", "2001-01-01", "--dir", node)
    assert past.returncode == errors.ConfigError.exit_code
    assert (
        do("approve", digits, "--allow", "lr=0.001..0.2", "--until", "2999-12-31") == "approved"
    )
    for wrong in ("lr=0.2..0.1", "lr=a..b", "nothing=1", "lr"):
        done = cluster.run("node", "approve", digits, "--allow", wrong, "--dir", node)
        assert done.returncode == errors.ConfigError.exit_code, wrong


def test_a_study_is_left_and_accepted_again(cluster: Cluster) -> None:
    node = cluster.node("south")
    assert cluster.json("node", "decline", "regression", "--dir", node)["state"] == "left"
    assert cluster.json("node", "accept", "regression", "--dir", node)["state"] == "accepted"
    assert "a test" in cluster.cli("node", "studies", "regression", "--dir", node)
    assert "regression" in cluster.cli("node", "studies", "--dir", node)


def test_the_node_tells_how_it_is_and_keeps_its_trail(cluster: Cluster) -> None:
    node = cluster.node("north")
    status = cluster.json("node", "status", "--dir", node)
    assert (status["site"], status["running"], status["connected"]) == ("north", True, True)
    found = json.loads(cluster.run("node", "doctor", "--json", "--dir", node).stdout)
    assert {f["check"]: f["ok"] for f in found}["configuration"]
    actions = [
        line["action"] for line in cluster.json("node", "log", "--dir", node, "--last", 999)
    ]
    assert {"node.join", "dataset.add", "study.accept", "plan.approve"} <= set(actions)
    exported = cluster.cli("node", "log", "--export", "csv", "--dir", node).splitlines()
    assert exported[0].startswith("seq,at,actor")
    assert len(exported) > len(actions)
    assert cluster.json("audit", "verify", "--node", node)["intact"]


# ---- at the hub ------------------------------------------------------------------------------


def test_people_have_the_rights_of_their_role(cluster: Cluster) -> None:
    hub = cluster.hub
    refused = cluster.run("audit", "verify")  # a researcher may not
    assert refused.returncode == errors.Refused.exit_code
    made = cluster.json("hub", "token", "create", "eve", "--role", "auditor", "--dir", hub)
    researcher = cluster.env["CONSILIA_TOKEN"]
    cluster.env["CONSILIA_TOKEN"] = made["secret"]
    try:
        assert cluster.json("audit", "verify")["intact"]
        assert cluster.json("audit", "list", "--limit", 1)[0]["seq"] == 1
        assert (
            cluster.run("study", "close", "regression").returncode == errors.Refused.exit_code
        )
        cluster.cli("hub", "token", "revoke", made["id"], "--dir", hub)
        assert cluster.run("audit", "verify").returncode == errors.AuthError.exit_code
    finally:
        cluster.env["CONSILIA_TOKEN"] = researcher
    assert "eve" not in cluster.cli("hub", "token", "list", "--dir", hub)
    assert cluster.json("audit", "verify", "--hub", hub)["intact"]
    bad = cluster.run("hub", "token", "create", "x", "--role", "king", "--dir", hub)
    assert bad.returncode == errors.ConfigError.exit_code


def test_login_is_remembered_for_its_owner_only(cluster: Cluster, tmp_path: Path) -> None:
    env = cluster.env
    words = ("login", env["CONSILIA_URL"], "--ca", env["CONSILIA_CA"])
    token = env["CONSILIA_TOKEN"]
    cluster.env = environment(tmp_path)
    try:
        assert cluster.run("jobs").returncode == errors.ConfigError.exit_code
        assert cluster.run(*words, stdin="cst_wrong").returncode == errors.AuthError.exit_code
        assert "ada (researcher)" in cluster.cli(*words, stdin=token + "\n")
        (profile,) = tmp_path.rglob("profile.json")
        assert profile.stat().st_mode & 0o077 == 0
        cluster.cli("jobs")
    finally:
        cluster.env = env


def test_a_site_is_revoked_and_invited_again(cluster: Cluster, tmp_path: Path) -> None:
    invited = cluster.run("hub", "invite", "west", "--dir", cluster.hub)
    token, node = invited.stdout, tmp_path / "west"
    joined = cluster.run("node", "join", "-", "--dir", node, stdin=token)
    assert joined.returncode == 0, joined.stderr
    fingerprint = invited.stderr.split()[-1]  # to compare by telephone: both sides are shown it
    assert fingerprint.startswith("sha256:") and fingerprint in joined.stderr
    reused = cluster.run("node", "join", "-", "--dir", tmp_path / "again", stdin=token)
    assert reused.returncode == errors.AuthError.exit_code
    assert "consilia hub invite" in reused.stderr
    taken = cluster.run("node", "join", "-", "--dir", node, stdin=token)
    assert taken.returncode == errors.Conflict.exit_code
    assert cluster.json("hub", "revoke", "west", "--dir", cluster.hub)["state"] == "revoked"
    states = {s["name"]: s["state"] for s in cluster.json("hub", "sites", "--dir", cluster.hub)}
    assert states == {"north": "enrolled", "south": "enrolled", "west": "revoked"}


def test_a_hub_that_does_not_run_is_managed_too(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        hub = cluster.hub
        cluster.cli("hub", "init", hub)
        assert cluster.run("hub", "init", hub).returncode == errors.Conflict.exit_code
        assert cluster.cli("hub", "invite", "north", "--dir", hub).startswith(
            "consilia-join-1."
        )
        assert cluster.json("hub", "sites", "--dir", hub)[0]["state"] == "invited"
        made = cluster.json("hub", "token", "create", "ada", "--role", "auditor", "--dir", hub)
        assert made["id"] in cluster.cli("hub", "token", "list", "--dir", hub)
        cluster.cli("hub", "token", "revoke", made["id"], "--dir", hub)
        assert made["id"] not in cluster.cli("hub", "token", "list", "--dir", hub)
        assert cluster.json("hub", "revoke", "north", "--dir", hub)["state"] == "revoked"
        # the first operator's invitation is a line, too
        assert cluster.json("audit", "verify", "--hub", hub)["lines"] == 6


SLOW_TO_IMPORT = frozenset(
    ["torch", "sklearn", "scipy", "pandas", "matplotlib", "litestar", "aiohttp"]
)


def test_commands_without_a_network_load_little(cluster: Cluster) -> None:
    """How quick they are is measured: `./run bench agent`."""
    node, hub = cluster.node("north"), cluster.hub
    for words in (
        ("node", "plans", "--dir", node),
        ("node", "studies", "--dir", node),
        ("node", "log", "--dir", node),
        ("dataset", "list", "--dir", node),
        ("audit", "verify", "--node", node),
        ("audit", "verify", "--hub", hub),
        ("plan", "diff", "linear.py", "linear.py"),
    ):
        # a process of its own, which has imported nothing yet
        done = Programs.run(cluster, *words, more={"PYTHONPROFILEIMPORTTIME": "1"})
        assert done.returncode == 0, done.stderr
        names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
        assert "consilia.errors" in names, "the interpreter told no imports"
        assert not SLOW_TO_IMPORT.intersection(names), words
