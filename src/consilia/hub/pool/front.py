"""What nodes ask about pooled datasets, on the control road under /v1/pool.

    GET /v1/pool                              the board: what the site's partners have said
    GET /v1/pool/STUDY/SITE/UPLOAD            which pieces of an upload are here
    PUT /v1/pool/STUDY/SITE/UPLOAD/NUMBER     one piece, from the site itself
    GET /v1/pool/STUDY/SITE/UPLOAD/NUMBER     one piece, to the study's data centre

STUDY is the digest of a study that is submitted, invites the caller and has not ended.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection

from consilia.errors import NotFound, Refused, WireError
from consilia.hub import records
from consilia.hub.pool.ending import ended
from consilia.hub.pool.relay import PoolRelay
from consilia.hub.records import StudyRecord
from consilia.hub.siteviews import advertised
from consilia.hub.store import Store
from consilia.wire import pool
from consilia.wire.v1 import Advertisement, Sealed

_NUMBER = re.compile("[0-9]{1,6}")  # of a piece


@dataclass(frozen=True, slots=True)
class PoolFront:
    """Answers nodes; `relay` keeps the pieces, `now()` is Unix seconds."""

    store: Store
    relay: PoolRelay
    now: Callable[[], float]

    async def answer(self, site: str, method: str, path: str, body: bytes) -> object:
        """Return the record, or the bytes, that a node asks for."""
        match method, path.split("/")[3:]:
            case "GET", []:
                return await self.store.read(lambda db: board(db, site))
            case "GET", [study, source, upload]:
                found = await self._study(site, study)
                return await asyncio.to_thread(self.relay.have, found, source, upload)
            case "GET", [study, source, upload, number] if _NUMBER.fullmatch(number):
                found = await self._study(site, study)
                wanted = (found, site, source, upload, int(number))
                return await asyncio.to_thread(self.relay.get, *wanted)
            case "PUT", [study, source, upload, number] if _NUMBER.fullmatch(number):
                found = await self._study(site, study)
                if source != site:
                    raise Refused(f"site {site!r} uploads in the name of {source[:63]!r}")
                await asyncio.to_thread(self.relay.put, found, site, upload, int(number), body)
                return pool.Pieces((int(number),))
        raise NotFound(f"{method} {path[:200]!r} is not on the control road")

    async def settle(self, site: str, said: Advertisement) -> None:
        """Delete the uploads that a site's statements say are over."""
        theirs = await self.store.read(lambda db: records.every_study_of(db, site))
        centre = {s.digest or "" for s in theirs if s.study.data_centre == site}
        await asyncio.to_thread(self.relay.settle, site, said, centre)

    async def _study(self, site: str, digest: str) -> StudyRecord:
        theirs = await self.store.read(lambda db: records.studies_of(db, site))
        for found in theirs:
            if found.digest == digest:
                if why := ended(found, date.fromtimestamp(self.now())):
                    raise Refused(f"study {found.study.name!r} pools nothing any more: {why}")
                return found
        raise NotFound(f"no open study {digest[:80]!r} invites site {site!r}")


def board(db: Connection, site: str) -> pool.Board:
    """Return what the partners of a site have said, study by study, and which are open.

    A data centre reads all sites that pool with it, each of them reads the data centre.
    """
    theirs = [s for s in records.studies_of(db, site) if s.study.data_centre]
    said = advertised(records.every_site(db))
    heard: list[Sealed] = []
    for found in theirs:
        study = found.study
        mine = study.data_centre == site
        partners = study.pooled if mine else (study.data_centre,)
        for partner in partners:
            statements = said[partner].pool if partner in said else ()
            heard += [s for s in statements if _about(s, found.digest or "")]
    return pool.Board(tuple(heard), tuple(s.digest or "" for s in theirs))


def _about(sealed: Sealed, study: str) -> bool:
    found = pool.unverified(sealed)
    return found is not None and found.study == study


def check(site: str, said: Advertisement, key: bytes) -> None:
    """Raise WireError, or AuthError, for statements that the site's node would not make."""
    if len(said.pool) > pool.MAX_STATEMENTS:
        raise WireError(
            f"site {site!r} makes {len(said.pool)} statements about pooled datasets, limit "
            f"{pool.MAX_STATEMENTS}"
        )
    for sealed in said.pool:
        if sealed.site != site:
            raise WireError(f"site {site!r} speaks in the name of {sealed.site[:63]!r}")
        pool.read(sealed, key)
