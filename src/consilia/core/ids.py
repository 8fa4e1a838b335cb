"""Names of things: which text may name a site, a study or a job, and how digests are written.

A digest is text with its algorithm in front: `sha256:<64 hex>` for plans, studies and audit
lines, `b3:<64 hex>` (BLAKE3-256) for tensor frames. A digest names content; it never
authorises anybody to read it.
"""

import re

from consilia.errors import ConfigError

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_DIGEST = re.compile(r"(?:sha256|b3):[0-9a-f]{64}")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: no i, l, o, u


def name(text: str, what: str) -> str:
    """Return `text` when it may name a `what` (site, study, dataset, tag).

    1 to 63 characters of a-z, 0-9, dot, hyphen and underscore, a letter or digit at both
    ends: safe in a file name, a URL, a certificate and a shell. Else raises ConfigError.
    """
    if not _NAME.fullmatch(text):
        raise ConfigError(
            f"{what} name {text[:80]!r} is not allowed: use 1 to 63 of a-z 0-9 . _ - "
            "with a letter or digit at both ends"
        )
    return text


def digest(text: str) -> str:
    """Return `text` when it is a well-formed digest, else raise ConfigError."""
    if not _DIGEST.fullmatch(text):
        raise ConfigError(
            f"{text[:80]!r} is not a digest: needed sha256: or b3: and 64 hex characters"
        )
    return text


def new_id(prefix: str, random: bytes) -> str:
    """Return `prefix-` and 16 base-32 characters made of 10 random bytes (80 bits)."""
    if len(random) != 10:
        raise ValueError(f"new_id needs 10 random bytes, found {len(random)}")
    value = int.from_bytes(random, "big")
    digits = (_ALPHABET[(value >> shift) & 31] for shift in range(75, -5, -5))
    return f"{prefix}-{''.join(digits)}"
