"""What of a provider's answers holds: every forged, stale or foreign ID token is refused."""

import base64
import hmac
import json
import re
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from consilia.accounts import directory, ldap, oidc
from consilia.accounts.directory import Ldap, Oidc, SignInBy, Turned
from consilia.errors import AuthError, ConfigError
from consilia.node import config

PAGE = Path(__file__).parents[2] / "docs/how-to/sign-in-with-oidc-or-ldap.md"
ISSUER = "https://login.hospital.example"
SETTINGS = Oidc(ISSUER, "consilia", {"reviewer": ("reviewers",)})
NOW = 1_800_000_000.0
SECRET = bytes(range(32))
KEY = ECKey.generate_key("P-256")
PUBLIC = {**KEY.as_dict(private=False), "kid": "k1", "use": "sig"}
GOOD: dict[str, Any] = {
    "iss": ISSUER,
    "sub": "m1",
    "aud": "consilia",
    "iat": NOW - 5,
    "exp": NOW + 300,
    "nonce": oidc.nonce(SECRET, ISSUER),
}


def token(claims: dict[str, Any], key: Any = KEY, **header: Any) -> str:
    said = {"alg": "ES256", "kid": "k1", **header}
    registry = oidc._Registry(algorithms=[said["alg"]], strict_check_header=False)
    body = json.dumps(claims).encode()
    return jws.serialize_compact(said, body, key, [said["alg"]], registry)


def accepted(text: str, settings: Oidc = SETTINGS, published: Any = None) -> dict[str, Any]:
    """Check a token as the line does; return its claims."""
    key = oidc.key_for(text, oidc.keys({"keys": [PUBLIC] if published is None else published}))
    if key is None:
        raise AuthError("no such key")
    claims = oidc.signed(text, key)
    oidc.check_claims(claims, settings, oidc.nonce(SECRET, ISSUER), NOW)
    return claims


def test_a_good_token_is_accepted_and_in_every_kind_that_is_on_the_list() -> None:
    assert accepted(token(GOOD))["sub"] == "m1"
    assert accepted(token({**GOOD, "aud": ["consilia", "x"], "azp": "consilia"}))
    for algorithm, key in (
        ("RS256", RSAKey.generate_key(2048)),
        ("EdDSA", OKPKey.generate_key("Ed25519")),
        ("Ed25519", OKPKey.generate_key("Ed25519")),
    ):
        published = [{**key.as_dict(private=False), "kid": "k2"}]
        assert accepted(token(GOOD, key, alg=algorithm, kid="k2"), published=published)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"iss": "https://evil.example"}, "iss"),
        ({"iss": f"{ISSUER}/"}, "iss"),
        ({"aud": "another"}, "aud"),
        ({"aud": ["another"]}, "aud"),
        ({"aud": None}, "aud"),
        ({"aud": ["consilia", "another"]}, "azp"),
        ({"azp": "another"}, "azp"),
        ({"exp": NOW - 61}, "expired"),
        ({"exp": "tomorrow"}, "exp"),
        ({"exp": True}, "exp"),
        ({"exp": float("nan")}, "exp"),
        ({"iat": NOW + 3600}, "iat"),
        ({"iat": NOW - 7200}, "iat"),
        ({"iat": None}, "iat"),
        ({"nbf": NOW + 3600}, "nbf"),
        ({"nonce": oidc.nonce(bytes(32), ISSUER)}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"sub": ""}, "sub"),
        ({"sub": 7}, "sub"),
    ],
)
def test_a_token_that_is_not_for_us_now_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(AuthError, match=why):
        accepted(token({**GOOD, **change}))


def unsigned(header: dict[str, Any]) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part(header)}.{part(GOOD)}."


def with_the_public_key_as_secret() -> str:
    head = unsigned({"alg": "HS256", "kid": "k1"}).rstrip(".")
    mac = hmac.digest(KEY.as_pem(private=False), head.encode(), "sha256")
    return f"{head}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def test_a_token_that_nobody_trusted_has_signed_is_refused() -> None:
    stranger = ECKey.generate_key("P-256")
    head, _, signature = token(GOOD).split(".")
    body = base64.urlsafe_b64encode(json.dumps({**GOOD, "sub": "x"}).encode()).decode()
    weak = ECKey.generate_key("P-521")
    for forged in (
        unsigned({"alg": "none"}),
        unsigned({"alg": "None", "kid": "k1"}),
        unsigned({"alg": "ES256", "kid": "k1"}),
        with_the_public_key_as_secret(),
        token(GOOD, stranger),
        token(GOOD, stranger, kid="k2"),
        token(GOOD, stranger, jwk=stranger.as_dict(private=False)),  # brings its own key
        token(GOOD, weak, alg="ES512"),
        f"{head}.{body.rstrip('=')}.{signature}",
        "no token", "..", "a.b.c", "x" * 70_000,
    ):  # fmt: skip
        with pytest.raises(AuthError):
            accepted(forged)


def test_keys_that_do_not_sign_are_not_taken() -> None:
    short = RSAKey.generate_key(2048).as_dict(private=False)
    for published in (
        [{**PUBLIC, "use": "enc"}],
        [{**PUBLIC, "key_ops": ["encrypt"]}],
        [{**PUBLIC, "alg": "ES384"}],
        [{**short, "n": "AQAB"}],
        [{"kty": "oct", "k": "c2VjcmV0"}, {"kty": "EC"}, {"kty": "new"}, 7, None],
    ):
        assert oidc.keys({"keys": published}) == ()
    nothings: tuple[object, ...] = (None, [], {}, {"keys": "x"})
    for nothing in nothings:
        with pytest.raises(AuthError, match="JWK set"):
            oidc.keys(nothing)
    twice = oidc.keys({"keys": [{**PUBLIC, "kid": "a"}, {**PUBLIC, "kid": "b"}]})
    plain = jws.serialize_compact({"alg": "ES256"}, b"{}", KEY)
    assert oidc.key_for(plain, twice) is None  # two might have: it must say which


def test_the_three_secrets_of_a_sign_in_tell_nothing_of_each_other() -> None:
    found = {f(SECRET, ISSUER) for f in (oidc.state, oidc.nonce, oidc.verifier)}
    other = {
        f(SECRET, "https://other.example") for f in (oidc.state, oidc.nonce, oidc.verifier)
    }
    assert len(found | other) == 6 and all(len(one) == 43 for one in found)
    # RFC 7636, appendix B
    assert oidc.challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == (
        "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    )


def test_a_discovery_document_is_the_issuers_own_and_private() -> None:
    told = {
        "issuer": ISSUER,
        "authorization_endpoint": f"{ISSUER}/auth?tenant=1",
        "token_endpoint": f"{ISSUER}/token",
        "jwks_uri": f"{ISSUER}/keys",
    }
    url = oidc.authorization_url(SETTINGS, oidc.provider(told, ISSUER), "https://c/cb", SECRET)
    assert url.startswith(f"{ISSUER}/auth?tenant=1&response_type=code&client_id=consilia")
    for change, why in (
        ({"issuer": "https://evil.example"}, "calls itself"),
        ({"token_endpoint": "http://login.hospital.example/token"}, "token_endpoint"),
        ({"jwks_uri": "file:///etc/passwd"}, "jwks_uri"),
        ({"authorization_endpoint": None}, "authorization_endpoint"),
        ({"code_challenge_methods_supported": ["plain"]}, "S256"),
    ):
        with pytest.raises(ConfigError, match=why):
            oidc.provider({**told, **change}, ISSUER)
    with pytest.raises(ConfigError, match="calls itself"):
        oidc.provider(["x"], ISSUER)


def test_groups_are_found_where_providers_put_them() -> None:
    for claims, claim, found in (
        ({"groups": ["a", 7, "b"]}, "groups", ("a", "b")),
        ({"groups": "a"}, "groups", ("a",)),
        ({"realm_access": {"roles": ["a"]}}, "realm_access.roles", ("a",)),
        ({"https://x.example/groups": ["a"]}, "https://x.example/groups", ("a",)),
        ({"realm_access": ["a"]}, "realm_access.roles", None),
        ({}, "groups", None),
    ):
        assert oidc.groups_of(claims, claim) == found


def test_names_go_into_questions_as_values_only() -> None:
    assert ldap.in_filter("(uid={name})", "{name}", "*)(a=\\\0") == r"(uid=\2a\29\28a=\5c\00)"
    assert ldap.in_name("uid={name},dc=x", "{name}", 'a,b+"=') == r"uid=a\2cb\2b\22\3d,dc=x"
    same = "CN=Doe\\, Jane , OU=People,DC=x"
    assert ldap.normal(same) == ldap.normal("cn=doe\\2c jane,ou=people,dc=x") != ()
    assert ldap.normal("reviewers") == ldap.normal("") == ()
    assert ldap.roles_of(["cn=a,dc=x"], {"dpo": ("CN=A, DC=x",), "reviewer": ("a",)}) == (
        "dpo",
    )
    assert ldap.switched_off({"useraccountcontrol": [b"514"]})
    assert not ldap.switched_off({"userAccountControl": [b"512"]})
    assert ldap.subject({"objectGUID": [b"\x00\xff"]}, "objectguid") == "00ff"
    assert ldap.subject({"entryUUID": [b"a", b"b"]}, "entryUUID") == ""


@pytest.mark.parametrize(
    ("said", "name"),
    [("Ada", "ada"), ("ada@hospital.example", "ada"), ("ada@evil.example", None),
     ("ada smith", None), ("", None), ("../root", None), ("a" * 64, None), ("ad\u0430", None)],
)  # fmt: skip
def test_a_directorys_name_is_an_accounts_or_nobodys(said: str, name: str | None) -> None:
    found = directory.person("oidc", "s", said, ("dpo",), "hospital.example")
    assert (None if isinstance(found, Turned) else found.name) == name


def test_settings_that_would_let_the_wrong_people_in_are_refused() -> None:
    good = Ldap("ldaps://d", "dc=x", {"dpo": ("cn=a",)}, user_dn="uid={name},dc=x")
    fine = SignInBy(oidc=Oidc(ISSUER, "c", {"dpo": ("g",)}), ldap=good)
    assert list(directory.problems(fine, ("dpo",))) == []
    for wrong, why in (
        (SignInBy(oidc=Oidc("http://login.example", "c", {"dpo": ("g",)})), "oidc.issuer"),
        (SignInBy(oidc=Oidc(ISSUER, "", {"dpo": ("g",)})), "client_id"),
        (SignInBy(oidc=Oidc(ISSUER, "c", {})), "nobody could sign in"),
        (SignInBy(oidc=Oidc(ISSUER, "c", {"boss": ("g",)})), "no role"),
        (SignInBy(oidc=Oidc(ISSUER, "c", {"dpo": ("",)})), "empty"),
        (
            SignInBy(ldap=Ldap("http://d", "dc=x", {"dpo": ("g",)}, user_dn="{name}")),
            "ldap.url",
        ),
        (SignInBy(ldap=Ldap("ldaps://d", "dc=x", {"dpo": ("g",)})), "bind_dn"),
        (SignInBy(ldap=Ldap("ldap://d", "dc=x", {"dpo": ("g",)}, user_dn="uid=x")), "{name}"),
        (SignInBy(recheck_minutes=0), "recheck_minutes"),
    ):
        assert why in " ".join(directory.problems(wrong, ("dpo",))), why


def test_the_how_tos_settings_are_settings() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    found = [config.parse(f"site: a\nhub: https://h:1\n{text}").console for text in blocks]
    assert [bool(one.sign_in.oidc) for one in found] == [True, False]
    assert found[1].sign_in.ldap is not None
