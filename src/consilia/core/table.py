"""The transition table of the round machine, made by running the machine.

Each scene is a short story of events whose last one is the transition shown, so the table
cannot say what the machine does not do. `describe` renders docs/reference/round.md.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from consilia.core.advance import advance, new_job
from consilia.core.events import (
    Accepted,
    Assessed,
    Changed,
    Closed,
    CloseFailed,
    Evaluating,
    Event,
    Joined,
    Leased,
    Left,
    Paused,
    Phase,
    Resumed,
    RolledBack,
    RoundConfig,
    Settled,
    Spoke,
    Started,
    Stopped,
    TimedOut,
)

# Three sites at most, two updates needed, one round, 5 s grace, 60 s deadline.
_CONFIG = RoundConfig(rounds=1, min_updates=2, min_sites=2, grace=5, deadline=60)
_JUDGED = RoundConfig(
    rounds=1, min_updates=2, min_sites=2, grace=5, deadline=60, evaluating=Evaluating()
)
_MASKED = RoundConfig(rounds=1, min_updates=3, min_sites=3, grace=5, deadline=60, masked=True)
_FRAME = "b3:" + "0" * 64


@dataclass(frozen=True, slots=True)
class Transition:
    """One row: what the last event of a scene did."""

    before: Phase
    event: str
    when: str
    after: Phase
    commands: tuple[str, ...]


def _accepted(lease: str, at: float = 1) -> Accepted:
    return Accepted(at, lease, _FRAME, 10, {})


def _found(lease: str) -> Accepted:
    return Accepted(3, lease, "", 10, {}, "what it found")


def _settled(lease: str, cause: str = "") -> Settled:
    return Settled(1, lease, "failed", cause)


_A, _B, _C = (Joined(0, site) for site in "abc")
_INIT = (_A, _B, Started(0, None, {}))
_FIRST, _SECOND = "j.0.0.b", "j.0.1.a"  # init leases, in the order of the sites' ranks
_TWO = (_A, _B, Started(0, _FRAME, {}))
_THREE = (_C, *_TWO)
_LA, _LB = "j.1.0.a", "j.1.0.b"
_QUORUM = (*_THREE, _accepted(_LA), _accepted(_LB))
_CLOSING = (*_TWO, _accepted(_LA), _accepted(_LB))
_DONE = (*_CLOSING, Closed(2, 1, _FRAME))
_IDLE = (*_INIT, Paused(1, "by a person"), _accepted(_FIRST), Closed(2, 0, _FRAME))
_STOPPED = (*_TWO, _accepted(_LA), Stopped(2, "by a person"))
_FAILED = (*_TWO, _accepted(_LA), _settled(_LB))

_PAUSED = (
    *_TWO,
    _accepted(_LA),
    Paused(1, "by a person"),
    _accepted(_LB),
    Closed(2, 1, _FRAME),
)

_SCENES: tuple[tuple[str, tuple[Event, ...]], ...] = (
    ("enough sites are ready; no base model", _INIT),
    ("enough sites are ready; base model given", _TWO),
    ("too few sites are ready", (_A, Started(0, _FRAME, {}))),
    ("the job is started and enough sites are ready now", (_A, Started(0, _FRAME, {}), _B)),
    ("a person stops it", (_A, Stopped(1, "by a person"))),
    ("the init site is done", (*_INIT, _accepted(_FIRST))),
    ("the init site cannot; another is ready", (*_INIT, _settled(_FIRST))),
    ("the init site is lost; another is ready", (*_INIT, Left(1, "b"))),
    ("no ready site could init", (*_INIT, _settled(_FIRST), _settled(_SECOND))),
    ("first delivery of a lease", (*_TWO, Leased(1, _LA))),
    ("a new site: it trains in the next round", (*_TWO, _C)),
    ("a lost site: its lease is away", (*_TWO, Left(1, "a"))),
    ("a lost site is back: its lease is out again", (*_TWO, Left(1, "a"), Joined(2, "a"))),
    ("below quorum", (*_TWO, _accepted(_LA))),
    ("quorum, others pending: grace begins", _QUORUM),
    ("quorum, nothing pending", _CLOSING),
    ("the last pending lease, quorum is in", (*_QUORUM, _settled("j.1.0.c"))),
    ("quorum can still be reached", (*_THREE, _settled(_LA))),
    ("quorum has become impossible", _FAILED),
    ("before the timer is due", (*_TWO, TimedOut(1, 1))),
    ("grace is over", (*_QUORUM, TimedOut(6, 1))),
    ("deadline, below quorum", (*_TWO, _accepted(_LA), TimedOut(60, 1))),
    ("a person stops it", _STOPPED),
    ("arguments for the next round that opens", (*_TWO, Changed(1, {"lr": 0.1}))),
    ("a late update", (*_CLOSING, _accepted(_LA))),
    ("more rounds, enough sites", (*_INIT, _accepted(_FIRST), Closed(2, 0, _FRAME))),
    (
        "more rounds, too few sites",
        (*_INIT, _accepted(_FIRST), Left(1, "a"), Closed(2, 0, _FRAME)),
    ),
    ("it was the last round", _DONE),
    ("the model could not be made or stored", (*_CLOSING, CloseFailed(2, 1, "disk full"))),
    ("a person stops it: the close goes on", (*_CLOSING, Stopped(2, "by a person"))),
    (
        "the model of a close that was in flight is recorded",
        (*_CLOSING, Stopped(2, "by a person"), Closed(3, 1, _FRAME)),
    ),
    ("same round: sites without an accepted update", (*_STOPPED, Resumed(3, None))),
    (
        "a close is in flight",
        (*_CLOSING, Stopped(2, "by a person"), Resumed(3, None)),
    ),
    (
        "too few sites are ready",
        (_A, Started(0, _FRAME, {}), Stopped(1, "by a person"), Resumed(3, None)),
    ),
    (
        "no round is left",
        (*_CLOSING, Stopped(2, "by a person"), Closed(3, 1, _FRAME), Resumed(4, None)),
    ),
    ("same round: sites without an accepted update", (*_FAILED, Resumed(3, None))),
    (
        "too few sites are ready",
        (*_FAILED, Left(2, "a"), Left(2, "b"), Resumed(3, None)),
    ),
    (
        "enough updates are in",
        (*_CLOSING, CloseFailed(2, 1, "disk full"), Resumed(3, None)),
    ),
    ("no more rounds are asked for", (*_DONE, Resumed(3, None))),
    ("more rounds, enough sites", (*_DONE, Resumed(3, 2))),
    ("more rounds, too few sites", (*_DONE, Left(2, "a"), Resumed(3, 2))),
    ("a person pauses it", (_A, Started(0, _FRAME, {}), Paused(1, "by a person"))),
    ("a person pauses it: the round goes on", (*_TWO, Paused(1, "by a person"))),
    ("a pause that has not begun is taken back", (*_TWO, Paused(1, "x"), Resumed(2, None))),
    ("a person pauses it: the close goes on", (*_CLOSING, Paused(2, "by a person"))),
    (
        "a pause was asked for, and rounds are left",
        (*_INIT, Paused(1, "by a person"), _accepted(_FIRST), Closed(2, 0, _FRAME)),
    ),
    ("a pause was asked for in the last round", _PAUSED),
    ("enough sites", (*_IDLE, Resumed(3, None))),
    ("too few sites are ready", (*_IDLE, Left(3, "a"), Resumed(3, None))),
    ("a person stops it", (*_IDLE, Stopped(3, "by a person"))),
    ("the next round starts from an earlier model", (*_IDLE, RolledBack(3, _FRAME))),
    ("what the open round has is given up", (*_STOPPED, RolledBack(3, _FRAME))),
    ("more rounds are to be given", (*_DONE, RolledBack(3, _FRAME))),
)

_OPENED: tuple[Event, ...] = (
    *_THREE,
    _accepted(_LA),
    _accepted(_LB),
    _accepted("j.1.0.c"),
    Closed(2, 1, _FRAME),
)
_EA, _EB, _EC = (f"j.1.e0.{site}" for site in "abc")
_TOLD: tuple[Event, ...] = (*_OPENED, *(_found(lease) for lease in (_EA, _EB, _EC)))
_JUDGED_SCENES: tuple[tuple[str, tuple[Event, ...]], ...] = (
    ("the model is to be evaluated: every ready site is asked", _OPENED),
    ("a site has told, others are there", (*_OPENED, _found(_EA))),
    ("the last site has told", _TOLD),
    ("who is left has told", (*_OPENED, _found(_EA), _found(_EB), _settled(_EC))),
    ("who is there has told", (*_OPENED, _found(_EA), _found(_EB), Left(3, "c"))),
    ("deadline, one has told", (*_OPENED, _found(_EA), TimedOut(62, 1))),
    ("nobody can tell", (*_OPENED, *map(_settled, (_EA, _EB, _EC)))),
    ("no site is ready", (*_OPENED[:-1], *(Left(2, s) for s in "abc"), _OPENED[-1])),
    ("a person stops it", (*_OPENED, _found(_EA), Stopped(3, "by a person"))),
    ("what they found is put together; it was the last", (*_TOLD, Assessed(3, 1, ""))),
    ("it could not be put together", (*_TOLD, CloseFailed(3, 1, "disk full"))),
    (
        "same evaluation: sites that have not told",
        (*_OPENED, _found(_EA), Stopped(3, "by a person"), Resumed(4, None)),
    ),
)


def _say(
    step: Literal["keys", "shares", "consent", "unmask"], *sites: str
) -> tuple[Spoke, ...]:
    return tuple(Spoke(1, f"j.1.0.{site}", step, "") for site in sites)


_FOUR: tuple[Event, ...] = (*_THREE[:-1], Joined(0, "d"), _THREE[-1])
_KEYS: tuple[Event, ...] = (*_FOUR, *_say("keys", *"abcd"))
_SHARES: tuple[Event, ...] = (*_KEYS, *_say("shares", *"abcd"))
_UPDATES: tuple[Event, ...] = (*_SHARES, *(_accepted(f"j.1.0.{site}") for site in "abcd"))
_CONSENT: tuple[Event, ...] = (*_UPDATES, *_say("consent", *"abc"))
_MASKED_SCENES: tuple[tuple[str, tuple[Event, ...]], ...] = (
    ("enough sites are ready: they are asked for keys", _FOUR),
    ("keys, others pending", (*_FOUR, *_say("keys", *"ab"))),
    ("the last keys: all are told, and asked for shares", _KEYS),
    ("a message of a step that is not open", (*_KEYS, *_say("consent", "a"))),
    ("grace for keys is over: who is late is left out", (*_KEYS[:-1], TimedOut(6, 1))),
    ("the last shares: all are told, and asked for updates", _SHARES),
    ("a site is lost and updates enough are left", (*_SHARES, _settled("j.1.0.d"))),
    (
        "too few sites are left: nothing is revealed",
        (*_KEYS[:-1], *map(_settled, ("j.1.0.a", "j.1.0.b"))),
    ),
    ("the last update: survivors are asked for consent", _UPDATES),
    ("a threshold consents: survivors are asked to unmask", _CONSENT),
    ("all unmask", (*_CONSENT, *_say("unmask", *"abcd"))),
    ("a threshold unmasks, one is away", (*_CONSENT, Left(2, "d"), *_say("unmask", *"abc"))),
    ("a person stops it: every update is given up", (*_UPDATES, Stopped(2, "by a person"))),
    (
        "a new attempt, with fresh keys",
        (*_UPDATES, Stopped(2, "by a person"), Resumed(3, None)),
    ),
)


def transitions() -> tuple[Transition, ...]:
    """Return the rows of plain rounds, by running every scene."""
    return tuple(_run(_CONFIG, when, story) for when, story in _SCENES)


def judged_transitions() -> tuple[Transition, ...]:
    """Return the rows of evaluations."""
    return tuple(_run(_JUDGED, when, story) for when, story in _JUDGED_SCENES)


def masked_transitions() -> tuple[Transition, ...]:
    """Return the rows of masked rounds."""
    return tuple(_run(_MASKED, when, story) for when, story in _MASKED_SCENES)


def _run(config: RoundConfig, when: str, story: tuple[Event, ...]) -> Transition:
    state = new_job("j", config)
    for event in story[:-1]:
        state, _ = advance(state, event)
    after, commands = advance(state, story[-1])
    names = Counter(type(command).__name__ for command in commands)
    shown = tuple(f"{name} x{n}" if n > 1 else name for name, n in names.items())
    return Transition(state.phase, type(story[-1]).__name__, when, after.phase, shown)


def describe() -> str:
    """Return the transition table as markdown: a diagram of the phases and all rows."""
    rows = transitions()
    judged = (*_JUDGED_HEAD, *map(_row, judged_transitions()))
    masked = (*_MASKED_HEAD, *map(_row, masked_transitions()))
    table = (*_TABLE_HEAD, *map(_row, rows))
    return "\n".join((*_HEAD, *_diagram(rows), *table, *_FOOT, *judged, *masked, ""))


def _diagram(rows: Iterable[Transition]) -> Iterable[str]:
    edges: dict[tuple[Phase, Phase], dict[str, None]] = {}
    for row in rows:
        if row.before != row.after:
            edges.setdefault((row.before, row.after), {})[row.event] = None
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> waiting"
    for (before, after), events in edges.items():
        yield f"    {before} --> {after}: {', '.join(events)}"
    yield "    done --> [*]"
    yield "```"


def _row(row: Transition) -> str:
    commands = ", ".join(row.commands) or "none"
    after = row.after if row.after != row.before else "same"
    return f"| {row.before} | {row.event} | {row.when} | {after} | {commands} |"


_HEAD = (
    "# The round machine",
    "",
    "Made by `consilia.core.round.describe()`, which runs the machine; a test compares.",
    "",
    "A job is a pure state machine: `advance(state, event) -> (state, commands)`. The hub",
    "journals an event, advances, and carries out the commands in order. Replaying the journal",
    "gives the same state and the same commands.",
    "",
)
_TABLE_HEAD = (
    "",
    "The rows were run with three sites at most, one round, `min_updates` 2, `min_sites` 2.",
    "",
    "| phase | event | when | next phase | commands |",
    "|---|---|---|---|---|",
)
_FOOT = (
    "",
    "Every other pair of phase and event leaves the phase as it is and commands nothing;",
    "`Joined`, `Left`, `Changed` and `Started` are remembered, and while the job waits the",
    "cause is told anew when the number of ready sites changes (`Notify`).",
    "",
    "- A lease is named `<job>.<round>.<attempt>.<site>`; a site has at most one pending lease",
    "  in a round.",
    "- An event on a lease that is not pending, or of another round, changes nothing: an",
    "  update that comes twice, late or for another job is never folded.",
    "- `Fold` is commanded once for each accepted lease, `Close` once for each round unless",
    "  closing failed and the job was resumed. Close lists exactly the accepted updates,",
    "  sorted by site.",
    "- The timer is due at the end of grace or at the deadline, whichever comes first. An",
    "  event seen at or after that time judges the round as the timer would.",
    "- Resuming opens the same round again with the updates it has; while it has any, its",
    "  arguments stay those it was first opened with.",
    "- `Paused` while a round is open lets it close first; `Resumed` before that takes it",
    "  back.",
    "- `RolledBack` is for a job that is paused, stopped, failed or done and closes nothing.",
    "  Its rounds are counted on, so no version is ever made twice.",
    "- An initial model is made from a seed that does not depend on the site that makes it.",
)
_JUDGED_HEAD = (
    "",
    "## Evaluations",
    "",
    "A job may evaluate models at the sites: after every so many rounds, and the last one. The",
    "evaluation belongs to the round that made the model; its leases are named",
    "`<job>.<round>.e<attempt>.<site>`. One that is summed takes the steps of a masked round;",
    "if too few sites are left for a sum, it is closed without one. It is closed by",
    "`Assessed`, which brings no model. The rows were run with three sites.",
    "",
    "| phase | event | when | next phase | commands |",
    "|---|---|---|---|---|",
)
_MASKED_HEAD = (
    "",
    "## Masked rounds",
    "",
    "A round of secure aggregation takes five steps: `keys`, `shares`, `update`, `consent`,",
    "`unmask` (`core.steps`). Each ends when all have done it, or enough have and grace is",
    "over; `Tell` passes on what was said, and asks for the next. Enough is `min_updates` for",
    "keys, more than two thirds of those with keys from then on. In a round of homomorphic",
    "encryption one is enough to `unmask`, and `CloseFailed` fails an open round as well, when",
    "its key or its sum cannot be made. The rows were run with four sites, `min_updates` 3 and",
    "a base model.",
    "",
    "| phase | event | when | next phase | commands |",
    "|---|---|---|---|---|",
)
