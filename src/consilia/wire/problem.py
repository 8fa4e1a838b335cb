"""Errors on the wire: an error tree leaf becomes a status and a Problem, and back again.

A storage error's text names the hub's files, so its detail stays in the hub's log. What the
other side claims is cut short before a person reads it.
"""

import msgspec

from consilia import errors
from consilia.errors import (
    AuthError,
    ConfigError,
    Conflict,
    ConsiliaError,
    NotFound,
    Refused,
    StorageError,
    TransferError,
    UpdateRejected,
    WireError,
)
from consilia.wire.v1 import MAX_MESSAGE, Problem

MAX_DETAIL = 2000  # characters

_STATUS: dict[type[ConsiliaError], int] = {
    AuthError: 401,
    ConfigError: 400,
    Conflict: 409,
    NotFound: 404,
    Refused: 403,
    StorageError: 507,
    TransferError: 400,
    UpdateRejected: 422,
    WireError: 400,
}
_BY_STATUS = {
    400: WireError,
    401: AuthError,
    403: Refused,
    404: NotFound,
    409: Conflict,
    413: WireError,
    422: UpdateRejected,
    429: Refused,
}


def problem(error: ConsiliaError) -> tuple[int, Problem]:
    """Return the HTTP status and body that tell the other side of `error`."""
    status = _STATUS.get(type(error), 500)
    if status >= 500:
        detail = "the hub could not store it; its operator finds the cause in the hub's log"
        return status, Problem(type(error).__name__, detail)
    return status, Problem(type(error).__name__, str(error)[:MAX_DETAIL])


def error_of(status: int, body: bytes) -> ConsiliaError:
    """Return the error that an answer tells of; TransferError for 5xx and the unknown."""
    known: dict[str, type[ConsiliaError]] = {c.__name__: c for c in _STATUS}
    try:
        told = msgspec.msgpack.decode(body[:MAX_MESSAGE], type=Problem)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeError):
        kind = _BY_STATUS.get(status, errors.TransferError)
        return kind(f"the hub answered with status {status}")
    kind = known.get(told.error, _BY_STATUS.get(status, errors.TransferError))
    if status >= 500:
        kind = errors.TransferError
    return kind(f"the hub says: {told.detail[:MAX_DETAIL]}")
