"""An evaluation at the hub: what sites are asked, what they may answer, and what it comes to.

Each site's answer is journalled with its lease; the whole is one event of the job, `Assessed`,
and so are the evaluations of a job read back. The metrics over all sites are added to the
version that was evaluated, as "holdout_auc" and so on: charts, the best model and early
stopping find them there.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.algo import patience
from consilia.core.round import Assessed, CloseFailed, JobState
from consilia.errors import ConsiliaError
from consilia.hub import audit, maskedevaluation, modelversions, tables
from consilia.hub.closing import waited
from consilia.hub.job import Book, LiveJob
from consilia.hub.modelversions import Version
from consilia.stats.pooling import ADDITIVE, interval, pooled
from consilia.stats.scores import METRICS
from consilia.wire.people import EvaluationView, PooledView
from consilia.wire.v1 import Evaluated, Evaluation, Measure, Metrics, Result, Subgroups, Task

HOLDOUT = "holdout_"  # before the name of a metric that was measured on hold-outs
MOST_BINS = 100
MOST_RECORDS = 10**12


def asked(book: Book, state: JobState) -> Evaluation:
    """Return what the sites are asked of the round's model."""
    wanted = book.record.experiment.evaluate
    if wanted is None:
        return Evaluation()
    bins = maskedevaluation.bins_of(book.record.experiment)
    last = state.round == state.config.rounds
    local = wanted.local_rounds or state.round if wanted.benefit and last else 0
    return Evaluation(tuple(_subgroups(wanted.subgroups)), local, bins)


def _subgroups(wanted: Mapping[str, tuple[object, ...]]) -> Iterator[Subgroups]:
    for column, values in wanted.items():
        cuts = tuple(float(v) for v in values if isinstance(v, int | float))
        levels = tuple(v for v in values if isinstance(v, str))
        yield Subgroups(column, levels, cuts)


def misfit(result: Result, task: Task) -> str | None:
    """Say why a site's answer is none to what it was asked, or None."""
    found, wanted = result.evaluated, task.evaluation or Evaluation()
    if (result.job, result.round) != (task.job, task.round) or result.model is not None:
        return "the result is of another job, round or kind"
    if found is None:
        return "an evaluation without a metric"
    if not 1 <= found.records <= MOST_RECORDS:
        return f"it claims {found.records} records"
    columns = {s.column for s in wanted.subgroups}
    odd = [s.column for s in found.subgroups if s.column not in columns]
    few = sum(max(len(s.levels), len(s.cuts) + 1) for s in wanted.subgroups)
    if odd or len(found.subgroups) > few or len(found.calibration) > MOST_BINS:
        return f"it tells of {[s[:40] for s in odd][:3] or 'more'} that was not asked for"
    return _numbers_misfit(found)


def _numbers_misfit(found: Evaluated) -> str | None:
    known = METRICS[found.predicts].keys()
    groups = (found.measures, found.local, found.gain, *(s.measures for s in found.subgroups))
    problems = (_measures_misfit(measures, known) for measures in groups)
    if problem := next(filter(None, problems), None):
        return problem
    bins = [n for b in found.calibration for n in (b.low, b.high, b.predicted, b.observed)]
    return None if all(map(math.isfinite, bins)) else "its calibration is not finite"


def _measures_misfit(measures: Mapping[str, Measure], known: Collection[str]) -> str | None:
    for name, measure in measures.items():
        if name not in known:
            return f"it tells a metric {name[:40]!r}, which none of its kind is"
        if not (math.isfinite(measure.value) and 0 <= measure.error < math.inf):
            return f"metric {name!r} is {measure.value} with error {measure.error}"
        if not 0 <= measure.records <= MOST_RECORDS:
            return f"metric {name!r} is of {measure.records} records"
    return None


def body_of(found: Evaluated) -> str:
    """Return a site's answer as the journal keeps it."""
    return msgspec.json.encode(found).decode()


def close(job: LiveJob, now: float) -> None:
    """Put together what the sites have found, and record it."""
    try:
        view = _view(job.book, job.state, now)
    except ConsiliaError as e:  # masks that cannot be taken off: a site's own shares contradict
        job.note(CloseFailed(now, job.state.round, f"the sum could not be opened: {e}"))
        return
    metrics = {f"{HOLDOUT}{name}": found.value for name, found in view.pooled.items()}
    own = f"{job.id}.{view.round}"
    made = view.model == own

    def also(db: Connection) -> None:
        if made:
            modelversions.add_metrics(db, own, metrics)
        told = ", ".join(f"{n} {v:.4g}" for n, v in sorted(metrics.items()))
        sites = ", ".join(view.sites or view.summed)
        detail = f"{sites or 'no site'}; {told or view.cause}"
        audit.append(db, now, "hub", "round.evaluate", view.model, detail=detail)

    def then() -> None:
        if made and job.book.versions is not None:
            job.book.versions = [
                replace(v, metrics={**v.metrics, **metrics}) if v.id == own else v
                for v in job.book.versions
            ]

    event = Assessed(now, view.round, msgspec.json.encode(view).decode(), _enough(job, metrics))
    job.note(event, also, then=then)


def of_job(db: Connection, job: str) -> tuple[EvaluationView, ...]:
    """Return a job's evaluations, oldest first."""
    j = tables.journal.c
    query = sa.select(j.body).where(j.job == job, j.type == "Assessed").order_by(j.seq)
    events = (msgspec.json.decode(body, type=Assessed) for body in db.scalars(query))
    return tuple(msgspec.json.decode(event.body, type=EvaluationView) for event in events)


def _view(book: Book, state: JobState, now: float) -> EvaluationView:
    trained = state.round > 0 or book.record.experiment.base is None
    base = book.record.experiment.base or ""
    model = f"{state.job}.{state.round}" if trained else base
    if maskedevaluation.masked(book.record.experiment):
        return maskedevaluation.view(book.record.experiment, state, now, model)
    leases = sorted(state.leases.values(), key=lambda lease: lease.site)
    sites = {
        lease.site: msgspec.json.decode(lease.body, type=Evaluated)
        for lease in leases
        if lease.status == "accepted"
    }
    without = {
        lease.site: f"{lease.status}: {lease.cause}" if lease.cause else lease.status
        for lease in leases
        if lease.status != "accepted"
    }
    found = {}
    for name, one in pooled(e.measures for e in sites.values()).items():
        low, high = interval(name, one.value, one.error)
        found[name] = PooledView(
            one.value,
            low,
            high,
            one.records,
            one.sites,
            "all records" if name in ADDITIVE else "mean of sites",
        )
    return EvaluationView(state.round, now, model, found, sites, without)


def _enough(job: LiveJob, metrics: Metrics) -> str:
    """Return why no round follows, by a metric of the evaluations; they count as rounds."""
    book, state = job.book, job.state
    chosen = book.record.experiment.early_stop
    if chosen is None or not chosen.metric.startswith(HOLDOUT) or state.round == 0:
        return ""
    values = [*_values(book.versions or (), chosen.metric, state.round)]
    return patience.enough([*values, metrics.get(chosen.metric)], waited(chosen))


def _values(versions: Sequence[Version], metric: str, before: int) -> list[float]:
    earlier = [v for v in versions if 0 < v.round < before]
    return [v.metrics[metric] for v in earlier if metric in v.metrics]
