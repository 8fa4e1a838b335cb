"""`consilia dataset`: which tables of this hospital studies may find, by tag."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import Json, NodeDir, actor, example, group, pairs
from consilia.cli.output import done, listing, record, size, when

if TYPE_CHECKING:
    from consilia.node.datasets import Registered

Name = Annotated[str, typer.Argument(help="The dataset's name.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be given again.")]

app = group("dataset", "A hospital's datasets. Files stay where they are; no value leaves.")


@app.command(
    epilog=example("consilia dataset add /data/hf.csv --name heart-failure --tag heart-failure")
)
def add(
    path: Annotated[Path, typer.Argument(help="A CSV, TSV or Parquet file.")],
    name: Annotated[str, typer.Option(help="The name it has here.")],
    tag: Tags = None,
    description: Annotated[str, typer.Option(help="For the site's own staff.")] = "",
    missing: Annotated[
        list[str] | None, typer.Option(help="A text that means no value; may be given again.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="NAME=TYPE where the type found is not the one meant."),
    ] = None,
    patient: Annotated[
        str, typer.Option(help="The column of patient ids, for privacy at patient level.")
    ] = "",
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Register a table: look at its columns once, count its records, take its digest."""
    from consilia.data.registry import MISSING, inspect_table
    from consilia.node import datasets

    with changing(directory) as store:
        measured = inspect_table(
            path,
            name,
            tuple(tag or ()),
            now=time.time(),
            missing=tuple(missing) if missing else MISSING,
            types=pairs(column or (), "--column"),
            description=description,
            patient=patient,
        )
        found = datasets.add(store, measured, actor=actor(), now=time.time())
    _tell(found, as_json)


@app.command("list", epilog=example("consilia dataset list --dir /srv/consilia"))
def list_(directory: NodeDir = None, as_json: Json = False) -> None:
    """List this site's datasets."""
    from consilia.node import datasets

    with opened(directory) as store:
        listing(
            datasets.list_datasets(store),
            {
                "dataset": lambda r: r.dataset.name,
                "records": lambda r: r.dataset.records,
                "columns": lambda r: len(r.dataset.columns),
                "tags": lambda r: r.dataset.tags,
                "enabled": lambda r: r.enabled,
                "file": lambda r: r.dataset.path,
            },
            as_json,
            "no dataset is registered; see: consilia dataset add --help",
        )


@app.command(epilog=example("consilia dataset show heart-failure"))
def show(name: Name, directory: NodeDir = None, as_json: Json = False) -> None:
    """Show one dataset: columns and their types, records, file, digest."""
    from consilia.node import datasets

    with opened(directory) as store:
        found = datasets.get(store, name)
    d = found.dataset
    record(
        found,
        {
            "name": d.name,
            "description": d.description,
            "tags": d.tags,
            "enabled": found.enabled,
            "records": d.records,
            "file": d.path,
            "size": size(d.bytes),
            "digest": d.digest,
            "registered": f"{when(d.created)} by {found.actor}",
            "columns": "\n".join(f"{column}: {type}" for column, type in d.columns.items()),
        },
        as_json,
    )


@app.command(
    epilog=example(
        "consilia dataset edit heart-failure --tag heart-failure --tag cardiology",
        "consilia dataset edit heart-failure --measure  # after the file was replaced",
    )
)
def edit(
    name: Name,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="The tags it has from now on.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="For the site's own staff.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Look at the file anew: it was changed.")
    ] = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Change tags or description, or take in a file that was changed."""
    from consilia.data.registry import inspect_table
    from consilia.node import datasets

    with changing(directory) as store:
        measured = None
        if measure:
            old = datasets.get(store, name).dataset
            measured = inspect_table(
                old.path,
                name,
                old.tags,
                now=time.time(),
                format=old.format,
                missing=old.missing,
                types=old.columns,
                patient=old.patient,
            )
        found = datasets.edit(
            store,
            name,
            actor=actor(),
            now=time.time(),
            tags=None if tag is None else tuple(tag),
            description=description,
            measured=measured,
        )
    _tell(found, as_json)


@app.command(epilog=example("consilia dataset disable heart-failure"))
def disable(name: Name, directory: NodeDir = None, as_json: Json = False) -> None:
    """Keep a dataset registered, but let no task use it."""
    from consilia.node import datasets

    with changing(directory) as store:
        found = datasets.disable(store, name, actor=actor(), now=time.time())
    _tell(found, as_json)


@app.command(epilog=example("consilia dataset enable heart-failure"))
def enable(name: Name, directory: NodeDir = None, as_json: Json = False) -> None:
    """Let tasks use a dataset again."""
    from consilia.node import datasets

    with changing(directory) as store:
        found = datasets.enable(store, name, actor=actor(), now=time.time())
    _tell(found, as_json)


@app.command(epilog=example("consilia dataset remove heart-failure"))
def remove(name: Name, directory: NodeDir = None, as_json: Json = False) -> None:
    """Forget a dataset. Its file is not touched."""
    from consilia.node import datasets

    with changing(directory) as store:
        datasets.remove(store, name, actor=actor(), now=time.time())
    done(f"dataset {name} is forgotten; its file is where it was", {"removed": name}, as_json)


def _tell(found: "Registered", as_json: bool) -> None:
    d = found.dataset
    state = "enabled" if found.enabled else "disabled"
    done(
        f"dataset {d.name}: {d.records} records, {len(d.columns)} columns, "
        f"tags {', '.join(d.tags)}, {state}",
        found,
        as_json,
    )
