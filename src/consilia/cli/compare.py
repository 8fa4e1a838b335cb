"""`consilia study compare`: local, federated, hybrid and central, on the same patients."""

from pathlib import Path
from typing import Annotated

import typer

from consilia.cli.options import Json, example, pairs, scalar
from consilia.cli.output import note, say, table


def add_to(study: typer.Typer) -> None:
    """Add the command to `consilia study`."""
    study.command(
        epilog=example(
            "consilia study compare tumours --plan tumour.py --rounds 20 --out compared",
            "consilia study compare tumours --plan tumour.py --rounds 20 --arm local \\",
            "    --arm federated --folds 3",
        )
    )(compare)


def compare(
    name: Annotated[str, typer.Argument(help="The study's name.")],
    plan: Annotated[str, typer.Option(help="A .py file, a folder, or the digest of a plan.")],
    rounds: Annotated[int, typer.Option(help="Of every arm.")] = 10,
    folds: Annotated[int, typer.Option(help="As many as the sites declare.")] = 5,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="An argument of the plan, NAME=VALUE; may be given again."),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="local, federated, hybrid or central; may be given again."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all jobs.")] = 0,
    patience: Annotated[float, typer.Option(help="Seconds that one job may take.")] = 600.0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the tables and a plot of each metric.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the degrees of federation of a study on the same held-out patients.

    Runs a job for each fold of each arm. An arm that is not allowed is shown with the reason.
    """
    from consilia.cli.output import json_text
    from consilia.sdk import compare as sdk
    from consilia.sdk.client import Client
    from consilia.wire import strict

    arms = strict.convert(tuple(arm or sdk.ARMS), tuple[sdk.Arm, ...], "--arm")
    given = {key: scalar(value) for key, value in pairs(set_ or (), "--set").items()}
    with Client() as client:
        found = sdk.compare(
            client,
            study=name,
            plan=plan,
            rounds=rounds,
            folds=folds,
            arguments=given,
            arms=arms,
            patience=patience,
            say=note,
            seed=seed,
        )
    for path in found.write(out) if out is not None else ():
        note(str(path))
    if as_json:
        say(json_text(found))
        return
    rows = [
        [
            *(c.metric, c.arm, c.site, f"{c.value:.3f}", f"{c.low:.3f} to {c.high:.3f}"),
            *(str(c.records), str(c.folds)),
        ]
        for c in found.cells
    ]
    table(("metric", "arm", "where", "value", "95 % interval", "records", "folds"), rows)
    rows = [
        [d.metric, f"{d.arm} - {d.less}", f"{d.value:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}"]
        for d in found.differences
        if d.site == sdk.ALL
    ]
    if rows:
        table(("metric", "difference", "value", "95 % interval"), rows)
    for which, why in found.without.items():
        say(f"{which}: not run: {why}")
    for line in found.notes:
        note(line)
