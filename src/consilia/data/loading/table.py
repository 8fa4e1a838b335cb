"""A table's file with a loading plan over it: what `TableFile` is, after the plan.

The blocks run inside DuckDB while the file is read, over the columns that are asked for and
those they need. Records whose patients opted out are left out before the first block, by
their place in the file (`without`), so no median and no indicator has seen them.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Array
from consilia.data.contract import column_type
from consilia.data.loading.blocks import LoadingPlan
from consilia.data.loading.stages import MARK, Compiled, check, needed, statements
from consilia.data.reader import TableFile, quoted
from consilia.errors import DataError

if TYPE_CHECKING:
    import duckdb

T = TypeVar("T")
MAX_ROWS = 1 << 28  # of a table whose records can be left out one by one
_NO_PLAN = Compiled((), {}, {}, {})


def pack_rows(rows: NDArray[np.bool_], empty: bool = False) -> bytes:
    """Return which records to leave out, one bit each, as a task carries it.

    b"" when there are none, unless `empty` wants that said like any other.
    """
    return zlib.compress(np.packbits(rows).tobytes(), 6) if empty or rows.any() else b""


def unpack_rows(data: bytes, records: int) -> NDArray[np.bool_]:
    """Return what `pack_rows` was given; DataError when it is not of `records` records."""
    size = -(-records // 8)
    try:
        found = zlib.decompressobj().decompress(data, size + 1)
    except zlib.error as e:
        raise DataError(f"which records to leave out cannot be read: {e}") from None
    if len(found) != size or records > MAX_ROWS:
        raise DataError(
            f"which records to leave out is told for {len(found) * 8}, not {records}: "
            "register the dataset again"
        )
    return np.unpackbits(np.frombuffer(found, np.uint8), count=records).astype(np.bool_)


class LoadedFile(TableFile):
    """A file read through a loading plan. `columns` and `header` are those after it."""

    def __init__(  # noqa: PLR0913 - what a source says of a table
        self,
        path: Path,
        format: str,
        missing: Sequence[str],
        columns: Mapping[str, str],
        plan: LoadingPlan | None,
        *,
        patient: str = "",
        without: bytes = b"",
        threads: int = 1,
        codes: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
        units: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Open the file and check the plan against its declared `columns`."""
        super().__init__(path, format, missing, threads, codes)
        self._base = {name: column_type(kind, name) for name, kind in columns.items()}
        for name, kind in self._base.items():
            self._check_column(name, kind)
        self._without = without
        self._plan = check(plan, columns, patient=patient, units=units) if plan else _NO_PLAN
        self.columns = dict(self._plan.columns) if plan else dict(columns)
        self.modalities = dict(self._plan.modalities)

    def read(
        self, types: Mapping[str, str], *, narrow: bool = False
    ) -> dict[str, tuple[Array, NDArray[np.bool_] | None]]:
        """Return columns as `TableFile.read` does, after the plan."""
        kinds = {name: column_type(type_, name) for name, type_ in types.items()}
        wanted = {}
        for name, kind in kinds.items():
            sql = f"CAST({quoted(name)} AS {kind.sql})"
            wanted[name] = f"CAST({sql} AS FLOAT)" if narrow and kind.name == "float64" else sql
        found = self.run(wanted, lambda result: result.fetchnumpy())
        return {name: self._column(name, kind, found[name]) for name, kind in kinds.items()}

    @contextmanager
    def loaded(self, types: Mapping[str, str]) -> Iterator["duckdb.DuckDBPyConnection"]:
        """Read columns as `TableFile.loaded` does, after the plan."""
        wanted = {
            f"c{i}": f"CAST({quoted(name)} AS {column_type(type_, name).sql})"
            for i, (name, type_) in enumerate(types.items())
        }
        with self._connect() as connection, self._explained():
            connection.execute(f"CREATE TABLE loaded AS {self._select(connection, wanted)}")
            yield connection

    def run(self, wanted: Mapping[str, str], take: Callable[[Any], T], tail: str = "") -> T:
        """Run the plan for `wanted` (name -> SQL over the columns at the end); `take` it.

        `tail` is SQL after the SELECT, such as a LIMIT.
        """
        with self._connect() as connection, self._explained():
            return take(connection.execute(f"{self._select(connection, wanted)} {tail}"))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what DuckDB raises into words: a block's own, or those about the file."""
        import duckdb  # noqa: PLC0415  # checked when the file was opened

        try:
            yield
        except duckdb.Error as error:
            said = str(error)
            if MARK in said:
                ours = said[said.index(MARK) + len(MARK) :].splitlines()[0]
                raise DataError(f"{self.path.name}: loading plan: {ours}") from None
            raise self._explain(error, self._base) from None

    def _select(self, connection: Any, wanted: Mapping[str, str]) -> str:
        """Prepare in `connection` what the plan needs first; return the SELECT of `wanted`."""
        stages = self._plan.stages
        names = [n for n in self.columns if any(quoted(n) in sql for sql in wanted.values())]
        names = names or [next(iter(self.columns))]  # only how many records there are is asked
        base = needed(stages, names)[0]
        kinds = {name: kind for name, kind in self._base.items() if name in base}
        if not kinds:  # the plan makes what is asked for of nothing
            kinds = dict([next(iter(self._base.items()))])
        casts = ", ".join(self._cast(n, kind, False) for n, kind in kinds.items())
        source = f"SELECT {casts} FROM {self._valued(kinds)}"  # noqa: S608
        if self._without:
            source = self._left_out(connection, source)
        columns = {name: quoted(name) for name in names}
        first, select = statements(stages, columns, source)
        for statement in first:
            connection.execute(statement)
        listed = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in wanted.items())
        return f"SELECT {listed} FROM ({select})"  # noqa: S608

    def _left_out(self, connection: Any, base: str) -> str:
        """Put the file into a temporary table, and return a SELECT without those left out."""
        connection.execute(f"CREATE TEMP TABLE whole AS {base}")
        ((records,),) = connection.execute("SELECT count(*) FROM whole").fetchall()
        rows = unpack_rows(self._without, int(records))
        bits = "".join(np.where(rows, "1", "0"))
        connection.execute("SET VARIABLE opted_out = CAST(? AS BIT)", [bits])
        return (
            "SELECT * FROM whole "
            "WHERE get_bit(getvariable('opted_out'), CAST(rowid AS INTEGER)) = 0"
        )
