"""Who may do what in the console: a route names its roles; one that names none admits nobody.

Who asks is told by a cookie that scripts cannot read (HttpOnly) and that browsers send from
the console's own pages only (SameSite=Strict). A change carries a second token besides, which
only a page of the console can know. Roles are looked up with every request.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.params import SkipValidation
from litestar.types import Scope

from consilia.accounts import links
from consilia.accounts import store as accounts
from consilia.accounts.store import Account, Session
from consilia.errors import AuthError, Refused
from consilia.node.console.recheck import recheck
from consilia.node.console.services import Services
from consilia.web.openapi import OPEN
from consilia.wire.console import ROLES, Role

CSRF = "x-csrf-token"
AUTOMATIC = "x-automatic"  # a page's own request, which keeps no session alive
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

Connection = ASGIConnection[Any, Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, with the session's cookie."""

    session: Session
    token: str

    @property
    def name(self) -> str:
        """The account's name, which the audit trail shows as actor."""
        return self.session.account.name


Who = NamedDependency[SkipValidation[Caller]]  # how a route asks for the caller


def allow(*roles: Role, enrolling: bool = False) -> dict[str, Any]:
    """Return the `opt` of a route for these roles.

    `enrolling`: also for one who has yet to set up the second factor that the site requires.
    """
    return {"roles": frozenset(roles), "enrolling": enrolling}


def anyone(*, enrolling: bool = False) -> dict[str, Any]:
    """Return the `opt` of a route for every signed-in person."""
    return allow(*ROLES, enrolling=enrolling)


def open_to_all() -> dict[str, Any]:
    """Return the `opt` of a route that asks nobody who they are."""
    return {"roles": OPEN}


def cookie_name(here: Services) -> str:
    """Return the session cookie's name; with TLS browsers hold it to this very host."""
    return "__Host-consilia" if here.settings.certificate else "consilia-session"


def cookie(here: Services, token: str) -> Cookie:
    """Return the session cookie; an empty token takes it away."""
    return Cookie(
        cookie_name(here),
        value=token,
        path="/",
        httponly=True,
        samesite="strict",
        secure=bool(here.settings.certificate),
        max_age=None if token else 0,
    )


def make_guard(here: Services) -> Callable[[Connection, BaseRouteHandler], Awaitable[None]]:
    """Return the guard of all routes."""

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        roles = handler.opt.get("roles", frozenset())
        if roles == OPEN:
            return
        token = connection.cookies.get(cookie_name(here), "")
        scope = connection.scope
        if scope.get("method") not in SAFE:
            _check_csrf(connection, token)
        active = AUTOMATIC not in connection.headers and not handler.opt.get("automatic")
        found = await asyncio.to_thread(signed_in, here, token, active)
        admit(here, found, roles, bool(handler.opt.get("enrolling")))
        scope["user"] = Caller(found, token)

    return guard


def caller(scope: Scope) -> Caller:
    """Return who asks, as the guard found out; raises AuthError on an open route."""
    found = scope.get("user")
    if not isinstance(found, Caller):
        raise AuthError("this route does not know who asks")
    return found


def signed_in(here: Services, token: str, active: bool) -> Session:
    """Return the session of a cookie, noting its use when a person is `active`. Blocks.

    Whom the hospital's directory answers for is asked about there when that is due.
    """
    now = here.now()
    found = accounts.session(here.store, token, now, here.life)
    recheck(here, found)
    if active and now - found.seen > accounts.SEEN_EVERY:
        with here.store.write() as tx:
            accounts.touch(tx, found, now)
    return found


def must_enrol(here: Services, session: Session) -> bool:
    """Tell whether the person has yet to set up a second factor."""
    return not session.account.secret and needs_code(here, session.account)


def needs_code(here: Services, account: Account) -> bool:
    """Tell whether a second factor of here is required of an account.

    The provider of OpenID Connect has factors of its own, so there it is a setting of its own.
    """
    if account.password == links.NO_PASSWORD and by_provider(here, account):
        provider = here.outside.settings.oidc
        return provider is not None and provider.local_second_factor
    return here.settings.second_factor


def by_provider(here: Services, account: Account) -> bool:
    """Tell whether an account's person signs in at the OpenID Connect provider."""
    link = links.find(here.store, account.name)
    return link is not None and link.kind == "oidc"


def admit(here: Services, found: Session, roles: frozenset[str], enrolling: bool) -> None:
    """Raise Refused unless the person holds one of the roles; no roles admit nobody."""
    held = frozenset(found.account.roles)
    if not held & roles:
        needed = " or ".join(sorted(roles)) or "nobody's"
        raise Refused(
            f"{found.account.name} is {', '.join(sorted(held))}; this needs the role {needed}"
        )
    if must_enrol(here, found) and not enrolling:
        raise Refused(
            "this site requires a second factor: set it up first, in the account's settings"
        )


def _check_csrf(connection: Connection, token: str) -> None:
    said = connection.headers.get(CSRF, "")
    if not token:
        raise AuthError("nobody is signed in; sign in first")
    if not hmac.compare_digest(said.encode(), accounts.csrf_token(token).encode()):
        raise Refused(
            "the header X-CSRF-Token is missing or not of this session; reload the page"
        )
