"""The hub as a process of its own: starts soon, stays small, ends at once, comes back."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from consilia.errors import ConsiliaError
from consilia.hub import atrest
from consilia.hub.config import Directory, HubConfig
from consilia.sdk.client import Client
from consilia.wire.people import Experiment
from consilia.wire.v1 import Plan, Study

SERVE = (
    "import sys, pathlib; from consilia.hub.app import serve; serve(pathlib.Path(sys.argv[1]))"
)


@contextmanager
def process(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    with (directory / "log" / "hub.log").open("ab") as log:
        started = subprocess.Popen(
            [sys.executable, "-c", SERVE, directory],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.wait(60)
        if started.stdout:
            started.stdout.close()


def ready(started: "subprocess.Popen[str]") -> str:
    """Wait for the addresses and return the people's."""
    assert started.stdout is not None
    line = started.stdout.readline()
    assert line.startswith("people https://"), line
    assert started.stdout.readline().startswith("nodes  https://")
    return line.split()[1]


def client(directory: Path) -> Client:
    layout = Directory(directory)
    addresses = json.loads(layout.addresses.read_text())
    token = layout.operator_token.read_text().strip()
    return Client(addresses["people"], token, layout.secrets / "ca.pem", environ={})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    config = HubConfig(people_listen="127.0.0.1:0", node_listen="127.0.0.1:0")
    atrest.init(tmp_path / "hub", config)
    return tmp_path / "hub"


def job(operator: Client) -> str:
    """Start a job that waits for a site."""
    operator.create_study(Study(name="s", purpose="p", sites=("north",), tags=("t",)))
    operator.submit_study("s")
    plan = Plan(name="p", files={"plan.py": "PLAN = 1\n"}, entry="plan:PLAN")
    digest = operator.submit_plan("s", plan).digest
    config = Experiment(study="s", plan=digest, rounds=1, min_updates=1, min_sites=1)
    return operator.start(config).id


def test_it_stays_small(directory: Path) -> None:
    with process(directory) as started:
        url = ready(started)
        with client(directory) as operator:
            assert operator.url == url
            assert operator.whoami().role == "operator"
        status = Path(f"/proc/{started.pid}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) < 150_000  # kB
        maps = Path(f"/proc/{started.pid}/maps").read_text()
        assert "torch" not in maps


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_even_while_people_wait(directory: Path, number: int) -> None:
    with process(directory) as started:
        ready(started)
        with client(directory) as operator:
            id = job(operator)
            after = operator.events(id)[-1].seq
            found: list[object] = []

            def wait() -> None:
                try:
                    found.append(operator.events(id, after=after, wait=60))
                except ConsiliaError as e:
                    found.append(e)

            thread = threading.Thread(target=wait)
            thread.start()
            time.sleep(0.5)
            begun = time.monotonic()
            started.send_signal(number)
            assert started.wait(60) == 0
            assert time.monotonic() - begun < 20  # of the 25 that the poll would wait
            thread.join(60)
        assert found == [[]]
        assert not Directory(directory).addresses.exists()


def test_a_second_one_is_refused(directory: Path) -> None:
    with process(directory) as first:
        ready(first)
        with process(directory) as second:
            assert second.wait(120) != 0
        assert f"(pid {first.pid})" in (directory / "log" / "hub.log").read_text()
        with client(directory) as operator:
            assert operator.whoami().name == "operator"


def test_what_was_answered_survives_kill_9(directory: Path) -> None:
    with process(directory) as started:
        ready(started)
        with client(directory) as operator:
            id = job(operator)
            secret = operator.new_token("ada", "researcher").secret
            head = operator.verify_audit().head
        started.kill()
        started.wait(60)
    with process(directory) as started:
        ready(started)
        with client(directory) as operator:
            assert operator.job(id).state == "waiting"
            assert head in {line.digest for line in operator.audit()}
            assert operator.verify_audit().intact
            with Client(
                operator.url, secret, directory / "secrets" / "ca.pem", environ={}
            ) as a:
                assert a.whoami().name == "ada"
