"""`consilia study harmonise`: where the sites' datasets differ, before anything is trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.options import Json, example
from consilia.cli.output import json_text, note, say, table

if TYPE_CHECKING:
    from consilia.sdk.client import Client
    from consilia.wire.v1 import MockTwin

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
    not compared.
    """
    from consilia.data import harmonise as compared
    from consilia.data.loading import blocks
    from consilia.sdk.client import Client

    with Client() as client:
        twins, silent = _twins(client, study)
    for site in silent:
        note(f"{site} lets nobody see what its dataset is like, and is not compared")
    report = compared.compare(twins, f"harmonise-{study}"[:63], reference)
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


def _twins(client: "Client", study: str) -> "tuple[dict[str, MockTwin], list[str]]":
    """Return mock twins by site, or site/dataset for one of several, and who gives none."""
    offers = client.offers(study)
    many = {o.site for o in offers if sum(p.site == o.site for p in offers) > 1}
    twins, silent = {}, []
    for offer in offers:
        name = f"{offer.site}/{offer.dataset.name}" if offer.site in many else offer.site
        if offer.dataset.mock is None:
            silent.append(name)
        else:
            twins[name] = offer.dataset.mock
    return twins, silent
