"""Alarms on a round's model, and going back: algo.watch put to work when a round closes.

What later rounds need to know is kept among the metrics of the model version, under names that
begin with `hub.` (a site's metric of such a name is dropped): `hub.step`, the L2 norm of the
model's step; `hub.watched`, the watched metric, as a median over sites where they are seen;
`hub.alarms`, how many; `hub.back`, 1 when the round led back. Nothing of a single site is kept:
who looked odd stands in the audit. People who follow the job are told the alarms in words (the
event `Closed`, the round's view), without a site's name or figures.

Going back: the version of the round is then the last good model once more, and the next round
starts from it. The model that was made stays in no version; its digest is in the audit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from consilia.algo.watch import Alarm, Limits, Seen, check, parts, watch
from consilia.core.events import Lease
from consilia.errors import NotFound
from consilia.hub.blobs import Blobs
from consilia.hub.folding import Aggregate, Made, Update
from consilia.hub.modelversions import ALARMS, Version
from consilia.wire import frames, people

PREFIX = "hub."
STEP, WATCHED, BACK = (f"{PREFIX}{name}" for name in ("step", "watched", "back"))


def limits(chosen: people.Watch) -> Limits:
    """Return the limits that an experiment sets; ConfigError when one makes no sense."""
    found = Limits(
        metric=chosen.metric,
        better=chosen.better,
        factor=chosen.factor,
        rounds=chosen.rounds,
        jump=chosen.jump,
        norm=chosen.norm,
        cosine=chosen.cosine,
    )
    check(found)
    return found


def history(versions: Sequence[Version]) -> tuple[Seen, ...]:
    """Return what is known of a job's closed training rounds, oldest first.

    A round started from the version before it. Of the first one of a job with a base model
    that is not known; its own model stands in for it.
    """
    found = []
    for before, made in zip((*versions[:1], *versions), versions, strict=False):
        if made.round:
            found.append(
                Seen(
                    made.round,
                    before.digest,
                    made.metrics.get(STEP),
                    made.metrics.get(WATCHED),
                    back=BACK in made.metrics,
                )
            )
    return tuple(found)


def observed(
    metric: str, leases: Sequence[Lease], means: Mapping[str, float] | None
) -> float | None:
    """Return the watched metric of a round, None when it is not reported.

    `means` are those of a masked round; otherwise it is the median over the sites, so that a
    minority of them cannot make it up. NaN counts as the worst: a median beyond it is NaN.
    """
    if means is not None:
        return means.get(metric)
    values = [lease.metrics[metric] for lease in leases if metric in lease.metrics]
    if not values:
        return None
    broken = sum(map(math.isnan, values))
    if 2 * broken >= len(values):
        return math.nan
    return median(value for value in values if not math.isnan(value))


def clean(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics without those that only the hub may write."""
    return {name: value for name, value in metrics.items() if not name.startswith(PREFIX)}


def judged(  # noqa: PLR0913 - what is known of the round, all of it explicit
    chosen: people.Watch,
    made: Made,
    *,
    round: int,
    versions: Sequence[Version] | None,
    leases: Sequence[Lease],
    updates: Sequence[Update],
    aggregate: Aggregate,
    optimizer: str | None,
    blobs: Blobs,
) -> Made:
    """Return what the round has made with its alarms; with the good model if they lead back.

    `versions` are the job's, before this round; None, when the hub has not read them, is an
    alarm itself. `leases` are the accepted ones, `optimizer` the state before the round.
    Blocks: one pass over the model, and where updates are in the clear one over all of them.
    """
    base, masked = aggregate.header.digest, made.metrics is not None
    seen = Seen(
        round,
        base,
        aggregate.moved(made.header),
        observed(chosen.metric, leases, made.metrics),
        () if masked else parts(_sites(updates), aggregate.spread(updates)),
    )
    alarms = watch((*history(versions or ()), seen), limits(chosen))
    texts = [f"{alarm.rule}: {alarm.text}" for alarm in alarms]
    told = list(dict.fromkeys(map(_told, alarms)))  # two odd sites are one sentence
    if versions is None:
        blind = "history: the rounds before were not at hand, nothing is compared to them"
        texts.append(blind)
        told.append(blind)
    notes = {STEP: seen.step or 0.0}
    if seen.metric is not None:
        notes[WATCHED] = seen.metric
    if texts:
        notes[ALARMS] = float(len(texts))
    good = [alarm.good for alarm in alarms if alarm.good is not None]
    if not (good and chosen.rollback):
        return replace(made, alarms=tuple(texts), told=tuple(told), notes=notes)
    # The oldest of them: a metric that has risen for rounds speaks of more than this round.
    target = next((digest for digest in good if digest != base), base)
    header = _header(blobs, target) or aggregate.header
    if made.optimizer not in (None, optimizer):
        blobs.delete(made.optimizer)
    went = f"back to {header.digest}; the model thrown away is {made.header.digest}"
    return replace(
        made,
        header=header,
        # The state belongs to the model before this round; with an older model it starts anew.
        optimizer=optimizer if header.digest == base else None,
        alarms=(*texts, went),
        told=(*told, f"back to the model {header.digest[:19]}: the next round starts from it"),
        notes={**notes, BACK: 1.0},
    )


def _told(alarm: Alarm) -> str:
    """Return an alarm as everybody may read it."""
    if alarm.rule == "norm":
        return "norm: a site's update is far longer than the others'; the audit names it"
    if alarm.rule == "direction":
        return "direction: a site's update points away from the others'; the audit names it"
    return f"{alarm.rule}: {alarm.text}"


def _sites(updates: Sequence[Update]) -> list[str]:
    return sorted(update.site for update in updates)


def _header(blobs: Blobs, digest: str) -> frames.Header | None:
    """Return the header of a stored model, None when it is gone."""
    try:
        with blobs.open(digest) as blob:
            return frames.read_header(blob.fd)
    except NotFound:
        return None
