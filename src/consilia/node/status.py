"""How a node is, for the site's staff, whether its agent runs or not.

A person waits for this, so it imports nothing of the agent.
"""

import contextlib
from pathlib import Path

import msgspec

from consilia.node import approvals, audit, config, control, datasets, identity, studies
from consilia.node.store import Store


class TaskStatus(msgspec.Struct, frozen=True):
    """One task, for the site's staff. `since` is Unix seconds."""

    lease: str
    job: str
    kind: str
    round: int
    study: str
    plan: str
    phase: str
    fraction: float
    since: float


class AgentStatus(msgspec.Struct, frozen=True):
    """A running agent, for the site's staff. Times are Unix seconds."""

    connected: bool
    contact: float | None  # when the hub last answered
    problem: str  # why it is not connected
    tasks: tuple[TaskStatus, ...]
    cache_bytes: int


class NodeStatus(msgspec.Struct, frozen=True):
    """A node, for the site's staff. Times are Unix seconds."""

    site: str
    hub: str
    running: bool
    connected: bool
    contact: float | None
    problem: str
    sandbox: str
    certificate_expires: float
    datasets: int
    studies_pending: int
    plans_pending: int
    answers_waiting: int
    audit_lines: int
    tasks: tuple[TaskStatus, ...] = ()


def status(directory: Path, now: float) -> NodeStatus:
    """Return how the node is at `now` (Unix seconds)."""
    settings = config.load(directory)
    me = identity.load(directory, settings.site)
    answer = control.poke(directory, "status")
    agent = AgentStatus(False, None, "the agent does not run", (), 0)
    if answer is not None:
        agent = msgspec.convert(answer, AgentStatus)
    with contextlib.closing(Store.open(directory)) as store:
        today = approvals.day(now)
        waiting = store.rows("SELECT count(*) FROM leases WHERE settled = 0")
        return NodeStatus(
            settings.site,
            settings.hub,
            answer is not None,
            agent.connected,
            agent.contact,
            agent.problem,
            settings.sandbox,
            me.not_after,
            len(datasets.list_datasets(store)),
            sum(r.state == "pending" for r in studies.list_studies(store, today)),
            len(approvals.list_plans(store, today, "pending")),
            int(waiting[0][0] or 0),
            audit.head(store)[0],
            agent.tasks,
        )
