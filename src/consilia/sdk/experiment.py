"""An experiment as a researcher drives it, from a notebook or a script.

    experiment = Experiment(Client(), study=study, plan="heart.py", rounds=20)
    experiment.start()                    # offers study and plan first, if the hub lacks them
    experiment.wait(progress=True)
    experiment.history                    # a DataFrame
    experiment.get_model().state_dict()       # torch tensors

The job runs at the hub: closing the notebook stops nothing, and `Experiment.attach` takes it
up again. Sites accept the study and approve the plan in their own time; until `min_sites`
have, the job waits and says for whom.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import nan
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self

import msgspec

from consilia.core import ids
from consilia.errors import ConfigError, Conflict, ConsiliaError, NotFound, WireError
from consilia.sdk.autolog import sinks
from consilia.sdk.client import Client
from consilia.sdk.digests import resolve
from consilia.sdk.notebook import table
from consilia.sdk.progress import display
from consilia.sdk.results import Model, Results, scratch, version_of
from consilia.sdk.source import read_plan
from consilia.wire import people, strict
from consilia.wire.people import EvaluationView, JobView, RoundView
from consilia.wire.v1 import Metrics, Plan, Scalar, Study, plan_digest, study_digest

ENDED = ("done", "stopped", "failed")
_WAIT = 20.0  # seconds of one long poll; events end it at once


class Experiment(Results):
    """One reproducible configuration at one hub, and the job that runs it."""

    def __init__(
        self,
        client: Client,
        *,
        study: str | Study,
        plan: str | Path | ModuleType | Plan,
        rounds: int,
        arguments: Mapping[str, Scalar] | None = None,
        **settings: Any,
    ) -> None:
        """Nothing is sent yet.

        `plan` is a .py file, a folder, an imported module, a `Plan`, or the digest (or its
        first 8 or more digits) of one the hub has. `settings` are the other fields of
        `wire.people.Experiment`: strategy (a name or a record), min_updates, min_sites,
        fraction, grace, deadline, seed, deterministic, base, name, privacy ("secure", "plain",
        "ckks" or a record; without it secure aggregation from three sites up), sites, evaluate.
        Raise
        ConfigError for one that does not exist, naming the nearest.
        """
        self.client = client
        self._study = study
        self._plan = plan
        self._job: JobView | None = None
        self._files = scratch(self, "consilia-models-")
        self._fields: dict[str, Any] = {
            "study": study if isinstance(study, str) else study.name,
            "plan": "",
            "rounds": rounds,
            "arguments": dict(arguments or {}),
            **settings,
        }
        if isinstance(strategy := settings.get("strategy"), str):
            self._fields["strategy"] = {"name": strategy}
        if isinstance(privacy := settings.get("privacy"), str):
            self._fields["privacy"] = {"aggregation": privacy}
        self._configuration("")

    @classmethod
    def attach(cls, client: Client, job: str) -> Self:
        """Return the experiment of a job that is there already, by its id."""
        return cls.of(client, client.job(job))

    @classmethod
    def of(cls, client: Client, view: JobView) -> Self:
        """Return the experiment of a job that was seen already."""
        found = cls(client, **_told(view))
        found._job = view
        return found

    # ---- running -----------------------------------------------------------------------------

    def offer(self) -> people.Experiment:
        """Bring study and plan to the hub where they are missing; return the configuration.

        A study of that name with other content is a Conflict: a submitted study never changes.
        """
        if isinstance(self._study, Study):
            _offer_study(self.client, self._study)
        return self._configuration(self._offer_plan())

    def validate(self) -> people.ValidationView:
        """Tell what would keep the experiment from starting, and what it would wait for."""
        return self.client.validate(self.offer())

    def start(self, progress: bool = False) -> Self:
        """Start the job; with `progress`, stay and show it until it ends.

        Raise Conflict when it was started before, and the hub's refusal when it has one.
        """
        if self._job is not None:
            raise Conflict(f"this experiment runs already, as job {self._job.id}")
        self._job = self.client.start(self.offer())
        if progress:
            self.wait(progress=True)
        return self

    def wait(self, progress: bool = False) -> JobView:
        """Wait until the job ends; return it, or raise ConsiliaError when it failed.

        Ctrl-C ends the waiting, not the job.
        """
        with display(progress, self.job) as show:
            for _ in self._watch():
                show(self.job)
        if self.job.state == "failed":
            raise ConsiliaError(
                f"job {self.job.id} failed in round {self.job.round}: {self.job.cause}; "
                "when the cause is gone, resume it: it goes on in this round"
            )
        return self.job

    def stream_metrics(self) -> Iterator[tuple[int, Metrics]]:
        """Yield (round, metrics) as rounds close, from the first one on, until the job ends."""
        seen = 0
        for _ in self._watch():
            closed = [view for view in self.job.rounds if view.round > 0]
            for view in closed[seen:]:
                yield view.round, view.metrics
            seen = len(closed)

    def log_to(
        self, *, tensorboard: str | Path | None = None, mlflow: str | None = None
    ) -> JobView:
        """Write rounds to TensorBoard (a folder) or MLflow (a tracking URI) until the job ends.

        Rounds that are closed already are written first. Returns the job as it ended.
        """
        found = sinks(self.job, tensorboard, mlflow)
        try:
            for number, metrics in self.stream_metrics():
                for sink in found:
                    sink.round(number, metrics)
        finally:
            for sink in found:
                sink.close(self.job.state)
        return self.job

    def change(self, **arguments: Scalar) -> Self:
        """Set arguments of the plan from the next round that opens; the others stay."""
        self._job = self.client.change_arguments(self.job.id, arguments)
        return self

    def pause(self) -> Self:
        """Let the open round close and open no other; `resume` goes on, bit by bit the same."""
        self._job = self.client.pause(self.job.id)
        return self

    def roll_back(self, round: int) -> Self:
        """Let the next round start from the model after `round`; then `resume`.

        For a job that is paused, stopped, failed or done. Its rounds are counted on, so a done
        one needs more of them, and its versions stay. What a strategy remembers begins anew.
        """
        self._job = self.client.roll_back(self.job.id, round)
        return self

    def stop(self) -> Self:
        """Stop the job; what its open round has is kept."""
        self._job = self.client.stop(self.job.id)
        return self

    def resume(self, rounds: int | None = None) -> Self:
        """Go on with a paused, stopped or failed job; `rounds` may add rounds."""
        self._job = self.client.resume(self.job.id, rounds)
        return self

    def branch(self, round: int | None = None, **changes: Any) -> Self:
        """Return a new experiment that starts from this one's model after `round`.

        It has this one's settings but for `changes`, and is not started: this job goes on
        beside it. `roll_back` goes back in the same job.
        """
        fields = _told(self.refresh())
        base = version_of(self.job.rounds, round, self.job.id)
        return type(self)(self.client, **{**fields, "base": base, **changes})

    def evaluate(  # noqa: PLR0913 - by keyword
        self,
        round: int | None = None,
        *,
        at: Sequence[str] = (),
        subgroups: Mapping[str, Sequence[Scalar]] | None = None,
        benefit: bool = False,
        aggregation: Literal["", "plain", "secure"] = "",
        noise_multiplier: float = 0.0,
    ) -> Self:
        """Return an experiment that evaluates this one's model after `round`; not started.

        Every site that is ready does so on its own hold-out, or those of `at`, such as the one
        that keeps a common hold-out. `subgroups` names columns with their levels (texts) or
        cut points (numbers). With `benefit` each site trains a model alone for as many rounds
        and tells how much better this one is. With `aggregation` "secure" the hub sees the sum
        of three sites or more, and no site's numbers. A job with differential privacy needs it,
        and `noise_multiplier`. See `evaluations` for what comes of it.
        """
        fields = _told(self.refresh())
        view = next((r for r in self.job.rounds if r.round == round), None)
        base = version_of(self.job.rounds, round, self.job.id)
        made = self.client.model(base)
        asked = {
            "at": tuple(at),
            "subgroups": {name: tuple(v) for name, v in (subgroups or {}).items()},
            "benefit": benefit,
            "aggregation": aggregation,
            "noise_multiplier": noise_multiplier,
            "local_rounds": max(1, view.round if view else made.round) if benefit else 0,
        }
        plain = {"early_stop": None, "watch": None, "sites": ()}
        kept = {**fields, **plain, "arguments": made.arguments, "rounds": 0, "base": base}
        return type(self)(self.client, **{**kept, "evaluate": asked})

    # ---- looking -----------------------------------------------------------------------------

    @property
    def job(self) -> JobView:
        """The job as last seen; NotFound before `start`."""
        if self._job is None:
            raise NotFound("the experiment has no job yet: call start() first")
        return self._job

    def refresh(self) -> JobView:
        """Ask the hub how the job is."""
        self._job = self.client.job(self.job.id)
        return self._job

    @property
    def rounds(self) -> tuple[RoundView, ...]:
        """The closed training rounds, oldest first."""
        view = self.job if self.job.state in ENDED else self.refresh()
        return tuple(r for r in view.rounds if r.round > 0)

    @property
    def evaluations(self) -> tuple[EvaluationView, ...]:
        """What the sites have found of the models, oldest first."""
        return tuple(self.client.evaluations(self.job.id))

    def get_model(self, round: int | None = None) -> Model:
        """Download the model version after `round` (the newest by default), verified."""
        version = version_of(self.refresh().rounds, round, self.job.id)
        path = self._files / version
        view = self.client.model(version)
        if not path.exists():
            self.client.download_model(version, path)
        own = self._plan
        known = not isinstance(own, str) or _is_source(own)
        return Model(view, path, own if known else None)

    def __repr__(self) -> str:
        """Say which job this is and how far."""
        if self._job is None:
            return f"<Experiment in study {self._fields['study']!r}, not started>"
        return f"<Experiment {self.job.id}: {self.job.state}, round {self.job.round}>"

    def _repr_html_(self) -> str:
        """Show the job and its newest rounds in a notebook."""
        if self._job is None:
            return f"<p>{escape(repr(self))}</p>"
        closed = [r for r in self._job.rounds if r.round > 0][-10:]
        names = sorted({name for r in closed for name in r.metrics})
        rows = (
            (r.round, len(r.sites), r.records, *(f"{r.metrics.get(n, nan):.4g}" for n in names))
            for r in closed
        )
        view = self._job
        about = f"{view.id}, study {view.experiment.study}: {view.state}, round {view.round}"
        text = f"<p>{escape(about)} of {view.experiment.rounds} {escape(view.cause)}</p>"
        return text + table(("round", "sites", "records", *names), rows)

    # ---- inside ------------------------------------------------------------------------------

    def _watch(self) -> Iterator[None]:
        """Yield after everything that happens to the job, and once it has ended."""
        after = 0
        while self.refresh().state not in ENDED:
            yield
            events = self.client.events(self.job.id, after=after, wait=_WAIT)
            after = max((event.seq for event in events), default=after)
        yield

    def _configuration(self, digest: str) -> people.Experiment:
        return strict.convert(
            {**_plain(self._fields), "plan": digest}, people.Experiment, "experiment"
        )

    def _offer_plan(self) -> str:
        """Return the digest of the plan, submitting it to the study when it is not there."""
        study = self._fields["study"]
        there = {view.digest for view in self.client.plans(study)}
        if isinstance(self._plan, Plan):
            plan = self._plan
        elif isinstance(self._plan, str) and not _is_source(self._plan):
            return resolve(self._plan, there, "plan", f"consilia plan list --study {study}")
        else:
            plan = read_plan(self._plan)
        if plan_digest(plan) not in there:
            self.client.submit_plan(study, plan)
        return plan_digest(plan)


def _told(view: JobView) -> dict[str, Any]:
    """Return the settings of a job as the hub tells them; WireError for what is no digest.

    In the place of the plan's digest a hub could name a file of this machine: it would be read,
    submitted when the settings are used again, and its code run when a model is exported. Jobs
    of statistics have no plan.
    """
    config = view.experiment
    try:
        if config.plan:
            ids.digest(config.plan)
    except ConfigError as error:
        raise WireError(f"plan of job {view.id}, as the hub tells it: {error}") from None
    return {name: getattr(config, name) for name in config.__struct_fields__}


def _is_source(text: str) -> bool:
    return text.endswith(".py") or (text != "" and Path(text).is_dir())


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(fields)
    return plain


def _offer_study(client: Client, study: Study) -> None:
    try:
        there = client.study(study.name)
    except NotFound:
        there = client.create_study(study)
    if there.state == "draft":
        client.edit_study(study)
        there = client.submit_study(study.name)
    needed = study_digest(_as_submitted(study))
    if there.digest != needed:
        raise Conflict(
            f"study {study.name!r} is at the hub already with other content (digest "
            f"{there.digest}, yours {needed}); a submitted study never changes: choose a "
            "new name"
        )
    if there.state == "closed":
        raise ConfigError(f"study {study.name!r} is closed; no job can start in it")


def _as_submitted(study: Study) -> Study:
    return msgspec.structs.replace(
        study, sites=tuple(sorted({*study.sites})), tags=tuple(sorted({*study.tags}))
    )
