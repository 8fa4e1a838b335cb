"""Sites that have left a study: on record, and marked on every model that used their records.

A site says which studies it has left (wire.v1.Advertisement.withdrawn). The mark is for people
to act on: what was trained stays as it is, and a model trained again without the site takes its
consent, since the old model less the new one tells about its patients alone.
"""

from collections.abc import Iterable

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.hub import tables
from consilia.hub.modelversions import Version
from consilia.wire.v1 import Advertisement, Study

_W = tables.withdrawals.c


def note(db: Connection, site: str, said: Advertisement, at: float) -> tuple[list[str], int]:
    """Put on record what a site says; return the digests it has newly left, and returns.

    Only studies of this hub that invite the site are taken. A site that accepts a study again
    has returned to it: the mark goes.
    """
    mine = {
        digest
        for terms in (tables.studies.c, tables.earlier_terms.c)
        for digest, body in db.execute(
            sa.select(terms.digest, terms.body).where(terms.digest.in_(said.withdrawn))
        )
        if site in msgspec.json.decode(body, type=Study).sites
    }
    before = set(db.execute(sa.select(_W.study_digest).where(_W.site == site)).scalars())
    news = sorted(mine - before)
    for digest in news:
        db.execute(tables.withdrawals.insert().values(site=site, study_digest=digest, at=at))
    back = before.intersection(said.studies)
    if back:
        db.execute(
            tables.withdrawals.delete().where(_W.site == site, _W.study_digest.in_(back))
        )
    return news, len(back)


def marks(db: Connection, versions: Iterable[Version]) -> dict[str, tuple[str, ...]]:
    """Return, by version id, the sites that it used and that have left its study since."""
    chosen = list(versions)
    digests = {v.study_digest for v in chosen}
    left: dict[str, set[str]] = {}
    found = sa.select(_W.study_digest, _W.site).where(_W.study_digest.in_(digests))
    for digest, site in db.execute(found):
        left.setdefault(str(digest), set()).add(str(site))
    return {
        v.id: tuple(sorted(left[v.study_digest].intersection(v.sites)))
        for v in chosen
        if v.study_digest in left
    }
