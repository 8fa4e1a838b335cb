"""Accounts, invitations and sessions in a database, in the transaction of whoever calls.

Tables (their home is the application's own migrations): accounts, account_attempts,
account_sessions, account_invitations. Passwords are argon2id hashes; of session cookies and
invitation links only a SHA-256 is kept, so a stolen copy of the database opens no session.
Password hashes and second factors leave this module only inside `Account`, which no view shows.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from consilia.accounts import lockout
from consilia.accounts.lockout import Attempts
from consilia.core import ids
from consilia.errors import AuthError, ConfigError, Conflict, NotFound, Refused

TOKEN_BYTES = 32
MAX_ACCOUNTS = 1000
MAX_INVITATIONS = 100
SESSIONS_EACH = 20  # of one account; the oldest ends when there are more
MAX_ATTEMPTED = 1000  # names whose wrong attempts are remembered
SEEN_EVERY = 30.0  # seconds between two notes that a session is in use: each is an fsync
_REMEMBERED = 86400.0  # seconds that wrong attempts are remembered

Value = str | int | float | bytes | None


class Reads(Protocol):
    """What reads a database."""

    def rows(self, sql: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""


class Writes(Reads, Protocol):
    """A transaction."""

    def execute(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Run a statement; return how many rows it changed."""


@dataclass(frozen=True, slots=True)
class Account:
    """One person. `secret` is the second factor's, "" for none; `step` the one used last."""

    name: str
    password: str
    roles: tuple[str, ...]
    created: float
    actor: str  # who invited the person
    disabled: bool
    secret: str
    step: int
    proposed: str  # a second factor that is not confirmed yet
    last: float
    epoch: int  # sessions of an earlier one have ended


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation that may still be accepted."""

    id: str
    roles: tuple[str, ...]
    actor: str
    expires: float


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in person. `digest` names the session and opens nothing."""

    digest: str
    account: Account
    started: float
    seen: float


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long sessions last, in seconds: without a request, and at all."""

    idle: float = 1800.0
    whole: float = 43200.0


# ---- tokens ----------------------------------------------------------------------------------


def token_text(random: bytes) -> str:
    """Return random bytes as a cookie or link carries them."""
    return base64.urlsafe_b64encode(random).decode().rstrip("=")


def digest(token: str) -> str:
    """Return what is stored in a token's place."""
    return hashlib.sha256(b"consilia account token\0" + token.encode()).hexdigest()


def csrf_token(session_token: str) -> str:
    """Return what a page sends besides its cookie, which another site's page cannot know."""
    return hmac.digest(session_token.encode(), b"consilia csrf", "sha256").hex()


# ---- accounts --------------------------------------------------------------------------------

_FIELDS = "name, password, roles, created, actor, disabled, secret, step, proposed, last, epoch"


def find(db: Reads, name: str) -> Account | None:
    """Return an account, None when there is none of this name."""
    rows = db.rows(f"SELECT {_FIELDS} FROM accounts WHERE name = ?", (name,))  # noqa: S608
    return _account(rows[0]) if rows else None


def get(db: Reads, name: str) -> Account:
    """Return an account, or raise NotFound."""
    if (found := find(db, name)) is None:
        raise NotFound(f"no account {name[:80]!r} here")
    return found


def every(db: Reads) -> list[Account]:
    """Return all accounts by name."""
    rows = db.rows(f"SELECT {_FIELDS} FROM accounts ORDER BY name")  # noqa: S608
    return [_account(row) for row in rows]


def change(tx: Writes, name: str, **values: Value) -> Account:
    """Set columns of an account; NotFound when there is none."""
    sets = ", ".join(f"{column} = ?" for column in values)
    sql = f"UPDATE accounts SET {sets} WHERE name = ?"  # noqa: S608 - our column names
    if not tx.execute(sql, (*values.values(), name)):
        raise NotFound(f"no account {name[:80]!r} here")
    return get(tx, name)


def set_roles(tx: Writes, name: str, roles: tuple[str, ...]) -> Account:
    """Give an account exactly these roles; its sessions end."""
    _some(roles)
    return end_sessions(tx, change(tx, name, roles=json.dumps(sorted(set(roles)))).name)


def end_sessions(tx: Writes, name: str) -> Account:
    """End every session of an account."""
    tx.execute("DELETE FROM account_sessions WHERE account = ?", (name,))
    return change(tx, name, epoch=get(tx, name).epoch + 1)


def remove(tx: Writes, name: str) -> None:
    """Remove an account, its sessions and the invitations that it made.

    Its name stays in the audit trail.
    """
    tx.execute("DELETE FROM account_sessions WHERE account = ?", (name,))
    tx.execute("DELETE FROM account_invitations WHERE actor = ?", (name,))
    if not tx.execute("DELETE FROM accounts WHERE name = ?", (name,)):
        raise NotFound(f"no account {name[:80]!r} here")


def _account(row: tuple[Any, ...]) -> Account:
    name, password, roles, created, actor, disabled, *rest = row
    return Account(
        name, password, tuple(json.loads(roles)), created, actor, bool(disabled), *rest
    )


def _some(roles: tuple[str, ...]) -> None:
    if not roles:
        raise ConfigError("roles: none given; an account without a role may do nothing")


# ---- invitations -----------------------------------------------------------------------------


def invite(  # noqa: PLR0913 - by keyword
    tx: Writes, *, roles: tuple[str, ...], actor: str, now: float, seconds: float, random: bytes
) -> tuple[Invitation, str]:
    """Make an invitation; return it and the secret of its link, which is kept nowhere."""
    _some(roles)
    tx.execute("DELETE FROM account_invitations WHERE expires <= ?", (now,))
    ((count,),) = tx.rows("SELECT count(*) FROM account_invitations")
    if count >= MAX_INVITATIONS:
        raise Conflict(f"{count} invitations are open; withdraw some first")
    token = token_text(random)
    kept = digest(token)
    made = Invitation(kept[:12], tuple(sorted(set(roles))), actor, now + seconds)
    tx.execute(
        "INSERT INTO account_invitations VALUES (?, ?, ?, ?, ?)",
        (made.id, kept, json.dumps(made.roles), actor, made.expires),
    )
    return made, token


def invited(db: Reads, token: str, now: float) -> Invitation:
    """Return the invitation of a link; AuthError when it is unknown, used or too old."""
    rows = db.rows(
        "SELECT id, roles, actor, expires FROM account_invitations "
        "WHERE digest = ? AND expires > ?",
        (digest(token), now),
    )
    if not rows:
        raise AuthError(
            "this invitation is unknown, used already, or too old; ask for a new one"
        )
    return _invitation(rows[0])


def invitations(db: Reads, now: float) -> list[Invitation]:
    """Return the invitations that may still be accepted, the next to expire first."""
    rows = db.rows(
        "SELECT id, roles, actor, expires FROM account_invitations WHERE expires > ? "
        "ORDER BY expires",
        (now,),
    )
    return [_invitation(row) for row in rows]


def withdraw(tx: Writes, id: str) -> None:
    """Withdraw an invitation that was not accepted."""
    if not tx.execute("DELETE FROM account_invitations WHERE id = ?", (id,)):
        raise NotFound(f"no open invitation {id[:80]!r}")


def accept(tx: Writes, token: str, name: str, password_hash: str, now: float) -> Account:
    """Use an invitation up and make the account it is for."""
    found = invited(tx, token, now)
    ids.name(name, "account")
    if find(tx, name):
        raise Conflict(f"name: an account {name!r} exists already; choose another")
    ((count,),) = tx.rows("SELECT count(*) FROM accounts")
    if count >= MAX_ACCOUNTS:
        raise Conflict(f"{count} accounts exist, the most there may be")
    tx.execute("DELETE FROM account_invitations WHERE id = ?", (found.id,))
    tx.execute(
        "INSERT INTO accounts VALUES (?, ?, ?, ?, ?, 0, '', 0, '', 0, 1)",
        (name, password_hash, json.dumps(found.roles), now, found.actor),
    )
    return get(tx, name)


def _invitation(row: tuple[Any, ...]) -> Invitation:
    id, roles, actor, expires = row
    return Invitation(id, tuple(json.loads(roles)), actor, expires)


# ---- attempts --------------------------------------------------------------------------------


def attempts(db: Reads, name: str) -> Attempts:
    """Return the wrong attempts of a name, whether an account has it or not."""
    sql = "SELECT failures, until FROM account_attempts WHERE name = ?"
    rows = db.rows(sql, (_attempted(name),))
    return Attempts(*rows[0]) if rows else Attempts()


def count_attempt(tx: Writes, name: str, now: float) -> Attempts:
    """Count an attempt, wrong until `forgive`; raise Refused while the name rests."""
    tx.execute(
        "DELETE FROM account_attempts WHERE at < ? AND until < ?", (now - _REMEMBERED, now)
    )
    before = attempts(tx, name)
    if rest := lockout.resting(before, now):
        raise Refused(
            f"too many failed attempts for this name; try again in {int(rest) + 1} seconds"
        )
    ((count,),) = tx.rows("SELECT count(*) FROM account_attempts")
    if not before.failures and count >= MAX_ATTEMPTED:
        raise Refused("too many failed attempts for many names; try again later")
    after = lockout.counted(before, now)
    _put(tx, name, after, now)
    return after


def forgive(tx: Writes, name: str, now: float, *, whole: bool) -> None:
    """Take the last attempt back (its password was right), or all (the person is in)."""
    left = 0 if whole else max(0, attempts(tx, name).failures - 1)
    _put(tx, name, Attempts(left), now)


def _put(tx: Writes, name: str, found: Attempts, now: float) -> None:
    key = _attempted(name)
    if not found.failures:
        tx.execute("DELETE FROM account_attempts WHERE name = ?", (key,))
        return
    tx.execute(
        "INSERT OR REPLACE INTO account_attempts VALUES (?, ?, ?, ?)",
        (key, found.failures, found.until, now),
    )


def _attempted(name: str) -> str:
    # not the name as typed: people type passwords into the wrong field
    return hashlib.sha256(b"consilia attempt\0" + name.encode()).hexdigest()[:32]


# ---- sessions --------------------------------------------------------------------------------


def open_session(tx: Writes, account: Account, now: float, random: bytes) -> str:
    """Begin a session; return its cookie."""
    token = token_text(random)
    tx.execute(
        "INSERT INTO account_sessions VALUES (?, ?, ?, ?, ?)",
        (digest(token), account.name, now, now, account.epoch),
    )
    tx.execute(
        "DELETE FROM account_sessions WHERE account = ? AND digest NOT IN (SELECT digest FROM "
        "account_sessions WHERE account = ? ORDER BY started DESC, rowid DESC LIMIT ?)",
        (account.name, account.name, SESSIONS_EACH),
    )
    change(tx, account.name, last=now)
    return token


def session(db: Reads, token: str, now: float, life: Lifetime) -> Session:
    """Return the session of a cookie; AuthError when there is none or it has ended."""
    rows = db.rows(
        "SELECT digest, account, started, seen, epoch FROM account_sessions WHERE digest = ?",
        (digest(token),),
    )
    if rows:
        key, name, started, seen, epoch = rows[0]
        account = find(db, name)
        alive = started <= now + 60 and now - seen < life.idle and now - started < life.whole
        if account and not account.disabled and account.epoch == epoch and alive:
            return Session(key, account, started, seen)
    raise AuthError("nobody is signed in, or the session has ended; sign in again")


def touch(tx: Writes, found: Session, now: float) -> None:
    """Note that a session is in use."""
    tx.execute("UPDATE account_sessions SET seen = ? WHERE digest = ?", (now, found.digest))


def close_session(tx: Writes, found: Session) -> None:
    """End one session."""
    tx.execute("DELETE FROM account_sessions WHERE digest = ?", (found.digest,))


def sweep(tx: Writes, now: float, life: Lifetime) -> None:
    """Forget sessions that have ended by themselves."""
    tx.execute(
        "DELETE FROM account_sessions WHERE seen <= ? OR started <= ?",
        (now - life.idle, now - life.whole),
    )
