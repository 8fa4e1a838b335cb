"""A study's own key: what lies under it opens with it alone, and with nothing once it went."""

import os
import shutil
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilia.errors import Conflict, Refused, StorageError
from consilia.node import audit, peers, purge, studies, studykeys
from consilia.node.store import Store
from consilia.privacy import filecrypt
from consilia.privacy.secagg import Member
from consilia.wire.v1 import Lease, Study, Task, decode, study_digest
from maskedkit import HEARTS, SECURE, SITES, peer
from nodekit import SITE

NOW = 1_790_000_000.0
STUDY = Study("hearts", "to learn", (SITE, "leuven"), ("cohort",))
DIGEST = study_digest(STUDY)
KEY = bytes(range(32))
PLAIN = b"what training made of patients" * 50_000  # more than a chunk


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store.open(tmp_path)
    peers.told(found, {"leuven": bytes(32)}, NOW)
    studies.offer(found, STUDY, NOW)
    studies.accept(found, "hearts", actor="m", now=NOW)
    yield found
    found.close()


def sealed_file(folder: Path, data: bytes, about: bytes = b"a") -> Path:
    plain, path = folder / "plain", folder / "sealed"
    plain.write_bytes(data)
    with plain.open("rb") as source, path.open("wb") as target:
        filecrypt.lock_file(KEY, source.fileno(), target.fileno(), about, os.urandom)
    return path


def opened(folder: Path, key: bytes = KEY, about: bytes = b"a") -> bytes:
    with (folder / "sealed").open("rb") as source, (folder / "out").open("wb") as target:
        filecrypt.unlock_file(key, source.fileno(), target.fileno(), about)
    return (folder / "out").read_bytes()


@pytest.mark.parametrize("size", [0, 1, filecrypt.CHUNK - 1, filecrypt.CHUNK, 3_000_000])
def test_a_file_comes_back_whole_and_hides_itself(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    sealed = sealed_file(tmp_path, data).read_bytes()
    assert opened(tmp_path) == data
    assert not size or data[:1000] not in sealed or size < 4
    assert sealed != sealed_file(tmp_path, data).read_bytes(), "two files have one key"


def test_a_file_that_was_tampered_with_does_not_open(tmp_path: Path) -> None:
    path = sealed_file(tmp_path, PLAIN)
    good, head, chunk = path.read_bytes(), 48, filecrypt.CHUNK + 16
    first, last = good[head : head + chunk], good[head + chunk :]
    for what, bad in {
        "a bit": good[:-1] + bytes([good[-1] ^ 1]),
        "the salt": good[:20] + bytes([good[20] ^ 1]) + good[21:],
        "the end": good[: head + chunk],
        "a byte of the end": good[:-1],
        "one chunk twice": good[:head] + first + first + last,
        "the order": good[:head] + last + first,
        "more": good + b"x",
        "all of it": b"",
    }.items():
        path.write_bytes(bad)
        with pytest.raises(StorageError):
            opened(tmp_path)
            pytest.fail(f"opened although {what} was changed")
    path.write_bytes(good)
    for key, about in ((bytes(32), b"a"), (KEY, b"b")):
        with pytest.raises(StorageError, match=r"chunk 0 does not open"):
            opened(tmp_path, key, about)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.integers(min_value=0), st.integers(0, 255))
def test_few_bytes_open_as_they_were_or_not_at_all(plain: bytes, place: int, flip: int) -> None:
    sealed = filecrypt.lock(KEY, plain, b"about", os.urandom)
    assert filecrypt.unlock(KEY, sealed, b"about") == plain
    changed = bytearray(sealed)
    changed[place % len(sealed)] ^= flip
    if flip:
        with pytest.raises(StorageError):
            filecrypt.unlock(KEY, bytes(changed), b"about")


def test_every_study_has_a_key_of_its_own_that_stays(store: Store, tmp_path: Path) -> None:
    one, two = (studykeys.key_of(store, s, os.urandom) for s in (DIGEST, "sha256:2"))
    assert one != two and one == studykeys.key_of(store, DIGEST, os.urandom)
    files = [tmp_path / "secrets" / "rest.key", *(tmp_path / studykeys.FOLDER).iterdir()]
    assert len(files) == 3
    for kept in files:
        assert oct(kept.stat().st_mode)[-3:] == "600"
        assert one not in kept.read_bytes(), "a study's key lies open"
    assert studykeys.faults(store) == []
    for damaged in files[1:]:
        with damaged.open("rb+") as file:
            file.seek(60)
            file.write(b"damage")
    (fault,) = studykeys.faults(store)
    assert fault.startswith("hearts: ") and "secrets/rest.key" in fault
    with pytest.raises(StorageError, match="Restore both from one backup"):
        studykeys.key_of(store, DIGEST, os.urandom)


def test_what_was_copied_aside_stays_shut_once_the_study_is_deleted(
    store: Store, tmp_path: Path
) -> None:
    rest = studykeys.rest_of(store, os.urandom)
    kept, aside = tmp_path / "kept", tmp_path / "aside"
    with studykeys.scratch(tmp_path) as fd:
        os.write(fd, PLAIN)
        rest.keep(DIGEST, fd, kept, "a model")
    few = rest.lock(DIGEST, b"secret", "a row")
    shutil.copy(kept, aside)
    with rest.opened(DIGEST, aside, "a model") as fd:
        assert os.pread(fd, len(PLAIN) + 1, 0) == PLAIN, "it would not have opened anyway"
    deleted(store, tmp_path)
    for attempt in (
        lambda: rest.unlock(DIGEST, few, "a row"),
        lambda: rest.opened(DIGEST, aside, "a model").__enter__(),
        lambda: rest.lock(DIGEST, b"more", "a row"),
    ):
        with pytest.raises(Refused, match="destroyed"):
            attempt()
    assert list((tmp_path / studykeys.FOLDER).iterdir()) == []
    actions = [line.action for line, _ in audit.every(store)]
    assert actions[-2:] == ["study.key", "study.purge"], "the key goes first"
    studies.accept(store, DIGEST, actor="m", now=NOW)  # a new key, which opens nothing old
    with pytest.raises(StorageError, match="does not open"):
        rest.unlock(DIGEST, few, "a row")


def deleted(store: Store, folder: Path) -> purge.Purged:
    studies.leave(store, "hearts", actor="m", now=NOW, reason="over")
    return purge.purge(
        store, folder, DIGEST, actor="m", now=NOW, empty_cache=lambda: 0, reason="over"
    )


@pytest.mark.parametrize("step", ["noted", "destroyed", "emptying"])
def test_a_deletion_that_was_cut_short_is_ended_by_the_next_start(
    store: Store, tmp_path: Path, step: str
) -> None:
    rest = studykeys.rest_of(store, os.urandom)
    few = rest.lock(DIGEST, b"secret", "a row")

    def killed() -> int:
        raise KeyboardInterrupt

    studies.leave(store, "hearts", actor="m", now=NOW, reason="over")
    if step == "emptying":
        with pytest.raises(KeyboardInterrupt):
            purge.purge(
                store, tmp_path, DIGEST, actor="m", now=NOW, empty_cache=killed, reason="over"
            )
    else:  # killed before the key was destroyed, or before that was audited
        with store.write() as tx:
            tx.execute("INSERT INTO study_ends VALUES (?, ?, 'm', 'over', 0)", (DIGEST, NOW))
        if step == "destroyed":
            assert studykeys.destroy(store, DIGEST)
    with pytest.raises(Refused, match="destroyed"):
        rest.unlock(DIGEST, few, "a row")
    with pytest.raises(Conflict, match="is being deleted"):
        studies.accept(store, DIGEST, actor="m", now=NOW)
    for expected in (1, 0):  # and once only
        assert len(purge.finish(store, tmp_path, now=NOW, empty_cache=lambda: 0)) == expected
    lines = [(x.action, x.actor, x.outcome) for x, _ in audit.every(store)]
    assert lines[-2:] == [("study.key", "m", "destroyed"), ("study.purge", "m", "deleted")]
    assert [x[0] for x in lines].count("study.key") == 1
    assert not list((tmp_path / studykeys.FOLDER).iterdir())


def test_a_study_ends_at_its_own_retention_when_that_is_shorter(store: Store) -> None:
    short = Study(
        "short", "to learn", (SITE,), ("cohort",), until="2026-01-31", retention_days=10
    )
    studies.offer(store, short, NOW)
    studies.accept(store, "short", actor="m", now=time.mktime((2026, 1, 2, 12, 0, 0, 0, 0, 0)))
    with store.write() as tx:
        purge.note_job(tx, study_digest(short), "job-1")
    for days, day, gone in (
        (0, date(2026, 2, 10), False),
        (0, date(2026, 2, 11), True),
        (3, date(2026, 2, 4), True),
        (99, date(2026, 2, 11), True),
    ):
        assert (purge.due(store, days, day) == (study_digest(short),)) is gone, (days, day)


def test_the_secrets_of_a_masked_round_lie_under_the_key(tmp_path: Path) -> None:
    site = peer(SITES[0], tmp_path)
    digest = study_digest(HEARTS)
    site.pin(dict.fromkeys(SITES, bytes(32)))
    task = Task(
        "train", "job-1", 1, digest, HEARTS.name, "sha256:7", {}, ("cohort",), "b3:1", 1,
        privacy=SECURE, cohort=SITES, total=900,
    )  # fmt: skip
    lease = Lease("job-1.1.0.aachen", task, 60.0)
    said = site.masking.begin(lease)
    ((kept,),) = site.store.rows("SELECT member FROM masked")
    assert filecrypt.is_sealed(kept)
    assert site.masking.begin(lease) == said, "it goes on with the same words after a restart"
    opened = studykeys.rest_of(site.store, os.urandom).unlock(
        digest, kept, f"masked round {lease.id}"
    )
    private = decode(opened, Member).sealing
    assert len(private) == 32 and private in opened
    whole = b"".join(p.read_bytes() for p in site.folder.glob("node.sqlite*"))
    assert private not in whole, "a secret lies open in the database"
    studykeys.destroy(site.store, digest)
    with pytest.raises(StorageError, match="does not open"):
        site.masking.begin(lease)
