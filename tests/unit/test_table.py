"""Tables: typed columns, errors that name file, column, row and value, and batches."""

from pathlib import Path

import duckdb
import numpy as np
import pytest

from consilia.data.contract import Selection
from consilia.data.reader import TableFile
from consilia.data.table import Table, batch_stop
from consilia.errors import DataError
from consilia.wire.worker import TableSource

RNG = np.random.default_rng(3)


def source(path: Path, columns: dict[str, str], **more: object) -> TableSource:
    kind = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}[path.suffix]
    return TableSource(str(path), kind, columns, **more)  # type: ignore[arg-type]


def written(tmp_path: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def opened(tmp_path: Path, text: str | bytes, columns: dict[str, str], **more: object) -> Table:
    return Table(source(written(tmp_path, text), columns, **more))


def test_every_type_arrives_as_declared(tmp_path: Path) -> None:
    text = (
        "f,d,i,b,s,c,day,at\n"
        '1.5,0.1,-7,true,"a, ""b""",M,2024-02-29,2024-02-29 08:30:00\n'
        "2.5,1e-9,42,no,,F,1999-12-31,1999-12-31T23:59:59\n"
    )
    kinds = ("float32", "float64", "int64", "bool", "str", "category", "date", "timestamp")
    table = opened(
        tmp_path,
        text,
        dict(zip(text.split("\n", maxsplit=1)[0].split(","), kinds, strict=True)),
    )
    assert table.column("f").dtype == np.float32
    assert table.column("f").tolist() == [1.5, 2.5]
    assert table.column("d").tolist() == [0.1, 1e-9]
    assert table.column("d").dtype == np.float64
    assert table.column("i").tolist() == [-7, 42]
    assert table.column("i").dtype == np.int64
    assert table.column("b").tolist() == [True, False]
    assert table.column("s")[0] == 'a, "b"'
    assert table.missing("s").tolist() == [False, True]
    assert table.column("c").tolist() == ["M", "F"]
    assert table.column("day").dtype == np.dtype("datetime64[D]")
    assert str(table.column("day")[0]) == "2024-02-29"
    assert str(table.column("at")[1]).startswith("1999-12-31T23:59:59")
    assert table.records == 2


def test_missing_codes(tmp_path: Path) -> None:
    text = "x,i\n1.0,1\n-999,NA\n,3\nnan,4\n"
    table = opened(tmp_path, text, {"x": "float64", "i": "int64"}, missing=("", "NA", "-999"))
    assert table.missing("x").tolist() == [False, True, True, True]
    assert np.isnan(table.column("x")[1:]).all()
    assert table.missing("i").tolist() == [False, True, False, False]


def test_tsv_and_crlf_and_byte_order_mark(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffa\tb\r\n1\tx\r\n2\ty\r\n", "t.tsv")
    table = Table(source(path, {"a": "int64", "b": "str"}))
    assert table.column("a").tolist() == [1, 2]
    assert table.column("b").tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("kind", "value", "needed"),
    [
        ("int64", "3.7", "a whole number"),
        ("int64", "1e3", "a whole number"),
        ("int64", "0x10", "a whole number"),
        ("float64", "12,5", "a number"),
        ("float32", "high", "a number"),
        ("bool", "2", "true or false"),
        ("date", "31.12.2024", "a day"),
        ("date", "2024-12-31 10:00", "a day"),
        ("date", "2024-02-30", "a day"),
        ("timestamp", "noon", "a time"),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    tmp_path: Path, kind: str, value: str, needed: str
) -> None:
    good = {
        "int64": "1",
        "bool": "true",
        "date": "2024-01-01",
        "timestamp": "2024-01-01 10:00:00",
    }
    fine = good.get(kind, "1.5")
    text = f'x,y\n{fine},1\n,2\n"{value}",3\n"{value}",4\n'
    table = opened(tmp_path, text, {"x": kind, "y": "int64"})
    assert table.column("y").tolist() == [1, 2, 3, 4]
    with pytest.raises(DataError) as caught:
        table.column("x")
    message = str(caught.value)
    assert message.startswith(f"t.csv: column 'x', row 3: {value!r} is not {kind}")
    assert needed in message


@pytest.mark.parametrize("value", ["inf", "-inf", "1e300"])
def test_infinite_and_overflowing_numbers_are_refused(tmp_path: Path, value: str) -> None:
    table = opened(tmp_path, f"x\n1\n{value}\n", {"x": "float32"})
    with pytest.raises(DataError, match=r"column 'x', row 2: infinite, or too large"):
        table.column("x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3: 1 values where the header names 2 columns"),
        ("a,b\n1,2\n3,4,5\n", "line 3: 3 values where the header names 2 columns"),
        ('a,b\n1,2\n3,"x\n', "line 3: a quote is opened and never closed"),
        (b"a,b\n1,caf\xe9\n", "line 2: the text is not UTF-8; convert it"),
    ],
)
def test_a_broken_file_is_explained(tmp_path: Path, content: str | bytes, message: str) -> None:
    table = opened(tmp_path, content, {"a": "int64", "b": "str"})
    with pytest.raises(DataError) as caught:
        table.column("b")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("a,a\n1,2\n", "column 'a' appears twice"),
        ("1.0,3,1.0\n2,4,5\n", "the file lacks its first line of column names"),
        ("a,A\n1,2\n", "differ only in case"),
        ("a,\n1,2\n", "column 2 is called ''"),
        (b"caf\xe9\n1\n", "not UTF-8"),
    ],
)
def test_a_broken_header_is_explained(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        TableFile(written(tmp_path, content), "csv")


def test_columns_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'z' is declared and not in the file"):
        opened(tmp_path, "a\n1\n", {"z": "int64"})
    with pytest.raises(DataError, match="column 'a' is declared as 'int'"):
        opened(tmp_path, "a\n1\n", {"a": "int"})
    table = opened(tmp_path, "a\n1\n", {"a": "int64"})
    with pytest.raises(DataError, match="asks for column 'b'; the dataset declares a"):
        table.column("b")
    with pytest.raises(DataError, match="not there"):
        Table(source(tmp_path / "gone.csv", {"a": "int64"}))


def test_a_file_with_other_records_than_registered_is_refused(tmp_path: Path) -> None:
    table = opened(tmp_path, "a\n1\n2\n", {"a": "int64"}, records=3)
    with pytest.raises(DataError, match="2 records, registered with 3"):
        table.column("a")


def test_a_table_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no records"):
        opened(tmp_path, "a\n", {"a": "int64"}).column("a")


def test_names_are_no_sql(tmp_path: Path) -> None:
    name = "x\"; DROP TABLE t; --'"
    path = written(tmp_path, "'o''o\n1\n", "it's; 1.csv")
    assert Table(source(path, {"'o''o": "int64"})).column("'o''o").tolist() == [1]
    text = f'"{name.replace(chr(34), chr(34) * 2)}"\n5\n'
    assert opened(tmp_path, text, {name: "float32"}, missing=("'", "x")).column(name) == [5.0]


def test_order_is_kept_by_several_threads(tmp_path: Path) -> None:
    numbers = RNG.permutation(300_000)
    path = written(tmp_path, "n\n" + "\n".join(map(str, numbers)) + "\n")
    table = Table(source(path, {"n": "int64"}), threads=2)
    assert (table.column("n") == numbers).all()


# ---- parquet ---------------------------------------------------------------------------------


def parquet(tmp_path: Path, select: str) -> Path:
    path = tmp_path / "t.parquet"
    duckdb.sql(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    return path


def test_parquet(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        "SELECT 1.5::FLOAT f, 2.5::DOUBLE d, 7::SMALLINT i, true b, 'x' s, "
        "DATE '2024-01-01' AS day "
        "UNION ALL SELECT NULL, 3.5, 8, false, 'y', DATE '2024-01-02'",
    )
    columns = {
        "f": "float32",
        "d": "float32",
        "i": "int64",
        "b": "bool",
        "s": "str",
        "day": "date",
    }
    table = Table(source(path, columns))
    assert table.missing("f").tolist() == [False, True]
    assert table.column("d").dtype == np.float32
    assert table.column("i").tolist() == [7, 8]
    assert table.column("s").tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("sql", "kind"),
    [("'5'", "float32"), ("2.5::DOUBLE", "int64"), ("1", "bool"), ("1.5::DOUBLE", "str")],
)
def test_parquet_of_another_type_is_refused(tmp_path: Path, sql: str, kind: str) -> None:
    table = Table(source(parquet(tmp_path, f"SELECT {sql} AS x"), {"x": kind}))
    with pytest.raises(DataError, match=f"column 'x' holds .*; declared is {kind}"):
        table.column("x")


def test_what_only_looks_like_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a readable Parquet file"):
        TableFile(written(tmp_path, "PAR1 no", "t.parquet"), "parquet")


# ---- samples and batches ---------------------------------------------------------------------

COHORT = "b,a,sex,y,grade\n1,10,M,0,low\n2,20,F,1,high\n3,30,F,1,low\n"
TYPES = {"b": "float64", "a": "int64", "sex": "category", "y": "int64", "grade": "str"}


def test_samples(tmp_path: Path) -> None:
    samples = opened(tmp_path, COHORT, TYPES).samples(Selection(("b", "a"), "y"), RNG)
    assert samples.features == ("b", "a")
    assert samples.x.tolist() == [[1, 10], [2, 20], [3, 30]]
    assert samples.x.dtype == np.float32
    assert samples.x.flags.c_contiguous
    assert samples.y is not None
    assert samples.y.dtype == np.float32
    assert samples.y.tolist() == [0, 1, 1]
    assert samples.records == 3


def test_every_numeric_column_is_in_the_order_of_names(tmp_path: Path) -> None:
    samples = opened(tmp_path, COHORT, TYPES).samples(Selection(None, "y"), RNG)
    assert samples.features == ("a", "b")
    assert samples.x.tolist() == [[10, 1], [20, 2], [30, 3]]


def test_samples_are_made_once(tmp_path: Path) -> None:
    table = opened(tmp_path, COHORT, TYPES)
    one = table.samples(Selection(("b",), "y"), RNG)
    assert table.samples(Selection(("b",), "y"), RNG).x is one.x


def test_text_target(tmp_path: Path) -> None:
    table = opened(tmp_path, COHORT, TYPES)
    chosen = Selection(("b",), "grade", "int64", ("low", "high"))
    y = table.samples(chosen, RNG).y
    assert y is not None
    assert y.tolist() == [0, 1, 0]
    with pytest.raises(DataError, match=r"target 'grade', row 2: 'high' is not one of"):
        table.samples(Selection(("b",), "grade", "int64", ("low",)), RNG)
    with pytest.raises(DataError, match="target 'grade' is str; needed numbers"):
        table.samples(Selection(("b",), "grade"), RNG)


def test_several_targets(tmp_path: Path) -> None:
    y = opened(tmp_path, COHORT, TYPES).samples(Selection(("b",), ("y", "a")), RNG).y
    assert y is not None
    assert y.tolist() == [[0, 10], [1, 20], [1, 30]]
    assert y.flags.c_contiguous


def test_a_feature_must_be_a_number_and_there(tmp_path: Path) -> None:
    table = opened(tmp_path, COHORT, TYPES)
    with pytest.raises(DataError, match="feature 'sex' is category"):
        table.samples(Selection(("sex",), "y"), RNG)
    with pytest.raises(DataError, match="column 'age'"):
        table.samples(Selection(("age",), "y"), RNG)


def test_missing_features_are_an_error_or_filled(tmp_path: Path) -> None:
    table = opened(
        tmp_path,
        "x,i,y\n1,1,0\n,NA,1\n",
        dict.fromkeys("xiy", "int64") | {"x": "float32"},
        missing=("", "NA"),
    )
    with pytest.raises(DataError, match=r"column 'x', row 2: the value is missing \(1 are\)"):
        table.samples(Selection(("x", "i"), "y"), RNG)
    filled = table.samples(Selection(("x", "i"), "y", fill=-1.0), RNG)
    assert filled.x.tolist() == [[1, 1], [-1, -1]]


def test_a_missing_target_is_an_error(tmp_path: Path) -> None:
    table = opened(tmp_path, "x,y\n1,0\n2,\n", {"x": "float32", "y": "int64"})
    with pytest.raises(DataError, match=r"target 'y', row 2: the value is missing"):
        table.samples(Selection(("x",), "y", fill=0.0), RNG)


def test_batches_cover_every_record_once(tmp_path: Path) -> None:
    text = "x,y\n" + "".join(f"{i},{i}\n" for i in range(103))
    table = opened(tmp_path, text, {"x": "float32", "y": "float32"})
    samples = table.samples(Selection(("x",), "y"), np.random.default_rng(5))
    sizes = [len(x) for x, _ in samples.batches(10)]
    assert sizes == [10] * 10 + [3]
    assert [len(x) for x, _ in samples.batches(10, drop_last=True)] == [10] * 10
    in_order = np.concatenate([x for x, _ in samples.batches(10)])
    assert (in_order[:, 0] == np.arange(103)).all()
    pairs = [(x[:, 0], y) for x, y in samples.batches(10, shuffle=True)]
    assert all((x == y).all() for x, y in pairs)
    seen = np.concatenate([y for _, y in pairs])
    assert not (seen == np.arange(103)).all()
    assert (np.sort(seen) == np.arange(103)).all()


def test_batches_are_copies(tmp_path: Path) -> None:
    samples = opened(tmp_path, COHORT, TYPES).samples(Selection(("b",), "y"), RNG)
    for x, _ in samples.batches(2):
        x.fill(0)
    assert samples.x.tolist() == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("records", "size", "drop", "stop"),
    [(10, 10, True, 10), (10, 3, True, 9), (10, 11, False, 10)],
)
def test_batch_stop(records: int, size: int, drop: bool, stop: int) -> None:
    assert batch_stop(records, size, drop) == stop


@pytest.mark.parametrize(("size", "drop"), [(0, False), (-1, False), (11, True)])
def test_batches_that_would_train_nothing_are_refused(size: int, drop: bool) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        batch_stop(10, size, drop)
