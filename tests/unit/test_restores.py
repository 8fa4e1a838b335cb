"""Going on with an older privacy ledger takes two people where a plan's approval does."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.errors import ConfigError, Conflict
from consilia.node import budget, config, restores
from consilia.node.config import NodeConfig
from consilia.node.store import Store
from consilia.privacy.ledger import Head
from staffkit import employ

LOST = Head(4, "sha256:" + "a" * 64)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    settings = NodeConfig("s", "https://hub.invalid:1", reviewers_needed=2)
    config.save(tmp_path, settings)
    with contextlib.closing(Store.open(tmp_path)) as made:
        employ(made, "mara", "paul")
        budget.compare(made, LOST, 1.0)
        yield made


def test_the_ledger_stays_held_until_a_second_person_agrees(store: Store) -> None:
    assert restores.decide(store, actor="user:mara", reason="disk lost", now=2.0) is None
    assert budget.held(store) == LOST
    for again in ("user:mara", "mara"):  # at the keyboard, and in the console
        with pytest.raises(Conflict, match="second person"):
            restores.decide(store, actor=again, reason="truly", now=3.0)
    assert restores.decide(store, actor="paul", reason="I saw it", now=4.0) == LOST
    assert budget.held(store) is None and restores.waiting(store) is None
    rows = store.rows("SELECT actor, outcome, detail FROM audit ORDER BY seq")
    assert [row[:2] for row in rows[1:]] == [("user:mara", "waits"), ("paul", "accepted")]
    assert "asked for by user:mara: disk lost" in rows[-1][2]


def test_a_word_is_withdrawn_and_counts_for_its_head_only(store: Store) -> None:
    restores.decide(store, actor="mara", reason="disk lost", now=2.0)
    restores.withdraw(store, actor="mara", now=3.0)
    assert restores.waiting(store) is None and budget.held(store) == LOST
    with pytest.raises(Conflict, match="nothing to withdraw"):
        restores.withdraw(store, actor="mara", now=4.0)
    restores.decide(store, actor="mara", reason="disk lost", now=5.0)
    restores.decide(store, actor="paul", reason="agreed", now=6.0)
    budget.compare(store, Head(9, "sha256:" + "b" * 64), 7.0)
    assert restores.decide(store, actor="paul", reason="again", now=8.0) is None


def test_a_reason_is_needed(store: Store) -> None:
    with pytest.raises(ConfigError, match="reason: found none"):
        restores.decide(store, actor="mara", reason=" ", now=2.0)


def test_one_person_is_enough_where_plans_need_one(tmp_path: Path) -> None:
    config.save(tmp_path, NodeConfig("s", "https://hub.invalid:1"))
    with contextlib.closing(Store.open(tmp_path)) as store:
        budget.compare(store, LOST, 1.0)
        assert restores.decide(store, actor="mara", reason="disk lost", now=2.0) == LOST
        with pytest.raises(Conflict, match="not held"):
            restores.decide(store, actor="mara", reason="again", now=3.0)


def test_two_who_agree_at_once_are_two_and_one_who_asks_twice_is_one(store: Store) -> None:
    """Every word is counted in one transaction, whatever else is said meanwhile."""
    outcomes: list[object] = []

    def say(actor: str) -> None:
        try:
            outcomes.append(restores.decide(store, actor=actor, reason="now", now=2.0))
        except Conflict as e:
            outcomes.append(str(e)[:11])

    for names in (("mara",) * 8, ("paul",)):
        threads = [threading.Thread(target=say, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes.count(None) == 1 and outcomes.count("mara has sa") == 7
    assert outcomes[-1] == LOST
    # nothing is left that a later restore to the same head could be taken to be asked with
    assert store.rows("SELECT * FROM restores_asked") == []
