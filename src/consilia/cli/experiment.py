"""`consilia experiment`, `jobs`, `stop`, `resume`: run an experiment and look after its job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.options import Json, example, group, text_of
from consilia.cli.output import cell, done, listing, note, record, say, table, when
from consilia.errors import ConfigError
from consilia.wire import people

if TYPE_CHECKING:
    from consilia.sdk.client import Client
    from consilia.sdk.experiment import Experiment

Config = Annotated[Path, typer.Argument(help="The experiment as YAML.", metavar="CONFIG.yaml")]
Job = Annotated[str, typer.Argument(help="The job's id.")]

app = group("experiment", "Experiments: reproducible configurations. Running one makes a job.")


def add_to(main: typer.Typer) -> None:
    """Add the job commands to the main application."""
    main.command(epilog=example("consilia jobs", "consilia jobs job-0123456789abcdef"))(jobs)
    main.command(epilog=example("consilia stop job-0123456789abcdef"))(stop)
    main.command(epilog=example("consilia resume job-0123456789abcdef --rounds 40"))(resume)


@app.command(
    epilog=example("consilia experiment run heart.yaml --follow")
    + "\n\n\b\n"
    + "heart.yaml:\n"
    + "  study: heart-failure\n"
    + "  plan: heart.py      # or the digest of a submitted plan\n"
    + "  rounds: 20\n"
    + "  arguments: {lr: 0.05}\n"
    + "  strategy: {name: fedprox, options: {mu: 0.01}}"
)
def run(
    config: Config,
    follow: Annotated[bool, typer.Option("--follow", help="Stay and show the rounds.")] = False,
    as_json: Json = False,
) -> None:
    """Start a job. With --follow, Ctrl-C ends the watching, not the job."""
    from consilia.sdk.client import Client

    with Client() as client:
        experiment = _read(config, client).start()
        job = experiment.job
        if follow:
            note(f"job {job.id} has started")
            job = experiment.wait(progress=True)
        done(f"job {job.id}: {job.state}", job, as_json)


@app.command(epilog=example("consilia experiment validate heart.yaml"))
def validate(config: Config, as_json: Json = False) -> None:
    """Tell what would keep an experiment from starting, without starting it."""
    from consilia.sdk.client import Client

    with Client() as client:
        found = _read(config, client).validate()
    if as_json:
        done("", found, True)
    else:
        for problem in found.problems:
            say(f"problem: {problem}")
        for warning in found.warnings:
            say(f"warning: {warning}")
        if not found.problems:
            say("it can start")
    if found.problems:
        raise typer.Exit(ConfigError.exit_code)


def jobs(
    job: Annotated[str, typer.Argument(help="Show this job with its rounds.")] = "",
    as_json: Json = False,
) -> None:
    """List jobs, newest first, or show one."""
    from consilia.sdk.client import Client

    with Client() as client:
        if job:
            _show(client.job(job), as_json)
            return
        found = client.jobs()
    listing(
        found,
        {
            "job": lambda v: v.id,
            "study": lambda v: v.experiment.study,
            "state": lambda v: v.state,
            "round": lambda v: f"{v.round}/{v.experiment.rounds}",
            "started": lambda v: when(v.created),
            "author": lambda v: v.author,
            "cause": lambda v: v.cause,
        },
        as_json,
        "no job has been started",
    )


def stop(job: Job, as_json: Json = False) -> None:
    """Stop a job. What its open round has is kept for a resume."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.stop(job)
    done(f"job {job}: {view.state}", view, as_json)


def resume(
    job: Job,
    rounds: Annotated[int | None, typer.Option(help="The new number of rounds in all.")] = None,
    as_json: Json = False,
) -> None:
    """Go on with a stopped or failed job in its open round, or add rounds to a done one."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.resume(job, rounds)
    done(f"job {job}: {view.state}", view, as_json)


def _read(path: Path, client: "Client") -> "Experiment":
    """Read CONFIG.yaml; a plan that is a file is looked for beside it."""
    import msgspec

    from consilia.sdk.experiment import Experiment
    from consilia.wire.strict import from_yaml

    fields = msgspec.structs.asdict(from_yaml(text_of(path), people.Experiment, str(path)))
    if (beside := path.parent / fields["plan"]).exists():
        fields["plan"] = str(beside)
    try:
        return Experiment(client, **fields)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None


def _saved(view: people.JobView) -> dict[str, str]:
    """Return what compression has saved so far, where there is any."""
    if view.experiment.compress == "none":
        return {}
    came, saved = (sum(r.bytes_in for r in view.rounds if r.round > 0),
                   sum(r.bytes_saved for r in view.rounds))  # fmt: skip
    share = saved / (came + saved) if saved else 0.0
    return {"compressed": f"{view.experiment.compress}: {saved} bytes saved ({share:.0%})"}


def _noisy(view: people.JobView) -> dict[str, str]:
    """Return what statistics with noise cost each site that answers."""
    privacy = view.experiment.privacy
    if privacy is None or privacy.statistics is None or privacy.dp is None:
        return {}
    from consilia.privacy.estimate import spent

    cost = spent(view.experiment, 0, 0) or 0.0
    about = f"{privacy.dp.level} level, epsilon {cost:.3g} at delta {privacy.dp.delta:g}"
    return {"privacy": f"{about}, of each site that answers"}


def _show(view: people.JobView, as_json: bool) -> None:
    config = view.experiment
    record(
        view,
        {
            "job": view.id,
            "state": view.state,
            "cause": view.cause,
            "round": f"{view.round}/{config.rounds}",
            "study": config.study,
            "plan": config.plan,
            "strategy": f"{config.strategy.name} {cell(config.strategy.options)}",
            "arguments": config.arguments,
            "author": view.author,
            "started": when(view.created),
            "sites": "\n".join(f"{site}: {now}" for site, now in sorted(view.sites.items())),
            **_saved(view),
            **_noisy(view),
        },
        as_json,
    )
    if view.rounds and not as_json:
        say("")
        table(
            ("round", "sites", "records", "seconds", "metrics", "model"),
            [
                [
                    str(r.round),
                    cell(r.sites),
                    str(r.records),
                    f"{r.seconds:.2f}",
                    cell(r.metrics),
                    r.model,
                ]
                for r in view.rounds
            ],
        )
        for r in view.rounds:
            for alarm in r.alarms:
                say(f"ALARM in round {r.round}: {alarm}")
