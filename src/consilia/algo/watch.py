"""Alarms: does the model of a round look as if something had gone wrong, and whose doing is it?

One pure function over what is known of a job's rounds. Four rules, all asked every time:

| rule | alarm when | needs |
|---|---|---|
| step | the model moved more than `jump` times the median of its last ten moves | 3 moves |
| metric | `rounds` rounds in a row are worse than the best before by `factor` | the metric |
| norm | a site's update is longer than `norm` times the median of the others' | 3 sites |
| direction | the median cosine of a site's update to the others' is below `cosine` | 3 sites |

A metric that sites report in a round was computed on the way from the model that the round
started from, so it speaks of *that* model: the last good version is the one that the best round
started from, not the one it made. Worse by a factor means, for a metric where lower is better,
above best + (factor - 1) |best|; where higher is better, below best - (1 - 1 / factor) |best|.
NaN is worse than everything. Where a site's numbers are seen, the metric watched is the median
over sites: a mean follows whatever one bad site reports, and a made-up best would raise alarms
for ever. The two rules on sites need each update in the clear; under masking only the first two
remain.

An alarm is a reason to look, no proof: sites with unusual patients differ from the others too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan
from statistics import median
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from consilia.errors import ConfigError

LOOK_BACK = 10  # earlier moves whose median is taken
FEWEST_MOVES = 3
FEWEST_SITES = 3
FEWEST_ROUNDS = 1

Name = Literal["step", "metric", "norm", "direction"]


@dataclass(frozen=True, slots=True)
class Limits:
    """When to raise an alarm. The defaults are those of wire.people.Watch."""

    metric: str = "loss"  # "" watches none
    better: Literal["lower", "higher"] = "lower"
    factor: float = 1.5
    rounds: int = 3
    jump: float = 10.0
    norm: float = 10.0
    cosine: float = -0.5


@dataclass(frozen=True, slots=True)
class Part:
    """One site's part in a round, from its update in the clear."""

    site: str
    norm: float  # L2, of its model minus the round's
    cosine: float  # median over the other sites of the cosine to their updates


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one closed training round."""

    round: int
    base: str  # the model it started from
    step: float | None = None  # L2 norm of the new model minus the base, before any going back
    metric: float | None = None  # None: not reported
    parts: tuple[Part, ...] = ()  # by site; empty where updates are masked
    back: bool = False  # its model was thrown away for an alarm


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is wrong, in words; `good` is the newest model before it, None if there is none."""

    rule: Name
    text: str
    good: str | None


def check(limits: Limits) -> None:
    """Raise ConfigError naming the first limit that makes no sense."""
    rules: tuple[tuple[str, float, bool, str], ...] = (
        ("factor", limits.factor, 1 < limits.factor < inf, "above 1"),
        ("rounds", limits.rounds, limits.rounds >= FEWEST_ROUNDS, f"{FEWEST_ROUNDS} or more"),
        ("jump", limits.jump, 1 < limits.jump < inf, "above 1"),
        ("norm", limits.norm, 1 < limits.norm < inf, "above 1"),
        ("cosine", limits.cosine, -1 <= limits.cosine < 0, "-1 or more, below 0"),
    )
    for field, found, good, needed in rules:
        if not good:
            raise ConfigError(f"watch.{field} is {found:g}, needs to be {needed}")


def watch(history: Sequence[Seen], limits: Limits) -> tuple[Alarm, ...]:
    """Return the alarms of the last round of `history`, which is in order of rounds.

    No clock and no randomness: the same history gives the same alarms.
    """
    if not history:
        return ()
    alarms = (*_step(history, limits), *_metric(history, limits))
    return (*alarms, *_sites(history[-1], limits))


def parts(sites: Sequence[str], squares: NDArray[np.float64]) -> tuple[Part, ...]:
    """Return each site's part from squared distances [n + 1, n + 1], the base model last.

    With u_i the update of site i, squares[i, n] = |u_i|^2 and the products follow from
    2 u_i u_j = |u_i|^2 + |u_j|^2 - |u_i - u_j|^2.
    """
    own = squares[:-1, -1]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        lengths = np.sqrt(own)
        products = 0.5 * (own[:, None] + own[None, :] - squares[:-1, :-1])
        cosines = products / lengths[:, None] / lengths[None, :]
    cosines = np.clip(np.nan_to_num(cosines, nan=0.0), -1.0, 1.0)
    found = []
    for i, site in enumerate(sites):
        others = np.delete(cosines[i], i)
        middle = float(np.median(others)) if others.size else 1.0
        found.append(Part(site, float(lengths[i]), middle))
    return tuple(found)


# ---- the rules -------------------------------------------------------------------------------


def _step(history: Sequence[Seen], limits: Limits) -> tuple[Alarm, ...]:
    last = history[-1]
    moves = [s.step for s in history[:-1] if s.step is not None and not s.back][-LOOK_BACK:]
    if last.step is None or len(moves) < FEWEST_MOVES:
        return ()
    usual = median(moves)
    if last.step <= limits.jump * usual:
        return ()
    text = (
        f"the model moved by {last.step:.4g}, the median of the {len(moves)} moves before is "
        f"{usual:.4g}, at most {limits.jump:g} times that is usual"
    )
    return (Alarm("step", text, last.base),)


def _metric(history: Sequence[Seen], limits: Limits) -> tuple[Alarm, ...]:
    if not limits.metric:
        return ()
    if len(history) == 1 and history[0].metric is None:
        text = f"no site reports {limits.metric!r}, so nothing is watched: set watch.metric"
        return (Alarm("metric", text, None),)
    known = [seen for seen in history if seen.metric is not None]
    tail, earlier = known[-limits.rounds :], known[: -limits.rounds]
    # After going back the count begins anew, with the model gone back to.
    if len(tail) < limits.rounds or tail[-1] is not history[-1] or any(s.back for s in tail):
        return ()
    best = min(earlier, key=lambda seen: (_cost(seen, limits), -seen.round), default=None)
    if not all(_is_bad(seen, best, limits) for seen in tail):
        return ()
    values = ", ".join(f"{seen.metric:.4g}" for seen in tail)
    before = "none before" if best is None else f"{best.metric:.4g} in round {best.round}"
    text = (
        f"{limits.metric} was {values} in the last {len(tail)} rounds, the best is {before}, "
        f"worse by a factor of {limits.factor:g} is too much"
    )
    return (Alarm("metric", text, (best or tail[0]).base),)


def _sites(last: Seen, limits: Limits) -> tuple[Alarm, ...]:
    if len(last.parts) < FEWEST_SITES:
        return ()
    alarms = []
    for part in last.parts:
        usual = median(other.norm for other in last.parts if other is not part)
        if part.norm > limits.norm * usual:
            text = (
                f"the update of site {part.site!r} is {part.norm:.4g} long, the median of the "
                f"others is {usual:.4g}, at most {limits.norm:g} times that is usual"
            )
            alarms.append(Alarm("norm", text, last.base))
        if part.cosine < limits.cosine:
            text = (
                f"the update of site {part.site!r} points away from the others': median cosine "
                f"{part.cosine:.2f}, usual is {limits.cosine:g} or more"
            )
            alarms.append(Alarm("direction", text, last.base))
    return tuple(alarms)


def _is_bad(seen: Seen, best: Seen | None, limits: Limits) -> bool:
    """Return whether a round's metric is NaN, or worse than the best one by the factor."""
    cost = _cost(seen, limits)
    if seen.metric is not None and isnan(seen.metric):
        return True
    return best is not None and cost > _worst(_cost(best, limits), limits)


def _cost(seen: Seen, limits: Limits) -> float:
    """Return the metric so that lower is better; NaN costs more than anything."""
    if seen.metric is None or isnan(seen.metric):
        return inf
    return seen.metric if limits.better == "lower" else -seen.metric


def _worst(best: float, limits: Limits) -> float:
    """Return the highest cost that is not worse than `best` by the factor."""
    share = limits.factor - 1 if limits.better == "lower" else 1 - 1 / limits.factor
    return best + share * abs(best)
