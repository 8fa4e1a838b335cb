"""`consilia models`: the model versions that jobs have made."""

from pathlib import Path
from typing import Annotated

import typer

from consilia.cli.options import Json, example, group
from consilia.cli.output import done, listing, record, short, size, when

Version = Annotated[str, typer.Argument(help="The version's id, <job>.<round>.")]

app = group("models", "Model versions: every closed round is one, with its lineage.")


@app.command("list", epilog=example("consilia models list --job job-0123456789abcdef"))
def list_(
    job: Annotated[str | None, typer.Option(help="Only of this job.")] = None,
    as_json: Json = False,
) -> None:
    """List model versions."""
    from consilia.sdk.client import Client

    with Client() as client:
        found = client.models(job)
    listing(
        found,
        {
            "model": lambda v: v.id,
            "study": lambda v: v.study,
            "records": lambda v: v.records,
            "sites": lambda v: len(v.sites),
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


@app.command(epilog=example("consilia models download job-0123456789abcdef.20 heart.npz"))
def download(
    version: Version,
    path: Annotated[Path, typer.Argument(help="NAME.npz for numpy; else the tensor frame.")],
    as_json: Json = False,
) -> None:
    """Download a model version, checked byte by byte against its digest."""
    import tempfile

    from consilia.sdk.client import Client
    from consilia.sdk.results import Model

    with Client() as client, tempfile.TemporaryDirectory(dir=path.absolute().parent) as folder:
        frame = Path(folder, "frame")
        view = client.download_model(version, frame)
        Model(view, frame).save(path)
    done(f"{version} is in {path}", {"path": str(path), "digest": view.digest}, as_json)
