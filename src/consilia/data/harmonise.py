"""Where the datasets of several sites differ, and the blocks that would make them agree.

What is compared is what each site lets the consortium see of a dataset, its mock twin
(`wire.v1.MockTwin`): names, types, units, and counts over levels or bins that k patients or
more are in. Of a site that tells it, that is the table as its data loading plan makes it; of
any other, the table in its file, and the report says which (`told`). So nothing here knows a
record, and all of it may be shown to a researcher.

One site's columns are the reference; the others get a data loading plan each, which the site
may accept, change or leave. A proposal is made only where the numbers or names say enough: what
a code of 1 means, nobody can guess, so such a difference is told without a proposal.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import permutations
from typing import Literal

from consilia.data.loading import units
from consilia.data.loading.blocks import (
    AnyBlock,
    Cast,
    ConvertUnit,
    LoadingPlan,
    MapValues,
    Rename,
)
from consilia.data.loading.expression import kind_of
from consilia.errors import ConfigError, ConsiliaError
from consilia.wire.offers import as_loaded
from consilia.wire.strict import nearest
from consilia.wire.v1 import MockColumn, MockTwin, OfferedDataset, Scalar

Value = str | int | float
About = Literal["name", "absent", "type", "unit", "scale", "missing", "categories"]

LIKE = 0.6  # how alike two names are to be taken for one, from 0 to 1
SAME_LEVELS = 0.3  # what the same set of values adds to that
MISSING_APART = 0.2  # shares of missing values that differ by more are told
_SKIP = ("patient", "text", "ignore")

# pairs of units that hospitals mix up, tried where no unit is declared; both ways
_PAIRS = (
    ("mg/dL", "mmol/L"), ("mg/dL", "umol/L"), ("g/dL", "mmol/L"), ("g/L", "mmol/L"),
    ("g/dL", "g/L"), ("mg/dL", "mg/L"), ("cm", "m"), ("[in_i]", "cm"), ("[in_i]", "m"),
    ("[lb_av]", "kg"), ("g", "kg"), ("[degF]", "Cel"), ("K", "Cel"), ("mm[Hg]", "kPa"),
    ("d", "a"), ("mo", "a"), ("h", "d"), ("min", "h"), ("L", "mL"), ("m", "mm"),
    ("10*3/uL", "/uL"), ("ug/L", "ng/L"), ("mg/L", "ug/L"), ("%", "1"),
)  # fmt: skip


# what is said of a difference, by its key; pages have the same keys in their languages
SAID: Mapping[str, str] = {
    "name": "is called '{there}' at the reference, by name or by its values",
    "absent": "the site has no such column, or calls it what nobody could recognise",
    "type": "is {here}, at the reference {there}",
    "type_codes": "is {here}, at the reference {there}: what its codes mean has to be said, "
    "with a block `map`",
    "unit": "is in {here}, at the reference in {there}",
    "unit_of": "is in {here}, at the reference in {there} (of {substance})",
    "unit_unknown": "is in {here}, at the reference in {there}, and what converts one into the "
    "other is not known: name the substance",
    "scale": "has a mean of about {mean}, at the reference {reference}: as if it were in "
    "{here} and there in {there}",
    "scale_of": "has a mean of about {mean}, at the reference {reference}: as if it were in "
    "{here} and there in {there} (of {substance})",
    "categories": "has the values {here}, the reference {there}",
    "categories_rest": "has the values {here}, the reference {there}; what {rest} means has "
    "to be said",
    "missing": "about {here}% of its values are missing, at the reference {there}%: a block "
    "`missing` says what they become",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which a site's dataset differs from the reference, and what would mend it."""

    site: str
    column: str  # as the site calls it; as the reference does, for one that the site lacks
    about: About
    said: str  # in English
    block: AnyBlock | None
    key: str  # of SAID
    values: Mapping[str, Value]  # that the sentence is filled with


def _different(  # noqa: PLR0913, PLR0917 - one difference
    site: str,
    column: str,
    about: About,
    key: str,
    values: Mapping[str, Value],
    block: AnyBlock | None = None,
) -> Difference:
    said = SAID[key].format(**values)
    return Difference(site, column, about, said, block, key, values)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found: the reference site, all differences, and a plan a site has use for."""

    reference: str
    differences: tuple[Difference, ...]
    plans: Mapping[str, LoadingPlan] = field(default_factory=dict)  # by site
    as_in_file: tuple[str, ...] = ()  # sites of which not the table as it is loaded is known

    def of(self, site: str) -> tuple[Difference, ...]:
        """Return what is to be said of one site."""
        return tuple(d for d in self.differences if d.site == site)


@dataclass(frozen=True, slots=True)
class Told:
    """What sites tell of their datasets, by site, or site/dataset where one offers several."""

    twins: Mapping[str, MockTwin]
    silent: tuple[str, ...]  # that tell nothing
    as_in_file: tuple[str, ...]  # that tell of the table in the file, not as it is loaded


def told(offers: Iterable[tuple[str, OfferedDataset]], study: str) -> Told:
    """Return what is compared of pairs of site and offer: as loaded, else as in the file."""
    found = list(offers)
    twins: dict[str, MockTwin] = {}
    silent, in_file = [], []
    for site, dataset in found:
        several = sum(other == site for other, _ in found) > 1
        name = f"{site}/{dataset.name}" if several else site
        loaded = as_loaded(dataset, study)
        if dataset.mock is None:
            silent.append(name)
            continue
        twins[name] = loaded or dataset.mock
        if loaded is None:
            in_file.append(name)
    return Told(twins, tuple(silent), tuple(in_file))


def compare(
    twins: Mapping[str, MockTwin],
    name: str,
    reference: str = "",
    as_in_file: Iterable[str] = (),
) -> Report:
    """Compare the datasets of sites with one another; `name` is given to the plans.

    `reference` is the site that the others are to agree with; "" takes the one whose columns
    most others have. `as_in_file` are the sites that tell of their files.
    ConfigError when there are not two to compare, or no such site.
    """
    if len(twins) < 2:
        raise ConfigError(f"{len(twins)} sites tell what their dataset is like; needed two")
    if reference and reference not in twins:
        raise ConfigError(f"no site {reference!r} among them{nearest(reference, twins)}")
    reference = reference or _most_shared(twins)
    whole = {site: _columns(twin) for site, twin in twins.items()}
    differences: list[Difference] = []
    plans: dict[str, LoadingPlan] = {}
    for site in sorted(twins):
        if site == reference:
            continue
        found = _site(site, whole[site], whole[reference])
        differences += found
        if blocks := _ordered(d.block for d in found if d.block is not None):
            said = f"Makes the columns of {site} those of {reference}"
            plans[site] = LoadingPlan(name, blocks, said)
    return Report(reference, tuple(differences), plans, tuple(sorted(as_in_file)))


def mean_and_deviation(column: MockColumn) -> tuple[float, float] | None:
    """Return what the rounded counts say of a number's mean and deviation, None for nothing."""
    if kind_of(column.type, column.name) != "number":
        return None
    if column.counts and column.width > 0:
        middles = [column.start + column.width * (i + 0.5) for i in range(len(column.counts))]
        pairs = list(zip(middles, column.counts, strict=True))
    else:
        pairs = [(n, c) for t, c in column.levels.items() if (n := _float(t)) is not None]
    total = sum(count for _, count in pairs)
    if total <= 0:
        return None
    mean = sum(value * count for value, count in pairs) / total
    variance = sum(count * (value - mean) ** 2 for value, count in pairs) / total
    return mean, math.sqrt(variance)


def absent_share(column: MockColumn) -> float | None:
    """Return the share of missing values, None where nothing is told of the column."""
    told = sum(column.levels.values()) + sum(column.counts)
    return column.absent / (told + column.absent) if told + column.absent > 0 else None


# ---- one site ------------------------------------------------------------------------------

Columns = Mapping[str, MockColumn]


def _columns(twin: MockTwin) -> dict[str, MockColumn]:
    return {c.name: c for c in twin.columns if c.role not in _SKIP}


def _most_shared(twins: Mapping[str, MockTwin]) -> str:
    names = {site: set(_columns(twin)) for site, twin in twins.items()}

    def shared(site: str) -> int:
        return sum(len(names[site] & other) for who, other in names.items() if who != site)

    return min(sorted(twins), key=lambda site: -shared(site))


def _site(site: str, mine: Columns, theirs: Columns) -> list[Difference]:
    pairs = matched(mine, theirs)
    found = []
    for own, other in pairs.items():
        if own != other:
            block = Rename({own: other})
            found.append(_different(site, own, "name", "name", {"there": other}, block))
    for other in theirs:
        if other not in pairs.values():
            found.append(_different(site, other, "absent", "absent", {}))
    for own, other in pairs.items():
        for rule in _RULES:
            if difference := rule(site, mine[own], theirs[other]):
                found.append(difference)
                break
        if gone := _missing(site, mine[own], theirs[other]):
            found.append(gone)
    return found


def matched(mine: Columns, theirs: Columns) -> dict[str, str]:
    """Return which column of one site is which of another: by name, else the most alike."""
    pairs = {name: name for name in mine if name in theirs}
    left = [name for name in mine if name not in pairs]
    free = [name for name in theirs if name not in pairs]
    scored = sorted(
        ((_likeness(mine[a], theirs[b]), a, b) for a in left for b in free),
        key=lambda found: (-found[0], found[1], found[2]),
    )
    for score, own, other in scored:
        if score >= LIKE and own not in pairs and other not in pairs.values():
            pairs[own] = other
    return pairs


def _likeness(a: MockColumn, b: MockColumn) -> float:
    one, two = _plain(a.name), _plain(b.name)
    if not one or not two:
        return 0.0
    short, long = sorted((one, two), key=len)
    alike = SequenceMatcher(None, one, two).ratio()
    if len(short) >= 3 and (long.startswith(short) or long.endswith(short)):
        alike = max(alike, 0.8)
    numbers = {kind_of(c.type, c.name) == "number" for c in (a, b)}
    if len(numbers) > 1:
        alike -= 0.1
    levels = {_plain(t) for t in a.levels}, {_plain(t) for t in b.levels}
    same = len(levels[0]) > 1 and levels[0] == levels[1] and not levels[0] <= {"0", "1"}
    return alike + SAME_LEVELS * same


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def _type(site: str, mine: MockColumn, theirs: MockColumn) -> Difference | None:
    if mine.type == theirs.type:
        return None
    kinds = kind_of(mine.type, mine.name), kind_of(theirs.type, theirs.name)
    if kinds[0] == kinds[1] and kinds[0] in ("number", "text"):
        return None  # to a model all numbers are alike, and so are all texts
    values = {"here": mine.type, "there": theirs.type}
    if kinds == ("number", "text") or (kinds[0] == "text" and mine.levels):
        return _different(site, mine.name, "type", "type_codes", values)
    if "date" in kinds and "text" not in kinds:
        return _different(site, mine.name, "type", "type", values)
    cast = Cast({theirs.name: theirs.type}, "missing" if kinds[0] == "text" else "error")
    return _different(site, mine.name, "type", "type", values, cast)


def _unit(site: str, mine: MockColumn, theirs: MockColumn) -> Difference | None:
    if mine.unit == theirs.unit or not (mine.unit and theirs.unit):
        return None
    values = {"here": mine.unit, "there": theirs.unit}
    for substance in ("", *_substances(mine.name, theirs.name)):
        try:
            line = units.conversion(mine.unit, theirs.unit, substance)
        except ConsiliaError:
            continue
        if line == units.Line(1.0):
            return None
        key, values = _of("unit", substance, values)
        block = ConvertUnit(theirs.name, theirs.unit, mine.unit, substance)
        return _different(site, mine.name, "unit", key, values, block)
    return _different(site, mine.name, "unit", "unit_unknown", values)


def _of(key: str, substance: str, values: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return key and values of a sentence that names a substance, where there is one."""
    return (f"{key}_of", {**values, "substance": substance}) if substance else (key, values)


def _scale(site: str, mine: MockColumn, theirs: MockColumn) -> Difference | None:
    """Tell of numbers that agree only after a conversion between two usual units."""
    here, there = mean_and_deviation(mine), mean_and_deviation(theirs)
    if here is None or there is None or mine.unit == theirs.unit != "" or _near(here, there):
        return None
    tried = []
    substances = _substances(mine.name, theirs.name)
    pairs = (p for pair in _PAIRS for p in permutations(pair))
    for rank, (source, target) in enumerate(pairs):  # the more usual first
        if {mine.unit or source, theirs.unit or target} != {source, target}:
            continue
        for substance in ("", *substances):
            try:
                line = units.conversion(source, target, substance)
            except ConfigError:
                continue
            moved = here[0] * line.scale + line.offset, here[1] * line.scale
            if _near(moved, there):
                apart = round(_apart(moved, there), 2)
                tried.append((apart, not substance, rank, source, target, substance))
    if not tried:
        return None
    *_, source, target, substance = min(tried)
    means = {"mean": f"{here[0]:.3g}", "reference": f"{there[0]:.3g}"}
    key, values = _of("scale", substance, {**means, "here": source, "there": target})
    block = ConvertUnit(theirs.name, target, source, substance)
    return _different(site, mine.name, "scale", key, values, block)


def _near(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Tell whether two means and deviations could be of one measurement in one unit."""
    if min(a[1], b[1]) <= 0:
        return math.isclose(a[0], b[0], rel_tol=0.25)
    return abs(a[0] - b[0]) <= max(a[1], b[1]) and 0.4 <= a[1] / b[1] <= 2.5


def _apart(a: tuple[float, float], b: tuple[float, float]) -> float:
    return abs(a[0] - b[0]) / (b[1] or 1.0) + abs(math.log((a[1] or 1.0) / (b[1] or 1.0)))


def _categories(site: str, mine: MockColumn, theirs: MockColumn) -> Difference | None:
    if kind_of(mine.type, mine.name) != "text" or not (mine.levels and theirs.levels):
        return None
    own, other = set(mine.levels), set(theirs.levels)
    if own <= other:
        return None
    mapping = same_values(sorted(own), sorted(other))
    rest = sorted(own - set(mapping) - other)
    values = {"here": _few(own - other), "there": _few(other), "rest": _few(rest)}
    key = "categories_rest" if rest and mapping else "categories"
    changed: dict[str, Scalar] = {a: b for a, b in mapping.items() if a != b}
    block = MapValues(theirs.name, changed, "keep") if changed else None
    return _different(site, mine.name, "categories", key, values, block)


def same_values(mine: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Return which value is which: the same but for case and signs, or its beginning.

    A value that could be two is none of them, and no two become one.
    """
    found: dict[str, str] = {}
    tests: tuple[Callable[[str, str], bool], ...] = (
        lambda a, b: a == b,
        lambda a, b: a.startswith(b) or b.startswith(a),
    )
    for test in tests:
        for own in mine:
            fits = [t for t in theirs if _plain(own) and test(_plain(own), _plain(t))]
            back = [m for m in mine if fits and _plain(m) and test(_plain(m), _plain(fits[0]))]
            free = own not in found and fits and fits[0] not in found.values()
            if free and len(fits) == 1 and len(back) == 1:
                found[own] = fits[0]
    return found


def _missing(site: str, mine: MockColumn, theirs: MockColumn) -> Difference | None:
    here, there = absent_share(mine), absent_share(theirs)
    if here is None or there is None or abs(here - there) <= MISSING_APART:
        return None
    values = {"here": round(100 * here), "there": round(100 * there)}
    return _different(site, mine.name, "missing", "missing", values)


def _substances(*names: str) -> list[str]:
    """Return the substances that a column's name may mean: `chol_total` is cholesterol."""
    words = [w for name in names for w in re.split(r"[\W_\d]+", name.casefold()) if len(w) > 2]
    found = [
        s for s in units.MOLAR_MASS if any(s.startswith(w) or w.startswith(s) for w in words)
    ]
    return [*found, *(_ALIASES[w] for w in words if w in _ALIASES)]


_ALIASES: Mapping[str, str] = {
    "hgb": "haemoglobin", "hemoglobin": "haemoglobin", "bun": "urea-nitrogen",
    "ldl": "cholesterol", "hdl": "cholesterol", "sugar": "glucose",
}  # fmt: skip
_RULES = (_type, _unit, _scale, _categories)
_ORDER = (Rename, Cast, ConvertUnit, MapValues)


def _ordered(blocks: Iterable[AnyBlock]) -> tuple[AnyBlock, ...]:
    """Return blocks as a plan needs them: renaming first, then by kind and column."""
    found = list(blocks)
    renamed = {a: b for r in found if isinstance(r, Rename) for a, b in r.columns.items()}
    rest = [b for b in found if not isinstance(b, Rename)]
    rest.sort(key=lambda b: (_ORDER.index(type(b)), getattr(b, "column", "")))
    return (*((Rename(renamed),) if renamed else ()), *rest)


def _few(values: Iterable[str]) -> str:
    shown = sorted(values)
    return ", ".join(map(repr, shown[:6])) + (" ..." if len(shown) > 6 else "")


def _float(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
