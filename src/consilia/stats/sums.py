"""A question for sums: its checks, what each number of the answer is, and how it is coded.

Site and hub derive the same list of items from the question alone, so that an answer is a row
of integers without names, and the sites' answers can be added up, masked or not. Each item is
a number and a flag: 1 where the site has told it, else the number is 0 and so is the flag. A
sum of flags says how many sites a number is of, and never which.

    ROUNDED                     1 from a site that rounds its counts
    of each group of `by`       records
    of each of `numbers`        count, missing, moments (weight, sum, squares), bins
    of `levels`, of `tables`    cells

Counts are whole numbers; sums are in steps of 2**-20 (privacy.ring) of (value - centre) / unit.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from consilia.errors import ConfigError, WireError
from consilia.privacy.ring import FRACTION
from consilia.wire.v1 import Numbers, Statistics, Subgroups

Kind = Literal[
    "rounded", "records", "count", "missing", "weight", "sum", "squares", "bin", "cell"
]
MOST_ITEMS = 20_000
MOST_COLUMNS = 50
MOST_EDGES = 51
MOST_LEVELS = 50  # with more a site shows none, unless its settings say so
MAX_TEXT = 200  # characters of a column or level
WHOLE = ""  # the group of everybody
_OF_SUMS: frozenset[Kind] = frozenset({"weight", "sum", "squares"})


@dataclass(frozen=True, slots=True)
class Item:
    """One number of an answer: of a column's `place`-th bin, or of a cell of rows x columns."""

    kind: Kind
    column: str = ""
    group: str = WHOLE  # level of `by`
    place: int = 0
    across: str = ""  # the other column of a crosstab

    @property
    def fraction(self) -> int:
        """Bits behind the point."""
        return FRACTION if self.kind in _OF_SUMS else 0


def digest(asked: Statistics) -> str:
    """Name a question: a masked sum is bound to it, so that all sites answer the same one."""
    body = msgspec.msgpack.encode(asked)
    return "sha256:" + hashlib.sha256(b"consilia statistics\0" + body).hexdigest()


def parts(asked: Statistics) -> tuple[str, ...]:
    """Name the parts of a question by what they are about: of each, one sum may be opened."""
    about = (asked.where, asked.by)
    named: list[tuple[object, ...]] = [("records", *about)]
    named += [("numbers", *about, n.column) for n in asked.numbers]
    named += [("levels", *about, levels) for levels in asked.levels]
    named += [("table", asked.where, pair) for pair in asked.tables]
    return tuple(hashlib.sha256(msgspec.msgpack.encode(part)).hexdigest() for part in named)


def groups_of(asked: Statistics) -> tuple[str, ...]:
    """Return the names of the groups that numbers and levels are told for."""
    return names_of(asked.by) if asked.by is not None else (WHOLE,)


def names_of(asked: Subgroups) -> tuple[str, ...]:
    """Return the names of a column's subgroups: its levels, or what lies between cut points."""
    if not asked.cuts:
        return asked.levels
    texts = [f"{cut:g}" for cut in asked.cuts]
    between = (f"{low} to {high}" for low, high in pairwise(texts))
    return (f"below {texts[0]}", *between, f"from {texts[-1]}")


def bins_of(asked: Numbers) -> int:
    """Return how many bins a column's histogram has."""
    return max(0, len(asked.edges) - 1)


def bin_names(asked: Numbers) -> tuple[str, ...]:
    """Name the bins of a histogram, of 3 edges or more; the outer ones have no outer end."""
    return names_of(Subgroups(asked.column, cuts=asked.edges[1:-1]))


def items(asked: Statistics) -> tuple[Item, ...]:
    """Return what the numbers of an answer are, in their order."""
    return tuple(_items(asked))


def _items(asked: Statistics) -> Iterator[Item]:
    groups = groups_of(asked)
    yield Item("rounded")
    for group in groups:
        yield Item("records", group=group)
    for numbers in asked.numbers:
        for group in groups:
            yield from _numbers(numbers, group)
    for levels in asked.levels:
        for group in groups:
            for place in range(len(names_of(levels))):
                yield Item("cell", levels.column, group, place)
    for rows, columns in asked.tables:
        for place in range(len(names_of(rows)) * len(names_of(columns))):
            yield Item("cell", rows.column, WHOLE, place, columns.column)


def _numbers(asked: Numbers, group: str) -> Iterator[Item]:
    yield Item("count", asked.column, group)
    if "missing" in asked.what:
        yield Item("missing", asked.column, group)
    if moments(asked):
        yield Item("weight", asked.column, group)
        yield Item("sum", asked.column, group)
    if "sd" in asked.what:
        yield Item("squares", asked.column, group)
    for place in range(bins_of(asked)):
        yield Item("bin", asked.column, group, place)


def moments(asked: Numbers) -> bool:
    """Tell whether a column's sum is asked for."""
    return "mean" in asked.what or "sd" in asked.what


# ---- as integers ---------------------------------------------------------------------------


def coded(asked: Statistics, told: dict[Item, float]) -> NDArray[np.uint64]:
    """Return an answer as integers: the numbers, then the flags. Items not in `told` are 0.

    The caller has seen to it that each number fits (`fits`).
    """
    every = items(asked)
    values = [round(math.ldexp(told.get(item, 0.0), item.fraction)) for item in every]
    flags = [int(item in told) for item in every]
    return np.array([*values, *flags], np.int64).view(np.uint64)


def fits(item: Item, value: float) -> bool:
    """Tell whether a number can be added up over 1000 sites: see privacy.ring.EXACT."""
    return math.isfinite(value) and abs(math.ldexp(value, item.fraction)) <= 1 << 53


@dataclass(frozen=True, slots=True)
class Sum:
    """A number over the sites that have told it."""

    value: float
    sites: int


def decoded(asked: Statistics, body: NDArray[np.uint64], sites: int) -> dict[Item, Sum]:
    """Return the sums of `sites` answers; WireError for flags that no answers add up to."""
    every = items(asked)
    if body.shape != (2 * len(every),):
        raise WireError(f"{body.size} numbers of statistics, asked for {2 * len(every)}")
    signed = body.view(np.int64).tolist()
    found = {}
    for item, value, flags in zip(every, signed, signed[len(every) :], strict=False):
        if not 0 <= flags <= sites or (value < 0 and item.kind != "sum"):
            raise WireError(f"a sum of {flags} flags of {sites} sites: an answer is malformed")
        found[item] = Sum(math.ldexp(value, -item.fraction), flags)
    return found


# ---- what may be asked -----------------------------------------------------------------------


def check(asked: Statistics) -> None:
    """Raise ConfigError naming the field for a question that makes no sense."""
    columns = [n.column for n in asked.numbers] + [s.column for s in asked.levels]
    every = [*asked.levels, *(s for pair in asked.tables for s in pair)]
    if asked.by is not None:
        every.append(asked.by)
    if not columns and not asked.tables and asked.by is None and not asked.where:
        raise ConfigError("columns: found none; name a column, a group or a condition")
    if len(columns) > MOST_COLUMNS or len(set(columns)) < len(columns):
        found = ", ".join(columns[:8])
        raise ConfigError(f"columns: found {found}; needed at most {MOST_COLUMNS}, each once")
    for numbers in asked.numbers:
        _check_numbers(numbers)
    for levels in every:
        _check_levels(levels)
    for rows, across in asked.tables:
        if rows.column == across.column:
            raise ConfigError(f"tables: found {rows.column!r} twice; needed two columns")
    pairs = [(rows.column, across.column) for rows, across in asked.tables]
    if twice := [pair for pair in pairs if pairs.count(pair) > 1]:
        found = " and ".join(map(repr, twice[0]))
        raise ConfigError(f"tables: found {found} twice; needed each pair of columns once")
    if (size := sum(1 for _ in _items(asked))) > MOST_ITEMS:
        raise ConfigError(f"columns: found {size} numbers in all; needed at most {MOST_ITEMS}")


def _check_numbers(asked: Numbers) -> None:
    _check_text(asked.column, "columns")
    edges = asked.edges
    if edges and (not 3 <= len(edges) <= MOST_EDGES or not _rising(edges)):
        shown = ", ".join(f"{e:g}" for e in edges[:8])
        raise ConfigError(
            f"edges.{asked.column}: found {shown}; needed 3 to {MOST_EDGES} rising numbers"
        )
    if not (math.isfinite(asked.centre) and 0 < asked.unit < math.inf):
        found = f"centre {asked.centre}, unit {asked.unit}"
        raise ConfigError(f"bounds.{asked.column}: found {found}; needed two rising numbers")


def _check_levels(asked: Subgroups) -> None:
    _check_text(asked.column, "columns")
    field, names = f"levels.{asked.column}", names_of(asked)
    if bool(asked.levels) == bool(asked.cuts):
        raise ConfigError(f"{field}: found none; needed its levels, or cut points")
    if not 2 <= len(names) <= MOST_LEVELS or len(set(names)) < len(names):
        raise ConfigError(
            f"{field}: found {len(names)} names; needed 2 to {MOST_LEVELS}, each once"
        )
    for name in names:
        _check_text(name, field)
    if asked.cuts and not _rising(asked.cuts):
        raise ConfigError(f"{field}: found cut points that do not rise; needed rising numbers")


def _check_text(text: str, field: str) -> None:
    if not 1 <= len(text) <= MAX_TEXT or not text.isprintable():
        raise ConfigError(f"{field}: found {text[:80]!r}; needed 1 to {MAX_TEXT} characters")


def _rising(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values)) and all(a < b for a, b in pairwise(values))
