"""A job's rounds into TensorBoard or MLflow, in one line.

    experiment.start().log_to(tensorboard="runs/heart", mlflow="sqlite:///mlflow.db")

Both get every metric with its round as the step, the experiment's settings once, and nothing
that the hub has not told: weights and updates are not written.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from consilia.sdk.results import missing
from consilia.wire import people


class Sink(Protocol):
    """Where rounds are written to."""

    def round(self, number: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a closed round."""

    def close(self, state: str) -> None:
        """End the record; `state` is the job's."""


def sinks(
    job: people.JobView, tensorboard: str | Path | None, mlflow: str | None
) -> "list[Sink]":
    """Return the sinks that are asked for; raise ConfigError for a library that is missing."""
    makers: list[Callable[[], Sink]] = []
    if tensorboard is not None:
        folder = Path(tensorboard)
        makers.append(lambda: TensorBoard(job, folder))
    if mlflow is not None:
        uri = mlflow
        makers.append(lambda: MLflow(job, uri))
    return [make() for make in makers]


def settings(job: people.JobView) -> dict[str, str]:
    """Return what defines the job, as names and short texts."""
    config = job.experiment
    privacy = config.privacy
    return {
        "job": job.id,
        "study": config.study,
        "plan": config.plan,
        "rounds": str(config.rounds),
        "strategy": config.strategy.name,
        "aggregation": privacy.aggregation if privacy else "plain",
        **{f"argument.{name}": str(value)[:200] for name, value in config.arguments.items()},
    }


class TensorBoard:
    """Event files in FOLDER/<job>."""

    def __init__(self, job: people.JobView, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # heavy
        except ImportError:
            raise missing("tensorboard and torch", "TensorBoard", "tracking") from None
        self._writer: Any = SummaryWriter(str(folder / job.id))
        lines = (f"| {name} | {value} |" for name, value in settings(job).items())
        self._writer.add_text("experiment", "\n".join(["| | |", "|---|---|", *lines]))

    def round(self, number: int, metrics: Mapping[str, float]) -> None:
        """Write one scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def close(self, state: str) -> None:
        """Close the file."""
        self._writer.add_text("state", state)
        self._writer.close()


class MLflow:
    """A run in the MLflow experiment that is named like the study."""

    _STATES: Mapping[str, str] = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}

    def __init__(self, job: people.JobView, uri: str) -> None:
        try:
            from mlflow.tracking import MlflowClient  # noqa: PLC0415  # heavy
        except ImportError:
            raise missing("mlflow", "MLflow", "tracking") from None
        self._client: Any = MlflowClient(tracking_uri=uri)
        name = job.experiment.study
        there = self._client.get_experiment_by_name(name)
        home = there.experiment_id if there else self._client.create_experiment(name)
        self._run: str = self._client.create_run(home, run_name=job.id).info.run_id
        for key, value in settings(job).items():
            self._client.log_param(self._run, key, value)

    def round(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log one value a metric."""
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value, step=number)

    def close(self, state: str) -> None:
        """End the run."""
        self._client.set_terminated(self._run, self._STATES.get(state, "KILLED"))
