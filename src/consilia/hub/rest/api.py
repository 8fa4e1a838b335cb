"""The people's application: all routes, and what holds for every one of them.

A request is authenticated and checked against its route's roles (guard), its body is read
strictly (body), its errors become problems (problems), every answer carries the same security
headers, and is counted.
"""

from collections.abc import Mapping
from typing import Any

from litestar import Litestar, Router
from litestar.datastructures import MutableScopeHeaders
from litestar.di import Provide
from litestar.types import Message, Scope

from consilia.hub.rest import (
    governance,
    jobs,
    live,
    models,
    offers,
    people,
    privacy,
    registry,
    system,
    trail,
)
from consilia.hub.rest.guard import Caller, caller, make_guard
from consilia.hub.rest.services import Services
from consilia.web.body import JsonRequest, StrictBody
from consilia.web.openapi import document
from consilia.web.problems import handlers

MAX_BODY = 8 << 20  # bytes of a JSON body: a plan of 1 MiB, escaped
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
ROUTES: tuple[Any, ...] = (
    people.whoami,
    people.list_tokens,
    people.make_token,
    people.revoke_token,
    people.list_sites,
    people.invite,
    people.revoke_site,
    governance.list_studies,
    governance.create_study,
    governance.get_study,
    governance.change_study,
    governance.submit_study,
    governance.close_study,
    offers.list_offers,
    governance.list_plans,
    governance.submit_plan,
    governance.get_plan,
    jobs.validate,
    privacy.estimate,
    jobs.list_jobs,
    jobs.start_job,
    jobs.get_job,
    jobs.stop_job,
    jobs.resume_job,
    jobs.change_arguments,
    jobs.job_events,
    live.job_stream,
    jobs.job_audit,
    models.list_models,
    models.get_model,
    models.get_frame,
    models.put_frame,
    registry.set_stage,
    registry.get_card,
    trail.list_lines,
    trail.export,
    trail.verify,
    system.openapi,
)
PLAIN_ROUTES: tuple[Any, ...] = (system.healthz, system.readyz, system.metrics)
PREFIX = "/api/v1"


def make_app(hub: Services) -> Litestar:
    """Return the ASGI application of one hub."""

    async def before_send(message: Message, scope: Scope) -> None:
        if message["type"] == "http.response.start":
            headers = MutableScopeHeaders.from_message(message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            _count(hub, scope, message["status"])

    def who(scope: Scope) -> Caller:
        return caller(scope)

    def described() -> dict[str, Any]:
        routes = [(PREFIX + path, route) for route in ROUTES for path in route.paths]
        return document(
            routes + [(path, route) for route in PLAIN_ROUTES for path in route.paths]
        )

    return Litestar(
        route_handlers=[
            Router(PREFIX, route_handlers=ROUTES),
            *PLAIN_ROUTES,
        ],
        dependencies={
            "described": Provide(described, sync_to_thread=False),
            "hub": Provide(lambda: hub, sync_to_thread=False),
            "who": Provide(who, sync_to_thread=False),
        },
        guards=[make_guard(hub.access.token_role)],
        exception_handlers=handlers(hub.log, "hub"),
        before_send=[before_send],
        dto=StrictBody,
        return_dto=None,
        request_class=JsonRequest,
        request_max_body_size=MAX_BODY,
        openapi_config=None,
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )


def _count(hub: Services, scope: Scope, status: int) -> None:
    """Count and log an answer: the path without its query, and never a header or a body."""
    method, path = str(scope.get("method", "")), scope["path"]
    hub.metrics.request(method, status)
    user = scope.get("user")
    name = user.name if isinstance(user, Caller) else ""
    hub.log.debug("request", method=method, path=path, status=status, who=name)
