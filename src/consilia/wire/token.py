"""Join tokens: the line of text an operator hands a hospital so that its node can join.

    consilia-join-1.<base64url of msgpack {url, ca, secret, site, expires}>

The token carries the hub's own CA certificate, so the node verifies the hub's TLS from the
first byte and never trusts a public authority. It is a secret: who holds it before its site
does can join in the site's name. It works once, and the hub stores only a hash of it.
"""

import base64
import binascii
import hashlib
from urllib.parse import urlsplit

import msgspec

from consilia.errors import ConfigError
from consilia.wire.v1 import Record

PREFIX = "consilia-join-1."
MAX_TOKEN = 64 << 10  # characters


class JoinToken(Record, frozen=True):
    """What a join token holds. `expires` is Unix seconds by the hub's clock, for display."""

    url: str  # https://host:port of the hub's node listener
    ca: bytes  # the hub's CA certificate, DER
    secret: str
    site: str
    expires: float

    @property
    def ca_fingerprint(self) -> str:
        """SHA-256 of the CA certificate, to compare by telephone with what the hub printed."""
        return "sha256:" + hashlib.sha256(self.ca).hexdigest()

    def __repr__(self) -> str:
        """Name the token without its secret, so that no log shows it."""
        return f"JoinToken(url={self.url!r}, site={self.site!r}, secret=hidden)"


def encode_token(token: JoinToken) -> str:
    """Return the token as one line of text."""
    body = base64.urlsafe_b64encode(msgspec.msgpack.encode(token))
    return PREFIX + body.decode().rstrip("=")


def decode_token(text: str) -> JoinToken:
    """Read a token a person has pasted; the ConfigError for a bad one never shows it."""
    line = "".join(text.split())  # mail programs wrap long lines
    if not line.startswith(PREFIX) or len(line) > MAX_TOKEN:
        raise ConfigError(
            f"this is not a join token: one starts with {PREFIX}; ask the hub's operator for a "
            "new one (consilia hub invite SITE)"
        )
    body = line.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        token = msgspec.msgpack.decode(raw, type=JoinToken)
        split_url(token.url)
    except (binascii.Error, ValueError, msgspec.MsgspecError, ConfigError):
        raise ConfigError(
            "this join token is damaged or cut off; copy it again, whole, from the operator"
        ) from None
    return token


def split_url(url: str) -> tuple[str, int]:
    """Return host and port of a hub's node listener; raise ConfigError for any other URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    extra = not host or parts.scheme != "https" or parts.path.strip("/") or parts.query
    if extra or host is None or parts.username is not None:
        raise ConfigError(f"hub url {url[:200]!r} must have the form https://host:port")
    return host, port or 443
