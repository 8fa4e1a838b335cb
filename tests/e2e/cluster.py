"""A hub and nodes as a hospital would run them: separate processes, made with the commands.

Nothing here reaches into the programs: what is not on the command line is not used.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import consilia
from commandkit import Commands

SOURCE = Path(consilia.__file__).parents[1]


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a person whose home is `home` and who has set nothing of ours."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CONSILIA_")}
    return {
        **clean,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_STATE_HOME": str(home / ".state"),
        "PYTHONPATH": str(SOURCE),
        **(more or {}),
    }


def until(what: str, ready: Callable[[], bool], seconds: float = 180.0) -> None:
    """Wait for something outside this process."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


class Cluster(Commands):
    """One hub and its nodes below one folder; ends all of them on the way out."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, folder=root)
        self.hub = root / "hub"
        self.people, self.nodes = free_port(), free_port()
        self.env = environment(root)

    def variables(self) -> dict[str, str]:
        """The person's environment, and nothing of whoever runs the tests."""
        return self.env

    def json(self, *words: object, stdin: str = "") -> Any:
        """Run one command with --json; return what it prints as data."""
        return json.loads(self.cli(*words, "--json", stdin=stdin))

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self.root / f"{name}.log").read_text()

    # ---- a federation ------------------------------------------------------------------------

    def start_hub(self) -> None:
        """Make the hub, if it is not there, and serve it."""
        if not self.hub.exists():
            self.cli(
                "hub", "init", self.hub, "--people", f"127.0.0.1:{self.people}",
                "--nodes", f"127.0.0.1:{self.nodes}",
            )  # fmt: skip
        self.spawn("hub", "hub", "serve", "--dir", self.hub)
        until("the hub to serve", (self.hub / "run" / "addresses.json").exists)

    def node(self, site: str) -> Path:
        """A node's directory."""
        return self.root / site

    def join(self, site: str, table: Path, tag: str, smallest: int = 10) -> None:
        """Enrol a node, register its table, and start its agent."""
        node = self.node(site)
        token = self.cli("hub", "invite", site, "--dir", self.hub)
        self.cli("node", "join", "-", "--dir", node, "--sandbox", "off", stdin=token)
        with (node / "node.yaml").open("a") as settings:
            settings.write(f"min_records: {smallest}\nlimits: {{threads: 1}}\n")
        self.cli("dataset", "add", table, "--name", "table", "--tag", tag, "--dir", node)
        self.spawn(site, "node", "serve", "--dir", node)

    def become(self, name: str, role: str) -> None:
        """From now on commands of people are this person's."""
        secret = self.cli("hub", "token", "create", name, "--role", role, "--dir", self.hub)
        self.env |= {
            "CONSILIA_URL": f"https://localhost:{self.people}",
            "CONSILIA_TOKEN": secret.strip(),
            "CONSILIA_CA": str(self.hub / "secrets" / "ca.pem"),
        }

    def decide(self, site: str, study: str, digest: str, *allow: str) -> None:
        """Accept the study and approve the plan at a site, once they are on offer there."""
        node = self.node(site)
        until(
            f"{site} to be offered the plan",
            lambda: digest in self.cli("node", "plans", "--dir", node, "--json"),
        )
        self.cli("node", "accept", study, "--dir", node)
        words = (word for item in allow for word in ("--allow", item))
        self.cli("node", "approve", digest, "--dir", node, *words)


@contextlib.contextmanager
def federation(root: Path, tables: Mapping[str, Path], tag: str) -> Iterator[Cluster]:
    """A running hub with a running node for each table; commands are a researcher's."""
    with Cluster(root) as cluster:
        cluster.start_hub()
        for site, table in tables.items():
            cluster.join(site, table, tag)
        cluster.become("ada", "researcher")
        yield cluster


def online(cluster: Cluster) -> set[str]:
    """The sites whose agents poll."""
    return {
        s["name"] for s in cluster.json("hub", "sites", "--dir", cluster.hub) if s["online"]
    }
