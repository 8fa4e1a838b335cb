"""What the site has decided, as the agent sees it now: read again only when it has changed.

The store's revision is looked at for every lease, so a decision holds from the moment it is
committed, whether or not anybody told the agent.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date

import msgspec

import consilia
from consilia.data.registry import Dataset
from consilia.errors import ConfigError
from consilia.node import (
    approvals,
    config,
    datasets,
    loadedtwins,
    optout,
    policyhistory,
    privatestatistics,
    statistics,
    stops,
    studies,
)
from consilia.node.arguments import allowed_values
from consilia.node.config import NodeConfig
from consilia.node.hours import open_at, parse
from consilia.node.loading import Loading, Prepared
from consilia.node.policy import DatasetFacts, Decision, Policy, Request, decide
from consilia.node.pool import decisions
from consilia.node.spending import dp_of
from consilia.node.store import Store
from consilia.wire.v1 import Advertisement, Lease, Plan

_LOG = logging.getLogger("consilia.node.standing")


@dataclass(frozen=True, slots=True)
class Grant:
    """What an allowed task may use. `dataset` is None for init."""

    plan: Plan
    dataset: Dataset | None
    least: int  # records an update must be computed on
    loaded: Prepared | None = None  # how the dataset is loaded


def policy_of(store: Store, settings: NodeConfig) -> Policy:
    """Return all that the site has decided: its people's decisions, under its settings."""
    return Policy(
        studies.grants(store),
        approvals.grants(store),
        _bound(store),
        settings.min_records,
        {name: allowed_values(values) for name, values in settings.arguments.items()},
        settings.failures_per_day,
        settings.plain_updates,
        settings.dp_required,
        frozenset(settings.permitted_studies),
        settings.terms,
        tuple(map(parse, settings.hours)),
        settings.reviewers_needed,
        settings.consortium_review,
        settings.compressed_updates,
        tuple(settings.regions),
        settings.statistics,
    )


def _bound(store: Store) -> tuple[DatasetFacts, ...]:
    """Return the datasets; copies that sites pool serve the study they were sent for alone."""
    copies = decisions.copies(store)
    return tuple(replace(f, study=copies.get(f.name, "")) for f in datasets.facts(store))


class Standing:
    """The store's decisions, cached. Used on the event loop."""

    def __init__(self, store: Store, settings: NodeConfig, now: Callable[[], float]) -> None:
        """Read nothing yet."""
        self._store = store
        self.config = settings  # the one in force; `consilia node policy apply` changes it
        self._applied = 0  # its place in the history
        self._recent = policyhistory.Recent()
        self._now = now
        self._revision = -1
        self._policy = Policy()
        self._datasets: dict[str, Dataset] = {}
        self._loading = Loading(store)
        self._plans: dict[str, Plan] = {}
        self._stopped: dict[str, str] = {}  # jobs, by whom

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
            self._loading = Loading(self._store)
            self._stopped = stops.stopped(self._store)
            self._take_applied()
            self._policy = policy_of(self._store, self.config)
            self._revision = revision
        return self._policy

    def judge(self, lease: Lease, note: bool = False) -> Decision:
        """Ask the policy about a lease; `note` keeps what was asked for later comparison."""
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
            policyhistory.minute_of(self._now()),
            task.evaluation is not None and task.evaluation.local > 0,
        )
        decision = self._held_back(lease, decide(request, self._policy_for(lease), today))
        if note:
            self._recent.note(request, decision, today, self._now())
        return decision

    def stamp(self) -> tuple[int, date, bool]:
        """Return what a decision depends on beside the lease: it changes when they may."""
        policy, today = self.policy(), self.today()
        minute = policyhistory.minute_of(self._now())
        return self._revision, today, open_at(policy.hours, today.weekday(), minute)

    def asked(self, everything: bool = False) -> policyhistory.Rows:
        """Return what was asked and is due to be written down; `everything` at the end."""
        return self._recent.take(self._now(), everything)

    def keep(self, asked: policyhistory.Rows) -> None:
        """Write down what was asked. Blocks."""
        policyhistory.keep(self._store, asked, self.today())

    def grant(self, lease: Lease, decision: Decision) -> Grant:
        """Return what a lease that was just allowed may use."""
        task, policy = lease.task, self.policy()
        if task.kind == "statistics":
            self._plans[task.plan] = statistics.PLAN
        if task.plan not in self._plans:
            record = approvals.get(self._store, task.plan, self.today())
            self._plans[task.plan] = record.plan
        least = max(policy.min_records, policy.studies[task.study].min_records)
        if decision.dataset is None:
            return Grant(self._plans[task.plan], None, least)
        known = self._datasets[decision.dataset]
        loaded = self._loading.prepared(known, task.study_name, task.privacy.fold)
        return Grant(self._plans[task.plan], loaded.dataset, least, loaded)

    def advertisement(self) -> Advertisement:
        """Return the public state: what is offered, accepted and approved today."""
        policy, today, k = self.policy(), self.today(), self.config.disclosure.k
        return Advertisement(
            consilia.__version__,
            loadedtwins.added(self._store, datasets.offered(self._store, k), k),
            tuple(sorted(d for d, g in policy.studies.items() if today <= g.until)),
            tuple(sorted(d for d, g in policy.plans.items() if today <= g.until)),
            withdrawn=studies.withdrawn(self._store),
            declined=studies.declined(self._store),
            pool=decisions.statements(self._store),
            summed=self.config.disclosure.metrics == "summed",
        )

    def _policy_for(self, lease: Lease) -> Policy:
        """Return the policy with the records that are left of each dataset for its study."""
        policy, task = self.policy(), lease.task
        found = self._loading.facts(
            policy.datasets, self._datasets, task.study_name, task.privacy.fold
        )
        return replace(policy, datasets=found)

    def _held_back(self, lease: Lease, decision: Decision) -> Decision:
        """Object to a job stopped here, and to a dataset that is not ready or must wait."""
        if decision.allowed and (actor := self._stopped.get(lease.task.job)):
            return Decision((f"{actor} has stopped this job here",))
        if not decision.allowed or decision.dataset is None:
            return decision
        task, known = lease.task, self._datasets[decision.dataset]
        loaded = self._loading.prepared(known, task.study_name, task.privacy.fold)
        if loaded.problem:
            return Decision((loaded.problem,))
        patient, plan = loaded.dataset.patient, loaded.dataset.loading
        if found := privatestatistics.objection(task, patient, plan):
            return Decision((found,), told=(found,))
        before = optout.last_used(self._store, decision.dataset)
        private, k = dp_of(task) is not None, self.config.disclosure.k
        objection = optout.wait(before, loaded.patients, k, private)
        return Decision((objection,)) if objection else decision

    def _take_applied(self) -> None:
        """Take in a policy that was applied since the last look."""
        found = policyhistory.newest(self._store)
        if found is None or found.seq <= self._applied:
            return
        self._applied = found.seq
        try:
            new = config.parse(found.text, f"policy {found.seq}")
            live = {name: getattr(new, name) for name in policyhistory.LIVE}
            self.config = msgspec.structs.replace(self.config, **live)
        except ConfigError as e:  # of another release; what holds goes on to hold
            _LOG.error("the applied policy is not taken in: %s", e)

    def _failures(self, plan: str, today: date) -> int:
        rows = self._store.rows(
            "SELECT count FROM failures WHERE plan = ? AND day = ?", (plan[:80], str(today))
        )
        return int(rows[0][0] or 0) if rows else 0
