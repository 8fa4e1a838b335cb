"""Signing in at the hub, sessions, second factor, lockout, invitations, requests, keys."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from restkit import CONFIG, RestHub, put_version, running_hub, study, weights

from consilia.accounts import totp
from consilia.errors import AuthError
from consilia.hub import atrest
from consilia.hub.config import PeopleRules
from consilia.hub.people.sessions import ACCESS
from consilia.sdk.client import Client
from consilia.sdk.profile import Profile, load_profile, save_profile
from consilia.sdk.session import sign_out
from peoplekit import PASSWORD, Somebody, access_token, settle

NEW = "quite another four words"
RULES = PeopleRules(second_factor=("reviewer",), sign_ins_per_minute=10_000)
PEOPLE = (
    Somebody("olga", ("operator",)),
    Somebody("otto", ("operator",)),
    Somebody("ada", ("researcher",)),
    Somebody("bob", ("researcher",)),
    Somebody("rita", ("reviewer",)),
    Somebody("carl", ()),
    Somebody("dora", ("researcher",)),
    Somebody("emil", ("researcher",)),
    Somebody("fred", ("auditor",)),
    Somebody("gina", ("researcher",)),
    Somebody("hans", ("researcher",)),
)


class Door:
    """One person's way to the hub: what they send, and their bearer token once they are in."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def send(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> httpx.Response:
        content = None if body is None else msgspec.json.encode(body)
        return self.http.request(method, f"/api/v1{path}", content=content, headers=headers)

    def post(self, path: str, **body: object) -> httpx.Response:
        return self.send("POST", path, body)

    def login(self, name: str, password: str = PASSWORD, **more: object) -> httpx.Response:
        answer = self.post("/auth/login", name=name, password=password, **more)
        if answer.status_code == 200:
            self.bearer(answer)
        return answer

    def bearer(self, answer: httpx.Response) -> dict[str, Any]:
        assert answer.status_code == 200, answer.text
        got: dict[str, Any] = answer.json()
        self.http.headers["Authorization"] = f"Bearer {got['access_token']}"
        return got

    def status(self) -> int:
        return self.send("GET", "/auth/me").status_code


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestHub]:
    directory = tmp_path_factory.mktemp("people") / "hub"
    config = msgspec.structs.replace(CONFIG, people=RULES)
    atrest.init(directory, config)
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


@pytest.fixture
def later(hub: RestHub) -> Iterator[RestHub]:
    """The hub, whose clock is put back afterwards."""
    yield hub
    hub.clock.shift = 0


def details(hub: RestHub, action: str) -> list[tuple[str, str, str]]:
    with hub.client("operator") as client:
        return [(v.subject, v.outcome, v.detail) for v in client.audit() if v.action == action]


# ---- sessions -------------------------------------------------------------------------------


def test_a_person_signs_in_and_is_who_they_are(door: Door, hub: RestHub) -> None:
    got = door.login("ada").json()
    assert (got["token_type"], got["expires_in"]) == ("Bearer", ACCESS)
    me = door.send("GET", "/auth/me").json()
    assert (me["name"], me["roles"], me["provider"]) == ("ada", ["researcher"], "password")
    assert not me["second_factor"]
    assert not me["second_factor_due"]
    assert door.send("GET", "/whoami").json()["role"] == "researcher"
    assert [s["study"]["name"] for s in door.send("GET", "/studies").json()["items"]] == [
        "finished"
    ]
    assert ("ada", "done") in [(s, o) for s, o, _ in details(hub, "account.sign-in")]
    assert got["refresh_token"] not in hub.log.getvalue()
    assert got["access_token"] not in hub.log.getvalue()


@pytest.mark.parametrize("name", ["bob", "nobody-at-all"])
def test_a_wrong_password_and_a_wrong_name_are_told_alike(door: Door, name: str) -> None:
    answer = door.login(name, "not the password at all")
    assert (answer.status_code, answer.json()["error"]) == (401, "AuthError")
    assert answer.json()["detail"] == "name, password or code is wrong"
    assert door.status() == 401


def test_each_refresh_token_is_good_once_and_the_second_use_ends_both(
    door: Door, hub: RestHub
) -> None:
    first = door.login("ada").json()["refresh_token"]
    second = door.bearer(door.post("/auth/refresh", refresh_token=first))["refresh_token"]
    assert second != first
    assert door.status() == 200
    assert door.post("/auth/refresh", refresh_token=first).status_code == 401
    assert door.status() == 401, "the session's access token is dead, too"
    assert door.post("/auth/refresh", refresh_token=second).status_code == 401
    assert ("ada", "refused") in [(s, o) for s, o, _ in details(hub, "account.reuse")]


def test_of_many_uses_at_once_at_most_one_gets_through(door: Door, hub: RestHub) -> None:
    token, statuses = door.login("bob").json()["refresh_token"], []

    def use() -> None:
        with hub.http() as http:
            answer = Door(http).post("/auth/refresh", refresh_token=token)
            statuses.append(answer.status_code)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.count(200) <= 1
    assert set(statuses) <= {200, 401}


def test_signing_out_counts_from_the_next_request_on(door: Door) -> None:
    token = door.login("ada").json()["refresh_token"]
    assert door.post("/auth/logout", refresh_token=token).status_code == 200
    assert door.status() == 401
    assert door.post("/auth/logout", refresh_token=token).status_code == 200, "twice is fine"


def test_a_session_ends_when_it_is_idle_and_after_its_hours(door: Door, later: RestHub) -> None:
    token = door.login("ada").json()["refresh_token"]
    later.clock.shift = ACCESS + 1
    assert door.status() == 401, "an access token is short"
    hour = 0.0
    while hour < RULES.session_hours * 3600 - 1200:
        hour += 1200
        later.clock.shift = hour
        token = door.bearer(door.post("/auth/refresh", refresh_token=token))["refresh_token"]
    later.clock.shift = RULES.session_hours * 3600 + 1
    assert door.post("/auth/refresh", refresh_token=token).status_code == 401
    idle = door.login("ada").json()["refresh_token"]
    later.clock.shift += RULES.idle_minutes * 60 + 1
    assert door.post("/auth/refresh", refresh_token=idle).status_code == 401


def test_the_browsers_cookie_is_out_of_reach_and_not_in_the_body(
    door: Door, hub: RestHub
) -> None:
    answer = door.login("ada", cookie=True)
    assert answer.json()["refresh_token"] is None
    kept = answer.headers["set-cookie"].lower()
    for needed in ("httponly", "secure", "samesite=strict", "path=/api/v1/auth", "max-age="):
        assert needed in kept
    assert kept.startswith("consilia_refresh=")
    again = door.send("POST", "/auth/refresh")
    assert again.status_code == 200, "the cookie suffices"
    assert again.json()["refresh_token"] is None
    foreign = door.send("POST", "/auth/refresh", {}, **{"Sec-Fetch-Site": "cross-site"})
    assert foreign.status_code == 403
    assert "max-age=0" in door.send("POST", "/auth/logout").headers["set-cookie"].lower()


@pytest.mark.parametrize("change", ["header", "payload", "signature", "none"])
def test_a_forged_access_token_opens_nothing(door: Door, change: str) -> None:
    import base64  # noqa: PLC0415 - for forgers

    token = door.login("ada").json()["access_token"]
    header, payload, signature = token.split(".")

    def text(value: object) -> str:
        return base64.urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()

    said = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=="))
    forged = {
        "header": ".".join((text({"alg": "HS256", "typ": "at+jwt"}), payload, signature)),
        "payload": ".".join((header, text(said | {"sub": "olga"}), signature)),
        "signature": ".".join((header, payload, signature[:-4] + "AAAA")),
        "none": ".".join((text({"alg": "none", "typ": "at+jwt"}), payload, "")),
    }[change]
    assert door.status() == 200
    door.http.headers["Authorization"] = f"Bearer {forged}"
    assert door.status() == 401


# ---- lockout, second factor, password --------------------------------------------------------


def test_wrong_passwords_make_a_name_rest_longer_and_longer(door: Door, later: RestHub) -> None:
    for _ in range(5):
        assert door.login("dora", "not the password at all").status_code == 401
    rests = []
    for _ in range(3):
        answer = door.login("dora")  # right, but it rests
        assert (answer.status_code, answer.json()["error"]) == (429, "TooMany")
        rests.append(int(answer.headers["retry-after"]))
        later.clock.shift += rests[-1] + 1
        assert door.login("dora", "not the password at all").status_code == 401
    assert rests == sorted(rests)
    assert rests[2] > 3 * rests[0]
    assert ("dora", "done") in [(s, o) for s, o, _ in details(later, "account.lock")]
    later.clock.shift += 3601
    assert door.login("dora").status_code == 200


def test_a_second_factor_is_asked_for_and_a_code_works_once(door: Door, later: RestHub) -> None:
    door.login("emil")
    proposed = door.send("POST", "/auth/second-factor").json()
    assert proposed["uri"].startswith("otpauth://totp/Consilia%20hub:emil?secret=")

    def code() -> str:
        return totp.code(proposed["secret"], int(later.clock.now()) // totp.STEP)

    assert door.post("/auth/second-factor/confirm", code="000000").status_code in (200, 400)
    confirmed = door.post("/auth/second-factor/confirm", code=code())
    assert confirmed.json()["second_factor"]
    database = later.directory / "hub.sqlite"
    kept = b"".join(p.read_bytes() for p in database.parent.glob(f"{database.name}*"))
    assert b"emil" in kept
    assert proposed["secret"].encode() not in kept, "whoever copies the database makes codes"
    answer = door.login("emil")
    assert answer.status_code == 401
    assert answer.json()["type"].endswith("second-factor-needed")
    assert door.login("emil", code=code()).status_code == 401, "the code was used to confirm"
    later.clock.shift += totp.STEP
    used = code()
    assert door.login("emil", code=used).status_code == 200
    assert door.login("emil", code=used).status_code == 401
    later.clock.shift += totp.STEP
    body = {"password": PASSWORD, "code": code()}
    assert not door.send("DELETE", "/auth/second-factor", body).json()["second_factor"]
    assert door.login("emil").status_code == 200


def test_who_must_have_a_second_factor_can_do_nothing_before(door: Door) -> None:
    door.login("rita")
    assert door.send("GET", "/auth/me").json()["second_factor_due"]
    refused = door.send("GET", "/studies")
    assert (refused.status_code, refused.json()["error"]) == (403, "Refused")
    assert "second factor" in refused.json()["detail"]
    assert door.post("/keys", name="round-about", roles=["reviewer"]).status_code == 403
    secret = door.send("POST", "/auth/second-factor").json()["secret"]
    code = totp.code(secret, int(time.time()) // totp.STEP)
    assert door.post("/auth/second-factor/confirm", code=code).status_code == 200
    assert door.send("GET", "/studies").status_code == 200


def test_changing_a_password_ends_every_other_session(door: Door, hub: RestHub) -> None:
    with hub.http() as http:
        elsewhere = Door(http)
        elsewhere.login("gina")
        door.login("gina")
        for bad in ("short", "passwordpassword", "gina", "aaaaaaaaaaaaaaaa", "letmein12345"):
            weak = door.post("/auth/password", old=PASSWORD, new=bad)
            assert (weak.status_code, weak.json()["error"]) == (400, "ConfigError"), bad
        wrong = door.post("/auth/password", old="not the password at all", new=NEW)
        assert wrong.status_code == 403
        door.bearer(door.post("/auth/password", old=PASSWORD, new=NEW))
        assert door.status() == 200
        assert elsewhere.status() == 401
    assert door.login("gina").status_code == 401
    assert door.login("gina", NEW).status_code == 200


# ---- administration --------------------------------------------------------------------------


def test_what_is_taken_from_an_account_counts_at_once(
    door: Door, olga: Door, hub: RestHub
) -> None:
    door.login("hans")
    hub.add("hans", "researcher")  # a token of an operator's making, in his name
    key = door.post("/keys", name="nightly", roles=["researcher"]).json()["secret"]
    assert olga.send("PATCH", "/users/hans", {"roles": []}).status_code == 200
    assert door.status() == 401
    door.login("hans")
    assert door.send("GET", "/studies").status_code == 403
    door.http.headers["Authorization"] = f"Bearer {key}"
    assert door.send("GET", "/studies").status_code == 403, "a key has its owner's roles"
    assert olga.send("PATCH", "/users/hans", {"disabled": True}).json()["disabled"]
    assert door.status() == 401, "and none when its owner is shut out"
    door.http.headers["Authorization"] = f"Bearer {hub.tokens['hans']}"
    assert door.status() == 401, "tokens of his name are his, too"
    assert door.login("hans").status_code == 401
    assert olga.send("PATCH", "/users/hans", {"disabled": False}).status_code == 200
    assert olga.send("DELETE", "/users/hans").status_code == 204
    for secret in (key, hub.tokens["hans"]):
        door.http.headers["Authorization"] = f"Bearer {secret}"
        assert door.status() == 401, "what was his ends with him"
    assert olga.send("GET", "/users/hans").status_code == 404
    again = olga.post("/users", name="hans", roles=["researcher"])
    assert again.status_code == 409, "whose studies would these be?"


def test_there_is_always_an_operator(olga: Door) -> None:
    assert olga.send("DELETE", "/users/otto").status_code == 204
    for body in ({"disabled": True}, {"roles": ["auditor"]}):
        answer = olga.send("PATCH", "/users/olga", body)
        assert (answer.status_code, answer.json()["error"]) == (403, "Refused")
    assert olga.send("DELETE", "/users/olga").status_code == 403
    assert olga.status() == 200


@pytest.mark.parametrize(
    "body",
    [
        {"epoch": 9},
        {"password": "x"},
        {"name": "olga"},
        {"roles": ["root"]},
        {"roles": "operator"},
        {"roles": ["data-manager"]},
        {"studies": {"finished": ["operator"]}},
        {},
    ],
)
def test_what_cannot_be_set_is_an_error_that_says_so(olga: Door, body: object) -> None:
    answer = olga.send("PATCH", "/users/carl", body)
    assert answer.status_code == 400, answer.text
    assert olga.send("GET", "/users/carl").json()["roles"] == []


def test_nobody_raises_themselves(door: Door) -> None:
    door.login("bob")
    for method, path, body in (
        ("PATCH", "/users/bob", {"roles": ["operator"]}),
        ("POST", "/invitations", {"roles": ["operator"]}),
        ("POST", "/keys", {"name": "up", "roles": ["operator"]}),
        ("POST", "/keys", {"name": "up", "roles": ["auditor"], "study": "finished"}),
        ("POST", "/tokens", {"name": "olga", "role": "operator"}),
    ):
        answer = door.send(method, path, body)
        assert answer.status_code == 403, f"{method} {path}: {answer.text}"
    asked = door.post("/access-requests", role="operator", reason="I like it").json()
    own = door.post(f"/access-requests/{asked['id']}/grant", reason="why not")
    assert own.status_code == 404


def test_an_invitation_makes_one_account_once(door: Door, olga: Door, hub: RestHub) -> None:
    made = olga.post("/invitations", roles=["data-manager"], site="north").json()
    assert made["link"].startswith("https://")
    assert made["link"].endswith("/invitation#" + made["code"])
    assert made["code"] not in olga.send("GET", "/invitations").text
    body = {"code": made["code"], "name": "nora", "password": PASSWORD}
    assert door.post("/invitations/accept", **body | {"roles": ["operator"]}).status_code == 400
    for taken in ("ada", "operator", "olga", "Nora", "../x"):
        status = door.post("/invitations/accept", **body | {"name": taken}).status_code
        assert status in (400, 409), taken
    door.bearer(door.post("/invitations/accept", **body))
    me = door.send("GET", "/auth/me").json()
    assert (me["roles"], me["site"]) == (["data-manager"], "north")
    assert door.post("/invitations/accept", **body | {"name": "nils"}).status_code == 401
    assert made["code"] not in hub.log.getvalue()


def test_a_named_invitation_sets_a_new_password_and_only_of_that_name(
    door: Door, olga: Door
) -> None:
    made = olga.post("/invitations", name="carl").json()
    other = door.post("/invitations/accept", code=made["code"], name="ada", password=NEW)
    assert other.status_code == 400
    done = door.post("/invitations/accept", code=made["code"], name="carl", password=NEW)
    assert done.status_code == 200
    assert door.login("carl").status_code == 401
    assert door.login("carl", NEW).status_code == 200


def test_access_to_a_study_is_asked_for_and_granted_by_who_made_it(
    door: Door, hub: RestHub
) -> None:
    door.login("bob")
    assert door.send("GET", "/studies/finished").status_code == 404
    asked = door.post("/access-requests", role="researcher", study="finished", reason="to help")
    id = asked.json()["id"]
    assert door.post(f"/access-requests/{id}/grant", reason="mine").status_code == 404
    nowhere = door.post("/access-requests", role="auditor", study="no-such-study", reason="?")
    assert nowhere.status_code == 201, "whether there is such a study is not told"
    with hub.http() as http:
        ada = Door(http)
        ada.login("ada")
        assert id in [r["id"] for r in ada.send("GET", "/access-requests").json()["items"]]
        assert ada.post(f"/access-requests/{id}/grant", reason="welcome").status_code == 200
        assert ada.post(f"/access-requests/{id}/refuse", reason="no").status_code == 409
    assert door.send("GET", "/studies/finished").status_code == 200
    assert door.send("GET", "/auth/me").json()["studies"] == [
        {"study": "finished", "roles": ["researcher"]}
    ]
    assert door.send("POST", "/studies/finished/close").status_code == 403, "it is ada's"


def test_a_key_for_one_study_touches_no_other(door: Door) -> None:
    door.login("ada")
    assert door.send("POST", "/studies", study("ada-own")).status_code == 201
    key = door.post("/keys", name="one", roles=["researcher"], study="finished").json()
    assert key["secret"] not in door.send("GET", "/keys").text
    missing = door.post("/keys", name="two", roles=["researcher"], study="not-there")
    assert missing.status_code == 404
    door.http.headers["Authorization"] = f"Bearer {key['secret']}"
    me = door.send("GET", "/auth/me").json()
    assert (me["name"], me["key"]) == ("ada", "one")
    assert [s["study"]["name"] for s in door.send("GET", "/studies").json()["items"]] == [
        "finished"
    ]
    assert door.send("GET", "/studies/ada-own").status_code == 404
    assert door.send("GET", "/studies/finished").status_code == 200
    assert door.send("POST", "/studies", study("more")).status_code == 403
    assert door.post("/keys", name="three", roles=["researcher"]).status_code == 403
    assert door.post("/auth/password", old=PASSWORD, new=NEW).status_code == 403


def test_a_key_is_its_owners_to_revoke(door: Door, olga: Door, hub: RestHub) -> None:
    door.login("ada")
    mine = door.post("/keys", name="brief", roles=["researcher"]).json()
    with hub.http() as http:
        bob = Door(http)
        bob.login("bob")
        assert mine["id"] not in bob.send("GET", "/keys").text
        assert bob.send("DELETE", f"/keys/{mine['id']}").status_code == 404
    assert mine["id"] in olga.send("GET", "/keys").text
    assert olga.send("DELETE", f"/keys/{mine['id']}").status_code == 204
    door.http.headers["Authorization"] = f"Bearer {mine['secret']}"
    assert door.status() == 401
    assert (mine["id"], "done") in [(s, o) for s, o, _ in details(hub, "key.revoke")]


def test_the_trail_names_who_and_what_and_no_secret(hub: RestHub, olga: Door) -> None:
    text = olga.send("GET", "/audit/export?format=json").text
    assert "account.sign-in" in text
    assert PASSWORD not in text
    assert not re.search(r"ses-[0-9a-z]+\.|eyJ|cst_|argon2", text)


# ---- the SDK's session -----------------------------------------------------------------------


def test_programs_that_run_at_once_share_one_session(
    hub: RestHub, door: Door, tmp_path: Path
) -> None:
    """The refresh token is good once: whoever comes second takes what the first was given."""
    got = door.login("fred").json()
    path = tmp_path / "profile.json"
    stale = Profile(
        hub.addresses.people, "stale", hub.ca, got["refresh_token"], expires=1.0, name="fred"
    )
    save_profile(stale, path)
    names: list[str] = []

    def run() -> None:
        with Client(environ={}, profile=path) as client:
            names.append(client.accounts.me().name)
            assert client.whoami().role == "auditor"

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == ["fred"] * 4
    kept = load_profile(path)
    assert kept is not None
    assert kept.refresh not in ("", got["refresh_token"])
    assert path.stat().st_mode & 0o077 == 0
    sign_out(kept, 10.0)
    with pytest.raises(AuthError), Client(environ={}, profile=path) as client:
        client.accounts.me()
    save_profile(msgspec.structs.replace(kept, expires=1.0), path)
    again = pytest.raises(AuthError, match=r"fred session.*sign in again")
    with again, Client(environ={}, profile=path) as client:
        client.accounts.me()


# ---- how much anybody may ask ----------------------------------------------------------------


def _replayed_too_often(hub: Any, secret: str) -> bool:
    """Whether an answer that is given again and again counts as much as one that is made."""
    study = {"name": "again", "purpose": "once", "sites": ["north"], "tags": ["t"]}
    with hub.http() as http:
        http.headers["Authorization"] = f"Bearer {access_token(http, secret)}"
        found = [
            http.post("/api/v1/studies", json=study, headers={"Idempotency-Key": "k"})
            for _ in range(12)
        ]
    assert [a.status_code for a in found[:2]] == [201, 201]
    assert found[1].headers["idempotency-replayed"] == "true"
    assert "max-age" in found[1].headers["strict-transport-security"]
    return bool(found[-1].status_code == 429)


def test_who_asks_too_much_waits(tmp_path: Any) -> None:
    rules = PeopleRules(requests_per_second=1, requests_at_once=5, sign_ins_per_minute=2)
    directory = tmp_path / "hub"
    atrest.init(directory, msgspec.structs.replace(CONFIG, people=rules))
    everybody = (Somebody("ada", ("researcher",)), Somebody("bob", ("researcher",)))
    tokens = settle(directory, everybody, time.time())
    with running_hub(directory) as found, found.http() as http:
        bearer = access_token(http, tokens["ada"])
        http.headers["Authorization"] = f"Bearer {bearer}"
        answers = [http.get("/api/v1/auth/me") for _ in range(8)]
        assert [a.status_code for a in answers].count(200) >= 5
        late = next(a for a in answers if a.status_code == 429)
        assert late.json()["error"] == "TooMany"
        assert int(late.headers["retry-after"]) >= 1
        assert _replayed_too_often(found, tokens["bob"])
        body = b'{"name": "ada", "password": "not the password at all"}'
        tries = [http.post("/api/v1/auth/login", content=body).status_code for _ in range(3)]
        assert tries[-1] == 429, "one refresh and one sign-in were a minute's share"
        assert http.get("/healthz").status_code == 200, "probes are never turned away"
