"""Experiments side by side, and how much each site took part: `client.analytics`."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilia.errors import ConfigError, NotFound
from consilia.sdk import contributions
from consilia.sdk.contributions import CrossSite, Gain, Method, benefits
from consilia.sdk.results import missing

if TYPE_CHECKING:
    import pandas as pd

    from consilia.sdk.client import Client

_LONG = ("experiment", "name", "round", "metric", "value")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Metrics of several jobs, a row for each job, round and metric."""

    rows: tuple[tuple[str, str, int, str, float], ...]  # the columns are those of _LONG

    def to_dataframe(self) -> "pd.DataFrame":
        """Return the rows as a DataFrame: experiment, name, round, metric, value."""
        try:
            import pandas as pd  # noqa: PLC0415  # heavy, and only here
        except ImportError:
            raise missing("pandas", "a DataFrame", "notebook") from None
        return pd.DataFrame(self.rows, columns=list(_LONG))

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows as CSV with a header."""
        path = Path(path)
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(_LONG)
            writer.writerows(self.rows)
        return path

    def plot(self) -> "Plot":
        """Draw one panel a metric with one line an experiment, over the rounds."""
        try:
            from matplotlib.figure import Figure  # noqa: PLC0415  # heavy, and only here
        except ImportError:
            raise missing("matplotlib", "a plot", "notebook") from None
        metrics = sorted({row[3] for row in self.rows})
        figure = Figure(figsize=(6.4, 2.8 * len(metrics)), layout="constrained")
        panels = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
        for panel, metric in zip(panels, metrics, strict=True):
            for job in dict.fromkeys(row[0] for row in self.rows):
                line = [r for r in self.rows if r[0] == job and r[3] == metric]
                label = line[0][1] or job if line else job
                panel.plot([r[2] for r in line], [r[4] for r in line], marker=".", label=label)
            panel.set(xlabel="round", ylabel=metric)
            panel.grid(alpha=0.3)
            panel.legend(fontsize="small")
        return Plot(figure)


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing; notebooks show it."""

    figure: Any  # matplotlib.figure.Figure

    def save(self, path: str | Path) -> Path:
        """Write it in the format of the name: .png, .svg, .pdf."""
        self.figure.savefig(path)
        return Path(path)

    def _repr_png_(self) -> bytes:
        import io  # noqa: PLC0415

        out = io.BytesIO()
        self.figure.savefig(out, format="png", dpi=110)
        return out.getvalue()


@dataclass(frozen=True, slots=True)
class Contributions:
    """How often each site's update is in a job's rounds, and what is known beyond that.

    `benefit` is measured by each site on its own hold-out, against a model of its own;
    `contribution` is how much worse the model is without the site. `method` says which of them
    there is: under secure aggregation nobody but the site itself can tell more.
    """

    job: str
    rounds: int  # closed training rounds
    sites: dict[str, int]  # site -> rounds that its update is in; invited ones without any too
    method: Method = "rounds only"
    metric: str = ""  # of benefit and contribution
    benefit: dict[str, Gain] = field(default_factory=dict)
    contribution: dict[str, float] = field(default_factory=dict)

    @property
    def shares(self) -> dict[str, float]:
        """Return each site's share of all updates; they sum to 1."""
        total = sum(self.sites.values())
        return {site: n / total if total else 0.0 for site, n in self.sites.items()}

    @property
    def diversity_score(self) -> float:
        """Return how evenly the sites took part: 1 all alike, 0 one alone.

        Shannon's entropy of the shares over its largest value, log of the number of sites
        (Pielou's evenness, 1966). 0 when there is one site or no round.
        """
        shares = [share for share in self.shares.values() if share > 0]
        if len(self.sites) < 2 or not shares:
            return 0.0
        return -sum(p * math.log(p) for p in shares) / math.log(len(self.sites))


class Analytics:
    """Experiments compared."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def compare_experiments(
        self, ids: Sequence[str], metrics: Sequence[str] | None = None
    ) -> Comparison:
        """Return the metrics of jobs, round by round; all that were reported for None.

        Raises ConfigError for no job, NotFound for a metric that none of them has.
        """
        if not ids:
            raise ConfigError("a comparison needs at least one experiment, by its job's id")
        views = [self._client.job(id) for id in ids]
        closed = [(view, r) for view in views for r in view.rounds if r.round > 0]
        known = {name for _, r in closed for name in r.metrics}
        if lacking := sorted(set(metrics or ()) - known):
            raise NotFound(
                f"no round of these experiments has the metric {', '.join(lacking)}; reported "
                f"are: {', '.join(sorted(known)) or 'none'}"
            )
        wanted = list(dict.fromkeys(metrics or sorted(known)))
        return Comparison(
            tuple(
                (view.id, view.experiment.name, r.round, name, r.metrics[name])
                for view, r in closed
                for name in wanted
                if name in r.metrics
            )
        )

    def hospital_contributions(
        self, job: str, metric: str = "auc", *, leave_one_out: bool = False
    ) -> Contributions:
        """Return how often each site of the job's study took part, and what it gained.

        The benefit is what the sites have measured, in this job (`evaluate: {benefit: true}`)
        or in an evaluation of its models. `leave_one_out` trains the experiment again without
        each site, which takes plain aggregation (ConfigError otherwise).
        """
        view = self._client.job(job)
        closed = [r for r in view.rounds if r.round > 0]
        invited = self._client.study(view.experiment.study).study.sites
        counts = {site: sum(site in r.sites for r in closed) for site in invited}
        made = {r.model for r in closed}
        judging = [
            other
            for other in self._client.jobs()
            if other.id == job or other.experiment.base in made
        ]
        told = [e for other in reversed(judging) for e in self._client.evaluations(other.id)]
        gained = benefits(sorted(told, key=lambda e: e.at), metric)
        lost = contributions.leave_one_out(self._client, job, metric) if leave_one_out else {}
        method: Method = "measured at the sites" if gained else "rounds only"
        if lost:
            method = "leave-one-out"
        return Contributions(job, len(closed), counts, method, metric, gained, lost)

    def cross_site(self, job: str, metric: str = "auc") -> CrossSite:
        """Train the job's experiment at each site alone; judge each model at every site.

        The models of single sites travel, so the job must have plain aggregation.
        """
        return contributions.cross_site(self._client, job, metric)
