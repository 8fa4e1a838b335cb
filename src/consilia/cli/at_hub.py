"""The operator's desk on the hub's machine, whether the hub runs or not.

The running hub is asked over its own REST API, with the operator's token that lies in its
directory: what is changed there takes effect at once, on live connections too. Without one,
the same steps are done on the database.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from consilia.errors import TransferError
from consilia.wire.people import JoinTokenView, SiteView, TokenView

if TYPE_CHECKING:
    from consilia.hub.access import Access
    from consilia.hub.records import SiteRecord
    from consilia.hub.store import Store

T = TypeVar("T")
ACTOR = "user:operator"  # as the running hub would name who has the operator's token


class Desk(Protocol):
    """What an operator can do; `sdk.client.Client` is one."""

    def invite(self, site: str, hours: float = 72.0) -> JoinTokenView:
        """Make a one-time join token for a site."""

    def revoke_site(self, site: str) -> SiteView:
        """Shut a site out."""

    def sites(self) -> list[SiteView]:
        """List the sites."""

    def new_token(self, name: str, role: str, days: int = 90) -> TokenView:
        """Make an API token."""

    def tokens(self) -> list[TokenView]:
        """List API tokens."""

    def revoke_token(self, id: str) -> None:
        """Revoke an API token."""


@contextmanager
def operator(directory: Path) -> Iterator[Desk]:
    """Yield the desk of the hub in `directory`; ConfigError when there is none."""
    from consilia.hub import config

    config.load(directory)  # says so when this is no hub's directory
    layout = config.Directory(directory)
    try:
        addresses = msgspec.json.decode(layout.addresses.read_bytes())
        token = layout.operator_token.read_text("ascii").strip()
    except (OSError, ValueError):
        addresses = None
    if addresses is not None:
        from consilia.sdk.client import Client

        with Client(
            addresses["people"], token, layout.secrets / "ca.pem", environ={}, timeout=10.0
        ) as client:
            try:
                client.whoami()
            except TransferError:
                pass  # the hub was killed and left the file behind
            else:
                yield client
                return
    from consilia.hub.atrest import at_rest

    with at_rest(directory) as (store, access):
        yield _AtDatabase(store, access)


class _AtDatabase:
    """The same steps on the database of a hub that does not run."""

    def __init__(self, store: "Store", access: "Access") -> None:
        self._store = store
        self._access = access

    def invite(self, site: str, hours: float = 72.0) -> JoinTokenView:
        return asyncio.run(self._access.invite(site, hours, ACTOR))

    def revoke_site(self, site: str) -> SiteView:
        from consilia.hub import records

        asyncio.run(self._access.revoke(site, ACTOR))
        return _site(self._store.read_now(lambda db: records.get_site(db, site)))

    def sites(self) -> list[SiteView]:
        from consilia.hub import records

        return [_site(record) for record in self._store.read_now(records.every_site)]

    def new_token(self, name: str, role: str, days: int = 90) -> TokenView:
        return asyncio.run(self._access.make_token(name, role, days, ACTOR))

    def tokens(self) -> list[TokenView]:
        from consilia.hub import credentials
        from consilia.hub.paging import everything

        found = self._store.read_now(
            lambda db: everything(lambda cursor: credentials.list_tokens(db, cursor=cursor))
        )
        now = time.time()
        return [
            TokenView(id=t.id, name=t.name, role=t.role, expires=t.expires)
            for t in found
            if t.revoked is None and t.expires > now
        ]

    def revoke_token(self, id: str) -> None:
        asyncio.run(self._access.revoke_token(id, ACTOR))


def _site(record: "SiteRecord") -> SiteView:
    """Show a site of a hub that does not run: nobody is online."""
    from consilia.hub.siteviews import site_view

    return site_view(record, online=False, last_seen=None)
