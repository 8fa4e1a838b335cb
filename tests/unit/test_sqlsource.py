"""A query's answer as a Parquet file: only a SELECT runs, no password is kept."""

from pathlib import Path

import duckdb
import pytest

from consilia.data.registry import inspect_table, to_source
from consilia.data.sqlsource import libpq, origin, snapshot
from consilia.data.table import Table
from consilia.errors import ConfigError, DataError
from consilia.files import first_line
from pgkit import Postgres


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "cdw.duckdb"
    with duckdb.connect(path) as db:
        db.execute(
            "CREATE TABLE visits AS SELECT range AS id, range % 90 AS age FROM range(200)"
        )
    return path


def test_a_duckdb_query_becomes_a_table(database: Path, tmp_path: Path) -> None:
    target = tmp_path / "snapshots" / "v.parquet"
    source = origin("duckdb", str(database), "SELECT age FROM visits WHERE id < 50 -- young\n;")
    snapshot(source, target)
    found = inspect_table(target, "v", ("t",), now=0, origin=source)
    assert (found.records, dict(found.columns)) == (50, {"age": "int64"})
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(p.name for p in target.parent.iterdir()) == ["v.parquet"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("DROP TABLE visits", "the query is DROP; needed one SELECT"),
        ("SELECT 1 AS a; DROP TABLE visits", "SELECT and DROP"),
        ("INSERT INTO visits VALUES (1, 1) RETURNING id", "INSERT"),
        ("COPY visits TO '/tmp/out.csv'", "COPY"),
        ("ATTACH '/etc/passwd' AS p", "ATTACH"),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled by configuration"),
        ("SELECT 1 AS a) TO '/tmp/out.csv'; --", "syntax error"),
        ("SELECT nothing FROM visits", "nothing"),
        ("-- only a comment", "empty"),
    ],
)
def test_only_one_select_on_that_file_runs(
    database: Path, tmp_path: Path, query: str, message: str
) -> None:
    target = tmp_path / "v.parquet"
    target.write_bytes(b"the snapshot before")
    with pytest.raises(DataError, match=message):
        snapshot(origin("duckdb", str(database), query), target)
    assert target.read_bytes() == b"the snapshot before"
    assert not list(tmp_path.glob(".v*")), "a draft was left behind"
    with duckdb.connect(database, read_only=True) as db:
        assert db.execute("SELECT count(*) FROM visits").fetchall() == [(200,)]


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needed duckdb or postgresql"):
        origin("oracle", "x", "SELECT 1")
    with pytest.raises(ConfigError, match="0 characters"):
        origin("duckdb", "x", " ; ")
    with pytest.raises(ConfigError, match="has no password"):
        origin("duckdb", "x", "SELECT 1", "secret")
    with pytest.raises(DataError, match="no such file"):
        snapshot(origin("duckdb", str(tmp_path / "none"), "SELECT 1"), tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("address", "mode"),
    [
        ("dbname=x", None),
        ("host=/run/postgresql,localhost dbname=x", None),
        ("host=db.example.org dbname=x", "require"),
        ("host=db.example.org sslrootcert=ca.pem", "verify-full"),
        ("hostaddr=192.0.2.7 dbname=x", "require"),
        ("host=localhost hostaddr=192.0.2.7", "require"),  # hostaddr is what is dialled
        ("host=/run/postgresql,db.example.org", "require"),
    ],
)
def test_nothing_goes_to_another_machine_without_tls(address: str, mode: str | None) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra: postgres)")
    assert libpq(origin("postgresql", address, "SELECT 1")).get("sslmode") == mode


@pytest.mark.parametrize("address", ["service=cdw", "host=db sslpassword=hunter2"])
def test_an_address_hides_neither_machine_nor_secret(address: str) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra: postgres)")
    with pytest.raises(ConfigError, match=r"name host and dbname|without one") as caught:
        origin("postgresql", address, "SELECT 1")
    assert "hunter2" not in str(caught.value)


def test_a_password_comes_from_a_private_file_only(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra: postgres)")
    for address in ("host=db password=hunter2", "postgresql://u:hunter2@db/x"):
        with pytest.raises(ConfigError, match="seen by every user") as caught:
            origin("postgresql", address, "SELECT 1")
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        origin("postgresql", "no such=parameter", "SELECT 1")
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        first_line(file, "password_file")
    file.chmod(0o600)
    assert first_line(file, "password_file") == "hunter2"
    made = origin("postgresql", "host=db dbname=x", "SELECT 1", str(file))
    assert "hunter2" not in repr(made)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="nothing in its first line"):
        first_line(file, "password_file")


def test_a_postgresql_query_becomes_a_table(postgres: Postgres, tmp_path: Path) -> None:
    import psycopg  # noqa: PLC0415

    url = postgres.fresh()
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("CREATE TYPE stage AS ENUM ('I', 'II')")
        db.execute(
            "CREATE TABLE visits (id int, age real, note text, seen timestamptz, day date, "
            "stage stage, ok boolean, cost numeric(9, 2), tags text[])"
        )
        db.execute(
            "INSERT INTO visits VALUES (1, 61.5, 'a,\"b\"\nc', '2024-05-01 10:00+02', "
            "'2024-05-01', 'II', true, 1.25, '{}'), (2, NULL, '', NULL, NULL, NULL, NULL, NULL,"
            " NULL)"
        )
    target = tmp_path / "v.parquet"
    wanted = "SELECT id, age, note, seen, day, stage, ok, cost FROM visits ORDER BY id -- all"
    snapshot(origin("postgresql", url, wanted), target)
    found = inspect_table(target, "v", ("t",), now=0)
    assert dict(found.columns) == {
        "id": "int64", "age": "float32", "note": "str", "seen": "timestamp", "day": "date",
        "stage": "str", "ok": "bool", "cost": "float64",
    }  # fmt: skip
    table = Table(to_source(found))
    assert table.column("note").tolist() == ['a,"b"\nc', ""]  # an empty text is a value
    assert str(table.column("seen")[0]) == "2024-05-01T08:00:00.000000"  # in UTC
    assert table.missing("age").tolist() == [False, True]
    for query, message in (
        ("SELECT 1 AS a; DROP TABLE visits", "multiple commands"),
        ("COMMIT; DROP TABLE visits", "multiple commands"),
        ("DROP TABLE visits", "no columns"),
        ("DELETE FROM visits RETURNING id", "read-only transaction"),
        ("WITH d AS (DELETE FROM visits RETURNING id) SELECT * FROM d", "read-only"),
        ("SELECT 1 AS a) TO PROGRAM 'touch /tmp/x'; --", "syntax error"),
        ("SELECT nextval('pg_catalog.x')", "does not exist"),
        ("SELECT id, id FROM visits", "two columns are called 'id'"),
        ("SELECT tags FROM visits", "'tags' holds _text"),
        ("SELECT $1::int AS a", "parameters"),
        ("SELECT 1 / 0 AS a", "division by zero"),
    ):
        with pytest.raises(DataError, match=message):
            snapshot(origin("postgresql", url, query), target)
    with psycopg.connect(url) as db:
        assert db.execute("SELECT count(*) FROM visits").fetchone() == (2,)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.parquet"]
