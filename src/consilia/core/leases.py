"""What becomes of the leases of an open round: given out, taken back, read off.

Each function returns the new state, where it changes, and the commands that tell the sites.
"""

from collections.abc import Iterable
from dataclasses import replace

from consilia.core import steps
from consilia.core.events import (
    CancelLease,
    Close,
    Command,
    Fold,
    GiveLease,
    JobState,
    Lease,
    LeaseStatus,
)
from consilia.core.select import site_seed

Step = tuple[JobState, tuple[Command, ...]]


def pending(state: JobState) -> tuple[Lease, ...]:
    """Return the leases that may still end in an update: out, or their site is away."""
    return having(state, "out", "away")


def having(state: JobState, *statuses: LeaseStatus) -> tuple[Lease, ...]:
    """Return the leases of these statuses."""
    return tuple(lease for lease in state.leases.values() if lease.status in statuses)


def accepted_by_site(state: JobState) -> list[Lease]:
    """Return the leases whose updates were accepted, by the sites' names."""
    return sorted(having(state, "accepted"), key=lambda lease: lease.site)


def put(state: JobState, lease: Lease) -> JobState:
    """Return the state with this lease in the place of the one of its id."""
    return replace(state, leases={**state.leases, lease.id: lease})


def give_out(state: JobState, sites: Iterable[str]) -> Step:
    """Give a new lease to each of `sites`."""
    attempt = f"e{state.attempt}" if state.kind == "evaluate" else f"{state.attempt}"
    new = [Lease(f"{state.job}.{state.round}.{attempt}.{site}", site, "out") for site in sites]
    state = replace(state, leases={**state.leases, **{lease.id: lease for lease in new}})
    return state, tuple(give(state, lease) for lease in new)


def held(state: JobState) -> tuple[Lease, ...]:
    """Return the leases whose sites are still needed: in a masked round until it closes."""
    masked = steps.masked(state) and state.phase in ("running", "closing", "failed", "stopped")
    return (*pending(state), *(accepted_by_site(state) if masked else ()))


def cancel(state: JobState, taken: Iterable[Lease]) -> Step:
    """Take leases back."""
    taken = tuple(taken)
    cancelled = {lease.id: replace(lease, status="cancelled") for lease in taken}
    state = replace(state, leases={**state.leases, **cancelled})
    return state, tuple(CancelLease(lease.id, lease.site) for lease in taken)


def give(state: JobState, lease: Lease) -> GiveLease:
    """Return the command that gives a lease to its site."""
    # The initial model must not depend on which site happens to make it.
    who = "init" if state.kind == "init" else lease.site
    seed = site_seed(state.config.seed, state.round, who)
    model, arguments = state.model, state.round_arguments
    cohort = steps.cohort(state)
    return GiveLease(
        lease.id, lease.site, state.kind, state.round, model, arguments, seed, cohort
    )


def fold(state: JobState, lease: Lease) -> Fold:
    """Return the command to fold an accepted update."""
    return Fold(state.round, lease.id, lease.site, lease.digest, lease.records)


def close_command(state: JobState) -> Close:
    """Return the command to close the open round with what was accepted."""
    updates = accepted_by_site(state)
    return Close(
        state.round, state.kind, tuple((u.site, u.id, u.digest, u.records) for u in updates)
    )


def open_lease(state: JobState, id: str) -> Lease | None:
    """Return the lease if the open round still waits for it."""
    lease = state.leases.get(id)  # pending leases exist only while the round runs
    return lease if lease is not None and lease.status in ("out", "away") else None
