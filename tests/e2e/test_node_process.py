"""A node as a site's administrator meets it: commands and a running agent, real processes."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import Cluster, online, until


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "cohort.csv"
    path.write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(120)))
    return path


def findings(cluster: Cluster, node: Path) -> dict[str, bool]:
    done = cluster.run("node", "doctor", "--dir", node, "--json")
    return {f["check"]: f["ok"] for f in json.loads(done.stdout)}


def test_join_serve_and_come_back(tmp_path: Path, table: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_hub()
        node = cluster.node("alpha")
        cluster.join("alpha", table, "cohort")
        until("the agent to be connected", lambda: status(cluster, node)["connected"])

        # Everything secret is private, and nothing is overwritten.
        assert node.stat().st_mode & 0o077 == 0
        private = [p for p in (node / "secrets").iterdir() if p.stat().st_mode & 0o077]
        assert private == [] and (node / "control.sock").stat().st_mode & 0o077 == 0
        token = cluster.cli("hub", "invite", "beta", "--dir", cluster.hub)
        again = cluster.run("node", "join", "-", "--dir", node, stdin=token)
        assert again.returncode == 6 and "already" in again.stderr
        second = cluster.run("node", "serve", "--dir", node)
        assert second.returncode == 6 and "already" in second.stderr

        # A token works once, and only whole.
        elsewhere = tmp_path / "elsewhere"
        cut = cluster.run("node", "join", "-", "--dir", elsewhere, stdin=token[:-20])
        assert cut.returncode == 2 and token[20:60] not in cut.stderr
        cluster.cli("node", "join", "-", "--dir", elsewhere, stdin=token)
        spent = cluster.run("node", "join", "-", "--dir", tmp_path / "third", stdin=token)
        assert spent.returncode == 4, spent.stderr

        # A change made by a command reaches the hub through the running agent.
        cluster.cli("dataset", "disable", "table", "--dir", node)
        until("the hub to hear of it", lambda: not offered(cluster))
        cluster.cli("dataset", "enable", "table", "--dir", node)
        until("the hub to hear of it again", lambda: offered(cluster))

        seen = findings(cluster, node)
        assert seen.pop("sandbox") is False, "a missing sandbox is a finding"
        assert all(seen.values()), seen

        # Killed, it comes back; told to end, it ends at once and leaves nothing.
        cluster.end("alpha", signal.SIGKILL)
        assert status(cluster, node)["running"] is False
        assert findings(cluster, node)["agent"] is False
        cluster.spawn("alpha", "node", "serve", "--dir", node)
        until("the agent to be back", lambda: status(cluster, node)["connected"])
        assert online(cluster) == {"alpha"}
        begun = time.monotonic()
        assert cluster.end("alpha") == 0 and time.monotonic() - begun < 40
        assert not (node / "control.sock").exists()
        lines = (node / "log" / "agent.log").read_text().splitlines()
        assert {"at", "level", "from", "what"} <= json.loads(lines[0]).keys()


def test_a_hub_that_is_away_costs_nothing_and_is_found_again(
    tmp_path: Path, table: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_hub()
        node = cluster.node("alpha")
        cluster.join("alpha", table, "cohort")
        until("the agent to be connected", lambda: status(cluster, node)["connected"])
        cluster.end("hub")
        until("the agent to notice", lambda: not status(cluster, node)["connected"])
        assert "failed" in status(cluster, node)["problem"]
        assert findings(cluster, node)["hub"] is False
        (process,) = [p for p in psutil.process_iter() if serves(p, node)]
        before = sum(process.cpu_times()[:2])
        time.sleep(2)
        assert sum(process.cpu_times()[:2]) - before < 0.3, "the agent is busy waiting"
        cluster.start_hub()
        until("the agent to be back", lambda: status(cluster, node)["connected"])


def status(cluster: Cluster, node: Path) -> dict[str, Any]:
    found: dict[str, Any] = cluster.json("node", "status", "--dir", node)
    return found


def offered(cluster: Cluster) -> bool:
    (site,) = [
        s for s in cluster.json("hub", "sites", "--dir", cluster.hub) if s["name"] == "alpha"
    ]
    return bool(site["datasets"])


def serves(process: psutil.Process, node: Path) -> bool:
    try:
        line = process.cmdline()
    except (psutil.Error, OSError):
        return False
    return "serve" in line and str(node) in line and process.pid != os.getpid()
