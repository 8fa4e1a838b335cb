"""Wrong passwords and codes: counted by account and by address, in the caller's transaction.

An attempt counts before its password is looked at (accounts.lockout), so a hundred at once
are not a hundred tries for the price of one. Names are kept as hashes: people type passwords
into the wrong field. What is known of a name does not tell whether an account has it.
"""

import hashlib
import math

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.accounts import lockout
from consilia.accounts.lockout import Attempts
from consilia.errors import TooMany
from consilia.hub.tables import attempts

REMEMBERED = 86400.0  # seconds that wrong attempts are remembered
MOST = 50_000  # names and addresses; the oldest are forgotten
_A = attempts.c


def of_name(name: str) -> str:
    """Return the key of an account's attempts."""
    return _key("name", name)


def of_address(address: str) -> str:
    """Return the key of an address's attempts."""
    return _key("address", address)


def found(db: Connection, key: str) -> Attempts:
    """Return the wrong attempts so far."""
    row = db.execute(sa.select(_A.failures, _A.until).where(_A.key == key)).first()
    return Attempts(row.failures, row.until) if row else Attempts()


def count(db: Connection, name: str, address: str, now: float, free: int) -> Attempts:
    """Count an attempt, wrong until `forgive`; return the name's. TooMany while one rests.

    `free` is how many wrong ones in a row the address has.
    """
    _sweep(db, now)
    keys = (of_name(name), of_address(address))
    before = [found(db, key) for key in keys]
    if rest := max(lockout.resting(one, now) for one in before):
        raise TooMany(f"too many failed attempts; try again in {math.ceil(rest)} seconds", rest)
    after = lockout.counted(before[0], now)
    _put(db, keys[0], after, now)
    _put(db, keys[1], lockout.counted(before[1], now, free), now)
    return after


def forgive(db: Connection, name: str, address: str, now: float, *, whole: bool) -> None:
    """Take the last attempt back (its password was right), or all (the person is in)."""
    for key in (of_name(name), of_address(address)):
        left = 0 if whole else max(0, found(db, key).failures - 1)
        _put(db, key, Attempts(left), now)


def forget(db: Connection, name: str) -> None:
    """Let a name try again at once."""
    db.execute(sa.delete(attempts).where(_A.key == of_name(name)))


def _put(db: Connection, key: str, value: Attempts, now: float) -> None:
    db.execute(sa.delete(attempts).where(_A.key == key))
    if value.failures:
        row = {"key": key, "failures": value.failures, "until": value.until, "at": now}
        db.execute(sa.insert(attempts), row)


def _sweep(db: Connection, now: float) -> None:
    over = (_A.at < now - REMEMBERED) & (_A.until < now)
    db.execute(sa.delete(attempts).where(over))
    size = db.execute(sa.select(sa.func.count()).select_from(attempts)).scalar() or 0
    if size > MOST:
        oldest = sa.select(_A.key).order_by(_A.at).limit(size - MOST + MOST // 10)
        db.execute(sa.delete(attempts).where(_A.key.in_(list(db.execute(oldest).scalars()))))


def _key(kind: str, text: str) -> str:
    return hashlib.sha256(f"consilia {kind}\0{text}".encode("utf-8", "replace")).hexdigest()
