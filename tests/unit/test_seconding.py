"""The first of two words counts only as long as its author may still decide."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from consilia.accounts import store as accounts
from consilia.errors import Conflict
from consilia.node import (
    approvals,
    audit,
    budget,
    caps,
    config,
    policyhistory,
    restores,
    seconding,
    standing,
)
from consilia.node.config import Budgets, NodeConfig
from consilia.node.signoffs import sign_off, terms_of
from consilia.node.store import Store
from consilia.privacy.ledger import Cap, Head
from consilia.wire.console import Role
from consilia.wire.v1 import plan_digest
from nodekit import make_plan
from staffkit import employ

NOW = 1_790_000_000.0
BUDGETS = Budgets()
LOST = Head(4, "sha256:" + "a" * 64)
TWO = "site: s\nhub: https://hub.invalid:1\nreviewers_needed: 2\n"
ONE = TWO.replace("needed: 2", "needed: 1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    config.save(tmp_path, NodeConfig("s", "https://hub.invalid:1"))
    (tmp_path / config.FILE).write_text(TWO)
    with contextlib.closing(Store.open(tmp_path)) as made:
        plan = make_plan()
        approvals.offer(made, plan, plan_digest(plan), study="hearts", author="ada", now=NOW)
        budget.compare(made, LOST, NOW)
        low = Cap(2.0, 1e-5)
        caps.decide(
            made, "study", "hearts", low, BUDGETS, actor="user:it", reason="board", now=NOW
        )
        employ(made, "mara", "paul")
        yield made


def approve(store: Store, actor: str) -> bool:
    """Approve the plan; tell whether it may run now."""
    approvals.approve(store, plan_digest(make_plan()), actor=actor, now=NOW)
    return bool(approvals.grants(store))


def restore(store: Store, actor: str) -> bool:
    """Go on with the ledger; tell whether it is held no more."""
    restores.decide(store, actor=actor, reason="disk lost", now=NOW)
    return budget.held(store) is None


def raise_cap(store: Store, actor: str) -> bool:
    """Ask for a higher cap; tell whether it holds."""
    high = Cap(4.0, 1e-5)
    waits = caps.decide(
        store, "study", "hearts", high, BUDGETS, actor=actor, reason="more", now=NOW
    )
    return waits is None


def loosen(store: Store, actor: str) -> bool:
    """Let one person be enough; tell whether that is in force."""
    where, under = store.path.parent, partial(standing.policy_of, store)
    with contextlib.suppress(Conflict):
        policyhistory.apply(store, where, ONE, "new", under, actor=actor, now=NOW)
    return (where / config.FILE).read_text() == ONE


@dataclass(frozen=True)
class Decision:
    """What takes two people, and the role that decides it."""

    decide: Callable[[Store, str], bool]
    role: Role


DECISIONS = [
    Decision(approve, "reviewer"),
    Decision(restore, "data_manager"),
    Decision(raise_cap, "data_manager"),
    Decision(loosen, "administrator"),
]


def without_role(store: Store, role: Role) -> None:
    with store.write() as tx:
        accounts.set_roles(tx, "mara", tuple({"dpo", "reviewer", "data_manager"} - {role}))


def disabled(store: Store, _: Role) -> None:
    with store.write() as tx:
        accounts.change(tx, "mara", disabled=1)


def removed(store: Store, _: Role) -> None:
    with store.write() as tx:
        accounts.remove(tx, "mara")


def followed(store: Store, _: Role) -> None:
    """Somebody else gets the name, and every role."""
    removed(store, _)
    employ(store, "mara", now=NOW + 1.0)


def turned_away(store: Store, _: Role) -> None:
    with store.write() as tx:
        seconding.forget(tx, "mara", now=NOW)


@pytest.mark.parametrize("asked", DECISIONS, ids=lambda d: d.decide.__name__)
@pytest.mark.parametrize("lost", [without_role, disabled, removed, followed, turned_away])
def test_a_word_counts_no_more_when_its_author_may_not_decide(
    store: Store, asked: Decision, lost: Callable[[Store, Role], None]
) -> None:
    assert not asked.decide(store, "mara")
    lost(store, asked.role)
    assert not asked.decide(store, "paul"), "one person was enough"
    assert asked.decide(store, "user:it")
    outcomes = [(line.actor, line.outcome) for line, _ in audit.every(store)]
    if asked.decide is not loosen or lost is turned_away:
        assert ("console", "void") in outcomes


def test_a_role_lost_between_the_second_word_and_the_approval(store: Store) -> None:
    """Both words were read as good; the transaction that approves reads the first one again."""
    assert not approve(store, "mara")
    record = approvals.get(store, plan_digest(make_plan()), approvals.day(NOW))
    (first,) = record.signoffs
    second = replace(first, reviewer="paul")
    both = sign_off(store, record.digest, second, repeats=True, needed=2)
    assert both == (first, second)
    without_role(store, "reviewer")
    with pytest.raises(Conflict, match=r"the word of mara .* counts no more"):
        approvals.settle(
            store, record, terms_of(first.terms), both, via="site", actor="paul", now=NOW
        )
    assert not approvals.grants(store)


def test_two_who_sign_at_once_are_two(store: Store) -> None:
    """Neither word is lost, and nobody has to say it again."""
    both = [threading.Thread(target=approve, args=(store, name)) for name in ("mara", "paul")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert approvals.grants(store)


@pytest.mark.parametrize("asked", DECISIONS, ids=lambda d: d.decide.__name__)
def test_it_counts_while_they_may(store: Store, asked: Decision) -> None:
    with store.write() as tx:
        accounts.set_roles(tx, "mara", (asked.role,))
    assert not asked.decide(store, "mara")
    assert not asked.decide(store, "user:mara") if asked.decide is loosen else True
    assert asked.decide(store, "paul")


def test_a_cap_asked_for_by_many_at_once_takes_two_of_them_once(store: Store) -> None:
    """Held against what holds, and noted, in one transaction: no word counts twice."""
    done: list[bool] = []
    names = ["mara"] * 6 + ["paul"]
    threads = [
        threading.Thread(target=lambda n=name: done.append(raise_cap(store, n)))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not any(done):  # paul was the first: his word waits, and then mara's is the second
        assert raise_cap(store, "mara")
    assert caps.proposals(store) == []
    (cap,) = store.rows("SELECT epsilon FROM budget_caps WHERE name = 'hearts'")
    assert cap == (4.0,)
