"""What people see of a site: what it last said of itself, and how it stands."""

from collections.abc import Iterable

import msgspec

from consilia.hub.records import SiteRecord
from consilia.wire.people import SiteView
from consilia.wire.v1 import Advertisement

Said = dict[str, Advertisement]  # by site, of the sites in force


def advertised(sites: Iterable[SiteRecord]) -> Said:
    """Return what the enrolled sites last said of themselves."""
    return {
        s.name: msgspec.msgpack.decode(s.advertisement, type=Advertisement)
        for s in sites
        if s.advertisement is not None and s.state == "enrolled"
    }


def site_view(record: SiteRecord, online: bool, last_seen: float | None) -> SiteView:
    """Show a site."""
    said = advertised([record]).get(record.name)
    return SiteView(
        name=record.name,
        state=record.state,
        online=online,
        last_seen=max(filter(None, (last_seen, record.last_seen)), default=None),
        certificate_expires=record.certificate_expires,
        version=said.version if said else "",
        datasets=tuple(d.name for d in said.datasets) if said else (),
        audit_length=said.audit_length if said else 0,
        audit_head=said.audit_head if said else "",
    )
