"""What a site says of its columns beyond their type: unit, code system, role, missing codes.

A schema is inferred when a table is registered (`inferred`) and corrected by the data manager
(`edited`, from a command or a YAML file). Roles say what a column is to the site:

    feature   may be an input of a model
    target    is an outcome
    patient   identifies the patient; one column at most, read as text
    date      says when
    text      is free text: its values are never named outside, whatever their number
    ignore    is not given to any plan and not told to anybody

Only `patient` and `ignore` are enforced by themselves; the others tell people, data loading
plans and the mock twin what a column means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import msgspec

from consilia.data.contract import TYPES, column_type
from consilia.errors import ConfigError
from consilia.wire.strict import from_yaml, nearest

ROLES: Final = ("feature", "target", "patient", "date", "text", "ignore")
MAX_UNIT = 40  # characters of a UCUM unit
MAX_CODE_SYSTEM = 200  # characters; a URI such as http://loinc.org, or a name
MAX_DESCRIPTION = 1000  # characters
MAX_CODES = 64  # missing codes of one column
MAX_CODE = 64  # characters of one


@dataclass(frozen=True, slots=True)
class Column:
    """One column as the site declares it."""

    name: str
    type: str  # data.contract.TYPES
    unit: str = ""  # UCUM, such as mg/dL or mm[Hg]; "" when it has none or nobody said
    code_system: str = ""  # what its values are codes of, such as http://loinc.org
    role: str = "feature"
    missing: tuple[str, ...] = ()  # texts that mean "no value" in this column besides others
    description: str = ""


Schema = tuple[Column, ...]  # in the order of the file


def inferred(columns: Mapping[str, str], patient: str = "") -> Schema:
    """Return the schema that types alone suggest."""
    return tuple(
        Column(name, kind, role="patient" if name == patient else _ROLE.get(kind, "feature"))
        for name, kind in columns.items()
    )


def edited(schema: Schema, name: str, changes: Mapping[str, Any]) -> Schema:
    """Return `schema` with fields of column `name` replaced; ConfigError for what is wrong.

    Patient ids are read as text: the role patient brings the type str with it.
    """
    known = tuple(c.name for c in schema)
    if name not in known:
        raise ConfigError(f"column {name[:80]!r} is not in the dataset{nearest(name, known)}")
    for key in changes:
        if key not in _FIELDS:
            raise ConfigError(f"column {name!r}: unknown key {key!r}{nearest(key, _FIELDS)}")
    if changes.get("role") == "patient":
        changes = {"type": "str", **changes}
    new = tuple(replace(c, **changes) if c.name == name else c for c in schema)
    check(new)
    return new


def from_text(text: str, schema: Schema, source: str) -> Schema:
    """Return `schema` with what a YAML file changes: `columns: {age: {unit: a}}`."""
    wanted = from_yaml(text, _File, source)
    for name, column in wanted.columns.items():
        said = {k: getattr(column, k) for k in column.__struct_fields__}
        changes = {k: v for k, v in said.items() if v is not msgspec.UNSET}
        if "missing" in changes:
            changes["missing"] = tuple(map(str, changes["missing"]))
        try:
            schema = edited(schema, name, changes)
        except ConfigError as e:
            raise ConfigError(f"{source}: {e}") from None
    return schema


def to_text(schema: Schema) -> str:
    """Return a schema as the YAML that `from_text` reads, fields at their default left out."""
    import yaml  # noqa: PLC0415  # costs 20 ms that most processes need not pay

    columns = {}
    for c in schema:
        plain: dict[str, object] = {"type": c.type, "role": c.role}
        optional = ("unit", "code_system", "missing", "description")
        plain |= {k: v for k in optional if (v := getattr(c, k))}
        if c.missing:
            plain["missing"] = list(c.missing)
        columns[c.name] = plain
    text: str = yaml.safe_dump({"columns": columns}, sort_keys=False, allow_unicode=True)
    return text


def check(schema: Schema) -> None:
    """Raise ConfigError naming the column, the field, the value found and what is valid."""
    for column in schema:
        if problem := _problem(column):
            raise ConfigError(f"column {column.name[:80]!r}: {problem}")
    patients = [c.name for c in schema if c.role == "patient"]
    if len(patients) > 1:
        raise ConfigError(
            f"columns {patients[0]!r} and {patients[1]!r} both have the role patient; "
            "one column identifies the patient"
        )


def types(schema: Schema) -> dict[str, str]:
    """Return column -> type, in order."""
    return {c.name: c.type for c in schema}


def patient(schema: Schema) -> str:
    """Return the column of patient ids, "" for none."""
    return next((c.name for c in schema if c.role == "patient"), "")


def codes(schema: Schema) -> dict[str, tuple[str, ...]]:
    """Return column -> missing codes, of the columns that have any."""
    return {c.name: c.missing for c in schema if c.missing}


def differences(old: Schema, new: Schema) -> list[str]:
    """Return what was changed, a line a field: "age.unit: '' -> 'a'"."""
    before = {c.name: c for c in old}
    found = []
    for column in new:
        was = before.pop(column.name, None)
        if was is None:
            found.append(f"{column.name}: added")
            continue
        for key in _FIELDS:
            if (a := getattr(was, key)) != (b := getattr(column, key)):
                found.append(f"{column.name}.{key}: {a!r} -> {b!r}")
    return found + [f"{name}: gone" for name in before]


class _Change(msgspec.Struct, frozen=True):
    """What a file may say of one column."""

    type: str | msgspec.UnsetType = msgspec.UNSET
    unit: str | msgspec.UnsetType = msgspec.UNSET
    code_system: str | msgspec.UnsetType = msgspec.UNSET
    role: str | msgspec.UnsetType = msgspec.UNSET
    missing: tuple[str | int | float, ...] | msgspec.UnsetType = msgspec.UNSET
    description: str | msgspec.UnsetType = msgspec.UNSET


class _File(msgspec.Struct, frozen=True):
    """A schema file."""

    columns: dict[str, _Change]


_FIELDS = tuple(f.name for f in fields(Column) if f.name != "name")
_ROLE: Mapping[str, str] = {"date": "date", "timestamp": "date", "str": "text"}


def _problem(c: Column) -> str | None:
    for key, found, valid in (("type", c.type, tuple(TYPES)), ("role", c.role, ROLES)):
        if found not in valid:
            return f"{key} {found!r}{nearest(found, valid)}"
    if c.role == "patient" and c.type != "str":
        return f"type {c.type!r}; the column of patient ids is read as text: type str"
    if c.unit and (" " in c.unit or not column_type(c.type, c.name).numeric):
        return f"unit {c.unit[:MAX_UNIT]!r}; needed a UCUM unit without spaces, of a number"
    for key, limit in (
        ("unit", MAX_UNIT),
        ("code_system", MAX_CODE_SYSTEM),
        ("description", MAX_DESCRIPTION),
    ):
        value: str = getattr(c, key)
        if len(value) > limit or not value.isprintable():
            return f"{key} {value[:40]!r}; needed at most {limit} printable characters"
    return _codes_problem(c.missing)


def _codes_problem(codes: Sequence[str]) -> str | None:
    if len(codes) > MAX_CODES or len(set(codes)) < len(codes):
        return f"{len(codes)} missing codes; needed at most {MAX_CODES}, each once"
    for code in codes:
        if len(code) > MAX_CODE or not code.isprintable():
            return f"missing code {code[:40]!r}; needed at most {MAX_CODE} printable characters"
    return None
