"""Rules that make one model of a round's updates although some of them may be arbitrary.

The mean follows whoever is furthest out: one site can put it anywhere. The rules here give each
site one vote, whatever number of records it claims, and bear f arbitrary updates among n.

| rule | the new value | bears |
|---|---|---|
| mean | record-weighted mean | none |
| median | middle value of each coordinate | f < n / 2 |
| trimmed-mean | mean of each coordinate less the k lowest and highest, k = ceil(trim n) | k |
| krum | the update with the least sum of squares to its n - f - 2 nearest | n >= 2 f + 3 |
| multi-krum | mean of the m updates that Krum ranks first, m = 0: n - f - 2 | n >= 2 f + 3 |
| geometric-median | point of least summed distance to the updates | f < n / 2 |

Two kinds. `combine` takes the values of all updates for some coordinates and returns one value
for each: any pieces of any tensor will do. `choose` takes the squared distances between whole
updates, which `measure` has summed piece by piece in float64, and returns the weight of each:
a second pass makes their weighted mean. Neither ever holds a model.

Distances are over floating-point tensors. Integer and bool tensors are counters and masks:
under every rule but the mean they take the median of each coordinate.

The geometric median needs no pass for each of its iterations: every iterate is a weighted mean
z = sum_i w_i x_i of the updates, and then

    |z - x_i|^2 = sum_j w_j |x_i - x_j|^2 - 1/2 sum_jk w_j w_k |x_j - x_k|^2.

What holds for all: updates in another order give the same bits (`combine`), or the same weights
up to rounding (`choose`; ties go to the first), so the caller sorts them by site. Memory is the
pieces that the caller passes in.

Sources: Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning: Towards
Optimal Statistical Rates, ICML 2018. Blanchard, El Mhamdi, Guerraoui, Stainer, Machine Learning
with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS 2017. Pillutla, Kakade and
Harchaoui, Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing 70,
2022. Batcher, Sorting networks and their applications, AFIPS 1968 (odd-even merge sort).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from consilia.algo.aggregate import Accumulator
from consilia.algo.strategy import Option, Options, pick, shown
from consilia.errors import ConfigError, EmptyRound

Floats = NDArray[np.float64]
Combine = Callable[[Options, Accumulator], Accumulator]
Choose = Callable[[Options, Floats], Floats]

_BLOCK = 4096  # coordinates handled at a time: the rows of a few updates stay in the cache
_ROUNDS = 1000  # of Weiszfeld's iteration, at most
_SETTLED = 1e-12  # change of the weights at which it ends
_SMOOTH = 1e-6  # smallest distance it divides by, as a share of the middle one
_FAR = 1e6  # times the middle distance: the geometric median leaves out what lies beyond


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. All functions are pure; the mean has neither `combine` nor `choose`."""

    name: str
    options: Mapping[str, Option]
    bears: Callable[[Options, int], int]
    """(options, n) -> how many arbitrary updates among n it withstands."""
    fewest: Callable[[Options], int]
    """(options) -> how many updates a round needs for the rule to mean anything."""
    combine: Combine | None = None
    """(options, values[n, m]) -> [m], possibly a view of `values`, which is overwritten."""
    choose: Choose | None = None
    """(options, squared distances[n, n]) -> weights[n], not negative, with sum 1."""
    source: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is the mean, which can be folded as updates come, or masked."""
        return self.combine is None and self.choose is None


def rule(name: str, options: Options) -> tuple[Rule, dict[str, float]]:
    """Return the rule and all its options, defaults filled in.

    Raises ConfigError naming the nearest when the name or an option is unknown, and what is
    needed when a value is outside its range or not whole where a count is asked for.
    """
    chosen, values = pick("aggregate", name, options, RULES)
    for key in _COUNTS & values.keys():
        if values[key] != int(values[key]):
            raise ConfigError(
                f"option {key} of {name} is {values[key]:g}, needs a whole number"
            )
    return chosen, values


def check(chosen: Rule, options: Options, updates: int) -> None:
    """Raise EmptyRound when a round has fewer updates than the rule needs."""
    if updates < (needed := chosen.fewest(options)):
        given = "".join(f", {key} = {value:g}" for key, value in options.items())
        raise EmptyRound(
            f"aggregate {chosen.name}{given} got {updates} updates, needs at least {needed}: "
            "raise min_updates, or choose another rule"
        )


def describe() -> str:
    """Return docs/reference/robust.md: the rules as this module's docstring has them."""
    _, _, rules = (__doc__ or "").partition("\n\n")
    return f"{_HEAD}\n{rules.strip()}\n\n## Options\n\n{table()}"


def table() -> str:
    """Return a markdown table of the rules: their options and how many sites they need."""
    head = (
        "| aggregate | options (default) | fewest updates, with defaults | bad sites it bears "
        "among 5, 10, 20 | source |",
        "|---|---|---|---|---|",
    )
    rows = []
    for each in RULES.values():
        usual = {key: option.default for key, option in each.options.items()}
        bears = ", ".join(f"{each.bears(usual, n)}" for n in (5, 10, 20))
        rows.append(
            f"| {each.name} | {shown(each.options)} | {each.fewest(usual)} | {bears} "
            f"| {each.source} |"
        )
    return "\n".join((*head, *rows, ""))


_HEAD = """\
# Aggregates

Made by `consilia.algo.robust.describe()`; a test compares. An experiment names one, beside its
strategy: `aggregate: {name: trimmed-mean, options: {trim: 0.2}}`. All but the mean need each
site's update in the clear, so they run with `privacy: {aggregation: plain}` only:
[why, and what else there is](../explanation/bad-sites.md).
"""


# ---- distances -------------------------------------------------------------------------------


def measure(values: Floats, squares: Floats) -> None:
    """Add to `squares` [n, n] the squared distances between the rows of `values` [n, m].

    Summed over all pieces it holds |x_i - x_j|^2. Each entry is computed for itself in a fixed
    order (no matrix product), so it depends on its two rows only. What overflows is infinity.
    """
    count, length = values.shape
    scratch = np.empty((count, min(_BLOCK, length)))
    with np.errstate(over="ignore"):
        for start in range(0, length, _BLOCK):
            part = values[:, start : start + _BLOCK]
            for i in range(count - 1):
                gap = scratch[: count - 1 - i, : part.shape[1]]
                np.subtract(part[i + 1 :], part[i], out=gap)
                found = np.einsum("ij,ij->i", gap, gap)
                squares[i, i + 1 :] += found
                squares[i + 1 :, i] += found


# ---- each coordinate for itself --------------------------------------------------------------


def ordered(values: Accumulator) -> Accumulator:
    """Sort each column of `values` [n, m] in place and return it; -0.0 becomes 0.0.

    A sorting network exchanges whole rows, which for a few dozen updates is several times
    faster than to sort columns, and its result does not depend on the order of the rows.
    """
    values += values.dtype.type(0.0)  # or two zeros could come out in the order they came in
    network = tuple(_comparators(len(values)))
    low = np.empty(min(_BLOCK, values.shape[1]), values.dtype)
    for start in range(0, values.shape[1], _BLOCK):
        rows = values[:, start : start + _BLOCK]
        room = low[: rows.shape[1]]
        for a, b in network:
            np.minimum(rows[a], rows[b], out=room)
            np.maximum(rows[a], rows[b], out=rows[b])
            rows[a] = room
    return values


def _comparators(count: int) -> Iterator[tuple[int, int]]:
    """Yield Batcher's odd-even merge sort for `count` rows: (lower row, higher row)."""
    run = 1
    while run < count:
        gap = run
        while gap:
            for start in range(gap % run, count - gap, 2 * gap):
                for i in range(start, min(start + gap, count - gap)):
                    if i // (2 * run) == (i + gap) // (2 * run):
                        yield i, i + gap
            gap //= 2
        run *= 2


def _median(_: Options, values: Accumulator) -> Accumulator:
    rows, half = ordered(values), len(values) // 2
    if len(values) % 2:
        odd: Accumulator = rows[half]
        return odd
    low, high = rows[half - 1], rows[half]
    middle = low * low.dtype.type(0.5) + high * high.dtype.type(0.5)  # their sum could overflow
    result: Accumulator = np.clip(middle, low, high)
    return result


def trimmed(trim: float, count: int) -> int:
    """Return how many of `count` values are left out at each end: at least one, never all."""
    return min(ceil(trim * count - 1e-9), (count - 1) // 2)


def _trimmed_mean(options: Options, values: Accumulator) -> Accumulator:
    cut = trimmed(options["trim"], len(values))
    rows = ordered(values)[cut : len(values) - cut]
    mean = rows[0].copy()
    for number, row in enumerate(rows[1:], 2):
        # Halves, so that no difference of two finite values overflows.
        mean += (row * row.dtype.type(0.5) - mean * row.dtype.type(0.5)) * row.dtype.type(
            2.0 / number
        )
    result: Accumulator = np.clip(mean, rows[0], rows[-1])
    return result


# ---- by distance -----------------------------------------------------------------------------


def _ranked(f: int, squares: Floats) -> NDArray[np.intp]:
    """Return the updates in the order of Krum's score; equal scores keep their order."""
    count = len(squares)
    others = np.sort(squares + np.diag(np.full(count, inf)), axis=1)
    with np.errstate(over="ignore"):
        return np.argsort(others[:, : count - f - 2].sum(axis=1), kind="stable")


def _krum(options: Options, squares: Floats) -> Floats:
    weights = np.zeros(len(squares))
    weights[_ranked(int(options["f"]), squares)[0]] = 1.0
    return weights


def _multi_krum(options: Options, squares: Floats) -> Floats:
    f, count = int(options["f"]), len(squares)
    best = _ranked(f, squares)[: int(options["m"]) or count - f - 2]
    weights = np.zeros(count)
    weights[best] = 1.0 / len(best)
    return weights


def _geometric_median(_: Options, squares: Floats) -> Floats:
    """Weiszfeld's iteration, smoothed, on weights instead of points (see the module's head)."""
    near = _near(squares)
    kept = squares[np.ix_(near, near)]
    found = np.full(len(near), 1.0 / len(near))
    pairs = kept[~np.eye(len(near), dtype=bool)]
    least = max(_SMOOTH * float(np.sqrt(np.median(pairs))) if pairs.size else 0.0, 1e-150)
    for _round in range(_ROUNDS):
        reach = kept @ found
        gaps = np.sqrt(np.maximum(reach - 0.5 * (found @ reach), 0.0))
        step = 1.0 / np.maximum(gaps, least)
        step /= step.sum()
        moved = float(np.abs(step - found).max())
        found = step
        if moved < _SETTLED:
            break
    weights = np.zeros(len(squares))
    weights[near] = found
    return weights


def _near(squares: Floats) -> NDArray[np.intp]:
    """Return the updates within _FAR times the middle distance of the middlemost update.

    What lies further out is left out, although in the geometric median it would still pull with
    the force of one: beside it the other distances would drown in rounding.
    """
    typical = np.median(squares, axis=1)  # about half of all are at most so far away
    centre = int(np.argmin(typical))
    limit = _FAR * float(np.sqrt(typical[centre]))
    if limit == inf:  # no two of most updates are at a distance that can be told
        return np.array([centre])
    return np.flatnonzero(np.sqrt(squares[centre]) <= limit)


# ---- the rules -------------------------------------------------------------------------------


def _minority(_: Options, updates: int) -> int:
    return max(0, (updates - 1) // 2)


def _krum_bears(options: Options, updates: int) -> int:
    return int(options["f"]) if updates >= 2 * options["f"] + 3 else 0


def _krum_fewest(options: Options) -> int:
    # m <= n - f - 2: of those ranked first at most n - f - 2 are known to be near the others.
    return int(max(2 * options["f"] + 3, options.get("m", 0) + options["f"] + 2))


_F = Option(1.0, 1.0, 1000.0)
_COUNTS = frozenset({"f", "m"})
_ALL = (
    Rule("mean", {}, lambda _, n: 0, lambda _: 1, source="McMahan et al. 2017, algorithm 1"),
    Rule(
        "median",
        {},
        _minority,
        lambda _: 3,
        combine=_median,
        source="Yin et al. 2018, definition 1",
    ),
    Rule(
        "trimmed-mean",
        {"trim": Option(0.2, 0.0, 0.5, low_open=True, high_open=True)},
        lambda o, n: trimmed(o["trim"], n),
        lambda _: 3,
        combine=_trimmed_mean,
        source="Yin et al. 2018, definition 2",
    ),
    Rule(
        "krum",
        {"f": _F},
        _krum_bears,
        _krum_fewest,
        choose=_krum,
        source="Blanchard et al. 2017, section 4",
    ),
    Rule(
        "multi-krum",
        {"f": _F, "m": Option(0.0, 0.0, 1000.0)},
        _krum_bears,
        _krum_fewest,
        choose=_multi_krum,
        source="Blanchard et al. 2017, section 5",
    ),
    Rule(
        "geometric-median",
        {},
        _minority,
        lambda _: 3,
        choose=_geometric_median,
        source="Pillutla et al. 2022, algorithm 2",
    ),
)
RULES: Mapping[str, Rule] = {r.name: r for r in _ALL}
