"""Read CSV, TSV and Parquet columns into numpy arrays with DuckDB, and say where they break.

DuckDB parses in parallel and keeps the order of the file. It is imported on first use, so
that a process which touches no table (an agent, a worker that only makes a model) never pays
for it. It reads local files only: extensions are neither loaded nor fetched.

SQL is put together from column names, paths and codes through `quoted` and `_text` alone, as
a table function takes no parameters. Rows are counted from 1, without the header. When a value
does not fit its column's declared type the file is read a second time, as text, to name the
first such row and value.
"""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Array
from consilia.data.contract import (
    FORMATS,
    MAX_COLUMN_NAME,
    MAX_COLUMNS,
    ColumnType,
    column_type,
)
from consilia.errors import DataError

if TYPE_CHECKING:
    import duckdb

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_LINE = MAX_COLUMNS * (MAX_COLUMN_NAME + 3)  # bytes of a header
# what a column of a Parquet file may hold to be read as the declared type without loss
_INTEGERS = frozenset(
    "TINYINT SMALLINT INTEGER BIGINT UTINYINT USMALLINT UINTEGER".split()  # noqa: SIM905
)
_FITS: Mapping[str, frozenset[str]] = {
    "float32": _INTEGERS | {"FLOAT", "DOUBLE", "BOOLEAN", "UBIGINT", "HUGEINT", "DECIMAL"},
    "float64": _INTEGERS | {"FLOAT", "DOUBLE", "BOOLEAN", "UBIGINT", "HUGEINT", "DECIMAL"},
    "int64": _INTEGERS,
    "bool": frozenset({"BOOLEAN"}),
    "str": frozenset({"VARCHAR", "ENUM", "UUID"}),
    "category": frozenset({"VARCHAR", "ENUM"}),
    "date": frozenset({"DATE"}),
    "timestamp": frozenset(
        {"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "DATE"}
    ),
}


class TableFile:
    """One file of a table: its columns in order, and typed reads of some of them."""

    def __init__(
        self, path: Path, format: str, missing: Sequence[str] = ("",), threads: int = 1
    ) -> None:
        """Open `path` (csv, tsv or parquet) far enough to know its columns."""
        if format not in FORMATS:
            raise DataError(f"{path.name}: format {format!r}; needed {', '.join(FORMATS)}")
        self.path = path
        self.format = format
        self.missing = tuple(missing)
        self._threads = max(1, threads)
        self.header = self._parquet_header() if format == "parquet" else self._text_header()
        self._check_header()

    def read(
        self, types: Mapping[str, str], *, narrow: bool = False
    ) -> dict[str, tuple[Array, NDArray[np.bool_] | None]]:
        """Return values and mask of missing ones (None: none is missing) of the named columns.

        Floats hold NaN where a value is missing, other types hold anything. `narrow` reads
        float64 columns as float32. Raises DataError naming the row and value that do not fit.
        """
        kinds = {name: column_type(type_, name) for name, type_ in types.items()}
        for name, kind in kinds.items():
            self._check_column(name, kind)
        sql = ", ".join(self._cast(name, kind, narrow) for name, kind in kinds.items())
        engine = _import(self.path)
        with self._connect() as connection:
            try:
                found = connection.execute(
                    f"SELECT {sql} FROM {self.source(kinds)}"  # noqa: S608
                ).fetchnumpy()
            except engine.Error as error:
                raise self._explain(error, kinds) from None
        return {name: self._column(name, kind, found[name]) for name, kind in kinds.items()}

    def query(self, select: str) -> tuple[Any, ...]:
        """Return the one row of aggregates `select` over the file, every column as text."""
        engine = _import(self.path)
        with self._connect() as connection:
            try:
                sql = f"SELECT {select} FROM {self.source({})}"  # noqa: S608
                row: tuple[Any, ...] = connection.execute(sql).fetchall()[0]
            except engine.Error as error:
                raise self._explain(error, {}) from None
        return row

    def source(self, kinds: Mapping[str, ColumnType]) -> str:
        """Return the table function that reads the file; columns not in `kinds` are text."""
        if self.format == "parquet":
            return f"read_parquet({_text(str(self.path))})"
        types = {
            name: kind.sql if (kind := kinds.get(name)) and not kind.pattern else "VARCHAR"
            for name in self.header
        }
        columns = ", ".join(f"{_text(n)}: {_text(t)}" for n, t in types.items())
        codes = ", ".join(_text(code) for code in self.missing)
        return (
            f"read_csv({_text(str(self.path))}, header=true, auto_detect=false, "
            f"delim={_text(_DELIMITERS[self.format])}, quote='\"', escape='\"', "
            f"strict_mode=true, max_line_size=16777216, columns={{{columns}}}, "
            f"nullstr=[{codes}]::VARCHAR[])"
        )

    def _cast(self, name: str, kind: ColumnType, narrow: bool) -> str:
        column = quoted(name)
        if self.format == "parquet":
            value = f"CAST({column} AS {kind.sql})"
        elif kind.pattern:
            value = (
                f"CASE WHEN {column} IS NULL THEN NULL "
                f"WHEN regexp_full_match({column}, {_text(kind.pattern)}) "
                f"THEN CAST({column} AS {kind.sql}) ELSE error('unfit') END"
            )
        else:
            value = column
        if narrow and kind.name == "float64":
            value = f"CAST({value} AS FLOAT)"
        return f"{value} AS {column}"

    def _column(
        self, name: str, kind: ColumnType, found: Any
    ) -> tuple[Array, NDArray[np.bool_] | None]:
        mask: NDArray[np.bool_] | None = None
        if isinstance(found, np.ma.MaskedArray):
            mask = np.ma.getmaskarray(found)
            values = np.asarray(found.data)
            if values.dtype.kind == "f":
                values[mask] = np.nan
        else:
            values = np.asarray(found)
        if values.dtype.kind == "f":
            self._refuse_infinite(name, kind, values)
            absent = np.isnan(values)
            mask = absent if absent.any() else None
        elif kind.name == "date":
            values = values.astype("datetime64[D]")
        return values, mask

    def _refuse_infinite(self, name: str, kind: ColumnType, values: Array) -> None:
        infinite = np.isinf(values)
        if infinite.any():
            row = int(np.flatnonzero(infinite)[0])
            raise DataError(
                f"{self.path.name}: column {name!r}, row {row + 1}: infinite, or too large for "
                f"{kind.name}; needed a finite number, or a missing code"
            )

    def _check_column(self, name: str, kind: ColumnType) -> None:
        if name not in self.header:
            raise DataError(
                f"{self.path.name}: column {name!r} is not in the file; it has "
                f"{_some(tuple(self.header))}"
            )
        found = self.header[name]
        if found and found not in _FITS[kind.name]:
            raise DataError(
                f"{self.path.name}: column {name!r} holds {found}; declared is {kind.name}: "
                f"needed {kind.needed}"
            )

    def _explain(self, error: Exception, kinds: Mapping[str, ColumnType]) -> DataError:
        """Turn DuckDB's error into one that names file, column, row, value and need."""
        if self.format != "parquet":
            for name, kind in kinds.items():
                if found := self._first_unfit(name, kind):
                    row, value = found
                    return DataError(
                        f"{self.path.name}: column {name!r}, row {row}: {value[:60]!r} is not "
                        f"{kind.name}; needed {kind.needed}, or declare {value[:60]!r} as a "
                        "missing code"
                    )
        return DataError(f"{self.path.name}: {_structure(str(error))}")

    def _first_unfit(self, name: str, kind: ColumnType) -> tuple[int, str] | None:
        column = quoted(name)
        fits = f"TRY_CAST({column} AS {kind.sql}) IS NOT NULL"
        if kind.pattern:
            fits += f" AND regexp_full_match({column}, {_text(kind.pattern)})"
        table = f"SELECT row_number() OVER () AS r, {column} AS v, {fits} AS ok"
        unfit = f"({table} FROM {self.source({})}) WHERE v IS NOT NULL AND NOT ok"
        sql = f"SELECT r, v FROM {unfit} ORDER BY r LIMIT 1"  # noqa: S608
        engine = _import(self.path)
        with self._connect() as connection:
            try:
                rows = connection.execute(sql).fetchall()
            except engine.Error:
                return None  # the file's structure is broken: the first error tells
        return (int(rows[0][0]), str(rows[0][1])) if rows else None

    def _connect(self) -> "duckdb.DuckDBPyConnection":
        connection: duckdb.DuckDBPyConnection = _import(self.path).connect(
            ":memory:",
            config={
                "threads": str(self._threads),
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "temp_directory": "",
                "preserve_insertion_order": "true",
            },
        )
        return connection

    def _parquet_header(self) -> dict[str, str]:
        engine = _import(self.path)
        with self._connect() as connection:
            try:
                rows = connection.execute(
                    f"DESCRIBE SELECT * FROM read_parquet({_text(str(self.path))})"  # noqa: S608
                ).fetchall()
            except engine.Error as error:
                first = str(error).splitlines()[0][:200]
                raise DataError(
                    f"{self.path.name}: not a readable Parquet file: {first}"
                ) from None
        return {str(r[0]): str(r[1]).partition("(")[0] for r in rows}

    def _text_header(self) -> dict[str, str]:
        try:
            with self.path.open("rb") as stream:
                lines = (line.decode() for line in iter(partial(stream.readline, _LINE), b""))
                reader = csv.reader(lines, delimiter=_DELIMITERS[self.format])
                names = next(reader, [])
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DataError(f"{self.path.name}: {_ENCODING}") from None
        except csv.Error as error:
            raise DataError(
                f"{self.path.name}: the first line cannot be read: {error}"
            ) from None
        if not names:
            raise DataError(
                f"{self.path.name}: the file is empty; needed a line of column names"
            )
        names[0] = names[0].removeprefix("\ufeff")
        if odd := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(
                f"{self.path.name}: column {odd[0]!r} appears twice; every name must be unique"
            )
        return dict.fromkeys(names, "")

    def _check_header(self) -> None:
        if len(self.header) > MAX_COLUMNS:
            raise DataError(f"{self.path.name}: over {MAX_COLUMNS} columns cannot be read")
        folded: dict[str, str] = {}
        for number, name in enumerate(self.header, 1):
            if not name.strip() or len(name) > MAX_COLUMN_NAME or not name.isprintable():
                raise DataError(
                    f"{self.path.name}: column {number} is called {name[:60]!r}; needed 1 to "
                    f"{MAX_COLUMN_NAME} printable characters in the first line"
                )
            if (twin := folded.setdefault(name.casefold(), name)) != name:
                raise DataError(
                    f"{self.path.name}: columns {twin!r} and {name!r} differ only in case; "
                    "rename one"
                )


_ENCODING = (
    "the text is not UTF-8; convert it, for example with "
    "`iconv -f latin1 -t utf-8 IN.csv > OUT.csv`"
)


def quoted(name: str) -> str:
    """Return `name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def _structure(message: str) -> str:
    """Say in a line what DuckDB found broken in the file as a whole."""
    line = re.search(r"CSV Error on Line: (\d+)", message)
    where = f"line {line[1]}: " if line else ""
    if "utf-8" in message or "nicode" in message:
        return where + _ENCODING
    if counts := re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message):
        return f"{where}{counts[2]} values where the header names {counts[1]} columns"
    if "unterminated quote" in message:
        return f"{where}a quote is opened and never closed"
    return where + message.splitlines()[0][:200]


def _import(path: Path) -> Any:
    try:
        import duckdb  # noqa: PLC0415  60 MB and 0.2 s that most processes never need
    except ImportError:
        raise DataError(f"{path.name}: reading tables needs the package duckdb") from None
    return duckdb
