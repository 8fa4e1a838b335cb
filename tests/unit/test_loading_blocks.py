"""Data loading plans over tables: what each block does, and what is refused before a record."""

from pathlib import Path

import duckdb
import numpy as np
import pytest

from consilia.core.weights import Array
from consilia.data.contract import Selection
from consilia.data.loading import blocks
from consilia.data.loading.blocks import LoadingPlan
from consilia.data.loading.stages import check
from consilia.data.loading.table import LoadedFile, pack_rows, unpack_rows
from consilia.data.table import Table
from consilia.errors import ConfigError, DataError
from consilia.wire.worker import TableSource

COLUMNS = {
    "patient": "str",
    "age": "int64",
    "sex": "category",
    "gluc": "float64",
    "born": "date",
    "seen": "date",
    "smoker": "bool",
}
ROWS = """patient,age,sex,gluc,born,seen,smoker
a,40,M,90.078,1980-01-01,2020-01-01,true
b,17,F,180.156,2003-01-01,2020-01-01,false
c,65,X,,1955-06-30,2020-06-30,
d,50,F,-9,1970-01-01,1970-03-01,yes
"""


def plan(text: str) -> LoadingPlan:
    return blocks.from_yaml(f"name: p\nblocks:\n{text}", "p.yaml")


def loaded(tmp_path: Path, text: str, rows: str = ROWS, without: bytes = b"") -> Table:
    path = tmp_path / "t.csv"
    path.write_text(rows)
    packed = blocks.to_bytes(plan(text)) if text else b""
    return Table(
        TableSource(
            str(path), "csv", COLUMNS, patient="patient", loading=packed, without=without
        )
    )


def values(table: Table, name: str) -> list[object]:
    """A column as Python values, None where missing."""
    found: Array = table.column(name)
    pairs = zip(found.tolist(), table.missing(name).tolist(), strict=True)
    return [None if absent else value for value, absent in pairs]


def test_blocks_compose_in_the_order_written(tmp_path: Path) -> None:
    table = loaded(
        tmp_path,
        """
- {block: missing, columns: [gluc], codes: [-9]}
- {block: rename, columns: {gluc: glucose, sex: gender}}
- {block: unit, column: glucose, from: mg/dL, to: mmol/L, substance: glucose}
- {block: missing, columns: [glucose], do: median, indicator: true}
- {block: map, column: gender, values: {M: male, F: female}, other: missing}
- {block: categories, column: gender, levels: [female, male], encode: indicators}
- {block: derive, column: adult, expression: "age >= 18"}
- {block: cast, columns: {age: float32}}
- {block: filter, where: "not is_missing(smoker) or age > 60"}
- {block: modalities, modalities: {laboratory: {columns: [glucose]}}}
""",
    )
    assert values(table, "glucose") == pytest.approx([5.0, 10.0, 7.5, 7.5])
    assert values(table, "glucose_missing") == [False, False, True, True]
    assert values(table, "gender=female") == [False, True, None, True]
    assert values(table, "adult") == [True, False, True, True]
    assert table.column("age").dtype == np.float32
    assert table.modalities == {"laboratory": ("glucose",)}
    assert "sex" not in table.columns
    x = table.samples(Selection(("age", "glucose", "adult")), np.random.default_rng(0)).x
    assert x.shape == (4, 3)
    assert x[1].tolist() == [17.0, 10.0, 0.0]


def test_records_left_out_are_gone_before_the_first_block(tmp_path: Path) -> None:
    out = np.array([False, True, False, True])
    text = "- {block: missing, columns: [gluc], do: median}"
    table = loaded(tmp_path, text, without=pack_rows(out))
    assert values(table, "patient") == ["a", "c"]
    assert values(table, "gluc") == pytest.approx([90.078, 90.078])  # of a alone
    assert loaded(tmp_path, "", without=pack_rows(out)).check() == 2
    with pytest.raises(DataError, match="register the dataset again"):
        loaded(tmp_path, "", without=pack_rows(np.ones(9, bool))).check()
    assert unpack_rows(pack_rows(out), 4).tolist() == out.tolist()


def test_two_columns_exchange_names_and_filters_keep_the_order(tmp_path: Path) -> None:
    table = loaded(
        tmp_path,
        "- {block: rename, columns: {born: seen, seen: born}}\n"
        "- {block: filter, where: age > 20}",
    )
    assert [str(d) for d in table.column("born")] == ["2020-01-01", "2020-06-30", "1970-03-01"]
    assert values(table, "age") == [40, 65, 50]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {block: map, column: sex, values: {M: 1}}", "column 'sex': value 'F' is not in"),
        ("- {block: categories, column: sex, levels: [M, F]}", "value 'X' is not one of"),
        ("- {block: cast, columns: {sex: int64}}", "value 'M' is not int64"),
        ("- {block: cast, columns: {gluc: int64}}", "value '90.078' is not int64"),
        ("- {block: filter, where: age > 1000}", "no records"),
    ],
)
def test_a_value_that_does_not_fit_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        loaded(tmp_path, text).check()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {block: renam}", "block 1: there is no block 'renam'; did you mean 'rename'"),
        ("- {block: rename, colums: {}}", "unknown key 'colums'; did you mean 'columns'"),
        ("- {columns: {}}", "needed a key `block`"),
        ("- {block: map, column: sex, values: {yes: 1}}", "YAML reads a key as True"),
        (
            "- {block: rename, columns: {agee: x}}",
            r"block 1 \(rename\): there is no column 'age",
        ),
        ("- {block: rename, columns: {age: sex}}", "there is such a column"),
        ("- {block: rename, columns: {age: AGE, sex: age}}", "differ only in case"),
        ("- {block: rename, columns: {patient: id}}", "patient ids; it stays as it is"),
        ("- {block: keep, columns: [age]}", "patient ids; it stays as it is"),
        ("- {block: derive, column: patient, expression: \"'x'\"}", "it stays as it is"),
        ("- {block: cast, columns: {age: int}}", "needed one of float32"),
        ("- {block: map, column: sex, values: {M: 1, F: x}}", "different types"),
        ("- {block: map, column: sex, values: {M: 1}, other: keep}", "beside new ones"),
        ("- {block: map, column: age, values: {old: 1}}", "'old' is not int64"),
        ("- {block: unit, column: gluc, to: mmol/L}", "declares no unit"),
        ("- {block: unit, column: sex, from: g, to: kg}", "needs numbers"),
        ("- {block: filter, where: age}", "needed a truth value"),
        (
            "- {block: missing, columns: [age], do: constant}",
            "value: is given with do: constant",
        ),
        ("- {block: missing, columns: [age], do: constant, value: 1.5}", "1.5 is not int64"),
        ("- {block: missing, columns: [sex], do: median}", "is category; needed numbers"),
        ("- {block: missing, columns: [age]}", "nothing to do"),
        ("- {block: categories, column: sex, levels: [M], other: X}", "not one of the levels"),
        ("- {block: categories, column: age, levels: [M]}", "map its values to texts"),
        # stages put SQL in the place of this very text
        ('- {block: map, column: sex, values: {M: "\\0previous\\0"}}', "holds a NUL character"),
        ("- {block: filter, where: \"sex = '\\0previous\\0'\"}", "a NUL character"),
        ('- {block: categories, column: sex, levels: ["\\0previous\\0"]}', "NUL character"),
        ('- {block: missing, columns: [sex], codes: ["\\0previous\\0"]}', "NUL character"),
        (
            "- {block: modalities, modalities: {a: {columns: [age]}}}\n"
            "- {block: keep, columns: [patient]}",
            "a later block takes away",
        ),
    ],
)
def test_a_plan_is_found_wrong_before_it_is_used(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(plan(text), COLUMNS, patient="patient")


@pytest.mark.parametrize(
    "text",
    [
        "name: &a p\nblocks: [*a]",
        "name: p\nblocks: " + "[" * 5000,
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nname: p\nblocks: []",
        "name: p\nblocks: []\ndescription: " + "x" * 300_000,
        "name: p\nblocks:\n- {block: [}",
        "name: p\nblocks: []",
        "- p",
        "",
    ],
)
def test_a_file_of_another_site_cannot_hurt(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^mail"):
        blocks.from_yaml(text, "mail")


def test_a_declared_unit_stands_in_and_contradicts() -> None:
    text = "- {block: unit, column: gluc, FROM to: mmol/L, substance: glucose}"
    known = {"gluc": "mg/dL"}
    found = check(plan(text.replace("FROM ", "")), COLUMNS, units=known)
    assert found.units == {"gluc": "mmol/L"}
    with pytest.raises(ConfigError, match="'g/L', but 'gluc' is in 'mg/dL'"):
        check(plan(text.replace("FROM ", "from: g/L, ")), COLUMNS, units=known)


def test_a_plan_travels_as_yaml_and_is_named_by_its_blocks() -> None:
    text = """
- {block: map, column: sex, values: {1: male, '2.5': female}, other: missing}
- {block: unit, column: gluc, from: mg/dL, to: mmol/L, substance: glucose}
- {block: missing, columns: [gluc], codes: [-9, 999], do: constant, value: 5.5}
- {block: modalities, modalities: {laboratory: {columns: [gluc]}}}
"""
    first = plan(text)
    again = blocks.from_yaml(blocks.to_yaml(first), "other site")
    assert again == first == blocks.from_bytes(blocks.to_bytes(first))
    other = LoadingPlan("other", first.blocks, "another description")
    assert blocks.plan_digest(other) == blocks.plan_digest(first)
    assert blocks.plan_digest(LoadingPlan("p", first.blocks[1:])) != blocks.plan_digest(first)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_block_never_sees_what_a_filter_before_it_left_out(tmp_path: Path, kind: str) -> None:
    """An engine that reorders conditions would stumble over values that are gone."""
    path = tmp_path / f"t.{kind}"
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT i AS a, CASE WHEN i % 3 = 0 THEN 'X' "
            "WHEN i % 2 = 0 THEN 'F' ELSE 'M' END AS s, "
            "CASE WHEN i % 3 = 0 THEN 'bad' ELSE i::VARCHAR END AS x FROM range(50000) r(i)"
        )
        connection.execute(f"COPY t TO '{path}'")
    body = plan("""
- {block: filter, where: "s != 'X'"}
- {block: cast, columns: {x: int64}}
- {block: categories, column: s, levels: [M, F], encode: index}
- {block: missing, columns: [x], do: median}
- {block: filter, where: "x > 10 and s = 0"}
""")
    columns = {"a": "int64", "s": "category", "x": "str"}
    table = Table(TableSource(str(path), kind, columns, loading=blocks.to_bytes(body)), 2)
    expected = [i for i in range(50000) if i % 3 and i % 2 and i > 10]
    assert table.column("a").tolist() == expected
    assert table.column("x").tolist() == expected  # read by itself, in the same order


def test_a_connection_opens_the_tables_files_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(ROWS)
    file = LoadedFile(tmp_path / "t.csv", "csv", ("",), COLUMNS, None)
    (tmp_path / "secret").write_text("the node's key")
    foreign = f"read_text('{tmp_path / 'secret'}')"
    for wanted, tail in (
        ({"x": f'"sex" IN (FROM {foreign})'}, ""),
        ({"x": '"sex"'}, f"; COPY (SELECT 1) TO '{tmp_path / 'made'}'"),
        ({"x": '"sex"'}, "; SET enable_external_access = true"),
    ):
        with pytest.raises(DataError, match=r"disabled|locked|Cannot"):
            file.run(wanted, lambda result: result.fetchall(), tail)
    assert not (tmp_path / "made").exists()
    assert file.run({"n": "count(*)"}, lambda result: result.fetchall()) == [(4,)]


def test_records_are_counted_after_a_plan_without_asking_for_a_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(ROWS)
    young = plan("- {block: filter, where: age < 60}")
    file = LoadedFile(tmp_path / "t.csv", "csv", ("",), COLUMNS, young)
    assert file.run({"n": "count(*)"}, lambda result: result.fetchall()) == [(3,)]
