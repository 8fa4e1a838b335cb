"""A plan of several files from a folder to a job; revoked while it runs; a site that leaves."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, federation, until
from tables import PLAN, write

SITES = {"north": 120, "south": 60}
CONFIG = "study: regression\nplan: {plan}\nrounds: {rounds}\narguments: {{lr: 0.1}}\n"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with federation(tmp_path, write(tmp_path, SITES), "linear") as cluster:
        cluster.cli(
            "study", "create", "regression", "--purpose", "a test", "--tag", "linear",
            "--site", "south", "--site", "north",
        )  # fmt: skip
        cluster.cli("study", "submit", "regression")
        yield cluster


def package(folder: Path) -> Path:
    """Write the linear plan as three files in two folders."""
    source = PLAN.read_text()
    start, step = "np.random.default_rng(seed).normal(size=3).astype(np.float32)", "x.T @ error"
    assert start in source and step in source
    (folder / "tools").mkdir(parents=True)
    (folder / "plan.py").write_text(
        source.replace(start, "begin.weights(seed)")
        .replace(step, "slope(x, error)")
        .replace("import numpy as np\n", "from . import begin\nfrom tools.slope import slope\n")
    )
    (folder / "begin.py").write_text(
        f"import numpy as np\n\ndef weights(seed):\n    return {start}\n"
    )
    (folder / "tools/slope.py").write_text("def slope(x, error):\n    return x.T @ error\n")
    return folder


def start(cluster: Cluster, plan: str, rounds: int) -> str:
    config = cluster.root / "run.yaml"
    config.write_text(CONFIG.format(plan=plan, rounds=rounds))
    until(
        "the hub to hear of the approvals",
        lambda: cluster.json("experiment", "validate", config)["warnings"] == [],
    )
    job: str = cluster.json("experiment", "run", config)["id"]
    return job


def workers(folder: Path) -> list[psutil.Process]:
    """The worker processes of the agent that serves a node's folder."""
    agents = [
        p
        for p in psutil.process_iter(["cmdline"])
        if "serve" in (p.info["cmdline"] or []) and str(folder) in p.info["cmdline"]
    ]
    return [child for agent in agents for child in agent.children(recursive=True)]


def changed_terms(cluster: Cluster, job: str) -> str:
    """Change the study: one site accepts exactly what changed. Return its digest of before."""
    shown = cluster.json("study", "show", "regression")
    north, later = cluster.node("north"), "2099-12-31"
    new = cluster.json("study", "revise", "regression", "--until", later)
    assert new["sites"] == dict.fromkeys(SITES, "invited"), "nobody has agreed to these terms"
    assert new["digest"] != shown["digest"]
    assert new["study"] == {**shown["study"], "until": later}
    refused = cluster.run("resume", job)
    assert refused.returncode and "earlier terms of study 'regression'" in refused.stderr

    def offered() -> list[dict[str, str]]:
        found: list[dict[str, str]] = cluster.json("node", "studies", "--dir", north)
        return [s for s in found if s["state"] == "pending"]

    until("the changed study", lambda: [s["digest"] for s in offered()] == [new["digest"]])
    (change,) = cluster.json("node", "study-diff", "regression", "--dir", north)
    assert change == {"field": "until", "old": "", "new": later}
    unread = cluster.run("node", "accept", "regression", "--dir", north)
    assert (
        unread.returncode and "has changed since it was accepted here: until" in unread.stderr
    )
    cluster.cli("node", "accept", new["digest"], "--dir", north)
    until(
        "the hub to know",
        lambda: cluster.json("study", "show", "regression")["sites"]["north"] == "accepted",
    )
    assert "study.end" in cluster.cli("node", "log", "--last", "50", "--dir", north)
    return str(shown["digest"])


@pytest.mark.slow
def test_a_package_trains_is_revoked_and_a_site_leaves(cluster: Cluster) -> None:
    folder = package(cluster.root / "linear")
    offered = cluster.json("plan", "submit", folder, "--study", "regression")["digest"]
    for site in SITES:
        cluster.decide(site, "regression", offered)
    north, south = cluster.node("north"), cluster.node("south")
    assert "==== tools/slope.py" in cluster.cli("node", "plan-show", offered, "--dir", north)

    job = start(cluster, offered, 5000)
    until("two rounds", lambda: cluster.json("jobs", job)["round"] > 2)
    running = workers(north)
    assert running, "no worker to stop"
    words = ("node", "revoke", offered, "--reason", "doubts", "--dir", north)
    cluster.cli(*words)  # returns once the decision is stored and the agent has been told
    _, left = psutil.wait_procs(running, timeout=30)
    assert not left, "they would have trained for ever"
    cluster.run("stop", job)

    old = changed_terms(cluster, job)
    made = cluster.json("models", "list", "--job", job)[0]["id"]
    assert cluster.json("models", "get", made)["withdrawn"] == []
    cluster.cli("node", "leave", "regression", "--reason", "contract ended", "--dir", south)
    until(
        "the mark",
        lambda: cluster.json("models", "get", made)["withdrawn"] == ["south"],
    )
    assert "south" in cluster.cli("models", "list", "--job", job).split("\n")[1]
    assert job in "".join(p.name for p in (south / "log/jobs").iterdir())
    assert len(list((south / "studykeys").iterdir())) == 1, "updates left here unsealed"
    done = cluster.json("node", "purge", old, "--dir", south)
    assert list((south / "studykeys").iterdir()) == []
    assert done["jobs"] == [job] and done["files"] >= 1
    assert list((south / "log/jobs").iterdir()) == [] == list((south / "cache").glob("*.frame"))
    trail = cluster.cli("node", "log", "--last", "50", "--dir", south)
    assert "study.leave" in trail and "study.purge" in trail
    assert trail.index("study.key") < trail.index("study.purge"), "the key goes first"
