"""Rows of model versions: what each closed round of a job has made, with its lineage.

Functions take a Connection, as those of hub/records do, and are called inside its transactions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.hub import tables as t
from consilia.hub.paging import Listing, Page
from consilia.hub.people.roles import Seeing
from consilia.hub.records import document, one, read_document, seen_studies
from consilia.wire.people import Strategy
from consilia.wire.v1 import Arguments, Metrics

ALARMS = "hub.alarms"  # metric: how many there were (hub.watching)
_DOCUMENTS = ("arguments", "strategy", "sites", "metrics", "rejected")


@dataclass(frozen=True, slots=True)
class Version:
    """A model version with its lineage."""

    id: str  # <job>.<round>
    job: str
    round: int
    digest: str  # of the frame
    bytes: int
    parent: str | None  # version id or frame digest
    study: str  # name
    study_digest: str
    plan: str
    arguments: Arguments
    strategy: Strategy
    sites: tuple[str, ...]
    records: int
    metrics: Metrics
    created: float
    seconds: float = 0.0
    optimizer: str | None = None  # digest of the strategy's state, if it has any
    rejected: dict[str, str] = field(default_factory=dict)  # site -> cause
    bytes_in: int = 0
    bytes_out: int = 0
    deleted: float | None = None  # when retention gave its frame up
    alarms: tuple[str, ...] = ()  # kept in the journal, with the event Closed


def add(db: Connection, version: Version) -> None:
    """Record a model version; its job is there already."""
    documents = {name: document(getattr(version, name)) for name in _DOCUMENTS}
    fields = {name: getattr(version, name) for name in version.__slots__ if name != "alarms"}
    db.execute(sa.insert(t.versions), fields | documents)


def add_metrics(db: Connection, id: str, metrics: Metrics) -> Metrics:
    """Add metrics to a model version that was evaluated; return all it has now."""
    merged = {**get(db, id).metrics, **metrics}
    v = t.versions.c
    db.execute(sa.update(t.versions).where(v.id == id).values(metrics=document(merged)))
    return merged


def get(db: Connection, id: str) -> Version:
    """Return a model version or raise NotFound."""
    query = sa.select(t.versions).where(t.versions.c.id == id)
    return _version(one(db, query, f"model version {id!r}"))


def latest(db: Connection, job: str) -> Version | None:
    """The newest model version of a job, None when it has none."""
    query = sa.select(t.versions).where(t.versions.c.job == job)
    row = db.execute(query.order_by(t.versions.c.round.desc()).limit(1)).first()
    return None if row is None else _version(row)


def of_job(db: Connection, job: str) -> tuple[Version, ...]:
    """Every model version of a job, in the order of its rounds."""
    query = sa.select(t.versions).where(t.versions.c.job == job).order_by(t.versions.c.round)
    found = tuple(map(_version, db.execute(query)))
    if not any(ALARMS in version.metrics for version in found):
        return found
    j = t.journal.c
    query = sa.select(j.body).where(j.job == job, j.type == "Closed")
    closed = (json.loads(body) for body in db.scalars(query))
    raised = {c["round"]: tuple(c["alarms"]) for c in closed if c.get("alarms")}
    return tuple(replace(v, alarms=raised.get(v.round, ())) for v in found)


def last_rounds(db: Connection, jobs: Sequence[str]) -> dict[str, int]:
    """Return the last closed round of each of these jobs that has any."""
    v = t.versions.c
    query = sa.select(v.job, sa.func.max(v.round)).where(v.job.in_(jobs)).group_by(v.job)
    return {str(job): int(round) for job, round in db.execute(query)}


def lineage(db: Connection, id: str, most: int = 1000) -> tuple[str, ...]:
    """Return a version's id and those it was trained from, back to the first; at most `most`.

    The last entry may be a frame digest: a base model that somebody has uploaded.
    """
    v = t.versions.c
    line = (
        sa.select(v.id, v.parent, sa.literal(1).label("step"))
        .where(v.id == id)
        .cte(recursive=True)
    )
    before = sa.select(v.id, v.parent, line.c.step + 1).where(
        v.id == line.c.parent, line.c.step < most
    )
    rows = db.execute(sa.select(line.union_all(before)).order_by(sa.text("step"))).all()
    ids = [row.id for row in rows]
    last = rows[-1].parent if rows else None
    return (*ids, last) if last is not None and len(ids) < most else tuple(ids)


def uses_optimizer(db: Connection, digest: str) -> bool:
    """Whether any job would go on from this state of a strategy."""
    v = t.versions.c
    return db.execute(sa.select(v.id).where(v.optimizer == digest).limit(1)).first() is not None


def page(  # noqa: PLR0913 - a list's filters
    db: Connection,
    *,
    job: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
    author: Seeing | None = None,
    among: "sa.Select[tuple[str]] | None" = None,
    also: sa.ColumnElement[bool] | None = None,
) -> Page[Version]:
    """Model versions, newest first: all, or those of the studies that `author` sees.

    `also`: versions that they see besides. `among`: no others than these.
    """
    found = _VERSIONS if job is None else _VERSIONS.where(t.versions.c.job == job)
    if among is not None:
        found = found.where(t.versions.c.id.in_(among))
    if author is not None:
        seen = t.versions.c.study.in_(seen_studies(author))
        found = found.where(seen if also is None else seen | also)
    return found.page(db, limit, cursor)


def _version(row: Any) -> Version:
    fields = dict(row._mapping)
    kinds: tuple[Any, ...] = (Arguments, Strategy, tuple[str, ...], Metrics, dict[str, str])
    for name, kind in zip(_DOCUMENTS, kinds, strict=True):
        fields[name] = read_document(fields[name], kind)
    return Version(**fields)


_VERSIONS = Listing(sa.select(t.versions), (t.versions.c.created, t.versions.c.id), _version)
