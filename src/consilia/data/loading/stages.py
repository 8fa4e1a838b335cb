"""A loading plan against the columns of a table: checked, typed, and turned into stages.

Each block becomes a `Stage`: for every column after it the SQL of its value over the columns
before it, and perhaps a condition on the records. `check` is all that validation is: it reads
no record, so a plan is found wrong before it is used, with the block, the key, the value found
and what is valid. `statements` puts stages together, leaving out what nobody asked for.

The column of patient ids is not a block's to change: whoever opted out is found by it, and
patients are counted by it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from consilia.data.contract import MAX_COLUMN_NAME, MAX_COLUMNS, TYPES, column_type
from consilia.data.loading import units
from consilia.data.loading.blocks import (
    AnyBlock,
    Cast,
    Categories,
    ConvertUnit,
    Derive,
    Filter,
    Keep,
    LoadingPlan,
    MapValues,
    Missing,
    Modalities,
    Rename,
    kind,
)
from consilia.data.loading.expression import kind_of, parse
from consilia.data.reader import quoted
from consilia.errors import ConfigError, ConsiliaError
from consilia.wire.strict import nearest
from consilia.wire.v1 import Scalar

MARK = "consilia loading: "  # before every message of ours that DuckDB raises
MAX_LEVELS = 1000
_NO_UNITS: Mapping[str, str] = MappingProxyType({})
_RESULT = {"number": "float64", "truth": "bool", "text": "str", "date": "date"}


@dataclass(frozen=True, slots=True)
class Output:
    """One column after a stage: its type and unit, and its SQL over the columns before."""

    type: str
    sql: str
    reads: frozenset[str]
    unit: str = ""
    levels: tuple[str, ...] = ()  # of a declared category


@dataclass(frozen=True, slots=True)
class Stage:
    """What one block does."""

    outputs: Mapping[str, Output]
    where: str = ""  # SQL of a truth value; records for which it is not true are left out
    where_reads: frozenset[str] = frozenset()
    aggregates: bool = False  # takes a median over the records before it


@dataclass(frozen=True, slots=True)
class Compiled:
    """A checked plan: its stages, and the columns at the end."""

    stages: tuple[Stage, ...]
    columns: Mapping[str, str]  # name -> type
    units: Mapping[str, str]  # name -> unit, where one is known
    levels: Mapping[str, tuple[str, ...]]  # name -> declared set of values
    modalities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def aggregates(self) -> bool:
        """True when a stage looks at all records before it gives one out."""
        return any(stage.aggregates for stage in self.stages)


Columns = Mapping[str, Output]


def check(
    plan: LoadingPlan,
    columns: Mapping[str, str],
    *,
    patient: str = "",
    units: Mapping[str, str] = _NO_UNITS,
) -> Compiled:
    """Return `plan` compiled against `columns` (name -> type).

    `units` are those that the dataset declares. Raises ConfigError naming the block.
    """
    now: Columns = {
        name: Output(type_, quoted(name), frozenset({name}), units.get(name, ""))
        for name, type_ in columns.items()
    }
    stages: list[Stage] = []
    modalities: dict[str, tuple[str, ...]] = {}
    for number, block in enumerate(plan.blocks, 1):
        place = f"loading plan {plan.name!r}, block {number} ({kind(block)})"
        try:
            if isinstance(block, Modalities):
                modalities |= _modalities(block, now)
                continue
            stage = _COMPILERS[type(block)](block, now)
            _check_outputs(stage, now, patient)
        except ConsiliaError as e:
            raise ConfigError(f"{place}: {e}") from None
        stages.append(stage)
        now = {
            n: replace(o, sql=quoted(n), reads=frozenset({n})) for n, o in stage.outputs.items()
        }
    for name, members in modalities.items():
        if gone := [m for m in members if m not in now]:
            raise ConfigError(
                f"loading plan {plan.name!r}: modality {name!r} names {gone[0]!r}, which a "
                "later block takes away; put `modalities` last"
            )
    return Compiled(
        tuple(stages),
        {name: o.type for name, o in now.items()},
        {name: o.unit for name, o in now.items() if o.unit},
        {name: o.levels for name, o in now.items() if o.levels},
        modalities,
    )


def needed(stages: Sequence[Stage], wanted: Iterable[str]) -> list[frozenset[str]]:
    """Return which columns have to be there before each stage, and at the end `wanted`."""
    found = [frozenset(wanted)]
    for stage in reversed(stages):
        reads = set(stage.where_reads)
        for name in found[0]:
            reads |= stage.outputs[name].reads
        found.insert(0, frozenset(reads))
    return found


def statements(
    stages: Sequence[Stage], wanted: Mapping[str, str], base: str
) -> tuple[tuple[str, ...], str]:
    """Return what to run first, and one SELECT of `wanted` (column -> SQL) over `base`.

    `base` gives at least what `needed` names first. Stages are nested SELECTs, which keep the
    order of records; one that looks at all records before it reads them from a temporary
    table, which keeps it too.
    """
    first: list[str] = []
    inner = f"({base})"
    for number, (stage, names) in enumerate(
        zip(stages, needed(stages, wanted)[1:], strict=True), 1
    ):
        if stage.aggregates:
            first.append(f"CREATE TEMP TABLE before_{number} AS SELECT * FROM {inner}")  # noqa: S608
            inner = f"before_{number}"
        listed = ", ".join(
            f"{output.sql.replace(PREVIOUS, inner)} AS {quoted(name)}"
            for name, output in stage.outputs.items()
            if name in names
        )
        where = f" WHERE {stage.where}" if stage.where else ""
        inner = f"(SELECT {listed or '1 AS one'} FROM {inner}{where})"  # noqa: S608
    final = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in wanted.items())
    return tuple(first), f"SELECT {final} FROM {inner}"  # noqa: S608


PREVIOUS = "\x00previous\x00"  # in an output's SQL, the stage before it; `text` keeps it out


def _check_outputs(stage: Stage, before: Columns, patient: str) -> None:
    if not stage.outputs:
        raise ConfigError("no column is left")
    if len(stage.outputs) > MAX_COLUMNS:
        raise ConfigError(f"over {MAX_COLUMNS} columns")
    folded: dict[str, str] = {}
    for name in stage.outputs:
        if not name.strip() or len(name) > MAX_COLUMN_NAME or not name.isprintable():
            raise ConfigError(
                f"column name {name[:60]!r}; needed 1 to {MAX_COLUMN_NAME} printable characters"
            )
        if (twin := folded.setdefault(name.casefold(), name)) != name:
            raise ConfigError(f"columns {twin!r} and {name!r} would differ only in case")
    if patient and patient in before:
        after = stage.outputs.get(patient)
        if after is None or after.sql != quoted(patient):
            raise ConfigError(
                f"{patient!r} is the dataset's column of patient ids; it stays as it is"
            )


def _get(name: str, now: Columns) -> Output:
    if name not in now:
        raise ConfigError(f"there is no column {name!r}{nearest(name, now)}")
    return now[name]


def _number(name: str, now: Columns, what: str) -> Output:
    found = _get(name, now)
    if kind_of(found.type, name) != "number":
        raise ConfigError(f"column {name!r} is {found.type}; {what} needs numbers")
    return found


def _unlisted(name: str, said: str) -> str:
    """Return SQL that raises: a value of a column is not as the block needs it."""
    shown = f"left(CAST({quoted(name)} AS VARCHAR), 60)"
    before, after = text(f"{MARK}column {name!r}: value '"), text(f"' {said}")
    return f"error({before} || {shown} || {after})"


def text(value: str) -> str:
    """Return `value` as an SQL text; ConfigError for a NUL character, as PREVIOUS has.

    A text that held PREVIOUS would be replaced by SQL, quotes and all.
    """
    if "\0" in value:
        raise ConfigError(f"{value[:60]!r} holds a NUL character, which no text of a table has")
    return "'" + value.replace("'", "''") + "'"


def literal(value: Scalar, type_: str, what: str) -> str:
    """Return `value` as SQL of a column type; ConfigError when it is no such value."""
    sort = kind_of(type_, what)
    fits = {
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "truth": isinstance(value, bool),
        "text": isinstance(value, str),
        "date": isinstance(value, str),
    }[sort]
    if type_ == "int64" and not isinstance(value, int):
        fits = False
    if not fits or (isinstance(value, float) and not -1e308 < value < 1e308):
        raise ConfigError(f"{what}: {value!r} is not {type_}; needed {TYPES[type_].needed}")
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) < value < 2**63:
        raise ConfigError(f"{what}: {value!r} is too large for {type_}")
    if isinstance(value, str) and sort == "date":
        return _day(value, type_, what)
    shown = text(value) if isinstance(value, str) else str(value)
    return f"CAST({shown} AS {TYPES[type_].sql})"


def _day(value: str, type_: str, what: str) -> str:
    from datetime import datetime  # noqa: PLC0415  # of this one check

    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise ConfigError(
            f"{what}: {value!r} is not {type_}; needed {TYPES[type_].needed}"
        ) from None
    return f"CAST({text(at.isoformat(sep=' '))} AS {TYPES[type_].sql})"


def parsed(value: str, type_: str, what: str) -> str:
    """Return the SQL of a value that is written as text, such as the key of a map."""
    sort = kind_of(type_, what)
    if sort == "truth" and value in ("true", "false"):
        return literal(value == "true", type_, what)
    if sort == "number":
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(
                f"{what}: {value!r} is not {type_}; needed {TYPES[type_].needed}"
            ) from None
        if type_ == "int64" and number == int(number):
            return literal(
                int(value) if value.lstrip("-").isdecimal() else int(number), type_, what
            )
        return literal(number, type_, what)
    return literal(value, type_, what)


# ---- one function a block ------------------------------------------------------------------


def _rename(block: Rename, now: Columns) -> Stage:
    for old, new in block.columns.items():
        _get(old, now)
        if new in now and new not in block.columns:
            raise ConfigError(f"{old!r} cannot be called {new!r}: there is such a column")
    if len(set(block.columns.values())) != len(block.columns):
        raise ConfigError("two columns would have one name")
    return Stage({block.columns.get(name, name): output for name, output in now.items()})


def _cast(block: Cast, now: Columns) -> Stage:
    found = dict(now)
    for name, type_ in block.columns.items():
        old, new = _get(name, now), column_type(type_, name)
        column = quoted(name)
        value = f"TRY_CAST({column} AS {new.sql})"
        fits = f"{value} IS NOT NULL"
        if new.name == "int64" and kind_of(old.type, name) == "number":
            fits += f" AND {value} = {column}"  # 3.7 is not 4
        if new.name == "int64" and kind_of(old.type, name) == "text":
            fits += f" AND regexp_full_match({column}, {text(new.pattern)})"
        if new.name in ("float32", "float64"):
            fits += f" AND isfinite({value})"
        other = "NULL"
        if block.unfit == "error":
            other = _unlisted(name, f"is not {type_}; needed {new.needed}, or unfit: missing")
        sql = f"CASE WHEN {column} IS NULL THEN NULL WHEN {fits} THEN {value} ELSE {other} END"
        found[name] = Output(type_, sql, frozenset({name}), old.unit)
    return Stage(found)


def _map(block: MapValues, now: Columns) -> Stage:
    old, column = _get(block.column, now), quoted(block.column)
    if not block.values:
        raise ConfigError("values: none given")
    type_ = _common(block.values.values())
    if block.other == "keep" and kind_of(old.type, block.column) != kind_of(
        type_, block.column
    ):
        raise ConfigError(
            f"other: keep leaves values that are {old.type} beside new ones that are {type_}; "
            "list them all, or choose other: missing"
        )
    if block.other == "keep" and type_ != old.type:
        type_ = "float64" if kind_of(type_, block.column) == "number" else old.type
    if kind_of(old.type, block.column) == "date":
        raise ConfigError(f"column {block.column!r} is {old.type}; use derive for dates")
    cases = []
    for key, value in block.values.items():
        before = parsed(key, old.type, f"values, key {key[:40]!r}")
        after = literal(value, type_, f"values, {key[:40]!r}")
        cases.append(f"WHEN {column} = {before} THEN {after}")
    rest = {
        "keep": f"CAST({column} AS {TYPES[type_].sql})",
        "missing": "NULL",
        "error": f"CASE WHEN {column} IS NOT NULL THEN "
        + _unlisted(block.column, "is not in `values`; list it, or say other: keep or missing")
        + " END",
    }[block.other]
    sql = f"CASE {' '.join(cases)} ELSE {rest} END"
    return Stage({**now, block.column: Output(type_, sql, frozenset({block.column}))})


def _common(values: Iterable[Scalar]) -> str:
    kinds = {type(v) for v in values}
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int64"
    if kinds <= {int, float}:
        return "float64"
    if kinds == {str}:
        return "category"
    names = ", ".join(sorted(k.__name__ for k in kinds))
    raise ConfigError(f"values: the new values are of different types ({names}); needed one")


def _unit(block: ConvertUnit, now: Columns) -> Stage:
    old = _number(block.column, now, "a unit")
    source = block.source or old.unit
    if not source:
        raise ConfigError(
            f"from: the dataset declares no unit for {block.column!r}; say from which unit"
        )
    if old.unit and old.unit != source and not _alike(old.unit, source):
        raise ConfigError(f"from: {source!r}, but {block.column!r} is in {old.unit!r}")
    line = units.conversion(source, block.to, block.substance)
    value = f"CAST({quoted(block.column)} AS DOUBLE)"
    sql = f"({value} * {line.scale!r}::DOUBLE + {line.offset!r}::DOUBLE)"
    return Stage(
        {**now, block.column: Output("float64", sql, frozenset({block.column}), block.to)}
    )


def _alike(a: str, b: str) -> bool:
    try:
        return units.conversion(a, b) == units.Line(1.0)
    except ConfigError:
        return False


def _filter(block: Filter, now: Columns) -> Stage:
    term = parse(block.where, _types(now))
    if term.kind != "truth":
        raise ConfigError(f"where: needed a truth value such as age >= 18, found a {term.kind}")
    return Stage(now, term.sql, term.reads)


def _derive(block: Derive, now: Columns) -> Stage:
    term = parse(block.expression, _types(now))
    type_ = block.type or _RESULT[term.kind]
    if term.kind == "date" and not block.type:
        type_ = "timestamp" if _timed(term.reads, now) else "date"
    new = column_type(type_, block.column)
    sql = term.sql
    if kind_of(type_, block.column) != term.kind:
        raise ConfigError(f"type: {type_}, but the expression is a {term.kind}")
    if type_ == "int64":
        sql = f"TRY_CAST(round({sql}) AS BIGINT)"
    elif type_ != _RESULT[term.kind]:
        sql = f"TRY_CAST({sql} AS {new.sql})"
    return Stage({**now, block.column: Output(type_, sql, term.reads)})


def _timed(reads: Iterable[str], now: Columns) -> bool:
    return any(now[name].type == "timestamp" for name in reads)


def _types(now: Columns) -> dict[str, str]:
    return {name: output.type for name, output in now.items()}


def _missing(block: Missing, now: Columns) -> Stage:
    if (block.value is not None) is not (block.do == "constant"):
        raise ConfigError("value: is given with do: constant, and only there")
    if not block.columns or (block.do == "keep" and not block.codes and not block.indicator):
        raise ConfigError("nothing to do: give columns, and do:, codes: or indicator:")
    found, present = dict(now), []
    for name in block.columns:
        old = _get(name, now)
        value = _without_codes(name, old, block.codes)
        reads = frozenset({name})
        present.append(f"({value} IS NOT NULL)")
        filled = _filled(block, name, old, value)
        found[name] = Output(old.type, filled, reads, old.unit, old.levels)
        if block.indicator:
            if f"{name}_missing" in now:
                raise ConfigError(f"indicator: there is a column {name + '_missing'!r} already")
            found[f"{name}_missing"] = Output("bool", f"({value} IS NULL)", reads)
    where = " AND ".join(present) if block.do == "drop" else ""
    return Stage(
        found, where, frozenset(block.columns) if where else frozenset(), block.do == "median"
    )


def _without_codes(name: str, old: Output, codes: Sequence[Scalar]) -> str:
    column = quoted(name)
    if not codes:
        return column
    listed = ", ".join(literal(code, old.type, f"codes, column {name!r}") for code in codes)
    return f"CASE WHEN {column} IN ({listed}) THEN NULL ELSE {column} END"


def _filled(block: Missing, name: str, old: Output, value: str) -> str:
    if block.do == "constant" and block.value is not None:
        constant = literal(block.value, old.type, f"value, column {name!r}")
        return f"coalesce({value}, {constant})"
    if block.do != "median":
        return value
    if kind_of(old.type, name) != "number":
        raise ConfigError(f"do: median, but column {name!r} is {old.type}; needed numbers")
    middle = "quantile_disc" if old.type == "int64" else "quantile_cont"
    median = f"(SELECT {middle}({value}, 0.5) FROM {PREVIOUS})"  # noqa: S608
    return f"coalesce({value}, CAST({median} AS {TYPES[old.type].sql}))"


def _categories(block: Categories, now: Columns) -> Stage:
    name, old = block.column, _get(block.column, now)
    if kind_of(old.type, name) != "text":
        raise ConfigError(f"column {name!r} is {old.type}; map its values to texts first")
    levels = block.levels
    if not 1 <= len(levels) <= MAX_LEVELS or len(set(levels)) != len(levels):
        raise ConfigError(
            f"levels: {len(levels)} given; needed 1 to {MAX_LEVELS} different ones"
        )
    if block.other and block.other not in levels:
        raise ConfigError(f"other: {block.other!r} is not one of the levels")
    column, listed = quoted(name), ", ".join(map(text, levels))
    rest = text(block.other) if block.other else _unlisted(name, "is not one of `levels`")
    value = (
        f"CASE WHEN {column} IS NULL THEN NULL WHEN {column} IN ({listed}) THEN {column} "
        f"ELSE {rest} END"
    )
    reads, found = frozenset({name}), dict(now)
    if block.encode == "text":
        found[name] = Output("category", value, reads, levels=levels)
    elif block.encode == "index":
        cases = " ".join(f"WHEN {text(level)} THEN {i}" for i, level in enumerate(levels))
        found[name] = Output("int64", f"CAST(CASE {value} {cases} END AS BIGINT)", reads)
    else:
        del found[name]
        for level in levels:
            indicator = f"{name}={level}"
            if indicator in now:
                raise ConfigError(f"there is a column {indicator!r} already")
            found[indicator] = Output("bool", f"({value} = {text(level)})", reads)
    return Stage(found)


def _keep(block: Keep, now: Columns) -> Stage:
    if len(set(block.columns)) != len(block.columns):
        raise ConfigError("columns: a name is there twice")
    return Stage({name: _get(name, now) for name in block.columns})


def _modalities(block: Modalities, now: Columns) -> dict[str, tuple[str, ...]]:
    for name, modality in block.modalities.items():
        if not modality.columns:
            raise ConfigError(f"modality {name!r} names no column")
        for column in modality.columns:
            _get(column, now)
    return {name: modality.columns for name, modality in block.modalities.items()}


_COMPILERS: Mapping[type[AnyBlock], Callable[..., Stage]] = MappingProxyType(
    {
        Rename: _rename,
        Cast: _cast,
        MapValues: _map,
        ConvertUnit: _unit,
        Filter: _filter,
        Derive: _derive,
        Missing: _missing,
        Categories: _categories,
        Keep: _keep,
    }
)
