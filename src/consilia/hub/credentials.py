"""Rows of invites, certificates and API tokens, and the snapshot that requests are held to.

Only SHA-256 of secrets is stored: they are 32 random bytes, so a hash cannot be guessed back.
Whatever changes who may do what counts up the generation "access", by which every process
notices that its snapshot is old. hub/access is the only caller.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.errors import NotFound
from consilia.hub import records
from consilia.hub.paging import Listing, Page
from consilia.hub.tables import certificates, invites, sites, tokens

CERTIFICATES_KEPT = 3  # in force per site: the newest, and those an answer was lost for


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of a node; `fingerprint` is the SHA-256 of its DER, hex."""

    serial: str
    fingerprint: str
    issued: float
    expires: float


@dataclass(frozen=True, slots=True)
class Token:
    """An API token, or a key that somebody made for a machine, without its secret."""

    id: str
    name: str
    role: str
    created: float
    expires: float
    revoked: float | None = None
    owner: str | None = None  # the person a key speaks for; None: `name` is who speaks
    roles: tuple[str, ...] = ()  # of a key, as far as its owner has them
    study: str | None = None  # the only one that a key may touch


@dataclass(frozen=True, slots=True)
class Invite:
    """An invite, used or not."""

    site: str
    expires: float
    used: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Who is who, as of one generation."""

    generation: int
    certificates: Mapping[str, tuple[str, float]]  # fingerprint -> (site, expires)
    signing_keys: Mapping[str, bytes]  # enrolled site -> Ed25519 public key
    tokens: Mapping[str, Token]  # hash of the secret -> token


def hashed(secret: str | bytes) -> str:
    """SHA-256 of a secret, hex."""
    text = secret if isinstance(secret, bytes) else secret.encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()


def snapshot(db: Connection) -> Snapshot:
    """Read everything that is in force."""
    c, s = certificates.c, sites.c
    held = sa.select(c.fingerprint, c.site, c.expires).join(sites, s.name == c.site)
    rows = db.execute(held.where(c.revoked.is_(None), s.state == "enrolled"))
    keys = db.execute(sa.select(s.name, s.signing_key).where(s.state == "enrolled"))
    valid = db.execute(sa.select(tokens).where(tokens.c.revoked.is_(None)))
    return Snapshot(
        records.generation(db, "access"),
        {row.fingerprint: (row.site, row.expires) for row in rows},
        {row.name: bytes(row.signing_key) for row in keys},
        {row.secret_hash: _token(row) for row in valid},
    )


# ---- sites ----------------------------------------------------------------------------------


def add_invite(db: Connection, site: str, secret_hash: str, at: float, expires: float) -> None:
    """Record an invite, and the site when it is new. A revoked site stays so until it joins."""
    if not db.execute(sa.select(sites.c.name).where(sites.c.name == site)).first():
        db.execute(sa.insert(sites).values(name=site, state="invited", created=at))
    db.execute(
        sa.insert(invites).values(
            secret_hash=secret_hash, site=site, created=at, expires=expires
        )
    )


def find_invite(db: Connection, secret_hash: str) -> Invite | None:
    """The invite with this secret, whatever its state."""
    i = invites.c
    query = sa.select(i.site, i.expires, i.used).where(i.secret_hash == secret_hash)
    row = db.execute(query).first()
    return None if row is None else Invite(row.site, row.expires, row.used)


def redeem(db: Connection, secret_hash: str, site: str, at: float) -> bool:
    """Use up an invite; False when it was used, has expired or is another site's."""
    i = invites.c
    open_ = (i.secret_hash == secret_hash, i.site == site, i.used.is_(None), i.expires > at)
    return bool(db.execute(sa.update(invites).where(*open_).values(used=at)).rowcount)


def enrol(
    db: Connection, site: str, certificate: Certificate, signing_key: bytes, at: float
) -> None:
    """Make `certificate` the site's only one: a site has one node."""
    _revoke_certificates(db, site, at)
    db.execute(
        sa.update(sites)
        .where(sites.c.name == site)
        .values(state="enrolled", signing_key=signing_key, advertisement=None, advertised=None)
    )
    _add_certificate(db, site, certificate)
    records.bump(db, "catalogue")  # the other sites of its studies are told its signing key


def renew(db: Connection, site: str, certificate: Certificate, at: float) -> bool:
    """Add a certificate; False when the site is no longer enrolled.

    The one before stays in force until it expires, so a node that never got the answer asks
    again. Beyond CERTIFICATES_KEPT the oldest are revoked, and expired ones are forgotten.
    """
    enrolled = (sites.c.name == site) & (sites.c.state == "enrolled")
    if not db.execute(sa.select(sites.c.name).where(enrolled)).first():
        return False
    c = certificates.c
    db.execute(sa.delete(certificates).where(c.site == site, c.expires <= at))
    _add_certificate(db, site, certificate)
    mine = sa.select(c.serial).where(c.site == site, c.revoked.is_(None))
    old = list(db.execute(mine.order_by(c.issued.desc(), c.expires.desc())).scalars())
    surplus = [s for s in old[CERTIFICATES_KEPT:] if s != certificate.serial]
    db.execute(sa.update(certificates).where(c.serial.in_(surplus)).values(revoked=at))
    return True


def revoke_site(db: Connection, site: str, at: float) -> None:
    """Void all certificates and open invites of a site; raise NotFound when there is none."""
    changed = sa.update(sites).where(sites.c.name == site).values(state="revoked")
    if not db.execute(changed).rowcount:
        raise NotFound(f"there is no site {site!r}: see consilia hub sites")
    i = invites.c
    db.execute(sa.update(invites).where(i.site == site, i.used.is_(None)).values(used=at))
    _revoke_certificates(db, site, at)


def _add_certificate(db: Connection, site: str, certificate: Certificate) -> None:
    db.execute(
        sa.insert(certificates).values(
            serial=certificate.serial,
            fingerprint=certificate.fingerprint,
            site=site,
            issued=certificate.issued,
            expires=certificate.expires,
        )
    )
    records.bump(db, "access")


def _revoke_certificates(db: Connection, site: str, at: float) -> None:
    mine = (certificates.c.site == site) & certificates.c.revoked.is_(None)
    db.execute(sa.update(certificates).where(mine).values(revoked=at))
    records.bump(db, "access")


# ---- API tokens -----------------------------------------------------------------------------


def add_token(db: Connection, token: Token, secret_hash: str) -> None:
    """Record a token."""
    db.execute(
        sa.insert(tokens).values(
            id=token.id,
            name=token.name,
            role=token.role,
            secret_hash=secret_hash,
            created=token.created,
            expires=token.expires,
            owner=token.owner,
            roles=json.dumps(token.roles) if token.owner else None,
            study=token.study,
        )
    )
    records.bump(db, "access")


def revoke_token(db: Connection, id: str, at: float) -> Token:
    """Void a token for good; raise NotFound when there is none."""
    row = db.execute(sa.select(tokens).where(tokens.c.id == id)).first()
    if row is None:
        raise NotFound(f"there is no API token {id!r}: see consilia hub token list")
    still = (tokens.c.id == id) & tokens.c.revoked.is_(None)
    db.execute(sa.update(tokens).where(still).values(revoked=at))
    records.bump(db, "access")
    return _token(row)


def list_tokens(db: Connection, *, limit: int = 50, cursor: str | None = None) -> Page[Token]:
    """Tokens, newest first, the revoked ones too; keys that have an owner are `list_keys`."""
    return _TOKENS.where(tokens.c.owner.is_(None)).page(db, limit, cursor)


def list_keys(
    db: Connection, owner: str | None, at: float, limit: int, cursor: str | None
) -> Page[Token]:
    """Keys in force, newest first: of one person, or of all (None)."""
    t = tokens.c
    mine = t.owner.is_not(None) if owner is None else t.owner == owner
    return _TOKENS.where(mine, t.revoked.is_(None), t.expires > at).page(db, limit, cursor)


def get_key(db: Connection, id: str) -> Token:
    """Return a key in force, or raise NotFound."""
    t = tokens.c
    mine = (t.id == id) & t.owner.is_not(None) & t.revoked.is_(None)
    row = db.execute(sa.select(tokens).where(mine)).first()
    if row is None:
        raise NotFound(f"there is no API key {id[:80]!r}; see: consilia key list")
    return _token(row)


def count_keys(db: Connection, owner: str, at: float) -> int:
    """Return how many keys in force a person has."""
    t = tokens.c
    mine = (t.owner == owner) & t.revoked.is_(None) & (t.expires > at)
    query = sa.select(sa.func.count()).select_from(tokens).where(mine)
    return int(db.execute(query).scalar() or 0)


def _token(row: Any) -> Token:
    return Token(
        row.id,
        row.name,
        row.role,
        row.created,
        row.expires,
        row.revoked,
        row.owner,
        tuple(json.loads(row.roles)) if row.roles else (),
        row.study,
    )


_TOKENS = Listing(sa.select(tokens), (tokens.c.created, tokens.c.id), _token)
