"""The second factor: time-based one-time passwords (RFC 6238 over RFC 4226, SHA-1, 6 digits).

SHA-1 and 30 seconds because that is what every authenticator app speaks; HMAC-SHA-1 is not
touched by SHA-1's collisions.
"""

import base64
import hashlib
import hmac
from urllib.parse import quote, urlencode

STEP = 30  # seconds
DIGITS = 6
SECRET_BYTES = 20  # RFC 4226: as long as the hash
_DRIFT = 1  # steps that a device's clock may be early or late


def new_secret(random: bytes) -> str:
    """Return `random` (SECRET_BYTES of it) as the base32 text that people type into an app."""
    if len(random) != SECRET_BYTES:
        raise ValueError(f"{len(random)} random bytes, needed {SECRET_BYTES}")
    return base64.b32encode(random).decode()


def uri(secret: str, account: str, issuer: str) -> str:
    """Return the otpauth URI that an app reads from a QR code."""
    label = f"{quote(issuer, safe='')}:{quote(account, safe='')}"
    facts = {"secret": secret, "issuer": issuer, "digits": DIGITS, "period": STEP}
    return f"otpauth://totp/{label}?{urlencode(facts, quote_via=quote)}"


def code(secret: str, step: int) -> str:
    """Return the code of one time step (Unix seconds // STEP)."""
    mac = hmac.digest(base64.b32decode(secret), step.to_bytes(8, "big"), hashlib.sha1)
    at = mac[-1] & 15
    number = int.from_bytes(mac[at : at + 4], "big") & 0x7FFFFFFF
    return f"{number % 10**DIGITS:0{DIGITS}d}"


def accepted(secret: str, said: str, now: float, last: int) -> int | None:
    """Return the time step of a right code that was not used before, else None.

    `last` is the step accepted last: a code seen over somebody's shoulder works no second time.
    """
    said = said.replace(" ", "")
    here = int(now) // STEP
    for step in range(here - _DRIFT, here + _DRIFT + 1):
        if hmac.compare_digest(code(secret, step).encode(), said.encode()) and step > last:
            return step
    return None
