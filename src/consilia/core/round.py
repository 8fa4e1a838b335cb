"""A job's rounds as a pure state machine: `advance(state, event) -> (state, commands)`.

The hub journals every event before it takes effect (Progress excepted) and replays them after
a crash, so `advance` uses no clock, no randomness and no I/O: events carry the time they were
observed at, ids are derived from the job's id, and selection is seeded.

Phases:  waiting -> running -> closing -> running ... -> done
         any but done -> stopped | failed, and back by Resumed

- Round 0 ("init") runs the plan's init on one site, unless the job starts from a base model.
- A round selects among the sites that are ready when it opens; later ones train next round.
- A round closes when every selected site has reported, or `grace` seconds after
  `min_updates` are in, or at its deadline if `min_updates` are in. Below quorum at the
  deadline, or when quorum has become impossible, the job fails and says why; it can be resumed
  in the same round with the updates it has.
- A site that is lost keeps its lease until the round closes: it may come back and report.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from consilia.core.select import Selection

Phase = Literal["waiting", "running", "closing", "done", "stopped", "failed"]
Kind = Literal["init", "train"]
LeaseStatus = Literal["out", "away", "accepted", "rejected", "failed", "declined"]
Scalar = bool | int | float | str


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
    """An update was spooled, verified and made durable. `digest` names its frame."""

    at: float
    lease: str
    digest: str
    records: int
    metrics: Mapping[str, float]


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
    """The new model version of the round is stored. `model` is its frame's digest."""

    at: float
    round: int
    model: str


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
class Stopped:
    """A person stopped the job. Accepted updates of the open round are kept."""

    at: float
    cause: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """A person resumed a stopped or failed job, perhaps with more rounds."""

    at: float
    rounds: int | None


Event = (
    Started
    | Joined
    | Left
    | Leased
    | Accepted
    | Settled
    | TimedOut
    | Closed
    | CloseFailed
    | Changed
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
    seed: int  # of this site and round


@dataclass(frozen=True, slots=True)
class CancelLease:
    """Take a lease back; its site stops the task."""

    lease: str
    site: str


@dataclass(frozen=True, slots=True)
class Fold:
    """Fold an accepted update into the round's aggregate (in the background)."""

    round: int
    lease: str
    site: str
    digest: str
    records: int


@dataclass(frozen=True, slots=True)
class Close:
    """Make the model version of the round from exactly these (site, lease, digest, records), sorted by site."""

    round: int
    kind: Kind
    updates: tuple[tuple[str, str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Wake:
    """Send TimedOut(round) at time `at`; replaces an earlier Wake of the job."""

    at: float
    round: int


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell the people who watch: the phase changed."""

    phase: Phase
    cause: str


Command = GiveLease | CancelLease | Fold | Close | Wake | Notify


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
    attempt: int = 0  # how often this round was opened (init retries, resumes)
    opened_at: float = 0.0
    quorum_at: float | None = None  # when min_updates were first in
