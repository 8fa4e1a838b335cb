"""Keys between two sites: X25519, then HKDF-SHA256, then ChaCha20-Poly1305 for parcels.

Every derived key is bound to the session (as HKDF's salt), to its purpose and to the sites it
is for, in their roles: what A seals to B opens nowhere else. Keys live for one round only.

Sources: RFC 7748 (X25519), RFC 5869 (HKDF), RFC 8439 (ChaCha20-Poly1305).
"""

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consilia.errors import AuthError
from consilia.wire import masks

NONCE = 12

# The points of low order, as numbers: with one of them every secret is zero. The last two are
# 0 and 1 again in another writing. Source: Langley et al., RFC 7748, section 6.1; the list of
# https://cr.yp.to/ecdh.html.
_P = (1 << 255) - 19
_LOW = frozenset(
    (
        0,
        1,
        0xB8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
        0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
        _P - 1,
        _P,
        _P + 1,
    )
)


def public(private: bytes) -> bytes:
    """Return the X25519 public key of 32 private bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def hides_nothing(public_key: bytes) -> bool:
    """Say whether an X25519 public key is a point of low order: all know what it agrees on."""
    return int.from_bytes(public_key, "little") & ((1 << 255) - 1) in _LOW


def pair_seed(private: bytes, peer_key: bytes, session: bytes, me: str, peer: str) -> bytes:
    """Return the seed of the mask that two sites share; both get the same."""
    low, high = sorted((me, peer))
    return _derive(_agree(private, peer_key, peer), session, "mask", low, high)


def self_seed(seed: bytes, session: bytes, site: str) -> bytes:
    """Return the keystream seed of a site's self mask."""
    return _derive(seed, session, "self", site, "")


def box_key(private: bytes, peer_key: bytes, session: bytes, way: tuple[str, str]) -> bytes:
    """Return the key of the one parcel of this way: from (sender) to (receiver)."""
    return _derive(_agree(private, peer_key, " or ".join(way)), session, "parcel", *way)


def vault_key(private: bytes, peer_key: bytes, session: bytes, way: tuple[str, str]) -> bytes:
    """Return what seals the content key of a vault (privacy.vault) on this way."""
    return _derive(_agree(private, peer_key, " or ".join(way)), session, "vault", *way)


def lock(key: bytes, nonce: bytes, plain: bytes, about: bytes) -> bytes:
    """Seal `plain`, bound to `about`; return nonce, ciphertext and tag."""
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, about)


def unlock(key: bytes, box: bytes, about: bytes) -> bytes | None:
    """Open a sealed box; None when it was not sealed with this key about this."""
    try:
        return ChaCha20Poly1305(key).decrypt(box[:NONCE], box[NONCE:], about)
    except (InvalidTag, ValueError):
        return None


def signed(public_key: bytes, signature: bytes, text: bytes) -> bool:
    """Say whether an Ed25519 public key has signed exactly `text`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def _agree(private: bytes, peer_key: bytes, peer: str) -> bytes:
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(peer_key)
        )
    except ValueError:  # a point of low order; rosters with one are refused before
        raise AuthError(
            f"the round's key of site {peer!r} is one that hides nothing (a point of low "
            "order); its node is broken or hostile: ask that site"
        ) from None


def _derive(secret: bytes, session: bytes, purpose: str, one: str, other: str) -> bytes:
    about = masks.framed(purpose, one.encode(), other.encode())
    return HKDF(SHA256(), 32, session, about).derive(secret)
