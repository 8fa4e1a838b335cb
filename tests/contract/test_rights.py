"""Who may do what: one test for each role and operation, made from the OpenAPI document.

The document's `x-roles` come from the one table (hub/people/rights). A request of each role is
sent to each operation: a role that is not named is refused (403), nobody is asked to sign in
(401), and whoever is named gets past the door. Ids of others' things answer 404 throughout.
"""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import msgspec
import pytest
from restkit import CONFIG, RestHub, put_version, running_hub, study, weights

from consilia.hub import atrest
from consilia.hub.people import rights
from consilia.hub.people.roles import ROLES
from consilia.hub.rest.api import PREFIX, describe, operations
from peoplekit import Somebody, access_token, settle

DOCUMENT = describe()
OPERATIONS = [
    (
        f"{method.upper()} {path}",
        frozenset(operation.get("x-roles", ())),
        "security" in operation,
    )
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
CASES = [(o, r, secured, role) for o, r, secured in OPERATIONS for role in (*ROLES, "nobody")]
PEOPLE = tuple(
    Somebody(f"a-{role}", (role,), site="north" if role == "data-manager" else None)
    for role in ROLES
)
OTHERS = (
    Somebody("olga", ("researcher",)),
    Somebody("ines", (), {"finished": ("auditor", "downstream")}),
    Somebody("rita", (), {"finished": ("researcher",)}),
    Somebody("sara", ("data-manager",), site="south"),
    Somebody("west", ("data-manager",), site="west"),
)


@pytest.fixture(scope="module")
def doors(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RestHub, dict[str, httpx.Client]]]:
    directory = tmp_path_factory.mktemp("rights") / "hub"
    atrest.init(directory, CONFIG)
    put_version(directory, "a-researcher", weights())
    refresh = settle(directory, (*PEOPLE, *OTHERS), time.time())
    with running_hub(directory) as hub, ExitStack() as stack:
        with hub.client("operator") as operator:
            for site in ("north", "south"):
                operator.invite(site)
        clients = {"nobody": stack.enter_context(hub.http())}
        for name, token in refresh.items():
            clients[name] = stack.enter_context(hub.http())
            bearer = access_token(clients[name], token)
            clients[name].headers["Authorization"] = f"Bearer {bearer}"
        yield hub, clients


def test_every_operation_has_a_line_and_every_line_an_operation() -> None:
    assert {operation for operation, _ in operations()} == set(rights.RIGHTS)
    assert {operation for operation, _, _ in OPERATIONS} == set(rights.RIGHTS)


def test_every_operation_stands_in_the_reference() -> None:
    text = (Path(__file__).parents[2] / "docs/reference/rest.md").read_text("utf-8")
    told = [o.replace(PREFIX, "") for o in rights.RIGHTS]
    assert [o for o in told if f"`{o}`" not in text] == []


def test_an_operation_without_a_line_admits_nobody() -> None:
    assert rights.of("GET /api/v1/forgotten") == frozenset()


@pytest.mark.parametrize(("operation", "roles", "secured", "role"), CASES)
def test_an_operation_admits_exactly_its_roles(
    doors: tuple[RestHub, dict[str, httpx.Client]],
    operation: str,
    roles: frozenset[str],
    secured: bool,
    role: str,
) -> None:
    method, path = operation.split(" ")
    client = doors[1][role if role == "nobody" else f"a-{role}"]
    answer = client.request(method, re.sub(r"\{\w+\}", "nothing", path))
    if not secured:
        assert answer.status_code not in (403, 500), answer.text
    elif role == "nobody":
        assert answer.status_code == 401
    elif role in roles:
        assert answer.status_code not in (401, 403, 500), answer.text
    else:
        assert answer.status_code == 403
        assert answer.json()["error"] == "Refused"


# ---- others' things do not exist -------------------------------------------------------------

MODEL = "job-0000000000000001.1"
THINGS = (  # of the study `finished`, which a-researcher made and sites north and south are in
    ("GET", "/studies/finished"),
    ("PUT", "/studies/finished"),
    ("POST", "/studies/finished/submit"),
    ("POST", "/studies/finished/revise"),
    ("POST", "/studies/finished/close"),
    ("GET", "/studies/finished/datasets"),
    ("GET", "/plans?study=finished"),
    ("GET", "/jobs?study=finished"),
    ("GET", "/jobs/job-0000000000000001"),
    ("POST", "/jobs/job-0000000000000001/stop"),
    ("GET", "/jobs/job-0000000000000001/events"),
    ("GET", "/jobs/job-0000000000000001/stream"),
    ("GET", "/jobs/job-0000000000000001/audit"),
    ("GET", f"/models/{MODEL}"),
    ("GET", f"/models/{MODEL}/frame"),
    ("GET", f"/models/{MODEL}/card"),
)
Doors = tuple[RestHub, dict[str, httpx.Client]]


def ask(doors: Doors, name: str, method: str, path: str) -> httpx.Response:
    body = study("finished") if method == "PUT" or path.endswith("/revise") else None
    content = None if body is None else msgspec.json.encode(body)
    return doors[1][name].request(method, PREFIX + path, content=content)


@pytest.mark.parametrize(("method", "path"), THINGS)
def test_anothers_study_and_all_in_it_is_not_found(
    doors: Doors, method: str, path: str
) -> None:
    """Whose it is must not be told from whether it is: 404, as for what never was."""
    for name in ("olga", "west", "a-downstream"):
        answer = ask(doors, name, method, path)
        allowed = rights.of(f"{method} {PREFIX}{_pattern(path)}")
        role = {"olga": "researcher", "west": "data-manager"}.get(name, "downstream")
        assert answer.status_code == (404 if role in allowed else 403), f"{name}: {answer.text}"
        never = ask(
            doors, name, method, path.replace("finished", "never-was").replace("00", "0z")
        )
        named = method == "PUT" or path.endswith("/revise")  # the body says another name
        assert never.status_code == answer.status_code or named


def _pattern(path: str) -> str:
    path = path.partition("?")[0].replace("finished", "{name}").replace(MODEL, "{id}")
    return path.replace("job-0000000000000001", "{id}")


def test_others_lists_are_empty(doors: Doors) -> None:
    for name in ("olga", "a-downstream"):
        for path in ("/studies", "/plans", "/jobs", "/models"):
            answer = ask(doors, name, "GET", path)
            assert answer.status_code == 403 or answer.json()["items"] == [], f"{name} {path}"


def test_a_role_in_one_study_opens_that_study_and_no_more(doors: Doors) -> None:
    assert ask(doors, "ines", "GET", "/studies/finished").status_code == 200
    assert ask(doors, "ines", "GET", "/jobs/job-0000000000000001").status_code == 200
    assert [m["id"] for m in ask(doors, "ines", "GET", "/models").json()["items"]] == [MODEL]
    for path in ("/audit", "/users", "/tokens", "/audit/export", "/metrics", "/sites"):
        assert ask(doors, "ines", "GET", path).status_code in (403, 404), path
    assert ask(doors, "ines", "POST", "/studies/finished/close").status_code == 403
    assert ask(doors, "rita", "GET", "/studies/finished").status_code == 200
    assert ask(doors, "rita", "POST", "/studies/finished/close").status_code == 403
    assert ask(doors, "rita", "POST", "/jobs/job-0000000000000001/stop").status_code == 403
    assert ask(doors, "rita", "POST", "/studies").status_code == 403


def test_a_data_manager_sees_their_own_site(doors: Doors) -> None:
    for name, seen, own in (
        ("a-data-manager", ["finished"], ["north"]),
        ("sara", ["finished"], ["south"]),
        ("west", [], []),
    ):
        found = ask(doors, name, "GET", "/studies").json()["items"]
        assert [s["study"]["name"] for s in found] == seen
        plans = ask(doors, name, "GET", "/plans").json()["items"]
        assert len(plans) == len(seen)
        for plan in plans:
            assert ask(doors, name, "GET", f"/plans/{plan['digest']}").status_code == 200
        sites = ask(doors, name, "GET", "/sites").json()["items"]
        assert [s["name"] for s in sites] == own
        assert ask(doors, name, "GET", "/jobs").status_code == 403


def test_another_persons_requests_and_keys_are_not_found(doors: Doors) -> None:
    hub, clients = doors
    key = (
        clients["olga"]
        .post(f"{PREFIX}/keys", json={"name": "hers", "roles": ["researcher"]})
        .json()
    )
    asked = (
        clients["olga"]
        .post(f"{PREFIX}/access-requests", json={"role": "auditor", "reason": "to check"})
        .json()
    )
    for name in ("a-researcher", "rita", "ines"):
        assert clients[name].delete(f"{PREFIX}/keys/{key['id']}").status_code == 404
        decided = clients[name].post(
            f"{PREFIX}/access-requests/{asked['id']}/grant", json={"reason": "I say so"}
        )
        assert decided.status_code in (403, 404)
        listed = clients[name].get(f"{PREFIX}/access-requests").text
        assert asked["id"] not in listed
    assert ("user:olga", asked["id"]) in hub.lines("access.ask")
