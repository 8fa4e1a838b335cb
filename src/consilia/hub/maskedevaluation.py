"""Evaluations under secure aggregation: what the hub makes of the sum of the sites' vectors.

Each site's vector is masked, small, and journalled with its lease; the sum is opened in the
five steps of a masked round, of which hub.masking carries the words. No site's metric is ever
here: what is told is of all sites together.

A job with differential privacy is evaluated in this way or not at all, with noise on every
cell that each site's ledger is charged for: an epsilon is shown where every release of the job
is in it.
"""

import base64
from collections.abc import Iterator, Sequence, Set
from math import sqrt
from typing import Literal

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from consilia.core.round import JobState
from consilia.core.steps import FEWEST
from consilia.errors import ConsiliaError, DataError
from consilia.hub import masking
from consilia.privacy.accountant import check as check_dp
from consilia.privacy.estimate import CELL, noise_of
from consilia.privacy.noise import sure_shares
from consilia.stats import summedscores
from consilia.stats.pooling import Pooled, Z, interval
from consilia.wire.people import Evaluate, EvaluationView, Experiment, PooledView
from consilia.wire.v1 import Dp, Evaluation, Privacy, Result, Task

Problem = tuple[str, str, str]


def masked(experiment: Experiment) -> bool:
    """Tell whether a job's evaluations are masked sums."""
    return experiment.evaluate is not None and experiment.evaluate.aggregation == "secure"


def settled(experiment: Experiment, sites: Sequence[str], summed: Set[str]) -> Experiment:
    """Return the experiment with how it is evaluated, where it leaves that open.

    Secure where it can be and must be: of `sites`, the study's, three or more are asked, and
    one of them is among `summed`, who tell nothing else, or the job has differential privacy.
    """
    wanted, privacy = experiment.evaluate, experiment.privacy or Privacy()
    if wanted is None or wanted.aggregation:
        return experiment
    asked = set(wanted.at or sites)
    needed = bool(asked & summed) or privacy.dp is not None
    able = len(asked) >= FEWEST and not wanted.subgroups and privacy.aggregation != "ckks"
    how: Literal["plain", "secure"] = "secure" if needed and able else "plain"
    return replace(experiment, evaluate=replace(wanted, aggregation=how))


def protection(experiment: Experiment, asked: Evaluation, fold: int) -> Privacy:
    """Return how an evaluation's task is protected; `asked` is complete with its grid."""
    if not masked(experiment):
        return Privacy(evaluation=asked, fold=fold)
    dp = noise_of(experiment)
    return Privacy(aggregation="secure", dp=dp, evaluation=asked, fold=fold)


def bins_of(experiment: Experiment) -> int:
    """Return the cells of the grid; 0 where each site tells its metrics."""
    if not masked(experiment):
        return 0
    return summedscores.BINS if noise_of(experiment) is None else summedscores.NOISED_BINS


def few(e: Experiment, invited: Sequence[str]) -> Iterator[Problem]:
    """Yield that a study has too few sites for a sum: nothing would ever come of it."""
    if masked(e) and len(set(invited)) < FEWEST:
        needed = f"plain: a sum hides nobody among {len(set(invited))} sites, {FEWEST} at least"
        yield "evaluate.aggregation", "secure", needed


def problems(e: Experiment) -> Iterator[Problem]:
    """Yield what keeps an evaluation from being a masked sum, or one with noise."""
    wanted, dp = e.evaluate, e.privacy.dp if e.privacy else None
    if wanted is None:
        return
    if wanted.noise_multiplier and dp is None:
        needed = "0: only a job with privacy.dp has noise in its evaluations"
        yield "evaluate.noise_multiplier", f"{wanted.noise_multiplier:g}", needed
    if wanted.aggregation == "secure":
        yield from _of_sums(wanted)
        if e.privacy is not None and e.privacy.aggregation == "ckks":
            needed = "plain: a job with homomorphic encryption has no masks for a sum"
            yield "evaluate.aggregation", "secure with privacy.aggregation ckks", needed
    if dp is not None:
        yield from _private(wanted, dp)


def _of_sums(wanted: Evaluate) -> Iterator[Problem]:
    if 0 < len(wanted.at) < FEWEST:
        needed = f"{FEWEST} sites or more: a sum of fewer tells each other's numbers; or none"
        yield "evaluate.at", ", ".join(wanted.at)[:200], needed
    if wanted.subgroups:
        needed = (
            "none with aggregation secure: of a subgroup that one site alone has, the sum is "
            "that site's"
        )
        yield "evaluate.subgroups", ", ".join(wanted.subgroups)[:200], needed


def _private(wanted: Evaluate, dp: Dp) -> Iterator[Problem]:
    """A release that no ledger is charged for would make the epsilon of the job untrue."""
    field = "evaluate.noise_multiplier"
    if wanted.aggregation == "plain" or not wanted.noise_multiplier > 0:
        needed = (
            "above 0, with three sites or more: a job with privacy.dp is evaluated with noise, "
            "in a masked sum, or not at all; or evaluate its model in a job of its own, which "
            "is not differentially private"
        )
        yield field, f"{wanted.noise_multiplier:g}", needed
        return
    if dp.level != "record":
        needed = "record: only one record's place in an evaluation is hidden"
        yield "privacy.dp.level", f"{dp.level} with evaluate", needed
        return
    if wanted.benefit:
        yield "evaluate.benefit", "true with privacy.dp", "false: a gain has no noise"
    try:
        check_dp(Dp("record", wanted.noise_multiplier, CELL, delta=dp.delta))
    except ConsiliaError as error:
        yield field, f"{wanted.noise_multiplier:g}", f"another: {error}"


def misfit(result: Result, task: Task) -> str | None:
    """Say why a site's masked vector is none, or None; only its length can be judged."""
    if (result.job, result.round) != (task.job, task.round) or result.model is not None:
        return "the result is of another job, round or kind"
    if result.evaluated is not None or result.metrics:
        return "a masked evaluation tells metrics in the open"
    bins = (task.evaluation or Evaluation()).bins
    needed = 8 * summedscores.size(bins, task.privacy.dp is not None)
    if len(result.sums) != needed:
        return f"its masked vector has {len(result.sums)} bytes, needed {needed}"
    return None


def body_of(result: Result) -> str:
    """Return a site's vector as the journal keeps it."""
    return base64.b64encode(result.sums).decode()


def view(experiment: Experiment, state: JobState, now: float, model: str) -> EvaluationView:
    """Open the sum of the survivors and return what it says; one that says nothing, says why.

    Raises a ConsiliaError where the masks cannot be taken off.
    """
    told = masking.survivors(state)
    without = {
        lease.site: f"{lease.status}: {lease.cause}" if lease.cause else lease.status
        for lease in sorted(state.leases.values(), key=lambda lease: lease.site)
        if lease.status != "accepted"
    }
    empty = EvaluationView(state.round, now, model, {}, {}, without, "secure")
    if not told:
        why = "too few sites were left for a sum that hides each one's numbers"
        return replace(empty, cause=why)
    total = _opened(state)
    try:
        found = _read(experiment, state, total, len(told))
    except DataError as error:
        return replace(empty, summed=told, cause=f"the sum says nothing: {error}")
    return replace(
        empty,
        pooled={name: _pooled(name, one) for name, one in sorted(found.metrics.items())},
        summed=told,
        gain={name: _gain(one) for name, one in sorted(found.gain.items())},
        calibration=found.calibration,
    )


def _opened(state: JobState) -> NDArray[np.uint64]:
    """Return the sum of the survivors' vectors, unmasked."""
    accepted = (e.body for e in state.leases.values() if e.status == "accepted")
    total = masking.sum_of(accepted)
    masking.unmasker(state).subtract(total)
    return total


def _read(
    experiment: Experiment, state: JobState, total: NDArray[np.uint64], sites: int
) -> summedscores.Sums:
    noise, bins = noise_of(experiment), bins_of(experiment)
    if noise is None:
        return summedscores.read(total, bins, sites)
    keyed = len(masking.said(state, "keys"))
    deviation = noise.noise_multiplier * sqrt(sites / sure_shares(noise, keyed))
    return summedscores.read_noised(total, bins, sites, deviation)


def _pooled(name: str, one: summedscores.Judged) -> PooledView:
    found, off = one.pooled, one.bound
    low, high = interval(name, found.value, found.error + off / Z)
    return PooledView(found.value, low, high, found.records, found.sites, one.method, off)


def _gain(one: Pooled) -> PooledView:
    low, high = interval("", one.value, one.error)
    return PooledView(one.value, low, high, one.records, one.sites, "mean of sites")
