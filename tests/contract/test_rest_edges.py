"""The people's side at its limits: whose lists, which numbers, allowances, renewal, the end."""

import asyncio
import csv
import io
import json
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from restkit import CONFIG, RestHub, plan, put_version, running_hub, study, weights

from consilia.core import chain
from consilia.errors import Conflict, NotFound, Refused
from consilia.hub import atrest, audit, authority, probes
from consilia.hub.authority import DAY, SERVER_DAYS
from consilia.hub.config import Directory, Retention
from consilia.hub.modelversions import Version
from consilia.sdk.client import Client
from consilia.wire import frames
from consilia.wire.people import Experiment
from consilia.wire.v1 import plan_digest

FRAME = 4000  # bytes and a little, of `weights()`


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RestHub, Version]]:
    directory = tmp_path_factory.mktemp("edges") / "hub"
    atrest.init(directory, CONFIG)
    version = put_version(directory, "ada", weights())
    with running_hub(directory) as hub:
        for name, role in (("ada", "researcher"), ("bob", "researcher"), ("eve", "auditor")):
            hub.add(name, role)
        yield hub, version


@pytest.fixture
def hub(seeded: tuple[RestHub, Version]) -> RestHub:
    return seeded[0]


@pytest.fixture
def version(seeded: tuple[RestHub, Version]) -> Version:
    return seeded[1]


# ---- whose lists -----------------------------------------------------------------------------


def test_a_page_holds_only_what_is_mine_and_is_full(hub: RestHub) -> None:
    """Filtered after paging, a page would come back short or empty, with a next one."""
    mine: set[str] = set()
    with hub.client("ada") as ada, hub.client("bob") as bob:
        for n in range(6):
            for client, who in ((ada, "ada"), (bob, "bob"), (bob, "bob-again")):
                client.create_study(study(f"{who}-{n}"))
                client.submit_study(f"{who}-{n}")
                digest = client.submit_plan(
                    f"{who}-{n}", plan(files={"plan.py": f"PLAN = '{who} {n}'\n"})
                ).digest
                client.start(Experiment(study=f"{who}-{n}", plan=digest, rounds=1))
                mine |= {digest} if client is ada else set()
    with hub.http("ada") as http:
        for path in ("plans", "jobs"):
            page = http.get(f"/api/v1/{path}?limit=3").json()
            assert len(page["items"]) == 3
            found = page["items"]
            while page["next"]:
                page = http.get(
                    f"/api/v1/{path}", params={"limit": 3, "cursor": page["next"]}
                ).json()
                assert page["items"]
                found += page["items"]
            digests = {
                i["digest"] if path == "plans" else i["experiment"]["plan"] for i in found
            }
            assert mine <= digests
            assert len([d for d in digests if d not in mine]) <= 1  # `finished` is ada's too
    with hub.http("eve") as http:
        assert len(http.get("/api/v1/jobs?limit=500").json()["items"]) >= 18


def test_models_of_others_do_not_fill_a_page(hub: RestHub, version: Version) -> None:
    with hub.http("bob") as http:
        page = http.get("/api/v1/models?limit=1").json()
        assert page == {"items": [], "next": None}
        assert http.get(f"/api/v1/models?job={version.job}").json()["items"] == []
    with hub.http("ada") as http:
        assert len(http.get("/api/v1/models?limit=1").json()["items"]) == 1


# ---- numbers at their limits -----------------------------------------------------------------

HUGE = ("9" * 19, str(10**30), "9" * 5000)
PLACES = (
    "/api/v1/audit?after={}",
    "/api/v1/audit?limit={}",
    "/api/v1/jobs?limit={}",
    "/api/v1/studies?limit={}",
    "/api/v1/plans?limit={}",
    "/api/v1/models?limit={}",
    "/api/v1/tokens?limit={}",
    "/api/v1/sites?limit={}",
    "/api/v1/jobs/job-0000000000000001/events?after={}",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [*HUGE, "-1", "1.5", "NaN", "", "0x10"], ids=lambda n: n[:9])
def test_a_number_that_cannot_be_is_the_callers_mistake(
    hub: RestHub, place: str, number: str
) -> None:
    with hub.http("operator") as http:
        answer = http.get(place.format(number))
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"]


def test_the_highest_numbers_are_answered(hub: RestHub) -> None:
    with hub.http("operator") as http:
        assert http.get(f"/api/v1/audit?after={2**63 - 1}").json()["items"] == []
        assert http.get(f"/api/v1/audit?after={2**63}").status_code == 400
        last = (2**31 - 1) * 1_000_000
        path = "/api/v1/jobs/job-0000000000000001/events"
        assert http.get(f"{path}?after={last}").json() == {"items": [], "next": str(last)}
        assert http.get(f"{path}?after={last + 1}").status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/tokens", {"name": "x", "role": "auditor", "days": 10**30}),
        ("POST", "/api/v1/tokens", {"name": "x", "role": "auditor", "days": 0}),
        ("POST", "/api/v1/sites", {"site": "far", "hours": 1e308}),
        ("POST", "/api/v1/sites", {"site": "far", "hours": 10**400}),
        ("POST", "/api/v1/jobs/job-0000000000000001/resume", {"rounds": 10**30}),
        ("POST", "/api/v1/jobs/job-0000000000000001/resume", {"rounds": 0}),
        ("POST", "/api/v1/jobs/job-0000000000000001/arguments", {"arguments": {"a": 10**30}}),
        ("POST", "/api/v1/studies", {"min_records": 10**30}),
        ("POST", "/api/v1/jobs", {"arguments": {"n": -(2**63) - 1}}),
        ("POST", "/api/v1/jobs", {"rounds": 10**30}),
        ("POST", "/api/v1/jobs", {"seed": 2**63}),
        ("POST", "/api/v1/jobs", {"min_updates": 10**30}),
        ("POST", "/api/v1/jobs", {"deadline": 1e300}),
        ("POST", "/api/v1/jobs", {"keep": 0}),
        ("POST", "/api/v1/jobs", {"strategy": {"name": "fedprox", "options": {"mu": 10**400}}}),
    ],
)
def test_a_number_in_a_body_that_cannot_be_is_refused(
    hub: RestHub, method: str, path: str, body: dict[str, Any]
) -> None:
    whole: dict[str, Any] = {}
    if path.endswith("/jobs"):
        whole = {"study": "finished", "plan": plan_digest(plan(name="finished")), "rounds": 1}
    if path.endswith("/studies"):
        whole = msgspec.to_builtins(study("far"))
    with hub.http("operator") as http:
        answer = http.request(method, path, json=whole | body)
    assert answer.status_code == 400, answer.text


def test_no_name_holds_a_nul(hub: RestHub) -> None:
    with hub.http("operator") as http:
        for path in ("/api/v1/studies/a%00b", "/api/v1/jobs?study=a%00b"):
            assert http.get(path).status_code == 400


# ---- frames: allowances and retention --------------------------------------------------------


def test_a_person_has_an_allowance_of_uploads(tmp_path: Path) -> None:
    rule = Retention(upload_bytes=2 * FRAME + 1500)
    config = msgspec.structs.replace(CONFIG, retention=rule)
    with running_hub(tmp_path / "hub", config) as hub:
        for name in ("ada", "bob"):
            hub.add(name, "researcher")
        with hub.client("ada") as ada, hub.client("bob") as bob:
            for seed in (1, 2):
                frames.write(tmp_path / "frame", weights(seed))
                ada.upload_frame(tmp_path / "frame")
            frames.write(tmp_path / "other", weights(3))
            with pytest.raises(Refused, match="would pass the 9500 allowed"):
                ada.upload_frame(tmp_path / "other")
            bob.upload_frame(tmp_path / "other")  # each has their own
        assert len(hub.lines("frame.upload")) == 3
        stored = list((tmp_path / "hub" / "blobs").iterdir())
        assert len(stored) == 3
        assert list((tmp_path / "hub" / "spool").iterdir()) == []


def test_uploads_on_their_way_count_too(tmp_path: Path) -> None:
    rule = Retention(upload_bytes=FRAME + 1000)
    config = msgspec.structs.replace(CONFIG, retention=rule)
    frames.write(tmp_path / "frame", weights(1))
    body = (tmp_path / "frame").read_bytes()
    with running_hub(tmp_path / "hub", config) as hub, hub.http("operator") as http:
        first, done = threading.Event(), threading.Event()

        def slow() -> Iterator[bytes]:
            yield body[:1000]
            first.set()
            done.wait(120)
            yield body[1000:]

        size = {"Content-Length": str(len(body))}
        answers: list[int] = []

        def send() -> None:
            with hub.http("operator") as other:
                put = other.put("/api/v1/frames", content=slow(), headers=size)
                answers.append(put.status_code)

        thread = threading.Thread(target=send)
        thread.start()
        assert first.wait(120)
        time.sleep(0.2)
        refused = http.put("/api/v1/frames", content=body)
        done.set()
        thread.join(60)
        assert refused.status_code == 403
        assert "on their way" in refused.json()["detail"]
        assert answers == [200]


def test_a_version_without_its_frame_says_so(tmp_path: Path) -> None:
    directory = tmp_path / "hub"
    atrest.init(directory, CONFIG)
    version = put_version(directory, "ada", weights())
    with sqlite3.connect(directory / "hub.sqlite") as db:
        db.execute("UPDATE versions SET deleted = 5.0")
    db.close()
    with running_hub(directory) as hub, hub.client("operator") as client:
        assert client.model(version.id).deleted == 5.0
        with pytest.raises(NotFound, match="deleted by the hub's retention rule"):
            client.download_model(version.id, tmp_path / "model")
        again = Experiment(study="finished", plan=version.plan, rounds=1, base=version.id)
        for step in (client.validate, client.start):
            with pytest.raises(Conflict, match="retention rule"):
                step(again)


# ---- readiness, renewal, the end -------------------------------------------------------------


def test_the_nodes_port_is_probed_through_its_tls(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as hub, hub.http() as http:
        ready = {"status": "ready", "database": "ok", "disk": "ok", "nodes": "ok"}
        assert http.get("/readyz").json() == ready
        port = int(hub.addresses.nodes.rpartition(":")[2])
        assert asyncio.run(_probed(port, "localhost", hub.ca)) is None
        atrest.init(tmp_path / "other", CONFIG)
        other = (Directory(tmp_path / "other").secrets / "ca.pem").read_text()
        for name, ca in (("localhost", other), ("elsewhere.example", hub.ca)):
            found = asyncio.run(_probed(port, name, ca))
            assert found is not None
            assert "CERTIFICATE_VERIFY_FAILED" in found
    gone = asyncio.run(_probed(port, "localhost", hub.ca))
    assert gone is not None
    assert f"port {port} of the nodes" in gone


async def _probed(port: int, name: str, ca: str) -> str | None:
    return await probes.node_listener("127.0.0.1", port, name, ca)()


async def test_a_nodes_port_that_accepts_and_says_nothing_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        secrets = authority.make_authority("hub", time.time(), 1).certificate
        ca = secrets.public_bytes(serialization.Encoding.PEM).decode()
        port = mute.getsockname()[1]
        found = await probes.node_listener("127.0.0.1", port, "localhost", ca, 0.2)()
    assert found is not None
    assert "0.2 s" in found


def shown(hub: RestHub, address: str, alpn: str) -> bytes:
    """Return the certificate (DER) that a new connection to `address` is shown."""
    context = ssl.create_default_context(cadata=hub.ca)
    context.set_alpn_protocols([alpn])
    port = int(address.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), 60) as line,
        context.wrap_socket(line, server_hostname="localhost") as secured,
    ):
        found = secured.getpeercert(True)
    assert found is not None
    return found


def test_the_server_certificate_is_renewed_while_the_hub_serves(tmp_path: Path) -> None:
    roads = (("people", "http/1.1"), ("nodes", "consilia-enrol/1"))
    with running_hub(tmp_path / "hub", every=0.1) as hub, closing(_line(hub)) as kept:
        where = {name: getattr(hub.addresses, name) for name, _ in roads}
        before = {name: shown(hub, where[name], alpn) for name, alpn in roads}
        hub.clock.shift = SERVER_DAYS * DAY * 2 / 3 - 2 * DAY  # validity begins a day early
        time.sleep(0.5)
        assert {name: shown(hub, where[name], alpn) for name, alpn in roads} == before
        hub.clock.shift += 2 * DAY
        until = time.monotonic() + 60
        while "certificate was renewed" not in hub.log.getvalue():
            assert time.monotonic() < until
            time.sleep(0.05)
        after = {name: _later(hub, where[name], alpn) for name, alpn in roads}
        assert all(after[name] != before[name] for name, _ in roads)
        assert len(set(after.values())) == 1
        assert _healthy(kept)  # a connection from before goes on


def _line(hub: RestHub) -> ssl.SSLSocket:
    context = ssl.create_default_context(cadata=hub.ca)
    port = int(hub.addresses.people.rpartition(":")[2])
    line = socket.create_connection(("127.0.0.1", port), 60)
    secured = context.wrap_socket(line, server_hostname="localhost")
    assert _healthy(secured)
    return secured


def _healthy(line: ssl.SSLSocket) -> bool:
    line.sendall(b"GET /healthz HTTP/1.1\r\nHost: hub\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}") and (piece := line.recv(4096)):
        answer += piece
    return answer.startswith(b"HTTP/1.1 200")


def _later(hub: RestHub, address: str, alpn: str) -> bytes:
    """As `shown`, without the dates: the certificate is of a day far ahead."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    port = int(address.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), 60) as line,
        context.wrap_socket(line) as secured,
    ):
        found = secured.getpeercert(True)
    assert found is not None
    return found


def test_a_hub_that_ends_under_open_connections_reports_no_error(tmp_path: Path) -> None:
    """Idle ones, a long poll, and a download that nobody reads."""
    directory = tmp_path / "hub"
    atrest.init(directory, CONFIG)
    version = put_version(directory, "ada", weights(size=2_000_000))
    clients: list[Client] = []
    slow: list[ssl.SSLSocket] = []
    begun = 0.0
    with running_hub(directory) as hub:
        clients = [hub.client("operator") for _ in range(3)]
        for client in clients:
            client.whoami()
        path = f"/api/v1/models/{version.id}/frame"
        slow.append(_unread(hub, path))
        polling = threading.Thread(
            target=lambda: _quietly(clients[0], version.job), daemon=True
        )
        polling.start()
        time.sleep(0.3)
        begun = time.monotonic()
    took = time.monotonic() - begun
    polling.join(10)
    for client in clients:
        client.close()
    for line in slow:
        line.close()
    levels = [json.loads(text)["level"] for text in hub.log.getvalue().splitlines()]
    assert set(levels) <= {"debug", "info"}, hub.log.getvalue()
    assert took < 20  # of the 25 that the poll would wait


def _unread(hub: RestHub, path: str) -> ssl.SSLSocket:
    """Ask for a frame and read nothing of it."""
    context = ssl.create_default_context(cadata=hub.ca)
    port = int(hub.addresses.people.rpartition(":")[2])
    line = socket.create_connection(("127.0.0.1", port), 60)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    secured = context.wrap_socket(line, server_hostname="localhost")
    head = f"GET {path} HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer "
    secured.sendall(f"{head}{hub.tokens['operator']}\r\n\r\n".encode())
    return secured


def _quietly(client: Client, job: str) -> None:
    try:
        client.events(job, after=10**9, wait=60)
    except Exception as e:  # the hub has gone: either answer will do
        assert str(e)


# ---- the trail as a file ---------------------------------------------------------------------


def test_the_trail_is_exported_whole_and_checkable(hub: RestHub) -> None:
    with hub.http("eve") as http:
        text = http.get("/api/v1/audit/export?format=json")
        table = http.get("/api/v1/audit/export")
    lines = [json.loads(line) for line in text.text.splitlines()]
    pairs = [
        (chain.Line(**{k: v for k, v in line.items() if k != "digest"}), line["digest"])
        for line in lines
    ]
    assert chain.verify(pairs) == (len(lines), lines[-1]["digest"])
    assert (lines[-1]["action"], lines[-1]["actor"]) == ("audit.export", "user:eve")
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert len(rows) == len(lines) + 1  # its own line is in it
    assert [row["digest"] for row in rows[:-1]] == [line["digest"] for line in lines]
    assert table.headers["content-type"].startswith("text/csv")
    assert "attachment; filename=hub-audit.csv" in table.headers["content-disposition"]
    with hub.http("eve") as http:
        assert http.get("/api/v1/audit/export?format=xml").status_code == 400


def test_an_export_of_many_pages_has_one_header(tmp_path: Path) -> None:
    directory = tmp_path / "hub"
    atrest.init(directory, CONFIG)
    _grow(directory, 2500)
    with running_hub(directory) as hub, hub.http("operator") as http:
        text = http.get("/api/v1/audit/export").text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [int(row["seq"]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > 2500


def _grow(directory: Path, count: int) -> None:
    """Append so many lines to the trail of a hub at rest."""
    with atrest.at_rest(directory) as (store, _):
        for _ in range(0, count, 500):
            asyncio.run(
                store.write(
                    lambda db: [
                        audit.append(db, 1.0, "hub", "test.line", f"={n}") for n in range(500)
                    ]
                )
            )
