"""Mock twins of datasets as their data loading plans make them, where the site tells those too.

Sites are compared before training (data.harmonise). What a site's file says is of little use
once a plan renames, converts or leaves out; so a site may say that the consortium is also told
the twin of the table as it is loaded. It is one more release of the same records, and holds to
the rules of the first (node.twin), and to two more, since the two can be held side by side:

- nothing is told of a plan that leaves out some patients, but fewer than k;
- a cell that both have alike tells the file's count, unless k patients or more lie between.

Both hold between what is told for two studies as well: the hub sees all of them.

A twin is kept with a name of all that it depends on (`loading.source_of`). When file, plan or
opt-out list has changed, it is not told until `retell` has looked again: until then the site is
compared as its file is.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from consilia.data.loading import preview
from consilia.data.loading.blocks import (
    AnyBlock,
    Cast,
    Filter,
    Keep,
    LoadingPlan,
    Missing,
    Modalities,
    Rename,
)
from consilia.data.profile import Cell, ColumnProfile, Grid, Profile, profile
from consilia.data.registry import Dataset, schema_of
from consilia.data.schema import Column, Schema
from consilia.errors import ConfigError, DataError
from consilia.node import datasets, loading, measuring, optout
from consilia.node import twin as twins
from consilia.node.loading import Attached, Stored
from consilia.node.store import Store
from consilia.node.twin import Published
from consilia.privacy.disclosure import Rules
from consilia.wire.v1 import LoadedTwin, MockTwin, OfferedDataset, encode


@dataclass(frozen=True, slots=True)
class Shown:
    """What the consortium is told of a dataset as one plan loads it, or why it is not."""

    attached: Attached
    problem: str  # "" where it is told; for the site's eyes


def retell(store: Store, *, now: float) -> None:
    """Look again at what plans make of the datasets that are told as they are loaded.

    Reads only the tables of which something has changed. One that cannot be read is left out:
    tasks are refused it as well, and node.loading says why.
    """
    rules = measuring.site_rules(store)
    for known, attached in _wanted(store):
        with contextlib.suppress(DataError, ConfigError):
            _look(store, known, attached, rules, now)


def after_change(store: Store, *, now: float, opt_out: bool = False) -> list[str]:
    """Measure what is loaded and told, after a dataset or (`opt_out`) the opt-out list changed.

    Returns what does not fit any more: a dataset's name and why no task is given it.
    """
    problems = loading.refresh(store)
    if opt_out:
        measuring.retell(store, now=now)
    retell(store, now=now)
    return problems


def added(
    store: Store, offered: tuple[OfferedDataset, ...], k: int
) -> tuple[OfferedDataset, ...]:
    """Return what is offered, with the twins as loaded that may be told where `k` holds."""
    room = datasets.MAX_TWINS - sum(len(encode(d.mock)) for d in offered if d.mock)
    found: dict[str, list[LoadedTwin]] = {}
    for attached, told in _told(store, k):
        size = len(encode(told))
        if size <= room:
            room -= size
            found.setdefault(attached.dataset, []).append(LoadedTwin(attached.study, told))
    return tuple(
        msgspec.structs.replace(d, loaded=tuple(found[d.name])) if d.name in found else d
        for d in offered
    )


def shown(store: Store, name: str) -> tuple[Shown, ...]:
    """Return, for the site's eyes, which plans' outcome is told of a dataset."""
    known, k = datasets.get(store, name).dataset, measuring.site_rules(store).k
    on_list = optout.state(store)
    out = []
    for a in loading.attachments(store):
        if a.dataset != name:
            continue
        kept = _kept(store, known, a, on_list)
        if not (known.mock and known.mock_loaded):
            problem = "this site does not tell it"
        elif kept is None:
            problem = "not measured since the file, the plan or the opt-out list has changed"
        else:
            problem = kept[0] or twins.too_large(kept[1].twin)
            if not problem and kept[1].k < k:
                problem = f"made with k = {kept[1].k}, {k} is in force"
        out.append(Shown(a, problem))
    return tuple(out)


def schema_after(dataset: Dataset, plan: LoadingPlan) -> Schema:
    """Return the columns after a plan; what was declared of a name that is kept holds."""
    found = loading.compiled(dataset, plan)
    before = {c.name: c for c in schema_of(dataset)}
    return tuple(
        replace(
            before.get(name, Column(name, type_)), type=type_, unit=found.units.get(name, "")
        )
        for name, type_ in found.columns.items()
    )


# ---- inside --------------------------------------------------------------------------------


def _wanted(store: Store) -> list[tuple[Dataset, Attached]]:
    known = {
        r.dataset.name: r.dataset
        for r in datasets.list_datasets(store)
        if r.usable and r.dataset.mock and r.dataset.mock_loaded
    }
    return [(known[a.dataset], a) for a in loading.attachments(store) if a.dataset in known]


def _told(store: Store, k: int) -> list[tuple[Attached, MockTwin]]:
    on_list = optout.state(store)
    out = []
    for known, attached in _wanted(store):
        kept = _kept(store, known, attached, on_list)
        if kept and not kept[0] and kept[1].k >= k and not twins.too_large(kept[1].twin):
            out.append((attached, kept[1].twin))
    return out


def _look(store: Store, dataset: Dataset, attached: Attached, rules: Rules, now: float) -> None:
    """Make the twin of a dataset under one plan, as far as its rules let it change."""
    kept = _kept(store, dataset, attached, optout.state(store))
    if kept is not None and kept[1].k >= rules.k:
        return
    datasets.check_unchanged(dataset)
    stored = loading.get(store, attached.plan, attached.version)
    file, before = datasets.twin(store, dataset.name), _before(store, attached)
    schema = schema_after(dataset, stored.plan)
    grids = _same_grids(file, stored.plan, dataset, schema)
    others = _others(store, attached)
    beside = (*((file,) if file else ()), *(other for _, other in others))
    found = _profile(store, dataset, stored, schema, grids | dict(twins.grids(before)))
    found = _steady(found, beside, rules.k)
    told = twins.republish(before, found, schema, rules)
    if before and told.basis is found:  # enough has changed: cells that fit what is there
        found = _steady(_profile(store, dataset, stored, schema, grids), beside, rules.k)
        told = twins.republish(None, found, schema, rules)
    without, _ = loading.left_out(store, dataset)
    one = schema_of(dataset)[:1]
    whole = profile(preview.opened(dataset, None, without), one, dataset.patient).patients
    problem = _few(whole, found.patients, rules.k) or _close(others, found.patients, rules.k)
    _keep(store, dataset, attached, told, problem, now)


def _profile(
    store: Store, dataset: Dataset, stored: Stored, schema: Schema, grids: Mapping[str, Grid]
) -> Profile:
    without, _ = loading.left_out(store, dataset)
    table = preview.opened(dataset, stored.plan, without)
    return profile(table, schema, dataset.patient, grids)


def _same_grids(
    file: Published | None, plan: LoadingPlan, dataset: Dataset, schema: Schema
) -> dict[str, Grid]:
    """Return the cells of the file's twin, for the columns that the plan leaves as they are."""
    before = {c.name: (c.type, c.unit) for c in schema_of(dataset)}
    changed = {name for block in plan.blocks for name in _changed(block)}
    same = {c.name for c in schema if before.get(c.name) == (c.type, c.unit)} - changed
    return {name: grid for name, grid in twins.grids(file).items() if name in same}


def _changed(block: AnyBlock) -> frozenset[str]:
    """Name the columns that a block gives other values or another name."""
    match block:
        case Filter() | Keep() | Modalities():
            return frozenset()
        case Rename():
            return frozenset({*block.columns, *block.columns.values()})
        case Cast() | Missing():
            return frozenset(block.columns)
        case _:
            return frozenset({block.column})


def _few(whole: int, left: int, k: int) -> str:
    """Say why the twin is not told: the plan leaves out fewer patients than may be told."""
    if not 0 < whole - left < k:
        return ""
    return (
        f"the plan leaves out {whole - left} patients, fewer than {k}: from this and the mock "
        "twin of the file one could tell who they are"
    )


def _close(others: Sequence[tuple[str, Published]], left: int, k: int) -> str:
    """Say why the twin is not told beside those of other plans of the same dataset."""
    for study, other in others:
        if 0 < abs(other.basis.patients - left) < k:
            return (
                f"what is told for {study or 'every study'} is of {other.basis.patients} "
                f"patients, this of {left}: from the two one could tell who is in one alone"
            )
    return ""


def _steady(found: Profile, beside: Sequence[Published], k: int) -> Profile:
    """Return a profile whose cells are those told where fewer than k patients lie between."""
    for one in beside:
        told = {c.name: c for c in one.basis.columns}
        columns = tuple(
            _column(c, told[c.name], k)
            if c.name in told and (c.type, c.grid) == (told[c.name].type, told[c.name].grid)
            else c
            for c in found.columns
        )
        found = replace(found, columns=columns)
    return found


def _column(now: ColumnProfile, file: ColumnProfile, k: int) -> ColumnProfile:
    was, has = ({c.at: c for c in p.cells} for p in (file, now))
    cells = (_nearer(was.get(at), has.get(at), k) for at in {**was, **has})
    absent = file.absent if abs(file.absent.patients - now.absent.patients) < k else now.absent
    return replace(now, cells=tuple(c for c in cells if c is not None), absent=absent)


def _nearer(was: Cell | None, now: Cell | None, k: int) -> Cell | None:
    apart = abs((was.patients if was else 0) - (now.patients if now else 0))
    return was if apart < k else now


def _kept(
    store: Store, dataset: Dataset, attached: Attached, on_list: str
) -> tuple[str, Published] | None:
    """Return what is kept of a dataset under a plan as both are now: problem and twin."""
    stored = loading.get(store, attached.plan, attached.version)
    rows = store.rows(
        "SELECT problem, body, basis FROM loaded_twins "
        "WHERE dataset = ? AND study = ? AND source = ?",
        (dataset.name, attached.study, _source(dataset, stored, on_list)),
    )
    return (str(rows[0][0]), _published(rows[0][1], rows[0][2])) if rows else None


def _source(dataset: Dataset, stored: Stored, on_list: str) -> str:
    """Name all that a twin depends on; which records are held out is nothing to it."""
    return loading.source_of(replace(dataset, holdout=None), stored, on_list)


def _before(store: Store, attached: Attached) -> Published | None:
    """Return the twin that was made last for a dataset and a study, under whatever plan."""
    rows = store.rows(
        "SELECT body, basis FROM loaded_twins WHERE dataset = ? AND study = ?",
        (attached.dataset, attached.study),
    )
    return _published(rows[0][0], rows[0][1]) if rows else None


def _others(store: Store, attached: Attached) -> list[tuple[str, Published]]:
    """Return what is told of a dataset as other studies' plans load it, now or before."""
    same = {
        a.study
        for a in loading.attachments(store)
        if a.dataset == attached.dataset and a.digest == attached.digest
    }
    rows = store.rows(
        "SELECT study, body, basis FROM loaded_twins "
        "WHERE dataset = ? AND study <> ? AND problem = '' ORDER BY study",
        (attached.dataset, attached.study),
    )
    return [(str(row[0]), _published(row[1], row[2])) for row in rows if row[0] not in same]


def _published(body: bytes, basis: bytes) -> Published:
    k, made = msgspec.msgpack.decode(body, type=tuple[int, MockTwin])
    return Published(made, msgspec.msgpack.decode(basis, type=Profile), k)


def _keep(  # noqa: PLR0913, PLR0917 - a row
    store: Store, dataset: Dataset, at: Attached, told: Published, problem: str, now: float
) -> None:
    encoded = msgspec.msgpack.encode
    stored = loading.get(store, at.plan, at.version)
    source = _source(dataset, stored, optout.state(store))
    with store.write() as tx:
        tx.execute(
            "INSERT OR REPLACE INTO loaded_twins VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *(dataset.name, at.study, source, now, problem),
                *(encoded(told.basis), encoded((told.k, told.twin))),
            ),
        )
        tx.touch()
