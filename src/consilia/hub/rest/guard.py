"""Who may do what: every request is held against the one table, hub/people/rights.

A request carries `Authorization: Bearer <access token or API key>`. It is looked up on every
request, so what was revoked, ended or taken away fails on the next. Then the operation's line
in the table decides, and how much this person, or this address, has asked of late.
"""

from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_network
from typing import Any

from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.params import SkipValidation
from litestar.types import Scope

from consilia.errors import AuthError, ConfigError, Refused
from consilia.hub.people import rights
from consilia.hub.people.rights import ABOUT_ONESELF, ENROLLING, IN_STUDY, OPEN, Open
from consilia.hub.people.roles import ROLES, Caller, Role, Roles
from consilia.hub.rest.limits import Limiter

__all__ = ("ROLES", "Caller", "Role")  # what routes ask for beside the guard's own

Connection = ASGIConnection[Any, Any, Any, Any]
Who = NamedDependency[SkipValidation[Caller]]  # how a route asks for the caller
Operations = Mapping[Any, str]  # a route's function -> "METHOD /path"


def open_to_all() -> dict[str, Any]:
    """Return the `opt` of a route outside the API's table that asks nobody who they are."""
    return {"roles": OPEN}


def make_guard(
    caller_of: Callable[[str], Caller],
    must_enrol: Callable[[Caller], bool],
    limiter: Limiter,
    operations: Operations,
) -> Callable[[Connection, BaseRouteHandler], Awaitable[None]]:
    """Return the guard of all routes; `caller_of(secret)` is who sends it, or AuthError."""

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        operation = operations.get(handler.fn, "")
        roles = admitted(handler, operation)
        address = address_of(connection)
        if roles == OPEN:
            limiter.open(operation, address)
            return
        if "\0" in connection.url.path or "%00" in connection.url.query:
            raise ConfigError("the address holds a NUL character, which no name has")
        try:
            who = caller_of(secret_of(connection.headers.get("authorization", "")))
        except AuthError:
            limiter.stranger(address)
            raise
        limiter.person(who.name)
        admit(who, operation, roles)
        if operation not in ENROLLING and must_enrol(who):
            raise Refused(
                "this hub requires a second factor of you: set it up first "
                "(POST /auth/second-factor)"
            )
        connection.scope["user"] = who

    return guard


def admitted(handler: BaseRouteHandler, operation: str) -> Roles | Open:
    """Return whom a route admits: the table's line; outside the API what the route says."""
    if operation:
        return rights.of(operation)
    found: Roles | Open = handler.opt.get("roles", frozenset())
    return found


def admit(who: Caller, operation: str, roles: Roles | Open) -> None:
    """Raise Refused unless a role of the caller's counts here and is one of `roles`."""
    if operation in ABOUT_ONESELF:
        return
    within = operation in IN_STUDY
    held = who.every if within else who.roles
    if held & frozenset(roles) and (within or not who.within):
        return
    if held & frozenset(roles):
        raise Refused(f"the key {who.key!r} is for study {who.within!r} alone")
    needed = " or ".join(sorted(roles)) or "nobody's"
    found = ", ".join(sorted(who.every)) or "without a role"
    raise Refused(f"{who.name} is {found}; this needs the role {needed}")


def address_of(connection: Connection) -> str:
    """Return the address a request comes from; of IPv6 its /64, which one line has whole."""
    host = connection.client.host if connection.client else "unknown"
    if ":" not in host:
        return host
    return str(ip_network((host.partition("%")[0], 64), strict=False))


def secret_of(header: str) -> str:
    """Return the token of an Authorization header, or raise AuthError."""
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise AuthError(
            "no token: send the header Authorization: Bearer <token>; sign in for one, or "
            "make an API key (consilia key create)"
        )
    return secret.strip()


def caller(scope: Scope) -> Caller:
    """Return who asks, as the guard found out; raises AuthError on an open route."""
    found = scope.get("user")
    if not isinstance(found, Caller):
        raise AuthError("this route does not know who asks")
    return found
