"""What somebody has kept from elsewhere, or from before, and tries to use at the hub."""

import sqlite3
import time
from collections.abc import Iterator

import pytest
from restkit import CONFIG, RestHub, put_version, running_hub, study, weights
from test_people_at_hub import NEW, Door

from consilia.hub import atrest
from consilia.wire.people import Experiment
from peoplekit import PASSWORD, Somebody, settle

HERE, AWAY = "finished", "away"
MODEL, JOB = "job-0000000000000001.1", "job-0000000000000001"
PEOPLE = (
    Somebody("olga", ("operator",)),
    Somebody("otto", ("operator",)),
    Somebody("ada", ("researcher",)),
    Somebody("bea", ("researcher",), {HERE: ("auditor",)}),
    Somebody("cleo", ("auditor", "researcher")),
    Somebody("rita", ("researcher",), {HERE: ("reviewer",)}),
    Somebody("hugo", ("researcher",)),
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestHub]:
    directory = tmp_path_factory.mktemp("privilege") / "hub"
    atrest.init(directory, CONFIG)
    put_version(directory, "ada", weights())
    settle(directory, PEOPLE, time.time())
    with running_hub(directory) as found:
        yield found


@pytest.fixture
def door(hub: RestHub) -> Iterator[Door]:
    with hub.http() as http:
        yield Door(http)


@pytest.fixture
def olga(hub: RestHub) -> Iterator[Door]:
    with hub.http() as http:
        found = Door(http)
        assert found.login("olga").status_code == 200
        yield found


@pytest.mark.parametrize("name", ["bea", "cleo"])
def test_an_auditor_gets_no_tensors_by_being_researcher_elsewhere(
    door: Door, name: str
) -> None:
    door.login(name)
    assert door.send("GET", f"/models/{MODEL}").status_code == 200
    assert door.send("GET", f"/models/{MODEL}/frame").status_code == 404
    assert door.send("POST", "/studies", study(f"own-{name}")).status_code == 201
    carried = Experiment(study=f"own-{name}", plan="0" * 64, rounds=1, base=MODEL)
    answer = door.send("POST", "/experiments/validate", carried)
    assert (answer.status_code, MODEL in answer.text) == (404, True), answer.text


def test_a_reviewer_of_the_study_still_reads_tensors(door: Door) -> None:
    door.login("rita")
    assert door.send("GET", f"/models/{MODEL}/frame").status_code == 200


def test_who_made_a_study_and_lost_the_role_moves_it_no_more(door: Door, olga: Door) -> None:
    """A role in another study is for that study, though the study's author has it."""
    door.login("ada")
    assert door.send("POST", "/studies", study(AWAY)).status_code == 201
    roles = {HERE: ["reviewer"], AWAY: ["researcher"]}
    changed = olga.send("PATCH", "/users/ada", {"roles": [], "studies": roles})
    assert changed.status_code == 200, changed.text
    try:
        door.login("ada")
        assert door.send("GET", f"/studies/{HERE}").status_code == 200
        assert door.send("POST", f"/studies/{HERE}/close").status_code == 403
        assert door.post(f"/jobs/{JOB}/rollback", round=1).status_code == 403
        invited = door.post("/invitations", roles=["researcher"], study=HERE)
        assert invited.status_code == 403
        assert door.send("POST", f"/studies/{AWAY}/submit").status_code == 200
    finally:
        back = {"roles": ["researcher"], "studies": {HERE: [], AWAY: []}}
        assert olga.send("PATCH", "/users/ada", back).status_code == 200


@pytest.mark.parametrize("how", ["disabled", "demoted", "removed"])
def test_an_invitation_ends_with_the_rights_of_who_made_it(
    door: Door, olga: Door, how: str
) -> None:
    name = f"oscar-{how}"
    made = olga.post("/users", name=name, roles=["operator"]).json()
    code = {"code": made["code"], "name": name, "password": PASSWORD}
    door.bearer(door.post("/invitations/accept", **code))
    backdoor = door.post("/invitations", roles=["operator"], hours=720).json()["code"]
    reset = door.post("/invitations", name="otto", hours=720).json()["code"]
    if how == "removed":
        assert olga.send("DELETE", f"/users/{name}").status_code == 204
    else:
        change = {"disabled": True} if how == "disabled" else {"roles": ["auditor"]}
        assert olga.send("PATCH", f"/users/{name}", change).status_code == 200
    for code_, whose in ((backdoor, f"back-{how}"), (reset, "otto")):
        answer = door.post("/invitations/accept", code=code_, name=whose, password=NEW)
        assert (answer.status_code, "void" in answer.text) == (401, True), answer.text
    assert olga.send("GET", f"/users/back-{how}").status_code == 404


def test_an_invitation_takes_no_account_that_came_by_another_door(
    door: Door, olga: Door, hub: RestHub
) -> None:
    """A person of the directory may come in, with its roles, before the link is used."""
    made = olga.post("/invitations", name="paul", roles=["downstream"]).json()
    other = olga.post("/invitations", roles=["researcher"]).json()
    first = door.post("/invitations/accept", code=other["code"], name="paul", password=PASSWORD)
    assert first.status_code == 200
    taken = door.post("/invitations/accept", code=made["code"], name="paul", password=NEW)
    assert taken.status_code == 409, taken.text
    assert door.login("paul").status_code == 200
    # with a password in its row or not: who signs in at a directory has no door here
    _of_a_directory(hub, "paul", time.time())
    assert door.login("paul").status_code == 401


def test_a_key_of_a_directorys_person_rests_when_they_stay_away(
    door: Door, olga: Door, hub: RestHub
) -> None:
    """Nothing tells the hub that they have left: a key asks no directory."""
    door.login("hugo")
    key = door.post("/keys", name="nightly", roles=["researcher"]).json()["secret"]
    door.http.headers["Authorization"] = f"Bearer {key}"
    _of_a_directory(hub, "hugo", time.time() - 29 * 86400)
    assert door.status() == 200
    _of_a_directory(hub, "hugo", time.time() - 31 * 86400)
    answer = door.send("GET", "/auth/me")
    assert (answer.status_code, "sign in once" in answer.text) == (401, True)


def test_an_answer_is_not_repeated_for_who_has_lost_the_role(door: Door, olga: Door) -> None:
    made = olga.post("/invitations", name="ivo", roles=["researcher"]).json()
    door.bearer(
        door.post("/invitations/accept", code=made["code"], name="ivo", password=PASSWORD)
    )
    wanted, key = study("ivos"), {"Idempotency-Key": "one"}
    assert door.send("POST", "/studies", wanted, **key).status_code == 201
    again = door.send("POST", "/studies", wanted, **key)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    secret = door.post("/keys", name="k", roles=["researcher"], study="ivos").json()["secret"]
    narrow = {**key, "Authorization": f"Bearer {secret}"}
    assert door.send("POST", "/studies", wanted, **narrow).status_code == 403
    olga.send("PATCH", "/users/ivo", {"roles": ["downstream"]})
    door.login("ivo")
    lost = door.send("POST", "/studies", wanted, **key)
    assert (lost.status_code, "idempotency-replayed" in lost.headers) == (403, False)


def _of_a_directory(hub: RestHub, name: str, last: float) -> None:
    """Make an account one of a directory, last seen then, as signing in there leaves it."""
    with sqlite3.connect(hub.directory / "hub.sqlite") as db:
        sql = "UPDATE people SET kind = 'oidc', provider = 'oidc', last = ? WHERE name = ?"
        assert db.execute(sql, (last, name)).rowcount == 1
        db.execute("UPDATE generations SET value = value + 1 WHERE name = 'people'")
