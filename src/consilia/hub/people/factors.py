"""The secrets of second factors at rest: sealed with the hub's key, each for its account.

Whoever reads a copy of the database must not be able to make codes. A sealed secret is 64
characters of base64: nonce (12), AES-256-GCM of the secret's 20 bytes, tag (16), bound to the
account's name. The key is HKDF-SHA256 of hub.key, which lies beside the database and not in it.
Secrets of before stand in plain base32 (32 characters); they are sealed when the hub starts.
"""

import base64
import binascii

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Connection

from consilia.errors import StorageError
from consilia.hub import tables
from consilia.hub.keyfiles import Random

PLAIN = 32  # characters of base32, as an authenticator is given them
SEALED = 64  # characters of base64; as many as the column has
_NONCE = 12  # bytes


class Factors:
    """Seals and opens the secrets of second factors."""

    def __init__(self, hub_key: Ed25519PrivateKey, random_bytes: Random) -> None:
        """`hub_key` is the hub's own, which all its replicas share."""
        kdf = HKDF(SHA256(), 32, None, b"consilia second factors")
        self._cipher = AESGCM(kdf.derive(hub_key.private_bytes_raw()))
        self._random = random_bytes

    def seal(self, secret: str, account: str) -> str:
        """Return what the database keeps of an account's secret (base32)."""
        nonce = self._random(_NONCE)
        inside = self._cipher.encrypt(nonce, base64.b32decode(secret), account.encode())
        return base64.b64encode(nonce + inside).decode("ascii")

    def open(self, kept: str, account: str) -> str:
        """Return the secret (base32) of what the database keeps; "" stays "".

        Raises StorageError for one that another key sealed, or for another account.
        """
        if len(kept) != SEALED:
            return kept
        try:
            raw = base64.b64decode(kept, validate=True)
            inside = self._cipher.decrypt(raw[:_NONCE], raw[_NONCE:], account.encode())
        except (binascii.Error, InvalidTag):
            raise StorageError(
                f"the second factor of {account!r} cannot be opened with this hub.key: restore "
                "the key that belongs to the database, or let an operator remove the factor"
            ) from None
        return base64.b32encode(inside).decode("ascii")

    def seal_all(self, db: Connection) -> int:
        """Seal what stands in plain yet, of hubs before secrets were sealed; say how many."""
        people = tables.people
        columns = (people.c.name, people.c.secret, people.c.proposed)
        found = db.execute(sa.select(*columns)).all()
        plain = [row for row in found if PLAIN in (len(row.secret), len(row.proposed))]
        for row in plain:
            values = {
                name: self.seal(text, row.name)
                for name, text in (("secret", row.secret), ("proposed", row.proposed))
                if len(text) == PLAIN
            }
            db.execute(sa.update(people).where(people.c.name == row.name).values(**values))
        return len(plain)
