"""What a node knows of a registered table: where it is, what its columns are, its digest.

`inspect_table` looks once, when a data manager adds a file: it infers the columns, counts the
records and refuses what would go wrong later (ragged rows, no rows, two columns of one name,
bytes that are not UTF-8). The record is stored by the node (node.datasets) and turned into
the worker's view with `to_source`. No value of the table is kept here.

A table is a file, a folder of files of one header, or the snapshot that data.sqlsource took of
a query's answer. The digest of a folder is of its files' names and digests.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from consilia.core import ids
from consilia.data import schema as schemas
from consilia.data.contract import FORMATS, TYPES, column_type
from consilia.data.holdout import Holdout
from consilia.data.reader import SUFFIXES, TableFile, parts, quoted
from consilia.data.schema import Schema
from consilia.errors import DataError
from consilia.wire.strict import nearest
from consilia.wire.worker import TableSource

MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
_CATEGORIES = 64  # a text column with no more distinct values than this is a category
_TRIED = ("int64", "float64", "date", "timestamp", "bool")  # the narrowest first
_FIRST = 10_000  # records that say what is worth trying
Blob = bytes  # as `bytes` is a field's name below
_NO_TYPES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a folder."""

    name: str
    bytes: int
    modified: float
    digest: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a snapshot came from. It holds no secret: a password is in a file of its own."""

    kind: str  # duckdb, postgresql
    database: str  # path of a DuckDB file, or libpq's parameters without a password
    query: str  # one SELECT
    password_file: str = ""
    taken: float = 0.0  # Unix seconds, when the query was last run


@dataclass(frozen=True, slots=True)
class Dataset:
    """One registered table. `path` is absolute; `digest` and `bytes` are of its files."""

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
    schema: Schema = ()  # of every column; (): nobody said more than `columns`
    parts: tuple[Part, ...] = ()  # of a folder, by name
    origin: Origin | None = None  # of a snapshot
    mock: bool = False  # whether the consortium may have a mock twin of it
    mock_loaded: bool = False  # whether also of what its data loading plans make of it
    loading: Blob = b""  # of one task, never stored: its data loading plan
    without: Blob = b""  # of one task, never stored: the records that it leaves out
    holdout: Holdout | None = None  # which records no task trains on; None: there are none
    held: Blob = b""  # of one task, never stored: the records that its hold-out leaves out
    held_records: int = 0  # of one task, never stored: in its hold-out


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
    schema: Schema = (),
    origin: Origin | None = None,
    mock: bool = False,
    threads: int = 2,
) -> Dataset:
    """Read the whole table once and return its record, every value checked against its type.

    `format` is told by the suffix when None. `schema` is of an earlier look: what it says
    of columns that are still there holds, and it wins over `types` and `patient`.
    `types` overrides what would be inferred. `patient` names the column of patient ids:
    whatever they look like it is read as text, so that no plan takes it for a feature, and no
    record may lack one.
    Raises ConfigError for a name or tag that is not allowed, DataError for the rest.
    """
    ids.name(name, "dataset")
    tags = tuple(sorted({ids.name(tag, "tag") for tag in tags}))
    file = Path(path).expanduser().resolve()
    if not file.exists():
        raise DataError(f"{file}: no such file; needed a CSV, TSV or Parquet table")
    format = format or _format(file)
    before = _facts(file, format)
    table = TableFile(file, format, missing, threads, schemas.codes(schema))
    kept = tuple(c for c in schema if c.name in table.header)
    patient = schemas.patient(kept) if schema else patient
    if patient and patient not in table.header:
        raise DataError(
            f"{file.name}: no column {patient!r}, named as that of patient ids"
            f"{nearest(patient, tuple(table.header))}"
        )
    types = {**types, **schemas.types(kept)}
    columns = _columns(table, {**types, patient: "str"} if patient else types)
    records = int(table.query("count(*)")[0])
    if not records:
        raise DataError(f"{file.name}: the table has column names and no records")
    if patient and (lacking := records - int(table.query(f"count({quoted(patient)})")[0])):
        raise DataError(
            f"{file.name}: {lacking} records have no value in {patient!r}, the column of "
            "patient ids; complete them, or leave these records out"
        )
    digest, members = _digested(file, format)
    dataset = Dataset(
        name, str(file), table.format, tags, columns, tuple(missing), records,
        digest, *before, now, description, patient,
        _merged(columns, patient, kept), members, origin, mock,
    )  # fmt: skip
    if _facts(file, format) != before:
        raise DataError(f"{file.name}: the file was written to while it was read; try again")
    return dataset


def schema_of(dataset: Dataset) -> Schema:
    """Return what is known of every column, in order."""
    return _merged(dataset.columns, dataset.patient, dataset.schema)


def table_of(dataset: Dataset, threads: int = 2) -> TableFile:
    """Open a dataset's table as it is registered."""
    codes = schemas.codes(dataset.schema)
    return TableFile(Path(dataset.path), dataset.format, dataset.missing, threads, codes)


def change(dataset: Dataset) -> str:
    """Say how the files differ from what was registered, "" when they do not.

    Sizes and times of the last change decide when both are as they were; otherwise the
    content does, so a file that was merely copied back counts as the same. What was looked
    at is named as it is, never what is in it.
    """
    path = Path(dataset.path)
    try:
        if not path.is_dir():
            return _file_change(path, dataset.bytes, dataset.modified, dataset.digest)
        if not dataset.parts:
            return f"{path} is a folder now"
        found = {file.name for file in parts(path, dataset.format)}
        known = {part.name for part in dataset.parts}
        if new := found - known:
            return f"{path / min(new)} is new since it was registered"
        changes = (
            _file_change(path / p.name, p.bytes, p.modified, p.digest) for p in dataset.parts
        )
        return next(filter(None, changes), "")
    except (OSError, DataError) as error:
        return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def to_source(dataset: Dataset, path: str | None = None) -> TableSource:
    """Return the worker's view of `dataset`, found at `path` inside its sandbox."""
    return TableSource(
        path=path or dataset.path,
        format=dataset.format,
        columns={
            c.name: c.type
            for c in schema_of(dataset)
            if c.role != "ignore"
            and (dataset.holdout is None or c.name != dataset.holdout.column)
        },
        missing=dataset.missing,
        records=dataset.records,
        patient=dataset.patient,
        codes=schemas.codes(dataset.schema),
        units={c.name: c.unit for c in dataset.schema if c.unit},
        loading=dataset.loading,
        without=dataset.without,
        holdout=dataset.held,
        holdout_records=dataset.held_records,
    )


def _format(file: Path) -> str:
    names = [file]
    if file.is_dir():
        try:
            names = sorted(file.iterdir())[:1]
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from None
        if not names:
            raise DataError(f"{file}: the folder is empty; needed CSV, TSV or Parquet files")
    try:
        return SUFFIXES[names[0].suffix.lower()]
    except KeyError:
        raise DataError(
            f"{names[0].name}: the suffix {names[0].suffix!r} tells no format; give one of "
            f"{', '.join(FORMATS)}"
        ) from None


def _merged(columns: Mapping[str, str], patient: str, known: Schema) -> Schema:
    """Return the schema of `columns`: what is known of each, else what its type suggests."""
    said = {c.name: c for c in known}
    guessed = schemas.inferred(columns, patient)
    return tuple(replace(said.get(c.name, c), type=c.type) for c in guessed)


def _columns(table: TableFile, types: Mapping[str, str]) -> dict[str, str]:
    for name, kind in types.items():
        column_type(kind, name)
        if name not in table.header:
            raise DataError(
                f"{table.path.name}: type given for {name!r}, which is no column"
                f"{nearest(name, tuple(table.header))}"
            )
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
    """Return the narrowest type that every value of each column fits; float64 for fractions.

    The first records say what a column may be; only that is tried on all.
    """
    everything = dict.fromkeys(table.header, _TRIED)
    likely = _fitting(table, everything, _FIRST)
    certain = _fitting(table, {name: kinds for name, (kinds, _) in likely.items()})
    columns = {}
    for name, (fitting, distinct) in certain.items():
        text = "category" if distinct <= _CATEGORIES else "str"
        columns[name] = fitting[0] if fitting else text
    return columns


def _fitting(
    table: TableFile, tried: Mapping[str, tuple[str, ...]], first: int = 0
) -> dict[str, tuple[tuple[str, ...], int]]:
    """Return for each column the tried types that all its values fit, and how many differ.

    Of a column without a value, among the first records, everything tried still fits; of one
    without any value nothing does.
    """
    wanted, widths = [], []
    for name, kinds in tried.items():
        column = quoted(name)
        tests = [_fit(column, kind) for kind in kinds]
        wanted += [f"count({column})", *(f"count(*) FILTER ({test})" for test in tests)]
        wanted.append("0" if first else f"approx_count_distinct({column})")
        widths.append(len(kinds) + 2)
    row = [int(v) for v in table.query(", ".join(wanted), first)]
    found, at = {}, 0
    for (name, kinds), width in zip(tried.items(), widths, strict=True):
        present, *fits, distinct = row[at : at + width]
        fitting = tuple(k for k, n in zip(kinds, fits, strict=True) if n == present)
        found[name] = (fitting if present or first else (), distinct)
        at += width
    return found


def _fit(column: str, kind: str) -> str:
    """Return the SQL test whether a text can be read as `kind`."""
    if kind == "bool":
        words = "'true', 'false', 't', 'f', 'yes', 'no', 'y', 'n'"
        return f"lower({column}) IN ({words})"
    fits = f"TRY_CAST({column} AS {TYPES[kind].sql}) IS NOT NULL"
    if TYPES[kind].pattern:
        fits += f" AND regexp_full_match({column}, '{TYPES[kind].pattern}')"
    return fits


def _facts(path: Path, format: str) -> tuple[int, float]:
    """Return bytes of all files, and when the last of them was written to."""
    statuses = [f.stat() for f in (parts(path, format) if path.is_dir() else [path])]
    return sum(s.st_size for s in statuses), max(s.st_mtime for s in statuses)


def _digested(path: Path, format: str) -> tuple[str, tuple[Part, ...]]:
    """Return the digest of a file, or of a folder with its parts."""
    if not path.is_dir():
        return _digest(path), ()
    found = []
    for file in parts(path, format):
        status = file.stat()
        found.append(Part(file.name, status.st_size, status.st_mtime, _digest(file)))
    whole = hashlib.sha256(b"consilia folder\0")
    for part in found:
        whole.update(f"{len(part.name)} {part.name} {part.digest}\n".encode())
    return "sha256:" + whole.hexdigest(), tuple(found)


def _file_change(path: Path, size: int, modified: float, digest: str) -> str:
    try:
        status = path.stat()
    except FileNotFoundError:
        return f"{path}: No such file"
    if (status.st_size, status.st_mtime) == (size, modified):
        return ""
    same = status.st_size == size and _digest(path) == digest
    return "" if same else f"{path} was changed after it was registered"


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
