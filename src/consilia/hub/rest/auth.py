"""Routes of signing in and out, and of one's own account."""

from typing import Any
from urllib.parse import urlencode

from litestar import Request, Response, delete, get, post
from litestar.datastructures import Cookie
from litestar.params import FromPath, JSONBody
from litestar.response import Redirect

from consilia.accounts.directory import Turned
from consilia.errors import AuthError, ConfigError, NotFound, Refused, TransferError
from consilia.hub.people import signin
from consilia.hub.people.service import People
from consilia.hub.people.signin import Entered
from consilia.hub.rest.guard import Caller, Who, address_of
from consilia.hub.rest.services import Hub, Services
from consilia.wire.accounts import (
    Code,
    Confirmed,
    Login,
    Logout,
    MeView,
    NewPassword,
    ProviderView,
    Refresh,
    SecondFactorView,
    SignedIn,
    StudyRoles,
)

COOKIE = "consilia_refresh"
COOKIE_PATH = "/api/v1/auth"
STATE = "consilia_oidc"
STATE_PATH = "/api/v1/auth/oidc"
STATE_SECONDS = 600  # that somebody may take at their provider
_FROM_HERE = ("", "same-origin", "none")  # what Sec-Fetch-Site says of our own pages

Asked = Request[Any, Any, Any]


@get("/auth/providers")
async def providers(hub: Hub) -> list[ProviderView]:
    """List the ways to sign in."""
    found = [ProviderView("password", "password", None, "Account of this hub")]
    for name, asking in hub.people.directories.asking.items():
        found.append(ProviderView(name, "ldap", None, asking.label))
    for name, page in hub.people.directories.pages.items():
        found.append(ProviderView(name, "oidc", f"{STATE_PATH}/{name}/start", page.label))
    return found


@post("/auth/login", status_code=200)
async def login(hub: Hub, request: Asked, data: JSONBody[Login]) -> Response[SignedIn]:
    """Sign in with name, password and, where the account has a second factor, a code."""
    from_our_pages(request)
    entered = await signin.sign_in(hub.people, data, address_of(request))
    return answer(hub.people, entered, cookie=data.cookie)


@post("/auth/refresh", status_code=200)
async def refresh(
    hub: Hub, request: Asked, data: JSONBody[Refresh | None]
) -> Response[SignedIn]:
    """Give the next access token and refresh token; each refresh token is good for one use."""
    given, cookie = _token(request, data.refresh_token if data else "")
    entered = await signin.refresh(hub.people, given)
    return answer(hub.people, entered, cookie=cookie)


@post("/auth/logout", status_code=200)
async def logout(
    hub: Hub, request: Asked, data: JSONBody[Logout | None]
) -> Response[dict[str, str]]:
    """End the session. Its access token works no more from the next request on."""
    given, _ = _token(request, data.refresh_token if data else "")
    await signin.sign_out(hub.people, given)
    return Response({"status": "signed out"}, cookies=[_cookie(hub.people, "")])


@post("/auth/password", status_code=200)
async def password(
    hub: Hub, who: Who, request: Asked, data: JSONBody[NewPassword]
) -> Response[SignedIn]:
    """Change one's own password; every session but the new one ends."""
    entered = await signin.change_password(
        hub.people, who, data.old, data.new, address_of(request)
    )
    return answer(hub.people, entered, cookie=data.cookie)


@get("/auth/me")
async def me(hub: Hub, who: Who) -> MeView:
    """Tell who asks and what they may do."""
    return await me_view(hub, who)


@post("/auth/second-factor", status_code=200)
async def second_factor(hub: Hub, who: Who) -> SecondFactorView:
    """Propose a second factor; it is in force once a code of it is confirmed."""
    return await signin.propose_second_factor(hub.people, who)


@post("/auth/second-factor/confirm", status_code=200)
async def confirm_second_factor(hub: Hub, who: Who, data: JSONBody[Code]) -> MeView:
    """Put the proposed second factor in force; every other session ends."""
    await signin.confirm_second_factor(hub.people, who, data.code)
    return await me_view(hub, who)


@delete("/auth/second-factor", status_code=200)
async def remove_second_factor(
    hub: Hub, who: Who, request: Asked, data: JSONBody[Confirmed]
) -> MeView:
    """Take one's own second factor away, with password and code."""
    await signin.remove_second_factor(
        hub.people, who, data.password, data.code, address_of(request)
    )
    return await me_view(hub, who)


# ---- a provider's own page -------------------------------------------------------------------


@get("/auth/oidc/{provider:str}/start")
async def oidc_start(hub: Hub, provider: FromPath[str]) -> Redirect:
    """Send the browser to the provider's page."""
    page = hub.people.directories.pages.get(provider)
    if page is None:
        raise NotFound(f"there is no provider {provider[:40]!r}; see /api/v1/auth/providers")
    secret = hub.random_bytes(32)
    try:
        where = await page.begin(_back(hub.people, provider), secret)
    except (AuthError, ConfigError, TransferError) as e:
        hub.log.warning("no sign-in page", provider=provider, cause=str(e))
        return _turned("unreachable", Cookie(STATE, value="", path=STATE_PATH, max_age=0))
    kept = Cookie(
        STATE,
        value=secret.hex(),
        path=STATE_PATH,
        httponly=True,
        secure=True,
        samesite="lax",  # it comes back by a link from the provider's page
        max_age=STATE_SECONDS,
    )
    return Redirect(where, status_code=303, cookies=[kept])


@get("/auth/oidc/{provider:str}/callback")
async def oidc_callback(hub: Hub, request: Asked, provider: FromPath[str]) -> Redirect:
    """Sign in who comes back from the provider's page, and go to the first page."""
    page = hub.people.directories.pages.get(provider)
    if page is None:
        raise NotFound(f"there is no provider {provider[:40]!r}; see /api/v1/auth/providers")
    gone = Cookie(STATE, value="", path=STATE_PATH, max_age=0, httponly=True, secure=True)
    try:
        secret = bytes.fromhex(request.cookies.get(STATE, ""))
    except ValueError:
        secret = b""
    if len(secret) != 32:
        return _turned("expired", gone)
    back, query = _back(hub.people, provider), dict(request.query_params)
    known = await page.finish(back, secret, query)
    if isinstance(known, Turned):
        hub.log.warning("sign-in turned away", provider=provider, cause=known.detail)
        return _turned(known.reason, gone)
    try:
        entered = await signin.enter_from_directory(
            hub.people, known, provider, address_of(request)
        )
    except Refused:
        return _turned("name-taken", gone)
    except AuthError:
        return _turned("disabled", gone)
    cookie = _cookie(hub.people, entered.refresh)
    return Redirect("/", status_code=303, cookies=[gone, cookie])


def _back(people: People, provider: str) -> str:
    return f"{people.origin()}{STATE_PATH}/{provider}/callback"


def _turned(reason: str, gone: Cookie) -> Redirect:
    where = f"/sign-in?{urlencode({'turned': reason})}"
    return Redirect(where, status_code=303, cookies=[gone])


# ---- inside ----------------------------------------------------------------------------------


def answer(people: People, entered: Entered, *, cookie: bool) -> Response[SignedIn]:
    """Return new tokens, the refresh token in the cookie or in the body."""
    body = SignedIn(
        entered.access, "Bearer", entered.seconds, None if cookie else entered.refresh
    )
    cookies = [_cookie(people, entered.refresh)] if cookie else []
    return Response(body, cookies=cookies)


async def me_view(hub: Services, who: Caller) -> MeView:
    """Return what somebody is told of themselves."""
    known = hub.people.knowledge.known(who.name) if who.session or who.key else None
    return MeView(
        name=who.name,
        roles=tuple(sorted(who.roles)),
        studies=study_roles(who),
        second_factor=known is not None and known.second_factor,
        second_factor_due=hub.people.must_enrol(who),
        provider=known.kind if known is not None else "password",
        site=who.site or None,
        key=who.key or None,
    )


def study_roles(who: Caller) -> tuple[StudyRoles, ...]:
    """Return the roles in single studies, by study."""
    held = sorted(who.studies.items())
    return tuple(StudyRoles(study, tuple(sorted(roles))) for study, roles in held if roles)


def from_our_pages(request: Asked) -> None:
    """Raise Refused for a request that another site's page makes a browser send.

    The cookie is SameSite=Strict already; this is for what would set one.
    """
    said = request.headers.get("sec-fetch-site", "")
    if said not in _FROM_HERE:
        raise Refused(
            f"this request comes from another site's page ({said[:20]}); sign in here"
        )


def _token(request: Asked, said: str) -> tuple[str, bool]:
    """Return the refresh token, and whether it came in the cookie."""
    from_our_pages(request)
    return (said, False) if said else (request.cookies.get(COOKIE, ""), True)


def _cookie(people: People, token: str) -> Cookie:
    return Cookie(
        COOKIE,
        value=token,
        path=COOKIE_PATH,
        httponly=True,
        secure=True,
        samesite="strict",
        max_age=int(people.life.whole) if token else 0,
    )
