"""What a round of differential privacy costs: Renyi divergences, their sums, and epsilon.

A cost is a vector: the Renyi divergence of the mechanism at each of ORDERS. Costs of whatever
ran on the same patients add up, order by order; `epsilon` turns a sum into the (epsilon,
delta) that people read. The ledger keeps vectors, never epsilons: sums of epsilons waste most
of a budget.

Neighbouring datasets differ by one unit that is there or not: a record, a patient with all
records, or a site's whole contribution. A step draws each unit with probability q (Poisson,
privacy.sampling), adds contributions of L2 norm at most `clip`, and adds Gaussian noise of
standard deviation `noise_multiplier * clip` (privacy.noise). A round releases `steps` of them.

With z ~ N(0, s^2), q the rate and s the noise multiplier, the divergence at order a is

    log A / (a - 1),  A = E[(1 - q + q exp((2 z - 1) / (2 s^2)))^a]

`A - 1` is computed directly, from terms that are never negative, so a cost of 1e-12 has its
digits too; at whole orders a finite sum, else a trapezoid rule, whose error falls
exponentially with the step for an integrand like this one.

Plain math and numpy: the node's agent imports this. `pld_epsilon` imports dp-accounting.

Sources: Mironov 2017 (Renyi DP); Mironov, Talwar, Zhang 2019, "Renyi differential privacy of
the sampled Gaussian mechanism", sections 3.2-3.3 and theorem 5 (this direction is the larger);
Canonne, Kamath, Steinke 2020, "The discrete Gaussian", proposition 12 (conversion; the same
in Balle et al. 2020, theorem 21); Trefethen, Weideman 2014 (trapezoid rule).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from consilia.errors import ConfigError
from consilia.privacy import adaptive
from consilia.wire.v1 import Dp

# Low orders count when epsilon is large, high ones when it is small. Stored in ledgers:
# orders may be added at the end with an ADR, none may change place.
ORDERS: tuple[float, ...] = (
    *(1.01, 1.03, 1.05),
    *(1 + i / 10 for i in range(1, 41)),
    *(5 + i / 5 for i in range(1, 16)),
    *(8 + i / 2 for i in range(1, 9)),
    *map(float, range(13, 65)),
    *map(float, range(68, 129, 4)),
    *map(float, range(136, 257, 8)),
    *map(float, range(272, 513, 16)),
    *(768.0, 1024.0, 2048.0),
)

MAX_STEPS = 10_000_000
MAX_COLLUDING = 1000  # sites
PUBLIC_MULTIPLE = 5  # counts that the consortium knows are rounded down to a multiple of it
_LEAST_NOISE = 0.1  # below it sampling is given no credit: the full mechanism's cost counts
_REACH = 13.0  # standard deviations that an integral covers beside its peak


def check(dp: Dp) -> Dp:
    """Return `dp`, or raise ConfigError naming the value that makes no mechanism."""
    noise, clip = dp.noise_multiplier, dp.clip
    _need(math.isfinite(noise) and noise > 0, "noise_multiplier", noise, "above 0")
    _need(math.isfinite(clip) and clip > 0, "clip", clip, "above 0")
    _need(0 < dp.sampling <= 1, "sampling", dp.sampling, "above 0, at most 1")
    _need(1 <= dp.steps <= MAX_STEPS, "steps", dp.steps, f"from 1 to {MAX_STEPS}")
    _need(0 < dp.delta < 1, "delta", dp.delta, "between 0 and 1")
    if dp.level == "client" and (dp.sampling != 1 or dp.steps != 1):
        raise ConfigError(
            f"dp at client level with sampling={dp.sampling:g}, steps={dp.steps}: a site's "
            "update is one contribution a round; needed sampling 1 and steps 1"
        )
    _check_shares(dp)
    return dp


def _check_shares(dp: Dp) -> None:
    """Refuse shares of noise, and a clip that moves, where they would promise too much."""
    if dp.distributed and dp.steps != 1:
        raise ConfigError(
            f"dp at {dp.level} level with distributed=True and steps={dp.steps}: a site's "
            "second step builds on its first, which has only a share of the noise; needed "
            "steps 1 (a round is one step of all sites), or distributed false"
        )
    if not 0 <= dp.colluding <= MAX_COLLUDING:
        raise ConfigError(f"dp: colluding={dp.colluding}; needed from 0 to {MAX_COLLUDING}")
    if dp.adaptive is None:
        return
    adaptive.check(dp.adaptive)
    if not dp.distributed or dp.level != "client":
        raise ConfigError(
            "dp.adaptive without level client and distributed=True: the count of sites within "
            "the clip is told as a noised masked sum only; needed both"
        )


def cost(dp: Dp, rounds: int = 1) -> tuple[float, ...]:
    """Return the Renyi divergences at ORDERS of `rounds` rounds; raise ConfigError."""
    check(dp)
    if rounds < 0:
        raise ConfigError(f"rounds={rounds}; needed 0 or more")
    times = dp.steps * rounds
    return tuple(times * d for d in _step(dp.noise_multiplier, dp.sampling))


def compose(costs: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the cost of several mechanisms on the same patients; of none, zeros."""
    for one in costs:
        _whole(one)
    return tuple(math.fsum(column) for column in zip(*costs, strict=True)) or (0.0,) * len(
        ORDERS
    )


def conversion(delta: float) -> tuple[float, ...]:
    """Return, for each order, what its divergence lacks to be an epsilon at `delta`.

    A sum of costs stays within (epsilon, delta) when at some order cost + conversion <=
    epsilon: the condition of a Renyi filter. A term may be negative.
    """
    _need(0 < delta < 1, "delta", delta, "between 0 and 1")
    return tuple(math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1) for a in ORDERS)


def epsilon(rdp: Sequence[float], delta: float) -> float:
    """Return the smallest epsilon that a cost guarantees at `delta`; inf when none."""
    _whole(rdp)
    if not any(rdp):
        return 0.0
    return max(0.0, min(d + c for d, c in zip(rdp, conversion(delta), strict=True)))


def noise_for(
    epsilon: float, delta: float, sampling: float, steps: int, rounds: int = 1
) -> float:
    """Return the noise multiplier with which `rounds` rounds cost at most `epsilon`.

    Rounded up to four digits. Raises ConfigError where no sensible noise is enough.
    """
    _need(math.isfinite(epsilon) and epsilon > 0, "epsilon", epsilon, "above 0")
    _need(rounds >= 1, "rounds", rounds, "1 or more")

    def enough(noise: float) -> bool:
        dp = Dp("record", noise, 1.0, sampling, steps, delta)
        return _spent(cost(dp, rounds), delta) <= epsilon

    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, high * 2
        if high > 1e6:
            raise ConfigError(
                f"epsilon={epsilon:g} at delta={delta:g} over {steps * rounds} steps needs "
                "noise of over 1e6 times the clip; ask for fewer steps or a larger epsilon"
            )
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    unit = 10.0 ** (math.floor(math.log10(high)) - 3)
    return float(f"{math.ceil(high / unit) * unit:.4g}")


def pld_epsilon(dp: Dp, rounds: int, delta: float | None = None) -> float:
    """Return epsilon by privacy loss distributions: tighter, for a plan fixed in advance.

    To show beside the ledger's figure, never to charge. Raises ConfigError without the extra
    `consilia[dp]`. Source: Doroshenko et al. 2022 ("Connect the dots").
    """
    try:
        from dp_accounting import dp_event  # noqa: PLC0415  takes seconds and scipy
        from dp_accounting.pld import PLDAccountant  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ConfigError(
            "epsilon by PLD needs dp-accounting: pip install consilia[dp]"
        ) from None
    check(dp)
    gaussian = dp_event.GaussianDpEvent(dp.noise_multiplier)
    step = dp_event.PoissonSampledDpEvent(dp.sampling, gaussian)
    accountant = PLDAccountant().compose(step, dp.steps * rounds)
    return float(accountant.get_epsilon(dp.delta if delta is None else delta))


def public_count(units: int) -> int:
    """Return a count of records or patients as the consortium may know it, at least 1.

    A private round divides by it and reports it: the exact count would tell of one person.
    What the site advertises is no more exact, and is public by the site's own decision.
    """
    return max(1, units - units % PUBLIC_MULTIPLE)


_spent = epsilon  # for noise_for, where the name means the budget


@lru_cache(maxsize=256)
def _step(noise: float, rate: float) -> tuple[float, ...]:
    """Return the divergences of one step at ORDERS."""
    if rate == 1.0 or noise < _LEAST_NOISE:
        return tuple(a / (2 * noise * noise) for a in ORDERS)
    return tuple(_divergence(a, noise, rate) for a in ORDERS)


def _divergence(order: float, noise: float, rate: float) -> float:
    """Return log A / (order - 1), never above the cost without sampling."""
    log = _log_sum(int(order), noise, rate) if order == int(order) else None
    if log is None:
        log = _log_integral(order, noise, rate)
    # log(1 + e^log); for a large A the 1 is lost, and nothing with it
    grown = math.log1p(math.exp(log)) if log < 30 else log
    return min(grown / (order - 1), order / (2 * noise * noise))


def _log_sum(order: int, noise: float, rate: float) -> float:
    """Return log(A - 1) at a whole order.

    A - 1 = sum over k >= 2 of binomial(a, k) (1 - q)^(a - k) q^k (exp((k^2 - k) / 2 s^2) - 1),
    since the binomial weights sum to 1.
    """
    k = np.arange(2, order + 1, dtype=np.float64)
    comb = np.array([_log_binomial(order, j) for j in range(2, order + 1)])
    growth = (k * k - k) / (2 * noise * noise)
    terms = comb + (order - k) * math.log1p(-rate) + k * math.log(rate) + _log_expm1(growth)
    return _log_total(terms)


def _log_integral(order: float, noise: float, rate: float) -> float:
    """Return log(A - 1) at a fractional order.

    With f = 1 - q + q exp(t) the mean of f is 1, so A - 1 is the mean of
    g = f^a - 1 - a (f - 1), which Bernoulli's inequality keeps at 0 or above.
    """
    variance = noise * noise
    # f is zero at a distance pi s^2 from the real line: that bounds the step, with s itself
    step = min(noise, variance) / 4
    low, high = -_REACH * noise, order + _REACH * noise
    points = np.arange(math.floor(low / step), math.ceil(high / step) + 1, dtype=np.float64)
    z = points * step
    t = (2 * z - 1) / (2 * variance)
    density = -z * z / (2 * variance) - math.log(noise * math.sqrt(2 * math.pi))
    return _log_total(density + _log_gap(t, order, rate) + math.log(step))


def _log_gap(t: NDArray[np.float64], order: float, rate: float) -> NDArray[np.float64]:
    """Return log g; each form keeps its digits where f is near 1, or where it is huge."""
    log_f = np.logaddexp(math.log1p(-rate), math.log(rate) + t)
    out = np.full_like(t, -np.inf)
    far = order * log_f > 1.0
    lf = log_f[far]
    out[far] = order * lf + np.log1p(
        (order - 1) * np.exp(-order * lf) - order * np.exp((1 - order) * lf)
    )
    u = rate * np.expm1(t[~far])
    small = np.abs(u) < 1e-4
    gap = np.expm1(order * np.log1p(u)) - order * u
    series = (
        u * u * order * (order - 1) / 2 * (1 + (order - 2) * u / 3 * (1 + (order - 3) * u / 4))
    )
    gap = np.maximum(np.where(small, series, gap), 0.0)
    with np.errstate(divide="ignore"):  # g is 0 where f is 1
        out[~far] = np.log(gap)
    return out


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_expm1(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(e^x - 1) for x > 0."""
    return x + np.log(-np.expm1(-x))


def _log_total(logs: NDArray[np.float64]) -> float:
    """Return the log of the sum of the exponentials."""
    top = float(logs.max())
    return top + math.log(float(np.exp(logs - top).sum()))


def _whole(rdp: Sequence[float]) -> None:
    """Refuse what is no cost: the ledger must not add up something else."""
    if len(rdp) != len(ORDERS) or not all(d >= 0 for d in rdp):  # NaN is refused too
        raise ConfigError(
            f"a cost of {len(rdp)} numbers, the least {min(rdp, default=0)}; needed "
            f"{len(ORDERS)}, one for each order, none below 0"
        )


def _need(fine: bool, name: str, found: float, needed: str) -> None:
    if not fine:
        raise ConfigError(f"dp: {name}={found!r}; needed a number {needed}")
