"""Routes of signing in by the hospital's directory.

`/oidc/start` and `/oidc/callback` are pages that a browser visits, not requests of a page: the
provider sends it back from another site, so the session's own cookie would not come along.
"""

from typing import Any, Literal

from litestar import Request, Response, get, post
from litestar.datastructures import Cookie
from litestar.params import FromQuery, JSONBody

from consilia.accounts.directory import Turned
from consilia.accounts.oidc import FLOW_SECONDS
from consilia.errors import ConfigError, ConsiliaError, TransferError
from consilia.node.console import entering, signing
from consilia.node.console.gate import CALLBACK
from consilia.node.console.guard import cookie, open_to_all
from consilia.node.console.services import Here, Services
from consilia.wire.console.accounts import ProvidersView, SecondCode, SessionView, SignIn

FLOW, TICKET = "oidc", "code"  # cookies, besides the session's


@get("/session/providers", opt=open_to_all(), sync_to_thread=False)
def list_providers(here: Here) -> ProvidersView:
    """List the ways to sign in, and whom to ask who is turned away."""
    return entering.providers(here)


@post("/session", opt=open_to_all(), status_code=200, sync_to_thread=True)
def sign_in(here: Here, data: JSONBody[SignIn]) -> Response[SessionView]:
    """Sign in; where `needs_code` comes back, send the same again with the code."""
    by = entering.by_ldap if data.provider == "ldap" else signing.sign_in
    view, token = by(here, data)
    return Response(view, cookies=[cookie(here, token)] if token else [])


@post("/session/code", opt=open_to_all(), status_code=200, sync_to_thread=True)
def second_code(
    here: Here, request: Request[Any, Any, Any], data: JSONBody[SecondCode]
) -> Response[SessionView]:
    """Give the second factor's code after the hospital's sign-in page."""
    ticket = request.cookies.get(_name(here, TICKET), "")
    view, token = entering.second_code(here, ticket, data)
    return Response(view, cookies=[cookie(here, token), _passing(here, TICKET, "")])


@get("/start", opt=open_to_all(), sync_to_thread=True)
def start(
    here: Here, request: Request[Any, Any, Any], wanted: FromQuery[str] = "/"
) -> Response[None]:
    """Send a browser to the hospital's sign-in page; `wanted` is the page to come back to."""
    try:
        url, secret = entering.start(here, _redirect(here, request), wanted)
    except (TransferError, ConfigError) as e:
        here.log.info("no sign-in", by="oidc", cause=str(e))
        return _to(_problem(e))
    return _to(url, _passing(here, FLOW, secret))


@get("/callback", opt=open_to_all(), sync_to_thread=True)
def callback(here: Here, request: Request[Any, Any, Any]) -> Response[None]:
    """Take a browser back from the hospital's sign-in page."""
    query = {k: v for k, v in request.query_params.items() if isinstance(v, str)}
    kept = request.cookies.get(_name(here, FLOW), "")
    found = entering.finish(here, query, _redirect(here, request), kept)
    over = _passing(here, FLOW, "")
    if isinstance(found, Turned):
        return _to(f"/?sign_in={found.reason}", over)
    if found.ticket:
        return _to("/?sign_in=code", over, _passing(here, TICKET, found.ticket))
    if not found.session:
        return _to("/?sign_in=failed", over)
    return _to(found.target, over, cookie(here, found.session))


def _problem(error: ConsiliaError) -> str:
    reason = "unreachable" if isinstance(error, TransferError) else "failed"
    return f"/?sign_in={reason}"


def _redirect(here: Services, request: Request[Any, Any, Any]) -> str:
    """Return where the provider sends browsers to: the name they used, of a closed list."""
    scheme = "https" if here.settings.certificate else "http"
    return f"{scheme}://{request.headers['host'].lower()}{CALLBACK}"


def _name(here: Services, what: str) -> str:
    return f"__Host-consilia-{what}" if here.settings.certificate else f"consilia-{what}"


def _passing(here: Services, what: str, value: str) -> Cookie:
    """Return a cookie of a sign-in under way; "" takes it away.

    That of the provider's page is Lax: with Strict it would not come back from another site.
    """
    same: Literal["lax", "strict"] = "lax" if what == FLOW else "strict"
    return Cookie(
        _name(here, what),
        value=value,
        path="/",
        httponly=True,
        samesite=same,
        secure=bool(here.settings.certificate),
        max_age=(FLOW_SECONDS if what == FLOW else int(entering.CODE_SECONDS)) if value else 0,
    )


def _to(url: str, *cookies: Cookie) -> Response[None]:
    return Response(None, status_code=303, headers={"Location": url}, cookies=list(cookies))


ROUTES = (list_providers, sign_in, second_code)
PAGES = (start, callback)
