"""From a sum with noise to the statistics that people read, with what the noise may have done.

Every number of a sum carries independent noise of one known deviation s, in records
(stats.private). Worked out from it alone, nothing here costs privacy:

    count       as it is; noise can bring it below 0
    mean        centre + unit S1 / n, told where n is clear of the noise (1.96 s)
    sd          unit sqrt(S2 / n - (S1 / n)^2), times sqrt(n / (n - 1))
    quantile    linear inside the bin that the summed histogram reaches it in

`low` and `high` hold, with 95 %, the number that the same records give without noise, values
beyond the bounds being counted as the bounds: a count by 1.96 s, a mean by Fieller's interval
of a ratio, an sd by its slopes, a quantile by the bins' edges that the noise leaves open, of
all edges together. `error` is the standard error: that of the noise and, of a mean whose sd is
told, also of there being n records and no more.

Sources: Fieller 1954 (ratios); Bonferroni (all edges of a histogram together).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist

from msgspec.structs import replace

from consilia.privacy.disclosure import QUANTILES
from consilia.stats import sums
from consilia.stats.sums import Item
from consilia.wire.statistics import Figure
from consilia.wire.v1 import Numbers, Statistics

Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class _Told:
    """A sum with noise."""

    values: Mapping[Item, float]
    noise: float  # deviation on every number, in records
    sites: int


@dataclass(frozen=True, slots=True)
class _Moments:
    """A column's sums in one group; of values from -1 to 1."""

    count: float
    total: float
    squares: float | None  # None: not asked for
    noise: float


def figures(
    asked: Statistics, values: Mapping[Item, float], noise: float, sites: int
) -> tuple[Figure, ...]:
    """Return all numbers of an answer, in the order of the question."""
    return tuple(_figures(asked, _Told(values, noise, sites)))


def _figures(asked: Statistics, told: _Told) -> Iterator[Figure]:
    groups = sums.groups_of(asked)
    for group in groups:
        yield _count(told, Item("records", group=group), Figure("records", group=group))
    for numbers in asked.numbers:
        for group in groups:
            yield from _numbers(numbers, group, told)
    for levels in asked.levels:
        for group in groups:
            for place, name in enumerate(sums.names_of(levels)):
                item = Item("cell", levels.column, group, place)
                yield _count(told, item, Figure("level", levels.column, group, name))
    for rows, across in asked.tables:
        width = len(sums.names_of(across))
        for i, row in enumerate(sums.names_of(rows)):
            for j, name in enumerate(sums.names_of(across)):
                item = Item("cell", rows.column, sums.WHOLE, i * width + j, across.column)
                bare = Figure("cell", rows.column, "", row, across.column, name)
                yield _count(told, item, bare)


def _numbers(asked: Numbers, group: str, told: _Told) -> Iterator[Figure]:
    column, values = asked.column, told.values
    yield _count(told, Item("count", column, group), Figure("count", column, group))
    if "missing" in asked.what:
        yield _count(told, Item("missing", column, group), Figure("missing", column, group))
    if sums.moments(asked):
        found = _Moments(
            values[Item("count", column, group)],
            values[Item("sum", column, group)],
            values.get(Item("squares", column, group)),
            told.noise,
        )
        yield _mean(asked, group, found, told.sites)
        if found.squares is not None:
            yield _sd(asked, group, found, found.squares, told.sites)
    for place, name in enumerate(sums.bin_names(asked) if asked.edges else ()):
        item = Item("bin", column, group, place)
        yield _count(told, item, Figure("histogram", column, group, name))
    if asked.edges and "quantiles" in asked.what:
        bins = [values[Item("bin", column, group, i)] for i in range(sums.bins_of(asked))]
        for at in QUANTILES:
            yield _quantile(asked, Figure("quantile", column, group, f"{at:g}"), at, bins, told)


def _count(told: _Told, item: Item, figure: Figure) -> Figure:
    value, noise = told.values[item], told.noise
    return _with(figure, value, (value - Z * noise, value + Z * noise), noise, told.sites)


def _mean(asked: Numbers, group: str, found: _Moments, sites: int) -> Figure:
    figure, n, s = Figure("mean", asked.column, group), found.count, found.noise
    if n <= Z * s:
        return figure  # a ratio to a count that may be none: anything would fit
    # Fieller: the m with (S1 - m n)^2 <= z^2 s^2 (1 + m^2)
    spread = (Z * s) ** 2
    middle, width = found.total * n, n * n - spread
    root = math.sqrt(max(0.0, middle**2 - width * (found.total**2 - spread)))
    ends = ((middle - root) / width, (middle + root) / width)
    mean = found.total / n
    error = s * math.sqrt(1 + mean * mean) / n
    if found.squares is not None:
        error = math.hypot(error, math.sqrt(_variance(found, found.squares) / n))
    low, high = (asked.centre + asked.unit * _within(end) for end in ends)
    value = asked.centre + asked.unit * _within(mean)
    return _with(figure, value, (low, high), asked.unit * error, sites)


def _sd(asked: Numbers, group: str, found: _Moments, squares: float, sites: int) -> Figure:
    figure, n = Figure("sd", asked.column, group), found.count
    if n <= Z * found.noise or n <= 1:
        return figure
    mean, square = _within(found.total / n), squares / n
    slopes = math.hypot(1.0, 2 * mean, 2 * mean * mean - square)  # of S2, S1, n
    off, variance = found.noise * slopes / n, _variance(found, squares)
    middle = math.sqrt(variance)
    low = math.sqrt(max(0.0, variance - Z * off))
    high = math.sqrt(min(1.0, variance + Z * off) * n / (n - 1))
    ends = (asked.unit * low, asked.unit * high)
    error = asked.unit * (high - low) / (2 * Z)
    value = asked.unit * min(1.0, middle) * math.sqrt(n / (n - 1))
    return _with(figure, value, ends, error, sites)


def _variance(found: _Moments, squares: float) -> float:
    """Return the variance of the values from -1 to 1, as far as the noise lets it be one."""
    mean = _within(found.total / found.count)
    return min(1.0, max(0.0, squares / found.count - mean * mean))


def _quantile(
    asked: Numbers, figure: Figure, at: float, bins: Sequence[float], told: _Told
) -> Figure:
    """Return a quantile between those edges that the noise does not exclude."""
    size, kept = len(bins), [max(0.0, n) for n in bins]
    known, whole = sum(kept), sum(bins)
    if whole <= Z * told.noise * math.sqrt(size):
        return figure
    rising = list(accumulate(kept))
    place = next(i for i, n in enumerate(rising) if n >= at * known and kept[i] > 0)
    start = rising[place] - kept[place]
    low, high = asked.edges[place], asked.edges[place + 1]
    value = low + (high - low) * (at * known - start) / kept[place]
    surely = NormalDist().inv_cdf(1 - 0.025 / (size - 1))  # every inner edge, both sides
    below = [n - at * whole for n in accumulate(bins)][:-1]  # records below an inner edge
    away = [
        surely * told.noise * math.sqrt(i * (1 - at) ** 2 + (size - i) * at**2)
        for i in range(1, size)
    ]
    under = [i for i, (n, a) in enumerate(zip(below, away, strict=True), 1) if n < -a]
    over = [i for i, (n, a) in enumerate(zip(below, away, strict=True), 1) if n > a]
    lowest = asked.edges[max(under)] if under else None  # the outer bins have no outer end
    highest = asked.edges[min(over)] if over else None
    return _with(figure, value, (lowest, highest), None, told.sites)


def _within(value: float) -> float:
    return min(1.0, max(-1.0, value))


def _with(
    figure: Figure,
    value: float,
    ends: tuple[float | None, float | None],
    error: float | None,
    sites: int,
) -> Figure:
    low, high = ends
    return replace(figure, value=value, low=low, high=high, sites=sites, error=error)
