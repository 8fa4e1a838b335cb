"""Alarms: each rule at its limit, what it goes back to, and what must not raise one."""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.algo.robust import measure
from consilia.algo.watch import Alarm, Limits, Part, Seen, check, parts, watch
from consilia.errors import ConfigError

LIMITS = Limits()


def rounds(*metrics: float | None, steps: tuple[float, ...] = ()) -> list[Seen]:
    """Return rounds 1, 2, ... that started from models m0, m1, ..."""
    moves = steps or (1.0,) * len(metrics)
    return [
        Seen(n, f"m{n - 1}", step, metric)
        for n, (metric, step) in enumerate(zip(metrics, moves, strict=True), 1)
    ]


def rules(alarms: tuple[Alarm, ...]) -> list[tuple[str, str | None]]:
    return [(alarm.rule, alarm.good) for alarm in alarms]


def test_nothing_seen_raises_nothing() -> None:
    assert watch([], LIMITS) == ()


@pytest.mark.parametrize(("step", "found"), [(10.0, []), (10.001, [("step", "m3")])])
def test_a_step_beyond_ten_times_the_median(step: float, found: list[tuple[str, str]]) -> None:
    history = rounds(1, 1, 1, 1, steps=(1.0, 0.5, 3.0, step))
    assert rules(watch(history, LIMITS)) == found


def test_steps_need_three_before_and_forget_what_was_thrown_away() -> None:
    early = rounds(1, 1, 1, steps=(1.0, 1.0, 1e6))
    assert watch(early, LIMITS) == ()
    known = rounds(1, 1, 1, 1, 1, steps=(1.0, 1.0, 1.0, 1e6, 1e6))
    known[3] = replace(known[3], back=True)
    assert rules(watch(known, LIMITS)) == [("step", "m4")]
    again = rounds(*[1.0] * 7, steps=(1.0, 1.0, 1.0, 1e6, 1e6, 1e6, 50.0))
    again[3:6] = [replace(seen, back=True) for seen in again[3:6]]
    assert rules(watch(again, LIMITS)) == [("step", "m6")]
    assert watch(rounds(1, 1, 1, 1, steps=(0.0, 0.0, 0.0, 1e-9)), LIMITS) != ()
    assert rules(watch(rounds(1, 1, 1, 1, steps=(1.0, 1.0, 1.0, inf)), LIMITS)) == [
        ("step", "m3")
    ]


@pytest.mark.parametrize("last", [1.5, 1.51])
def test_the_metric_must_be_worse_three_rounds_in_a_row(last: float) -> None:
    history = rounds(2.0, 1.0, 1.2, 1.6, 9.0, last)
    bad = last > 1.5
    # The best round was the second, which started from the model of the first.
    assert rules(watch(history, LIMITS)) == ([("metric", "m1")] if bad else [])
    assert watch(history[:-1], LIMITS) == ()


def test_of_equally_good_rounds_the_newest_is_gone_back_to() -> None:
    assert rules(watch(rounds(1.0, 1.0, 2.0, 2.0, 2.0), LIMITS)) == [("metric", "m1")]


def test_higher_may_be_better_and_values_may_be_negative() -> None:
    limits = replace(LIMITS, better="higher", factor=2.0, rounds=1)
    assert watch(rounds(0.5, 0.8, 0.4), limits) == ()
    assert rules(watch(rounds(0.5, 0.8, 0.39), limits)) == [("metric", "m1")]
    below = replace(LIMITS, rounds=1)  # log-likelihoods: best is -10, bound -5
    assert watch(rounds(-10.0, -5.0), below) == ()
    assert rules(watch(rounds(-10.0, -4.9), below)) == [("metric", "m0")]


def test_nan_is_worse_than_everything() -> None:
    assert rules(watch(rounds(1.0, nan, nan, nan), LIMITS)) == [("metric", "m0")]
    assert rules(watch(rounds(nan, nan, nan), LIMITS)) == [("metric", "m0")]
    assert watch(rounds(nan, nan, 1.0), LIMITS) == ()


def test_after_going_back_the_count_begins_anew() -> None:
    history = rounds(1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)
    history[3] = replace(history[3], back=True)
    assert watch(history[:5], LIMITS) == watch(history[:6], LIMITS) == ()
    assert rules(watch(history, LIMITS)) == [("metric", "m0")]


def test_a_metric_nobody_reports_is_said_once() -> None:
    (alarm,) = watch(rounds(None), LIMITS)
    assert "no site reports 'loss'" in alarm.text and alarm.good is None
    assert watch(rounds(None, None), LIMITS) == ()
    assert watch(rounds(None), replace(LIMITS, metric="")) == ()


def test_one_long_update_and_one_that_points_away() -> None:
    usual = tuple(Part(site, 1.0, 0.3) for site in "abc")
    last = Seen(1, "m0", 1.0, 1.0, (*usual, Part("d", 10.0, -0.5)))
    assert watch([last], LIMITS) == ()
    bad = replace(last, parts=(*usual, Part("d", 10.1, -0.51)))
    norm, direction = watch([bad], LIMITS)
    assert (norm.rule, direction.rule) == ("norm", "direction")
    assert "'d'" in norm.text and "'d'" in direction.text and norm.good == "m0"
    assert watch([replace(bad, parts=bad.parts[2:])], LIMITS) == ()  # two sites only


@given(st.integers(3, 8), st.integers(0, 1 << 30))
def test_parts_come_out_of_the_distances(n: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n + 1, 6))
    squares = np.zeros((n + 1, n + 1))
    measure(rows, squares)
    moves = rows[:-1] - rows[-1]
    lengths = np.linalg.norm(moves, axis=1)
    cosines = moves @ moves.T / np.outer(lengths, lengths)
    for i, part in enumerate(parts([str(i) for i in range(n)], squares)):
        assert part.norm == pytest.approx(lengths[i])
        assert part.cosine == pytest.approx(np.median(np.delete(cosines[i], i)))


def test_parts_of_sites_that_did_not_move_or_moved_without_bound() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [1e200, 0.0], [0.0, 0.0]])
    squares = np.zeros((4, 4))
    measure(rows, squares)
    found = parts("abc", squares)
    assert [part.norm for part in found] == [1.0, 0.0, inf]
    assert all(-1 <= part.cosine <= 1 for part in found)
    alarms = watch([Seen(1, "m0", 1.0, 1.0, found)], LIMITS)
    assert [alarm.text.split("'")[1] for alarm in alarms] == ["c"]


def test_a_site_that_turns_its_update_round_is_found_and_nobody_else() -> None:
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(6, 400)) * 0.5 + 1.0
    rows[3] *= -1.0
    rows[5] = 0.0  # the base
    squares = np.zeros((6, 6))
    measure(rows, squares)
    alarms = watch([Seen(1, "m0", 1.0, 1.0, parts("abcde", squares))], LIMITS)
    assert [(a.rule, a.text.split("'")[1]) for a in alarms] == [("direction", "d")]


@pytest.mark.parametrize(
    ("field", "limits"),
    [
        ("factor", Limits(factor=1.0)),
        ("factor", Limits(factor=nan)),
        ("rounds", Limits(rounds=0)),
        ("jump", Limits(jump=1.0)),
        ("norm", Limits(norm=inf)),
        ("cosine", Limits(cosine=0.0)),
    ],
)
def test_limits_that_make_no_sense_are_named(field: str, limits: Limits) -> None:
    with pytest.raises(ConfigError, match=f"watch.{field} is"):
        check(limits)
    check(Limits(factor=1.01, rounds=1, jump=1.01, norm=1.01, cosine=-1.0))
