"""`consilia privacy`: what a model tells of a hospital's patients, found out by attacking it.

`audit` runs at a site, by its own staff, on its own data; `request` is how a researcher asks
the sites for it. `consilia node privacy-report` is `audit` under the name it has had.
"""

import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.at_node import opened
from consilia.cli.options import Json, NodeDir, actor, example, group, node_dir, text_of
from consilia.cli.output import done, note
from consilia.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from consilia.node.privacyreport import Wanted
    from consilia.privacy.verdict import Findings, Verdict
    from consilia.sdk.client import Client
    from consilia.wire.auditrequest import AuditRequest
    from consilia.wire.people import Experiment

app = group("privacy", "What a model tells of patients, found out by attacks at the sites.")
_JOB = "job-"


def add_to(node: typer.Typer) -> None:
    """Register the command under its older name."""
    node.command(
        "privacy-report",
        epilog=example(
            "consilia node privacy-report heart.npz --plan 3f9a1c2b --dataset hf --split 0.2",
            "consilia node privacy-report heart.npz --plan 3f9a1c2b --dataset hf --holdout new",
        ),
    )(audit)


@app.command(
    epilog=example("consilia privacy request job-0123456789abcdef.20 --out heart-audit.zip")
)
def request(
    model: Annotated[str, typer.Argument(help="A model version, or a job: its newest.")],
    out: Annotated[Path, typer.Option(help="A new file, to be sent to the sites.")],
    as_json: Json = False,
) -> None:
    """Write the file with which sites are asked for a privacy report. It holds the model.

    Each site decides whether it makes one, and whom it tells what was found.
    """
    from consilia.sdk.client import Client
    from consilia.wire import auditrequest

    with tempfile.TemporaryDirectory(prefix="consilia-") as folder, Client() as client:
        frame = Path(folder, "model.frame")
        asked = _asked(client, model, frame)
        auditrequest.write(out, asked, frame)
    done(
        f"{out} asks about {asked.model}; at a site: consilia privacy audit {out.name} "
        "--dataset NAME",
        {"path": str(out), "model": asked.model, "digest": asked.digest},
        as_json,
    )


@app.command(
    epilog=example(
        "consilia privacy audit heart-audit.zip --dataset hf --holdout hf-2026",
        "consilia privacy audit heart.npz --plan 3f9a1c2b --dataset hf --split 0.2",
        "consilia privacy audit job-0123456789abcdef --dataset hf",
    )
)
def audit(
    model: Annotated[
        str,
        typer.Argument(help="A request (.zip), NAME.npz, a frame, a model version or a job."),
    ],
    dataset: Annotated[str, typer.Option(help="The dataset it was trained on.")],
    plan: Annotated[
        str, typer.Option(help="The plan's digest, or 8 or more digits; a request names it.")
    ] = "",
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
    pdf: Annotated[bool, typer.Option("--pdf", help="Write report.pdf as well.")] = False,
    out: Annotated[Path, typer.Option(help="A new or empty folder for the report.")] = Path(
        "privacy-report"
    ),
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Attack a model with this site's own records and write what was found.

    It runs in the sandbox, by an approved plan; nothing leaves the site. A version or a job is
    fetched from the hub, as whoever is logged in here. Exit code 1: leaky.
    """
    from consilia.node import privacyreport
    from consilia.privacy import report, reportpdf

    where = node_dir(directory)
    if pdf:  # before anything is trained
        reportpdf.check()
    with opened(directory) as store, tempfile.TemporaryDirectory(prefix="consilia-") as folder:
        base = privacyreport.Wanted(
            Path(model), plan, dataset, holdout, split, job, rounds, references, canaries
        )
        wanted = _named(model, base, Path(folder))
        if experiment is not None:
            wanted = _as_in(_read(experiment), wanted)
        if not wanted.plan:
            raise ConfigError(f"--plan is missing; needed the plan that made {model}")
        _empty(out)
        found, verdict = privacyreport.make(
            store, where, wanted, actor=actor(), today=date.today(), now=time.time, tell=note
        )
    _write(out / "report.html", report.page(found, verdict).encode())
    _write(out / "report.json", _json(report.data(found, verdict)))
    if pdf:
        _write(out / "report.pdf", reportpdf.pdf(found, verdict))
    _tell(out, found, verdict, as_json)
    if verdict.word == "leaky":
        raise typer.Exit(1)


# ---- which model -----------------------------------------------------------------------------


def _asked(client: "Client", model: str, frame: Path) -> "AuditRequest":
    """Fetch a version, or a job's newest one, to `frame`, and say what it is."""
    from consilia.errors import NotFound
    from consilia.wire.auditrequest import FORMAT, AuditRequest

    job = client.job(model.partition(".")[0])
    if "." not in model:
        if not job.rounds:
            raise NotFound(f"job {model} has closed no round yet, so it has no model")
        model = job.rounds[-1].model
    view = client.download_model(model, frame)
    return AuditRequest(
        FORMAT, client.url, client.whoami().name, job.id, view.id, view.digest, view.round,
        job.experiment,
    )  # fmt: skip


def _named(model: str, wanted: "Wanted", folder: Path) -> "Wanted":
    """Return what is wanted of a request, of a version at the hub, or of a file as it is."""
    from consilia.wire import auditrequest

    frame = folder / "model.frame"
    if model.endswith(".zip"):
        asked = auditrequest.read(Path(model), frame)
        note(f"{asked.asker} asks about {asked.model}, trained by plan {asked.experiment.plan}")
    elif model.startswith(_JOB) and not Path(model).exists():
        from consilia.sdk.client import Client

        with Client() as client:
            asked = _asked(client, model, frame)
    else:
        return wanted
    wanted = replace(
        wanted,
        model=frame,
        name=asked.model,
        digest=asked.digest,
        asked=True,
        plan=wanted.plan or asked.experiment.plan,
        job=wanted.job or asked.job,
        rounds=wanted.rounds or asked.round,
    )
    return _as_in(asked.experiment, wanted)


def _as_in(experiment: "Experiment", wanted: "Wanted") -> "Wanted":
    """Take arguments, rounds and privacy from an experiment."""
    return replace(
        wanted,
        rounds=wanted.rounds or experiment.rounds,
        arguments=dict(experiment.arguments),
        study=experiment.study,
        dp=experiment.privacy.dp if experiment.privacy else None,
    )


def _read(path: Path) -> "Experiment":
    from consilia.wire.people import Experiment
    from consilia.wire.strict import from_yaml

    return from_yaml(text_of(path), Experiment, str(path))


# ---- the report ------------------------------------------------------------------------------


def _empty(out: Path) -> None:
    """Make the folder; a report never replaces another."""
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConfigError(f"--out {out} is not empty; needed a new or empty folder")
    except OSError as e:
        raise StorageError(f"--out {out}: {e.strerror}") from None


def _json(data: dict[str, object]) -> bytes:
    import json

    return (json.dumps(data, indent=2) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    """Write a file so that only its owner reads it: it is about patients."""
    import os

    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags, 0o600), "wb") as stream:
            stream.write(content)
    except OSError as e:
        raise StorageError(f"{path}: {e.strerror}") from None


def _tell(out: Path, found: "Findings", verdict: "Verdict", as_json: bool) -> None:
    lines = "\n".join(f"- {text}" for text in verdict.because)
    done(
        f"{found.subject.model}: {verdict.word}\n{lines}\nread {out / 'report.html'}",
        {"verdict": verdict.word, "because": verdict.because, "report": str(out)},
        as_json,
    )
