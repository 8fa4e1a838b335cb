"""What a node knows of a registered table: where it is, what its columns are, its digest.

`inspect_table` looks once, when a data manager adds a file: it infers the columns, counts the
records and refuses what would go wrong later (ragged rows, no rows, two columns of one name,
bytes that are not UTF-8). The record is stored by the node (node.datasets) and turned into
the worker's view with `to_source`. No value of the table is kept here.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from consilia.core import ids
from consilia.data.contract import FORMATS, TYPES, column_type
from consilia.data.reader import TableFile, quoted
from consilia.errors import DataError
from consilia.wire.worker import TableSource

MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
_CATEGORIES = 64  # a text column with no more distinct values than this is a category
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_NO_TYPES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Dataset:
    """One registered table. `path` is absolute; `digest` and `bytes` are of the file."""

    name: str
    path: str
    format: str  # csv, tsv, parquet
    tags: tuple[str, ...]
    columns: Mapping[str, str]  # column -> type (data.contract.TYPES), in file order
    missing: tuple[str, ...]  # texts that mean "no value" (csv, tsv)
    records: int
    digest: str  # sha256:<hex>
    bytes: int
    modified: float  # Unix seconds, the file's mtime when its digest was taken
    created: float  # Unix seconds, when it was registered
    description: str = ""
    patient: str = ""  # column of patient ids, of type str; "" when none is declared


def inspect_table(  # noqa: PLR0913  a registration, written with keywords
    path: str | Path,
    name: str,
    tags: tuple[str, ...],
    *,
    now: float,
    format: str | None = None,
    missing: tuple[str, ...] = MISSING,
    types: Mapping[str, str] = _NO_TYPES,
    description: str = "",
    patient: str = "",
    threads: int = 2,
) -> Dataset:
    """Read the whole table once and return its record, every value checked against its type.

    `format` is told by the file's suffix when None. `types` overrides what would be inferred.
    `patient` names the column of patient ids: whatever they look like it is read as text, so
    that no plan takes it for a feature, and no record may lack one.
    Raises ConfigError for a name or tag that is not allowed, DataError for the rest.
    """
    ids.name(name, "dataset")
    tags = tuple(sorted({ids.name(tag, "tag") for tag in tags}))
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise DataError(f"{file}: no such file; needed a CSV, TSV or Parquet table")
    before = file.stat()
    table = TableFile(file, format or _format(file), missing, threads)
    columns = _columns(table, {**types, patient: "str"} if patient else types)
    records = int(table.query("count(*)")[0])
    if not records:
        raise DataError(f"{file.name}: the table has column names and no records")
    if patient and (lacking := records - int(table.query(f"count({quoted(patient)})")[0])):
        raise DataError(
            f"{file.name}: {lacking} records have no value in {patient!r}, the column of "
            "patient ids; complete them, or leave these records out"
        )
    dataset = Dataset(
        name, str(file), table.format, tags, columns, tuple(missing), records,
        _digest(file), before.st_size, before.st_mtime, now, description, patient,
    )  # fmt: skip
    if _facts(file) != (dataset.bytes, dataset.modified):
        raise DataError(f"{file.name}: the file was written to while it was read; try again")
    return dataset


def changed(dataset: Dataset) -> bool:
    """Say whether the file is another than the one registered (or gone).

    Size and time of the last change decide when both are as they were; otherwise the
    content does, so a file that was merely copied back counts as the same.
    """
    file = Path(dataset.path)
    try:
        if _facts(file) == (dataset.bytes, dataset.modified):
            return False
        return file.stat().st_size != dataset.bytes or _digest(file) != dataset.digest
    except (OSError, DataError):
        return True


def to_source(dataset: Dataset, path: str | None = None) -> TableSource:
    """Return the worker's view of `dataset`, found at `path` inside its sandbox."""
    return TableSource(
        path=path or dataset.path,
        format=dataset.format,
        columns=dict(dataset.columns),
        missing=dataset.missing,
        records=dataset.records,
        patient=dataset.patient,
    )


def moved(dataset: Dataset, path: str | Path) -> Dataset:
    """Return `dataset` at another path; the content is as it was or `changed` tells."""
    return replace(dataset, path=str(Path(path).expanduser().resolve()), modified=0.0)


def _format(file: Path) -> str:
    try:
        return _SUFFIXES[file.suffix.lower()]
    except KeyError:
        raise DataError(
            f"{file.name}: the suffix {file.suffix!r} tells no format; give one of "
            f"{', '.join(FORMATS)}"
        ) from None


def _columns(table: TableFile, types: Mapping[str, str]) -> dict[str, str]:
    for name, kind in types.items():
        column_type(kind, name)
        if name not in table.header:
            raise DataError(f"{table.path.name}: type given for {name!r}, which is no column")
    found = _parquet_types(table) if table.format == "parquet" else _text_types(table)
    columns = {name: types.get(name, kind) for name, kind in found.items()}
    declared = {n: k for n, k in columns.items() if n in types}
    if declared:
        table.read(declared)  # what a person declared is checked value by value
    return columns


def _parquet_types(table: TableFile) -> dict[str, str]:
    plain = {
        "FLOAT": "float32", "DOUBLE": "float64", "DECIMAL": "float64", "BOOLEAN": "bool",
        "DATE": "date", "VARCHAR": "str", "ENUM": "category", "UUID": "str",
    }  # fmt: skip
    columns = {}
    for name, sql in table.header.items():
        if sql in plain:
            columns[name] = plain[sql]
        elif sql.startswith("TIMESTAMP") and "ZONE" not in sql:
            columns[name] = "timestamp"
        elif sql.removeprefix("U") in {"TINYINT", "SMALLINT", "INTEGER", "BIGINT"}:
            columns[name] = "int64" if sql != "UBIGINT" else "float64"
        else:
            raise DataError(
                f"{table.path.name}: column {name!r} holds {sql}, which no column type fits; "
                "convert it, or write the file without it"
            )
    return columns


def _text_types(table: TableFile) -> dict[str, str]:
    """Return the narrowest type that every value of each column fits; float64 for fractions."""
    tried = ("int64", "float64", "date", "timestamp")
    parts = []
    for name in table.header:
        column = quoted(name)
        parts.append(f"count({column})")
        for kind in (TYPES[t] for t in tried):
            fits = f"TRY_CAST({column} AS {kind.sql}) IS NOT NULL"
            if kind.pattern:
                fits += f" AND regexp_full_match({column}, '{kind.pattern}')"
            parts.append(f"count(*) FILTER ({fits})")
        words = "'true', 'false', 't', 'f', 'yes', 'no', 'y', 'n'"
        parts.append(f"count(*) FILTER (lower({column}) IN ({words}))")
        parts.append(f"approx_count_distinct({column})")
    row = table.query(", ".join(parts))
    width = len(tried) + 3
    columns = {}
    for i, name in enumerate(table.header):
        present, *fits_of, distinct = (int(v) for v in row[i * width : (i + 1) * width])
        fitting = [t for t, n in zip((*tried, "bool"), fits_of, strict=True) if n == present]
        text = "category" if distinct <= _CATEGORIES else "str"
        columns[name] = fitting[0] if fitting and present else text
    return columns


def _facts(file: Path) -> tuple[int, float]:
    status = file.stat()
    return status.st_size, status.st_mtime


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
