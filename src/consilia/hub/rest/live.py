"""A job's events as they happen: server-sent events, from any cursor on.

    id: 12000
    event: Closed
    data: {"seq": 12000, "at": ..., "type": "Closed", "body": {...}}

A browser's EventSource that lost its line comes back with `Last-Event-ID` and misses nothing
(https://html.spec.whatwg.org/multipage/server-sent-events.html). Every event is read from the
database and encoded once, however many watch: those at one cursor share one wait.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
from litestar import Request, get
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from consilia.errors import AuthError, ConfigError, ConsiliaError, Refused
from consilia.hub.paging import within
from consilia.hub.rest.governance import READERS
from consilia.hub.rest.guard import Who, secret_of
from consilia.hub.rest.jobs import MAX_CURSOR, seen_job, until_stopped
from consilia.hub.rest.services import Hub, Services
from consilia.hub.rest.streams import News
from consilia.wire.people import EventView

MOST = 5000  # streams at once
BEAT = 15.0  # seconds after which a silent stream shows that it lives
IDLE = 1.0  # seconds between two looks at a job that the hub has not taken up yet
OVER = ("done", "stopped", "failed")


@get("/jobs/{id:str}/stream", opt=READERS)
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
    if hub.streams.open >= MOST:
        raise Refused(f"{MOST} streams are open at this hub; ask again, or poll the events")
    secret = secret_of(request.headers.get("authorization", ""))
    return Stream(
        _stream(hub, secret, id, start),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _stream(hub: Services, secret: str, id: str, after: int) -> AsyncIterator[bytes]:
    """Yield what happens; end with the job, with the hub, or with the caller's right."""
    with hub.streams:
        yield b"retry: 1000\n\n"
        while not hub.stopping.is_set():
            try:
                hub.access.token_role(secret)
                news = await hub.streams.shared.get((id, after), partial(_news, hub, id, after))
            except AuthError:
                return  # its next request will be told why
            except ConsiliaError as e:
                hub.log.warning("stream ended", job=id, cause=str(e))
                return
            after = news.next
            yield news.text
            if news.over:
                return


async def _news(hub: Services, id: str, after: int) -> News:
    """Return what happened after a cursor, waiting for it, or that nothing more will."""
    feed = await hub.engine.events(id, after)
    if not feed.items:
        if (state := (await hub.engine.view(id)).state) in OVER:
            end = msgspec.json.encode({"state": state})
            return News(b"event: end\ndata: %s\n\n" % end, after, over=True)
        if hub.engine.job(id) is None:
            await asyncio.sleep(IDLE)  # nothing wakes who waits for a job not in memory
        later = await until_stopped(hub.stopping, hub.engine.events(id, after, BEAT))
        if later is None or not later.items:
            return News(b": still here\n\n", after, over=False)
        feed = later
    views = (EventView(seq=e.seq, at=e.at, type=e.type, body=dict(e.body)) for e in feed.items)
    text = b"".join(
        b"id: %d\nevent: %s\ndata: %s\n\n" % (v.seq, v.type.encode(), msgspec.json.encode(v))
        for v in views
    )
    return News(text, feed.next, over=False)
