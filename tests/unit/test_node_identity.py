"""Keys made at the site: private files, certificates checked, renewal at two thirds."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from consilia.errors import AuthError, ConfigError, Conflict, NotFound, TransferError
from consilia.node import identity
from consilia.node.app import keep_certified
from consilia.wire.v1 import Enrolled, Renew

START = datetime(2026, 11, 1, tzinfo=UTC)


class Authority:
    """A certificate authority of one test. `days` is how long what it issues lives."""

    days = 30

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._issue("ca", self.key.public_key())

    def _issue(self, name: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        def named(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        return (
            x509.CertificateBuilder(named("ca"), named(name), key, 7)
            .not_valid_before(START)
            .not_valid_after(START + timedelta(days=self.days))
            .sign(self.key, hashes.SHA256())
        )

    def enrol(self, csr: bytes, name: str = "") -> Enrolled:
        request = x509.load_der_x509_csr(csr)
        assert request.is_signature_valid
        key = request.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        subject = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        issued = self._issue(name or str(subject), key)
        return Enrolled(issued.public_bytes(Encoding.PEM), self.pem, b"h" * 32)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    ca, keys = Authority(), identity.new_keys()
    csr = identity.request(keys.tls, "charite")
    san = x509.load_der_x509_csr(csr).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    uris = san.value.get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == ["consilia:site:charite"]
    me = identity.create(tmp_path, "charite", keys, ca.enrol(csr), ca.der)
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "secrets").iterdir()}
    assert modes == {0o600} and len(list((tmp_path / "secrets").iterdir())) == 5
    assert me.signing.public_key().public_bytes_raw() == keys.signing_public
    assert me.renew_at == (START + timedelta(days=20)).timestamp()
    with pytest.raises(Conflict, match="holds the keys of a node already"):
        identity.create(tmp_path, "charite", keys, ca.enrol(csr), ca.der)
    with pytest.raises(ConfigError, match="is for site 'charite', node"):
        identity.load(tmp_path, "leuven")
    (tmp_path / "secrets" / "signing.key").chmod(0o640)
    with pytest.raises(ConfigError, match="readable by others"):
        identity.load(tmp_path, "charite")


def test_a_hub_that_answers_with_something_else_is_refused(tmp_path: Path) -> None:
    ca, other, keys = Authority(), Authority(), identity.new_keys()
    csr = identity.request(keys.tls, "charite")
    strange = identity.request(identity.new_keys().tls, "charite")
    good = ca.enrol(csr)
    wrong = {
        "another CA": other.enrol(csr),
        "no certificate issued by its CA": Enrolled(
            other.enrol(csr).certificate, ca.pem, b"h" * 32
        ),
        "another key": ca.enrol(strange),
        "certificate for 'leuven'": ca.enrol(csr, "leuven"),
        "signing key has 3 bytes": Enrolled(good.certificate, ca.pem, b"abc"),
        "no readable CA": Enrolled(good.certificate, b"x", b"h" * 32),
        "no certificate issued": Enrolled(b"x", ca.pem, b"h" * 32),
    }
    for says, answer in wrong.items():
        with pytest.raises(AuthError, match=says):
            identity.create(tmp_path, "charite", keys, answer, ca.der)
    assert not (tmp_path / "secrets").exists()
    with pytest.raises(NotFound, match="consilia node join"):
        identity.load(tmp_path, "charite")


def test_a_renewed_certificate_replaces_the_old_one_only_when_it_is_ours(
    tmp_path: Path,
) -> None:
    ca, keys = Authority(), identity.new_keys()
    me = identity.create(
        tmp_path, "charite", keys, ca.enrol(identity.request(keys.tls, "charite")), ca.der
    )
    before = (tmp_path / "secrets" / "tls.pem").read_bytes()
    with pytest.raises(AuthError):
        identity.renewed(me, Authority().enrol(identity.renewal_request(me)))
    assert (tmp_path / "secrets" / "tls.pem").read_bytes() == before
    answer = ca.enrol(identity.renewal_request(me))
    identity.renewed(me, answer)
    assert (tmp_path / "secrets" / "tls.pem").read_bytes() == answer.certificate


class Line:
    """A hub that is away twice when it is asked for a certificate, then certifies."""

    def __init__(self, ca: Authority) -> None:
        self._ca = ca
        self.asked = 0
        self.shown = 0

    async def renew(self, renew: Renew) -> Enrolled:
        self.asked += 1
        if self.asked < 3:
            raise TransferError("the hub is away")
        return self._ca.enrol(renew.csr)

    def renewed(self) -> None:
        self.shown += 1


async def test_an_agent_renews_at_two_thirds_and_tries_hourly(tmp_path: Path) -> None:
    ca, keys = Authority(), identity.new_keys()
    me = identity.create(
        tmp_path, "charite", keys, ca.enrol(identity.request(keys.tls, "charite")), ca.der
    )
    line, waits = Line(ca), list[float]()
    clock = me.renew_at - 864.0

    async def sleep(seconds: float) -> None:
        nonlocal clock
        waits.append(seconds)
        clock += seconds
        if line.shown:
            raise asyncio.CancelledError  # the agent ends

    before = (tmp_path / "secrets" / "tls.pem").read_bytes()
    ca.days = 90  # the new certificate lives longer than the old one
    with pytest.raises(asyncio.CancelledError):
        await keep_certified(me, line, lambda: clock, sleep)
    assert waits == pytest.approx([864.0, 3600.0, 3600.0, 3600.0]), "due; hourly; not due"
    assert (line.asked, line.shown) == (3, 1)
    assert (tmp_path / "secrets" / "tls.pem").read_bytes() != before
