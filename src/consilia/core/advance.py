"""The transition functions of the round machine: one short pure function for each event.

The rules are told in `core.round`. Every function returns the new state and the commands; the
timer and the notice of a new phase are derived from the difference of old and new state.

What a kind of round needs is one `Recipe` (core.recipes): its quorum, whom it asks, how long it
waits for the rest. An evaluation is one whose Close makes no model: it belongs to the round
whose model it is of, follows its closing, and takes any site that can tell. That is where
further kinds go: an asynchronous strategy is one with a quorum of 1 and no grace.

A round takes one step, the update; a masked one takes five (`core.steps`). Every step ends
by the same rule: all have done it, or enough have and grace is over.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

from consilia.core import leases, steps
from consilia.core.events import (
    Accepted,
    Assessed,
    CancelLease,
    Changed,
    Closed,
    CloseFailed,
    Command,
    Event,
    JobState,
    Joined,
    Kind,
    Leased,
    LeaseStatus,
    Left,
    Notify,
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
    Wake,
)
from consilia.core.ids import name
from consilia.core.leases import Step
from consilia.core.recipes import RECIPES, able
from consilia.errors import ConfigError

_WHAT: Mapping[Kind, str] = {
    "evaluate": "the evaluation of round",
    "statistics": "the statistics of round",
}


def new_job(job: str, config: RoundConfig) -> JobState:
    """Return the state of a job that is not started, or raise ConfigError on a bad limit."""
    rule = config.selection
    if "." in job:  # lease ids of two jobs could be the same text
        raise ConfigError(f"job name {job[:80]!r} is not allowed: it holds a dot")
    judging = config.evaluating
    fewest = 1 if judging is None else 0  # without a round: one model is evaluated
    limits = (
        ("rounds", config.rounds, config.rounds >= fewest, f"{fewest} or more"),
        ("every", every := judging.every if judging else 0, every >= 0, "0 or more"),
        ("min_updates", config.min_updates, config.min_updates >= 1, "1 or more"),
        ("min_sites", config.min_sites, config.min_sites >= 1, "1 or more"),
        ("fraction", rule.fraction, 0 < rule.fraction <= 1, "above 0, up to 1"),
        ("selection minimum", rule.minimum, rule.minimum >= 1, "1 or more"),
        ("grace", config.grace, config.grace >= 0 and isfinite(config.grace), "0 s or more"),
        ("deadline", config.deadline, 0 < config.deadline < float("inf"), "more than 0 s"),
        (
            "min_updates of masked rounds",
            config.min_updates,
            not config.masked or config.min_updates >= steps.FEWEST,
            f"{steps.FEWEST} or more: of fewer, each could work out the others' sum",
        ),
    )
    for what, found, good, needed in limits:
        if not good:
            raise ConfigError(f"{what} is {found}, needs to be {needed}")
    return JobState(name(job, "job"), config)


def advance(state: JobState, event: Event) -> Step:
    """Return the state after `event`, and what the engine must do, in this order."""
    after, commands = _ON[type(event)](state, event)
    if (due := _due(after)) is not None and due != _due(state):
        commands = (*commands, due)
    if (after.phase, after.cause) != (state.phase, state.cause):
        commands = (*commands, Notify(after.phase, after.cause))
    return after, commands


def outstanding(state: JobState) -> tuple[Command, ...]:
    """Return the commands that a restarted hub must take up again, having replayed a journal.

    The leases to give, what their sites are to be told, the accepted updates to fold, the
    close that is in flight, and the timer.
    """
    gives = (
        leases.give(state, lease) for lease in leases.held(state) if not steps.has_left(lease)
    )
    tells = steps.retold(state) if state.phase == "running" else ()
    accepted = () if state.evaluating else leases.accepted_by_site(state)
    folds = (leases.fold(state, lease) for lease in accepted)
    close = (leases.close_command(state),) if state.closing else ()
    due = _due(state)
    return (*gives, *tells, *folds, *close, *(() if due is None else (due,)))


# ---- opening, judging and closing a round ----------------------------------------------------


def _open(state: JobState, at: float) -> Step:
    """Open the round in turn; or wait for sites; or the job is done."""
    if not state.started:
        return state, ()
    if state.round > state.config.rounds:
        return replace(state, phase="done", cause=state.enough, pause=""), ()
    if state.pause:
        return replace(state, phase="paused", cause=state.pause, pause=""), ()
    recipe, kept = RECIPES[state.kind], leases.having(state, "accepted")
    quorum = recipe.quorum(state.config)
    here = able(state) | {lease.site for lease in kept}
    fewest = 1 if state.evaluating else state.config.min_sites
    needed = max(fewest, quorum, steps.FEWEST if steps.masked(state) else 1)
    if len(kept) < quorum and len(here) < needed:
        found = f"{len(here)} ({', '.join(sorted(here))})" if here else "none"
        what = _WHAT.get(state.kind, "round")
        cause = f"{what} {state.round} waits for {needed} ready sites, found {found}"
        return replace(state, phase="waiting", cause=cause), ()
    # A model is evaluated with the arguments that it was trained with.
    old = bool(kept) or (state.evaluating and bool(state.round_arguments))
    arguments = state.round_arguments if old else state.arguments
    state = replace(
        state,
        phase="running",
        cause="",
        opened_at=at,
        step=steps.of(state)[0],
        quorum_at=None,
        round_arguments=arguments,
    )
    asked = () if recipe.replaces and kept else recipe.ask(state)
    state, gives = leases.give_out(state, asked)
    state, commands = _judge(state, at)
    return state, (*gives, *commands)


def _judge(state: JobState, at: float) -> Step:
    """Decide whether the open round goes on, closes or fails. `at` is the time now."""
    recipe = RECIPES[state.kind]
    quorum = steps.quorum(state, recipe.quorum(state.config))
    done = len(steps.done(state))
    if done >= quorum and state.quorum_at is None:
        state = replace(state, quorum_at=at)
    due = _due(state)
    late = due is not None and at >= due.at
    if done >= quorum:
        return (state, ()) if steps.expected(state) and not late else _next_step(state, at)
    if late:
        return _fail(state, f"deadline of {state.config.deadline:g} s passed", quorum)
    gives: tuple[Command, ...] = ()
    if recipe.replaces and not leases.having(state, "out"):
        again = replace(state, attempt=state.attempt + 1)
        again, gives = leases.give_out(again, recipe.ask(state))
        state = again if gives else state
    if done + len(steps.waiting(state)) < quorum:
        return _fail(state, "too few sites are left", quorum)
    return state, gives


def _next_step(state: JobState, at: float) -> Step:
    """Leave behind who has not done the step; ask the rest for the next one, or close."""
    left = [lease for lease in leases.pending(state) if lease not in steps.done(state)]
    state, cancels = leases.cancel(state, left)
    following = steps.after(state)
    if following is None:
        state = replace(state, phase="closing", closing=True)
        return state, (*cancels, leases.close_command(state))
    state = replace(state, step=following, quorum_at=None)
    tells = steps.tells(state)
    state, commands = _judge(state, at)
    return state, (*cancels, *tells, *commands)


def _fail(state: JobState, why: str, quorum: int) -> Step:
    sites = sorted(state.leases.values(), key=lambda lease: (lease.site, lease.id))
    each = "; ".join(
        f"{lease.site}: {lease.status}{f' ({lease.cause})' if lease.cause else ''}"
        for lease in sites
    )
    count = len(steps.done(state))
    what = steps.COUNTED[state.step]
    what_of = _WHAT.get(state.kind, "round").removeprefix("the ")
    cause = f"{what_of} {state.round}: {why}; found {count} of {quorum} {what}; {each}"
    if state.kind == "evaluate" and steps.masked(state) and state.config.rounds:
        # Sites too small to tell anything end no training: who was asked, and why, is recorded.
        state, cancels = leases.cancel(
            replace(state, phase="closing", closing=True), leases.held(state)
        )
        return state, (*cancels, leases.close_command(state))
    failed = replace(state, phase="failed", cause=cause, pause="")
    state, cancels = leases.cancel(failed, leases.held(state))
    return state, cancels


def _due(state: JobState) -> Wake | None:
    """Return when the open round must be judged even if nothing happens."""
    if state.phase != "running":
        return None
    due = state.opened_at + state.config.deadline
    if state.quorum_at is not None:
        due = min(due, state.quorum_at + RECIPES[state.kind].grace(state.config))
    return Wake(due, state.round)


# ---- one short function for each event -------------------------------------------------------


def _on_started(state: JobState, event: Started) -> Step:
    if state.started:
        return state, ()
    without_rounds = event.model is not None and state.config.rounds == 0
    alone = bool(state.config.statistics) or without_rounds
    first = 0 if event.model is None or alone else 1
    arguments = {**event.arguments, **state.arguments}
    state = replace(
        state,
        started=True,
        model=event.model,
        arguments=arguments,
        round=first,
        evaluating=alone,
    )
    return _open(state, event.at) if state.phase == "waiting" else (state, ())


def _on_joined(state: JobState, event: Joined) -> Step:
    if event.site in state.ready:
        return state, ()
    state = _move(replace(state, ready=state.ready | {event.site}), event.site, "away", "out")
    return _reconsider(state, event.at)


def _on_left(state: JobState, event: Left) -> Step:
    if event.site not in state.ready:
        return state, ()
    state = _move(replace(state, ready=state.ready - {event.site}), event.site, "out", "away")
    return _reconsider(state, event.at)


def _move(state: JobState, site: str, old: LeaseStatus, new: LeaseStatus) -> JobState:
    for lease in leases.having(state, old):
        if lease.site == site:
            return leases.put(state, replace(lease, status=new))
    return state


def _reconsider(state: JobState, at: float) -> Step:
    if state.phase == "waiting":
        return _open(state, at)
    return _judge(state, at) if state.phase == "running" else (state, ())


def _on_leased(state: JobState, event: Leased) -> Step:
    lease = leases.open_lease(state, event.lease)
    if lease is None or lease.delivered:
        return state, ()
    return leases.put(state, replace(lease, delivered=True)), ()


def _on_accepted(state: JobState, event: Accepted) -> Step:
    lease = leases.open_lease(state, event.lease)
    if lease is None or state.step != "update":
        return state, ()
    lease = replace(
        lease,
        status="accepted",
        digest=event.digest,
        records=event.records,
        metrics=event.metrics,
        body=event.body,
    )
    folds = () if state.evaluating else (leases.fold(state, lease),)
    state, commands = _judge(leases.put(state, lease), event.at)
    return state, (*folds, *commands)


def _on_spoke(state: JobState, event: Spoke) -> Step:
    lease = state.leases.get(event.lease)
    if lease is None or not steps.awaits(state, lease, event.step):
        return state, ()
    words = {**lease.words, event.step: event.body}
    return _judge(leases.put(state, replace(lease, words=words)), event.at)


def _on_settled(state: JobState, event: Settled) -> Step:
    known = state.leases.get(event.lease)
    if known is not None and steps.leaves(state, known):
        left = replace(known, cause=f"left: {event.cause or event.status}")
        return _judge(leases.put(state, left), event.at)
    lease = leases.open_lease(state, event.lease)
    if lease is None:
        return state, ()
    # What it said in this very step was passed on to nobody yet: it takes no part.
    words = {step: body for step, body in lease.words.items() if step != state.step}
    lease = replace(lease, status=event.status, cause=event.cause, words=words)
    return _judge(leases.put(state, lease), event.at)


def _on_timed_out(state: JobState, event: TimedOut) -> Step:
    due = _due(state)
    if due is None or event.round != due.round:
        return state, ()
    if event.at < due.at:  # an older timer, or a clock set back: ask again, lest none is left
        return state, (due,)
    return _judge(state, event.at)


def _on_closed(state: JobState, event: Closed) -> Step:
    if not state.closing or state.evaluating or event.round != state.round:
        return state, ()
    listening = leases.held(state) if steps.masked(state) else ()
    ends = tuple(CancelLease(lease.id, lease.site) for lease in listening)
    state = _ended(replace(state, model=event.model), event.enough)
    follows = _to_evaluate(state)
    state = replace(
        state, evaluating=follows, round=state.round if follows else state.round + 1
    )
    state, commands = _open(state, event.at) if state.phase == "closing" else (state, ())
    return state, (*ends, *commands)


def _on_assessed(state: JobState, event: Assessed) -> Step:
    if not (state.closing and state.evaluating) or event.round != state.round:
        return state, ()
    listening = leases.held(state) if steps.masked(state) else ()
    ends = tuple(CancelLease(lease.id, lease.site) for lease in listening)
    state = _ended(state, event.enough)
    state = replace(state, evaluating=False, round=state.round + 1)
    state, commands = _open(state, event.at) if state.phase == "closing" else (state, ())
    return state, (*ends, *commands)


def _ended(state: JobState, enough: str) -> JobState:
    """Return the state without the round that was open; `enough` makes it the last."""
    # A job that ends early has as many rounds as it has closed: more can be given to it later.
    rounds = state.round if enough else state.config.rounds
    return replace(
        state,
        config=replace(state.config, rounds=rounds),
        closing=False,
        leases={},
        attempt=0,
        quorum_at=None,
        enough=enough or state.enough,
    )


def _to_evaluate(state: JobState) -> bool:
    """Tell whether the model of the round that has just closed is to be evaluated."""
    judging, round = state.config.evaluating, state.round
    if judging is None:
        return False
    last = round == state.config.rounds
    return last or (judging.every > 0 and round > 0 and round % judging.every == 0)


def _on_close_failed(state: JobState, event: CloseFailed) -> Step:
    if not (state.closing or steps.summing(state)) or event.round != state.round:
        return state, ()
    cause = f"round {state.round} could not be closed: {event.cause}"
    if state.phase == "stopped":
        cause = f"{state.cause}; {cause}"
    held = leases.held(state) if steps.masked(state) else ()
    phase: Phase = "stopped" if state.phase == "stopped" else "failed"
    return leases.cancel(
        replace(state, closing=False, phase=phase, cause=cause, pause=""), held
    )


def _on_changed(state: JobState, event: Changed) -> Step:
    return replace(state, arguments={**state.arguments, **event.arguments}), ()


def _on_paused(state: JobState, event: Paused) -> Step:
    if state.phase == "waiting":
        return replace(state, phase="paused", cause=event.cause), ()
    if state.phase not in ("running", "closing") or state.pause:
        return state, ()
    return replace(state, pause=event.cause, cause=event.cause), ()


def _on_rolled_back(state: JobState, event: RolledBack) -> Step:
    idle = state.phase in ("paused", "done", "stopped", "failed")
    if not idle or state.closing or state.model is None:
        return state, ()
    # What the open round has was computed on another model; its evaluation is given up.
    round = state.round + 1 if state.evaluating else state.round
    attempt = 0 if state.evaluating else state.attempt + 1
    back = replace(
        state,
        model=event.model,
        leases={},
        attempt=attempt,
        quorum_at=None,
        round=round,
        evaluating=False,
    )
    return back, ()


def _on_stopped(state: JobState, event: Stopped) -> Step:
    if state.phase in ("done", "stopped", "failed"):
        return state, ()
    held = leases.pending(state) if state.closing else leases.held(state)
    return leases.cancel(replace(state, phase="stopped", cause=event.cause, pause=""), held)


def _on_resumed(state: JobState, event: Resumed) -> Step:
    given = 0 if state.config.statistics else event.rounds or 0  # it has its one round
    rounds = max(state.config.rounds, given)
    more = rounds > state.config.rounds
    if state.phase in ("running", "closing") and state.pause:  # not paused yet: it goes on
        config = replace(state.config, rounds=rounds)
        return replace(state, config=config, pause="", cause=""), ()
    idle = state.phase in ("paused", "stopped", "failed")
    if not idle and not (state.phase == "done" and more):
        return state, ()
    config = replace(state.config, rounds=rounds)
    state = replace(state, config=config, cause="", pause="", enough="")
    if state.closing:  # stopped while the close was in flight: its answer is still to come
        return replace(state, phase="closing"), ()
    # What was sent in a masked round is worth nothing in another attempt.
    mine = () if steps.masked(state) else leases.having(state, "accepted")
    kept = {lease.id: lease for lease in mine}
    state = replace(state, phase="waiting", leases=kept, attempt=state.attempt + 1)
    return _open(state, event.at)


_ON: Mapping[type[Event], Callable[[JobState, Any], Step]] = {
    Started: _on_started,
    Joined: _on_joined,
    Left: _on_left,
    Leased: _on_leased,
    Accepted: _on_accepted,
    Spoke: _on_spoke,
    Settled: _on_settled,
    TimedOut: _on_timed_out,
    Closed: _on_closed,
    Assessed: _on_assessed,
    CloseFailed: _on_close_failed,
    Changed: _on_changed,
    Paused: _on_paused,
    RolledBack: _on_rolled_back,
    Stopped: _on_stopped,
    Resumed: _on_resumed,
}
