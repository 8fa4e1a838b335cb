"""Statistics over all sites: `client.statistics("heart", ["age", "sex"], by="sex")`.

found = client.statistics("heart", ["age", "chol"], levels={"sex": ["F", "M"]}, by="sex")
found                       # Table 1, in a notebook
found.value("mean", "age", group="F")
found.to_dataframe()
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from consilia.errors import ConfigError, ConsiliaError, NotFound
from consilia.sdk.notebook import table
from consilia.sdk.results import missing
from consilia.wire.people import JobView
from consilia.wire.statistics import AskStatistics, Figure, Noise, StatisticsView, What

if TYPE_CHECKING:
    import pandas as pd

    from consilia.sdk.client import Client

_WAIT = 20.0  # seconds that the hub holds a question for news
ENDED = ("done", "stopped", "failed")
WHAT: tuple[What, ...] = ("count", "missing", "mean", "sd")
NOT_TOLD = "-"


@dataclass(frozen=True, slots=True)
class Table1:
    """The rows people print: characteristics down, groups across."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Described:
    """What the sites have told of their records, added up."""

    view: StatisticsView

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Every number, also those that may not be told (their value is None)."""
        return self.view.figures

    def value(
        self, statistic: str, column: str = "", *, group: str = "", level: str = ""
    ) -> float | None:
        """Return one number, None where it may not be told; NotFound when nobody asked."""
        for f in self.view.figures:
            if (f.statistic, f.column, f.group, f.level) == (statistic, column, group, level):
                return f.value
        about = " ".join(part for part in (statistic, column, group, level) if part)
        raise NotFound(f"{about!r} was not asked for; see .figures")

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row a number; the columns are the fields of wire.statistics.Figure."""
        try:
            import pandas as pd  # noqa: PLC0415  # heavy, and only here
        except ImportError:
            raise missing("pandas", "a DataFrame", "notebook") from None
        return pd.DataFrame(map(_cells, self.view.figures), columns=list(_FIELDS))

    def to_csv(self, path: str | Path) -> Path:
        """Write one row a number, with a header; nothing where it may not be told."""
        path = Path(path)
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(_FIELDS)
            writer.writerows(_cells(f) for f in self.view.figures)
        return path

    def table1(self) -> Table1:
        """Return mean (SD) of numbers, counts and shares of levels, for each group."""
        return table1(self.view)

    def _repr_html_(self) -> str:
        found = self.table1()
        return table(found.head, found.rows) + f"<p>{escape(caption(self.view))}</p>"


_FIELDS = Figure.__struct_fields__


def _cells(figure: Figure) -> tuple[object, ...]:
    return tuple(getattr(figure, name) for name in _FIELDS)


def caption(view: StatisticsView) -> str:
    """Say what the numbers are of."""
    how = "of which the hub has seen the sum only" if view.masked else "each seen by the hub"
    rounded = f"; {view.rounded} of them round counts to 5" if view.rounded else ""
    without = f"; nothing from {', '.join(sorted(view.without))}" if view.without else ""
    hidden = sum(f.value is None for f in view.figures)
    left = f"; {hidden} numbers may not be told ({NOT_TOLD})" if hidden else ""
    return f"{len(view.sites)} sites, {how}{rounded}{without}{left}{_private(view)}"


def _private(view: StatisticsView) -> str:
    """Say what noise the numbers carry, and what they have cost; "" where none."""
    if view.dp is None or view.epsilon is None or view.noise is None:
        return ""
    whom = "record" if view.dp.clip == 1 else f"{view.dp.clip:g} records of a patient"
    return (
        f"; epsilon {view.epsilon:.3g} at delta {view.dp.delta:g} for each {whom}, charged at "
        f"every site: counts carry noise of {view.noise:.3g} records (standard deviation)"
    )


def table1(view: StatisticsView) -> Table1:
    """Return the table for a paper; crosstabs, bins and quantiles are in the figures."""
    groups = tuple(dict.fromkeys(f.group for f in view.figures if f.statistic == "records"))
    known = {(f.statistic, f.column, f.group, f.level): f.value for f in view.figures}
    rows = [("records", *(_count(known.get(("records", "", g, ""))) for g in groups))]
    for numbers in view.asked.numbers:
        name = numbers.column
        if "mean" in numbers.what:
            unit = " (SD)" if "sd" in numbers.what else ""
            rows.append((f"{name}, mean{unit}", *(_mean(known, name, g) for g in groups)))
        else:
            rows.append((name, *(_count(known.get(("count", name, g, ""))) for g in groups)))
        if "missing" in numbers.what:
            found = (known.get(("missing", name, g, "")) for g in groups)
            rows.append((f"{name}, missing", *map(_count, found)))
    for levels in view.asked.levels:
        names = dict.fromkeys(
            f.level for f in view.figures if (f.statistic, f.column) == ("level", levels.column)
        )
        rows += [
            (
                f"{levels.column}: {level}",
                *(_share(known, levels.column, level, g) for g in groups),
            )
            for level in names
        ]
    return Table1(("", *(group or "all" for group in groups)), tuple(rows))


_Known = Mapping[tuple[str, str, str, str], float | None]


def _count(value: float | None) -> str:
    return NOT_TOLD if value is None else f"{value:.0f}"


def _mean(known: _Known, column: str, group: str) -> str:
    mean, sd = (known.get((what, column, group, "")) for what in ("mean", "sd"))
    if mean is None:
        return NOT_TOLD
    return f"{mean:.4g}" if sd is None else f"{mean:.4g} ({sd:.3g})"


def _share(known: _Known, column: str, level: str, group: str) -> str:
    told = {k[3]: v for k, v in known.items() if k[:3] == ("level", column, group)}
    value, whole = told.get(level), sum(v or 0.0 for v in told.values())
    if value is None:
        return NOT_TOLD
    return f"{value:.0f} ({100 * value / whole:.1f} %)" if whole else f"{value:.0f}"


def ask(client: "Client", asked: AskStatistics) -> Described:
    """Ask, wait for the sites, return what they have told; ConsiliaError when none may be."""
    job = client.ask_statistics(asked)
    view = _ended(client, job)
    if view.state != "done":
        raise ConsiliaError(
            f"job {view.id} has no statistics: {view.cause}. A site tells none unless the "
            "study's terms ask for them (statistics) or its own policy lets it, nor with noise "
            "that its privacy budget has no room for; why one refuses is not passed on"
        )
    return Described(client.job_statistics(view.id))


def _ended(client: "Client", job: JobView) -> JobView:
    seen = 0
    while job.state not in ENDED:
        news = client.events(job.id, seen, _WAIT)
        seen = max([seen, *(event.seq for event in news)])
        job = client.job(job.id)
    return job


def question(  # noqa: PLR0913 - by keyword
    study: str,
    columns: Sequence[str],
    *,
    by: str = "",
    what: Sequence[What] = WHAT,
    where: str = "",
    levels: Mapping[str, Sequence[str]] | None = None,
    edges: Mapping[str, Sequence[float]] | None = None,
    tables: Sequence[tuple[str, str]] = (),
    aggregation: Literal["secure", "plain"] | None = None,
    deadline: float = 600.0,
    bounds: Mapping[str, Sequence[float]] | None = None,
    dp: Noise | None = None,
) -> AskStatistics:
    """Return the request for what a person asks in Python or a terminal."""
    return AskStatistics(
        study=study,
        columns=tuple(columns),
        what=tuple(what),
        by=by,
        where=where,
        levels={name: tuple(map(str, found)) for name, found in (levels or {}).items()},
        edges={name: tuple(map(float, found)) for name, found in (edges or {}).items()},
        tables=tuple((first, second) for first, second in tables),
        aggregation=aggregation,
        deadline=deadline,
        bounds={name: _two(name, found) for name, found in (bounds or {}).items()},
        dp=dp,
    )


def _two(name: str, found: Sequence[float]) -> tuple[float, float]:
    if len(found) != 2:
        raise ConfigError(f"bounds.{name}: found {len(found)} numbers; needed two")
    return float(found[0]), float(found[1])
