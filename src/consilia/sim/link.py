"""What the listener would pass on between one node and the hub, as calls."""

import os
from collections.abc import Sequence
from pathlib import Path

from consilia.errors import WireError
from consilia.hub.federation import Federation
from consilia.wire import frames, v1
from consilia.wire.frames import Header

_CHUNK = 1 << 18  # bytes moved at a time


class Link:
    """A HubLink without a network."""

    def __init__(self, federation: Federation, site: str) -> None:
        """Speak as `site`."""
        self._federation = federation
        self._site = site

    async def poll(self, poll: v1.Poll) -> v1.Orders:
        """Return what the site should be working on, once that differs from what it does."""
        return await self._federation.poll(self._site, poll)

    async def report(self, sealed: v1.Sealed) -> v1.Verdict:
        """Bring a task's answer."""
        return await self._federation.report(self._site, sealed)

    async def advertise(self, sealed: v1.Sealed) -> v1.Verdict:
        """Tell the site's public state."""
        return await self._federation.advertise(self._site, sealed)

    async def catalogue(self) -> v1.Catalogue:
        """Return the studies and plans on offer to the site."""
        return await self._federation.catalogue(self._site)

    async def plan(self, digest: str) -> v1.Plan:
        """Return the plan of a digest."""
        return await self._federation.plan(self._site, digest)

    async def renew(self, renew: v1.Renew) -> v1.Enrolled:
        """Refuse: nothing is renewed here."""
        raise WireError("a simulated site's certificate outlives its simulation")

    def fetch(self, digest: str, path: Path, have: Sequence[Path] = ()) -> Header:
        """Write the frame of a digest to `path`."""
        part = path.with_name(f"{path.name}.part")
        with self._federation.readable(self._site, digest) as blob:
            copy(blob.fd, blob.size, part)
            self._federation.moved(self._site, "out", blob.size)
        part.replace(path)
        return frames.read_header(path)

    def upload(self, lease: str, path: Path) -> str:
        """Bring the frame at `path` as the update of a lease; return its digest."""
        upload = self._federation.upload(self._site, lease)
        try:
            with path.open("rb") as frame:
                frame.seek(upload.offset)
                while piece := frame.read(_CHUNK):
                    upload.write(memoryview(piece))
            return upload.finish().digest
        finally:
            upload.close()

    async def close(self) -> None:
        """Nothing is open."""


def copy(fd: int, size: int, path: Path) -> None:
    """Write the `size` bytes of a descriptor to `path`."""
    with path.open("wb") as out:
        for offset in range(0, size, _CHUNK):
            out.write(os.pread(fd, min(_CHUNK, size - offset), offset))
