"""Signing in by the hospital's directory: the steps, each in one place. Everything blocks.

Whoever is turned away after the directory has said who they are is in the audit trail; what
anybody can provoke without an account at the hospital is only in the log.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consilia import __version__
from consilia.accounts import links, oidc
from consilia.accounts import store as accounts
from consilia.accounts.directory import Person, Turned, account_name, target
from consilia.accounts.lockout import Attempts
from consilia.accounts.store import Account
from consilia.errors import AuthError, ConfigError, NotFound, Refused, TransferError
from consilia.node.console import signing
from consilia.node.console.outside import Waiting
from consilia.node.console.services import Services
from consilia.wire.console.accounts import (
    ProvidersView,
    ProviderView,
    SecondCode,
    SessionView,
    SignIn,
)

if TYPE_CHECKING:
    from consilia.accounts.oidcline import OidcLine, SignedIn

START = "/oidc/start"
SILENT = "the hospital's directory does not answer; try again in a minute"
CODE_SECONDS = 300.0  # for the second factor's code after the provider's page
_NOTED = ("not-mapped", "name-unusable", "name-taken", "disabled", "weak")


@dataclass(frozen=True, slots=True)
class Arrived:
    """Somebody whom the provider has signed in: a session, or a ticket for the code."""

    session: str
    ticket: str
    target: str  # the page that they wanted


def providers(here: Services) -> ProvidersView:
    """Return the ways to sign in; the accounts made here are always one."""
    settings = here.outside.settings
    found = []
    if settings.oidc is not None:
        found.append(ProviderView("oidc", settings.oidc.label, START))
    if settings.ldap is not None:
        found.append(ProviderView("ldap", settings.ldap.label, ""))
    return ProvidersView((*found, ProviderView("password", "", "")), settings.contact)


# ---- LDAP ------------------------------------------------------------------------------------


def by_ldap(here: Services, said: SignIn) -> tuple[SessionView, str]:
    """Return the view and the cookie; "" where the code is still to be asked for.

    Raises AuthError for anything wrong without saying what; Refused for a person who is known
    and not let in, and while the name rests.
    """
    line = here.outside.ldap
    if line is None:
        raise NotFound("no LDAP server is configured here; sign in with an account made here")
    now, name = here.now(), account_name(said.name) or said.name
    with here.store.write() as tx:
        attempt = accounts.count_attempt(tx, name, now)
    try:
        verdict = line.sign_in(name, said.password)
    except TransferError as e:
        with here.store.write() as tx:  # nobody has looked at the password
            accounts.forgive(tx, name, now, whole=False)
        here.log.info("no sign-in", by="ldap", cause=str(e))  # a stranger reads no addresses
        raise TransferError(SILENT) from None
    found = verdict if isinstance(verdict, Turned) else _entered(here, verdict)
    if isinstance(found, Turned):
        if found.reason == "wrong":
            raise AuthError(signing.WRONG)
        with here.store.write() as tx:
            accounts.forgive(tx, name, now, whole=False)
        raise Refused(told(here, _noted(here, "ldap", found)))
    if found.secret and not said.code:
        with here.store.write() as tx:
            accounts.forgive(tx, name, now, whole=False)
        return SessionView(here.site, __version__, needs_code=True), ""
    token = signing.begin(here, found, said.code, attempt, "signed in by ldap")
    if not token:
        raise AuthError(signing.WRONG)
    if found.name != name:  # renamed in the directory; `begin` has forgiven the account's name
        with here.store.write() as tx:
            accounts.forgive(tx, name, now, whole=True)
    return signing.session_view(here, token), token


# ---- OpenID Connect --------------------------------------------------------------------------


def start(here: Services, redirect: str, wanted: str) -> tuple[str, str]:
    """Return where the browser signs in, and the cookie that makes the answer its own."""
    line = here.outside.oidc
    if line is None:
        raise NotFound("no OpenID Connect provider is configured here")
    secret = here.random_bytes(oidc.SECRET_BYTES)
    page = base64.urlsafe_b64encode(target(wanted).encode()).decode().rstrip("=")
    return line.start(redirect, secret), f"{secret.hex()}.{page}"


def finish(
    here: Services, query: Mapping[str, str], redirect: str, cookie: str
) -> Arrived | Turned:
    """Return who has come back from the provider's page, or why they are not let in."""
    line = here.outside.oidc
    if line is None:
        return Turned("expired", "no OpenID Connect provider is configured here")
    secret, wanted = _parted(cookie)
    if not secret or not here.outside.use(oidc.state(secret, line.settings.issuer)):
        return Turned("expired", "the answer belongs to no sign-in of this browser")
    back = _answered(line, query, redirect, secret)
    if isinstance(back, Turned):
        return _noted(here, "oidc", back)
    found = _entered(here, back.person)
    if isinstance(found, Turned):
        return _noted(here, "oidc", found)
    if found.secret and line.settings.local_second_factor:
        ticket = accounts.token_text(here.random_bytes(accounts.TOKEN_BYTES))
        until = here.now() + CODE_SECONDS
        kept = Waiting(found.name, found.epoch, back.refresh, until)
        here.outside.wait(accounts.digest(ticket), kept)
        return Arrived("", ticket, wanted)
    return Arrived(_begun(here, found, None, Attempts(), back.refresh), "", wanted)


def second_code(here: Services, ticket: str, said: SecondCode) -> tuple[SessionView, str]:
    """Take the code of somebody whom the provider has signed in."""
    waiting = here.outside.waiting.get(accounts.digest(ticket))
    now = here.now()
    if waiting is None or now >= waiting.until:
        raise AuthError("the time for the code is over; sign in again")
    with here.store.write() as tx:
        attempt = accounts.count_attempt(tx, waiting.account, now)
    found = accounts.get(here.store, waiting.account)
    if found.epoch != waiting.epoch:
        raise AuthError("the account has changed meanwhile; sign in again")
    token = _begun(here, found, said.code, attempt, waiting.refresh)
    if not token:
        raise AuthError("code: not the one of this moment, or used already")
    here.outside.waiting.pop(accounts.digest(ticket), None)
    return signing.session_view(here, token), token


def told(here: Services, turned: Turned) -> str:
    """Return what a person is told who is turned away, with whom to ask."""
    contact = here.outside.settings.contact
    ask = f"ask {contact}" if contact else "ask whoever runs this console"
    return {
        "not-mapped": f"the hospital knows you, but none of your groups has a role here; {ask}",
        "disabled": f"your account is switched off here; {ask}",
        "name-taken": f"another account here has your name; {ask}",
        "name-unusable": f"your name in the directory cannot name an account here; {ask}",
    }.get(turned.reason, f"you are not let in; {ask}")


def _entered(here: Services, person: Person) -> Account | Turned:
    with here.store.write() as tx:
        return links.enter(tx, person, here.now(), signing.RESERVED)


def _begun(
    here: Services, found: Account, code: str | None, attempt: Attempts, refresh: str
) -> str:
    token = signing.begin(here, found, code, attempt, "signed in by oidc")
    if token:
        here.outside.keep(accounts.digest(token), refresh)
    return token


def _answered(
    line: "OidcLine", query: Mapping[str, str], redirect: str, secret: bytes
) -> "SignedIn | Turned":
    try:
        return line.finish(query, redirect, secret)
    except TransferError as e:
        return Turned("unreachable", str(e))
    except (AuthError, ConfigError) as e:
        ours = query.get("state") == oidc.state(secret, line.settings.issuer)
        said_no = ours and query.get("error") == "access_denied"
        return Turned("cancelled" if said_no else "failed", str(e))


def _noted(here: Services, kind: str, turned: Turned) -> Turned:
    here.log.info("not let in", by=kind, reason=turned.reason, cause=turned.detail)
    if turned.reason in _NOTED:
        with here.store.write() as tx:
            tx.audit(
                here.now(), "console", "account.refuse", kind, turned.reason, turned.detail
            )
    return turned


def _parted(cookie: str) -> tuple[bytes, str]:
    """Return the secret and the wanted page of a cookie; no secret where it is none of ours."""
    secret, _, page = cookie.partition(".")
    try:
        raw = bytes.fromhex(secret)
        wanted = base64.urlsafe_b64decode(page + "=" * (-len(page) % 4)).decode()
    except (ValueError, binascii.Error):
        return b"", "/"
    return (raw if len(raw) == oidc.SECRET_BYTES else b""), target(wanted)
