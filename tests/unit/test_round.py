"""The round machine, story by story, at every limit."""

from dataclasses import replace
from pathlib import Path

import pytest

from consilia.core.round import (
    EVENTS,
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
    Notify,
    Resumed,
    RoundConfig,
    Selection,
    Settled,
    Started,
    Stopped,
    TimedOut,
    Wake,
    advance,
    describe,
    new_job,
    outstanding,
    pending,
)
from consilia.core.select import order, select
from consilia.core.table import judged_transitions, masked_transitions, transitions
from consilia.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "round.md"
CONFIG = RoundConfig(rounds=2, min_updates=2, min_sites=2, grace=5, deadline=60, seed=7)


def play(*events: Event, config: RoundConfig = CONFIG) -> tuple[JobState, list[Command]]:
    """Return the state after `events`, and what the last one commanded."""
    state = new_job("j", config)
    commands: tuple[Command, ...] = ()
    for event in events:
        state, commands = advance(state, event)
    return state, list(commands)


def joined(sites: str, at: float = 0) -> tuple[Event, ...]:
    return tuple(Joined(at, site) for site in sites)


def accepted(lease: str, at: float = 1, records: int = 10) -> Accepted:
    return Accepted(at, lease, f"update of {lease}", records, {})


def base(sites: str = "ab", at: float = 0) -> tuple[Event, ...]:
    return (*joined(sites), Started(at, "m0", {"lr": 1.0}))


def leases(commands: list[Command]) -> list[str]:
    return [c.lease for c in commands if isinstance(c, GiveLease)]


# ---- starting --------------------------------------------------------------------------------


def test_waits_for_start_and_for_min_sites() -> None:
    state, commands = play(*joined("abc"))
    assert (state.phase, commands) == ("waiting", [])
    state, commands = play(*base("a"))
    assert state.phase == "waiting"
    assert state.cause == "round 1 waits for 2 ready sites, found 1 (a)"
    assert commands == [Notify("waiting", state.cause)]
    state, commands = play(*base("a"), Joined(3, "b"))
    assert leases(commands) == ["j.1.0.a", "j.1.0.b"]
    assert commands[2:] == [Wake(63, 1), Notify("running", "")]


def test_waits_for_as_many_sites_as_updates_are_needed() -> None:
    config = replace(CONFIG, min_sites=1, min_updates=3)
    assert play(*base("ab"), config=config)[0].phase == "waiting"
    assert play(*base("abc"), config=config)[0].phase == "running"


def test_lease_carries_model_arguments_and_its_own_seed() -> None:
    _, commands = play(*base())
    first, second = (c for c in commands if isinstance(c, GiveLease))
    assert (first.model, first.arguments, first.kind, first.round) == (
        "m0",
        {"lr": 1.0},
        "train",
        1,
    )
    assert first.seed != second.seed


def test_second_start_changes_nothing() -> None:
    state, _ = play(*base())
    assert advance(state, Started(5, "other", {"lr": 9.0})) == (state, ())


def test_selects_a_fraction_of_the_ready_sites_but_never_less_than_min_updates() -> None:
    rule = Selection(fraction=0.5)
    config = replace(CONFIG, selection=rule)
    _, commands = play(*base("abcdef"), config=config)
    chosen = [c.site for c in commands if isinstance(c, GiveLease)]
    assert chosen == list(select("abcdef", rule, 7, 1))
    assert len(chosen) == 3
    config = replace(CONFIG, selection=Selection(fraction=0.01))
    assert len(leases(play(*base("abcdef"), config=config)[1])) == 2


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (replace(CONFIG, rounds=0), "rounds is 0"),
        (replace(CONFIG, min_updates=0), "min_updates is 0"),
        (replace(CONFIG, min_sites=0), "min_sites is 0"),
        (replace(CONFIG, grace=-0.1), "grace is -0.1"),
        (replace(CONFIG, grace=float("nan")), "grace is nan"),
        (replace(CONFIG, grace=float("inf")), "grace is inf"),
        (replace(CONFIG, deadline=0.0), "deadline is 0.0"),
        (replace(CONFIG, deadline=float("inf")), "deadline is inf"),
        (replace(CONFIG, selection=Selection(0.0)), "fraction is 0.0"),
        (replace(CONFIG, selection=Selection(1.1)), "fraction is 1.1"),
        (replace(CONFIG, selection=Selection(1.0, 0)), "selection minimum is 0"),
    ],
)
def test_limits_of_the_configuration(config: RoundConfig, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        new_job("j", config)


def test_smallest_configuration_and_job_names() -> None:
    smallest = RoundConfig(1, 1, 1, Selection(1e-6, 1), grace=0, deadline=1e-3)
    assert new_job("job-1", smallest).phase == "waiting"
    for bad in ("", "a.b", "A", "a b"):
        with pytest.raises(ConfigError):
            new_job(bad, smallest)


# ---- the init round --------------------------------------------------------------------------

RANK = order("ab", 7, 0)
INIT: tuple[Event, ...] = (*joined("ab"), Started(0, None, {}))
FIRST, SECOND = f"j.0.0.{RANK[0]}", f"j.0.1.{RANK[1]}"


def test_init_goes_to_one_site_and_its_model_to_all() -> None:
    _, commands = play(*INIT)
    assert leases(commands) == [FIRST]
    state, commands = play(*INIT, accepted(FIRST, records=0))
    update = (RANK[0], FIRST, f"update of {FIRST}", 0)
    assert commands[1:] == [Close(0, "init", (update,)), Notify("closing", "")]
    state, commands = play(*INIT, accepted(FIRST), Closed(2, 0, "m"))
    assert leases(commands) == ["j.1.0.a", "j.1.0.b"]
    assert state.model == "m"


@pytest.mark.parametrize(
    "settled",
    [
        Settled(1, FIRST, "failed", "memory"),
        Settled(1, FIRST, "declined", ""),
        Settled(1, FIRST, "rejected", "not finite"),
    ],
)
def test_init_is_retried_on_another_site_with_the_same_seed(settled: Settled) -> None:
    _, first = play(*INIT)
    state, commands = play(*INIT, settled)
    assert leases(commands) == [SECOND]
    assert state.attempt == 1
    assert isinstance(first[0], GiveLease)
    assert isinstance(commands[0], GiveLease)
    assert first[0].seed == commands[0].seed


def test_init_fails_with_every_cause_when_no_site_can() -> None:
    state, commands = play(
        *INIT, Settled(1, FIRST, "failed", "plan-error"), Settled(2, SECOND, "declined", "no")
    )
    assert state.phase == "failed"
    assert f"{RANK[0]}: failed (plan-error)" in state.cause
    assert f"{RANK[1]}: declined (no)" in state.cause
    assert commands == [Notify("failed", state.cause)]


def test_lost_init_site_may_still_come_back_first() -> None:
    lost = (*INIT, Left(1, RANK[0]))
    state, commands = play(*lost)
    assert leases(commands) == [SECOND]
    state, commands = play(*lost, accepted(FIRST, 2))
    assert state.phase == "closing"
    assert CancelLease(SECOND, RANK[1]) in commands
    close = next(c for c in commands if isinstance(c, Close))
    assert [lease for _, lease, *_ in close.updates] == [FIRST]


def test_init_waits_for_the_only_site_and_takes_the_next_that_comes() -> None:
    alone = (*INIT, Left(1, RANK[1]), Left(2, RANK[0]))
    state, commands = play(*alone)
    assert (state.phase, commands) == ("running", [])
    _, commands = play(*alone, Joined(3, "c"))
    assert leases(commands) == ["j.0.1.c"]
    state, commands = play(*alone, Joined(3, RANK[0]))
    assert (leases(commands), [lease.status for lease in pending(state)]) == ([], ["out"])
    state, _ = play(*alone, TimedOut(60, 0))
    assert state.phase == "failed"


# ---- quorum, grace and deadline --------------------------------------------------------------

LA, LB, LC = "j.1.0.a", "j.1.0.b", "j.1.0.c"
QUORUM = (*base("abc"), accepted(LB, 10), accepted(LA, 20))


def test_closes_at_once_when_all_have_reported() -> None:
    _, commands = play(*base(), accepted(LB, 1, 5), accepted(LA, 2, 7))
    assert commands == [
        Fold(1, LA, "a", f"update of {LA}", 7),
        Close(1, "train", (("a", LA, f"update of {LA}", 7), ("b", LB, f"update of {LB}", 5))),
        Notify("closing", ""),
    ]


def test_quorum_exactly_begins_grace() -> None:
    state, commands = play(*base("abc"), accepted(LB, 10))
    assert (state.quorum_at, commands) == (None, [Fold(1, LB, "b", f"update of {LB}", 10)])
    state, commands = play(*QUORUM)
    assert (state.phase, state.quorum_at) == ("running", 20)
    assert commands[1:] == [Wake(25, 1)]


def test_grace_exactly() -> None:
    state, commands = play(*QUORUM, TimedOut(24.999, 1))
    assert (state.phase, commands) == ("running", [Wake(25, 1)])
    state, commands = play(*QUORUM, TimedOut(25, 1))
    assert state.phase == "closing"
    assert commands[0] == CancelLease(LC, "c")
    assert state.leases[LC].status == "cancelled"


def test_no_grace_closes_at_quorum() -> None:
    config = replace(CONFIG, grace=0)
    assert play(*QUORUM, config=config)[0].phase == "closing"


def test_the_last_report_within_grace_is_in() -> None:
    state, commands = play(*QUORUM, accepted(LC, 24))
    assert state.phase == "closing"
    assert isinstance(commands[1], Close)
    assert len(commands[1].updates) == 3


def test_grace_is_cut_by_the_deadline() -> None:
    _, commands = play(*base("abc"), accepted(LB, 10), accepted(LA, 58))
    assert commands[1:] == []  # the timer stays at the deadline
    state, _ = play(*base("abc"), accepted(LB, 10), accepted(LA, 58), TimedOut(60, 1))
    assert state.phase == "closing"


def test_deadline_exactly_below_quorum_fails_and_lists_each_site() -> None:
    story = (
        *base("abcd"),
        Settled(1, LB, "failed", "memory"),
        Left(2, "c"),
        accepted(LA, 3),
    )
    state, commands = play(*story, TimedOut(59.999, 1))
    assert (state.phase, commands) == ("running", [Wake(60, 1)])
    state, commands = play(*story, TimedOut(60, 1))
    assert state.phase == "failed"
    assert state.cause == (
        "round 1: deadline of 60 s passed; found 1 of 2 updates; "
        "a: accepted; b: failed (memory); c: away; d: out"
    )
    assert commands == [
        CancelLease(LC, "c"),
        CancelLease("j.1.0.d", "d"),
        Notify("failed", state.cause),
    ]


def test_an_update_at_the_deadline_counts_when_it_makes_the_quorum() -> None:
    assert play(*base("abc"), accepted(LA), accepted(LB, 61))[0].phase == "closing"
    assert play(*base("abc"), accepted(LA, 61))[0].phase == "failed"


def test_impossible_quorum_fails_at_once() -> None:
    state, commands = play(*base(), accepted(LA), Settled(2, LB, "declined", ""))
    assert state.phase == "failed"
    assert state.cause == (
        "round 1: too few sites are left; found 1 of 2 updates; a: accepted; b: declined"
    )
    assert commands == [Notify("failed", state.cause)]


def test_a_lost_site_is_waited_for_until_grace_ends() -> None:
    story = (*QUORUM, Left(21, "c"))
    state, commands = play(*story)
    assert (state.phase, commands) == ("running", [])
    assert play(*story, TimedOut(25, 1))[0].phase == "closing"
    assert play(*story, accepted(LC, 22))[0].phase == "closing"  # its report was on the way
    state, commands = play(*story, Joined(22, "c"))
    assert (state.leases[LC].status, commands) == ("out", [])


def test_a_lost_site_does_not_make_quorum_impossible() -> None:
    state, _ = play(*base(), accepted(LA), Left(2, "b"))
    assert state.phase == "running"
    assert play(*base(), accepted(LA), Left(2, "b"), accepted(LB, 3))[0].phase == "closing"


def test_late_joiner_trains_from_the_next_round() -> None:
    story = (*base(), Joined(1, "c"))
    assert play(*story)[1] == []
    _, commands = play(*story, accepted(LA), accepted(LB), Closed(3, 1, "m1"))
    assert leases(commands) == ["j.2.0.a", "j.2.0.b", "j.2.0.c"]


def test_any_event_after_the_due_time_judges_as_the_timer_would() -> None:
    assert play(*QUORUM, Left(25, "a"))[0].phase == "closing"
    assert play(*base(), Joined(60, "c"))[0].phase == "failed"


# ---- events that come twice, late, from elsewhere --------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        accepted(LA, 2),
        Settled(2, LA, "failed", "crashed"),
        Leased(2, LA),
        accepted("j.0.0.a"),
        accepted("k.1.0.b"),
        accepted("j.1.1.b"),
        Joined(2, "a"),
        Left(2, "z"),
        TimedOut(99, 0),
        TimedOut(99, 2),
        Closed(2, 1, "forged"),
        CloseFailed(2, 1, "forged"),
        Resumed(2, 9),
        Started(2, None, {}),
    ],
)
def test_no_op(event: Event) -> None:
    state, _ = play(*base(), accepted(LA))
    after, commands = advance(state, event)
    assert after is state
    assert commands == ()


def test_an_update_after_the_close_is_never_folded() -> None:
    state, _ = play(*QUORUM, TimedOut(25, 1))
    assert advance(state, accepted(LC, 26)) == (state, ())
    state, _ = play(*QUORUM, TimedOut(25, 1), Closed(27, 1, "m1"))
    assert advance(state, accepted(LC, 28)) == (state, ())


def test_delivery_is_noted_once() -> None:
    state, commands = play(*base(), Leased(1, LA))
    assert (state.leases[LA].delivered, commands) == (True, [])
    assert advance(state, Leased(2, LA)) == (state, ())


# ---- closing ---------------------------------------------------------------------------------

CLOSING = (*base(), accepted(LA), accepted(LB))


def test_next_round_opens_at_once_and_the_last_ends_the_job() -> None:
    state, commands = play(*CLOSING, Closed(3, 1, "m1"))
    assert (state.round, state.attempt, state.model, state.opened_at) == (2, 0, "m1", 3)
    assert [c.model for c in commands if isinstance(c, GiveLease)] == ["m1", "m1"]
    last = (accepted("j.2.0.a"), accepted("j.2.0.b"), Closed(5, 2, "m2"))
    state, commands = play(*CLOSING, Closed(3, 1, "m1"), *last)
    assert (state.phase, state.model, commands) == ("done", "m2", [Notify("done", "")])


def test_waits_between_rounds_for_sites() -> None:
    state, _ = play(*CLOSING, Left(2, "b"), Closed(3, 1, "m1"))
    assert (state.phase, state.round) == ("waiting", 2)
    state, commands = play(*CLOSING, Left(2, "b"), Closed(3, 1, "m1"), Joined(9, "c"))
    assert leases(commands) == ["j.2.0.a", "j.2.0.c"]
    assert Wake(69, 2) in commands


def test_failed_close_can_be_tried_again_with_the_same_updates() -> None:
    state, commands = play(*CLOSING, CloseFailed(3, 1, "disk full"))
    assert (state.phase, state.cause) == ("failed", "round 1 could not be closed: disk full")
    _, before = play(*CLOSING)
    state, commands = play(*CLOSING, CloseFailed(3, 1, "disk full"), Resumed(4, None))
    assert [c for c in commands if isinstance(c, Close)] == [
        c for c in before if isinstance(c, Close)
    ]
    assert not [c for c in commands if isinstance(c, Fold)]


# ---- arguments -------------------------------------------------------------------------------


def arguments_of(commands: list[Command]) -> list[object]:
    return [c.arguments for c in commands if isinstance(c, GiveLease)]


def test_changed_arguments_hold_from_the_next_round_and_the_others_stay() -> None:
    story = (*base(), Changed(1, {"epochs": 2}), accepted(LA), accepted(LB))
    assert arguments_of(play(*story, Closed(3, 1, "m1"))[1]) == [{"lr": 1.0, "epochs": 2}] * 2


def test_a_resumed_round_keeps_its_arguments_while_it_has_updates() -> None:
    stop, change, resume = Stopped(2, ""), Changed(3, {"lr": 2.0}), Resumed(4, None)
    assert arguments_of(play(*base(), accepted(LA), stop, change, resume)[1]) == [{"lr": 1.0}]
    assert arguments_of(play(*base(), stop, change, resume)[1]) == [{"lr": 2.0}] * 2


def test_arguments_changed_before_the_start_hold() -> None:
    _, commands = play(Changed(0, {"lr": 3.0}), *base())
    assert arguments_of(commands) == [{"lr": 3.0}] * 2


# ---- stopping and resuming -------------------------------------------------------------------


def test_stop_takes_leases_back_and_keeps_updates() -> None:
    state, commands = play(*base(), accepted(LA), Stopped(2, "enough"))
    assert commands == [CancelLease(LB, "b"), Notify("stopped", "enough")]
    assert advance(state, accepted(LB, 3)) == (state, ())
    state, commands = play(*base(), accepted(LA), Stopped(2, "enough"), Resumed(9, None))
    assert leases(commands) == ["j.1.1.b"]
    assert commands[1:] == [Wake(69, 1), Notify("running", "")]
    state, commands = advance(state, accepted("j.1.1.b", 10))[0], []
    assert [lease.id for lease in state.leases.values()] == [LA, "j.1.1.b"]
    assert state.phase == "closing"


def test_resume_with_quorum_in_starts_grace_anew() -> None:
    story = (*QUORUM, Stopped(22, ""), Resumed(100, None))
    _, commands = play(*story)
    assert leases(commands) == ["j.1.1.c"]
    assert Wake(105, 1) in commands
    assert play(*story, TimedOut(105, 1))[0].phase == "closing"


def test_resume_counts_kept_updates_as_sites() -> None:
    story = (*base(), accepted(LA), Left(2, "a"), Stopped(3, ""), Resumed(4, None))
    _, commands = play(*story)
    assert leases(commands) == ["j.1.1.b"]
    story = (*base(), Stopped(3, ""), Left(3, "a"), Resumed(4, None))
    assert play(*story)[0].phase == "waiting"


def test_a_waiting_resumed_round_opens_with_what_it_kept() -> None:
    story = (
        *base(),
        accepted(LA),
        Stopped(2, ""),
        Left(3, "a"),
        Left(3, "b"),
        Resumed(4, None),
    )
    state, _ = play(*story)
    assert (state.phase, LA in state.leases) == ("waiting", True)
    _, commands = play(*story, Joined(5, "c"))
    assert leases(commands) == ["j.1.1.c"]


def test_a_resumed_round_with_quorum_closes_without_waiting_for_sites() -> None:
    config = replace(CONFIG, min_sites=3)
    gone = (Left(23, "a"), Left(23, "b"), Left(23, "c"))
    state, commands = play(*QUORUM, Stopped(22, ""), *gone, Resumed(30, None), config=config)
    assert state.phase == "closing"
    assert [type(c) for c in commands] == [Close, Notify]


def test_a_resumed_init_round_with_its_model_asks_nobody_again() -> None:
    failed = (*INIT, accepted(FIRST), CloseFailed(2, 0, "disk full"))
    _, commands = play(*failed, Resumed(3, None))
    assert [type(c) for c in commands] == [Close, Notify]


def test_stop_while_closing_still_records_the_model() -> None:
    stop = (*CLOSING, Stopped(3, "enough"))
    state, commands = play(*stop)
    assert (state.closing, commands) == (True, [Notify("stopped", "enough")])
    state, commands = play(*stop, Closed(4, 1, "m1"))
    assert (state.phase, state.model, state.round, commands) == ("stopped", "m1", 2, [])
    assert leases(play(*stop, Closed(4, 1, "m1"), Resumed(5, None))[1]) == [
        "j.2.1.a",
        "j.2.1.b",
    ]
    state, commands = play(*stop, Resumed(4, None))
    assert (state.phase, commands) == ("closing", [Notify("closing", "")])
    state, commands = play(*stop, CloseFailed(4, 1, "disk full"))
    assert (state.phase, state.closing) == ("stopped", False)
    assert "disk full" in state.cause


def test_resume_may_raise_the_rounds_but_not_lower_them() -> None:
    assert play(*base(), Stopped(1, ""), Resumed(2, 5))[0].config.rounds == 5
    assert play(*base(), Stopped(1, ""), Resumed(2, 1))[0].config.rounds == 2


def test_a_done_job_goes_on_with_more_rounds_only() -> None:
    config = replace(CONFIG, rounds=1)
    done = (*CLOSING, Closed(3, 1, "m1"))
    state, _ = play(*done, config=config)
    for rounds in (None, 1):
        assert advance(state, Resumed(4, rounds)) == (state, ())
    _, commands = play(*done, Resumed(4, 2), config=config)
    assert leases(commands) == ["j.2.1.a", "j.2.1.b"]


def test_a_done_job_commands_nothing() -> None:
    config = replace(CONFIG, rounds=1)
    state, _ = play(*CLOSING, Closed(3, 1, "m1"), config=config)
    for event in (Stopped(4, ""), Closed(4, 1, "m"), Closed(4, 2, "m"), TimedOut(99, 2)):
        assert advance(state, event) == (state, ())
    after, commands = advance(state, Left(4, "a"))
    assert (after.phase, commands) == ("done", ())


def test_a_job_stopped_before_it_started_starts_when_resumed() -> None:
    story = (Stopped(0, ""), *base())
    assert play(*story)[0].phase == "stopped"
    assert leases(play(*story, Resumed(1, None))[1]) == ["j.1.1.a", "j.1.1.b"]


# ---- replay and documentation ----------------------------------------------------------------


def test_outstanding_lists_what_a_restarted_hub_takes_up() -> None:
    state, _ = play(*QUORUM)
    kinds = [type(c).__name__ for c in outstanding(state)]
    assert kinds == ["GiveLease", "Fold", "Fold", "Wake"]
    assert [c.site for c in outstanding(state) if isinstance(c, Fold)] == ["a", "b"]
    _, given = play(*base("abc"))
    assert outstanding(state)[0] in given
    assert outstanding(play(*CLOSING, Closed(3, 1, "m1"), Stopped(4, ""))[0]) == ()


def test_events_are_listed_by_name() -> None:
    assert EVENTS["Accepted"] is Accepted
    assert len(EVENTS) == 16


def test_docs_show_the_machine_as_it_is() -> None:
    assert DOCS.read_text() == describe()


def test_table_shows_every_event_and_phase() -> None:
    rows = (*transitions(), *judged_transitions(), *masked_transitions())
    assert {row.event for row in rows} == set(EVENTS)
    phases = {row.before for row in rows} | {row.after for row in rows}
    assert phases == {"waiting", "running", "closing", "paused", "done", "stopped", "failed"}
