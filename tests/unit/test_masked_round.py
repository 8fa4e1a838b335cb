"""Masked rounds: every interleaving of words, updates, refusals, losses, stops and restarts.

As in test_round_machine.py a hub that keeps its own books drives the machine. The books know
only what was commanded and what was sent: which leases a site still holds, what each has said,
whom the hub has told what. A Close must follow from them alone.
"""

from dataclasses import replace
from math import inf

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consilia.core import steps
from consilia.core.events import Step
from consilia.core.round import (
    Accepted,
    CancelLease,
    Changed,
    Close,
    Closed,
    CloseFailed,
    Command,
    Event,
    Fold,
    GiveLease,
    JobState,
    Joined,
    Leased,
    Left,
    Resumed,
    RoundConfig,
    Selection,
    Settled,
    Spoke,
    Started,
    Stopped,
    Tell,
    TimedOut,
    Wake,
    advance,
    new_job,
    outstanding,
)
from consilia.core.select import threshold
from consilia.core.steps import FEWEST, STEPS

SITES = ("a", "b", "c", "d", "e")
GRACE, DEADLINE = 5.0, 60.0
SPOKEN = ("keys", "shares", "consent", "unmask")

sites = st.sampled_from(SITES)
configs = st.builds(
    RoundConfig,
    rounds=st.integers(1, 2),
    min_updates=st.integers(3, 4),
    min_sites=st.integers(1, 4),
    selection=st.builds(Selection, st.sampled_from((0.6, 1.0, 1.0)), st.integers(1, 4)),
    grace=st.sampled_from((0.0, GRACE, 2 * DEADLINE)),
    deadline=st.just(DEADLINE),
    seed=st.integers(0, 3),
    masked=st.just(True),
)


def word(at: float, lease: str, step: str) -> Event:
    """Return what a site does under a lease in one step of a masked round."""
    if step == "update":
        return Accepted(at, lease, f"update of {lease}", 40, {"loss": 0.0})
    for spoken in ("keys", "shares", "consent", "unmask"):
        if step == spoken:
            return Spoke(at, lease, spoken, f"{step} of {lease}")
    raise AssertionError(step)


class Hub(RuleBasedStateMachine):
    """Rules send events; `feed` keeps the books and checks what each transition may do."""

    @initialize(config=configs, model=st.sampled_from((None, "base", "base")))
    def begin(self, config: RoundConfig, model: str | None) -> None:
        self.config = config
        self.state = new_job("j", config)
        self.now = 0.0
        self.journal: list[Event] = []
        self.transcript: list[tuple[Command, ...]] = []
        self.given: dict[str, GiveLease] = {}  # every lease ever
        self.held: set[str] = set()  # a site has it and is on it
        self.left: set[str] = set()  # accepted, and then its site ended its part
        self.said: dict[str, set[str]] = {}  # lease -> steps done, "update" among them
        self.told: set[tuple[str, str]] = set()
        self.folded: set[str] = set()
        self.closing: Close | None = None
        self.made: dict[int, str] = {}
        self.wake: Wake | None = None
        for site in SITES[: config.min_updates + 1]:
            self.feed(Joined(self.now, site))
        self.feed(Started(self.now, model, {"lr": 1.0}))

    # ---- rules: what can happen -----------------------------------------------------------

    @rule(seconds=st.sampled_from((0.5, GRACE, DEADLINE, -3.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(site=sites)
    def join(self, site: str) -> None:
        self.feed(Joined(self.now, site))

    @rule(site=sites)
    def leave(self, site: str) -> None:
        self.feed(Left(self.now, site))

    @rule(missing=st.none() | sites)
    def all_but_one_do_the_step(self, missing: str | None) -> None:
        self.most_do_the_step(missing)

    @rule(missing=st.none() | sites)
    def most_do_the_step(self, missing: str | None) -> None:
        """Most sites that are asked do what they are asked for: rounds get to their end.

        Under two names, so that it happens more often than what stops a round.
        """
        asked = sorted(lease.id for lease in steps.waiting(self.state))
        if not asked or self.state.phase != "running":
            return
        step = self.state.step
        for lease in asked:
            if self.given[lease].site != missing:
                self.feed(word(self.now, lease, step))

    @rule(data=st.data(), step=st.sampled_from(STEPS))
    def say_anything(self, data: st.DataObject, step: str) -> None:
        """A word of any step under any lease there ever was: early, late, said before."""
        if self.given:
            self.feed(word(self.now, self.draw_lease(data), step))

    @rule(data=st.data(), kind=st.sampled_from(("failed", "declined", "rejected", "leased")))
    def report(self, data: st.DataObject, kind: str) -> None:
        if not self.given:
            return
        lease = self.draw_lease(data)
        if kind == "leased":
            self.feed(Leased(self.now, lease))
        elif kind == "failed":
            self.feed(Settled(self.now, lease, "failed", "crashed"))
        elif kind == "declined":
            self.feed(Settled(self.now, lease, "declined", ""))
        else:
            self.feed(Settled(self.now, lease, "rejected", "revoked"))

    def draw_lease(self, data: st.DataObject) -> str:
        recent = sorted(self.held) or sorted(self.given)
        return data.draw(st.sampled_from(recent) | st.sampled_from(sorted(self.given)), "lease")

    @rule(lease=st.sampled_from(("j.1.0.z", "k.1.0.a", "")), step=st.sampled_from(STEPS))
    def foreign(self, lease: str, step: str) -> None:
        before = self.state
        assert self.feed(word(self.now, lease, step)) == ()
        assert self.state is before

    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        if self.journal:
            self.feed(data.draw(st.sampled_from(self.journal[-16:]), "event"))

    @precondition(lambda self: self.wake is not None)
    @rule()
    def timer(self) -> None:
        assert self.wake is not None
        self.now = max(self.now, self.wake.at)
        self.feed(TimedOut(self.now, self.wake.round))

    @precondition(lambda self: self.closing is not None)
    @rule(works=st.sampled_from((True, True, False)))
    def close_ends(self, works: bool) -> None:
        assert self.closing is not None
        round = self.closing.round
        if works:
            self.feed(Closed(self.now, round, f"model {round} of {len(self.journal)}"))
        else:
            self.feed(CloseFailed(self.now, round, "disk full"))

    @rule()
    def change(self) -> None:
        assert self.feed(Changed(self.now, {"lr": 0.5})) == ()

    @precondition(lambda self: len(self.journal) % 3 == 0)
    @rule()
    def stop(self) -> None:
        self.feed(Stopped(self.now, "by a person"))

    @rule(rounds=st.none() | st.integers(1, 3))
    def resume(self, rounds: int | None) -> None:
        self.feed(Resumed(self.now, rounds))

    # ---- the books ------------------------------------------------------------------------

    def feed(self, event: Event) -> tuple[Command, ...]:
        before = self.state
        effective = self.counts(event)
        after, commands = advance(before, event)
        self.journal.append(event)
        self.transcript.append(commands)
        self.state = after
        if isinstance(event, Spoke | Accepted | Settled):
            assert (after is not before) == effective, "counted what it must not, or forgot it"
            if effective:
                self.note(event)
            else:
                assert commands == ()
        if self.closing is not None and self.answers(self.closing, event):
            if isinstance(event, Closed):
                self.made[event.round] = event.model
            self.closing = None
        for command in commands:
            self.obey(command)
        self.check_progress(before, after)
        if after.phase != "running":
            self.wake = None
        return commands

    @staticmethod
    def answers(close: Close, event: Event) -> bool:
        return isinstance(event, Closed | CloseFailed) and event.round == close.round

    def counts(self, event: Event) -> bool:
        """Tell, from the books alone, whether a message must take effect."""
        if not isinstance(event, Spoke | Accepted | Settled) or event.lease not in self.held:
            return False
        done, state = self.said[event.lease], self.state
        if isinstance(event, Settled):
            return state.phase == "running" and "unmask" not in done
        if self.given[event.lease].kind == "init":
            return isinstance(event, Accepted)
        step = "update" if isinstance(event, Accepted) else event.step
        return state.phase == "running" and step == state.step and step not in done

    def note(self, event: Event) -> None:
        if isinstance(event, Accepted):
            self.said[event.lease].add("update")
            if self.given[event.lease].kind == "init":
                self.held.remove(event.lease)
        elif isinstance(event, Spoke):
            self.said[event.lease].add(event.step)
        elif isinstance(event, Settled):
            self.held.remove(event.lease)
            if "update" in self.said[event.lease]:
                self.left.add(event.lease)
            else:
                self.said[event.lease].discard(self.state.step)

    def check_progress(self, before: JobState, after: JobState) -> None:
        """Within an attempt steps only go forward; a new attempt or round begins with keys."""
        if "running" not in (before.phase, after.phase) or not steps.masked(after):
            return
        was, now = (before.round, before.attempt), (after.round, after.attempt)
        if before.phase == after.phase and was == now:
            assert STEPS.index(after.step) >= STEPS.index(before.step)
        elif after.phase == "running":
            assert before.phase != "running", "an open round was opened anew"
            assert after.step == "keys"
            assert not any(lease.words for lease in after.leases.values())

    def obey(self, command: Command) -> None:
        if isinstance(command, GiveLease):
            assert command.lease not in self.given
            assert command.site in self.state.ready
            self.given[command.lease] = command
            self.held.add(command.lease)
            self.said[command.lease] = set()
        elif isinstance(command, CancelLease):
            assert self.given[command.lease].site == command.site
            self.held.discard(command.lease)
            self.left.discard(command.lease)
        elif isinstance(command, Tell):
            self.check_tell(command)
        elif isinstance(command, Fold):
            assert command.lease not in self.folded
            assert "update" in self.said[command.lease]
            self.folded.add(command.lease)
        elif isinstance(command, Close):
            self.check_close(command)
            self.closing = command
        elif isinstance(command, Wake):
            self.wake = command

    def check_tell(self, command: Tell) -> None:
        """Told once, after it has done all steps before, and only while it holds the lease."""
        assert command.lease in self.held
        assert command.site == self.given[command.lease].site
        assert (command.lease, command.step) not in self.told
        self.told.add((command.lease, command.step))
        needed = {"shares": "keys", "update": "shares", "consent": "update", "unmask": "update"}
        assert needed[command.step] in self.said[command.lease]
        assert command.step not in self.said[command.lease]

    def mates(self, lease: str) -> list[str]:
        """Return the leases of one attempt at one round."""
        stem = lease.rpartition(".")[0]
        return [other for other in self.given if other.rpartition(".")[0] == stem]

    def check_close(self, command: Close) -> None:
        assert self.closing is None
        assert command.round not in self.made
        leases = [lease for _, lease, _, _ in command.updates]
        if command.kind == "init":
            return
        mates = self.mates(leases[0])
        assert set(leases) <= set(mates), "an update of another attempt is in the sum"
        assert sorted(leases) == sorted(x for x in mates if "update" in self.said[x])
        assert all({"keys", "shares", "update"} <= self.said[lease] for lease in leases)
        least = threshold(sum("keys" in self.said[lease] for lease in mates))
        assert len(leases) >= max(FEWEST, least, self.config.min_updates)
        for step in ("consent", "unmask"):
            assert sum(step in self.said[lease] for lease in leases) >= least
        cohorts = {self.given[lease].cohort for lease in leases}
        assert cohorts == {tuple(sorted(self.given[lease].site for lease in mates))}

    # ---- what holds in every state ---------------------------------------------------------

    @invariant()
    def nothing_is_left_held_at_an_end(self) -> None:
        if not hasattr(self, "state"):
            return
        if self.state.phase not in ("running", "closing") and not self.state.closing:
            assert not self.held
            assert not self.left
        for lease in self.held:
            assert self.given[lease].round == self.state.round

    @invariant()
    def a_running_round_waits_for_somebody_and_ends_by_its_deadline(self) -> None:
        if not hasattr(self, "state") or self.state.phase != "running":
            return
        assert steps.waiting(self.state)
        assert self.wake is not None
        assert self.wake in outstanding(self.state)
        assert self.wake.at <= self.state.opened_at + DEADLINE
        late = TimedOut(self.state.opened_at + DEADLINE, self.state.round)
        assert advance(self.state, late)[0].phase != "running"

    @invariant()
    def only_the_first_step_goes_on_while_a_close_is_made(self) -> None:
        if hasattr(self, "state"):
            assert self.state.closing == (self.closing is not None)

    @invariant()
    def a_restarted_hub_takes_up_what_was_under_way(self) -> None:
        if not hasattr(self, "state"):
            return
        again = outstanding(self.state)
        gives = {c.lease: c for c in again if isinstance(c, GiveLease)}
        assert gives == {lease: self.given[lease] for lease in self.held}
        folds = {c.lease for c in again if isinstance(c, Fold)}
        assert folds == {x for x in self.folded if x in self.state.leases and self.kept(x)}
        tells = [c for c in again if isinstance(c, Tell)]
        assert {c.lease for c in tells} <= self.held
        if self.state.phase == "running" and steps.masked(self.state):
            self.check_told_again(tells)
        else:
            assert not tells

    def kept(self, lease: str) -> bool:
        return self.state.leases[lease].status == "accepted"

    def check_told_again(self, tells: list[Tell]) -> None:
        """Whoever has still to speak is told what it needs, as it was told live."""
        step = self.state.step
        asked = {lease for lease in self.held if step not in self.said[lease]}
        if step in ("consent", "unmask"):
            asked &= {lease for lease in self.held if "update" in self.said[lease]}
        heard = {c.lease for c in tells if c.step == step}
        assert heard == (set() if step == "keys" else asked)
        assert {(c.lease, c.step) for c in tells} <= self.told
        if step == "unmask":  # nobody can unmask who does not know the survivors
            silent = {lease for lease in asked if "consent" not in self.said[lease]}
            assert {c.lease for c in tells if c.step == "consent"} == silent

    @invariant()
    def a_failed_job_says_who_is_missing(self) -> None:
        if hasattr(self, "state") and self.state.phase == "failed":
            assert f"round {self.state.round}" in self.state.cause

    # ---- at the end ------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        assert replay(self.config, self.journal) == (self.state, self.transcript)
        assert drain(self.state).phase == "done"


def replay(
    config: RoundConfig, journal: list[Event]
) -> tuple[JobState, list[tuple[Command, ...]]]:
    state, transcript = new_job("j", config), []
    for event in journal:
        state, commands = advance(state, event)
        transcript.append(commands)
    return state, transcript


def drain(state: JobState) -> JobState:
    """Everybody comes, does what it is asked for, closes succeed: the job must get through."""
    for _ in range(400):
        if state.phase == "done":
            return state
        state, _commands = advance(state, next_event(state, state.opened_at + 1))
    return state


def next_event(state: JobState, at: float) -> Event:
    if not state.started:
        return Started(at, None, {})
    if missing := set(SITES) - state.ready:
        return Joined(at, min(missing))
    if state.phase == "running":
        return word(at, steps.waiting(state)[0].id, state.step)
    if state.phase == "closing":
        return Closed(at, state.round, "model")
    return Resumed(at, None)


Hub.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHub = Hub.TestCase


LEASES = [f"j.{round}.{attempt}.{s}" for round in (0, 1) for attempt in (0, 1) for s in "abcd"]
times = st.sampled_from((0.0, 1.0, GRACE + 1, DEADLINE, DEADLINE + 1, inf))
leases = st.sampled_from(LEASES)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(word, times, leases, st.sampled_from(STEPS)),
    st.builds(word, times, leases, st.sampled_from(STEPS)),
    st.builds(Started, times, st.sampled_from((None, "base")), st.just({"lr": 1.0})),
    st.builds(Joined, times, st.sampled_from("abcd")),
    st.builds(Left, times, st.sampled_from("abcd")),
    st.builds(
        Settled, times, leases, st.sampled_from(("rejected", "failed", "declined")), st.just("")
    ),
    st.builds(TimedOut, times, st.integers(0, 2)),
    st.builds(Closed, times, st.integers(0, 2), st.just("m")),
    st.builds(CloseFailed, times, st.integers(0, 2), st.just("disk full")),
    st.builds(Stopped, times, st.just("by a person")),
    st.builds(Resumed, times, st.none() | st.integers(0, 3)),
)
OPENED: list[Event] = [
    *(Joined(0.0, site) for site in "abcd"),
    Started(0.0, "base", {"lr": 1.0}),
]


@settings(max_examples=200, deadline=None)
@given(config=configs, story=st.lists(events, max_size=40))
def test_any_sequence_replays_and_ends(config: RoundConfig, story: list[Event]) -> None:
    whole = [*OPENED, *story]
    state, transcript = replay(config, whole)
    assert replay(config, whole) == (state, transcript)
    folds = [c.lease for commands in transcript for c in commands if isinstance(c, Fold)]
    assert len(folds) == len(set(folds))
    assert drain(replace(state, opened_at=0.0)).phase == "done"


@settings(max_examples=150, deadline=None)
@given(config=configs, story=st.lists(events, max_size=30))
def test_hearing_everything_twice_changes_nothing(
    config: RoundConfig, story: list[Event]
) -> None:
    state = new_job("j", config)
    for event in [*OPENED, *story]:
        state, _ = advance(state, event)
        if isinstance(event, Spoke | Accepted | Settled | Leased | Joined | Left | Closed):
            assert advance(state, event) == (state, ())


# ---- single stories --------------------------------------------------------------------------

FOUR = RoundConfig(
    rounds=1, min_updates=3, min_sites=4, grace=GRACE, deadline=DEADLINE, masked=True
)


def at_step(step: str, config: RoundConfig = FOUR) -> JobState:
    """Return a job of four sites that is about to do a step, nobody having done it."""
    state = new_job("j", config)
    for event in OPENED:
        state, _ = advance(state, event)
    for done in STEPS[: STEPS.index(of(step))]:
        for site in "abcd":
            state, _ = advance(state, word(1.0, f"j.1.0.{site}", done))
    assert (state.phase, state.step) == ("running", step)
    return state


def of(step: str) -> Step:
    return next(known for known in STEPS if known == step)


def test_a_step_ends_when_all_have_done_it_and_each_is_told_once() -> None:
    state = at_step("keys")
    told = []
    for step in STEPS:
        for site in "abcd":
            state, commands = advance(state, word(1.0, f"j.1.0.{site}", step))
            told += [(c.step, c.site) for c in commands if isinstance(c, Tell)]
            # A threshold of signatures is enough; who has not signed is still asked to unmask.
            if step == "consent" and site == "c":
                assert state.step == "unmask"
    assert told == [(s, x) for s in ("shares", "update", "consent", "unmask") for x in "abcd"]
    assert state.phase == "closing"


def test_one_of_four_may_be_lost_in_any_step_two_may_not() -> None:
    for step in STEPS:
        for lost in (1, 2):
            state = at_step(step)
            for site in "abcd"[:lost]:
                state, _ = advance(state, Left(2.0, site))
            while state.phase == "running":
                present = [x for x in steps.waiting(state) if x.site in state.ready]
                if present:
                    event = word(3.0, present[0].id, state.step)
                else:
                    due = [c for c in outstanding(state) if isinstance(c, Wake)]
                    event = TimedOut(due[0].at, 1)
                state, _ = advance(state, event)
            if lost == 1:
                assert state.phase == "closing", (step, state.cause)
                continue
            assert state.phase == "failed"
            needed = steps.COUNTED[of(step)]
            assert f"found 2 of 3 {needed}" in state.cause, state.cause
            state, _ = advance(state, Resumed(100.0, None))
            assert (state.attempt, state.phase) == (1, "waiting")
            assert not state.leases, "an update of the failed attempt was kept"


def test_a_site_that_leaves_after_its_update_stays_in_the_sum() -> None:
    state = at_step("consent")
    state, commands = advance(state, Settled(2.0, "j.1.0.d", "declined", "the study ended"))
    assert commands == ()
    again = [c.site for c in outstanding(state) if isinstance(c, GiveLease | Tell)]
    assert "d" not in again
    for step in ("consent", "unmask"):
        for site in "abc":
            assert state.phase == "running"
            state, commands = advance(state, word(3.0, f"j.1.0.{site}", step))
    closes = [c for c in commands if isinstance(c, Close)]
    assert [site for site, *_ in closes[0].updates] == ["a", "b", "c", "d"]
    _, ends = advance(state, Closed(4.0, 1, "m"))
    assert [c.site for c in ends if isinstance(c, CancelLease)] == ["a", "b", "c", "d"]


def test_too_many_that_leave_fail_the_round_at_once() -> None:
    state = at_step("unmask")
    state, _ = advance(state, Settled(2.0, "j.1.0.c", "declined", ""))
    state, commands = advance(state, Settled(2.0, "j.1.0.d", "declined", "study left"))
    assert state.phase == "failed"
    assert "too few sites are left; found 0 of 3 sites that unmask" in state.cause
    assert "c: accepted (left: declined)" in state.cause
    assert "d: accepted (left: study left)" in state.cause
    assert [c.site for c in commands if isinstance(c, CancelLease)] == ["a", "b", "c", "d"]


def test_a_late_update_or_word_after_its_step_ended_is_left_out() -> None:
    state = at_step("update")
    for site in "abc":
        state, _ = advance(state, word(2.0, f"j.1.0.{site}", "update"))
    state, commands = advance(state, TimedOut(2.0 + GRACE, 1))
    assert CancelLease("j.1.0.d", "d") in commands
    assert state.step == "consent"
    for step in STEPS:
        assert advance(state, word(8.0, "j.1.0.d", step)) == (state, ())


def test_a_second_word_in_a_step_is_passed_over() -> None:
    state, _ = advance(at_step("shares"), word(1.0, "j.1.0.a", "shares"))
    assert advance(state, Spoke(1.5, "j.1.0.a", "shares", "another")) == (state, ())
    assert state.leases["j.1.0.a"].words["shares"] == "shares of j.1.0.a"


def test_an_update_that_comes_before_its_step_is_passed_over() -> None:
    for step in ("keys", "shares", "consent", "unmask"):
        state = at_step(step)
        assert advance(state, word(1.5, "j.1.0.a", "update")) == (state, ())


def test_what_a_site_said_in_the_open_step_is_dropped_with_it() -> None:
    """Nobody was told yet: its keys stay in the roster, its shares are in nobody's inbox."""
    state, _ = advance(at_step("shares"), word(1.0, "j.1.0.a", "shares"))
    state, _ = advance(state, Settled(1.5, "j.1.0.a", "declined", ""))
    assert set(state.leases["j.1.0.a"].words) == {"keys"}


def test_a_stop_takes_back_every_lease_in_every_step() -> None:
    for step in STEPS:
        state, _ = advance(at_step(step), word(1.0, "j.1.0.a", step))
        state, commands = advance(state, Stopped(2.0, "by a person"))
        taken = [c.site for c in commands if isinstance(c, CancelLease)]
        assert sorted(taken) == list("abcd")
        state, commands = advance(state, Resumed(3.0, None))
        gives = [c for c in commands if isinstance(c, GiveLease)]
        assert [g.lease for g in gives] == [f"j.1.1.{site}" for site in "abcd"]
        assert state.step == "keys"


def test_who_has_not_consented_is_told_the_survivors_again_after_a_crash() -> None:
    state = at_step("consent")
    for site in "abc":
        state, _ = advance(state, word(1.0, f"j.1.0.{site}", "consent"))
    assert state.step == "unmask"
    again = [(c.site, c.step) for c in outstanding(state) if isinstance(c, Tell)]
    assert again == [("d", "consent"), *((site, "unmask") for site in "abcd")]


def test_a_site_that_has_said_all_cannot_leave() -> None:
    state, _ = advance(at_step("unmask"), word(1.0, "j.1.0.a", "unmask"))
    assert advance(state, Settled(2.0, "j.1.0.a", "declined", "")) == (state, ())


def test_a_threshold_opens_a_sum_that_needed_more_updates() -> None:
    """min_updates counts updates; how many must sign and unmask follows from the keys."""
    state = at_step("consent", replace(FOUR, min_updates=4))
    state, _ = advance(state, Left(2.0, "d"))
    for step in ("consent", "unmask"):
        for site in "abc":
            state, _ = advance(state, word(3.0, f"j.1.0.{site}", step))
    assert state.phase == "closing"
