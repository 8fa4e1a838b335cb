"""Steering and judging: `consilia pause`; `experiment change, rollback, branch, evaluate`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consilia.cli.options import Json, example, pairs, scalar
from consilia.cli.output import done, note, say, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from consilia.sdk.experiment import Experiment
    from consilia.wire.people import EvaluationView
    from consilia.wire.v1 import Evaluated, Measure

Job = Annotated[str, typer.Argument(help="The job's id.")]
Round = Annotated[int | None, typer.Option("--round", help="The newest one by default.")]
Follow = Annotated[bool, typer.Option("--follow", help="Stay and show the rounds.")]
Arguments = Annotated[
    list[str] | None, typer.Option("--set", help="NAME=VALUE of an argument; again for more.")
]


def add_to(main: typer.Typer, experiment: typer.Typer) -> None:
    """Add the commands to the main application and to `consilia experiment`."""
    job = "job-0123456789abcdef"
    main.command(epilog=example(f"consilia pause {job}"))(pause)
    shown: dict[Callable[..., None], str] = {
        change: f"consilia experiment change {job} --set lr=0.01",
        rollback: f"consilia experiment rollback {job} 7",
        branch: f"consilia experiment branch {job} --round 7 --set lr=0.01 --follow",
        evaluate: f"consilia experiment evaluate {job} --subgroup sex=F,M --benefit",
        evaluations: f"consilia experiment evaluations {job}",
    }
    for command, line in shown.items():
        experiment.command(epilog=example(line))(command)


def pause(job: Job, as_json: Json = False) -> None:
    """Let a job finish its open round and open no other; `consilia resume` goes on."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.pause(job)
    done(f"job {job}: {view.state}; {view.cause}", view, as_json)


def change(job: Job, set_: Arguments = None, as_json: Json = False) -> None:
    """Change arguments of the plan from the next round that opens; the others stay."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.change_arguments(job, _arguments(set_))
    done(f"job {job}: changed from the next round on", view, as_json)


def rollback(
    job: Job,
    round: Annotated[int, typer.Argument(help="Whose model the next round starts from.")],
    as_json: Json = False,
) -> None:
    """Let the next round of an idle job start from an earlier model; then resume it."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.roll_back(job, round)
    done(f"job {job}: its next round starts from the model of round {round}", view, as_json)


def branch(
    job: Job,
    round: Round = None,
    rounds: Annotated[int | None, typer.Option(help="Of the new job.")] = None,
    set_: Arguments = None,
    follow: Follow = False,
    as_json: Json = False,
) -> None:
    """Start a job from the model of another's round, with its settings but for --set."""
    from consilia.sdk.client import Client
    from consilia.sdk.experiment import Experiment

    with Client() as client:
        old = Experiment.attach(client, job)
        changes: dict[str, Any] = {} if rounds is None else {"rounds": rounds}
        if set_:
            changes["arguments"] = {**old.job.experiment.arguments, **_arguments(set_)}
        _started(old.branch(round, **changes), follow, as_json)


def evaluate(
    job: Job,
    round: Round = None,
    at: Annotated[
        list[str] | None, typer.Option(help="A site whose hold-out counts; again for more.")
    ] = None,
    subgroup: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN=LEVEL,LEVEL or COLUMN=CUT,CUT with numbers."),
    ] = None,
    benefit: Annotated[
        bool, typer.Option("--benefit", help="Compare with a model of each site's own.")
    ] = False,
    masked: Annotated[
        bool, typer.Option("--masked", help="The hub sees the sum of three sites or more only.")
    ] = False,
    noise: Annotated[
        float, typer.Option(help="Noise on each cell of the sum: a job with privacy.dp has it.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Let the sites evaluate a model of a job on their hold-outs, and show what they tell."""
    from consilia.sdk.client import Client
    from consilia.sdk.experiment import Experiment

    wanted = {
        column: _values(text) for column, text in pairs(subgroup or (), "--subgroup").items()
    }
    with Client() as client:
        old = Experiment.attach(client, job)
        made = old.evaluate(
            round,
            at=at or (),
            subgroups=wanted,
            benefit=benefit,
            aggregation="secure" if masked else "",
            noise_multiplier=noise,
        ).start()
        note(f"job {made.job.id} has started")
        made.wait()
        found = made.evaluations
    _show(found, as_json)


def evaluations(job: Job, as_json: Json = False) -> None:
    """Show what the sites have told of a job's models."""
    from consilia.sdk.client import Client

    with Client() as client:
        found = client.evaluations(job)
    _show(found, as_json)


def _arguments(set_: list[str] | None) -> dict[str, bool | int | float | str]:
    return {name: scalar(value) for name, value in pairs(set_ or (), "--set").items()}


def _values(text: str) -> tuple[bool | int | float | str, ...]:
    """Return cut points where all values are numbers, else levels."""
    texts = [part.strip() for part in text.split(",")]
    try:
        return tuple(float(part) for part in texts)
    except ValueError:
        return tuple(texts)


def _started(experiment: "Experiment", follow: bool, as_json: bool) -> None:
    view = experiment.start().job
    if follow:
        note(f"job {view.id} has started")
        view = experiment.wait(progress=True)
    done(f"job {view.id}: {view.state}", view, as_json)


def _show(found: "Sequence[EvaluationView]", as_json: bool) -> None:
    if as_json or not found:
        done("no model of this job has been evaluated", list(found), as_json)
        return
    from consilia.stats.pooling import interval

    for view in found:
        say(f"model {view.model}, evaluated by {len(view.sites or view.summed)} sites")
        if view.cause:
            say(f"no sum: {view.cause}")
        rows = [
            [where, name, f"{p.value:.3f}", f"{p.low:.3f} to {p.high:.3f}", str(p.records)]
            for where, found in (("all", view.pooled), ("all, better by", view.gain))
            for name, p in found.items()
        ]
        for site, told in view.sites.items():
            rows += _rows(site, told, interval)
        table(("where", "metric", "value", "95 % interval", "records"), rows)
        for site, why in view.without.items():
            say(f"{site} told nothing: {why}")


def _rows(site: str, told: "Evaluated", interval: Any) -> list[list[str]]:
    parts: list[tuple[str, str, Mapping[str, Measure]]] = [(site, "", told.measures)]
    parts += [(f"{site}, {s.column} {s.level}", "", s.measures) for s in told.subgroups]
    parts += [(f"{site}, its own model", "", told.local)]
    parts += [(f"{site}, better by", "gain", told.gain)]
    rows = []
    for where, kind, measures in parts:
        for name, m in sorted(measures.items()):
            low, high = interval(kind or name, m.value, m.error)
            shown = f"{low:.3f} to {high:.3f}"
            rows.append([where, name, f"{m.value:.3f}", shown, str(m.records)])
    return rows
