"""May this task run here? The site's answer, as one pure function.

Every rule below is asked, every time, so the site's staff see all the reasons at once and
the order of the rules carries no meaning. One objection is enough to refuse; a rule that
cannot tell must object. To add a rule, write a function and list it in RULES.

The hub is told only that the task was refused, unless the site chose to disclose more:
reasons can betray the data (a "too few records" answers a membership question), so they stay
in the node's audit trail. Nothing here is taken from the hub's word: a Request holds what the
hub asks for, a Policy what the site's own store says.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

import msgspec

from consilia.errors import ConfigError
from consilia.node.arguments import Allowed, argument_problem
from consilia.node.hours import DAY, Window, open_at
from consilia.stats import private, sums
from consilia.wire.v1 import MAX_ARGUMENTS, Privacy, Scalar

KINDS = frozenset({"init", "train", "evaluate", "statistics"})
FEWEST_MASKED = 3  # sites: of two, each works out the other's update from the sum


Via = Literal["site", "shipped", "consortium"]  # how a plan came to be approved
Told = Literal["study", "all", "none"]  # study: where the study's terms say so
_LEAVES: Mapping[str, str] = {"train": "update", "statistics": "sums"}


class Terms(msgspec.Struct, frozen=True):
    """What a study must say of itself before its tasks run here. Empty: anything."""

    controllers: list[str] = []  # one of these must be the study's controller
    legal_bases: list[str] = []  # one of these must be its legal basis
    ethics_required: bool = False  # it must name an ethics vote
    end_required: bool = False  # it must have a last day


class ConsortiumReview(msgspec.Struct, frozen=True):
    """How many reviewers of how many sites stand in for this site's own review of a plan."""

    reviewers: int = 2
    sites: int = 2


@dataclass(frozen=True, slots=True)
class StudyGrant:
    """A study this site has accepted, as it was when it was accepted. `until` is inclusive."""

    name: str
    tags: frozenset[str]
    until: date = date.min
    min_records: int = 0
    datasets: frozenset[str] = frozenset()  # names it may use; empty: any that has the tags
    sites: tuple[str, ...] = ()  # invited, this one among them
    controller: str = ""
    legal_basis: str = ""
    ethics: str = ""
    residency: str = ""  # region that its data must stay in; "" for any
    statistics: bool = False  # its terms: sums over records may be asked for


@dataclass(frozen=True, slots=True)
class PlanGrant:
    """An approval in force: for which studies, until when, which arguments may be set."""

    name: str
    studies: frozenset[str] = frozenset()  # names; empty: any accepted study
    until: date = date.min
    defaults: Mapping[str, Scalar] = field(default_factory=dict)  # declared in the source
    arguments: Mapping[str, Allowed | None] = field(default_factory=dict)  # declared names
    signers: frozenset[str] = frozenset()  # who approved; name@site for a consortium's review
    via: Via = "site"


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """One registered dataset, as this node measured it."""

    name: str
    tags: frozenset[str]
    records: int  # that tasks may train on
    enabled: bool = True
    held: int = 0  # records of its hold-out
    study: str = ""  # digest of the only study that may use it: others' copies; "" for any


@dataclass(frozen=True, slots=True)
class Policy:
    """All that the site has decided. Defaults allow nothing."""

    studies: Mapping[str, StudyGrant] = field(default_factory=dict)  # by digest
    plans: Mapping[str, PlanGrant] = field(default_factory=dict)  # by digest
    datasets: tuple[DatasetFacts, ...] = ()
    min_records: int = 100
    ranges: Mapping[str, Allowed] = field(default_factory=dict)  # the site's, for any plan
    failures_per_day: int = 0
    plain_updates: bool = False  # may they leave unmasked where masking is possible
    dp_required: bool = False
    permitted: frozenset[str] = frozenset()  # names of studies; empty: any that is accepted
    terms: Terms = field(default_factory=Terms)
    hours: tuple[Window, ...] = ()  # when tasks may run; empty: at any time
    reviewers_needed: int = 0  # different people who approved a plan
    consortium: ConsortiumReview | None = None  # None: only this site's own review counts
    compression: bool = True  # may updates be compressed
    regions: tuple[str, ...] = ()  # that this site is in
    statistics: Told = "study"  # for which studies sums over records leave


@dataclass(frozen=True, slots=True)
class Request:
    """What a hub asks for, with the one fact the node adds: today's failures of the plan."""

    kind: str
    study: str  # digest
    study_name: str
    plan: str  # digest
    tags: frozenset[str]
    arguments: Mapping[str, Scalar]
    model: str | None
    timeout: float
    failures_today: int = 0
    privacy: Privacy = field(default_factory=Privacy)
    cohort: tuple[str, ...] = ()
    minute: int = -1  # of the day at the site, 0 to 1439; -1: not known
    local: bool = False  # of an evaluation: a model of the site's own is trained for it


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict. The objections are for the site's eyes; `dataset` is None for init.

    `told` is what the hub may hear in any case: the objections, when each of them follows from
    what was asked and from settings that say nothing about a patient.
    """

    objections: tuple[str, ...]
    dataset: str | None = None
    told: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        """True when no rule objected."""
        return not self.objections


Rule = Callable[[Request, Policy, date], str | None]


def _kind(r: Request, _: Policy, __: date) -> str | None:
    if r.kind not in KINDS:
        return f"task kind {r.kind[:40]!r} is unknown here; known: {', '.join(sorted(KINDS))}"
    if r.kind not in ("init", "statistics") and r.model is None:
        return f"a task of kind {r.kind!r} names no model to start from"
    return None


def _study(r: Request, p: Policy, today: date) -> str | None:
    grant = p.studies.get(r.study)
    if grant is None:
        return f"study {r.study_name[:63]!r} ({short(r.study)}) is not accepted here"
    if grant.name != r.study_name:
        return f"study {short(r.study)} is {grant.name!r}, not {r.study_name[:63]!r}"
    if today > grant.until:
        return f"study {grant.name!r} ended here on {grant.until}"
    return None


def _plan(r: Request, p: Policy, today: date) -> str | None:
    if r.kind == "statistics":
        return f"statistics by plan {short(r.plan)}: they have none" if r.plan else None
    grant = p.plans.get(r.plan)
    if grant is None:
        return f"plan {short(r.plan)} has no approval in force here"
    if today > grant.until:
        return f"the approval of plan {short(r.plan)} ended on {grant.until}"
    study = p.studies.get(r.study)
    if grant.studies and (study is None or study.name not in grant.studies):
        return f"plan {short(r.plan)} is approved for {sorted(grant.studies)}, not this study"
    return None


def _tags(r: Request, p: Policy, _: date) -> str | None:
    grant = p.studies.get(r.study)
    if grant is None or r.tags == grant.tags:
        return None  # an unknown study is _study's objection
    return f"asks for tags {sorted(r.tags)[:8]}, the study says {sorted(grant.tags)}"


def _dataset(r: Request, p: Policy, _: date) -> str | None:
    if r.kind == "init":
        return None  # init touches no data
    found = _candidates(r, p)
    if len(found) == 1:
        return None
    if not found:
        return f"no enabled dataset that this study may use has the tags {sorted(r.tags)[:8]}"
    names = ", ".join(sorted(d.name for d in found))
    return f"{len(found)} datasets fit ({names}); name one when accepting the study"


def _records(r: Request, p: Policy, _: date) -> str | None:
    if r.kind == "init" or (r.kind == "evaluate" and not r.local):
        return None
    study = p.studies.get(r.study)
    least = max(p.min_records, study.min_records if study else 0, 1)
    for d in _candidates(r, p):
        if d.records < least:
            return f"dataset {d.name!r} has {d.records} records, at least {least} are needed"
    return None


def _holdout(r: Request, p: Policy, _: date) -> str | None:
    """A model is judged on records that nothing was trained on, or not at all."""
    if r.kind != "evaluate":
        return None
    for d in _candidates(r, p):
        if not d.held:
            return (
                "this site has declared no hold-out, on which a model could be evaluated "
                "(consilia dataset holdout)"
            )
    return None


def _arguments(r: Request, p: Policy, _: date) -> str | None:
    if r.kind == "statistics":
        return "statistics take no arguments" if r.arguments else None
    if len(r.arguments) > MAX_ARGUMENTS:
        return f"{len(r.arguments)} arguments, at most {MAX_ARGUMENTS}"
    plan = p.plans.get(r.plan)
    if plan is None:
        return None if not r.arguments else "arguments cannot be judged without an approval"
    return argument_problem(r.arguments, plan.arguments, plan.defaults, p.ranges)


def _timeout(r: Request, _: Policy, __: date) -> str | None:
    ok = 0 < r.timeout < math.inf  # False for NaN: refuse
    return None if ok else f"a time limit of {r.timeout} seconds is none"


def _failures(r: Request, p: Policy, _: date) -> str | None:
    if r.failures_today < p.failures_per_day:
        return None
    return (
        f"plan {short(r.plan)} failed {r.failures_today} times here today, the limit is "
        f"{p.failures_per_day}: each failure can tell something about the data"
    )


def _aggregation(r: Request, p: Policy, _: date) -> str | None:
    """Masked where it can be: from three sites up, unless the site's owner said otherwise."""
    study = p.studies.get(r.study)
    how = r.privacy.aggregation
    told = r.kind == "evaluate" and how == "plain"  # numbers, under disclosure.metrics
    if r.kind == "init" or study is None or told:
        return None  # no update leaves
    if how == "secure" or (how == "ckks" and r.kind != "evaluate"):
        return _cohort(r.cohort, study)
    if how != "plain":
        return f"aggregation {how!r} is unknown here for a task of kind {r.kind!r}"
    if len(study.sites) < FEWEST_MASKED or p.plain_updates:
        return None
    return (
        f"the {_LEAVES[r.kind]} of one of {len(study.sites)} sites would leave unmasked; this "
        "site sends it only by secure aggregation (plain_updates: true would let it)"
    )


def _private(r: Request, p: Policy, _: date) -> str | None:
    if r.kind == "evaluate" and p.dp_required and r.privacy.dp is None:
        return "this site evaluates no models: what it tells must be differentially private"
    if r.kind == "init" or not p.dp_required or r.privacy.dp is not None:
        return None
    if r.kind == "statistics":
        return "this site tells statistics only with differential privacy (--epsilon)"
    return "this site trains only with differential privacy (privacy.dp of the experiment)"


def _statistics(r: Request, p: Policy, _: date) -> str | None:
    """Sums over records leave where the study is about them, unless the site says otherwise."""
    study, asks = p.studies.get(r.study), r.privacy.statistics is not None
    if asks is not (r.kind == "statistics"):
        return f"a task of kind {r.kind!r} {'asks' if asks else 'does not ask'} for statistics"
    if r.privacy.statistics is None or study is None:
        return None
    try:
        sums.check(r.privacy.statistics)  # the hub has done so, if it is honest
    except ConfigError as e:
        return f"a question that makes no sense: {e}"
    if p.statistics == "none" or (p.statistics == "study" and not study.statistics):
        return f"study {study.name!r} does not ask for statistics, or this site tells none"
    if r.privacy.aggregation == "ckks":
        return "statistics are not encrypted: masked or plain"
    return None


def _noisy_statistics(r: Request, _: Policy, __: date) -> str | None:
    """Noise that is less than what the ledger would be charged for protects nobody."""
    if r.kind != "statistics" or r.privacy.dp is None:
        return None
    asked, sites = r.privacy.statistics, len(r.cohort)
    return private.problem(r.privacy.dp, bool(sites), asked, sites) or None


def _shared_noise(r: Request, _: Policy, __: date) -> str | None:
    """Shares of noise protect in a masked sum only: alone each is too small."""
    dp = r.privacy.dp
    if r.kind == "init" or dp is None:
        return None
    if r.kind == "evaluate" and (not dp.distributed or dp.sampling != 1):
        return (
            "an evaluation carries its noise in shares, inside a masked sum, or none, and uses "
            f"every record: found distributed {dp.distributed}, sampling {dp.sampling:g}"
        )
    if not dp.distributed:
        return None
    if r.privacy.aggregation == "secure" and len(r.cohort) >= FEWEST_MASKED:
        return None
    return (
        f"shares of noise (privacy.dp.distributed) with aggregation "
        f"{r.privacy.aggregation!r} and {len(r.cohort)} sites: a share hides nothing outside "
        "a masked sum of three sites or more"
    )


def _compression(r: Request, p: Policy, _: date) -> str | None:
    small = r.privacy.aggregation == "secure" and r.privacy.bits == 8  # keeps a memory too
    if small and r.kind == "train" and not p.compression:
        return "this site keeps nothing of what updates of 8 bits leave out"
    if r.privacy.compression is None or r.kind != "train":
        return None
    if r.privacy.aggregation != "plain":
        return f"compression of an update with aggregation {r.privacy.aggregation!r}"
    return None if p.compression else "this site sends no compressed updates"


def _permitted(r: Request, p: Policy, _: date) -> str | None:
    if not p.permitted or r.study_name in p.permitted:
        return None
    return f"study {r.study_name[:63]!r} is not among those this site's policy permits"


def _terms(r: Request, p: Policy, _: date) -> str | None:
    study, terms = p.studies.get(r.study), p.terms
    if study is None:
        return None
    if terms.controllers and study.controller not in terms.controllers:
        return f"controller {study.controller[:80]!r} is not one this site's terms accept"
    if terms.legal_bases and study.legal_basis not in terms.legal_bases:
        return f"legal basis {study.legal_basis[:80]!r} is not one this site's terms accept"
    if terms.ethics_required and not study.ethics.strip():
        return f"study {study.name!r} names no ethics vote, which this site's terms require"
    if terms.end_required and study.until == date.max:
        return f"study {study.name!r} has no last day, which this site's terms require"
    return None


def _residency(r: Request, p: Policy, _: date) -> str | None:
    study = p.studies.get(r.study)
    problem = residency_problem(study.residency, p.regions) if study else None
    return f"study {r.study_name[:63]!r} {problem}" if problem else None


def residency_problem(residency: str, regions: tuple[str, ...]) -> str | None:
    """Say why a study that must stay in a region cannot run in these, or None."""
    if not residency or residency.casefold() in {r.casefold() for r in regions}:
        return None
    found = ", ".join(regions) or "none"
    return (
        f"must stay in {residency[:80]!r}, which is not among this site's regions (found: "
        f"{found}; `regions` in node.yaml names them)"
    )


def _hours(r: Request, p: Policy, today: date) -> str | None:
    if not p.hours:
        return None
    if 0 <= r.minute < DAY and open_at(p.hours, today.weekday(), r.minute):
        return None
    return f"tasks run here only {', '.join(w.text for w in p.hours)}"


def _signed(r: Request, p: Policy, _: date) -> str | None:
    grant = p.plans.get(r.plan)
    return None if grant is None else signature_problem(r.plan, grant, p)  # else _plan's


def signature_problem(digest: str, grant: PlanGrant, p: Policy) -> str | None:
    """Say why a plan was not approved by as many people as the policy asks for now, or None."""
    if grant.via != "consortium":
        people = {person(signer) for signer in grant.signers}
        if len(people) >= p.reviewers_needed:
            return None
        return (
            f"plan {short(digest)} was approved by {len(people)}, the policy needs "
            f"{p.reviewers_needed} different reviewers"
        )
    if p.consortium is not None and reviewed(grant.signers, p.consortium):
        return None
    return f"the consortium's review of plan {short(digest)} does not suffice here"


def _cohort(cohort: tuple[str, ...], study: StudyGrant) -> str | None:
    if strangers := set(cohort) - set(study.sites):
        return f"the cohort names {sorted(strangers)[:8]}, which the study does not invite"
    if len(set(cohort)) < max(FEWEST_MASKED, len(cohort)):
        return f"a cohort of {len(cohort)} sites cannot be masked: three are the fewest"
    return None


RULES: tuple[Rule, ...] = (
    _kind,
    _study,
    _plan,
    _tags,
    _dataset,
    _records,
    _holdout,
    _arguments,
    _timeout,
    _failures,
    _aggregation,
    _private,
    _shared_noise,
    _statistics,
    _noisy_statistics,
    _compression,
    _permitted,
    _terms,
    _residency,
    _hours,
    _signed,
)
# About what was asked and about settings, never about data: the asker may hear them.
TOLD: frozenset[Rule] = frozenset({_holdout, _arguments, _hours, _private, _noisy_statistics})


def decide(request: Request, policy: Policy, today: date) -> Decision:
    """Ask every rule. No I/O and no clock: the same inputs always give the same answer."""
    answers = {rule: rule(request, policy, today) for rule in RULES}
    objections = tuple(said for said in answers.values() if said is not None)
    if objections:
        tellable = all(rule in TOLD for rule, said in answers.items() if said is not None)
        return Decision(objections, None, objections if tellable else ())
    if request.kind == "init":
        return Decision(())
    return Decision((), _candidates(request, policy)[0].name)


def of_study(digest: str, name: str, policy: Policy, today: date) -> tuple[str, ...]:
    """Return what speaks against the study itself, whatever is to be done for it."""
    request = Request("init", digest, name, "", frozenset(), {}, None, 0.0)
    rules = (_study, _permitted, _terms, _residency)
    return tuple(said for rule in rules if (said := rule(request, policy, today)))


def reviewed(signers: frozenset[str], needed: ConsortiumReview) -> bool:
    """Tell whether reviewers, each written name@site, are enough, and of enough sites."""
    sites = {signer.rpartition("@")[2] for signer in signers}
    people = {person(signer) for signer in signers}
    return len(people) >= needed.reviewers and len(sites) >= needed.sites


def person(actor: str) -> str:
    """Return whom a name stands for: commands write user:NAME, the console writes NAME."""
    return actor.removeprefix("user:")


def short(digest: str) -> str:
    """Return the first twelve hex digits of a digest."""
    return digest.rpartition(":")[2][:12]


def _candidates(r: Request, p: Policy) -> list[DatasetFacts]:
    """Return the enabled datasets the study may use that carry all its tags."""
    grant = p.studies.get(r.study)
    if grant is None:
        return []
    return [
        d
        for d in p.datasets
        if d.enabled
        and r.tags <= d.tags
        and grant.tags <= d.tags
        and (not grant.datasets or d.name in grant.datasets)
        and d.study in ("", r.study)
    ]
