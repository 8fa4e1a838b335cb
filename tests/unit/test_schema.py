"""Schemas: what is inferred, edited, refused; missing codes of single columns at load time."""

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest

from consilia.data import schema as schemas
from consilia.data.registry import inspect_table, schema_of, to_source
from consilia.data.schema import Column
from consilia.data.table import Table
from consilia.errors import ConfigError, DataError

SCHEMA = schemas.inferred(
    {"id": "str", "age": "int64", "seen": "date", "note": "str", "dose": "float64"}, "id"
)


def test_types_suggest_roles() -> None:
    assert [c.role for c in SCHEMA] == ["patient", "feature", "date", "text", "feature"]
    assert schemas.patient(SCHEMA) == "id"


def test_a_schema_survives_its_yaml() -> None:
    new = schemas.edited(SCHEMA, "age", {"unit": "a", "missing": ("-9", "999")})
    new = schemas.edited(new, "note", {"role": "ignore", "description": "Brief, free: «x»"})
    assert schemas.from_text(schemas.to_text(new), SCHEMA, "s.yaml") == new
    said = schemas.differences(SCHEMA, new)
    assert "age.unit: '' -> 'a'" in said and len(said) == 4


def test_numbers_are_codes_as_well_in_yaml() -> None:
    text = "columns:\n  age: {missing: [-9, 999, unknown]}\n"
    found = schemas.from_text(text, SCHEMA, "s.yaml")
    assert schemas.codes(found) == {"age": ("-9", "999", "unknown")}


def test_the_patient_role_reads_as_text() -> None:
    alone = schemas.inferred({"nr": "int64"})
    assert schemas.edited(alone, "nr", {"role": "patient"})[0].type == "str"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("aeg", {"unit": "a"}, "'aeg' is not in the dataset; did you mean 'age'"),
        ("age", {"rol": "target"}, "unknown key 'rol'; did you mean 'role'"),
        ("age", {"role": "featur"}, "role 'featur'; did you mean 'feature'"),
        ("age", {"type": "number"}, "type 'number'"),
        ("age", {"role": "patient"}, "'id' and 'age' both have the role patient"),
        ("id", {"type": "int64"}, "type 'int64'; the column of patient ids is read as text"),
        ("note", {"unit": "mg/dL"}, "unit 'mg/dL'; needed a UCUM unit without spaces, of a"),
        ("age", {"unit": "a b"}, "without spaces"),
        ("age", {"description": "x" * 1001}, "description .*at most 1000"),
        ("age", {"missing": ("-9", "-9")}, "each once"),
        ("age", {"missing": ("a\nb",)}, "missing code"),
    ],
)
def test_what_is_wrong_is_named(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schemas.edited(SCHEMA, name, changes)


def test_a_file_names_its_line() -> None:
    with pytest.raises(ConfigError, match=r"s\.yaml line 2: unknown key 'units'"):
        schemas.from_text("columns:\n  age: {units: a}\n", SCHEMA, "s.yaml")
    with pytest.raises(ConfigError, match=r"s\.yaml: column 'x' is not in"):
        schemas.from_text("columns: {x: {unit: a}}", SCHEMA, "s.yaml")


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_missing_codes_are_missing_when_read(tmp_path: Path, format: str) -> None:
    rows = [(-9, 0.1, "F", 7), (40, -9.0, "9", -9), (41, 2.5, " U ", 8)]
    values = ", ".join(map(str, rows))
    path = tmp_path / f"t.{format}"
    duckdb.sql(
        f"COPY (SELECT a::INT a, f::FLOAT f, s, b::BIGINT b FROM (VALUES {values}) "  # noqa: S608 - of this test
        f"t(a, f, s, b)) TO '{path}'"
    )
    codes = {"a": ("-9",), "f": ("-9", "0.1"), "s": ("9", "U")}
    plain = inspect_table(path, "t", ("t",), now=0)
    said = tuple(replace(c, missing=codes.get(c.name, ())) for c in schema_of(plain))
    found = inspect_table(path, "t", ("t",), now=0, schema=said)
    table = Table(to_source(found))
    assert table.missing("a").tolist() == [True, False, False]
    assert table.missing("f").tolist() == [True, True, False]  # -9.0 is -9
    assert table.missing("s").tolist() == [False, True, True]
    assert table.column("b").tolist() == [7, -9, 8]  # codes are of their column alone
    assert table.column("f").dtype in (np.float32, np.float64)


def test_a_text_can_be_the_code_of_a_number(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("dose,stage\n1.5,2\nunknown,3\n2.5,not told\n")
    said = (
        Column("dose", "float64", missing=("unknown",)),
        Column("stage", "int64", missing=("not told",)),
    )
    found = inspect_table(path, "t", ("t",), now=0, schema=said)
    table = Table(to_source(found))
    assert table.missing("dose").tolist() == [False, True, False]
    assert table.missing("stage").tolist() == [False, False, True]
    with pytest.raises(DataError, match=r"column 'stage', row 3: 'not told' is not int64"):
        wrong = (said[0], replace(said[1], missing=("other",)))
        inspect_table(path, "t", ("t",), now=0, schema=wrong)


def test_an_ignored_column_is_given_to_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    said = schemas.edited(
        schemas.inferred({"a": "int64", "b": "int64"}), "b", {"role": "ignore"}
    )
    source = to_source(inspect_table(path, "t", ("t",), now=0, schema=said))
    assert source.columns == {"a": "int64"}
    with pytest.raises(DataError, match="'b'; the dataset declares a"):
        Table(source).column("b")
