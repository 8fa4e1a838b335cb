"""Gaussian noise that no rounding betrays: integers from a keyed stream, on a grid.

What is protected is first laid on a grid: clipped to the L2 norm `bound`, divided by `step`
and rounded to whole numbers. The noise is a whole number too, of the discrete Gaussian
distribution, and only their sum, times `step`, is ever a float. So what leaves is a function
of a noisy integer, and the low bits of the floats (Mironov 2012) say nothing; sums of such
integers are exact, so no order of adding raises the sensitivity (Casacuberta et al. 2022).

**Sensitivity.** A contribution of norm at most `bound` has, after rounding each of its `size`
coordinates by at most half a step, a norm of at most bound + step * sqrt(size) / 2 <= clip.

**The distribution.** P(x) proportional to exp(-x^2 / (2 s^2)) over all integers. Shifting it by
whole numbers costs exactly what shifting the continuous Gaussian costs, at every order of
Renyi divergence and, at whole orders, with Poisson sampling as well (the normaliser does not
change); at fractional orders they differ by a factor within 1 +- exp(-2 pi^2 s^2).

**The sampler.** Wide Gaussians are sums of narrow ones, x_0 + k x_1 + k^2 x_2 ..., of standard
deviation s_0 each with s_0 >= 4 sqrt(1 + k^2): the sum is the discrete Gaussian of variance
s_0^2 (1 + k^2 + k^4 ...) within a factor 1 +- 1e-136. A narrow one is drawn from an alias table
made in exact integer arithmetic, cut at 12 s_0 (probability 2^-107): a value, of at most five
draws, is within 2^-61 of the true distribution in statistical distance. n values add at most
n 2^-61 to delta: 4e-10 for a million weights and a thousand steps.

**Shares.** For a masked sum each of `honest` sites adds noise of s / sqrt(honest): the sum of
discrete Gaussians is as good as one of s once a share is LEAST_SHARE steps wide. What a site
does with its share is in privacy.shares.

Sources: Canonne, Kamath, Steinke 2020, "The discrete Gaussian for differential privacy";
Micciancio, Walter 2017, "Gaussian sampling over the integers" (theorem 3, the sums); Walker
1977, Vose 1991 (alias tables); Kairouz, Liu, Steinke 2021, "The distributed discrete Gaussian
mechanism", proposition 14 (shares); McMahan et al. 2018 (a site's update as one contribution).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from consilia.errors import ConfigError
from consilia.privacy import graph
from consilia.privacy.accountant import check
from consilia.privacy.streams import keystream
from consilia.wire.v1 import Dp

GRID_STD = float(1 << 26)  # steps in one standard deviation of a site's own noise
MIN_CLIENTS = 30  # sites below which client-level noise buries what there is to learn

_NARROW = 2048  # widest Gaussian that a table holds, standard deviation in steps
_SMOOTH = 4.0  # s_0 over sqrt(1 + k^2)
_CUT = 12  # standard deviations that a table holds
_BITS = 64  # of a table's thresholds
_BLOCK = 1 << 15  # values drawn at once, so that they stay in the cache
_SLACK = 1e-9  # of the clip: more than float64 errs when it sums the squares of a norm
WIDEST = 1e12  # standard deviation that the sampler reaches, in steps
LEAST_SHARE = 4.0  # steps of a share; 10 (n - 1) exp(-pi^2 16) per coordinate is 1e-67 n

Words = TypeVar("Words", bound=np.unsignedinteger)  # dtype of what a stream gives


class Stream:
    """Random bytes without end: AES-256 in counter mode under a fresh key. Not thread-safe."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        """Take a key of 32 bytes from `random` (os.urandom where it matters)."""
        self._cipher = keystream(random(32))

    def words(self, kind: type[Words], size: int) -> NDArray[Words]:
        """Return `size` uniform words of an unsigned numpy type."""
        out = np.zeros(size, kind)
        if size:
            view = out.data.cast("B")
            self._cipher.update_into(view, view)  # keystream xor zeros, in place
        return out


# ---- the discrete Gaussian -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiscreteGaussian:
    """A sampler: `levels` draws of a narrow Gaussian, weighted with powers of `k`."""

    std: float  # of the whole, in steps
    narrow: float  # of one draw
    k: int
    levels: int
    accept: NDArray[np.uint64]  # column -> chance of staying in it, of 2^64
    other: NDArray[np.int64]  # column -> value when it does not stay
    low: int  # value of column 0

    def draw(self, stream: Stream, size: int) -> NDArray[np.int64]:
        """Return `size` independent values."""
        out = np.zeros(size, np.int64)
        for start in range(0, size, _BLOCK):
            block = out[start : start + _BLOCK]
            for level in range(self.levels):
                block += self._narrow(stream, len(block)) * self.k**level
        return out

    def _narrow(self, stream: Stream, size: int) -> NDArray[np.int64]:
        column = stream.words(np.uint16, size) & np.uint16(len(self.accept) - 1)
        stays = stream.words(np.uint64, size) < self.accept[column]
        return np.where(stays, column.astype(np.int64) + self.low, self.other[column])


@lru_cache(maxsize=8)
def discrete_gaussian(std: float) -> DiscreteGaussian:
    """Return the sampler of standard deviation parameter `std`, in steps; made once."""
    if not (math.isfinite(std) and 0.05 <= std <= WIDEST):
        raise ConfigError(f"noise of {std!r} steps; needed a number from 0.05 to 1e12")
    k, levels = 1, 1
    narrow = std
    while narrow > _NARROW:
        levels += 1
        k = int((std / _SMOOTH) ** (1 / levels)) + 1
        while (narrow := _part(std, k, levels)) < _SMOOTH * math.sqrt(1 + k * k):
            k -= 1
    accept, other, low = _table(_exact_part(std, k, levels))
    return DiscreteGaussian(std, narrow, k, levels, accept, other, low)


def _part(std: float, k: int, levels: int) -> float:
    """Return the standard deviation of one draw."""
    return std / math.sqrt(sum(k ** (2 * j) for j in range(levels)))


def _exact_part(std: float, k: int, levels: int) -> Decimal:
    """Return its square, to 60 digits."""
    with localcontext(prec=60):
        parts = sum(k ** (2 * j) for j in range(levels))
        return Decimal(std) * Decimal(std) / Decimal(parts)


def _table(variance: Decimal) -> tuple[NDArray[np.uint64], NDArray[np.int64], int]:
    """Return the alias table (accept, other, value of column 0) of a narrow Gaussian.

    Integers of 2^64 a column throughout: the probabilities are off by what is cut and by one
    unit in 2^64 each, nothing else. Source: Vose 1991.
    """
    weights = _weights(variance)
    low = -(len(weights) - 1)
    columns = 1 << (2 * len(weights) - 1).bit_length()
    whole = 1 << _BITS
    with localcontext(prec=60):
        unit = columns * whole / (weights[0] + 2 * sum(weights[1:]))
        half = [int(w * unit) for w in weights]
    mass = half[:0:-1] + half + [0] * (columns - 2 * len(half) + 1)
    mass[-low] += columns * whole - sum(mass)  # what rounding left, to the value 0
    accept, other = [whole - 1] * columns, list(range(columns))
    small = [i for i, m in enumerate(mass) if m < whole]
    large = [i for i, m in enumerate(mass) if m >= whole]
    while small:
        i, j = small.pop(), large[-1]
        accept[i], other[i] = mass[i], j
        mass[j] -= whole - mass[i]
        if mass[j] < whole:
            small.append(large.pop())
    return np.array(accept, np.uint64), np.array(other, np.int64) + low, low


def _weights(variance: Decimal) -> list[Decimal]:
    """Return exp(-x^2 / (2 variance)) for x = 0, 1, ... up to the cut."""
    with localcontext(prec=60):
        last = int(_CUT * variance.sqrt()) + 2
        ratio, change = (-1 / (2 * variance)).exp(), (-1 / variance).exp()
        found = [Decimal(1)]
        for _ in range(last):
            found.append(found[-1] * ratio)
            ratio *= change
        return found


# ---- the grid ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grid:
    """Where contributions and noise become whole numbers; carries its own sensitivity."""

    clip: float  # L2 norm that no contribution has on the grid, in the values' own unit
    bound: float  # what to clip to, before rounding
    step: float  # one on the grid
    std: float  # of the noise, in steps

    def factor(self, norm: float) -> float:
        """Return what to multiply a contribution of L2 norm `norm` with."""
        if not math.isfinite(norm) or norm < 0:
            raise ConfigError(f"contribution of norm {norm!r}; needed a finite number")
        return 1.0 if norm <= self.bound else self.bound / norm

    def units(self, values: NDArray[np.floating], factor: float) -> NDArray[np.int64]:
        """Return `values * factor` in whole steps."""
        scaled = values.astype(np.float64) * factor
        return np.rint(scaled / self.step).astype(np.int64)

    def noised(
        self, values: NDArray[np.floating], factor: float, stream: Stream
    ) -> NDArray[np.int64]:
        """Return `values * factor` in whole steps, with noise."""
        units = self.units(values, factor)
        noise = discrete_gaussian(self.std).draw(stream, units.size)
        return units + noise.reshape(units.shape)


def local_grid(dp: Dp, size: int) -> Grid:
    """Return the grid for noise that one site adds alone, to vectors of `size` coordinates.

    Its step is such that the noise always has the same number of steps.
    """
    check(dp)
    step = dp.noise_multiplier * dp.clip / GRID_STD
    return whole_grid(dp, size, step, GRID_STD)


def honest_survivors(threshold: int, colluding: int = 1) -> int:
    """Return how many noise shares are sure: survivors at least, less those that collude.

    With `colluding=1` no single site, together with the hub, takes the noise below its size.
    """
    return threshold - colluding


def sure_shares(dp: Dp, keyed: int) -> int:
    """Return how many shares of the noise are sure, of `keyed` sites that have sent keys.

    Raises ConfigError where none is, Refused for fewer than three sites.
    """
    sure = graph.threshold(keyed)
    honest = honest_survivors(sure, dp.colluding)
    if honest < 1:
        raise ConfigError(
            f"dp.colluding is {dp.colluding} and of {keyed} sites {sure} are sure to stay: no "
            "share of the noise is left to count on; lower it, or let each site add all of "
            "the noise (distributed: false)"
        )
    return honest


def whole_grid(dp: Dp, size: int, step: float, std: float) -> Grid:
    """Return the grid of `step` for vectors of `size` coordinates, noise of `std` steps.

    Raises ConfigError where rounding would take more than half of the clip.
    """
    rounding = step * math.sqrt(size) / 2
    bound = dp.clip * (1 - _SLACK) - rounding
    if bound < dp.clip / 2:
        raise ConfigError(
            f"rounding {size} coordinates to steps of {step:.3g} may add {rounding:.3g} to a "
            f"norm, more than half of the clip {dp.clip:g}: use a finer grid (32 bits, a "
            "smaller range) or a larger clip"
        )
    return Grid(dp.clip, bound, step, std)


# ---- a site's whole update (client level) --------------------------------------------------


def client_noise(
    change: NDArray[np.floating], factor: float, grid: Grid, stream: Stream
) -> NDArray[np.float32]:
    """Return one chunk of a site's change (new minus old weights), clipped and noised.

    `grid` is `local_grid(dp, size)` for the size of the **whole** update, `factor` is
    `grid.factor(norm)` of its whole L2 norm; one `stream` serves all chunks. What is returned
    may be added to the old weights in any precision: that is no secret.
    """
    return (grid.noised(change, factor, stream) * grid.step).astype(np.float32)


def few_sites(dp: Dp, sites: int) -> str:
    """Return the warning for client-level privacy with too few sites, "" where none is due."""
    if dp.level != "client" or sites >= MIN_CLIENTS:
        return ""
    noisy = "the sum, with shares of it," if dp.distributed else "each update"
    return (
        f"privacy at client level with {sites} sites hides whether a hospital took part, and "
        f"the noise of {noisy} is {dp.noise_multiplier:g} times its largest size: below "
        f"about {MIN_CLIENTS} sites little of the model is left. Ask for record or patient "
        "level, which hide persons"
    )
