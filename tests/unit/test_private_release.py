"""Results with differential privacy: noised, charged with the release, mirrored by the hub."""

import os
import shutil
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hubkit import Node, key_of, open_hub

from consilia.core.weights import Weights
from consilia.errors import Refused
from consilia.node import audit, clip, ledger, ledgerlog
from consilia.node.config import Budgets, NodeConfig
from consilia.node.release import Release
from consilia.node.spending import Spending, dp_of
from consilia.node.store import Store
from consilia.privacy.accountant import cost
from consilia.privacy.ledger import Cap
from consilia.wire import frames
from consilia.wire.seal import open_sealed, seal
from consilia.wire.v1 import Advertisement, Dp, Lease, Privacy, Sealed, Task, decode, encode

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
CLIENT = Dp("client", 2.0, 1.0)
CONFIG = NodeConfig("here", "https://hub.invalid:443")


def lease(id: str = "j.1.0.here", dp: Dp | None = CLIENT) -> Lease:
    """Return a training lease."""
    task = Task(
        "train",
        "j",
        1,
        "sha256:5",
        "hearts",
        "sha256:7",
        {},
        ("t",),
        None,
        1,
        privacy=Privacy(dp=dp),
    )
    return Lease(id, task, 60.0)


def release(folder: Path, store: Store) -> Release:
    """Return a door of its own."""
    return Release(store, folder / "outbox", CONFIG, KEY, time.time, os.urandom)


def head_told(sealed: Sealed) -> tuple[str, int]:
    """Return what an advertisement tells of the ledger."""
    said = decode(open_sealed(sealed, "advertisement", PUBLIC), Advertisement)
    return said.ledger_head, said.ledger_length


def test_a_sites_whole_update_is_clipped_and_noised(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights, counts = rng.normal(size=40_000).astype(np.float32), np.arange(5)
    old: Weights = {"w": weights, "n": counts}
    new: Weights = {"w": weights + np.float32(3.0), "n": counts + 7}
    frames.write(tmp_path / "old", old)
    frames.write(tmp_path / "new", new)
    with frames.opened(tmp_path / "new") as a, frames.opened(tmp_path / "old") as b:
        header = clip.private(a, b, CLIENT, os.urandom, tmp_path / "out")
    found = frames.read(tmp_path / "out")
    assert header.schema == frames.read_header(tmp_path / "old").schema
    assert np.array_equal(found["n"], counts)  # a count without noise would tell itself
    change = found["w"].astype(np.float64) - weights
    # 40,000 equal changes of norm 600 become a mean of 1 / 200, under noise of deviation 2.
    assert abs(change.mean() - 1 / 200) < 5 * 2.0 / 200
    assert 1.95 < change.std() < 2.05


def test_noise_is_fresh_for_every_release(tmp_path: Path) -> None:
    frames.write(tmp_path / "old", {"w": np.zeros(1000, np.float32)})
    outs = []
    for name in ("first", "second"):
        with frames.opened(tmp_path / "old") as same:
            clip.private(same, same, CLIENT, os.urandom, tmp_path / name)
        outs.append(frames.read(tmp_path / name)["w"])
    correlation = np.corrcoef(outs[0].astype(np.float64), outs[1].astype(np.float64))[0, 1]
    assert abs(correlation) < 0.2


def test_init_is_never_charged() -> None:
    init = msgspec.structs.replace(lease().task, kind="init")
    assert dp_of(init) is None and dp_of(lease().task) == CLIENT


def test_what_never_began_is_given_back_and_what_began_is_not(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    spending = Spending(store, Budgets(), time.time)
    for id, begins, state in (("j.1.0.a", False, "refunded"), ("j.2.0.a", True, "started")):
        spending.reserve(lease(id), "cohort")
        if begins:
            spending.begin(lease(id))
        spending.give_back(lease(id), "the model did not arrive")
        found = ledger.find(store, id)
        assert found is not None and found.state == state
    store.close()


def test_a_task_beyond_the_cap_is_refused_before_it_starts(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    spending = Spending(store, Budgets(universe=Cap(0.5)), time.time)
    with pytest.raises(Refused, match="privacy budget"):
        spending.reserve(lease(), "cohort")
    assert [line.action for line, _ in audit.every(store)] == ["budget.refuse"]
    assert cost(CLIENT)  # the mechanism itself is a sound one
    store.close()


def test_a_node_restored_from_a_backup_trains_no_more(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    spending = Spending(store, Budgets(), time.time)
    spending.reserve(lease("j.1.0.here"), "cohort")
    store.close()
    shutil.copytree(tmp_path, tmp_path / "backup")

    store = Store.open(tmp_path)
    Spending(store, Budgets(), time.time).reserve(lease("j.2.0.here"), "cohort")
    door = release(tmp_path, store)
    assert head_told(door.advertisement(Advertisement("1"))) == ("", 0)  # nothing compared yet
    door.take_mirror(None)
    mirror = door.advertisement(Advertisement("1"))
    assert head_told(mirror) == (ledgerlog.head(store).digest, ledgerlog.head(store).length)
    store.close()

    restored = Store.open(tmp_path / "backup")
    again = release(tmp_path / "backup", restored)
    again.take_mirror(mirror)
    with pytest.raises(Refused, match="accept-restore"):
        Spending(restored, Budgets(), time.time).reserve(lease("j.3.0.here"), "cohort")
    restored.close()


async def test_the_hub_hands_back_what_a_site_signed_of_its_ledger(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        assert (await hub.federation.catalogue("a")).mirror is None
        node = Node(hub, "a")
        await node.advertise()
        assert (await hub.federation.catalogue("a")).mirror is None  # it told no head
        told = Advertisement("1", ledger_head="sha256:" + "1" * 64, ledger_length=3)
        sealed = seal("advertisement", "a", encode(told), key_of("a"))
        await hub.federation.advertise("a", sealed)
        later = seal("advertisement", "a", encode(Advertisement("2")), key_of("a"))
        await hub.federation.advertise("a", later)  # a node that has not compared yet
        assert (await hub.federation.catalogue("a")).mirror == sealed
        assert (await hub.federation.catalogue("b")).mirror is None
