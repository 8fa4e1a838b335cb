"""Routes of accounts, invitations, requests for access and keys."""

import asyncio
from typing import TypeVar

import sqlalchemy as sa
from litestar import Response, delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody
from sqlalchemy import Connection

from consilia.hub import tables
from consilia.hub.paging import Page as Paged
from consilia.hub.people import accounts, attempts, doors, members
from consilia.hub.people.accounts import Account
from consilia.hub.rest.auth import Asked, answer, from_our_pages
from consilia.hub.rest.guard import Who, address_of
from consilia.hub.rest.services import Hub
from consilia.wire.accounts import (
    AcceptInvitation,
    AccessRequestView,
    AskAccess,
    ChangeUser,
    Decide,
    InvitationLink,
    InvitationView,
    KeyView,
    NewInvitation,
    NewKey,
    NewUser,
    SignedIn,
    StudyRoles,
    UserView,
)
from consilia.wire.people import Page

T = TypeVar("T")


@get("/users")
async def list_users(
    hub: Hub, limit: FromQuery[int] = 100, cursor: FromQuery[str | None] = None
) -> Page[UserView]:
    """List accounts by name."""

    def read(db: Connection) -> Page[UserView]:
        page = accounts.page(db, limit, cursor)
        views = (user_view(db, account, hub.now()) for account in page.items)
        return Page(items=tuple(views), next=page.next)

    return await hub.store.read(read)


@post("/users")
async def make_user(hub: Hub, who: Who, data: JSONBody[NewUser]) -> InvitationLink:
    """Make an account; the code that answers sets its password, once."""
    return await members.make_user(hub.people, who, data)


@get("/users/{name:str}")
async def get_user(hub: Hub, name: FromPath[str]) -> UserView:
    """Show one account."""
    return await hub.store.read(lambda db: user_view(db, accounts.get(db, name), hub.now()))


@patch("/users/{name:str}")
async def change_user(
    hub: Hub, who: Who, name: FromPath[str], data: JSONBody[ChangeUser]
) -> UserView:
    """Change roles, site or state of an account; its sessions end."""
    account = await members.change_user(hub.people, who, name, data)
    return await hub.store.read(lambda db: user_view(db, account, hub.now()))


@delete("/users/{name:str}")
async def remove_user(hub: Hub, who: Who, name: FromPath[str]) -> None:
    """Remove an account with its sessions and keys; its name stays taken."""
    await members.remove_user(hub.people, who, name)


@post("/users/{name:str}/end-sessions", status_code=200)
async def end_sessions(hub: Hub, who: Who, name: FromPath[str]) -> UserView:
    """End all sessions of an account, from each one's next request on."""
    await members.end_sessions(hub.people, who, name)
    return await hub.store.read(lambda db: user_view(db, accounts.get(db, name), hub.now()))


def user_view(db: Connection, account: Account, now: float) -> UserView:
    """Return an account without its secrets."""
    s = tables.sessions.c
    mine = sa.select(sa.func.count()).select_from(tables.sessions)
    held = accounts.study_roles(db, account.name).items()
    rest = attempts.found(db, attempts.of_name(account.name)).until
    return UserView(
        name=account.name,
        roles=account.roles,
        studies=tuple(StudyRoles(study, tuple(sorted(roles))) for study, roles in held),
        site=account.site,
        provider=account.kind,
        created=account.created,
        invited_by=account.actor,
        disabled=account.disabled,
        second_factor=bool(account.secret),
        last=account.last,
        sessions=db.execute(mine.where(s.person == account.name)).scalar() or 0,
        resting=rest if rest > now else 0.0,
    )


# ---- invitations -----------------------------------------------------------------------------


@get("/invitations")
async def list_invitations(
    hub: Hub, limit: FromQuery[int] = 100, cursor: FromQuery[str | None] = None
) -> Page[InvitationView]:
    """List invitations that may still be accepted, newest first, without their codes."""

    def read(db: Connection) -> Page[InvitationView]:
        page = doors.invitations(db, hub.now(), limit, cursor)
        views = (
            InvitationView(i.id, i.name, i.roles, i.study, i.site, i.actor, i.expires)
            for i in page.items
        )
        return Page(items=tuple(views), next=page.next)

    return await hub.store.read(read)


@post("/invitations")
async def invite(hub: Hub, who: Who, data: JSONBody[NewInvitation]) -> InvitationLink:
    """Invite somebody to roles at the hub (operator) or in one's own study."""
    return await members.invite(hub.people, who, data)


@delete("/invitations/{id:str}")
async def withdraw(hub: Hub, who: Who, id: FromPath[str]) -> None:
    """Void an invitation."""
    await members.withdraw(hub.people, who, id)


@post("/invitations/accept", status_code=200)
async def accept(
    hub: Hub, request: Asked, data: JSONBody[AcceptInvitation]
) -> Response[SignedIn]:
    """Make the account of an invitation, or set its new password, and sign in."""
    from_our_pages(request)
    entered = await members.accept(hub.people, data, address_of(request))
    return answer(hub.people, entered, cookie=data.cookie)


# ---- requests for access ---------------------------------------------------------------------


@get("/access-requests")
async def list_requests(
    hub: Hub, who: Who, limit: FromQuery[int] = 100, cursor: FromQuery[str | None] = None
) -> Page[AccessRequestView]:
    """List requests, newest first: one's own and those for one's studies, or all."""
    everything = bool(who.roles & {"operator", "auditor"}) and not who.within
    owner = who.name if "researcher" in who.roles and not who.within else None

    def read(db: Connection) -> Page[AccessRequestView]:
        page = doors.requests(db, None if everything else who.name, owner, limit, cursor)
        return _page(page)

    return await hub.store.read(read)


@post("/access-requests")
async def ask(hub: Hub, who: Who, data: JSONBody[AskAccess]) -> AccessRequestView:
    """Ask for a role, at the hub or in a study."""
    return await members.ask(hub.people, who, data)


@post("/access-requests/{id:str}/grant", status_code=200)
async def grant(
    hub: Hub, who: Who, id: FromPath[str], data: JSONBody[Decide]
) -> AccessRequestView:
    """Give the role that was asked for."""
    return await members.decide(hub.people, who, id, data.reason, grant=True)


@post("/access-requests/{id:str}/refuse", status_code=200)
async def refuse(
    hub: Hub, who: Who, id: FromPath[str], data: JSONBody[Decide]
) -> AccessRequestView:
    """Refuse a request, with a reason."""
    return await members.decide(hub.people, who, id, data.reason, grant=False)


# ---- keys ------------------------------------------------------------------------------------


@get("/keys")
async def list_keys(
    hub: Hub, who: Who, limit: FromQuery[int] = 100, cursor: FromQuery[str | None] = None
) -> Page[KeyView]:
    """List API keys in force: one's own; for operators and auditors all."""
    return _page(await asyncio.to_thread(members.keys, hub.people, who, limit, cursor))


@post("/keys")
async def make_key(hub: Hub, who: Who, data: JSONBody[NewKey]) -> KeyView:
    """Make an API key with some of one's own roles; its secret is shown once."""
    return await members.make_key(hub.people, who, data)


@delete("/keys/{id:str}")
async def revoke_key(hub: Hub, who: Who, id: FromPath[str]) -> None:
    """Void an API key from its next request on."""
    await members.revoke_key(hub.people, who, id)


def _page(page: Paged[T]) -> Page[T]:
    return Page(items=page.items, next=page.next)
