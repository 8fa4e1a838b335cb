"""Folds: dealt once by patient, held out one at a time, and never all at once by accident."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consilia.data.holdout import Holdout, check, folds
from consilia.data.registry import inspect_table, to_source
from consilia.data.table import Table
from consilia.errors import ConfigError, DataError
from consilia.node import datasets, holdout, loading
from consilia.node.store import Store

DEALT = Holdout(seed=7, folds=3)


def test_the_fold_of_a_patient_follows_from_seed_and_id_alone() -> None:
    ids = [f"p{i // 2}" for i in range(200)]
    there = folds(DEALT, 200, None, ids)
    other = folds(DEALT, 100, None, ids[::-1][:100])
    assert (
        dict(zip(ids[::-1][:100], other.tolist(), strict=True)).items()
        <= dict(zip(ids, there.tolist(), strict=True)).items()
    )
    assert sorted(np.bincount(there, minlength=4)[1:].tolist())[0] > 40
    assert (folds(replace(DEALT, seed=8), 200, None, ids) != there).any()


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (Holdout(folds=1), "folds: found 1, needed 2 to 20"),
        (Holdout(folds=21), "folds: found 21"),
        (Holdout(folds=3, share=0.2), "folds together with a share"),
        (Holdout("part", ("test",), folds=3), "folds together with a share or values"),
    ],
)
def test_folds_that_make_no_sense_are_refused(declared: Holdout, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(declared, "pid")


def test_a_column_of_folds_holds_folds_and_parts_no_patient() -> None:
    numbered = Holdout("fold", folds=2)
    good = np.array(["1", "2", "2"], object)
    assert folds(numbered, 3, good, ["a", "b", "b"]).tolist() == [1, 2, 2]
    with pytest.raises(DataError, match="puts a patient into folds 1 and 2"):
        folds(numbered, 3, good, ["a", "a", "b"])
    with pytest.raises(DataError, match="holds '3', needed a fold: 1 to 2"):
        folds(numbered, 3, np.array(["1", "2", "3"], object), None)
    with pytest.raises(DataError, match="fold 2 of 2 has no record"):
        folds(numbered, 1, np.array(["1"], object), None)


def test_a_task_gets_its_fold_and_the_rest_gets_all(tmp_path: Path) -> None:
    table = tmp_path / "data" / "t.csv"
    table.parent.mkdir()
    table.write_text("pid,x\n" + "".join(f"p{i // 2},{i}\n" for i in range(60)))
    (tmp_path / "node").mkdir()
    with contextlib.closing(Store.open(tmp_path / "node")) as store:
        found = inspect_table(table, "t", ("tag",), now=0.0, patient="pid")
        datasets.add(store, found, actor="a", now=0.0)
        holdout.declare(store, "t", DEALT, actor="a", now=1.0)
        assert loading.refresh(store) == []
        known, ready = datasets.get(store, "t").dataset, loading.Loading(store)
        whole = ready.prepared(known, "s").dataset
        assert (whole.records, whole.held_records) == (60, 0)
        judged: set[float] = set()
        for fold in (1, 2, 3):
            mine = ready.prepared(known, "s", fold).dataset
            trained = set(Table(to_source(mine)).column("x").tolist())
            source = to_source(replace(mine, without=mine.held, records=mine.held_records))
            held = set(Table(source).column("x").tolist())
            assert (len(trained), len(held)) == (mine.records, mine.held_records)
            assert trained | held == set(range(60)) and not trained & held
            assert not {v // 2 for v in trained} & {v // 2 for v in held}, "a patient is parted"
            assert not held & judged
            judged |= held
        assert "the task names fold 4" in ready.prepared(known, "s", 4).problem
        plain = replace(known, holdout=None)
        assert "declares none" in loading.Loading(store).prepared(plain, "s", 1).problem
        # what was measured of a fold does not outlive the file it was measured of
        table.write_text("pid,x\n" + "".join(f"p{i // 2},{i}\n" for i in range(40)))
        again = inspect_table(table, "t", ("tag",), now=2.0, patient="pid")
        datasets.edit(store, "t", actor="a", now=2.0, measured=again)
        known = datasets.get(store, "t").dataset
        assert (
            "consilia loading refresh" in loading.Loading(store).prepared(known, "s", 1).problem
        )
