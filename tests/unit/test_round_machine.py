"""Every interleaving of join, leave, crash, duplicate, late and reordered events.

A hub that keeps its own books drives the machine: which leases it has handed out, which
updates it has folded, whether a close or a timer is under way. The books are kept from
commands alone, so they would disagree with a state that lies.
"""

from dataclasses import replace
from math import inf

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consilia.core.round import (
    EVENTS,
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
    Leased,
    Left,
    Paused,
    Resumed,
    RolledBack,
    RoundConfig,
    Selection,
    Settled,
    Started,
    Stopped,
    TimedOut,
    Wake,
    advance,
    new_job,
    outstanding,
    pending,
)
from consilia.core.table import judged_transitions, transitions

SITES = ("a", "b", "c", "d")
GRACE, DEADLINE = 5.0, 60.0
MOVES = {(row.before, row.event, row.after) for row in (*transitions(), *judged_transitions())}
MOVES |= {("closing", "Assessed", after) for after in ("running", "waiting", "paused")}
# An event that comes when the timer is due already judges the round as the timer would.
JUDGING = {"Joined", "Left", "Accepted", "Settled", "TimedOut"}

sites = st.sampled_from(SITES)
configs = st.builds(
    RoundConfig,
    rounds=st.integers(1, 3),
    min_updates=st.integers(1, 3),
    min_sites=st.integers(1, 3),
    selection=st.builds(Selection, st.sampled_from((0.3, 0.5, 1.0)), st.integers(1, 2)),
    grace=st.sampled_from((0.0, GRACE, 2 * DEADLINE)),
    deadline=st.just(DEADLINE),
    seed=st.integers(0, 3),
    evaluating=st.none() | st.builds(Evaluating, st.integers(0, 2)),
)


class Hub(RuleBasedStateMachine):
    """Rules send events; `feed` keeps the books and checks what each transition may do."""

    @initialize(config=configs)
    def begin(self, config: RoundConfig) -> None:
        self.config = config
        self.state = new_job("j", config)
        self.now = 0.0
        self.journal: list[Event] = []
        self.transcript: list[tuple[Command, ...]] = []
        self.given: dict[str, GiveLease] = {}  # every lease ever
        self.open: set[str] = set()
        self.folded: set[str] = set()
        self.closing: Close | None = None
        self.made: dict[int, str] = {}  # round -> model
        self.past: set[str] = set()  # leases given before the job last went back
        self.wake: Wake | None = None

    # ---- rules: what can happen -----------------------------------------------------------

    @rule(seconds=st.sampled_from((0.5, 1.0, GRACE, DEADLINE, -3.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds  # backwards too: a clock may be set

    @rule(model=st.sampled_from((None, "base")))
    def start(self, model: str | None) -> None:
        self.feed(Started(self.now, model, {"lr": 1.0}))

    @rule(site=sites)
    def join(self, site: str) -> None:
        self.feed(Joined(self.now, site))

    @rule(site=sites)
    def leave(self, site: str) -> None:
        self.feed(Left(self.now, site))

    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        """Report on any lease there ever was: open, settled, of an earlier round or attempt."""
        if not self.given:
            return
        recent = sorted(self.open) or sorted(self.given)
        lease = data.draw(
            st.sampled_from(recent) | st.sampled_from(sorted(self.given)), "lease"
        )
        kind = data.draw(st.sampled_from(("update", "update", "failed", "declined", "leased")))
        self.feed(self.report_on(lease, kind))

    def report_on(self, lease: str, kind: str) -> Event:
        if kind == "leased":
            return Leased(self.now, lease)
        if kind == "update":
            if self.judges(lease):
                return Accepted(self.now, lease, "", 10, {}, "found")
            return Accepted(self.now, lease, f"update of {lease}", 10, {"loss": 0.5})
        return Settled(self.now, lease, "failed" if kind == "failed" else "declined", kind)

    def judges(self, lease: str) -> bool:
        return lease in self.given and self.given[lease].kind == "evaluate"

    @rule(lease=st.sampled_from(("j.1.0.z", "k.1.0.a", "")))
    def foreign_report(self, lease: str) -> None:
        before = self.state
        assert self.feed(self.report_on(lease, "update")) == ()
        assert self.state is before

    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        """Any earlier event comes once more, as it was."""
        if self.journal:
            self.feed(data.draw(st.sampled_from(self.journal[-12:]), "event"))

    @precondition(lambda self: self.wake is not None)
    @rule(early=st.sampled_from((0.0, 0.0, 0.25)))
    def timer(self, early: float) -> None:
        wake = self.wake
        assert wake is not None
        self.now = max(self.now, wake.at - early)
        self.feed(TimedOut(self.now if early == 0.0 else wake.at - early, wake.round))

    @rule(round=st.integers(0, 4))
    def foreign_timer(self, round: int) -> None:
        self.feed(TimedOut(self.now, round))

    @precondition(lambda self: self.closing is not None)
    @rule(works=st.sampled_from((True, True, True, False)))
    def close_ends(self, works: bool) -> None:
        assert self.closing is not None
        round = self.closing.round
        if works and self.closing.kind == "evaluate":
            self.feed(Assessed(self.now, round, "told"))
        elif works:
            self.feed(Closed(self.now, round, f"model {round} of {len(self.journal)}"))
        else:
            self.feed(CloseFailed(self.now, round, "disk full"))

    @rule(round=st.integers(0, 4))
    def foreign_close(self, round: int) -> None:
        if self.closing is None or self.closing.round != round:
            before = self.state
            assert self.feed(Closed(self.now, round, "forged")) == ()
            assert self.feed(Assessed(self.now, round, "forged")) == ()
            assert self.state is before
        elif self.closing.kind == "evaluate":
            assert self.feed(Closed(self.now, round, "forged")) == ()
        else:
            assert self.feed(Assessed(self.now, round, "forged")) == ()

    @rule(lr=st.floats(0, 1))
    def change(self, lr: float) -> None:
        assert self.feed(Changed(self.now, {"lr": lr})) == ()

    @rule()
    def pause(self) -> None:
        open_before = set(self.open)
        self.feed(Paused(self.now, "paused by a person"))
        assert self.open == open_before  # nothing is taken back

    @precondition(lambda self: self.made and self.state.phase != "running")
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        before = self.state
        model = self.made[data.draw(st.sampled_from(sorted(self.made)), "round")]
        self.feed(RolledBack(self.now, model))
        idle = before.phase in ("paused", "stopped", "failed", "done")
        if idle and not before.closing:
            assert self.state.model == model
            self.made[before.round - 1 + before.evaluating] = model
            self.past.update(self.given)
        else:
            assert self.state is before

    @rule()
    def stop(self) -> None:
        self.feed(Stopped(self.now, "by a person"))

    @rule(rounds=st.none() | st.integers(1, 4))
    def resume(self, rounds: int | None) -> None:
        self.feed(Resumed(self.now, rounds))

    # ---- the books ------------------------------------------------------------------------

    def feed(self, event: Event) -> tuple[Command, ...]:
        before = self.state
        after, commands = advance(before, event)
        self.journal.append(event)
        self.transcript.append(commands)
        self.check_lease_event(event, before, after, commands)
        self.check_move(event, before, after, commands)
        self.state = after
        if isinstance(event, Accepted | Settled):
            self.open.discard(event.lease)
        if self.closing is not None and self.answers(self.closing, event):
            if isinstance(event, Closed):
                assert event.round not in self.made
                self.made[event.round] = event.model
            self.closing = None
        for command in commands:
            self.obey(command)
        if after.phase != "running":
            self.wake = None
        return commands

    @staticmethod
    def answers(close: Close, event: Event) -> bool:
        made = Assessed if close.kind == "evaluate" else Closed
        return isinstance(event, made | CloseFailed) and event.round == close.round

    def check_lease_event(
        self, event: Event, before: JobState, after: JobState, commands: tuple[Command, ...]
    ) -> None:
        if isinstance(event, Accepted | Settled | Leased) and event.lease not in self.open:
            assert after is before
            assert commands == ()
        folds = [c for c in commands if isinstance(c, Fold)]
        if isinstance(event, Accepted) and event.lease in self.open:
            if self.judges(event.lease):
                assert folds == []
                self.folded.add(event.lease)
                return
            lease = self.given[event.lease]
            assert folds == [
                Fold(lease.round, lease.lease, lease.site, event.digest, event.records)
            ]
        else:
            assert folds == []

    def check_move(
        self, event: Event, before: JobState, after: JobState, commands: tuple[Command, ...]
    ) -> None:
        assert after.round >= before.round
        assert after.round <= after.config.rounds + 1
        if before.phase == "done" and not isinstance(event, Resumed):
            assert commands == ()
        name = type(event).__name__
        if before.phase != after.phase:
            known = {kind for kind in EVENTS if (before.phase, kind, after.phase) in MOVES}
            assert name in known or (name in JUDGING and "TimedOut" in known)
        if commands == () and isinstance(event, TimedOut | Accepted):
            assert after is before

    def obey(self, command: Command) -> None:
        if isinstance(command, GiveLease):
            self.check_give(command)
            self.given[command.lease] = command
            self.open.add(command.lease)
        elif isinstance(command, CancelLease):
            self.open.remove(command.lease)  # KeyError: it was not open
            assert self.given[command.lease].site == command.site
        elif isinstance(command, Fold):
            assert command.lease not in self.folded
            self.folded.add(command.lease)
        elif isinstance(command, Close):
            self.check_close(command)
            self.closing = command
        elif isinstance(command, Wake):
            self.wake = command

    def check_give(self, command: GiveLease) -> None:
        assert command.lease not in self.given
        assert command.site in self.state.ready
        assert command.round == self.state.round
        judging = self.state.evaluating
        kind = "evaluate" if judging else "init" if command.round == 0 else "train"
        assert command.kind == kind
        expected = self.made.get(command.round - 1, "base") if command.round else None
        if judging:
            expected = self.made[command.round]
        assert command.model == expected
        same = [
            g.lease
            for g in self.given.values()
            if (g.site, g.round, g.kind) == (command.site, command.round, command.kind)
            and g.lease not in self.past
        ]
        assert not self.open.intersection(same)
        assert not self.folded.intersection(same)

    def check_close(self, command: Close) -> None:
        assert self.closing is None
        judging = command.kind == "evaluate"
        assert (command.round in self.made) == judging
        accepted = sorted(
            (g.site, g.lease, "" if judging else f"update of {g.lease}", 10)
            for g in self.given.values()
            if (g.round, g.kind) == (command.round, command.kind)
            and g.lease in self.folded
            and g.lease not in self.past
        )
        assert list(command.updates) == accepted
        alone = judging or command.round == 0
        assert len(accepted) >= (1 if alone else self.config.min_updates)
        assert len({site for site, *_ in accepted}) == len(accepted)

    # ---- what holds in every state ---------------------------------------------------------

    @invariant()
    def one_pending_lease_for_a_site(self) -> None:
        waiting = [lease.site for lease in pending(self.state)]
        assert len(waiting) == len(set(waiting))
        assert {lease.id for lease in pending(self.state)} == self.open

    @invariant()
    def something_is_always_under_way(self) -> None:
        if self.state.phase == "running":
            assert self.open
            assert self.wake is not None
            assert self.wake.round == self.state.round
            assert self.wake in outstanding(self.state)
        else:
            assert not self.open
        if self.state.phase == "closing":
            assert self.closing is not None
        assert self.state.closing == (self.closing is not None)

    @invariant()
    def away_means_not_ready(self) -> None:
        for lease in pending(self.state):
            assert (lease.status == "out") == (lease.site in self.state.ready)

    @invariant()
    def a_restarted_hub_takes_up_what_was_under_way(self) -> None:
        again = outstanding(self.state)
        gives = [c for c in again if isinstance(c, GiveLease)]
        assert {g.lease: g for g in gives} == {i: self.given[i] for i in self.open}
        assert [c for c in again if isinstance(c, Close)] == (
            [self.closing] if self.closing else []
        )
        folds = {c.lease for c in again if isinstance(c, Fold)}
        assert folds == {
            i
            for i in self.folded - self.past
            if self.given[i].round == self.state.round and not self.state.evaluating
        }

    @invariant()
    def a_waiting_or_failed_job_says_why(self) -> None:
        if self.state.phase == "failed" or (
            self.state.phase == "waiting" and self.state.started
        ):
            assert str(self.state.round) in self.state.cause
        if self.state.phase == "paused" or self.state.pause:
            assert self.state.cause == "paused by a person"
        elif self.state.phase in ("running", "closing", "done"):
            assert self.state.cause == ""

    # ---- at the end ------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        assert replay(self.config, self.journal) == (self.state, self.transcript)
        done = drain(self.state)
        assert done.phase == "done"
        for event in self.journal:
            if not isinstance(event, Resumed | RolledBack):
                done, commands = advance(done, event)
                assert (done.phase, commands) == ("done", ())
        assert expire(self.state).phase in (
            *("done", "failed", "waiting", "stopped", "paused"),
        )


def replay(
    config: RoundConfig, journal: list[Event]
) -> tuple[JobState, list[tuple[Command, ...]]]:
    state, transcript = new_job("j", config), []
    for event in journal:
        state, commands = advance(state, event)
        transcript.append(commands)
    return state, transcript


def drain(state: JobState) -> JobState:
    """Everybody comes, reports come in, closes succeed: the job must get through."""
    for _ in range(200):
        if state.phase == "done":
            return state
        at = state.opened_at + 1
        state, _commands = advance(state, next_event(state, at))
    return state


def next_event(state: JobState, at: float) -> Event:
    if not state.started:
        return Started(at, None, {})
    if missing := set(SITES) - state.ready:
        return Joined(at, min(missing))
    if state.phase == "running":
        return Accepted(at, pending(state)[0].id, "update", 10, {})
    if state.phase == "closing":
        judged = Assessed(at, state.round, "told")
        return judged if state.evaluating else Closed(at, state.round, "model")
    return Resumed(at, None)


def expire(state: JobState) -> JobState:
    """Nobody reports any more, only timers go off and closes end: nothing may hang."""
    for _ in range(20):
        if state.phase == "running":
            state, _commands = advance(state, TimedOut(state.opened_at + 1e6, state.round))
            assert state.phase in ("closing", "failed")
        elif state.phase == "closing":
            judged = Assessed(0.0, state.round, "told")
            made = Closed(0.0, state.round, "model")
            state, _commands = advance(state, judged if state.evaluating else made)
        else:
            return state
    return state


Hub.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHub = Hub.TestCase


LEASES = [f"j.{round}.{attempt}.{s}" for round in (0, 1) for attempt in (0, 1) for s in "abc"]
times = st.sampled_from((0.0, 1.0, GRACE, GRACE + 1, DEADLINE, DEADLINE + 1, inf))
leases = st.sampled_from(LEASES)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Started, times, st.sampled_from((None, "base")), st.just({"lr": 1.0})),
    st.builds(Joined, times, st.sampled_from("abc")),
    st.builds(Left, times, st.sampled_from("abc")),
    st.builds(Leased, times, leases),
    st.builds(Accepted, times, leases, st.just("d"), st.just(1), st.just({})),
    st.builds(
        Settled,
        times,
        leases,
        st.sampled_from(("rejected", "failed", "declined")),
        st.just("x"),
    ),
    st.builds(TimedOut, times, st.integers(0, 2)),
    st.builds(Closed, times, st.integers(0, 2), st.just("m")),
    st.builds(CloseFailed, times, st.integers(0, 2), st.just("disk full")),
    st.builds(Changed, times, st.just({"lr": 2.0})),
    st.builds(Assessed, times, st.integers(0, 2), st.just("told")),
    st.builds(Paused, times, st.just("by a person")),
    st.builds(RolledBack, times, st.just("m")),
    st.builds(Stopped, times, st.just("by a person")),
    st.builds(Resumed, times, st.none() | st.integers(0, 3)),
)


@settings(max_examples=300, deadline=None)
@given(config=configs, story=st.lists(events, max_size=40))
def test_any_sequence_replays_and_ends(config: RoundConfig, story: list[Event]) -> None:
    state, transcript = replay(config, story)
    assert replay(config, story) == (state, transcript)
    folds = [c.lease for commands in transcript for c in commands if isinstance(c, Fold)]
    assert len(folds) == len(set(folds))
    for commands in transcript:
        closes = [c for c in commands if isinstance(c, Close)]
        assert len(closes) <= 1
    assert drain(replace(state, opened_at=0.0)).phase == "done"


@settings(max_examples=150, deadline=None)
@given(config=configs, story=st.lists(events, max_size=30))
def test_hearing_everything_twice_changes_nothing(
    config: RoundConfig, story: list[Event]
) -> None:
    """Reports are idempotent: the same one at once again is a no-op in every state."""
    state = new_job("j", config)
    for event in story:
        state, _ = advance(state, event)
        if isinstance(event, Accepted | Settled | Leased | Joined | Left | Closed | Started):
            assert advance(state, event) == (state, ())
