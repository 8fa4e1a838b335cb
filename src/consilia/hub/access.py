"""Who may speak to the hub: sites by certificate, people and programs by API token.

    invite   -> a join token with a one-time secret        (hub invite SITE)
    enrol    secret + certificate request -> certificate   (node join TOKEN)
    renew    a new key over the old certificate's line; the old one lasts to its own expiry,
             so a lost answer locks nobody out (at most three are in force)
    revoke   all certificates and open invites of a site, from the next request on

`identify`, `signing_key` and `token_role` are asked on every request: they answer from memory,
in microseconds, on any thread. Each first makes sure that memory is current, also when another
process changed the database: on SQLite always, on PostgreSQL at most 0.5 s later (STALE). When
the database cannot be asked they raise StorageError: nobody is let in on old knowledge.

Files, in a directory of mode 0700, each 0600: ca.key ca.pem server.key server.pem hub.key.
The hub refuses to start when others may read them. Secrets, keys and tokens are never logged.
"""

import base64
import hashlib
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection

from consilia.core import ids
from consilia.errors import AuthError, ConfigError, WireError
from consilia.hub import audit, authority, credentials
from consilia.hub.credentials import Certificate, Snapshot, Token, hashed
from consilia.hub.keyfiles import Secrets, public_bytes, serial
from consilia.hub.store import Store
from consilia.wire.people import JoinTokenView, TokenView
from consilia.wire.token import JoinToken, encode_token
from consilia.wire.v1 import Enrol, Enrolled, Renew, Sealed

ROLES = ("operator", "researcher", "reviewer", "downstream", "auditor")
TOKEN_PREFIX = "cst_"  # noqa: S105 - so that scanners recognise a leaked token
MAX_INVITE_HOURS = 24.0 * 30
MAX_TOKEN_DAYS = 366
_NO_JOIN = (
    "the join token is not valid: it was used, has expired, or is not of this hub and site; "
    "ask the hub's operator for a new one (consilia hub invite SITE)"
)


class Person(NamedTuple):
    """Whom an API token belongs to."""

    name: str
    role: str


class Access:
    """Identities of one hub. Make the files with `Access.create`, then `Access.load`."""

    def __init__(
        self,
        secrets: Secrets,
        store: Store,
        url: str,
        now: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        """`url` is where nodes reach the node listener; it goes into join tokens."""
        self.hub_key: Ed25519PrivateKey = secrets.hub_key
        self.ca_pem = secrets.ca.certificate.public_bytes(Encoding.PEM)
        self._ca = secrets.ca
        self._ca_der = secrets.ca.certificate.public_bytes(Encoding.DER)
        self._files = secrets
        self._store = store
        self._url = url
        self._now = now
        self._random = random_bytes
        self._lock = threading.Lock()
        self._snapshot: Snapshot = store.read_now(credentials.snapshot)

    @staticmethod
    def create(
        secrets: Path,
        hosts: Sequence[str],
        *,
        name: str,
        at: float,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        """Make the CA, the hub's keys and its server certificate; Conflict if there are any.

        `secrets` is the directory for them (DIR/secrets), `hosts` what nodes and people call
        the hub by. Blocks.
        """
        Secrets.create(secrets, hosts, name, at, random_bytes)

    @classmethod
    def load(  # noqa: PLR0913 - clock and randomness are arguments too
        cls,
        secrets: Path,
        store: Store,
        *,
        url: str,
        hosts: Sequence[str],
        now: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> Self:
        """Read the files and the store. Blocks.

        The server certificate is issued anew when `hosts` have changed or less than a third
        of its life is left. Raises ConfigError when a file is missing, damaged or readable
        by others.
        """
        files = Secrets.load(secrets, hosts, now(), random_bytes)
        return cls(files, store, url, now, random_bytes)

    @property
    def server_chain(self) -> Path:
        """The server certificate, PEM."""
        return self._files.server_chain

    @property
    def server_key(self) -> Path:
        """The server certificate's key, PEM."""
        return self._files.server_key

    @property
    def ca_fingerprint(self) -> str:
        """SHA-256 of the CA certificate, to compare by telephone."""
        return "sha256:" + hashlib.sha256(self._ca_der).hexdigest()

    @property
    def hub_public(self) -> bytes:
        """The hub's Ed25519 public key, 32 bytes."""
        return public_bytes(self.hub_key)

    def renew_server(self, hosts: Sequence[str]) -> bool:
        """Issue the server certificate anew when a third of its life is left; say whether.

        Whoever serves loads `server_chain` and `server_key` into its contexts then. Blocks.
        """
        before = self.server_chain.read_bytes()
        Secrets.load(self._files.directory, hosts, self._now(), self._random)
        return self.server_chain.read_bytes() != before

    async def audit_head(self) -> Sealed:
        """Return the head of the hub's audit trail, signed by the hub."""
        return await self._store.read(lambda db: audit.signed_head(db, self.hub_key))

    def people_context(self) -> ssl.SSLContext:
        """TLS 1.3 for the people's listener: no client certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self.server_chain, self.server_key)
        return context

    # ---- asked on every request --------------------------------------------------------------

    def identify(self, certificate: bytes) -> str:
        """The site a certificate (DER) that TLS has verified stands for, or AuthError."""
        known = self.current().certificates.get(hashlib.sha256(certificate).hexdigest())
        if known is None:
            raise AuthError(
                "this certificate is not in force at the hub: it was revoked, replaced or "
                "never issued here; ask the hub's operator for a new invite"
            )
        site, expires = known
        if self._now() >= expires:
            raise AuthError(
                f"the certificate of site {site!r} has expired; ask the hub's operator for a "
                "new invite"
            )
        return site

    def signing_key(self, site: str) -> bytes:
        """The Ed25519 public key an enrolled site signs with, or AuthError."""
        key = self.current().signing_keys.get(site)
        if key is None:
            raise AuthError(f"site {site!r} is not enrolled here")
        return key

    def token_role(self, secret: str) -> Person:
        """Name and role of an API token in force, or AuthError (always the same words)."""
        token = self.token(secret)
        return Person(token.name, token.role)

    def token(self, secret: str) -> Token:
        """Return the API token or key in force that has this secret, or AuthError."""
        digest = hashed(secret)
        token = self.current().tokens.get(digest)
        # The look-up compares hashes of 256 random bits, so its timing tells nothing.
        if token is None or self._now() >= token.expires:
            raise AuthError(
                "the API token is not valid: it is unknown, expired or revoked; an operator "
                "makes a new one with: consilia hub token create NAME --role ROLE"
            )
        return token

    # ---- sites -------------------------------------------------------------------------------

    async def invite(self, site: str, hours: float = 72.0, actor: str = "hub") -> JoinTokenView:
        """Invite a site; the token is shown once and works once."""
        ids.name(site, "site")
        if not 0 < hours <= MAX_INVITE_HOURS:
            raise ConfigError(
                f"an invite for {hours:g} hours is not possible: choose more than 0 and at "
                f"most {MAX_INVITE_HOURS:g}"
            )
        at, secret = self._now(), _text(self._random(32))
        expires = at + hours * 3600

        def record(db: Connection) -> None:
            credentials.add_invite(db, site, hashed(secret), at, expires)
            audit.append(db, at, actor, "site.invite", site, detail=f"for {hours:g} hours")

        await self._store.write(record)
        token = encode_token(JoinToken(self._url, self._ca_der, secret, site, expires))
        return JoinTokenView(site, token, expires, self.ca_fingerprint)

    async def enrol(self, request: Enrol) -> Enrolled:
        """Redeem a join token's secret for a certificate.

        AuthError, always in the same words, when the secret is unknown, used, expired or for
        another site; WireError when the request or the signing key is malformed (the secret
        stays good then). Refusals of secrets that this hub did make are audited.
        """
        at, secret = self._now(), hashed(request.secret)
        found = await self._store.read(lambda db: credentials.find_invite(db, secret))
        if found is None:
            raise AuthError(_NO_JOIN)
        if found.site != request.site or found.used is not None or at >= found.expires:
            await self._refuse(found, request.site, at)
        _check_signing_key(request.signing_key)
        row, pem = self._certify(found.site, authority.request_key(request.csr), at)

        def record(db: Connection) -> bool:
            if not credentials.redeem(db, secret, found.site, at):
                return False
            credentials.enrol(db, found.site, row, request.signing_key, at)
            detail = f"certificate {row.serial}"
            audit.append(db, at, f"site:{found.site}", "site.enrol", found.site, detail=detail)
            return True

        if not await self._store.write(record):
            await self._refuse(found, request.site, at)
        await self._refresh()
        return Enrolled(pem, self.ca_pem, self.hub_public)

    async def renew(self, site: str, request: Renew) -> Enrolled:
        """Certify a new key of an identified site; AuthError when it was revoked meanwhile."""
        at = self._now()
        row, pem = self._certify(site, authority.request_key(request.csr), at)

        def record(db: Connection) -> bool:
            if not credentials.renew(db, site, row, at):
                return False
            detail = f"certificate {row.serial}"
            audit.append(db, at, f"site:{site}", "site.renew", site, detail=detail)
            return True

        if not await self._store.write(record):
            raise AuthError(f"site {site!r} is not enrolled here: nothing was renewed")
        await self._refresh()
        return Enrolled(pem, self.ca_pem, self.hub_public)

    async def revoke(self, site: str, actor: str = "hub") -> None:
        """Shut a site out from its next request on; NotFound when there is none."""
        at = self._now()

        def record(db: Connection) -> None:
            credentials.revoke_site(db, site, at)
            audit.append(db, at, actor, "site.revoke", site)

        await self._store.write(record)
        await self._refresh()

    # ---- API tokens --------------------------------------------------------------------------

    async def make_token(
        self, name: str, role: str, days: int = 90, actor: str = "hub"
    ) -> TokenView:
        """Make an API token; its secret is shown once."""
        if role not in ROLES:
            raise ConfigError(f"role {role!r} is not known: use one of {', '.join(ROLES)}")
        if not (1 <= len(name) <= 100 and name.isprintable()):
            raise ConfigError(f"token name {name[:80]!r} must be 1 to 100 printable characters")
        if not 1 <= days <= MAX_TOKEN_DAYS:
            raise ConfigError(f"days is {days}, must be between 1 and {MAX_TOKEN_DAYS}")
        at, secret = self._now(), TOKEN_PREFIX + _text(self._random(32))
        token = Token(
            ids.new_id("token", self._random(10)), name, role, at, at + days * authority.DAY
        )

        def record(db: Connection) -> None:
            credentials.add_token(db, token, hashed(secret))
            audit.append(db, at, actor, "token.create", token.id, detail=f"{role} {name}")

        await self._store.write(record)
        await self._refresh()
        return TokenView(token.id, name, role, token.expires, secret)

    async def make_key(self, key: Token, actor: str) -> TokenView:
        """Record a key that somebody makes for a machine; its secret is shown once."""
        secret = TOKEN_PREFIX + _text(self._random(32))

        def record(db: Connection) -> None:
            credentials.add_token(db, key, hashed(secret))
            detail = f"{', '.join(key.roles)} {key.name}" + (
                f"; study {key.study}" if key.study else ""
            )
            audit.append(db, key.created, actor, "key.create", key.id, detail=detail)

        await self._store.write(record)
        await self._refresh()
        return TokenView(key.id, key.name, key.role, key.expires, secret)

    async def revoke_token(self, id: str, actor: str = "hub") -> None:
        """Void an API token from its next request on; NotFound when there is none."""
        at = self._now()

        def record(db: Connection) -> None:
            token = credentials.revoke_token(db, id, at)
            action = "key.revoke" if token.owner else "token.revoke"
            audit.append(db, at, actor, action, id, detail=f"{token.role} {token.name}")

        await self._store.write(record)
        await self._refresh()

    # ---- inside ------------------------------------------------------------------------------

    def current(self) -> Snapshot:
        """Return what is in force, read anew when something has changed. Any thread."""
        if self._store.generation("access") > self._snapshot.generation:
            self._take(self._store.read_now(credentials.snapshot))
        return self._snapshot

    async def _refresh(self) -> None:
        """After a change of our own: at once, whatever the database's staleness."""
        self._take(await self._store.read(credentials.snapshot))

    def _take(self, fresh: Snapshot) -> None:
        with self._lock:  # two threads may have read; the newer wins
            if fresh.generation >= self._snapshot.generation:
                self._snapshot = fresh

    def _certify(
        self, site: str, key: ec.EllipticCurvePublicKey, at: float
    ) -> tuple[Certificate, bytes]:
        certificate = authority.issue_node(self._ca, site, key, at, serial(self._random))
        row = Certificate(
            f"{certificate.serial_number:x}",
            hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
            at,
            certificate.not_valid_after_utc.timestamp(),
        )
        return row, certificate.public_bytes(Encoding.PEM)

    async def _refuse(self, found: credentials.Invite, claimed: str, at: float) -> None:
        if found.site != claimed:
            why = f"the token is for this site, {claimed[:63]!r} tried it"
        elif found.used is not None:
            why = "the token was used already"
        else:
            why = "the token has expired, or was used at the same moment"
        await self._store.write(
            lambda db: audit.append(
                db, at, "hub", "site.enrol", found.site, outcome="refused", detail=why
            )
        )
        raise AuthError(_NO_JOIN)


def _check_signing_key(key: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key)
    except ValueError:
        raise WireError(
            f"the signing key must be an Ed25519 public key of 32 bytes, found {len(key)} bytes"
        ) from None


def _text(random: bytes) -> str:
    return base64.urlsafe_b64encode(random).rstrip(b"=").decode()
