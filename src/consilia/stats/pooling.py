"""What several sites have measured, as one: a metric's mean over the sites, by their records.

Of a metric that is a mean over records (accuracy, Brier score, MAE, Dice) this is the value on
all records together, exactly, as far as the sites round nothing. Of AUC, F1 and the C-index it
is the mean of what holds within each site: pairs of records of two sites are not compared, for
nobody has both. Intervals are normal, 95 %, of independent sites.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, sqrt

from consilia.wire.v1 import Measure

Z = 1.959963984540054  # of a 95 % interval
ADDITIVE = frozenset({"accuracy", "brier", "mae", "dice"})  # means over records
_ENDLESS = (-inf, inf)
_RANGES = {"brier": (0.0, 2.0), "mae": (0.0, inf)} | dict.fromkeys(
    ("auc", "accuracy", "f1", "c_index", "dice"), (0.0, 1.0)
)


@dataclass(frozen=True, slots=True)
class Pooled:
    """A metric over several sites."""

    value: float
    error: float  # standard error
    records: int
    sites: int


def pool(measures: Iterable[Measure]) -> Pooled:
    """Return the mean of one metric over sites, each weighing its records; at least one."""
    found = list(measures)
    total = sum(m.records for m in found)
    value = sum(m.value * m.records for m in found) / total
    error = sqrt(sum((m.error * m.records / total) ** 2 for m in found))
    return Pooled(value, error, total, len(found))


def pooled(sites: Iterable[Mapping[str, Measure]]) -> dict[str, Pooled]:
    """Return every metric that some site has, over the sites that have it."""
    by_name: dict[str, list[Measure]] = {}
    for measures in sites:
        for name, measure in measures.items():
            if measure.records > 0:
                by_name.setdefault(name, []).append(measure)
    return {name: pool(found) for name, found in sorted(by_name.items())}


def interval(name: str, value: float, error: float, reach: float = Z) -> tuple[float, float]:
    """Return the 95 % interval of a metric: `reach` errors to each side, within its range."""
    low, high = _RANGES.get(name, _ENDLESS)
    return max(low, value - reach * error), min(high, value + reach * error)
