"""Robust rules against independent oracles; what a minority cannot do; order, limits, docs."""

from collections.abc import Sequence
from itertools import combinations, product
from math import inf, sqrt
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consilia.algo.aggregate import Accumulator
from consilia.algo.robust import RULES, check, describe, measure, ordered, rule, table, trimmed
from consilia.errors import ConfigError, EmptyRound

Floats = NDArray[np.float64]
Single = NDArray[np.float32]
Rows = list[list[float]]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-100, 100, width=32)


def combined(
    name: str, rows: Rows | Floats | Single, dtype: str = "float32", trim: float | None = None
) -> Accumulator:
    """Return what a rule makes of rows, one for each update."""
    chosen, options = rule(name, {} if trim is None else {"trim": trim})
    assert chosen.combine is not None
    values: Accumulator = np.array(rows, np.float32)
    if dtype == "float64":
        values = np.array(rows, np.float64)
    return chosen.combine(options, values).copy()


def squared(rows: Floats) -> Floats:
    found = np.zeros((len(rows), len(rows)))
    measure(rows, found)
    return found


def chosen(name: str, rows: Floats, **options: float) -> Floats:
    """Return the weights that a rule gives to the rows."""
    found, values = rule(name, options)
    assert found.choose is not None
    return found.choose(values, squared(rows))


@st.composite
def tables(draw: st.DrawFn, values: st.SearchStrategy[float] = ordinary) -> Rows:
    """Draw 1 to 9 updates of 1 to 5 coordinates."""
    width = draw(st.integers(1, 5))
    row = st.lists(values, min_size=width, max_size=width)
    return draw(st.lists(row, min_size=1, max_size=9))


# ---- each coordinate for itself --------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 13))
def test_the_network_sorts_everything(count: int) -> None:
    """By the 0-1 principle (Knuth, volume 3, 5.3.4) it sorts all if it sorts zeros and ones."""
    every = np.array(list(product((0.0, 1.0), repeat=count))).T.copy()
    expected = np.sort(every, axis=0)
    np.testing.assert_array_equal(ordered(every), expected)


@given(tables(finite))
def test_median_is_the_middle_of_each_coordinate(rows: Rows) -> None:
    found = combined("median", rows, "float64")
    for column, value in zip(zip(*rows, strict=True), found, strict=True):
        assert value == pytest.approx(median(column), rel=1e-15)


@given(tables(), st.floats(0.01, 0.49))
def test_trimmed_mean_leaves_out_both_ends(rows: Rows, trim: float) -> None:
    found = combined("trimmed-mean", rows, "float64", trim=trim)
    for column, value in zip(zip(*rows, strict=True), found, strict=True):
        # One by one the lowest and the highest go, as long as the share asks for and one stays.
        left, gone = sorted(column), 0
        while gone < trim * len(column) - 1e-9 and len(left) > 2:
            left, gone = left[1:-1], gone + 1
        assert value == pytest.approx(sum(left) / len(left), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("trim", "count", "cut"),
    [
        (0.2, 3, 1),
        (0.2, 5, 1),
        (0.2, 6, 2),
        (0.1, 30, 3),
        (0.07, 100, 7),
        (0.49, 4, 1),
        (0.2, 2, 0),
    ],
)
def test_trimming_is_never_nothing_and_never_all(trim: float, count: int, cut: int) -> None:
    assert trimmed(trim, count) == cut


@pytest.mark.parametrize(("name", "share"), [("median", 0.5), ("trimmed-mean", 0.4)])
@given(data=st.data())
def test_a_minority_cannot_leave_the_honest_range(
    name: str, share: float, data: st.DataObject
) -> None:
    good = data.draw(st.integers(2, 7))
    bad = data.draw(st.integers(0, good - 1))
    trim = None if name == "median" else share
    if name == "trimmed-mean":
        bad = min(bad, max(b for b in range(good) if b <= trimmed(share, good + b)))
    honest = data.draw(st.lists(finite, min_size=good, max_size=good))
    wild = data.draw(st.lists(finite, min_size=bad, max_size=bad))
    column = data.draw(st.permutations([*honest, *wild]))
    (value,) = combined(name, [[x] for x in column], trim=trim)
    assert np.float32(min(honest)) <= value <= np.float32(max(honest))


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_one_bad_site_too_many_moves_it(name: str) -> None:
    """The bound is sharp: with half of the sites bad there is nothing to hold on to."""
    trim = None if name == "median" else 0.4
    honest, wild = [[1.0]] * 3, [[1e9]] * 3
    assert RULES[name].bears({"trim": 0.4}, 6) == 2
    (value,) = combined(name, honest + wild, trim=trim)
    assert value > 1.0


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(rows=tables(finite), data=st.data())
def test_order_does_not_change_a_bit(
    name: str, dtype: str, rows: Rows, data: st.DataObject
) -> None:
    other = data.draw(st.permutations(rows))
    assert combined(name, rows, dtype).tobytes() == combined(name, other, dtype).tobytes()


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
@given(value=finite, count=st.integers(1, 9))
def test_equal_updates_give_exactly_that_update(name: str, value: float, count: int) -> None:
    assert (combined(name, [[value]] * count) == np.float32(value)).all()


def test_pieces_of_any_length_give_the_same(  # more than one block of the network
) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 10_001)).astype(np.float32)
    whole = combined("median", rows)
    parts = [combined("median", rows[:, i : i + 999]) for i in range(0, 10_001, 999)]
    assert whole.tobytes() == np.concatenate(parts).tobytes()


# ---- by distance -----------------------------------------------------------------------------


def test_distances_are_summed_over_pieces() -> None:
    rows = np.random.default_rng(1).normal(size=(5, 9000))
    found = np.zeros((5, 5))
    for start in (0, 10, 5000):
        measure(rows[:, start : {0: 10, 10: 5000, 5000: 9000}[start]], found)
    for i, j in product(range(5), repeat=2):
        expected = sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True))
        assert found[i, j] == pytest.approx(expected, rel=1e-12)


def krum_scores(rows: Rows, f: int) -> list[float]:
    """Blanchard et al. 2017, section 4, as written."""
    count, scores = len(rows), []
    for i, x in enumerate(rows):
        others = [rows[j] for j in range(count) if j != i]
        away = sorted(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in others)
        scores.append(sum(away[: count - f - 2]))
    return scores


@given(st.integers(1, 2), st.integers(0, 3), st.integers(0, 1 << 30))
def test_krum_and_multi_krum_follow_the_paper(f: int, more: int, seed: int) -> None:
    count = 2 * f + 3 + more
    rows = np.random.default_rng(seed).normal(size=(count, 4))
    scores = krum_scores(rows.tolist(), f)
    weights = chosen("krum", rows, f=f)
    assert weights.sum() == 1.0 and weights[int(np.argmin(scores))] == 1.0
    m = count - f - 2
    best = sorted(range(count), key=lambda i: scores[i])[:m]
    multi = chosen("multi-krum", rows, f=f)
    assert set(np.flatnonzero(multi)) == set(best)
    assert multi[best] == pytest.approx(np.full(m, 1 / m))
    (first,) = np.flatnonzero(chosen("multi-krum", rows, f=f, m=1))
    assert first == best[0]


@pytest.mark.parametrize("far", [10.0, 1e10, 1e38, 1e200])
@pytest.mark.parametrize("name", ["krum", "multi-krum", "geometric-median"])
@pytest.mark.parametrize("places", list(combinations(range(7), 2)))
def test_two_of_seven_cannot_pull_the_result_away(
    name: str, far: float, places: Sequence[int]
) -> None:
    rows = np.random.default_rng(2).normal(size=(7, 30))
    rows[list(places)] = np.random.default_rng(3).normal(size=(2, 30)) * far
    options = {} if name == "geometric-median" else {"f": 2.0}
    weights = chosen(name, rows, **options)
    assert weights.sum() == pytest.approx(1.0) and (weights >= 0).all()
    honest = [i for i in range(7) if i not in places]
    middle = rows[honest].mean(axis=0)
    spread = max(float(np.linalg.norm(rows[i] - middle)) for i in honest)
    result = sum(w * row for w, row in zip(weights, rows, strict=True) if w)
    assert float(np.linalg.norm(result - middle)) < 1.5 * spread


def test_krum_takes_the_first_of_equals() -> None:
    assert chosen("krum", np.ones((6, 3)), f=1).tolist() == [1, 0, 0, 0, 0, 0]


def summed(point: Floats, rows: Floats) -> float:
    return float(sum(sqrt(float(((point - row) ** 2).sum())) for row in rows))


@settings(max_examples=50)
@given(st.integers(3, 9), st.integers(1, 6), st.integers(0, 1 << 30))
def test_geometric_median_has_the_least_summed_distance(n: int, d: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    point = chosen("geometric-median", rows) @ rows
    # Another road to the same point: subgradient steps that only ever go down.
    best, value, size = rows.mean(axis=0), summed(rows.mean(axis=0), rows), 1.0
    for _ in range(400):
        gaps = best - rows
        lengths = np.maximum(np.linalg.norm(gaps, axis=1, keepdims=True), 1e-12)
        tried = best - size * (gaps / lengths).sum(axis=0) / n
        if (new := summed(tried, rows)) < value:
            best, value = tried, new
        else:
            size *= 0.7
    assert summed(point, rows) <= value * (1 + 1e-5)


def test_geometric_median_of_a_line_and_of_a_majority() -> None:
    line = np.array([[0.0], [1.0], [10.0]])
    assert float((chosen("geometric-median", line) @ line)[0]) == pytest.approx(1.0, abs=1e-4)
    crowd = np.array([[2.0, 3.0]] * 3 + [[1e300, 0.0], [-5.0, 1e6]])
    weights = chosen("geometric-median", crowd)
    assert weights[:3].sum() == pytest.approx(1.0) and not weights[3:].any()


def test_distance_gives_no_weight_in_the_geometric_median() -> None:
    rows = np.random.default_rng(5).normal(size=(7, 20))
    without = chosen("geometric-median", rows[:6]) @ rows[:6]
    spread = float(np.linalg.norm(rows[:6] - without, axis=1).mean())
    found = []
    for far in (1e3, 1e5, 1e9, 1e30, 1e200):
        rows[6] = np.ones(20) / sqrt(20) * far
        weights = chosen("geometric-median", rows)
        found.append(sum(w * row for w, row in zip(weights, rows, strict=True)))
    np.testing.assert_allclose(found[1], found[0], atol=5e-3)  # the force of one, from anywhere
    assert 0.1 < float(np.linalg.norm(found[0] - without)) / spread < 0.6
    for other in found[2:]:  # absurdly far out it is left out
        np.testing.assert_allclose(other, without, atol=1e-12)


@pytest.mark.parametrize("name", ["krum", "multi-krum", "geometric-median"])
@given(seed=st.integers(0, 1 << 30), data=st.data())
def test_order_changes_weights_by_rounding_only(
    name: str, seed: int, data: st.DataObject
) -> None:
    rows = np.random.default_rng(seed).normal(size=(6, 8))
    order = data.draw(st.permutations(range(6)))
    one, other = chosen(name, rows), chosen(name, rows[order])
    np.testing.assert_allclose(one[order], other, atol=1e-9)


def test_updates_that_are_all_infinitely_apart_still_give_one_of_them() -> None:
    rows = np.diag(np.full(4, 1e200))
    weights = chosen("geometric-median", rows)
    assert sorted(weights.tolist()) == [0, 0, 0, 1]
    assert np.isinf(squared(rows)[0, 1]) and squared(rows)[0, 0] == 0


# ---- choosing one ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("medain", {}, "did you mean 'median'"),
        ("trimmed_mean", {}, "did you mean 'trimmed-mean'"),
        ("trimmed-mean", {"trimm": 0.1}, "did you mean 'trim'"),
        ("trimmed-mean", {"trim": 0.5}, "needs a number in (0, 0.5)"),
        ("trimmed-mean", {"trim": 0.0}, "needs a number in (0, 0.5)"),
        ("krum", {"f": 0.0}, "needs a number in [1, 1000]"),
        ("krum", {"f": 1.5}, "needs a whole number"),
        ("multi-krum", {"m": 2.5}, "needs a whole number"),
        ("median", {"f": 1.0}, "known: none"),
    ],
)
def test_a_wrong_choice_names_what_is_needed(
    name: str, options: dict[str, float], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        rule(name, options)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "fewest"),
    [
        ("mean", {}, 1),
        ("median", {}, 3),
        ("trimmed-mean", {}, 3),
        ("geometric-median", {}, 3),
        ("krum", {"f": 2.0}, 7),
        ("multi-krum", {"f": 1.0}, 5),
        ("multi-krum", {"f": 1.0, "m": 4.0}, 7),
    ],
)
def test_a_rule_needs_its_fewest_updates_and_no_more(
    name: str, options: dict[str, float], fewest: int
) -> None:
    chosen_rule, values = rule(name, options)
    assert chosen_rule.fewest(values) == fewest
    check(chosen_rule, values, fewest)
    with pytest.raises(EmptyRound, match=f"needs at least {fewest}"):
        check(chosen_rule, values, fewest - 1)


def test_docs_are_made_from_the_rules() -> None:
    docs = Path(__file__).parents[2] / "docs" / "reference" / "robust.md"
    assert docs.read_text() == describe()
    assert all(f"| {name} |" in table() for name in RULES)
    assert inf > max(r.bears({"f": 1, "trim": 0.2, "m": 0}, 10) for r in RULES.values()) == 4
