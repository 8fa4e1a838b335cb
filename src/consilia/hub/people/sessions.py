"""Sessions: a short access token (a JWT), and a refresh token that is good for one use.

    access token    EdDSA (Ed25519); says who, in which session and epoch, for ACCESS seconds.
                    Every request is held against what the hub knows of both besides.
    refresh token   `<session>.<secret>`; each use gives the next. One that was used before is
                    in two hands: the session ends for both (RFC 9700, 4.14.2).

A session ends when nothing was refreshed for `idle` seconds, after `whole` seconds at the
latest, and at once when somebody ends it, or the account's roles, password or state change.
Only SHA-256 of refresh tokens is stored. The signing key is derived from the hub's key, so all
replicas of a hub have the same and there is no further file to lose.
"""

import hmac
from base64 import urlsafe_b64encode
from dataclasses import dataclass

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from sqlalchemy import Connection

from consilia.errors import AuthError
from consilia.hub import records, tables
from consilia.hub.credentials import hashed
from consilia.hub.people import accounts
from consilia.hub.people.accounts import GENERATION, Account

ACCESS = 600.0  # seconds that an access token is good for
SESSIONS_EACH = 20  # of one account; the oldest ends when there are more
_ALGORITHM = "Ed25519"  # EdDSA over this curve, by its name of today (RFC 9864)
_S = tables.sessions.c
ENDED = "nobody is signed in, or the session has ended; sign in again"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long sessions last, in seconds: without a refresh, and at all."""

    idle: float = 1800.0
    whole: float = 43200.0


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in person."""

    id: str
    person: str
    started: float
    epoch: int


@dataclass(frozen=True, slots=True)
class Claims:
    """What an access token says. `expires` is in Unix seconds."""

    name: str
    session: str
    epoch: int
    expires: float


class Signer:
    """Makes and reads the access tokens of one hub."""

    def __init__(self, hub_key: Ed25519PrivateKey, hub: str) -> None:
        """`hub` is the hub's name: the audience, so that no other hub takes the token."""
        seed = HKDF(SHA256(), 32, salt=None, info=b"consilia access tokens v1")
        key = Ed25519PrivateKey.from_private_bytes(seed.derive(hub_key.private_bytes_raw()))
        self._key = OKPKey.import_key(_jwk(key))
        self._audience = f"consilia-hub:{hub}"

    def sign(self, session: Session, at: float, life: Lifetime) -> tuple[str, float]:
        """Return an access token and the seconds it lasts, never beyond the session's end."""
        lasts = max(1.0, min(ACCESS, session.started + life.whole - at))
        claims = {
            "aud": self._audience,
            "sub": session.person,
            "sid": session.id,
            "epoch": session.epoch,
            "iat": int(at),
            "exp": int(at + lasts),
        }
        header = {"alg": _ALGORITHM, "typ": "at+jwt"}  # RFC 9068
        return jwt.encode(header, claims, self._key, algorithms=[_ALGORITHM]), lasts

    def read(self, token: str) -> Claims:
        """Return what a token says that this hub has signed; AuthError for any other.

        Whether it has expired is the caller's to ask: a token once read is remembered.
        """
        try:
            found = jwt.decode(token, self._key, algorithms=[_ALGORITHM])
            said = found.claims
            fits = found.header.get("typ") == "at+jwt" and said["aud"] == self._audience
            claims = Claims(
                str(said["sub"]), str(said["sid"]), int(said["epoch"]), float(said["exp"])
            )
        except (JoseError, ValueError, KeyError, TypeError):
            raise AuthError(ENDED) from None
        if not fits:
            raise AuthError(ENDED)
        return claims


def _jwk(key: Ed25519PrivateKey) -> dict[str, str | list[str]]:
    def text(raw: bytes) -> str:
        return urlsafe_b64encode(raw).rstrip(b"=").decode()

    public = key.public_key().public_bytes_raw()
    return {
        "kty": "OKP", "crv": "Ed25519", "x": text(public), "d": text(key.private_bytes_raw()),
    }  # fmt: skip


# ---- rows ------------------------------------------------------------------------------------


def begin(db: Connection, account: Account, at: float, id: str, secret: str) -> Session:
    """Begin a session whose first refresh token is `id`.`secret`."""
    made = Session(id, account.name, at, account.epoch)
    db.execute(
        sa.insert(tables.sessions).values(
            id=id,
            person=account.name,
            token_hash=hashed(secret),
            started=at,
            seen=at,
            epoch=account.epoch,
        )
    )
    newest = sa.select(_S.id).where(_S.person == account.name)
    kept = newest.order_by(_S.started.desc(), _S.id).limit(SESSIONS_EACH)
    surplus = (_S.person == account.name) & _S.id.not_in(list(db.execute(kept).scalars()))
    db.execute(sa.delete(tables.sessions).where(surplus))
    accounts.change(db, account.name, last=at)  # counts up the generation
    return made


def renew(  # noqa: PLR0913 - by keyword
    db: Connection, id: str, secret: str, *, fresh: str, at: float, life: Lifetime
) -> Session | str | None:
    """Put `fresh` in the place of a session's refresh token and return the session.

    None when it is over or unknown. The person's name when `secret` is not the one in force:
    it was used before, and the session is ended for whoever has it.
    """
    row = db.execute(sa.select(tables.sessions).where(_S.id == id)).first()
    if row is None:
        return None
    account = accounts.find(db, row.person)
    if not hmac.compare_digest(row.token_hash, hashed(secret)):
        end(db, id)
        return str(row.person)
    late = at - row.seen >= life.idle or at - row.started >= life.whole
    if late or account is None or not account.may_enter or account.epoch != row.epoch:
        end(db, id)
        return None
    # The hash is asked for again: two uses at once are one use and one theft.
    mine = (_S.id == id) & (_S.token_hash == row.token_hash)
    next_ = sa.update(tables.sessions).where(mine).values(token_hash=hashed(fresh), seen=at)
    if not db.execute(next_).rowcount:
        end(db, id)
        return str(row.person)
    return Session(id, row.person, row.started, row.epoch)


def end(db: Connection, id: str) -> str | None:
    """End one session; return whose it was."""
    person = db.execute(sa.select(_S.person).where(_S.id == id)).scalar()
    db.execute(sa.delete(tables.sessions).where(_S.id == id))
    records.bump(db, GENERATION)
    return person


def end_others(db: Connection, person: str, but: str) -> None:
    """End all sessions of a person but one."""
    db.execute(sa.delete(tables.sessions).where(_S.person == person, _S.id != but))
    records.bump(db, GENERATION)


def sweep(db: Connection, at: float, life: Lifetime) -> None:
    """Forget sessions that have ended by themselves."""
    over = (_S.seen <= at - life.idle) | (_S.started <= at - life.whole)
    db.execute(sa.delete(tables.sessions).where(over))
