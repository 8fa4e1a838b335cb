"""Sign-in by OpenID Connect against a real provider: the road, and what goes wrong on it."""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey, OKPKey, RSAKey

from consilia.accounts import links, totp
from consilia.accounts.directory import Oidc, SignInBy
from consilia.node.console.settings import Console as Settings
from consolekit import ORIGIN, Console, console
from consolekit import Person as Browser
from oidckit import CALLBACK, CLIENT, SECRET, Provider, at_the_provider, oidc_provider

CROSS = {"Sec-Fetch-Site": "cross-site"}


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with oidc_provider() as made:
        yield made


@pytest.fixture
def provider(running: Provider) -> Provider:
    """The provider with two people in it: mara reviews, nils has no role here."""
    running.users(
        m1={"preferred_username": "mara@hospital.example", "groups": ["reviewers", "staff"]},
        n1={"preferred_username": "nils", "groups": ["staff"]},
    )
    return running


def settings(provider: Provider, folder: Path, second_factor: bool, **more: Any) -> Settings:
    """What a hospital writes into node.yaml."""
    secret = folder / "oidc-secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    said: dict[str, Any] = {
        "issuer": provider.issuer,
        "client_id": CLIENT,
        "client_secret_file": str(secret),
        "roles": {"reviewer": ("reviewers",), "dpo": ("dpos",)},
        "scopes": ("openid", "profile", "offline_access"),
        "domain": "hospital.example",
    }
    by = SignInBy(oidc=Oidc(**{**said, **more}), contact="the help desk", recheck_minutes=1)
    return Settings(sign_in=by, second_factor=second_factor)


@pytest.fixture
async def node(tmp_path: Path, provider: Provider) -> AsyncIterator[Console]:
    made = settings(provider, tmp_path, second_factor=True)  # which is not asked of them
    async with console(tmp_path, console=made) as running:
        yield running


async def visit(person: Browser, path: str, **headers: str) -> Any:
    """Let a browser visit a page, as by a link or a redirect; follow nothing."""
    return await person.http.get(path, headers=headers)


async def begun(person: Browser, wanted: str = "/") -> str:
    """Begin a sign-in; return the provider's page."""
    answer = await visit(person, f"/oidc/start?wanted={wanted}")
    assert answer.status_code == 303, answer.text
    kept = answer.headers["set-cookie"].lower()
    assert "httponly" in kept and "samesite=lax" in kept
    return str(answer.headers["location"])


async def come_back(person: Browser, url: str) -> str:
    """Visit the console as the provider sends the browser back; return where it goes then."""
    answer = await visit(person, url.removeprefix(ORIGIN), **CROSS)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


async def entered(node: Console, login: str) -> tuple[Browser, str]:
    """Walk the whole road; return the browser and the page on which it ends."""
    person = await node.stranger()
    there = await come_back(person, await at_the_provider(await begun(person), login))
    view = await person.get("/api/session")
    person.csrf = view["csrf"]
    return person, there


async def test_the_whole_road(node: Console, provider: Provider) -> None:
    person = await node.stranger()
    told = await person.get("/api/session/providers")
    assert [p["kind"] for p in told["providers"]] == ["oidc", "password"]
    url = await begun(person, "/plans")
    assert "code_challenge_method=S256" in url and url.startswith(provider.issuer)
    back = await at_the_provider(url, "m1")
    assert await come_back(person, back) == "/plans"
    view = await person.get("/api/session")
    assert (view["name"], view["roles"], view["provider"]) == ("mara", ["reviewer"], "oidc")
    assert not view["must_add_second_factor"]
    assert await person.get("/api/home")
    # the same answer again, in this browser and in another
    assert await come_back(person, back) == "/?sign_in=expired"
    stranger = await node.stranger()
    assert await come_back(stranger, back) == "/?sign_in=expired"
    assert not (await stranger.get("/api/session"))["signed_in"]


async def test_who_is_not_mapped_is_told_whom_to_ask(node: Console) -> None:
    person, there = await entered(node, "n1")
    assert there == "/?sign_in=not-mapped"
    assert not (await person.get("/api/session"))["signed_in"]
    assert (await person.get("/api/session/providers"))["contact"] == "the help desk"
    assert ("console", "account.refuse") in node.actions()


async def test_an_answer_to_another_browser_signs_nobody_in(node: Console) -> None:
    """Login CSRF: an attacker lets a victim's browser visit the end of his own sign-in."""
    attacker, victim = await node.stranger(), await node.stranger()
    back = await at_the_provider(await begun(attacker), "m1")
    assert await come_back(victim, back) == "/?sign_in=expired"
    await begun(victim)  # even if the victim has begun one
    assert await come_back(victim, back) == "/?sign_in=failed"
    assert not (await victim.get("/api/session"))["signed_in"]
    assert await come_back(attacker, back) == "/"  # it was good for him alone


@pytest.mark.parametrize(
    ("change", "there"),
    [
        (lambda url: re.sub("code=[^&]+", "code=forged", url), "failed"),
        (lambda url: re.sub("code=[^&]+&?", "", url), "failed"),
        (lambda url: re.sub("state=[^&]+", "state=forged", url), "failed"),
        (lambda url: re.sub("iss=[^&]+", "iss=https%3A%2F%2Fevil.example", url), "failed"),
        (lambda url: re.sub("&?iss=[^&]+", "", url), "failed"),  # it promised to say it
        (lambda url: re.sub("code=[^&]+", "error=access_denied", url), "cancelled"),
        (lambda url: "/oidc/callback?error=access_denied", "failed"),
    ],
)
async def test_a_changed_answer_is_nobodys(node: Console, change: Any, there: str) -> None:
    person = await node.stranger()
    back = await at_the_provider(await begun(person), "m1")
    assert await come_back(person, change(back)) == f"/?sign_in={there}"
    assert not (await person.get("/api/session"))["signed_in"]


@pytest.mark.parametrize(
    "wanted",
    ["//evil.example", "https://evil.example", "/%5Cevil.example/..", "/\\evil.example",
     "/api/session", "/oidc/start", "javascript:alert(1)", "/plans?x=1", "/a%0d%0aX:y"],
)  # fmt: skip
async def test_a_browser_is_sent_to_pages_of_here_alone(node: Console, wanted: str) -> None:
    person = await node.stranger()
    answer = await person.http.get("/oidc/start", params={"wanted": wanted})
    assert answer.status_code == 303
    back = await at_the_provider(answer.headers["location"], "m1")
    assert await come_back(person, back) == "/"


async def test_only_a_page_of_here_begins_a_sign_in(node: Console) -> None:
    person = await node.stranger()
    assert (await visit(person, "/oidc/start", **CROSS)).status_code == 403
    assert (await visit(person, "/oidc/start", Host="evil.example")).status_code == 421


async def test_who_leaves_the_directory_is_signed_out(
    node: Console, provider: Provider
) -> None:
    person, _ = await entered(node, "m1")
    node.clock.at += 59
    await person.get("/api/home")
    node.clock.at += 2
    await person.get("/api/home")
    link = links.find(node.here.store, "mara")
    assert link is not None and link.checked == node.clock.at  # it was asked
    groups = ["reviewers", "dpos"]
    provider.users(m1={"preferred_username": "mara", "groups": groups})
    node.clock.at += 61
    assert "roles are reviewer, dpo now" in await person.refused("GET", "/api/home", None, 401)
    person, _ = await entered(node, "m1")
    assert (await person.get("/api/session"))["roles"] == ["reviewer", "dpo"]
    provider.users(n1={"preferred_username": "nils", "groups": []})  # mara has left
    node.clock.at += 61
    await person.refused("GET", "/api/home", None, 401)
    assert not (await person.get("/api/session"))["signed_in"]
    assert ("console", "account.end") in node.actions()


async def test_without_a_refresh_token_people_sign_in_anew(
    tmp_path: Path, provider: Provider
) -> None:
    made = settings(provider, tmp_path, False, scopes=("openid", "profile"))
    async with console(tmp_path, console=made) as node:
        person, _ = await entered(node, "m1")
        node.clock.at += 61
        assert "anew" in await person.refused("GET", "/api/home", None, 401)
        person, there = await entered(node, "m1")
        assert there == "/"


async def test_what_the_provider_must_have_asked(tmp_path: Path, provider: Provider) -> None:
    async with console(
        tmp_path, console=settings(provider, tmp_path, False, amr=("mfa",))
    ) as node:
        person, there = await entered(node, "m1")
        assert there == "/?sign_in=weak"
        assert not (await person.get("/api/session"))["signed_in"]


async def test_a_code_of_here_besides(tmp_path: Path, provider: Provider) -> None:
    made = settings(provider, tmp_path, False, local_second_factor=True)
    async with console(tmp_path, console=made) as node:
        person, there = await entered(node, "m1")
        assert there == "/" and (await person.get("/api/session"))["must_add_second_factor"]
        await person.refused("GET", "/api/home", None, 403)
        secret = (await person.do("POST", "/api/account/second-factor", {}))["secret"]
        said = {"code": totp.code(secret, int(node.clock.at) // 30)}
        await person.do("POST", "/api/account/second-factor/confirm", said)
        node.clock.at += 60
        person, there = await entered(node, "m1")
        assert there == "/?sign_in=code" and not (await person.get("/api/session"))["signed_in"]
        await person.refused("POST", "/api/session/code", {"code": "000000"}, 401)
        said = {"code": totp.code(secret, int(node.clock.at) // 30)}
        assert (await person.do("POST", "/api/session/code", said))["signed_in"]
        await person.refused("POST", "/api/session/code", said, 401)


async def test_new_keys_of_the_provider_are_learnt_and_their_kinds_known(
    node: Console, provider: Provider
) -> None:
    await entered(node, "m1")
    made: tuple[RSAKey | ECKey | OKPKey, ...] = (
        RSAKey.generate_key(2048),
        ECKey.generate_key("P-256"),
        OKPKey.generate_key("Ed25519"),
    )
    keys = [
        {**key.as_dict(private=True), "kid": f"new-{i}", "use": "sig"}
        for i, key in enumerate(made)
    ]
    provider.tell(keys=keys)
    _, there = await entered(node, "m1")
    assert there == "/?sign_in=failed"  # asked a moment ago: nobody makes us ask all the time
    node.clock.at += 61
    for algorithm in ("RS256", "ES256", "EdDSA"):
        provider.client(CALLBACK, id_token_signed_response_alg=algorithm)
        person, there = await entered(node, "m1")
        assert (await person.get("/api/session"))["name"] == "mara", algorithm
    other = {"id_token_signed_response_alg": "PS256"}  # not on our list
    provider.client(CALLBACK, **other)
    _, there = await entered(node, "m1")
    assert there == "/?sign_in=failed"
    provider.client(CALLBACK)


async def test_a_silent_provider_is_said_to_be_silent(tmp_path: Path) -> None:
    oidc = Oidc("http://127.0.0.1:9", CLIENT, {"dpo": ("dpos",)})
    async with console(tmp_path, console=Settings(sign_in=SignInBy(oidc=oidc))) as node:
        person = await node.stranger()
        answer = await visit(person, "/oidc/start")
        assert answer.headers["location"] == "/?sign_in=unreachable"
