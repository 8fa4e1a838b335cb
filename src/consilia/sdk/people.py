"""The people of a hub: accounts, invitations, requests for access, API keys."""

from typing import TYPE_CHECKING

from consilia.sdk.api import Api
from consilia.wire import accounts
from consilia.wire.people import Page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class People:
    """What `client.accounts` offers; each method is one route."""

    def __init__(self, api: Api) -> None:
        """`api` is the line to the hub."""
        self._api = api

    def me(self) -> accounts.MeView:
        """Tell who one is and what one may do."""
        return self._api.get("/auth/me", accounts.MeView)

    def list(self) -> "Sequence[accounts.UserView]":
        """List accounts (operator, auditor)."""
        return self._api.all("/users", Page[accounts.UserView])

    def get(self, name: str) -> accounts.UserView:
        """Show one account (operator, auditor)."""
        return self._api.get(f"/users/{name}", accounts.UserView)

    def change(self, name: str, change: accounts.ChangeUser) -> accounts.UserView:
        """Change roles, site or state of an account; its sessions end (operator)."""
        body = {k: v for k, v in _fields(change).items() if v is not None}
        return self._api.send_for("PATCH", f"/users/{name}", accounts.UserView, body)

    def remove(self, name: str) -> None:
        """Remove an account; its name stays taken (operator)."""
        self._api.send("DELETE", f"/users/{name}")

    def end_sessions(self, name: str) -> accounts.UserView:
        """End all sessions of an account (operator)."""
        return self._api.post(f"/users/{name}/end-sessions", accounts.UserView)

    def second_factor(self) -> accounts.SecondFactorView:
        """Make a secret for one's own second factor; a confirmed code puts it in force."""
        return self._api.post("/auth/second-factor", accounts.SecondFactorView, {})

    def confirm_second_factor(self, code: str) -> accounts.MeView:
        """Put the proposed second factor in force with a code of it; other sessions end."""
        return self._api.post(
            "/auth/second-factor/confirm", accounts.MeView, accounts.Code(code)
        )

    def remove_second_factor(self, password: str, code: str) -> accounts.MeView:
        """Take one's own second factor away; other sessions end."""
        said = accounts.Confirmed(password, code)
        return self._api.send_for("DELETE", "/auth/second-factor", accounts.MeView, said)

    def invite(
        self,
        roles: "Sequence[str]" = (),
        *,
        name: str | None = None,
        study: str | None = None,
        site: str | None = None,
        hours: float = 72.0,
    ) -> accounts.InvitationLink:
        """Invite somebody; link and code are in the answer, once."""
        body = accounts.NewInvitation(tuple(roles), name, study, site, hours)
        return self._api.post("/invitations", accounts.InvitationLink, body)

    def invitations(self) -> "Sequence[accounts.InvitationView]":
        """List open invitations (operator, auditor)."""
        return self._api.all("/invitations", Page[accounts.InvitationView])

    def accept(self, code: str, name: str, password: str) -> accounts.SignedIn:
        """Make the account of an invitation, or set its new password, and sign in."""
        body = accounts.AcceptInvitation(code, name, password)
        return self._api.post("/invitations/accept", accounts.SignedIn, body)

    def ask(
        self, role: str, reason: str, study: str | None = None
    ) -> accounts.AccessRequestView:
        """Ask for a role, at the hub or in a study."""
        body = accounts.AskAccess(role, reason, study)
        return self._api.post("/access-requests", accounts.AccessRequestView, body)

    def requests(self) -> "Sequence[accounts.AccessRequestView]":
        """List requests for access: one's own, and those for one's studies."""
        return self._api.all("/access-requests", Page[accounts.AccessRequestView])

    def decide(self, id: str, reason: str, *, grant: bool) -> accounts.AccessRequestView:
        """Grant or refuse a request."""
        path = f"/access-requests/{id}/{'grant' if grant else 'refuse'}"
        return self._api.post(path, accounts.AccessRequestView, accounts.Decide(reason))

    def keys(self) -> "Sequence[accounts.KeyView]":
        """List API keys: one's own; for operators and auditors all."""
        return self._api.all("/keys", Page[accounts.KeyView])

    def make_key(
        self, name: str, roles: "Sequence[str]", study: str | None = None, days: int = 90
    ) -> accounts.KeyView:
        """Make an API key with some of one's own roles; its secret is in the answer, once."""
        body = accounts.NewKey(name, tuple(roles), study, days)
        return self._api.post("/keys", accounts.KeyView, body)

    def revoke_key(self, id: str) -> None:
        """Void an API key."""
        self._api.send("DELETE", f"/keys/{id}")


def _fields(change: accounts.ChangeUser) -> "Mapping[str, object]":
    return {name: getattr(change, name) for name in change.__struct_fields__}
