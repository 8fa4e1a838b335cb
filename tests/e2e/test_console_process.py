"""The console as its people start it: a process, a browser's view of it, and its end."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cluster import environment

from consilia.node import studies
from consilia.node.console.settings import Console
from consilia.node.store import Store
from consolekit import PASSWORD, make_node
from nodekit import STUDY

MOST_MEMORY = 150 << 20  # bytes of a console that does nothing: below the agent's with pages


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("console") / "node"
    make_node(folder, console=Console(listen="127.0.0.1:0"))
    return folder


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "consilia.cli.main", *words]


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with subprocess.Popen(
        command("node", "console", "--dir", str(directory)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(directory.parent),
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"console: (http://127\.0\.0\.1:\d+)\n", line)
            assert found, line
            yield process, found[1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert not (directory / "console.url").exists()
        finally:
            process.kill()


def test_a_person_gets_in_by_the_printed_link_and_sees_what_happens(
    directory: Path, served: tuple[subprocess.Popen[str], str]
) -> None:
    process, origin = served
    assert psutil.Process(process.pid).memory_info().rss < MOST_MEMORY
    printed = subprocess.run(
        command("node", "console-invite", "--dir", str(directory), "--json"),
        capture_output=True,
        text=True,
        check=True,
        env=environment(directory.parent),
    )
    made = json.loads(printed.stdout)
    assert made["roles"] == ["administrator"]
    with httpx.Client(base_url=origin, timeout=60) as http:
        token = made["link"].partition("#")[2]
        body = {"token": token, "name": "mara", "password": PASSWORD}
        view = http.post("/api/invitation/accept", json=body).raise_for_status().json()
        assert view["signed_in"]
        assert "not built" in http.get("/").text or "<script" in http.get("/").text
        events = _events(http, directory)
    assert [name for name, _ in events] == ["home", "runs", "home"]
    assert [e["tasks"] for name, e in events if name == "home"] == [0, 0]
    assert events[2][1]["waiting"][-1]["title"] == STUDY.name
    again = httpx.post(f"{origin}/api/invitation/accept", json=body)
    assert again.status_code == 401
    log = (directory / "log" / "console.log").read_text()
    assert token not in log and PASSWORD not in log


def _events(http: httpx.Client, directory: Path) -> list[tuple[str, Any]]:
    """Return home, runs, and home once more after a study has come in."""
    found: list[tuple[str, Any]] = []
    with http.stream("GET", "/api/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                found.append((name, json.loads(line.removeprefix("data: "))))
                if len(found) == 2:  # the hub invites this site
                    with contextlib.closing(Store.open(directory)) as store:
                        studies.offer(store, STUDY, time.time())
                if len(found) == 3:
                    return found
    raise AssertionError(found)


def test_the_how_to_for_the_service_works_as_written(
    directory: Path, served: tuple[subprocess.Popen[str], str]
) -> None:
    page = Path(__file__).parents[2] / "docs/how-to/run-as-a-service.md"
    commands = re.findall(r"^\$ consilia (.*)$", page.read_text(), re.MULTILINE)
    assert len(commands) == 4 and commands[0] == "node console --dir node &"  # it is served
    _, origin = served
    for line in commands[1:]:
        done = subprocess.run(
            command(*line.split()),
            cwd=directory.parent,
            capture_output=True,
            text=True,
            check=False,
            env=environment(directory.parent),
        )
        if "doctor" in line:  # there is no hub, which it has to find out
            assert done.returncode == 1 and "DNS: hub.invalid" in done.stdout
        else:
            assert done.stdout.startswith(f"{origin}/invitation#"), done.stderr


def test_the_units_start_what_there_is() -> None:
    folder = Path(__file__).parents[2] / "deploy" / "systemd"
    for unit, words in (("node", ["node", "serve"]), ("console", ["node", "console"])):
        text = (folder / f"consilia-{unit}.service").read_text()
        (line,) = re.findall(r"^ExecStart=/opt/consilia/bin/consilia (.*)$", text, re.MULTILINE)
        assert line.split() == [*words, "--dir", "/srv/consilia"]
        assert "\nUser=consilia\n" in text
        for forbidding in ("NoNewPrivileges=", "RestrictNamespaces=", "PrivateUsers="):
            assert f"\n{forbidding}" not in text  # bubblewrap could not work
