"""Approvals, studies and datasets: states, pinned digests, who decided, and what is told."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec
import pytest

from consilia.core.chain import Break
from consilia.errors import ConfigError, Conflict, DataError, NotFound, PlanError, WireError
from consilia.node import approvals, audit, datasets, source, studies
from consilia.node.arguments import Interval
from consilia.node.signoffs import SignOff, terms_of
from consilia.node.store import Store
from consilia.wire.planform import check_form, entry_file
from consilia.wire.v1 import MAX_PLAN, Plan, Study, plan_digest, study_digest
from nodekit import SITE, STUDY, make_plan, write_table
from staffkit import employ

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
TODAY = date(2026, 11, 21)
PLAN = make_plan()
NEXT = make_plan(("np.float32(args", "2 * np.float32(args"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store.open(tmp_path)
    yield found
    assert not isinstance(audit.verify(found), Break)
    found.close()


def offer(store: Store, plan: Plan = PLAN, now: float = NOW) -> str:
    approvals.offer(store, plan, plan_digest(plan), study="hearts", author="ada", now=now)
    return plan_digest(plan)


def actions(store: Store) -> list[str]:
    return [f"{line.actor} {line.action} {line.outcome}" for line, _ in audit.every(store)]


def test_a_plan_from_offer_to_revocation(store: Store) -> None:
    digest = offer(store)
    assert approvals.get(store, digest, TODAY).state == "pending" and not approvals.grants(
        store
    )
    done = approvals.approve(store, digest[7:15], actor="mara", now=NOW, reason="read it")
    assert (done.state, done.reviewer, done.reason) == ("approved", "mara", "read it")
    assert list(approvals.grants(store)) == [digest]
    with pytest.raises(Conflict, match="revoke it instead"):
        approvals.reject(store, digest, actor="mara", now=NOW, reason="no")
    assert approvals.revoke(store, digest, actor="jo", now=NOW, reason="x").state == "revoked"
    assert not approvals.grants(store)
    with pytest.raises(Conflict, match="is revoked, not approved"):
        approvals.revoke(store, digest, actor="jo", now=NOW, reason="x")
    assert approvals.approve(store, digest, actor="jo", now=NOW).state == "approved"
    assert actions(store) == [
        "hub plan.offer pending",
        "mara plan.approve approved",
        "jo plan.revoke revoked",
        "jo plan.approve approved",
    ]


def test_a_rejected_plan_is_not_offered_again(store: Store) -> None:
    digest = offer(store)
    assert approvals.reject(store, digest, actor="m", now=NOW, reason="no").state == "rejected"
    offer(store)
    assert approvals.get(store, digest, TODAY).state == "rejected"


def test_the_last_day_is_inclusive(store: Store) -> None:
    digest = offer(store)
    approvals.approve(store, digest, actor="m", now=NOW, until=TODAY)
    assert approvals.get(store, digest, TODAY).state == "approved"
    assert approvals.get(store, digest, date(2026, 11, 22)).state == "expired"
    assert approvals.grants(store)[digest].until == TODAY
    with pytest.raises(ConfigError, match="lies in the past"):
        approvals.approve(store, digest, actor="m", now=NOW, until=date(2026, 11, 20))


def test_an_approval_names_what_may_be_set(store: Store) -> None:
    digest = offer(store)
    approvals.approve(store, digest, actor="m", now=NOW, arguments={"lr": Interval(0.1, 0.2)})
    grant = approvals.grants(store)[digest]
    assert grant.arguments == {"lr": Interval(0.1, 0.2), "wait": None}
    assert grant.defaults == {"lr": 1.0, "wait": 0.0}
    with pytest.raises(ConfigError, match="'rate' is not declared by the plan; declared: lr"):
        approvals.approve(store, digest, actor="m", now=NOW, arguments={"rate": None})


def test_bytes_under_another_digest_are_audited_and_not_stored(store: Store) -> None:
    with pytest.raises(WireError, match="ignored"):
        approvals.offer(store, NEXT, plan_digest(PLAN), study="hearts", author="a", now=NOW)
    assert actions(store) == ["hub plan.offer refused"]
    assert approvals.list_plans(store, TODAY) == []


def test_the_digest_covers_source_entry_and_requirements_only() -> None:
    base = plan_digest(PLAN)
    change = msgspec.structs.replace
    assert plan_digest(change(PLAN, name="n", description="d")) == base
    others = [
        change(PLAN, files={"plan.py": PLAN.files["plan.py"] + " "}),
        change(PLAN, entry="plan:OTHER"),
        change(PLAN, requirements=("torch",)),
        change(PLAN, files={**PLAN.files, "more.py": ""}),
    ]
    assert len({base, *map(plan_digest, others)}) == 5


def unified(store: Store, digest: str) -> str:
    """Return what a reviewer sees changed since the version that was approved last."""
    return "\n".join(d.unified for d in approvals.review(store, digest, TODAY).differences)


def test_a_diff_is_against_the_version_that_was_approved_last(store: Store) -> None:
    first = offer(store)
    assert "+def init(args, seed):" in unified(store, first)
    approvals.approve(store, first, actor="m", now=NOW)
    second = offer(store, NEXT)
    changed = unified(store, second).splitlines()
    plus = [line for line in changed if line.startswith("+") and not line.startswith("+++")]
    assert len(plus) == 1 and "2 * np.float32" in plus[0]
    assert approvals.previous(store, second, TODAY).digest == first  # type: ignore[union-attr]
    assert unified(store, first) != ""


def test_a_prefix_names_one_plan_or_none(store: Store) -> None:
    digest = offer(store)
    assert approvals.get(store, digest[:19], TODAY).digest == digest
    for wrong in ("", "12345", "zzzzzz", "%_%_%_"):
        with pytest.raises(ConfigError):
            approvals.get(store, wrong, TODAY)
    with pytest.raises(NotFound):
        approvals.get(store, "0" * 12 if not digest.startswith("sha256:0") else "f" * 12, TODAY)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan("p", {}, "plan:PLAN"), "1 to 200 files"),
        (Plan("p", {"plan.py": ""}, "other:PLAN"), "names no file of the plan"),
        (Plan("p", {"plan.py": ""}, "plan"), "is not module:NAME"),
        (Plan("p", {"plan.py": ""}, "plan:a.b"), "is not module:NAME"),
        (Plan("p", {"plan.py": ""}, "plan:class"), "is not module:NAME"),
        (Plan("p" * 101, {"plan.py": ""}, "plan:P"), "1 to 100 printable"),
        (Plan("p", {"plan.py": "", "a b.py": ""}, "plan:P"), "cannot be imported"),
        (Plan("p", {"plan.py": "", "class.py": ""}, "plan:P"), "cannot be imported"),
        (Plan("p", {"plan.py": "", "d/ä.py": ""}, "plan:P"), "cannot be imported"),
        (Plan("p", {"plan.py": "\ud800"}, "plan:P"), "not valid Unicode"),
        (Plan("p", {"plan.py": ""}, "plan:P", ("x; python_version < '3'",)), "markers"),
        (Plan("p", {"plan.py": ""}, "plan:P", ("x",) * 65), "at most 64"),
        (Plan("p", {"plan.py": ""}, "plan:P", description="x" * 10_001), "10000"),
        (Plan("p\n", {"plan.py": ""}, "plan:P"), "printable"),
        (Plan("p", {"plan.py": "x" * (1 << 20)}, "plan:P"), "at most 1048576"),
        (Plan("p", {"plan.py": "", "../x": ""}, "plan:P"), "cannot be imported"),
    ],
)
def test_a_plan_has_a_form(plan: Plan, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        check_form(plan)


@pytest.mark.parametrize(
    "plan",
    [
        Plan("p" * 100, {"plan.py": "x" * (MAX_PLAN - 7)}, "plan:P", ("x",) * 64),
        Plan("p", {f"m{n}.py": "" for n in range(200)}, "m0:P", description="x" * 10_000),
        Plan("p", {"a/b/__init__.py": "", "c.py": ""}, "a.b:P", ("torch[cuda]>=2.6,<3",)),
        Plan("p", {f"{'d/' * 98}x.py": ""}, f"{'d.' * 98}x:P"),
    ],
    ids=["name and size", "files", "package", "deep"],
)
def test_a_plan_at_its_limits_is_taken(plan: Plan) -> None:
    check_form(plan)
    assert entry_file(plan) in plan.files


@pytest.mark.parametrize(
    ("text", "declared"),
    [
        ("P = f(arguments={'a': 1, 'b': 'x', 'c': True, 'd': -0.5})", {"a", "b", "c", "d"}),
        ("P: object = f(arguments={'a': 1})", {"a"}),
        ("P = f()", set()),
        ("P = f(arguments={'a': 1})\nP = f(arguments={'b': 1})", {"b"}),
        ("P = f(arguments=make())", None),
        ("P = f(arguments={'a': [1]})", None),
        ("P = f(arguments={'a': 1e999})", None),
        ("P = f(**other)", None),
        ("P = 3", None),
        ("Q = f(arguments={'a': 1})", None),
        ("P = (", None),
    ],
)
def test_declared_arguments_are_read_without_running(
    text: str, declared: set[str] | None
) -> None:
    found = source.declared_arguments(Plan("p", {"plan.py": text}, "plan:P"))
    assert (None if found is None else set(found)) == declared


# ---- studies --------------------------------------------------------------------------------


def test_accepting_pins_the_digest(store: Store) -> None:
    assert studies.offer(store, STUDY, NOW) and not studies.offer(store, STUDY, NOW)
    studies.accept(store, "hearts", actor="m", now=NOW, reason="contract")
    assert set(studies.grants(store)) == {study_digest(STUDY)}
    changed = msgspec.structs.replace(STUDY, purpose="to sell")
    studies.offer(store, changed, NOW + 1)
    states = {r.digest: r.state for r in studies.list_studies(store, TODAY)}
    assert states == {study_digest(STUDY): "accepted", study_digest(changed): "pending"}
    with pytest.raises(Conflict, match="has changed since it was accepted here: purpose"):
        studies.accept(store, "hearts", actor="m", now=NOW + 2)
    assert studies.difference(store, "hearts", TODAY) == (
        studies.FieldChange("purpose", "to learn", "to sell"),
    )
    studies.accept(store, study_digest(changed), actor="m", now=NOW + 2)
    assert set(studies.grants(store)) == {study_digest(changed)}, "two versions in force"
    assert studies.withdrawn(store) == (), "a version that was replaced was not left"


def test_a_study_is_declined_or_left(store: Store) -> None:
    studies.offer(store, STUDY, NOW)
    assert studies.decline(store, "hearts", actor="m", now=NOW).state == "declined"
    studies.accept(store, "hearts", actor="m", now=NOW, until=TODAY)
    assert studies.get(store, "hearts", date(2026, 11, 22)).state == "expired"
    assert studies.decline(store, "hearts", actor="m", now=NOW).state == "left"
    assert not studies.grants(store)
    with pytest.raises(NotFound):
        studies.accept(store, "lungs", actor="m", now=NOW)


def test_the_earlier_of_two_last_days_holds(store: Store) -> None:
    ends = msgspec.structs.replace(STUDY, until="2026-12-31")
    studies.offer(store, ends, NOW)
    accepted = studies.accept(store, "hearts", actor="m", now=NOW, until=date(2027, 1, 31))
    assert accepted.until == date(2026, 12, 31)
    over = Study("past", "p", (SITE,), ("t",), until="2026-11-20")
    studies.offer(store, over, NOW)
    with pytest.raises(Conflict, match="ended on 2026-11-20"):
        studies.accept(store, "past", actor="m", now=NOW)


def test_an_acceptance_may_name_datasets_that_exist(store: Store, tmp_path: Path) -> None:
    studies.offer(store, STUDY, NOW)
    with pytest.raises(NotFound, match="no dataset 'cohort'"):
        studies.accept(store, "hearts", actor="m", now=NOW, datasets=("cohort",))
    datasets.add(store, write_table(tmp_path / "t.csv", 7), actor="m", now=NOW)
    studies.accept(store, "hearts", actor="m", now=NOW, datasets=("cohort",))
    assert studies.grants(store)[study_digest(STUDY)].datasets == {"cohort"}


@pytest.mark.parametrize(
    "folder", ["/usr/local/share", sys.prefix, str(Path(approvals.__file__).parent)]
)
def test_a_file_that_every_worker_sees_is_no_dataset(
    store: Store, tmp_path: Path, folder: str
) -> None:
    measured = write_table(tmp_path / "t.csv", 7)
    with pytest.raises(ConfigError, match="which every worker can read"):
        datasets.add(store, replace(measured, path=f"{folder}/t.csv"), actor="m", now=NOW)
    assert datasets.list_datasets(store) == []
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(ConfigError, match="which every worker can read"):
        datasets.add(store, replace(measured, path=f"{link}/t.csv"), actor="m", now=NOW)
    datasets.add(store, measured, actor="m", now=NOW)


# ---- datasets -------------------------------------------------------------------------------


def test_a_dataset_from_registration_to_removal(store: Store, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", 123)
    datasets.add(store, table, actor="m", now=NOW)
    assert datasets.get(store, "cohort").dataset == table
    with pytest.raises(Conflict, match="registered already"):
        datasets.add(store, table, actor="m", now=NOW)
    (told,) = datasets.offered(store)
    assert (told.records, told.tags) == (120, ("cohort",)), "the count is rounded down"
    assert datasets.disable(store, "cohort", actor="m", now=NOW).enabled is False
    assert datasets.offered(store) == () and not datasets.facts(store)[0].enabled
    datasets.enable(store, "cohort", actor="m", now=NOW)
    edited = datasets.edit(store, "cohort", actor="m", now=NOW, tags=("a", "b"))
    assert edited.dataset.tags == ("a", "b") == datasets.get(store, "cohort").dataset.tags
    with pytest.raises(ConfigError, match="has no tag"):
        datasets.edit(store, "cohort", actor="m", now=NOW, tags=())
    datasets.remove(store, "cohort", actor="m", now=NOW)
    assert datasets.list_datasets(store) == [] and (tmp_path / "t.csv").exists()
    verbs = [a.split()[1] for a in actions(store)]
    assert verbs == [f"dataset.{v}" for v in ("add", "disable", "enable", "edit", "remove")]


def test_a_changed_file_is_noticed_and_a_touched_one_is_not_mistaken(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    table = write_table(path, 50)
    datasets.check_unchanged(table)
    os.utime(path, (1, 1))
    datasets.check_unchanged(table)  # same bytes
    text = path.read_text()
    path.write_text(text.replace("7,1", "7,0"))  # same length
    with pytest.raises(DataError, match="was changed after it was registered"):
        datasets.check_unchanged(table)
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        datasets.check_unchanged(table)
    datasets.add(store, table, actor="m", now=NOW)
    new = write_table(path, 60)
    edited = datasets.edit(store, "cohort", actor="m", now=NOW, measured=new)
    assert edited.dataset.records == 60
    datasets.check_unchanged(edited.dataset)


def test_a_rejection_is_not_overtaken_by_an_approval_on_its_way(store: Store) -> None:
    """Mara signs, then thinks better of it while Jo's word, counted with hers, is written."""
    employ(store, "mara")
    digest = offer(store)
    approvals.approve(store, digest, actor="mara", now=NOW, needed=2)
    seen = approvals.get(store, digest, TODAY)  # what Jo's approval has read
    approvals.reject(store, digest, actor="mara", now=NOW + 1, reason="line 40 sends labels")
    both = (*seen.signoffs, SignOff("jo", NOW + 2, "", seen.signoffs[0].terms))
    terms = terms_of(seen.signoffs[0].terms)
    with pytest.raises(Conflict, match="somebody else has decided about plan"):
        approvals.settle(store, seen, terms, both, via="site", actor="jo", now=NOW + 2)
    assert approvals.get(store, digest, TODAY).state == "rejected"
    assert not approvals.grants(store)
