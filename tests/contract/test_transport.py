"""The real listener and the real link over TLS sockets, with every way a line can go wrong."""

import asyncio
import contextlib
import datetime as dt
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from transport_kit import QUICK, Authority, Bench, Connect, Relay, running

from consilia.core.weights import Weights
from consilia.errors import (
    AuthError,
    ConfigError,
    NotFound,
    Refused,
    StorageError,
    TransferError,
    UpdateRejected,
    WireError,
)
from consilia.hub.blobplane import SITE_TRANSFERS
from consilia.hub.blobsession import Timings
from consilia.hub.listener import Bounds
from consilia.hub.pace import Pace
from consilia.node.line import Credentials, Retry, client_context, parse_proxy
from consilia.node.link import HttpLink, HubLink, enrol
from consilia.web.server import PeopleServer
from consilia.wire import frames, hello, v1
from consilia.wire.token import JoinToken

MB = 1 << 20
INVITE = "one-time"
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with running(tmp_path) as made:
        yield made


def model(megabytes: int, seed: int = 0, layers: int = 4) -> Weights:
    random = np.random.default_rng(seed)
    size = megabytes * MB // 4 // layers
    return {f"l{i}": random.standard_normal(size, dtype=np.float32) for i in range(layers)}


def offered(bench: Bench, megabytes: int, seed: int = 0) -> tuple[str, frames.Header]:
    """Put a model on the hub for site north."""
    path = bench.directory / f"model-{megabytes}-{seed}"
    header = frames.write(path, model(megabytes, seed))
    return bench.hub.keep(path, header, "north"), header


def update(bench: Bench, megabytes: int, lease: str = "job.1.0.north") -> tuple[str, Path]:
    """Give north a lease and a frame to send for it."""
    bench.hub.leases[lease] = "north"
    path = bench.directory / f"update-{megabytes}"
    header = frames.write(path, model(megabytes, seed=9))
    return header.digest, path


def csr(site: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def token(bench: Bench, secret: str = INVITE, site: str = "north") -> JoinToken:
    bench.hub.secrets.setdefault(INVITE, "north")
    return JoinToken(
        f"https://127.0.0.1:{bench.port}", bench.hub.authority.der, secret, site, 0.0
    )


# ---- messages --------------------------------------------------------------------------------


async def test_orders_reach_a_waiting_node(bench: Bench) -> None:
    link: HubLink = bench.link()
    poll = asyncio.create_task(link.poll(v1.Poll("session", wait=60)))
    while not bench.hub.orders._getters:  # type: ignore[attr-defined]
        await asyncio.sleep(0.005)
    start = time.perf_counter()
    bench.hub.orders.put_nowait(v1.Orders(catalogue=7))
    assert (await poll).catalogue == 7
    assert time.perf_counter() - start < 40  # of 60: a millisecond, where nothing else runs
    await link.close()


async def test_every_control_road(bench: Bench) -> None:
    link = bench.link()
    sealed = v1.Sealed("report", "north", b"payload", bytes(64))
    assert await link.poll(v1.Poll("s", wait=0.01)) == v1.Orders()
    assert (await link.report(sealed)).accepted
    assert bench.hub.reports == [("north", sealed)]
    assert (await link.advertise(sealed)).accepted
    assert (await link.catalogue()).version == 3
    plan = v1.Plan("p", {"p.py": "PLAN = 1"}, "p:PLAN")
    bench.hub.plans[v1.plan_digest(plan)] = plan
    assert await link.plan(v1.plan_digest(plan)) == plan
    assert b"BEGIN CERTIFICATE" in (await link.renew(v1.Renew(csr("north")))).certificate
    await link.close()


async def test_a_plan_that_the_hub_has_not(bench: Bench) -> None:
    link = bench.link()
    with pytest.raises(NotFound, match="the hub says: no plan"):
        await link.plan("sha256:" + "1" * 64)
    await link.close()


async def test_a_defect_in_the_hub_is_told_without_its_inside(bench: Bench) -> None:
    link = bench.link()
    with pytest.raises(TransferError, match="the hub failed; see its log") as caught:
        await link.advertise(v1.Sealed("advertisement", "north", b"defect", b""))
    assert "defect in the hub" not in str(caught.value)
    assert any("exc_info" in line for line in bench.log)
    assert (await link.catalogue()).version == 3
    await link.close()


async def raw(bench: Bench, request: bytes, alpn: str = hello.CONTROL) -> bytes:
    """Send bytes over a north node's TLS connection and return what comes back."""
    shown = bench.hub.authority.credentials(bench.directory / "raw", "north")
    context = client_context(alpn, bench.hub.authority.pem, shown)
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port, ssl=context)
    try:
        writer.write(request)
        async with asyncio.timeout(60):
            return await reader.read(65536)
    finally:
        writer.transport.abort()


async def test_bodies_over_the_limit_are_refused(bench: Bench) -> None:
    start = b"POST /v1/report HTTP/1.1\r\nHost: h\r\n"
    over = v1.MAX_MESSAGE + 1
    claimed = await raw(bench, start + b"Content-Length: %d\r\n\r\n" % over)
    assert claimed.startswith(b"HTTP/1.1 400") and b"limit" in claimed
    chunk = b"%x\r\n" % over + bytes(over) + b"\r\n"
    streamed = await raw(bench, start + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
    assert streamed.startswith(b"HTTP/1.1 400")
    garbage = await raw(bench, start + b"Content-Length: 3\r\n\r\n\xff\xfe\xfd")
    assert garbage.startswith(b"HTTP/1.1 400") and b"WireError" in garbage
    unknown = await raw(bench, b"GET /etc/passwd HTTP/1.1\r\nHost: h\r\n\r\n")
    assert unknown.startswith(b"HTTP/1.1 404")


# ---- who may come in -------------------------------------------------------------------------


async def refused(bench: Bench, credentials: Credentials | None, match: str) -> None:
    """Every road refuses, and says why."""
    digest, _ = offered(bench, 1)
    _, path = update(bench, 1)
    link = bench.link(credentials=credentials)
    with pytest.raises(AuthError, match=match):
        await link.catalogue()
    with pytest.raises(AuthError, match=match):
        await asyncio.to_thread(link.fetch, digest, bench.directory / "never")
    with pytest.raises(AuthError, match=match):
        await asyncio.to_thread(link.upload, "job.1.0.north", path)
    assert not (bench.directory / "never").exists()
    assert bench.hub.moved.get(("north", "out"), 0) == 0
    await link.close()


async def test_an_expired_certificate_is_refused(bench: Bench) -> None:
    until = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
    shown = bench.hub.authority.credentials(bench.directory / "old", "north", until)
    await refused(bench, shown, "it has expired; join again")


async def test_a_foreign_certificate_is_refused(bench: Bench) -> None:
    ca = bench.hub.authority.pem
    shown = Authority().credentials(bench.directory / "foreign", "north", ca=ca)
    await refused(bench, shown, "another authority issued it")


async def test_a_revoked_certificate_is_refused_on_the_next_request(bench: Bench) -> None:
    digest, _ = offered(bench, 1)
    link = bench.link()
    assert (await link.catalogue()).version == 3
    await asyncio.to_thread(link.fetch, digest, bench.directory / "before")
    bench.hub.revoked.add("north")
    with pytest.raises(AuthError, match="was revoked"):  # on the connections that are open
        await link.catalogue()
    with pytest.raises(AuthError, match="was revoked"):
        await asyncio.to_thread(link.fetch, digest, bench.directory / "after")
    await link.close()


async def test_a_poll_that_waits_is_not_answered_after_revocation(bench: Bench) -> None:
    link = bench.link()
    poll = asyncio.create_task(link.poll(v1.Poll("s", wait=20)))
    await asyncio.sleep(0.1)
    bench.hub.revoked.add("north")
    bench.hub.orders.put_nowait(v1.Orders(catalogue=7))
    with pytest.raises(AuthError, match="was revoked"):
        await poll
    await link.close()


async def test_no_certificate_is_refused(bench: Bench) -> None:
    for alpn in (hello.CONTROL, hello.BLOB, "h2", "something-else"):
        context = client_context(alpn, bench.hub.authority.pem, None)
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.port, ssl=context)
        writer.write(b"GET /v1/catalogue HTTP/1.1\r\nHost: h\r\n\r\n")
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert await reader.read() == b""
        writer.transport.abort()


async def test_an_impostor_of_the_hub_is_refused(bench: Bench) -> None:
    other = Authority().credentials(bench.directory / "other", "north")
    link = bench.link(credentials=other)  # it pins another CA
    with pytest.raises(AuthError, match="is not the hub this node joined"):
        await link.catalogue()
    with pytest.raises(AuthError, match="is not the hub this node joined"):
        await asyncio.to_thread(link.fetch, "b3:" + "0" * 64, bench.directory / "x")
    await link.close()


async def test_the_enrolment_road_leads_nowhere_else(bench: Bench) -> None:
    context = client_context(hello.ENROL, bench.hub.authority.pem, None)
    for line in (b"GET /v1/catalogue", b"POST /v1/poll", b"GET /v1/enrol", b"POST /v1/renew"):
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.port, ssl=context)
        writer.write(line + b" HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        assert b" 404 " in await reader.readline()
        writer.transport.abort()


async def test_enrolment_spends_a_token_and_its_certificate_works(bench: Bench) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    der = request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    enrolled = await enrol(token(bench), der, bytes(32))
    shown = bench.hub.authority.credentials(bench.directory / "new", "north")
    shown.certificate.write_bytes(enrolled.certificate)
    shown.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    link = bench.link(credentials=shown)
    assert (await link.catalogue()).version == 3
    await link.close()
    with pytest.raises(AuthError, match="unknown, spent or expired"):
        await enrol(JoinToken(token(bench).url, token(bench).ca, "spent", "north", 0), der, b"")


async def test_a_renewed_certificate_is_shown_without_a_restart(bench: Bench) -> None:
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=4)
    directory = bench.directory / "short"
    shown = bench.hub.authority.credentials(directory, "north", soon)
    link = bench.link(credentials=shown)
    assert (await link.catalogue()).version == 3
    fresh = bench.hub.authority.credentials(directory, "north")
    assert fresh == shown
    link.renewed()
    while dt.datetime.now(dt.UTC) <= soon:
        await asyncio.sleep(0.1)
    digest, _ = offered(bench, 1)
    await asyncio.to_thread(link.fetch, digest, bench.directory / "got")
    await link.close()


async def test_guessing_secrets_is_slowed(tmp_path: Path) -> None:
    async with running(tmp_path, bounds=Bounds(attempts=3)) as bench:
        for _ in range(3):
            with pytest.raises(AuthError):
                await enrol(token(bench, "guess"), csr("north"), bytes(32))
        with pytest.raises(Refused, match="wait a minute"):
            await enrol(token(bench), csr("north"), bytes(32))
        assert bench.hub.secrets == {INVITE: "north"}  # the real token was not spent
        assert not any(INVITE in line or "guess" in line for line in bench.log)


async def test_enrolment_through_a_wrong_ca_sends_nothing(bench: Bench) -> None:
    forged = JoinToken(token(bench).url, Authority().der, INVITE, "north", 0.0)
    with pytest.raises(AuthError, match="is not the hub"):
        await enrol(forged, csr("north"), bytes(32))
    assert INVITE in bench.hub.secrets


# ---- strangers -------------------------------------------------------------------------------


async def test_garbage_and_silence_block_nobody(tmp_path: Path) -> None:
    bounds = Bounds(hello=3.0, pending=8, handshake=3.0)
    async with running(tmp_path, bounds=bounds) as bench:
        silent = [socket.create_connection(("127.0.0.1", bench.port)) for _ in range(30)]
        for i, sock in enumerate(silent):
            sock.send(b"\x16\x03\x01\x02\x00"[: i % 6])  # the start of a hello, then nothing
        link = bench.link()
        start = time.perf_counter()
        assert (await link.catalogue()).version == 3
        assert time.perf_counter() - start < 9  # of 12, if it had to wait for their ends
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 3000, b"\x16\x03\x01\x00\x01\x02"):
            reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
            writer.write(noise)
            async with asyncio.timeout(60):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.transport.abort()
        for sock in silent:
            sock.settimeout(60)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.to_thread(sock.recv, 10) == b""  # all were dropped
            sock.close()
        assert (await link.catalogue()).version == 3
        await link.close()


async def test_a_site_that_asks_too_much_waits_its_turn_and_then_is_refused(
    tmp_path: Path,
) -> None:
    bounds = Bounds(others=(3.0, 5), queue=1.5)  # five at once, then three a second
    async with running(tmp_path, bounds=bounds) as bench:
        north, south = bench.link("north"), bench.link("south")
        begun = time.monotonic()
        for _ in range(10):
            await north.catalogue()
        assert time.monotonic() - begun >= 1.4  # five of them waited
        flood = [asyncio.ensure_future(north.catalogue()) for _ in range(30)]
        assert isinstance(await south.catalogue(), v1.Catalogue)  # another site has its own
        found = await asyncio.gather(*flood, return_exceptions=True)
        refused = [e for e in found if isinstance(e, TransferError)]
        assert 0 < len(refused) < len(found)  # those in the queue were answered
        assert len(refused) + sum(isinstance(a, v1.Catalogue) for a in found) == len(found)
        assert "too much at once" in str(refused[0])
        await asyncio.sleep(0.6)
        await north.catalogue()
        await north.close()
        await south.close()


def test_a_pace_gives_back_what_time_brings() -> None:
    pace = Pace(10.0, 3, 0.2)
    assert [pace.wait("a", 0.0) for _ in range(6)] == [0.0, 0.0, 0.0, 0.1, 0.2, None]
    assert pace.wait("a", 0.0) is None  # what is refused takes nothing
    assert pace.wait("b", 0.0) == 0.0
    assert pace.wait("a", 0.1) == pytest.approx(0.2)
    assert [pace.wait("a", 100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.1]  # never over 3


# the hub's own event loop is uvloop, the parts' other tests run on asyncio's
on_both_loops = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])


@on_both_loops
def test_one_certificate_holds_few_control_connections(tmp_path: Path, loop: NewLoop) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_one_certificate(tmp_path))


async def _one_certificate(tmp_path: Path) -> None:
    """Also one that was revoked, which no request of its own would give away."""
    async with running(tmp_path, bounds=Bounds(lines=2)) as bench:
        bench.hub.revoked = {"north"}
        shown = bench.hub.authority.credentials(tmp_path / "by-hand", "north")
        context = client_context(hello.CONTROL, bench.hub.authority.pem, shown)
        lines = []
        for _ in range(3):
            lines.append(
                await asyncio.open_connection(
                    "127.0.0.1", bench.port, ssl=context, server_hostname="127.0.0.1"
                )
            )
            await asyncio.sleep(0.1)
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                assert await lines[0][0].read() == b""
        for reader, _ in lines[1:]:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await reader.read()
        link = bench.link("south")
        assert (await link.catalogue()).version == 3
        await link.close()
        for _, writer in lines:
            writer.transport.abort()


@on_both_loops
def test_an_enrolment_that_says_nothing_ends(tmp_path: Path, loop: NewLoop) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_silent_enrolment(tmp_path))


async def _silent_enrolment(tmp_path: Path) -> None:
    """Whoever calls has proved nothing: their line ends, whatever the client makes of it."""
    async with running(tmp_path, bounds=Bounds(enrol=0.3)) as bench:
        context = client_context(hello.ENROL, bench.hub.authority.pem, None)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", bench.port, ssl=context, server_hostname="127.0.0.1"
        )
        writer.write(b"POST /v1/enrol HTTP/1.1\r\nHost: h\r\nX: ")  # and never the rest
        async with asyncio.timeout(4.5):  # aiohttp would end it after five seconds
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                assert await reader.read() == b""
        writer.transport.abort()


async def test_who_asks_for_nothing_keeps_no_place_at_the_peoples_port(tmp_path: Path) -> None:
    """Neither at once, nor after a request, with a second one that drips in."""
    authority = Authority()
    keys = authority.credentials(tmp_path, "hub", hosts=("127.0.0.1",))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(keys.certificate, keys.key)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for answer in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{answer}.complete"})
            return
        await asyncio.sleep(0.6)  # longer than a head may take: work is not cut short
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    people = PeopleServer(app, tls, connections=10, head=0.3)
    port = await people.start("127.0.0.1", 0)
    trust = ssl.create_default_context(cadata=authority.pem)
    for first in (b"", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
        async with asyncio.timeout(60):  # it is ended long before
            if first:
                writer.write(first)
                assert b"204" in await reader.readuntil(b"\r\n\r\n")
            for byte in b"GET / HTTP/1.1":
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                assert await reader.read() == b""
        writer.transport.abort()
    await people.stop(1.0)


async def test_a_hello_in_small_pieces_is_understood(bench: Bench) -> None:
    context = client_context(hello.CONTROL, bench.hub.authority.pem, None)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    for byte in outgoing.read():
        writer.write(bytes([byte]))
        await asyncio.sleep(0.001)
    async with asyncio.timeout(60):
        incoming.write(await reader.read(65536))
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    writer.transport.abort()


def blob_socket(bench: Bench) -> ssl.SSLSocket:
    """A blob connection of north, after its handshake."""
    shown = bench.hub.authority.credentials(bench.directory / "by-hand", "north")
    context = client_context(hello.BLOB, bench.hub.authority.pem, shown)
    sock = socket.create_connection(("127.0.0.1", bench.port), timeout=60)
    try:
        return context.wrap_socket(sock, server_hostname="127.0.0.1")
    except OSError:
        sock.close()
        raise


async def test_a_client_that_sends_nothing_after_its_handshake_blocks_nobody(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, connections=2) as bench:
        digest, _ = offered(bench, 1)
        idle = [await asyncio.to_thread(blob_socket, bench) for _ in range(4)]
        link = bench.link()
        await asyncio.to_thread(link.fetch, digest, tmp_path / "got")
        assert bench.plane.connections <= 2
        for tls in idle:
            tls.close()
        await link.close()


def drip(tls: ssl.SSLSocket, ended: threading.Event) -> None:
    """Announce an update and send a byte of it now and then."""
    with contextlib.suppress(OSError), tls:
        tls.sendall(put("/v1/uploads/job.1.0.north", 0, MB, MB, b"C"))
        while not ended.wait(0.05):
            tls.sendall(b"S")


async def test_a_body_that_drips_in_keeps_no_thread(tmp_path: Path) -> None:
    """Neither one that is refused (here the site is revoked) nor one that is wanted."""
    timings = Timings(drain=0.4, silence=0.4)
    async with running(tmp_path, connections=2, timings=timings) as bench:
        digest, _ = offered(bench, 1)
        bench.hub.readers[digest] = {"south"}
        ended = threading.Event()
        for revoked in ({"north"}, set[str]()):
            bench.hub.revoked, bench.hub.leases = revoked, {"job.1.0.north": "north"}
            lines = [await asyncio.to_thread(blob_socket, bench) for _ in range(2)]
            slow = [asyncio.create_task(asyncio.to_thread(drip, t, ended)) for t in lines]
            link = bench.link("south")
            async with asyncio.timeout(60):
                await asyncio.to_thread(link.fetch, digest, tmp_path / f"got{len(revoked)}")
            await link.close()
            async with asyncio.timeout(60):
                await asyncio.gather(*slow)


async def test_one_site_cannot_take_all_threads(tmp_path: Path) -> None:
    async with running(tmp_path, connections=SITE_TRANSFERS + 2) as bench:
        digest, _ = offered(bench, 1)
        bench.hub.readers[digest] = {"south"}
        bench.hub.leases = {"job.1.0.north": "north"}
        ended = threading.Event()
        with ThreadPoolExecutor(SITE_TRANSFERS + 2) as greedy:
            for _ in range(SITE_TRANSFERS + 2):
                greedy.submit(drip, await asyncio.to_thread(blob_socket, bench), ended)
            link = bench.link("south")
            try:
                async with asyncio.timeout(60):
                    await asyncio.to_thread(link.fetch, digest, tmp_path / "got")
            finally:
                ended.set()
                await link.close()


# ---- frames down -----------------------------------------------------------------------------


async def test_a_model_is_fetched_and_named_when_it_is_whole(bench: Bench) -> None:
    digest, header = offered(bench, 3)
    link, path = bench.link(), bench.directory / "cache" / "m"
    path.parent.mkdir()
    assert await asyncio.to_thread(link.fetch, digest, path) == header
    assert path.read_bytes() == bench.hub.frames[digest].read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["m"]
    before = dict(bench.hub.moved)
    assert await asyncio.to_thread(link.fetch, digest, path) == header  # it is there
    assert bench.hub.moved == before
    await link.close()


async def test_a_digest_authorises_nobody(bench: Bench) -> None:
    digest, _ = offered(bench, 1)
    other = bench.link("south")
    with pytest.raises(Refused, match="no task on"):
        await asyncio.to_thread(other.fetch, digest, bench.directory / "x")
    with pytest.raises(NotFound):
        await asyncio.to_thread(other.fetch, "b3:" + "0" * 64, bench.directory / "x")
    with pytest.raises(WireError, match="not a digest"):
        await asyncio.to_thread(other.fetch, "../../etc/passwd", bench.directory / "x")
    await other.close()


async def test_a_cut_download_goes_on_where_it_broke(bench: Bench) -> None:
    digest, header = offered(bench, 20)
    relay = Relay(bench.port)
    async with relay as port:
        relay.cut_after(down=6 * MB, times=2)
        link = bench.link(port=port)
        await asyncio.to_thread(link.fetch, digest, bench.directory / "m")
        await link.close()
    assert relay.lines == 3
    assert header.total_bytes < relay.down < header.total_bytes + 2 * MB
    assert (bench.directory / "m").stat().st_size == header.total_bytes


async def test_a_download_goes_on_after_the_agent_was_killed(bench: Bench) -> None:
    digest, header = offered(bench, 8)
    whole = bench.hub.frames[digest].read_bytes()
    (bench.directory / "m.part").write_bytes(whole[: 6 * MB])
    link = bench.link()
    await asyncio.to_thread(link.fetch, digest, bench.directory / "m")
    assert bench.hub.moved["north", "out"] == header.total_bytes - 6 * MB
    (bench.directory / "m").unlink()
    (bench.directory / "m.part").write_bytes(b"x" + whole[1 : 6 * MB])  # damaged: start anew
    await asyncio.to_thread(link.fetch, digest, bench.directory / "m")
    assert (bench.directory / "m").read_bytes() == whole
    await link.close()


async def test_layers_that_are_known_are_not_sent_again(bench: Bench) -> None:
    weights = model(16, layers=8)
    first = frames.write(bench.directory / "first", weights)
    weights["l3"] = weights["l3"] + np.float32(1)  # type: ignore[operator]
    second = frames.write(bench.directory / "second", weights)
    link = bench.link()
    for name, header in (("first", first), ("second", second)):
        bench.hub.keep(bench.directory / name, header, "north")
        await asyncio.to_thread(link.fetch, header.digest, bench.directory / f"c-{name}", ())
    sent = bench.hub.moved["north", "out"]
    (bench.directory / "c-second").unlink()
    have = [bench.directory / "gone", bench.directory / "c-first"]
    got = bench.directory / "c-second"
    await asyncio.to_thread(link.fetch, second.digest, got, have)
    assert got.read_bytes() == (bench.directory / "second").read_bytes()
    assert bench.hub.moved["north", "out"] - sent < 4 * MB  # one layer of 2 MB, and the probe
    got.unlink()
    with (bench.directory / "c-first").open("r+b") as damaged:
        damaged.seek(14 * MB)
        damaged.write(b"disk rot")
    await asyncio.to_thread(link.fetch, second.digest, got, have)
    assert got.read_bytes() == (bench.directory / "second").read_bytes()
    await link.close()


async def test_a_hub_that_sends_something_else(bench: Bench) -> None:
    digest, _ = offered(bench, 1)
    other, _ = offered(bench, 1, seed=5)
    bench.hub.frames[digest] = bench.hub.frames[other]
    link = bench.link()
    with pytest.raises(WireError, match="is not the expected"):
        await asyncio.to_thread(link.fetch, digest, bench.directory / "m")
    assert not (bench.directory / "m").exists()
    await link.close()


async def test_a_damaged_frame_never_gets_its_name(bench: Bench) -> None:
    digest, _ = offered(bench, 2)
    with bench.hub.frames[digest].open("r+b") as damaged:
        damaged.seek(MB)
        damaged.write(b"\0\0\0\0\0\0\0\0")
    link = bench.link()
    with pytest.raises(WireError, match="does not match its digest"):
        await asyncio.to_thread(link.fetch, digest, bench.directory / "m")
    assert not (bench.directory / "m").exists()
    await link.close()


async def test_two_who_want_the_same_model_share_one_transfer(bench: Bench) -> None:
    digest, header = offered(bench, 8)
    link, path = bench.link(), bench.directory / "m"
    both = await asyncio.gather(
        asyncio.to_thread(link.fetch, digest, path), asyncio.to_thread(link.fetch, digest, path)
    )
    assert list(both) == [header, header]
    assert bench.hub.moved["north", "out"] == header.total_bytes
    await link.close()


async def test_a_cache_that_cannot_be_written(bench: Bench) -> None:
    digest, _ = offered(bench, 1)
    link = bench.link()
    with pytest.raises(StorageError, match="cannot be written"):
        await asyncio.to_thread(link.fetch, digest, bench.directory / "no" / "m")
    await link.close()


async def test_a_line_that_stays_broken_is_given_up(bench: Bench) -> None:
    digest, _ = offered(bench, 2)
    relay = Relay(bench.port)
    async with relay as port:
        relay.cut_after(down=0, times=1000)
        shown = bench.hub.authority.credentials(bench.directory / "north", "north")
        link = HttpLink(
            f"https://127.0.0.1:{port}",
            shown,
            random=lambda: 0.5,
            retry=Retry(first=0.001, longest=0.002, attempts=5),
        )
        with pytest.raises(TransferError, match="tried 6 times"):
            await asyncio.to_thread(link.fetch, digest, bench.directory / "m")
        with pytest.raises(TransferError):
            await link.catalogue()
        await link.close()


async def test_closing_a_link_ends_transfers(bench: Bench) -> None:
    digest, _ = offered(bench, 1)
    relay = Relay(bench.port)
    async with relay as port:
        relay.cut_after(down=0, times=1000)
        shown = bench.hub.authority.credentials(bench.directory / "north", "north")
        slow = Retry(first=60.0, longest=60.0)
        link = HttpLink(f"https://127.0.0.1:{port}", shown, random=lambda: 0.5, retry=slow)
        running_fetch = asyncio.create_task(
            asyncio.to_thread(link.fetch, digest, bench.directory / "m")
        )
        await asyncio.sleep(0.3)
        await link.close()
        async with asyncio.timeout(30):  # of 60
            with pytest.raises(TransferError):
                await running_fetch


# ---- frames up -------------------------------------------------------------------------------


async def test_an_update_arrives_whole(bench: Bench) -> None:
    digest, path = update(bench, 3)
    link = bench.link()
    assert await asyncio.to_thread(link.upload, "job.1.0.north", path) == digest
    assert (bench.hub.directory / "job.1.0.north").read_bytes() == path.read_bytes()
    assert bench.hub.moved["north", "in"] == path.stat().st_size
    # the answer was lost, the node restarted: sending again costs no bytes
    assert await asyncio.to_thread(link.upload, "job.1.0.north", path) == digest
    assert bench.hub.moved["north", "in"] == path.stat().st_size
    await link.close()


async def test_a_cut_upload_goes_on_where_it_broke(bench: Bench) -> None:
    digest, path = update(bench, 20)
    relay = Relay(bench.port)
    async with relay as port:
        relay.cut_after(up=6 * MB, times=2)
        link = bench.link(port=port)
        assert await asyncio.to_thread(link.upload, "job.1.0.north", path) == digest
        await link.close()
    assert relay.lines == 3
    size = path.stat().st_size
    # each cut loses what was in flight; a restart would cost 12 MB more
    assert size < relay.up < size + 8 * MB
    assert size <= bench.hub.moved["north", "in"] < size + MB


async def test_uploads_of_others_and_strange_leases(bench: Bench) -> None:
    _, path = update(bench, 1)
    other = bench.link("south")
    with pytest.raises(Refused, match="has no lease"):
        await asyncio.to_thread(other.upload, "job.1.0.north", path)
    with pytest.raises(WireError, match="is not a lease"):
        await asyncio.to_thread(other.upload, "..", path)
    assert list(bench.hub.directory.iterdir()) == []
    await other.close()


async def test_an_update_with_nan_is_rejected_with_its_cause(bench: Bench) -> None:
    update(bench, 1)
    weights = model(4)
    weights["l2"][5] = np.nan
    frames.write(bench.directory / "nan", weights, check_finite=False)
    link = bench.link()
    with pytest.raises(UpdateRejected, match="'l2' holds NaN or infinity"):
        await asyncio.to_thread(link.upload, "job.1.0.north", bench.directory / "nan")
    await link.close()


async def test_an_update_over_the_limit_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, limit=2 * MB) as bench:
        _, path = update(bench, 3)
        link = bench.link()
        with pytest.raises(WireError, match=f"over the limit of {2 * MB}"):
            await asyncio.to_thread(link.upload, "job.1.0.north", path)
        await link.close()


def put(path: str, offset: int, total: int, length: int, body: bytes) -> bytes:
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: h\r\nUpload-Offset: {offset}\r\n"
        f"Upload-Length: {total}\r\nContent-Length: {length}\r\n\r\n"
    )
    return head.encode() + body


async def test_a_ten_gigabyte_header_is_refused_from_its_first_bytes(bench: Bench) -> None:
    update(bench, 1)
    head = b"CSLFRM1\n" + (0xFFFFFFFF).to_bytes(4, "little")
    answer = await raw(bench, put("/v1/uploads/job.1.0.north", 0, 12, 12, head), hello.BLOB)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"over the limit" in answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x00\xff\x00\xff\r\n\r\n", 400),
        (b"GET /v1/blobs/x HTTP/1.1\r\n" + b"a" * 9000, 400),
        (b"POST /v1/uploads/x HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        (b"GET /v1/other HTTP/1.1\r\n\r\n", 404),
        (put("/v1/uploads/job.1.0.north", 5, 4, 0, b""), 400),
        (put("/v1/uploads/job.1.0.north", 7, 20, 3, b"abc"), 409),
        (b"PUT /v1/uploads/job.1.0.north HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        (b"PUT /v1/uploads/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"PUT /v1/uploads/a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /v1/blobs/x HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd", 400),
    ],
)
async def test_requests_that_break_the_law(bench: Bench, request_: bytes, status: int) -> None:
    update(bench, 1)
    answer = await raw(bench, request_, hello.BLOB)
    assert answer.startswith(b"HTTP/1.1 %d" % status), answer[:100]


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [
        (b"bytes=0-", 206, (0, None)),
        (b"bytes=10-19", 206, (10, 20)),
        (b"bytes=10-999999999", 206, (10, None)),
        (b"bytes=999999999-", 416, None),
        (b"bytes=20-10", 416, None),
        (b"bytes=-5", 416, None),
        (b"bytes=0-1,3-4", 416, None),
    ],
)
async def test_ranges(
    bench: Bench, asked: bytes, status: int, span: tuple[int, int | None] | None
) -> None:
    path = bench.directory / "small"
    header = frames.write(path, {"a": np.ones(50, "<f4")})
    digest = bench.hub.keep(path, header, "north")
    line = f"GET /v1/blobs/{digest} HTTP/1.1\r\nConnection: close\r\n".encode()
    answer = await raw(bench, line + b"Range: " + asked + b"\r\n\r\n", hello.BLOB)
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    if span is not None:
        expected = path.read_bytes()[slice(*span)]
        length = re.search(rb"Content-Length: (\d+)", answer)
        assert length and int(length[1]) == len(expected)


async def test_a_returning_node_takes_its_upload_over(bench: Bench) -> None:
    """A half-dead line still holds the upload; the node comes back on a new one."""
    digest, path = update(bench, 8)
    body = path.read_bytes()
    with await asyncio.to_thread(blob_socket, bench) as half:
        start = put("/v1/uploads/job.1.0.north", 0, len(body), len(body), body[: 3 * MB])
        await asyncio.to_thread(half.sendall, start)
        link = bench.link()
        assert await asyncio.to_thread(link.upload, "job.1.0.north", path) == digest
        await link.close()


# ---- between ---------------------------------------------------------------------------------


async def test_a_proxys_password_is_in_no_error(bench: Bench) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        link = bench.link(proxy=f"http://ward:secret@127.0.0.1:{port}")
        with pytest.raises(TransferError, match="407") as control:
            await link.catalogue()
        with pytest.raises(TransferError, match="407") as blob:
            await asyncio.to_thread(link.fetch, "b3:" + "0" * 64, bench.directory / "m")
        await link.close()
    assert "secret" not in f"{control.value}{blob.value}"


async def test_through_a_connect_proxy(bench: Bench) -> None:
    digest, _ = offered(bench, 2)
    sent, path = update(bench, 2)
    proxy = Connect()
    async with proxy as port:
        way = f"http://ward:p%40ss@127.0.0.1:{port}"
        enrolled = await enrol(token(bench), csr("north"), bytes(32), proxy=way)
        assert enrolled.certificate
        link = bench.link(proxy=way)
        assert (await link.catalogue()).version == 3
        await asyncio.to_thread(link.fetch, digest, bench.directory / "m")
        assert await asyncio.to_thread(link.upload, "job.1.0.north", path) == sent
        await link.close()
    assert set(proxy.asked) == {f"CONNECT 127.0.0.1:{bench.port}"}
    assert len(proxy.asked) == 3  # enrol, control, and one kept blob connection
    assert set(proxy.authorised) == {"Basic d2FyZDpwQHNz"}


@pytest.mark.parametrize("url", ["socks5://h:1", "http://h", "h:1", "http://:1", "http://h:x"])
def test_proxies_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ConfigError, match="proxy must have the form"):
        parse_proxy(url)


async def test_connections_are_kept(bench: Bench) -> None:
    digest, _ = offered(bench, 1)
    relay = Relay(bench.port)
    async with relay as port:
        link = bench.link(port=port)
        for i in range(5):
            await asyncio.to_thread(link.fetch, digest, bench.directory / f"m{i}")
            await link.catalogue()
        await link.close()
    assert relay.lines == 2


async def test_a_kept_connection_that_the_hub_closed_costs_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, timings=Timings(idle=0.2)) as bench:
        digest, _ = offered(bench, 1)
        link = bench.link()
        await asyncio.to_thread(link.fetch, digest, tmp_path / "m1")
        async with asyncio.timeout(60):
            while bench.plane.connections:
                await asyncio.sleep(0.05)
        await asyncio.to_thread(link.fetch, digest, tmp_path / "m2")
        await link.close()


async def test_more_nodes_than_threads(tmp_path: Path) -> None:
    """Idle connections give way; nobody is turned down."""
    async with running(tmp_path, connections=3) as bench:
        path = tmp_path / "small"
        header = frames.write(path, model(1))
        sites = [f"site{i}" for i in range(12)]
        digest = bench.hub.keep(path, header, *sites)
        links = [bench.link(site) for site in sites]
        for turn in range(2):
            await asyncio.gather(
                *(
                    asyncio.to_thread(link.fetch, digest, tmp_path / f"m{turn}-{i}")
                    for i, link in enumerate(links)
                )
            )
            assert bench.plane.connections <= 3
        for link in links:
            await link.close()


async def test_polls_are_quick_while_models_travel(bench: Bench) -> None:
    digest, _ = offered(bench, 40)
    link = bench.link()
    done = threading.Event()

    def carry() -> None:
        for i in range(2):
            link.fetch(digest, bench.directory / f"m{i}")
        done.set()

    carrying = asyncio.create_task(asyncio.to_thread(carry))
    polls = 0
    while not done.is_set():
        bench.hub.orders.put_nowait(v1.Orders(catalogue=1))
        await link.poll(v1.Poll("s", wait=60))
        polls += 1
    await carrying
    assert polls > 10, "they waited for the models"
    await link.close()


async def test_closing_the_listener_ends_what_is_open(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        link = bench.link()
        poll = asyncio.create_task(link.poll(v1.Poll("s", wait=60)))
        digest, _ = offered(bench, 1)
        await asyncio.to_thread(link.fetch, digest, tmp_path / "m")
        await asyncio.sleep(0.1)
        start = time.perf_counter()
        await bench.listener.close(0.5)
        assert time.perf_counter() - start < 40  # of 60
        with pytest.raises(TransferError):
            await poll
        assert bench.plane.connections == 0
        await link.close()


def test_retry_delays_grow_and_stay_bounded() -> None:
    delays = [QUICK.delay(n, 1.0) for n in range(1, 6)]
    assert delays == pytest.approx([0.01, 0.02, 0.04, 0.05, 0.05])
    assert QUICK.delay(10_000, 0.0) == pytest.approx(0.025)
