"""The dataset that holds a study's copies at its data centre: one file for each site.

It is registered like any other and named pool-STUDY: tasks of the study find it by its tags.
Its files are looked at when one comes or goes, so this reads tables.
"""

import hashlib
from pathlib import Path

from consilia.data.holdout import Holdout
from consilia.data.registry import inspect_table
from consilia.errors import ConfigError, Conflict, DataError, NotFound
from consilia.node import datasets, holdout, loading, measuring
from consilia.node.pool import decisions
from consilia.node.store import Store
from consilia.node.studies import StudyRecord
from consilia.wire.pool import Contents

COPIES = "copies"


def part(directory: Path, study: str, site: str) -> Path:
    """Return where a site's copy lies, in a folder with the study's others."""
    name = hashlib.sha256(site.encode()).hexdigest()[:16]
    return decisions.folder(directory, study) / COPIES / f"{name}.csv"


def register(  # noqa: PLR0913 - by keyword
    store: Store,
    folder: Path,
    record: StudyRecord,
    contents: Contents,
    *,
    actor: str,
    now: float,
) -> None:
    """Register the copies in `folder`, or take a new one into what is registered.

    Raises DataError for a table with other columns or folds than those that are there.
    """
    name = decisions.name_of(record.study.name)
    try:
        known = datasets.get(store, name).dataset
    except NotFound:
        types = {column.name: column.type for column in contents.columns}
        measured = inspect_table(
            folder,
            name,
            record.study.tags,
            now=now,
            missing=("",),
            types={**types, **({decisions.COLUMN: "int64"} if contents.folds else {})},
            description=f"copies that sites pool for study {record.study.name}",
            patient=contents.patient,
        )
        datasets.add(store, measured, actor=actor, now=now)
        _fold(store, name, contents, actor, now)
    else:
        if Path(known.path) != folder:
            raise Conflict(
                f"dataset {name!r} is {known.path}, not the copies of study "
                f"{record.study.name!r} ({record.digest}): it serves something else; remove it "
                "first (consilia dataset remove)"
            )
        folds = known.holdout.folds if known.holdout else 0
        if (folds, known.patient) != (contents.folds, contents.patient):
            raise DataError(
                f"site {contents.site!r} deals its records into {contents.folds or 'no'} folds "
                f"with patients {contents.patient or 'unnamed'!r}, the copies that are here "
                f"have {folds or 'no'} folds and {known.patient or 'unnamed'!r}: all sites of "
                "a pool declare the same (consilia dataset holdout --folds)"
            )
        measuring.refresh(store, name, actor=actor, now=now)
    _measured(store)


def _fold(store: Store, name: str, contents: Contents, actor: str, now: float) -> None:
    if contents.folds:
        single = contents.single or not contents.patient
        declared = Holdout(decisions.COLUMN, folds=contents.folds, single=single)
        holdout.declare(store, name, declared, actor=actor, now=now)
    measuring.look(store, name, now=now)


def settle(store: Store, name: str, folder: Path, *, actor: str, now: float) -> None:
    """Take in that a copy is gone: the others stay registered, or the dataset goes."""
    try:
        known = datasets.get(store, name).dataset
    except NotFound:
        return
    if Path(known.path) != folder:
        return  # another's: nothing of it has gone
    if any(folder.glob("*.csv")):
        measuring.refresh(store, name, actor=actor, now=now)
        _measured(store)
    else:
        datasets.remove(store, name, actor=actor, now=now)
        folder.rmdir()


def _measured(store: Store) -> None:
    if problems := loading.refresh(store):
        raise ConfigError("; ".join(problems))
