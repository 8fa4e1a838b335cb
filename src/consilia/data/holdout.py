"""Which records of a dataset are its hold-out: kept from training, for judging models.

A column says it, or a seeded draw of patients. All records of a patient lie on one side:
a draw takes patients, not records, and a column that parts a patient is refused. A draw depends
on the seed and the patient's id alone, so it is the same after records were added or reordered.

Instead of one hold-out a dataset may declare folds, numbered from 1: a task names the fold that
is its hold-out, and a task that names none trains on all records.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Array
from consilia.errors import ConfigError, DataError

MAX_VALUES = 20
MAX_TEXT = 200  # characters of a value
FOLDS = range(2, 21)  # how many there may be


@dataclass(frozen=True, slots=True)
class Holdout:
    """How a site has declared the hold-out of a dataset: by `column`, or by `share`."""

    column: str = ""  # the records whose value is one of `values`
    values: tuple[str, ...] = ()
    share: float = 0.0  # of the patients, drawn by `seed`; 1: all records
    seed: int = 0
    single: bool = False  # every record is a patient of its own, as the site says
    folds: int = 0  # instead of one hold-out: drawn by `seed`, or numbered 1.. in `column`

    def __str__(self) -> str:
        """Say it in words."""
        if self.folds:
            whence = f" by column {self.column}" if self.column else ""
            return f"{self.folds} folds{whence}"
        if self.column:
            return f"{self.column} is {' or '.join(self.values)}"
        return f"{self.share:.0%} of the {'records' if self.single else 'patients'}"


def check(declared: Holdout, patient: str) -> None:
    """Raise ConfigError for a declaration that makes no sense; `patient` is the id column."""
    if declared.folds:
        _check_folds(declared)
    elif bool(declared.column) == (declared.share > 0):
        raise ConfigError("a hold-out is declared by a column and its values, or by a share")
    elif declared.column and not 1 <= len(declared.values) <= MAX_VALUES:
        raise ConfigError(
            f"{len(declared.values)} values of a hold-out, needed 1 to {MAX_VALUES}"
        )
    elif not declared.column and not 0 < declared.share <= 1:
        raise ConfigError(f"share: found {declared.share:g}, needed above 0, up to 1")
    if any(len(value) > MAX_TEXT for value in declared.values):
        raise ConfigError(f"a value of a hold-out has at most {MAX_TEXT} characters")
    if not patient and not declared.single:
        raise ConfigError(
            "the dataset names no column of patient ids, so nobody can tell whether a patient "
            "would be in training and hold-out both: declare the column, or say that every "
            "record is a patient of its own (--single)"
        )


def _check_folds(declared: Holdout) -> None:
    if declared.share or declared.values:
        raise ConfigError("folds together with a share or values; give one or the other")
    if declared.folds not in FOLDS:
        raise ConfigError(f"folds: found {declared.folds}, needed {FOLDS[0]} to {FOLDS[-1]}")


def folds(
    declared: Holdout, records: int, values: Array | None, patients: Sequence[str] | None
) -> NDArray[np.int64]:
    """Return in which fold each of `records` records is, from 1.

    `values` are those of its column, `patients` the ids, None where the dataset has none.
    Raises DataError when a column parts a patient or holds something else, or a fold is empty.
    """
    if declared.column:
        found = _numbered(declared, values, patients)
    else:
        ids = patients if patients is not None else [str(i) for i in range(records)]
        drawn = {i: 1 + int(_draw(declared.seed, i) * declared.folds) for i in set(ids)}
        found = np.array([drawn[i] for i in ids], np.int64)
    for fold in range(1, declared.folds + 1):
        if not (found == fold).any():
            raise DataError(f"fold {fold} of {declared.folds} has no record: take fewer folds")
    return found


def _numbered(
    declared: Holdout, values: Array | None, patients: Sequence[str] | None
) -> NDArray[np.int64]:
    texts = [] if values is None else [str(value).strip() for value in values.tolist()]
    known = {str(fold): fold for fold in range(1, declared.folds + 1)}
    if odd := next((text for text in texts if text not in known), None):
        raise DataError(
            f"column {declared.column!r} holds {odd[:40]!r}, needed a fold: "
            f"1 to {declared.folds}"
        )
    found = np.array([known[text] for text in texts], np.int64)
    if patients is not None:
        where: dict[str, int] = {}
        for patient, fold in zip(patients, found.tolist(), strict=True):
            if where.setdefault(patient, fold) != fold:
                raise DataError(
                    f"column {declared.column!r} puts a patient into folds {where[patient]} "
                    f"and {fold}; all records of a patient must lie in one"
                )
    return found


def inside(
    declared: Holdout, records: int, values: Array | None, patients: Sequence[str] | None
) -> NDArray[np.bool_]:
    """Return which of `records` records are in the hold-out.

    `values` are those of its column, `patients` the ids, None where the dataset has none.
    Raises DataError when the column parts a patient, or nothing is held out.
    """
    if declared.column:
        found = _by_column(declared, values, patients)
    else:
        ids = patients if patients is not None else [str(i) for i in range(records)]
        drawn = {i: _draw(declared.seed, i) < declared.share for i in set(ids)}
        found = np.array([drawn[i] for i in ids], np.bool_)
    if not found.any():
        raise DataError(f"the hold-out ({declared}) has no record")
    return found


def _by_column(
    declared: Holdout, values: Array | None, patients: Sequence[str] | None
) -> NDArray[np.bool_]:
    texts = [] if values is None else [str(value).strip() for value in values.tolist()]
    wanted = set(declared.values)
    found = np.array([text in wanted for text in texts], np.bool_)
    if patients is not None:
        held = {p for p, inner in zip(patients, found.tolist(), strict=True) if inner}
        kept = {p for p, inner in zip(patients, found.tolist(), strict=True) if not inner}
        if both := held & kept:
            raise DataError(
                f"column {declared.column!r} puts {len(both)} patients into training and "
                "hold-out both; all records of a patient must lie on one side"
            )
    return found


def _draw(seed: int, patient: str) -> float:
    """Return a number from 0 to 1 that only seed and patient decide."""
    digest = hashlib.blake2b(f"{seed}\0{patient}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
