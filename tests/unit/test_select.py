"""Selection: seeded, stable, uniform; the golden values keep old journals replayable."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.core.select import Selection, order, select, site_seed

SITES = tuple("abcdefgh")


def test_golden() -> None:
    """A journal replays on any later release only while these hold."""
    assert order(SITES, 1, 1) == tuple("hbgaedcf")
    assert site_seed(1, 1, "a") == 8531071020513151639


@pytest.mark.parametrize(
    ("fraction", "minimum", "ready", "count"),
    [
        (1.0, 1, 8, 8),
        (0.5, 1, 8, 4),
        (0.5, 1, 7, 4),  # rounded up
        (0.01, 1, 8, 1),
        (0.01, 3, 8, 3),
        (0.5, 9, 8, 8),  # no more than there are
        (0.07, 1, 100, 7),  # 0.07 * 100 is 7.000000000000001
        (1.0, 1, 0, 0),
        (1.0, 5, 1, 1),
    ],
)
def test_how_many(fraction: float, minimum: int, ready: int, count: int) -> None:
    sites = [f"s{i}" for i in range(ready)]
    assert len(select(sites, Selection(fraction, minimum), 0, 1)) == count


@given(st.sets(st.sampled_from(SITES)), st.integers(), st.integers(0, 99))
def test_selected_are_ready_sorted_and_do_not_depend_on_the_order(
    ready: set[str], seed: int, round: int
) -> None:
    rule = Selection(0.5, 2)
    chosen = select(sorted(ready), rule, seed, round)
    assert set(chosen) <= ready
    assert list(chosen) == sorted(set(chosen))
    assert select(sorted(ready, reverse=True), rule, seed, round) == chosen
    assert select([*ready, *ready], rule, seed, round) == chosen


@given(st.sets(st.sampled_from(SITES), min_size=2), st.integers(0, 9))
def test_one_sites_going_moves_no_others_rank(ready: set[str], seed: int) -> None:
    gone = min(ready)
    before = [site for site in order(ready, seed, 1) if site != gone]
    assert list(order(ready - {gone}, seed, 1)) == before


def test_uniform_over_rounds_and_seeds() -> None:
    rounds = 4000
    counts: Counter[str] = Counter()
    pairs: Counter[tuple[str, ...]] = Counter()
    for round in range(rounds):
        chosen = select("abcd", Selection(0.5), 3, round)
        counts.update(chosen)
        pairs[chosen] += 1
    # Five standard deviations of a fair draw: sqrt(4000 * 1/4) = 32, sqrt(4000 * 5/36) = 24.
    assert all(abs(n - rounds / 2) < 5 * 32 for n in counts.values())
    assert len(pairs) == 6
    assert all(abs(n - rounds / 6) < 5 * 24 for n in pairs.values())


def test_seeds_differ_by_seed_round_and_site_and_fit_63_bits() -> None:
    seeds = {site_seed(s, r, n) for s in range(9) for r in range(9) for n in SITES}
    assert len(seeds) == 9 * 9 * len(SITES)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
