"""The hold-out of a dataset at this site: who declared it, and which records it is.

Declaring one changes what every later task of the dataset trains on. A model that was trained
before has seen the records: judge it on them only if they were kept from it by other means.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Array
from consilia.data.holdout import Holdout, check, folds, inside
from consilia.data.loading.table import pack_rows, unpack_rows
from consilia.data.registry import Dataset, table_of
from consilia.errors import DataError
from consilia.node import datasets
from consilia.node.datasets import Registered
from consilia.node.store import Store
from consilia.wire.strict import nearest


def declare(
    store: Store, name: str, declared: Holdout | None, *, actor: str, now: float
) -> Registered:
    """Declare a dataset's hold-out, or that it has none any more, having looked at it.

    Tasks wait until loading.refresh has measured what is left. Raises NotFound, ConfigError
    for a declaration that makes no sense, DataError for one that the records do not fit.
    """
    known = datasets.get(store, name).dataset
    if declared is None:
        return datasets.edit(store, name, actor=actor, now=now, holdout="none")
    check(declared, known.patient)
    datasets.check_unchanged(known)
    looked = replace(known, holdout=declared)
    if declared.folds:
        folded(looked, b"")
    else:
        parted(looked, b"")
    return datasets.edit(store, name, actor=actor, now=now, holdout=declared)


def parted(dataset: Dataset, left_out: bytes) -> tuple[bytes, bytes]:
    """Return what training leaves out and what its hold-out leaves out, packed.

    `left_out` are the records that neither has. Raises DataError.
    """
    if dataset.holdout is None:
        raise DataError(f"dataset {dataset.name!r} declares no hold-out")
    held = _inside(dataset, dataset.holdout)
    out = unpack_rows(left_out, dataset.records) if left_out else np.zeros_like(held)
    return pack_rows(out | held), pack_rows(out | ~held, empty=True)


def folded(dataset: Dataset, left_out: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return for each fold what training leaves out and what the fold leaves out, packed.

    `left_out` are the records that neither has. Raises DataError.
    """
    number = numbers(dataset)
    gone = np.zeros(len(number), np.bool_)
    out = unpack_rows(left_out, dataset.records) if left_out else gone
    declared = 0 if dataset.holdout is None else dataset.holdout.folds
    return tuple(
        (pack_rows(out | (number == fold)), pack_rows(out | (number != fold), empty=True))
        for fold in range(1, declared + 1)
    )


def numbers(dataset: Dataset) -> NDArray[np.int64]:
    """Return in which fold each record of a dataset is, from 1; DataError without folds."""
    if dataset.holdout is None or not dataset.holdout.folds:
        raise DataError(f"dataset {dataset.name!r} declares no folds")
    values, ids = _read(dataset, dataset.holdout)
    return folds(dataset.holdout, dataset.records, values, ids)


def _inside(dataset: Dataset, declared: Holdout) -> NDArray[np.bool_]:
    values, ids = _read(dataset, declared)
    return inside(declared, dataset.records, values, ids)


def _read(dataset: Dataset, declared: Holdout) -> tuple[Array | None, list[str] | None]:
    """Return the values of the declaration's column and the patients' ids, where there are."""
    table = table_of(dataset)
    wanted = [c for c in (declared.column, dataset.patient) if c]
    if declared.column and declared.column not in table.header:
        raise DataError(
            f"dataset {dataset.name!r} has no column {declared.column!r}"
            f"{nearest(declared.column, tuple(table.header))}"
        )
    read = table.read(dict.fromkeys(wanted, "str")) if wanted else {}
    ids = None
    if dataset.patient:
        ids = [str(i).strip() for i in read[dataset.patient][0].tolist()]
    return (read[declared.column][0] if declared.column else None), ids
