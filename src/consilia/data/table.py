"""A table in memory, and the batches that a training loop takes from it.

Columns are read when they are first asked for, once. `Table.samples` builds the float32
feature matrix (records x features, C-contiguous) that every batch is cut from; frameworks
wrap it without a copy. Nothing here knows torch: plans.torch turns `Samples` into tensors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Array
from consilia.data.contract import Selection, column_type
from consilia.data.loading.blocks import from_bytes
from consilia.data.loading.expression import parse
from consilia.data.loading.table import LoadedFile
from consilia.data.reader import TableFile
from consilia.errors import ConfigError, DataError
from consilia.wire.worker import TableSource

_BLOCK = 4096  # rows; a block of every column stays in the cache while it is transposed

Column = tuple[Array, NDArray[np.bool_] | None]  # values, mask of the missing ones


@dataclass(frozen=True, slots=True)
class Samples:
    """Features and target as arrays, and batches of them."""

    x: NDArray[np.float32]  # records x features, C-contiguous
    y: Array | None  # records, or records x targets
    features: tuple[str, ...]
    rng: np.random.Generator

    @property
    def records(self) -> int:
        """Number of records."""
        return int(self.x.shape[0])

    def batches(
        self, batch_size: int, *, shuffle: bool = False, drop_last: bool = False
    ) -> Iterator[tuple[NDArray[np.float32], Array]]:
        """Yield (x, y) of `batch_size` records, the last one smaller unless `drop_last`.

        Without a target, y is an array of no columns. The arrays are copies.
        """
        stop = batch_stop(self.records, batch_size, drop_last)
        order = self.rng.permutation(self.records) if shuffle else np.arange(self.records)
        y = np.empty((self.records, 0), np.float32) if self.y is None else self.y
        for start in range(0, stop, batch_size):
            rows = order[start : min(start + batch_size, stop)]
            yield self.x[rows], y[rows]


def batch_stop(records: int, batch_size: int, drop_last: bool) -> int:
    """Return how many records the batches of a pass cover; refuse what would train nothing."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}; needed a whole number from 1 up")
    if drop_last and batch_size > records:
        raise ValueError(
            f"batch_size={batch_size} with drop_last leaves no batch of {records} records"
        )
    return records - records % batch_size if drop_last else records


class Table:
    """One registered table, opened as declared. Not thread-safe."""

    def __init__(self, source: TableSource, threads: int = 1) -> None:
        """Open the file and check that the declared columns are there; reads no record yet."""
        path = Path(source.path)
        if not path.exists():
            raise DataError(f"{path}: the dataset's file is not there")
        self._source = source, path, threads
        self._file = _opened(source, path, threads)
        self._name = path.name
        loaded = self._file if isinstance(self._file, LoadedFile) else None
        self.columns = dict(loaded.columns if loaded else source.columns)
        self.modalities = loaded.modalities if loaded else {}  # name -> columns
        for name, kind in self.columns.items():
            column_type(kind, name)
            if not loaded and name not in self._file.header:
                raise DataError(
                    f"{path.name}: column {name!r} is declared and not in the file; "
                    "register the dataset again"
                )
        self.records = source.records
        self._loaded: dict[str, Column] = {}
        self._samples: dict[Selection, tuple[NDArray[np.float32], Array | None]] = {}

    def check(self) -> int:
        """Read every column once; return how many records there are."""
        self._read(dict(self.columns), narrow=False)
        return self.records

    def column(self, name: str) -> Array:
        """Return a column's values; missing floats are NaN, ask `missing` for other types."""
        return self._load(name)[0]

    def missing(self, name: str) -> NDArray[np.bool_]:
        """Return the mask of a column's missing values."""
        mask = self._load(name)[1]
        return np.zeros(self.records, np.bool_) if mask is None else mask

    def where(self, text: str) -> tuple[NDArray[np.bool_], frozenset[str]]:
        """Return of which records an expression holds, and the columns that it reads.

        It holds of none for which it has no value. Raises ConfigError for what is no truth.
        """
        term = parse(text, self.columns)
        if term.kind != "truth":
            raise ConfigError(f"{text[:80]!r} is a {term.kind}; needed one such as age > 60")
        file = self._file
        if not isinstance(file, LoadedFile):
            source, path, threads = self._source
            file = _loaded(source, path, threads)
        holds = {"holds": f"coalesce({term.sql}, false)"}
        found = file.run(holds, lambda result: result.fetchnumpy())["holds"]
        return np.asarray(found, np.bool_), term.reads

    def samples(self, selection: Selection, rng: np.random.Generator) -> Samples:
        """Return features and target as `selection` asks for them; built once per selection.

        Raises DataError for a column that is not there or holds no numbers, for a missing
        value (unless `selection.fill`), and for a target text that is not in `classes`.
        """
        features = self.features(selection)
        if selection not in self._samples:
            self._samples[selection] = self._build(selection, features)
        x, y = self._samples[selection]
        return Samples(x, y, features, rng)

    def features(self, selection: Selection) -> tuple[str, ...]:
        """Return the feature columns of `selection`, checked.

        "Every numeric column" is sorted by name: sites may keep them in different order.
        """
        targets = selection.targets
        if selection.features is None:
            names = tuple(
                sorted(
                    name
                    for name, kind in self.columns.items()
                    if column_type(kind, name).numeric and name not in targets
                )
            )
            if not names:
                raise DataError(f"{self._name}: no numeric column but the target")
            return names
        for name in selection.features:
            if not column_type(self._kind(name), name).numeric:
                raise DataError(
                    f"{self._name}: feature {name!r} is {self._kind(name)}; a model "
                    "takes numbers: encode it, or leave it out of the plan's features"
                )
        return selection.features

    def _build(
        self, selection: Selection, features: tuple[str, ...]
    ) -> tuple[NDArray[np.float32], Array | None]:
        wanted = {n: self._kind(n) for n in (*features, *selection.targets)}
        read = self._read(wanted, narrow=True)
        targets = [self._target(n, read[n], selection) for n in selection.targets]
        y = None
        if targets:
            single = isinstance(selection.target, str)
            y = targets[0] if single else np.ascontiguousarray(np.stack(targets, axis=1))
        return self._matrix(features, read, selection.fill), y

    def _matrix(
        self, features: tuple[str, ...], read: dict[str, Column], fill: float | None
    ) -> NDArray[np.float32]:
        for name in features:
            values, mask = read[name]
            if mask is not None:
                if fill is None:
                    raise DataError(
                        f"{self._name}: column {name!r}, row {_first(mask)}: the value "
                        f"is missing ({int(mask.sum())} are); a model needs a number: give the "
                        "plan fill=, or leave the column out"
                    )
                read[name] = np.where(mask, np.float32(fill), values), None
        columns = [read[name][0] for name in features]
        matrix = np.empty((self.records, len(columns)), np.float32)
        for start in range(0, self.records, _BLOCK):
            block = matrix[start : start + _BLOCK]
            for i, values in enumerate(columns):
                block[:, i] = values[start : start + _BLOCK]
        return matrix

    def _target(self, name: str, column: Column, selection: Selection) -> Array:
        values, mask = column
        kind = self._kind(name)
        if mask is not None:
            raise DataError(
                f"{self._name}: target {name!r}, row {_first(mask)}: the value is missing "
                f"({int(mask.sum())} are); remove such records from the dataset"
            )
        if selection.classes:
            index = {text: i for i, text in enumerate(selection.classes)}
            if column_type(kind, name).numeric:
                raise DataError(
                    f"{self._name}: target {name!r} is {kind}; classes are for text columns"
                )
            codes = np.array([index.get(str(v), -1) for v in values], np.int64)
            if (bad := codes < 0).any():
                found = str(values[bad][0])[:60]
                raise DataError(
                    f"{self._name}: target {name!r}, row {_first(bad)}: {found!r} is not one "
                    f"of the plan's classes {', '.join(selection.classes)}"
                )
            values = codes
        elif not column_type(kind, name).numeric:
            raise DataError(
                f"{self._name}: target {name!r} is {kind}; needed numbers, or classes="
            )
        elif selection.target_type == "int64" and values.dtype.kind == "f":
            raise DataError(
                f"{self._name}: target {name!r} is {kind}; the plan needs whole numbers"
            )
        return np.ascontiguousarray(values, np.dtype(selection.target_type))

    def _kind(self, name: str) -> str:
        if name not in self.columns:
            raise DataError(
                f"{self._name}: the plan asks for column {name!r}; the dataset declares "
                f"{', '.join(list(self.columns)[:12])}"
            )
        return self.columns[name]

    def _load(self, name: str) -> Column:
        if name not in self._loaded:
            self._loaded |= self._read({name: self._kind(name)}, narrow=False)
        return self._loaded[name]

    def _read(self, types: dict[str, str], *, narrow: bool) -> dict[str, Column]:
        found = self._file.read(types, narrow=narrow)
        count = len(next(iter(found.values()))[0])
        if self.records and count != self.records:
            raise DataError(
                f"{self._name}: {count} records, registered with {self.records}: the "
                "file has changed; register the dataset again"
            )
        if not count:
            raise DataError(f"{self._name}: the table has no records")
        self.records = count
        return found


def _opened(source: TableSource, path: Path, threads: int) -> TableFile:
    if not source.loading and not source.without:
        return TableFile(path, source.format, source.missing, threads, source.codes)
    return _loaded(source, path, threads)


def _loaded(source: TableSource, path: Path, threads: int) -> LoadedFile:
    return LoadedFile(
        path,
        source.format,
        source.missing,
        source.columns,
        from_bytes(source.loading) if source.loading else None,
        patient=source.patient,
        without=source.without,
        threads=threads,
        codes=source.codes,
        units=source.units,
    )


def _first(mask: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0]) + 1
