"""`consilia dataset`: which tables of this hospital studies may find, by tag."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import Json, NodeDir, actor, example, group, pairs, text_of
from consilia.cli.output import done, listing, note, record, say, size, table, when
from consilia.errors import ConfigError

if TYPE_CHECKING:
    from consilia.data.profile import ColumnProfile, Profile
    from consilia.data.registry import Origin
    from consilia.data.schema import Schema
    from consilia.node.datasets import Registered
    from consilia.node.measuring import Preview
    from consilia.node.store import Store

Name = Annotated[str, typer.Argument(help="The dataset's name.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be given again.")]

app = group("dataset", "A hospital's datasets. Files stay where they are; no value leaves.")


@app.command(
    epilog=example(
        "consilia dataset add /data/hf.csv --name heart-failure --tag heart-failure",
        "consilia dataset add /data/icu/ --name icu --tag icu  # a folder, as one table",
        "consilia dataset add --sql hf.sql --postgresql 'host=cdw dbname=cdw user=reader' \\",
        "    --password-file cdw.password --name heart-failure --tag heart-failure",
    )
)
def add(
    name: Annotated[str, typer.Option(help="The name it has here.")],
    path: Annotated[
        Path | None,
        typer.Argument(help="A CSV, TSV or Parquet file, or a folder of such files."),
    ] = None,
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
    sql: Annotated[
        Path | None, typer.Option(help="A file with one SELECT, whose answer is the table.")
    ] = None,
    duckdb: Annotated[Path | None, typer.Option(help="The DuckDB file to ask.")] = None,
    postgresql: Annotated[
        str, typer.Option(help="The PostgreSQL database to ask, without a password.")
    ] = "",
    password_file: Annotated[
        Path | None, typer.Option(help="Holds its password; readable by its owner only.")
    ] = None,
    mock: Annotated[
        bool, typer.Option("--mock", help="Let researchers have a mock twin of it.")
    ] = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Register a table: look at its columns once, profile them, take its digest."""
    from consilia.data.registry import MISSING
    from consilia.node import measuring

    wanted = measuring.Wanted(
        name=name,
        tags=tuple(tag or ()),
        path=str(path) if path else "",
        origin=_origin(sql, duckdb, postgresql, password_file),
        description=description,
        missing=tuple(missing) if missing else MISSING,
        types=pairs(column or (), "--column"),
        patient=patient,
        mock=mock,
    )
    with changing(directory) as store:
        found = measuring.register(store, wanted, actor=actor(), now=time.time())
        _loaded_anew(store)
    _tell(found, as_json)


@app.command("list", epilog=example("consilia dataset list --dir /srv/consilia"))
def list_(directory: NodeDir = None, as_json: Json = False) -> None:
    """List this site's datasets. Files that were changed are shown as such."""
    from consilia.data.registry import change
    from consilia.node import datasets

    with opened(directory) as store:
        found = datasets.list_datasets(store)
    listing(
        found,
        {
            "dataset": lambda r: r.dataset.name,
            "records": lambda r: r.dataset.records,
            "columns": lambda r: len(r.dataset.columns),
            "tags": lambda r: r.dataset.tags,
            "enabled": lambda r: r.enabled,
            "files": lambda r: "changed" if change(r.dataset) else "as registered",
            "file": lambda r: r.dataset.path,
        },
        as_json,
        "no dataset is registered; see: consilia dataset add --help",
    )


@app.command(epilog=example("consilia dataset show heart-failure"))
def show(name: Name, directory: NodeDir = None, as_json: Json = False) -> None:
    """Show one dataset: columns and their types, records, files, digest."""
    from consilia.data.registry import change
    from consilia.node import datasets
    from consilia.node.twin import too_large

    with opened(directory) as store:
        found = datasets.get(store, name)
        twin = datasets.twin(store, name)
    d = found.dataset
    what = change(d)
    told = "not given out" if not d.mock else "given out to the consortium"
    record(
        found,
        {
            "name": d.name,
            "description": d.description,
            "tags": d.tags,
            "enabled": found.enabled,
            "records": d.records,
            "file": d.path,
            "source": f"{d.origin.kind} {d.origin.database}" if d.origin else "",
            "query": d.origin.query if d.origin else "",
            "fetched": when(d.origin.taken) if d.origin else "",
            "size": size(d.bytes),
            "digest": d.digest,
            "state": f"{what}; see: consilia dataset refresh" if what else "as registered",
            "registered": f"{when(d.created)} by {found.actor}",
            "schema": f"version {found.version}",
            "mock twin": (too_large(twin.twin) if twin and d.mock else "") or told,
            "columns": "\n".join(f"{column}: {type}" for column, type in d.columns.items()),
        },
        as_json,
    )


@app.command(
    epilog=example(
        "consilia dataset schema heart-failure",
        "consilia dataset schema heart-failure --yaml > heart-failure.yaml",
    )
)
def schema(
    name: Name,
    yaml: Annotated[
        bool, typer.Option("--yaml", help="As the file that `edit --schema` reads.")
    ] = False,
    versions: Annotated[
        bool, typer.Option("--versions", help="Who declared what, and when.")
    ] = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show what is declared of the columns: type, unit, codes, role, missing codes."""
    from consilia.data import schema as schemas
    from consilia.data.registry import schema_of
    from consilia.node import datasets

    with opened(directory) as store:
        found = schema_of(datasets.get(store, name).dataset)
        kept = datasets.schema_versions(store, name)
    if yaml:
        say(schemas.to_text(found).rstrip("\n"))
        return
    if versions:
        before: Mapping[int, Schema] = {v.version + 1: v.schema for v in kept}
        listing(
            kept,
            {
                "version": lambda v: v.version,
                "at": lambda v: when(v.at),
                "by": lambda v: v.actor,
                "changed": lambda v: "; ".join(
                    schemas.differences(before.get(v.version, v.schema), v.schema)
                ),
            },
            as_json,
        )
        return
    listing(
        found,
        {
            "column": lambda c: c.name,
            "type": lambda c: c.type,
            "role": lambda c: c.role,
            "unit": lambda c: c.unit,
            "codes of": lambda c: c.code_system,
            "missing": lambda c: c.missing,
            "description": lambda c: c.description,
        },
        as_json,
    )


@app.command(
    epilog=example(
        "consilia dataset edit heart-failure --column age --unit a --missing -9",
        "consilia dataset edit heart-failure --column outcome --role target",
        "consilia dataset edit heart-failure --schema heart-failure.yaml",
        "consilia dataset edit heart-failure --tag heart-failure --tag cardiology",
    )
)
def edit(
    name: Name,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="The tags it has from now on.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="For the site's own staff.")] = None,
    column: Annotated[str, typer.Option(help="The column that the next options are of.")] = "",
    type: Annotated[str | None, typer.Option(help="float32, int64, category, ...")] = None,
    unit: Annotated[str | None, typer.Option(help="Its UCUM unit, such as mg/dL.")] = None,
    code_system: Annotated[
        str | None, typer.Option(help="What its values are codes of: http://loinc.org.")
    ] = None,
    role: Annotated[
        str | None, typer.Option(help="feature, target, patient, date, text or ignore.")
    ] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(help="A value that means none in this column; may be given again."),
    ] = None,
    about: Annotated[str | None, typer.Option(help="What the column holds.")] = None,
    schema: Annotated[
        Path | None, typer.Option(help="A YAML file that says this of many columns.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Accept changed files, as `refresh` does.")
    ] = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Change tags or description, or what is declared of the columns."""
    from consilia.data import schema as schemas
    from consilia.data.registry import schema_of
    from consilia.node import datasets, measuring

    changes = {
        key: value
        for key, value in {
            "type": type,
            "unit": unit,
            "code_system": code_system,
            "role": role,
            "missing": None if missing is None else tuple(t for t in missing if t),
            "description": about,
        }.items()
        if value is not None
    }
    if bool(changes) != bool(column):
        raise ConfigError("--column names a column, and other options say what to change of it")
    with changing(directory) as store:
        who, found = actor(), datasets.get(store, name)
        declared = schema_of(found.dataset)
        if schema is not None:
            text = text_of(schema)
            declared = schemas.from_text(text, declared, str(schema))
        if column:
            declared = schemas.edited(declared, column, changes)
        if measure:
            found = measuring.refresh(store, name, actor=who, now=time.time())
        if schema is not None or column:
            found = measuring.describe(store, name, declared, actor=who, now=time.time())
        if tag is not None or description is not None:
            found = datasets.edit(
                store,
                name,
                actor=who,
                now=time.time(),
                tags=None if tag is None else tuple(tag),
                description=description,
            )
        _loaded_anew(store)
    _tell(found, as_json)


@app.command(epilog=example("consilia dataset refresh heart-failure"))
def refresh(name: Name, directory: NodeDir = None, as_json: Json = False) -> None:
    """Accept a dataset's files as they are now; of a query, fetch its answer again."""
    from consilia.node import measuring

    with changing(directory) as store:
        found = measuring.refresh(store, name, actor=actor(), now=time.time())
        _loaded_anew(store)
    _tell(found, as_json)


def _loaded_anew(store: "Store") -> None:
    """Apply loading plans and the opt-out list to datasets as they are now."""
    from consilia.node import loadedtwins

    for problem in loadedtwins.after_change(store, now=time.time()):
        note(f"the loading plan of {problem}")


@app.command(epilog=example("consilia dataset profile heart-failure"))
def profile(
    name: Name,
    again: Annotated[bool, typer.Option("--again", help="Compute it anew.")] = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show counts, missing values, spread and levels of the columns. Stays at the site."""
    from consilia.node import datasets, measuring

    with opened(directory) as store:
        found = datasets.kept_profile(store, datasets.get(store, name).dataset)
        if found is None or again:
            found = measuring.look(store, name, now=time.time())
    if as_json:
        record(found, {}, as_json)
        return
    say(f"{found.records} records, {found.patients} patients")
    _profile_table(found)


@app.command(epilog=example("consilia dataset preview heart-failure --rows 20"))
def preview(
    name: Name,
    rows: Annotated[int, typer.Option(help="How many records, up to 1000.")] = 20,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show the first records, as tasks will read them. Only here, at the site."""
    from consilia.node import measuring

    with opened(directory) as store:
        found: Preview = measuring.preview(store, name, rows)
    if as_json:
        record(found, {}, as_json)
        return
    table(found.columns, [["-" if v is None else v for v in row] for row in found.rows])


@app.command(
    epilog=example(
        "consilia dataset mock heart-failure --allow",
        "consilia dataset mock heart-failure --allow --as-loaded",
        "consilia dataset mock heart-failure --out mock.csv  # look at one yourself",
    )
)
def mock(
    name: Name,
    allow: Annotated[
        bool | None,
        typer.Option("--allow/--deny", help="Whether researchers may have a mock twin."),
    ] = None,
    as_loaded: Annotated[
        bool | None,
        typer.Option(
            "--as-loaded/--as-in-file",
            help="Whether also of what its data loading plans make of it.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write invented records to this CSV file.")
    ] = None,
    rows: Annotated[int, typer.Option(help="How many records are invented.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed invents the same records.")] = 0,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show what a mock twin tells: counts of levels and bins with k patients or more."""
    from consilia.cli.mocks import shown, write_mock
    from consilia.node import datasets, loadedtwins, measuring

    with changing(directory) as store:
        if allow is not None or as_loaded is not None:
            measuring.consent(
                store, name, allow, actor=actor(), now=time.time(), as_loaded=as_loaded
            )
            loadedtwins.retell(store, now=time.time())
        datasets.get(store, name)
        if (found := datasets.twin(store, name)) is None:
            measuring.look(store, name, now=time.time())
            found = datasets.twin(store, name)
        told = datasets.get(store, name).dataset.mock
        loaded = loadedtwins.shown(store, name)
    if found is None:
        raise ConfigError(f"dataset {name!r} has no mock twin; see: consilia dataset profile")
    if out is not None:
        write_mock(found.twin, out, rows, seed)
    note(f"{'given out to the consortium' if told else 'not given out'}; k is {found.k}")
    for each in loaded:
        where = f"for study {each.attached.study}" if each.attached.study else "for every study"
        outcome = f"not told: {each.problem}" if each.problem else "told"
        note(f"as {each.attached.plan} {each.attached.version} loads it {where}: {outcome}")
    listing(found.twin.columns, shown(), as_json)


@app.command(epilog=example("consilia dataset disable heart-failure"))
def disable(name: Name, directory: NodeDir = None, as_json: Json = False) -> None:
    """Keep a dataset registered, but let no task use it; a running one is stopped."""
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
    """Forget a dataset; a running task is stopped. Its file is not touched."""
    from consilia.node import datasets

    with changing(directory) as store:
        datasets.remove(store, name, actor=actor(), now=time.time())
    done(f"dataset {name} is forgotten; its file is where it was", {"removed": name}, as_json)


def _origin(
    sql: Path | None, duckdb: Path | None, postgresql: str, password_file: Path | None
) -> "Origin | None":
    """Return what is to be queried, None where a file or folder is meant."""
    from consilia.data.sqlsource import origin

    if sql is None and duckdb is None and not postgresql and password_file is None:
        return None
    if sql is None or (duckdb is None) == (not postgresql):
        raise ConfigError("a query needs --sql FILE and one of --duckdb and --postgresql")
    query, secret = text_of(sql), str(password_file) if password_file else ""
    if duckdb is not None:
        return origin("duckdb", str(duckdb), query, secret)
    return origin("postgresql", postgresql, query, secret)


def _profile_table(found: "Profile") -> None:
    listing(
        found.columns,
        {
            "column": lambda c: c.name,
            "type": lambda c: c.type,
            "missing": lambda c: f"{c.missing} ({c.share(found.records):.1%})",
            "values": lambda c: c.distinct,
            "mean": lambda c: _number(c, c.mean),
            "sd": lambda c: c.sd,
            "least": lambda c: _number(c, c.least),
            "5 25 50 75 95 %": lambda c: " ".join(_number(c, q) for q in c.quantiles),
            "most": lambda c: _number(c, c.most),
            "levels": _levels,
        },
        as_json=False,
    )


def _number(c: "ColumnProfile", value: float | None) -> str:
    """Return a number for people; of dates, the day."""
    from datetime import date, timedelta

    if value is None:
        return ""
    if c.type in ("date", "timestamp"):
        return str(date(1970, 1, 1) + timedelta(days=value))
    return f"{value:.4g}"


def _levels(c: "ColumnProfile") -> str:
    if c.grid.kind != "levels":
        return ""
    shown = ", ".join(f"{cell.at}: {cell.records}" for cell in c.cells[:8])
    return shown + (f" and {len(c.cells) - 8} more" if len(c.cells) > 8 else "")


def _tell(found: "Registered", as_json: bool) -> None:
    d = found.dataset
    state = "enabled" if found.enabled else "disabled"
    done(
        f"dataset {d.name}: {d.records} records, {len(d.columns)} columns, "
        f"tags {', '.join(d.tags)}, {state}",
        found,
        as_json,
    )
