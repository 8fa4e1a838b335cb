"""Signing in and out, refreshing, one's own password and second factor: the steps.

Each is one transaction with its audit line. Whatever is wrong about name, password or code is
told in the same words and takes as long, whether there is such an account or not.
"""

import asyncio
from dataclasses import dataclass

from sqlalchemy import Connection

from consilia.accounts import passwords, totp
from consilia.accounts.directory import Person, Turned, account_name
from consilia.accounts.lockout import Attempts
from consilia.accounts.store import token_text
from consilia.core import ids
from consilia.errors import (
    AuthError,
    ConfigError,
    Conflict,
    Refused,
    SecondFactorNeeded,
    TransferError,
)
from consilia.hub import audit
from consilia.hub.people import accounts, attempts, sessions
from consilia.hub.people.accounts import Account, NewAccount
from consilia.hub.people.roles import Caller, checked
from consilia.hub.people.service import People
from consilia.hub.people.sessions import ENDED, Session
from consilia.wire.accounts import Login, SecondFactorView

WRONG = "name, password or code is wrong"
NO_MORE = (
    "wrong",
    "not-mapped",
    "disabled",
)  # why a directory has somebody no more, as it says
_SECRET = 32  # random bytes of a refresh token


@dataclass(frozen=True, slots=True)
class Entered:
    """A session's new tokens."""

    session: Session
    access: str
    seconds: float  # that the access token lasts
    refresh: str


async def sign_in(people: People, said: Login, address: str) -> Entered:
    """Begin a session for a name and a password.

    AuthError for anything wrong, SecondFactorNeeded when the password is right and a code is
    due, TooMany while the name or the address rests.
    """
    now, free = people.now(), people.config.people.address_failures
    directory = people.directories.asking.get(said.provider) if said.provider else None
    # as the directory takes it: another way to write the same name is no fresh set of tries
    name = said.name if directory is None else account_name(said.name) or said.name
    attempt = await people.store.write(lambda db: attempts.count(db, name, address, now, free))
    found = await people.store.read(lambda db: accounts.find(db, name))
    if directory is not None:
        try:
            known = await directory.check(name, said.password)
        except (TransferError, Refused):  # nobody has looked at the password, or it was right
            await people.store.write(
                lambda db: attempts.forgive(db, name, address, now, whole=False)
            )
            raise
        if isinstance(known, Turned):
            await _failed(people, found, attempt, address, known.reason)
            raise AuthError(WRONG)
        return await enter_from_directory(people, known, said.provider, address)
    if said.provider:
        raise ConfigError(f"provider: {said.provider[:40]!r} asks for no password here")
    right = await _matches(people, found, said.password)
    if found is None or found.kind != "password" or not right or not found.may_enter:
        await _failed(people, found, attempt, address, "name or password")
        raise AuthError(WRONG)
    if found.secret and not said.code:
        await people.store.write(
            lambda db: attempts.forgive(db, said.name, address, now, whole=False)
        )
        raise SecondFactorNeeded("a code of the second factor is needed: send it as code")
    entered = await _enter(people, found, said.code, address)
    if entered is None:
        await _failed(people, found, attempt, address, "code")
        raise AuthError(WRONG)
    if passwords.outdated(found.password, people.hasher):
        await _rehash(people, found, said.password)
    return entered


async def enter_from_directory(
    people: People, known: Person, provider: str, address: str
) -> Entered:
    """Begin a session for somebody whom a directory has vouched for.

    Their roles at the hub are those of the directory, each time. AuthError when the account
    is disabled, Refused when the name is somebody else's.
    """
    now = people.now()
    id, secret = _new(people)
    roles = checked(known.roles)

    def write(db: Connection) -> Session:
        found = accounts.by_subject(db, provider, known.subject)
        if found is None:
            if accounts.find(db, known.name) is not None or accounts.taken(db, known.name):
                raise Refused(
                    f"the name {known.name!r} is somebody else's at this hub; ask an operator"
                )
            new = NewAccount(
                known.name, roles, kind=known.kind, provider=provider, subject=known.subject
            )
            found = accounts.add(db, new, f"directory:{provider}", now)
            _note(db, now, found.name, "account.create", f"from {provider}")
        if not found.may_enter:
            raise AuthError("this account is disabled at the hub; ask an operator")
        if found.roles != roles:
            found = accounts.set_roles(db, found.name, roles)
            _note(db, now, found.name, "account.change", f"roles {', '.join(roles)}")
        attempts.forgive(db, found.name, address, now, whole=True)
        _note(db, now, found.name, "account.sign-in", f"by {provider} from {address}")
        return sessions.begin(db, found, now, id, secret)

    session = await people.store.write(write)
    await people.knowledge.refresh()
    return _entered(people, session, secret)


async def refresh(people: People, token: str) -> Entered:
    """Give the next pair of tokens; AuthError when the session is over.

    A token that was used before ends its session: two have it, and one of them stole it.
    """
    id, _, secret = token.partition(".")
    now, fresh = people.now(), token_text(people.random_bytes(_SECRET))

    def write(db: Connection) -> Session | str | None:
        kept = sessions.renew(db, id, secret, fresh=fresh, at=now, life=people.life)
        if isinstance(kept, str):
            detail = "a refresh token was used twice; its session is ended"
            audit.append(
                db, now, "hub", "account.reuse", kept, outcome="refused", detail=detail
            )
        return kept

    kept = await people.store.write(write) if secret else None
    if not isinstance(kept, Session):
        await people.knowledge.refresh()
        raise AuthError(ENDED)
    await _asked_again(people, kept.person)
    return _entered(people, kept, fresh)


async def _asked_again(people: People, name: str) -> None:
    """End the sessions of somebody whom their directory does not vouch for any more."""
    known = await people.store.read(lambda db: accounts.get(db, name))
    if known.kind == "password":
        return
    turned = await people.directories.still(known)
    if turned is None:
        return
    now, detail = people.now(), f"{known.provider}: {turned.detail}"

    def write(db: Connection) -> None:
        accounts.end_sessions(db, name)
        if turned.reason in NO_MORE:  # a key would go on for a year with what they were
            accounts.revoke_keys(db, name, now)
        audit.append(
            db, now, "hub", "account.end-sessions", name, outcome="refused", detail=detail
        )

    await people.store.write(write)
    await people.knowledge.refresh()
    raise AuthError(ENDED)


async def sign_out(people: People, token: str) -> None:
    """End the session of a refresh token; nothing happens when it has ended already."""
    id, _, secret = token.partition(".")
    now = people.now()

    def write(db: Connection) -> None:
        kept = sessions.renew(db, id, secret, fresh="", at=now, life=people.life)
        if kept is not None:
            sessions.end(db, id)
        if isinstance(kept, Session):
            _note(db, now, kept.person, "account.sign-out", "")

    if secret:
        await people.store.write(write)
        await people.knowledge.refresh()


async def change_password(
    people: People, who: Caller, old: str, new: str, address: str
) -> Entered:
    """Change one's own password and begin a new session; all others end."""
    account = await own_account(people, who)
    await _confirm(people, account, old, None, address)
    passwords.check(new, (account.name, people.config.name))
    kept = await hashed(people, new)
    return await _renewed(people, account, "account.password", "changed", password=kept)


async def propose_second_factor(people: People, who: Caller) -> SecondFactorView:
    """Make a secret; it is in force once a code of it is confirmed."""
    account = await own_account(people, who)
    if account.secret:
        raise Conflict("this account has a second factor; remove it first to set up another")
    secret = totp.new_secret(people.random_bytes(totp.SECRET_BYTES))
    kept = people.factors.seal(secret, account.name)
    await people.store.write(lambda db: accounts.change(db, account.name, proposed=kept))
    issuer = f"Consilia {people.config.name}"
    return SecondFactorView(secret, totp.uri(secret, account.name, issuer))


async def confirm_second_factor(people: People, who: Caller, code: str) -> None:
    """Put the proposed second factor in force. Every other session ends."""
    account = await own_account(people, who)
    now = people.now()
    if not account.proposed:
        raise Conflict("no second factor was proposed; begin again")
    proposed = people.factors.open(account.proposed, account.name)
    step = totp.accepted(proposed, code, now, 0)
    if step is None:
        raise ConfigError(
            "code: not the one of this moment; check that the device's clock is right"
        )

    def write(db: Connection) -> None:
        accounts.change(db, account.name, secret=account.proposed, proposed="", step=step)
        sessions.end_others(db, account.name, who.session)
        _note(db, now, account.name, "account.second-factor", "added")

    await people.store.write(write)
    await people.knowledge.refresh()


async def remove_second_factor(
    people: People, who: Caller, password: str, code: str, address: str
) -> None:
    """Take one's own second factor away, with password and code. Other sessions end."""
    account = await own_account(people, who)
    if not account.secret:
        raise Conflict("this account has no second factor")
    await _confirm(people, account, password, code, address)
    now = people.now()

    def write(db: Connection) -> None:
        accounts.change(db, account.name, secret="", step=0)
        sessions.end_others(db, account.name, who.session)
        _note(db, now, account.name, "account.second-factor", "removed")

    await people.store.write(write)
    await people.knowledge.refresh()


async def person(people: People, who: Caller) -> Account:
    """Return the caller's account; Refused for API keys: a person does this, signed in."""
    if not who.session:
        raise Refused(f"{who.actor} is an API key; a person does this, signed in")
    return await people.store.read(lambda db: accounts.get(db, who.name))


async def own_account(people: People, who: Caller) -> Account:
    """Return the caller's account; Refused for keys and for those of a directory."""
    account = await person(people, who)
    if account.kind != "password":
        raise Refused(f"{who.name} signs in at {account.provider}; change it there")
    return account


async def enter(people: People, account: Account, address: str, how: str) -> Entered:
    """Begin the session of somebody who has just set their password."""
    now = people.now()
    id, secret = _new(people)

    def write(db: Connection) -> Session:
        attempts.forgive(db, account.name, address, now, whole=True)
        _note(db, now, account.name, "account.sign-in", f"{how} from {address}")
        return sessions.begin(db, accounts.get(db, account.name), now, id, secret)

    session = await people.store.write(write)
    await people.knowledge.refresh()
    return _entered(people, session, secret)


async def hashed(people: People, password: str) -> str:
    """Return the hash of a password, off the event loop, two at a time."""
    async with people.hashing:
        return await asyncio.to_thread(passwords.hashed, password, people.hasher)


# ---- inside ----------------------------------------------------------------------------------


async def _enter(people: People, found: Account, code: str, address: str) -> Entered | None:
    """Begin a session when the code is right and nothing was changed meanwhile."""
    now = people.now()
    id, secret = _new(people)

    def write(db: Connection) -> Session | None:
        known = accounts.get(db, found.name)  # as it is now, with the step used last
        opened = people.factors.open(known.secret, known.name)
        step = totp.accepted(opened, code, now, known.step) if opened else 0
        if step is None or known.epoch != found.epoch or not known.may_enter:
            return None
        if known.secret:
            accounts.change(db, known.name, step=step)
        attempts.forgive(db, known.name, address, now, whole=True)
        sessions.sweep(db, now, people.life)
        _note(db, now, known.name, "account.sign-in", f"from {address}")
        return sessions.begin(db, known, now, id, secret)

    session = await people.store.write(write)
    if session is None:
        return None
    await people.knowledge.refresh()
    return _entered(people, session, secret)


def _new(people: People) -> tuple[str, str]:
    """Return a session's id and its first secret."""
    return ids.new_id("ses", people.random_bytes(10)), token_text(people.random_bytes(_SECRET))


def _entered(people: People, session: Session, secret: str) -> Entered:
    access, seconds = people.signer.sign(session, people.now(), people.life)
    return Entered(session, access, seconds, f"{session.id}.{secret}")


async def _renewed(
    people: People, account: Account, action: str, detail: str, **values: object
) -> Entered:
    """Change one's own account and begin a new session in place of all others."""
    now = people.now()
    id, secret = _new(people)

    def write(db: Connection) -> Session:
        accounts.change(db, account.name, **values)
        fresh = accounts.end_sessions(db, account.name)
        _note(db, now, account.name, action, detail)
        return sessions.begin(db, fresh, now, id, secret)

    session = await people.store.write(write)
    await people.knowledge.refresh()
    return _entered(people, session, secret)


async def _confirm(
    people: People, account: Account, password: str, code: str | None, address: str
) -> None:
    """Ask the password, and the code, again before something weighty; wrong ones count."""
    now, free = people.now(), people.config.people.address_failures
    attempt = await people.store.write(
        lambda db: attempts.count(db, account.name, address, now, free)
    )
    right = await _matches(people, account, password)
    secret = people.factors.open(account.secret, account.name)
    step = 0 if code is None else totp.accepted(secret, code, now, account.step)
    if not right or step is None:
        await _failed(people, account, attempt, address, "confirmation")
        raise Refused("password or code: not the one of this account")
    await people.store.write(
        lambda db: attempts.forgive(db, account.name, address, now, whole=False)
    )


async def _matches(people: People, found: Account | None, password: str) -> bool:
    async with people.hashing:
        if found is None or not found.password:  # takes as long as one that has a password
            await asyncio.to_thread(passwords.hashed, password[: passwords.MOST], people.hasher)
            return False
        return await asyncio.to_thread(
            passwords.matches, found.password, password, people.hasher
        )


async def _rehash(people: People, account: Account, password: str) -> None:
    kept = await hashed(people, password)
    await people.store.write(lambda db: accounts.change(db, account.name, password=kept))


async def _failed(
    people: People, found: Account | None, attempt: Attempts, address: str, what: str
) -> None:
    """Write down a failed attempt. A name that is no account's is not written: see attempts."""
    now = people.now()
    subject = found.name if found is not None else "unknown"

    def write(db: Connection) -> None:
        audit.append(
            db, now, "hub", "account.sign-in", subject, outcome="refused",
            detail=f"wrong {what} from {address}",
        )  # fmt: skip
        if attempt.until and found is not None:
            detail = f"{attempt.failures} in a row; rests for {attempt.until - now:.0f} seconds"
            audit.append(db, now, "hub", "account.lock", subject, detail=detail)

    await people.store.write(write)


def _note(db: Connection, at: float, name: str, action: str, detail: str) -> None:
    audit.append(db, at, f"user:{name}", action, name, detail=detail)
