"""`consilia node privacy-report`: what a model tells of this hospital's patients, by attack."""

import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.at_node import opened
from consilia.cli.options import Json, NodeDir, actor, example, node_dir
from consilia.cli.output import done, note
from consilia.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from consilia.node.privacyreport import Wanted
    from consilia.privacy.verdict import Findings, Verdict


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "privacy-report",
        epilog=example(
            "consilia node privacy-report heart.npz --plan 3f9a1c2b --dataset hf --split 0.2",
            "consilia node privacy-report heart.npz --plan 3f9a1c2b --dataset hf --holdout new",
        ),
    )(privacy_report)


def privacy_report(
    model: Annotated[Path, typer.Argument(help="NAME.npz, or a tensor frame.")],
    plan: Annotated[str, typer.Option(help="The plan's digest, or 8 or more of its digits.")],
    dataset: Annotated[str, typer.Option(help="The dataset it was trained on.")],
    holdout: Annotated[
        str, typer.Option(help="A dataset of the same kind that the model never saw.")
    ] = "",
    split: Annotated[
        float, typer.Option(help="Without a holdout: share kept from a stand-in model.")
    ] = 0.2,
    experiment: Annotated[
        Path | None, typer.Option(help="The experiment's YAML: arguments, rounds, privacy.")
    ] = None,
    job: Annotated[str, typer.Option(help="Ask this site's ledger what the job spent.")] = "",
    rounds: Annotated[
        int, typer.Option(help="Rounds of the models trained here; 0: the experiment's, or 10.")
    ] = 0,
    references: Annotated[int, typer.Option(help="Reference models, an even number.")] = 8,
    canaries: Annotated[
        int, typer.Option(help="Planted records; -1: as many as records, at most 1000.")
    ] = -1,
    out: Annotated[Path, typer.Option(help="A new or empty folder for the report.")] = Path(
        "privacy-report"
    ),
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Attack a model with this site's own records and write what was found.

    It runs in the sandbox, by an approved plan; nothing leaves the site. Exit code 1: leaky.
    """
    from consilia.node import privacyreport
    from consilia.privacy import report

    where = node_dir(directory)
    wanted = privacyreport.Wanted(
        model, plan, dataset, holdout, split, job, rounds, references, canaries
    )
    if experiment is not None:
        wanted = _as_in(experiment, wanted)
    _empty(out)
    with opened(directory) as store:
        found, verdict = privacyreport.make(
            store, where, wanted, actor=actor(), today=date.today(), now=time.time, tell=note
        )
    _write(out, report.page(found, verdict), report.data(found, verdict))
    _tell(out, found, verdict, as_json)
    if verdict.word == "leaky":
        raise typer.Exit(1)


def _as_in(path: Path, wanted: "Wanted") -> "Wanted":
    """Take arguments, rounds and privacy from an experiment's YAML."""
    from dataclasses import replace

    from consilia.wire.people import Experiment
    from consilia.wire.strict import from_yaml

    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from None
    asked = from_yaml(text, Experiment, str(path))
    return replace(
        wanted,
        rounds=wanted.rounds or asked.rounds,
        arguments=dict(asked.arguments),
        dp=asked.privacy.dp if asked.privacy else None,
    )


def _empty(out: Path) -> None:
    """Make the folder; a report never replaces another."""
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConfigError(f"--out {out} is not empty; needed a new or empty folder")
    except OSError as e:
        raise StorageError(f"--out {out}: {e.strerror}") from None


def _write(out: Path, page: str, data: dict[str, object]) -> None:
    """Write both files so that only their owner reads them: they are about patients."""
    import json
    import os

    texts = {"report.html": page, "report.json": json.dumps(data, indent=2) + "\n"}
    for name, text in texts.items():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(out / name, flags, 0o600), "w", encoding="utf-8") as stream:
                stream.write(text)
        except OSError as e:
            raise StorageError(f"{out / name}: {e.strerror}") from None


def _tell(out: Path, found: "Findings", verdict: "Verdict", as_json: bool) -> None:
    lines = "\n".join(f"- {text}" for text in verdict.because)
    done(
        f"{found.subject.model}: {verdict.word}\n{lines}\nread {out / 'report.html'}",
        {"verdict": verdict.word, "because": verdict.because, "report": str(out)},
        as_json,
    )
