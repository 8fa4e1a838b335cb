"""Sums over a site's records for a task of kind "statistics": what of them may leave.

A sandboxed worker reads the columns that are asked about (stats.columns), after loading plan
and opt-outs; no plan's code takes part. Here they become the numbers of stats.sums, each of
them a question to node.disclosure, which knows all earlier answers: what it refuses is left
out, whatever struck, before anything is masked.

The groups of a question are asked about first, together. What is refused there is not asked
about any further. The values of a column are equations in these values alone, so their memory
is one of the column: a mean of ages and one of costs give away nothing together. All counts
(of groups, bins, cells, missing values) are about who is there, and share one memory.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import TensorSpec, Weights
from consilia.errors import Refused, WorkerError
from consilia.node.aside import read_tensors
from consilia.node.disclosure import ALL, Answerer, Group, Ids, Mask, Question
from consilia.node.runner import TaskOutput
from consilia.privacy.disclosure import Rules, Suppressed
from consilia.stats import sums
from consilia.stats.columns import BY, IDS, MISSING, WHERE
from consilia.stats.sums import Item
from consilia.wire.v1 import Numbers, Plan, Statistics, Subgroups

PLAN = Plan(
    "statistics",
    {
        "no_plan.py": (
            "from consilia.plans.numpy import numpy_plan\n\n"
            "PLAN = numpy_plan(lambda args, seed: {}, lambda *_: None)\n"
        )
    },
    "no_plan:PLAN",
)
_NUMBER = {"number:": "float64", "level:": "int64", "rows:": "int64", "across:": "int64"}
Told = dict[Item, float]
Atom = tuple[str | float | None, ...]  # of a column: a level, two ends, or no value


@dataclass(frozen=True, slots=True)
class About:
    """Whose question it is, and of what."""

    study: str
    universe: str
    dataset: str


@dataclass(slots=True)
class _Asking:
    """A question on its way: the records it is about, and what may be told so far."""

    asked: Statistics
    about: About
    out: Answerer
    columns: Weights
    ids: Ids  # of the patients' universe
    told: Told = field(default_factory=dict)

    @property
    def rules(self) -> Rules:
        """The site's thresholds."""
        return self.out.rules

    def chosen(self, atoms: "tuple[Atom, ...]", members: Mask) -> Group:
        """Return a group of the records that the question's condition and `atoms` choose."""
        return Group(predicate(self.asked.where, atoms), members)

    def question(self, what: tuple[object, ...], *groups: Group) -> Question:
        """Return a question about groups."""
        query = _digest(what, tuple(group.predicate for group in groups))
        about = self.about
        return Question(about.study, about.universe, about.dataset, query, self.ids, groups)

    def table(
        self, groups: list[Group], shape: tuple[int, int] | None = None
    ) -> tuple[int | Suppressed, ...]:
        """Ask for the counts of groups that make up a whole."""
        return self.out.table(self.question(("table", shape), *groups), shape)


def described(asked: Statistics, told: Told) -> str:
    """Say for the site's trail what leaves, and how much of it was left out; no number."""
    every = sums.items(asked)
    names = dict.fromkeys(item.column for item in every if item.column)
    groups = f" by {asked.by.column}" if asked.by else ""
    condition = f" where {asked.where[:200]}" if asked.where else ""
    about = ", ".join(names)[:400] or "records"
    return f"sums over {about}{groups}{condition}: {len(told)} of {len(every)} numbers"


# ---- from the worker ---------------------------------------------------------------------


def taken(output: TaskOutput, asked: Statistics) -> Weights:
    """Read a worker's columns; WorkerError when they do not fit the question."""
    records = output.done.records
    needed = dict(_needed(asked))
    specs = tuple(TensorSpec(t.name, t.dtype, t.shape) for t in output.done.tensors)
    if {s.name: s.dtype for s in specs} != needed or len(specs) != len(needed):
        raise WorkerError(f"columns {[s.name[:40] for s in specs][:8]} for statistics")
    if any(s.shape != (records,) for s in specs):
        raise WorkerError(f"columns that are not of {records} records")
    return read_tensors(output, specs)


def _needed(asked: Statistics) -> Iterator[tuple[str, str]]:
    yield from ((IDS, "uint64"), (WHERE, "bool"))
    if asked.by is not None:
        yield BY, "int64"
    names = [f"number:{n.column}" for n in asked.numbers]
    names += [f"level:{s.column}" for s in asked.levels]
    names += [f"{side}:{i}" for i in range(len(asked.tables)) for side in ("rows", "across")]
    for name in names:
        yield name, _NUMBER[name.partition(":")[0] + ":"]


# ---- what may be told --------------------------------------------------------------------


def answered(columns: Weights, asked: Statistics, about: About, out: Answerer) -> Told:
    """Return the numbers that may be told; Refused when none may."""
    patients = np.asarray(columns[IDS], np.uint64)
    if len(np.unique(patients)) != len(patients):
        raise Refused(
            f"dataset {about.dataset!r} has patients with several records; statistics need one "
            "record a patient: let a loading plan keep one, or group them"
        )
    ids = _identities(out, about.universe, patients)
    asking = _Asking(asked, about, out, columns, ids)
    shown = _groups(asking)
    if not shown:
        raise Refused("nothing may be told of the records asked about")
    for numbers in asked.numbers:
        _moments(asking, numbers, shown)
        for group in shown:
            _missing(asking, numbers, group)
            _bins(asking, numbers, group)
    for levels in asked.levels:
        places = np.asarray(columns[f"level:{levels.column}"], np.int64)
        row = _Row("cell", levels.column, atoms(levels), places)
        for group in shown:
            _tell(asking, group, row)
    for number in range(len(asked.tables)):
        _table(asking, number)
    asking.told[Item("rounded")] = float(asking.rules.rounded)
    return asking.told


def _identities(out: Answerer, universe: str, patients: Ids) -> Ids:
    return out.identities(universe, (f"{p:016x}" for p in patients.tolist()))


def _groups(asking: _Asking) -> "list[_Group]":
    """Ask how many records each group has; return the groups that may be asked about."""
    asked = asking.asked
    within = np.asarray(asking.columns[WHERE], np.bool_)
    groups = [_Group(sums.WHOLE, (), within)]
    if asked.by is not None:
        pairs = zip(sums.names_of(asked.by), atoms(asked.by), strict=True)
        groups = [
            _Group(name, (atom,), within & (asking.columns[BY] == place))
            for place, (name, atom) in enumerate(pairs)
        ]
    counts = asking.table([asking.chosen(group.atoms, group.members) for group in groups])
    shown = []
    for group, count in zip(groups, counts, strict=True):
        if not isinstance(count, Suppressed):
            asking.told[Item("records", group=group.name)] = count
            shown.append(group)
    return shown


def _moments(asking: _Asking, numbers: Numbers, shown: "list[_Group]") -> None:
    """Ask for a column's count and sums in each group: equations in its values alone."""
    values = np.asarray(asking.columns[f"number:{numbers.column}"], np.float64)
    present = ~np.isnan(values)
    few = [int((group.members & ~present).sum()) for group in shown]
    if not asking.rules.rounded and any(0 < n < asking.rules.k for n in few):
        return  # an exact count beside the group's own would tell how few have no value
    if not present.any():
        return
    universe = f"{asking.about.universe}/{numbers.column}"
    patients = np.asarray(asking.columns[IDS], np.uint64)[present]
    own = replace(
        asking,
        about=replace(asking.about, universe=universe),
        ids=_identities(asking.out, universe, patients),
    )
    groups = [own.chosen(group.atoms, group.members[present]) for group in shown]
    for group, chosen, count in zip(shown, groups, own.table(groups), strict=True):
        if isinstance(count, Suppressed):
            continue
        asking.told[Item("count", numbers.column, group.name)] = count
        if sums.moments(numbers):
            asking.told |= _sum(own, numbers, group.name, chosen, values[present], count)


def _sum(  # noqa: PLR0913, PLR0917 - what a sum is of
    own: _Asking,
    numbers: Numbers,
    name: str,
    chosen: Group,
    values: NDArray[np.float64],
    count: int,
) -> Told:
    """Return weight, sum and sum of squares of one group, all of them or none.

    The weight is the count as it is told: where that is rounded, so is what follows from it.
    """
    mean = own.out.mean(own.question(("mean", numbers.column), chosen), values)
    if isinstance(mean, Suppressed):
        return {}
    middle = (mean - numbers.centre) / numbers.unit
    told: dict[sums.Kind, float] = {"weight": float(count), "sum": count * middle}
    if "sd" in numbers.what:
        asked = own.question(("variance", numbers.column), chosen)
        variance = own.out.variance(asked, values)
        if isinstance(variance, Suppressed):
            return {}
        told["squares"] = (count - 1) * variance / numbers.unit**2 + count * middle**2
    items = {Item(kind, numbers.column, name): value for kind, value in told.items()}
    return items if all(sums.fits(item, value) for item, value in items.items()) else {}


def _missing(asking: _Asking, numbers: Numbers, group: "_Group") -> None:
    """Tell how many records of a group have no value, where these are k or more."""
    if "missing" not in numbers.what:
        return
    absent = np.isnan(np.asarray(asking.columns[f"number:{numbers.column}"], np.float64))
    lacking = (numbers.column, None)
    chosen = asking.chosen((*group.atoms, lacking), group.members & absent)
    count = asking.out.count(asking.question(("count",), chosen))
    if not isinstance(count, Suppressed):
        asking.told[Item("missing", numbers.column, group.name)] = count


def _bins(asking: _Asking, numbers: Numbers, group: "_Group") -> None:
    """Tell how many records of a group are in each bin; the outer ones have no end."""
    if not sums.bins_of(numbers):
        return
    inner = numbers.edges[1:-1]
    values = np.asarray(asking.columns[f"number:{numbers.column}"], np.float64)
    places = np.where(np.isnan(values), MISSING, np.searchsorted(inner, values, side="right"))
    row = _Row("bin", numbers.column, atoms(Subgroups(numbers.column, cuts=inner)), places)
    _tell(asking, group, row)


def _tell(asking: _Asking, group: "_Group", row: "_Row") -> None:
    """Ask for the counts of a group's parts, as one table of one row."""
    parts = [
        asking.chosen((*group.atoms, atom), group.members & (row.places == place))
        for place, atom in enumerate(row.atoms)
    ]
    for place, count in enumerate(asking.table(parts)):
        if not isinstance(count, Suppressed):
            asking.told[Item(row.kind, row.column, group.name, place)] = count


def _table(asking: _Asking, number: int) -> None:
    """Ask for a crosstab of all records that the condition holds of."""
    rows, across = asking.asked.tables[number]
    within = np.asarray(asking.columns[WHERE], np.bool_)
    up, down = asking.columns[f"rows:{number}"], asking.columns[f"across:{number}"]
    parts = [
        asking.chosen((one, other), within & (up == i) & (down == j))
        for i, one in enumerate(atoms(rows))
        for j, other in enumerate(atoms(across))
    ]
    shape = len(atoms(rows)), len(atoms(across))
    for place, count in enumerate(asking.table(parts, shape)):
        if not isinstance(count, Suppressed):
            item = Item("cell", rows.column, sums.WHOLE, place, across.column)
            asking.told[item] = count


# ---- what chooses records ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """A group of `by` that may be asked about, or everybody the condition holds of."""

    name: str
    atoms: tuple[Atom, ...]
    members: Mask


@dataclass(frozen=True, slots=True)
class _Row:
    """Parts that a column cuts a group into: bins, or levels."""

    kind: sums.Kind
    column: str
    atoms: tuple[Atom, ...]
    places: NDArray[np.int64]  # of each record; MISSING for none


def atoms(asked: Subgroups) -> tuple[Atom, ...]:
    """Return what chooses each subgroup of a column: a level, or two ends (None: open)."""
    if not asked.cuts:
        return tuple((asked.column, level) for level in asked.levels)
    ends = (None, *asked.cuts, None)
    return tuple((asked.column, low, high) for low, high in pairwise(ends))


def predicate(where: str, chosen: tuple[Atom, ...]) -> str:
    """Name what chooses records: the same choice has one name, whatever it was asked as."""
    if not where and not chosen:
        return ALL
    return _digest(where, sorted(chosen, key=repr))


def _digest(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
