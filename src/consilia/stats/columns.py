"""What a question for sums is computed from: each record's identity, groups and values.

This runs in a site's sandboxed worker, on a table as its loading plan and opt-outs leave it.
Nothing of it leaves the site: the agent (node.statistics) makes sums of it under the site's
rules.
"""

import hashlib
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Array, Weights
from consilia.data.table import Table
from consilia.errors import ConfigError, DataError
from consilia.wire.v1 import Statistics, Subgroups

MISSING = -1  # level of a record that belongs to none
IDS, WHERE, BY = "ids", "where", "by"


def columns(table: Table, asked: Statistics, patient: str = "") -> Weights:
    """Return one array a part of the question, each of as many elements as there are records.

    "ids": who a record is about (uint64); "where": whether it is asked about (bool); "by",
    "level:COLUMN", "rows:I", "across:I": its place among the names of stats.sums (int64,
    MISSING for none); "number:COLUMN" (float64, NaN for none). Raises DataError.
    """
    _refuse_patient(asked, patient)
    found: Weights = {IDS: identities(table, patient)}
    every = np.ones(len(found[IDS]), np.bool_)
    found[WHERE] = _where(table, asked.where, patient) if asked.where else every
    if asked.by is not None:
        found[BY] = places(table, asked.by)
    for levels in asked.levels:
        found[f"level:{levels.column}"] = places(table, levels)
    for i, (rows, across) in enumerate(asked.tables):
        found[f"rows:{i}"], found[f"across:{i}"] = places(table, rows), places(table, across)
    for numbers in asked.numbers:
        found[f"number:{numbers.column}"] = _numbers(table, numbers.column)
    return found


def places(table: Table, asked: Subgroups) -> NDArray[np.int64]:
    """Return each record's place among the levels, or between the cut points."""
    values, missing = table.column(asked.column), table.missing(asked.column)
    if asked.cuts:
        if values.dtype.kind not in "biuf":
            raise DataError(f"subgroup {asked.column!r} has cut points, and holds no numbers")
        numbers = values.astype(np.float64)
        found = np.searchsorted(np.asarray(asked.cuts), numbers, side="right")
        missing = missing | np.isnan(numbers)
    else:
        known = {level: place for place, level in enumerate(asked.levels)}
        found = np.array([known.get(_text(v), MISSING) for v in values.tolist()], np.int64)
    return np.where(missing, MISSING, found).astype(np.int64)


def identities(table: Table, patient: str) -> NDArray[np.uint64]:
    """Return what stands for whom each record is about.

    That is the patient's id where the dataset declares its column; else the record's own
    values, so that a record stays who it is when others come, go or change places. Two records
    with the same values are told apart by their number.
    """
    if patient:
        values, missing = table.column(patient), table.missing(patient)
        if missing.any():
            raise DataError(f"{int(missing.sum())} records have no patient id in {patient!r}")
        return _hashed([str(v).strip() for v in values.tolist()])  # as opt-outs and folds do
    read = {name: (table.column(name), table.missing(name)) for name in sorted(table.columns)}
    shown = [_shown(values, missing) for values, missing in read.values()]
    rows = ["\0".join(row) for row in zip(*shown, strict=True)]
    seen: Counter[str] = Counter()
    named = []
    for row in rows:
        seen[row] += 1
        named.append(f"{row}\0{seen[row]}")
    return _hashed(named)


def _where(table: Table, text: str, patient: str) -> NDArray[np.bool_]:
    try:
        found, read = table.where(text)
    except ConfigError as e:
        raise DataError(f"where: {e}") from None
    if patient in read:
        raise DataError(f"where: {patient!r} identifies patients; ask by another column")
    return found


def _numbers(table: Table, name: str) -> NDArray[np.float64]:
    values, missing = table.column(name), table.missing(name)
    if values.dtype.kind not in "biuf":
        raise DataError(f"column {name!r} holds no numbers: ask for its levels")
    return np.where(missing, np.nan, values.astype(np.float64))


def named(asked: Statistics) -> frozenset[str]:
    """Return the columns that a question names, but for those in its condition."""
    pairs = [s for pair in asked.tables for s in pair]
    levels = [*asked.levels, *pairs, *([asked.by] if asked.by else [])]
    return frozenset([n.column for n in asked.numbers] + [s.column for s in levels])


def _refuse_patient(asked: Statistics, patient: str) -> None:
    if patient and patient in named(asked):
        raise DataError(f"column {patient!r} identifies patients; nothing is told of it")


def _shown(values: Array, missing: NDArray[np.bool_]) -> list[str]:
    pairs = zip(values.tolist(), missing.tolist(), strict=True)
    return ["" if absent else str(value) for value, absent in pairs]


def _hashed(keys: list[str]) -> NDArray[np.uint64]:
    hashes = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)


def _text(value: object) -> str:
    """Return a value as a level names it: 1 for 1.0, true for True."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
