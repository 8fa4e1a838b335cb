"""The audit chain: what is recorded, and that no later change of it goes unseen."""

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from consilia.core.chain import GENESIS, Break, Line, link
from consilia.errors import AuthError
from consilia.hub import audit
from consilia.hub.keyfiles import public_bytes
from consilia.hub.tables import metadata
from consilia.wire.seal import open_sealed
from consilia.wire.v1 import AuditHead, decode


@pytest.fixture
def db() -> Iterator[Connection]:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        metadata.create_all(connection)
        yield connection
    engine.dispose()


def fill(db: Connection, count: int = 5) -> None:
    for n in range(1, count + 1):
        audit.append(db, n + 0.5, "user:ada", "job.start", f"job-{n}", detail=f"line {n}")


def sql(db: Connection, text: str) -> None:
    db.execute(sa.text(text))


def test_lines_are_chained(db: Connection) -> None:
    assert audit.head(db) == (0, GENESIS)
    assert audit.check(db) == (0, GENESIS)
    first = audit.append(db, 1.5, "user:ada", "study submit", "hearts")
    assert first.line == Line(1, 1.5, "user:ada", "study submit", "hearts", "done", "")
    assert first.digest == link(GENESIS, first.line)
    second = audit.append(db, 2.5, "hub", "job.end", "job-1", outcome="failed", detail="why")
    assert second.digest == link(first.digest, second.line)
    assert list(audit.lines(db)) == [first, second]
    assert audit.head(db) == audit.check(db) == (2, second.digest)


def test_pages(db: Connection) -> None:
    fill(db, 2500)
    assert [e.line.seq for e in audit.lines(db, after=3, limit=2)] == [4, 5]
    assert len(list(audit.lines(db))) == 2500
    assert list(audit.lines(db, after=2500)) == []
    assert audit.check(db) == audit.head(db)


@pytest.mark.parametrize(
    "column", ["at", "actor", "action", "subject", "outcome", "detail", "digest"]
)
def test_any_changed_field_is_found_where_it_is(db: Connection, column: str) -> None:
    fill(db)
    value = "9.0" if column == "at" else f"{column} || 'x'"
    sql(db, f"UPDATE audit SET {column} = {value} WHERE seq = 3")  # noqa: S608
    found = audit.check(db)
    assert isinstance(found, Break)
    assert found.seq == 3
    assert "changed" in found.reason


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (("DELETE FROM audit WHERE seq = 1",), 1),
        (("DELETE FROM audit WHERE seq = 3",), 3),
        (("DELETE FROM audit WHERE seq = 3",
          "UPDATE audit SET seq = seq - 1 WHERE seq > 3"), 3),
        (
            (
                "UPDATE audit SET seq = 99 WHERE seq = 2",
                "UPDATE audit SET seq = 2 WHERE seq = 3",
                "UPDATE audit SET seq = 3 WHERE seq = 99",
            ),
            2,
        ),
        (("INSERT INTO audit SELECT 6, at, actor, action, subject, outcome, detail, digest "
          "FROM audit WHERE seq = 5",), 6),
        (("UPDATE audit SET seq = seq + 1 WHERE seq = 5",), 5),
    ],
)  # fmt: skip
def test_removed_moved_and_inserted_lines_are_found(
    db: Connection, change: tuple[str, ...], where: int
) -> None:
    fill(db)
    for statement in change:
        sql(db, statement)
    found = audit.check(db)
    assert isinstance(found, Break)
    assert found.seq == where


def test_a_kept_head_betrays_a_chain_cut_short_or_rewritten(db: Connection) -> None:
    fill(db)
    length, digest = audit.head(db)
    fill(db, 2)
    assert audit.check(db, length, digest) == audit.head(db)
    assert audit.check(db, 0, GENESIS) == audit.head(db)
    sql(db, "DELETE FROM audit WHERE seq >= 5")
    assert audit.check(db) == audit.head(db)  # sound in itself
    found = audit.check(db, length, digest)
    assert isinstance(found, Break)
    assert (found.seq, "ends before line 5" in found.reason) == (5, True)
    audit.append(db, 1.0, "hub", "forged", "x")
    assert audit.check(db) == audit.head(db)  # sound again, and false
    found = audit.check(db, length, digest)
    assert isinstance(found, Break)
    assert (found.seq, "kept head" in found.reason) == (5, True)


def test_the_head_is_signed_for_its_purpose(db: Connection) -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
    fill(db)
    sealed = audit.signed_head(db, key, "hub-1")
    assert (sealed.context, sealed.site) == ("audit-head", "hub-1")
    payload = open_sealed(sealed, audit.CONTEXT, public_bytes(key))
    assert decode(payload, AuditHead) == AuditHead(*audit.head(db))
    with pytest.raises(AuthError):
        open_sealed(sealed, "report", public_bytes(key))
    with pytest.raises(AuthError):
        other = Ed25519PrivateKey.from_private_bytes(b"x" * 32)
        open_sealed(sealed, audit.CONTEXT, public_bytes(other))


def test_a_line_goes_with_its_transaction(db: Connection) -> None:
    fill(db, 2)
    db.commit()
    fill(db, 2)
    db.rollback()
    assert audit.append(db, 1.0, "hub", "next", "x").line.seq == 3
    assert audit.check(db) == audit.head(db)


def test_whole_seconds_do_not_break_the_chain(db: Connection) -> None:
    audit.append(db, 5, "hub", "tick", "x")
    assert audit.check(db) == audit.head(db)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.text(), st.text(), st.floats(0, 4e9)), max_size=4))
def test_whatever_text_comes_the_chain_holds(texts: list[tuple[str, str, float]]) -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as db:
        metadata.create_all(db)
        for subject, detail, at in texts:
            line = audit.append(db, at, "site:a", "test", subject, detail=detail).line
            assert "\0" not in line.detail
            line.detail.encode()
        assert audit.check(db) == audit.head(db)
        assert audit.head(db)[0] == len(texts)
    engine.dispose()


@pytest.mark.parametrize(("length", "kept"), [(2000, 2000), (2001, 2000), (10**6, 2000)])
def test_long_text_is_cut(db: Connection, length: int, kept: int) -> None:
    line = audit.append(db, 1.0, "site:a", "test", "x", detail="d" * length).line
    assert len(line.detail) == kept
    assert line.detail.endswith("…") == (length > 2000)
    assert audit.check(db) == audit.head(db)


def test_reading_streams(db: Connection) -> None:
    """Only a batch is in memory: the first line is there before the last is read."""
    fill(db, 3000)
    read: list[int] = []

    def watch(entries: Iterator[audit.Entry]) -> Iterator[audit.Entry]:
        for entry in entries:
            read.append(entry.line.seq)
            yield entry

    take: Callable[[Iterator[audit.Entry]], audit.Entry] = next
    entries = watch(audit.lines(db))
    assert take(entries).line.seq == 1
    assert read == [1]
