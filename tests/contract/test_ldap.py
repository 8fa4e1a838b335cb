"""Sign-in by LDAP against a real slapd: who is let in, who is not, what an attacker tries."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from consilia.accounts.directory import Ldap, Person, SignInBy, Turned
from consilia.errors import TransferError
from consilia.node.console.settings import Console as Settings
from consolekit import PASSWORD as LOCAL
from consolekit import Console, console
from consolekit import Person as Browser
from ldapkit import (
    BASE,
    GROUPS,
    PASSWORD,
    PEOPLE,
    SERVICE,
    SERVICE_PASSWORD,
    Directory,
    ldap_server,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directory]:
    """A hospital's directory: mara reviews, nils is in no group with a role."""
    with ldap_server(tmp_path_factory.mktemp("ldap")) as running:
        mara, nils = running.person("mara"), running.person("nils")
        running.group("reviewers", mara)
        running.group("gardeners", mara, nils)
        yield running


def settings(directory: Directory, folder: Path, **more: Any) -> Ldap:
    """What a hospital writes into node.yaml, by a service account."""
    secret = folder / "ldap-password"
    secret.write_text(SERVICE_PASSWORD)
    secret.chmod(0o600)
    said: dict[str, Any] = {
        "url": directory.url,
        "base": PEOPLE,
        "roles": {"reviewer": (f"CN=Reviewers, {GROUPS}",), "dpo": (f"cn=dpos,{GROUPS}",)},
        "ca": str(directory.folder / "ca.pem"),
        "bind_dn": SERVICE,
        "bind_password_file": str(secret),
    }
    return Ldap(**{**said, **more})


def line(directory: Directory, folder: Path, **more: Any) -> Any:
    from consilia.accounts.ldapline import LdapLine  # noqa: PLC0415 - needs the extra

    return LdapLine(settings(directory, folder, **more), folder)


def test_who_is_known_and_mapped_is_let_in(directory: Directory, tmp_path: Path) -> None:
    for more in (
        {},
        {"groups_attribute": "", "group_base": GROUPS},
        {"bind_dn": "", "bind_password_file": "", "user_dn": f"uid={{name}},{PEOPLE}"},
    ):
        made = line(directory, tmp_path, **more)
        found = made.sign_in("MARA", PASSWORD)
        assert isinstance(found, Person), found
        assert (found.kind, found.name, found.roles) == ("ldap", "mara", ("reviewer",))
        assert found.subject.startswith(f"{PEOPLE} ") and len(found.subject) > len(PEOPLE) + 30
        turned = made.sign_in("nils", PASSWORD)
        assert isinstance(turned, Turned) and turned.reason == "not-mapped"


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("mara", "wrong"),
        ("mara", ""),  # slapd says yes to it: an anonymous session
        ("mara", "\0"),
        ("", PASSWORD),
        ("*", PASSWORD),
        ("m*", PASSWORD),
        ("mara)(uid=*", PASSWORD),
        ("*)(|(uid=mara", PASSWORD),
        ("mara,ou=people", PASSWORD),
        ("mara\0", PASSWORD),
        ("console", SERVICE_PASSWORD),  # the service account is nobody to sign in as
        ("nobody", PASSWORD),
    ],
)
def test_nobody_else_is(directory: Directory, tmp_path: Path, name: str, password: str) -> None:
    template = {"bind_dn": "", "bind_password_file": "", "user_dn": f"uid={{name}},{PEOPLE}"}
    for more in ({}, template):
        found = line(directory, tmp_path, **more).sign_in(name, password)
        assert isinstance(found, Turned) and found.reason == "wrong", found


def test_a_filter_of_many_is_nobodys(directory: Directory, tmp_path: Path) -> None:
    made = line(directory, tmp_path, filter="(|(uid={name})(uid=*))")
    found = made.sign_in("mara", PASSWORD)
    assert isinstance(found, Turned) and "more than one" in found.detail


def test_no_password_goes_where_nobody_can_be_sure_who_listens(
    directory: Directory, tmp_path: Path
) -> None:
    stranger = str(directory.folder / "other.pem")
    for more, why in (
        ({"ca": stranger}, "CERTIFICATE_VERIFY_FAILED"),
        ({"ca": ""}, "CERTIFICATE_VERIFY_FAILED"),
        ({"url": f"ldap://localhost:{directory.port}"}, "Hostname mismatch"),
        ({"url": f"ldaps://127.0.0.1:{directory.port}"}, "cannot be asked"),
        ({"plaintext": True}, "onfidentiality"),  # this server refuses what we were told to do
        ({"url": "ldap://127.0.0.1:9"}, "cannot be asked"),
        ({"bind_dn": f"cn=other,{BASE}"}, "refuses the service account"),
    ):
        with pytest.raises(TransferError, match=why):
            line(directory, tmp_path, **more).sign_in("mara", PASSWORD)


# ---- the console -----------------------------------------------------------------------------


@pytest.fixture
async def node(tmp_path: Path, directory: Directory) -> AsyncIterator[Console]:
    (tmp_path / "keys").mkdir()
    ldap = settings(directory, tmp_path / "keys")
    by = SignInBy(ldap=ldap, contact="the help desk, 4711", recheck_minutes=10)
    async with console(tmp_path, console=Settings(sign_in=by)) as made:
        yield made


async def entered(node: Console, name: str) -> Browser:
    """Sign somebody in with the password of the directory."""
    person = await node.stranger()
    said = {"name": name, "password": PASSWORD, "provider": "ldap"}
    view = await person.do("POST", "/api/session", said)
    person.csrf = view["csrf"]
    assert view["signed_in"] and view["provider"] == "ldap", view
    return person


async def test_a_person_of_the_directory_at_the_console(
    node: Console, directory: Directory
) -> None:
    admin = await node.enter("root-of-here")
    olga = directory.person("olga")
    group = directory.group("dpos", olga)
    person = await entered(node, "Olga")
    assert (await person.get("/api/session"))["roles"] == ["dpo"]
    shown = (await admin.get("/api/accounts"))["accounts"]
    assert {a["name"]: a["provider"] for a in shown} == {
        "olga": "ldap", "root-of-here": "password",
    }  # fmt: skip
    said = {"password": PASSWORD, "new_password": LOCAL}
    detail = await person.refused("POST", "/api/account/password", said, 409)
    assert "directory keeps this password" in detail
    roles = {"roles": ["administrator"]}
    assert "groups" in await admin.refused("PATCH", "/api/accounts/olga", roles, 403)
    local = {"name": "olga", "password": PASSWORD}
    stranger = await node.stranger()
    await stranger.refused("POST", "/api/session", local, 401)  # no password of hers is here

    node.clock.at += 601  # within the session's half hour, after the directory's ten minutes
    await person.get("/api/home")
    directory.members(group, SERVICE)  # olga leaves the group
    await person.get("/api/home")  # nobody asks yet
    node.clock.at += 601
    assert "directory" in await person.refused("GET", "/api/home", None, 401)
    assert ("console", "account.end") in node.actions()
    said = {"name": "olga", "password": PASSWORD, "provider": "ldap"}
    detail = await person.refused("POST", "/api/session", said, 403)
    assert "none of your groups" in detail and "the help desk, 4711" in detail
    directory.remove(olga)
    directory.remove(group)
    await person.refused("POST", "/api/session", said, 401)


async def test_an_account_of_here_is_not_taken_over(
    node: Console, directory: Directory
) -> None:
    await node.enter("mara")
    stranger = await node.stranger()
    said = {"name": "mara", "password": PASSWORD, "provider": "ldap"}
    assert "another account" in await stranger.refused("POST", "/api/session", said, 403)
    assert (await stranger.do("POST", "/api/session", {"name": "mara", "password": LOCAL}))[
        "provider"
    ] == "password"  # and opens with its own password as before


async def test_a_disabled_account_stays_out_and_wrong_passwords_rest(
    node: Console, directory: Directory
) -> None:
    admin = await node.enter("root-of-here")
    await entered(node, "mara")
    await admin.do("PATCH", "/api/accounts/mara", {"disabled": True})
    stranger = await node.stranger()
    said = {"name": "mara", "password": PASSWORD, "provider": "ldap"}
    assert "switched off" in await stranger.refused("POST", "/api/session", said, 403)
    wrong = {**said, "password": "wrong"}
    for _ in range(5):
        await stranger.refused("POST", "/api/session", wrong, 401)
    assert "try again in" in await stranger.refused("POST", "/api/session", said, 403)


async def test_a_silent_directory_lets_people_go_on_for_a_while(
    node: Console, directory: Directory, tmp_path: Path
) -> None:
    person = await entered(node, "mara")
    answers = node.here.outside.ldap
    node.here.outside.ldap = line(directory, tmp_path, url="ldap://127.0.0.1:9")
    node.clock.at += 700
    await person.get("/api/home")
    node.clock.at += 560  # twice ten minutes have passed
    assert "cannot be asked" in await person.refused("GET", "/api/home", None, 401)
    node.here.outside.ldap = answers
    node.clock.at += 31
    await person.get("/api/home")  # the session is still there
