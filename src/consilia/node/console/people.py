"""Routes of sessions and accounts; those of getting in are in `doors`."""

from typing import Any

from litestar import Request, Response, delete, get, patch, post
from litestar.params import FromPath, JSONBody

from consilia.accounts import store as accounts
from consilia.node.console import signing
from consilia.node.console.guard import (
    Who,
    allow,
    anyone,
    cookie,
    cookie_name,
    open_to_all,
)
from consilia.node.console.services import Here, Services
from consilia.wire.console.accounts import (
    AcceptInvitation,
    AccountsView,
    AccountView,
    ChangeAccount,
    ChangePassword,
    ConfirmCode,
    InvitationLink,
    InvitationToken,
    InvitationView,
    Invite,
    SecondFactorView,
    SessionView,
)

ADMINISTRATOR = allow("administrator")


@get("/session", opt=open_to_all(), sync_to_thread=True)
def get_session(here: Here, request: Request[Any, Any, Any]) -> SessionView:
    """Tell who is signed in, if anybody."""
    return signing.session_view(here, request.cookies.get(cookie_name(here), ""))


@delete("/session", opt=anyone(enrolling=True), sync_to_thread=True, status_code=204)
def sign_out(here: Here, who: Who) -> Response[None]:
    """Sign out."""
    signing.sign_out(here, who.session)
    return Response(None, status_code=204, cookies=[cookie(here, "")])


@post("/invitation/check", opt=open_to_all(), status_code=200, sync_to_thread=True)
def check_invitation(here: Here, data: JSONBody[InvitationToken]) -> InvitationView:
    """Tell what an invitation is for."""
    return signing.invitation(here, data.token)


@post("/invitation/accept", opt=open_to_all(), status_code=200, sync_to_thread=True)
def accept_invitation(here: Here, data: JSONBody[AcceptInvitation]) -> Response[SessionView]:
    """Make an account by invitation and sign in."""
    return _with_cookie(here, *signing.accept(here, data))


@post("/account/password", opt=anyone(enrolling=True), status_code=200, sync_to_thread=True)
def change_password(
    here: Here, who: Who, data: JSONBody[ChangePassword]
) -> Response[SessionView]:
    """Change one's own password; other sessions end."""
    return _with_cookie(here, *signing.change_password(here, who.session, data))


@post(
    "/account/second-factor", opt=anyone(enrolling=True), status_code=200, sync_to_thread=True
)
def propose_second_factor(here: Here, who: Who) -> SecondFactorView:
    """Make a secret for an authenticator app."""
    return signing.propose_second_factor(here, who.session)


@post(
    "/account/second-factor/confirm",
    opt=anyone(enrolling=True),
    status_code=200,
    sync_to_thread=True,
)
def confirm_second_factor(
    here: Here, who: Who, data: JSONBody[ConfirmCode]
) -> Response[SessionView]:
    """Put the new second factor in force."""
    return _with_cookie(here, *signing.confirm_second_factor(here, who.session, data))


@post("/account/second-factor/remove", opt=anyone(), status_code=200, sync_to_thread=True)
def remove_second_factor(
    here: Here, who: Who, data: JSONBody[ConfirmCode]
) -> Response[SessionView]:
    """Take one's own second factor away, with password and code."""
    return _with_cookie(here, *signing.remove_second_factor(here, who.session, data))


@get("/accounts", opt=allow("administrator", "dpo"), sync_to_thread=True)
def list_accounts(here: Here) -> AccountsView:
    """List accounts and open invitations."""
    open_ones = accounts.invitations(here.store, here.now())
    return AccountsView(
        tuple(signing.account_view(here, a) for a in accounts.every(here.store)),
        tuple(signing.invitation_view(i) for i in open_ones),
    )


@post("/accounts/invitations", opt=ADMINISTRATOR, sync_to_thread=True)
def invite(here: Here, who: Who, data: JSONBody[Invite]) -> InvitationLink:
    """Invite a person; the link is in this answer and nowhere else."""
    return signing.invite(here, data.roles, data.hours, who.name)


@delete(
    "/accounts/invitations/{id:str}", opt=ADMINISTRATOR, sync_to_thread=True, status_code=204
)
def withdraw_invitation(here: Here, who: Who, id: FromPath[str]) -> None:
    """Withdraw an invitation."""
    signing.withdraw(here, id, who.name)


@patch("/accounts/{name:str}", opt=ADMINISTRATOR, sync_to_thread=True)
def change_account(
    here: Here, who: Who, name: FromPath[str], data: JSONBody[ChangeAccount]
) -> AccountView:
    """Change a person's roles, disable, enable or unlock an account; its sessions end."""
    return signing.change_account(here, name, data, who.name)


@delete("/accounts/{name:str}", opt=ADMINISTRATOR, sync_to_thread=True, status_code=204)
def remove_account(here: Here, who: Who, name: FromPath[str]) -> None:
    """Remove an account."""
    signing.remove_account(here, name, who.name)


def _with_cookie(here: Services, view: SessionView, token: str) -> Response[SessionView]:
    return Response(view, cookies=[cookie(here, token)] if token else [])


ROUTES = (
    get_session,
    sign_out,
    check_invitation,
    accept_invitation,
    change_password,
    propose_second_factor,
    confirm_second_factor,
    remove_second_factor,
    list_accounts,
    invite,
    withdraw_invitation,
    change_account,
    remove_account,
)
