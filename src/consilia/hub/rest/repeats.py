"""Requests that may be sent again: `Idempotency-Key` on a POST that makes something.

The same key with the same request gets the first answer again, with `Idempotency-Replayed:
true`, for a day; with another request it is a Conflict. A key is its person's own. A row is
written before the request is carried out, so a hub that dies in between leaves a mark: then
nobody knows whether it was done, and the answer says so instead of doing it twice.

Answers that hold a secret are never kept, so their routes take no key.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import msgspec
import sqlalchemy as sa
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from sqlalchemy import Connection

from consilia.errors import (
    AuthError,
    ConfigError,
    Conflict,
    ConsiliaError,
    Refused,
    StorageError,
    wrong_in,
)
from consilia.hub.people import rights
from consilia.hub.rest.guard import Caller, admit, secret_of
from consilia.hub.rest.limits import Limiter
from consilia.hub.rest.services import Services
from consilia.hub.rest.snapshot import header
from consilia.hub.tables import repeats
from consilia.web.problems import STATUS, view

NAME = b"idempotency-key"
KEEP = 86_400.0  # seconds
LONGEST = 200  # characters of a key
MOST_BODY = 8 << 20  # bytes of a request that is compared
TAKES = re.compile(
    r"/api/v1/(jobs|start|studies|plans|access-requests|jobs/[^/]+/clone)", re.ASCII
)
_CLONE = "/api/v1/jobs/{id}/clone"
_R = repeats.c


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with a key: whose, which, and what it asks for; hashes all but the person."""

    person: str
    key: str
    asked: str


class Answered(msgspec.Struct, array_like=True):
    """The first answer. Status 0: it is being made, or nobody knows."""

    status: int = 0
    kind: bytes = b""
    body: bytes = b""


def begin(db: Connection, asked: Asked, at: float) -> Answered | None:
    """Return the first answer, or None, having marked that the request is carried out now.

    Raises Conflict for a key of another request.
    """
    db.execute(sa.delete(repeats).where(_R.at < at - KEEP))
    row = db.execute(
        sa.select(_R.asked, _R.answer).where(_R.person == asked.person, _R.key == asked.key)
    ).first()
    if row is None:
        mark = msgspec.msgpack.encode(Answered())
        values = {"person": asked.person, "key": asked.key, "asked": asked.asked}
        db.execute(sa.insert(repeats).values(**values, answer=mark, at=at))
        return None
    if row.asked != asked.asked:
        raise Conflict(
            "this Idempotency-Key was sent with another request before: use a new key for "
            "each thing that is to be made"
        )
    return msgspec.msgpack.decode(row.answer, type=Answered)


def end(db: Connection, asked: Asked, answered: Answered | None) -> None:
    """Keep the answer, or forget that it was asked for (None): nothing was made."""
    mine = (_R.person == asked.person) & (_R.key == asked.key)
    if answered is None:
        db.execute(sa.delete(repeats).where(mine))
    else:
        coded = msgspec.msgpack.encode(answered)
        db.execute(sa.update(repeats).where(mine).values(answer=coded))


def repeatable(app: ASGIApp, hub: Services, limiter: Limiter) -> ASGIApp:
    """Return the application, which takes Idempotency-Keys.

    `limiter` is the application's: an answer that is given again counts as one that is made.
    """
    running: set[Asked] = set()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        post = str(scope["type"]) == "http" and scope.get("method") == "POST"
        sent = header(scope["headers"], NAME) if post else b""
        if not sent:
            await app(scope, receive, send)
            return
        try:
            body = await _body(receive)
            try:
                asked = _asked(scope, sent, body, partial(_admitted, hub))
            except (AuthError, Refused):  # the application answers, and counts them
                await app(scope, _replayed(body), send)
                return
            if asked in running:
                raise Conflict("the same request is under way: wait for its answer")
            running.add(asked)
            try:
                await _once(app, hub, limiter, asked, scope, body, send)
            finally:
                running.discard(asked)
        except ConsiliaError as e:
            await _tell(_problem(e), send)

    return serve


async def _once(  # noqa: PLR0913, PLR0917 - what an ASGI application gets, and for what
    app: ASGIApp,
    hub: Services,
    limiter: Limiter,
    asked: Asked,
    scope: Scope,
    body: bytes,
    send: Send,
) -> None:
    at = hub.now()
    first = await hub.store.write(lambda db: begin(db, asked, at))
    if first is not None:
        limiter.person(asked.person)
    if first is not None and not first.status:
        raise Conflict(
            "the hub ended while it carried this request out for the first time: look whether "
            "it was done; to ask once more, use a new Idempotency-Key"
        )
    if first is not None:
        await _tell(first, send, replayed=True)
        return
    answered = Answered()

    async def kept(message: Message) -> None:
        if message["type"] == "http.response.start":
            answered.status = message["status"]
            answered.kind = header(message["headers"], b"content-type")
        elif message["type"] == "http.response.body":
            answered.body += message["body"]
            if not message.get("more_body"):
                good = answered if 200 <= answered.status < 300 else None
                await hub.store.write(lambda db: end(db, asked, good))
        await send(message)

    await app(scope, _replayed(body), kept)


def _admitted(hub: Services, path: str, authorization: str) -> Caller:
    """Return who asks, held against the table as the guard does it, which a replay passes by.

    Who has lost the role since gets no answer that was made for them when they had it.
    """
    who = hub.people.knowledge.caller(secret_of(authorization))
    operation = f"POST {_CLONE if path.endswith('/clone') else path}"
    admit(who, operation, rights.of(operation))
    if hub.people.must_enrol(who):
        raise Refused("this hub requires a second factor of you: set it up first")
    return who


def _replayed(body: bytes) -> Receive:
    """Return what gives the application a body that was read before it was asked."""
    pieces = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return pieces.pop() if pieces else await asyncio.get_running_loop().create_future()

    return receive


def _problem(error: ConsiliaError) -> Answered:
    """Return an error as the routes tell theirs (consilia.web.problems)."""
    kind = next(k for k in type(error).__mro__ if k in STATUS)
    status, title = STATUS[kind]
    detail = str(error)
    if kind is StorageError:  # its text is the operator's business
        detail = "the hub could not store or read it; send it again, with the same key"
    body = msgspec.json.encode(view(status, title, detail, kind, wrong_in(error)))
    return Answered(status, b"application/problem+json", body)


async def _body(receive: Receive) -> bytes:
    found = bytearray()
    while True:
        message: Any = await receive()
        found += message.get("body", b"")
        if len(found) > MOST_BODY:
            raise ConfigError(f"the request's body is longer than {MOST_BODY} bytes")
        if message["type"] != "http.request" or not message.get("more_body"):
            return bytes(found)


def _asked(
    scope: Scope, key: bytes, body: bytes, admitted: Callable[[str, str], Caller]
) -> Asked:
    """Return what is asked for; ConfigError where no key is taken.

    AuthError for a stranger, Refused for who may not ask for it.
    """
    path = str(scope["path"])
    sent = header(scope["headers"], b"authorization").decode("latin-1")
    if not TAKES.fullmatch(path):
        raise ConfigError(f"Idempotency-Key: POST {path[:80]} takes none: send it without")
    if not 1 <= len(key) <= LONGEST:
        raise ConfigError(f"Idempotency-Key has {len(key)} characters, needed 1 to {LONGEST}")
    who = admitted(path, sent)
    query = scope.get("query_string", b"")
    # an answer to the whole person is none to their key for one study
    parts = (path.encode("utf-8", "replace"), query, who.within.encode(), body)
    whole = b"\n".join(parts)
    return Asked(who.name, hashlib.sha256(key).hexdigest(), hashlib.sha256(whole).hexdigest())


async def _tell(answer: Answered, send: Send, *, replayed: bool = False) -> None:
    """Send an answer that was kept, or a problem."""
    status, kind, body = answer.status, answer.kind, answer.body
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"strict-transport-security", b"max-age=31536000"),
    ]
    if replayed:
        headers.append((b"idempotency-replayed", b"true"))
    start = {"type": "http.response.start", "status": status, "headers": headers}
    await send(cast(Message, start))
    await send(cast(Message, {"type": "http.response.body", "body": body}))
