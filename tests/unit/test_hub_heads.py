"""A hub that rewrites its trail contradicts what it signed, and every node notices."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from consilia.core.chain import GENESIS, Break
from consilia.errors import NotFound
from consilia.hub import audit as hub_audit
from consilia.hub.store import Store as HubStore
from consilia.node import audit, catalogue, heads
from consilia.node.store import Store
from consilia.wire.seal import seal
from consilia.wire.v1 import AuditHead, Catalogue, Plan, Sealed, decode, encode

KEY = Ed25519PrivateKey.from_private_bytes(b"hub".ljust(32, b"."))
PUBLIC = KEY.public_key().public_bytes_raw()
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path)
    yield opened
    opened.close()


def head(length: int, digest: str = A, key: Ed25519PrivateKey = KEY, as_: str = "") -> Sealed:
    return seal(as_ or heads.CONTEXT, "hub", encode(AuditHead(length, digest)), key)


def lines(store: Store) -> list[tuple[str, str]]:
    return [(line.outcome, line.detail) for line, _ in audit.every(store)]


def test_a_trail_that_grows_is_followed_without_a_word(store: Store) -> None:
    assert heads.take(store, None, PUBLIC, 1.0)  # an older hub
    for length in (0, 1, 7, 7, 8):
        assert heads.take(store, head(length), PUBLIC, float(length))
    found = heads.newest(store)
    assert found is not None
    assert (found.length, found.digest, found.at) == (8, A, 8.0)
    assert found.sealed is not None
    assert decode(found.sealed.payload, AuditHead) == AuditHead(8, A)
    assert lines(store) == []
    assert heads.unsound(store) == []


@pytest.mark.parametrize(
    ("sealed", "said"),
    [
        (head(6), "it has 6 lines now, and had 7"),
        (head(7, B), "line 7 is another one than before"),
        (None, "it sent none"),
        (head(9, key=Ed25519PrivateKey.generate()), "not signed with"),
        (head(9, as_="report"), "report"),
        (head(-1), "cannot have -1 lines"),
        (head(1 << 60), "cannot have"),
        (head(9, "x" * 5000), "digest"),
        (seal(heads.CONTEXT, "hub", b"\xff", KEY), "AuditHead"),
    ],
)
def test_what_contradicts_a_kept_head_is_loud_once_and_never_taken(
    store: Store, sealed: Sealed | None, said: str
) -> None:
    assert heads.take(store, head(7), PUBLIC, 1.0)
    for at in (2.0, 3.0):
        assert not heads.take(store, sealed, PUBLIC, at)
    ((outcome, detail),) = lines(store)
    assert outcome == "BROKEN"
    assert said in detail
    assert f"kept: 7:{A}" in detail or sealed is None or "found: 0:none" in detail
    newest = heads.newest(store)
    assert newest is not None
    assert (newest.length, newest.digest) == (7, A)
    assert [h.at for h in heads.unsound(store)] == [2.0]
    assert heads.take(store, head(8), PUBLIC, 4.0)  # the evidence stays
    assert len(heads.unsound(store)) == 1


def test_a_hub_cannot_fill_the_trail_with_its_lies(store: Store) -> None:
    assert heads.take(store, head(1000), PUBLIC, 1.0)
    for n in range(heads.PROTESTS + 20):
        assert not heads.take(store, head(n), PUBLIC, 2.0)
    assert len(lines(store)) == heads.PROTESTS
    assert len(heads.unsound(store)) == heads.PROTESTS


def test_old_sound_heads_are_forgotten(store: Store) -> None:
    for n in range(heads.KEPT + 5):
        assert heads.take(store, head(n), PUBLIC, 1.0)
    ((count, least),) = store.rows("SELECT count(*), min(length) FROM hub_heads")
    assert (count, least) == (heads.KEPT, 5)


def test_heads_survive_a_restart(tmp_path: Path) -> None:
    first = Store.open(tmp_path)
    heads.take(first, head(5), PUBLIC, 1.0)
    first.close()
    again = Store.open(tmp_path)
    assert not heads.take(again, head(4), PUBLIC, 2.0)
    again.close()


# ---- with a hub whose trail is real ----------------------------------------------------------


class RealHub:
    """What the catalogue of a hub carries: the head of the trail in its database."""

    def __init__(self, path: Path) -> None:
        self.store = HubStore.open(path)

    async def grow(self, *subjects: str) -> None:
        def write(db: Connection) -> None:
            for subject in subjects:
                hub_audit.append(db, 1.0, "hub", "test.line", subject)

        await self.store.write(write)

    async def catalogue(self) -> Catalogue:
        return Catalogue(
            1, head=await self.store.read(lambda db: hub_audit.signed_head(db, KEY))
        )

    async def plan(self, digest: str) -> Plan:
        raise NotFound(digest)


def keep_key(directory: Path) -> None:
    secrets = directory / "secrets"
    secrets.mkdir()
    (secrets / "hub.pub").write_text(PUBLIC.hex() + "\n")


async def test_a_hub_that_rewrote_its_trail_is_found_out(store: Store, tmp_path: Path) -> None:
    keep_key(tmp_path)
    hub = RealHub(tmp_path / "hub.sqlite")
    await hub.grow("one", "two", "three")
    await catalogue.sync(hub, store, "north", lambda: 1.0)
    await hub.grow("four")
    await catalogue.sync(hub, store, "north", lambda: 2.0)
    kept = heads.newest(store)
    assert kept is not None
    assert kept.length == 4
    assert lines(store) == []
    await asyncio.to_thread(hub.store.close)

    with sqlite3.connect(tmp_path / "hub.sqlite") as db:  # what happened did not happen
        db.execute("DELETE FROM audit WHERE seq >= 3")
    db.close()
    rewritten = RealHub(tmp_path / "hub.sqlite")
    await catalogue.sync(rewritten, store, "north", lambda: 3.0)
    assert [outcome for outcome, _ in lines(store)] == ["BROKEN"]
    assert "it has 2 lines now, and had 4" in lines(store)[0][1]

    await rewritten.grow("other", "lines")  # as long as before, and sound in itself
    await catalogue.sync(rewritten, store, "north", lambda: 4.0)
    assert "line 4 is another one" in lines(store)[1][1]
    assert await rewritten.store.read(hub_audit.check) == (
        4,
        (await rewritten.store.read(hub_audit.head))[1],
    )

    await rewritten.grow("longer")  # now no head contradicts, but the kept one tells
    await catalogue.sync(rewritten, store, "north", lambda: 5.0)
    assert len(lines(store)) == 2
    check = await rewritten.store.read(lambda db: hub_audit.check(db, kept.length, kept.digest))
    assert check == Break(4, "the line is not the one that the kept head names")
    await asyncio.to_thread(rewritten.store.close)


async def test_without_the_hubs_key_nothing_is_believed(store: Store, tmp_path: Path) -> None:
    hub = RealHub(tmp_path / "hub.sqlite")
    await hub.grow("one")
    await catalogue.sync(hub, store, "north", lambda: 1.0)
    assert heads.newest(store) is None
    await asyncio.to_thread(hub.store.close)


def test_a_sites_own_trail_is_compared_with_a_kept_head(store: Store) -> None:
    with store.write() as tx:
        for n in range(3):
            tx.audit(1.0, "agent", "test.line", str(n), "done")
    length, digest = audit.head(store)
    with store.write() as tx:
        tx.audit(1.0, "agent", "test.line", "after", "done")
    assert audit.verify(store) == audit.verify(store, length, digest)
    assert isinstance(audit.verify(store, length, GENESIS), Break)
    found = audit.verify(store, 9, digest)
    assert found == Break(5, "the chain ends before line 9, which a head names")
