"""Routes of the audit trail: for operators and auditors."""

from collections.abc import AsyncIterator
from functools import partial

from litestar import get
from litestar.params import FromQuery
from litestar.response import Stream
from sqlalchemy import Connection

from consilia.core import ids
from consilia.core.chain import GENESIS, Break, Line
from consilia.hub import audit
from consilia.hub.paging import MAX_LINE, MAX_PAGE, within
from consilia.hub.rest.guard import Who
from consilia.hub.rest.services import Hub, Services
from consilia.hub.rest.views import audit_view
from consilia.wire import trail
from consilia.wire.people import AuditCheckView, AuditView, Page

PIECE = 1000  # lines of an export that are read at once


@get("/audit")
async def list_lines(
    hub: Hub,
    after: FromQuery[int] = 0,
    limit: FromQuery[int] = 100,
    before: FromQuery[int | None] = None,
) -> Page[AuditView]:
    """List audit lines after number `after`, oldest first. `next`: give it back as `after`.

    With `before` (0: from the end) those before that number, newest first, and `next` is the
    `before` to go on with.
    """
    within(limit, "limit", 1, MAX_PAGE)
    within(after, "after", 0, MAX_LINE)
    within(before or 0, "before", 0, MAX_LINE)

    def read(db: Connection) -> Page[AuditView]:
        if before is not None:
            return _backwards(db, before or audit.head(db)[0] + 1, limit)
        items = tuple(audit_view(entry) for entry in audit.lines(db, after, limit))
        return Page(items=items, next=str(items[-1].seq) if len(items) == limit else None)

    return await hub.store.read(read)


def _backwards(db: Connection, before: int, limit: int) -> Page[AuditView]:
    """Return the lines before number `before`, newest first."""
    after = max(0, before - 1 - limit)
    found = [audit_view(e) for e in audit.lines(db, after, limit) if e.line.seq < before]
    return Page(items=tuple(reversed(found)), next=str(after + 1) if after else None)


@get("/audit/export")
async def export(hub: Hub, who: Who, format: FromQuery[trail.Format] = "csv") -> Stream:
    """Return the whole trail as one file: CSV, or a JSON object per line."""
    at = hub.now()
    last = await hub.store.write(
        lambda db: audit.append(db, at, who.actor, "audit.export", "hub", detail=format)
    )
    name = f"attachment; filename={hub.config.name}-audit.{format}"
    return Stream(
        _texts(hub, last.line.seq, format),
        media_type="text/csv" if format == "csv" else "application/x-ndjson",
        headers={"Content-Disposition": name},
    )


async def _texts(hub: Services, last: int, format: trail.Format) -> AsyncIterator[str]:
    """Yield the lines up to number `last`, a page at a time: the trail may be long."""
    after = 0
    while after < last:
        count = min(PIECE, last - after)
        page = await hub.store.read(partial(_page, after=after, count=count))
        texts = trail.export(page, format)
        if after and format == "csv":
            next(texts)  # one header is enough
        yield "".join(texts)
        after += count


def _page(db: Connection, after: int, count: int) -> list[tuple[Line, str]]:
    return [(entry.line, entry.digest) for entry in audit.lines(db, after, count)]


@get("/audit/verify")
async def verify(
    hub: Hub, length: FromQuery[int] = 0, digest: FromQuery[str] = GENESIS
) -> AuditCheckView:
    """Check the whole chain, and that it holds a head kept earlier: `length` and `digest`."""
    within(length, "length", 0, MAX_LINE)
    ids.digest(digest)

    def read(db: Connection) -> AuditCheckView:
        lines, head = audit.head(db)
        found = audit.check(db, length, digest)
        if isinstance(found, Break):
            return AuditCheckView(
                intact=False, lines=lines, head=head, broken_at=found.seq, reason=found.reason
            )
        return AuditCheckView(intact=True, lines=found[0], head=found[1])

    return await hub.store.read(read)
