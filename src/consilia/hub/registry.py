"""The model registry: every closed round is a version, with its lineage and its frame."""

from collections.abc import Callable

from consilia.core.ids import digest as checked_digest
from consilia.errors import NotFound
from consilia.hub import records
from consilia.hub.blobs import Blob, Blobs
from consilia.hub.paging import Page
from consilia.hub.records import Version
from consilia.hub.store import Store

MAX_LINEAGE = 10_000


class Registry:
    """Versions to look up, and frames to download."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs

    async def get(self, id: str) -> Version:
        """Return version `<job>.<round>`, or raise NotFound."""
        return await self._store.read(lambda db: records.get_version(db, id))

    async def list(
        self, *, job: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[Version]:
        """Return versions, newest first."""
        return await self._store.read(
            lambda db: records.list_versions(db, job=job, limit=limit, cursor=cursor)
        )

    async def best(
        self, job: str, metric: str, better: Callable[[float, float], bool] = float.__lt__
    ) -> Version:
        """Return the version with the best (lowest, unless told) `metric`, or NotFound."""
        versions = await self._store.read(lambda db: records.job_versions(db, job))
        chosen: Version | None = None
        for version in versions:
            value = version.metrics.get(metric)
            if value is not None and (chosen is None or better(value, chosen.metrics[metric])):
                chosen = version
        if chosen is None:
            raise NotFound(f"job {job!r} has no model version with a metric {metric!r}")
        return chosen

    async def lineage(self, id: str) -> tuple[Version, ...]:
        """Return the version and its ancestors, newest first, as far as they are versions."""
        chain = [await self.get(id)]
        while (parent := chain[-1].parent) and len(chain) < MAX_LINEAGE:
            if parent.startswith("b3:"):
                break
            chain.append(await self.get(parent))
        return tuple(chain)

    def open_frame(self, digest: str) -> Blob:
        """Open a stored frame for reading, or raise NotFound. Blocks; any thread may call."""
        return self._blobs.open(checked_digest(digest))
