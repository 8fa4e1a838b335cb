"""A node's directory across releases: an older one is opened, a newer one refused in words."""

import os
import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.errors import StorageError
from consilia.node import audit, peers, purge, segments, studies
from consilia.node.config import NodeConfig
from consilia.node.doctor import examine
from consilia.node.release import Release
from consilia.node.standing import policy_of
from consilia.node.store import Store
from consilia.wire import frames

OLD = Path(__file__).parents[1] / "vectors" / "node-state-0.1.sql"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))  # the one that wrote it
NOW = 1_790_000_000.0
CONFIG = NodeConfig("charite", "https://hub:1", plain_updates=True)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What an older release left: decisions, a trail, and an answer the hub has not got yet."""
    text = OLD.read_text()
    name, _, body = text.splitlines()[1].removeprefix("-- ").partition(" ")
    (tmp_path / "outbox").mkdir()
    (tmp_path / name).write_bytes(bytes.fromhex(body))
    with closing(sqlite3.connect(tmp_path / "node.sqlite")) as db:
        db.executescript(text)
    return tmp_path


def test_what_an_older_release_left_is_opened_and_goes_on(directory: Path) -> None:
    with closing(Store.open(directory)) as store:
        assert audit.verify(store) == audit.head(store) and audit.head(store)[0] == 7
        (study,) = studies.list_studies(store, date.fromtimestamp(NOW))
        policy = policy_of(store, CONFIG)
        assert study.state == "accepted" and study.digest in policy.studies
        assert len(policy.plans) == 1 and peers.pins(store, study.digest)
        door = Release(store, directory / "outbox", CONFIG, KEY, lambda: NOW, os.urandom)
        (answer,) = door.outbox.pending()
        assert answer.frame is not None
        with door.outbox.plain(answer, answer.frame) as path:  # it was not sealed then
            assert frames.read(path)["w"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
        door.acknowledged(answer)
        door.outbox.flush()
        assert list((directory / "outbox").iterdir()) == []
        assert segments.close(store, KEY, "charite", NOW, size=1) is not None
        studies.leave(store, "hearts", actor="mara", now=NOW, reason="over")
        done = purge.purge(
            store, directory, "hearts", actor="mara", now=NOW, empty_cache=lambda: 0
        )
        assert done.jobs == ("job-1",)
        assert audit.verify(store) == audit.head(store)


def test_what_a_newer_release_wrote_is_refused_and_left_alone(directory: Path) -> None:
    Store.open(directory).close()
    with closing(sqlite3.connect(directory / "node.sqlite")) as db:
        ((known,),) = db.execute("PRAGMA user_version")
        db.execute(f"PRAGMA user_version = {known + 1}")
    before = (directory / "node.sqlite").read_bytes()
    words = rf"newer Consilia \(schema {known + 1}, this one knows {known}\); install that"
    with pytest.raises(StorageError, match=words):
        Store.open(directory)
    assert (directory / "node.sqlite").read_bytes() == before
    (directory / "node.yaml").write_text("site: charite\nhub: https://hub.invalid:1\n")
    found = {f.check: f for f in examine(directory, lambda: NOW)}
    assert not found["database"].ok and "install that release" in found["database"].found
