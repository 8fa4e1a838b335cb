"""Statistics at the hub: what a site may answer, and the sum of what all have told.

A site's answer is journalled with its lease: masked, it says nothing by itself. The sum is one
event of the job, `Assessed`; there is no model, and no other copy of it.
"""

import base64

import msgspec
import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.core import steps
from consilia.core.round import Assessed, CloseFailed
from consilia.errors import ConsiliaError, EmptyRound, NotFound, WireError
from consilia.hub import audit, masking, records, tables
from consilia.hub.job import LiveJob
from consilia.stats import sums
from consilia.stats.figures import figures
from consilia.wire.people import Experiment
from consilia.wire.statistics import StatisticsView
from consilia.wire.v1 import Result, Statistics, Task

MARK = "sums:"  # before an answer in the journal: people are not shown it
MOST = 1 << 53


def asked_of(experiment: Experiment) -> Statistics | None:
    """Return the question of a job that asks for statistics, None of any other."""
    return None if experiment.privacy is None else experiment.privacy.statistics


def misfit(result: Result, task: Task) -> str | None:
    """Say why a site's answer is none to what it was asked, or None."""
    asked = task.privacy.statistics
    if (result.job, result.round) != (task.job, task.round) or result.model is not None:
        return "the result is of another job, round or kind"
    if asked is None or result.evaluated is not None or result.metrics:
        return "the result tells more than the sums asked for"
    needed = 16 * len(sums.items(asked))
    if len(result.sums) != needed:
        return f"its sums are {len(result.sums)} bytes, asked for {needed}"
    if task.cohort:
        return None  # masked: only its form can be judged
    try:
        found = sums.decoded(asked, np.frombuffer(result.sums, "<u8").astype(np.uint64), 1)
    except WireError as e:
        return str(e)
    big = any(not sums.fits(item, one.value) for item, one in found.items())
    return "a number is larger than a sum can hold" if big else None


def body_of(result: Result) -> str:
    """Return a site's answer as the journal keeps it."""
    return MARK + base64.b64encode(result.sums).decode()


def close(job: LiveJob, now: float) -> None:
    """Add up what the sites have told, take the masks off the sum, and record it."""
    state = job.state
    try:
        view = _view(job, now)
    except ConsiliaError as e:
        job.note(CloseFailed(now, state.round, f"the sums could not be opened: {e}"))
        return

    def also(db: Connection) -> None:
        how = "masked" if view.masked else "plain"
        told = sum(figure.value is not None for figure in view.figures)
        detail = f"{', '.join(view.sites)}; {how}; {told} of {len(view.figures)} numbers"
        audit.append(db, now, "hub", "round.statistics", job.id, detail=detail)

    job.note(Assessed(now, state.round, msgspec.json.encode(view).decode()), also)


def of_job(db: Connection, job: str) -> StatisticsView:
    """Return a job's statistics; NotFound while there are none."""
    j = tables.journal.c
    query = sa.select(j.body).where(j.job == job, j.type == "Assessed").order_by(j.seq.desc())
    if asked_of(records.get_job(db, job).experiment) is None:
        raise NotFound(f"job {job} trains models: it has no statistics")
    body = db.scalars(query).first()
    if body is None:
        raise NotFound(f"job {job} has no statistics yet: ask again when it is done")
    event = msgspec.json.decode(body, type=Assessed)
    return msgspec.json.decode(event.body, type=StatisticsView)


def _view(job: LiveJob, now: float) -> StatisticsView:
    state, experiment = job.state, job.book.record.experiment
    asked = asked_of(experiment)
    if asked is None:
        raise EmptyRound("the job asks for no statistics")
    leases = sorted(state.leases.values(), key=lambda lease: lease.site)
    told = [lease for lease in leases if lease.status == "accepted"]
    total = masking.sum_of(lease.body.removeprefix(MARK) for lease in told)
    masked = steps.masked(state)
    if masked:
        masking.unmasker(state).subtract(total)
    found = sums.decoded(asked, total, len(told))
    return StatisticsView(
        job.id,
        experiment.study,
        asked,
        now,
        masked,
        tuple(lease.site for lease in told),
        round(found[sums.Item("rounded")].value),
        figures(asked, found, masked),
        {lease.site: _why(lease.status) for lease in leases if lease.status != "accepted"},
    )


def _why(status: str) -> str:
    """Say what became of a site; why it refused is not passed on."""
    return {"declined": "refused", "away": "away", "cancelled": "too late"}.get(status, status)
