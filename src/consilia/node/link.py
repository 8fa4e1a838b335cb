"""The node's link to its hub: what the agent may ask, and how it travels over HTTPS.

The agent knows `HubLink` only. `HttpLink` is the real one: small messages on aiohttp, tensor
frames on blocking threads (node.blobline), both over TLS 1.3 with the node's certificate, both
through an HTTP CONNECT proxy where the site has one. The node always calls out.

Errors: TransferError when the line fails (ask again later), AuthError when the hub does not
know the node or is not the hub it joined, else what the hub answered, as the error it named.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import aiohttp

from consilia.errors import AuthError, ConfigError, StorageError, TransferError, WireError
from consilia.node.blobline import BlobLine
from consilia.node.line import Credentials, Retry, client_context, line_error, parse_proxy
from consilia.wire import hello, pool, v1
from consilia.wire.frames import Header
from consilia.wire.problem import error_of
from consilia.wire.token import JoinToken, split_url

T = TypeVar("T")
ANSWER = 60.0  # seconds for an answer that waits for nothing
CONNECT = 15.0  # seconds to reach the hub
FRAME_LIMIT = 64 << 30  # bytes of one model


class HubLink(Protocol):
    """What a node asks of its hub. `fetch` and `upload` block: call them from a thread."""

    async def poll(self, poll: v1.Poll) -> v1.Orders:
        """Wait up to `poll.wait` seconds for orders."""

    async def report(self, sealed: v1.Sealed) -> v1.Verdict:
        """Report on a lease; repeating it is harmless."""

    async def advertise(self, sealed: v1.Sealed) -> v1.Verdict:
        """Tell the site's public state."""

    async def catalogue(self) -> v1.Catalogue:
        """Return the studies and plans that concern the site."""

    async def plan(self, digest: str) -> v1.Plan:
        """Return what the hub sends as plan `digest`; node.approvals checks and audits it."""

    async def renew(self, renew: v1.Renew) -> v1.Enrolled:
        """Ask for a new certificate."""

    def fetch(self, digest: str, path: Path, have: Sequence[Path] = ()) -> Header:
        """Bring frame `digest` to `path`, verified; `have` are cached frames to copy from."""

    def upload(self, lease: str, path: Path) -> str:
        """Send the frame at `path` for a lease; return its digest as the hub found it."""

    async def close(self) -> None:
        """End every connection; calls under way raise TransferError."""


class HttpLink:
    """A HubLink over HTTPS. Made anywhere; its async methods belong to one event loop."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        url: str,
        credentials: Credentials,
        *,
        random: Callable[[], float],
        proxy: str = "",
        retry: Retry | None = None,
        frame_limit: int = FRAME_LIMIT,
    ) -> None:
        """`url` is the hub's node listener, `random` gives numbers in [0, 1)."""
        host, port = split_url(url)
        way = parse_proxy(proxy)
        try:
            ca = credentials.ca.read_text("ascii")
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"the hub's CA {credentials.ca} cannot be read: {e}") from None
        self._credentials = credentials
        self._contexts = [
            client_context(alpn, ca, credentials) for alpn in (hello.CONTROL, hello.BLOB)
        ]
        self._control = _Control(
            f"https://{host}:{port}", self._contexts[0], proxy, self._refusal
        )
        self._blobs = BlobLine(
            (host, port),
            self._contexts[1],
            way,
            retry=retry or Retry(),
            random=random,
            frame_limit=frame_limit,
        )

    async def poll(self, poll: v1.Poll) -> v1.Orders:
        """Wait up to `poll.wait` seconds for orders."""
        return await self._control.call(
            "POST", "/v1/poll", v1.Orders, poll, patience=poll.wait + ANSWER / 2
        )

    async def report(self, sealed: v1.Sealed) -> v1.Verdict:
        """Report on a lease; repeating it is harmless."""
        return await self._control.call("POST", "/v1/report", v1.Verdict, sealed)

    async def advertise(self, sealed: v1.Sealed) -> v1.Verdict:
        """Tell the site's public state."""
        return await self._control.call("POST", "/v1/advertise", v1.Verdict, sealed)

    async def catalogue(self) -> v1.Catalogue:
        """Return the studies and plans that concern the site."""
        return await self._control.call("GET", "/v1/catalogue", v1.Catalogue)

    async def plan(self, digest: str) -> v1.Plan:
        """Return what the hub sends as plan `digest`; node.approvals checks and audits it."""
        return await self._control.call("GET", f"/v1/plans/{digest}", v1.Plan)

    async def offers(self, study: str) -> v1.SiteOffers:
        """Return what the sites of a study offer it; NotFound when it invites not this one."""
        return await self._control.call("GET", f"/v1/offers/{study}", v1.SiteOffers)

    async def pool_board(self) -> pool.Board:
        """Return what this site's partners have said of pooled datasets."""
        return await self._control.call("GET", "/v1/pool", pool.Board)

    async def pool_have(self, place: str) -> pool.Pieces:
        """Return which pieces of an upload, named as study/site/upload, the hub has."""
        return await self._control.call("GET", f"/v1/pool/{place}", pool.Pieces)

    async def pool_put(self, place: str, number: int, piece: bytes) -> None:
        """Leave a piece of this site's upload at the hub; repeating it is harmless."""
        await self._control.call("PUT", f"/v1/pool/{place}/{number}", pool.Pieces, piece)

    async def pool_get(self, place: str, number: int) -> bytes:
        """Return a piece of an upload to this data centre."""
        return await self._control.call("GET", f"/v1/pool/{place}/{number}", bytes)

    async def renew(self, renew: v1.Renew) -> v1.Enrolled:
        """Ask for a new certificate; store it, then call `renewed`."""
        return await self._control.call("POST", "/v1/renew", v1.Enrolled, renew)

    def renewed(self) -> None:
        """Show the certificate that now lies in the credentials' files on new connections."""
        for context in self._contexts:
            try:
                context.load_cert_chain(self._credentials.certificate, self._credentials.key)
            except (OSError, ssl.SSLError) as e:
                raise StorageError(f"the renewed certificate cannot be used: {e}") from e
        self._blobs.renewed()

    def fetch(self, digest: str, path: Path, have: Sequence[Path] = ()) -> Header:
        """Bring frame `digest` to `path`, verified; `have` are cached frames to copy from."""
        return self._blobs.fetch(digest, path, have)

    def upload(self, lease: str, path: Path) -> str:
        """Send the frame at `path` for a lease; return its digest as the hub found it."""
        return self._blobs.upload(lease, path)

    def _refusal(self) -> AuthError | None:
        return self._blobs.refusal()

    async def close(self) -> None:
        """End every connection; calls under way raise TransferError."""
        self._blobs.close()
        await self._control.close()


async def enrol(
    token: JoinToken, csr: bytes, signing_key: bytes, *, proxy: str = ""
) -> v1.Enrolled:
    """Redeem a join token: have the key behind `csr` (PKCS#10 DER) certified.

    Only the CA in the token is trusted. Raises AuthError when the token is spent or expired.
    """
    host, port = split_url(token.url)
    parse_proxy(proxy)
    context = client_context(hello.ENROL, ssl.DER_cert_to_PEM_cert(token.ca), None)
    control = _Control(f"https://{host}:{port}", context, proxy)
    try:
        asked = v1.Enrol(token.site, token.secret, csr, signing_key)
        return await control.call("POST", "/v1/enrol", v1.Enrolled, asked, repeat=False)
    finally:
        await control.close()


class _Control:
    """Small messages on kept-alive connections."""

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext,
        proxy: str,
        refusal: Callable[[], AuthError | None] = lambda: None,
    ) -> None:
        """`refusal` (blocking) finds out why the hub hangs up without a word.

        asyncio drops the TLS alert that names the reason; the blob road shows it.
        """
        self._refusal = refusal
        self._url = url
        self._context = context
        way = parse_proxy(proxy)
        # aiohttp's errors, and so our logs, name the proxy's address: it holds no password
        self._proxy = None if way is None else way.address
        self._proxy_headers = None if way is None else dict(way.headers)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def call(  # noqa: PLR0913 - one request
        self,
        method: str,
        path: str,
        kind: type[T],
        message: object | None = None,
        *,
        patience: float = ANSWER,
        repeat: bool = True,
    ) -> T:
        """Ask, and return the answer as a record of `kind`.

        A kept connection that the hub has closed meanwhile is noticed only on use, so a call
        that may be repeated is, once.
        """
        body = None if message is None else v1.encode(message)
        timeout = aiohttp.ClientTimeout(total=patience, sock_connect=CONNECT)
        for last in (not repeat, True):
            try:
                return await self._exchange(method, path, kind, body, timeout)
            except (aiohttp.ClientError, OSError, TimeoutError) as e:
                stale = isinstance(e, aiohttp.ServerDisconnectedError | ConnectionResetError)
                if last or not stale:
                    refused = await asyncio.to_thread(self._refusal) if stale else None
                    raise refused or line_error(e, self._url) from None
        raise TransferError(f"the line to {self._url} failed twice")

    async def _exchange(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: bytes | None,
        timeout: aiohttp.ClientTimeout,
    ) -> T:
        async with self._opened().request(
            method,
            self._url + path,
            data=body,
            timeout=timeout,
            proxy=self._proxy,
            proxy_headers=self._proxy_headers,
            allow_redirects=False,
        ) as answer:
            told = bytearray()
            while piece := await answer.content.readany():
                told += piece
                if len(told) > v1.MAX_MESSAGE:
                    answer.close()
                    raise WireError(f"the hub's answer is over {v1.MAX_MESSAGE} bytes")
        if answer.status != 200:
            raise error_of(answer.status, bytes(told))
        return v1.decode(bytes(told), kind)

    def _opened(self) -> aiohttp.ClientSession:
        if self._closed:
            raise TransferError(f"the link to {self._url} was closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=self._context, limit=16, keepalive_timeout=300.0
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
                headers={"Content-Type": "application/msgpack"},
            )
        return self._session

    async def close(self) -> None:
        """End the connections."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
