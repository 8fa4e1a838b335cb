"""The audit of answered groups against a slow one that tries every combination of records."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consilia.privacy.differencing import audit, independent, packed

Groups = NDArray[np.bool_]


def isolates(groups: Groups, k: int) -> bool:
    return audit([packed(g) for g in groups], k).isolates


def about_few(groups: Groups, k: int) -> bool:
    """Tell, by trying, whether a combination of answers is about fewer than k records.

    One is about the records S alone exactly when the answers, without S, depend on each other
    more than with it.
    """
    rows = groups.astype(float)
    rank = np.linalg.matrix_rank(rows)
    return any(
        np.linalg.matrix_rank(np.delete(rows, chosen, axis=1)) < rank
        for size in range(1, k)
        for chosen in combinations(range(rows.shape[1]), size)
    )


@st.composite
def answered(draw: st.DrawFn) -> Groups:
    records, groups = draw(st.integers(4, 12)), draw(st.integers(1, 5))
    bits = draw(st.lists(st.booleans(), min_size=records * groups, max_size=records * groups))
    found = np.array(bits, np.bool_).reshape(groups, records)
    return np.vstack([np.ones(records, np.bool_), found])


@settings(max_examples=150, deadline=None)
@given(answered(), st.sampled_from([2, 3, 4]))
def test_nothing_is_missed(groups: Groups, k: int) -> None:
    if about_few(groups, k):
        assert isolates(groups, k)


def among(records: int, *ranges: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(records, np.bool_)
    for start, stop in ranges:
        mask[start:stop] = True
    return mask


ALL = among(100, (0, 100))
HALF = among(100, (0, 50))
EVEN = np.arange(100) % 2 == 0
FEW = among(100, (0, 3))


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        ([ALL, HALF], False),
        ([ALL, HALF, among(100, (0, 51))], True),  # one more
        ([ALL, HALF, among(100, (0, 54))], True),  # k - 1 more
        ([ALL, HALF, among(100, (0, 55))], False),  # k more
        ([ALL, HALF, among(100, (2, 52))], True),  # two out, two in
        ([ALL, HALF, among(100, (3, 53))], False),
        ([ALL, among(100, (0, 97))], True),  # the complement
        ([ALL, among(100, (0, 95))], False),
        ([ALL, EVEN, FEW | EVEN, FEW | ~EVEN], True),  # a general tracker
        ([ALL, among(100, (0, 63)), among(100, (0, 30)), among(100, (30, 60))], True),
        ([ALL, HALF, ~HALF], False),
    ],
)
def test_known_attacks(groups: list[NDArray[np.bool_]], found: bool) -> None:
    assert isolates(np.array(groups), 5) is found


def test_many_answers_about_many_records_are_possible() -> None:
    rng = np.random.default_rng(7)
    groups = [everyone := np.ones(1000, np.bool_)]
    groups += [rng.random(1000) < rng.uniform(0.2, 0.8) for _ in range(50)]
    assert not isolates(np.array(groups), 5)
    one_less = everyone.copy()
    one_less[123] = False
    assert isolates(np.array([*groups, one_less]), 5)


def test_what_follows_is_found() -> None:
    rows = np.array([ALL, HALF, ~HALF, HALF & EVEN, HALF & ~EVEN])
    found = audit([packed(r) for r in rows], 5)
    assert found.independent == {0, 1, 3}
    assert audit([], 5).independent == frozenset() and not audit([], 5).isolates
    nobody = np.zeros(100, np.bool_)
    assert audit([packed(nobody)], 5).independent == frozenset()


@settings(max_examples=100, deadline=None)
@given(answered())
def test_independence_is_the_rank(groups: Groups) -> None:
    rows = groups.astype(float)
    found = independent(rows @ rows.T)
    assert len(found) == np.linalg.matrix_rank(rows)
    assert np.linalg.matrix_rank(rows[found]) == len(found)


def test_groups_longer_than_a_slice_and_of_unequal_length() -> None:
    records = 100_000
    long, short = among(records, (0, records)), among(40_000, (10, 40_000))
    assert not audit([packed(long), packed(short)], 5).isolates
    nearly = among(records, (0, 10), (40_000, records - 3))  # with short: all but three
    assert audit([packed(long), packed(short), packed(nearly)], 5).isolates
