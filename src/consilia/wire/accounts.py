"""Accounts at the hub, as people's programs and browsers ask for them: part of `/api/v1`.

Times are Unix seconds. Secrets (`code` of an invitation, `secret` of a key, tokens) are in the
answer that makes them and nowhere else. Unknown fields in a request are errors.
"""

from typing import Literal

from consilia.wire.people import Request, View

Kind = Literal["password", "oidc", "ldap"]


class Login(Request, frozen=True):
    """Sign in. `code` is of the second factor; `provider` a directory that asks passwords."""

    name: str
    password: str
    code: str = ""
    cookie: bool = False  # the refresh token goes into a cookie, not into the answer
    provider: str = ""


class Refresh(Request, frozen=True):
    """Ask for the next access token; without a token the cookie is taken."""

    refresh_token: str = ""


class Logout(Request, frozen=True):
    """End the session of a refresh token, or of the cookie."""

    refresh_token: str = ""


class SignedIn(View, frozen=True):
    """An access token, and the refresh token for the next one; each is good for one use."""

    access_token: str
    token_type: str  # Bearer
    expires_in: float  # seconds
    refresh_token: str | None = None  # None: it is in the cookie


class NewPassword(Request, frozen=True):
    """Change one's own password; all sessions but the new one end."""

    old: str
    new: str
    cookie: bool = False


class Code(Request, frozen=True):
    """A code of a second factor."""

    code: str


class Confirmed(Request, frozen=True):
    """One's password and a code of the second factor, before it is taken away."""

    password: str
    code: str


class SecondFactorView(View, frozen=True):
    """A proposed second factor; in force once a code of it is confirmed."""

    secret: str
    uri: str


class StudyRoles(View, frozen=True):
    """The roles that somebody holds in one study."""

    study: str
    roles: tuple[str, ...]


class MeView(View, frozen=True):
    """Who asks, and what they may do."""

    name: str
    roles: tuple[str, ...]  # at the hub
    studies: tuple[StudyRoles, ...]
    second_factor: bool
    second_factor_due: bool  # it must be set up before anything else
    provider: Kind
    site: str | None = None
    key: str | None = None  # the API key that asks


class ProviderView(View, frozen=True):
    """A way to sign in. `start` is where a browser goes; None: name and password are asked."""

    name: str
    kind: Kind
    start: str | None
    label: str = ""


class UserView(View, frozen=True):
    """An account."""

    name: str
    roles: tuple[str, ...]
    studies: tuple[StudyRoles, ...]
    site: str | None
    provider: Kind
    created: float
    invited_by: str
    disabled: bool
    second_factor: bool
    last: float | None  # signed in
    sessions: int  # open ones
    resting: float  # until when nobody may try its password; 0 for now


class NewUser(Request, frozen=True):
    """Make an account; its person sets the password with the code that answers."""

    name: str
    roles: tuple[str, ...] = ()
    site: str | None = None
    hours: float = 72.0


class ChangeUser(Request, frozen=True):
    """Change an account; what is left out stays. `studies` replaces roles in those named."""

    roles: tuple[str, ...] | None = None
    studies: dict[str, tuple[str, ...]] = {}
    site: str | None = None
    disabled: bool | None = None
    remove_second_factor: bool = False
    unlock: bool = False


class NewInvitation(Request, frozen=True):
    """Invite somebody to roles at the hub, or in one study.

    `name` is the account's, which may be there already: then the code sets a new password.
    """

    roles: tuple[str, ...] = ()
    name: str | None = None
    study: str | None = None
    site: str | None = None
    hours: float = 72.0


class InvitationView(View, frozen=True):
    """An invitation that may still be accepted."""

    id: str
    name: str | None
    roles: tuple[str, ...]
    study: str | None
    site: str | None
    invited_by: str
    expires: float


class InvitationLink(View, frozen=True):
    """A made invitation; link and code are shown once."""

    id: str
    link: str
    code: str
    expires: float
    name: str | None = None


class AcceptInvitation(Request, frozen=True):
    """Make the account of an invitation, or set its new password, and sign in."""

    code: str
    name: str
    password: str
    cookie: bool = False


class AskAccess(Request, frozen=True):
    """Ask for a role, at the hub or in a study."""

    role: str
    reason: str
    study: str | None = None


class Decide(Request, frozen=True):
    """Why access is granted or refused."""

    reason: str


class AccessRequestView(View, frozen=True):
    """Somebody's request for a role and what became of it."""

    id: str
    person: str
    study: str | None
    role: str
    reason: str
    created: float
    state: Literal["open", "granted", "refused"]
    decided_by: str | None
    decided: float | None
    answer: str


class NewKey(Request, frozen=True):
    """Make an API key for a machine, with some of one's own roles."""

    name: str
    roles: tuple[str, ...]
    study: str | None = None
    days: int = 90


class KeyView(View, frozen=True):
    """An API key; `secret` is shown once."""

    id: str
    name: str
    owner: str
    roles: tuple[str, ...]
    study: str | None
    expires: float
    secret: str | None = None
