"""Routes of the audit trail: for operators and auditors."""

from litestar import get
from litestar.params import FromQuery
from sqlalchemy import Connection

from consilia.core.chain import Break
from consilia.errors import ConfigError
from consilia.hub import audit
from consilia.hub.paging import MAX_PAGE
from consilia.hub.rest.guard import allow
from consilia.hub.rest.services import Hub
from consilia.hub.rest.views import audit_view
from consilia.wire.people import AuditCheckView, AuditView, Page

TRUSTED = allow("operator", "auditor")


@get("/audit", opt=TRUSTED)
async def list_lines(
    hub: Hub, after: FromQuery[int] = 0, limit: FromQuery[int] = 100
) -> Page[AuditView]:
    """List audit lines after number `after`, oldest first. `next`: give it back as `after`."""
    if not 1 <= limit <= MAX_PAGE:
        raise ConfigError(f"limit {limit} is out of range: a page holds 1 to {MAX_PAGE}")

    def read(db: Connection) -> tuple[AuditView, ...]:
        return tuple(audit_view(entry) for entry in audit.lines(db, max(after, 0), limit))

    items = await hub.store.read(read)
    return Page(items=items, next=str(items[-1].seq) if len(items) == limit else None)


@get("/audit/verify", opt=TRUSTED)
async def verify(hub: Hub) -> AuditCheckView:
    """Check the whole chain."""

    def read(db: Connection) -> AuditCheckView:
        length, head = audit.head(db)
        found = audit.check(db)
        if isinstance(found, Break):
            return AuditCheckView(
                intact=False, lines=length, head=head, broken_at=found.seq, reason=found.reason
            )
        return AuditCheckView(intact=True, lines=found[0], head=found[1])

    return await hub.store.read(read)
