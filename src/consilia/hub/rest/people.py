"""Routes of API tokens and sites: who may speak to the hub."""

from litestar import delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from sqlalchemy import Connection

from consilia import __version__
from consilia.core import ids
from consilia.hub import credentials, records
from consilia.hub.records import SiteRecord
from consilia.hub.rest.guard import Who
from consilia.hub.rest.services import Hub, Services
from consilia.hub.siteviews import site_view
from consilia.wire.people import (
    Invite,
    JoinTokenView,
    NewToken,
    Page,
    SiteView,
    TokenView,
    WhoamiView,
)

SEE_SITES = frozenset({"operator", "researcher", "reviewer", "auditor"})


@get("/whoami")
async def whoami(hub: Hub, who: Who) -> WhoamiView:
    """Tell whose token this is."""
    return WhoamiView(
        name=who.name,
        role=who.role,
        roles=tuple(sorted(who.every)),
        hub=hub.config.name,
        version=__version__,
    )


@get("/tokens")
async def list_tokens(
    hub: Hub, limit: FromQuery[int] = 100, cursor: FromQuery[str | None] = None
) -> Page[TokenView]:
    """List API tokens in force, newest first, without their secrets."""

    def read(db: Connection) -> Page[TokenView]:
        page, now = credentials.list_tokens(db, limit=limit, cursor=cursor), hub.now()
        views = (
            TokenView(id=t.id, name=t.name, role=t.role, expires=t.expires)
            for t in page.items
            if t.revoked is None and t.expires > now
        )
        return Page(items=tuple(views), next=page.next)

    return await hub.store.read(read)


@post("/tokens")
async def make_token(hub: Hub, who: Who, data: JSONBody[NewToken]) -> TokenView:
    """Make an API token; its secret is in this answer and nowhere else."""
    return await hub.access.make_token(data.name, data.role, data.days, who.actor)


@delete("/tokens/{id:str}")
async def revoke_token(hub: Hub, who: Who, id: FromPath[str]) -> None:
    """Void an API token from its next request on."""
    await hub.access.revoke_token(id, who.actor)


@get("/sites")
async def list_sites(
    hub: Hub, who: Who, limit: FromQuery[int] = 100, cursor: FromQuery[str | None] = None
) -> Page[SiteView]:
    """List sites by name; a data manager, who is no more than that, sees their own."""
    if not who.roles & SEE_SITES:

        def own(db: Connection) -> tuple[SiteView, ...]:
            known = [s for s in records.every_site(db) if s.name == who.site]
            return tuple(_view(hub, site) for site in known)

        return Page(items=await hub.store.read(own))
    page = await hub.store.read(lambda db: records.list_sites(db, limit=limit, cursor=cursor))
    return Page(items=tuple(_view(hub, site) for site in page.items), next=page.next)


@post("/sites")
async def invite_site(hub: Hub, who: Who, data: JSONBody[Invite]) -> JoinTokenView:
    """Make a one-time join token for a site; shown once."""
    return await hub.access.invite(data.site, data.hours, who.actor)


@post("/sites/{name:str}/revoke", status_code=200)
async def revoke_site(hub: Hub, who: Who, name: FromPath[str]) -> SiteView:
    """Shut a site out from its next request on; its leases are taken back."""
    ids.name(name, "site")
    await hub.access.revoke(name, who.actor)
    hub.engine.revoked(name)
    return _view(hub, await hub.store.read(lambda db: records.get_site(db, name)))


def _view(hub: Services, site: SiteRecord) -> SiteView:
    presence = hub.engine.presence
    online = site.state == "enrolled" and presence.online(site.name)
    return site_view(site, online, presence.last_seen(site.name))
