"""What runs at a site now, and what has left it."""

from consilia.wire.console import View


class RunView(View, frozen=True):
    """One task the agent works on now."""

    lease: str
    job: str
    kind: str
    round: int
    study: str
    plan: str  # first digits of the digest
    phase: str
    fraction: float
    since: float
    cpu_seconds: float | None  # used so far, None when not known; its slope is cores in use
    memory_bytes: int | None


class RunsView(View, frozen=True):
    """What the agent works on now."""

    agent_runs: bool
    connected: bool
    problem: str
    runs: tuple[RunView, ...]
    stopped: tuple[str, ...] = ()  # jobs that were stopped here and may be resumed


class ReleaseView(View, frozen=True):
    """Something that left the site, as the audit trail tells it.

    `count` advertisements that follow one another may be one of them, the newest: then
    `oldest` and `since` are number and time of the first.
    """

    seq: int
    at: float
    action: str
    subject: str  # lease or site
    outcome: str
    detail: str
    count: int = 1
    oldest: int = 0
    since: float = 0.0


class ReleasesView(View, frozen=True):
    """What left the site, newest first. `next`: give it as `before` for the page after."""

    releases: tuple[ReleaseView, ...]
    next: int | None


class StoppedView(View, frozen=True):
    """How many tasks of it ran at that moment."""

    stopped: int


class JobLine(View, frozen=True):
    """One line of what was said of a job."""

    at: float  # Unix seconds
    level: str  # debug info warning error
    job: str  # "": it names none
    who: str  # plan: it printed it; agent
    text: str


class JobLogView(View, frozen=True):
    """Lines of the jobs' logs, newest first."""

    lines: tuple[JobLine, ...]
    jobs: tuple[str, ...]  # that have a log of their own, the one written last first
    next: float | None  # older lines: ask with `before` this
