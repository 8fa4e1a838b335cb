"""The mock twin of a dataset: what of a profile may be told, so that others can invent records.

One column at a time, so nothing of how columns hang together, and of each column only counts:

- of a level that k patients or more have; what fewer have is absent, like what nobody has;
- of a bin of numbers or days, of one round width, from a multiple of it: no edge is a value of
  a record. The bins before the first and after the last with k patients are not told, and so
  neither are the smallest and the largest value;
- to the nearest multiple of 5 (`privacy.disclosure.release_count`), so that what is hidden is
  not the total less what is shown.

Free text, patient ids and columns to be ignored tell nothing of their values.

Two twins could still give a patient away by what differs. So `republish` keeps the twin that
was told until some cell has changed by k patients: whoever compares sees either the same
bytes or a change that k patients made.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from consilia.data.profile import REACH, Cell, ColumnProfile, Grid, Profile
from consilia.data.schema import Column, Schema
from consilia.privacy.disclosure import (
    MAX_LABEL,
    Rules,
    Suppressed,
    release_count,
)
from consilia.wire.v1 import MAX_MOCK, MockColumn, MockTwin, encode

_SILENT_ROLES = ("patient", "text", "ignore")


@dataclass(frozen=True, slots=True)
class Published:
    """A twin as it was told, and the exact profile it was made of, which stays at the site."""

    twin: MockTwin
    basis: Profile
    k: int = 0  # the threshold it was made with


def make(profile: Profile, schema: Schema, rules: Rules) -> MockTwin:
    """Return the twin of a dataset: its columns, and of each what may be told."""
    found = {c.name: c for c in profile.columns}
    return MockTwin(
        tuple(
            _column(c, found.get(c.name), rules) if c.role not in _SILENT_ROLES else _bare(c)
            for c in schema
            if c.role != "ignore"
        )
    )


def republish(
    before: Published | None, profile: Profile, schema: Schema, rules: Rules
) -> Published:
    """Return what is told from now on: the counts told before, until k patients have changed.

    `profile` must be made with the grids of the one before (`grids`). Names, types, units and
    roles are always the schema's: they are no records.
    """
    if before is None or rules.k > before.k or not alike(before.basis, profile, rules.k):
        return Published(make(profile, schema, rules), profile, rules.k)
    return Published(make(before.basis, schema, rules), before.basis, before.k)


def alike(a: Profile, b: Profile, k: int) -> bool:
    """Say whether no cell of any column, and no total, differs by k patients or more."""
    if [c.name for c in a.columns] != [c.name for c in b.columns]:
        return False
    same = all(_alike(x, y, k) for x, y in zip(a.columns, b.columns, strict=True))
    return same and abs(a.patients - b.patients) < k


def grids(before: Published | None) -> Mapping[str, Grid]:
    """Return the cells that an earlier profile was counted in, to count the next one alike."""
    return {c.name: c.grid for c in before.basis.columns} if before else {}


def too_large(twin: MockTwin) -> str:
    """Say why a twin cannot be sent, "" when it can."""
    size = len(encode(twin))
    if size <= MAX_MOCK:
        return ""
    return (
        f"its mock twin has {size} bytes, the limit is {MAX_MOCK}: "
        "give columns that nobody needs the role ignore"
    )


def _alike(a: ColumnProfile, b: ColumnProfile, k: int) -> bool:
    if (a.type, a.grid) != (b.type, b.grid):
        return False
    was, now = ({c.at: c.patients for c in p.cells} for p in (a, b))
    changes = [was.get(at, 0) - now.get(at, 0) for at in {*was, *now}]
    return all(abs(n) < k for n in (*changes, a.absent.patients - b.absent.patients))


def _bare(c: Column) -> MockColumn:
    return MockColumn(c.name, c.type, c.unit, c.code_system, c.role)


def _column(c: Column, found: ColumnProfile | None, rules: Rules) -> MockColumn:
    """Return what may be told of one column."""
    bare = _bare(c)
    if found is None or found.type != c.type or found.grid.kind == "none":
        return bare
    grid, cells = found.grid, found.cells
    if grid.kind == "levels" and len(cells) > rules.categories:
        return bare
    told = {x.at: n for x in cells if not _beyond(x, grid) and (n := _count(x, rules))}
    absent = _count(found.absent, rules)
    if grid.kind == "levels":
        levels = {str(at): n for at, n in told.items() if len(str(at)) <= MAX_LABEL}
        return replace(bare, levels=levels, absent=absent)
    bins = {int(at): n for at, n in told.items()}
    if not bins:
        return replace(bare, absent=absent)
    first, last = min(bins), max(bins)
    return replace(
        bare,
        start=float(f"{first * grid.width:.12g}"),  # 3 * 0.1 is not exactly 0.3
        width=grid.width,
        counts=tuple(bins.get(i, 0) for i in range(first, last + 1)),
        absent=absent,
    )


def _beyond(cell: Cell, grid: Grid) -> bool:
    """Say whether a cell holds all that is far from the median, however far."""
    return isinstance(cell.at, int) and abs(cell.at - grid.middle) >= REACH


def _count(cell: Cell, rules: Rules) -> int:
    """Return a cell's records as they may leave, 0 where fewer than k patients have it.

    Every site's twin is rounded, whatever its other counts are: rounding is what keeps the
    hidden cells from being the total less the shown ones.
    """
    if isinstance(release_count(cell.patients, rules), Suppressed):
        return 0
    told = release_count(cell.records, Rules(rules.k, rounded=True))
    return 0 if isinstance(told, Suppressed) else told
