"""What the consortium is told of a dataset as its loading plans make it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.data import harmonise
from consilia.data.loading.blocks import AnyBlock, ConvertUnit, Filter, LoadingPlan, Rename
from consilia.errors import ConfigError
from consilia.node import datasets, loadedtwins, loading, measuring
from consilia.node.measuring import Wanted
from consilia.node.store import Store
from consilia.wire.offers import as_loaded, for_study
from consilia.wire.v1 import LoadedTwin, MockColumn, MockTwin, OfferedDataset

NOW = 1.8e9


def ward(i: int) -> str:
    return "c" if i > 116 else "ab"[i % 2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A node with one dataset: 120 patients, of whom 3 are of ward c, and 20 under 18."""
    (tmp_path / "node").mkdir()
    with contextlib.closing(Store.open(tmp_path / "node")) as made:
        rows = (
            f"P{i},{12 if i < 20 else 30 + i % 40},{90 + i % 30},{ward(i)}" for i in range(120)
        )
        path = tmp_path / "data" / "lab.csv"
        path.parent.mkdir()
        path.write_text("pid,age,GLUC,ward\n" + "\n".join(rows) + "\n")
        wanted = Wanted("lab", ("sugar",), str(path), patient="pid", mock=True)
        measuring.register(made, wanted, actor="dora", now=NOW)
        yield made


def attach(store: Store, *blocks: AnyBlock, study: str = "") -> None:
    """Store the next version of a plan, and let it load the dataset."""
    plan = LoadingPlan(f"plan{study}", blocks)
    loading.accept(store, plan, "lab", actor="dora", now=NOW, study=study)
    loadedtwins.retell(store, now=NOW)


def consent(store: Store, as_loaded: bool = True) -> None:
    measuring.consent(store, "lab", actor="dora", now=NOW, as_loaded=as_loaded)
    loadedtwins.retell(store, now=NOW)


def told(store: Store, k: int = 5) -> OfferedDataset:
    (found,) = loadedtwins.added(store, datasets.offered(store, k), k)
    return found


def test_it_is_told_only_with_consent_and_only_while_it_holds(store: Store) -> None:
    blocks = (Rename({"GLUC": "glucose"}), ConvertUnit("glucose", "mmol/L", "mg/dL", "glucose"))
    attach(store, *blocks)
    assert told(store).mock is not None and told(store).loaded == ()
    consent(store)
    (twin,) = told(store).loaded
    assert twin.study == ""
    assert {c.name: c.unit for c in twin.twin.columns}["glucose"] == "mmol/L"
    assert told(store, k=8).loaded == ()  # made with a smaller k than is in force
    measuring.describe(
        store,
        "lab",
        tuple(datasets.schema_versions(store, "lab")[-1].schema),
        actor="dora",
        now=NOW,
    )
    assert len(told(store).loaded) == 1  # what was declared is the same
    path = Path(datasets.get(store, "lab").dataset.path)
    path.write_text(path.read_text() + "P900,44,91,a\n")
    measuring.refresh(store, "lab", actor="dora", now=NOW)
    assert told(store).loaded == ()  # not looked at yet
    loadedtwins.retell(store, now=NOW)
    assert len(told(store).loaded) == 1
    consent(store, as_loaded=False)
    assert told(store).loaded == ()


def test_a_study_hears_of_its_own_plan_only(store: Store) -> None:
    consent(store)
    attach(store, Rename({"GLUC": "glucose"}))
    attach(store, Rename({"GLUC": "sugar"}), study="other")
    offer = told(store)
    assert len(offer.loaded) == 2
    names = {s: {c.name for c in as_loaded(offer, s).columns} for s in ("mine", "other")}  # type: ignore[union-attr]
    assert "glucose" in names["mine"] and "sugar" in names["other"]
    assert [found.study for found in for_study(offer, "mine").loaded] == [""]


def test_who_a_plan_leaves_out_is_not_the_difference_of_two_twins(store: Store) -> None:
    consent(store)
    attach(store, Filter("ward != 'c'"))  # three patients
    assert told(store).loaded == ()
    (said,) = loadedtwins.shown(store, "lab")
    assert "leaves out 3 patients, fewer than 5" in said.problem
    attach(store, Filter("age >= 18"))  # twenty
    (twin,) = told(store).loaded
    mock = told(store).mock
    assert mock is not None
    before, after = ({c.name: c for c in m.columns} for m in (mock, twin.twin))
    assert sum(after["age"].counts) < sum(before["age"].counts)
    cells = before["GLUC"].counts, after["GLUC"].counts
    if before["GLUC"].start == after["GLUC"].start:
        assert all(a == b or abs(a - b) >= 5 for a, b in zip(*cells, strict=True))


def test_a_cell_with_few_patients_between_tells_the_files_count(store: Store) -> None:
    consent(store)
    attach(store, Filter("age >= 18 or GLUC > 93"))  # 4 of the 20, and 16 of them in bins apart
    assert told(store).loaded == ()
    attach(store, Filter("age >= 18 or GLUC > 105"))
    (twin,) = told(store).loaded
    mock = told(store).mock
    assert mock is not None
    before, after = ({c.name: c for c in m.columns} for m in (mock, twin.twin))
    was, now = before["ward"].levels, after["ward"].levels
    assert set(was) == {"a", "b"} == set(now)
    assert all(was[at] == now[at] or was[at] - now[at] >= 5 for at in was)


def test_as_loaded_alone_is_refused(store: Store) -> None:
    measuring.consent(store, "lab", False, actor="dora", now=NOW)
    with pytest.raises(ConfigError, match="--allow --as-loaded"):
        consent(store)
    measuring.consent(store, "lab", True, actor="dora", now=NOW, as_loaded=True)


def test_the_report_says_who_is_compared_as_in_the_file() -> None:
    def twin(name: str) -> MockTwin:
        return MockTwin((MockColumn(name, "float64", start=0.0, width=1.0, counts=(50, 40)),))

    def offer(*loaded: LoadedTwin) -> OfferedDataset:
        return OfferedDataset("d", ("t",), 90, {}, twin("GLUC"), loaded)

    mended = offer(LoadedTwin("s", twin("glucose")))
    silent = OfferedDataset("d", ("t",), 90)
    found = harmonise.told((("a", mended), ("b", offer()), ("c", silent)), "s")
    assert (found.silent, found.as_in_file) == (("c",), ("b",))
    assert [c.name for c in found.twins["a"].columns] == ["glucose"]
    other = harmonise.told((("a", mended), ("b", offer())), "another")
    assert other.as_in_file == ("a", "b")
    report = harmonise.compare(found.twins, "p", "a", found.as_in_file)
    assert report.as_in_file == ("b",)


def test_two_studies_plans_do_not_tell_who_is_in_one_alone(store: Store) -> None:
    consent(store)
    attach(store, Filter("age >= 18"), study="first")  # leaves 100
    attach(store, Filter("age >= 18 and ward != 'c'"), study="second")  # 97, 23 less than all
    assert [found.study for found in told(store).loaded] == ["first"]
    problems = {s.attached.study: s.problem for s in loadedtwins.shown(store, "lab")}
    assert problems["first"] == ""
    assert "first is of 100 patients, this of 97" in problems["second"]
    attach(store, Filter("age >= 18"), study="third")  # the same patients
    assert [found.study for found in told(store).loaded] == ["first", "third"]
