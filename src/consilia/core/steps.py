"""The steps of a round: one for a plain round, five for a masked one.

    keys -> shares -> update -> consent -> unmask

These are the messages of secure aggregation (Bonawitz et al. 2017, figure 4): each site sends
its public keys; seals shares of its secrets for the others; sends its masked update; signs who
has survived; and gives the shares that unmask their sum, and nothing else. What a site says
in one step is told to the others when the step ends; what is in it is opaque here.

Who has not done a step when it ends takes no further part. A site may also leave by its own
word after its update was accepted: the update stays in the sum, which the others can open
without that site as long as a threshold of them is left. A masked round that cannot be
finished reveals nothing, and what was sent in it is worth nothing in another attempt: after a
resume it starts anew, with fresh keys.

A round of homomorphic encryption takes the same steps: a key for it comes with the shares, and
in the last step one site, which holds that key, opens the sum.
"""

from dataclasses import replace

from consilia.core.events import JobState, Lease, Step, Tell
from consilia.core.select import threshold

STEPS: tuple[Step, ...] = ("keys", "shares", "update", "consent", "unmask")
COUNTED = {
    "keys": "sites with keys",
    "shares": "sites with shares",
    "update": "updates",
    "consent": "sites that consent",
    "unmask": "sites that unmask",
}
FEWEST = 3  # sites of a masked round: of two, each knows the other's update from the sum


def masked(state: JobState) -> bool:
    """Tell whether the open round, or the one to open next, is a masked one."""
    if state.kind == "evaluate":
        return state.config.evaluating is not None and state.config.evaluating.masked
    return state.config.masked and state.kind in ("train", "statistics")


def of(state: JobState) -> tuple[Step, ...]:
    """Return the steps of the open round."""
    return STEPS if masked(state) else ("update",)


def after(state: JobState) -> Step | None:
    """Return the step that follows the open one; None when it is the last."""
    steps = of(state)
    place = steps.index(state.step) + 1
    return steps[place] if place < len(steps) else None


def cohort(state: JobState) -> tuple[str, ...]:
    """Return the sites that a masked round was opened with, sorted; none for a plain round."""
    if not masked(state):
        return ()
    return tuple(sorted(lease.site for lease in state.leases.values()))


def quorum(state: JobState, updates: int) -> int:
    """Return how many must do the open step; `updates` is the round's own quorum."""
    if not masked(state):
        return updates
    if state.step == "keys":
        return max(updates, FEWEST)
    if state.step == "unmask" and state.config.encrypted:
        return 1
    least = threshold(sum("keys" in lease.words for lease in state.leases.values()))
    return least if state.step in ("consent", "unmask") else max(updates, least)


def done(state: JobState) -> tuple[Lease, ...]:
    """Return the leases whose sites have done the open step."""
    return tuple(lease for lease in state.leases.values() if _done(state, lease))


def waiting(state: JobState) -> tuple[Lease, ...]:
    """Return the leases whose sites may still do the open step, be they away now."""
    leases = state.leases.values()
    return tuple(e for e in leases if _asked(state, e) and not _done(state, e))


def expected(state: JobState) -> bool:
    """Tell whether a step that enough have done should wait for more, as far as grace goes.

    A threshold of signatures proves the survivors, and who has not signed is still asked to
    unmask. An encrypted sum is opened by one. A site that is away need not be waited for once
    its update is in, and not at all in an evaluation, where nobody counts for another.
    """
    if state.kind == "evaluate" and state.step in ("keys", "shares", "update"):
        return any(lease.status == "out" for lease in waiting(state))
    if state.step == "consent" or (state.step == "unmask" and state.config.encrypted):
        return False
    return any(
        lease.status != "accepted" or lease.site in state.ready for lease in waiting(state)
    )


def leaves(state: JobState, lease: Lease) -> bool:
    """Tell whether a site whose update is accepted has words left to say, and may say none."""
    return (
        state.phase == "running"
        and masked(state)
        and lease.status == "accepted"
        and not has_left(lease)
        and "unmask" not in lease.words
    )


def summing(state: JobState) -> bool:
    """Tell whether the hub may find that an open encrypted round has no key or no sum."""
    return state.phase == "running" and masked(state) and state.config.encrypted


def has_left(lease: Lease) -> bool:
    """Tell whether a site ended its part in a masked round after its update was accepted."""
    return lease.status == "accepted" and bool(lease.cause)


def awaits(state: JobState, lease: Lease, step: Step) -> bool:
    """Tell whether a message of `step` under `lease` is what the open step waits for."""
    return (
        state.phase == "running"
        and masked(state)
        and step == state.step
        and _asked(state, lease)
        and not _done(state, lease)
    )


def tells(state: JobState) -> tuple[Tell, ...]:
    """Return whom to tell what the step before has brought."""
    if not masked(state) or state.step == "keys":
        return ()
    return tuple(
        Tell(lease.id, lease.site, state.step)
        for lease in state.leases.values()
        if _asked(state, lease) and not _done(state, lease)
    )


def retold(state: JobState) -> tuple[Tell, ...]:
    """Return what a restarted hub has to tell.

    Consent may have ended before all were told the survivors; who has unmasked since needs
    to hear nothing any more.
    """
    now = tells(state)
    if masked(state) and state.step == "unmask":
        asked = {tell.lease for tell in now}
        before = tells(replace(state, step="consent"))
        return (*(tell for tell in before if tell.lease in asked), *now)
    return now


def _asked(state: JobState, lease: Lease) -> bool:
    last = ("consent", "unmask")
    if state.step in last:
        return lease.status == "accepted" and not has_left(lease)
    return lease.status in ("out", "away")


def _done(state: JobState, lease: Lease) -> bool:
    if state.step == "update":
        return lease.status == "accepted"
    alive = lease.status in ("out", "away", "accepted")
    return alive and state.step in lease.words
