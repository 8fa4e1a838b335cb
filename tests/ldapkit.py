"""A real LDAP server (OpenLDAP's slapd) for tests, with StartTLS and an authority of its own.

It takes no password without TLS, and says yes to a name with an empty password, as many
servers do. Tests skip where slapd or ldap3 is missing.
"""

import contextlib
import datetime as dt
import ipaddress
import shutil
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BASE = "dc=hospital,dc=example"
PEOPLE, GROUPS = f"ou=people,{BASE}", f"ou=groups,{BASE}"
SERVICE = f"cn=console,{BASE}"
SERVICE_PASSWORD = "the console's own password"  # noqa: S105
PASSWORD = "what mara types at her desk"  # noqa: S105
_SLAPD = "/usr/sbin/slapd"
_CONFIG = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
pidfile {folder}/slapd.pid
TLSCACertificateFile {folder}/ca.pem
TLSCertificateFile {folder}/server.pem
TLSCertificateKeyFile {folder}/server.key
security simple_bind=128
allow bind_anon_cred
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="{service}" read by self read by * none
database mdb
suffix "{base}"
rootdn "cn=root,{base}"
rootpw root
directory {folder}/data
overlay memberof
"""


@dataclass
class Directory:
    """The running server, and the line of its administrator."""

    folder: Path
    port: int
    admin: Any

    @property
    def url(self) -> str:
        """Its address, by number: the certificate is for it."""
        return f"ldap://127.0.0.1:{self.port}"

    def person(self, name: str, **more: str) -> str:
        """Make a person with PASSWORD; return the distinguished name."""
        own = f"uid={name},{PEOPLE}"
        said = {"cn": name, "sn": name, "uid": name, "userPassword": PASSWORD, **more}
        assert self.admin.add(own, "inetOrgPerson", said), self.admin.result
        return own

    def group(self, name: str, *members: str) -> str:
        """Make a group; return the distinguished name."""
        own = f"cn={name},{GROUPS}"
        assert self.admin.add(own, "groupOfNames", {"member": list(members)}), self.admin.result
        return own

    def remove(self, own: str) -> None:
        """Remove an entry."""
        assert self.admin.delete(own), self.admin.result

    def members(self, group: str, *members: str) -> None:
        """Let a group have exactly these members."""
        changed = {"member": [("MODIFY_REPLACE", list(members))]}
        assert self.admin.modify(group, changed), self.admin.result


@contextlib.contextmanager
def ldap_server(folder: Path) -> Iterator[Directory]:
    """Run a server with nobody in it but the service account, for the time of a block."""
    ldap3 = _ldap3()
    if shutil.which(_SLAPD) is None:
        pytest.skip("slapd is not installed (Debian: apt-get install slapd)")
    _certificates(folder)
    (folder / "data").mkdir()
    config = folder / "slapd.conf"
    config.write_text(_CONFIG.format(folder=folder, base=BASE, service=SERVICE))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with (
        (folder / "slapd.log").open("w") as log,
        subprocess.Popen(
            [_SLAPD, "-h", f"ldap://127.0.0.1:{port}", "-f", config, "-d", "0"],
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            _until_open(port, process, folder)
            tls = ldap3.Tls(validate=0)
            server = ldap3.Server("127.0.0.1", port, tls=tls, get_info=ldap3.NONE)
            admin = ldap3.Connection(server, f"cn=root,{BASE}", "root")
            admin.open()
            assert admin.start_tls() and admin.bind(), admin.result
            _fill(admin)
            yield Directory(folder, port, admin)
            admin.unbind()
        finally:
            process.terminate()


def _ldap3() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pytest.importorskip("ldap3", reason="ldap3 is not installed (extra: ldap)")


def _fill(admin: Any) -> None:
    unit = "organizationalUnit"
    said = {"o": "hospital", "dc": "hospital"}
    assert admin.add(BASE, ["organization", "dcObject"], said), admin.result
    for own, kind, more in (
        (PEOPLE, unit, {"ou": "people"}),
        (GROUPS, unit, {"ou": "groups"}),
        (
            SERVICE,
            ["applicationProcess", "simpleSecurityObject"],
            {"cn": "console", "userPassword": SERVICE_PASSWORD},
        ),
    ):
        assert admin.add(own, kind, more), admin.result


def _until_open(port: int, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        said = (folder / "slapd.log").read_text()
        assert process.poll() is None and time.monotonic() < deadline, said
        time.sleep(0.02)


def _certificates(folder: Path) -> None:
    """Write an authority, a certificate for 127.0.0.1, and an authority of somebody else."""
    key, server = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    other = ec.generate_private_key(ec.SECP256R1())
    (folder / "ca.pem").write_bytes(_signed("authority", key, key, True))
    (folder / "other.pem").write_bytes(_signed("another authority", other, other, True))
    (folder / "server.pem").write_bytes(_signed("server", server, key, False))
    (folder / "server.key").write_bytes(
        server.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def _signed(
    name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, ca: bool
) -> bytes:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    start = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    issuer = name if ca else "authority"
    made = x509.CertificateBuilder(named(issuer), named(name), key.public_key(), 7)
    made = made.not_valid_before(start).not_valid_after(start + dt.timedelta(days=30))
    made = made.add_extension(x509.BasicConstraints(ca, None), critical=True)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    if not ca:
        made = made.add_extension(names, critical=False)
    return made.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
