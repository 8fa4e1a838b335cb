"""What a data manager does with a dataset: register, describe, accept, look, consent."""

import os
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from consilia.data import schema as schemas
from consilia.data.registry import schema_of
from consilia.data.sqlsource import origin
from consilia.errors import ConfigError, Conflict, DataError, NotFound
from consilia.node import audit, datasets, measuring, optout
from consilia.node.measuring import Wanted
from consilia.node.store import Store

NOW = 1_800_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "node").mkdir()
    opened = Store.open(tmp_path / "node")
    yield opened
    opened.close()


def table(folder: Path, rows: int = 60, extra: str = "") -> Path:
    path = folder / "t.csv"
    lines = (f"p{i},{20 + i % 50},{'FM'[i % 2]},{i}\n" for i in range(rows))
    path.write_text("id,age,sex,ward\n" + "".join(lines) + extra)
    return path


def wanted(path: Path, mock: bool = False) -> Wanted:
    return Wanted("visits", ("cohort",), str(path), patient="id", mock=mock)


def actions(store: Store) -> list[tuple[str, str, str]]:
    return [(x.action, x.outcome, x.detail) for x, _ in audit.every(store)]


def test_a_registration_is_profiled_at_once(store: Store, tmp_path: Path) -> None:
    found = measuring.register(store, wanted(table(tmp_path)), actor="mara", now=NOW)
    assert found.version == 1 and found.usable
    profile = datasets.kept_profile(store, found.dataset)
    assert profile is not None and (profile.records, profile.patients) == (60, 60)
    age = next(c for c in profile.columns if c.name == "age")
    assert (age.least, age.most, age.missing) == (20, 69, 0)
    with pytest.raises(Conflict, match="is registered already"):
        measuring.register(store, wanted(table(tmp_path)), actor="mara", now=NOW)
    with pytest.raises(ConfigError, match="a file or folder, or a query"):
        measuring.register(store, Wanted("other", ("t",)), actor="mara", now=NOW)


def test_a_description_is_checked_kept_and_audited(store: Store, tmp_path: Path) -> None:
    measuring.register(store, wanted(table(tmp_path)), actor="mara", now=NOW)
    old = schema_of(datasets.get(store, "visits").dataset)
    new = schemas.edited(old, "age", {"unit": "a", "missing": ("20", "21")})
    new = schemas.edited(new, "ward", {"role": "ignore"})
    found = measuring.describe(store, "visits", new, actor="mara", now=NOW + 1)
    assert found.version == 2 and schema_of(found.dataset) == new
    assert [v.schema for v in datasets.schema_versions(store, "visits")] == [old, new]
    profile = datasets.kept_profile(store, found.dataset)
    assert profile is not None
    assert {c.name: c.missing for c in profile.columns} == {"id": 0, "age": 4, "sex": 0}
    assert datasets.offered(store)[0].columns == {
        "id": "str",
        "age": "int64",
        "sex": "category",
    }
    assert "age.unit: '' -> 'a'" in actions(store)[-1][2]
    for column, changes in (("sex", {"type": "int64"}), ("sex", {"type": "float32"})):
        with pytest.raises(DataError, match="column 'sex', row 1: 'F' is not"):
            bad = schemas.edited(new, column, changes)
            measuring.describe(store, "visits", bad, actor="mara", now=NOW)
    with pytest.raises(ConfigError, match="other columns than dataset 'visits' has: ward"):
        measuring.describe(store, "visits", new[:-1], actor="mara", now=NOW)
    assert datasets.get(store, "visits").version == 2


def test_patient_ids_may_not_be_missing(store: Store, tmp_path: Path) -> None:
    measuring.register(store, wanted(table(tmp_path)), actor="mara", now=NOW)
    old = schema_of(datasets.get(store, "visits").dataset)
    with pytest.raises(DataError, match="1 records have no value in 'id'"):
        bad = schemas.edited(old, "id", {"missing": ("p7",)})
        measuring.describe(store, "visits", bad, actor="mara", now=NOW)


def test_changed_files_are_noticed_refused_and_accepted(store: Store, tmp_path: Path) -> None:
    path = table(tmp_path)
    measuring.register(store, wanted(path), actor="mara", now=NOW)
    new = schemas.edited(schema_of(datasets.get(store, "visits").dataset), "age", {"unit": "a"})
    measuring.describe(store, "visits", new, actor="mara", now=NOW)
    os.utime(path, (1, 1))
    assert datasets.watch(store, NOW) == [], "a touched file is the same"
    revision = store.revision()
    table(tmp_path, 61)
    assert datasets.watch(store, NOW + 2) == ["visits"]
    assert datasets.watch(store, NOW + 3) == [], "said once"
    assert store.revision() > revision, "the agent is not told"
    assert not datasets.facts(store)[0].enabled and datasets.offered(store) == ()
    assert actions(store)[-1][:2] == ("dataset.files", "changed")
    with pytest.raises(DataError, match="consilia dataset refresh visits"):
        measuring.look(store, "visits", now=NOW)
    with pytest.raises(DataError, match="consilia dataset refresh visits"):
        measuring.preview(store, "visits")
    with pytest.raises(DataError, match="was changed"):
        measuring.describe(store, "visits", new, actor="mara", now=NOW)
    table(tmp_path)
    assert datasets.watch(store, NOW + 4) == ["visits"], "put back"
    assert datasets.facts(store)[0].enabled
    table(tmp_path, 62)
    datasets.watch(store, NOW + 5)
    found = measuring.refresh(store, "visits", actor="mara", now=NOW + 6)
    assert found.usable and found.dataset.records == 62 and schema_of(found.dataset) == new
    assert datasets.offered(store)[0].records == 60


def test_a_preview_shows_what_tasks_will_read(store: Store, tmp_path: Path) -> None:
    measuring.register(store, wanted(table(tmp_path)), actor="mara", now=NOW)
    new = schemas.edited(
        schema_of(datasets.get(store, "visits").dataset), "age", {"missing": ("21",)}
    )
    measuring.describe(store, "visits", new, actor="mara", now=NOW)
    found = measuring.preview(store, "visits", 2)
    assert found.columns == ("id", "age", "sex", "ward")
    assert found.rows == (("p0", "20", "F", "0"), ("p1", None, "M", "1"))
    with pytest.raises(ConfigError, match="rows: found 1001, needed 1 to 1000"):
        measuring.preview(store, "visits", 1001)


def test_a_mock_twin_leaves_by_consent_only(store: Store, tmp_path: Path) -> None:
    measuring.register(store, wanted(table(tmp_path)), actor="mara", now=NOW)
    assert datasets.twin(store, "visits") is not None
    assert datasets.offered(store)[0].mock is None
    measuring.consent(store, "visits", True, actor="mara", now=NOW)
    told = datasets.offered(store, k=5)[0].mock
    assert told is not None and [c.name for c in told.columns] == ["id", "age", "sex", "ward"]
    assert datasets.offered(store, k=6)[0].mock is None, "made with a lower k than is in force"
    assert "mock" in actions(store)[-1][2]
    measuring.consent(store, "visits", False, actor="mara", now=NOW)
    assert datasets.offered(store)[0].mock is None


def test_a_twin_forgets_who_opted_out_when_enough_did(store: Store, tmp_path: Path) -> None:
    """One patient who leaves moves no number; a group does; the site still sees them all."""
    measuring.register(store, wanted(table(tmp_path), mock=True), actor="mara", now=NOW)
    before, secret = datasets.offered(store)[0].mock, optout.key(store.path.parent)
    optout.add(store, ["p1"], secret, actor="mara", now=NOW)
    assert measuring.retell(store, now=NOW) == ("visits",)
    assert datasets.offered(store)[0].mock == before
    women = [f"p{i}" for i in range(0, 28, 2)]  # 14 of 30
    optout.add(store, women, secret, actor="mara", now=NOW)
    measuring.retell(store, now=NOW)
    after = datasets.offered(store)[0].mock
    assert before is not None and after is not None
    sex = [next(c for c in twin.columns if c.name == "sex") for twin in (before, after)]
    assert [c.levels for c in sex] == [{"F": 30, "M": 30}, {"F": 15, "M": 30}]
    found = datasets.get(store, "visits")
    profile = datasets.kept_profile(store, found.dataset)
    assert profile is not None and profile.patients == 60
    (tmp_path / "t.csv").write_text("changed\n")
    assert measuring.retell(store, now=NOW) == ()  # what cannot be read tells nothing new
    assert datasets.offered(store)[0].mock == after


def test_registering_anew_does_not_forget_what_was_told(store: Store, tmp_path: Path) -> None:
    """Remove, leave one patient out, add again: the twin must not tell the difference."""
    measuring.register(store, wanted(table(tmp_path), mock=True), actor="mara", now=NOW)
    before = datasets.offered(store)[0].mock
    datasets.remove(store, "visits", actor="mara", now=NOW)
    measuring.register(store, wanted(table(tmp_path, 59), mock=True), actor="mara", now=NOW)
    assert datasets.offered(store)[0].mock == before


def test_a_query_is_snapshotted_refreshed_and_deleted(store: Store, tmp_path: Path) -> None:
    database = tmp_path / "cdw.duckdb"
    with duckdb.connect(database) as db:
        db.execute("CREATE TABLE v AS SELECT range AS id, range % 7 AS days FROM range(100)")
    source = origin("duckdb", str(database), "SELECT id::VARCHAR AS id, days FROM v")
    asked = Wanted("stays", ("cohort",), origin=source, patient="id")
    found = measuring.register(store, asked, actor="mara", now=NOW).dataset
    snapshot = store.path.parent / "snapshots" / "stays.parquet"
    assert (found.path, found.records, found.format) == (str(snapshot), 100, "parquet")
    assert found.origin is not None and found.origin.taken == NOW
    with duckdb.connect(database) as db:
        db.execute("INSERT INTO v VALUES (1000, 3)")
    datasets.check_unchanged(found)  # a snapshot is what it was
    again = measuring.refresh(store, "stays", actor="mara", now=NOW + 9).dataset
    assert again.records == 101 and again.origin is not None and again.origin.taken == NOW + 9
    with duckdb.connect(database) as db:
        db.execute("ALTER TABLE v ALTER days TYPE VARCHAR USING 'word'")
    with pytest.raises(DataError, match="column 'days'"):
        measuring.refresh(store, "stays", actor="mara", now=NOW)
    datasets.check_unchanged(again)  # an answer that does not fit takes no place
    assert [p.name for p in snapshot.parent.iterdir()] == ["stays.parquet"]
    database.unlink()
    with pytest.raises(DataError, match="no such file"):
        measuring.refresh(store, "stays", actor="mara", now=NOW)
    datasets.check_unchanged(again)  # a failed refresh leaves the snapshot
    datasets.remove(store, "stays", actor="mara", now=NOW)
    assert not snapshot.exists()
    with pytest.raises(NotFound):
        measuring.refresh(store, "stays", actor="mara", now=NOW)


def test_a_refused_registration_leaves_no_snapshot(store: Store, tmp_path: Path) -> None:
    database = tmp_path / "cdw.duckdb"
    with duckdb.connect(database) as db:
        db.execute("CREATE TABLE v AS SELECT 1 AS a, 'x' AS b LIMIT 0")
    source = origin("duckdb", str(database), "SELECT * FROM v")
    with pytest.raises(DataError, match="no records"):
        measuring.register(store, Wanted("empty", ("t",), origin=source), actor="mara", now=NOW)
    assert list((store.path.parent / "snapshots").iterdir()) == []
    assert datasets.list_datasets(store) == []
