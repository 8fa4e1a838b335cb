"""What both roads to the hub have in common: TLS with the pinned CA, proxies, patience, errors.

The node trusts one authority, the CA that came in its join token; the machine's own trust
store is never asked. TLS 1.3 only.
"""

import base64
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from consilia.errors import AuthError, ConfigError, ConsiliaError, TransferError


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the node's certificate chain, its key and the hub's CA lie (PEM files)."""

    certificate: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class Retry:
    """Patience with a broken line: delays double from `first` to `longest` seconds.

    `attempts` failures in a row without a byte of progress end it (about three minutes).
    """

    first: float = 0.1
    longest: float = 5.0
    attempts: int = 40

    def delay(self, failures: int, random: float) -> float:
        """Return how long to wait after the n-th failure in a row; `random` in [0, 1)."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 30)) * (0.5 + random / 2)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP CONNECT proxy."""

    url: str
    host: str
    port: int
    headers: Mapping[str, str]  # its authorisation, if the URL holds one

    @property
    def address(self) -> str:
        """The URL without its user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def parse_proxy(url: str) -> Proxy | None:
    """Read http://[user:password@]host:port, "" for none; raise ConfigError otherwise."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.scheme != "http" or not host or not port:
        raise ConfigError("proxy must have the form http://[user:password@]host:port")
    headers = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(url, host, port, headers)


def with_password(url: str, password: str) -> str:
    """Return the proxy's `url` with `password` filled in for the user that it names.

    ConfigError when it names none, or holds a password already. Nothing of either is repeated.
    """
    way = parse_proxy(url)
    parts = urlsplit(url)
    if way is None or not parts.username or parts.password is not None:
        raise ConfigError(
            "a proxy's password needs a proxy of the form http://user@host:port, without one"
        )
    user, _, place = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{place}").geturl()


def client_context(alpn: str, ca: str, credentials: Credentials | None) -> ssl.SSLContext:
    """Return TLS settings that accept servers of `ca` (PEM) and show `credentials`, if any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols([alpn])
    try:
        context.load_verify_locations(cadata=ca)
        if credentials is not None:
            context.load_cert_chain(credentials.certificate, credentials.key)
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"the node's certificate, key or CA cannot be used: {e}") from e
    return context


_ALERTS = {
    "CERTIFICATE_EXPIRED": "it has expired; join again with a new token from its operator",
    "CERTIFICATE_REVOKED": "it was revoked; ask the hub's operator",
    "CERTIFICATE_REQUIRED": "it showed none; check the node's secrets",
    "UNKNOWN_CA": "another authority issued it; check that node.yaml names the right hub",
    "BAD_CERTIFICATE": "it is not valid",
    "CERTIFICATE_UNKNOWN": "it is not valid",
    "UNSUPPORTED_CERTIFICATE": "its kind is not supported",
    "ACCESS_DENIED": "access denied",
}


def line_error(error: BaseException, hub: str) -> ConsiliaError:
    """Return what an error of the network means: AuthError where TLS said so."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            found = getattr(seen, "verify_message", None) or "certificate not accepted"
            return AuthError(
                f"the server at {hub} is not the hub this node joined: {found}. "
                "A proxy may be opening TLS, or the hub has new keys"
            )
        reason = getattr(seen, "reason", None) if isinstance(seen, ssl.SSLError) else None
        for alert, meaning in _ALERTS.items():
            if isinstance(reason, str) and reason.endswith("ALERT_" + alert):
                return AuthError(f"the hub at {hub} refused the node's certificate: {meaning}")
        seen = seen.__cause__ or seen.__context__
    cause = str(error) or type(error).__name__
    return TransferError(f"the line to the hub at {hub} failed: {cause}")
