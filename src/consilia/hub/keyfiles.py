"""The hub's key files: made once, read at every start, never readable by anybody else.

    ca.key ca.pem            the certificate authority
    server.key server.pem    the hub's own TLS key and certificate, reissued by `load`
    hub.key                  Ed25519, the hub's signature; its nodes keep the public key

Files are replaced by rename, after an fsync, so a crash leaves the old one or the new one.
"""

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from consilia.errors import ConfigError, Conflict, StorageError
from consilia.files import write_whole
from consilia.hub import authority
from consilia.hub.authority import Authority

Random = Callable[[int], bytes]
PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a hub needs to prove who it is."""

    ca: Authority
    hub_key: Ed25519PrivateKey
    directory: Path

    @property
    def server_chain(self) -> Path:
        """The server certificate, PEM."""
        return self.directory / "server.pem"

    @property
    def server_key(self) -> Path:
        """Its key, PEM."""
        return self.directory / "server.key"

    @classmethod
    def create(
        cls, directory: Path, hosts: Sequence[str], name: str, at: float, random_bytes: Random
    ) -> Self:
        """Make all files in `directory`; raise Conflict when it holds a CA already."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise StorageError(f"cannot make {directory}: {e.strerror}") from e
        _check_private(directory)
        if (directory / "ca.key").exists() or (directory / "ca.pem").exists():
            raise Conflict(f"{directory} holds the keys of a hub already: choose another one")
        made = cls(
            authority.make_authority(name, at, serial(random_bytes)),
            Ed25519PrivateKey.from_private_bytes(random_bytes(32)),
            directory,
        )
        write_whole(directory / "hub.key", _pem(made.hub_key))
        made._issue_server(hosts, at, random_bytes)
        write_whole(directory / "ca.pem", made.ca.certificate.public_bytes(Encoding.PEM))
        write_whole(directory / "ca.key", _pem(made.ca.key))  # last: it marks a whole set
        return made

    @classmethod
    def load(
        cls, directory: Path, hosts: Sequence[str], at: float, random_bytes: Random
    ) -> Self:
        """Read the files; issue the server certificate anew when due or for other hosts."""
        _check_private(directory)
        ca_key = _read_tls_key(directory / "ca.key")
        certificate = _read_certificate(directory / "ca.pem")
        hub_key = _read_signing_key(directory / "hub.key")
        if certificate.public_key() != ca_key.public_key():
            raise ConfigError(
                f"{directory}: ca.pem does not belong to ca.key; restore both from a backup"
            )
        loaded = cls(Authority(certificate, ca_key), hub_key, directory)
        if not loaded._server_fits(hosts, at):
            loaded._issue_server(hosts, at, random_bytes)
        return loaded

    def _server_fits(self, hosts: Sequence[str], at: float) -> bool:
        if not (self.server_chain.exists() and self.server_key.exists()):
            return False
        found = _read_certificate(self.server_chain)
        key = _read_tls_key(self.server_key)
        start, end = (
            t.timestamp() for t in (found.not_valid_before_utc, found.not_valid_after_utc)
        )
        return (
            found.issuer == self.ca.certificate.subject
            and found.public_key() == key.public_key()
            and start <= at < end - (end - start) / 3
            and authority.server_names(found) == authority.canonical_hosts(hosts)
        )

    def _issue_server(self, hosts: Sequence[str], at: float, random_bytes: Random) -> None:
        found, key = authority.issue_server(self.ca, hosts, at, serial(random_bytes))
        # A crash between the two leaves a pair that does not fit; `load` then makes a new one.
        write_whole(self.server_key, _pem(key))
        write_whole(self.server_chain, found.public_bytes(Encoding.PEM))


def serial(random_bytes: Random) -> int:
    """A certificate's serial number: 159 random bits, never 0 (RFC 5280, 4.1.2.2)."""
    return (int.from_bytes(random_bytes(20), "big") >> 1) or 1


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of its public key."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def read_secret(path: Path) -> bytes:
    """Read a file that nobody but its owner may read; raise ConfigError otherwise."""
    _check_private(path)
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}") from e


def _check_private(path: Path) -> None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as e:
        raise ConfigError(
            f"{path} cannot be read: {e.strerror}; restore it, or make a hub"
        ) from e
    if mode & 0o077:
        needed = "700" if path.is_dir() else "600"
        raise ConfigError(
            f"{path} may be read by others (mode {mode:o}): it holds secrets; if nobody has "
            f"seen them: chmod {needed} {path}"
        )


def _read_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = _read_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds no ECDSA key: restore it from a backup")
    return key


def _read_signing_key(path: Path) -> Ed25519PrivateKey:
    key = _read_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds no Ed25519 key: restore it from a backup")
    return key


def _read_key(path: Path) -> object:
    try:
        return load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError) as e:
        raise ConfigError(
            f"{path} is not a private key in PEM: restore it from a backup"
        ) from e


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_secret(path))
    except ValueError as e:
        raise ConfigError(
            f"{path} is not a certificate in PEM: restore it from a backup"
        ) from e


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
