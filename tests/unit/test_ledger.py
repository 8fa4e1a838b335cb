"""The Renyi filter: it never admits more than its cap promises, and wastes little of it."""

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilia.core.chain import GENESIS, Break
from consilia.errors import ConfigError
from consilia.privacy import ledger
from consilia.privacy.accountant import ORDERS, cost
from consilia.privacy.accountant import epsilon as accountant_epsilon
from consilia.privacy.ledger import MOST, UNIT, Cap, Entry, Head
from consilia.wire.v1 import Dp

CAPS = st.builds(Cap, st.floats(0.05, 50), st.floats(1e-12, 0.01))
FEW = ORDERS[::9]
SPENDS = st.lists(st.integers(0, 1 << 50), min_size=len(FEW), max_size=len(FEW)).map(tuple)


def gaussian(noise: float) -> ledger.Vector:
    return ledger.units(cost(Dp("record", noise, 1.0)), ORDERS, ORDERS)


def exact_delta(count: int, noise: float, epsilon: float) -> float:
    """Return delta of `count` Gaussian releases (Balle & Wang 2018, theorem 8); no Renyi."""
    mean = math.sqrt(count) / noise

    def below(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    low, high = below(mean / 2 - epsilon / mean), below(-mean / 2 - epsilon / mean)
    return low - math.exp(epsilon) * high


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 4.0, 10.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_what_is_admitted_keeps_the_promise_and_little_is_wasted(
    epsilon: float, delta: float
) -> None:
    noise = 30.0 / epsilon
    held = ledger.make_filter(Cap(epsilon, delta), ORDERS)
    count = ledger.fits(held, (), gaussian(noise), 10**6)
    assert count > 5
    assert exact_delta(count, noise, epsilon) <= delta
    assert exact_delta(2 * count, noise, epsilon) > delta


@given(CAPS)
def test_the_shares_of_delta_add_up_to_delta(cap: Cap) -> None:
    held = ledger.make_filter(cap, ORDERS)
    # conversion = log(1 - 1/a) - (log delta + log a) / (a - 1), solved for delta
    shares = [
        math.exp(-(c - math.log1p(-1 / a)) * (a - 1) - math.log(a))
        for a, c in zip(ORDERS, held.conversions, strict=True)
        if c < math.inf
    ]
    assert math.isclose(sum(shares), cap.delta, rel_tol=1e-9)
    assert max(shares) >= cap.delta * 0.499 and len(shares) <= 4


@given(CAPS, SPENDS)
def test_admitted_means_within_the_cap_by_any_account(cap: Cap, total: ledger.Vector) -> None:
    held = ledger.make_filter(cap, FEW)
    assert ledger.admits(held, total) == (ledger.used(held, total) <= 1 or not any(total))
    if ledger.admits(held, total):
        assert ledger.epsilon(total, cap.delta, FEW) <= cap.epsilon


def test_a_sum_at_the_limit_is_admitted_and_one_unit_more_is_not() -> None:
    held = ledger.make_filter(Cap(4.0), ORDERS)
    for at in (i for i, room in enumerate(held.room) if room > 0):
        rest = [MOST] * len(ORDERS)
        full = (*rest[:at], held.room[at], *rest[at + 1 :])
        assert ledger.admits(held, full) and ledger.used(held, full) == 1
        assert not ledger.admits(held, (*full[:at], full[at] + 1, *full[at + 1 :]))
    assert sum(room > 0 for room in held.room) > 1


@given(CAPS, SPENDS, SPENDS.filter(any))
def test_as_many_fit_as_are_said_and_not_one_more(
    cap: Cap, total: ledger.Vector, each: ledger.Vector
) -> None:
    held = ledger.make_filter(cap, FEW)
    count = ledger.fits(held, total, each, 10**6)

    def after(n: int) -> ledger.Vector:
        return ledger.add(total, tuple(n * v for v in each))

    if count:
        assert ledger.admits(held, after(count))
    if count < 10**6:
        assert not ledger.admits(held, after(count + 1))


@given(st.lists(st.floats(0, 1e9), min_size=len(FEW), max_size=len(FEW)))
def test_spends_are_rounded_up_and_taken_back_exactly(spend: list[float]) -> None:
    change = ledger.units(spend, FEW, FEW)
    for value, whole in zip(spend, change, strict=True):
        assert whole == MOST or value <= whole / UNIT <= value * (1 + 1e-12) + 1 / UNIT
    assert not any(ledger.add(change, ledger.negative(change)))
    assert ledger.add((), change) == change == ledger.add(change, ())


def test_an_infinite_spend_uses_up_its_order_and_can_be_taken_back() -> None:
    spend = [math.inf] * len(ORDERS)
    held = ledger.make_filter(Cap(ledger.MAX_EPSILON, ledger.MAX_DELTA), ORDERS)
    change = ledger.units(spend, ORDERS, ORDERS)
    assert not ledger.admits(held, change)
    assert ledger.fits(held, (), change, 9) == 0
    one = gaussian(1.0)
    assert ledger.add(ledger.add(one, change), ledger.negative(change)) == one


@settings(max_examples=20)
@given(st.floats(0.5, 20), st.floats(0.001, 1), st.integers(1, 100))
def test_a_spend_known_at_other_orders_is_never_counted_as_less(
    noise: float, rate: float, steps: int
) -> None:
    found = cost(Dp("record", noise, 1.0, rate, steps))
    whole = ledger.units(found, ORDERS, ORDERS)
    fewer = ledger.units(found[:-1:3], ORDERS[:-1:3], ORDERS)
    assert all(a <= b for a, b in zip(whole, fewer, strict=True))
    assert fewer[0] == whole[0] and fewer[-1] == MOST
    more = ledger.units(found, ORDERS, ORDERS[1::2])
    assert more == whole[1::2]


@pytest.mark.parametrize(
    "spend",
    [[math.nan] * len(ORDERS), [-1e-9] * len(ORDERS), [1.0], [*cost(Dp("record", 1, 1)), 0]],
)
def test_what_is_no_spend_is_refused(spend: list[float]) -> None:
    with pytest.raises(ValueError, match="a spend has"):
        ledger.units(spend, ORDERS, ORDERS)


@pytest.mark.parametrize("orders", [(), (1.0, 2.0), (2.0, 2.0), (2.0, math.inf), (3.0, 2.0)])
def test_what_are_no_orders_is_refused(orders: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="orders must rise"):
        ledger.units([1.0] * len(orders), orders, ORDERS)


@pytest.mark.parametrize(
    ("epsilon", "delta", "fine"),
    [
        (0.0, 1e-5, True),
        (1000.0, 0.01, True),
        (1000.1, 1e-5, False),
        (-1e-9, 1e-5, False),
        (math.nan, 1e-5, False),
        (math.inf, 1e-5, False),
        (1.0, 0.0, False),
        (1.0, 0.0101, False),
        (1.0, math.nan, False),
    ],
)
def test_a_cap_that_caps_nothing_is_refused(epsilon: float, delta: float, fine: bool) -> None:
    if fine:
        ledger.make_filter(Cap(epsilon, delta), ORDERS)
    else:
        with pytest.raises(ConfigError, match="needed"):
            ledger.make_filter(Cap(epsilon, delta), ORDERS)


def test_a_cap_of_zero_admits_no_spend() -> None:
    held = ledger.make_filter(Cap(0.0), ORDERS)
    assert ledger.fits(held, (), gaussian(1000.0), 9) == 0
    assert not ledger.admits(held, gaussian(1000.0))
    assert ledger.used(held, gaussian(1000.0)) == math.inf and ledger.used(held, ()) == 0


def test_epsilon_is_what_the_accountant_says_and_the_filter_is_a_little_stricter() -> None:
    dp = Dp("record", 2.0, 1.0, 0.05, 30)
    change = ledger.units(cost(dp), ORDERS, ORDERS)
    expected = accountant_epsilon(cost(dp), dp.delta)
    assert math.isclose(ledger.epsilon(change, dp.delta, ORDERS), expected, rel_tol=1e-9)
    assert ledger.epsilon((0,) * len(ORDERS), 1e-5, ORDERS) == 0
    assert not ledger.admits(ledger.make_filter(Cap(expected, dp.delta), ORDERS), change)
    assert ledger.admits(ledger.make_filter(Cap(1.3 * expected, dp.delta), ORDERS), change)


def test_what_it_costs_that_jobs_are_chosen_by_results() -> None:
    """The rounds admitted, over those of the best order at the full delta: as ADR 9 says."""
    kinds = [(0.7, 0.005), (1, 0.01), (1, 0.001), (2, 0.05), (4, 0.2), (8, 1.0), (1.5, 0.02)]
    kinds += [(3, 0.3), (50, 1.0), (1.1, 0.004), (2, 0.01), (20, 1.0)]
    parts, stops = [], []
    for noise, rate in kinds:
        one = ledger.units(cost(Dp("record", noise, 1.0, rate)), ORDERS, ORDERS)
        for cap in (Cap(e, d) for e in (0.3, 1.0, 3.0, 10.0) for d in (1e-5, 1e-7)):
            least = [ledger.conversion(a, cap.delta) for a in ORDERS]
            pairs = zip(least, one, strict=True)
            most = max(math.floor((cap.epsilon - c) * UNIT / v) for c, v in pairs)
            if most >= 50:
                count = ledger.fits(ledger.make_filter(cap, ORDERS), (), one, most)
                whole = tuple(count * v for v in one)
                parts.append(count / most)
                stops.append(ledger.epsilon(whole, cap.delta, ORDERS) / cap.epsilon)
    assert len(parts) == 54
    assert statistics.median(parts) > 0.94 and statistics.mean(parts) > 0.85
    assert sorted(parts)[5] > 0.5 and sum(part == 0 for part in parts) == 1
    assert statistics.median(stops) > 0.97 and sorted(stops)[5] > 0.85


def test_the_part_used_grows_in_step() -> None:
    held, one = ledger.make_filter(Cap(8.0), ORDERS), gaussian(5.0)
    parts = [ledger.used(held, tuple(n * v for v in one)) for n in range(4)]
    assert parts[0] == 0 < parts[1] < 0.1
    assert parts[3] == pytest.approx(3 * parts[1])


def test_the_chain_notices_every_change() -> None:
    entries = [Entry(n, 1.0, "reserve", f"l{n}", change=(n, 2 * n)) for n in range(1, 6)]
    lines, last = [], GENESIS
    for entry in entries:
        text = ledger.body(entry)
        last = ledger.link(last, text)
        lines.append((text, last))
    assert [ledger.read(text) for text, _ in lines] == entries
    assert ledger.verify(lines) == Head(5, last)
    assert ledger.verify([]) == Head(0, GENESIS)
    changed = lines[2][0].replace('"l3"', '"l9"')
    for bad, at in (
        (lines[:2] + lines[3:], 3),
        ([*lines[:2], (changed, lines[2][1]), *lines[3:]], 3),
        ([lines[1], lines[0]], 1),
        ([*lines, lines[-1]], 6),
    ):
        found = ledger.verify(bad)
        assert isinstance(found, Break) and found.seq == at
