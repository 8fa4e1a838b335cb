"""What a data manager does with a dataset: register, describe, look at, accept, consent.

Each function reads the table (data.registry, data.profile; a query's answer is fetched first,
data.sqlsource), then changes the store in one step. Nothing here is for the agent's event loop:
a large table takes seconds. A half-written snapshot or registration does not survive.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from consilia.core import ids
from consilia.data import schema as schemas
from consilia.data import sqlsource
from consilia.data.loading import preview as seen
from consilia.data.profile import Profile, profile
from consilia.data.registry import (
    MISSING,
    Dataset,
    Origin,
    inspect_table,
    schema_of,
    table_of,
)
from consilia.data.schema import Schema
from consilia.errors import ConfigError, Conflict, DataError, NotFound
from consilia.node import config, datasets, loading, numbers
from consilia.node import twin as twins
from consilia.node.datasets import Registered
from consilia.node.store import Store
from consilia.privacy.disclosure import Rules

SNAPSHOTS = "snapshots"  # folder of the node's directory
MAX_PREVIEW = 1000  # rows


@dataclass(frozen=True, slots=True)
class Wanted:
    """A registration, as a person asks for it: a `path`, or an `origin` to query."""

    name: str
    tags: tuple[str, ...]
    path: str = ""
    origin: Origin | None = None
    description: str = ""
    missing: tuple[str, ...] = MISSING
    types: Mapping[str, str] = field(default_factory=dict)
    patient: str = ""
    mock: bool = False


@dataclass(frozen=True, slots=True)
class Preview:
    """The first records of a table, as texts, None where a value is missing."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]


def register(store: Store, wanted: Wanted, *, actor: str, now: float) -> Registered:
    """Look at a table, register it and profile it; enabled at once."""
    ids.name(wanted.name, "dataset")
    if bool(wanted.path) == (wanted.origin is not None):
        raise ConfigError("a dataset is a file or folder, or a query: name one of them")
    if any(r.dataset.name == wanted.name for r in datasets.list_datasets(store)):
        raise Conflict(
            f"a dataset named {wanted.name!r} is registered already; "
            "choose another name, or remove it first: consilia dataset remove"
        )
    origin = wanted.origin and replace(wanted.origin, taken=now)
    final = store.path.parent / SNAPSHOTS / f"{wanted.name}.parquet"
    path = _draft(final) if origin else Path(wanted.path)
    try:
        if origin:
            sqlsource.snapshot(origin, path)
        measured = inspect_table(
            path, wanted.name, wanted.tags, now=now, format="parquet" if origin else None,
            missing=wanted.missing, types=wanted.types, description=wanted.description,
            patient=wanted.patient, origin=origin, mock=wanted.mock,
        )  # fmt: skip
        if origin:
            measured = replace(measured, path=str(final.resolve()))
        found = datasets.add(store, measured, actor=actor, now=now)
        if origin:
            path.replace(final)
    finally:
        if origin:
            path.unlink(missing_ok=True)
    look(store, wanted.name, now=now)
    return found


def refresh(store: Store, name: str, *, actor: str, now: float) -> Registered:
    """Accept a dataset's files as they are now; of a query, fetch its answer again.

    What was declared of columns that are still there holds, and is checked against the values.
    """
    old = datasets.get(store, name).dataset
    if old.origin is None:
        measured = _measured(old, schema_of(old), now)
    else:
        measured = _fetched(old, replace(old.origin, taken=now), now)
    found = datasets.edit(store, name, actor=actor, now=now, measured=measured)
    look(store, name, now=now)
    return found


def describe(store: Store, name: str, schema: Schema, *, actor: str, now: float) -> Registered:
    """Declare a dataset's columns. Types and missing codes are checked against every value."""
    old = datasets.get(store, name).dataset
    known, wanted = list(old.columns), [c.name for c in schema]
    if wanted != known:
        odd = sorted({*wanted} ^ {*known}) or wanted
        raise ConfigError(
            f"the schema names other columns than dataset {name!r} has: {', '.join(odd[:5])}"
        )
    schemas.check(schema)
    datasets.check_unchanged(old)  # a description must not accept new content by the way
    measured = _measured(old, schema, now)
    found = datasets.edit(store, name, actor=actor, now=now, measured=measured)
    look(store, name, now=now)
    return found


def consent(  # noqa: PLR0913 - by keyword
    store: Store,
    name: str,
    mock: bool | None = None,
    *,
    actor: str,
    now: float,
    as_loaded: bool | None = None,
) -> Registered:
    """Let the consortium have a mock twin of a dataset, or no longer.

    `as_loaded`: whether also of what the loading plans attached to it make of it
    (node.loadedtwins). None leaves either as it is. Raises ConfigError for that alone.
    """
    known = datasets.get(store, name).dataset
    if as_loaded and not (known.mock if mock is None else mock):
        raise ConfigError(
            f"as loaded: dataset {name!r} offers no mock twin; needed is that first: "
            f"consilia dataset mock {name} --allow --as-loaded"
        )
    if mock and datasets.kept_profile(store, known) is None:
        look(store, name, now=now)
    return datasets.edit(store, name, actor=actor, now=now, mock=mock, mock_loaded=as_loaded)


def look(store: Store, name: str, *, now: float) -> Profile:
    """Profile a dataset, keep that, and make of it what a mock twin may tell.

    The profile is for the site's eyes, and of all records; the twin is of those whose patients
    have not opted out, as far as its own rule lets it change (node.twin).
    """
    dataset = datasets.get(store, name).dataset
    datasets.check_unchanged(dataset)
    schema, rules, before = schema_of(dataset), site_rules(store), datasets.twin(store, name)
    gone, _ = loading.left_out(store, dataset)
    found = _profile(dataset, schema)
    compared = _profile(dataset, schema, before, gone) if before or gone else found
    told = twins.republish(before, compared, schema, rules)
    if before and told.basis is compared:  # enough has changed: cells that fit what is there
        fresh = _profile(dataset, schema, None, gone) if gone else found
        told = twins.republish(None, fresh, schema, rules)
    datasets.keep_profile(store, dataset, found, told, now)
    return found


def retell(store: Store, *, now: float) -> tuple[str, ...]:
    """Make the mock twins anew after the opt-out list has changed; return the datasets' names.

    A twin stays what it was until enough patients have left it or come back. A dataset that
    cannot be read is left out: no task is given it either, and node.loading says why.
    """
    told = []
    for known in (r.dataset for r in datasets.list_datasets(store) if r.usable):
        if known.mock and known.patient:
            with contextlib.suppress(DataError):
                look(store, known.name, now=now)
                told.append(known.name)
    return tuple(told)


def preview(store: Store, name: str, rows: int = 20) -> Preview:
    """Return the first records of a dataset, missing codes taken out. For the site's eyes."""
    if not 1 <= rows <= MAX_PREVIEW:
        raise ConfigError(f"rows: found {rows}, needed 1 to {MAX_PREVIEW}")
    dataset = datasets.get(store, name).dataset
    datasets.check_unchanged(dataset)
    types = schemas.types(schema_of(dataset))
    return Preview(tuple(types), tuple(table_of(dataset).first(types, rows)))


def site_rules(store: Store) -> Rules:
    """Return the thresholds of the site whose store this is, else the defaults."""
    try:
        return numbers.rules(config.load(store.path.parent).disclosure)
    except NotFound:  # a store without a node.yaml, as the simulator has
        return numbers.rules(config.Disclosure())


def _profile(
    dataset: Dataset,
    schema: Schema,
    before: twins.Published | None = None,
    gone: bytes = b"",
) -> Profile:
    """Profile a dataset in the cells of an earlier twin, without the records `gone`, packed."""
    table = seen.opened(dataset, None, gone) if gone else table_of(dataset)
    return profile(table, schema, dataset.patient, twins.grids(before))


def _measured(old: Dataset, schema: Schema, now: float) -> Dataset:
    return inspect_table(
        old.path, old.name, old.tags, now=now, format=old.format, missing=old.missing,
        schema=schema, origin=old.origin, mock=old.mock,
    )  # fmt: skip


def _fetched(old: Dataset, origin: Origin, now: float) -> Dataset:
    """Query again; the answer takes the old snapshot's place once it has been looked at."""
    path = Path(old.path)
    draft = _draft(path)
    try:
        sqlsource.snapshot(origin, draft)
        wanted = replace(old, path=str(draft), origin=origin)
        measured = _measured(wanted, schema_of(old), now)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return replace(measured, path=old.path)


def _draft(path: Path) -> Path:
    """Return where this process may put what will take the place of `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.next")
