"""Answers kept ready: rendered once, given again while nothing has changed.

A route marked `kept` in its `opt` answers from here when all of this holds:

- the same address is asked for with the same credentials, and the check of these credentials,
  made anew for every request, says the same as when the answer was made. A revoked token, an
  ended session or another role is a miss, and the application decides;
- nothing was written to the database since, and no job or site has moved (`version`);
- the answer is at most FRESH seconds old, for what no write tells: another process's work, and
  when a site was last in touch. The first who asks after that has it made anew; those who ask
  while it is being made get the old one.

Equal requests that find only an outdated answer wait for one of them to be answered.

Every JSON answer to a GET carries an ETag; a request that names it in If-None-Match is
answered 304 without a body.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, cast

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from consilia.errors import ConsiliaError
from consilia.hub.rest.guard import Caller, secret_of
from consilia.hub.rest.services import Services
from consilia.web.line import Headers, Ready

FRESH = 1.0  # seconds
MOST_BYTES = 64 << 20  # of all answers kept
LARGEST = 1 << 20  # bytes of one answer
_JSON = (b"application/json", b"application/vnd.oai.openapi+json")

Checked = Callable[[str], object]  # an Authorization header -> who it is, or ConsiliaError
Key = tuple[bytes, bytes]  # the Authorization header, the address with its query


KEPT = MappingProxyType({"kept": True})  # the `opt` of a GET route whose answers are kept


@dataclass(slots=True)
class _Kept:
    version: int
    until: float
    who: object
    etag: bytes
    whole: Ready
    same: Ready  # the 304


class Snapshot:
    """The answers of one hub. Belongs to one event loop."""

    def __init__(
        self,
        version: Callable[[], int],
        check: Checked,
        monotonic: Callable[[], float],
        count: Callable[[str, int], None],
    ) -> None:
        """`count(method, status)` hears of every answer that is given from here."""
        self.version = version
        self._check = check
        self._monotonic = monotonic
        self._count = count
        self._answers: OrderedDict[Key, _Kept] = OrderedDict()
        self._bytes = 0
        self._making: dict[Key, asyncio.Event] = {}

    def quick(self, target: bytes, headers: Headers) -> Ready | None:  # noqa: PLR0911
        """Return the answer to a GET, if it is kept and the caller may have it still."""
        credentials = match = b""
        for name, value in headers:
            if name == b"authorization":
                if credentials:
                    return None  # two of them: the application says what is wrong
                credentials = value
            elif name == b"if-none-match":
                match = value
        found = self._answers.get((credentials, target))
        if found is None:
            return None
        if found.version != self.version():
            return None  # stays as the mark of a route that keeps its answers: see `turn`
        try:
            who = self._check(credentials.decode("latin-1"))
            if who is not found.who and who != found.who:
                return None
        except ConsiliaError:
            return None
        if (now := self._monotonic()) >= found.until:
            found.until = now + FRESH
            return None
        if match and names(match, found.etag):
            self._count("GET", 304)
            return found.same
        self._count("GET", 200)
        return found.whole

    def keep(  # noqa: PLR0913, PLR0917 - what an answer is
        self, key: Key, who: object, version: int, headers: Headers, etag: bytes, body: bytes
    ) -> None:
        """Take in an answer; `version` was asked before it was made."""
        if len(body) > LARGEST or version != self.version():
            return
        self._drop(key)
        until = self._monotonic() + FRESH
        whole, same = Ready(_head(200, headers), body), Ready(_head(304, _bare(headers)), b"")
        self._answers[key] = _Kept(version, until, who, etag, whole, same)
        self._bytes += len(body)
        while self._bytes > MOST_BYTES:
            self._drop(next(iter(self._answers)))

    @asynccontextmanager
    async def turn(self, key: Key) -> AsyncIterator[bool]:
        """Enter at once, with True; or when an equal request has been answered, with False."""
        if key not in self._answers:  # perhaps a long poll: nobody waits for another's
            yield True
            return
        if (making := self._making.get(key)) is not None:
            await making.wait()
            yield False
            return
        mine = self._making[key] = asyncio.Event()
        try:
            yield True
        finally:
            del self._making[key]
            mine.set()

    def _drop(self, key: Key) -> None:
        if (gone := self._answers.pop(key, None)) is not None:
            self._bytes -= len(gone.whole.body)


def make_snapshot(hub: Services, monotonic: Callable[[], float] = time.monotonic) -> Snapshot:
    """Return the snapshot of a hub's answers."""
    counts, engine, caller = hub.store.counts, hub.engine, hub.people.knowledge.caller

    def check(authorization: str) -> Caller:
        return caller(secret_of(authorization))

    def version() -> int:
        return counts.writes + engine.moves

    return Snapshot(version, check, monotonic, hub.metrics.request)


def keeping(app: ASGIApp, snapshot: Snapshot) -> ASGIApp:
    """Return the application with ETags, which gives what it may to the snapshot."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if str(scope["type"]) != "http" or scope.get("method") != "GET":
            await app(scope, receive, send)
            return
        key = _key(scope)
        async with snapshot.turn(key) as mine:
            if mine:
                await _make(app, snapshot, key, scope, receive, send)
                return
        ready = snapshot.quick(key[1], cast(Headers, scope["headers"]))
        if ready is None:
            await _make(app, snapshot, key, scope, receive, send)
        else:
            await _send(ready, send)

    return serve


async def _make(  # noqa: PLR0913, PLR0917 - what an ASGI application gets, and for whom
    app: ASGIApp, snapshot: Snapshot, key: Key, scope: Scope, receive: Receive, send: Send
) -> None:
    """Let the application answer; tag what is JSON, and keep what its route lets be kept."""
    version, begun = snapshot.version(), list[Message]()

    async def tagged(message: Message) -> None:
        if message["type"] == "http.response.start" and _may_tag(message):
            begun.append(message)
            return
        if not begun:
            await send(message)
            return
        start = cast(dict[str, Any], begun.pop())
        if message["type"] != "http.response.body" or message.get("more_body"):
            await send(cast(Message, start))
            await send(message)
            return
        body = message["body"]
        etag = tag(body)
        start["headers"] = [*start["headers"], (b"etag", etag)]
        handler: Any = scope.get("route_handler")
        if key[0] and handler.opt.get("kept") and (who := scope.get("user")) is not None:
            snapshot.keep(key, who, version, start["headers"], etag, body)
        if names(header(scope["headers"], b"if-none-match"), etag):
            start = {**start, "status": 304, "headers": _bare(start["headers"])}
            message = {**message, "body": b""}
        await send(cast(Message, start))
        await send(message)

    await app(scope, receive, tagged)


async def _send(ready: Ready, send: Send) -> None:
    status, *lines = ready.head.split(b"\r\n")
    headers = [line.partition(b": ")[::2] for line in lines if line]
    start = {"type": "http.response.start", "status": int(status[9:12]), "headers": headers}
    await send(cast(Message, start))
    await send(cast(Message, {"type": "http.response.body", "body": ready.body}))


def _key(scope: Scope) -> Key:
    query = scope.get("query_string", b"")
    target = scope["raw_path"] + (b"?" + query if query else b"")
    return header(scope["headers"], b"authorization"), target


def tag(body: bytes) -> bytes:
    """Return the ETag of a body."""
    return b'"%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()


def names(match: bytes, etag: bytes) -> bool:
    """Return whether an If-None-Match header names the tag (RFC 9110, 13.1.2: weakly)."""
    if not match:
        return False
    told = (part.strip().removeprefix(b"W/") for part in match.split(b","))
    return match.strip() == b"*" or etag in told


def header(headers: Any, name: bytes) -> bytes:
    """Return the first header of that name, b"" when there is none."""
    return next((bytes(value) for key, value in headers if key == name), b"")


def _may_tag(message: Message) -> bool:
    start: Any = message
    kind = header(start["headers"], b"content-type").partition(b";")[0].strip()
    return start["status"] == 200 and kind in _JSON and not header(start["headers"], b"etag")


def _bare(headers: Headers) -> Headers:
    """Return the headers of the same answer without a body."""
    return [(n, v) for n, v in headers if n not in (b"content-length", b"content-type")]


def _head(status: int, headers: Headers) -> bytes:
    lines = [b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%s: %s\r\n" % (name, value) for name, value in headers]
    return b"".join(lines)
