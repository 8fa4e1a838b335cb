"""Errors as RFC 9457 problem+json: the class decides the status, the message goes along.

The client raises the same class again, so a person reads the same words wherever they are.
What is not a ConsiliaError is a defect: the person gets a number, the log the traceback.
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from consilia.errors import (
    AuthError,
    ConfigError,
    Conflict,
    ConsiliaError,
    DataError,
    EmptyRound,
    NotFound,
    PlanError,
    Refused,
    SecondFactorNeeded,
    StorageError,
    TooMany,
    TransferError,
    UpdateRejected,
    WireError,
    WorkerError,
    Wrong,
    wrong_in,
)
from consilia.wire.people import ProblemView


class Log(Protocol):
    """Where the cause of an error goes that a person is not told."""

    def error(self, event: str, **fields: Any) -> Any:
        """Write one event down."""


Handler = Callable[[Request[Any, Any, Any], Any], Response[Any]]

STATUS: Mapping[type[ConsiliaError], tuple[int, str]] = {
    ConfigError: (400, "The request is wrong"),
    WireError: (400, "The data are malformed"),
    AuthError: (401, "Not authenticated"),
    SecondFactorNeeded: (401, "A second factor is needed"),
    TooMany: (429, "Too many requests"),
    Refused: (403, "Not allowed"),
    NotFound: (404, "Not found"),
    Conflict: (409, "Conflicts with what is there"),
    EmptyRound: (409, "Nothing to average"),
    UpdateRejected: (422, "The weights cannot be used"),
    PlanError: (422, "The training plan cannot be used"),
    DataError: (422, "The data cannot be used"),
    WorkerError: (500, "A worker failed"),
    TransferError: (502, "A transfer failed"),
    StorageError: (503, "Storage refused"),
    ConsiliaError: (500, "Failed"),
}
TYPES: Mapping[type[ConsiliaError], str] = {  # what a program must tell from its like
    SecondFactorNeeded: "urn:consilia:second-factor-needed",
}
_FRAMEWORK: Mapping[int, type[ConsiliaError]] = {
    401: AuthError,
    403: Refused,
    404: NotFound,
    405: ConfigError,
    413: ConfigError,
    415: ConfigError,
}


def handlers(log: Log, party: str) -> dict[int | type[Exception], Handler]:
    """Return what turns every exception of a route of `party` (hub, node) into a problem."""

    def deliberate(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        kind = next(k for k in type(error).__mro__ if k in STATUS)
        status, title = STATUS[kind]
        if kind is not StorageError:
            answer = _problem(status, title, str(error), kind, wrong_in(error))
            if isinstance(error, TooMany):
                answer.headers["Retry-After"] = str(max(1, math.ceil(error.after)))
            return answer
        # Its text names files and databases: that is the operator's business.
        log.error("storage refused", path=request.url.path, cause=str(error))
        told = f"the {party} could not store or read it; the cause is in the {party}'s log"
        return _problem(status, title, told, kind)

    def framework(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        if not isinstance(error, HTTPException) or error.status_code >= 500:
            return defect(request, error)
        kind = _FRAMEWORK.get(error.status_code, ConfigError)
        title, detail = STATUS[kind][1], _explain(request, error)
        return _problem(error.status_code, title, detail, kind, _parameter(error))

    def defect(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        number = os.urandom(4).hex()
        log.error(
            "defect",
            number=number,
            method=request.method,
            path=request.url.path,
            exc_info=error,
        )
        detail = f"a defect of the {party}; its log has the details under number {number}"
        return _problem(500, "Internal error", detail, ConsiliaError)

    return {ConsiliaError: deliberate, HTTPException: framework, Exception: defect}


def _explain(request: Request[Any, Any, Any], error: HTTPException) -> str:
    """Say what the framework found wrong, in our words where its own say too little."""
    match error.status_code:
        case 404:
            return f"there is nothing at {request.url.path}; see docs/reference/rest.md"
        case 405:
            return f"{request.url.path} does not answer {request.method}"
        case 413:
            return "the request's body is longer than this route admits"
    extra = error.extra if isinstance(error.extra, list) else []
    parts = [
        f"{e.get('key', '')}: {e.get('message', '')}" for e in extra if isinstance(e, dict)
    ]
    return "; ".join(parts) or error.detail


def _parameter(error: HTTPException) -> Wrong | None:
    """Return what the framework found wrong with the first parameter of a request."""
    first = error.extra[0] if isinstance(error.extra, list) and error.extra else None
    if error.status_code != 400 or not isinstance(first, dict) or "key" not in first:
        return None
    said = str(first.get("message", ""))
    expected, _, found = said.removeprefix("Expected ").partition(", got ")
    return Wrong(str(first["key"]), found or "something else", expected or "a valid value")


def view(
    status: int, title: str, detail: str, kind: type[ConsiliaError], wrong: Wrong | None = None
) -> ProblemView:
    """Return a problem's body; `wrong` names the field that is to blame."""
    name = TYPES.get(kind, "about:blank")
    at = (wrong.field, wrong.found, wrong.expected) if wrong else (None, None, None)
    return ProblemView(title, status, detail, kind.__name__, name, *at)


def _problem(
    status: int,
    title: str,
    detail: str,
    kind: type[ConsiliaError],
    wrong: Wrong | None = None,
) -> Response[bytes]:
    body = view(status, title, detail, kind, wrong)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return Response(
        msgspec.json.encode(body),
        status_code=status,
        media_type="application/problem+json",
        headers=headers,
    )
