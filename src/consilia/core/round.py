"""A job's rounds as a pure state machine: `advance(state, event) -> (state, commands)`.

The hub journals every event before it takes effect (Progress excepted) and replays them after
a crash, so `advance` uses no clock, no randomness and no I/O: events carry the time they were
observed at, ids are derived from the job's id, and selection is seeded.

Phases:  waiting -> running -> closing -> running ... -> done
         any but done -> stopped | failed, and back by Resumed
         waiting | a round that closes -> paused, and back by Resumed

- Round 0 ("init") runs the plan's init on one site, unless the job starts from a base model.
  A site that cannot do it is replaced by another ready one.
- A round selects among the sites that are ready when it opens; later ones train next round.
- A round closes when every selected site has reported, or `grace` seconds after
  `min_updates` are in, or at its deadline if `min_updates` are in. Below quorum at the
  deadline, or when quorum has become impossible, the job fails and says why; it can be resumed
  in the same round with the updates it has.
- A site that is lost keeps its lease until the round closes: it may come back and report.
- A model may be evaluated when its round has closed: every ready site is asked, those that
  are there are waited for, and one that can tell is enough.
- A pause ends nothing: the open round is closed first. Going back to an earlier model is for
  a job that is paused, stopped, failed or done; its rounds are counted on.
- An event that is a duplicate, late, foreign or out of order changes nothing and commands
  nothing.

This is the machine's front: the records are in `core.events`, the transitions in
`core.advance` with `core.leases`, the table of docs/reference/round.md in `core.table`.
"""

from collections.abc import Mapping
from typing import get_args

from consilia.core.advance import advance, new_job, outstanding
from consilia.core.events import (
    Accepted,
    Assessed,
    CancelLease,
    Changed,
    Close,
    Closed,
    CloseFailed,
    Command,
    Evaluating,
    Event,
    Fold,
    GiveLease,
    JobState,
    Joined,
    Kind,
    Lease,
    Leased,
    LeaseStatus,
    Left,
    Notify,
    Paused,
    Phase,
    Resumed,
    RolledBack,
    RoundConfig,
    Scalar,
    Settled,
    Spoke,
    Started,
    Stopped,
    Tell,
    TimedOut,
    Wake,
)
from consilia.core.leases import Step, pending
from consilia.core.select import Selection
from consilia.core.table import describe

__all__ = [
    "EVENTS",
    "Accepted",
    "Assessed",
    "CancelLease",
    "Changed",
    "Close",
    "CloseFailed",
    "Closed",
    "Command",
    "Evaluating",
    "Event",
    "Fold",
    "GiveLease",
    "JobState",
    "Joined",
    "Kind",
    "Lease",
    "LeaseStatus",
    "Leased",
    "Left",
    "Notify",
    "Paused",
    "Phase",
    "Resumed",
    "RolledBack",
    "RoundConfig",
    "Scalar",
    "Selection",
    "Settled",
    "Spoke",
    "Started",
    "Step",
    "Stopped",
    "Tell",
    "TimedOut",
    "Wake",
    "advance",
    "describe",
    "new_job",
    "outstanding",
    "pending",
]

EVENTS: Mapping[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}
