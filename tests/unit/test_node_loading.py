"""Loading plans and opt-outs at a node: versions, what tasks get, what waits, the trail."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.data import schema as schemas
from consilia.data.loading import blocks
from consilia.data.loading.blocks import LoadingPlan
from consilia.data.registry import inspect_table, schema_of, to_source
from consilia.data.table import Table
from consilia.errors import ConfigError, Conflict, DataError, NotFound
from consilia.node import datasets, loading, optout
from consilia.node.policy import DatasetFacts
from consilia.node.store import Store
from consilia.wire.v1 import Declined, Result
from nodekit import STUDY, Node, base_model, lease, make_plan, node, until

AT = 1.8e9
SECRET = b"s" * 32
# the update is the mean of column x, so it shows which records were loaded, and how
MEAN = ('np.float32(args["lr"])', 'np.float32(data.column("x").mean())')


def plan(body: str, name: str = "p") -> LoadingPlan:
    return blocks.from_yaml(f"name: {name}\nblocks:\n{body}", "p.yaml")


def register(store: Store, folder: Path, rows: int = 120) -> Path:
    path = folder / "cohort.csv"
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("pid", "x", "y"))
        writer.writerows((f"p{i}", i, i % 2) for i in range(rows))
    found = inspect_table(path, "cohort", ("cohort",), now=AT, patient="pid")
    datasets.add(store, found, actor="mara", now=AT)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path)


def test_versions_are_kept_and_attachments_pin_one(store: Store, tmp_path: Path) -> None:
    register(store, tmp_path)
    first = plan("- {block: filter, where: x >= 10}")
    second = plan("- {block: filter, where: x >= 20}")
    assert loading.create(store, first, actor="mara", now=AT).version == 1
    with pytest.raises(Conflict, match="consilia loading edit"):
        loading.create(store, second, actor="mara", now=AT)
    _, facts = loading.attach(store, "p", "cohort", actor="mara", now=AT)
    assert facts.records == 110
    assert loading.edit(store, second, actor="mara", now=AT).version == 2
    with pytest.raises(Conflict, match="version 2 of 'p' says this already"):
        loading.edit(store, second, actor="mara", now=AT)
    assert [a.version for a in loading.attachments(store)] == [1]
    assert loading.get(store, "p").plan == second
    assert "+  where: x >= 20" in loading.difference(*loading.versions(store, "p"))
    with pytest.raises(NotFound, match="versions 1 to 2, not 3"):
        loading.get(store, "p", 3)
    loading.detach(store, "cohort", actor="mara", now=AT)
    with pytest.raises(NotFound, match="no loading plan is attached"):
        loading.detach(store, "cohort", actor="mara", now=AT)


def test_a_plan_that_does_not_fit_is_never_attached(store: Store, tmp_path: Path) -> None:
    register(store, tmp_path)
    loading.create(store, plan("- {block: filter, where: z > 1}"), actor="mara", now=AT)
    loading.create(
        store, plan("- {block: map, column: y, values: {0: 1}}", "q"), actor="mara", now=AT
    )
    with pytest.raises(ConfigError, match="no column 'z'"):
        loading.attach(store, "p", "cohort", actor="mara", now=AT)
    with pytest.raises(DataError, match="column 'y': value '1' is not in `values`"):
        loading.attach(store, "q", "cohort", actor="mara", now=AT)
    assert loading.attachments(store) == []


def test_a_declared_unit_need_not_be_said_again(store: Store, tmp_path: Path) -> None:
    register(store, tmp_path)
    loading.create(store, plan("- {block: unit, column: x, to: m}"), actor="mara", now=AT)
    with pytest.raises(ConfigError, match="declares no unit for 'x'"):
        loading.attach(store, "p", "cohort", actor="mara", now=AT)
    known = datasets.get(store, "cohort").dataset
    schema = schemas.edited(schema_of(known), "x", {"unit": "cm"})
    measured = inspect_table(
        known.path, "cohort", ("cohort",), now=AT, patient="pid", schema=schema
    )
    datasets.edit(store, "cohort", actor="mara", now=AT, measured=measured)
    loading.attach(store, "p", "cohort", actor="mara", now=AT)
    ready = loading.Loading(store).prepared(datasets.get(store, "cohort").dataset, "s")
    assert Table(to_source(ready.dataset)).column("x")[50] == pytest.approx(0.5)


def test_a_study_of_its_own_plan_and_all_the_others(store: Store, tmp_path: Path) -> None:
    register(store, tmp_path)
    for name, least in (("p", 10), ("q", 20)):
        body = f"- {{block: filter, where: x >= {least}}}"
        loading.create(store, plan(body, name), actor="mara", now=AT)
    loading.attach(store, "p", "cohort", actor="mara", now=AT)
    loading.attach(store, "q", "cohort", actor="mara", now=AT, study="hearts")
    known = datasets.get(store, "cohort").dataset
    ready = loading.Loading(store)
    assert [ready.prepared(known, s).dataset.records for s in ("hearts", "x")] == [100, 110]
    facts = ready.facts([DatasetFacts("cohort", frozenset(), 120)], {"cohort": known}, "x")
    assert [f.records for f in facts] == [110]


def test_a_changed_dataset_is_measured_before_it_is_loaded(
    store: Store, tmp_path: Path
) -> None:
    path = register(store, tmp_path)
    loading.create(store, plan("- {block: filter, where: x >= 10}"), actor="mara", now=AT)
    loading.attach(store, "p", "cohort", actor="mara", now=AT)
    path.write_text(path.read_text() + "p120,120,0\n")
    measured = inspect_table(path, "cohort", ("cohort",), now=AT, patient="pid")
    datasets.edit(store, "cohort", actor="mara", now=AT, measured=measured)
    known = datasets.get(store, "cohort").dataset
    assert "consilia loading refresh" in loading.Loading(store).prepared(known, "s").problem
    assert loading.refresh(store) == []
    assert loading.Loading(store).prepared(known, "s").dataset.records == 111


def test_the_list_holds_no_id_and_is_found_in_the_records(store: Store, tmp_path: Path) -> None:
    register(store, tmp_path)
    secret = optout.key(tmp_path)
    assert optout.key(tmp_path) == secret
    assert (tmp_path / optout.KEY).stat().st_mode & 0o777 == 0o600
    gone = [f"p{i}" for i in range(6)]
    assert optout.add(store, [*gone, " p3 ", "elsewhere"], secret, actor="mara", now=AT) == 7
    assert optout.add(store, gone, secret, actor="mara", now=AT) == 0
    assert all(b"p3" not in e.patient and len(e.patient) == 16 for e in optout.entries(store))
    assert loading.refresh(store) == []
    known = datasets.get(store, "cohort").dataset
    found = loading.Loading(store).prepared(known, "s")
    assert (found.dataset.records, len(found.patients)) == (114, 6)
    optout.remove(store, "p3", secret, actor="mara", now=AT)
    with pytest.raises(NotFound):
        optout.remove(store, "p3", secret, actor="mara", now=AT)
    assert loading.Loading(store).prepared(known, "s").problem  # until it is applied
    loading.refresh(store)
    assert loading.Loading(store).prepared(known, "s").dataset.records == 115
    with pytest.raises(ConfigError, match="patient id"):
        optout.add(store, ["ok", ""], secret, actor="mara", now=AT)
    assert optout.read_ids(["# hospital list", "", " 7 ", "8"]) == ["7", "8"]


PATIENTS = st.frozensets(st.binary(min_size=1, max_size=1), max_size=12)


@given(PATIENTS, PATIENTS, st.integers(2, 10))
def test_a_release_waits_for_k_changed_patients_or_noise(
    before: frozenset[bytes], now: frozenset[bytes], k: int
) -> None:
    waits = optout.wait(before, now, k, private=False)
    assert (waits is not None) is (0 < len(before ^ now) < k)
    assert optout.wait(now, before, k, private=False) == waits  # who comes back counts too
    assert optout.wait(before, now, k, private=True) is None
    assert optout.wait(None, now, k, private=False) is None


async def _mean(n: Node, round: int, digest: str) -> float | None:
    """Run a round; return the mean that was uploaded, None when the site declined."""
    asked = lease(n.hub, make_plan(MEAN), round=round, model=digest)
    n.hub.assign(asked)
    await until(lambda: n.hub.settled(asked.id))
    report = n.hub.settled(asked.id)
    if isinstance(report, Declined):
        return None
    assert isinstance(report, Result), report
    return float(n.hub.uploads[asked.id]["w"][0])


async def test_tasks_load_through_the_plan_without_those_who_opted_out(
    tmp_path: Path,
) -> None:
    async with node(tmp_path) as n:
        register(n.store, tmp_path)
        n.accept(make_plan(MEAN))
        body = "- {block: derive, column: x, expression: x * 10}\n"
        body += "- {block: filter, where: x >= 20}"
        stored = loading.create(n.store, plan(body), actor="mara", now=AT)
        loading.attach(n.store, "p", "cohort", actor="mara", now=AT, study=STUDY.name)
        digest = n.hub.publish(base_model())
        secret = optout.key(n.store.path.parent)
        async with n.running():
            assert await _mean(n, 1, digest) == pytest.approx(10 * np.mean(range(2, 120)))
            optout.add(n.store, ["p2", "p3"], secret, actor="mara", now=AT)
            assert await _mean(n, 2, digest) is None  # not applied yet
            loading.refresh(n.store)
            assert await _mean(n, 3, digest) is None  # 2 of 5 patients
            optout.add(n.store, ["p4", "p5", "p6"], secret, actor="mara", now=AT)
            loading.refresh(n.store)
            assert await _mean(n, 4, digest) == pytest.approx(10 * np.mean(range(7, 120)))
        starts, refusals = n.details("task.start"), n.details("task.refuse")
        assert f"loading plan p version 1 {stored.digest}" in starts[0]
        assert "5 patients opted out" in starts[1]
        assert "consilia loading refresh" in refusals[0]
        assert "2 patients opted out or came back" in refusals[1]
        assert all("p2" not in d for d in (*starts, *refusals, *n.details("optout.add")))


async def test_too_few_records_are_counted_after_loading(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        register(n.store, tmp_path)
        n.accept(make_plan(MEAN))
        few = plan("- {block: filter, where: x < 50}")
        loading.create(n.store, few, actor="mara", now=AT)
        loading.attach(n.store, "p", "cohort", actor="mara", now=AT)
        async with n.running():
            assert await _mean(n, 1, n.hub.publish(base_model())) is None
        assert "50 records" in n.details("task.refuse")[0]
