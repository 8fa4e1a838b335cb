"""Closing a round: which work makes the model, and what is recorded of it.

The work runs in the folding thread; the record is one transaction with the event `Closed`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.algo import patience
from consilia.algo.robust import rule
from consilia.core import steps
from consilia.core.round import Close, JobState, Lease
from consilia.core.weights import Array, TensorSpec
from consilia.errors import EmptyRound
from consilia.hub import audit, encrypted, masking, modelversions, tables, watching
from consilia.hub.blobs import Blobs
from consilia.hub.combining import Choice
from consilia.hub.folding import Aggregate, Made, Means, Recipe, Update
from consilia.hub.job import Book
from consilia.hub.modelversions import Version
from consilia.privacy import adaptive
from consilia.wire import frames
from consilia.wire.people import EarlyStop, Watch
from consilia.wire.v1 import Metrics, Privacy


@dataclass(frozen=True, slots=True)
class _Work:
    """One round to be closed, as it stood when the folding thread was asked."""

    book: Book
    state: JobState
    command: Close
    blobs: Blobs
    aggregate: Callable[[Book, str], Aggregate]
    checkpoint: Callable[[str], None]
    updates: tuple[Update, ...]
    recipe: Recipe
    versions: tuple[Version, ...] | None  # of the job so far

    @property
    def name(self) -> str:
        """What is unique to this attempt at the round."""
        return f"close.{self.state.job}.{self.command.round}.{self.state.attempt}"

    def base(self) -> str:
        """Return the model that the round began with; EmptyRound where there is none."""
        if self.state.model is None:
            raise EmptyRound(f"round {self.command.round} has no model to start from")
        return self.state.model


def work(  # noqa: PLR0913, PLR0917 - what the folding thread needs, all of it explicit
    book: Book,
    state: JobState,
    command: Close,
    blobs: Blobs,
    aggregate: Callable[[Book, str], Aggregate],
    checkpoint: Callable[[str], None],
) -> Callable[[], Made]:
    """Return what the folding thread has to do for `command`."""
    mine = _Work(
        book,
        state,
        command,
        blobs,
        aggregate,
        checkpoint,
        tuple(Update(*fields) for fields in command.updates),
        Recipe(book.strategy, book.options, book.optimizer),
        None if book.versions is None else tuple(book.versions),
    )
    if command.kind == "init":
        return partial(_first, mine)
    make = partial(_next_masked if steps.masked(state) else _next_model, mine)
    watch = book.record.experiment.watch
    return make if watch is None else partial(_watched, mine, make, watch)


def _first(mine: _Work) -> Made:
    """The init round: the one update is the model, as it is."""
    if len(mine.updates) != 1:
        raise EmptyRound(f"the init round has {len(mine.updates)} models, needed exactly one")
    (update,) = mine.updates
    mine.checkpoint("close.synced")
    mine.blobs.adopt(update.lease, update.digest)
    mine.checkpoint("close.adopted")
    with mine.blobs.open(update.digest) as blob:
        return Made(frames.read_header(blob.fd), None)


def _next_model(mine: _Work) -> Made:
    """Combine updates that the hub may read."""
    found, asked = mine.aggregate(mine.book, mine.base()), mine.book.record.experiment.aggregate
    chosen = Choice(*rule(asked.name, asked.options))
    if chosen.rule.plain:
        return found.close(mine.name, mine.command.round, mine.updates, mine.recipe)
    return found.combine(mine.name, mine.command.round, mine.updates, mine.recipe, chosen)


def _next_masked(mine: _Work) -> Made:
    """Unmask the sum before the strategy sees its mean."""
    state, command = mine.state, mine.command
    found = mine.aggregate(mine.book, mine.base())
    shares = masking.total(command.updates)
    opened: list[masking.MaskedFold | encrypted.OpenedFold] = []

    def finish(fold: Means, old: Callable[[TensorSpec], Iterator[Array]]) -> None:
        if isinstance(fold, encrypted.OpenedFold):
            encrypted.opener(state, mine.blobs, fold, old)
        elif isinstance(fold, masking.MaskedFold):
            masking.opener(state, fold, old)
        else:
            raise EmptyRound(f"round {command.round} is masked, its updates were folded plain")
        opened.append(fold)

    made = found.close(mine.name, command.round, mine.updates, mine.recipe, finish)
    (fold,) = opened
    return replace(
        made,
        records=round(fold.weight * shares),
        metrics=masking.metrics(state, fold.metrics),
    )


def _watched(mine: _Work, make: Callable[[], Made], watch: Watch) -> Made:
    """Look at what was made, and go back if the alarms say so."""
    made = make()
    return watching.judged(
        watch,
        made,
        round=mine.command.round,
        versions=mine.versions,
        leases=_accepted(mine.state),
        updates=mine.updates,
        aggregate=mine.aggregate(mine.book, mine.state.model or ""),
        optimizer=mine.recipe.optimizer,
        blobs=mine.blobs,
    )


def version(book: Book, state: JobState, command: Close, made: Made, now: float) -> Version:
    """Return the model version that `command` makes."""
    experiment = book.record.experiment
    means = weighted(_accepted(state)) if made.metrics is None else made.metrics
    privacy = adaptive.of_round(experiment.privacy or Privacy(), book.noted)
    clip = adaptive.noted(privacy, means) if command.kind == "train" else {}
    bytes_in, bytes_out = book.traffic.take()
    return Version(
        id=f"{state.job}.{command.round}",
        job=state.job,
        round=command.round,
        digest=made.header.digest,
        bytes=made.header.total_bytes,
        parent=_parent(book, state, command.round, made),
        study=experiment.study,
        study_digest=book.record.study_digest,
        plan=experiment.plan,
        arguments=dict(state.round_arguments),
        strategy=experiment.strategy,
        sites=tuple(site for site, _, _, _ in command.updates),
        records=sum(count for _, _, _, count in command.updates)
        if made.records is None
        else made.records,
        metrics={**watching.clean(means), **clip, **made.notes},
        created=now,
        seconds=max(0.0, now - state.opened_at),
        optimizer=made.optimizer,
        rejected=_rejected(state.leases),
        alarms=made.told,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
    )


def enough(book: Book, made: Version) -> str:
    """Return why no round follows on this version, "" when the experiment wants all it has."""
    chosen = book.record.experiment.early_stop
    if chosen is None or made.round == 0 or chosen.metric.startswith("holdout_"):
        return ""  # of a hold-out: hub.assessing knows more when the sites have told
    earlier = [v for v in book.versions or () if 0 < v.round < made.round]
    values = [v.metrics.get(chosen.metric) for v in (*earlier, made)]
    return patience.enough(values, waited(chosen))


def waited(chosen: EarlyStop) -> patience.Patience:
    """Return the rule that an experiment asks for; ConfigError when it makes no sense."""
    found = patience.Patience(chosen.metric, chosen.better, chosen.rounds, chosen.least)
    patience.check(found)
    return found


def enter(db: Connection, made: Version, command: Close, alarms: Sequence[str] = ()) -> None:
    """Record a version with its audit lines; the optimizer state before it is out of use."""
    modelversions.add(db, made)
    if made.optimizer is not None or watching.BACK in made.metrics:
        v = tables.versions.c
        older = (v.job == made.job) & (v.round < made.round)
        db.execute(sa.update(tables.versions).where(older).values(optimizer=None))
    # Of a masked update no count is known; what stands there is the same for all sites.
    counts = made.records == sum(count for _, _, _, count in command.updates)
    each = (
        f"{site} {digest[:19]} {count}" if counts else f"{site} {digest[:19]} masked"
        for site, _, digest, count in command.updates
    )
    detail = f"{made.digest}; {made.records} records; {', '.join(each)}"
    audit.append(db, made.created, "hub", "round.close", made.id, detail=detail)
    outcome = "back" if watching.BACK in made.metrics else "kept"
    for alarm in alarms:
        audit.append(
            db, made.created, "hub", "round.alarm", made.id, outcome=outcome, detail=alarm
        )


def weighted(accepted: "list[Lease]") -> Metrics:
    """Return record-weighted means of the metrics, each over the sites that report it."""
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for lease in sorted(accepted, key=lambda lease: lease.site):
        weight = float(max(lease.records, 1))  # an init reports no records
        for name, value in lease.metrics.items():
            weights[name] = weights.get(name, 0.0) + weight
            # A running mean: no sum of huge values can overflow on the way.
            mean = sums.get(name, 0.0)
            sums[name] = mean * (1 - weight / weights[name]) + value * (weight / weights[name])
    return sums


def _parent(book: Book, state: JobState, round: int, made: Made) -> str | None:
    """Return what the model was trained from, or which version it is once more."""
    if round == 0:
        return None
    if watching.BACK in made.notes:
        same = (v.id for v in book.versions or () if v.digest == made.header.digest)
        return next(same, made.header.digest)
    if round == 1 and book.record.experiment.base is not None:
        return book.record.experiment.base
    for version in reversed(book.versions or ()):  # the round before, unless it went back
        if version.digest == state.model:
            return version.id
    return f"{state.job}.{round - 1}"


def _accepted(state: JobState) -> list[Lease]:
    return [lease for lease in state.leases.values() if lease.status == "accepted"]


def _rejected(leases: Mapping[str, Lease]) -> dict[str, str]:
    """Return why the sites without an update have none: site -> status and cause."""
    ended = (
        lease for lease in leases.values() if lease.status in ("rejected", "failed", "declined")
    )
    return {
        lease.site: f"{lease.status}: {lease.cause}" if lease.cause else lease.status
        for lease in ended
    }
