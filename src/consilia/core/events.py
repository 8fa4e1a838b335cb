"""What a job's rounds are made of: configuration, events in, commands out, and the state.

Plain frozen records without behaviour; `core.round` is the machine that moves them. Times are
Unix seconds as the hub observed them, durations are seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from consilia.core.select import Selection

Phase = Literal["waiting", "running", "closing", "paused", "done", "stopped", "failed"]
Kind = Literal["init", "train", "evaluate", "statistics"]
Step = Literal["keys", "shares", "update", "consent", "unmask"]  # plain rounds: update only
LeaseStatus = Literal[
    "out",  # its site works on it, or has yet to fetch it
    "away",  # its site is not ready now; it may come back and report
    "accepted",
    "rejected",
    "failed",
    "declined",
    "cancelled",  # the round closed without it, or the job stopped or failed
]
Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Evaluating:
    """When a job's models are evaluated at the sites, and by whom."""

    every: int = 0  # rounds between two evaluations; 0: the last model alone
    sites: tuple[str, ...] = ()  # that are asked; empty: every ready one
    masked: bool = False  # what they find is summed in rounds of secure aggregation
    noise: str = ""  # names the noise that the sites share in such a sum


@dataclass(frozen=True, slots=True)
class RoundConfig:
    """What a job's rounds obey. Durations in seconds."""

    rounds: int
    min_updates: int = 2
    min_sites: int = 2
    selection: Selection = field(default_factory=Selection)
    grace: float = 5.0
    deadline: float = 600.0
    seed: int = 0
    masked: bool = False  # training rounds are rounds of secure aggregation
    encrypted: bool = False  # of a masked job: homomorphic encryption instead of masks
    trainers: tuple[str, ...] = ()  # the sites that may train; empty: every ready one
    evaluating: Evaluating | None = None  # None: no model is evaluated
    statistics: str = ""  # digest of the sums that its one round asks for, without a model
    noise: str = ""  # names the noise that the sites share in a sum (privacy.shares)


# ---- events: what happened ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The job begins. `model` is the base frame's digest, None to init by the plan."""

    at: float
    model: str | None
    arguments: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Joined:
    """A site became ready: connected, with study, plan and dataset in force."""

    at: float
    site: str


@dataclass(frozen=True, slots=True)
class Left:
    """A site is no longer ready: silent, revoked, or it withdrew something."""

    at: float
    site: str


@dataclass(frozen=True, slots=True)
class Leased:
    """A lease reached its site (first delivery)."""

    at: float
    lease: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """An update was spooled, verified and made durable. `digest` names its frame.

    `records` is at least 1, except in the init round: the hub rejects any other claim before
    it becomes an event.
    """

    at: float
    lease: str
    digest: str
    records: int
    metrics: Mapping[str, float]
    body: str = ""  # what an evaluation has found, opaque here; `digest` is "" then


@dataclass(frozen=True, slots=True)
class Spoke:
    """A site's message of one step of a masked round. `body` is opaque here, base64."""

    at: float
    lease: str
    step: Literal["keys", "shares", "consent", "unmask"]
    body: str


@dataclass(frozen=True, slots=True)
class Settled:
    """A lease ended without an update: rejected by the hub, failed or declined at the site."""

    at: float
    lease: str
    status: Literal["rejected", "failed", "declined"]
    cause: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A timer asked for by `Wake` went off."""

    at: float
    round: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The new model version of the round is stored. `model` is its frame's digest.

    `alarms` says what looked wrong with it, for people (hub.watching); nothing follows from it.
    `enough` says why no round follows although some are left, "" when they do (algo.patience).
    """

    at: float
    round: int
    model: str
    alarms: tuple[str, ...] = ()
    enough: str = ""


@dataclass(frozen=True, slots=True)
class Assessed:
    """What the sites have told is put together: of a model, or a sum of statistics.

    `body` is opaque here.

    `enough` as in `Closed`, by a metric of the evaluation.
    """

    at: float
    round: int
    body: str
    enough: str = ""


@dataclass(frozen=True, slots=True)
class CloseFailed:
    """The hub could not make or store the model (disk full, not finite)."""

    at: float
    round: int
    cause: str


@dataclass(frozen=True, slots=True)
class Changed:
    """A person changed arguments; they hold from the next round that opens."""

    at: float
    arguments: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Paused:
    """A person paused the job: what is open is finished, and nothing is opened after it."""

    at: float
    cause: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A person went back: the next round starts from `model`, an earlier version's frame."""

    at: float
    model: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """A person stopped the job. Accepted updates of the open round are kept."""

    at: float
    cause: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """A person resumed a paused, stopped or failed job, or gave a done one more rounds.

    `rounds` is the new number of rounds when it is larger than the job's own.
    """

    at: float
    rounds: int | None


Event = (
    Started
    | Joined
    | Left
    | Leased
    | Accepted
    | Spoke
    | Settled
    | TimedOut
    | Closed
    | Assessed
    | CloseFailed
    | Changed
    | Paused
    | RolledBack
    | Stopped
    | Resumed
)


# ---- commands: what the engine must do -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GiveLease:
    """Hand a task to a site. The engine completes it from the job's experiment."""

    lease: str
    site: str
    kind: Kind
    round: int
    model: str | None
    arguments: Mapping[str, Scalar]
    seed: int  # of this site and round; one for all sites in the init round
    cohort: tuple[str, ...] = ()  # the sites of a masked round, sorted


@dataclass(frozen=True, slots=True)
class CancelLease:
    """Take a lease back; its site stops the task."""

    lease: str
    site: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell a site what the others said in the step before: it is asked for `step` now."""

    lease: str
    site: str
    step: Step


@dataclass(frozen=True, slots=True)
class Fold:
    """Fold an accepted update into the round's aggregate (in the background).

    Given once for each accepted lease, also when the job is stopped and resumed in between.
    """

    round: int
    lease: str
    site: str
    digest: str
    records: int


@dataclass(frozen=True, slots=True)
class Close:
    """Make the model version of the round from exactly these updates.

    Of an evaluation: put together what these sites have found; no model is made.

    Each is (site, lease, digest, records); they are sorted by site, which is the order of
    folding in the deterministic mode.
    """

    round: int
    kind: Kind
    updates: tuple[tuple[str, str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Wake:
    """Send TimedOut(round) at time `at`, or at once if it is past.

    Replaces an earlier Wake of the job.
    """

    at: float
    round: int


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell the people who watch: the phase, or what it waits for, changed."""

    phase: Phase
    cause: str


Command = GiveLease | CancelLease | Tell | Fold | Close | Wake | Notify


# ---- state -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lease:
    """One site's part in the open round."""

    id: str
    site: str
    status: LeaseStatus
    delivered: bool = False
    digest: str = ""
    records: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    cause: str = ""
    words: Mapping[Step, str] = field(default_factory=dict)  # what it said in a masked round
    body: str = ""  # what it found in an evaluation


@dataclass(frozen=True, slots=True)
class JobState:
    """Everything the machine knows of a job. Plain data: snapshots are free."""

    job: str
    config: RoundConfig
    phase: Phase = "waiting"
    cause: str = ""
    round: int = 0  # the open round, or the one to open next
    model: str | None = None
    arguments: Mapping[str, Scalar] = field(default_factory=dict)
    ready: frozenset[str] = frozenset()
    leases: Mapping[str, Lease] = field(default_factory=dict)  # of the open round, by id
    attempt: int = 0  # how often this round was opened again (init retries, resumes)
    opened_at: float = 0.0
    step: Step = "update"  # of the open round
    quorum_at: float | None = None  # when enough sites had done the step
    started: bool = False
    closing: bool = False  # a Close was commanded and has not been answered
    round_arguments: Mapping[str, Scalar] = field(default_factory=dict)  # of the open round
    evaluating: bool = False  # the open round, or the one to open next, evaluates its model
    pause: str = ""  # why nothing is to be opened after what is open; "" when all goes on
    enough: str = ""  # why the last round is the last

    @property
    def kind(self) -> Kind:
        """What the tasks of the round do."""
        if self.evaluating:
            return "statistics" if self.config.statistics else "evaluate"
        return "init" if self.round == 0 else "train"
