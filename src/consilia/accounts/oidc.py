"""Sign-in by OpenID Connect: what is asked of a provider, and what of its answers holds. Pure.

The authorisation code flow of OpenID Connect Core 1.0 with PKCE S256 (RFC 7636), hardened as
RFC 9700 wants it: exact issuer (RFC 9207), one-time state bound to the browser, nonce, and
closed lists of algorithms. All three secrets of one sign-in (state, nonce, verifier) are
derived from one random value that lives in a cookie of the browser that began it, so nothing
is stored here and no other browser's answer fits (login CSRF).
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from joserfc import jws, jwt
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import import_key
from joserfc.jws import JWSRegistry

from consilia.accounts.directory import Oidc, not_private
from consilia.errors import AuthError, ConfigError

ALGORITHMS: Mapping[str, tuple[str, tuple[str, ...]]] = {  # name -> key type, curves
    "RS256": ("RSA", ()),
    "ES256": ("EC", ("P-256",)),
    "EdDSA": ("OKP", ("Ed25519",)),
    "Ed25519": ("OKP", ("Ed25519",)),  # the same by its name of today (RFC 9864)
}
_EDWARDS = ("EdDSA", "Ed25519")
LEEWAY = 60.0  # seconds that the provider's clock may be off
OLDEST = 600.0  # seconds since an ID token was issued: it comes straight from the provider
MAX_TOKEN = 64 << 10  # characters
RSA_BITS = 2048
SECRET_BYTES = 32
FORM = "client_secret_post"
FLOW_SECONDS = 600  # that a person may take at the provider


@dataclass(frozen=True, slots=True)
class Provider:
    """What a provider's discovery document says (OpenID Connect Discovery 1.0)."""

    issuer: str
    authorization: str
    token: str
    keys: str
    userinfo: str  # "" for none
    names_itself: bool  # every answer says `iss` (RFC 9207)
    secret_in_form: bool  # it takes the client's secret in no other way


# ---- the browser's secret ------------------------------------------------------------------


def state(secret: bytes, issuer: str) -> str:
    """Return the `state` of the sign-in that `secret` began at one issuer (RFC 6749, 10.12)."""
    return _derived(secret, f"state {issuer}")


def nonce(secret: bytes, issuer: str) -> str:
    """Return what the ID token has to repeat."""
    return _derived(secret, f"nonce {issuer}")


def verifier(secret: bytes, issuer: str) -> str:
    """Return the PKCE code verifier (RFC 7636): 43 characters."""
    return _derived(secret, f"verifier {issuer}")


def challenge(code_verifier: str) -> str:
    """Return the S256 code challenge of a verifier."""
    return _text(hashlib.sha256(code_verifier.encode()).digest())


def _derived(secret: bytes, purpose: str) -> str:
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"{len(secret)} random bytes, needed {SECRET_BYTES}")
    return _text(hmac.digest(secret, b"consilia oidc " + purpose.encode(), "sha256"))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


# ---- requests --------------------------------------------------------------------------------


def provider(document: object, issuer: str) -> Provider:
    """Return what a discovery document says; ConfigError when it is not `issuer`'s or unusable.

    The issuer must be the configured one letter by letter: another's document would let that
    one sign people in.
    """
    said = document if isinstance(document, dict) else {}

    def url(key: str, needed: bool = True) -> str:
        found = said.get(key, "")
        if not isinstance(found, str) or ((found or needed) and _unusable(found)):
            raise ConfigError(
                f"oidc: the provider {issuer} says {key} is {str(found)[:200]!r}; needed "
                "an https URL"
            )
        return found

    if said.get("issuer") != issuer:
        raise ConfigError(
            f"oidc.issuer: configured {issuer!r}, but the provider there calls itself "
            f"{str(said.get('issuer'))[:200]!r}; write it exactly so, if that is the one meant"
        )
    methods = said.get("code_challenge_methods_supported")
    if isinstance(methods, list) and "S256" not in methods:
        raise ConfigError(
            f"oidc: the provider {issuer} does not know PKCE S256, which is needed"
        )
    ways = said.get("token_endpoint_auth_methods_supported")
    return Provider(
        issuer,
        url("authorization_endpoint"),
        url("token_endpoint"),
        url("jwks_uri"),
        url("userinfo_endpoint", needed=False),
        said.get("authorization_response_iss_parameter_supported") is True,
        isinstance(ways, list) and "client_secret_basic" not in ways and FORM in ways,
    )


def _unusable(url: str) -> bool:
    return bool(not_private(url.partition("?")[0])) or "#" in url


def authorization_url(settings: Oidc, found: Provider, redirect: str, secret: bytes) -> str:
    """Return where the browser is sent to sign in."""
    asked = {
        "response_type": "code",
        "client_id": settings.client_id,
        "redirect_uri": redirect,
        "scope": " ".join(settings.scopes),
        "state": state(secret, found.issuer),
        "nonce": nonce(secret, found.issuer),
        "code_challenge": challenge(verifier(secret, found.issuer)),
        "code_challenge_method": "S256",
    }
    if settings.acr:
        asked["acr_values"] = " ".join(settings.acr)
    if "offline_access" in settings.scopes:  # OpenID Connect Core 11
        asked["prompt"] = "consent"
    mark = "&" if urlsplit(found.authorization).query else "?"
    return f"{found.authorization}{mark}{urlencode(asked)}"


def code_of(query: Mapping[str, str], found: Provider, secret: bytes) -> str:
    """Return the code of a provider's answer to this browser's question; else AuthError.

    Nothing of the answer is looked at before its state: anybody can send a browser here.
    """
    if not hmac.compare_digest(
        query.get("state", "").encode(), state(secret, found.issuer).encode()
    ):
        raise AuthError("state: not the one of a sign-in that this browser began")
    said = query.get("iss")
    if (said is None and found.names_itself) or said not in (None, found.issuer):
        raise AuthError(f"iss: found {str(said)[:200]!r}, needed {found.issuer!r}")
    if "error" in query:
        raise AuthError(f"the provider says {query['error'][:80]!r}")
    code = query.get("code", "")
    if not 0 < len(code) <= 4096:
        raise AuthError(f"code: found {len(code)} characters, needed 1 to 4096")
    return code


def code_form(
    settings: Oidc, found: Provider, redirect: str, secret: bytes, code: str
) -> dict[str, str]:
    """Return the form that exchanges a code for tokens (RFC 6749, 4.1.3)."""
    return {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect,
        "client_id": settings.client_id,
        "code_verifier": verifier(secret, found.issuer),
    }


# ---- the ID token ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of the provider. `id` is "" where it names none."""

    id: str
    algorithm: str
    key: Any


def keys(document: object) -> tuple[Key, ...]:
    """Return the signature keys of a JWK set (RFC 7517) that are strong and of a known kind.

    Keys for encryption, of unknown kinds, too short or private-looking secrets are left out.
    """
    said = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(said, list):
        raise AuthError("the provider's key set is no JWK set: needed an object with `keys`")
    found = []
    for one in said[:100]:
        if not isinstance(one, dict) or one.get("use", "sig") != "sig":
            continue
        operations = one.get("key_ops")
        if isinstance(operations, list) and "verify" not in operations:
            continue
        found += [
            Key(str(one.get("kid", "")), algorithm, key)
            for algorithm in _algorithms(one)
            if (key := _public(one)) is not None
        ]
    return tuple(found)


def _algorithms(one: Mapping[str, Any]) -> list[str]:
    """Return what a key may sign: its own algorithm, or all that its kind admits."""
    said = one.get("alg")
    same = _EDWARDS if said in _EDWARDS else (said,)
    return [
        name
        for name, (kind, curves) in ALGORITHMS.items()
        if one.get("kty") == kind
        and (not curves or one.get("crv") in curves)
        and (said is None or name in same)
    ]


def _public(one: Mapping[str, Any]) -> Any:
    parts = {k: v for k, v in one.items() if k in ("kty", "crv", "n", "e", "x", "y")}
    if parts["kty"] == "RSA" and len(str(parts.get("n", ""))) * 6 < RSA_BITS:
        return None
    try:
        return import_key(parts)
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def key_for(token: str, known: Sequence[Key]) -> Key | None:
    """Return the key that a token says it was signed with, None when it is not known (yet).

    AuthError for an algorithm that is not on the list, whatever keys there are: `none`, and
    the symmetric ones, with which a public key would be the secret.
    """
    if len(token) > MAX_TOKEN:
        raise AuthError(f"ID token: {len(token)} characters, at most {MAX_TOKEN}")
    try:
        header = jws.extract_compact(token.encode()).headers()
    except (JoseError, ValueError, RecursionError) as e:
        raise AuthError(f"ID token: malformed: {e}") from None
    algorithm = header.get("alg")
    if algorithm not in ALGORITHMS:
        raise AuthError(
            f"ID token: signed with {str(algorithm)[:40]!r}; needed one of "
            f"{', '.join(ALGORITHMS)}"
        )
    if "crit" in header:
        raise AuthError("ID token: demands extensions (crit), of which none is known here")
    fitting = [k for k in known if k.algorithm == algorithm]
    if (kid := header.get("kid")) is not None:
        fitting = [k for k in fitting if k.id == kid]
    return fitting[0] if len(fitting) == 1 else None


def signed(token: str, key: Key) -> dict[str, Any]:
    """Return the claims of a token that `key` has signed; else AuthError."""
    registry = _Registry(algorithms=[key.algorithm], strict_check_header=False)
    try:  # claims are looked at by check_claims, with a clock that is an argument
        return jwt.decode(token, key.key, [key.algorithm], registry).claims
    except (JoseError, ValueError, TypeError, RecursionError) as e:
        raise AuthError(f"ID token: {e}") from None


class _Registry(JWSRegistry):
    """joserfc's, without its warning about the name EdDSA, by which most providers still go."""

    def get_alg(self, name: str) -> Any:
        """Return an algorithm that is allowed here."""
        if self.allowed is None or name not in self.allowed:
            raise UnsupportedAlgorithmError(f"algorithm {name!r} is not allowed")
        return self.algorithms[name]


def check_claims(
    claims: Mapping[str, Any], settings: Oidc, expected_nonce: str | None, now: float
) -> None:
    """Raise AuthError unless an ID token is for us, of now, of this sign-in (Core 3.1.3.7).

    `expected_nonce` None: a token that came with a refresh, which need not repeat it (12.2).
    """
    if claims.get("iss") != settings.issuer:
        raise AuthError(f"ID token: iss is {_shown(claims, 'iss')}, needed {settings.issuer!r}")
    audience = claims.get("aud")
    listed = audience if isinstance(audience, list) else [audience]
    if settings.client_id not in listed:
        raise AuthError(f"ID token: aud is {_shown(claims, 'aud')}, needed our client_id")
    party = claims.get("azp")
    if (party is None and len(listed) > 1) or party not in (None, settings.client_id):
        raise AuthError(f"ID token: azp is {_shown(claims, 'azp')}, needed our client_id")
    if now >= _moment(claims, "exp") + LEEWAY:
        raise AuthError("ID token: expired (exp); check both clocks")
    issued = _moment(claims, "iat")
    if not now - OLDEST - LEEWAY <= issued <= now + LEEWAY:
        raise AuthError("ID token: issued (iat) long ago or in the future; check both clocks")
    if "nbf" in claims and _moment(claims, "nbf") > now + LEEWAY:
        raise AuthError("ID token: not valid yet (nbf); check both clocks")
    if expected_nonce is not None and not hmac.compare_digest(
        str(claims.get("nonce", "")).encode(), expected_nonce.encode()
    ):
        raise AuthError("ID token: nonce is not the one of this sign-in")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255:
        raise AuthError("ID token: sub is missing; needed 1 to 255 characters")


def strong_enough(claims: Mapping[str, Any], settings: Oidc) -> bool:
    """Tell whether the provider says it asked what the site demands (acr, amr)."""
    methods = claims.get("amr")
    used = {m for m in methods if isinstance(m, str)} if isinstance(methods, list) else set()
    return (not settings.acr or claims.get("acr") in settings.acr) and (
        not settings.amr or bool(used & set(settings.amr))
    )


def groups_of(claims: Mapping[str, Any], claim: str) -> tuple[str, ...] | None:
    """Return the groups that a claim lists, None when the claim is not there.

    A dot in the claim's name goes down into an object, as Keycloak's realm_access.roles does;
    a claim of exactly that name wins, since names may be URLs.
    """
    found = _at(claims, claim)
    if found is None:
        return None
    listed = found if isinstance(found, list) else [found]
    return tuple(one for one in listed if isinstance(one, str))


def _at(claims: Mapping[str, Any], claim: str) -> Any:
    if claim in claims:
        return claims[claim]
    here: Any = claims
    for step in claim.split("."):
        here = here.get(step) if isinstance(here, dict) else None
    return here


def _moment(claims: Mapping[str, Any], key: str) -> float:
    found = claims.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < 1e11:
        raise AuthError(f"ID token: {key} is {_shown(claims, key)}, needed Unix seconds")
    return float(found)


def _shown(claims: Mapping[str, Any], key: str) -> str:
    return repr(claims.get(key))[:200]
