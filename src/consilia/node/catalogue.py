"""Take in what the hub offers: studies and plans become pending entries for people to decide.

Nothing here lets anything run. Each digest is computed at the site from the bytes received; a
hub that sends other bytes under a name is entered in the audit trail and its offer ignored.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from consilia.core import ids
from consilia.errors import ConfigError, Conflict, NotFound, PlanError, Refused, WireError
from consilia.node import approvals, attempts, heads, identity, peers, review, studies
from consilia.node.store import Store, printable
from consilia.wire.v1 import Catalogue, Plan, PlanEntry, Sealed

MAX_ENTRIES = 10_000  # studies, and plans, that one catalogue may list

_LOG = logging.getLogger("consilia.node.catalogue")


class Offers(Protocol):
    """Where the catalogue and the plans' sources come from."""

    async def catalogue(self) -> Catalogue:
        """Return what the hub offers this site."""

    async def plan(self, digest: str) -> Plan:
        """Return a plan's source."""


async def sync(
    link: Offers,
    store: Store,
    site: str,
    now: Callable[[], float],
    mirror: Callable[[Sealed | None], None] = lambda _: None,
) -> tuple[int, bool]:
    """Fetch the catalogue, take in what is new; return its version and whether anything was.

    `mirror` is given what the hub kept of this site's privacy ledger, first of all.
    Raises what the link raises; an offer that is malformed is skipped, and logged.
    """
    found = await link.catalogue()
    if max(map(len, (found.studies, found.plans, found.ended))) > MAX_ENTRIES:
        raise WireError(f"the hub's catalogue lists more than {MAX_ENTRIES} entries")
    await asyncio.to_thread(mirror, found.mirror)
    await asyncio.to_thread(_take_head, found, store, now)
    news = await asyncio.to_thread(_take_studies, found, store, site, now)
    for entry in found.plans:
        try:
            news = await _take_plan(link, store, entry, now) or news
        except (WireError, PlanError, Conflict, ConfigError, NotFound, Refused) as e:
            _LOG.warning("plan %s not taken in: %s", printable(entry.digest, 80), e)
            what = ("plan.offer", entry.digest[:200], str(e), now())
            await asyncio.to_thread(attempts.note, store, *what)
    return found.version, news


def _take_head(found: Catalogue, store: Store, now: Callable[[], float]) -> None:
    """Keep what the hub signs of its own trail. What it offers is judged by itself."""
    if found.head is None and heads.newest(store) is None:
        return
    try:
        heads.take(store, found.head, identity.hub_key(store.path.parent), now())
    except ConfigError as e:
        _LOG.error("what the hub signed of its audit trail cannot be checked: %s", e)


def _take_studies(found: Catalogue, store: Store, site: str, now: Callable[[], float]) -> bool:
    peers.told(store, found.keys, now())
    news = False
    for study in found.studies:
        try:
            if site not in study.sites:
                raise WireError(f"study {study.name[:63]!r} does not invite this site")
            news = studies.offer(store, study, now()) or news
        except (WireError, Conflict) as e:
            _LOG.warning("study not taken in: %s", printable(str(e), 400))
            attempts.note(store, "study.offer", study.name[:200], str(e), now())
    return bool(studies.end(store, found.ended, now())) or news


async def _take_plan(
    link: Offers, store: Store, entry: PlanEntry, now: Callable[[], float]
) -> bool:
    digest = ids.digest(entry.digest)
    study = ids.name(entry.study, "study")
    if not studies.known(store, study):  # each name it is offered for is kept
        raise NotFound(f"it is offered for {study!r}, a study that does not invite this site")
    if approvals.known(store, digest):
        return await asyncio.to_thread(approvals.note_offer, store, digest, study)
    plan = await link.plan(digest)
    return await asyncio.to_thread(_take_source, store, plan, entry, now())


def _take_source(store: Store, plan: Plan, entry: PlanEntry, now: float) -> bool:
    digest, study = entry.digest, entry.study
    new = approvals.offer(store, plan, digest, study=study, author=entry.author, now=now)
    if new:
        review.consider(store, digest, now)
    return new
