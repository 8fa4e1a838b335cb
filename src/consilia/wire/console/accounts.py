"""Who may use the console: accounts, invitations, sessions, second factors."""

from typing import Literal

from consilia.wire.console import Request, Role, View

Provider = Literal["password", "oidc", "ldap"]


class SignIn(Request, frozen=True):
    """Name and password, and the code of the second factor where the account has one."""

    name: str
    password: str
    code: str = ""  # six digits
    provider: Literal["password", "ldap"] = "password"  # whose password: of here, of the site


class SecondCode(Request, frozen=True):
    """The second factor's code of a person whom the provider has just signed in."""

    code: str  # six digits


class InvitationToken(Request, frozen=True):
    """The secret of an invitation link (behind its #)."""

    token: str


class AcceptInvitation(Request, frozen=True):
    """Make an account by invitation; the person chooses the password."""

    token: str
    name: str  # 1 to 63 of a-z 0-9 . _ -
    password: str  # at least 12 characters


class ChangePassword(Request, frozen=True):
    """Change one's own password; every other session of the account ends."""

    password: str
    new_password: str


class ConfirmCode(Request, frozen=True):
    """A code that proves the second factor works; or, with the password, that it may go."""

    code: str
    password: str = ""


class Invite(Request, frozen=True):
    """Invite a person to an account with these roles."""

    roles: tuple[Role, ...]
    hours: float = 72.0


class ChangeAccount(Request, frozen=True):
    """What is given changes; the rest stays. Its sessions end."""

    roles: tuple[Role, ...] | None = None
    disabled: bool | None = None
    unlock: bool = False  # forget failed attempts
    remove_second_factor: bool = False  # of a person who lost the device


class SessionView(View, frozen=True):
    """Who is signed in. `csrf` goes into the header X-CSRF-Token of every change."""

    site: str
    version: str
    signed_in: bool = False
    needs_code: bool = False  # the password was right: ask for the code, send all three
    name: str = ""
    roles: tuple[Role, ...] = ()
    second_factor: bool = False
    must_add_second_factor: bool = False  # nothing else is allowed until it is set up
    csrf: str = ""
    idle_seconds: float = 0.0  # without a request the session ends after this long
    ends: float = 0.0  # it ends then at the latest
    provider: Provider = "password"  # who answers for the person


class ProviderView(View, frozen=True):
    """One way to sign in. `start` is where a browser goes for it, "" for a form."""

    kind: Provider
    label: str  # "" for the accounts made here
    start: str


class ProvidersView(View, frozen=True):
    """All ways to sign in, and whom to ask who is turned away ("": nobody in particular)."""

    providers: tuple[ProviderView, ...]
    contact: str


class InvitationView(View, frozen=True):
    """An invitation that may still be accepted."""

    id: str
    roles: tuple[Role, ...]
    by: str
    expires: float


class InvitationLink(View, frozen=True):
    """A new invitation; the link is in this answer and nowhere else."""

    id: str
    link: str
    roles: tuple[Role, ...]
    expires: float


class SecondFactorView(View, frozen=True):
    """A new secret for an authenticator app; in force once a code of it is confirmed."""

    secret: str  # base32
    uri: str  # otpauth://totp/..., for a QR code


class AccountView(View, frozen=True):
    """One account, without any secret."""

    name: str
    roles: tuple[Role, ...]
    created: float
    by: str
    disabled: bool
    locked_until: float  # 0: not locked
    second_factor: bool
    last_sign_in: float  # 0: never
    provider: Provider  # who answers for the person


class AccountsView(View, frozen=True):
    """All accounts and the invitations still open."""

    accounts: tuple[AccountView, ...]
    invitations: tuple[InvitationView, ...]
