"""`consilia plan`: a researcher's training plans at the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.options import Json, example, group
from consilia.cli.output import done, listing, note, record, say, short, when
from consilia.errors import NotFound
from consilia.sdk.digests import resolve
from consilia.wire.v1 import Plan, plan_digest

if TYPE_CHECKING:
    from consilia.sdk.client import Client

Which = Annotated[str, typer.Argument(help="The plan's digest, or its first 8 or more digits.")]

app = group("plan", "Training plans: the code that hospitals review and run.")


@app.command(epilog=example("consilia plan submit heart.py --study heart-failure"))
def submit(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .py file, or a folder.")],
    study: Annotated[str, typer.Option(help="The study whose sites review it.")],
    name: Annotated[str, typer.Option(help="Default: the file's name.")] = "",
    entry: Annotated[str, typer.Option(help="module:ATTRIBUTE; default: PLAN.")] = "",
    require: Annotated[
        list[str] | None, typer.Option(help="A package it imports; may be given again.")
    ] = None,
    description: Annotated[str, typer.Option(help="For the reviewers.")] = "",
    as_json: Json = False,
) -> None:
    """Offer a plan to the sites of a study. It runs nowhere until a site approves it."""
    from consilia.sdk.client import Client
    from consilia.sdk.source import read_plan

    plan = read_plan(source, name, entry, tuple(require or ()), description)
    with Client() as client:
        view = client.submit_plan(study, plan)
    done(f"plan {view.digest} ({view.name}) is offered in study {study}", view, as_json)


@app.command("list", epilog=example("consilia plan list --study heart-failure"))
def list_(
    study: Annotated[str | None, typer.Option(help="Only of this study.")] = None,
    as_json: Json = False,
) -> None:
    """List plans and the sites that have approved them."""
    from consilia.sdk.client import Client

    with Client() as client:
        plans = client.plans(study)
    listing(
        plans,
        {
            "plan": lambda v: short(v.digest),
            "name": lambda v: v.name,
            "study": lambda v: v.study,
            "author": lambda v: v.author,
            "submitted": lambda v: when(v.created),
            "approved by": lambda v: v.approved,
        },
        as_json,
        "no plan has been submitted",
    )


@app.command(epilog=example("consilia plan show 3f9a1c2b"))
def show(digest: Which, as_json: Json = False) -> None:
    """Show a plan with its source and who has approved it."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.plan(_resolve(client, digest))
    if as_json or view.plan is None:
        done(view.digest, view, as_json)
        return
    record(
        view,
        {
            "plan": view.digest,
            "name": view.name,
            "study": view.study,
            "author": view.author,
            "submitted": when(view.created),
            "entry": view.plan.entry,
            "requires": view.plan.requirements or "nothing beyond Consilia",
            "description": view.plan.description,
            "approved by": view.approved,
        },
        False,
    )
    for path, text in sorted(view.plan.files.items()):
        say(f"\n==== {path}")
        say(text.rstrip())


@app.command(epilog=example("consilia plan diff 3f9a1c2b heart.py", "consilia plan diff A B"))
def diff(
    old: Annotated[str, typer.Argument(help="A digest, a file or a folder.")],
    new: Annotated[str, typer.Argument(help="A digest, a file or a folder.")],
    as_json: Json = False,
) -> None:
    """Show what changed between two plans: submitted ones, or files here."""
    from consilia.node.source import difference

    first, second = _load(old), _load(new)
    text = difference(first, second)
    if as_json:
        digests = {"old": plan_digest(first), "new": plan_digest(second)}
        done("", {**digests, "diff": text}, True)
    elif text:
        say(text)
    else:
        note("the two are the same plan")


def _resolve(client: "Client", text: str) -> str:
    known = [view.digest for view in client.plans()]
    return resolve(text, known, "plan", "consilia plan list")


def _load(text: str) -> Plan:
    from consilia.sdk.client import Client
    from consilia.sdk.source import read_plan

    if text.endswith(".py") or Path(text).exists():
        return read_plan(text)
    with Client() as client:
        found = client.plan(_resolve(client, text)).plan
    if found is None:
        raise NotFound(f"the hub keeps no source of plan {text}")
    return found
