"""What a table's columns hold, computed once: for the eyes of the site that has it.

`profile` counts, averages and ranks the values of every column. Its numbers are exact and some
are about a single record, so a profile never leaves the site. What a mock twin may be made of
(node.twin) is in each column's `grid` and `cells`: how many records, and how many different
patients, have each level, or each bin of one round width that starts at a multiple of it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from consilia.data.contract import column_type
from consilia.data.reader import TableFile
from consilia.data.schema import Column, Schema, types

if TYPE_CHECKING:
    import duckdb

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_LEVELS = 1000  # of one column; one with more has none
FEW = 12  # numbers with no more distinct values than this are levels
FINE = 200  # values from which bins are narrow enough to show a shape
REACH = 200  # bins to either side of the median's that are told apart
_CHUNK = 200  # columns read at a time
_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Grid:
    """How a column's values fall into cells: by value, or into bins of one width."""

    kind: str  # levels, bins, none
    width: float = 0.0  # of a bin; of dates and times in days
    middle: int = 0  # the median's bin; what is REACH bins away or more is one cell each side


@dataclass(frozen=True, slots=True)
class Cell:
    """One level, or one bin: of numbers from `at` * width to below (`at` + 1) * width."""

    at: str | int  # a level's text, or a bin's index
    records: int
    patients: int  # different ones; records where the dataset names no patients


@dataclass(frozen=True, slots=True)
class ColumnProfile:
    """What one column holds. Numbers of dates and times are days since 1970-01-01."""

    name: str
    type: str
    missing: int
    distinct: int  # values, missing not counted
    least: float | None = None  # of numbers, dates and times, as what follows
    most: float | None = None
    mean: float | None = None
    sd: float | None = None  # divided by n - 1
    quantiles: tuple[float, ...] = ()  # at QUANTILES
    grid: Grid = Grid("none")
    cells: tuple[Cell, ...] = ()  # levels by falling count, or bins in order
    absent: Cell = Cell("", 0, 0)  # who has no value

    def share(self, records: int) -> float:
        """Return the share of `records` records without a value."""
        return self.missing / records if records else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """What a table held when it was looked at."""

    records: int
    patients: int  # different ones; records where the dataset names no patients
    columns: tuple[ColumnProfile, ...]


def profile(
    table: TableFile,
    schema: Schema,
    patient: str = "",
    grids: Mapping[str, Grid] = MappingProxyType({}),
) -> Profile:
    """Look at every column but those to be ignored.

    `grids` tells how columns fell into cells before, so that two profiles can be compared;
    other columns get the grid that fits them. Raises DataError for a value that does not fit.
    """
    wanted = tuple(c for c in schema if c.role != "ignore")
    found: list[ColumnProfile] = []
    totals = (0, 0)
    for at in range(0, len(wanted), _CHUNK):
        chunk = wanted[at : at + _CHUNK]
        read = types(chunk)
        if patient:
            read = {patient: "str"} | read
        with table.loaded(read) as connection:
            look = _Look(connection, f"c{list(read).index(patient)}" if patient else "")
            totals = look.totals()
            for name, (number, column) in _numbered(read, chunk):
                found.append(look.column(column, f"c{number}", grids.get(name)))
    return Profile(*totals, tuple(found))


def _numbered(
    read: Mapping[str, str], chunk: Schema
) -> Iterator[tuple[str, tuple[int, Column]]]:
    places = {name: i for i, name in enumerate(read)}
    for column in chunk:
        yield column.name, (places[column.name], column)


class _Look:
    """Queries of one loaded chunk of columns."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection", patient: str) -> None:
        self._connection = connection
        self._who = f"count(DISTINCT {patient})" if patient else "count(*)"

    def totals(self) -> tuple[int, int]:
        """Return how many records and patients there are."""
        return self._counts("")

    def column(self, column: Column, c: str, grid: Grid | None) -> ColumnProfile:
        """Look at one column, which is `c` here."""
        missing, _ = absent = self._counts(f"WHERE {c} IS NULL")
        distinct = int(self._one(f"count(DISTINCT {c})")[0])
        kind = column_type(column.type, column.name)
        nobody = Cell("", *absent)
        if column.type in _RANKED:
            value = c if kind.numeric else f"epoch({c}::TIMESTAMP) / {_DAY}"
            facts = self._facts(value)
            if grid is None:
                present = int(self._one(f"count({c})")[0])
                grid = _grid(column.type, distinct, present, facts)
            cells = self._cells(c, value, grid)
            return ColumnProfile(
                column.name, column.type, missing, distinct, *facts, grid, cells, nobody
            )
        if grid is None:
            levels = column.type in ("category", "bool") and column.role not in _UNTOLD
            grid = Grid("levels" if levels and distinct <= MAX_LEVELS else "none")
        cells = self._cells(c, c, grid)
        return ColumnProfile(
            column.name, column.type, missing, distinct, grid=grid, cells=cells, absent=nobody
        )

    def _facts(self, value: str) -> "_Facts":
        wanted = f"quantile_cont({value}, {list(QUANTILES)})"
        least, most, mean, sd, found = self._one(
            f"min({value})::DOUBLE, max({value})::DOUBLE, avg({value}), "
            f"CASE WHEN count({value}) > 1 THEN stddev_samp({value}) END, {wanted}"
        )
        quantiles = tuple(map(float, found or ()))
        return _number(least), _number(most), _number(mean), _number(sd), quantiles

    def _cells(self, c: str, value: str, grid: Grid) -> tuple[Cell, ...]:
        if grid.kind == "none":
            return ()
        cell = f"CAST({c} AS VARCHAR)"
        order, limit = "2 DESC, 1", f"LIMIT {MAX_LEVELS + 1}"
        if grid.kind == "bins":
            low, high = grid.middle - REACH, grid.middle + REACH
            clamped = f"greatest({low}, least({high}, floor({value} / {grid.width!r})))"
            cell, order, limit = f"CAST({clamped} AS BIGINT)", "1", ""
        rows = self._connection.execute(
            f"SELECT {cell}, count(*), {self._who} FROM loaded WHERE {c} IS NOT NULL "  # noqa: S608
            f"GROUP BY 1 ORDER BY {order} {limit}"
        ).fetchall()
        return tuple(Cell(at, int(records), int(patients)) for at, records, patients in rows)

    def _counts(self, where: str) -> tuple[int, int]:
        row = self._connection.execute(
            f"SELECT count(*), {self._who} FROM loaded {where}"  # noqa: S608
        ).fetchall()[0]
        return int(row[0]), int(row[1])

    def _one(self, select: str) -> tuple[Any, ...]:
        rows: list[tuple[Any, ...]] = self._connection.execute(
            f"SELECT {select} FROM loaded"  # noqa: S608
        ).fetchall()
        return rows[0]


_Facts = tuple[float | None, float | None, float | None, float | None, tuple[float, ...]]
_RANKED = ("float32", "float64", "int64", "date", "timestamp")
_UNTOLD = ("patient", "text", "ignore")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _grid(kind: str, distinct: int, present: int, facts: _Facts) -> Grid:
    """Return levels for a few numbers, else bins of a half or a fifth of the middle half.

    A width is 1, 2 or 5 times a power of ten, of whole numbers and days at least 1: it says
    about how wide the column is spread, and is moved by no single value but at a border.
    """
    quantiles = facts[-1]
    if not quantiles:
        return Grid("none")
    if distinct <= FEW and kind not in ("date", "timestamp"):
        return Grid("levels")
    low, q1, median, q3, high = quantiles
    spread = (q3 - q1) or (high - low) or abs(high) or 1.0
    width = round_up(spread / (5 if present >= FINE else 2))
    whole = kind in ("int64", "date", "timestamp")
    width = max(width, 1.0) if whole else width
    return Grid("bins", width, math.floor(median / width))


def round_up(value: float) -> float:
    """Return the least of 1, 2, 5 times a power of ten that is not below `value` > 0."""
    power = math.floor(math.log10(value))
    for digit in (1, 2, 5, 10):
        candidate = float(f"{digit}e{power}")
        if candidate >= value * (1 - 1e-9):
            return candidate
    return float(f"1e{power + 1}")
