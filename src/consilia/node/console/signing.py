"""Signing in and out, invitations, passwords, second factors: the steps, each in one place.

Everything blocks. What changes an account is one transaction with its audit line.
"""

from consilia import __version__
from consilia.accounts import links, passwords, totp
from consilia.accounts import store as accounts
from consilia.accounts.lockout import Attempts
from consilia.accounts.store import Account, Session
from consilia.errors import AuthError, ConfigError, Conflict, Refused, Wrong
from consilia.node.console.guard import by_provider, must_enrol, needs_code
from consilia.node.console.recheck import recheck
from consilia.node.console.services import Services
from consilia.node.store import Transaction
from consilia.wire.console import ROLES, Role
from consilia.wire.console.accounts import (
    AcceptInvitation,
    AccountView,
    ChangeAccount,
    ChangePassword,
    ConfirmCode,
    InvitationLink,
    InvitationView,
    Provider,
    SecondFactorView,
    SessionView,
    SignIn,
)

# actors of the audit trail that are no persons
RESERVED = ("agent", "hub", "consilia", "console", "consortium", "file", "shipped")
MOST_HOURS = 30 * 24.0  # of an invitation
WRONG = "name, password or code is wrong"


def sign_in(here: Services, said: SignIn) -> tuple[SessionView, str]:
    """Return the view and the cookie; "" where the code is still to be asked for.

    Raises AuthError for anything wrong without saying what; Refused while the name rests.
    """
    now = here.now()
    with here.store.write() as tx:
        attempt = accounts.count_attempt(tx, said.name, now)
        found = accounts.find(tx, said.name)
    right = _matches(here, found, said.password)
    if found is None or not right or found.disabled:
        raise _wrong(here, found, attempt)
    if found.secret and not said.code:
        with here.store.write() as tx:
            accounts.forgive(tx, said.name, now, whole=False)
        return SessionView(here.site, __version__, needs_code=True), ""
    token = begin(here, found, said.code, attempt, "signed in")
    if not token:
        raise AuthError(WRONG)
    if passwords.outdated(found.password, here.hasher):
        _rehash(here, found.name, said.password)
    return session_view(here, token), token


def begin(here: Services, found: Account, code: str | None, attempt: Attempts, how: str) -> str:
    """Begin a session when the code is right and nothing was changed meanwhile; else "".

    `code` None: none is asked of this person. `how` goes into the audit trail.
    """
    now = here.now()
    with here.store.write() as tx:
        known = accounts.get(tx, found.name)  # as it is now, with the step used last
        asked = known.secret if code is not None else ""
        step = totp.accepted(asked, code or "", now, known.step) if asked else 0
        if step is None or known.epoch != found.epoch or known.disabled:
            _note_rest(tx, known, attempt, now)
            return ""
        if asked:
            accounts.change(tx, known.name, step=step)
        accounts.forgive(tx, known.name, now, whole=True)
        accounts.sweep(tx, now, here.life)
        token = accounts.open_session(tx, known, now, here.random_bytes(accounts.TOKEN_BYTES))
        tx.audit(now, known.name, "account.sign-in", known.name, how)
    return token


def sign_out(here: Services, session: Session) -> None:
    """End a session."""
    with here.store.write() as tx:
        accounts.close_session(tx, session)
    here.outside.keep(session.digest, "")


def session_view(here: Services, token: str) -> SessionView:
    """Return who is signed in under a cookie; nobody when it is no session's."""
    try:
        found = accounts.session(here.store, token, here.now(), here.life)
        recheck(here, found)
    except AuthError:
        return SessionView(here.site, __version__)
    return SessionView(
        here.site,
        __version__,
        signed_in=True,
        name=found.account.name,
        roles=_roles(found.account.roles),
        second_factor=bool(found.account.secret),
        must_add_second_factor=must_enrol(here, found),
        csrf=accounts.csrf_token(token),
        idle_seconds=here.life.idle,
        ends=found.started + here.life.whole,
        provider=provider_of(here.store, found.account),
    )


def invite(here: Services, roles: tuple[Role, ...], hours: float, actor: str) -> InvitationLink:
    """Make a one-time link to an account."""
    if not 0 < hours <= MOST_HOURS:
        raise ConfigError(
            Wrong("hours", f"{hours:g}", f"more than 0 and at most {MOST_HOURS:g}")
        )
    now = here.now()
    with here.store.write() as tx:
        made, token = accounts.invite(
            tx,
            roles=roles,
            actor=actor,
            now=now,
            seconds=hours * 3600,
            random=here.random_bytes(accounts.TOKEN_BYTES),
        )
        tx.audit(now, actor, "account.invite", made.id, "invited", ", ".join(made.roles))
    link = f"{here.place.origin}/invitation#{token}"
    return InvitationLink(made.id, link, _roles(made.roles), made.expires)


def withdraw(here: Services, id: str, actor: str) -> None:
    """Withdraw an invitation."""
    with here.store.write() as tx:
        accounts.withdraw(tx, id)
        tx.audit(here.now(), actor, "account.uninvite", id, "withdrawn")


def invitation(here: Services, token: str) -> InvitationView:
    """Return the invitation of a link."""
    return invitation_view(accounts.invited(here.store, token, here.now()))


def accept(here: Services, said: AcceptInvitation) -> tuple[SessionView, str]:
    """Make the account of an invitation and sign its person in."""
    accounts.invited(here.store, said.token, here.now())  # before the work of a hash
    if said.name in RESERVED:
        raise ConfigError(f"name: {said.name!r} stands for the software itself; choose another")
    passwords.check(said.password, (said.name, here.site))
    kept = _hashed(here, said.password)
    now = here.now()
    with here.store.write() as tx:
        _check_inviter(tx, accounts.invited(tx, said.token, now).actor)
        made = accounts.accept(tx, said.token, said.name, kept, now)
        token = accounts.open_session(tx, made, now, here.random_bytes(accounts.TOKEN_BYTES))
        detail = f"{', '.join(made.roles)}; invited by {made.actor}"
        tx.audit(now, made.name, "account.create", made.name, "created", detail)
    return session_view(here, token), token


def _check_inviter(tx: Transaction, name: str) -> None:
    """Raise AuthError when who made an invitation administers no more; its link lives weeks.

    Those made at the machine itself (consilia node console-invite) are no account's.
    """
    maker = accounts.find(tx, name)
    if maker is not None and (maker.disabled or "administrator" not in maker.roles):
        raise AuthError(
            f"this invitation is void: {name}, who made it, may not any more; ask for a new one"
        )


def change_password(
    here: Services, session: Session, said: ChangePassword
) -> tuple[SessionView, str]:
    """Change one's own password and begin a new session; all others end."""
    account = session.account
    if account.password == links.NO_PASSWORD:
        raise Conflict("the hospital's directory keeps this password; change it there")
    _confirm(here, account, said.password)
    passwords.check(said.new_password, (account.name, here.site))
    kept = _hashed(here, said.new_password)
    return _renewed(here, account.name, "account.password", "changed", password=kept)


def propose_second_factor(here: Services, session: Session) -> SecondFactorView:
    """Make a secret; it is in force once a code of it is confirmed."""
    account = session.account
    if account.secret:
        raise Conflict("this account has a second factor; remove it first to set up another")
    if by_provider(here, account) and not needs_code(here, account):
        raise Conflict("the hospital's sign-in page asks for second factors; set it up there")
    secret = totp.new_secret(here.random_bytes(totp.SECRET_BYTES))
    with here.store.write() as tx:
        accounts.change(tx, account.name, proposed=secret)
    return SecondFactorView(secret, totp.uri(secret, account.name, f"Consilia {here.site}"))


def confirm_second_factor(
    here: Services, session: Session, said: ConfirmCode
) -> tuple[SessionView, str]:
    """Put the proposed second factor in force; every other session ends."""
    account = session.account
    if not account.proposed:
        raise Conflict("no second factor was proposed; begin again")
    step = totp.accepted(account.proposed, said.code, here.now(), 0)
    if step is None:
        raise ConfigError(
            "code: not the one of this moment; check that the device's clock is right"
        )
    return _renewed(
        here, account.name, "account.second-factor", "added",
        secret=account.proposed, proposed="", step=step,
    )  # fmt: skip


def remove_second_factor(
    here: Services, session: Session, said: ConfirmCode
) -> tuple[SessionView, str]:
    """Take one's own second factor away, with password and code.

    Of whom the directory answers for, the code alone: their password is not known here.
    """
    account = session.account
    if not account.secret:
        raise Conflict("this account has no second factor")
    _confirm(here, account, said.password, said.code)
    return _renewed(here, account.name, "account.second-factor", "removed", secret="", step=0)


def change_account(here: Services, name: str, said: ChangeAccount, actor: str) -> AccountView:
    """Change another person's account; Refused where nobody could administer afterwards."""
    if said.remove_second_factor and name == actor:  # a stolen session must not get that far
        raise Refused(
            "remove_second_factor: your own is removed in the account's settings, with "
            "password and code"
        )
    changes = []
    with here.store.write() as tx:
        if said.roles is not None and accounts.get(tx, name).password == links.NO_PASSWORD:
            raise Refused(
                "roles: those of this account are its groups' in the hospital's directory; "
                "change them there, or the map in node.yaml: console.sign_in"
            )
        if said.roles is not None:
            accounts.set_roles(tx, name, said.roles)
            changes.append(f"roles {', '.join(said.roles)}")
        if said.disabled is not None:
            accounts.change(tx, name, disabled=int(said.disabled))
            changes.append("disabled" if said.disabled else "enabled")
        if said.unlock:
            accounts.forgive(tx, name, here.now(), whole=True)
            changes.append("failed attempts forgotten")
        if said.remove_second_factor:
            accounts.change(tx, name, secret="", step=0, proposed="")
            changes.append("second factor removed")
        found = accounts.end_sessions(tx, name)
        _keep_an_administrator(accounts.every(tx))
        tx.audit(here.now(), actor, "account.change", name, "changed", "; ".join(changes))
    return account_view(here, found)


def remove_account(here: Services, name: str, actor: str) -> None:
    """Remove an account; Refused where nobody could administer afterwards."""
    with here.store.write() as tx:
        accounts.remove(tx, name)
        links.forget(tx, name)
        _keep_an_administrator(accounts.every(tx))
        tx.audit(here.now(), actor, "account.remove", name, "removed")


def account_view(here: Services, account: Account) -> AccountView:
    """Return an account without its secrets."""
    return AccountView(
        account.name,
        _roles(account.roles),
        account.created,
        account.actor,
        account.disabled,
        accounts.attempts(here.store, account.name).until,
        bool(account.secret),
        account.last,
        provider_of(here.store, account),
    )


def provider_of(db: accounts.Reads, account: Account) -> Provider:
    """Return who answers for an account's person."""
    if account.password != links.NO_PASSWORD:
        return "password"
    link = links.find(db, account.name)
    return "ldap" if link is not None and link.kind == "ldap" else "oidc"


def invitation_view(found: accounts.Invitation) -> InvitationView:
    """Return an invitation as people see it."""
    return InvitationView(found.id, _roles(found.roles), found.actor, found.expires)


def _roles(found: tuple[str, ...]) -> tuple[Role, ...]:
    return tuple(role for role in ROLES if role in found)


def _matches(here: Services, found: Account | None, password: str) -> bool:
    with here.hashing:
        if found is None or found.password == links.NO_PASSWORD:
            # a name without an account takes as long as one with
            passwords.hashed(password[: passwords.MOST], here.hasher)
            return False
        return passwords.matches(found.password, password, here.hasher)


def _hashed(here: Services, password: str) -> str:
    with here.hashing:
        return passwords.hashed(password, here.hasher)


def _rehash(here: Services, name: str, password: str) -> None:
    kept = _hashed(here, password)
    with here.store.write() as tx:
        accounts.change(tx, name, password=kept)


def _wrong(here: Services, found: Account | None, attempt: Attempts) -> AuthError:
    """Return the error of a failed attempt, its audit line written where the name rests now."""
    if found is not None and attempt.until:
        with here.store.write() as tx:
            _note_rest(tx, found, attempt, here.now())
    return AuthError(WRONG)


def _note_rest(tx: Transaction, found: Account, attempt: Attempts, now: float) -> None:
    if attempt.until:
        text = (
            f"{attempt.failures} failed attempts; rests for {attempt.until - now:.0f} seconds"
        )
        tx.audit(now, "console", "account.lock", found.name, "locked", text)


def _confirm(here: Services, account: Account, password: str, code: str | None = None) -> None:
    """Ask the password, and the code, again before something weighty; wrong ones count."""
    now = here.now()
    with here.store.write() as tx:
        accounts.count_attempt(tx, account.name, now)
    if account.password != links.NO_PASSWORD and not _matches(here, account, password):
        raise Refused("password: not the one of this account")
    if code is not None and totp.accepted(account.secret, code, now, account.step) is None:
        raise ConfigError(
            "code: not the one of this moment, or used already; wait for the next"
        )
    with here.store.write() as tx:
        accounts.forgive(tx, account.name, now, whole=False)


def _renewed(
    here: Services, name: str, action: str, outcome: str, **values: accounts.Value
) -> tuple[SessionView, str]:
    """Change one's own account and begin a new session in place of all others."""
    now = here.now()
    with here.store.write() as tx:
        accounts.change(tx, name, **values)
        account = accounts.end_sessions(tx, name)
        token = accounts.open_session(tx, account, now, here.random_bytes(accounts.TOKEN_BYTES))
        tx.audit(now, name, action, name, outcome)
    return session_view(here, token), token


def _keep_an_administrator(left: list[Account]) -> None:
    # of those made here: the directory may be out of order, or out of somebody's hands
    if not any(
        "administrator" in a.roles and not a.disabled and a.password != links.NO_PASSWORD
        for a in left
    ):
        raise Refused(
            "nobody would be administrator any more; give another account that was made here "
            "that role first"
        )
