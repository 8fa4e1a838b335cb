"""What makes an experiment fit to run. Every problem is found at once; each names its field."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
from sqlalchemy import Connection

from consilia.algo.compress import named
from consilia.algo.robust import rule
from consilia.algo.strategy import strategy
from consilia.core import ids
from consilia.core.round import Evaluating, RoundConfig, Selection
from consilia.core.steps import FEWEST
from consilia.errors import ConfigError, NotFound
from consilia.hub import (
    closing,
    evaluations,
    maskedevaluation,
    modelversions,
    records,
    statistics,
    watching,
)
from consilia.hub.blobs import Blobs
from consilia.hub.pool import placement
from consilia.hub.siteviews import advertised
from consilia.privacy import accountant, adaptive, ckks, gradients, graph, noise, ring, shares
from consilia.privacy.estimate import noise_of
from consilia.stats import sums
from consilia.wire.people import Experiment
from consilia.wire.v1 import (
    MAX_ARGUMENTS,
    Arguments,
    Compression,
    Dp,
    Plan,
    Privacy,
    Study,
    plan_digest,
    study_digest,
)

MAX_ROUNDS = 1_000_000
MAX_SECONDS = 30 * 86400.0  # of grace and deadline
MAX_TEXT = 200  # characters of an argument's name
MAX_VALUE = 4000  # characters of a text argument
MAX_SEED = 1 << 63
MAX_FOLD = 20
NOISE_REACH = 8  # standard deviations of noise that a masked coordinate must carry

_BITS: dict[int, Literal[8, 16, 32]] = {8: 8, 16: 16, 32: 32}
Ending = Literal["rejected", "failed", "declined"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the field, what it holds, and what it needs."""

    field: str
    found: str
    needed: str

    def __str__(self) -> str:
        return f"{self.field}: found {self.found}, needed {self.needed}"


def rounds_of(experiment: Experiment) -> RoundConfig:
    """Return what the round machine obeys for this experiment."""
    wanted = experiment.evaluate
    judging = None
    if wanted is not None:
        hidden = wanted.aggregation == "secure"
        shared = shares.named(noise_of(experiment)) if hidden else ""
        judging = Evaluating(wanted.every, tuple(sorted(wanted.at)), hidden, shared)
    question = statistics.asked_of(experiment)
    if question is not None:
        judging = Evaluating(sites=tuple(sorted(experiment.sites)))
    return RoundConfig(
        rounds=experiment.rounds,
        min_updates=experiment.min_updates,
        min_sites=experiment.min_sites,
        selection=Selection(experiment.fraction),
        grace=experiment.grace,
        deadline=experiment.deadline,
        seed=experiment.seed,
        masked=experiment.privacy is not None and experiment.privacy.aggregation != "plain",
        encrypted=experiment.privacy is not None and experiment.privacy.aggregation == "ckks",
        trainers=tuple(sorted(experiment.sites)),
        evaluating=judging,
        statistics="" if question is None else sums.digest(question),
        noise=shares.named(experiment.privacy.dp if experiment.privacy else None),
    )


def settled(
    experiment: Experiment, study: Study, copies: frozenset[str] = frozenset()
) -> Experiment:
    """Return the experiment with the sites and the protection it gets when it names none.

    `copies` are the sites whose records the study's data centre holds: they train there, and
    models are evaluated at the hospitals. Secure aggregation from three sites up. Its rounds
    need three updates at least, whatever the experiment asks for: from the sum of two, each
    site knows the other's update.
    """
    sites = experiment.sites or placement.trainers(study, copies)
    judged = experiment.evaluate
    if judged is not None and study.data_centre and not judged.at:
        judged = msgspec.structs.replace(judged, at=study.hospitals)
    experiment = msgspec.structs.replace(experiment, sites=sites, evaluate=judged)
    many = len(sites or study.sites) >= FEWEST
    privacy = experiment.privacy or Privacy(aggregation="secure" if many else "plain")
    if privacy.aggregation == "plain":
        return msgspec.structs.replace(experiment, privacy=privacy)
    return msgspec.structs.replace(
        experiment,
        privacy=privacy,
        min_updates=max(FEWEST, experiment.min_updates),
        min_sites=max(FEWEST, experiment.min_sites),
    )


def problems(experiment: Experiment) -> tuple[Problem, ...]:
    """Return what is wrong with the experiment by itself."""
    return (
        *_numbers(experiment),
        *_strategy(experiment),
        *_aggregate(experiment),
        *_watch(experiment),
        *_early_stop(experiment),
        *(Problem(*found) for found in evaluations.problems(experiment)),
        *(Problem(*found) for found in maskedevaluation.problems(experiment)),
        *_arguments(experiment.arguments),
        *_privacy(experiment.privacy or Privacy()),
        *_compress(experiment),
        *_one_step(experiment),
    )


def protection(
    experiment: Experiment, noted: Mapping[str, float], final: bool = False
) -> Privacy:
    """Return how the updates of the next round are protected and made smaller.

    `noted` are the metrics of the newest version: what a clip that adapts follows. `final`: no
    round is planned after it.
    """
    privacy = adaptive.of_round(experiment.privacy or Privacy(), noted)
    if experiment.fold:
        privacy = msgspec.structs.replace(privacy, fold=experiment.fold)
    codec = named(experiment.compress)
    if privacy.aggregation == "secure" and privacy.bits == 8:
        return msgspec.structs.replace(privacy, final=final)
    if codec is None:
        return privacy
    packed = Compression(_BITS[codec.bits], codec.keep, final)
    return msgspec.structs.replace(privacy, compression=packed)


def arguments_misfit(arguments: Arguments) -> Problem | None:
    """Return the first problem of changed arguments, or None."""
    return next(_arguments(arguments), None)


def missing(db: Connection, experiment: Experiment, blobs: Blobs) -> tuple[Problem, ...]:
    """Return what the experiment refers to that is not there, or not in the right state."""
    return (*_study(db, experiment), *_plan(db, experiment), *_base(db, experiment, blobs))


def matches(experiment: Experiment, study: Study, plan: Plan | None) -> None:
    """Raise ConfigError unless `study` and `plan` are the ones that the experiment names.

    Statistics have no plan.
    """
    if experiment.study != study.name:
        raise ConfigError(
            f"the experiment is of study {experiment.study!r}, not {study.name!r}"
        )
    found = "" if plan is None else plan_digest(plan)
    if experiment.plan != found or (plan is None and statistics.asked_of(experiment) is None):
        raise ConfigError(f"the experiment names plan {experiment.plan}, not {found}")


def digest_of(study: Study) -> str:
    """Return the study's digest."""
    return study_digest(study)


def base_frame(db: Connection, experiment: Experiment) -> str | None:
    """Return the digest of the frame to start from, None to init; ConfigError if unknown."""
    base = experiment.base
    if base is None:
        return None
    if base.startswith("b3:"):
        return ids.digest(base)
    try:
        return modelversions.get(db, base).digest
    except NotFound:
        raise ConfigError(f"base: there is no model version {base[:80]!r}") from None


def _numbers(e: Experiment) -> Iterator[Problem]:
    least = 1 if e.evaluate is None or e.base is None else 0  # 0: `base` is evaluated
    least = 0 if _of_statistics(e) else least
    rules: tuple[tuple[str, float, bool, str], ...] = (
        ("rounds", e.rounds, least <= e.rounds <= MAX_ROUNDS, f"{least} to {MAX_ROUNDS}"),
        ("min_updates", e.min_updates, e.min_updates >= 1, "1 or more"),
        ("min_sites", e.min_sites, e.min_sites >= 1, "1 or more"),
        ("fraction", e.fraction, 0 < e.fraction <= 1, "above 0, at most 1"),
        ("grace", e.grace, 0 <= e.grace <= MAX_SECONDS, f"0 to {MAX_SECONDS:g} seconds"),
        (
            "deadline",
            e.deadline,
            0 < e.deadline <= MAX_SECONDS,
            f"above 0, at most {MAX_SECONDS:g} seconds",
        ),
        ("fold", e.fold, 0 <= e.fold <= MAX_FOLD, f"0 to {MAX_FOLD}"),
        ("seed", e.seed, 0 <= e.seed < MAX_SEED, f"0 to {MAX_SEED - 1}"),
        ("keep", e.keep or 0, e.keep is None or e.keep >= 1, "1 or more, or nothing"),
    )
    for field, found, good, needed in rules:
        if not good:
            yield Problem(field, f"{found}", needed)
    if len(e.name) > MAX_TEXT:
        yield Problem("name", f"{len(e.name)} characters", f"at most {MAX_TEXT}")


def _strategy(e: Experiment) -> Iterator[Problem]:
    try:
        strategy(e.strategy.name, e.strategy.options)
    except ConfigError as error:
        options = ", ".join(f"{k}={v:g}" for k, v in e.strategy.options.items())
        yield Problem("strategy", f"{e.strategy.name}({options})", f"another: {error}")


def _aggregate(e: Experiment) -> Iterator[Problem]:
    a = e.aggregate
    try:
        chosen, options = rule(a.name, a.options)
    except ConfigError as error:
        given = ", ".join(f"{k}={v:g}" for k, v in a.options.items())
        yield Problem("aggregate", f"{a.name}({given})", f"another: {error}")
        return
    if chosen.plain:
        return
    if e.min_updates < (fewest := chosen.fewest(options)):
        yield Problem("min_updates", f"{e.min_updates}", f"at least {fewest} for {a.name}")
    how = None if e.privacy is None else e.privacy.aggregation
    if how != "plain":
        yield Problem(
            "aggregate",
            f"{a.name} with privacy.aggregation {how or 'left open'!r}",
            f"privacy: {{aggregation: plain}}, or the mean: {a.name} compares the sites' "
            "updates, and a masked update shows nothing to compare. Plain shows each update "
            "to the hub, so each site must consent",
        )


def _early_stop(e: Experiment) -> Iterator[Problem]:
    if e.early_stop is None:
        return
    try:
        closing.waited(e.early_stop)
    except ConfigError as error:
        yield Problem("early_stop", "a setting that makes no sense", f"{error}")


def _watch(e: Experiment) -> Iterator[Problem]:
    if e.watch is None:
        return
    try:
        watching.limits(e.watch)
    except ConfigError as error:
        yield Problem("watch", "a limit that makes no sense", f"{error}")


def _compress(e: Experiment) -> Iterator[Problem]:
    try:
        codec = named(e.compress)
    except ConfigError as error:
        yield Problem("compress", repr(e.compress[:80]), f"another: {error}")
        return
    how = None if e.privacy is None else e.privacy.aggregation
    if e.privacy is not None and e.privacy.compression is not None:
        yield Problem("privacy.compression", "a value", "nothing: it is the key `compress`")
    if codec is None or how in (None, "plain"):
        return
    remedy = (
        "its own: privacy: {aggregation: secure, bits: 16} halves the bytes of a masked "
        "update, bits: 8 quarters them"
        if how == "secure"
        else "none: a ciphertext cannot be made smaller"
    )
    yield Problem(
        "compress",
        f"{e.compress!r} with privacy.aggregation {how!r}",
        f"{remedy}. Coding works on an update that the hub reads, so it takes privacy: "
        "{aggregation: plain}, to which each site must consent",
    )


def _privacy(p: Privacy) -> Iterator[Problem]:
    rules: list[tuple[str, float, bool, str]] = [
        ("range", p.range, 0 < p.range < math.inf, "above 0"),
        ("clip", p.clip, 0 <= p.clip < math.inf, "0 or more"),
    ]
    if p.dp is not None:
        rules += [
            ("dp.clip", p.dp.clip, 0 < p.dp.clip < math.inf, "above 0"),
            (
                "dp.noise_multiplier",
                p.dp.noise_multiplier,
                0 < p.dp.noise_multiplier < math.inf,
                "above 0",
            ),
            ("dp.sampling", p.dp.sampling, 0 < p.dp.sampling <= 1, "above 0, at most 1"),
            ("dp.steps", p.dp.steps, 1 <= p.dp.steps <= MAX_ROUNDS, f"1 to {MAX_ROUNDS}"),
            ("dp.delta", p.dp.delta, 0 < p.dp.delta < 1, "above 0, below 1"),
        ]
        if p.dp.level == "client" and p.aggregation != "plain":
            reach = p.dp.clip * (1 + NOISE_REACH * p.dp.noise_multiplier)
            if p.dp.distributed:  # each site weighs 1 / N, so does its share of the noise
                reach = p.dp.clip * (1 + adaptive.REACH * p.dp.noise_multiplier)
            needed = f"{reach:g} or more: as far as the noise of a site's update reaches"
            rules.append(("range", p.range, not p.range < reach, needed))
    for field, found, good, needed in rules:
        if not good:
            yield Problem(f"privacy.{field}", f"{found}", needed)
    if p.dp is not None:
        yield from _mechanism(p, p.dp)
    if p.evaluation is not None:
        yield Problem("privacy.evaluation", "a value", "nothing: it is the key `evaluate`")
    if p.fold:
        yield Problem("privacy.fold", f"{p.fold}", "nothing: it is the key `fold`")
    if p.final:
        yield Problem("privacy.final", "true", "nothing: the hub says which round is the last")
    if p.aggregation == "ckks":
        yield from _encrypted(p)


def _mechanism(p: Privacy, dp: Dp) -> Iterator[Problem]:
    """Whether the noise is one that can be promised, and may be shared where it is to be."""
    if dp.distributed and p.aggregation != "secure":
        yield Problem(
            "privacy.dp.distributed",
            f"true with aggregation {p.aggregation!r}",
            "aggregation secure, of three sites or more: a share of the noise hides nothing "
            "but in a masked sum; or false, and each site adds all of it",
        )
    try:
        accountant.check(dp)
    except ConfigError as error:
        yield Problem("privacy.dp", f"{dp.level} level", f"another: {error}")
    if gradients.applies(dp):
        yield from _summed(p, dp)
    elif dp.distributed and p.bits == 8:
        needed = "32 or 16: a share of the noise is lost in steps of 8 bits"
        yield Problem("privacy.bits", "8 with dp.distributed", needed)


def _summed(p: Privacy, dp: Dp) -> Iterator[Problem]:
    """What a round needs that is one step of all sites: the exact ring, and no other clip."""
    if p.bits != 32:
        needed = f"32: dp.distributed at {dp.level} level sums whole numbers"
        yield Problem("privacy.bits", f"{p.bits}", needed)
    if p.clip:
        needed = f"0: at {dp.level} level dp.clip bounds each gradient, and the sum has no clip"
        yield Problem("privacy.clip", f"{p.clip:g}", needed)


def _one_step(e: Experiment) -> Iterator[Problem]:
    """FedProx pulls back a site's later steps: a round of one step of all sites has none."""
    if e.privacy is None or not gradients.applies(e.privacy.dp):
        return
    if e.strategy.name == "fedprox":
        yield Problem(
            "strategy",
            "fedprox with dp.distributed",
            "another, as fedavgm or fedadam: a round is one step along the sum of gradients",
        )


def _encrypted(p: Privacy) -> Iterator[Problem]:
    """What homomorphic encryption needs: TenSEAL at the hub, numbers that a slot can hold."""
    try:
        ckks.require()
    except ConfigError as error:
        yield Problem("privacy.aggregation", "'ckks'", f"TenSEAL at the hub: {error}")
    if not p.range <= ckks.REACH:
        yield Problem("privacy.range", f"{p.range:g}", f"at most {ckks.REACH:g} with ckks")
    if p.bits != Privacy().bits:
        yield Problem("privacy.bits", f"{p.bits}", "nothing: ckks has no ring of integers")
    if p.dp is not None and p.dp.distributed:
        needed = "false with ckks: shares of noise need the ring of aggregation 'secure'"
        yield Problem("privacy.dp.distributed", "true", needed)


def _arguments(arguments: Arguments) -> Iterator[Problem]:
    if len(arguments) > MAX_ARGUMENTS:
        yield Problem("arguments", f"{len(arguments)} of them", f"at most {MAX_ARGUMENTS}")
    for name, value in arguments.items():
        field = f"arguments.{name[:80]}"
        if not 0 < len(name) <= MAX_TEXT:
            yield Problem(field, f"a name of {len(name)} characters", f"1 to {MAX_TEXT}")
        if isinstance(value, float) and not math.isfinite(value):
            yield Problem(field, f"{value}", "a finite number")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            yield Problem(field, "an integer of more than 64 bits", "a smaller one")
        if isinstance(value, str) and len(value) > MAX_VALUE:
            yield Problem(field, f"{len(value)} characters", f"at most {MAX_VALUE}")


def _study(db: Connection, e: Experiment) -> Iterator[Problem]:
    try:
        found = records.get_study(db, e.study)
    except NotFound:
        yield Problem("study", repr(e.study[:80]), "the name of a submitted study")
        return
    if found.state != "submitted":
        yield Problem("study", f"{e.study!r}, which is {found.state}", "a submitted study")
    invited = len(found.study.sites)
    for field, count in (("min_sites", e.min_sites), ("min_updates", e.min_updates)):
        if count > invited:
            yield Problem(
                field,
                f"{count}",
                f"at most {invited}, the sites that study {e.study!r} invites",
            )
    yield from (Problem(*p) for p in evaluations.strangers(e, found.study.sites))
    yield from (Problem(*p) for p in maskedevaluation.few(e, found.study.sites))
    yield from _pooled(db, e, found)
    yield from _colluding(e, invited)
    yield from _small_ring(e, invited)


def _pooled(db: Connection, e: Experiment, found: records.StudyRecord) -> Iterator[Problem]:
    """Whether records would train twice: at their hospital, and at the data centre."""
    if not found.study.data_centre:
        return
    copies = placement.held(found.study, found.digest, advertised(records.every_site(db)))
    if both := placement.twice(found.study, copies, e.sites):
        yield Problem(
            "sites",
            f"{found.study.data_centre} and {', '.join(both)}, whose records it holds",
            "one or the other: the same records would count twice",
        )


def _small_ring(e: Experiment, invited: int) -> Iterator[Problem]:
    """Whether the sum of all sites that may take part fits the ring."""
    if e.privacy is None or e.privacy.aggregation != "secure":
        return
    try:
        ring.check_sites(e.privacy.bits, invited)
    except ConfigError as error:
        yield Problem("privacy.bits", f"{e.privacy.bits}", f"another: {error}")


def _colluding(e: Experiment, invited: int) -> Iterator[Problem]:
    """Whether shares of noise are left to count on, in a round of the fewest sites."""
    dp = None if e.privacy is None else e.privacy.dp
    if dp is None or not dp.distributed or invited < FEWEST:
        return
    fewest = max(FEWEST, e.min_sites)
    sure = graph.threshold(min(invited, fewest))
    if noise.honest_survivors(sure, dp.colluding) < 1:
        yield Problem(
            "privacy.dp.colluding",
            f"{dp.colluding}",
            f"at most {sure - 1}: in a round of min_sites {fewest} only {sure} are sure to "
            "stay, and the noise of one of them at least must be secret",
        )


def _of_statistics(e: Experiment) -> bool:
    """Tell whether a job asks for statistics, as the hub has made it: without a plan."""
    return statistics.asked_of(e) is not None and not e.plan


def _plan(db: Connection, e: Experiment) -> Iterator[Problem]:
    if _of_statistics(e):
        return
    if statistics.asked_of(e) is not None:
        yield Problem("privacy.statistics", "a value", "nothing: ask by POST /statistics")
    studies = records.plan_studies(db, e.plan)
    if e.study not in studies:
        offered = f"one offered to {', '.join(studies)} only" if studies else "an unknown one"
        yield Problem(
            "plan", f"{e.plan[:80]} ({offered})", f"the digest of a plan offered to {e.study!r}"
        )


def _base(db: Connection, e: Experiment, blobs: Blobs) -> Iterator[Problem]:
    try:
        digest = base_frame(db, e)
    except ConfigError as error:
        yield Problem("base", repr((e.base or "")[:80]), f"a model version or frame; {error}")
        return
    if digest is not None and blobs.size(digest) is None:
        yield Problem(
            "base", f"{e.base}, whose frame {digest} is not stored", "upload the frame first"
        )
