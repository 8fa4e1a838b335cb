"""The audit trail in segments: closed, read as one, and any harm to a closed one is located."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core.chain import GENESIS, Break, Line, link
from consilia.errors import StorageError
from consilia.node import audit, segments
from consilia.node.store import Store
from nodekit import node, until

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
EACH, COUNT = 6, 3  # lines written before each closing, which adds one; segments


def write(store: Store, count: int = EACH) -> None:
    with store.write() as tx:
        for i in range(count):
            tx.audit(1.5 * i, "ana", "plan.approve", f"plan {i}", "done", 'a "quoted"\nZoë')


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A trail of three closed segments (lines 1-6, 7-13, 14-20) and an open part (21-27)."""
    found = Store.open(tmp_path)
    for number in range(COUNT):
        write(found)
        assert segments.close(found, KEY, "here", float(number), size=1) is not None
    write(found)
    yield found
    found.close()


def file(folder: Path, number: int) -> Path:
    return folder / "audit" / f"{number:06}.jsonl"


def test_a_trail_in_segments_reads_and_checks_as_one(store: Store, tmp_path: Path) -> None:
    assert [(s.number, s.first, s.last) for s in segments.closed(store)] == [
        (1, 1, 6),
        (2, 7, 13),
        (3, 14, 20),
    ]
    assert audit.verify(store, public_key=PUBLIC) == audit.head(store)
    assert [line.seq for line, _ in audit.every(store)] == list(range(1, 28))
    assert [line.seq for line, _ in audit.lines(store, 11, 5)] == [12, 13, 14, 15, 16]
    assert [line.seq for line, _ in audit.latest(store, 9)] == list(range(19, 28))
    closings = audit.find(store, "action = ?", ("audit.close",), 2)
    assert [(row[0], row[6]) for row in closings] == [
        (21, f"lines 14 to 20, head {segments.closed(store)[2].head}"),
        (14, f"lines 7 to 13, head {segments.closed(store)[1].head}"),
    ]
    assert len(audit.find(store, "subject = ?", ("plan 0",), 9)) == 4
    assert segments.close(store, KEY, "here", 9.0) is None, "too small to be closed"
    ((left,),) = store.rows("SELECT count(*) FROM audit")
    assert left == 7 and oct(file(tmp_path, 1).stat().st_mode)[-3:] == "600"
    head = segments.closed(store)[0]
    assert audit.verify(store, head.last, head.head) == audit.head(store)


def edited(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        path = file(folder, 2)
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return harm


def rechained(texts: list[str]) -> list[str]:
    """Change line 9 and give all that follow the digests that fit: sound in itself."""
    entries = [json.loads(text) for text in texts]
    head = entries[0]["after"]
    for entry in entries[1:-1]:
        if entry["seq"] == 9:
            entry["actor"] = "eve"
        line = Line(**{k: v for k, v in entry.items() if k != "digest"})
        entry["digest"] = head = link(head, line)
    entries[-1]["head"] = head
    return [json.dumps(entry) + "\n" for entry in entries]


def swapped(folder: Path) -> None:
    two, three = file(folder, 2), file(folder, 3)
    two.replace(folder / "x")
    three.replace(two)
    (folder / "x").replace(three)


def replayed(folder: Path) -> None:
    shutil.copy(file(folder, 1), file(folder, 2))


HARM: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "tampered": (edited(lambda t: [*t[:3], t[3].replace("ana", "eve"), *t[4:]]), 9, "changed"),
    "line removed": (edited(lambda t: [*t[:3], *t[4:]]), 9, "missing"),
    "lines swapped": (edited(lambda t: [*t[:3], t[4], t[3], *t[5:]]), 9, "missing"),
    "line replayed": (edited(lambda t: [*t[:4], t[3], *t[4:]]), 10, "missing: found 9"),
    "truncated": (edited(lambda t: t[:5]), 11, "cut off"),
    "cut in a line": (edited(lambda t: [*t[:4], t[4][:40]]), 10, "something else"),
    "emptied": (edited(lambda _: []), 7, "something else"),
    "chained anew": (edited(rechained), 13, "another head"),
    "lengthened": (edited(lambda t: [*t, t[1]]), 14, "goes on after its end"),
    "removed": (lambda f: file(f, 2).unlink(), 7, "put it back from a backup"),
    "segments swapped": (swapped, 7, "is not segment 2: number is '3'"),
    "replayed": (replayed, 7, "is not segment 2: number is '1'"),
}


@pytest.mark.parametrize("what", HARM)
def test_harm_to_a_closed_segment_is_located(store: Store, tmp_path: Path, what: str) -> None:
    harm, seq, reason = HARM[what]
    harm(tmp_path)
    found = audit.verify(store, public_key=PUBLIC)
    assert isinstance(found, Break)
    assert (found.seq, reason in found.reason) == (seq, True), found
    if "missing" not in reason and "changed" not in reason:
        with pytest.raises(StorageError, match=f"broken at line {seq}"):
            list(audit.every(store))


def test_a_segment_signed_by_another_is_found_with_the_nodes_key(store: Store) -> None:
    found = audit.verify(store, public_key=bytes(32))
    assert isinstance(found, Break) and found.seq == 6 and "not signed" in found.reason


def test_a_trail_that_was_rolled_back_contradicts_a_kept_head(
    store: Store, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "node.sqlite")) as bare:
        bare.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(tmp_path / "node.sqlite", old)
    shutil.copytree(tmp_path / "audit", old / "audit")
    write(store)
    segments.close(store, KEY, "here", 9.0, size=1)
    length, digest = audit.head(store)
    with closing(Store.open(old)) as back:
        assert not isinstance(audit.verify(back), Break), "it is sound in itself"
        found = audit.verify(back, length, digest)
    assert isinstance(found, Break) and "ends before line" in found.reason


def test_closed_lines_cannot_be_forgotten_and_open_ones_not_removed(
    store: Store, tmp_path: Path
) -> None:
    for sql in (
        "DELETE FROM audit WHERE seq = 25",
        "DELETE FROM audit_segments",
        "UPDATE audit_segments SET last = 30",
    ):
        with pytest.raises(StorageError, match="are never"), store.write() as tx:
            tx.execute(sql)
    with closing(sqlite3.connect(tmp_path / "node.sqlite")) as bare, bare:
        bare.execute("DROP TRIGGER segment_remains")
        bare.execute("DELETE FROM audit_segments WHERE number = 2")
    found = audit.verify(store)
    assert isinstance(found, Break) and (found.seq, "missing" in found.reason) == (7, True)


def test_a_crash_between_file_and_row_loses_nothing(store: Store, tmp_path: Path) -> None:
    file(tmp_path, 4).write_text("half of a segment that never was")
    (tmp_path / "audit" / "000004.part").write_text("and its draft")
    write(store, 2)
    assert audit.verify(store) == audit.head(store)
    assert segments.close(store, KEY, "here", 9.0, size=1) is not None
    assert audit.verify(store, public_key=PUBLIC) == audit.head(store)
    (tmp_path / "audit").rename(tmp_path / "elsewhere")
    (tmp_path / "audit").write_text("no folder")
    before = audit.head(store)
    with pytest.raises(StorageError, match="cannot be written"):
        segments.close(store, KEY, "here", 9.0, size=1)
    (tmp_path / "audit").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "audit")
    assert audit.verify(store) == audit.head(store) == before


async def test_an_agent_closes_what_has_grown_at_its_start(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        with n.store.write() as tx:  # few lines and long ones: it is the size that counts
            line = Line(1, 1.0, "ana", "plan.approve", "plan", "done", "x" * (9 << 20))
            row = (1, 1.0, *("ana", "plan.approve", "plan", "done"), line.detail)
            head = link(GENESIS, line)
            tx.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, head))
        async with n.running():
            await until(lambda: segments.closed(n.store))
        (segment,) = segments.closed(n.store)
        assert f"lines 1 to {segment.last}, head {segment.head}" in n.details("audit.close")
        public = n.key.public_key().public_bytes_raw()
        assert audit.verify(n.store, public_key=public) == audit.head(n.store)
