"""Identities: certificates that strict TLS accepts, one-time tokens, shutting out at once."""

import asyncio
import base64
import hashlib
import ssl
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from consilia.errors import AuthError, ConfigError, Conflict, NotFound, StorageError, WireError
from consilia.hub import audit, authority, credentials, database, records
from consilia.hub.access import Access
from consilia.hub.store import Store
from consilia.wire.token import decode_token
from consilia.wire.v1 import Enrol, Enrolled, Renew
from pgkit import Postgres

DAY = 86400.0
START = 1_800_000_000.0
HOSTS = ("hub.example.org", "127.0.0.1", "::1")


@dataclass
class World:
    """A hub's directory, with a clock and randomness that the test turns."""

    directory: Path
    at: float = START
    database: str = ""  # another than DIR/hub.sqlite
    _count: Iterator[int] = field(default_factory=count)
    stores: list[Store] = field(default_factory=list)

    def now(self) -> float:
        return self.at

    def random_bytes(self, size: int) -> bytes:
        return hashlib.shake_128(str(next(self._count)).encode()).digest(size)

    @property
    def secrets(self) -> Path:
        return self.directory / "secrets"

    def create(self) -> None:
        Access.create(
            self.secrets, HOSTS, name="test", at=self.at, random_bytes=self.random_bytes
        )

    def load(self, hosts: tuple[str, ...] = HOSTS) -> Access:
        """One hub process: its own store over the same database."""
        where = self.database or self.directory / "hub.sqlite"
        store = Store.open(where, monotonic=self.now)
        self.stores.append(store)
        return Access.load(
            self.secrets,
            store,
            url="https://hub.example.org:8443",
            hosts=hosts,
            now=self.now,
            random_bytes=self.random_bytes,
        )

    def trail(self) -> list[tuple[str, str, str, str]]:
        entries = self.stores[0].read_now(lambda db: list(audit.lines(db)))
        return [(e.line.actor, e.line.action, e.line.subject, e.line.outcome) for e in entries]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.create()
    yield made
    for store in made.stores:
        store.close()


@pytest.fixture
async def access(world: World) -> AsyncIterator[Access]:
    yield world.load()


Key = ec.EllipticCurvePrivateKey


def request(key: Any = None, name: str = "anything") -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def signing_key(seed: int = 1) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PrivateKey,
    )

    return (
        Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32).public_key().public_bytes_raw()
    )


def certificate(enrolled: Enrolled) -> x509.Certificate:
    return x509.load_pem_x509_certificate(enrolled.certificate)


def der(enrolled: Enrolled) -> bytes:
    return certificate(enrolled).public_bytes(Encoding.DER)


async def secret_of(access: Access, site: str = "site-a", hours: float = 72.0) -> str:
    return decode_token((await access.invite(site, hours, "user:ada")).token).secret


async def join(
    access: Access, site: str = "site-a", key: Key | None = None, seed: int = 1
) -> Enrolled:
    secret = await secret_of(access, site)
    return await access.enrol(Enrol(site, secret, request(key), signing_key(seed)))


class TestJoining:
    async def test_from_invite_to_identity(self, world: World, access: Access) -> None:
        view = await access.invite("site-a", 48.0, "user:ada")
        token = decode_token(view.token)
        assert (token.url, token.site) == ("https://hub.example.org:8443", "site-a")
        assert token.expires == view.expires == START + 48 * 3600
        assert view.ca_fingerprint == "sha256:" + hashlib.sha256(token.ca).hexdigest()
        assert len(base64.urlsafe_b64decode(token.secret + "=")) == 32
        assert state(world, "site-a") == "invited"
        key = ec.generate_private_key(ec.SECP256R1())
        enrolled = await access.enrol(
            Enrol("site-a", token.secret, request(key, "site-evil"), signing_key())
        )
        made = certificate(enrolled)
        assert made.public_key() == key.public_key()
        assert made.subject.rfc4514_string() == "CN=site-a"
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
            "consilia:site:site-a"
        ]
        assert made.not_valid_before_utc == datetime.fromtimestamp(START - DAY, UTC)
        assert made.not_valid_after_utc == datetime.fromtimestamp(START + 30 * DAY, UTC)
        assert (enrolled.ca, enrolled.hub_key) == (access.ca_pem, access.hub_public)
        assert access.identify(der(enrolled)) == "site-a"
        assert access.signing_key("site-a") == signing_key()
        assert state(world, "site-a") == "enrolled"
        assert world.trail() == [
            ("user:ada", "site.invite", "site-a", "done"),
            ("site:site-a", "site.enrol", "site-a", "done"),
        ]

    async def test_a_secret_is_stored_only_as_its_hash(
        self, world: World, access: Access
    ) -> None:
        secret = await secret_of(access)
        made = await access.make_token("ada", "operator")
        assert made.secret is not None
        for path in world.directory.glob("hub.sqlite*"):
            data = path.read_bytes()
            assert secret.encode() not in data
            assert made.secret.encode() not in data

    async def test_every_bad_secret_gets_the_same_answer(
        self, world: World, access: Access
    ) -> None:
        used, late, other = [await secret_of(access, s) for s in ("site-a", "site-b", "site-c")]
        await access.enrol(Enrol("site-a", used, request(), signing_key()))
        said: set[str] = set()

        async def refused(site: str, secret: str) -> None:
            with pytest.raises(AuthError) as caught:
                await access.enrol(Enrol(site, secret, request(), signing_key()))
            said.add(str(caught.value))

        await refused("site-a", used)
        await refused("site-b", other)
        await refused("../../etc", other)
        await refused("site-a", "unknown")
        await refused("site-a", "\ud800\0")
        world.at += 72 * 3600
        await refused("site-b", late)
        assert len(said) == 1
        refusals = [line for line in world.trail() if line[3] == "refused"]
        assert refusals == [
            ("hub", "site.enrol", site, "refused")
            for site in ("site-a", "site-c", "site-c", "site-b")
        ]
        assert [state(world, s) for s in ("site-b", "site-c")] == ["invited", "invited"]

    async def test_an_invite_lasts_to_the_second_before_it_expires(
        self, world: World, access: Access
    ) -> None:
        secret = await secret_of(access, hours=1)
        world.at = START + 3600 - 0.001
        await access.enrol(Enrol("site-a", secret, request(), signing_key()))
        secret = await secret_of(access, hours=1)
        world.at += 3600
        with pytest.raises(AuthError):
            await access.enrol(Enrol("site-a", secret, request(), signing_key()))

    async def test_of_ten_at_once_one_gets_in(self, world: World, access: Access) -> None:
        secret = await secret_of(access)
        tries = [
            access.enrol(Enrol("site-a", secret, request(), signing_key(n)))
            for n in range(1, 11)
        ]
        results = await asyncio.gather(*tries, return_exceptions=True)
        inside = [r for r in results if isinstance(r, Enrolled)]
        assert len(inside) == 1
        assert [type(r) for r in results if not isinstance(r, Enrolled)] == [AuthError] * 9
        assert access.identify(der(inside[0])) == "site-a"
        assert (
            len(
                [line for line in world.trail() if line[1:] == ("site.enrol", "site-a", "done")]
            )
            == 1
        )

    @pytest.mark.parametrize(
        "make",
        [
            lambda: request(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
            lambda: request(ec.generate_private_key(ec.SECP384R1())),
            lambda: b"garbage",
            lambda: b"",
            lambda: request()[:-1] + b"\0",
            lambda: request() + b"\0",
            lambda: b"\x30" * (authority.MAX_REQUEST + 1),
        ],
    )
    async def test_a_bad_request_does_not_use_up_the_secret(
        self, access: Access, make: Callable[[], bytes]
    ) -> None:
        secret = await secret_of(access)
        with pytest.raises(WireError, match="certificate request"):
            await access.enrol(Enrol("site-a", secret, make(), signing_key()))
        await access.enrol(Enrol("site-a", secret, request(), signing_key()))

    @pytest.mark.parametrize("key", [b"", b"k" * 31, b"k" * 33])
    async def test_the_signing_key_must_be_one(self, access: Access, key: bytes) -> None:
        secret = await secret_of(access)
        with pytest.raises(WireError, match="Ed25519 public key of 32 bytes"):
            await access.enrol(Enrol("site-a", secret, request(), key))

    async def test_joining_again_replaces_the_node(self, world: World, access: Access) -> None:
        first = await join(access, seed=1)
        second = await join(access, seed=2)
        assert access.identify(der(second)) == "site-a"
        assert access.signing_key("site-a") == signing_key(2)
        with pytest.raises(AuthError, match="not in force"):
            access.identify(der(first))

    @pytest.mark.parametrize("hours", [0, -1, 24 * 30 + 0.01, float("nan"), float("inf")])
    async def test_odd_invites_are_refused(self, access: Access, hours: float) -> None:
        with pytest.raises(ConfigError, match="hours"):
            await access.invite("site-a", hours)
        with pytest.raises(ConfigError, match="site name"):
            await access.invite("../x", 1.0)


class TestRenewing:
    async def test_the_old_certificate_lasts_to_its_own_end(
        self, world: World, access: Access
    ) -> None:
        old = await join(access)
        world.at = START + 20 * DAY
        new = await access.renew("site-a", Renew(request()))
        assert certificate(old).serial_number != certificate(new).serial_number
        assert {access.identify(der(e)) for e in (old, new)} == {"site-a"}
        assert records_of(world, "site-a").certificate_expires == START + 50 * DAY
        world.at = START + 30 * DAY - 1
        assert access.identify(der(old)) == "site-a"
        world.at = START + 30 * DAY
        with pytest.raises(AuthError, match="'site-a' has expired"):
            access.identify(der(old))
        assert access.identify(der(new)) == "site-a"
        assert world.trail()[-1] == ("site:site-a", "site.renew", "site-a", "done")

    async def test_three_are_in_force_at_most(self, world: World, access: Access) -> None:
        all_ = [await join(access)]
        for _ in range(4):
            world.at += 1
            all_.append(await access.renew("site-a", Renew(request())))
        for dead in all_[:2]:
            with pytest.raises(AuthError):
                access.identify(der(dead))
        assert {access.identify(der(e)) for e in all_[2:]} == {"site-a"}

    async def test_renewals_within_one_moment_keep_the_newest(self, access: Access) -> None:
        await join(access)
        for _ in range(6):
            newest = await access.renew("site-a", Renew(request()))
            assert access.identify(der(newest)) == "site-a"

    async def test_a_revoked_site_renews_nothing(self, access: Access) -> None:
        await join(access)
        await access.revoke("site-a")
        with pytest.raises(AuthError, match="not enrolled"):
            await access.renew("site-a", Renew(request()))
        with pytest.raises(AuthError, match="not enrolled"):
            await access.renew("site-b", Renew(request()))
        with pytest.raises(WireError):
            await access.renew("site-a", Renew(b"garbage"))


class TestRevoking:
    async def test_it_works_on_the_next_request(self, world: World, access: Access) -> None:
        old = await join(access)
        new = await access.renew("site-a", Renew(request()))
        other = await join(access, "site-b")
        pending = await secret_of(access)
        await access.revoke("site-a", "user:ada")
        for gone in (old, new):
            with pytest.raises(AuthError, match="not in force"):
                access.identify(der(gone))
        with pytest.raises(AuthError):
            access.signing_key("site-a")
        with pytest.raises(AuthError):
            await access.enrol(Enrol("site-a", pending, request(), signing_key()))
        assert access.identify(der(other)) == "site-b"
        assert state(world, "site-a") == "revoked"
        assert ("user:ada", "site.revoke", "site-a", "done") in world.trail()

    async def test_another_process_notices_at_once(self, world: World, access: Access) -> None:
        other = world.load()
        enrolled = await join(other)
        token = await other.make_token("ada", "researcher")
        assert token.secret is not None
        assert access.identify(der(enrolled)) == "site-a"
        assert access.token_role(token.secret) == ("ada", "researcher")
        await other.revoke("site-a")
        await other.revoke_token(token.id)
        with pytest.raises(AuthError):
            access.identify(der(enrolled))
        with pytest.raises(AuthError):
            access.token_role(token.secret)

    async def test_a_revoked_site_may_be_invited_again(
        self, world: World, access: Access
    ) -> None:
        await join(access)
        await access.revoke("site-a")
        secret = await secret_of(access)
        assert state(world, "site-a") == "revoked"
        again = await access.enrol(Enrol("site-a", secret, request(), signing_key(3)))
        assert access.identify(der(again)) == "site-a"
        assert state(world, "site-a") == "enrolled"

    async def test_who_is_not_there_cannot_be_revoked(self, access: Access) -> None:
        with pytest.raises(NotFound, match="no site 'nobody'"):
            await access.revoke("nobody")

    async def test_a_foreign_certificate_is_nobody(
        self, access: Access, tmp_path: Path
    ) -> None:
        foreign = World(tmp_path / "other")
        foreign.create()
        enrolled = await join(foreign.load())
        foreign.stores[0].close()
        for unknown in (der(enrolled), b"", b"garbage"):
            with pytest.raises(AuthError, match="not in force"):
                access.identify(unknown)

    async def test_without_its_database_the_hub_lets_nobody_in(
        self, world: World, access: Access
    ) -> None:
        enrolled = await join(access)
        world.stores[0].close()
        (world.directory / "hub.sqlite").unlink()
        with pytest.raises(StorageError):
            access.identify(der(enrolled))

    async def test_everything_survives_a_restart(self, world: World, access: Access) -> None:
        enrolled = await join(access)
        again = world.load()
        assert again.identify(der(enrolled)) == "site-a"
        assert again.signing_key("site-a") == signing_key()
        assert again.ca_pem == access.ca_pem
        assert again.hub_public == access.hub_public


class TestTokens:
    async def test_a_token_opens_until_it_expires(self, world: World, access: Access) -> None:
        view = await access.make_token("Ada Lovelace", "auditor", 2, "user:root")
        secret = view.secret
        assert secret is not None
        assert secret.startswith("cst_")
        assert len(base64.urlsafe_b64decode(secret[4:] + "=")) == 32
        person = access.token_role(secret)
        assert (person.name, person.role) == ("Ada Lovelace", "auditor")
        world.at = view.expires - 0.001
        access.token_role(secret)
        world.at = view.expires
        with pytest.raises(AuthError):
            access.token_role(secret)
        assert world.trail() == [("user:root", "token.create", view.id, "done")]

    async def test_unknown_expired_and_revoked_sound_alike(
        self, world: World, access: Access
    ) -> None:
        dead, late = [await access.make_token("a", "operator", d) for d in (9, 1)]
        await access.revoke_token(dead.id, "user:ada")
        world.at += DAY
        said = set()
        for secret in (dead.secret, late.secret, "cst_", "", "cst_\ud800", dead.id):
            assert secret is not None
            with pytest.raises(AuthError) as caught:
                access.token_role(secret)
            said.add(str(caught.value))
        assert len(said) == 1
        with pytest.raises(NotFound):
            await access.revoke_token("token-unknown")

    async def test_the_list_shows_no_secret(self, world: World, access: Access) -> None:
        made = [await access.make_token(f"t{n}", "operator") for n in range(3)]
        await access.revoke_token(made[0].id)
        page = world.stores[0].read_now(lambda db: credentials.list_tokens(db, limit=2))
        rest = world.stores[0].read_now(
            lambda db: credentials.list_tokens(db, limit=2, cursor=page.next)
        )
        found = {t.id: t for t in (*page.items, *rest.items)}
        assert set(found) == {m.id for m in made}
        assert [found[m.id].revoked is not None for m in made] == [True, False, False]

    @pytest.mark.parametrize(
        ("name", "role", "days"),
        [
            ("a", "root", 1),
            ("a", "", 1),
            ("", "operator", 1),
            ("a" * 101, "operator", 1),
            ("a\nb", "operator", 1),
            ("a", "operator", 0),
            ("a", "operator", 367),
        ],
    )
    async def test_odd_tokens_are_refused(
        self, access: Access, name: str, role: str, days: int
    ) -> None:
        with pytest.raises(ConfigError):
            await access.make_token(name, role, days)

    async def test_tokens_at_the_limits(self, access: Access) -> None:
        await access.make_token("a" * 100, "operator", 366)
        await access.make_token("a", "researcher", 1)


class TestOnPostgres:
    """The same rows and rules there; other hub processes notice within half a second."""

    @pytest.fixture
    def world(self, tmp_path: Path, postgres: Postgres) -> Iterator[World]:
        made = World(tmp_path, database=postgres.fresh())
        made.create()
        yield made
        for store in made.stores:
            store.close()

    async def test_a_site_from_invite_to_the_end(self, world: World, access: Access) -> None:
        other = world.load()
        first = await join(access)
        second = await access.renew("site-a", Renew(request()))
        token = await access.make_token("ada", "operator")
        assert token.secret is not None
        assert {access.identify(der(e)) for e in (first, second)} == {"site-a"}
        world.at += database.STALE
        assert other.identify(der(second)) == "site-a"
        assert other.token_role(token.secret) == ("ada", "operator")
        await access.revoke("site-a")
        await access.revoke_token(token.id)
        for refused in (
            lambda: access.identify(der(second)),
            lambda: access.token_role(str(token.secret)),
        ):
            with pytest.raises(AuthError):
                refused()
        world.at += database.STALE
        for refused in (
            lambda: other.identify(der(second)),
            lambda: other.token_role(str(token.secret)),
        ):
            with pytest.raises(AuthError):
                refused()
        assert state(world, "site-a") == "revoked"

    async def test_of_two_hubs_one_lets_the_secret_in(
        self, world: World, access: Access
    ) -> None:
        hubs = (access, world.load())
        secret = await secret_of(access)
        tries = [
            hubs[n % 2].enrol(Enrol("site-a", secret, request(), signing_key()))
            for n in range(6)
        ]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert sorted(type(r).__name__ for r in results) == ["AuthError"] * 5 + ["Enrolled"]


class TestFiles:
    def test_only_the_hub_may_read_them(self, world: World) -> None:
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in world.secrets.iterdir()}
        assert modes == dict.fromkeys(
            ("ca.key", "ca.pem", "server.key", "server.pem", "hub.key"), 0o600
        )
        assert stat.S_IMODE(world.secrets.stat().st_mode) == 0o700

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
    @pytest.mark.parametrize("name", ["ca.key", "hub.key", "server.key", "ca.pem"])
    def test_a_file_others_may_read_is_refused(
        self, world: World, name: str, mode: int
    ) -> None:
        (world.secrets / name).chmod(mode)
        with pytest.raises(ConfigError, match=f"{name} may be read by others.*chmod 600"):
            world.load()

    def test_a_directory_others_may_enter_is_refused(self, world: World) -> None:
        world.secrets.chmod(0o750)
        with pytest.raises(ConfigError, match="chmod 700"):
            world.load()

    def test_a_hub_is_not_made_twice(self, world: World) -> None:
        before = {p.name: p.read_bytes() for p in world.secrets.iterdir()}
        with pytest.raises(Conflict, match="already"):
            world.create()
        assert {p.name: p.read_bytes() for p in world.secrets.iterdir()} == before

    @pytest.mark.parametrize("name", ["ca.key", "ca.pem", "hub.key"])
    def test_missing_and_damaged_files(self, world: World, name: str) -> None:
        path = world.secrets / name
        path.write_bytes(b"-----BEGIN NONSENSE-----")
        with pytest.raises(ConfigError, match=f"{name} is not a"):
            world.load()
        path.unlink()
        with pytest.raises(ConfigError, match=f"{name} cannot be read"):
            world.load()

    def test_keys_that_do_not_belong_together(self, world: World, tmp_path: Path) -> None:
        other = World(tmp_path / "other")
        other.create()
        (world.secrets / "ca.key").write_bytes((other.secrets / "ca.key").read_bytes())
        with pytest.raises(ConfigError, match="does not belong to"):
            world.load()
        (world.secrets / "ca.key").write_bytes((world.secrets / "hub.key").read_bytes())
        with pytest.raises(ConfigError, match="no ECDSA key"):
            world.load()

    def test_the_server_certificate_is_renewed_when_due(self, world: World) -> None:
        path = world.secrets / "server.pem"
        life = 398 * DAY  # with the day before
        first = path.read_bytes()
        world.at = START - DAY + 2 * life / 3 - 1
        world.load()
        assert path.read_bytes() == first
        world.at += 1
        world.load()
        second = path.read_bytes()
        assert second != first
        world.load()
        assert path.read_bytes() == second
        world.load(("other.example.org",))
        made = x509.load_pem_x509_certificate(path.read_bytes())
        assert authority.server_names(made) == {"other.example.org"}

    def test_a_torn_pair_is_made_anew(self, world: World) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        body = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (world.secrets / "server.key").write_bytes(body)
        world.load().people_context()
        (world.secrets / "server.pem").unlink()
        world.load().people_context()


class TestTls:
    """Real handshakes, in memory, as strictly as OpenSSL can check."""

    async def test_mutual_tls_identifies_the_site(self, access: Access, tmp_path: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        enrolled = await join_now(access, key)
        for host in HOSTS:
            server, client = await handshake(access, tmp_path, enrolled, key, host)
            assert server.version() == client.version() == "TLSv1.3"
            peer = server.getpeercert(binary_form=True)
            assert peer is not None
            assert access.identify(peer) == "site-a"

    async def test_another_host_is_not_the_hub(self, access: Access, tmp_path: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        enrolled = await join_now(access, key)
        with pytest.raises(
            ssl.SSLCertVerificationError, match=r"doesn't match|not valid for|mismatch"
        ):
            await handshake(access, tmp_path, enrolled, key, "evil.example.org")

    async def test_a_node_certificate_is_no_server(
        self, access: Access, tmp_path: Path
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        enrolled = await join_now(access, key)
        chain, keyfile = write_pair(tmp_path, enrolled, key)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(chain, keyfile)
        client = client_context(access)
        client.check_hostname = False
        with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
            shake(server, client, None)

    async def test_a_foreign_ca_is_refused(self, access: Access, tmp_path: Path) -> None:
        foreign = World(tmp_path / "other", at=START_NOW())
        foreign.create()
        other = foreign.load()
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(other.people_context(), client_context(access), HOSTS[0])
        foreign.stores[0].close()

    async def test_people_need_no_certificate(self, access: Access) -> None:
        server, _ = shake(access.people_context(), client_context(access), HOSTS[0])
        assert server.getpeercert() is None

    async def test_old_tls_is_refused(self, access: Access) -> None:
        client = client_context(access)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            shake(access.people_context(), client, HOSTS[0])

    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[World]:
        """OpenSSL reads the machine's clock, so these certificates are of today."""
        made = World(tmp_path / "hub", at=START_NOW())
        made.create()
        yield made
        for store in made.stores:
            store.close()


def START_NOW() -> float:
    return datetime.now(UTC).timestamp()


async def join_now(access: Access, key: Key) -> Enrolled:
    return await join(access, key=key)


def client_context(access: Access) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=access.ca_pem.decode())
    return context


def write_pair(directory: Path, enrolled: Enrolled, key: Key) -> tuple[Path, Path]:
    chain, keyfile = directory / "node.pem", directory / "node.key"
    chain.write_bytes(enrolled.certificate)
    keyfile.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return chain, keyfile


async def handshake(
    access: Access, directory: Path, enrolled: Enrolled, key: Key, host: str
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    server = access.people_context()
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_STRICT
    server.load_verify_locations(cadata=access.ca_pem.decode())
    client = client_context(access)
    client.load_cert_chain(*write_pair(directory, enrolled, key))
    return shake(server, client, host)


def shake(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, host: str | None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A whole handshake without sockets."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    pending = {client, server}
    for _ in range(10):
        for side in (client, server):
            if side in pending:
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                pending.discard(side)
        if not pending:
            return server, client
    raise AssertionError("the handshake did not end")


def records_of(world: World, site: str) -> records.SiteRecord:
    return world.stores[0].read_now(lambda db: records.get_site(db, site))


def state(world: World, site: str) -> str:
    return records_of(world, site).state
