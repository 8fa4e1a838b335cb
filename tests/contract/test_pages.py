"""The dashboard's files at a running hub: who gets them, by which policy; what stays API."""

from collections.abc import Iterator

import pytest
from restkit import RestHub, running_hub

from consilia.hub.rest.pages import HEADERS


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestHub]:
    with running_hub(tmp_path_factory.mktemp("pages") / "hub") as running:
        yield running


@pytest.mark.parametrize(
    "path", ["/", "/studies/kidney", "/sign-in?turned=%3Cscript%3E", "/%2e%2e/secrets"]
)
def test_anybody_gets_the_page_under_its_own_policy(hub: RestHub, path: str) -> None:
    with hub.http() as client:
        answer = client.get(path)
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert {name: answer.headers.get(name) for name in HEADERS} == dict(HEADERS)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in answer.text  # scripts are files of the hub; nothing is echoed
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/v1/nothing", "/api/v2/studies"])
def test_what_the_api_does_not_have_is_no_page(hub: RestHub, path: str) -> None:
    with hub.http() as client:
        answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-security-policy"].startswith("default-src 'none';")
    assert "script-src" not in answer.headers["content-security-policy"]


def test_the_pages_answer_no_other_method(hub: RestHub) -> None:
    with hub.http() as client:
        for method in ("POST", "PUT", "DELETE"):
            assert client.request(method, "/studies").status_code == 405


def test_the_trail_is_read_backwards_a_page_at_a_time(hub: RestHub) -> None:
    with hub.http("operator") as client:
        for number in range(5):
            client.post("/api/v1/sites", json={"site": f"site-{number}"}).raise_for_status()
        forwards = client.get("/api/v1/audit", params={"limit": 500}).json()["items"]
        found, before = [], "0"
        while before is not None:
            page = client.get("/api/v1/audit", params={"before": before, "limit": 2}).json()
            found += page["items"]
            before = page["next"]
    assert len(forwards) >= 5
    assert found == forwards[::-1]
