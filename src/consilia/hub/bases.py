"""What a job may start from: frames that people have uploaded, and versions with their frame.

Functions take a Connection, as those of hub/records do, and are called inside its transactions.
"""

import json

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.errors import Conflict
from consilia.hub import tables as t


def check_base(db: Connection, base: str | None) -> None:
    """Raise Conflict when retention has given up the frame of a version id or digest."""
    v = t.versions.c
    rows = db.execute(sa.select(v.deleted).where((v.id == base) | (v.digest == base))).all()
    sent = sa.select(t.uploads.c.digest).where(t.uploads.c.digest == base).limit(1)
    if rows and all(row.deleted for row in rows) and not db.execute(sent).first():
        raise Conflict(
            f"the frame of {(base or '')[:80]!r} was deleted by the hub's retention rule; "
            "start from a version that still has its frame, or upload the frame again"
        )


def based_on(db: Connection) -> frozenset[str]:
    """Return the version ids and frame digests that any job has started from."""
    naming = sa.select(t.jobs.c.experiment).where(t.jobs.c.experiment.contains('"base":"'))
    found = (json.loads(text).get("base") for text in db.execute(naming).scalars())
    return frozenset(base for base in found if base is not None)


def add_upload(db: Connection, digest: str, author: str, size: int, at: float) -> None:
    """Record that somebody has uploaded a frame; doing so again makes it new again."""
    u = t.uploads.c
    mine = (u.digest == digest) & (u.author == author)
    if not db.execute(sa.update(t.uploads).where(mine).values(at=at)).rowcount:
        row = {"digest": digest, "author": author, "bytes": size, "at": at}
        db.execute(sa.insert(t.uploads), row)


def uploaded_bytes(db: Connection, author: str) -> int:
    """Return the bytes of all frames that somebody has uploaded and that are kept."""
    total = sa.select(sa.func.sum(t.uploads.c.bytes)).where(t.uploads.c.author == author)
    return int(db.execute(total).scalar() or 0)


def has_uploaded(db: Connection, author: str, digest: str) -> bool:
    """Whether somebody has uploaded this frame themselves."""
    u = t.uploads.c
    mine = sa.select(u.digest).where(u.digest == digest, u.author == author)
    return db.execute(mine).first() is not None
