"""The stream that keeps a page up to date: home's counters and the live runs.

Server-sent events of one request: the page opens it once, a change arrives within a second.
It keeps no session alive, and ends with it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec
from litestar import get
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage

from consilia.errors import AuthError, ConsiliaError
from consilia.node.console import home, runs
from consilia.node.console.guard import Who, anyone, signed_in
from consilia.node.console.services import Here, Services

EVERY = 1.0  # seconds between two looks
QUIET = 15.0  # seconds after which a comment shows proxies and browsers that the line is open


# browsers open it again by themselves whenever it breaks: no sign of a person
@get("/events", opt={**anyone(), "automatic": True}, sync_to_thread=False)
def stream(here: Here, who: Who) -> ServerSentEvent:
    """Send `home` (HomeView) and `runs` (RunsView) now, and again whenever they change."""
    return ServerSentEvent(_events(here, who.token))


async def _events(here: Services, token: str) -> AsyncIterator[ServerSentEventMessage]:
    said: dict[str, bytes] = {}
    loop = asyncio.get_running_loop()
    spoken = loop.time()
    while not here.stopping.is_set():
        try:
            session = await asyncio.to_thread(signed_in, here, token, False)
            sources: dict[str, Callable[[Services], msgspec.Struct]] = {
                "home": partial(home.view, account=session.account),  # as it is by now
                "runs": runs.view,
            }
            for name, source in sources.items():
                body = msgspec.json.encode(await asyncio.to_thread(source, here))
                if said.get(name) != body:
                    said[name] = body
                    spoken = loop.time()
                    yield ServerSentEventMessage(data=body.decode(), event=name)
        except AuthError:
            yield ServerSentEventMessage(data="{}", event="end")
            return
        except ConsiliaError as e:  # a store that is busy, a file half written: the next look
            here.log.info("no event", cause=str(e))
        if loop.time() - spoken > QUIET:
            spoken = loop.time()
            yield ServerSentEventMessage(comment="open")
        await asyncio.sleep(EVERY)


ROUTES = (stream,)
