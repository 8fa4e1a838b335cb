"""The table that leaves: a dataset as its site loads it, and what the data centre makes of it.

What leaves is what a task would train on: after the data loading plan, without the records of
patients who opted out. Patients' ids become pseudonyms under a key that is thrown away, and one
column says in which fold the site has dealt each record, so that every later evaluation holds
out the same patients wherever they train. With folds, each is loaded by itself: nothing in one
(a median, say) follows from another.
"""

import csv
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from consilia.core.weights import Array
from consilia.data.loading.table import pack_rows, unpack_rows
from consilia.data.registry import Dataset, to_source
from consilia.data.table import Table
from consilia.errors import ConfigError
from consilia.node import holdout
from consilia.node.pool.decisions import COLUMN
from consilia.wire.pool import Column, Contents

Random = Callable[[int], bytes]


def export(
    ready: Dataset, site: str, study: str, loading: str, random: Random
) -> tuple[Contents, bytes]:
    """Return a prepared dataset (node.loading) as CSV, and what is to be said of it.

    Raises DataError for what does not load, ConfigError for a table that names our column.
    """
    declared = ready.holdout
    columns = Table(to_source(replace(ready, held=b""))).columns
    if COLUMN in columns:
        raise ConfigError(f"dataset {ready.name!r} has a column {COLUMN!r} of its own")
    folds = declared.folds if declared is not None else 0
    names = [*columns, *([COLUMN] if folds else [])]
    out, records, salt = io.StringIO(), 0, random(32)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for fold, part in _parts(ready, folds):
        table = Table(to_source(part))
        cells = [
            _texts(table, name, f"{site}:" if name == ready.patient else "", salt)
            for name in columns
        ]
        count = len(cells[0]) if cells else 0
        writer.writerows(zip(*cells, *([[fold] * count] if folds else []), strict=True))
        records += count
    body = out.getvalue().encode()
    contents = Contents(
        site=site,
        study=study,
        dataset=ready.name,
        loading=loading,
        records=records,
        columns=tuple(Column(name, kind) for name, kind in columns.items()),
        patient=ready.patient if ready.patient in columns else "",
        single=declared is not None and declared.single,
        folds=folds,
        digest=digest(body),
    )
    return contents, body


def digest(body: bytes) -> str:
    """Return the digest by which both ends name a table."""
    return "sha256:" + hashlib.sha256(body).hexdigest()


def _parts(ready: Dataset, folds: int) -> Iterator[tuple[int, Dataset]]:
    """Yield the records of each fold as a dataset; all of them as fold 0 without folds.

    A hold-out of the site's own is no fold: its records are left out, as they are of training.
    """
    whole = replace(ready, held=b"", held_records=0)
    if not folds:
        yield 0, whole
        return
    number = holdout.numbers(ready)
    gone = np.zeros(len(number), np.bool_)
    out = unpack_rows(ready.without, len(number)) if ready.without else gone
    for fold in range(1, folds + 1):
        if (~out & (number == fold)).any():
            # how many the loading plan leaves is seen when it is read
            yield fold, replace(whole, without=pack_rows(out | (number != fold)), records=0)


def _texts(table: Table, name: str, pseudonym: str, salt: bytes) -> list[str]:
    """Return a column as texts, "" for a missing value; ids as pseudonyms."""
    values, missing = table.column(name), table.missing(name)
    texts = [
        "" if absent else _text(value)
        for value, absent in zip(_plain(values), missing.tolist(), strict=True)
    ]
    if not pseudonym:
        return texts
    return [
        pseudonym + hashlib.blake2b(t.strip().encode(), digest_size=12, key=salt).hexdigest()
        for t in texts
    ]


def _plain(values: Array) -> list[object]:
    # datetime64 as ISO texts: tolist would make of a timestamp a whole number
    plain: list[object] = (values.astype(str) if values.dtype.kind == "M" else values).tolist()
    return plain


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)
