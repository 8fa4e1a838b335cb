"""Sealed uploads on their way from a site to its study's data centre: pieces on this disk.

    DIR/<study>/<site>/<upload>/<number>

The hub cannot open them: they are sealed to the data centre's key. A piece is there whole or
not at all. Each site has one upload a study; a new one takes the place of the old, and what the
data centre holds, or a site withdraws, is deleted here, and so is what nobody took by the end
of its study (`hub/pool/ending`). What is lost here is sent again.
"""

import hashlib
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from consilia.core import ids
from consilia.errors import NotFound, Refused, WireError
from consilia.files import write_whole
from consilia.hub.records import StudyRecord
from consilia.wire import pool
from consilia.wire.v1 import Advertisement


@dataclass(frozen=True, slots=True)
class PoolRelay:
    """The folder of sealed uploads. Its methods block."""

    folder: Path

    def put(self, study: StudyRecord, site: str, upload: str, number: int, body: bytes) -> None:
        """Keep one piece of a site's upload; Refused unless the study asks it to pool."""
        if site not in study.study.pooled:
            raise Refused(f"study {study.study.name!r} does not ask site {site!r} to pool")
        if not 0 <= number < pool.MAX_PIECES or not 0 < len(body) <= pool.PIECE:
            raise WireError(
                f"piece {number} of {len(body)} bytes; needed number 0 to "
                f"{pool.MAX_PIECES - 1} and 1 to {pool.PIECE} bytes"
            )
        place = self._place(study, site, upload)
        if not place.exists():
            _remove(place.parent)
            place.mkdir(parents=True, mode=0o700)
        write_whole(place / str(number), body)

    def have(self, study: StudyRecord, site: str, upload: str) -> pool.Pieces:
        """Return which pieces are here."""
        place = self._place(study, site, upload)
        found = place.iterdir() if place.is_dir() else ()
        return pool.Pieces(tuple(sorted(int(p.name) for p in found if p.name.isdecimal())))

    def get(
        self, study: StudyRecord, reader: str, site: str, upload: str, number: int
    ) -> bytes:
        """Return a piece to the study's data centre; nobody else reads it."""
        if reader != study.study.data_centre:
            raise Refused(f"site {reader!r} is not the data centre of {study.study.name!r}")
        try:
            return (self._place(study, site, upload) / str(number)).read_bytes()
        except FileNotFoundError:
            raise NotFound(
                f"piece {number} of the upload of site {site!r} is not here"
            ) from None

    def studies(self) -> frozenset[str]:
        """Return the studies with uploads here, by the hex of their digests."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return frozenset(p.name for p in found if p.is_dir() and any(p.iterdir()))

    def lying(self, study: StudyRecord) -> tuple[str, ...]:
        """Return the sites of a study whose uploads are here."""
        asked, digest = study.study.pooled, study.digest or ""
        return tuple(site for site in asked if self._of(digest, site).is_dir())

    def forget(self, study: StudyRecord) -> None:
        """Delete every upload of a study."""
        _remove(self.folder / _hex(study.digest or ""))

    def settle(self, site: str, said: Advertisement, centre_of: Collection[str]) -> None:
        """Delete the uploads that a site's statements say are over.

        `centre_of` are the studies, by digest, whose data centre the site is: its word counts
        for the uploads of others there.
        """
        for sealed in said.pool:
            match pool.unverified(sealed):
                case pool.Withdrawn(study=study):
                    _remove(self._of(study, site))
                case (
                    pool.Held(study=study, site=source, upload=upload)
                    | pool.Deleted(study=study, site=source, upload=upload)
                ) if study in centre_of:
                    _remove(self._of(study, source) / _hex(upload))
                case _:
                    pass

    def _place(self, study: StudyRecord, site: str, upload: str) -> Path:
        return self._of(study.digest or "", site) / _hex(ids.digest(upload))

    def _of(self, study: str, site: str) -> Path:
        # a hash: the name of a site may be anything that a file name may not
        return self.folder / _hex(study) / hashlib.sha256(site.encode()).hexdigest()[:32]


def _hex(digest: str) -> str:
    found = digest.rpartition(":")[2]
    return found if found.isalnum() else "none"


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
