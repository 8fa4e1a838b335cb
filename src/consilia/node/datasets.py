"""The site's registered datasets: kept here, described to the hub without a value in them.

A registration holds what was measured once (columns, records, digest of the file). A file
that was changed since is refused, never quietly used: its record count, on which the site's
minimum stands, is no longer known. Removing a registration leaves the file alone.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from consilia.core import ids
from consilia.data import schema as schemas
from consilia.data.holdout import Holdout
from consilia.data.profile import Profile
from consilia.data.registry import Dataset, change, schema_of
from consilia.data.schema import Schema
from consilia.errors import ConfigError, Conflict, DataError, NotFound
from consilia.node.launcher import shown_within
from consilia.node.policy import DatasetFacts
from consilia.node.store import Row, Store, Transaction
from consilia.node.twin import Published, too_large
from consilia.wire.v1 import MockTwin, OfferedDataset, encode

MAX_DESCRIPTION = 2000
MAX_TWINS = 1 << 20  # bytes of all mock twins that are told
ROUNDING = 5  # offered counts are rounded down to a multiple of this
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Registered:
    """A dataset and whether tasks may use it."""

    dataset: Dataset
    enabled: bool
    actor: str  # who registered it
    changed: str = ""  # how its files differ from what was registered, once that was noticed
    version: int = 0  # of its schema

    @property
    def usable(self) -> bool:
        """True when tasks may use it: nobody disabled it, and its files are those accepted."""
        return self.enabled and not self.changed


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """What was declared of a dataset's columns from one moment on."""

    version: int
    at: float  # Unix seconds
    actor: str
    schema: Schema


def add(store: Store, dataset: Dataset, *, actor: str, now: float) -> Registered:
    """Register what `data.registry.inspect_table` measured; enabled at once.

    ConfigError for a file in a folder that every worker is shown: the tasks of other datasets
    could read it there.
    """
    _check_names(dataset)
    if folder := shown_within(Path(dataset.path)):
        raise ConfigError(
            f"{dataset.path} lies in {folder}, which every worker can read, whatever dataset "
            "it works on; move the file to a folder of its own, such as /srv/data"
        )
    with store.write() as tx:
        if tx.rows("SELECT 1 FROM datasets WHERE name = ?", (dataset.name,)):
            raise Conflict(
                f"a dataset named {dataset.name!r} is registered already; "
                "choose another name, or remove it first: consilia dataset remove"
            )
        tx.execute(
            "INSERT INTO datasets VALUES (?, ?, 1, ?, ?)",
            (dataset.name, _encode(dataset), now, actor),
        )
        version = _keep_schema(tx, dataset, actor, now)
        tx.execute("DELETE FROM dataset_changes WHERE dataset = ?", (dataset.name,))
        tx.touch()
        source = f" from {dataset.origin.kind}" if dataset.origin else ""
        detail = f"{dataset.path}{source}, {dataset.digest}, tags {', '.join(dataset.tags)}"
        tx.audit(now, actor, "dataset.add", dataset.name, "added", detail)
    return Registered(dataset, True, actor, "", version)


def edit(  # noqa: PLR0913 - by keyword
    store: Store,
    name: str,
    *,
    actor: str,
    now: float,
    tags: tuple[str, ...] | None = None,
    description: str | None = None,
    measured: Dataset | None = None,
    mock: bool | None = None,
    mock_loaded: bool | None = None,
    holdout: Holdout | Literal["none"] | None = None,
) -> Registered:
    """Change tags, description, hold-out or consent to a mock twin, or take in a new look.

    A new look accepts changed files, and with them what a person declared of the columns.
    """
    with store.write() as tx:
        old = _get(tx.rows(_ONE, (name,)), name)
        new = old.dataset
        if measured is not None:
            if measured.path != new.path:
                raise Conflict(
                    f"dataset {name!r} is {new.path}, not {measured.path}; register the other "
                    "file under a name of its own"
                )
            new = replace(
                measured,
                name=name,
                tags=new.tags,
                created=new.created,
                description=new.description,
                mock=new.mock,
                mock_loaded=new.mock_loaded,
                holdout=new.holdout,
            )
            tx.execute("DELETE FROM dataset_changes WHERE dataset = ?", (name,))
        if tags is not None:
            new = replace(new, tags=tags)
        if description is not None:
            new = replace(new, description=description)
        if mock is not None:
            new = replace(new, mock=mock)
        if mock_loaded is not None:
            new = replace(new, mock_loaded=mock_loaded)
        if holdout is not None:
            new = replace(new, holdout=None if holdout == "none" else holdout)
        _check_names(new)
        tx.execute("UPDATE datasets SET body = ? WHERE name = ?", (_encode(new), name))
        version = _keep_schema(tx, new, actor, now)
        tx.touch()
        tx.audit(now, actor, "dataset.edit", name, "changed", _edits(old.dataset, new))
        return replace(_get(tx.rows(_ONE, (name,)), name), version=version)


def enable(store: Store, name: str, *, actor: str, now: float) -> Registered:
    """Let tasks use a dataset again."""
    return _switch(store, name, True, actor, now)


def disable(store: Store, name: str, *, actor: str, now: float) -> Registered:
    """Keep a dataset registered but let no task use it; a running one is stopped."""
    return _switch(store, name, False, actor, now)


def remove(store: Store, name: str, *, actor: str, now: float) -> None:
    """Forget a dataset. Its file stays where it is; the snapshot of a query is deleted.

    What its mock twin told is kept: a dataset registered anew under its name is compared.
    """
    with store.write() as tx:
        found = _get(tx.rows(_ONE, (name,)), name).dataset
        tx.execute("DELETE FROM datasets WHERE name = ?", (name,))
        tx.execute("DELETE FROM dataset_changes WHERE dataset = ?", (name,))
        tx.execute("DELETE FROM dataset_profiles WHERE dataset = ?", (name,))
        tx.touch()
        tx.audit(now, actor, "dataset.remove", name, "removed")
    if found.origin is not None:
        Path(found.path).unlink(missing_ok=True)


def get(store: Store, name: str) -> Registered:
    """Return one dataset, or raise NotFound."""
    return _get(store.rows(_ONE, (name,)), name)


def list_datasets(store: Store) -> list[Registered]:
    """Return every dataset, by name."""
    return [_row(row) for row in store.rows(f"{_EVERY} ORDER BY d.name")]


def schema_versions(store: Store, name: str) -> list[SchemaVersion]:
    """Return what was ever declared under a dataset's name, the newest last."""
    rows = store.rows(
        "SELECT version, at, actor, body FROM dataset_schemas WHERE dataset = ? "
        "ORDER BY version",
        (name,),
    )
    return [
        SchemaVersion(int(v), float(at), str(actor), _schema(body))
        for v, at, actor, body in rows
    ]


def check_unchanged(dataset: Dataset) -> None:
    """Raise DataError when the files are not those that were registered.

    Sizes and times of change are looked at; only where a time differs is a file read whole.
    """
    if what := change(dataset):
        raise DataError(
            f"dataset {dataset.name!r}: {what}; put it back as it was, or "
            f"accept it as it is: consilia dataset refresh {dataset.name}"
        )


def watch(store: Store, now: float) -> list[str]:
    """Look at every dataset's files; note which were changed, and which were put back.

    Returns the names of those whose state changed. A changed dataset is neither offered nor
    used by a task until somebody has accepted it. May read whole files: not on an event loop.
    """
    news = []
    for found in list_datasets(store):
        name, what = found.dataset.name, change(found.dataset)
        if what == found.changed:
            continue
        with store.write() as tx:
            if _get_row(tx.rows(_ONE, (name,))) != found:
                continue  # somebody accepted or removed it meanwhile
            tx.execute("DELETE FROM dataset_changes WHERE dataset = ?", (name,))
            if what:
                tx.execute("INSERT INTO dataset_changes VALUES (?, ?, ?)", (name, now, what))
            tx.touch()
            outcome = "changed" if what else "as registered"
            tx.audit(now, "agent", "dataset.files", name, outcome, what)
        news.append(name)
    return news


def file_digest(path: Path) -> str:
    """Return `sha256:<hex>` of a file, read in pieces."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while count := os.readv(fd, [buffer]):
            digest.update(buffer[:count])
    finally:
        os.close(fd)
    return "sha256:" + digest.hexdigest()


def facts(store: Store) -> tuple[DatasetFacts, ...]:
    """Return what policy judges by."""
    return tuple(
        DatasetFacts(r.dataset.name, frozenset(r.dataset.tags), r.dataset.records, r.usable)
        for r in list_datasets(store)
    )


def offered(store: Store, k: int = 0) -> tuple[OfferedDataset, ...]:
    """Return what the consortium is told: names, types and tags, and a count rounded down.

    Where the site consents, the mock twin goes with it, if it was made with `k` or more.
    """
    twins = _twins(store, k)
    found, room = [], MAX_TWINS
    for r in list_datasets(store):
        if not r.usable:
            continue
        told = twins.get(r.dataset.name) if r.dataset.mock else None
        size = len(encode(told)) if told else 0
        if size > room:
            told, size = None, 0
        room -= size
        found.append(
            OfferedDataset(
                r.dataset.name,
                tuple(sorted(r.dataset.tags)),
                r.dataset.records // ROUNDING * ROUNDING,
                {c.name: c.type for c in schema_of(r.dataset) if c.role != "ignore"},
                told,
            )
        )
    return tuple(found)


def twin(store: Store, name: str) -> Published | None:
    """Return a dataset's mock twin, told or not, with the profile it was made of."""
    rows = store.rows("SELECT body, basis FROM dataset_twins WHERE dataset = ?", (name,))
    if not rows:
        return None
    k, made = msgspec.msgpack.decode(rows[0][0], type=tuple[int, MockTwin])
    return Published(made, msgspec.msgpack.decode(rows[0][1], type=Profile), k)


def _twins(store: Store, k: int) -> dict[str, MockTwin]:
    """Return the mock twins that may be told where `k` is in force."""
    rows = store.rows("SELECT dataset, body FROM dataset_twins")
    found = {}
    for name, body in rows:
        made_with, made = msgspec.msgpack.decode(body, type=tuple[int, MockTwin])
        if made_with >= k and not too_large(made):
            found[str(name)] = made
    return found


def keep_profile(
    store: Store, dataset: Dataset, found: Profile, told: Published, now: float
) -> None:
    """Keep what a look at a dataset found, and the mock twin that follows from it."""
    name, encoded = dataset.name, msgspec.msgpack.encode
    with store.write() as tx:
        tx.execute(
            "INSERT OR REPLACE INTO dataset_profiles VALUES (?, ?, ?, ?)",
            (name, dataset.digest, now, encoded(found)),
        )
        tx.execute(
            "INSERT OR REPLACE INTO dataset_twins VALUES (?, ?, ?, ?)",
            (name, now, encoded(told.basis), encoded((told.k, told.twin))),
        )
        tx.touch()


def kept_profile(store: Store, dataset: Dataset) -> Profile | None:
    """Return the profile of a dataset as it is registered now, None when there is none."""
    rows = store.rows(
        "SELECT body FROM dataset_profiles WHERE dataset = ? AND digest = ?",
        (dataset.name, dataset.digest),
    )
    return msgspec.msgpack.decode(rows[0][0], type=Profile) if rows else None


_EVERY = """SELECT d.name, d.body, d.enabled, d.actor, coalesce(c.what, ''),
    (SELECT coalesce(max(version), 0) FROM dataset_schemas s WHERE s.dataset = d.name)
    FROM datasets d LEFT JOIN dataset_changes c ON c.dataset = d.name"""
_ONE = f"{_EVERY} WHERE d.name = ?"


def _keep_schema(tx: Transaction, dataset: Dataset, actor: str, now: float) -> int:
    """Keep a schema as a new version, unless it is the newest one; return its version."""
    body = msgspec.msgpack.encode(schema_of(dataset))
    rows = tx.rows(
        "SELECT version, body FROM dataset_schemas WHERE dataset = ? "
        "ORDER BY version DESC LIMIT 1",
        (dataset.name,),
    )
    if rows and bytes(rows[0][1]) == body:
        return int(rows[0][0])
    version = int(rows[0][0]) + 1 if rows else 1
    tx.execute(
        "INSERT INTO dataset_schemas VALUES (?, ?, ?, ?, ?)",
        (dataset.name, version, now, actor, body),
    )
    return version


def _edits(old: Dataset, new: Dataset) -> str:
    """Say for the audit trail what an edit changed."""
    before, after = asdict(old), asdict(new)
    names = [k for k in after if after[k] != before[k] and k != "schema"]
    said = schemas.differences(schema_of(old), schema_of(new))
    columns = f"; columns: {'; '.join(said)}" if said else ""
    return f"changed: {', '.join(names) or 'nothing else'}; tags {', '.join(new.tags)}{columns}"


def _switch(store: Store, name: str, enabled: bool, actor: str, now: float) -> Registered:
    with store.write() as tx:
        old = _get(tx.rows(_ONE, (name,)), name)
        tx.execute("UPDATE datasets SET enabled = ? WHERE name = ?", (int(enabled), name))
        tx.touch()
        verb = "enable" if enabled else "disable"
        tx.audit(now, actor, f"dataset.{verb}", name, f"{verb}d")
    return replace(old, enabled=enabled)


def _check_names(dataset: Dataset) -> None:
    ids.name(dataset.name, "dataset")
    if not dataset.tags:
        raise ConfigError(
            f"dataset {dataset.name!r} has no tag: studies find datasets by tags; "
            "give at least one"
        )
    for tag in dataset.tags:
        ids.name(tag, "tag")
    if len(dataset.description) > MAX_DESCRIPTION:
        raise ConfigError(f"a description has at most {MAX_DESCRIPTION} characters")


def _get(rows: list[Row], name: str) -> Registered:
    found = _get_row(rows)
    if found is None:
        raise NotFound(f"no dataset {name[:80]!r} at this node; see: consilia dataset list")
    return found


def _get_row(rows: list[Row]) -> Registered | None:
    return _row(rows[0]) if rows else None


def _row(row: Row) -> Registered:
    _, body, enabled, actor, what, version = row
    dataset = msgspec.msgpack.decode(body, type=Dataset)
    return Registered(dataset, bool(enabled), str(actor), str(what), int(version))


def _schema(body: bytes) -> Schema:
    return msgspec.msgpack.decode(body, type=Schema)


def _encode(dataset: Dataset) -> bytes:
    plain: Mapping[str, object] = asdict(dataset)
    return msgspec.msgpack.encode(plain)
