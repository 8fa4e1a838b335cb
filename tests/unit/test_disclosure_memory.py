"""The memory of past answers: it lasts, it is exact, and two processes share it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from consilia.errors import DataError, StorageError
from consilia.node import audit
from consilia.node.config import Disclosure
from consilia.node.disclosure import ALL, Answerer, Group, Question
from consilia.node.store import Store
from consilia.privacy.disclosure import SUPPRESSED, Suppressed

Mask = NDArray[np.bool_]
PLACES = np.arange(300)
OLD = PLACES < 120
EXACT = Disclosure(counts="exact")


def answerer(store: Store, settings: Disclosure = EXACT, study_k: int = 0) -> Answerer:
    return Answerer(store, settings, lambda: 0.0, os.urandom, study_k)


def question(
    out: Answerer, *masks: Mask, names: str = "", dataset: str = "table", first: int = 0
) -> Question:
    """Ask about patients `first` onwards; each mask's predicate is a letter of `names`."""
    ids = out.identities("patients", map(str, range(first, first + len(masks[0]))))
    groups = tuple(Group(n, m) for n, m in zip(names, masks, strict=True))
    return Question("hearts", "patients", dataset, f"count {names}", ids, groups)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store.open(tmp_path)
    yield found
    found.close()


def lines(store: Store) -> list[tuple[str, str]]:
    return [(li.outcome, li.detail) for li, _ in audit.every(store)]


def test_it_outlives_the_process(store: Store, tmp_path: Path) -> None:
    assert answerer(store).count(question(answerer(store), OLD, names="a")) == 120
    store.close()
    again = Store.open(tmp_path)
    out = answerer(again)
    assert out.count(question(out, OLD, names="a")) == 120
    assert out.count(question(out, PLACES < 121, names="b")) == SUPPRESSED
    again.close()


def test_it_outlives_the_dataset_and_follows_the_patients(store: Store) -> None:
    out = answerer(store)
    assert out.count(question(out, OLD, names="a")) == 120
    # another dataset, of patients 10 to 299: all ten who are missing were among the 120, so
    # 110 of these and one more are the 120, less the ten that the two datasets differ by, + 1
    near = question(out, np.arange(290) < 111, names="b", dataset="other", first=10)
    assert out.count(near) == SUPPRESSED
    other = question(out, np.arange(290) < 130, names="c", dataset="other", first=10)
    assert out.count(other) == 130
    same = question(out, np.arange(297) < 50, names="a", dataset="third", first=3)
    assert out.count(same) == SUPPRESSED, "a table that is three patients short of the first"


def test_universes_are_apart(store: Store) -> None:
    out = answerer(store)
    here = question(out, OLD, names="a")
    assert out.count(here) == 120
    there = replace(
        question(out, PLACES < 121, names="b"),
        universe="samples",
        population=out.identities("samples", map(str, PLACES)),
    )
    assert out.count(there) == 121


def test_the_memory_holds_no_key_and_its_hashes_are_salted(
    store: Store, tmp_path: Path
) -> None:
    key = "PESEL-44051401359"
    first = answerer(store).identities("patients", [key])
    assert answerer(store).identities("patients", [key]) == first
    assert answerer(store).identities("samples", [key]) != first
    out = answerer(store)
    ids = out.identities("patients", [key, *map(str, range(50))])
    group = Group("a", np.arange(51) < 30)
    out.count(Question("hearts", "patients", "table", "q", ids, (group,)))
    held = b"".join(p.read_bytes() for p in tmp_path.glob("node.sqlite*"))
    assert key.encode() not in held and ids[:1].tobytes() in held


def test_each_answer_has_its_line_without_a_number(store: Store) -> None:
    out = answerer(store)
    asked = question(out, PLACES < 137, names="a")
    out.count(asked)
    out.count(asked)
    out.count(question(out, PLACES < 2, names="b"))
    out.count(question(out, PLACES < 138, names="c"))
    found = lines(store)
    assert [o for o, _ in found] == ["answered", "repeated", "refused", "refused"]
    assert all("study hearts, dataset table" in d for _, d in found)
    assert "2 records" in found[2][1] and "fewer than 5" in found[3][1]
    assert not any("137" in d for _, d in found), "an answer is in the audit trail"


def test_a_full_disk_gives_no_answer(store: Store) -> None:
    out = answerer(store)
    asked = question(out, OLD, names="a")
    with store.write() as tx:
        tx.execute("CREATE TRIGGER full BEFORE INSERT ON disclosed_answers BEGIN "
                   "SELECT RAISE(ABORT, 'disk full'); END")  # fmt: skip
    with pytest.raises(StorageError):
        out.count(asked)
    assert store.rows("SELECT * FROM disclosed_groups") == []


def test_what_was_answered_is_never_forgotten(store: Store) -> None:
    out = answerer(store)
    out.count(question(out, OLD, names="a"))
    for statement in ("DELETE FROM disclosed_groups", "UPDATE disclosed_groups SET at = 1"):
        with pytest.raises(StorageError, match="never"), store.write() as tx:
            tx.execute(statement)


def test_the_study_raises_k_and_the_site_limits_answers(store: Store) -> None:
    strict = answerer(store, study_k=8)
    assert strict.rules.k == 8 and answerer(store, study_k=3).rules.k == 5
    assert strict.count(question(strict, PLACES < 7, names="a")) == SUPPRESSED
    few = answerer(store, Disclosure(counts="exact", answers=3))
    assert few.count(question(few, PLACES < 50, names="b")) == 50
    assert few.count(question(few, PLACES < 100, names="c")) == 100
    assert few.count(question(few, PLACES < 150, names="d")) == SUPPRESSED
    assert few.count(question(few, PLACES < 50, names="b")) == 50
    assert "limit" in lines(store)[3][1]


def test_a_raised_k_takes_back_earlier_answers(store: Store) -> None:
    out = answerer(store)
    asked = question(out, PLACES < 7, names="a")
    assert out.count(asked) == 7
    assert answerer(store, Disclosure(k=10, counts="exact")).count(asked) == SUPPRESSED


def test_several_statistics_of_one_group(store: Store) -> None:
    out = answerer(store)
    values = np.sqrt(PLACES + 1.0)
    asked = question(out, OLD, names="a")
    assert out.count(asked) == 120
    named = [replace(asked, query=q) for q in ("mean", "variance", "median", "fit")]
    assert out.mean(named[0], values) == pytest.approx(values[OLD].mean())
    assert out.variance(named[1], values) == pytest.approx(values[OLD].var(ddof=1))
    assert out.quantile(named[2], values, 0.5) == pytest.approx(
        np.median(values[OLD]), rel=1e-2
    )
    assert out.fit(named[3], [1.0, 2.0], 1000) == (1.0, 2.0)
    assert out.fit(replace(asked, query="saturated"), [1.0] * 40, 1000) == SUPPRESSED
    assert store.rows("SELECT count(*) FROM disclosed_groups") == [(2,)]  # all, and this one
    corrected = values.copy()
    corrected[3] += 100.0  # one record's value: a fresh mean would tell by how much
    assert out.mean(named[0], corrected) == pytest.approx(values[OLD].mean())


def test_a_cell_that_falls_below_k_is_not_told_by_its_absence(store: Store) -> None:
    out = answerer(store)
    small = PLACES < 6
    rest = (PLACES >= 6) & OLD
    both = question(out, small, rest, ~OLD, names="abc")
    assert out.table(both) == (6, 114, 180)
    gone = np.arange(298)  # patients 0 and 1 have left
    later = question(
        out, gone < 4, (gone >= 4) & (gone < 118), gone >= 118, names="abc", first=2
    )
    assert out.table(later) == (6, 114, 180)


WRONG = {
    "no group": lambda q: replace(q, groups=()),
    "a patient twice": lambda q: replace(q, population=np.zeros(300, np.uint64)),
    "a short mask": lambda q: replace(q, groups=(Group("a", OLD[:-1]),)),
    "an overlap": lambda q: replace(q, groups=(Group("a", OLD), Group("b", OLD))),
    "one name for two": lambda q: replace(q, groups=(Group("a", OLD), Group("a", ~OLD))),
    "not all": lambda q: replace(q, groups=(Group(ALL, OLD),)),
}


@pytest.mark.parametrize("fault", WRONG)
def test_questions_that_cannot_be_judged(store: Store, fault: str) -> None:
    out = answerer(store)
    with pytest.raises(DataError):
        out.table(WRONG[fault](question(out, OLD, names="a")))
    assert lines(store) == []


def test_a_universe_without_identities(store: Store) -> None:
    asked = Question(
        "s", "nowhere", "d", "q", np.arange(300, dtype=np.uint64), (Group("a", OLD),)
    )
    with pytest.raises(DataError, match="identity"):
        answerer(store).count(asked)
    assert store.rows("SELECT * FROM disclosed_groups") == []


def answers_of(results: list[int | Suppressed]) -> int:
    return sum(not isinstance(r, Suppressed) for r in results)


def test_threads_together_learn_no_more_than_one(store: Store) -> None:
    """Four ask at once for groups of which each is one patient more: one is answered."""
    out = answerer(store)
    asked = [question(out, (100 + i) > PLACES, names=str(i)) for i in range(4)]
    results: list[int | Suppressed] = []
    start = threading.Barrier(4)

    def ask(q: Question) -> None:
        start.wait()
        results.append(out.count(q))

    threads = [threading.Thread(target=ask, args=(q,)) for q in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and answers_of(results) == 1


PROCESS = """
import os, sys
from pathlib import Path
import numpy as np
from consilia.node.config import Disclosure
from consilia.node.disclosure import Answerer, Group, Question
from consilia.node.store import Store
from consilia.privacy.disclosure import Suppressed

store = Store.open(Path(sys.argv[1]))
out = Answerer(store, Disclosure(counts="exact"), lambda: 0.0, os.urandom)
ids = out.identities("patients", map(str, range(300)))
print("ready", flush=True)
sys.stdin.readline()
for more in range(int(sys.argv[2]), 24, 2):
    name = f"up to {100 + more % 4 + 40 * (more // 4)}"
    members = np.arange(300) < 100 + more % 4 + 40 * (more // 4) % 200
    found = out.count(Question("s", "patients", "t", name, ids, (Group(name, members),)))
    if not isinstance(found, Suppressed):
        print(found, flush=True)
"""


def test_processes_together_learn_no_more_than_one(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), str(first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in (0, 1)
    ]
    for process in asking:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in asking:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [int(n) for process in asking for n in process.communicate(timeout=60)[0].split()]
    assert all(process.returncode == 0 for process in asking)
    assert len(told) >= 4
    for a in told:
        assert not any(0 < abs(a - b) < 5 for b in told), sorted(told)
