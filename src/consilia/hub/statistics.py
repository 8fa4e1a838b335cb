"""Statistics at the hub: what a site may answer, and the sum of what all have told.

A site's answer is journalled with its lease: masked, it says nothing by itself. The sum is one
event of the job, `Assessed`; there is no model, and no other copy of it.
"""

import base64

import msgspec
import numpy as np
import sqlalchemy as sa
from msgspec.structs import replace
from numpy.typing import NDArray
from sqlalchemy import Connection

from consilia.core import steps
from consilia.core.round import Assessed, CloseFailed
from consilia.errors import ConsiliaError, EmptyRound, NotFound, WireError
from consilia.hub import audit, masking, records, tables
from consilia.hub.job import LiveJob
from consilia.privacy.accountant import cost, epsilon
from consilia.stats import noisyfigures, private, sums
from consilia.stats.figures import figures
from consilia.wire.people import Experiment
from consilia.wire.statistics import StatisticsView
from consilia.wire.v1 import Dp, Result, Statistics, Task

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
    noisy = task.privacy.dp is not None
    needed = 8 * len(private.items(asked)) if noisy else 16 * len(sums.items(asked))
    if len(result.sums) != needed:
        return f"its sums are {len(result.sums)} bytes, asked for {needed}"
    if task.cohort:
        return None  # masked: only its form can be judged
    try:
        big = _too_large(asked, np.frombuffer(result.sums, "<u8").astype(np.uint64), noisy)
    except WireError as e:
        return str(e)
    return "a number is larger than a sum can hold" if big else None


def _too_large(asked: Statistics, numbers: NDArray[np.uint64], noisy: bool) -> bool:
    """Tell whether a number of a site's answer cannot be added up; WireError for none."""
    if noisy:  # noise can make any number negative
        signed = numbers.view(np.int64)
        return bool((signed > MOST).any() or (signed < -MOST).any())
    found = sums.decoded(asked, numbers, 1)
    return any(not sums.fits(item, one.value) for item, one in found.items())


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
        spent = "" if view.epsilon is None else f"; epsilon {view.epsilon:.4g}"
        detail = f"{', '.join(view.sites)}; {how}; {told} of {len(view.figures)} numbers{spent}"
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
    view = StatisticsView(
        job.id,
        experiment.study,
        asked,
        now,
        masked,
        tuple(lease.site for lease in told),
        0,
        (),
        {lease.site: _why(lease.status) for lease in leases if lease.status != "accepted"},
    )
    dp = experiment.privacy.dp if experiment.privacy else None
    if dp is not None:
        view = replace(view, epsilon=epsilon(cost(dp, state.attempt + 1), dp.delta))
        return _noisy(view, dp, total, len(masking.said(state, "keys")))
    found = sums.decoded(asked, total, len(told))
    return replace(
        view,
        rounded=round(found[sums.Item("rounded")].value),
        figures=figures(asked, found, masked),
    )


def _noisy(
    view: StatisticsView, dp: Dp, total: NDArray[np.uint64], keyed: int
) -> StatisticsView:
    """Return what a sum with noise says, and how much noise it is that is in it."""
    values, sites = private.decoded(view.asked, total), len(view.sites)
    noise = private.in_sum(view.asked, dp, sites, keyed)
    return replace(
        view,
        figures=noisyfigures.figures(view.asked, values, noise, sites),
        dp=dp,
        noise=noise,
    )


def _why(status: str) -> str:
    """Say what became of a site; why it refused is not passed on."""
    return {"declined": "refused", "away": "away", "cancelled": "too late"}.get(status, status)
