"""What of a study is pooled at its data centre: who trains in a job, and how federated that is.

Pure: from a study's terms and what its sites have said of themselves. A copy counts once the
data centre says that it holds what the site says it has sent, until the data centre says that
it has deleted it or the site withdraws.
"""

from collections.abc import Iterator, Mapping

from consilia.wire import pool
from consilia.wire.people import DegreeView, PooledSite
from consilia.wire.v1 import Advertisement, Study

Said = Mapping[str, Advertisement]  # by site


def standing(study: Study, digest: str | None, said: Said) -> dict[str, PooledSite]:
    """Return how far each site is that the study asks to pool."""
    copies = {
        s.site: s
        for s in _of(said, study.data_centre, digest)
        if isinstance(s, pool.Held | pool.Deleted)
    }
    return {site: _site(site, copies.get(site), digest, said) for site in study.pooled}


def _site(
    site: str, copy: pool.Held | pool.Deleted | None, digest: str | None, said: Said
) -> PooledSite:
    latest = next(
        (s for s in _of(said, site, digest) if isinstance(s, pool.Sent | pool.Withdrawn)),
        None,
    )
    gone = isinstance(latest, pool.Withdrawn) and copy and latest.upload == copy.upload
    if isinstance(copy, pool.Held) and latest is not None and not gone:
        return PooledSite(site, "held", copy.records)
    if isinstance(latest, pool.Sent):
        return PooledSite(site, "sent", latest.records)
    return PooledSite(site, "withdrawn" if latest is not None else "asked")


def _of(said: Said, site: str, digest: str | None) -> Iterator[pool.Statement]:
    """Yield what a site says of a study; its signature was checked when it advertised it."""
    for sealed in said[site].pool if site in said else ():
        found = pool.unverified(sealed)
        if found is not None and found.study == digest:
            yield found


def held(study: Study, digest: str | None, said: Said) -> frozenset[str]:
    """Return the sites whose records the data centre holds."""
    every = standing(study, digest, said).values()
    return frozenset(p.site for p in every if p.state == "held")


def trainers(study: Study, copies: frozenset[str]) -> tuple[str, ...]:
    """Return who trains where nobody is named: no record twice, none left out.

    () where the study has no data centre: every site.
    """
    if not study.data_centre:
        return ()
    at_home = [site for site in study.hospitals if site not in copies]
    return tuple(sorted([*at_home, *([study.data_centre] if copies else [])]))


def twice(study: Study, copies: frozenset[str], named: tuple[str, ...]) -> tuple[str, ...]:
    """Return the sites whose records would train twice: at home and at the data centre."""
    return tuple(sorted(copies & set(named))) if study.data_centre in named else ()


def degree(study: Study, digest: str | None, said: Said) -> DegreeView:
    """Return how federated a study is now, and how it will be once everybody has pooled."""
    found = standing(study, digest, said)
    copies = frozenset(p.site for p in found.values() if p.state == "held")
    hospitals = study.hospitals
    at_home = tuple(site for site in hospitals if site not in copies)
    counts = [
        _records(study, said[s]) for s in at_home if s in said and digest in said[s].studies
    ]
    away = sum(found[site].records for site in copies)
    total = sum(counts) + away
    return DegreeView(
        sites=len(at_home) / len(hospitals) if hospitals else 0.0,
        records=sum(counts) / total if total else None,
        planned=1 - len(study.pooled) / len(hospitals) if hospitals else 0.0,
        federated=at_home,
        pooled=tuple(found[site] for site in sorted(found)),
        data_centre=study.data_centre,
    )


def _records(study: Study, said: Advertisement) -> int:
    tags = set(study.tags)
    return max((d.records for d in said.datasets if tags <= set(d.tags)), default=0)
