"""Leaving a study: told to the hub, marked on its models, and what it left here deleted."""

import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection

from consilia.core.chain import Break
from consilia.errors import ConfigError, Conflict, StorageError
from consilia.hub import records, withdrawals
from consilia.hub.modelversions import Version
from consilia.hub.store import Store as HubStore
from consilia.hub.views import model_view
from consilia.node import audit, opening, peers, purge, studies
from consilia.node.cache import Cache
from consilia.node.compressing import waiting_of
from consilia.node.store import Store, hashed_name
from consilia.wire.people import Strategy
from consilia.wire.v1 import Advertisement, Lease, Study, Task, encode, study_digest
from nodekit import SITE

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
TODAY = date(2026, 11, 21)
STUDY = Study("hearts", "to learn", (SITE, "leuven"), ("cohort",))
CHANGED = msgspec.structs.replace(STUDY, purpose="to sell", sites=(SITE, "leuven", "oslo"))
DIGEST = study_digest(STUDY)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store.open(tmp_path)
    peers.told(found, {"leuven": bytes(32)}, NOW)
    studies.offer(found, STUDY, NOW)
    studies.accept(found, "hearts", actor="m", now=NOW)
    yield found
    assert not isinstance(audit.verify(found), Break)
    found.close()


def test_a_change_is_shown_field_by_field_and_taken_by_its_digest(store: Store) -> None:
    studies.offer(store, CHANGED, NOW + 1)
    assert studies.difference(store, "hearts", TODAY) == (
        studies.FieldChange("purpose", "to learn", "to sell"),
        studies.FieldChange("sites", f"{SITE}, leuven", f"{SITE}, leuven, oslo"),
    )
    with pytest.raises(Conflict, match=r"purpose, sites.*study-diff hearts"):
        studies.accept(store, "hearts", actor="m", now=NOW + 2)
    assert set(studies.grants(store)) == {DIGEST}, "the old one was lost by trying"
    studies.accept(store, study_digest(CHANGED), actor="m", now=NOW + 2)
    assert studies.difference(store, "hearts", TODAY) == ()
    assert studies.get(store, DIGEST, TODAY).state == "replaced"
    assert "changed: purpose, sites" in [line.detail for line, _ in audit.every(store)][-1]


def test_a_site_leaves_at_any_time_and_says_why_at_home(store: Store) -> None:
    with pytest.raises(ConfigError, match="needs a reason"):
        studies.leave(store, "hearts", actor="m", now=NOW, reason=" ")
    studies.offer(store, CHANGED, NOW + 1)  # a newer offer of that name is not what is left
    left = studies.leave(store, "hearts", actor="m", now=NOW, reason="contract ended")
    assert (left.digest, left.state) == (DIGEST, "left") and not studies.grants(store)
    assert studies.withdrawn(store) == (DIGEST,)
    for again in (studies.leave, studies.decline):
        with pytest.raises(Conflict, match=r"nothing to leave|is left already"):
            again(store, DIGEST, actor="m", now=NOW, reason="again")


# ---- what it left on this disk ---------------------------------------------------------------


def leftovers(store: Store, folder: Path) -> Cache:
    task = Task("train", "job-1", 1, DIGEST, "hearts", "sha256:1", {}, ("cohort",), "b3:1", 1)
    lease = Lease("job-1.1.0.charite", task, 60.0)
    other = msgspec.structs.replace(
        lease, id="other", task=msgspec.structs.replace(task, study="x", job="job-2")
    )
    for name in ("log/jobs", "jobs/job-1", "outbox", "cache"):
        (folder / name).mkdir(parents=True)
    for name in ("job-1.log", "job-1.log.1", "job-10.log", "job-2.log"):
        (folder / "log/jobs" / name).touch()
    (folder / "jobs/job-1/model").touch()
    (folder / "feedback").mkdir()
    (folder / opening.FOLDER).mkdir()
    for id in (lease.id, other.id):
        waiting_of(folder / "feedback", id).touch()
        (folder / opening.FOLDER / f"{hashed_name(id)}.plain").touch()
    (folder / "cache" / ("1" * 64 + ".frame")).write_bytes(b"x" * 100)
    with store.write() as tx:
        purge.note_job(tx, DIGEST, "job-1")
        for one in (lease, other):
            (folder / "outbox" / f"{one.task.job}.frame").touch()
            tx.execute(
                "INSERT INTO leases VALUES (?, ?, 0, ?, ?, ?)",
                (one.id, NOW, encode(one), b"", f"{one.task.job}.frame"),
            )
    return Cache(folder / "cache", 1000)


def test_a_purge_deletes_what_the_study_left_and_nothing_else(
    store: Store, tmp_path: Path
) -> None:
    cache = leftovers(store, tmp_path)
    with pytest.raises(Conflict, match="consilia node leave hearts"):
        purge.purge(store, tmp_path, "hearts", actor="m", now=NOW, empty_cache=cache.clear)
    studies.leave(store, "hearts", actor="m", now=NOW, reason="over")
    done = purge.purge(store, tmp_path, "hearts", actor="m", now=NOW, empty_cache=cache.clear)
    assert (done.jobs, done.files, done.cache_bytes, done.secrets) == (("job-1",), 6, 100, 1)
    assert sorted(p.name for p in (tmp_path / "log/jobs").iterdir()) == [
        "job-10.log",
        "job-2.log",
    ]
    assert [p.name for p in (tmp_path / "outbox").iterdir()] == ["job-2.frame"]
    assert not (tmp_path / "jobs/job-1").exists() and list((tmp_path / "cache").iterdir()) == []
    for kind in ("feedback", opening.FOLDER):
        assert len(list((tmp_path / kind).iterdir())) == 1, "only the other study's is left"
    rows = store.rows("SELECT id, settled, lease IS NULL FROM leases ORDER BY id")
    assert rows == [("job-1.1.0.charite", 1, 1), ("other", 0, 0)], "an answer can be replayed"
    assert peers.pins(store, DIGEST) == {}
    assert [line.action for line, _ in audit.every(store)][-1] == "study.purge"
    assert studies.withdrawn(store) == (DIGEST,), "the record of leaving went with it"


def test_what_cannot_be_deleted_is_not_called_deleted(store: Store, tmp_path: Path) -> None:
    cache = leftovers(store, tmp_path)
    (tmp_path / "jobs/job-1").chmod(0o500)
    if os.access(tmp_path / "jobs/job-1", os.W_OK):
        # root may delete everything: a file that stands where a folder should be stops it too
        with store.write() as tx:
            tx.execute("UPDATE leases SET frame = 'job-1.frame/x' WHERE id LIKE 'job-1%'")
    studies.leave(store, "hearts", actor="m", now=NOW, reason="over")
    with pytest.raises(StorageError, match="it is still there"):
        purge.purge(store, tmp_path, "hearts", actor="m", now=NOW, empty_cache=cache.clear)
    assert purge.due(store, 30, TODAY + timedelta(days=31)) == (DIGEST,), "forgotten"
    assert [line.action for line, _ in audit.every(store)][-2:] == ["study.leave", "study.key"]


def test_what_is_over_for_long_enough_is_due_once(store: Store, tmp_path: Path) -> None:
    cache = leftovers(store, tmp_path)
    late = TODAY + timedelta(days=31)
    assert purge.due(store, 30, late) == (), "a study in force"
    studies.leave(store, "hearts", actor="m", now=NOW, reason="over")
    assert purge.due(store, 30, late) == (DIGEST,)
    assert purge.due(store, 30, late - timedelta(days=1)) == () == purge.due(store, 0, late)
    purge.purge(store, tmp_path, DIGEST, actor="agent", now=NOW, empty_cache=cache.clear)
    assert purge.due(store, 30, late) == ()


# ---- at the hub ------------------------------------------------------------------------------


def a_version(study: str, sites: tuple[str, ...]) -> Version:
    return Version(
        "job-1.1", "job-1", 1, "b3:1", 1, None, "hearts", study, "sha256:1", {},
        Strategy("fedavg"), sites, 100, {}, NOW,
    )  # fmt: skip


async def test_the_hub_marks_the_models_that_used_a_site_that_left() -> None:
    elsewhere = msgspec.structs.replace(STUDY, name="lungs", sites=("leuven",))
    others = study_digest(elsewhere)

    def work(db: Connection) -> None:
        for study in (STUDY, elsewhere):
            records.add_study(db, study, "ada", NOW)
            records.submit_study(db, study.name, NOW)
        used = a_version(DIGEST, (SITE, "leuven"))
        unused = a_version(DIGEST, ("leuven",))
        assert withdrawals.marks(db, (used,)) == {}
        left = Advertisement("1", withdrawn=(DIGEST, others, "sha256:unknown"))
        assert withdrawals.note(db, SITE, left, NOW) == ([DIGEST], 0), "not its study"
        assert withdrawals.note(db, SITE, left, NOW) == ([], 0), "told twice, noted once"
        assert withdrawals.marks(db, (used,)) == {"job-1.1": (SITE,)}
        assert model_view(used, withdrawn=(SITE,)).withdrawn == (SITE,)
        assert not any(withdrawals.marks(db, (unused,)).values())
        withdrawals.note(db, SITE, Advertisement("1"), NOW)
        assert withdrawals.marks(db, (used,)), "a node that forgot has not returned"
        assert withdrawals.note(db, SITE, Advertisement("1", studies=(DIGEST,)), NOW)[1] == 1
        assert withdrawals.marks(db, (used,)) == {}

    hub = HubStore.open("sqlite://")
    try:
        await hub.write(work)
    finally:
        hub.close()
