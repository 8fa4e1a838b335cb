"""What people meet of a hub, put together: its services, and the server in front of them.

The hub's process imports this module late: the web framework costs 0.4 s.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from consilia.hub.access import Access
from consilia.hub.blobs import Blobs
from consilia.hub.config import HubConfig
from consilia.hub.people.directories import make_directories
from consilia.hub.people.service import make_people
from consilia.hub.probes import Probe
from consilia.hub.rest.api import make_app
from consilia.hub.rest.limits import Limiter
from consilia.hub.rest.models import SPOOL
from consilia.hub.rest.repeats import repeatable
from consilia.hub.rest.services import Services
from consilia.hub.rest.snapshot import keeping, make_snapshot
from consilia.hub.rest.straight import straight
from consilia.hub.telemetry import Metrics
from consilia.web.server import PeopleServer

if TYPE_CHECKING:
    from consilia.hub.app import Hub, Outside


def make_services(  # noqa: PLR0913, PLR0917 - the parts it connects
    config: HubConfig,
    root: Path,
    hub: "Hub",
    access: Access,
    metrics: Metrics,
    outside: "Outside",
    origin: Callable[[], str],
    probes: Mapping[str, Probe],
) -> Services:
    """Connect a hub's parts for the people's routes; `origin()` is where people reach it.

    Blocks: it reads who there is.
    """
    return Services(
        config=config,
        store=hub.store,
        access=access,
        people=make_people(
            config,
            hub.store,
            access,
            origin=origin,
            now=outside.clock.now,
            random_bytes=outside.random_bytes,
            directories=make_directories(config.sign_in, root, outside.clock.now, outside.log),
            hasher=outside.hasher,
        ),
        blobs=hub.blobs,
        engine=hub.engine,
        metrics=metrics,
        log=outside.log,
        now=outside.clock.now,
        random_bytes=outside.random_bytes,
        stopping=asyncio.Event(),
        probes=probes,
    )


def make_server(services: Services, tls: ssl.SSLContext) -> PeopleServer:
    """Return the server of REST API and dashboard; it is not started."""
    snapshot = make_snapshot(services)
    limiter = Limiter(services.config.people, services.now)
    api = straight(make_app(services, limiter), services)
    return PeopleServer(
        keeping(repeatable(api, services, limiter), snapshot),
        tls,
        services.config.limits.people_connections,
        quick=snapshot.quick,
    )


def clear_spools(blobs: Blobs) -> None:
    """Drop base frames whose upload a crash cut short; people upload them again, whole."""
    for name in blobs.spools():
        if name.startswith(SPOOL):
            blobs.discard(name)
