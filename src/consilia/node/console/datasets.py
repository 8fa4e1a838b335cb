"""Routes of datasets: find a table in the data roots, look at it, register it, change it."""

from litestar import delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody

from consilia.data import registry, schema
from consilia.data.loading import units
from consilia.data.profile import ColumnProfile
from consilia.data.registry import MISSING
from consilia.data.schema import Column, Schema
from consilia.errors import ConsiliaError, NotFound
from consilia.node import datasets, loadedtwins, loading, measuring
from consilia.node.console import folders, sources
from consilia.node.console.guard import Who, allow, anyone
from consilia.node.console.services import Here, Services
from consilia.node.datasets import Registered
from consilia.node.measuring import Wanted
from consilia.wire.console.datasets import (
    ChangeDataset,
    ColumnChange,
    ColumnView,
    DatasetsView,
    DatasetView,
    FolderView,
    InspectedView,
    InspectPath,
    NewDataset,
    PreviewView,
    ProfileCell,
    ProfileColumn,
    ProfileView,
)

MANAGER = allow("data_manager")


@get("/datasets", opt=anyone(), sync_to_thread=True)
def list_datasets(here: Here) -> DatasetsView:
    """List the registered datasets."""
    return DatasetsView(tuple(view(r) for r in datasets.list_datasets(here.store)))


@get("/datasets/{name:str}", opt=anyone(), sync_to_thread=True)
def get_dataset(here: Here, name: FromPath[str]) -> DatasetView:
    """Return one dataset."""
    found = datasets.get(here.store, name)
    problem = loading.Loading(here.store).prepared(found.dataset, loading.ANY).problem
    return view(found, (problem,) if problem else ())


@get("/folders", opt=MANAGER, sync_to_thread=True)
def list_folder(here: Here, path: FromQuery[str] = "") -> FolderView:
    """List a folder within the data roots."""
    return folders.listing(path, here.config().console.data_roots, here.directory)


@post("/datasets/inspect", opt=MANAGER, status_code=200, sync_to_thread=True)
def inspect(here: Here, data: JSONBody[InspectPath]) -> InspectedView:
    """Look at a table and propose its schema; nothing is stored."""
    found = sources.inspected(here, data)
    return InspectedView(
        found.path,
        found.format,
        found.records,
        found.bytes,
        found.digest,
        columns(registry.schema_of(found)),
    )


@post("/datasets", opt=MANAGER, sync_to_thread=True)
def add(here: Here, who: Who, data: JSONBody[NewDataset]) -> DatasetView:
    """Register a table."""
    wanted = Wanted(
        data.name,
        data.tags,
        str(sources.file_of(here, data.path)) if data.path else "",
        sources.origin_of(here, data.query) if data.query is not None else None,
        description=data.description,
        missing=MISSING if data.missing is None else data.missing,
        patient=data.patient,  # types are declared below, together with missing codes
    )
    made = measuring.register(here.store, wanted, actor=who.name, now=here.now())
    if data.columns:
        try:
            made = _declared(here, made, data.columns, who.name)
        except ConsiliaError:  # nothing of a registration that was refused stays
            datasets.remove(here.store, data.name, actor=who.name, now=here.now())
            raise
    return _settled(here, made)


@patch("/datasets/{name:str}", opt=MANAGER, sync_to_thread=True)
def change(
    here: Here, who: Who, name: FromPath[str], data: JSONBody[ChangeDataset]
) -> DatasetView:
    """Change tags, description, columns, or whether tasks may use it."""
    found = datasets.get(here.store, name)
    if data.columns:
        found = _declared(here, found, data.columns, who.name)
    wanted = (data.mock, data.mock_loaded)
    if wanted not in {(None, None), (found.dataset.mock, found.dataset.mock_loaded)}:
        found = measuring.consent(
            *(here.store, name, data.mock),
            actor=who.name,
            now=here.now(),
            as_loaded=data.mock_loaded,
        )
    if data.tags is not None or data.description is not None:
        found = datasets.edit(
            here.store,
            name,
            actor=who.name,
            now=here.now(),
            tags=data.tags,
            description=data.description,
        )
    if data.enabled is not None and data.enabled != found.enabled:
        switch = datasets.enable if data.enabled else datasets.disable
        found = switch(here.store, name, actor=who.name, now=here.now())
    return _settled(here, found)


@post("/datasets/{name:str}/refresh", opt=MANAGER, status_code=200, sync_to_thread=True)
def refresh(here: Here, who: Who, name: FromPath[str]) -> DatasetView:
    """Accept a dataset's files as they are now; of a query, fetch its answer again."""
    found = measuring.refresh(here.store, name, actor=who.name, now=here.now())
    return _settled(here, found)


@get("/datasets/{name:str}/preview", opt=allow("data_manager", "dpo"), sync_to_thread=True)
def preview(here: Here, name: FromPath[str], rows: FromQuery[int] = 20) -> PreviewView:
    """Return the first rows of a table, for the site's own eyes."""
    found = measuring.preview(here.store, name, rows)
    return PreviewView(found.columns, found.rows)


@get(
    "/datasets/{name:str}/profile",
    opt=allow("data_manager", "reviewer", "dpo"),
    sync_to_thread=True,
)
def get_profile(here: Here, name: FromPath[str]) -> ProfileView:
    """Return what a dataset holds, as it was measured; for the site's own eyes."""
    found = datasets.get(here.store, name).dataset
    kept = datasets.kept_profile(here.store, found)
    if kept is None:
        raise NotFound(f"dataset {name!r} has no profile of its file as it is; refresh it")
    return ProfileView(
        kept.records, kept.patients, tuple(_profiled(column) for column in kept.columns)
    )


@delete("/datasets/{name:str}", opt=MANAGER, sync_to_thread=True, status_code=204)
def remove(here: Here, who: Who, name: FromPath[str]) -> None:
    """Forget a dataset; its file stays where it is."""
    datasets.remove(here.store, name, actor=who.name, now=here.now())
    here.tell_agent()


def view(found: Registered, unfit: tuple[str, ...] = ()) -> DatasetView:
    """Return a dataset as people see it, with what was noticed about its file.

    `unfit` is what keeps its loading plan, or the opt-out list, from being applied.
    """
    d = found.dataset
    return DatasetView(
        d.name,
        d.description,
        d.tags,
        found.enabled,
        d.records,
        d.path,
        d.format,
        d.bytes,
        d.digest,
        d.created,
        found.actor,
        d.patient,
        columns(registry.schema_of(d)),
        found.changed or registry.change(d),
        found.version,
        d.mock,
        unfit,
        f"{d.origin.kind}: {d.origin.database}" if d.origin else "",
        d.origin.query if d.origin else "",
        max(1, len(d.parts)),
        d.mock_loaded,
    )


def _declared(
    here: Services, found: Registered, changes: tuple[ColumnChange, ...], actor: str
) -> Registered:
    """Declare columns of a dataset; they are checked against every value."""
    name, declared = found.dataset.name, changed(registry.schema_of(found.dataset), changes)
    return measuring.describe(here.store, name, declared, actor=actor, now=here.now())


def _settled(here: Services, found: Registered) -> DatasetView:
    """Let data loading plans be measured on what was changed, and the agent act on it.

    What does not fit any more is told at once: no task runs on the dataset until it does.
    """
    own = f"{found.dataset.name}: "
    problems = loadedtwins.after_change(here.store, now=here.now())
    unfit = tuple(p.removeprefix(own) for p in problems if p.startswith(own))
    here.tell_agent()
    return view(found, unfit)


def columns(found: Schema) -> tuple[ColumnView, ...]:
    """Return a schema as people see it."""
    return tuple(_column(c) for c in found)


def changed(old: Schema, changes: tuple[ColumnChange, ...]) -> Schema:
    """Return a schema with the columns changed as declared; raises ConfigError."""
    for change in changes:
        fields = {
            name: value
            for name in change.__struct_fields__
            if name != "name" and (value := getattr(change, name)) is not None
        }
        old = schema.edited(old, change.name, fields)
    return old


def _column(c: Column) -> ColumnView:
    return ColumnView(
        *(c.name, c.type, c.unit, c.code_system, c.role, tuple(c.missing), c.description),
        not c.unit or units.known(c.unit),
    )


def _profiled(column: ColumnProfile) -> ProfileColumn:
    width = column.grid.width
    cells = tuple(
        ProfileCell(str(c.at), None, None, c.records)
        if isinstance(c.at, str) or not width
        else ProfileCell("", c.at * width, (c.at + 1) * width, c.records)
        for c in column.cells
    )
    names = ("name", "type", "missing", "distinct", "least", "most", "mean", "sd", "quantiles")
    return ProfileColumn(**{n: getattr(column, n) for n in names}, cells=cells)


ROUTES = (
    list_datasets,
    get_dataset,
    list_folder,
    inspect,
    add,
    change,
    refresh,
    preview,
    get_profile,
    remove,
)
