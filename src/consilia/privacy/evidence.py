"""How sure an attack lets us be that a model remembers its records: statistics, no model here.

Everywhere a *score* is larger the more an attacker believes that a record was trained on.
`members` are scores of records that were, `others` of records that were not; both are 1-d.
A bound holds with probability `confidence` over the drawing of the records and coins. It is a
lower bound on what leaks: the attacks are simple ones, a better attacker learns more.

**Areas.** The AUC is the chance that a member scores higher than another. Its variance is
DeLong's, after one more member below all scores and one more other above all of them: so a
handful of records that happen to fall apart proves nothing.

**Thresholds.** For (epsilon, delta)-DP every test has TPR <= e^epsilon FPR + delta and
TNR <= e^epsilon FNR + delta. The threshold is chosen on one half of the scores, the rates are
bounded on the other by Clopper and Pearson.

**Canaries.** m records are planted or not by a fair coin each, in one training run, and of
them r are guessed. Under (epsilon, delta)-DP the number W of right guesses is hardly larger
than a Binomial(r, e^epsilon / (1 + e^epsilon)):

    P[correct >= v] <= P[W >= v] + 2 m delta max over i in 1..m of P[v - i <= W < v] / i

The largest epsilon at which this is below 1 - confidence is ruled out, and all below it.

Sources: DeLong, DeLong, Clarke-Pearson 1988; Clopper, Pearson 1934; Yeom et al. 2018 (loss
threshold); Jagielski, Ullman, Oprea 2020, section 4 (epsilon of two rates); Steinke, Nasr,
Jagielski 2023, "Privacy auditing with one training run", theorem 5.2 (canaries); Watson et al.
2022 and Carlini et al. 2022, section IV (calibration by reference models trained without the
record, on logit-scaled losses).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from consilia.errors import ConfigError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Side = Literal["members", "others"]

GUESSES = (1.0, 0.5, 0.25, 0.1)  # shares of the canaries guessed; fixed before any is seen
_CANDIDATES = 64  # thresholds tried on the choosing half
_TINY = 1e-12  # a loss below it counts as this
_HALVINGS = 60
_MOST_EPSILON = 100.0


@dataclass(frozen=True, slots=True)
class Area:
    """An area under the ROC curve, and what it surely is."""

    value: float
    low: float  # one-sided


@dataclass(frozen=True, slots=True)
class Tail:
    """What one threshold proves. The rates are those of the testing half."""

    threshold: float
    tpr: float
    fpr: float
    epsilon: float  # lower bound, 0 when nothing is proved
    side: Side  # "members" when high scores betray, "others" when low ones do


@dataclass(frozen=True, slots=True)
class Canaries:
    """What guessing planted records proves."""

    planted: int  # canaries of which each was planted or not
    guesses: int
    correct: int
    epsilon: float  # lower bound, 0 when nothing is proved
    most: float  # what the bound would be had every guess been right


# ---- curves ----------------------------------------------------------------------------------


def roc(members: Floats, others: Floats) -> tuple[Floats, Floats]:
    """Return (FPR, TPR) at every threshold, from (0, 0) to (1, 1). Ties fall together."""
    _scores(members, others)
    levels = np.unique(np.concatenate([members, others]))[::-1]
    rates = [
        (len(s) - np.searchsorted(np.sort(s), levels, "left")) / len(s)
        for s in (others, members)
    ]
    return np.concatenate([[0.0], rates[0]]), np.concatenate([[0.0], rates[1]])


def tpr_at(members: Floats, others: Floats, fpr: float) -> float:
    """Return the share of members found by the lowest threshold that keeps to `fpr`."""
    found, caught = roc(members, others)
    return float(caught[found <= fpr].max())


def auc(members: Floats, others: Floats) -> float:
    """Return the chance that a member scores higher than another, ties counted half."""
    _scores(members, others)
    return float(_placements(members, others).mean())


def area(members: Floats, others: Floats, confidence: float) -> Area:
    """Return the AUC and its one-sided lower bound."""
    value, z = auc(members, others), NormalDist().inv_cdf(confidence)
    m = np.concatenate([members, [-np.inf]])
    o = np.concatenate([others, [np.inf]])
    above, below = _placements(m, o), 1 - _placements(o, m)
    spread = math.sqrt(above.var(ddof=1) / len(m) + below.var(ddof=1) / len(o))
    return Area(value, max(0.0, min(value, float(above.mean()) - z * spread)))


def least_area(members: int, others: int, confidence: float) -> float:
    """Return the AUC from which on `area` most likely proves a leak with so many records.

    The spread is that of scores without any leak, so the figure is for weak leaks.
    """
    m, o = members + 1, others + 1
    spread = math.sqrt((m + o + 1) / (12 * m * o))
    lost = 1 - members * others / (m * o)  # by the two scores that `area` adds
    return min(1.0, 0.5 + NormalDist().inv_cdf(confidence) * spread + lost / 2)


def most_area(epsilon: float, delta: float) -> float:
    """Return the largest AUC that any attacker can reach under (epsilon, delta)-DP."""
    return min(1.0, 1 / (1 + math.exp(-epsilon)) + delta)


# ---- rates -----------------------------------------------------------------------------------


def binomial_tail(least: int, trials: int, chance: float) -> float:
    """Return P[Binomial(trials, chance) >= least]."""
    if least <= 0:
        return 1.0
    if least > trials or chance <= 0:
        return 0.0
    if chance >= 1:
        return 1.0
    return min(1.0, float(_pmf(trials, chance)[least:].sum()))


def at_least(successes: int, trials: int, confidence: float) -> float:
    """Return the one-sided lower bound of Clopper and Pearson on a chance."""
    _counts(successes, trials)
    if successes == 0:
        return 0.0
    alpha = 1 - confidence
    return _root(lambda p: binomial_tail(successes, trials, p) < alpha, 1.0)


def at_most(successes: int, trials: int, confidence: float) -> float:
    """Return the one-sided upper bound of Clopper and Pearson on a chance."""
    return 1 - at_least(trials - successes, trials, confidence)


def rates_epsilon(tpr: float, fpr: float, delta: float) -> float:
    """Return the least epsilon at which a test can have TPR >= `tpr` and FPR <= `fpr`."""
    if tpr <= delta:
        return 0.0
    if fpr <= 0:
        return math.inf
    return max(0.0, math.log((tpr - delta) / fpr))


def threshold_audit(
    members: Floats, others: Floats, delta: float, confidence: float, rng: np.random.Generator
) -> Tail:
    """Return what the most telling threshold proves; it is chosen on the half not tested."""
    _scores(members, others)
    if min(len(members), len(others)) < 4:
        return Tail(math.inf, 0.0, 0.0, 0.0, "members")
    m, o = rng.permutation(members), rng.permutation(others)
    half, part = len(m) // 2, len(o) // 2
    each = 1 - (1 - confidence) / 2  # for each of the two rates
    level, side = _telling(m[:half], o[:part], NormalDist().inv_cdf(each))
    hits, alarms = int((m[half:] >= level).sum()), int((o[part:] >= level).sum())
    m_count, o_count = len(m) - half, len(o) - part
    if side == "members":
        low, high = at_least(hits, m_count, each), at_most(alarms, o_count, each)
    else:  # of those below the threshold, few are members
        low = at_least(o_count - alarms, o_count, each)
        high = at_most(m_count - hits, m_count, each)
    proved = rates_epsilon(low, high, delta)
    return Tail(float(level), hits / m_count, alarms / o_count, proved, side)


def _telling(members: Floats, others: Floats, z: float) -> tuple[float, Side]:
    """Return the threshold, and its side, that would prove most, by Wilson's bounds.

    A choice may be rough: what is proved is bounded exactly, on other scores.
    """
    pool = np.concatenate([members, others])
    levels = np.unique(np.quantile(pool, np.linspace(0, 1, _CANDIDATES)))
    tpr, fpr = (
        (len(s) - np.searchsorted(np.sort(s), levels, "left")) / len(s)
        for s in (members, others)
    )
    m, o = len(members), len(others)
    high = _wilson(tpr, m, -z) / _wilson(fpr, o, z)
    low = _wilson(1 - fpr, o, -z) / _wilson(1 - tpr, m, z)
    if low.max() > high.max():
        return float(levels[low.argmax()]), "others"
    return float(levels[high.argmax()]), "members"


def _wilson(rate: Floats, trials: int, z: float) -> Floats:
    """Return Wilson's bound on a chance: above the rate for z > 0, below it for z < 0."""
    spread = np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    bound: Floats = (rate + z * z / (2 * trials) + z * spread) / (1 + z * z / trials)
    return np.clip(bound, _TINY, 1.0)


# ---- canaries --------------------------------------------------------------------------------


def canary_p_value(
    planted: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """Return how likely so many right guesses are, at most, under (epsilon, delta)-DP."""
    if not 0 <= correct <= guesses <= planted:
        raise ValueError(
            f"{correct} right of {guesses} guesses on {planted} canaries; needed "
            "0 <= right <= guesses <= canaries"
        )
    pmf = _pmf(guesses, 1 / (1 + math.exp(-epsilon)))
    tail = float(pmf[correct:].sum())
    if not correct or not delta:
        return min(1.0, tail)
    falling = np.cumsum(pmf[:correct][::-1])  # P[v - i <= W < v] for i = 1, 2, ...
    worst = float((falling / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2 * planted * delta * worst)


def canary_epsilon(
    planted: int, guesses: int, correct: int, delta: float, confidence: float
) -> float:
    """Return the lower bound on epsilon at `delta` that so many right guesses prove."""
    alpha = 1 - confidence

    def ruled_out(epsilon: float) -> bool:
        return canary_p_value(planted, guesses, correct, epsilon, delta) < alpha

    return _root(ruled_out, _MOST_EPSILON) if ruled_out(0.0) else 0.0


def canary_audit(scores: Floats, planted: Flags, delta: float, confidence: float) -> Canaries:
    """Guess the highest scores as planted, the lowest as not; return what that proves.

    `planted` says which were. The numbers of guesses, GUESSES, are tried with the error shared
    among them.
    """
    count = len(scores)
    if planted.shape != scores.shape or not np.isfinite(scores).all() or count < 2:
        raise ConfigError(
            f"{count} scores and {planted.shape} coins; needed 2 or more finite scores with "
            "a coin each"
        )
    truth = planted[np.argsort(scores, kind="stable")]
    each = 1 - (1 - confidence) / len(GUESSES)
    found = []
    for share in GUESSES:
        side = max(1, int(count * share / 2))
        right = int((~truth[:side]).sum() + truth[count - side :].sum())
        low = canary_epsilon(count, 2 * side, right, delta, each)
        most = canary_epsilon(count, 2 * side, 2 * side, delta, each)
        found.append(Canaries(count, 2 * side, right, low, most))
    best = max(found, key=lambda c: (c.epsilon, c.guesses))
    most = max(c.most for c in found)
    return Canaries(count, best.guesses, best.correct, best.epsilon, most)


# ---- scores of losses ------------------------------------------------------------------------


def confidence_of(losses: Floats) -> Floats:
    """Return losses as confidence, log(p / (1 - p)) with p = e^-loss: larger is surer.

    The transform is what makes differences of small losses count. Losses that go below 0 are
    no cross-entropy and are only turned round.
    """
    if (losses < 0).any():
        return -losses
    held = np.maximum(losses, _TINY)
    sure: Floats = -(held + np.log(-np.expm1(-held)))
    return sure


def calibrated(target: Floats, references: Floats, inside: Flags) -> Floats:
    """Return how much surer `target` is of each record than models that never saw it.

    `target`: confidence, records. `references`: models x records. `inside`: models x records,
    True where a reference model was trained on the record; each needs one that was not.
    """
    if references.shape != inside.shape or references.shape[1:] != target.shape:
        raise ValueError(
            f"confidences of {target.shape} records, {references.shape} by reference models "
            f"with {inside.shape} flags; needed models x records twice"
        )
    unseen = (~inside).sum(0)
    if not unseen.all():
        raise ValueError("a record was in every reference model; needed one without it")
    surer: Floats = target - np.where(inside, 0.0, references).sum(0) / unseen
    return surer


def correlation(a: Floats, b: Floats) -> float:
    """Return Pearson's correlation; 0 when one of the two does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0


# ---- inside ----------------------------------------------------------------------------------


def _placements(scores: Floats, among: Floats) -> Floats:
    """Return, for each score, the share of `among` below it, ties counted half."""
    ranked = np.sort(among)
    below = np.searchsorted(ranked, scores, "left") + np.searchsorted(ranked, scores, "right")
    shares: Floats = below / (2 * len(ranked))
    return shares


def _pmf(trials: int, chance: float) -> Floats:
    """Return P[Binomial(trials, chance) = k] for k = 0 ... trials; chance inside (0, 1)."""
    k = np.arange(trials + 1)
    chances: Floats = np.exp(
        _log_choose(trials) + k * math.log(chance) + (trials - k) * _log1m(chance)
    )
    return chances


@lru_cache(maxsize=32)
def _log_choose(trials: int) -> Floats:
    """Return log(trials choose k) for k = 0 ... trials. Not to be changed."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    logs: Floats = factorials[-1] - factorials - factorials[::-1]
    logs.flags.writeable = False
    return logs


def _log1m(chance: float) -> float:
    """Return log(1 - chance), finite however near chance is to 1."""
    return math.log1p(-chance) if chance < 1 else math.log(5e-324)


def _root(holds: Callable[[float], bool], high: float) -> float:
    """Return where a condition that holds from 0 on ends, from below; at most `high`."""
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _scores(members: Floats, others: Floats) -> None:
    for what, scores in (("members", members), ("others", others)):
        if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
            raise ConfigError(
                f"scores of {what}: {scores.shape}, "
                f"{int((~np.isfinite(scores)).sum())} not finite; needed one or more numbers"
            )


def _counts(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials or not trials:
        raise ValueError(
            f"{successes} of {trials}; needed 0 <= successes <= trials, trials > 0"
        )
