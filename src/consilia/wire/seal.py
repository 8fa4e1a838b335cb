"""Signed envelopes: the exact bytes that were signed, and what they were signed for.

The signature (Ed25519, RFC 8032) covers

    "consilia seal 1" | context | site | payload

each preceded by its length as 8 bytes little-endian, so that no two different triples give the
same bytes, and a signature made for one context or site is worth nothing in another. What is
verified is what was received: a payload is never re-encoded between signing and checking.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from consilia.errors import AuthError
from consilia.wire.v1 import Sealed

DOMAIN = b"consilia seal 1"


def seal(context: str, site: str, payload: bytes, key: Ed25519PrivateKey) -> Sealed:
    """Sign `payload` for one purpose, in the name of `site`."""
    return Sealed(context, site, payload, key.sign(_framed(context, site, payload)))


def open_sealed(sealed: Sealed, context: str, public_key: bytes) -> bytes:
    """Return the payload; raise AuthError unless `public_key` signed it for `context`.

    The caller picks the key by the identity it has proved, and compares `sealed.site` with it.
    """
    if sealed.context != context:
        raise AuthError(
            f"site {sealed.site[:63]!r} sent an envelope for {sealed.context[:40]!r}, "
            f"needed one for {context!r}"
        )
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            sealed.signature, _framed(context, sealed.site, sealed.payload)
        )
    except (InvalidSignature, ValueError):
        raise AuthError(
            f"the {context} of site {sealed.site[:63]!r} is not signed with its "
            "registered key; if the site was enrolled again, its node must use the new secrets"
        ) from None
    return sealed.payload


def _framed(context: str, site: str, payload: bytes) -> bytes:
    parts = (DOMAIN, context.encode(), site.encode(), payload)
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)
