"""What the transport tests stand on: a throw-away CA, a small hub, and lines that misbehave.

`SmallHub` is a complete small hub behind the real listener: it keeps frames in a directory
and answers polls from a queue. `Relay` is a TCP relay that counts bytes and cuts lines;
`Connect` is an HTTP CONNECT proxy.
"""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import os
import threading
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from consilia.errors import AuthError, Conflict, NotFound, Refused, WireError
from consilia.hub.blobplane import BlobPlane
from consilia.hub.blobsession import Timings
from consilia.hub.listener import Bounds, NodeListener, make_contexts
from consilia.hub.telemetry import Log
from consilia.node.line import Credentials, Retry
from consilia.node.link import HttpLink
from consilia.wire import v1
from consilia.wire.frames import Header, Verifier

DAY = dt.timedelta(days=1)
QUICK = Retry(first=0.01, longest=0.05, attempts=20)


class Authority:
    """A certificate authority that lives as long as a test."""

    def __init__(self, name: str = "test CA") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.certificate = (
            self._builder(self.name, self.key.public_key(), dt.datetime.now(dt.UTC) + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        until: dt.datetime | None = None,
        hosts: Sequence[str] = (),
    ) -> bytes:
        """Certify `key`: a node's certificate, or with `hosts` a server's. PEM."""
        alternative: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(f"consilia:site:{name}")
        ]
        for host in hosts:
            with contextlib.suppress(ValueError):
                alternative.append(x509.IPAddress(ipaddress.ip_address(host)))
                continue
            alternative.append(x509.DNSName(host))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = (
            self._builder(subject, key, until or dt.datetime.now(dt.UTC) + DAY)
            .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    def credentials(
        self,
        directory: Path,
        name: str,
        until: dt.datetime | None = None,
        ca: str | None = None,
        hosts: Sequence[str] = (),
    ) -> Credentials:
        """Make a key and its certificate in `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        found = Credentials(directory / "tls.pem", directory / "tls.key", directory / "ca.pem")
        found.certificate.write_bytes(self.issue(name, key.public_key(), until, hosts))
        found.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        found.ca.write_text(ca or self.pem)
        return found

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, until: dt.datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(dt.datetime.now(dt.UTC) - 10 * DAY)
            .not_valid_after(until)
        )


class KeptFrame:
    """An open frame of the small hub."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.fd).st_size

    def close(self) -> None:
        os.close(self.fd)


class KeptUpload:
    """One connection's hold on a spool. The newest one may write."""

    def __init__(self, hub: "SmallHub", lease: str) -> None:
        self._hub = hub
        self._lease = lease
        self._fd = os.open(hub.directory / lease, os.O_RDWR | os.O_CREAT, 0o600)
        hub.holders[lease] = self
        self._verifier = Verifier(hub.limit)
        self._verifier.feed_file(self._fd, os.fstat(self._fd).st_size)
        self.limit = hub.limit

    @property
    def offset(self) -> int:
        return self._verifier.position

    def announce(self, total: int) -> None:
        if total > self.limit:
            raise WireError(f"frame of {total} bytes is over the limit of {self.limit}")

    def write(self, data: memoryview) -> None:
        if self._hub.holders[self._lease] is not self:
            raise Conflict("a newer connection has taken over")
        self._verifier.feed(data)
        os.pwrite(self._fd, data, self._verifier.position - len(data))

    def finish(self) -> Header:
        header = self._verifier.header
        if header is None or not self._verifier.complete:
            raise Conflict("not whole")
        os.fdatasync(self._fd)
        return header

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class SmallHub:
    """Federation and Access in one: who is who, leases, frames, a queue of orders."""

    directory: Path
    authority: Authority
    limit: int = 1 << 30
    revoked: set[str] = field(default_factory=set)
    readers: dict[str, set[str]] = field(default_factory=dict)  # digest -> sites
    leases: dict[str, str] = field(default_factory=dict)  # lease -> site
    frames: dict[str, Path] = field(default_factory=dict)
    plans: dict[str, v1.Plan] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)  # secret -> site
    holders: dict[str, KeptUpload] = field(default_factory=dict)
    orders: "asyncio.Queue[v1.Orders]" = field(default_factory=asyncio.Queue)
    reports: list[tuple[str, v1.Sealed]] = field(default_factory=list)
    moved: dict[tuple[str, str], int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def identify(self, certificate: bytes) -> str:
        subject = x509.load_der_x509_certificate(certificate).subject
        site = str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        if site in self.revoked:
            raise AuthError(f"the certificate of site {site!r} was revoked")
        return site

    async def offers(self, site: str, study: str) -> v1.SiteOffers:
        raise NotFound(f"no study {study!r}")

    async def enrol(self, request: v1.Enrol) -> v1.Enrolled:
        if self.secrets.get(request.secret) != request.site:
            raise AuthError("join token unknown, spent or expired")
        del self.secrets[request.secret]
        return self._certify(request.site, request.csr)

    async def renew(self, site: str, request: v1.Renew) -> v1.Enrolled:
        return self._certify(site, request.csr)

    def _certify(self, site: str, csr: bytes) -> v1.Enrolled:
        key = x509.load_der_x509_csr(csr).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return v1.Enrolled(
            self.authority.issue(site, key), self.authority.pem.encode(), bytes(32)
        )

    async def poll(self, site: str, poll: v1.Poll) -> v1.Orders:
        try:
            return await asyncio.wait_for(self.orders.get(), poll.wait)
        except TimeoutError:
            return v1.Orders()

    async def report(self, site: str, sealed: v1.Sealed) -> v1.Verdict:
        self.reports.append((site, sealed))
        return v1.Verdict(accepted=True)

    async def advertise(self, site: str, sealed: v1.Sealed) -> v1.Verdict:
        if sealed.payload == b"defect":
            raise ZeroDivisionError("a defect in the hub")
        return v1.Verdict(accepted=sealed.site == site)

    async def catalogue(self, site: str) -> v1.Catalogue:
        return v1.Catalogue(version=3)

    async def pool(self, site: str, method: str, path: str, body: bytes) -> object:
        raise NotFound(f"{site} pools nothing: {method} {path}, {len(body)} bytes")

    async def plan(self, site: str, digest: str) -> v1.Plan:
        try:
            return self.plans[digest]
        except KeyError:
            raise NotFound(f"no plan {digest}") from None

    def readable(self, site: str, digest: str) -> KeptFrame:
        if digest not in self.frames:
            raise NotFound(f"no frame {digest}")
        if site not in self.readers[digest]:
            raise Refused(f"site {site!r} has no task on {digest}")
        return KeptFrame(self.frames[digest])

    def upload(self, site: str, lease: str) -> KeptUpload:
        if self.leases.get(lease) != site:
            raise Refused(f"site {site!r} has no lease {lease!r}")
        return KeptUpload(self, lease)

    def count(self, site: str, way: str, bytes_: int) -> None:
        with self.lock:
            self.moved[site, way] = self.moved.get((site, way), 0) + bytes_

    def keep(self, path: Path, header: Header, *sites: str) -> str:
        self.frames[header.digest] = path
        self.readers[header.digest] = set(sites)
        return header.digest


@dataclass
class Bench:
    """A running small hub and what is needed to call it."""

    hub: SmallHub
    listener: NodeListener
    plane: BlobPlane
    port: int
    directory: Path
    log: list[str]

    def link(
        self,
        site: str = "north",
        port: int = 0,
        credentials: Credentials | None = None,
        proxy: str = "",
    ) -> HttpLink:
        """Return a link of a fresh node of `site`, through `port` where one is given."""
        shown = credentials or self.hub.authority.credentials(self.directory / site, site)
        return HttpLink(
            f"https://127.0.0.1:{port or self.port}",
            shown,
            random=lambda: 0.5,
            proxy=proxy,
            retry=QUICK,
        )


class _Lines:
    """Where log lines go."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines.append(text)

    def flush(self) -> None:
        pass


def make_log(lines: list[str]) -> Log:
    """Return a logger that appends to `lines`."""

    def keep(_logger: object, method: str, event: MutableMapping[str, Any]) -> str:
        lines.append(f"{method} {event}")
        raise structlog.DropEvent

    log: Log = structlog.wrap_logger(None, processors=[keep])
    return log


@asynccontextmanager
async def running(
    directory: Path,
    *,
    bounds: Bounds | None = None,
    timings: Timings | None = None,
    connections: int = 64,
    limit: int = 1 << 30,
) -> AsyncIterator[Bench]:
    """Run a small hub on a free port."""
    (directory / "spool").mkdir()
    authority = Authority()
    hub = SmallHub(directory / "spool", authority, limit)
    server = authority.credentials(
        directory / "server", "hub", hosts=("127.0.0.1", "localhost")
    )
    lines: list[str] = []
    log = make_log(lines)
    contexts = make_contexts(server.certificate, server.key, authority.pem)
    plane = BlobPlane(
        contexts.blob,
        hub.identify,
        hub,
        log,
        moved=hub.count,
        connections=connections,
        timings=timings,
    )
    listener = NodeListener(contexts, hub, hub, plane, log, bounds=bounds)
    port = await listener.start("127.0.0.1", 0)
    try:
        yield Bench(hub, listener, plane, port, directory, lines)
    finally:
        await listener.close(1.0)


class Relay:
    """A TCP relay in front of a port: counts bytes each way, and cuts lines on request.

    `cut_after(up, down)` ends the next lines once so many bytes went through, `times` times.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._cuts: list[tuple[int, int]] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self.up = self.down = self.lines = 0

    def cut_after(self, up: int = 1 << 60, down: int = 1 << 60, times: int = 1) -> None:
        self._cuts += [(up, down)] * times

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lines += 1
        up, down = self._cuts.pop(0) if self._cuts else (1 << 60, 1 << 60)
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, back}

        def add_up(count: int) -> int:
            self.up += count
            return self.up

        def add_down(count: int) -> int:
            self.down += count
            return self.down

        ways = (
            asyncio.ensure_future(_pump(reader, back, up, add_up)),
            asyncio.ensure_future(_pump(there, writer, down, add_down)),
        )
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for end in (writer, back):
            end.transport.abort()
            self._writers.discard(end)
        await asyncio.gather(*ways, return_exceptions=True)


async def _pump(
    source: asyncio.StreamReader,
    sink: asyncio.StreamWriter,
    most: int,
    count: Callable[[int], int],
) -> None:
    passed = 0
    while passed < most and (data := await source.read(65536)):
        sink.write(data)
        await sink.drain()
        passed += len(data)
        count(len(data))


class Connect:
    """An HTTP CONNECT proxy. `asked` holds the targets, `authorised` the credentials shown."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.authorised: list[str] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split("\r\n")[0].split(" ")
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        self.asked.append(f"{method} {target}")
        self.authorised.append(fields.get("Proxy-Authorization", ""))
        host, port = target.rsplit(":", 1)
        there, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        ways = [
            asyncio.ensure_future(_pump(reader, back, 1 << 60, lambda n: n)),
            asyncio.ensure_future(_pump(there, writer, 1 << 60, lambda n: n)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for end in (writer, back):
            end.transport.abort()
        await asyncio.gather(*ways, return_exceptions=True)
