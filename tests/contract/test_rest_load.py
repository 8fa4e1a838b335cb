"""What makes the people's API fast and safe to repeat: kept answers, ETags, keys, streams."""

import json
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import wsproto
from restkit import CONFIG, RestHub, plan, running_hub, study
from wsproto import events as ws

from consilia.errors import TooMany
from consilia.hub import atrest
from consilia.hub.rest.streams import Streams
from consilia.sdk.client import Client
from consilia.wire.people import Experiment


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestHub]:
    directory = tmp_path_factory.mktemp("load") / "hub"
    atrest.init(directory, CONFIG)
    with running_hub(directory) as hub:
        for name in ("ada", "bob"):
            hub.add(name, "researcher")
        yield hub


@pytest.fixture(scope="module")
def ada(hub: RestHub) -> Iterator[Client]:
    with hub.client("ada") as client:
        yield client


@pytest.fixture(scope="module")
def job(ada: Client) -> str:
    """A job of ada's that waits for its sites."""
    ada.create_study(study("heart"))
    ada.submit_study("heart")
    digest = ada.submit_plan("heart", plan()).digest
    return ada.start(Experiment(study="heart", plan=digest, rounds=3)).id


def test_a_kept_answer_is_the_application_s(hub: RestHub, job: str) -> None:
    with hub.http("ada") as client:
        made, kept = (client.get(f"/api/v1/jobs/{job}") for _ in range(2))
        assert kept.content == made.content
        ours = dict(kept.headers) | {"date": made.headers["date"]}
        assert ours == dict(made.headers), "the same headers, security's among them"
        etag = kept.headers["etag"]
        for known in (etag, f'W/{etag}, "x"', "*"):
            same = client.get(f"/api/v1/jobs/{job}", headers={"If-None-Match": known})
            assert (same.status_code, same.content) == (304, b""), known
        other = client.get(f"/api/v1/jobs/{job}", headers={"If-None-Match": '"x"'})
        assert other.status_code == 200


def test_a_change_is_seen_by_the_next_request(hub: RestHub, ada: Client, job: str) -> None:
    with hub.http("ada") as client:
        for n in range(20):  # a stale answer would be one second old
            ada.create_study(study(f"seen{n}"))
            names = {s["study"]["name"] for s in client.get("/api/v1/studies").json()["items"]}
            assert f"seen{n}" in names
            ada.change_arguments(job, {"lr": float(n)})
            page = client.get(f"/api/v1/jobs/{job}/events").json()
            assert page["items"][-1]["body"]["arguments"] == {"lr": float(n)}


def test_nobody_gets_another_s_answer(hub: RestHub, job: str) -> None:
    address = f"/api/v1/jobs/{job}"
    with hub.http("ada") as ada, hub.http("bob") as bob, hub.http() as nobody:
        for _ in range(3):
            assert ada.get(address).status_code == 200
            assert bob.get(address).status_code == 404
            assert nobody.get(address).status_code == 401
            two = ada.get(address, headers=[("Authorization", "Bearer x")])
            assert two.status_code == 401
        assert bob.get("/api/v1/queue").json()["items"] == []
        assert ada.get("/api/v1/queue").json()["items"] != []


def test_a_revoked_token_gets_nothing_more(hub: RestHub, job: str) -> None:
    hub.add("eve", "reviewer")
    with hub.http("eve") as eve, hub.client("operator") as operator:
        for _ in range(3):
            assert eve.get(f"/api/v1/jobs/{job}").status_code == 200
        (token,) = [t for t in operator.tokens() if t.name == "eve"]
        operator.revoke_token(token.id)
        assert eve.get(f"/api/v1/jobs/{job}").status_code == 401


def test_the_queue_metrics_health_and_short_names(hub: RestHub, ada: Client, job: str) -> None:
    with hub.http("ada") as client:
        digest = ada.plans("heart")[0].digest
        body = {"study": "heart", "plan": digest, "rounds": 1}
        started = client.post("/api/v1/start", json=body).json()["id"]
        cloned = client.post(
            f"/api/v1/jobs/{job}/clone", json={"seed": 7, "arguments": {"a": 1}}
        )
        clone = cloned.json()["experiment"]
        assert (clone["seed"], clone["rounds"], clone["arguments"]["a"]) == (7, 3, 1)
        queue = client.get("/api/v1/queue").json()["items"]
        assert [q["job"] for q in queue] == [job, started, cloned.json()["id"]]
        assert [q["position"] for q in queue] == [1, 2, 3]
        assert client.get("/api/v1/status").json()["items"] == queue
        waiting = client.get("/api/v1/jobs", params={"status": "waiting", "limit": 2}).json()
        assert len(waiting["items"]) == 2 and waiting["next"]
        assert client.get("/api/v1/jobs", params={"status": "done"}).json()["items"] == []
        wrong = client.get("/api/v1/jobs", params={"status": "finished"})
        assert wrong.status_code == 400 and "status" in wrong.json()["detail"]
        assert client.get(f"/api/v1/jobs/{job}/metrics").json() == {"items": [], "next": None}
        assert client.get("/api/v1/budgets").json() == {"items": [], "next": None}
        health = client.get("/api/v1/health").json()
        assert health["status"] == "ready" and health["jobs"] == {"waiting": 3}
        assert client.post("/api/v1/join", json={"site": "north"}).status_code == 403
    with hub.http("operator") as client:
        assert client.post("/api/v1/join", json={"site": "north"}).json()["token"]


def test_a_repeated_request_makes_one_thing(hub: RestHub, ada: Client) -> None:
    body = json.dumps({"study": {"name": "once", "purpose": "p", "sites": ["a"], "tags": []}})

    def send(key: str, text: str = body, name: str = "ada") -> httpx.Response:
        with hub.http(name) as client:
            headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
            return client.post("/api/v1/studies", content=text, headers=headers)

    body = json.dumps(msgspec_study("once"))
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(send("k1", body))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    good = [a for a in answers if a.status_code == 201]
    assert good and all(a.content == good[0].content for a in good)
    assert {a.status_code for a in answers} <= {201, 409}
    again = send("k1", body)
    assert again.status_code == 201 and again.headers["idempotency-replayed"] == "true"
    assert [s.study.name for s in ada.studies()].count("once") == 1
    assert send("k1", json.dumps(msgspec_study("twice"))).status_code == 409
    other = send("k1", json.dumps(msgspec_study("bobs")), "bob")
    assert other.status_code == 201, "a key is its person's own"
    wrong = send("k2", json.dumps(msgspec_study("No Name")))
    assert wrong.status_code == 400
    assert send("k2", json.dumps(msgspec_study("name"))).status_code == 201, "nothing was made"


def msgspec_study(name: str) -> dict[str, Any]:
    return {"name": name, "purpose": "p", "sites": ["north"], "tags": ["t"]}


def test_a_key_is_refused_where_it_is_not_taken(hub: RestHub) -> None:
    with hub.http("operator") as client:
        made = client.post(
            "/api/v1/tokens",
            json={"name": "x", "role": "auditor"},
            headers={"Idempotency-Key": "k"},
        )
    assert made.status_code == 400 and "takes none" in made.json()["detail"]
    with hub.http() as client:
        headers = {"Idempotency-Key": "k"}
        assert client.post("/api/v1/studies", json={}, headers=headers).status_code == 401


def test_streams_are_shared_out() -> None:
    streams = Streams(most=3, each=2)
    with streams.held("ada"), streams.held("ada"):
        with pytest.raises(TooMany, match="ada has 2"):
            streams.check("ada")
        with streams.held("bob"), pytest.raises(TooMany, match="3 streams are open"):
            streams.check("eve")
    streams.check("ada")
    assert streams.open == 0


# ---- the WebSocket --------------------------------------------------------------------------


class Socket:
    """A WebSocket of a few lines over TLS, so that no client library hides anything."""

    def __init__(self, hub: RestHub, path: str) -> None:
        import socket  # noqa: PLC0415

        host, _, port = hub.addresses.people.removeprefix("https://").rpartition(":")
        context = ssl.create_default_context(cadata=hub.ca)
        line = socket.create_connection((host, int(port)), 10)
        self.line = context.wrap_socket(line, server_hostname=host)
        self.connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self.send(ws.Request(host=host, target=path))
        self.events = self._events()
        assert isinstance(next(self.events), ws.AcceptConnection)

    def send(self, event: Any) -> None:
        self.line.sendall(self.connection.send(event))

    def say(self, **message: object) -> None:
        self.send(ws.TextMessage(data=json.dumps(message)))

    def hear(self) -> Any:
        """Return the next message, or the code the line was closed with."""
        event = next(self.events)
        return event.code if isinstance(event, ws.CloseConnection) else json.loads(event.data)

    def _events(self) -> Iterator[Any]:
        while data := self.line.recv(65536):
            self.connection.receive_data(data)
            yield from self.connection.events()

    def __enter__(self) -> "Socket":
        return self

    def __exit__(self, *_: object) -> None:
        self.line.close()


def test_a_socket_tells_what_the_stream_tells(hub: RestHub, ada: Client, job: str) -> None:
    digest = ada.plans("heart")[0].digest
    mine = ada.start(Experiment(study="heart", plan=digest, rounds=1)).id
    with Socket(hub, f"/api/v1/jobs/{mine}/live") as socket:
        socket.say(token=hub.tokens["ada"])
        first = socket.hear()
        ada.change_arguments(mine, {"lr": 0.5})
        second = socket.hear()
        assert (first["type"], second["type"]) == ("Started", "Changed")
        ada.stop(mine)
        assert socket.hear()["type"] == "Stopped"
        assert socket.hear() == {"type": "end", "state": "stopped"}
        assert socket.hear() == 1000
    with Socket(hub, f"/api/v1/jobs/{mine}/live") as socket:  # a line that broke
        socket.say(token=hub.tokens["ada"], after=first["seq"])
        assert socket.hear() == second


@pytest.mark.parametrize(
    ("who", "message", "code"),
    [
        ("bob", {}, 4404),
        ("nobody", {}, 4401),
        ("ada", {"after": -1}, 4400),
        ("ada", {"afetr": 1}, 4400),
    ],
)
def test_a_socket_is_not_for_everybody(
    hub: RestHub, job: str, who: str, message: dict[str, object], code: int
) -> None:
    with Socket(hub, f"/api/v1/jobs/{job}/live") as socket:
        socket.say(token=hub.tokens.get(who, "cst_x"), **message)
        assert socket.hear() == code
