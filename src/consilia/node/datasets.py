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

import msgspec

from consilia.core import ids
from consilia.data.registry import Dataset
from consilia.errors import ConfigError, Conflict, DataError, NotFound
from consilia.node.launcher import shown_within
from consilia.node.policy import DatasetFacts
from consilia.node.store import Row, Store
from consilia.wire.v1 import OfferedDataset

MAX_DESCRIPTION = 2000
ROUNDING = 5  # offered counts are rounded down to a multiple of this
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Registered:
    """A dataset and whether tasks may use it."""

    dataset: Dataset
    enabled: bool
    actor: str  # who registered it


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
        tx.touch()
        detail = f"{dataset.path}, {dataset.digest}, tags {', '.join(dataset.tags)}"
        tx.audit(now, actor, "dataset.add", dataset.name, "added", detail)
    return Registered(dataset, True, actor)


def edit(  # noqa: PLR0913 - by keyword
    store: Store,
    name: str,
    *,
    actor: str,
    now: float,
    tags: tuple[str, ...] | None = None,
    description: str | None = None,
    measured: Dataset | None = None,
) -> Registered:
    """Change tags or description, or take in what a new look at the same file found."""
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
            )
        if tags is not None:
            new = replace(new, tags=tags)
        if description is not None:
            new = replace(new, description=description)
        _check_names(new)
        changed = [k for k, v in asdict(new).items() if v != asdict(old.dataset)[k]]
        tx.execute("UPDATE datasets SET body = ? WHERE name = ?", (_encode(new), name))
        tx.touch()
        detail = f"changed: {', '.join(changed) or 'nothing'}; tags {', '.join(new.tags)}"
        tx.audit(now, actor, "dataset.edit", name, "changed", detail)
    return replace(old, dataset=new)


def enable(store: Store, name: str, *, actor: str, now: float) -> Registered:
    """Let tasks use a dataset again."""
    return _switch(store, name, True, actor, now)


def disable(store: Store, name: str, *, actor: str, now: float) -> Registered:
    """Keep a dataset registered but let no task use it; a running one is stopped."""
    return _switch(store, name, False, actor, now)


def remove(store: Store, name: str, *, actor: str, now: float) -> None:
    """Forget a dataset. Its file stays where it is."""
    with store.write() as tx:
        _get(tx.rows(_ONE, (name,)), name)
        tx.execute("DELETE FROM datasets WHERE name = ?", (name,))
        tx.touch()
        tx.audit(now, actor, "dataset.remove", name, "removed")


def get(store: Store, name: str) -> Registered:
    """Return one dataset, or raise NotFound."""
    return _get(store.rows(_ONE, (name,)), name)


def list_datasets(store: Store) -> list[Registered]:
    """Return every dataset, by name."""
    rows = store.rows("SELECT name, body, enabled, actor FROM datasets ORDER BY name")
    return [_row(row) for row in rows]


def check_unchanged(dataset: Dataset) -> None:
    """Raise DataError when the file is not the one that was registered.

    Its size and time of change are looked at; only where the time differs is it read whole.
    """
    path = Path(dataset.path)
    remedy = f"look at it anew: consilia dataset edit {dataset.name} --measure"
    try:
        status = path.stat()
        if status.st_size == dataset.bytes and status.st_mtime == dataset.modified:
            return
        same = status.st_size == dataset.bytes and file_digest(path) == dataset.digest
    except OSError as e:
        raise DataError(f"dataset {dataset.name!r}: {path}: {e.strerror}") from None
    if not same:
        raise DataError(
            f"dataset {dataset.name!r}: {path} was changed after it was registered; {remedy}"
        )


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
        DatasetFacts(r.dataset.name, frozenset(r.dataset.tags), r.dataset.records, r.enabled)
        for r in list_datasets(store)
    )


def offered(store: Store) -> tuple[OfferedDataset, ...]:
    """Return what the consortium is told: names, types and tags, and a count rounded down."""
    return tuple(
        OfferedDataset(
            r.dataset.name,
            tuple(sorted(r.dataset.tags)),
            r.dataset.records // ROUNDING * ROUNDING,
            dict(r.dataset.columns),
        )
        for r in list_datasets(store)
        if r.enabled
    )


_ONE = "SELECT name, body, enabled, actor FROM datasets WHERE name = ?"


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
    if not rows:
        raise NotFound(f"no dataset {name[:80]!r} at this node; see: consilia dataset list")
    return _row(rows[0])


def _row(row: Row) -> Registered:
    _, body, enabled, actor = row
    return Registered(msgspec.msgpack.decode(body, type=Dataset), bool(enabled), str(actor))


def _encode(dataset: Dataset) -> bytes:
    plain: Mapping[str, object] = asdict(dataset)
    return msgspec.msgpack.encode(plain)
