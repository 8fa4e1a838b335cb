"""Accounts that a directory answers for: whose they are there, and when it was asked last.

Table (its home is the application's own migrations): account_links. Such an account has no
password here, and its roles are those of its groups. An account made here is never taken over
by a directory's person of the same name.
"""

import json
from dataclasses import dataclass

from consilia.accounts import store as accounts
from consilia.accounts.directory import Person, Turned
from consilia.accounts.store import Account, Reads, Writes

NO_PASSWORD = ""  # matches nothing


@dataclass(frozen=True, slots=True)
class Link:
    """Whose account it is at a directory (`kind`), and when that was asked (Unix seconds)."""

    account: str
    kind: str
    subject: str
    checked: float


_FIELDS = "account, kind, subject, checked"


def find(db: Reads, account: str) -> Link | None:
    """Return the link of an account, None for one made here."""
    rows = db.rows(f"SELECT {_FIELDS} FROM account_links WHERE account = ?", (account,))  # noqa: S608
    return Link(*rows[0]) if rows else None


def enter(
    tx: Writes, found: Person, now: float, reserved: tuple[str, ...] = ()
) -> Account | Turned:
    """Return the account of a person who has just signed in, made or brought up to date.

    Its sessions end when its roles have changed. `reserved` are names for nobody.
    """
    rows = tx.rows(
        "SELECT account FROM account_links WHERE kind = ? AND subject = ?",
        (found.kind, found.subject),
    )
    if rows and (known := accounts.find(tx, rows[0][0])) is not None:
        if known.disabled:
            return Turned("disabled", f"{known.name}: disabled here by an administrator")
        checked(tx, known.name, now)
        return with_roles(tx, known, found.roles)
    if rows:  # its account was removed
        forget(tx, rows[0][0])
    if accounts.find(tx, found.name) is not None or found.name in reserved:
        return Turned(
            "name-taken",
            f"{found.name}: an account of this name exists here and is not the directory's",
        )
    return _made(tx, found, now)


def with_roles(tx: Writes, known: Account, roles: tuple[str, ...]) -> Account:
    """Return an account with exactly these roles; its sessions end when they are others."""
    if set(roles) == set(known.roles):
        return known
    return accounts.set_roles(tx, known.name, roles)


def checked(tx: Writes, account: str, now: float) -> None:
    """Note that the directory has just answered for an account."""
    tx.execute("UPDATE account_links SET checked = ? WHERE account = ?", (now, account))


def forget(tx: Writes, account: str) -> None:
    """Remove an account's link, as when it is removed itself."""
    tx.execute("DELETE FROM account_links WHERE account = ?", (account,))


def _made(tx: Writes, found: Person, now: float) -> Account | Turned:
    ((count,),) = tx.rows("SELECT count(*) FROM accounts")
    if count >= accounts.MAX_ACCOUNTS:
        return Turned("failed", f"{count} accounts exist, the most there may be")
    forget(tx, found.name)  # of an account of this name that is no more
    tx.execute(
        "INSERT INTO accounts VALUES (?, ?, ?, ?, ?, 0, '', 0, '', 0, 1)",
        (found.name, NO_PASSWORD, json.dumps(sorted(set(found.roles))), now, found.kind),
    )
    tx.execute(
        "INSERT INTO account_links VALUES (?, ?, ?, ?)",
        (found.name, found.kind, found.subject, now),
    )
    return accounts.get(tx, found.name)
