"""This API as an OpenAPI 3.1 document, made from the routes themselves and their records.

Schemas come from msgspec, which also decodes the bodies, so the document and the behaviour
cannot differ; each operation names the roles that it admits as `x-roles`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from litestar import Response
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter, QueryParameter
from litestar.typing import FieldDefinition

from consilia import __version__
from consilia.wire.people import ProblemView

OPEN = "open"  # as a route's roles: it asks nobody who they are
_REF = "#/components/schemas/{name}"
_BEARER = MappingProxyType({"type": "http", "scheme": "bearer"})
_PROBLEM = "application/problem+json"


def _own_roles(handler: HTTPRouteHandler) -> Any:
    """Return the roles that a route names itself."""
    return handler.opt.get("roles", frozenset())


def document(
    routes: Iterable[tuple[str, HTTPRouteHandler]],
    title: str = "Consilia hub",
    security: Mapping[str, Any] = _BEARER,
    roles: Callable[[HTTPRouteHandler], Any] = _own_roles,
) -> dict[str, Any]:
    """Describe (path, handler) pairs.

    `security` is how callers say who they are, `roles(handler)` whom an operation admits.
    """
    pairs = sorted(routes, key=lambda pair: pair[0])
    kinds: list[Any] = [ProblemView]
    for _, handler in pairs:
        kinds += _kinds(handler)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    by_kind = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for path, handler in pairs:
        plain = re.sub(r"\{(\w+):\w+\}", r"{\1}", path)
        for method in handler.http_methods:
            operation = _operation(handler, by_kind, roles(handler))
            paths.setdefault(plain, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": dict(security)},
        },
    }


def _operation(
    handler: HTTPRouteHandler, schemas: dict[str, Any], roles: Any
) -> dict[str, Any]:
    text = (handler.fn.__doc__ or "").strip()
    operation: dict[str, Any] = {
        "operationId": handler.handler_name,
        "summary": text.partition("\n")[0],
        "description": re.sub(r"\s*\n\s*", " ", text),
        "parameters": list(_parameters(handler, schemas)),
        "responses": _responses(handler, schemas),
    }
    if roles != OPEN:
        operation["security"] = [{"token": []}]
        operation["x-roles"] = sorted(roles)
    if body := _fields(handler).get("data"):
        content = {"application/json": {"schema": schemas[repr(body.annotation)]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(handler: HTTPRouteHandler, schemas: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for name, field in _fields(handler).items():
        place = _place(field)
        if place:
            schema = dict(schemas[repr(field.annotation)])
            if place == "query" and field.has_default and field.default is not None:
                schema["default"] = field.default
            yield {"name": name, "in": place, "required": place == "path", "schema": schema}


def _responses(handler: HTTPRouteHandler, schemas: dict[str, Any]) -> dict[str, Any]:
    answer = _answer(handler)
    good: dict[str, Any] = {"description": "done"}
    if answer is not None:
        good["content"] = {"application/json": {"schema": schemas[repr(answer)]}}
    problem = {_PROBLEM: {"schema": schemas[repr(ProblemView)]}}
    return {
        str(handler.status_code): good,
        "default": {"description": "a problem", "content": problem},
    }


def _kinds(handler: HTTPRouteHandler) -> Iterable[Any]:
    for name, field in _fields(handler).items():
        if name == "data" or _place(field):
            yield field.annotation
    if (answer := _answer(handler)) is not None:
        yield answer


def _answer(handler: HTTPRouteHandler) -> Any:
    """Return the record a route answers with, None when it answers bytes or nothing."""
    kind = handler.parsed_fn_signature.return_type.annotation
    origin = getattr(kind, "__origin__", kind)
    if origin is Response:  # a record with cookies or headers of its own
        kind = kind.__args__[0]
        origin = getattr(kind, "__origin__", kind)
    known = isinstance(origin, type) and issubclass(origin, msgspec.Struct | dict | list)
    return kind if known else None


def _fields(handler: HTTPRouteHandler) -> dict[str, FieldDefinition]:
    return handler.parsed_fn_signature.parameters


def _place(field: FieldDefinition) -> str:
    if isinstance(field.kwarg_definition, PathParameter):
        return "path"
    return "query" if isinstance(field.kwarg_definition, QueryParameter) else ""
