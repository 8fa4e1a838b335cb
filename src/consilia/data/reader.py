"""Read CSV, TSV and Parquet columns into numpy arrays with DuckDB, and say where they break.

A table is one file, or a folder of files of one format and header, read in the order of their
names as one table.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
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
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,2})?")
MAX_PARTS = 10_000  # files of one table
SUFFIXES: Mapping[str, str] = MappingProxyType(
    {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet"}
)
# what a column of a Parquet file may hold to be read as the declared type without loss
_INTEGERS = frozenset(
    "TINYINT SMALLINT INTEGER BIGINT UTINYINT USMALLINT UINTEGER".split()  # noqa: SIM905
)
_NUMBERS = _INTEGERS | {"FLOAT", "DOUBLE", "UBIGINT", "HUGEINT", "DECIMAL"}
_FITS: Mapping[str, frozenset[str]] = {
    "float32": _INTEGERS | {"FLOAT", "DOUBLE", "BOOLEAN", "UBIGINT", "HUGEINT", "DECIMAL"},
    "float64": _INTEGERS | {"FLOAT", "DOUBLE", "BOOLEAN", "UBIGINT", "HUGEINT", "DECIMAL"},
    "int64": _INTEGERS,
    "bool": frozenset({"BOOLEAN"}),
    # whole numbers, too: databases keep patient ids as such
    "str": _INTEGERS | {"VARCHAR", "ENUM", "UUID", "UBIGINT"},
    "category": frozenset({"VARCHAR", "ENUM"}),
    "date": frozenset({"DATE"}),
    "timestamp": frozenset(
        {"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "DATE"}
    ),
}


class TableFile:
    """A table's file or files: its columns in order, and typed reads of some of them."""

    def __init__(
        self,
        path: Path,
        format: str,
        missing: Sequence[str] = ("",),
        threads: int = 1,
        codes: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ) -> None:
        """Open `path`, a file or a folder of them, far enough to know its columns.

        `missing` are texts that mean "no value" in any column of a text file, `codes` those of
        single columns, which of numbers are told by what they are worth: -9 is -9.0 too.
        """
        if format not in FORMATS:
            raise DataError(f"{path.name}: format {format!r}; needed {', '.join(FORMATS)}")
        self.path = path
        self.format = format
        self.missing = tuple(missing)
        self._threads = max(1, threads)
        self._files = parts(path, format) if path.is_dir() else [path]
        self.header = self._header(self._files[0])
        for file in self._files[1:]:
            self._check_alike(file)
        self._check_header()
        self._codes = {n: texts for n, texts in codes.items() if texts and n in self.header}

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
                    f"SELECT {sql} FROM {self._valued(kinds)}"  # noqa: S608
                ).fetchnumpy()
            except engine.Error as error:
                raise self._explain(error, kinds) from None
        return {name: self._column(name, kind, found[name]) for name, kind in kinds.items()}

    def query(self, select: str, first: int = 0) -> tuple[Any, ...]:
        """Return the one row of aggregates `select` over the table, every column as text.

        Over its `first` records only, where these are given.
        """
        source = self._valued({})
        if first:
            source = f"(SELECT * FROM {source} LIMIT {first})"  # noqa: S608
        engine = _import(self.path)
        with self._connect() as connection:
            try:
                sql = f"SELECT {select} FROM {source}"  # noqa: S608
                row: tuple[Any, ...] = connection.execute(sql).fetchall()[0]
            except engine.Error as error:
                raise self._explain(error, {}) from None
        return row

    @contextmanager
    def loaded(self, types: Mapping[str, str]) -> Iterator["duckdb.DuckDBPyConnection"]:
        """Read the named columns into a table `loaded` of columns c0, c1, ... for a block."""
        kinds = {name: column_type(type_, name) for name, type_ in types.items()}
        for name, kind in kinds.items():
            self._check_column(name, kind)
        columns = ", ".join(
            f"{self._cast(name, kind, False, f'c{i}')}"
            for i, (name, kind) in enumerate(kinds.items())
        )
        sql = f"CREATE TABLE loaded AS SELECT {columns} FROM {self._valued(kinds)}"  # noqa: S608
        engine = _import(self.path)
        with self._connect() as connection:
            try:
                connection.execute(sql)
            except engine.Error as error:
                raise self._explain(error, kinds) from None
            yield connection

    def first(self, types: Mapping[str, str], rows: int) -> list[tuple[str | None, ...]]:
        """Return the first rows of the named columns as texts, None where missing."""
        kinds = {name: column_type(type_, name) for name, type_ in types.items()}
        columns = ", ".join(f"CAST({quoted(name)} AS VARCHAR)" for name in kinds)
        sql = f"SELECT {columns} FROM {self._valued({})} LIMIT {int(rows)}"  # noqa: S608
        engine = _import(self.path)
        with self._connect() as connection:
            try:
                return connection.execute(sql).fetchall()
            except engine.Error as error:
                raise self._explain(error, {}) from None

    def _valued(self, kinds: Mapping[str, ColumnType]) -> str:
        """Return what reads the table, with the columns' own missing codes taken out."""
        source = self.source(kinds)
        replaced = ", ".join(
            f"{self._without_codes(name, texts, kinds)} AS {quoted(name)}"
            for name, texts in self._codes.items()
        )
        return f"(SELECT * REPLACE ({replaced}) FROM {source})" if replaced else source  # noqa: S608

    def _without_codes(
        self, name: str, texts: tuple[str, ...], kinds: Mapping[str, ColumnType]
    ) -> str:
        column, numbers = quoted(name), ", ".join(t for t in texts if _is_number(t))
        sql = self.header[name] if self.format == "parquet" else self._sql_type(name, kinds)
        tests = []
        if sql in _NUMBERS:
            if numbers:
                # FLOAT holds the nearest to 0.1, not 0.1; whole numbers never round to a code
                value = column if sql == "FLOAT" else f"CAST({column} AS DOUBLE)"
                kind = "FLOAT" if sql == "FLOAT" else "DOUBLE"
                tests.append(f"{value} IN ({_cast_all(numbers, kind)})")
        else:
            wanted = ", ".join(_text(t.strip()) for t in texts)
            tests.append(f"trim(CAST({column} AS VARCHAR)) IN ({wanted})")
            if numbers and sql == "VARCHAR":
                tests.append(f"TRY_CAST({column} AS DOUBLE) IN ({numbers})")
        return f"CASE WHEN {' OR '.join(tests) or 'false'} THEN NULL ELSE {column} END"

    def _sql_type(self, name: str, kinds: Mapping[str, ColumnType]) -> str:
        """Return the type a column of a text file is read as: text, where a check follows."""
        kind = kinds.get(name)
        if kind is None or kind.pattern or not all(map(_is_number, self._codes.get(name, ()))):
            return "VARCHAR"
        return kind.sql

    def source(self, kinds: Mapping[str, ColumnType]) -> str:
        """Return the table function that reads the files; columns not in `kinds` are text."""
        paths = ", ".join(_text(str(file)) for file in self._files)
        if self.format == "parquet":
            return f"read_parquet([{paths}])"
        types = {name: self._sql_type(name, kinds) for name in self.header}
        columns = ", ".join(f"{_text(n)}: {_text(t)}" for n, t in types.items())
        codes = ", ".join(_text(code) for code in self.missing)
        return (
            f"read_csv([{paths}], header=true, auto_detect=false, "
            f"delim={_text(_DELIMITERS[self.format])}, quote='\"', escape='\"', "
            f"strict_mode=true, max_line_size=16777216, columns={{{columns}}}, "
            f"nullstr=[{codes}]::VARCHAR[])"
        )

    def _cast(self, name: str, kind: ColumnType, narrow: bool, label: str = "") -> str:
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
            as_read = self._sql_type(name, {name: kind}) == kind.sql
            value = column if as_read else f"CAST({column} AS {kind.sql})"
        if narrow and kind.name == "float64":
            value = f"CAST({value} AS FLOAT)"
        return f"{value} AS {label or column}"

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
        unfit = f"({table} FROM {self._valued({})}) WHERE v IS NOT NULL AND NOT ok"
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
        paths = ", ".join(_text(str(file)) for file in self._files)
        for setting in (  # whatever SQL runs here, it opens these files and nothing else
            f"allowed_paths = [{paths}]",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        return connection

    def _header(self, file: Path) -> dict[str, str]:
        """Return column -> DuckDB's type of a Parquet file, "" for text."""
        return (
            self._parquet_header(file) if self.format == "parquet" else self._text_header(file)
        )

    def _check_alike(self, file: Path) -> None:
        found = self._header(file)
        if list(found.items()) == list(self.header.items()):
            return
        odd = next(
            (
                f"column {number} is {a!r} ({b}), not {c!r} ({d})"
                if b
                else f"column {number} is {a!r}, not {c!r}"
                for number, ((a, b), (c, d)) in enumerate(
                    zip(found.items(), self.header.items(), strict=False), 1
                )
                if (a, b) != (c, d)
            ),
            f"it has {len(found)} columns, not {len(self.header)}",
        )
        raise DataError(
            f"{self.path.name}: {file.name} is not of the columns of {self._files[0].name}: "
            f"{odd}; the files of a folder need the same header, in the same order"
        )

    def _parquet_header(self, file: Path) -> dict[str, str]:
        engine = _import(self.path)
        with self._connect() as connection:
            try:
                rows = connection.execute(
                    f"DESCRIBE SELECT * FROM read_parquet({_text(str(file))})"  # noqa: S608
                ).fetchall()
            except engine.Error as error:
                first = str(error).splitlines()[0][:200]
                raise DataError(f"{file.name}: not a readable Parquet file: {first}") from None
        return {str(r[0]): str(r[1]).partition("(")[0] for r in rows}

    def _text_header(self, file: Path) -> dict[str, str]:
        try:
            with file.open("rb") as stream:
                lines = (line.decode() for line in iter(partial(stream.readline, _LINE), b""))
                reader = csv.reader(lines, delimiter=_DELIMITERS[self.format])
                names = next(reader, [])
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DataError(f"{file.name}: {_ENCODING}") from None
        except csv.Error as error:
            raise DataError(f"{file.name}: the first line cannot be read: {error}") from None
        if not names:
            raise DataError(f"{file.name}: the file is empty; needed a line of column names")
        names[0] = names[0].removeprefix("\ufeff")
        if odd := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(
                f"{file.name}: column {odd[0]!r} appears twice; every name must be unique. "
                "If this is a value, the file lacks its first line of column names"
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


def parts(folder: Path, format: str) -> list[Path]:
    """Return the files of a folder by name; DataError unless each is one of `format`.

    A sandboxed worker is shown the whole folder, so nothing else may lie in it.
    """
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    for file in found:
        fits = SUFFIXES.get(file.suffix.lower()) == format
        if file.is_symlink() or not file.is_file() or not fits:
            raise DataError(
                f"{folder}: {file.name!r} is no {format} file; a folder that is a dataset "
                "holds files of one format and nothing else: no links, no folders"
            )
    if not 1 <= len(found) <= MAX_PARTS:
        raise DataError(f"{folder}: {len(found)} files; needed 1 to {MAX_PARTS}")
    return found


def quoted(name: str) -> str:
    """Return `name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text.strip()) is not None


def _cast_all(numbers: str, sql: str) -> str:
    return ", ".join(f"CAST({n} AS {sql})" for n in numbers.split(", "))


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
