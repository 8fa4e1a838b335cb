"""What people see of a job: its state, its closed rounds, what happened when."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from consilia.hub import journal, records, statistics
from consilia.hub.assessing import HOLDOUT
from consilia.hub.job import TICKS, LiveJob, Progressed
from consilia.hub.modelversions import Version
from consilia.hub.readiness import doing
from consilia.hub.records import JobRecord
from consilia.privacy.estimate import spent
from consilia.wire.people import JobView, ModelView, RoundView
from consilia.wire.v1 import Privacy

MAX_EVENTS = 500  # in one answer


@dataclass(frozen=True, slots=True)
class Item:
    """One event; `seq` is the cursor to continue after it."""

    seq: int
    at: float
    type: str  # class name in core.round, or "Progress"
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Feed:
    """Events in order, and the cursor to ask on with."""

    items: tuple[Item, ...]
    next: int


def live(
    job: LiveJob, versions: Sequence[Version], lacking: Mapping[str, str | None]
) -> JobView:
    """Return a job that is in memory; `lacking` tells what keeps each site from taking part."""
    state, book = job.state, job.book
    cause = state.cause
    if state.phase == "waiting":
        why = [f"{site} {reason}" for site, reason in lacking.items() if reason]
        cause = "; ".join((cause, *why)) if cause else "; ".join(why)
    return JobView(
        id=job.id,
        experiment=msgspec.structs.replace(
            book.record.experiment,
            rounds=state.config.rounds,  # a resume may have added some
        ),
        state=state.phase,
        pausing=bool(state.pause),
        round=min(state.round, state.config.rounds),
        cause=cause,
        author=book.record.author,
        created=book.record.created,
        sites=doing(state, lacking),
        progress={site: item.fraction for site, item in book.progress.items()},
        rounds=round_views(job.book.record, versions),
    )


def finished(record: JobRecord, versions: Sequence[Version], last: int = 0) -> JobView:
    """Return a job that is not in memory: done, or stopped before a restart.

    `last` is its last closed round, for lists, where `versions` is empty.
    """
    last = versions[-1].round if versions else last
    asked = record.experiment
    return JobView(
        id=record.id,
        experiment=msgspec.structs.replace(asked, rounds=max(asked.rounds, last)),
        state=record.phase,
        round=last,
        cause=record.cause,
        author=record.author,
        created=record.created,
        sites={},
        progress={},
        rounds=round_views(record, versions),
    )


def round_views(record: JobRecord, versions: Sequence[Version]) -> tuple[RoundView, ...]:
    """Return the closed rounds, with what each has brought a site's epsilon to.

    Rounds that had to be repeated cost a site more: its own ledger is the truth.
    """
    dp = record.experiment.privacy.dp if record.experiment.privacy else None
    packed = record.experiment.compress != "none"
    views = tuple(_saved(v) if packed else round_view(v) for v in versions)
    if dp is None:
        return views
    return tuple(
        msgspec.structs.replace(v, epsilon=spent(record.experiment, v.round, judged(views, n)))
        for n, v in enumerate(views)
    )


def judged(rounds: Sequence[RoundView], last: int) -> int:
    """Return how many models, up to a place in `rounds`, the job has evaluated."""
    return sum(any(name.startswith(HOLDOUT) for name in r.metrics) for r in rounds[: last + 1])


def _saved(version: Version) -> RoundView:
    """Return a closed round of compressed updates: with what whole ones would have taken more.

    The init round's model is whole.
    """
    whole = len(version.sites) * version.bytes if version.round else 0
    saved = max(0, whole - version.bytes_in)
    return msgspec.structs.replace(round_view(version), bytes_saved=saved)


def round_view(version: Version) -> RoundView:
    """Return one closed round."""
    return RoundView(
        round=version.round,
        seconds=version.seconds,
        sites=version.sites,
        records=version.records,
        metrics=version.metrics,
        model=version.id,
        rejected=version.rejected,
        bytes_in=version.bytes_in,
        bytes_out=version.bytes_out,
        alarms=version.alarms,
    )


def model_view(version: Version, stage: str = "", withdrawn: tuple[str, ...] = ()) -> ModelView:
    """Return a model version with its lineage and where it stands (hub.stages)."""
    return ModelView(
        id=version.id,
        job=version.job,
        round=version.round,
        digest=version.digest,
        bytes=version.bytes,
        created=version.created,
        study=version.study,
        plan=version.plan,
        arguments=version.arguments,
        strategy=version.strategy,
        sites=version.sites,
        records=version.records,
        metrics=version.metrics,
        parent=version.parent,
        deleted=version.deleted,
        stage=stage,
        withdrawn=withdrawn,
    )


def anything(job: LiveJob, after: int) -> bool:
    """Return whether a live job has something to tell after cursor `after`."""
    return job.seq > after // TICKS or any(p.seq > after for p in job.book.progress.values())


def read_entries(db: Connection, job: str, after: int) -> tuple[bool, list[journal.Entry]]:
    """Return whether sites tell sums only, and the journal's rows after cursor `after`.

    NotFound for an unknown job.
    """
    asked = records.get_job(db, job).experiment.privacy or Privacy()
    rows = journal.entries(db, job, after // TICKS, MAX_EVENTS)
    return asked.aggregation != "plain", rows


def feed(
    entries: Sequence[journal.Entry],
    progress: Iterable[Progressed],
    after: int,
    *,
    sums: bool = False,
) -> Feed:
    """Merge journalled events with the sites' progress, in the order of their cursors.

    `sums`: the job's sites tell sums only.
    """
    items = [Item(e.seq * TICKS, e.at, e.type, _told(e.type, e.body, sums)) for e in entries]
    last = entries[-1].seq if entries else after // TICKS
    if len(entries) < MAX_EVENTS:
        items += [_progress(p) for p in progress if p.seq > after and p.seq // TICKS <= last]
    items.sort(key=lambda item: item.seq)
    return Feed(tuple(items), max([after, *(item.seq for item in items)]))


def _told(type: str, body: Mapping[str, Any], sums: bool) -> Mapping[str, Any]:
    """Return an event as people see it.

    What a site said in a masked round is keys, sealed shares and signatures for the other
    sites: nothing that a person reads, and the larger part of a job's journal. The metrics of
    a masked update are inside it; what stands beside it are their names, each with a 0 that
    would be read as a value.
    """
    if type == "Accepted" and sums and not body.get("body"):
        return {**body, "metrics": {}}
    if type == "Accepted" and str(body.get("body", "")).startswith(statistics.MARK):
        return {k: v for k, v in body.items() if k != "body"}  # one site's, or masked
    if type != "Spoke":
        return body
    return {**{k: v for k, v in body.items() if k != "body"}, "characters": len(body["body"])}


def _progress(p: Progressed) -> Item:
    body = {"lease": p.lease, "fraction": p.fraction, "metrics": p.metrics}
    return Item(p.seq, p.at, "Progress", body)
