"""From what a person asks for to the question that every site gets: pure.

A site answers about names and edges that were chosen before it looked at a record, so all of
them are in the question. What a person leaves out is taken from what the sites offer: a
column's type, and from mock twins its levels and range.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from consilia.core.steps import FEWEST
from consilia.data.contract import column_type
from consilia.data.loading.expression import parse
from consilia.errors import ConfigError
from consilia.privacy.accountant import noise_for
from consilia.stats import private, sums
from consilia.wire.people import Experiment
from consilia.wire.statistics import AskStatistics, Noise
from consilia.wire.strict import nearest
from consilia.wire.v1 import (
    Advertisement,
    Dp,
    MockColumn,
    Moment,
    Numbers,
    OfferedDataset,
    Privacy,
    Statistics,
    Study,
    Subgroups,
)

BINS = 10  # of a histogram whose edges nobody has said
MOST_LEVELS = 50


@dataclass(frozen=True, slots=True)
class Offered:
    """A column as the sites of a study offer it."""

    type: str
    twins: tuple[MockColumn, ...] = ()  # of those sites that show one

    @property
    def numeric(self) -> bool:
        """Tell whether it holds numbers."""
        return self.type != "bool" and column_type(self.type, "").numeric

    @property
    def range(self) -> tuple[float, float] | None:
        """Return where its values lie, as the twins say."""
        ends = [
            (t.start, t.start + t.width * len(t.counts))
            for t in self.twins
            if t.width > 0 and t.counts
        ]
        if not ends:
            return None
        return min(low for low, _ in ends), max(high for _, high in ends)


def offered(study: Study, digest: str, said: Mapping[str, Advertisement]) -> dict[str, Offered]:
    """Return the columns of the datasets that the study's sites offer it, by name."""
    found: dict[str, Offered] = {}
    for name, kind, twin in _columns(study, digest, said):
        before = found.get(name)
        twins = (*(before.twins if before else ()), *((twin,) if twin else ()))
        found[name] = Offered(before.type if before else kind, twins)
    return found


def _columns(
    study: Study, digest: str, said: Mapping[str, Advertisement]
) -> Iterator[tuple[str, str, MockColumn | None]]:
    for site in sorted(study.hospitals):
        advertisement = said.get(site)
        if advertisement is None or digest not in advertisement.studies:
            continue
        for dataset in advertisement.datasets:
            if set(study.tags) <= set(dataset.tags):
                yield from _of_dataset(dataset)


def _of_dataset(dataset: OfferedDataset) -> Iterator[tuple[str, str, MockColumn | None]]:
    twins = {c.name: c for c in dataset.mock.columns} if dataset.mock else {}
    for name, kind in dataset.columns.items():
        yield name, kind, twins.get(name)


def experiment(
    asked: AskStatistics, study: Study, columns: Mapping[str, Offered]
) -> Experiment:
    """Return the job that asks; ConfigError names the field that is wrong.

    Hospitals answer, whether their copy is at a data centre or not: the memory of what they
    have told is theirs, and a sum may be opened for the same sites only.
    """
    question = statistics(asked, columns)
    secure = len(study.hospitals) >= FEWEST
    how = asked.aggregation or ("secure" if secure else "plain")
    if how == "secure" and not secure:
        raise ConfigError(
            f"aggregation: found 'secure' in a study of {len(study.hospitals)} sites; needed "
            "'plain', or three sites: from the sum of two, each knows the other's"
        )
    fewest = FEWEST if how == "secure" else 1
    dp = None if asked.dp is None else mechanism(asked.dp, how == "secure")
    if dp is not None:
        _pays(dp, how == "secure", question, len(study.hospitals))
    return Experiment(
        study=study.name,
        plan="",
        sites=study.hospitals if study.data_centre else (),
        rounds=0,
        min_updates=fewest,
        min_sites=fewest,
        grace=asked.grace,
        deadline=asked.deadline,
        name=asked.name or "statistics",
        privacy=Privacy(aggregation=how, dp=dp, statistics=question),
    )


def _pays(dp: Dp, masked: bool, question: Statistics, sites: int) -> None:
    """Raise ConfigError for a question that every site would pay for and none could answer."""
    if problem := private.problem(dp, masked, question, sites):
        raise ConfigError(f"dp: {problem.removeprefix('dp: ')}")


def mechanism(asked: Noise, masked: bool) -> Dp:
    """Return the noise that an answer costs no more than asked with; ConfigError."""
    if not 1 <= asked.records <= private.MOST_RECORDS:
        needed = f"1 to {private.MOST_RECORDS}"
        raise ConfigError(f"dp.records: found {asked.records}; needed {needed}")
    dp = Dp(
        asked.level,
        noise_for(asked.epsilon, asked.delta, 1.0, 1),
        float(asked.records),
        delta=asked.delta,
        distributed=masked,
        colluding=asked.colluding,
    )
    if problem := private.problem(dp, masked):
        raise ConfigError(f"dp: {problem.removeprefix('dp: ')}")
    return dp


def statistics(asked: AskStatistics, columns: Mapping[str, Offered]) -> Statistics:
    """Return the question, complete with names and edges; ConfigError names the field."""
    if not columns:
        raise ConfigError("study: no site offers it a dataset yet; wait until one accepts it")
    _refuse_unused(asked)
    if asked.dp is not None:  # a twin is made of records, and no ledger was charged for it
        columns = {name: Offered(column.type) for name, column in columns.items()}
    for field, names in (
        ("columns", asked.columns),
        ("by", (asked.by,) if asked.by else ()),
        ("tables", tuple(name for pair in asked.tables for name in pair)),
    ):
        for name in names:
            _known(name, field, columns)
    if asked.where:
        _check_where(asked.where, columns)
    numeric = [n for n in asked.columns if columns[n].numeric and n not in asked.levels]
    question = Statistics(
        tuple(_numbers(name, asked, columns[name]) for name in numeric),
        tuple(_levels(n, asked, columns[n]) for n in asked.columns if n not in numeric),
        tuple(
            (_levels(a, asked, columns[a]), _levels(b, asked, columns[b]))
            for a, b in asked.tables
        ),
        _levels(asked.by, asked, columns[asked.by]) if asked.by else None,
        asked.where,
    )
    sums.check(question)
    return question


def _refuse_unused(asked: AskStatistics) -> None:
    named = {*asked.columns, asked.by, *(name for pair in asked.tables for name in pair)}
    given_for = (("levels", asked.levels), ("edges", asked.edges), ("bounds", asked.bounds))
    for field, given in given_for:
        for name in given:
            if name not in named:
                raise ConfigError(
                    f"{field}.{name[:80]}: found a column that is not asked about"
                )


def _known(name: str, field: str, columns: Mapping[str, Offered]) -> None:
    if name not in columns:
        valid = tuple(columns)
        raise ConfigError(
            f"{field}: no site offers a column {name[:80]!r}{nearest(name, valid)}"
        )


def _check_where(text: str, columns: Mapping[str, Offered]) -> None:
    try:
        term = parse(text, {name: column.type for name, column in columns.items()})
    except ConfigError as e:
        raise ConfigError(f"where: {e}") from None
    if term.kind != "truth":
        raise ConfigError(f"where: found a {term.kind}; needed a condition, such as age >= 18")


def _numbers(name: str, asked: AskStatistics, column: Offered) -> Numbers:
    wanted = set(asked.what)
    edges: tuple[float, ...] = tuple(map(float, asked.edges.get(name, ())))
    if name == asked.by:
        edges = ()  # they are its groups
    if not edges and wanted & {"histogram", "quantiles"}:
        edges = _even(name, _bounds(name, asked) or column.range)
    ends = _ends(name, asked, edges, column)
    centre, unit = (0.0, 1.0) if ends is None else ((ends[0] + ends[1]) / 2, _half(*ends))
    order: tuple[Moment, ...] = ("count", "missing", "mean", "sd", "quantiles")
    what = tuple(w for w in order if w in wanted | {"count"})
    return Numbers(name, what, edges, centre, unit)


def _ends(
    name: str, asked: AskStatistics, edges: tuple[float, ...], column: Offered
) -> tuple[float, float] | None:
    """Return the range that sums are coded in, and with noise clipped to."""
    if (given := _bounds(name, asked)) is not None:
        return given
    if edges:
        return edges[0], edges[-1]
    if asked.dp is not None and {"mean", "sd"} & set(asked.what):
        raise ConfigError(
            f"bounds.{name}: found none; with dp a mean or sd needs the least and the largest "
            "value that you expect, as {" + name[:40] + ": [20, 90]}: chosen without the data"
        )
    return column.range


def _bounds(name: str, asked: AskStatistics) -> tuple[float, float] | None:
    if name not in asked.bounds:
        return None
    low, high = map(float, asked.bounds[name])
    if not -math.inf < low < high < math.inf:
        raise ConfigError(f"bounds.{name}: found {low:g}, {high:g}; needed two rising numbers")
    return low, high


def _half(low: float, high: float) -> float:
    return (high - low) / 2 if high > low else 1.0


def _even(name: str, ends: tuple[float, float] | None) -> tuple[float, ...]:
    """Return edges over a range at round numbers; ConfigError when no range is known."""
    if ends is None:
        raise ConfigError(
            f"edges.{name}: found none, and no site shows a mock twin to take them from (with "
            "dp none is used); needed the edges of its bins"
        )
    low, high = ends
    rough = (high - low) / BINS
    scale = 10.0 ** math.floor(math.log10(rough))
    width = next(w for w in (1.0, 2.0, 5.0, 10.0) if w * scale >= rough) * scale
    first, last = math.floor(low / width), math.ceil(high / width)
    return tuple(i * width for i in range(first, last + 1))


def _levels(name: str, asked: AskStatistics, column: Offered) -> Subgroups:
    """Return a column's groups: as asked for, as the twins show them, or true and false."""
    if name in asked.levels:
        return Subgroups(name, asked.levels[name])
    if name in asked.edges and column.numeric:
        return Subgroups(name, cuts=tuple(map(float, asked.edges[name])))
    if column.type == "bool":
        return Subgroups(name, ("false", "true"))
    if names := _shown(column.twins):
        return Subgroups(name, names)
    raise ConfigError(
        f"levels.{name}: found none, and no site shows a mock twin to take them from (with dp "
        f"none is used); needed the column's levels, as {{{name[:40]}: [F, M]}}, or edges to "
        "cut numbers at"
    )


def _shown(twins: Sequence[MockColumn]) -> tuple[str, ...]:
    names = sorted({level for twin in twins for level in twin.levels})
    return tuple(names[:MOST_LEVELS])
