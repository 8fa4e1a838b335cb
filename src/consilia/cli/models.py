"""`consilia models`: the model versions that jobs have made."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from consilia.cli.options import Json, example, group
from consilia.cli.output import done, json_text, listing, record, say, short, size, when


class Stage(StrEnum):
    """Where a version stands; the words of wire.people.Stage."""

    candidate = "candidate"
    released = "released"
    retired = "retired"


Version = Annotated[str, typer.Argument(help="The version's id, <job>.<round>.")]

app = group("models", "Model versions: every closed round is one, with its lineage.")


@app.command("list", epilog=example("consilia models list --job job-0123456789abcdef"))
def list_(
    job: Annotated[str | None, typer.Option(help="Only of this job.")] = None,
    stage: Annotated[
        Stage | None, typer.Option(help="Only those at this stage.", case_sensitive=True)
    ] = None,
    as_json: Json = False,
) -> None:
    """List model versions."""
    from consilia.sdk.client import Client

    with Client() as client:
        found = client.model_versions(job, stage.value if stage else None)
    listing(
        found,
        {
            "model": lambda v: v.id,
            "study": lambda v: v.study,
            "stage": lambda v: v.stage,
            "records": lambda v: v.records,
            "sites": lambda v: len(v.sites),
            "left since": lambda v: v.withdrawn,
            "metrics": lambda v: v.metrics,
            "size": lambda v: size(v.bytes) if v.deleted is None else "frame deleted",
            "made": lambda v: when(v.created),
        },
        as_json,
        "no model has been made",
    )


@app.command(epilog=example("consilia models get job-0123456789abcdef.20"))
def get(version: Version, as_json: Json = False) -> None:
    """Show a model version: what it was made of, by whom, on how many records."""
    from consilia.sdk.client import Client

    with Client() as client:
        v = client.model(version)
    record(
        v,
        {
            "model": v.id,
            "digest": v.digest,
            "size": size(v.bytes),
            "frame": "kept" if v.deleted is None else f"deleted {when(v.deleted)}",
            "made": when(v.created),
            "stage": v.stage or "not proposed",
            "sites that left": v.withdrawn or "none",
            "study": v.study,
            "plan": short(v.plan),
            "strategy": v.strategy.name,
            "arguments": v.arguments,
            "sites": v.sites,
            "records": v.records,
            "metrics": v.metrics,
            "made from": v.parent,
        },
        as_json,
    )


@app.command(
    epilog=example(
        'consilia models stage job-0123456789abcdef.20 candidate --reason "best AUC"',
        'consilia models stage job-0123456789abcdef.20 released --reason "checked"',
    )
)
def stage(
    version: Version,
    stage: Annotated[Stage, typer.Argument(help="candidate, released or retired.")],
    reason: Annotated[str, typer.Option(help="Why; it stands on the model's card.")],
    as_json: Json = False,
) -> None:
    """Propose, release or retire a model version. A release takes a second person."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.set_stage(version, stage.value, reason)
    done(f"{version} is {view.stage}", view, as_json)


@app.command(epilog=example("consilia models card job-0123456789abcdef.20 --out CARD.md"))
def card(
    version: Version,
    out: Annotated[Path | None, typer.Option(help="Write Markdown to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Show a model's card: what it was made of, how private, how good, what to beware of."""
    from consilia.sdk.card import markdown
    from consilia.sdk.client import Client

    with Client() as client:
        found = client.model_card(version)
    if out is None:
        say(json_text(found) if as_json else markdown(found).rstrip())
        return
    out.write_text(markdown(found), "utf-8")
    done(f"the card of {version} is in {out}", {"path": str(out)}, as_json)


@app.command(
    epilog=example("consilia models compare job-0123456789abcdef.19 job-0123456789abcdef.20")
)
def compare(
    versions: Annotated[list[str], typer.Argument(help="Two or more versions.")],
    as_json: Json = False,
) -> None:
    """Compare model versions: the arguments that differ, and every metric."""
    from consilia.errors import ConfigError
    from consilia.sdk.card import comparison
    from consilia.sdk.client import Client

    if len(versions) < 2:
        raise ConfigError("a comparison needs two versions or more, found one")
    with Client() as client:
        rows = comparison([client.model(id) for id in versions])
    listing(rows, {name: _of(name) for name in rows[0]}, as_json)


@app.command(
    epilog=example(
        "consilia models download job-0123456789abcdef.20 heart.npz",
        "consilia models download job-0123456789abcdef.20 heart.onnx --plan heart.py",
    )
)
def download(
    version: Version,
    path: Annotated[
        Path,
        typer.Argument(
            help="NAME.npz, NAME.safetensors, NAME.pt or NAME.onnx; any other name gets the "
            "tensor frame."
        ),
    ],
    plan: Annotated[
        Path | None,
        typer.Option(help="For .onnx: your own file of the training plan; its code runs here."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Download a model version, checked byte by byte against its digest."""
    import tempfile

    from consilia.sdk.client import Client
    from consilia.sdk.results import Model

    with Client() as client, tempfile.TemporaryDirectory(dir=path.absolute().parent) as folder:
        frame = Path(folder, "frame")
        view = client.download_model(version, frame)
        Model(view, frame, plan).save(path)
    done(f"{version} is in {path}", {"path": str(path), "digest": view.digest}, as_json)


def _of(name: str) -> "Callable[[Mapping[str, object]], object]":
    return lambda row: row[name]
