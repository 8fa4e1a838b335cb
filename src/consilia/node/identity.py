"""A node's keys: made at the site, never leaving DIR/secrets (0700, files 0600).

    tls.key      ECDSA P-256, for the certificate that the hub's CA issues
    tls.pem      that certificate; renewed at two thirds of its life
    ca.pem       the hub's CA, pinned from the join token: the only one trusted
    signing.key  Ed25519, signs every report, so that no TLS terminator forges one
    hub.pub      the hub's Ed25519 public key (hex)

The certificate names the site twice: common name, and URI `consilia:site:<name>`.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from consilia.errors import AuthError, ConfigError, Conflict, NotFound
from consilia.files import write_whole
from consilia.wire.v1 import Enrolled

FOLDER = "secrets"
_FILES = ("tls.key", "tls.pem", "ca.pem", "signing.key", "hub.pub")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the node is. `not_before` and `not_after` (Unix seconds) bound the certificate."""

    secrets: Path
    site: str
    signing: Ed25519PrivateKey
    hub_key: bytes
    not_before: float
    not_after: float

    @property
    def renew_at(self) -> float:
        """Return when two thirds of the certificate's life are over, Unix seconds."""
        return self.not_before + (self.not_after - self.not_before) * 2 / 3


@dataclass(frozen=True, slots=True)
class NewKeys:
    """Keys made for joining, not yet written."""

    tls: ec.EllipticCurvePrivateKey
    signing: Ed25519PrivateKey

    @property
    def signing_public(self) -> bytes:
        """The 32 bytes the hub verifies reports with."""
        return self.signing.public_key().public_bytes_raw()


def new_keys() -> NewKeys:
    """Make fresh keys from the operating system's randomness."""
    return NewKeys(ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate())


def request(key: ec.EllipticCurvePrivateKey, site: str) -> bytes:
    """Return a certificate request (PKCS#10 DER) for `site`."""
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    ).add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"consilia:site:{site}")]),
        critical=False,
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def renewal_request(identity: Identity) -> bytes:
    """Return a certificate request for the key the node has."""
    return request(_tls_key(identity.secrets), identity.site)


def refuse_overwrite(directory: Path) -> None:
    """Raise Conflict when the directory holds a node's secrets already."""
    found = [f for f in _FILES if (directory / FOLDER / f).exists()]
    if found:
        raise Conflict(
            f"{directory} holds the keys of a node already ({found[0]}); join in another "
            "directory, or move this one away first"
        )


def create(
    directory: Path, site: str, keys: NewKeys, enrolled: Enrolled, ca: bytes
) -> Identity:
    """Check what the hub answered to Enrol, write DIR/secrets, and return the identity.

    `ca` is the DER certificate from the join token; a hub that answers with another is refused.
    """
    refuse_overwrite(directory)
    try:
        answered = x509.load_pem_x509_certificate(enrolled.ca)
    except ValueError:
        raise AuthError("the hub's answer holds no readable CA certificate") from None
    if answered.public_bytes(serialization.Encoding.DER) != ca:
        raise AuthError("the hub answered with another CA than the join token names")
    if len(enrolled.hub_key) != 32:
        raise AuthError(f"the hub's signing key has {len(enrolled.hub_key)} bytes, needed 32")
    _check_certificate(enrolled.certificate, keys.tls, site, answered)
    secrets = directory / FOLDER
    secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
    secrets.chmod(0o700)
    write_whole(secrets / "tls.key", _pem(keys.tls))
    write_whole(secrets / "signing.key", _pem(keys.signing))
    write_whole(secrets / "ca.pem", enrolled.ca)
    write_whole(secrets / "hub.pub", enrolled.hub_key.hex().encode() + b"\n")
    write_whole(secrets / "tls.pem", enrolled.certificate)
    return load(directory, site)


def renewed(identity: Identity, enrolled: Enrolled) -> Identity:
    """Check and store a renewed certificate. The pinned CA and the hub's key stay."""
    ca = _certificate(identity.secrets / "ca.pem")
    _check_certificate(enrolled.certificate, _tls_key(identity.secrets), identity.site, ca)
    write_whole(identity.secrets / "tls.pem", enrolled.certificate)
    return load(identity.secrets.parent, identity.site)


def hub_key(directory: Path) -> bytes:
    """Return the hub's public key, pinned when the site joined."""
    path = directory / FOLDER / "hub.pub"
    try:
        return bytes.fromhex(path.read_text("ascii"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} cannot be read: {e}; restore it from a backup") from None


def load(directory: Path, site: str) -> Identity:
    """Read DIR/secrets; raise when a file is missing, open to others, or of another site."""
    secrets = directory / FOLDER
    for name in _FILES:
        path = secrets / name
        if not path.is_file():
            raise NotFound(
                f"{path} is missing: this directory has not joined a hub. "
                "Run: consilia node join TOKEN --dir DIR"
            )
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} is readable by others; run: chmod 600 {path}")
    certificate = _certificate(secrets / "tls.pem")
    named = site_of(certificate)
    if named != site:
        raise ConfigError(f"the certificate is for site {named!r}, node.yaml says {site!r}")
    signing = serialization.load_pem_private_key((secrets / "signing.key").read_bytes(), None)
    if not isinstance(signing, Ed25519PrivateKey):
        raise ConfigError(f"{secrets / 'signing.key'} is not an Ed25519 key")
    return Identity(
        secrets,
        site,
        signing,
        hub_key(directory),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def site_of(certificate: x509.Certificate) -> str:
    """Return the site that a certificate names, "" when it names none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _check_certificate(
    pem: bytes, key: ec.EllipticCurvePrivateKey, site: str, ca: x509.Certificate
) -> None:
    """Raise AuthError unless the certificate is ours: key, name, and issued by `ca`."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, ssl.SSLError):
        raise AuthError("the hub's answer holds no certificate issued by its CA") from None
    if certificate.public_key() != key.public_key() or site_of(certificate) != site:
        raise AuthError(
            f"the hub's answer holds a certificate for {site_of(certificate)!r} or another "
            f"key, needed one for {site!r} and the key made here"
        )


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise ConfigError(f"{path} holds no readable certificate") from None


def _tls_key(secrets: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key((secrets / "tls.key").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{secrets / 'tls.key'} is not an ECDSA key")
    return key


def _pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
