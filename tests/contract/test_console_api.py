"""The node's console over its API: who may do what, what a hostile page cannot, what works."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.accounts import store as accounts
from consilia.accounts import totp
from consilia.accounts.lockout import FREE
from consilia.accounts.store import Session
from consilia.errors import Refused
from consilia.node import approvals, config, datasets, optout, peers, segments, studies
from consilia.node.console import app, guard, signing
from consilia.node.console.gate import HEADERS
from consilia.node.console.serve import placed, tls_context
from consilia.node.console.settings import Console as Settings
from consilia.node.loading import Loading
from consilia.web.openapi import OPEN
from consilia.web.server import PeopleServer
from consilia.wire.console import ROLES, Role
from consilia.wire.v1 import plan_digest, study_digest
from consolekit import PASSWORD, Console, console
from nodekit import STUDY, make_plan, write_table

# what changes nothing though it is no GET, and what everybody does with their own account
HARMLESS = {
    "DELETE /api/session",
    "POST /api/account/password",
    "POST /api/account/second-factor",
    "POST /api/account/second-factor/confirm",
    "POST /api/account/second-factor/remove",
    "POST /api/audit/verify",
    "POST /api/ledger/verify",
    "POST /api/policy/check",
}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Console]:
    (tmp_path / "data").mkdir()
    roots = Settings(data_roots=(str(tmp_path / "data"),))
    async with console(tmp_path, console=roots) as made:
        yield made


def operations() -> list[tuple[str, str, frozenset[str] | None]]:
    """Return (method, path, roles) of the whole API; roles None: open."""
    return [
        (method.upper(), path, frozenset(told["x-roles"]) if "x-roles" in told else None)
        for path, methods in app.described()["paths"].items()
        for method, told in methods.items()
    ]


# ---- roles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_exactly_what_the_api_document_says(
    node: Console, role: Role
) -> None:
    person = await node.enter("mara", role)
    for method, path, roles in operations():
        if roles is None or (role in roles and path in ("/api/session", "/api/events")):
            continue  # the stream has no end: see the test of the process
        body: dict[str, str] | None = None if method in ("GET", "DELETE") else {}
        answer = await person.ask(method, path.replace("{", "no-").replace("}", ""), body)
        barred = answer.status_code == 403 and "this needs the role" in answer.text
        assert barred is (role not in roles), (method, path, answer.text)
        assert answer.status_code not in (401, 500), (method, path, answer.text)


async def test_a_stranger_gets_in_nowhere(node: Console) -> None:
    stranger = await node.stranger()
    doors = set()
    for method, path, roles in operations():
        answer = await stranger.ask(method, path, None if method == "GET" else {})
        if roles is None:
            doors.add(f"{method} {path}")
        else:
            assert answer.status_code == 401, (method, path, answer.text)
    assert doors == {
        "GET /api/session",
        "POST /api/session",
        "POST /api/session/code",
        "GET /api/session/providers",
        "POST /api/invitation/check",
        "POST /api/invitation/accept",
        "GET /api/openapi.json",
    }


async def test_roles_are_denied_by_default_and_a_dpo_changes_nothing(node: Console) -> None:
    for route in app.ROUTES:
        roles = route.opt.get("roles")
        assert roles == OPEN or (roles and roles <= set(ROLES)), route
    await node.enter("mara")
    session = Session("", accounts.get(node.here.store, "mara"), 0.0, 0.0)
    with pytest.raises(Refused, match="nobody's"):  # a route that names no role
        guard.admit(node.here, session, frozenset(), False)
    open_to_dpo = {f"{m} {p}" for m, p, r in operations() if m != "GET" and r and "dpo" in r}
    assert open_to_dpo == HARMLESS
    unread = {p for m, p, r in operations() if m == "GET" and r is not None and "dpo" not in r}
    # of files that are no datasets, and where the hospital's databases are
    assert unread == {"/api/folders", "/api/databases"}
    values = ("/api/datasets/{name}/preview", "/api/job-log")  # patients' own, or printed
    told = {path: roles for _, path, roles in operations() if path in values}
    assert told == dict.fromkeys(values, frozenset({"data_manager", "dpo"}))


# ---- hostile pages ---------------------------------------------------------------------------


async def test_pages_of_others_are_refused_whatever_cookie_they_bring(node: Console) -> None:
    person = await node.enter("mara")
    body = {"roles": ["administrator"]}
    for headers, status in (
        ({"X-CSRF-Token": ""}, 403),
        ({"X-CSRF-Token": "0" * 64}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example:8445"}, 421),  # a name that was made to point here
        ({"Host": "127.0.0.1:9999"}, 421),
        ({}, 201),
    ):
        answer = await person.ask("POST", "/api/accounts/invitations", body, headers=headers)
        assert answer.status_code == status, (headers, answer.text)
    read = await person.ask("GET", "/api/audit", headers={"Sec-Fetch-Site": "cross-site"})
    assert read.status_code == 403
    link = await person.ask("GET", "/studies", headers={"Sec-Fetch-Site": "cross-site"})
    assert link.status_code == 200  # a link in a mail may open the console


async def test_a_page_cannot_sign_a_person_in_to_an_account_of_its_own(node: Console) -> None:
    await node.enter("mara")
    stranger = await node.stranger()
    said = {"name": "mara", "password": PASSWORD}
    foreign = {"Origin": "http://evil.example"}
    answer = await stranger.ask("POST", "/api/session", said, headers=foreign)
    assert answer.status_code == 403
    assert not answer.cookies


async def test_every_answer_carries_the_security_headers(node: Console) -> None:
    person = await node.enter("mara")
    for path in ("/", "/studies/x", "/api/home", "/api/nothing", "/api/datasets/none"):
        answer = await person.ask("GET", path)
        for name, value in HEADERS.items():
            if not (name == "Cache-Control" and not path.startswith("/api")):
                assert answer.headers[name] == value, (path, name)
    policy = HEADERS["Content-Security-Policy"]
    assert "script-src 'self';" in policy and "default-src 'none'" in policy
    stranger = await node.stranger()
    said = {"name": "mara", "password": PASSWORD}
    kept = (await stranger.ask("POST", "/api/session", said)).headers["set-cookie"].lower()
    assert "httponly" in kept and "samesite=strict" in kept and "path=/" in kept


async def test_with_a_certificate_the_cookie_is_held_to_the_host(tmp_path: Path) -> None:
    pair = Settings(certificate="secrets/tls.pem", key="secrets/tls.key")
    async with console(tmp_path, console=pair) as node:
        link = signing.invite(node.here, ROLES, 1.0, "root").link
        tls = tls_context(pair, node.here.directory)
        server = PeopleServer(app.make_app(node.here, lambda: 0.0), tls, 10)
        port = await server.start("127.0.0.1", 0)
        node.here.place.origins = placed(pair, port).origins
        try:
            async with httpx.AsyncClient(
                base_url=f"https://127.0.0.1:{port}",
                verify=False,  # noqa: S501 - the authority of a test
            ) as http:
                token = link.partition("#")[2]
                body = {"token": token, "name": "mara", "password": PASSWORD}
                answer = await http.post("/api/invitation/accept", json=body)
                assert answer.json()["signed_in"]
                kept = answer.headers["set-cookie"]
                assert kept.startswith("__Host-consilia=") and "Secure" in kept
                assert "max-age" in answer.headers["strict-transport-security"]
                assert (await http.get("/api/session")).json()["signed_in"]
        finally:
            await server.stop(0.1)


async def test_an_address_that_asks_too_often_waits(node: Console) -> None:
    still = Console(node.here, node.clock, app.make_app(node.here, lambda: 0.0), node.stack)
    hasty = await still.stranger()
    said = {"name": "mara", "password": "wrong"}
    codes = [
        (await hasty.ask("POST", "/api/invitation/check", {"token": "x"})).status_code
        for _ in range(10)
    ]
    assert codes == [401] * 10
    answer = await hasty.ask("POST", "/api/session", said)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")


# ---- getting in ------------------------------------------------------------------------------


async def test_wrong_passwords_lock_an_account_and_say_nothing(node: Console) -> None:
    await node.enter("mara")
    stranger = await node.stranger()
    said = {"name": "mara", "password": "wrong password, sorry"}
    details = {await stranger.refused("POST", "/api/session", said, 401) for _ in range(5)}
    other = {"name": "nobody", "password": PASSWORD}
    details.add(await stranger.refused("POST", "/api/session", other, 401))
    assert details == {"name, password or code is wrong"}
    right = {"name": "mara", "password": PASSWORD}
    assert "try again in" in await stranger.refused("POST", "/api/session", right, 403)
    assert ("console", "account.lock") in node.actions()
    node.clock.at += 61
    assert (await stranger.do("POST", "/api/session", right))["signed_in"]


async def test_a_second_factor_is_asked_for_and_used_once(node: Console) -> None:
    person = await node.enter("mara")
    made = await person.do("POST", "/api/account/second-factor", {})
    assert made["uri"].startswith("otpauth://totp/Consilia%20charite:mara?secret=")

    def code() -> str:
        return totp.code(made["secret"], int(node.clock.at) // 30)

    confirm = "/api/account/second-factor/confirm"
    assert "clock" in await person.refused("POST", confirm, {"code": "000000"}, 400)
    view = await person.do("POST", confirm, {"code": code()})
    assert view["second_factor"] and view["signed_in"]
    stranger = await node.stranger()
    said = {"name": "mara", "password": PASSWORD}
    assert (await stranger.do("POST", "/api/session", said))["needs_code"]
    assert not (await stranger.get("/api/session"))["signed_in"]
    await stranger.refused("POST", "/api/session", {**said, "code": code()}, 401)  # was used
    node.clock.at += 30
    view = await stranger.do("POST", "/api/session", {**said, "code": code()})
    assert view["signed_in"]


@pytest.mark.parametrize("name", ["agent", "console", "consortium"])
async def test_nobody_signs_in_as_the_software_itself(node: Console, name: str) -> None:
    """The audit trail would show what a person did as done by it."""
    token = signing.invite(node.here, ROLES, 1.0, "root").link.partition("#")[2]
    body = {"token": token, "name": name, "password": PASSWORD}
    stranger = await node.stranger()
    refused = await stranger.refused("POST", "/api/invitation/accept", body, 400)
    assert "stands for the software" in refused


async def test_a_second_factor_is_not_guessed_away(node: Console) -> None:
    """Whoever has a session and the password, but no device, has five tries."""
    person = await node.enter("mara")
    made = await person.do("POST", "/api/account/second-factor", {})
    code = totp.code(made["secret"], int(node.clock.at) // 30)
    await person.do("POST", "/api/account/second-factor/confirm", {"code": code})
    node.clock.at += 30
    code = totp.code(made["secret"], int(node.clock.at) // 30)
    said = {"name": "mara", "password": PASSWORD, "code": code}
    person = await node.stranger()
    person.csrf = (await person.do("POST", "/api/session", said))["csrf"]
    own = await person.refused(
        "PATCH", "/api/accounts/mara", {"remove_second_factor": True}, 403
    )
    assert "with password and code" in own
    said = {"password": PASSWORD, "code": code}  # used already
    for _ in range(FREE):
        text = await person.refused("POST", "/api/account/second-factor/remove", said, 400)
        assert "not the one of this moment" in text
    node.clock.at += 30
    right = {"password": PASSWORD, "code": totp.code(made["secret"], int(node.clock.at) // 30)}
    remove = "/api/account/second-factor/remove"
    assert "too many failed attempts" in await person.refused("POST", remove, right, 403)


async def test_a_required_second_factor_comes_first(tmp_path: Path) -> None:
    async with console(tmp_path, console=Settings(second_factor=True)) as node:
        person = await node.enter("mara")
        assert (await person.get("/api/session"))["must_add_second_factor"]
        answer = await person.ask("GET", "/api/datasets")
        assert answer.status_code == 403 and "second factor" in answer.text
        made = await person.do("POST", "/api/account/second-factor", {})
        code = totp.code(made["secret"], int(node.clock.at) // 30)
        await person.do("POST", "/api/account/second-factor/confirm", {"code": code})
        assert await person.get("/api/datasets") == {"datasets": []}


async def test_sessions_end_by_themselves_and_pages_do_not_prolong_them(node: Console) -> None:
    person = await node.enter("mara")
    for _ in range(4):
        node.clock.at += 1000
        await person.get("/api/home")
    node.clock.at += 1000
    automatic = await person.ask("GET", "/api/home", headers={"X-Automatic": "1"})
    assert automatic.status_code == 200
    assert {r.opt.get("automatic") for r in app.ROUTES if "/events" in r.paths} == {True}
    node.clock.at += 1000
    await person.refused("GET", "/api/home", None, 401)


async def test_an_administrator_governs_accounts_and_cannot_lock_all_out(node: Console) -> None:
    admin = await node.enter("mara", "administrator")
    other = await node.enter("moritz", "reviewer")
    await other.get("/api/plans")
    changed = await admin.do("PATCH", "/api/accounts/moritz", {"roles": ["dpo"]})
    assert changed["roles"] == ["dpo"]
    await other.refused("GET", "/api/plans", None, 401)  # signed out by the change
    for body in ({"disabled": True}, {"roles": ["reviewer"]}):
        text = await admin.refused("PATCH", "/api/accounts/mara", body, 403)
        assert "nobody would be administrator" in text
    await admin.refused("DELETE", "/api/accounts/mara", None, 403)
    await admin.do("DELETE", "/api/accounts/moritz")
    assert [a["name"] for a in (await admin.get("/api/accounts"))["accounts"]] == ["mara"]
    assert "unknown key 'rolls'" in await admin.refused(
        "POST", "/api/accounts/invitations", {"rolls": []}, 400
    )


@pytest.mark.parametrize("change", [{"disabled": True}, {"roles": ["dpo"]}, None])
async def test_an_invitation_ends_with_its_makers_rights(
    node: Console, change: dict[str, object] | None
) -> None:
    admin = await node.enter("mara", "administrator")
    leaver = await node.enter("lars", "administrator")
    wanted = {"roles": ["administrator"], "hours": 720.0}
    link = (await leaver.do("POST", "/api/accounts/invitations", wanted))["link"]
    if change is None:
        await admin.do("DELETE", "/api/accounts/lars")
    else:
        await admin.do("PATCH", "/api/accounts/lars", change)
    body = {"token": link.partition("#")[2], "name": "back", "password": PASSWORD}
    stranger = await node.stranger()
    await stranger.refused("POST", "/api/invitation/accept", body, 401)
    assert "back" not in [a["name"] for a in (await admin.get("/api/accounts"))["accounts"]]


async def test_a_new_password_ends_the_other_sessions(node: Console) -> None:
    person = await node.enter("mara")
    elsewhere = await node.stranger()
    await elsewhere.do("POST", "/api/session", {"name": "mara", "password": PASSWORD})
    change = {"password": "not the password", "new_password": "another long sentence"}
    await person.refused("POST", "/api/account/password", change, 403)
    view = await person.do("POST", "/api/account/password", {**change, "password": PASSWORD})
    assert view["signed_in"]
    assert not (await elsewhere.get("/api/session"))["signed_in"]
    kept = node.here.store.rows("SELECT password FROM accounts")[0][0]
    audit = repr(node.here.store.rows("SELECT * FROM audit"))
    person.csrf = view["csrf"]
    listed = await person.ask("GET", "/api/accounts")
    for secret in (kept, PASSWORD, "another long sentence"):
        assert secret not in audit and secret not in listed.text


# ---- the work --------------------------------------------------------------------------------


def offer(node: Console) -> tuple[str, str]:
    """Offer a study and a plan as the hub does; return their digests."""
    store, now, plan = node.here.store, node.clock(), make_plan()
    studies.offer(store, STUDY, now)
    digest = plan_digest(plan)
    approvals.offer(store, plan, digest, study=STUDY.name, author="ada", now=now)
    peers.told(store, {"leuven": os.urandom(32)}, now)
    return study_digest(STUDY), digest


async def test_a_person_runs_the_site_in_the_console_alone(
    node: Console, tmp_path: Path
) -> None:
    person = await node.enter("mara")
    study, plan = offer(node)
    waiting = (await person.get("/api/home"))["waiting"]
    assert {w["kind"] for w in waiting} == {"hub", "study", "plan"}
    write_table(tmp_path / "data" / "cohort.csv", 150)
    (root,) = (await person.get("/api/folders"))["folders"]
    (file,) = (await person.get("/api/folders", params={"path": root}))["files"]
    found = await person.do("POST", "/api/datasets/inspect", {"path": file["path"]})
    assert (found["records"], [c["type"] for c in found["columns"]]) == (150, ["int64"] * 2)
    body = {
        "path": file["path"],
        "name": "cohort",
        "tags": ["cohort"],
        "columns": [{"name": "x", "type": "float32", "unit": "mg/dL"}],
    }
    made = await person.do("POST", "/api/datasets", body)
    assert made["columns"][0] == {
        **{"name": "x", "type": "float32", "unit": "mg/dL", "code_system": ""},
        **{"role": "feature", "missing": [], "description": "", "unit_known": True},
    }
    odd = {"columns": [{"name": "x", "unit": "mg/dLL"}]}  # kept: UCUM has more than is known
    (kept, _) = (await person.do("PATCH", "/api/datasets/cohort", odd))["columns"]
    assert (kept["unit"], kept["unit_known"]) == ("mg/dLL", False)
    shown = await person.get("/api/datasets/cohort/preview", params={"rows": 2})
    assert [float(row[0]) for row in shown["rows"]] == [0.0, 1.0]
    view = await person.get(f"/api/studies/{study}")
    assert (view["state"], view["matching"], view["plans"]) == ("pending", ["cohort"], [plan])
    words = {p["site"]: p["told"] for p in view["peers"] if p["told"] and not p["own"]}
    stale = {"words": {"leuven": "another six words than were told"}}
    text = await person.refused("POST", f"/api/studies/{study}/accept", stale, 409)
    assert "another by now" in text
    accept = {"words": words, "datasets": ["cohort"], "reason": "contract"}
    assert (await person.do("POST", f"/api/studies/{study}/accept", accept))["by"] == "mara"
    review = await person.get(f"/api/plans/{plan}")
    assert review["files"][0]["path"] == "plan.py" and review["findings"]
    assert (await person.get(f"/api/plans/{plan}/diff"))["against"] == ""
    approve = {"reason": "read it", "arguments": {"lr": [0.1, 1.0]}}
    decided = await person.do("POST", f"/api/plans/{plan}/approve", approve)
    assert (decided["state"], decided["reviewer"]) == ("approved", "mara")
    (argument,) = [
        a for a in (await person.get(f"/api/plans/{plan}"))["arguments"] if a["name"] == "lr"
    ]
    assert argument["approved"] == "0.1 to 1"
    with node.here.store.write() as tx:
        tx.audit(node.clock(), "agent", "release", "job-1.1.0.charite", "released", "8 kB")
        tx.audit(node.clock(), "user:mara", "pool.send", "sha256:5a", "sent", "46 records")
    left = (await person.get("/api/releases", params={"job": "job-1"}))["releases"]
    assert [(r["action"], r["detail"]) for r in left] == [("release", "8 kB")]
    assert not (await person.get("/api/releases", params={"job": "job-2"}))["releases"]
    every = (await person.get("/api/releases"))["releases"]
    assert (every[0]["action"], every[0]["detail"]) == ("pool.send", "46 records")
    await person.do("POST", "/api/runs/job-1/stop", {"reason": "enough"})
    assert (await person.get("/api/runs"))["stopped"] == ["job-1"]
    await person.do("POST", "/api/runs/job-1/resume", {"reason": "all well"})
    await person.refused("POST", "/api/runs/job-1/resume", {"reason": "twice"}, 404)
    for verb, body in (("revoke", {"reason": "enough"}), ("reject", {"reason": "no"})):
        await person.do("POST", f"/api/plans/{plan}/{verb}", body)
    leave = await person.do("POST", f"/api/studies/{study}/leave", {"reason": "over"})
    assert leave["state"] == "left"


async def test_a_changed_file_is_shown_and_taken_in(node: Console, tmp_path: Path) -> None:
    person = await node.enter("mara")
    path = tmp_path / "data" / "cohort.csv"
    datasets.add(node.here.store, write_table(path, 100), actor="m", now=node.clock())
    assert (await person.get("/api/datasets/cohort"))["problem"] == ""
    path.write_text(path.read_text() + "7,1\n")
    assert "changed" in (await person.get("/api/datasets/cohort"))["problem"]
    assert "dataset" in {w["kind"] for w in (await person.get("/api/home"))["waiting"]}
    taken = await person.do("POST", "/api/datasets/cohort/refresh", {})
    assert (taken["records"], taken["problem"]) == (101, "")
    off = {"enabled": False, "tags": ["cohort", "new"], "description": "ours"}
    view = await person.do("PATCH", "/api/datasets/cohort", off)
    assert (view["enabled"], view["tags"], view["description"]) == (
        False,
        ["cohort", "new"],
        "ours",
    )
    wrong = {"columns": [{"name": "x", "role": "featur"}]}
    text = await person.refused("PATCH", "/api/datasets/cohort", wrong, 400)
    assert "did you mean 'feature'" in text
    await person.do("DELETE", "/api/datasets/cohort")
    assert path.exists() and await person.get("/api/datasets") == {"datasets": []}


async def test_the_second_reviewer_sees_what_the_first_has_signed(node: Console) -> None:
    mara, paul = await node.enter("mara"), await node.enter("paul")
    _, plan = offer(node)
    settings = msgspec.structs.replace(node.here.config(), reviewers_needed=2)
    (node.here.directory / config.FILE).unlink()
    config.save(node.here.directory, settings)
    terms = {"reason": "read it", "arguments": {"lr": [0.1, 1.0]}, "until": "2099-12-31"}
    signed = await mara.do("POST", f"/api/plans/{plan}/approve", terms)
    assert signed["state"] == "pending"
    seen = await paul.get(f"/api/plans/{plan}")
    told = seen["summary"]
    assert (seen["reviewers"], told["reason"], told["until"]) == (
        ["mara"], "read it", "2099-12-31",
    )  # fmt: skip
    (ranges,) = [a["approved"] for a in seen["arguments"] if a["name"] == "lr"]
    assert ranges == "0.1 to 1"
    late = {"reason": "too", "seen": seen["mark"]}  # of a page that was open meanwhile
    node.clock.at += 1
    await mara.do(
        "POST", f"/api/plans/{plan}/reject", {"reason": "line 4", "seen": seen["mark"]}
    )
    text = await paul.refused("POST", f"/api/plans/{plan}/approve", late, 409)
    assert "rejected, decided by mara (line 4); look at it again" in text
    await mara.do("POST", f"/api/plans/{plan}/approve", terms)
    agreed = await paul.do("POST", f"/api/plans/{plan}/approve", {"reason": "too"})
    assert (agreed["state"], agreed["until"]) == ("approved", "2099-12-31")


async def test_a_type_and_its_missing_codes_are_declared_in_one_go(
    node: Console, tmp_path: Path
) -> None:
    person, file = await node.enter("mara"), tmp_path / "data" / "vessels.csv"
    file.write_text("ca\n0\n?\n" + "2\n" * 9)
    body = {"path": str(file), "name": "vessels", "tags": ["heart"]}
    column: dict[str, object] = {"name": "ca", "type": "float64"}
    text = await person.refused("POST", "/api/datasets", body | {"columns": [column]}, 422)
    assert "declare '?' as a missing code" in text
    column["missing"] = ["?"]
    made = await person.do("POST", "/api/datasets", body | {"columns": [column]})
    assert (made["columns"][0]["type"], made["columns"][0]["missing"]) == ("float64", ["?"])


async def test_a_dataset_registered_here_leaves_out_who_opted_out(
    node: Console, tmp_path: Path
) -> None:
    store, secret = node.here.store, optout.key(node.here.directory)
    optout.add(store, ["2"], secret, actor="mara", now=node.clock())
    person = await node.enter("mara", "data_manager")
    table = tmp_path / "data" / "cohort.csv"
    table.write_text("id,x\n" + "".join(f"{i},{i % 7}\n" for i in range(40)))
    body = {"path": str(table), "name": "cohort", "tags": ["cohort"], "patient": "id"}
    await person.do("POST", "/api/datasets", body)
    ready = Loading(store).prepared(datasets.get(store, "cohort").dataset, "any")
    assert (ready.problem, ready.dataset.records) == ("", 39)


async def test_no_path_leads_out_of_the_data_roots(node: Console, tmp_path: Path) -> None:
    person = await node.enter("mara", "data_manager")
    outside = tmp_path / "outside.csv"
    outside.write_text("x\n1\n")
    data = tmp_path / "data"
    (data / "link.csv").symlink_to(outside)
    (data / "up").symlink_to(tmp_path)
    node_folder = str(node.here.directory)
    for path, status in (
        (str(outside), 403),
        (f"{data}/../outside.csv", 403),
        (f"{data}/link.csv", 403),
        (f"{data}/up/outside.csv", 403),
        (f"{node_folder}/node.yaml", 403),
        ("/etc/passwd", 403),
        ("data/x.csv", 400),
        ("\0", 400),
    ):
        for verb in ("/api/datasets/inspect", "/api/datasets"):
            body: dict[str, Any] = {"path": path}
            if not verb.endswith("inspect"):
                body |= {"name": "x", "tags": ["x"]}
            await person.refused("POST", verb, body, status)
    assert (await person.ask("GET", "/api/folders?path=/etc")).status_code == 403
    assert (await person.ask("GET", f"/api/folders?path={data}/up")).status_code == 403


async def test_a_policy_is_tried_then_put_in_force(node: Console) -> None:
    person = await node.enter("mara")
    view = await person.get("/api/policy")
    text = view["yaml"] + "\n" if view["yaml"].startswith("{") else view["yaml"]
    stricter = "site: charite\nhub: https://hub.invalid:1\nmin_records: 500\n"
    stricter += f"console: {{data_roots: ['{view['values']['console']['data_roots'][0]}']}}\n"
    checked = await person.do("POST", "/api/policy/check", {"yaml": stricter})
    assert checked["problem"] == "" and checked["days"] == 30
    assert [(c["key"], c["before"], c["after"]) for c in checked["changes"]] == [
        ("min_records", "100", "500")
    ]
    for wrong, why in (
        (stricter.replace("min_records", "min_record"), "did you mean 'min_records'"),
        (stricter + "sandbox: 'off'\n", "sandbox is decided on the node's machine"),
        (stricter.replace("charite", "leuven"), "leuven"),
    ):
        assert why in (await person.do("POST", "/api/policy/check", {"yaml": wrong}))["problem"]
    await person.refused("PUT", "/api/policy", {"yaml": stricter, "digest": "old"}, 409)
    body = {"yaml": stricter, "digest": view["digest"]}
    assert (await person.do("PUT", "/api/policy", body))["values"]["min_records"] == 500
    assert ("mara", "policy.apply") in node.actions() and text
    off = {"yaml": stricter + "sandbox: 'off'\n", "digest": view["digest"]}
    assert (await person.ask("PUT", "/api/policy", off)).status_code in (403, 409)


async def test_the_trail_is_filtered_paged_verified_and_exported(node: Console) -> None:
    person = await node.enter("mara")
    with node.here.store.write() as tx:
        for i in range(5):
            tx.audit(node.clock() + i, "agent", "task.start", f"job-{i}", "allowed", "=1+1")
    page = await person.get("/api/audit", params={"action": "task", "limit": 2})
    assert [line["subject"] for line in page["lines"]] == ["job-4", "job-3"]
    rest = {"action": "task", "before": page["next"], "limit": 9}
    assert len((await person.get("/api/audit", params=rest))["lines"]) == 3
    found = await person.get("/api/audit", params={"text": "JOB-2", "actor": "agent"})
    assert [line["subject"] for line in found["lines"]] == ["job-2"]
    assert (await person.do("POST", "/api/audit/verify"))["whole"]
    exported = (await person.ask("GET", "/api/audit/export")).text
    assert "'=1+1" in exported and len(exported.splitlines()) == 8
    node.here.store._writer.executescript(
        "DROP TRIGGER audit_stays; UPDATE audit SET outcome = 'refused' WHERE seq = 4"
    )
    broken = await person.do("POST", "/api/audit/verify")
    assert (broken["whole"], broken["seq"]) == (False, 4)
    for wrong in ({"limit": 0}, {"limit": 5000}, {"before": "x"}):
        assert (await person.ask("GET", "/api/audit", params=wrong)).status_code == 400


async def test_no_odd_request_is_a_defect(node: Console) -> None:
    person = await node.enter("mara")
    huge, deep = str(10**30), "x: " + "[" * 2000
    for path in ("/api/audit?before=", "/api/releases?before=", "/api/ledger/entries?before="):
        for odd in (huge, f"-{huge}", "nan", "%ff"):
            answer = await person.ask("GET", path + odd)
            assert answer.status_code in (200, 400), (path, odd, answer.text)
    for text, why in ((deep, "deeper"), ("&a [*a]", "reference"), ("a: [", "not valid YAML")):
        for path in ("/api/loading-plans/x", "/api/policy"):
            body = {"yaml": text}
            if path.endswith("policy"):
                body |= {"digest": (await person.get(path))["digest"]}
            assert why in await person.refused("PUT", path, body, 400)
    for raw in (b"[" * 100_000, b"\xff", b'{"name": "\\ud800"}', b"a=b"):
        answer = await person.ask("POST", "/api/account/password", content=raw)
        assert answer.status_code == 400, (raw[:20], answer.text)


async def test_caps_of_the_ledger_are_set_with_a_reason(node: Console) -> None:
    person = await node.enter("mara")
    cap = {"kind": "study", "name": "hearts", "epsilon": 2.0, "reason": "board 2026-17"}
    view = await person.do("PUT", "/api/ledger/caps", cap)
    assert ("study", 2.0) in [(a["kind"], a["cap"]) for a in view["accounts"]]
    (entry,) = (await person.get("/api/ledger/entries"))["entries"]
    assert (entry["kind"], entry["actor"], entry["detail"]) == ("cap", "mara", "board 2026-17")
    assert (await person.do("POST", "/api/ledger/verify"))["whole"]
    drop = {"kind": "study", "name": "hearts", "reason": "ended"}
    await person.do("POST", "/api/ledger/caps/drop", drop)
    assert "board 2026-17" in (await person.ask("GET", "/api/ledger/export")).text


async def test_the_filter_offers_the_actions_of_closed_segments_too(node: Console) -> None:
    person = await node.enter("mara", "dpo")
    store, key = node.here.store, Ed25519PrivateKey.generate()
    with store.write() as tx:
        tx.audit(node.clock(), "agent", "task.start", "job-1", "allowed", "")
    before = set((await person.get("/api/audit"))["actions"])
    closed = segments.close(store, key, node.here.site, node.clock(), size=1)
    assert closed is not None
    assert "task.start" in before
    with store.write() as tx:
        tx.audit(node.clock(), "agent", "task.fail", "job-1", "crashed", "")
    path = segments.path_of(store, closed)
    for _ in range(2):
        newest = await person.get("/api/audit", params={"limit": 1})
        assert set(newest["actions"]) == before | {"audit.close", "task.fail"}
        path.rename(path.with_suffix(".away"))  # what was read once is not read again
        path = path.with_suffix(".away")
