"""Sign-in at the hub by a real OpenID Connect provider and a real LDAP server."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from restkit import CONFIG, RestHub, running_hub

from consilia.accounts.directory import Ldap, Oidc, SignInBy
from ldapkit import GROUPS, PASSWORD, PEOPLE, SERVICE, SERVICE_PASSWORD, Directory, ldap_server
from oidckit import CLIENT, SECRET, Provider, at_the_provider, oidc_provider

AUTH = "/api/v1/auth"


@dataclass
class Institute:
    """A hub, and the two directories of its people."""

    hub: RestHub
    provider: Provider
    ldap: Directory

    def people(self, **groups: tuple[str, ...]) -> None:
        """Let these people exist at the provider."""
        told: dict[str, Any] = {
            name: {"preferred_username": name, "groups": list(held)}
            for name, held in groups.items()
        }
        self.provider.users(**told)

    def by_page(self, browser: httpx.Client, login: str) -> httpx.Response:
        """Walk to the provider's page and back."""
        sent = browser.get(f"{AUTH}/oidc/oidc/start")
        assert sent.status_code == 303, sent.text
        back = asyncio.run(at_the_provider(sent.headers["location"], login))
        parts = urlsplit(back)
        return browser.get(f"{parts.path}?{parts.query}")


@pytest.fixture(scope="module")
def institute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Institute]:
    folder = tmp_path_factory.mktemp("institute")
    (folder / "ldap").mkdir()
    with oidc_provider() as provider, ldap_server(folder / "ldap") as ldap:
        for name, text in (("oidc", SECRET), ("ldap-password", SERVICE_PASSWORD)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
        sign_in = SignInBy(
            oidc=Oidc(
                provider.issuer, CLIENT, {"researcher": ("science",), "auditor": ("audit",)},
                client_secret_file=str(folder / "oidc"),
                scopes=("openid", "profile", "offline_access"),
            ),
            ldap=Ldap(
                ldap.url, PEOPLE, {"auditor": (f"cn=auditors,{GROUPS}",)},
                ca=str(ldap.folder / "ca.pem"), bind_dn=SERVICE,
                bind_password_file=str(folder / "ldap-password"),
            ),
            contact="the registry, 12",
            recheck_minutes=1,
        )  # fmt: skip
        config = msgspec.structs.replace(CONFIG, sign_in=sign_in)
        with running_hub(folder / "hub", config) as hub:
            origin = hub.addresses.people.replace("127.0.0.1", CONFIG.hosts[0])
            provider.client(f"{origin}{AUTH}/oidc/oidc/callback")
            yield Institute(hub, provider, ldap)


def test_a_person_of_the_provider_signs_in_and_out_of_it(institute: Institute) -> None:
    institute.people(ada=("science",), ben=("sports",))
    with institute.hub.http() as browser:
        told = {p["kind"]: p["start"] for p in browser.get(f"{AUTH}/providers").json()}
        assert told == {"password": None, "ldap": None, "oidc": f"{AUTH}/oidc/oidc/start"}
        back = institute.by_page(browser, "ada")
        assert (back.status_code, back.headers["location"]) == (303, "/")
        assert "samesite=strict" in back.headers["set-cookie"].lower()
        token = browser.post(f"{AUTH}/refresh", json={}).json()["access_token"]
        me = browser.get(f"{AUTH}/me", headers={"Authorization": f"Bearer {token}"}).json()
        assert (me["name"], me["roles"], me["provider"]) == ("ada", ["researcher"], "oidc")
        assert not me["second_factor_due"]
        institute.hub.clock.shift += 61  # the provider is asked again, and knows her
        assert browser.post(f"{AUTH}/refresh", json={}).status_code == 200
        institute.people(ben=("sports",))  # ada has left
        assert browser.post(f"{AUTH}/refresh", json={}).status_code == 200  # nobody asks yet
        institute.hub.clock.shift += 61
        assert browser.post(f"{AUTH}/refresh", json={}).status_code == 401
        again = browser.get(f"{AUTH}/me", headers={"Authorization": f"Bearer {token}"})
        assert again.status_code == 401
    assert ("hub", "ada") in institute.hub.lines("account.end-sessions")


def test_who_has_no_role_or_no_sign_in_of_their_own_is_turned_away(
    institute: Institute,
) -> None:
    institute.people(ben=("sports",), carl=("audit",))
    http = institute.hub.http
    with http() as browser, http() as victim, http() as stranger:
        assert institute.by_page(browser, "ben").headers["location"].endswith("not-mapped")
        sent = browser.get(f"{AUTH}/oidc/oidc/start").headers["location"]
        back = urlsplit(asyncio.run(at_the_provider(sent, "carl")))
        victim.get(f"{AUTH}/oidc/oidc/start")
        for other in (victim, stranger):
            answer = other.get(f"{back.path}?{back.query}")
            assert answer.headers["location"].startswith("/sign-in?turned=")
            assert "consilia_refresh" not in answer.headers.get("set-cookie", "")


def test_a_person_of_ldap_signs_in_with_the_password_of_there(institute: Institute) -> None:
    dora, emil = institute.ldap.person("dora"), institute.ldap.person("emil")
    institute.ldap.group("auditors", dora)
    institute.ldap.group("others", emil)
    with institute.hub.http() as browser:
        said = {"name": "dora", "password": PASSWORD, "provider": "ldap"}
        entered = browser.post(f"{AUTH}/login", json=said)
        assert entered.status_code == 200, entered.text
        bearer = {"Authorization": f"Bearer {entered.json()['access_token']}"}
        me = browser.get(f"{AUTH}/me", headers=bearer).json()
        assert (me["name"], me["roles"], me["provider"]) == ("dora", ["auditor"], "ldap")
        for name, password in (("dora", ""), ("dora", "wrong"), ("d*", PASSWORD)):
            wrong = {"name": name, "password": password, "provider": "ldap"}
            assert browser.post(f"{AUTH}/login", json=wrong).status_code == 401
        unmapped = browser.post(f"{AUTH}/login", json={**said, "name": "emil"})
        assert unmapped.status_code == 403 and "the registry, 12" in unmapped.json()["detail"]
        new = {"name": "nightly", "roles": ["auditor"]}
        key = browser.post("/api/v1/keys", json=new, headers=bearer).json()["secret"]
        by_key = {"Authorization": f"Bearer {key}"}
        assert browser.get(f"{AUTH}/me", headers=by_key).status_code == 200
        institute.ldap.remove(dora)
        institute.hub.clock.shift += 61
        refresh = {"refresh_token": entered.json()["refresh_token"]}
        assert browser.post(f"{AUTH}/refresh", json=refresh).status_code == 401
        assert browser.get(f"{AUTH}/me", headers=by_key).status_code == 401


def test_another_way_to_write_a_name_is_no_fresh_set_of_tries(institute: Institute) -> None:
    institute.ldap.group("more-auditors", institute.ldap.person("frida"))
    with institute.hub.http() as browser:

        def tried(name: str, password: str) -> int:
            said = {"name": name, "password": password, "provider": "ldap"}
            return browser.post(f"{AUTH}/login", json=said).status_code

        for _ in range(6):  # the directory knows her; that she has no role is no wrong try
            assert tried("frida", PASSWORD) == 403
        names = ("frida", "Frida", "FRIDA", " frida ", "fRiDa")
        assert [tried(name, "wrong") for name in names] == [401] * 5
        assert tried("friDA", "wrong") == 429
