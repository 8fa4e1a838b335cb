"""A table before and after a loading plan, for the eyes of the site that owns it.

Everything here is of the records themselves: values, exact counts, exact extremes. It is shown
on the site's own terminal or console and passes no disclosure control, so it must not leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilia.data.contract import column_type
from consilia.data.loading.blocks import LoadingPlan
from consilia.data.loading.expression import kind_of
from consilia.data.loading.table import LoadedFile
from consilia.data.reader import quoted
from consilia.data.registry import Dataset, to_source

MAX_ROWS = 1000
_SHOWN = 40  # characters of a value


@dataclass(frozen=True, slots=True)
class ColumnSummary:
    """One column as it is loaded. Extremes, mean and deviation are None where it has none."""

    name: str
    type: str
    missing: int
    distinct: int
    least: str | None
    greatest: str | None
    mean: float | None
    deviation: float | None  # of the sample


@dataclass(frozen=True, slots=True)
class View:
    """A table: how many records, what its columns hold, its first rows as texts."""

    records: int
    columns: tuple[ColumnSummary, ...]
    rows: tuple[tuple[str | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Preview:
    """A table as it is, and as a plan makes it."""

    before: View
    after: View


def preview(
    dataset: Dataset, plan: LoadingPlan, *, without: bytes = b"", rows: int = 5
) -> Preview:
    """Return `dataset` before and after `plan`; raises what the plan raises when it is used.

    Reads the whole table four times, twice for either view. `without` are records left out.
    """
    rows = max(0, min(rows, MAX_ROWS))
    return Preview(
        view(opened(dataset, None, without), rows), view(opened(dataset, plan, without), rows)
    )


def opened(dataset: Dataset, plan: LoadingPlan | None, without: bytes = b"") -> LoadedFile:
    """Open a dataset under a plan."""
    source = to_source(dataset)
    return LoadedFile(
        Path(source.path),
        source.format,
        source.missing,
        source.columns,
        plan,
        patient=source.patient,
        without=without,
        threads=2,
        codes=source.codes,
        units=source.units,
    )


def view(file: LoadedFile, rows: int) -> View:
    """Return what is in a table."""
    wanted = {"records": "count(*)"}
    for i, (name, type_) in enumerate(file.columns.items()):
        wanted |= {f"{i} {key}": sql for key, sql in _aggregates(name, type_).items()}
    found = dict(zip(wanted, file.run(wanted, _one), strict=True))
    columns = tuple(
        _summary(name, type_, found["records"], {k: found[f"{i} {k}"] for k in _KEYS})
        for i, (name, type_) in enumerate(file.columns.items())
    )
    texts = {n: f"left(CAST({quoted(n)} AS VARCHAR), {_SHOWN})" for n in file.columns}
    first = file.run(texts, _all, f"LIMIT {rows}")
    return View(int(found["records"]), columns, tuple(tuple(row) for row in first))


_KEYS = ("present", "distinct", "least", "greatest", "mean", "deviation")


def _aggregates(name: str, type_: str) -> dict[str, str]:
    column = quoted(name)
    number = column_type(type_, name).numeric
    value = f"CAST({column} AS DOUBLE)" if number else "NULL::DOUBLE"
    ordered = column if kind_of(type_, name) in ("number", "date") else "NULL"
    return {
        "present": f"count({column})",
        "distinct": f"count(DISTINCT {column})",
        "least": f"CAST(min({ordered}) AS VARCHAR)",
        "greatest": f"CAST(max({ordered}) AS VARCHAR)",
        "mean": f"avg({value})",
        "deviation": f"stddev_samp({value})",
    }


def _summary(name: str, type_: str, records: int, found: dict[str, Any]) -> ColumnSummary:
    return ColumnSummary(
        name,
        type_,
        int(records) - int(found["present"]),
        int(found["distinct"]),
        found["least"],
        found["greatest"],
        found["mean"],
        found["deviation"],
    )


def _one(result: Any) -> Sequence[Any]:
    row: Sequence[Any] = result.fetchall()[0]
    return row


def _all(result: Any) -> list[tuple[str | None, ...]]:
    rows: list[tuple[str | None, ...]] = result.fetchall()
    return rows
