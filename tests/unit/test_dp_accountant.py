"""The accountant: equal to independent computations, and never cheaper than the truth."""

import math
import subprocess
import sys
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilia.errors import ConfigError
from consilia.privacy.accountant import (
    MAX_STEPS,
    ORDERS,
    check,
    compose,
    conversion,
    cost,
    epsilon,
    noise_for,
    pld_epsilon,
    public_count,
)
from consilia.wire.v1 import Dp

WHOLE = [a for a in ORDERS if a == int(a)]
RATES = (1e-4, 0.001, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0)
NOISES = (0.5, 0.7, 1.0, 1.5, 3.0, 10.0)


def dp(
    noise: float = 1.0,
    rate: float = 1.0,
    steps: int = 1,
    *,
    delta: float = 1e-5,
    clip: float = 1.0,
    level: Literal["record", "patient", "client"] = "record",
) -> Dp:
    return Dp(level, noise, clip, rate, steps, delta)


def oracle(orders: list[float] | None, noise: float, rate: float, steps: int) -> Any:
    """dp-accounting's own accountant, with its own orders when None."""
    dp_accounting = pytest.importorskip("dp_accounting", reason="extra: dp")
    rdp = pytest.importorskip("dp_accounting.rdp")
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    return rdp.RdpAccountant(orders).compose(step, steps)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("noise", NOISES)
def test_whole_orders_equal_dp_accounting(noise: float, rate: float) -> None:
    delta = 1e-9
    terms = dict(zip(ORDERS, conversion(delta), strict=True))
    found = dict(zip(ORDERS, cost(dp(noise, rate, 1_000_000)), strict=True))
    for order in WHOLE[::4]:
        theirs = oracle([order], noise, rate, 1_000_000).get_epsilon(delta) - terms[order]
        # at 1e-14 a step their log-sum-exp has no more digits
        assert found[order] == pytest.approx(theirs, rel=1e-6, abs=2e-7), order


@pytest.mark.parametrize(
    ("order", "noise", "rate"),
    [(1.01, 1.0, 0.02), (1.1, 0.3, 0.6), (1.5, 20.0, 1e-4), (2.3, 1.0, 0.99),
     (3.0, 0.7, 0.01), (5.6, 0.5, 1e-4), (11.5, 1.0, 0.2), (30.0, 4.0, 0.05)],
)  # fmt: skip
def test_every_order_equals_the_integral(order: float, noise: float, rate: float) -> None:
    mp = pytest.importorskip("mpmath", reason="comes with torch")
    with mp.workdps(25):
        s, q, a = mp.mpf(noise), mp.mpf(rate), mp.mpf(order)

        def integrand(z: Any) -> Any:
            return mp.npdf(z, 0, s) * (1 - q + q * mp.exp((2 * z - 1) / (2 * s * s))) ** a

        middle = (0, mp.mpf(1) / 2, 1, a)
        points = sorted({m + w * s for m in middle for w in (-25, -5, 0, 5, 25)})
        exact = mp.log(mp.quad(integrand, points)) / (a - 1)
        index = min(range(len(ORDERS)), key=lambda i: abs(ORDERS[i] - order))
        assert ORDERS[index] == pytest.approx(order)
        assert cost(dp(noise, rate))[index] == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [(1.0, 0.01, 1_000), (1.0, 0.01, 20_000), (1.5, 0.05, 500), (2.0, 0.1, 300),
     (0.8, 0.002, 5_000), (5.0, 1.0, 10), (1.2, 0.2, 40), (4.0, 0.5, 30), (20.0, 1.0, 200)],
)  # fmt: skip
@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_epsilon_equals_dp_accounting(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    theirs = oracle(None, noise, rate, steps).get_epsilon(delta)
    assert epsilon(cost(dp(noise, rate, steps)), delta) == pytest.approx(theirs, rel=0.01)


def test_pld_is_tighter_and_near() -> None:
    pytest.importorskip("dp_accounting", reason="extra: dp")
    mechanism = dp(1.0, 0.02, 50)
    by_rdp, by_pld = epsilon(cost(mechanism, 10), 1e-5), pld_epsilon(mechanism, 10)
    assert 0.7 * by_rdp < by_pld < by_rdp
    assert pld_epsilon(mechanism, 10, 1e-3) < by_pld


def test_without_sampling_it_is_the_gaussian_mechanism() -> None:
    assert cost(dp(2.0)) == tuple(a / 8 for a in ORDERS)
    assert cost(dp(2.0, level="client"), 3) == tuple(3 * (a / 8) for a in ORDERS)


def test_tiny_rates_keep_their_digits() -> None:
    # A - 1 = a (a - 1) / 2 q^2 (exp(1 / s^2) - 1) up to q^3: 1e-18, where 1 + A has none
    for order, found in zip(ORDERS, cost(dp(1.5, 1e-9)), strict=True):
        if order < 10:
            assert found == pytest.approx(
                order / 2 * 1e-18 * math.expm1(1 / 2.25), rel=1e-6, abs=0
            )


@given(
    noise=st.floats(0.05, 50),
    rate=st.floats(1e-6, 1),
    more=st.floats(1.01, 3),
)
@settings(max_examples=40, deadline=None)
def test_cost_follows_noise_rate_and_order(noise: float, rate: float, more: float) -> None:
    base = cost(dp(noise, rate))
    quieter, rarer = cost(dp(noise * more, rate)), cost(dp(noise, rate / more))
    near = 1 + 1e-9
    assert all(b <= a * near for a, b in zip(base, quieter, strict=True))
    assert all(b <= a * near for a, b in zip(base, rarer, strict=True))
    assert all(a <= b * near for a, b in pairwise(base))
    full = cost(dp(noise))
    assert all(0 < a <= b * near for a, b in zip(base, full, strict=True))


def test_costs_add_up() -> None:
    one, two = dp(1.0, 0.1, 5), dp(2.0, 0.3, 2)
    total = compose([cost(one), cost(one), cost(two)])
    by_hand = [2 * a + b for a, b in zip(cost(one), cost(two), strict=True)]
    assert total == pytest.approx(by_hand, rel=1e-14)
    assert cost(one, 4) == pytest.approx(cost(dp(1.0, 0.1, 20)))
    assert compose([]) == cost(one, 0) == (0.0,) * len(ORDERS)
    assert epsilon(compose([]), 1e-5) == 0.0
    # epsilons would add up to far more
    assert epsilon(total, 1e-5) < 2 * epsilon(cost(one), 1e-5) + epsilon(cost(two), 1e-5)


def test_conversion_is_epsilon_order_by_order() -> None:
    spent = cost(dp(1.0, 0.02, 400))
    terms = conversion(1e-6)
    assert epsilon(spent, 1e-6) == min(a + b for a, b in zip(spent, terms, strict=True))
    infinite = (math.inf,) * len(ORDERS)
    assert epsilon(infinite, 1e-6) == math.inf


@pytest.mark.parametrize("target", [0.1, 1.0, 8.0])
@pytest.mark.parametrize(("rate", "steps", "rounds"), [(0.05, 100, 5), (1.0, 1, 20)])
def test_noise_for(target: float, rate: float, steps: int, rounds: int) -> None:
    noise = noise_for(target, 1e-5, rate, steps, rounds)
    assert epsilon(cost(dp(noise, rate, steps), rounds), 1e-5) <= target
    assert epsilon(cost(dp(noise * 0.998, rate, steps), rounds), 1e-5) > target
    assert float(f"{noise:.4g}") == noise


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dp(0.0), "noise_multiplier=0.0"),
        (dp(math.nan), "noise_multiplier=nan"),
        (dp(math.inf), "noise_multiplier=inf"),
        (dp(clip=0.0), "clip=0.0"),
        (dp(clip=math.inf), "clip=inf"),
        (dp(rate=0.0), "sampling=0.0"),
        (dp(rate=1.0000001), "sampling=1.0000001"),
        (dp(rate=math.nan), "sampling=nan"),
        (dp(steps=0), "steps=0"),
        (dp(steps=MAX_STEPS + 1), "steps="),
        (dp(delta=0.0), "delta=0.0"),
        (dp(delta=1.0), "delta=1.0"),
        (dp(rate=0.5, level="client"), "client level"),
        (dp(steps=2, level="client"), "client level"),
    ],
)
def test_what_is_no_mechanism_is_refused(wrong: Dp, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cost(wrong)


def test_the_limits_themselves_are_allowed() -> None:
    assert check(dp(rate=1.0, steps=MAX_STEPS)).steps == MAX_STEPS
    assert check(dp(level="patient", rate=0.5, steps=2)).sampling == 0.5


@pytest.mark.parametrize("wrong", [(), (1.0,), (math.nan,) * len(ORDERS)])
def test_what_is_no_cost_is_refused(wrong: tuple[float, ...]) -> None:
    for use in (lambda: epsilon(wrong, 1e-5), lambda: compose([wrong])):
        with pytest.raises(ConfigError, match="a cost of"):
            use()
    negative = (*cost(dp())[:-1], -1e-9)
    with pytest.raises(ConfigError, match="least -1e-09"):
        epsilon(negative, 1e-5)


def test_orders_never_change_place() -> None:
    assert len(ORDERS) == 169
    assert list(ORDERS) == sorted(set(ORDERS))
    assert math.fsum(ORDERS) == pytest.approx(17_124.09)


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(ConfigError, match="over 1e6 times the clip"):
        noise_for(1e-9, 1e-5, 1.0, 1000)
    with pytest.raises(ConfigError, match="epsilon=0"):
        noise_for(0.0, 1e-5, 1.0, 1)
    with pytest.raises(ConfigError, match="rounds=0"):
        noise_for(1.0, 1e-5, 1.0, 1, 0)
    with pytest.raises(ConfigError, match="rounds=-1"):
        cost(dp(), -1)


def test_public_counts() -> None:
    assert [public_count(n) for n in (0, 1, 4, 5, 9, 10, 303)] == [1, 1, 1, 5, 5, 10, 300]


def test_it_is_light() -> None:
    code = (
        "import sys, consilia.privacy.accountant as a; a.ORDERS;"
        "print([m for m in ('scipy', 'torch', 'dp_accounting', 'mpmath') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert found.stdout.strip() == b"[]"
