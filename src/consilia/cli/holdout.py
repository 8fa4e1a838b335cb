"""`consilia dataset holdout`: which records are kept from training, to evaluate models on."""

import time
from typing import Annotated

import typer

from consilia.cli.at_node import changing
from consilia.cli.options import Json, NodeDir, actor, example
from consilia.cli.output import done
from consilia.errors import ConfigError


def add_to(dataset: typer.Typer) -> None:
    """Add the command to `consilia dataset`."""
    dataset.command(
        epilog=example(
            "consilia dataset holdout heart --share 0.2 --seed 7",
            "consilia dataset holdout heart --column split --value test",
            "consilia dataset holdout heart --folds 5 --seed 7",
            "consilia dataset holdout heart --none",
        )
    )(holdout)


def holdout(
    name: Annotated[str, typer.Argument(help="The dataset's name.")],
    share: Annotated[
        float | None, typer.Option(help="Of the patients; 1 for all records.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    column: Annotated[str, typer.Option(help="The column that says it.")] = "",
    value: Annotated[
        list[str] | None, typer.Option(help="Its value in the hold-out; may be given again.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Deal the patients into so many folds; a task names one.")
    ] = None,
    single: Annotated[
        bool, typer.Option("--single", help="Every record is a patient of its own.")
    ] = False,
    none: Annotated[
        bool, typer.Option("--none", help="There is no hold-out any more.")
    ] = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Declare the hold-out of a dataset. No task trains on its records from now on.

    With --folds the hold-out is the fold that a task names; a task that names none has all.

    All records of a patient lie on one side. Models that were trained before have seen them.
    """
    from consilia.data.holdout import Holdout
    from consilia.node import datasets, loading
    from consilia.node import holdout as holdouts

    if none and (share or column or folds):
        raise ConfigError("--none together with a hold-out; give one or the other")
    drawn = (share or 0.0, seed, single, folds or 0)
    wanted = None if none else Holdout(column, tuple(value or ()), *drawn)
    with changing(directory) as store:
        holdouts.declare(store, name, wanted, actor=actor(), now=time.time())
        if problems := loading.refresh(store):
            raise ConfigError("; ".join(problems))
        known = datasets.get(store, name).dataset
        found = loading.Loading(store).prepared(known, loading.ANY).dataset
    if wanted is not None and wanted.folds:
        text = f"dataset {name}: {wanted}, {found.records} records"
        done(text, {"folds": wanted.folds, "left": found.records}, as_json)
        return
    said = f"{found.held_records} records held out, {found.records} left to train on"
    done(
        f"dataset {name}: {said}", {"held": found.held_records, "left": found.records}, as_json
    )
