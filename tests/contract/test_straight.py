"""The road past the framework gives what the framework gives, to the same people."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest
from litestar.types import Scope
from restkit import CONFIG, RestHub, put_version, running_hub, weights

from consilia.hub import atrest
from consilia.hub.config import PeopleRules
from consilia.hub.modelversions import Version
from consilia.hub.rest.straight import _asked

ROLES = {"ada": "researcher", "bob": "researcher", "eve": "auditor", "dora": "downstream"}
PERSONAL = ("date", "set-cookie")


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RestHub, Version]]:
    directory = tmp_path_factory.mktemp("straight") / "hub"
    atrest.init(directory, CONFIG)
    version = put_version(directory, "ada", weights(size=50_000))  # more than one piece
    with running_hub(directory) as hub:
        for name, role in ROLES.items():
            hub.add(name, role)
        yield hub, version


@pytest.mark.parametrize("who", [None, "stranger", "operator", *ROLES])
@pytest.mark.parametrize(
    "asked", ["", "bytes=0-9", "bytes=100000-", "bytes=900000-", "bytes=9-1", "lines=1-2"]
)
def test_both_roads_answer_alike(
    seeded: tuple[RestHub, Version], who: str | None, asked: str
) -> None:
    hub, version = seeded
    hub.tokens["stranger"] = "consilia_nobody"
    found = []
    with hub.http(who) as client:
        for end in ("", "/"):  # the framework's router drops a slash, this road does not
            before = len(hub.lines("model.read"))
            path = f"/api/v1/models/{version.id}/frame{end}"
            answer = client.get(path, headers={"Range": asked} if asked else {})
            headers = {k: v for k, v in answer.headers.items() if k not in PERSONAL}
            content = answer.content.replace(b"/frame/", b"/frame")
            headers.pop("content-length", None)
            read = hub.lines("model.read")[before:]
            found.append((answer.status_code, headers, content, read))
    assert found[0] == found[1]
    status, headers, content, read = found[0]
    may = who in ("ada", "operator")
    assert bool(read) == (may and status < 300), "no byte without its line, no line without one"
    if may and status < 300:
        assert content and headers["etag"] == f'"{version.digest}"'
    assert {None: 401, "stranger": 401, "bob": 404, "dora": 404}.get(who, status) == status
    assert "strict-transport-security" in headers


def test_a_revoked_token_fails_at_once_here_too(seeded: tuple[RestHub, Version]) -> None:
    hub, version = seeded
    hub.add("carl", "operator")
    with hub.http("carl") as carl, hub.client("operator") as operator:
        path = f"/api/v1/models/{version.id}/frame"
        assert carl.get(path, headers={"Range": "bytes=0-1"}).status_code == 206
        (token,) = [t for t in operator.tokens() if t.name == "carl"]
        operator.revoke_token(token.id)
        assert carl.get(path, headers={"Range": "bytes=0-1"}).status_code == 401


def test_it_counts_how_often_somebody_asks(tmp_path: Path) -> None:
    rules = PeopleRules(requests_per_second=0.01, requests_at_once=4)
    config = msgspec.structs.replace(CONFIG, people=rules)
    with running_hub(tmp_path / "hub", config) as hub, hub.http("operator") as client:
        answers = [client.get("/api/v1/models/m/frame") for _ in range(6)]
    assert [a.status_code for a in answers] == [404] * 4 + [429] * 2
    assert int(answers[-1].headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "/api/v1/models/m/frame"),
        ("PUT", "/api/v1/models/m/frame"),
        ("GET", "/api/v1/models/m/frame/"),
        ("GET", "/api/v1/models/m/frame\n"),
        ("GET", "/api/v1/models/a/b/frame"),
        ("GET", "/api/v1/models//frame"),
        ("GET", "/api/v1/models/\0/frame"),
        ("GET", "/x/api/v1/models/m/frame"),
    ],
)
def test_what_is_not_plainly_its_own_goes_the_other_way(method: str, path: str) -> None:
    scope = {"type": "http", "method": method, "path": path}  # all of it that is looked at
    assert _asked(cast(Scope, scope)) == ""
