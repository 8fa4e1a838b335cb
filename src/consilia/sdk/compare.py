"""One plan in four arms: local, federated, hybrid, central, judged on the same patients.

    found = client.experiments.compare(study="hearts", plan="heart.py", rounds=20, folds=5)
    found.write("compared")     # results.csv, arms.csv, comparison.json, one plot a metric

Each fold of an arm is a job that keeps the fold from training and ends in an evaluation at the
hospitals, on that fold. A site deals its patients into folds once (consilia dataset holdout
--folds), and a copy at the data centre keeps the numbers, so every arm holds out the same
patients; the hospitals judge every arm, wherever it trained. An arm that the study's governance
does not allow, or that did not finish, is in the result with the reason.

The intervals allow for folds that share training records (stats/resampled). Two arms are best
told apart by their differences on the same folds: `found.differences`.
"""

import csv
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from consilia.errors import ConfigError, ConsiliaError
from consilia.files import write_whole
from consilia.sdk.experiment import ENDED, Experiment
from consilia.sdk.results import missing
from consilia.stats.pooling import interval, pooled
from consilia.stats.resampled import over_folds
from consilia.wire.people import DegreeView, EvaluationView, StudyView
from consilia.wire.v1 import Measure, Plan, Scalar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from consilia.sdk.client import Client

Arm = Literal["local", "federated", "hybrid", "central"]
ARMS: tuple[Arm, ...] = get_args(Arm)
ALL = "all"  # in place of a site: every hospital, each weighing its records
PATIENCE = 600.0  # seconds that a job may take
_LOOK = 0.2  # seconds between two looks at a job

Say = Callable[[str], None]
Fold = Mapping[str, Mapping[str, Measure]]  # what a fold told: site -> metric -> value


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric of one arm at one hospital, the mean over the folds, with a 95 % interval."""

    arm: Arm
    site: str  # ALL: every hospital
    metric: str
    value: float
    low: float
    high: float
    records: int  # held out, all folds together
    folds: int  # that told it


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of one arm less that of another, on the same held-out patients fold by fold."""

    arm: Arm
    less: Arm
    site: str  # ALL: every hospital
    metric: str
    value: float
    low: float  # of a 95 % interval
    high: float
    folds: int  # that both told, 2 or more

    @property
    def found(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the arms came to."""

    study: str
    rounds: int
    folds: int
    cells: tuple[Cell, ...]
    without: Mapping[str, str]  # arm -> why it is not allowed, or did not finish
    jobs: Mapping[str, tuple[str, ...]]  # arm -> its jobs, a fold each
    degree: DegreeView
    notes: tuple[str, ...] = ()  # what single sites did not tell
    differences: tuple[Difference, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, by name."""
        return tuple(sorted({cell.metric for cell in self.cells}))

    def write(self, folder: str | Path) -> list[Path]:
        """Write tables, JSON and a plot of each metric (SVG, PNG); return the paths."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        names = ("results.csv", "differences.csv", "arms.csv", "comparison.json")
        paths = [place / name for name in names]
        fields = ("arm", "site", "metric", "value", "low", "high", "records", "folds")
        _table(
            paths[0], fields, [tuple(getattr(cell, f) for f in fields) for cell in self.cells]
        )
        fields = ("arm", "less", "site", "metric", "value", "low", "high", "folds")
        rows = [tuple(getattr(each, f) for f in fields) for each in self.differences]
        _table(paths[1], fields, rows)
        states = [(arm, self.without.get(arm, "done")) for arm in ARMS]
        _table(paths[2], ("arm", "state"), states)
        write_whole(paths[3], msgspec.json.format(msgspec.json.encode(self)) + b"\n")
        for metric in self.metrics:
            figure = self.figure(metric)
            for ending in ("svg", "png"):
                paths.append(place / f"{metric}.{ending}")
                figure.savefig(paths[-1], dpi=150)
        return paths

    def figure(self, metric: str) -> "Figure":
        """Draw a metric by arm and hospital; an arm without a value says so in its place."""
        try:
            from matplotlib.figure import Figure  # noqa: PLC0415  # heavy, and only here
        except ImportError:
            raise missing("matplotlib", "a plot", "notebook") from None
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        mine = [cell for cell in self.cells if cell.metric == metric]
        sites = [ALL, *sorted({cell.site for cell in mine} - {ALL})]
        for number, site in enumerate(sites):
            shift = (number - (len(sites) - 1) / 2) * 0.7 / len(sites)
            of_site = [cell for cell in mine if cell.site == site]
            places = [ARMS.index(cell.arm) + shift for cell in of_site]
            errors = [
                [max(0.0, c.value - c.low) for c in of_site],
                [max(0.0, c.high - c.value) for c in of_site],
            ]
            marker = "D" if site == ALL else "o"
            values = [cell.value for cell in of_site]
            axes.errorbar(places, values, errors, fmt=marker, label=site, capsize=3)
        for arm in self.without:
            place = ([str(known) for known in ARMS].index(arm), 0.5)
            axes.annotate(
                "not run", place, xycoords=("data", "axes fraction"), ha="center", color="gray"
            )
        axes.set_xticks(range(len(ARMS)), ARMS)
        axes.set_xlim(-0.5, len(ARMS) - 0.5)
        axes.set_ylabel(metric)
        title = f"{self.study}: {metric}, {self.folds} folds, 95 % intervals"
        axes.set_title(title)
        axes.legend(loc="best", fontsize="small")
        return figure


@dataclass
class _Found:
    """What the folds of one arm have brought so far."""

    evaluations: list[EvaluationView] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    problem: str = ""


def trainers(view: StudyView) -> dict[Arm, tuple[str, ...] | str]:
    """Return for each arm who trains in it, or why the study's governance does not allow it."""
    study, found = view.study, view.degree
    hospitals = study.hospitals
    held = {p.site for p in found.pooled if p.state == "held"} if found else set()
    at_home = tuple(site for site in hospitals if site not in held)
    waiting = {p.site: p.state for p in found.pooled if p.state != "held"} if found else {}
    why = "; ".join(f"{site}: {state}" for site, state in sorted(waiting.items()))
    away = f"{study.data_centre} holds no copy of {', '.join(at_home)}"
    none = "the study names no data centre"
    arms: dict[Arm, tuple[str, ...] | str] = {
        "local": hospitals,
        "federated": hospitals if len(hospitals) > 1 else "the study has one hospital only",
    }
    if not study.data_centre:
        return {**arms, "hybrid": none, "central": none}
    both = tuple(sorted((*at_home, study.data_centre)))
    asked = f" ({why})" if why else ""
    arms["hybrid"] = (
        f"no hospital has a copy at {study.data_centre}{asked}"
        if not held
        else both
        if at_home
        else f"every hospital's records lie at {study.data_centre}: that is the central arm"
    )
    arms["central"] = f"{away}, and no site may be left out{asked}" if at_home else both
    return arms


def compare(  # noqa: PLR0913 - by keyword
    client: "Client",
    *,
    study: str,
    plan: str | Path | ModuleType | Plan,
    rounds: int,
    folds: int = 5,
    arguments: Mapping[str, Scalar] | None = None,
    arms: Sequence[Arm] = ARMS,
    patience: float = PATIENCE,
    say: Say = lambda _: None,
    **settings: Any,
) -> Comparison:
    """Run the arms, fold by fold, and put together what the hospitals have measured.

    `settings` are those of an experiment (seed, strategy, ...), but for sites and fold.
    `patience` is how many seconds each job may take; `say` is told what begins. Raises
    ConfigError for an arm or a setting that there is not.
    """
    _check(folds, arms, settings)
    view = client.study(study)
    allowed = trainers(view)
    without: dict[str, str] = {arm: who for arm in arms if isinstance(who := allowed[arm], str)}
    runs: dict[Arm, tuple[str, ...]] = {
        arm: who for arm in arms if arm != "local" and not isinstance(who := allowed[arm], str)
    }
    if "local" in arms and not runs and not isinstance(allowed["federated"], str):
        runs["federated"] = allowed["federated"]
    fixed = {"study": study, "plan": plan, "rounds": rounds, "arguments": arguments}
    found: dict[Arm, _Found] = {}
    for arm, sites in runs.items():
        benefit = "local" in arms and not any(not f.problem for f in found.values())
        judged = {"at": view.study.hospitals, "benefit": benefit}
        count = len(sites)
        quorum = {"sites": sites, "min_sites": count, "min_updates": count}
        # Sums of two arms from one start model would tell single sites' updates by their
        # difference, so sites refuse the second: each arm starts from a seed of its own.
        start = {"seed": int(settings.get("seed", 0)) + ARMS.index(arm)}
        asked = {**fixed, "grace": patience, **quorum, **settings, **start, "evaluate": judged}
        found[arm] = _run(client, arm, asked, folds, patience, say)
        if found[arm].problem:
            without[arm] = found[arm].problem
    done = {arm: f for arm, f in found.items() if not f.problem and arm in arms}
    told = {arm: _told(f.evaluations, local=False) for arm, f in done.items()}
    if "local" in arms:
        alone = next((f for f in found.values() if not f.problem), None)
        told["local"] = _told(alone.evaluations, local=True) if alone else []
        if not any(map(len, told["local"])):
            del told["local"]
            without["local"] = "no arm ran in which sites train a model of their own beside it"
    cells = [cell for arm, each in told.items() for cell in _cells(arm, each, folds)]
    return Comparison(
        study,
        rounds,
        folds,
        tuple(sorted(cells, key=_order)),
        {arm: without[arm] for arm in ARMS if arm in without},
        {arm: tuple(f.jobs) for arm, f in found.items()},
        view.degree or DegreeView(1.0, None, 1.0, view.study.hospitals, ()),
        tuple(_silent(done)),
        tuple(_differences(told, folds)),
    )


def _check(folds: int, arms: Sequence[str], settings: Mapping[str, Any]) -> None:
    if folds < 2:
        raise ConfigError(f"folds: found {folds}, needed 2 or more")
    if odd := [arm for arm in arms if arm not in ARMS]:
        raise ConfigError(f"arms: found {odd[0]!r}, needed some of {', '.join(ARMS)}")
    ours = ("sites", "fold", "evaluate", "min_sites", "min_updates")
    if odd := [name for name in settings if name in ours]:
        raise ConfigError(f"{odd[0]}: found a value, needed none: the comparison sets it")


def _run(  # noqa: PLR0913, PLR0917 - one arm, and how
    client: "Client", arm: Arm, asked: Mapping[str, Any], folds: int, patience: float, say: Say
) -> _Found:
    found = _Found()
    for fold in range(1, folds + 1):
        say(f"{arm}: fold {fold} of {folds}")
        try:
            named = {"name": f"{arm}, fold {fold} of {folds}"} | dict(asked)
            experiment = Experiment(client, **named, fold=fold).start()
            found.jobs.append(experiment.job.id)
            found.problem = _ended(experiment, patience)
            told = experiment.evaluations if not found.problem else ()
        except ConsiliaError as e:
            found.problem, told = str(e), ()
        if not found.problem and not told:
            found.problem = f"no hospital has told anything of job {experiment.job.id}"
        if found.problem:
            found.problem = f"fold {fold}: {found.problem}{_hint(found.problem, folds)}"
            return found
        found.evaluations.append(told[-1])
    return found


def _hint(problem: str, folds: int) -> str:
    """Return what most often makes sites decline; they do not say why themselves."""
    if "consent" in problem:
        return (
            ". A site sums one start model with the same sites only: take another seed, and a "
            "plan whose init uses it"
        )
    if "declined" in problem or "too few" in problem:
        return (
            f". Does every site declare {folds} folds (consilia dataset holdout --folds), have "
            "its min_records outside each, and one dataset that fits? Its audit trail tells it"
        )
    return ""


def _ended(experiment: Experiment, patience: float) -> str:
    """Wait for a job; return why it did not end well, "" when it did."""
    deadline = time.monotonic() + patience
    while (view := experiment.refresh()).state not in ENDED:
        if time.monotonic() > deadline:
            experiment.stop()
            return f"job {view.id} was {view.state} after {patience:g} s: {view.cause}"
        time.sleep(_LOOK)
    return "" if view.state == "done" else f"job {view.id} {view.state}: {view.cause}"


def _told(evaluations: Sequence[EvaluationView], *, local: bool) -> list[Fold]:
    """Return what each fold of an arm told: by site, and over all sites that told it."""
    folds: list[Fold] = []
    for one in evaluations:
        sites = {
            site: measures
            for site, told in one.sites.items()
            if (measures := dict(told.local if local else told.measures))
        }
        over_all = {
            name: Measure(found.value, found.error, found.records)
            for name, found in pooled(sites.values()).items()
        }
        folds.append({ALL: over_all, **sites} if sites else {})
    return folds


def _cells(arm: Arm, told: Sequence[Fold], folds: int) -> list[Cell]:
    """Return the cells of an arm: each metric's mean over the folds, by site and over all."""
    return [
        _cell(
            arm,
            site,
            name,
            [fold[site][name] for fold in told if name in fold.get(site, {})],
            folds,
        )
        for site, name in _named(told)
    ]


def _named(told: Sequence[Fold]) -> set[tuple[str, str]]:
    return {(site, name) for fold in told for site in fold for name in fold[site]}


def _cell(arm: Arm, site: str, name: str, found: Sequence[Measure], folds: int) -> Cell:
    mean = over_folds([m.value for m in found], [m.error for m in found], folds)
    low, high = interval(name, mean.value, mean.error, mean.reach)
    records = sum(m.records for m in found)
    return Cell(arm, site, name, mean.value, low, high, records, len(found))


def _differences(told: Mapping[Arm, Sequence[Fold]], folds: int) -> Iterable[Difference]:
    """Yield what two arms differ by, where both told two folds or more."""
    for less, arm in combinations(sorted(told, key=ARMS.index), 2):
        for site, name in sorted(_named(told[arm]) & _named(told[less]), key=_by_metric):
            both = [
                one[site][name].value - other[site][name].value
                for one, other in zip(told[arm], told[less], strict=True)
                if name in one.get(site, {}) and name in other.get(site, {})
            ]
            if len(both) < 2:
                continue
            mean = over_folds(both, (), folds)
            low, high = (mean.value + mean.reach * mean.error * side for side in (-1, 1))
            yield Difference(arm, less, site, name, mean.value, low, high, len(both))


def _by_metric(named: tuple[str, str]) -> tuple[str, str]:
    site, name = named
    return name, "" if site == ALL else site


def _order(cell: Cell) -> tuple[str, int, str]:
    return cell.metric, ARMS.index(cell.arm), "" if cell.site == ALL else cell.site


def _silent(done: Mapping[Arm, _Found]) -> Iterable[str]:
    for arm, found in done.items():
        for fold, one in enumerate(found.evaluations, 1):
            for site, why in sorted(one.without.items()):
                yield f"{arm}, fold {fold}: {site} told nothing ({why})"


def _table(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([names, *rows])
