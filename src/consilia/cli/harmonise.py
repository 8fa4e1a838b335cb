"""`consilia study harmonise`: where the sites' datasets differ, before anything is trained."""

from pathlib import Path
from typing import Annotated

import typer

from consilia.cli.options import Json, example
from consilia.cli.output import json_text, note, say, table

Study = Annotated[str, typer.Argument(help="The study's name.")]


def add_to(group: typer.Typer) -> None:
    """Add the command."""
    group.command(
        epilog=example(
            "consilia study harmonise heart-failure",
            "consilia study harmonise heart-failure --reference north --out proposals",
        )
    )(harmonise)


def harmonise(
    study: Study,
    reference: Annotated[
        str, typer.Option(help="The site to agree with; without it, the most usual one.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="A folder for the proposed loading plans, one a site.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare what the sites let a study see of their datasets; propose loading plans.

    A site accepts its plan with `consilia loading accept`. Sites that give no mock twin are
    not compared; of those that tell no more, the table in the file is.
    """
    from consilia.data import harmonise as compared
    from consilia.data.loading import blocks
    from consilia.sdk.client import Client

    with Client() as client:
        told = compared.told(((o.site, o.dataset) for o in client.offers(study)), study)
    for site in told.silent:
        note(f"{site} lets nobody see what its dataset is like, and is not compared")
    for site in told.as_in_file:
        note(f"{site} is compared as in the file, whatever loading plan it has")
    report = compared.compare(told.twins, f"harmonise-{study}"[:63], reference, told.as_in_file)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for site, plan in report.plans.items():
            path = out / f"{site.replace('/', '-')}.yaml"
            path.write_text(blocks.to_yaml(plan), "utf-8")
            note(f"{path}: for {site}, to be accepted there: consilia loading accept")
    if as_json:
        say(json_text(report))
        return
    say(f"reference: {report.reference}")
    table(
        ("site", "column", "about", "proposed", "difference"),
        [
            [d.site, d.column, d.about, blocks.kind(d.block) if d.block else "-", d.said]
            for d in report.differences
        ],
    )
