"""Routes of the audit trail: filter, page, verify, export. Reading it is not an event."""

from collections.abc import Iterator
from typing import Any, Literal

from litestar import get, post
from litestar.params import FromQuery
from litestar.response import Stream

from consilia.core import chain
from consilia.errors import ConfigError, Wrong
from consilia.node import audit, segments
from consilia.node.console.guard import anyone
from consilia.node.console.ledger import download
from consilia.node.console.paging import MOST, number
from consilia.node.console.services import Here, Services
from consilia.node.store import Store
from consilia.wire.console.site import AuditLine, AuditView, VerifiedView


@get("/audit", opt=anyone(), sync_to_thread=True)
def list_lines(  # noqa: PLR0913, PLR0917 - a filter's fields
    here: Here,
    before: FromQuery[int | None] = None,
    limit: FromQuery[int] = 100,
    actor: FromQuery[str] = "",
    action: FromQuery[str] = "",
    subject: FromQuery[str] = "",
    outcome: FromQuery[str] = "",
    text: FromQuery[str] = "",
    since: FromQuery[float | None] = None,
    until: FromQuery[float | None] = None,
) -> AuditView:
    """List audit lines, newest first. `action` and `subject` are beginnings, `text` a part."""
    where, values = _filter(actor, action, subject, outcome, text)
    least = None if before is None else number(before)
    for condition, value in (("seq < ?", least), ("at >= ?", since), ("at < ?", until)):
        if value is not None:
            where.append(condition)
            values.append(value)
    found = newest(here.store, where, values, limit)
    lines = tuple(AuditLine(*row) for row in found[:limit])
    return AuditView(
        lines,
        lines[-1].seq if len(found) > limit else None,
        tuple(sorted(_actions(here))),
        audit.head(here.store)[0],
    )


@post("/audit/verify", opt=anyone(), status_code=200, sync_to_thread=True)
def verify(here: Here) -> VerifiedView:
    """Check every line against the chain; locate the first broken one."""
    found = audit.verify(here.store)
    if isinstance(found, chain.Break):
        return VerifiedView(False, found.seq, found.reason)
    return VerifiedView(True, found[0], found[1])


@get("/audit/export", opt=anyone(), sync_to_thread=True)
def export(here: Here, format: FromQuery[Literal["csv", "json"]] = "csv") -> Stream:
    """Return the whole trail as CSV, or as one JSON object a line, digests included."""
    kind = {"csv": "text/csv", "json": "application/x-ndjson"}[format]
    end = {"csv": "csv", "json": "jsonl"}[format]
    lines: Iterator[str] = audit.export(here.store, format)
    return download(lines, kind, f"audit-{here.site}.{end}")


def newest(
    store: Store, where: list[str], values: list[Any], limit: int
) -> list[tuple[Any, ...]]:
    """Return up to limit + 1 audit rows that fit, newest first."""
    if not 1 <= limit <= MOST:
        raise ConfigError(Wrong("limit", f"{limit}", f"1 to {MOST}"))
    return audit.find(store, " AND ".join(where) or "true", tuple(values), limit + 1)


def _actions(here: Services) -> frozenset[str]:
    """Return every action of the trail. A closed segment is read once, a broken one never.

    What is wrong with a broken one is told by `verify`, and by a search that comes so far.
    """
    asked = "SELECT DISTINCT action FROM audit"
    found = frozenset(str(name) for (name,) in here.store.rows(asked))
    for segment in segments.closed(here.store):
        if segment.head not in here.actions:
            try:
                rows = segments.rows(here.store, segment, asked)
            except segments.Broken:
                continue
            here.actions[segment.head] = frozenset(str(name) for (name,) in rows)
        found |= here.actions[segment.head]
    return found


def _filter(
    actor: str, action: str, subject: str, outcome: str, text: str
) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    for column, value in (("actor", actor), ("outcome", outcome)):
        if value:
            where.append(f"{column} = ?")
            values.append(value)
    for column, value in (("action", action), ("subject", subject)):
        if value:
            where.append(f"substr({column}, 1, ?) = ?")
            values += [len(value), value]
    if text:
        where.append("instr(lower(detail || ' ' || subject || ' ' || actor), lower(?)) > 0")
        values.append(text)
    return where, values


ROUTES = (list_lines, verify, export)
