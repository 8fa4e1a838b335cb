"""Two hubs on one PostgreSQL and one bucket: one is killed in a round, the other goes on."""

import contextlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultkit import Lab, accepted, configure, until

from consilia.sdk.client import Client
from pgkit import Postgres
from s3kit import KEY, new_bucket

SITES = ("a", "b", "c")


class Pair(Lab):
    """A lab whose hub has a twin: the same secrets, database and bucket, other ports."""

    bucket = ""
    endpoint = ""

    def make_hub(self) -> None:
        """Make the first of the two."""
        super().make_hub()
        secret = self.hub_directory / "secrets/s3.key"
        secret.write_text("\n".join(KEY))
        secret.chmod(0o600)
        s3 = {"bucket": self.bucket, "endpoint": self.endpoint, "prefix": "twin"}
        s3 |= {"credentials_file": "secrets/s3.key"}
        configure(self.hub_directory / "hub.yaml", s3=s3)

    def twin(self) -> None:
        """Make the second hub; both know each other's place from now on."""
        self.end("hub")
        shutil.copytree(self.hub_directory, self.root / "hub2")
        for name in ("hub", "hub2"):
            (self.root / name / "run/addresses.json").unlink(missing_ok=True)
        for folder in ("blobs", "spool"):  # what the first has on its disk, the second has not
            shutil.rmtree(self.root / "hub2" / folder, ignore_errors=True)
        with free_port() as people, free_port() as nodes:
            second = {"people": f"127.0.0.1:{people}", "nodes": f"127.0.0.1:{nodes}"}
        self.place("hub2", **second)
        self.place("hub")

    def place(self, name: str, **listen: str) -> None:
        """Write into a hub's settings where it listens, and that it is one of two."""
        path = self.root / name / "hub.yaml"
        if listen:
            configure(path, people_listen=listen["people"], node_listen=listen["nodes"])
        found = {
            line.split(": ", 1)[0]: line.split(": ", 1)[1].strip("'")
            for line in path.read_text().splitlines()
            if "_listen: " in line
        }
        people, nodes = found["people_listen"], found["node_listen"]
        replica = {"name": name, "people": people, "nodes": nodes, "lease_seconds": 8.0}
        configure(path, replica=replica)

    def serve(self, name: str) -> dict[str, str]:
        """Start one of the two, wait until it listens; return its addresses."""
        marker = self.root / name / "run/addresses.json"
        marker.unlink(missing_ok=True)
        self.spawn(name, "hub", "serve", "--dir", self.root / name)
        self.wait(marker.exists, f"{name} listens")
        found: dict[str, str] = json.loads(marker.read_text())
        return found

    def at_hub(self, address: str) -> Client:
        """Return an operator's client of one of the two."""
        secrets = self.hub_directory / "secrets"
        token = (secrets / "operator.token").read_text().strip()
        return Client(address, token, (secrets / "ca.pem").read_text())

    def send(self, site: str, url: str) -> None:
        """Let a site's node call another hub."""
        self.end(site)
        configure(self.node_directory(site) / "node.yaml", hub=url)
        self.start_node(site)


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield found.getsockname()[1]


@pytest.fixture
def pair(tmp_path: Path, postgres: Postgres, s3_address: str) -> Iterator[Pair]:
    with Pair(tmp_path, hub_options=("--database", postgres.fresh())) as pair:
        pair.endpoint = s3_address
        pair.bucket = new_bucket(s3_address)
        pair.open(SITES)
        pair.twin()
        yield pair


@pytest.mark.slow
def test_the_other_hub_goes_on_in_the_same_round(pair: Pair) -> None:
    first, second = pair.serve("hub"), pair.serve("hub2")
    for site in (
        "a",
        "c",
    ):  # sites may call either: b calls the hub that works, these the other
        pair.send(site, second["nodes"])
    with pair.at_hub(second["people"]) as client:  # and so may people
        until(pair, "all are there", lambda: all(v.online for v in client.sites()))
        job = pair.start(client, 2, min_updates=3, arguments=pair.slow("c"))
        until(pair, "two updates", lambda: len(accepted(client, job)) == 3)
        before = accepted(client, job)
    pair.kill("hub")
    log = pair.root / "hub2.log"
    until(pair, "the other has the lease", lambda: '"number": 2' in log.read_text())
    again = pair.serve("hub")  # waits now, and passes b on
    assert again == {**first, "pid": again["pid"]}
    with pair.at_hub(again["people"]) as client:
        until(pair, "the other works", lambda: client.job(job).state == "running")
        pair.let_go("c", job)
        view = pair.finish(client, job)
        assert accepted(client, job)[:3] == before, "an accepted update was lost"
        for site in SITES:
            assert pair.trained(site, job) == [1, 2], f"{site} trained a round again"
        assert [r.sites for r in view.rounds[1:]] == [SITES] * 2
        pair.check(client, view)
        assert client.verify_audit().intact
