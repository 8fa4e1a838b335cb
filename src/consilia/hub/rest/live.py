"""A job's events as they happen: server-sent events, from any cursor on.

    id: 12000
    event: Closed
    data: {"seq": 12000, "at": ..., "type": "Closed", "body": {...}}

A browser's EventSource that lost its line comes back with `Last-Event-ID` and misses nothing
(https://html.spec.whatwg.org/multipage/server-sent-events.html). Every event is read from the
database and encoded once, however many watch: those at one cursor share one wait.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from litestar import Request, WebSocket, get, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from consilia.errors import (
    AuthError,
    ConfigError,
    ConsiliaError,
    NotFound,
    Refused,
    TooMany,
)
from consilia.hub.paging import within
from consilia.hub.people import rights
from consilia.hub.rest.guard import Caller, Who, admit, open_to_all, secret_of
from consilia.hub.rest.jobs import MAX_CURSOR, seen_job, until_stopped
from consilia.hub.rest.services import Hub, Services
from consilia.hub.rest.streams import News
from consilia.hub.views import Item
from consilia.wire import strict
from consilia.wire.people import EventView
from consilia.wire.people import Request as Body

STREAM = "GET /api/v1/jobs/{id}/stream"  # its line in the table of rights is the socket's, too
BEATING = '{"type":"beat"}'  # a silent socket lives
PATIENCE = 10.0  # seconds for a socket's first message
MAX_REASON = 100  # characters of a WebSocket's close
BEAT = 15.0  # seconds after which a silent stream shows that it lives
IDLE = 1.0  # seconds between two looks at a job that the hub has not taken up yet
OVER = ("done", "stopped", "failed")


@get("/jobs/{id:str}/stream")
async def job_stream(
    hub: Hub,
    who: Who,
    id: FromPath[str],
    request: Request[Any, Any, Any],
    after: FromQuery[int] = 0,
) -> Stream:
    """Send a job's events after cursor `after` as they happen, until the job has ended.

    The header Last-Event-ID, which browsers send when they come back, wins over `after`.
    """
    await seen_job(hub, who, id)
    last = request.headers.get("last-event-id", "")
    if last and not (last.isascii() and last.isdecimal() and len(last) < 20):
        raise ConfigError(f"Last-Event-ID is {last[:40]!r}, needed the id of an event")
    start = within(int(last) if last else after, "after", 0, MAX_CURSOR)
    hub.streams.check(who.name)
    secret = secret_of(request.headers.get("authorization", ""))
    return Stream(
        _stream(hub, Watch(secret, who, id), start),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@dataclass(slots=True)
class Watch:
    """Who watches which job."""

    secret: str
    who: Caller
    job: str


async def watched(hub: Services, watch: Watch, after: int) -> AsyncIterator[News]:
    """Yield what happens; end with the job, with the hub, or with the caller's right."""
    id = watch.job
    while not hub.stopping.is_set():
        try:
            news = await hub.streams.shared.get((id, after), partial(_news, hub, id, after))
            who = hub.people.knowledge.caller(watch.secret)  # after the wait: it may be long
            if who != watch.who:  # their roles have changed: may they still see it?
                admit(who, STREAM, rights.of(STREAM))
                await seen_job(hub, who, id)
                watch.who = who
        except (AuthError, Refused, NotFound):
            return  # its next request will be told why
        except ConsiliaError as e:
            hub.log.warning("stream ended", job=id, cause=str(e))
            return
        after = news.next
        yield news
        if news.over:
            return


async def _stream(hub: Services, watch: Watch, after: int) -> AsyncIterator[bytes]:
    """Yield a job's news as server-sent events."""
    with hub.streams.held(watch.who.name):
        yield b"retry: 1000\n\n"
        async for news in watched(hub, watch, after):
            yield news.text


async def _news(hub: Services, id: str, after: int) -> News:
    """Return what happened after a cursor, waiting for it, or that nothing more will."""
    feed = await hub.engine.reading.events(id, after)
    if not feed.items:
        if (state := (await hub.engine.reading.view(id)).state) in OVER:
            end = msgspec.json.encode({"state": state})
            told = msgspec.json.encode({"type": "end", "state": state}).decode()
            return News(b"event: end\ndata: %s\n\n" % end, (told,), after, over=True)
        if hub.engine.job(id) is None:
            await asyncio.sleep(IDLE)  # nothing wakes who waits for a job not in memory
        later = await until_stopped(hub.stopping, hub.engine.reading.events(id, after, BEAT))
        if later is None or not later.items:
            return News(b": still here\n\n", (BEATING,), after, over=False)
        feed = later
    coded = [(e, msgspec.json.encode(_view(e))) for e in feed.items]
    text = b"".join(
        b"id: %d\nevent: %s\ndata: %s\n\n" % (e.seq, e.type.encode(), data) for e, data in coded
    )
    return News(text, tuple(data.decode() for _, data in coded), feed.next, over=False)


def _view(event: Item) -> EventView:
    return EventView(seq=event.seq, at=event.at, type=event.type, body=dict(event.body))


# ---- the same over a WebSocket --------------------------------------------------------------


class Hello(Body, frozen=True):
    """The first message of who opens a WebSocket: browsers cannot send a header there."""

    token: str
    after: int = 0


@websocket("/jobs/{id:str}/live", opt=open_to_all())
async def job_socket(socket: WebSocket[Any, Any, Any], hub: Hub, id: FromPath[str]) -> None:
    """Send a job's events as JSON texts, until it has ended.

    The caller first sends {"token": ..., "after": cursor}. Close codes: 1000 the job has ended,
    1001 the hub goes down, 4400 another first message, 4401, 4403, 4404 and 4429 as HTTP's.
    """
    await socket.accept()
    try:
        async with asyncio.timeout(PATIENCE):
            hello = _hello(await socket.receive_text())
        after = within(hello.after, "after", 0, MAX_CURSOR)
        who = hub.people.knowledge.caller(hello.token)
        admit(who, STREAM, rights.of(STREAM))
        if hub.people.must_enrol(who):
            raise Refused("this hub requires a second factor of you: set it up first")
        await seen_job(hub, who, id)
        hub.streams.check(who.name)
    except (ConsiliaError, TimeoutError) as e:
        await socket.close(_code(e), str(e)[:MAX_REASON])
        return
    except WebSocketDisconnect:
        return
    with hub.streams.held(who.name):
        telling = asyncio.ensure_future(_tell(hub, socket, Watch(hello.token, who, id), after))
        gone = asyncio.ensure_future(_until_gone(socket))
        await asyncio.wait((telling, gone), return_when=asyncio.FIRST_COMPLETED)
        for task in (telling, gone):
            task.cancel()
        await asyncio.gather(telling, gone, return_exceptions=True)


def _hello(text: str) -> Hello:
    try:
        plain = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as e:
        raise ConfigError(f"first message: not valid JSON: {e}") from None
    return strict.convert(plain, Hello, "first message")


async def _tell(
    hub: Services, socket: WebSocket[Any, Any, Any], watch: Watch, after: int
) -> None:
    over = False
    async for news in watched(hub, watch, after):
        for text in news.events:
            await socket.send_text(text)
        over = news.over
    ends = (1000, "the job has ended") if over else (1001, "open it again to go on")
    await socket.close(*ends)


async def _until_gone(socket: WebSocket[Any, Any, Any]) -> None:
    """Return when the caller has hung up; what they say is not listened to."""
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.receive_text()


def _code(error: Exception) -> int:
    kinds: dict[type[Exception], int] = {
        AuthError: 4401,
        Refused: 4403,
        NotFound: 4404,
        TooMany: 4429,
    }
    return kinds.get(type(error), 4400)
