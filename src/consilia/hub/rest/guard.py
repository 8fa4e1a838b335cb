"""Who may do what: every route names the roles it admits; one that names none admits nobody.

A request carries `Authorization: Bearer <API token>`. The token is looked up on every request,
so a revoked one fails on the next.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.params import SkipValidation
from litestar.types import Scope

from consilia.errors import AuthError, ConfigError, Refused
from consilia.web.openapi import OPEN

Role = Literal["operator", "researcher", "reviewer", "downstream", "auditor"]
ROLES: tuple[Role, ...] = get_args(Role)

Connection = ASGIConnection[Any, Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `name` stands as author of what they make, and in the audit trail."""

    name: str
    role: Role

    @property
    def actor(self) -> str:
        """How the audit trail names them."""
        return f"user:{self.name}"

    def owns(self, author: str) -> bool:
        """Return whether the caller may change what `author` made."""
        return self.role == "operator" or (self.role == "researcher" and self.name == author)

    @property
    def only(self) -> str | None:
        """Whose studies their lists are limited to; None: all are theirs to see."""
        return self.name if self.role == "researcher" else None

    def sees(self, author: str) -> bool:
        """Return whether the caller may read the studies and jobs that `author` made."""
        return self.role != "downstream" and (self.only is None or self.name == author)


Who = NamedDependency[SkipValidation[Caller]]  # how a route asks for the caller


def allow(*roles: Role) -> dict[str, Any]:
    """Return the `opt` of a route that admits exactly these roles."""
    return {"roles": frozenset(roles)}


def open_to_all() -> dict[str, Any]:
    """Return the `opt` of a route that asks for no token."""
    return {"roles": OPEN}


def make_guard(role_of: Callable[[str], tuple[str, str]]) -> Callable[..., None]:
    """Return the guard of all routes; `role_of(secret)` is (name, role) or AuthError."""

    def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        roles = handler.opt.get("roles", frozenset())
        if roles == OPEN:
            return
        if "\0" in connection.url.path or "%00" in connection.url.query:
            raise ConfigError("the address holds a NUL character, which no name has")
        name, role = role_of(secret_of(connection.headers.get("authorization", "")))
        if role not in roles:
            needed = " or ".join(sorted(roles)) or "nobody's"
            raise Refused(f"{name} is {role}; this needs the role {needed}")
        connection.scope["user"] = Caller(name, cast(Role, role))

    return guard


def secret_of(header: str) -> str:
    """Return the API token of an Authorization header, or raise AuthError."""
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise AuthError(
            "no API token: send the header Authorization: Bearer <token>; an operator "
            "makes tokens with consilia hub token"
        )
    return secret.strip()


def caller(scope: Scope) -> Caller:
    """Return who asks, as the guard found out; raises AuthError on an open route."""
    found = scope.get("user")
    if not isinstance(found, Caller):
        raise AuthError("this route does not know who asks")
    return found
