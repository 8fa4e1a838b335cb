"""The hub's certificate authority: ECDSA P-256, X.509 as ssl.VERIFY_X509_STRICT wants it.

    CA       10 years, signs nothing but certificates, no CA below it
    server   397 days, the configured host names and addresses as subjectAltName
    node     30 days, CN = the site's name, subjectAltName URI consilia:site:<name>

Validity begins a day before issue, so a node whose clock is an hour (or twelve) slow can join.
Private keys of nodes are made at the sites; the hub sees only a certificate request, of which
it takes the public key and nothing else: the invite decides the name.

Functions here know no files, database or clock: times are Unix seconds given by the caller.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from consilia.errors import WireError

DAY = 86400.0
CA_DAYS, SERVER_DAYS, NODE_DAYS = 3652, 397, 30
MAX_REQUEST = 16 << 10  # bytes of a certificate request


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        """Name it without its key."""
        return f"Authority({self.certificate.subject.rfc4514_string()})"


def make_authority(name: str, at: float, serial: int) -> Authority:
    """Make a CA with a fresh key from the system's generator."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"Consilia hub {name}"[:64])
    public = key.public_key()
    builder = _builder(subject, subject, public, (at, CA_DAYS), serial)
    builder = builder.add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue_server(
    ca: Authority, hosts: Sequence[str], at: float, serial: int
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make a key and certificate for the hub's own listeners, for these names and addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    subject = _name(hosts[0][:64])
    purpose = ExtendedKeyUsageOID.SERVER_AUTH
    return _issue(ca, subject, names, purpose, key.public_key(), (at, SERVER_DAYS), serial), key


def issue_node(
    ca: Authority, site: str, key: ec.EllipticCurvePublicKey, at: float, serial: int
) -> x509.Certificate:
    """Certify a site's key."""
    names = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(f"consilia:site:{site}")]
    )
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH
    return _issue(ca, _name(site), names, purpose, key, (at, NODE_DAYS), serial)


def request_key(csr: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a PKCS#10 request (DER), or raise WireError.

    The request must be signed with its own key, which must be on P-256.
    """
    if len(csr) > MAX_REQUEST:
        raise WireError(f"certificate request of {len(csr)} bytes, limit {MAX_REQUEST}")
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise WireError("the certificate request is not readable PKCS#10 DER") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, ec.SECP256R1
    ):
        raise WireError("the certificate request's key must be ECDSA on the curve P-256")
    if not signed:
        raise WireError("the certificate request is not signed with its own key")
    return key


def server_names(certificate: x509.Certificate) -> frozenset[str]:
    """The host names and addresses a server certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return frozenset(
        (
            *names.get_values_for_type(x509.DNSName),
            *map(str, names.get_values_for_type(x509.IPAddress)),
        )
    )


def canonical_hosts(hosts: Sequence[str]) -> frozenset[str]:
    """Hosts as `server_names` gives them back."""
    return frozenset(str(_host(host).value) for host in hosts)


def _issue(  # noqa: PLR0913, PLR0917 - a certificate has this many parts
    ca: Authority,
    subject: x509.Name,
    names: x509.SubjectAlternativeName,
    purpose: x509.ObjectIdentifier,
    key: ec.EllipticCurvePublicKey,
    validity: tuple[float, int],
    serial: int,
) -> x509.Certificate:
    issuer = ca.certificate
    skid = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    akid = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(skid)
    limit = issuer.not_valid_after_utc
    builder = _builder(subject, issuer.subject, key, validity, serial, limit)
    builder = builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(akid, critical=False)
    return builder.sign(ca.key, hashes.SHA256())


def _builder(  # noqa: PLR0913, PLR0917 - as above
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    validity: tuple[float, int],
    serial: int,
    limit: datetime | None = None,
) -> x509.CertificateBuilder:
    at, days = validity
    end = _time(at + days * DAY)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_time(at - DAY))
        .not_valid_after(end if limit is None else min(end, limit))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host.lower())


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(int(at), UTC)
