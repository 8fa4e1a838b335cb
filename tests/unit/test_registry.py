"""Registering a table: what is inferred, what is refused, noticing that the file changed."""

import hashlib
import os
from pathlib import Path

import duckdb
import pytest

from consilia.data.registry import change, inspect_table, to_source
from consilia.data.table import Table
from consilia.errors import ConfigError, DataError


def written(tmp_path: Path, text: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_types_are_inferred(tmp_path: Path) -> None:
    text = (
        "i,f,whole,flag,day,at,sex,id,void,mixed\n"
        "1,1.5,1.0,yes,2024-01-31,2024-01-31 08:00:00,M,a1,,1\n"
        "-2,NA,2.0,no,2024-02-01,2024-02-01 09:00:00,F,a2,,x\n"
    ) + "".join(f"3,2,3.0,no,2024-02-01,2024-02-01 09:00:00,F,p{i},,2\n" for i in range(300))
    path = written(tmp_path, text)
    found = inspect_table(path, "cohort", ("b", "a"), now=5.0, description="test")
    assert found.columns == {
        "i": "int64",
        "f": "float64",
        "whole": "float64",
        "flag": "bool",
        "day": "date",
        "at": "timestamp",
        "sex": "category",
        "id": "str",
        "void": "category",
        "mixed": "category",
    }
    assert list(found.columns)[:2] == ["i", "f"]  # the file's order
    assert found.records == 302
    assert found.tags == ("a", "b")
    assert found.created == 5.0
    assert found.format == "csv"
    assert found.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.bytes == len(path.read_bytes())
    assert found.path == str(path.resolve())


def test_zero_and_one_are_numbers(tmp_path: Path) -> None:
    assert inspect_table(written(tmp_path, "y\n0\n1\n"), "t", (), now=0).columns["y"] == "int64"


def test_inferred_types_can_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b,c\n1,x,2024-01-01\nNA,y,2024-01-02\n")
    dataset = inspect_table(path, "t", (), now=0)
    table = Table(to_source(dataset))
    for name in dataset.columns:
        assert len(table.column(name)) == 2
    assert table.missing("a").tolist() == [False, True]


def test_declared_types_win_and_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\n1,2\n2,x\n")
    assert inspect_table(path, "t", (), now=0, types={"a": "float32"}).columns["a"] == "float32"
    with pytest.raises(DataError, match="column 'b', row 2: 'x' is not int64"):
        inspect_table(path, "t", (), now=0, types={"b": "int64"})
    with pytest.raises(DataError, match="'z', which is no column"):
        inspect_table(path, "t", (), now=0, types={"z": "int64"})
    with pytest.raises(
        DataError, match=r"t.csv: no column 'aa'.*did you mean 'a'\? Valid: a, b"
    ):
        inspect_table(path, "t", (), now=0, patient="aa")
    with pytest.raises(DataError, match="declared as 'number'"):
        inspect_table(path, "t", (), now=0, types={"a": "number"})


def test_tsv_and_parquet(tmp_path: Path) -> None:
    tsv = inspect_table(written(tmp_path, "a\tb\n1\t2.5\n", "t.tsv"), "t", (), now=0)
    assert (tsv.format, dict(tsv.columns)) == ("tsv", {"a": "int64", "b": "float64"})
    path = tmp_path / "t.parquet"
    duckdb.sql(f"COPY (SELECT 1 a, 2.5::FLOAT b, 'x' c, now()::TIMESTAMP t) TO '{path}'")
    found = inspect_table(path, "t", (), now=0)
    assert found.format == "parquet"
    assert found.columns == {"a": "int64", "b": "float32", "c": "str", "t": "timestamp"}
    duckdb.sql(f"COPY (SELECT [1, 2] a) TO '{path}'")
    with pytest.raises(DataError, match="column 'a' holds"):
        inspect_table(path, "t", (), now=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"a,b\n", "no records"),
        (b"a,b\n1,2\n3\n", "line 3: 1 values"),
        (b"a,a\n1,2\n", "appears twice"),
        (b"a\nM\xfcller\n", "not UTF-8"),
    ],
)
def test_what_would_go_wrong_later_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        inspect_table(path, "t", (), now=0)


def test_names_and_formats(tmp_path: Path) -> None:
    path = written(tmp_path, "a\n1\n")
    with pytest.raises(ConfigError, match="dataset name"):
        inspect_table(path, "My Data", (), now=0)
    with pytest.raises(ConfigError, match="tag name"):
        inspect_table(path, "t", ("a b",), now=0)
    with pytest.raises(DataError, match="no such file"):
        inspect_table(tmp_path / "gone.csv", "t", (), now=0)
    other = written(tmp_path, "a\n1\n", "t.dat")
    with pytest.raises(DataError, match=r"suffix '\.dat'"):
        inspect_table(other, "t", (), now=0)
    assert inspect_table(other, "t", (), now=0, format="csv").records == 1


def test_braces_and_quotes_in_column_names(tmp_path: Path) -> None:
    path = written(tmp_path, '"{x}","it\'s","a""b"\n1,2,3\n')
    assert set(inspect_table(path, "t", (), now=0).columns) == {"{x}", "it's", 'a"b'}


def test_changed(tmp_path: Path) -> None:
    path = written(tmp_path, "a\n1\n")
    dataset = inspect_table(path, "t", (), now=0)
    assert not change(dataset)
    os.utime(path, (1, 1))
    assert not change(dataset)  # touched, with the same content
    path.write_text("a\n2\n")
    assert change(dataset)
    path.write_text("a\n1\n")
    assert not change(dataset)
    path.write_text("a\n1\n\n2\n")
    assert change(dataset)
    path.unlink()
    assert change(dataset)


def test_to_source(tmp_path: Path) -> None:
    dataset = inspect_table(written(tmp_path, "a\n1\n"), "t", (), now=0)
    source = to_source(dataset, "/data/t.csv")
    assert source.path == "/data/t.csv"
    assert source.columns == {"a": "int64"}
    assert source.records == 1


def test_a_folder_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "visits"
    folder.mkdir()
    written(folder, "a,b\n1,x\n", "2023.csv")
    written(folder, "a,b\n2.5,y\n3,z\n", "2024.CSV")
    found = inspect_table(folder, "t", ("t",), now=0)
    assert (found.records, found.format, found.columns["a"]) == (3, "csv", "float64")
    assert Table(to_source(found)).column("b").tolist() == ["x", "y", "z"]
    assert [p.name for p in found.parts] == ["2023.csv", "2024.CSV"]
    assert not change(found)
    os.utime(folder / "2023.csv", (1, 1))
    assert not change(found)
    before = (folder / "2023.csv").stat()
    written(folder, "a,b\n9,x\n", "2023.csv")
    os.utime(folder / "2023.csv", (before.st_atime, before.st_mtime + 1))
    assert change(found).endswith("2023.csv was changed after it was registered")
    written(folder, "a,b\n1,x\n", "2023.csv")
    written(folder, "a,b\n1,x\n", "2025.csv")
    assert change(found).endswith("2025.csv is new since it was registered")
    (folder / "2025.csv").unlink()
    (folder / "2024.CSV").unlink()
    assert change(found).endswith("2024.CSV: No such file")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "b.csv",
            "a,c\n1,2\n",
            "b.csv is not of the columns of a.csv: column 2 is 'c', not 'b'",
        ),
        ("b.csv", "a\n1\n", "it has 1 columns, not 2"),
        ("b.csv", "b,a\n1,2\n", "in the same order"),
        ("b.txt", "readme", "'b.txt' is no csv file"),
    ],
)
def test_a_folder_holds_one_kind_of_file(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    folder = tmp_path / "visits"
    folder.mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        inspect_table(folder, "t", ("t",), now=0)
    written(folder, "a,b\n1,x\n", "a.csv")
    written(folder, text, name)
    with pytest.raises(DataError, match=message):
        inspect_table(folder, "t", ("t",), now=0)


def test_a_folder_shows_a_worker_no_other_file(tmp_path: Path) -> None:
    folder = tmp_path / "visits"
    folder.mkdir()
    written(folder, "a\n1\n", "a.csv")
    (folder / "b.csv").symlink_to(written(tmp_path, "a\n2\n", "elsewhere.csv"))
    with pytest.raises(DataError, match="no links, no folders"):
        inspect_table(folder, "t", ("t",), now=0)


def test_types_hold_for_all_records_not_only_the_first(tmp_path: Path) -> None:
    first = "".join(f"{i},{i},,1\n" for i in range(10_500))
    path = written(tmp_path, f"a,b,late,c\n{first}1,1.5,2024-01-01,x\n")
    found = inspect_table(path, "t", ("t",), now=0).columns
    assert found == {"a": "int64", "b": "float64", "late": "date", "c": "category"}


@pytest.mark.parametrize("kind", ["INTEGER", "BIGINT", "UBIGINT", "UUID", "VARCHAR"])
def test_patient_ids_of_a_database_are_read_as_text(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.parquet"
    made = "gen_random_uuid()" if kind == "UUID" else f"CAST(n AS {kind})"
    with duckdb.connect() as db:
        db.execute(
            f"COPY (SELECT {made} AS id, n % 7 AS x FROM range(30) t(n)) TO '{path}' "  # noqa: S608
            "(FORMAT parquet)"
        )
    found = inspect_table(path, "t", (), now=0, patient="id")
    assert found.columns["id"] == "str"
    ids = [str(i) for i in Table(to_source(found)).column("id")]
    assert len(set(ids)) == 30
    assert kind == "UUID" or "7" in set(ids)


def test_patient_ids_that_are_fractions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with duckdb.connect() as db:
        db.execute(f"COPY (SELECT n / 2 AS id FROM range(9) t(n)) TO '{path}'")  # noqa: S608
    with pytest.raises(DataError, match="needed text"):
        inspect_table(path, "t", (), now=0, patient="id")
