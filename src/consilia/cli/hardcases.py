"""`consilia node hard-cases`: the records a model is most wrong about, for this site's eyes."""

import time
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from consilia.cli.at_node import opened
from consilia.cli.options import Json, NodeDir, actor, example, node_dir
from consilia.cli.output import json_text, note, say, table

_PARTS = 3  # values of a record that a line has room for


def add_to(node: typer.Typer) -> None:
    """Register the command."""
    node.command(
        "hard-cases",
        epilog=example(
            "consilia node hard-cases heart.npz --plan 3f9a1c2b --dataset hf --top 10"
        ),
    )(hard_cases)


def hard_cases(
    model: Annotated[Path, typer.Argument(help="NAME.npz or a frame, as downloaded.")],
    plan: Annotated[str, typer.Option(help="The plan's digest, or 8 or more digits.")],
    dataset: Annotated[str, typer.Option(help="The dataset to look at.")],
    top: Annotated[int, typer.Option(help="Records to show.")] = 20,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show the records with the highest loss and the values that make it high.

    An approved plan runs in the sandbox; what is shown are records of this site, and nothing
    of it leaves. The audit trail says that somebody has looked.
    """
    from consilia.node import hardcases
    from consilia.node.privacyreport import Wanted

    with opened(directory) as store:
        found = hardcases.find(
            store,
            node_dir(directory),
            Wanted(model, plan, dataset),
            most=top,
            actor=actor(),
            today=date.today(),
            now=time.time,
            tell=note,
        )
    if as_json:
        say(json_text(found))
        return
    note(
        f"{len(found.worst)} of {found.records} records of {found.dataset}, the highest loss "
        f"first; half of all records are below {found.median:.4g}"
    )
    table(
        ("row", "patient", "loss", "target", "because of"),
        [
            [
                str(case.row),
                case.patient,
                f"{case.loss:.4g}",
                " ".join(f"{t:g}" for t in case.target),
                ", ".join(
                    f"{p.name} {p.value:.4g} ({p.share:+.3g})" for p in case.parts[:_PARTS]
                ),
            ]
            for case in found.worst
        ],
    )
