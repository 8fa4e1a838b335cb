"""What reviewers see and say: decisions overtaken, studies misspelt, who types a command."""

import pwd
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consilia.cli.main import app
from consilia.cli.options import login_name
from consilia.errors import ConfigError, Conflict
from consilia.node import approvals, config, review
from consilia.node.arguments import Interval
from consilia.node.config import NodeConfig
from consilia.node.store import Store
from consilia.wire.v1 import Plan, plan_digest
from nodekit import SITE, make_plan
from staffkit import employ

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
TODAY = date(2026, 11, 21)
PLAN = make_plan()
DIGEST = plan_digest(PLAN)
NOBODY = 2**32 - 1  # the kernel's word for a process that no login began


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.open(tmp_path)) as found:
        config.save(tmp_path, NodeConfig(SITE, "https://hub.invalid:1"))
        employ(found, "anna", "bert")
        offer(found, PLAN)
        yield found


def offer(store: Store, plan: Plan, at: float = NOW) -> str:
    digest = plan_digest(plan)
    approvals.offer(store, plan, digest, study="hearts", author="ada", now=at)
    return digest


def node_command(store: Store, *words: str) -> str:
    """Run a command of the node whose store this is; return what it prints on 125 columns."""
    given = ["node", *words, "--dir", str(store.path.parent)]
    done = CliRunner().invoke(app, given, env={"COLUMNS": "125"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_decision_is_not_taken_over_one_that_was_not_seen(store: Store) -> None:
    """Bert opens the plan; Anna rejects it; Bert's approval must not undo that unseen."""
    seen = approvals.mark(approvals.get(store, DIGEST, TODAY))
    approvals.reject(store, DIGEST, actor="anna", now=NOW + 1, reason="calls curl")
    with pytest.raises(Conflict, match=r"it is rejected, decided by anna \(calls curl\)"):
        approvals.approve(store, DIGEST, actor="bert", now=NOW + 2, seen=seen)
    assert approvals.get(store, DIGEST, TODAY).state == "rejected"
    seen = approvals.mark(approvals.get(store, DIGEST, TODAY))
    assert approvals.approve(store, DIGEST, actor="bert", now=NOW + 3, seen=seen).reviewer == (
        "bert"
    )


def test_terms_that_changed_are_agreed_to_by_nobody_who_saw_others(store: Store) -> None:
    """Anna signs, withdraws by rejecting, and signs wider ranges while Bert's page is open."""
    approvals.approve(store, DIGEST, actor="anna", now=NOW, needed=2)
    seen = approvals.mark(approvals.get(store, DIGEST, TODAY))
    approvals.reject(store, DIGEST, actor="anna", now=NOW + 1, reason="too narrow")
    wide = {"lr": Interval(0.0, 9.0)}
    approvals.approve(store, DIGEST, actor="anna", now=NOW + 2, arguments=wide, needed=2)
    with pytest.raises(Conflict, match="signed by anna"):
        approvals.approve(store, DIGEST, actor="bert", now=NOW + 3, needed=2, seen=seen)
    with pytest.raises(Conflict, match="decided about since you opened it"):
        approvals.reject(store, DIGEST, actor="bert", now=NOW + 3, reason="no", seen=seen)
    assert not approvals.grants(store)


def test_a_study_that_was_not_offered_is_told(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"'haerts' was not offered here; .* for: hearts"):
        approvals.approve(store, DIGEST, actor="anna", now=NOW, studies=("haerts",))
    approvals.approve(store, DIGEST, actor="anna", now=NOW, studies=("hearts",))
    assert approvals.grants(store)[DIGEST].studies == {"hearts"}


def test_a_plan_is_shown_with_all_that_was_decided_about_it(store: Store) -> None:
    allowed = {"lr": Interval(0.001, 0.1)}
    approvals.approve(
        store, DIGEST, actor="anna", now=NOW, reason="read it", until=date(2099, 12, 31),
        arguments=allowed, studies=("hearts",), needed=2,
    )  # fmt: skip
    waits = node_command(store, "plan-show", DIGEST)
    assert "anna, 2026-11-21" in waits and "until 2099-12-31, lr 0.001 to 0.1" in waits
    approvals.approve(store, DIGEST, actor="bert", now=NOW, needed=2)
    shown = dict(
        line.split(maxsplit=1)
        for line in node_command(store, "plan-show", DIGEST).splitlines()[:20]
        if line.startswith(("decided ", "until", "reason"))
    )
    assert shown["until"] == "2099-12-31" and "read it" in shown["reason"]
    assert shown["decided"].startswith("2026-11-21")
    approvals.revoke(store, DIGEST, actor="bert", now=NOW, reason="doubts")
    row = node_command(store, "plans").splitlines()[1].split("\t")
    assert row[2] == "revoked" and row[-1] == "bert"


def test_long_lines_stand_beside_each_other(store: Store) -> None:
    approvals.approve(store, DIGEST, actor="anna", now=NOW)
    text = PLAN.files["plan.py"]
    long = f"{text}# {'a' * 90} here\n"
    digest = offer(store, Plan(PLAN.name, {"plan.py": long}, PLAN.entry), NOW + 1)
    said = node_command(store, "plan-diff", digest, "--side-by-side").splitlines()
    rows = [line for line in said if line.startswith((" ", "="))][1:]
    assert {row[61] for row in rows if len(row) > 61} <= set(" >|<")
    assert max(map(len, rows)) <= 125
    assert "here" in "".join(row[63:].strip() for row in rows)


def test_a_plan_that_was_revoked_here_is_named_when_its_class_is_approved(
    store: Store,
) -> None:
    shipped = Path(__file__).parents[2] / "examples" / "first_model" / "tumour.py"
    plan = Plan("tumour", {"tumour.py": shipped.read_text()}, "tumour:PLAN")
    digest = offer(store, plan)
    assert digest in review.shipped()
    review.approve_shipped(store, actor="anna", now=NOW)
    review.revoke_shipped(store, actor="anna", now=NOW, reason="no longer")
    assert review.approve_shipped(store, actor="anna", now=NOW) == ()
    (kept,) = review.decided_singly(store, NOW)
    assert (kept.digest, kept.state) == (digest, "revoked")


def test_a_person_at_the_keyboard_is_who_signed_in_at_the_machine() -> None:
    """Not who LOGNAME says: with that, one person could be two reviewers."""
    root, other = pwd.getpwuid(0).pw_name, next(p for p in pwd.getpwall() if p.pw_uid)
    assert login_name(other.pw_uid, 0, "") == other.pw_name, "through su, to the node's user"
    assert login_name(0, other.pw_uid, str(other.pw_uid)) == root, "before what sudo tells"
    assert login_name(NOBODY, 0, str(other.pw_uid)) == other.pw_name
    assert login_name(NOBODY, 0, "") == login_name(NOBODY, 0, "x") == root
    gone = max(p.pw_uid for p in pwd.getpwall() if p.pw_uid < NOBODY) + 1
    assert login_name(NOBODY, gone, "") == f"uid-{gone}"
