"""An answer from the snapshot says what the application says, for every route that has one.

A request of HTTP/1.0 is never answered from the snapshot, so the same address asked in both
versions goes both ways.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from restkit import CONFIG, RestHub, plan, running_hub, study

from consilia.hub import atrest
from consilia.hub.rest.api import operations
from consilia.wire.people import Experiment

NONE_TO_SHOW = ("GET /api/v1/models/{id}", "GET /api/v1/jobs/{id}/statistics")
KEPT = sorted(
    operation.removeprefix("GET ")
    for operation, route in operations()
    if route.opt.get("kept") and operation not in NONE_TO_SHOW
)
OF_THE_LINE = {"date", "connection"}
PATIENCE = 60.0

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestHub]:
    directory = tmp_path_factory.mktemp("kept") / "hub"
    atrest.init(directory, CONFIG)
    with running_hub(directory) as hub:
        hub.add("ada", "researcher")
        hub.add("bob", "downstream")
        yield hub


@pytest.fixture(scope="module")
def names(hub: RestHub) -> dict[str, str]:
    """What stands for the parameters of an address."""
    with hub.client("ada") as ada:
        ada.create_study(study("heart"))
        ada.submit_study("heart")
        digest = ada.submit_plan("heart", plan()).digest
        job = ada.start(Experiment(study="heart", plan=digest, rounds=3)).id
    return {"{id}": job, "{name}": "heart", "{digest}": digest}


def filled(path: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        path = path.replace(name, value)
    assert "{" not in path
    return path


class Line:
    """One connection to the hub, and requests written by hand."""

    def __init__(self, line: ssl.SSLSocket) -> None:
        self.line = line

    def ask(
        self,
        path: str,
        token: str = "",
        *more: str,
        method: str = "GET",
        version: str = "1.1",
    ) -> Answer:
        fields = [f"Authorization: Bearer {token}"] if token else []
        text = "\r\n".join([f"{method} {path} HTTP/{version}", "Host: hub", *fields, *more])
        self.line.sendall((text + "\r\n\r\n").encode())
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._more()
        head, _, body = got.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in rest)}
        empty = method == "HEAD" or first[9:12] == "304"
        while not empty and len(body) < int(headers.get("content-length", "0")):
            body += self._more()
        return int(first[9:12]), headers, body

    def _more(self) -> bytes:
        piece = self.line.recv(65536)
        assert piece, "the hub hung up"
        return piece


@contextmanager
def connected(hub: RestHub) -> Iterator[Line]:
    host, _, port = hub.addresses.people.removeprefix("https://").rpartition(":")
    context = ssl.create_default_context(cadata=hub.ca)
    with (
        socket.create_connection((host, int(port)), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=host) as line,
    ):
        yield Line(line)


def by_the_application(
    hub: RestHub, path: str, token: str, *more: str, method: str = "GET"
) -> Answer:
    with connected(hub) as line:
        return line.ask(path, token, *more, method=method, version="1.0")


def same(kept: Answer, made: Answer) -> None:
    assert kept[0] == made[0] and kept[2] == made[2]
    ours, theirs = (
        {k: v for k, v in a[1].items() if k not in OF_THE_LINE} for a in (kept, made)
    )
    assert ours == theirs


@pytest.mark.parametrize("path", KEPT)
def test_kept_and_made_answers_are_the_same(
    hub: RestHub, names: dict[str, str], path: str
) -> None:
    token, path = hub.tokens["ada"], filled(path, names)
    with connected(hub) as line:
        for address in (path, f"{path}?x=%00%20", f"{path}?limit=1", f"{path}?limit=nine"):
            for _ in range(3):  # the first may be made, the others are kept where they may be
                same(line.ask(address, token), by_the_application(hub, address, token))
        etag = line.ask(path, token)[1]["etag"]
        known = f"If-None-Match: {etag}"
        found = line.ask(path, token, known)
        assert (found[0], found[2]) == (304, b"")
        same(found, by_the_application(hub, path, token, known))


@pytest.mark.parametrize("path", KEPT)
def test_a_kept_answer_is_for_its_caller_alone(
    hub: RestHub, names: dict[str, str], path: str
) -> None:
    token, path = hub.tokens["ada"], filled(path, names)
    wrong = ("", token[:-1], f"{token}x", token.swapcase(), "x" * 4000, "\u00e9", "a.b.c")
    with connected(hub) as line:
        for _ in range(2):
            assert line.ask(path, token)[0] == 200
        for other in wrong:
            found = line.ask(path, other)
            assert found[0] == 401, other[:20]
            same(found, by_the_application(hub, path, other))
        bob = hub.tokens["bob"]
        same(line.ask(path, bob), by_the_application(hub, path, bob))
        for method in ("HEAD", "POST", "DELETE", "OPTIONS"):
            with connected(hub) as fresh:
                found = fresh.ask(path, token, "Content-Length: 0", method=method)
            made = by_the_application(hub, path, token, "Content-Length: 0", method=method)
            assert found[0] == made[0], method
            assert method in ("POST", "OPTIONS") or found[0] in (404, 405), method


def test_what_was_taken_away_counts_at_once(hub: RestHub, names: dict[str, str]) -> None:
    paths = [filled(path, names) for path in KEPT]
    hub.add("eve", "auditor")
    with connected(hub) as line, hub.client("operator") as operator:
        before = {path: line.ask(path, hub.tokens["eve"]) for path in (*paths, *paths)}
        assert {a[0] for a in before.values()} == {200}
        (token,) = [t for t in operator.tokens() if t.name == "eve"]
        operator.revoke_token(token.id)
        for path in paths:
            assert line.ask(path, hub.tokens["eve"])[0] == 401, path


def test_answers_come_from_the_snapshot_at_all(hub: RestHub, names: dict[str, str]) -> None:
    """Otherwise all of the above compares the application with itself, which logs requests."""
    token, path = hub.tokens["ada"], filled("/api/v1/jobs/{id}/metrics", names)
    until = time.monotonic() + PATIENCE
    with connected(hub) as line:
        while time.monotonic() < until:  # a busy machine may take a second between two
            before = hub.log.getvalue().count(path)
            assert {line.ask(path, token)[0] for _ in range(20)} == {200}
            if hub.log.getvalue().count(path) - before <= 5:
                return
    pytest.fail("the application made every answer")
