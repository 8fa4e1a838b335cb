"""From the sum of all sites' answers to the statistics that people read.

    mean      centre + unit S1 / n             of weights n and sums S1 (stats.sums)
    sd        unit sqrt((S2 - S1^2 / n) / (n - 1))
    quantile  linear inside the bin of the summed histogram that it falls into

What is known about a number beside its value stands in `low` and `high`. A sum is off by half a
step of its fixed point a site at most. A quantile lies in one of the bins that it can fall into
when those records that no bin was told for are anywhere, and each rounded count is off by 2;
the first and the last bin have no outer end, so what can lie there has no `low` or no `high`.

In a masked sum, a number that fewer than three sites have told is not shown: it would be, or
would give each of two away to the other, a site's own.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from consilia.privacy.disclosure import QUANTILES
from consilia.privacy.ring import FRACTION
from consilia.stats import sums
from consilia.stats.sums import Item, Sum
from consilia.wire.statistics import Figure
from consilia.wire.v1 import Numbers, Statistics

FEWEST = 3  # sites that a number of a masked sum is of
OFF = 2  # records that a rounded count may be away from the true one


def figures(asked: Statistics, found: Mapping[Item, Sum], masked: bool) -> tuple[Figure, ...]:
    """Return all numbers of an answer, in the order of the question."""
    fewest = FEWEST if masked else 1
    shown = {item: s for item, s in found.items() if s.sites >= fewest}
    off = OFF * found[Item("rounded")].value
    return tuple(_figures(asked, shown, off))


def _figures(asked: Statistics, shown: Mapping[Item, Sum], off: float) -> Iterator[Figure]:
    groups = sums.groups_of(asked)
    for group in groups:
        yield _count("records", shown.get(Item("records", group=group)), group=group)
    for numbers in asked.numbers:
        for group in groups:
            yield from _numbers(numbers, group, shown, off)
    for levels in asked.levels:
        for group in groups:
            for place, name in enumerate(sums.names_of(levels)):
                cell = shown.get(Item("cell", levels.column, group, place))
                yield _count("level", cell, levels.column, group, name)
    for rows, across in asked.tables:
        width = len(sums.names_of(across))
        for i, row in enumerate(sums.names_of(rows)):
            for j, name in enumerate(sums.names_of(across)):
                item = Item("cell", rows.column, sums.WHOLE, i * width + j, across.column)
                yield _count("cell", shown.get(item), rows.column, "", row, across.column, name)


def _numbers(
    asked: Numbers, group: str, shown: Mapping[Item, Sum], off: float
) -> Iterator[Figure]:
    column = asked.column
    yield _count("count", shown.get(Item("count", column, group)), column, group)
    if "missing" in asked.what:
        yield _count("missing", shown.get(Item("missing", column, group)), column, group)
    if sums.moments(asked):
        yield from _moments(asked, group, shown)
    edges = asked.edges
    if not edges:
        return
    bins = [shown.get(Item("bin", column, group, i)) for i in range(sums.bins_of(asked))]
    for name, told in zip(sums.bin_names(asked), bins, strict=True):
        yield _count("histogram", told, column, group, name)
    whole = shown.get(Item("count", column, group))
    if "quantiles" in asked.what:
        for at in QUANTILES:
            yield _quantile(asked, group, at, (whole, bins, off))


def _moments(asked: Numbers, group: str, shown: Mapping[Item, Sum]) -> Iterator[Figure]:
    parts = {
        kind: shown.get(Item(kind, asked.column, group))
        for kind in ("weight", "sum", "squares")
    }
    weight, total, squares = parts["weight"], parts["sum"], parts["squares"]
    mean = Figure("mean", asked.column, group)
    if weight is not None and total is not None and weight.value > 0:
        found = asked.centre + asked.unit * total.value / weight.value
        step = asked.unit * weight.sites * 2.0 ** -(FRACTION + 1) / weight.value
        mean = _told(mean, found, step, weight.sites)
    yield mean
    if "sd" not in asked.what:
        return
    sd = Figure("sd", asked.column, group)
    if weight is not None and total is not None and squares is not None and weight.value > 1:
        square = (squares.value - total.value**2 / weight.value) / (weight.value - 1)
        about = abs(total.value) / weight.value
        step = weight.sites * 2.0 ** -(FRACTION + 1) * (1 + 2 * about) / (weight.value - 1)
        found = asked.unit * math.sqrt(max(0.0, square))
        low = asked.unit * math.sqrt(max(0.0, square - step))
        high = asked.unit * math.sqrt(max(0.0, square + step))
        sd = Figure(*_named(sd), value=found, low=low, high=high, sites=weight.sites)
    yield sd


def _quantile(
    asked: Numbers,
    group: str,
    at: float,
    told: tuple[Sum | None, Sequence[Sum | None], float],
) -> Figure:
    """Return a quantile with the ends of the bins that it can be in."""
    whole, bins, off = told
    empty = Figure("quantile", asked.column, group, f"{at:g}")
    counts = [0.0 if b is None else b.value for b in bins]
    known = sum(counts)
    if whole is None or known <= 0:
        return empty
    away = off * (len(bins) + 1)
    unknown = max(0.0, whole.value - known) + away
    place = at * known
    rising = list(accumulate(counts))
    first = next(i for i, n in enumerate(rising) if n >= place and counts[i] > 0)
    start = rising[first] - counts[first]
    low, high = asked.edges[first], asked.edges[first + 1]
    value = low + (high - low) * (place - start) / counts[first]
    # wherever the unknown records are, so many are below it at least, and at most
    total = known + unknown
    least, most = at * total - unknown, at * total
    early = next(
        i for i, n in enumerate(rising) if n >= min(least, known) or i == len(bins) - 1
    )
    late = next((i for i, n in enumerate(rising) if n - away >= most), len(bins) - 1)
    sites = min([whole.sites, *(b.sites for b in bins if b is not None)])
    lowest = asked.edges[early] if early else None  # the outer bins have no outer end
    highest = asked.edges[late + 1] if late < len(bins) - 1 else None
    return Figure(*_named(empty), value=value, low=lowest, high=highest, sites=sites)


def _count(  # noqa: PLR0913, PLR0917 - what a count is of
    statistic: str,
    told: Sum | None,
    column: str = "",
    group: str = "",
    level: str = "",
    across: str = "",
    across_level: str = "",
) -> Figure:
    value = None if told is None else told.value
    sites = 0 if told is None else told.sites
    return Figure(statistic, column, group, level, across, across_level, value, sites=sites)


def _told(figure: Figure, value: float, step: float, sites: int) -> Figure:
    return Figure(
        *_named(figure), value=value, low=value - step, high=value + step, sites=sites
    )


def _named(figure: Figure) -> tuple[str, str, str, str, str, str]:
    return (
        *(figure.statistic, figure.column, figure.group),
        *(figure.level, figure.across, figure.across_level),
    )
