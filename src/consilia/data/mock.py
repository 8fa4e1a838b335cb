"""Invented records with a dataset's columns: to develop a plan on, or to try one with.

They are drawn from a `MockTwin`, which holds one column's counts at a time and no record
(node.twin makes it), or from a schema alone (`bare`). Columns are independent of each other, so
nothing can be learnt from the result but whether a program runs. Where a twin says nothing of
a column, its values are placeholders: numbers of a standard normal, days of one year, words.
"""

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Array
from consilia.data.contract import TYPES
from consilia.data.schema import Schema
from consilia.errors import DataError
from consilia.wire.v1 import MockColumn, MockTwin

MAX_ROWS = 10_000_000
# how far from 0 bins may reach: whole numbers a float holds, days of ten thousand years
_LIMITS: Mapping[str, float] = MappingProxyType(
    {"int64": 2.0**53, "date": 3.6e6, "timestamp": 3.6e6}
)
_TRUE = ("true", "t", "yes", "y", "1")

Rng = np.random.Generator
Cells = NDArray[np.float64]


def bare(schema: Schema) -> MockTwin:
    """Return a twin that knows the columns and nothing of their values."""
    return MockTwin(
        tuple(
            MockColumn(c.name, c.type, c.unit, c.code_system, c.role)
            for c in schema
            if c.role != "ignore"
        )
    )


def table(twin: MockTwin | Schema, rows: int, rng: Rng) -> dict[str, Array]:
    """Return `rows` invented values of every column, in order.

    float32, float64: NaN where a value is missing; int64, bool: masked arrays where any is;
    texts: arrays of str, None where missing; date: datetime64[D]; timestamp: datetime64[us],
    NaT where missing. The same `rng` state gives the same table.
    """
    if not 1 <= rows <= MAX_ROWS:
        raise DataError(f"rows={rows}; needed 1 to {MAX_ROWS}")
    whole = twin if isinstance(twin, MockTwin) else bare(twin)
    return {c.name: _column(c, rows, rng) for c in whole.columns}


def write_csv(twin: MockTwin | Schema, path: Path, rows: int, rng: Rng) -> dict[str, str]:
    """Write `rows` invented records as a CSV file; return column -> type, to read it by."""
    whole = twin if isinstance(twin, MockTwin) else bare(twin)
    columns = table(whole, rows, rng)
    texts = [_texts(values) for values in columns.values()]
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*texts, strict=True))
    return {c.name: c.type for c in whole.columns}


def _column(c: MockColumn, rows: int, rng: Rng) -> Array:
    if c.type not in TYPES:
        raise DataError(f"mock column {c.name[:80]!r} is of type {c.type[:40]!r}, unknown here")
    end, limit = c.start + c.width * len(c.counts), _LIMITS.get(c.type, math.inf)
    if not (math.isfinite(end) and c.width >= 0 and max(abs(c.start), abs(end)) <= limit):
        raise DataError(
            f"mock column {c.name[:80]!r}: bins from {c.start} to {end}, "
            f"which {c.type} cannot hold"
        )
    absent = rng.random(rows) < _share(c)
    make = _MAKERS.get(c.type, _words)
    values = make(c, rows, rng)
    if values.dtype.kind == "f":
        values[absent] = np.nan
    elif values.dtype.kind == "M":
        values[absent] = np.datetime64("NaT")
    elif values.dtype.kind == "O":
        return np.where(absent, np.array(None, object), values)
    elif absent.any():
        return np.ma.MaskedArray(values, absent)
    return values


def _share(c: MockColumn) -> float:
    told = sum(c.levels.values()) + sum(c.counts)
    return c.absent / (told + c.absent) if told and c.absent > 0 else 0.0


def _pick(counts: Cells, rows: int, rng: Rng) -> NDArray[np.int64]:
    """Return indexes drawn with the counts as weights."""
    if not (np.isfinite(counts).all() and (counts >= 0).all() and counts.sum() > 0):
        raise DataError("a mock twin's counts must be finite, not negative, and not all 0")
    return rng.choice(len(counts), size=rows, p=counts / counts.sum())


def _bins(c: MockColumn, rows: int, rng: Rng) -> Cells:
    """Return numbers drawn evenly within bins."""
    at = _pick(np.asarray(c.counts, np.float64), rows, rng)
    return c.start + c.width * (at + rng.random(rows))


def _levels(c: MockColumn, rows: int, rng: Rng) -> list[str]:
    names = list(c.levels)
    at = _pick(np.asarray(list(c.levels.values()), np.float64), rows, rng)
    return [names[i] for i in at]


def _number(c: MockColumn, rows: int, rng: Rng) -> Cells:
    try:
        if c.levels:
            found = np.asarray([float(v) for v in _levels(c, rows, rng)])
            if np.isfinite(found).all() and np.abs(found).max() <= _LIMITS.get(
                c.type, math.inf
            ):
                return found
            raise ValueError
    except ValueError:
        raise DataError(
            f"mock column {c.name[:80]!r}: a level is no number of its type"
        ) from None
    if not c.counts:
        return np.round(rng.standard_normal(rows), 3)
    if c.type == "int64":
        # within the bin, whole: bins of whole numbers begin and end at whole numbers
        return np.floor(_bins(c, rows, rng))
    digits = int(max(0, 2 - np.floor(np.log10(c.width)))) if c.width > 0 else 3
    return np.round(_bins(c, rows, rng), min(digits, 12))


def _floats(c: MockColumn, rows: int, rng: Rng) -> Array:
    return _number(c, rows, rng).astype(c.type)


def _integers(c: MockColumn, rows: int, rng: Rng) -> Array:
    if not c.levels and not c.counts:
        return rng.integers(0, 10, rows)
    return _number(c, rows, rng).astype(np.int64)


def _booleans(c: MockColumn, rows: int, rng: Rng) -> Array:
    if not c.levels:
        return rng.random(rows) < 0.5
    return np.asarray([v.lower() in _TRUE for v in _levels(c, rows, rng)])


def _days(c: MockColumn, rows: int, rng: Rng) -> Array:
    days = _bins(c, rows, rng) if c.counts else rng.integers(18262, 18628, rows)  # 2020
    return np.floor(days).astype(np.int64).astype("datetime64[D]")


def _times(c: MockColumn, rows: int, rng: Rng) -> Array:
    days = _bins(c, rows, rng) if c.counts else 18262 + 366 * rng.random(rows)
    return np.round(days * 86400).astype(np.int64).astype("datetime64[s]").astype("M8[us]")


def _words(c: MockColumn, rows: int, rng: Rng) -> Array:
    if c.levels:
        texts = _levels(c, rows, rng)
    elif c.role == "patient":
        texts = [f"mock-{i:06d}" for i in range(1, rows + 1)]
    else:
        texts = [f"{c.role}-{i}" for i in rng.integers(1, 6, rows)]
    found = np.empty(rows, object)
    found[:] = texts
    return found


_MAKERS: Mapping[str, Callable[[MockColumn, int, Rng], Array]] = MappingProxyType(
    {
        "float32": _floats,
        "float64": _floats,
        "int64": _integers,
        "bool": _booleans,
        "date": _days,
        "timestamp": _times,
    }
)


def _texts(values: Array) -> list[str]:
    """Return values as a CSV file has them, "" where missing."""
    if isinstance(values, np.ma.MaskedArray):
        absent = np.ma.getmaskarray(values).tolist()
        return ["" if gone else _text(v) for v, gone in zip(values.data, absent, strict=True)]
    return [_text(v) for v in values]


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, np.datetime64):
        return "" if np.isnat(value) else str(value).replace("T", " ")
    if isinstance(value, np.floating):
        return "" if np.isnan(value) else np.format_float_positional(value, trim="-")
    return str(value).lower() if isinstance(value, np.bool_) else str(value)
