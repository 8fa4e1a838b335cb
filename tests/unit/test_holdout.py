"""A hold-out never shares a patient with what is trained on, and training never sees it."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilia.data.holdout import Holdout, check, inside
from consilia.data.registry import inspect_table, to_source
from consilia.data.table import Table
from consilia.errors import ConfigError, DataError
from consilia.node import datasets, holdout, loading, optout
from consilia.node.store import Store
from consilia.wire.worker import TableSource

ids = st.lists(st.sampled_from([f"p{i}" for i in range(30)]), min_size=1, max_size=120)


@given(ids, st.floats(0.05, 0.95), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_a_draw_takes_whole_patients_and_knows_no_order(
    patients: list[str], share: float, seed: int
) -> None:
    declared = Holdout(share=share, seed=seed)
    try:
        found = inside(declared, len(patients), None, patients)
    except DataError:
        return  # nobody was drawn
    held = {p for p, inner in zip(patients, found, strict=True) if inner}
    kept = {p for p, inner in zip(patients, found, strict=True) if not inner}
    assert not held & kept
    turned = inside(declared, len(patients), None, patients[::-1])
    assert found.tolist() == turned.tolist()[::-1]


def test_a_draw_is_of_the_share_that_was_asked_for() -> None:
    patients = [f"patient {i}" for i in range(4000)]
    found = inside(Holdout(share=0.25, seed=4), 4000, None, patients)
    assert found.mean() == pytest.approx(0.25, abs=0.03)
    other = inside(Holdout(share=0.25, seed=5), 4000, None, patients)
    assert (found & other).mean() == pytest.approx(0.0625, abs=0.02)


@pytest.mark.parametrize(
    ("declared", "patient", "said"),
    [
        (Holdout(), "id", "by a column and its values, or by a share"),
        (Holdout("split", ("test",), 0.2), "id", "or by a share"),
        (Holdout("split"), "id", "0 values"),
        (Holdout(share=1.5), "id", "found 1.5, needed above 0, up to 1"),
        (Holdout(share=0.2), "", "--single"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(
    declared: Holdout, patient: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        check(declared, patient)


def written(folder: Path, *, parts_a_patient: bool = False) -> Path:
    """Write three visits of each of 40 patients, and which set each belongs to."""
    path = folder / "visits.csv"
    lines = ["patient,x,split"]
    for visit in range(120):
        patient = visit % 40
        name = "test" if patient >= 30 or (parts_a_patient and visit == 5) else "train"
        lines.append(f"{1000 + patient},{visit},{name}")
    path.write_text("\n".join(lines) + "\n")
    return path


def register(folder: Path, path: Path) -> Store:
    """Return a store in which the table is registered."""
    store = Store.open(folder)
    found = inspect_table(path, "visits", ("icu",), now=time.time(), patient="patient")
    datasets.add(store, found, actor="dm", now=time.time())
    return store


def rows_of(source: TableSource) -> set[float]:
    """Return which records a worker reads."""
    return set(Table(source).column("x").tolist())


@pytest.mark.parametrize("by", [Holdout("split", ("test",)), Holdout(share=0.3, seed=1)])
def test_train_and_hold_out_share_no_record_and_no_patient(tmp_path: Path, by: Holdout) -> None:
    store = register(tmp_path, written(tmp_path))
    holdout.declare(store, "visits", by, actor="dm", now=1.0)
    known = datasets.get(store, "visits").dataset
    assert loading.Loading(store).prepared(known, "s").problem  # until it is measured
    assert loading.refresh(store) == []
    (tmp_path / "secrets").mkdir(exist_ok=True)
    secret = optout.key(tmp_path)
    optout.add(store, ["1000", "1039"], actor="dm", now=2.0, secret=secret)
    assert loading.refresh(store) == []
    ready = loading.Loading(store).prepared(known, "s").dataset
    source = to_source(ready)
    train = rows_of(source)
    held = rows_of(
        TableSource(
            source.path, source.format, source.columns, source.missing,
            source.holdout_records, without=source.holdout,
        )
    )  # fmt: skip
    assert (len(train), len(held)) == (ready.records, ready.held_records)
    assert not {int(v) % 40 for v in train} & {int(v) % 40 for v in held}
    assert {int(v) % 40 for v in train | held} == set(range(1, 39))  # two opted out
    if by.column:
        assert {int(v) % 40 for v in held} == set(range(30, 39))
        assert "split" not in source.columns  # no feature says where a record lies
    store.close()


def test_a_column_that_parts_a_patient_is_refused(tmp_path: Path) -> None:
    store = register(tmp_path, written(tmp_path, parts_a_patient=True))
    with pytest.raises(DataError, match="puts 1 patients into training and hold-out both"):
        holdout.declare(store, "visits", Holdout("split", ("test",)), actor="dm", now=1.0)
    with pytest.raises(DataError, match="no column 'splt'; did you mean 'split'"):
        holdout.declare(store, "visits", Holdout("splt", ("test",)), actor="dm", now=1.0)
    with pytest.raises(DataError, match="has no record"):
        holdout.declare(store, "visits", Holdout("split", ("tset",)), actor="dm", now=1.0)
    assert datasets.get(store, "visits").dataset.holdout is None
    store.close()


def test_all_of_a_dataset_may_be_a_common_hold_out(tmp_path: Path) -> None:
    store = register(tmp_path, written(tmp_path))
    holdout.declare(store, "visits", Holdout(share=1.0), actor="dm", now=1.0)
    assert loading.refresh(store) == []
    known = datasets.get(store, "visits").dataset
    ready = loading.Loading(store).prepared(known, "s").dataset
    assert (ready.records, ready.held_records) == (0, 120)
    holdout.declare(store, "visits", None, actor="dm", now=2.0)
    known = datasets.get(store, "visits").dataset
    assert loading.Loading(store).prepared(known, "s").dataset.records == 120
    store.close()


def test_a_draw_of_records_is_for_single_ones() -> None:
    found = inside(Holdout(share=0.5, single=True), 200, None, None)
    assert 60 < int(np.count_nonzero(found)) < 140
