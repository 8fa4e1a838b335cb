"""Spools that no lease needs: what is left of uploads whose deletion a crash cut short."""

from collections.abc import Iterable, Mapping

from consilia.errors import NotFound
from consilia.hub import encrypted, records
from consilia.hub.job import LiveJob
from consilia.hub.store import Store


def made_anew(spool: str) -> bool:
    """Return whether a spool is of a round's close: one that was cut short begins anew."""
    return spool.startswith("close.") or encrypted.is_sum(spool)


async def find(
    spools: Iterable[str], jobs: Mapping[str, LiveJob], store: Store
) -> tuple[str, ...]:
    """Return those of `spools` that can go, given the live jobs by id."""
    needed = {
        lease.id
        for job in jobs.values()
        for lease in job.state.leases.values()
        if lease.status in ("out", "away", "accepted")
    }
    needed |= {encrypted.opened_of(lease) for lease in needed}
    rest = set(spools) - needed
    return tuple([name for name in sorted(rest) if await _unowned(name, jobs, store)])


async def _unowned(spool: str, jobs: Mapping[str, LiveJob], store: Store) -> bool:
    """Return whether a spool that no open lease needs belongs to nothing that may go on."""
    owner = spool.split(".", 1)[0]
    if not owner.startswith("job-"):
        return False  # a base frame on its way in
    if owner in jobs:
        return True
    try:
        record = await store.read(lambda db: records.get_job(db, owner))
    except NotFound:
        return True
    return record.phase == "done"  # a stopped or failed job may be resumed with what it has
