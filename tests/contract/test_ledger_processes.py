"""Several programs and threads on one ledger, and programs that are killed in the middle.

Real processes on a real file. Whatever is killed when, the caps hold, everything that a
program was told is counted, and the books add up.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from consilia.errors import Refused
from consilia.node import ledger, ledgerlog
from consilia.node.config import Budgets
from consilia.node.store import Store
from consilia.privacy import ledger as rules
from consilia.privacy.accountant import ORDERS, cost
from consilia.privacy.ledger import Cap, Head
from consilia.wire.v1 import Dp

DP = Dp("record", 4.0, 1.0, 0.2, 10)
BUDGETS = Budgets(Cap(6.0))
SPENDER = """
import random, sys
from pathlib import Path
from consilia.errors import Refused
from consilia.node import ledger
from consilia.node.config import Budgets
from consilia.node.store import Store
from consilia.privacy.ledger import Cap
from consilia.wire.v1 import Dp

folder, name, refunds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
store, chance = Store.open(folder), random.Random(name)
sys.stdin.readline()  # all start together
for number in range(100_000):
    lease = f"{name}.{number}"
    charge = ledger.charge_for(
        Dp("record", 4.0, 1.0, 0.2, 10), lease=lease, job=name, universe="patients",
        dataset="hf", study=name, researcher="ada")
    try:
        ledger.reserve(store, charge, Budgets(Cap(6.0)), now=1.0)
    except Refused:
        print("refused", flush=True)
        if refunds:
            continue  # until it is killed
        break
    print("reserved", lease, flush=True)
    if chance.random() < refunds:
        print("asked", lease, flush=True)
        ledger.refund(store, lease, reason="never ran", now=1.0)
        continue
    ledger.begin(store, lease, now=1.0)
    print("started", lease, flush=True)
    if chance.random() < 0.7:
        ledger.settle(store, lease, now=1.0)
        print("settled", lease, flush=True)
"""
DIES_INSIDE = """
import os, signal, sys
from pathlib import Path
from consilia.node import ledger
from consilia.node.store import Store
from consilia.privacy.accountant import cost
from consilia.wire.v1 import Dp

store = Store.open(Path(sys.argv[1]))
with store.write() as tx:
    if sys.argv[2] == "settle":
        ledger.settle_in(tx, "l", now=2.0, used=cost(Dp("record", 9.0, 1.0)))
    else:
        ledger.refund_in(tx, "l", reason="never ran", now=2.0)
    print(tx.rows("SELECT state FROM budget_spends")[0][0], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def spender(folder: Path, name: str, refunds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SPENDER, str(folder), name, str(refunds)],
        env=os.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def spend(store: Store, name: str) -> None:
    """Reserve in this process until the ledger refuses."""
    number = 0
    while True:
        charge = ledger.charge_for(
            DP,
            lease=f"{name}.{number}",
            job=name,
            universe="patients",
            dataset="hf",
            study=name,
            researcher="ben",
        )
        try:
            ledger.reserve(store, charge, BUDGETS, now=1.0)
        except Refused:
            return
        number += 1


def room() -> int:
    held = rules.make_filter(BUDGETS.universe, ORDERS)
    return rules.fits(held, (), rules.units(cost(DP), ORDERS, ORDERS), 10_000)


def counted(store: Store) -> int:
    rows = store.rows("SELECT count(*) FROM budget_spends WHERE state != 'refunded'")
    return int(rows[0][0])


def test_threads_and_processes_together_spend_the_cap_and_not_one_more(tmp_path: Path) -> None:
    stores = [Store.open(tmp_path), Store.open(tmp_path)]
    processes = [spender(tmp_path, f"p{n}", 0.0) for n in range(2)]
    threads = [threading.Thread(target=spend, args=(stores[n % 2], f"t{n}")) for n in range(4)]
    for process in processes:
        go(process)
    for thread in threads:
        thread.start()
    said = [process.communicate(timeout=300)[0] for process in processes]
    for thread in threads:
        thread.join(120)
    assert [process.returncode for process in processes] == [0, 0]
    assert all(text.endswith("refused\n") for text in said)
    assert counted(stores[0]) == room() > 50
    assert ledgerlog.verify(stores[1]) == ledgerlog.head(stores[0])
    jobs = Counter(e.job for e in ledgerlog.history(stores[0], 0, 10_000) if e.job)
    assert sum(jobs.values()) == room() and len(jobs) > 1
    for store in stores:
        store.close()


@pytest.mark.parametrize("pause", [0.0, 0.011, 0.037, 0.15])
def test_killed_programs_leave_books_that_add_up(tmp_path: Path, pause: float) -> None:
    Store.open(tmp_path).close()
    processes = [spender(tmp_path, f"{pause}-{n}", 0.3) for n in range(2)]
    for process in processes:
        go(process)
    said: list[str] = []
    for process in processes:
        assert process.stdout is not None
        said.append(process.stdout.readline())  # it is at work
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.readlines()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    store = Store.open(tmp_path)
    check_promises(store, said)
    spend(store, "after")
    assert counted(store) == room()  # the killed ones hold neither a lock nor lost money
    assert ledgerlog.verify(store) == ledgerlog.head(store)
    store.close()


def check_promises(store: Store, said: list[str]) -> None:
    """What was printed had been committed: it is there, and counted unless given back."""
    whole = [line.split() for line in said if line.endswith("\n")]
    heard = {verb: {words[1] for words in rest} for verb, rest in by_verb(whole).items()}
    assert heard["reserved"]
    for lease in heard["reserved"]:
        found = ledger.find(store, lease)
        assert found is not None
        if lease not in heard.get("asked", set()):
            assert found.state != "refunded"
        if lease in heard.get("started", set()):
            assert found.state in ("started", "settled")
        if lease in heard.get("settled", set()):
            assert found.state == "settled"
    assert isinstance(ledgerlog.verify(store), Head)


def by_verb(lines: list[list[str]]) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for words in lines:
        found.setdefault(words[0], []).append(words)
    return {verb: rest for verb, rest in found.items() if verb != "refused"}


@pytest.mark.parametrize(("step", "seen"), [("settle", "settled"), ("refund", "refunded")])
def test_a_program_killed_inside_a_step_has_done_nothing_of_it(
    tmp_path: Path, step: str, seen: str
) -> None:
    store = Store.open(tmp_path)
    charge = ledger.charge_for(
        DP, lease="l", job="j", universe="patients", dataset="hf", study="s", researcher="a"
    )
    ledger.reserve(store, charge, BUDGETS, now=1.0)
    before = ledgerlog.head(store), ledger.standings(store, BUDGETS)
    done = subprocess.run(
        [sys.executable, "-c", DIES_INSIDE, str(tmp_path), step],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (-signal.SIGKILL, seen)
    assert (ledgerlog.head(store), ledger.standings(store, BUDGETS)) == before
    assert ledger.find(store, "l") == ledger.Spend("l", 1, "reserved")
    ledger.settle(store, "l", now=3.0)
    assert ledgerlog.verify(store) == ledgerlog.head(store)
    store.close()
