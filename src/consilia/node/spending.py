"""What a task with differential privacy costs this site's patients, at each step of its way.

reserve before anything is prepared, begin when the sandbox is there and has been sent
nothing, settle with the result (in
node.release, in the transaction that lets it leave). What never began is given back; what began
is spent, whatever came of it.
"""

from collections.abc import Callable

from consilia.errors import Conflict
from consilia.node import ledger
from consilia.node.config import Budgets
from consilia.node.store import Store
from consilia.wire.v1 import Dp, Lease, Task


def dp_of(task: Task) -> Dp | None:
    """Return the privacy that a task's result has to be charged for; init sees no data."""
    return None if task.kind == "init" else task.privacy.dp


class Spending:
    """The ledger's steps for the agent. Methods block; tasks without privacy cost nothing."""

    def __init__(self, store: Store, budgets: Budgets, now: Callable[[], float]) -> None:
        """`budgets` are the site's caps."""
        self._store = store
        self._budgets = budgets
        self._now = now

    def reserve(self, lease: Lease, dataset: str | None) -> None:
        """Count the task's cost; raise Refused when a cap would be exceeded."""
        task = lease.task
        dp = dp_of(task)
        if dp is None or dataset is None:
            return
        charge = ledger.charge_for(
            dp,
            lease=lease.id,
            job=task.job,
            universe=ledger.universe_of(self._budgets, dataset),
            dataset=dataset,
            study=task.study_name,
            researcher=task.researcher or "unknown",
        )
        # A result that a power cut has damaged is made, and charged, a second time.
        ledger.reserve(self._store, charge, self._budgets, now=self._now(), again=True)

    def begin(self, lease: Lease) -> None:
        """Note that the worker is about to be sent the plan, or a further task."""
        if dp_of(lease.task) is not None:
            ledger.begin(self._store, lease.id, now=self._now())

    def sweep(self) -> tuple[str, ...]:
        """Refund what an agent that has ended had reserved and not begun; return the leases.

        To be called before anything is reserved, once the hub's copy of the ledger's head was
        compared (node.budget).
        """
        reason = "the agent ended before it began"
        return ledger.sweep(self._store, reason=reason, now=self._now())

    def give_back(self, lease: Lease, reason: str) -> None:
        """Refund a task that never began; what has begun, or was never charged, stays."""
        found = ledger.find(self._store, lease.id)
        if found is not None and found.state == "reserved":
            try:
                ledger.refund(self._store, lease.id, reason=reason, now=self._now())
            except Conflict:
                return  # it began in the meantime
