"""What people's programs get of many jobs at once: the queue, metrics, budgets, health."""

from typing import Literal

from consilia.wire.people import Request, View
from consilia.wire.v1 import Arguments, Metrics


class MetricsView(View, frozen=True):
    """One closed round: its figures alone, for charts."""

    round: int
    at: float  # when it closed, Unix seconds
    seconds: float
    records: int
    sites: int
    metrics: Metrics
    epsilon: float | None  # what it has brought a site's spending to; None: not private


class QueueView(View, frozen=True):
    """A job that is not over, and its place among those."""

    position: int  # from 1, the oldest first
    job: str
    study: str
    author: str
    state: str  # core.round phase
    round: int
    rounds: int
    cause: str  # what it waits for
    created: float


class BudgetView(View, frozen=True):
    """What a job with differential privacy has spent of every site's patients' budget.

    Counted from its closed rounds. Rounds that were repeated cost a site more: its own ledger
    is the truth.
    """

    job: str
    study: str
    state: str
    delta: float
    spent: float  # epsilon after the rounds closed so far
    planned: float  # epsilon after all rounds


class HealthView(View, frozen=True):
    """How the hub is, for people who may read its studies."""

    status: Literal["ready", "not ready"]
    version: str
    parts: dict[str, str]  # what readiness asks -> ok, failed
    sites: int  # enrolled
    online: int
    jobs: dict[str, int]  # phase -> how many of those that are not over


class CloneJob(Request, frozen=True):
    """Run an experiment again, with other values where they are given."""

    rounds: int | None = None
    seed: int | None = None
    base: str | None = None  # model version or frame to start from
    arguments: Arguments = {}  # the others stay
