"""`consilia loading`: how this hospital's tables become what studies expect of them."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import Json, NodeDir, actor, example, group, text_of
from consilia.cli.output import done, listing, record, say, short, table, when

if TYPE_CHECKING:
    from consilia.data.loading.blocks import LoadingPlan
    from consilia.data.loading.preview import View
    from consilia.node.loading import Attached, Stored

Name = Annotated[str, typer.Argument(help="The loading plan's name.")]
Dataset = Annotated[str, typer.Argument(help="The dataset's name.")]
File = Annotated[Path, typer.Argument(help="A YAML file: docs/reference/loading-plans.md.")]
Version = Annotated[int, typer.Option("--version", help="0 is the newest.")]
Study = Annotated[str, typer.Option(help="Only for this study; without it, for every one.")]

app = group("loading", "Data loading plans: how a hospital's tables are read. At the node.")


@app.command(epilog=example("consilia loading create glucose.yaml"))
def create(file: File, directory: NodeDir = None, as_json: Json = False) -> None:
    """Store a new plan from a YAML file, its own or one that another site exported."""
    from consilia.node import loading

    with changing(directory) as store:
        stored = loading.create(store, _read(file), actor=actor(), now=time.time())
    _tell(stored, as_json)


@app.command(epilog=example("consilia loading edit glucose.yaml"))
def edit(file: File, directory: NodeDir = None, as_json: Json = False) -> None:
    """Store the next version of a plan. Datasets keep the version attached to them."""
    from consilia.node import loading

    with changing(directory) as store:
        stored = loading.edit(store, _read(file), actor=actor(), now=time.time())
    _tell(stored, as_json)


@app.command("list", epilog=example("consilia loading list"))
def list_(directory: NodeDir = None, as_json: Json = False) -> None:
    """List the plans, each in its newest version."""
    from consilia.node import loading

    with opened(directory) as store:
        _listing(loading.list_plans(store), as_json)


@app.command(epilog=example("consilia loading versions glucose"))
def versions(name: Name, directory: NodeDir = None, as_json: Json = False) -> None:
    """List every version of a plan."""
    from consilia.node import loading

    with opened(directory) as store:
        _listing(loading.versions(store, name), as_json)


@app.command(epilog=example("consilia loading show glucose"))
def show(
    name: Name, version: Version = 0, directory: NodeDir = None, as_json: Json = False
) -> None:
    """Show a plan: its blocks, and what it is attached to."""
    from consilia.data.loading import blocks
    from consilia.node import loading

    with opened(directory) as store:
        stored = loading.get(store, name, version)
        used = [a for a in loading.attachments(store) if a.plan == name]
    record(
        stored,
        {
            "name": stored.plan.name,
            "description": stored.plan.description,
            "version": stored.version,
            "digest": stored.digest,
            "stored": f"{when(stored.at)} by {stored.actor}",
            "attached": "\n".join(
                f"{a.dataset}, study {a.study or 'any'}, version {a.version}" for a in used
            ),
            "blocks": blocks.to_yaml(stored.plan).partition("blocks:\n")[2],
        },
        as_json,
    )


@app.command(epilog=example("consilia loading diff glucose --old 1"))
def diff(
    name: Name,
    old: Annotated[int, typer.Option(help="A version; without it, the one before.")] = 0,
    new: Annotated[int, typer.Option(help="A version; 0 is the newest.")] = 0,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show what changed between two versions of a plan."""
    from consilia.node import loading

    with opened(directory) as store:
        after = loading.get(store, name, new)
        before = loading.get(store, name, old or max(1, after.version - 1))
    text = loading.difference(before, after)
    done(text or "the two versions say the same", {"diff": text}, as_json)


@app.command(epilog=example("consilia loading export glucose > glucose.yaml"))
def export(
    name: Name, version: Version = 0, directory: NodeDir = None, as_json: Json = False
) -> None:
    """Write a plan as YAML, for `consilia loading create` at another site. No data is in it."""
    from consilia.data.loading import blocks
    from consilia.node import loading

    with opened(directory) as store:
        plan = loading.get(store, name, version).plan
    done(blocks.to_yaml(plan).rstrip(), plan, as_json)


@app.command(epilog=example("consilia loading preview heart-failure --plan glucose"))
def preview(
    dataset: Dataset,
    plan: Annotated[str, typer.Option(help="A stored plan.")] = "",
    file: Annotated[
        Path | None, typer.Option(help="Or a YAML file that is not stored yet.")
    ] = None,
    version: Version = 0,
    rows: Annotated[int, typer.Option(help="How many records to show.")] = 5,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show a dataset before and after a plan. It shows records: for the site's own eyes."""
    from consilia.cli.output import json_text
    from consilia.errors import ConfigError
    from consilia.node import loading

    if bool(plan) == (file is not None):
        raise ConfigError("give one of --plan NAME and --file FILE")
    with opened(directory) as store:
        wanted = _read(file) if file else loading.get(store, plan, version).plan
        found = loading.preview(store, dataset, wanted, rows)
    if as_json:
        say(json_text(found))
        return
    for title, view in (("before", found.before), ("after", found.after)):
        _view(f"{title}: {view.records} records", view)


@app.command(epilog=example("consilia loading attach glucose heart-failure --study first"))
def attach(
    name: Name,
    dataset: Dataset,
    study: Study = "",
    version: Version = 0,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Let a plan load a dataset from now on; it is tried on every record first."""
    from consilia.node import loadedtwins, loading

    with changing(directory) as store:
        found, facts = loading.attach(
            store, name, dataset, actor=actor(), now=time.time(), study=study, version=version
        )
        loadedtwins.retell(store, now=time.time())
    done(_loads(found, len(facts.columns), facts.records), found, as_json)


@app.command(
    epilog=example("consilia loading accept proposal.yaml heart-failure --study first")
)
def accept(
    file: File,
    dataset: Dataset,
    study: Study = "",
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Store a proposed plan and attach it, in one step; look at it first with `preview`."""
    from consilia.node import loadedtwins, loading

    with changing(directory) as store:
        found, facts = loading.accept(
            store, _read(file), dataset, actor=actor(), now=time.time(), study=study
        )
        loadedtwins.retell(store, now=time.time())
    done(_loads(found, len(facts.columns), facts.records), found, as_json)


@app.command(epilog=example("consilia loading detach heart-failure --study first"))
def detach(
    dataset: Dataset, study: Study = "", directory: NodeDir = None, as_json: Json = False
) -> None:
    """Load a dataset as it is again."""
    from consilia.node import loading

    with changing(directory) as store:
        loading.detach(store, dataset, actor=actor(), now=time.time(), study=study)
    done(f"dataset {dataset} has no plan any more", {"detached": dataset}, as_json)


@app.command(epilog=example("consilia loading attached"))
def attached(directory: NodeDir = None, as_json: Json = False) -> None:
    """List which plan loads which dataset."""
    from consilia.node import loading

    with opened(directory) as store:
        listing(
            loading.attachments(store),
            {
                "dataset": lambda a: a.dataset,
                "study": lambda a: a.study or "any",
                "plan": lambda a: a.plan,
                "version": lambda a: a.version,
                "digest": lambda a: short(a.digest),
                "by": lambda a: a.actor,
            },
            as_json,
            "no plan is attached; see: consilia loading attach --help",
        )


@app.command(epilog=example("consilia loading refresh"))
def refresh(directory: NodeDir = None, as_json: Json = False) -> None:
    """Apply plans and opt-outs to datasets that were changed since. Tasks wait for it."""
    from consilia.errors import DataError
    from consilia.node import loadedtwins

    with changing(directory) as store:
        problems = loadedtwins.after_change(store, now=time.time())
    if problems:
        raise DataError("; ".join(problems))
    done("every dataset is measured as it is loaded", {"problems": problems}, as_json)


def _read(file: Path) -> "LoadingPlan":
    from consilia.data.loading import blocks

    return blocks.from_yaml(text_of(file), str(file))


def _tell(stored: "Stored", as_json: bool) -> None:
    done(
        f"loading plan {stored.plan.name}: version {stored.version}, "
        f"{len(stored.plan.blocks)} blocks, {short(stored.digest)}; next: "
        f"consilia loading preview DATASET --plan {stored.plan.name}",
        stored,
        as_json,
    )


def _loads(found: "Attached", columns: int, records: int) -> str:
    where = f"study {found.study}" if found.study else "every study"
    return (
        f"dataset {found.dataset} is loaded by {found.plan} version {found.version} for {where}"
        f": {records} records, {columns} columns"
    )


def _listing(found: "list[Stored]", as_json: bool) -> None:
    listing(
        found,
        {
            "plan": lambda s: s.plan.name,
            "version": lambda s: s.version,
            "blocks": lambda s: len(s.plan.blocks),
            "digest": lambda s: short(s.digest),
            "stored": lambda s: when(s.at),
            "by": lambda s: s.actor,
            "description": lambda s: s.plan.description,
        },
        as_json,
        "no loading plan is stored; see: consilia loading create --help",
    )


def _view(title: str, view: "View") -> None:
    say(title)
    names = [c.name for c in view.columns]
    table(names, [["-" if cell is None else cell for cell in row] for row in view.rows])
    shown = ("column", "type", "missing", "distinct", "least", "greatest", "mean", "deviation")
    table(
        shown,
        [
            [
                *(c.name, c.type, str(c.missing), str(c.distinct)),
                *(c.least or "-", c.greatest or "-"),
                *("-" if n is None else f"{n:.6g}" for n in (c.mean, c.deviation)),
            ]
            for c in view.columns
        ],
    )
