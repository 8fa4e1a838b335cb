"""The line to an OpenID Connect provider: discovery, keys and tokens over HTTPS.

Everything blocks; callers run it in threads. What the provider says is taken in only as far
as consilia.accounts.oidc says that it holds.
"""

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import httpx

from consilia.accounts import oidc
from consilia.accounts.authorities import authority
from consilia.accounts.directory import Oidc, Person, Turned, person, roles_of
from consilia.errors import AuthError, TransferError
from consilia.files import first_line

SECONDS = 10.0  # that the provider may take for one answer
MAX_ANSWER = 1 << 20  # bytes
FRESH = 3600.0  # seconds that discovery and keys are believed
PAUSE = 10.0  # seconds that a provider which does not answer is left alone
AGAIN = 60.0  # seconds between two questions for a key that is not known


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who came back from the provider, and what asks about them later ("" for nothing)."""

    person: Person
    refresh: str


@dataclass(frozen=True, slots=True)
class _Known:
    """What was learnt of the provider, and when (Unix seconds)."""

    provider: oidc.Provider
    keys: tuple[oidc.Key, ...]
    at: float
    keys_at: float


class OidcLine:
    """One provider. `now` is Unix seconds; safe for threads."""

    def __init__(self, settings: Oidc, directory: Path, now: Callable[[], float]) -> None:
        """Read the client's secret and the authority's certificate; ConfigError if unusable."""
        self.settings = settings
        self._now = now
        self._secret = (
            first_line(directory / settings.client_secret_file, "oidc.client_secret_file")
            if settings.client_secret_file
            else ""
        )
        self._context: ssl.SSLContext = authority(directory, settings.ca, "oidc.ca")
        self._known: _Known | None = None
        self._silent_until = 0.0
        self._lock = threading.Lock()

    def start(self, redirect: str, secret: bytes) -> str:
        """Return where a browser signs in. TransferError where the provider is silent."""
        found = self._learnt().provider
        return oidc.authorization_url(self.settings, found, redirect, secret)

    def finish(
        self, query: Mapping[str, str], redirect: str, secret: bytes
    ) -> SignedIn | Turned:
        """Return who the provider says has signed in, or why they are nobody's here.

        Raises AuthError for an answer that does not hold, TransferError for none.
        """
        found = self._learnt().provider
        code = oidc.code_of(query, found, secret)
        tokens = self._tokens(oidc.code_form(self.settings, found, redirect, secret, code))
        claims = self._claims(tokens, oidc.nonce(secret, found.issuer))
        if not oidc.strong_enough(claims, self.settings):
            said = f"acr {claims.get('acr')!r}, amr {claims.get('amr')!r}"
            return Turned("weak", f"the provider's sign-in was {said[:200]}")
        who = self._person(claims, tokens)
        return who if isinstance(who, Turned) else SignedIn(who, _text(tokens, "refresh_token"))

    def again(self, refresh: str, subject: str) -> SignedIn | Turned:
        """Ask about somebody who is signed in; AuthError when the provider says no."""
        found = self._learnt().provider
        tokens = self._tokens(
            {
                "grant_type": "refresh_token",
                "refresh_token": refresh,
                "client_id": self.settings.client_id,
            }
        )
        if "id_token" in tokens:
            claims = self._claims(tokens, None)
        elif found.userinfo:
            claims = self._userinfo(_text(tokens, "access_token"))
        else:
            raise AuthError("the provider's refresh brought neither ID token nor userinfo")
        if self._subject(claims) != subject:
            raise AuthError("sub: the provider's refresh is about somebody else")
        who = self._person(claims, tokens)
        kept = _text(tokens, "refresh_token") or refresh
        return who if isinstance(who, Turned) else SignedIn(who, kept)

    # ---- what the provider says ----------------------------------------------------------

    def _person(self, claims: Mapping[str, Any], tokens: Mapping[str, Any]) -> Person | Turned:
        """Return the person of an ID token; claims that it lacks are asked for at userinfo."""
        known = dict(claims)
        wanted = (self.settings.name_claim, self.settings.groups_claim)
        lacking = any(oidc.groups_of(known, claim) is None for claim in wanted)
        if lacking and self._learnt().provider.userinfo and "access_token" in tokens:
            more = self._userinfo(_text(tokens, "access_token"))
            if more.get("sub") != claims["sub"]:  # Core 5.3.2
                raise AuthError("sub: userinfo is about somebody else")
            known = {**more, **known}
        names = oidc.groups_of(known, self.settings.name_claim) or ("",)
        groups = oidc.groups_of(known, self.settings.groups_claim) or ()
        held = roles_of(groups, self.settings.roles)
        return person("oidc", self._subject(claims), names[0], held, self.settings.domain)

    def _subject(self, claims: Mapping[str, Any]) -> str:
        """Return who it is among all providers that may ever be configured here."""
        return f"{self.settings.issuer} {claims.get('sub')}"

    def _claims(self, tokens: Mapping[str, Any], nonce: str | None) -> dict[str, Any]:
        token = _text(tokens, "id_token")
        if not token:
            raise AuthError("the provider's answer has no ID token")
        key = oidc.key_for(token, self._learnt().keys)
        if key is None:  # the provider may have new keys
            key = oidc.key_for(token, self._learnt(more_keys=True).keys)
        if key is None:
            raise AuthError("ID token: signed with a key that the provider does not publish")
        claims = oidc.signed(token, key)
        oidc.check_claims(claims, self.settings, nonce, self._now())
        return claims

    def _learnt(self, more_keys: bool = False) -> _Known:
        """Return what is known of the provider, asking where it is old or keys are missing.

        A provider that does not answer keeps one thread waiting, not one for each stranger.
        """
        with self._lock:
            if 0 < self._silent_until - self._now() <= PAUSE:
                raise TransferError(
                    f"the provider {self.settings.issuer} did not answer a moment ago"
                )
            try:
                self._known = self._asked(more_keys)
            except TransferError:
                self._silent_until = self._now() + PAUSE
                raise
            return self._known

    def _asked(self, more_keys: bool) -> _Known:
        known, now = self._known, self._now()
        if known is None or not 0 <= now - known.at < FRESH:
            base = self.settings.issuer.rstrip("/")
            told = self._ask("GET", f"{base}/.well-known/openid-configuration")
            provider = oidc.provider(told, self.settings.issuer)
            found = oidc.keys(self._ask("GET", provider.keys))
            known = _Known(provider, found, now, now)
        elif more_keys and now - known.keys_at >= AGAIN:
            found = oidc.keys(self._ask("GET", known.provider.keys))
            known = _Known(known.provider, found, known.at, now)
        return known

    def _tokens(self, form: dict[str, str]) -> dict[str, Any]:
        found = self._learnt().provider
        if self._secret and found.secret_in_form:
            return self._ask("POST", found.token, form=form | {"client_secret": self._secret})
        auth = (self.settings.client_id, self._secret) if self._secret else None
        return self._ask("POST", found.token, form=form, auth=auth)

    def _userinfo(self, access: str) -> dict[str, Any]:
        bearer = {"Authorization": f"Bearer {access}"}
        return self._ask("GET", self._learnt().provider.userinfo, headers=bearer)

    def _ask(
        self,
        method: str,
        url: str,
        form: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return the JSON object that the provider answers. It may not send us elsewhere."""
        basic = None if auth is None else httpx.BasicAuth(*map(_form_encoded, auth))
        accept = {"Accept": "application/json", **(headers or {})}
        try:
            with (
                httpx.Client(
                    verify=self._context,
                    timeout=SECONDS,
                    trust_env=False,
                    proxy=self.settings.proxy or None,
                    http2=False,
                ) as client,
                client.stream(method, url, data=form, auth=basic, headers=accept) as answer,
            ):
                body = _bounded(answer)
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise TransferError(
                f"the provider {self.settings.issuer} cannot be asked: {e}"
            ) from None
        if answer.status_code >= 500 or answer.status_code == 429:
            raise TransferError(
                f"the provider {self.settings.issuer} answers {answer.status_code}"
            )
        said = _json(body)
        if not answer.is_success or said is None:
            error = str((said or {}).get("error", "no JSON object"))[:80]
            raise AuthError(
                f"the provider {self.settings.issuer} answers {answer.status_code}: {error}"
            )
        return said


def _bounded(answer: httpx.Response) -> bytes:
    body = b""
    for part in answer.iter_bytes():
        body += part
        if len(body) > MAX_ANSWER:
            raise AuthError(f"the provider's answer is longer than {MAX_ANSWER} bytes")
    return body


def _json(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(tokens: Mapping[str, Any], key: str) -> str:
    found = tokens.get(key, "")
    return found if isinstance(found, str) else ""


def _form_encoded(text: str) -> str:
    return quote_plus(text)  # RFC 6749, 2.3.1: before it goes into the header
