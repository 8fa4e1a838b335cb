"""The people's application: all routes, and what holds for every one of them.

A request is authenticated and checked against its route's roles (guard), its body is read
strictly (body), its errors become problems (problems), every answer carries the same security
headers, and is counted.
"""

import re
from collections.abc import Mapping
from typing import Any

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.types import Message, Scope

from consilia.hub.rest import (
    auth,
    governance,
    jobs,
    live,
    models,
    offers,
    overview,
    pages,
    people,
    privacy,
    registry,
    statistics,
    steering,
    system,
    trail,
    users,
)
from consilia.hub.rest.guard import Caller, admitted, caller, make_guard
from consilia.hub.rest.limits import Limiter
from consilia.hub.rest.services import Hub, Services
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
STRICT = ("Strict-Transport-Security", "max-age=31536000")  # a year: RFC 6797, with TLS only
_SECURITY = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_OVER_TLS = [*_SECURITY, (STRICT[0].lower().encode(), STRICT[1].encode())]
ROUTES: tuple[Any, ...] = (
    auth.providers,
    auth.login,
    auth.refresh,
    auth.logout,
    auth.password,
    auth.me,
    auth.second_factor,
    auth.confirm_second_factor,
    auth.remove_second_factor,
    auth.oidc_start,
    auth.oidc_callback,
    users.list_users,
    users.make_user,
    users.get_user,
    users.change_user,
    users.remove_user,
    users.end_sessions,
    users.list_invitations,
    users.invite,
    users.withdraw,
    users.accept,
    users.list_requests,
    users.ask,
    users.grant,
    users.refuse,
    users.list_keys,
    users.make_key,
    users.revoke_key,
    people.whoami,
    people.list_tokens,
    people.make_token,
    people.revoke_token,
    people.list_sites,
    people.invite_site,
    people.revoke_site,
    governance.list_studies,
    governance.create_study,
    governance.get_study,
    governance.change_study,
    governance.submit_study,
    governance.revise_study,
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
    steering.pause_job,
    steering.roll_back,
    jobs.change_arguments,
    steering.list_evaluations,
    statistics.ask_statistics,
    statistics.get_statistics,
    jobs.job_events,
    live.job_stream,
    jobs.job_audit,
    overview.job_metrics,
    overview.clone,
    overview.queue,
    overview.status,
    overview.budgets,
    overview.health,
    overview.start,
    overview.join,
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
_TYPED, _NAMED = re.compile(r"\{(\w+):\w+\}"), r"{\1}"  # of a path's parameters


def operations() -> list[tuple[str, Any]]:
    """Return every route with its "METHOD /path", as hub/people/rights names it."""
    every = [(PREFIX, route) for route in ROUTES] + [("", route) for route in PLAIN_ROUTES]
    return [
        (f"{min(route.http_methods)} {prefix}{_TYPED.sub(_NAMED, path)}", route)
        for prefix, route in every
        for path in route.paths
    ]


def describe() -> dict[str, Any]:
    """Return the OpenAPI document of this API."""
    routes = [(PREFIX + path, route) for route in ROUTES for path in route.paths]
    routes += [(path, route) for route in PLAIN_ROUTES for path in route.paths]
    roles = {route.fn: admitted(route, operation) for operation, route in operations()}
    return document(routes, roles=lambda route: roles[route.fn])


def make_app(hub: Services, limiter: Limiter | None = None) -> Litestar:
    """Return the ASGI application of one hub; `limiter` counts what is asked elsewhere, too."""

    async def before_send(message: Message, scope: Scope) -> None:
        if message["type"] == "http.response.start":
            given: Any = message
            there = {name.lower() for name, _ in given["headers"]}
            ours = _OVER_TLS if scope.get("scheme") in ("https", "wss") else _SECURITY
            given["headers"] = [*given["headers"], *(h for h in ours if h[0] not in there)]
            _count(hub, scope, message["status"])

    def who(scope: Scope, hub: Hub) -> Caller:
        del hub  # named, so that the two are not found side by side: two tasks cost 0.2 ms
        return caller(scope)

    return Litestar(
        route_handlers=[
            Router(PREFIX, route_handlers=[*ROUTES, live.job_socket]),
            *PLAIN_ROUTES,
            pages.make(),
        ],
        dependencies={
            "described": Provide(describe, sync_to_thread=False),
            "hub": Provide(lambda: hub, sync_to_thread=False),
            "who": Provide(who, sync_to_thread=False),
        },
        guards=[
            make_guard(
                hub.people.knowledge.caller,
                hub.people.must_enrol,
                limiter or Limiter(hub.config.people, hub.now),
                {route.fn: operation for operation, route in operations()},
            )
        ],
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
