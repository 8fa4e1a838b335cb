"""The one road that goes past the framework: a piece of a model's frame.

    GET /api/v1/models/<id>/frame

Whoever reads a model asks for it piece by piece, and the framework's way to the route (routing,
parameters, dependencies, the answer's making) costs more than the audited read itself. Here the
framework's own guards decide, its own handlers turn errors into problems, and its own hooks see
the answer: what is registered at the application holds on this road as well. Any other path, a
path that is not plain, and any other method go the framework's way.
"""

import re
from typing import Any, cast

from litestar import Litestar, Response
from litestar.response import Stream
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from consilia.hub.rest import models
from consilia.hub.rest.guard import caller
from consilia.hub.rest.services import Services
from consilia.web.body import JsonRequest

_FRAME = re.compile(r"/api/v1/models/([A-Za-z0-9:._-]{1,200})/frame")


def straight(app: Litestar, hub: Services) -> ASGIApp:
    """Return the application, with the road past it."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        asked = _asked(scope)
        if not asked:
            await cast(Any, app)(scope, receive, send)
            return
        given = cast(dict[str, Any], scope)
        given["app"] = given["litestar_app"] = app
        given.setdefault("state", {})
        request: JsonRequest = JsonRequest(scope, receive, send)

        async def hooked(message: Message) -> None:
            for hook in app.before_send:
                await cast(Any, hook)(message, scope)
            await send(message)

        try:
            for guard in app.guards:
                await cast(Any, guard)(request, models.get_frame)
            response = await models.get_frame.fn(hub, caller(scope), asked, request)
        except Exception as e:
            response = _refusal(app, request, e)
        if isinstance(response, Stream) or response.status_code >= 400:
            await response.to_asgi_response(None, request)(scope, receive, hooked)
        else:
            await _tell(response, hooked)

    return serve


def _asked(scope: Scope) -> str:
    """Return the id of the model version whose frame is asked for; "" for anything else."""
    if str(scope["type"]) != "http" or scope.get("method") != "GET":
        return ""
    found = _FRAME.fullmatch(scope["path"])
    return found[1] if found else ""


def _refusal(app: Litestar, request: JsonRequest, error: Exception) -> Response[Any]:
    """Return what the application answers to an error of a route."""
    known: Any = app.exception_handlers
    handler = next(known[kind] for kind in type(error).__mro__ if kind in known)
    answer: Response[Any] = handler(request, error)
    return answer


async def _tell(response: Response[bytes], send: Send) -> None:
    """Send bytes that are ready; the framework would look how to write them."""
    headers = [(b"content-type", str(response.media_type).encode())]
    headers += [
        (name.lower().encode("latin-1"), str(value).encode("latin-1"))
        for name, value in response.headers.items()
    ]
    start = {"type": "http.response.start", "status": response.status_code}
    await send(cast(Message, {**start, "headers": headers}))
    await send(cast(Message, {"type": "http.response.body", "body": response.content}))
