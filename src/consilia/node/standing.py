"""What the site has decided, as the agent sees it now: read again only when it has changed.

The store's revision is looked at for every lease, so a decision holds from the moment it is
committed, whether or not anybody told the agent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import consilia
from consilia.data.registry import Dataset
from consilia.node import approvals, datasets, studies
from consilia.node.config import NodeConfig
from consilia.node.policy import Decision, Policy, Request, allowed_values, decide
from consilia.node.store import Store
from consilia.wire.v1 import Advertisement, Lease, Plan


@dataclass(frozen=True, slots=True)
class Grant:
    """What an allowed task may use. `dataset` is None for init."""

    plan: Plan
    dataset: Dataset | None
    least: int  # records an update must be computed on


class Standing:
    """The store's decisions, cached. Used on the event loop."""

    def __init__(self, store: Store, config: NodeConfig, now: Callable[[], float]) -> None:
        """Read nothing yet."""
        self._store = store
        self._config = config
        self._now = now
        self._ranges = {n: allowed_values(v) for n, v in config.arguments.items()}
        self._revision = -1
        self._policy = Policy()
        self._datasets: dict[str, Dataset] = {}
        self._plans: dict[str, Plan] = {}

    def today(self) -> date:
        """Return the site's calendar day."""
        return date.fromtimestamp(self._now())

    def policy(self) -> Policy:
        """Return the decisions in force at this moment."""
        revision = self._store.revision()
        if revision != self._revision:
            found = datasets.list_datasets(self._store)
            self._datasets = {r.dataset.name: r.dataset for r in found}
            self._plans = {}
            self._policy = Policy(
                studies.grants(self._store),
                approvals.grants(self._store),
                datasets.facts(self._store),
                self._config.min_records,
                self._ranges,
                self._config.failures_per_day,
                self._config.plain_updates,
                self._config.dp_required,
            )
            self._revision = revision
        return self._policy

    def judge(self, lease: Lease) -> Decision:
        """Ask the policy about a lease."""
        task, today = lease.task, self.today()
        request = Request(
            task.kind,
            task.study,
            task.study_name,
            task.plan,
            frozenset(task.tags),
            task.arguments,
            task.model,
            lease.timeout,
            self._failures(task.plan, today),
            task.privacy,
            task.cohort,
        )
        return decide(request, self.policy(), today)

    def grant(self, lease: Lease, decision: Decision) -> Grant:
        """Return what a lease that was just allowed may use."""
        task, policy = lease.task, self.policy()
        if task.plan not in self._plans:
            record = approvals.get(self._store, task.plan, self.today())
            self._plans[task.plan] = record.plan
        dataset = None if decision.dataset is None else self._datasets[decision.dataset]
        least = max(policy.min_records, policy.studies[task.study].min_records)
        return Grant(self._plans[task.plan], dataset, least)

    def advertisement(self) -> Advertisement:
        """Return the public state: what is offered, accepted and approved today."""
        policy, today = self.policy(), self.today()
        return Advertisement(
            consilia.__version__,
            datasets.offered(self._store),
            tuple(sorted(d for d, g in policy.studies.items() if today <= g.until)),
            tuple(sorted(d for d, g in policy.plans.items() if today <= g.until)),
        )

    def _failures(self, plan: str, today: date) -> int:
        rows = self._store.rows(
            "SELECT count FROM failures WHERE plan = ? AND day = ?", (plan[:80], str(today))
        )
        return int(rows[0][0] or 0) if rows else 0
