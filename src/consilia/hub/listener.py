"""The one port that nodes call: three roads told apart before the handshake.

    accept -> peek at the ClientHello -> ALPN consilia-enrol/1  server TLS, POST /v1/enrol only
                                         ALPN consilia-blob/1   mutual TLS, hub.blobplane
                                         anything else          mutual TLS, the control routes

A road is only a way in: each demands its own proof, so naming another gains a caller nothing.
On the control road TLS verifies the certificate and every request asks `Access` again whom it
belongs to, and once more when a long poll answers: revocation works on the next request.

Whoever has not proved anything yet can hold little: the hello has a deadline and a bounded
number of waiting sockets (the oldest gives way), an enrolment has a deadline, a small body and
a limit of failed attempts by address. A certificate, be it a revoked one, holds a bounded
number of control connections (the oldest gives way). What a site asks is paced: beyond a
burst its requests wait their turn, and beyond a queue they are refused.
"""

import asyncio
import contextlib
import hashlib
import socket
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
from aiohttp import web

from consilia.errors import (
    AuthError,
    ConfigError,
    ConsiliaError,
    NotFound,
    Refused,
    StorageError,
    TransferError,
    WireError,
)
from consilia.hub.blobplane import BlobPlane
from consilia.hub.pace import Attempts, Pace
from consilia.hub.telemetry import Log
from consilia.wire import hello, v1
from consilia.wire.problem import problem

T = TypeVar("T")
MESSAGE = "application/msgpack"
MAX_ENROL = 64 << 10  # bytes of an enrolment


class Access(Protocol):
    """Who is who; see hub.access."""

    def identify(self, certificate: bytes) -> str:
        """Return the site of a verified certificate (DER); raise AuthError."""

    async def enrol(self, request: v1.Enrol) -> v1.Enrolled:
        """Redeem a join token's secret."""

    async def renew(self, site: str, request: v1.Renew) -> v1.Enrolled:
        """Certify a site's new key."""


class Federation(Protocol):
    """What nodes may ask; see hub.federation."""

    async def poll(self, site: str, poll: v1.Poll) -> v1.Orders:
        """Wait for orders."""

    async def report(self, site: str, sealed: v1.Sealed) -> v1.Verdict:
        """Take a report."""

    async def advertise(self, site: str, sealed: v1.Sealed) -> v1.Verdict:
        """Take an advertisement."""

    async def catalogue(self, site: str) -> v1.Catalogue:
        """Tell which studies and plans concern the site."""

    async def offers(self, site: str, study: str) -> v1.SiteOffers:
        """Tell what the sites of a study offer it."""

    async def plan(self, site: str, digest: str) -> v1.Plan:
        """Give a plan's source."""

    async def pool(self, site: str, method: str, path: str, body: bytes) -> object:
        """Answer what a site asks about pooled datasets."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """The TLS settings of the three roads."""

    enrol: ssl.SSLContext
    control: ssl.SSLContext
    blob: ssl.SSLContext


def make_contexts(chain: Path, key: Path, ca: str) -> Contexts:
    """Return the roads' TLS 1.3 settings: the hub's certificate chain and key, the CA (PEM)."""

    def context(alpn: str, *, mutual: bool) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.set_alpn_protocols([alpn])
        made.num_tickets = 0  # nodes keep connections; a ticket would outlive a revocation
        try:
            made.load_cert_chain(chain, key)
        except (OSError, ssl.SSLError) as e:
            raise ConfigError(
                f"the hub's certificate {chain} or key cannot be used: {e}"
            ) from e
        if mutual:
            made.verify_mode = ssl.CERT_REQUIRED
            made.verify_flags |= ssl.VERIFY_X509_STRICT
            made.load_verify_locations(cadata=ca)
        return made

    return Contexts(
        enrol=context(hello.ENROL, mutual=False),
        control=context(hello.CONTROL, mutual=True),
        blob=context(hello.BLOB, mutual=True),
    )


@dataclass(frozen=True, slots=True)
class Bounds:
    """What strangers may hold. Times in seconds."""

    hello: float = 5.0
    pending: int = 256  # sockets whose hello is awaited
    handshake: float = 10.0
    enrol: float = 30.0  # of a whole enrolment connection
    enrolling: int = 32  # such connections at once
    attempts: int = 10  # failed enrolments in a minute by one address
    body: float = 60.0  # until a control request's body is in
    lines: int = 64  # control connections of one certificate; a node opens at most 16
    rounds: tuple[float, int] = (1000.0, 4000)  # polls and reports: a second, and at once
    others: tuple[float, int] = (20.0, 1000)  # advertisements, catalogues, plans, renewals
    queue: float = 10.0  # seconds of a site's requests that may wait their turn


class NodeListener:
    """Accepts node connections on one port and sends each down its road."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        contexts: Contexts,
        access: Access,
        federation: Federation,
        plane: BlobPlane,
        log: Log,
        *,
        bounds: Bounds | None = None,
        head: Callable[[], Awaitable[v1.Sealed]] | None = None,
    ) -> None:
        """`plane` is closed with the listener; `head()` is the signed head of the audit."""
        self._contexts = contexts
        self._access = access
        self._federation = federation
        self._plane = plane
        self._log = log
        self._bounds = bounds or Bounds()
        self._head = head
        self._attempts = Attempts(self._bounds.attempts)
        self._rounds = Pace(*self._bounds.rounds, self._bounds.queue)
        self._others = Pace(*self._bounds.others, self._bounds.queue)
        self._pending: OrderedDict[asyncio.Task[None], None] = OrderedDict()
        self._enrolling: set[asyncio.Transport] = set()
        self._lines: dict[bytes, list[asyncio.Transport]] = {}  # by certificate's digest
        self._sockets: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int) -> int:
        """Listen on `host` and `port` (0: any free one) and return the port."""
        self._control = web.Server(
            self._answer_control,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
        )
        self._enrol = web.Server(
            self._answer_enrol, access_log=None, auto_decompress=False, keepalive_timeout=5
        )
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, kind, protocol, _, address in found[:1] if port == 0 else found:
                self._sockets.append(_listen(family, kind, protocol, address))
        except OSError as e:
            for made in self._sockets:
                made.close()
            raise StorageError(f"cannot listen on {host}:{port}: {e.strerror or e}") from e
        self._tasks = [loop.create_task(self._accept(s)) for s in self._sockets]
        return int(self._sockets[0].getsockname()[1])

    async def close(self, patience: float = 3.0) -> None:
        """Stop accepting, let running requests end for `patience` seconds, then cut."""
        for task in (*self._tasks, *self._pending):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._pending, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        self._control.pre_shutdown()
        self._enrol.pre_shutdown()
        await asyncio.gather(
            self._control.shutdown(patience),
            self._enrol.shutdown(patience),
            asyncio.to_thread(self._plane.close, patience),
        )

    # ---- from accept to a road ---------------------------------------------------------------

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listening)
            except OSError as e:  # out of descriptors: those in use must end first
                self._log.error("accept failed", cause=str(e))
                await asyncio.sleep(0.2)
                continue
            while len(self._pending) >= self._bounds.pending:
                oldest, _ = self._pending.popitem(last=False)
                oldest.cancel()
            arrival = _Arrival(sock, str(address[0]))
            task = loop.create_task(self._direct(arrival))
            self._pending[task] = None
            task.add_done_callback(arrival.end)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._pending.pop(task, None)

    async def _direct(self, arrival: "_Arrival") -> None:
        """Peek at the hello and hand the socket over; what goes wrong ends this one only."""
        sock, peer = arrival.sock, arrival.peer
        try:
            sock.setblocking(False)
            async with asyncio.timeout(self._bounds.hello):
                names = await _peek(sock)
            arrival.handed = True
            if hello.BLOB in names:
                self._plane.adopt(sock, peer)
            elif hello.ENROL in names:
                await self._direct_enrol(sock)
            else:
                self._keep(await self._handshake(sock, self._control, self._contexts.control))
        except TimeoutError:
            self._log.info("connection dropped", peer=peer, cause="no TLS hello in time")
        except (ConsiliaError, OSError) as e:  # ssl.SSLError is an OSError
            self._log.info("connection refused", peer=peer, cause=str(e) or type(e).__name__)

    async def _direct_enrol(self, sock: socket.socket) -> None:
        if len(self._enrolling) >= self._bounds.enrolling:
            sock.close()
            raise Refused("too many enrolments at once")
        transport = await self._handshake(sock, self._enrol, self._contexts.enrol)
        self._enrolling.add(transport)

        def end() -> None:
            self._enrolling.discard(transport)
            transport.abort()

        asyncio.get_running_loop().call_later(self._bounds.enrol, end)

    def _keep(self, transport: asyncio.Transport) -> None:
        """Count a control connection in; the oldest of too many of one certificate ends."""
        secured = transport.get_extra_info("ssl_object")
        certificate = secured.getpeercert(True) if secured else None
        if certificate is None:
            return  # it has just ended
        key = hashlib.sha256(certificate).digest()
        held = [t for t in self._lines.get(key, ()) if not t.is_closing()]
        if len(held) >= self._bounds.lines:
            held.pop(0).abort()
        self._lines[key] = [*held, transport]

    async def _handshake(
        self, sock: socket.socket, server: web.Server, context: ssl.SSLContext
    ) -> asyncio.Transport:
        # Of this form, not of this class: uvloop's transports are none of asyncio's.
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(
            server,
            sock,
            ssl=context,
            ssl_handshake_timeout=self._bounds.handshake,
            ssl_shutdown_timeout=2.0,
        )
        return transport

    # ---- requests ----------------------------------------------------------------------------

    async def _answer_enrol(self, request: web.BaseRequest) -> web.StreamResponse:
        peer = str(request.remote)
        now = asyncio.get_running_loop().time()

        async def enrol() -> v1.Enrolled:
            if (request.method, request.path) != ("POST", "/v1/enrol"):
                raise NotFound(
                    "only POST /v1/enrol is here; a node's certificate opens the rest"
                )
            if self._attempts.spent(peer, now):
                raise Refused("too many failed enrolments from this address; wait a minute")
            asked = await self._body(request, v1.Enrol, MAX_ENROL)
            try:
                return await asyncio.shield(self._access.enrol(asked))
            except AuthError:
                self._attempts.failed(peer, now)
                raise

        return await self._reply(request, enrol)

    async def _answer_control(self, request: web.BaseRequest) -> web.StreamResponse:
        async def answer() -> object:
            site = self._identify(request)
            reply = await self._route(request, site)
            self._identify(request)  # it may have been revoked while a poll waited
            return reply

        return await self._reply(request, answer)

    async def _turn(self, request: web.BaseRequest, site: str) -> None:
        """Return when it is the site's turn; TransferError when too many wait already."""
        often = request.path in ("/v1/poll", "/v1/report")
        pace = self._rounds if often else self._others
        wait = pace.wait(site, asyncio.get_running_loop().time())
        if wait is None:
            raise TransferError(
                f"site {site!r} has asked for too much at once; ask again a little later"
            )
        if wait:
            await asyncio.sleep(wait)

    async def _catalogue(self, site: str) -> v1.Catalogue:
        found = await self._federation.catalogue(site)
        if self._head is None:
            return found
        return msgspec.structs.replace(found, head=await self._head())

    async def _route(self, request: web.BaseRequest, site: str) -> object:
        federation, path = self._federation, request.path
        await self._turn(request, site)
        match request.method, path:
            case "POST", "/v1/poll":
                return await federation.poll(site, await self._body(request, v1.Poll))
            case "POST", "/v1/report":
                sealed = await self._body(request, v1.Sealed)
                return await asyncio.shield(federation.report(site, sealed))
            case "POST", "/v1/advertise":
                sealed = await self._body(request, v1.Sealed)
                return await asyncio.shield(federation.advertise(site, sealed))
            case "POST", "/v1/renew":
                renew = await self._body(request, v1.Renew, MAX_ENROL)
                return await asyncio.shield(self._access.renew(site, renew))
            case ("GET" | "PUT") as method, _ if path.startswith("/v1/pool"):
                piece = await self._body(request, bytes) if method == "PUT" else b""
                return await federation.pool(site, method, path, piece)
            case "GET", _:
                return await self._told(site, path)
        raise _elsewhere(request.method, path)

    async def _told(self, site: str, path: str) -> object:
        """Answer what a site only reads."""
        match path.split("/"):
            case "", "v1", "catalogue":
                return await self._catalogue(site)
            case "", "v1", "offers", study:
                return await self._federation.offers(site, study[:80])
            case "", "v1", "plans", digest:
                return await self._federation.plan(site, digest[:80])
        raise _elsewhere("GET", path)

    def _identify(self, request: web.BaseRequest) -> str:
        transport = request.transport
        secured = transport.get_extra_info("ssl_object") if transport else None
        certificate = secured.getpeercert(True) if secured else None
        if certificate is None:
            raise AuthError("no node certificate on this connection")
        return self._access.identify(certificate)

    async def _body(
        self, request: web.BaseRequest, kind: type[T], limit: int = v1.MAX_MESSAGE
    ) -> T:
        """Read and decode a body of at most `limit` bytes."""
        if (request.content_length or 0) > limit:
            raise WireError(f"message of {request.content_length} bytes, limit {limit}")
        body = bytearray()
        try:
            async with asyncio.timeout(self._bounds.body):
                while piece := await request.content.readany():
                    body += piece
                    if len(body) > limit:
                        raise WireError(f"message over the limit of {limit} bytes")
        except TimeoutError:
            raise WireError(f"body not complete after {self._bounds.body:g} seconds") from None
        return v1.decode(bytes(body), kind, limit)

    async def _reply(
        self, request: web.BaseRequest, answer: Callable[[], Awaitable[object]]
    ) -> web.Response:
        """Answer with a record, or with the Problem that stands for what went wrong."""
        try:
            return web.Response(body=v1.encode(await answer()), content_type=MESSAGE)
        except ConsiliaError as e:
            status, told = problem(e)
            write = self._log.error if status >= 500 else self._log.info
            write(
                "node request refused",
                peer=request.remote,
                path=request.path[:80],
                error=told.error,
                cause=str(e)[:500],
            )
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            self._log.error("node request failed", path=request.path[:80], exc_info=True)
            status, told = 500, v1.Problem("InternalError", "the hub failed; see its log")
        response = web.Response(status=status, body=v1.encode(told), content_type=MESSAGE)
        if status in (400, 401, 429):
            response.force_close()  # what else is on this line need not be read
        return response


def _elsewhere(method: str, path: str) -> NotFound:
    return NotFound(f"{method} {path[:80]!r} is not on the control road")


class _Arrival:
    """An accepted socket until somebody else owns it."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        self.handed = False

    def end(self, _task: object) -> None:
        """Close what nobody took: also when the task was cancelled before its first step."""
        if not self.handed:
            self.sock.close()


def _listen(
    family: int, kind: int, protocol: int, address: tuple[str | int | bytes, ...]
) -> socket.socket:
    # Named explicitly: asyncio sets TCP_NODELAY only on sockets that say they are TCP.
    made = socket.socket(family, kind, protocol or socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(512)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


async def _peek(sock: socket.socket) -> tuple[str, ...]:
    """Return the ALPN names of a socket's ClientHello and leave its bytes where they are.

    SO_RCVLOWAT makes the kernel wake us only when the bytes asked for are there (or the line
    has ended): a hello that drips in costs no spinning.
    """
    need = 5
    while True:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, need)
        await _readable(sock)
        data = sock.recv(need, socket.MSG_PEEK)
        found = hello.alpn(data)
        if not isinstance(found, int):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return found
        if len(data) < need:
            raise WireError("line closed within the TLS hello")
        need = found


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    descriptor = sock.fileno()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        with contextlib.suppress(OSError, ValueError):
            loop.remove_reader(descriptor)
