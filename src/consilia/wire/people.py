"""Version 1 of what people's programs (SDK, command line, browser) send to the hub's REST API.

JSON of these records under /api/v1; every list answers {"items": [...], "next": cursor|null}.
Unknown fields in a request are errors that name the nearest valid field.
"""

from typing import Any, Generic, Literal, TypeVar

import msgspec

from consilia.wire.v1 import (
    Arguments,
    CalibrationBin,
    Evaluated,
    Metrics,
    OfferedDataset,
    Plan,
    Privacy,
    Scalar,
    Study,
)


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of request bodies."""


class View(msgspec.Struct, frozen=True):
    """Base of response bodies."""


T = TypeVar("T")
Stage = Literal["candidate", "released", "retired"]  # of a model version; "" before any


class Page(View, Generic[T], frozen=True):
    """A part of a list. Give `next` back as `cursor` for the part after it; None: no more."""

    items: tuple[T, ...]
    next: str | None = None


class Strategy(Request, frozen=True):
    """Server side of an experiment; names and options as in algo.strategy."""

    name: str = "fedavg"
    options: dict[str, float] = {}


class Aggregate(Request, frozen=True):
    """How a round's updates become one; names and options as in algo.robust."""

    name: str = "mean"
    options: dict[str, float] = {}


class Watch(Request, frozen=True):
    """Alarms on the models of a job; what each limit means is told in algo.watch."""

    metric: str = "loss"  # reported by the sites; "" judges none
    better: Literal["lower", "higher"] = "lower"
    factor: float = 1.5  # worse than the best round by this factor is a bad round
    rounds: int = 3  # bad rounds in a row that raise the alarm
    jump: float = 10.0  # the model's step over the median of the last ones
    norm: float = 10.0  # one site's step over the median of the other sites'
    cosine: float = -0.5  # between one site's step and the others', at least
    rollback: bool = False  # an alarm makes the next round start from the last good version


class EarlyStop(Request, frozen=True):
    """End a job when a metric that the sites report has stopped getting better."""

    metric: str = "loss"
    better: Literal["lower", "higher"] = "lower"
    rounds: int = 5  # without a better value after which the job is done
    least: float = 0.0  # a value is better only by more than this


class Evaluate(Request, frozen=True):
    """Evaluate a job's models at the sites, each on its own hold-out."""

    every: int = 0  # rounds between two evaluations; 0: only the last model
    at: tuple[str, ...] = ()  # sites whose hold-outs count; empty: every ready one
    subgroups: dict[str, tuple[Scalar, ...]] = {}  # column -> levels (texts) or cut points
    benefit: bool = False  # of the last model: each site compares it with one of its own
    local_rounds: int = 0  # that the site's own model is trained; 0: as many as the job had
    aggregation: Literal["", "plain", "secure"] = ""  # "": secure where a site asks for it
    noise_multiplier: float = 0.0  # on each cell of the sum, of a job with privacy.dp


class Experiment(Request, frozen=True):
    """A reproducible configuration; running it makes a job. The CONFIG.yaml of the CLI."""

    study: str  # name
    plan: str  # digest (a unique prefix of 12 or more hex digits is resolved by the client)
    rounds: int  # 0: train nothing, evaluate `base`
    arguments: Arguments = {}
    strategy: Strategy = Strategy()
    min_updates: int = 2  # a round closes with at least this many
    min_sites: int = 2  # a job starts when at least this many sites are ready
    fraction: float = 1.0  # of the ready sites that a round selects
    grace: float = 5.0  # seconds a round waits for stragglers once min_updates are in
    deadline: float = 600.0  # seconds a round may take
    seed: int = 0
    deterministic: bool = False
    base: str | None = None  # model version id or frame digest to start from; None: plan's init
    name: str = ""
    aggregate: Aggregate = Aggregate()
    watch: Watch | None = None  # None: no alarms
    early_stop: EarlyStop | None = None  # None: all rounds are run
    privacy: Privacy | None = None  # None: secure aggregation from three sites up, else plain
    keep: int | None = None  # newest versions whose frames stay; None: as the hub's rule says
    compress: str = "none"  # of updates that are not masked: int8, top-5%, int8+top-5%, ...
    sites: tuple[str, ...] = ()  # that may train; empty: every site of the study
    evaluate: Evaluate | None = None  # None: no model is evaluated
    fold: int = 0  # of the sites' folds, the one to evaluate on and not train on; 0: none


class NewToken(Request, frozen=True):
    """Make an API token for a person or program."""

    name: str
    role: str  # operator, researcher, reviewer, downstream, auditor
    days: int = 90


class Invite(Request, frozen=True):
    """Invite a site."""

    site: str
    hours: float = 72.0


class SubmitPlan(Request, frozen=True):
    """Offer a plan to the sites of a study."""

    study: str
    plan: Plan


class ChangeArguments(Request, frozen=True):
    """New argument values from the next round on; the others stay."""

    arguments: Arguments


class ResumeJob(Request, frozen=True):
    """Go on with a paused, stopped or failed job; `rounds` may raise its number of rounds."""

    rounds: int | None = None


class RollBack(Request, frozen=True):
    """Let the next round of an idle job start from the model of an earlier one."""

    round: int


class SetStage(Request, frozen=True):
    """Decide on a model version: propose it, release it, retire it."""

    stage: Stage
    reason: str


class PooledSite(View, frozen=True):
    """A site that is asked to pool, and how far that is."""

    site: str
    state: Literal["asked", "sent", "held", "withdrawn"]  # held: the data centre has a copy
    records: int = 0  # of the copy, rounded down to a multiple of 5


class DegreeView(View, frozen=True):
    """How federated a study is: 0, all records lie in the data centre, to 1, none does."""

    sites: float  # share of the hospitals that train at home
    records: float | None  # the same by records, as far as sites tell them; None: nobody does
    planned: float  # by sites, once everybody who is asked has pooled
    federated: tuple[str, ...]  # hospitals that train at home now
    pooled: tuple[PooledSite, ...]  # those that are asked to pool
    data_centre: str = ""


class StudyView(View, frozen=True):
    """A study and where it stands at each site."""

    study: Study
    digest: str | None  # None while a draft
    state: str  # draft, submitted, closed
    author: str
    sites: dict[str, str]  # site -> invited, accepted, declined, left
    degree: DegreeView | None = None  # None: a hub from before there were data centres


class OfferView(View, frozen=True):
    """A dataset that a site offers to a study it has accepted."""

    site: str
    dataset: OfferedDataset


class PlanView(View, frozen=True):
    """A plan offered to a study and the sites that have approved it."""

    digest: str
    name: str
    study: str
    author: str
    created: float
    approved: tuple[str, ...]
    plan: Plan | None = None  # only when asked for by digest


class SiteView(View, frozen=True):
    """A site as the hub sees it."""

    name: str
    state: str  # invited, enrolled, revoked
    online: bool
    last_seen: float | None
    certificate_expires: float | None
    version: str = ""
    datasets: tuple[str, ...] = ()
    audit_length: int = 0  # of the site's own trail, as it last signed it
    audit_head: str = ""  # digest of its last line


class RoundView(View, frozen=True):
    """One closed round."""

    round: int
    seconds: float
    sites: tuple[str, ...]  # whose updates are in
    records: int
    metrics: Metrics  # record-weighted means over the sites
    model: str  # version id
    rejected: dict[str, str] = {}  # site -> cause
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_saved: int = 0  # of updates, by compression, against the model's size
    epsilon: float | None = None  # of each site up to here, at the job's delta; None: not DP
    alarms: tuple[str, ...] = ()  # what looked wrong with the round's model, by `watch`


class JobView(View, frozen=True):
    """A job and how far it is."""

    id: str
    experiment: Experiment
    state: str  # core.round phase
    round: int
    cause: str  # why it failed, waits or ended early; "" otherwise
    author: str
    created: float
    sites: dict[
        str, str
    ]  # site -> what it does now: ready, waiting, training, reported, away, refused, failed
    progress: dict[str, float]  # site -> fraction of the running task
    rounds: tuple[RoundView, ...] = ()
    pausing: bool = False  # it pauses when its open round is closed


class PooledView(View, frozen=True):
    """One metric over the sites' hold-outs, with a 95 % interval."""

    value: float
    low: float
    high: float
    records: int
    sites: int
    # What the value is equal to; "in bins" up to `bound`.
    method: Literal["all records", "all records, in bins", "mean of sites"]
    bound: float = 0.0  # how far the value may be off, beside chance


class EvaluationView(View, frozen=True):
    """What the sites have found of one model, each on its own hold-out."""

    round: int
    at: float
    model: str  # version id, or the digest of the frame that was the job's base
    pooled: dict[str, PooledView]
    sites: dict[str, Evaluated]  # none of them where the sum alone is known
    without: dict[str, str] = {}  # sites that were asked and have told nothing: why
    aggregation: Literal["plain", "secure"] = "plain"
    summed: tuple[str, ...] = ()  # the sites in the sum, with secure aggregation
    gain: dict[str, PooledView] = {}  # of the sum: how much better than the sites' own models
    calibration: tuple[CalibrationBin, ...] = ()  # of the sum
    cause: str = ""  # why there is no sum


class ModelView(View, frozen=True):
    """A model version with its lineage."""

    id: str  # <job>.<round>
    job: str
    round: int
    digest: str  # of the frame
    bytes: int
    created: float
    study: str
    plan: str
    arguments: Arguments
    strategy: Strategy
    sites: tuple[str, ...]
    records: int
    metrics: Metrics
    parent: str | None
    deleted: float | None = None  # when the hub's retention rule deleted its frame
    stage: str = ""  # candidate, released, retired; "" while nobody has proposed it
    withdrawn: tuple[str, ...] = ()  # of its sites, those that have left the study since


class StageView(View, frozen=True):
    """One decision on a model version."""

    stage: str
    actor: str
    at: float
    reason: str


class Protection(View, frozen=True):
    """How a job's updates were protected, and what its rounds have cost a site."""

    job: str
    round: int  # up to which it is part of the model
    aggregation: str  # plain, secure, ckks
    bits: int | None  # of a masked number; None where there is no ring
    level: str  # of differential privacy: record, patient, client; "": none
    distributed: bool  # the noise is shared by the sites, inside the masked sum
    epsilon: float | None  # of each site, by this job's rounds alone; None: not private
    delta: float | None


class ModelCard(View, frozen=True):
    """What whoever uses a model version should know of it (Mitchell et al. 2019)."""

    model: ModelView
    stages: tuple[StageView, ...]  # every decision, oldest first
    study: Study  # purpose, controller, legal basis, ethics reference
    plan: str  # the training plan's name
    description: str  # the plan's
    entry: str
    requirements: tuple[str, ...]
    experiment: Experiment
    rounds: tuple[RoundView, ...]  # of its job, up to this version
    lineage: tuple[str, ...]  # from this version back to what everything began with
    protection: tuple[Protection, ...]  # of the jobs in it, this version's first
    epsilon: float | None  # of each site by this job alone, at `delta`; None: not private
    delta: float | None
    caveats: tuple[str, ...]
    software: str  # of the hub that answers


class AuditView(View, frozen=True):
    """One line of the hub's audit chain."""

    seq: int
    at: float
    actor: str
    action: str
    subject: str
    outcome: str
    detail: str
    digest: str


class TokenView(View, frozen=True):
    """A made token; `secret` is shown once."""

    id: str
    name: str
    role: str
    expires: float
    secret: str | None = None


class JoinTokenView(View, frozen=True):
    """A join token to hand to the site's administrator; shown once."""

    site: str
    token: str
    expires: float
    ca_fingerprint: str


class WhoamiView(View, frozen=True):
    """Whose token it is, what it may do, and which hub answers."""

    name: str
    role: str
    hub: str
    version: str  # of the hub's software
    roles: tuple[str, ...] = ()  # all of them; `role` is the one that says most


class EventView(View, frozen=True):
    """One event of a job: what was journalled, and progress, which is not."""

    seq: int
    at: float
    type: str  # a class name of core.events, or Progress
    body: dict[str, Any]


class ValidationView(View, frozen=True):
    """What stands between an experiment and its start; empty when nothing does."""

    problems: tuple[str, ...] = ()  # it would be refused
    warnings: tuple[str, ...] = ()  # it would wait, or run with fewer sites


class PrivacyEstimateView(View, frozen=True):
    """What an experiment would add to each site's privacy ledger. None: not DP."""

    level: str  # whose presence is hidden: record, patient, client; "" when not DP
    rounds: int
    delta: float
    round: float | None  # epsilon of one round
    job: float | None  # epsilon of all rounds
    sites: dict[str, float]  # epsilon after the job, by itself, at each site
    warnings: tuple[str, ...] = ()


class FrameView(View, frozen=True):
    """An uploaded tensor frame."""

    digest: str
    bytes: int


class AuditCheckView(View, frozen=True):
    """Whether the hub's audit chain holds."""

    intact: bool
    lines: int
    head: str
    broken_at: int | None = None  # first line that does not hold
    reason: str = ""


class ProblemView(View, frozen=True):
    """RFC 9457 problem+json."""

    title: str
    status: int
    detail: str
    error: str  # class name in consilia.errors
    type: str = "about:blank"  # or a URI that ends in what a program must tell apart
    field: str | None = None  # to blame, a path of keys; None: it is about no field
    found: str | None = None  # what the field holds
    expected: str | None = None  # what it needs
