"""What each site has from a federation, and what the federation has from it.

- Benefit: how much better the federated model is than one the site trained alone, measured by
  the site on its own hold-out (`evaluate: {benefit: true}`), with a 95 % interval. Nothing but
  these numbers leaves, whatever the aggregation.
- Leave-one-out: how much worse the model of all but one site is, on everybody's hold-out. It
  takes a job for each site, and two sums that differ by one site show that site's update: so
  it is made only with plain aggregation, to which each site must consent.
- The cross-site matrix: every site's own model on every site's hold-out. These models travel,
  so it is the same: plain aggregation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from consilia.errors import ConfigError, ConsiliaError, NotFound
from consilia.sdk.experiment import Experiment
from consilia.stats.pooling import interval
from consilia.wire.people import EvaluationView
from consilia.wire.v1 import Measure

if TYPE_CHECKING:
    from consilia.sdk.client import Client

Method = Literal["leave-one-out", "measured at the sites", "rounds only"]
LOWER = frozenset({"brier", "mae"})  # metrics that should be low


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much one model is better than another; positive is better. A 95 % interval."""

    value: float
    low: float
    high: float
    records: int


def gain_of(measure: Measure) -> Gain:
    """Return what a site has measured, with its interval."""
    low, high = interval("", measure.value, measure.error)
    return Gain(measure.value, low, high, measure.records)


def benefits(evaluations: Iterable[EvaluationView], metric: str) -> dict[str, Gain]:
    """Return each site's newest benefit by `metric`; sites that told none are absent."""
    found: dict[str, Gain] = {}
    for view in evaluations:
        for site, told in view.sites.items():
            if metric in told.gain:
                found[site] = gain_of(told.gain[metric])
    return found


@dataclass(frozen=True, slots=True)
class CrossSite:
    """Every site's own model on every site's hold-out: rows trained, columns judged."""

    metric: str
    values: Mapping[str, Mapping[str, Measure]]  # trained at -> judged at

    def to_dataframe(self) -> Any:
        """Return the values as a DataFrame, a row for each site that trained."""
        from consilia.sdk.results import missing  # noqa: PLC0415

        try:
            import pandas as pd  # noqa: PLC0415  # heavy, and only here
        except ImportError:
            raise missing("pandas", "a DataFrame", "notebook") from None
        rows = {a: {b: m.value for b, m in row.items()} for a, row in self.values.items()}
        return pd.DataFrame(rows).T


def cross_site(client: "Client", job: str, metric: str) -> CrossSite:
    """Train the job's experiment at each site alone, and judge each model at every site."""
    config, sites = _plain(client, job)
    found = {}
    for site in sites:
        alone = {"sites": (site,), "min_sites": 1, "min_updates": 1, "evaluate": {}}
        view = _run(client, config, alone, f"only {site}")
        found[site] = {
            at: e.measures[metric] for at, e in view.sites.items() if metric in e.measures
        }
    return CrossSite(metric, found)


def leave_one_out(client: "Client", job: str, metric: str) -> dict[str, float]:
    """Return by how much the model is worse without each site, on all hold-outs.

    Positive: the site makes the model better. Every model is judged at all sites.
    """
    config, sites = _plain(client, job)
    if len(sites) < 2:
        raise ConfigError(f"job {job} has {len(sites)} site; leaving one out needs two")
    whole = _value(_run(client, config, {"sites": (), "evaluate": {}}, "all sites"), metric)
    lost = {}
    for left in sites:
        rest = tuple(s for s in sites if s != left)
        few = {name: min(getattr(config, name), len(rest)) for name in _COUNTS}
        changes = {"sites": rest, "evaluate": {}, **few}
        value = _value(_run(client, config, changes, f"without {left}"), metric)
        lost[left] = (value - whole) if metric in LOWER else (whole - value)
    return lost


_COUNTS = ("min_sites", "min_updates")


def _plain(client: "Client", job: str) -> tuple[Any, Sequence[str]]:
    """Return a job's experiment and the sites of its rounds; ConfigError unless plain."""
    view = client.job(job)
    privacy = view.experiment.privacy
    if privacy is None or privacy.aggregation != "plain":
        how = "the hub's default" if privacy is None else privacy.aggregation
        raise ConfigError(
            f"job {job} has aggregation {how!r}, needed 'plain', to which every site consents: "
            "models of one site, or of all but one, show what secure aggregation hides. "
            "`evaluate: {benefit: true}` measures at the sites instead"
        )
    sites = sorted({site for r in view.rounds if r.round > 0 for site in r.sites})
    return view.experiment, sites


def _run(
    client: "Client", config: Any, changes: Mapping[str, Any], name: str
) -> EvaluationView:
    fields = {field: getattr(config, field) for field in config.__struct_fields__}
    plain = {**fields, "early_stop": None, "watch": None, **changes, "name": name}
    experiment = Experiment(client, **plain).start()
    if experiment.wait().state != "done":
        raise ConsiliaError(f"job {experiment.job.id} ({name}) ended {experiment.job.state}")
    return experiment.evaluations[-1]


def _value(view: EvaluationView, metric: str) -> float:
    if metric not in view.pooled:
        raise NotFound(
            f"the sites tell no {metric!r} of {view.model}; they tell: "
            f"{', '.join(view.pooled) or 'nothing'}"
        )
    return view.pooled[metric].value
