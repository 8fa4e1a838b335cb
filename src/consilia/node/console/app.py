"""The console's application: all routes, and what holds for every one of them."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Response, Router, get
from litestar.config.compression import CompressionConfig
from litestar.datastructures import MutableScopeHeaders
from litestar.di import NamedDependency, Provide
from litestar.exceptions import NotFoundException
from litestar.params import SkipValidation
from litestar.types import ASGIApp, Message, Scope

from consilia.node.console import (
    datasets,
    doors,
    events,
    hardcases,
    harmonise,
    health,
    home,
    joblogs,
    ledger,
    loadings,
    optout,
    people,
    plans,
    policy,
    pooling,
    runs,
    sources,
    studies,
    trail,
    twins,
)
from consilia.node.console.gate import HEADERS, Gate
from consilia.node.console.guard import Caller, caller, make_guard, open_to_all
from consilia.node.console.services import Here, Services
from consilia.web import static
from consilia.web.body import JsonRequest, StrictBody
from consilia.web.openapi import document
from consilia.web.problems import handlers

MAX_BODY = 4 << 20  # bytes of a JSON body
PREFIX = "/api"
ASSETS = "/assets/"
MISSING = static.missing("The console's pages", "the console")
_COOKIE = {"type": "apiKey", "in": "cookie", "name": "consilia-session"}

Described = NamedDependency[SkipValidation[dict[str, Any]]]
Files = NamedDependency[SkipValidation[Mapping[str, Path]]]


@get("/openapi.json", opt=open_to_all(), sync_to_thread=False)
def openapi(described: Described) -> dict[str, Any]:
    """Describe this API."""
    return described


@get(["/", "/{path:path}"], opt=open_to_all())
async def pages(request: Request[Any, Any, Any], here: Here, files: Files) -> Response[bytes]:
    """Answer the browser's part of the console."""
    path = request.url.path
    if path == PREFIX or path.startswith(f"{PREFIX}/"):
        raise NotFoundException
    if path.startswith(ASSETS) and path not in files:  # a page in its place would be no script
        raise NotFoundException
    found = await asyncio.to_thread(static.page, files, path, MISSING)
    headers = {"Cache-Control": found.cache}
    return Response(found.body, media_type=found.kind, headers=headers)


ROUTES: tuple[Any, ...] = (
    *people.ROUTES,
    *doors.ROUTES,
    *home.ROUTES,
    *events.ROUTES,
    *datasets.ROUTES,
    *hardcases.ROUTES,
    *sources.ROUTES,
    *twins.ROUTES,
    *optout.ROUTES,
    *harmonise.ROUTES,
    *loadings.ROUTES,
    *studies.ROUTES,
    *plans.ROUTES,
    *pooling.ROUTES,
    *runs.ROUTES,
    *joblogs.ROUTES,
    *policy.ROUTES,
    *ledger.ROUTES,
    *trail.ROUTES,
    *health.ROUTES,
    openapi,
)


def described() -> dict[str, Any]:
    """Return the OpenAPI document."""
    routes = [(PREFIX + path, route) for route in ROUTES for path in route.paths]
    return document(routes, "Consilia node console", _COOKIE)


def make_app(here: Services, clock: Any) -> ASGIApp:
    """Return the ASGI application of one console; `clock` is monotonic (seconds)."""
    files = static.find(here.static)

    async def before_send(message: Message, scope: Scope) -> None:
        if message["type"] == "http.response.start":
            headers = MutableScopeHeaders.from_message(message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if here.settings.certificate:
                headers.setdefault("Strict-Transport-Security", "max-age=31536000")

    def who(scope: Scope) -> Caller:
        return caller(scope)

    app = Litestar(
        route_handlers=[
            Router(PREFIX, route_handlers=ROUTES),
            Router("/oidc", route_handlers=doors.PAGES),
            pages,
        ],
        dependencies={
            "described": Provide(described, sync_to_thread=False),
            "files": Provide(lambda: files, sync_to_thread=False),
            "here": Provide(lambda: here, sync_to_thread=False),
            "who": Provide(who, sync_to_thread=False),
        },
        guards=[make_guard(here)],
        exception_handlers=handlers(here.log, "node"),
        before_send=[before_send],
        compression_config=CompressionConfig(backend="gzip", exclude=["/api/events"]),
        dto=StrictBody,
        return_dto=None,
        request_class=JsonRequest,
        request_max_body_size=MAX_BODY,
        openapi_config=None,
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )
    return Gate(app, here.place, clock)
