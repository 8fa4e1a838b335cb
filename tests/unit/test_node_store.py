"""The node's store: all or nothing, an audit chain nobody can bend, two processes at once."""

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from consilia.core.chain import GENESIS, Break
from consilia.errors import StorageError
from consilia.node import audit
from consilia.node.store import Store, printable

WRITER = """
import sys
from pathlib import Path
from consilia.node.store import Store
store = Store.open(Path(sys.argv[1]))
for i in range(100):
    with store.write() as tx:
        tx.audit(float(i), "other", "test", "s", "ok")
        tx.touch()
"""


def note(store: Store, count: int, actor: str = "me") -> None:
    for i in range(count):
        with store.write() as tx:
            tx.audit(float(i), actor, "test", f"subject {i}", "ok")


def test_lines_form_a_chain(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    assert audit.head(store) == (0, GENESIS)
    note(store, 5)
    assert audit.verify(store) == audit.head(store) and audit.head(store)[0] == 5
    assert [line.seq for line, _ in audit.latest(store, 2)] == [4, 5]
    store.close()
    again = Store.open(tmp_path)
    assert audit.head(again)[0] == 5
    again.close()


@pytest.mark.parametrize(
    ("tamper", "seq"),
    [
        ("UPDATE audit SET detail = 'never happened' WHERE seq = 3", 3),
        ("DELETE FROM audit WHERE seq = 3", 3),
        ("UPDATE audit SET digest = (SELECT digest FROM audit WHERE seq = 1) WHERE seq = 2", 2),
    ],
)
def test_a_changed_trail_is_noticed(tmp_path: Path, tamper: str, seq: int) -> None:
    store = Store.open(tmp_path)
    note(store, 5)
    with pytest.raises(StorageError, match="audit lines are never"), store.write() as tx:
        tx.execute(tamper)
    assert audit.verify(store) == audit.head(store)
    with sqlite3.connect(tmp_path / "node.sqlite") as bare:  # somebody with a shell
        bare.execute("DROP TRIGGER audit_stays")
        bare.execute("DROP TRIGGER audit_remains")
        bare.execute(tamper)
    bare.close()
    found = audit.verify(store)
    assert isinstance(found, Break) and found.seq == seq
    store.close()


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    before = store.revision()
    with pytest.raises(RuntimeError), store.write() as tx:
        tx.audit(0.0, "me", "test", "s", "ok")
        tx.touch()
        raise RuntimeError
    assert audit.head(store) == (0, GENESIS) and store.revision() == before
    note(store, 1)  # the store goes on
    store.close()


def test_the_revision_moves_with_decisions_of_any_process_and_nothing_else(
    tmp_path: Path,
) -> None:
    agent, command = Store.open(tmp_path), Store.open(tmp_path)
    first = agent.revision()
    note(command, 2)
    assert agent.revision() == first
    with command.write() as tx:
        tx.touch()
    assert agent.revision() == first + 1 == command.revision()
    with agent.write() as tx:
        tx.touch()
    assert agent.revision() == first + 2
    agent.close()
    command.close()


def test_threads_and_another_process_write_one_unbroken_chain(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], env=os.environ)
    threads = [threading.Thread(target=note, args=(store, 50, f"t{i}")) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait(60) == 0
    assert audit.verify(store) == audit.head(store) and audit.head(store)[0] == 250
    actors = {line.actor for line, _ in audit.every(store)}
    assert actors == {"t0", "t1", "t2", "other"}
    store.close()


def test_a_newer_schema_is_not_touched(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "node.sqlite") as bare:
        bare.execute("PRAGMA user_version = 99")
    bare.close()
    with pytest.raises(StorageError, match="newer Consilia"):
        Store.open(tmp_path)


def test_files_are_private_and_what_is_no_database_is_said_so(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    assert (tmp_path / "node.sqlite").stat().st_mode & 0o777 == 0o600
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "node.sqlite").write_bytes(b"this is no database at all, but it is long enough" * 9)
    with pytest.raises(StorageError, match="not a database"):
        Store.open(bad)
    with pytest.raises(StorageError, match="cannot be opened"):
        Store.open(tmp_path / "missing")


def test_export_as_csv_and_json(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    with store.write() as tx:
        tx.audit(1.5, "=cmd()", "test", "a,b", "ok", 'say "x"')
    csv = "".join(audit.export(store, "csv")).splitlines()
    assert csv[0] == "seq,at,actor,action,subject,outcome,detail,digest"
    assert csv[1].startswith('1,1.5,\'=cmd(),test,"a,b",ok,')
    assert '"actor": "=cmd()"' in "".join(audit.export(store, "json"))
    store.close()


def test_text_from_outside_cannot_fool_a_terminal() -> None:
    assert printable("a\x1b[2J\nb\u202e", 100) == "a\\x1b[2J\\nb\\u202e"
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "xxxx (cut)"
