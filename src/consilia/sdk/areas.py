"""What a researcher does, by area: `client.experiments`, `.models`, `.privacy`, `.deployments`
(and `.analytics`, in sdk.analytics).

    experiment = client.experiments.create(study="heart", plan="heart.py", rounds=20)
    experiment.start()
    for round, metrics in experiment.stream_metrics():
        print(round, metrics)
    best = client.models.get_best("auc", study="heart")
    best.export("heart.onnx", "onnx", plan="heart.py")

Each area is a few lines over the client's routes; the records are those of wire.people.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import numpy as np

from consilia.core.round import Phase
from consilia.errors import AuthError, ConfigError, NotFound, Refused
from consilia.sdk.experiment import Experiment
from consilia.sdk.network import Network, Source
from consilia.sdk.results import Model, missing, scratch
from consilia.wire import people
from consilia.wire.strict import nearest
from consilia.wire.v1 import Plan, Scalar, Study

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from consilia.sdk.client import Client
    from consilia.sdk.compare import Comparison

Better = Literal["higher", "lower"]
_STATES: tuple[str, ...] = get_args(Phase)
_ERRORS = ("loss", "error", "mae", "mse", "rmse", "brier")  # names of metrics that should fall


class Experiments:
    """Experiments at this hub: configurations, and the jobs that run them."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(
        self,
        *,
        study: str | Study,
        plan: str | Path | ModuleType | Plan,
        rounds: int,
        arguments: Mapping[str, Scalar] | None = None,
        **settings: Any,
    ) -> Experiment:
        """Return an experiment that has not started; see `Experiment` for its settings."""
        return Experiment(
            self._client, study=study, plan=plan, rounds=rounds, arguments=arguments, **settings
        )

    def list(
        self, status: str | Sequence[str] | None = None, study: str | None = None
    ) -> "list[Experiment]":
        """Return the experiments that were started, newest first.

        `status` is a state of their jobs, or several: waiting, running, closing, paused, done,
        stopped, failed. ConfigError for another: an empty list would look like an answer.
        """
        wanted = {status} if isinstance(status, str) else set(status or ())
        if odd := sorted(wanted - set(_STATES)):
            raise ConfigError(f"status: {odd[0]!r} is not a state{nearest(odd[0], _STATES)}")
        return [
            Experiment.of(self._client, view)
            for view in self._client.jobs()
            if (not wanted or view.state in wanted) and study in (None, view.experiment.study)
        ]

    def get(self, job: str) -> Experiment:
        """Return the experiment of a job, by its id."""
        return Experiment.attach(self._client, job)

    def compare(
        self,
        *,
        study: str,
        plan: str | Path | ModuleType | Plan,
        rounds: int,
        folds: int = 5,
        **settings: Any,
    ) -> "Comparison":
        """Compare local, federated, hybrid and central training on the same patients.

        See `consilia.sdk.compare` for `settings` and for what comes of it.
        """
        from consilia.sdk.compare import compare  # noqa: PLC0415 - only who compares needs it

        return compare(
            self._client, study=study, plan=plan, rounds=rounds, folds=folds, **settings
        )


class Models:
    """The model registry."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._files = scratch(self, "consilia-registry-")

    def list(
        self, job: str | None = None, stage: people.Stage | None = None
    ) -> "list[people.ModelView]":
        """Return the versions you may see: all, of one job, at one stage."""
        return self._client.model_versions(job, stage)

    def get(self, id: str) -> Model:
        """Download a version, verified."""
        view = self._client.model(id)
        path = self._files / view.digest.rpartition(":")[2]
        if not path.exists():
            self._client.download_model(id, path)
        return Model(view, path)

    def get_best(
        self,
        metric: str,
        study: str | None = None,
        *,
        task: str | None = None,
        better: Better | None = None,
        stage: people.Stage | None = None,
    ) -> Model:
        """Return the version with the best value of a metric that the sites have reported.

        `task` is what the model is for: the name of its study or of its training plan, or a
        tag of the study's data. Without `better`, a name that ends in loss, error, mae, mse,
        rmse or brier should be low and any other high. Versions without the metric, or whose
        frame is deleted, do not count.
        """
        lower = (better or _direction(metric)) == "lower"
        found = [
            view
            for view in self._client.model_versions(stage=stage)
            if study in (None, view.study) and view.deleted is None and metric in view.metrics
        ]
        found = found if task is None else [*self._for_task(task, found)]
        if not found:
            raise NotFound(
                f"no model version that you may see{f' of study {study!r}' if study else ''} "
                f"has a value of {metric!r}"
            )
        best = min if lower else max
        return self.get(best(found, key=lambda view: (view.metrics[metric], view.id)).id)

    def _for_task(
        self, task: str, views: Sequence[people.ModelView]
    ) -> Sequence[people.ModelView]:
        """Return those that are for a task; NotFound names the tasks that there are."""
        names = {pair: self._tasks(*pair) for pair in {(v.study, v.plan) for v in views}}
        found = [view for view in views if task in names[view.study, view.plan]]
        if views and not found:
            known = tuple(sorted({name for every in names.values() for name in every}))
            raise NotFound(f"no model that you may see is for {task!r}{nearest(task, known)}")
        return found

    def _tasks(self, study: str, plan: str) -> set[str]:
        """Return what models of a study and a plan are for, as far as the caller may know."""
        names = {study}
        with suppress(AuthError, NotFound, Refused):  # users of models see neither
            names.update(self._client.study(study).study.tags)
            names.add(self._client.plan(plan).name)
        return names

    def card(self, id: str) -> people.ModelCard:
        """Return all that is on record of a version; `sdk.card.markdown` renders it."""
        return self._client.model_card(id)

    def set_stage(self, id: str, stage: people.Stage, reason: str) -> people.ModelView:
        """Propose, release or retire a version; a release takes a second person."""
        return self._client.set_stage(id, stage, reason)


class Budget(msgspec.Struct, frozen=True):
    """What a job has spent of each site's privacy budget, as the hub's rounds tell it.

    A site's own ledger is the truth: it also holds other jobs, and rounds that were repeated.
    """

    job: str
    delta: float | None  # None: the job is not differentially private
    sites: dict[str, float]  # site -> epsilon of the rounds that its updates are in


class AuditLog(msgspec.Struct, frozen=True):
    """The hub's audit lines about one job."""

    lines: tuple[people.AuditView, ...]

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row a line."""
        try:
            import pandas as pd  # noqa: PLC0415  # heavy, and only here
        except ImportError:
            raise missing("pandas", "a DataFrame", "notebook") from None
        names = people.AuditView.__struct_fields__
        return pd.DataFrame([msgspec.to_builtins(line) for line in self.lines], columns=names)


class PrivacyArea:
    """What experiments cost in privacy, and what is on record of them."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def estimate_cost(
        self, experiment: Experiment | people.Experiment
    ) -> people.PrivacyEstimateView:
        """Tell the epsilon that an experiment would add at each site, before it runs."""
        config = experiment.offer() if isinstance(experiment, Experiment) else experiment
        return self._client.estimate_privacy(config)

    def get_budget(self, job: str) -> Budget:
        """Tell what a job has spent so far, site by site."""
        view = self._client.job(job)
        privacy = view.experiment.privacy
        if privacy is None or privacy.dp is None:
            return Budget(job, None, {})
        if privacy.statistics is not None:
            told = self._client.job_statistics(job)
            return Budget(job, privacy.dp.delta, dict.fromkeys(told.sites, told.epsilon or 0.0))
        from consilia.privacy.accountant import cost, epsilon  # noqa: PLC0415  # numpy, scipy

        rounds: dict[str, int] = {}
        for closed in view.rounds:
            for site in closed.sites if closed.round > 0 else ():
                rounds[site] = rounds.get(site, 0) + 1
        dp = privacy.dp
        spent = {site: epsilon(cost(dp, n), dp.delta) for site, n in sorted(rounds.items())}
        return Budget(job, dp.delta, spent)

    def get_audit_log(self, job: str) -> AuditLog:
        """Return the audit lines about a job and its model versions, oldest first."""
        return AuditLog(tuple(self._client.job_audit(job)))


class Deployment:
    """A model version that answers in this process."""

    def __init__(self, model: Model, module: "nn.Module", features: Sequence[str]) -> None:
        self.model = model
        self.features = tuple(features)
        self._module = module.eval()

    def predict(self, records: Any) -> "np.ndarray[Any, Any]":
        """Return the module's output for `records`, one row each.

        `records` is an array (records x features, float32) or a DataFrame: of that the
        features are taken by name, in the order the deployment was made with.
        """
        import torch  # noqa: PLC0415

        if hasattr(records, "columns"):
            lacking = [name for name in self.features if name not in records.columns]
            if not self.features or lacking:
                raise ConfigError(
                    f"the table lacks {', '.join(lacking)}"
                    if lacking
                    else "a table needs features=[...] when the deployment is made"
                )
            records = records[list(self.features)].to_numpy()
        given = torch.as_tensor(np.ascontiguousarray(records, np.float32))
        with torch.no_grad():
            answer: np.ndarray[Any, Any] = self._module(given).numpy()
        return answer


class Deployments:
    """Released or own models, put to work in this process."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(
        self,
        model: str | Model,
        *,
        plan: Source | None = None,
        module: "nn.Module | None" = None,
        features: Sequence[str] = (),
    ) -> Deployment:
        """Load a version's weights into its network and return what predicts with it.

        The network is made by `plan`, your own file of the training plan (not needed for a
        model of an experiment that was made with it), whose code then runs here; or `module`
        is copied. `features` are those that the plan names, unless they are given.
        """
        import copy  # noqa: PLC0415

        found = self._client.models.get(model) if isinstance(model, str) else model
        made = found.network(plan) if module is None else Network(module, ())
        filled = copy.deepcopy(made.module)
        filled.load_state_dict(found.state_dict())
        return Deployment(found, filled, tuple(features) or made.features)


def _direction(metric: str) -> Better:
    return "lower" if metric.lower().endswith(_ERRORS) else "higher"
