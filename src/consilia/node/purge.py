"""Deleting a study at the node: what its jobs left on this disk goes; the record of it stays.

    noted -> key destroyed -> files and cache -> secrets, audited      each step may be repeated

The study's key (node.studykeys) goes first: from then on nothing that lay under it opens, here
or where it was copied to. A deletion that was cut short is ended by the next start of the
agent, or by asking again; until then the study can neither be accepted nor keep anything.

    goes    the key, workers' logs and files, models in the cache, unsent updates, secrets of
            masked rounds, what compression remembers of a job, the keys pinned for the study
    stays   the audit trail, the privacy ledger, what was answered about groups of patients:
            each protects the same patients against the next study

The cache names models by content, not by study, so it is emptied whole: what others need is
fetched again.
"""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import msgspec

from consilia.errors import Conflict, StorageError
from consilia.node import compressing, opening, studies, studykeys
from consilia.node.runner import file_name
from consilia.node.store import Store, Transaction
from consilia.wire.v1 import Lease

ENDED = ("left", "declined", "replaced", "expired")
_SHUT, _DONE = 1, studies.PURGED  # study_ends.done: the key is destroyed, audited; all is

_MOST_DAYS = 36_500  # a study may say any number; dates end


@dataclass(frozen=True, slots=True)
class Purged:
    """What was deleted."""

    study: str
    digest: str
    jobs: tuple[str, ...]
    files: int  # logs, workers' folders, unsent updates
    cache_bytes: int
    secrets: int  # of masked rounds, and pinned keys


def note_job(tx: Transaction, study: str, job: str) -> None:
    """Remember, in the transaction that lets a task start, which study a job belongs to."""
    tx.execute("INSERT OR IGNORE INTO study_jobs VALUES (?, ?)", (study, job))


def purge(  # noqa: PLR0913 - by keyword
    store: Store,
    directory: Path,
    name: str,
    *,
    actor: str,
    now: float,
    empty_cache: Callable[[], int],
    reason: str = "",
) -> Purged:
    """Delete what a study that is over here has left; `empty_cache` returns the bytes freed.

    Raises Conflict for a study that is accepted and in force: leave it first. Every file is
    gone before the audit line that says so. What a deletion that was cut short had begun is
    ended in the name and with the reason of who began it.
    """
    today = date.fromtimestamp(now)
    record = studies.get(store, name, today)
    if record.state not in ENDED:
        raise Conflict(
            f"study {record.study.name!r} is {record.state} here; needed one that is over: "
            f"consilia node leave {record.study.name}"
        )
    with store.write() as tx:
        tx.execute(
            "INSERT INTO study_ends VALUES (?, ?, ?, ?, 0) ON CONFLICT (study) DO UPDATE SET "
            "at = excluded.at, actor = excluded.actor, reason = excluded.reason, done = 0 "
            "WHERE done = ?",
            (record.digest, now, actor, reason, _DONE),
        )
    return _carry_out(store, directory, record, now, empty_cache)


def finish(
    store: Store, directory: Path, *, now: float, empty_cache: Callable[[], int]
) -> tuple[Purged, ...]:
    """End the deletions that were cut short, by a kill or by a file that could not go."""
    rows = store.rows("SELECT study FROM study_ends WHERE done < ? ORDER BY study", (_DONE,))
    today = date.fromtimestamp(now)
    return tuple(
        _carry_out(store, directory, studies.get(store, str(digest), today), now, empty_cache)
        for (digest,) in rows
    )


def _carry_out(
    store: Store,
    directory: Path,
    record: studies.StudyRecord,
    now: float,
    empty_cache: Callable[[], int],
) -> Purged:
    """Do what study_ends notes of a study."""
    digest, name = record.digest, record.study.name
    ((actor, reason, step),) = store.rows(
        "SELECT actor, reason, done FROM study_ends WHERE study = ?", (digest,)
    )
    studykeys.destroy(store, digest)
    if step < _SHUT:
        with store.write() as tx:
            tx.execute("UPDATE study_ends SET done = ? WHERE study = ?", (_SHUT, digest))
            tx.audit(now, actor, "study.key", digest, "destroyed", f"{name}: {reason}")
    jobs = _jobs(store, digest)
    leases = [lease for lease in _leases(store) if lease.task.study == digest]
    files = sum(_remove(path) for job in jobs for path in _paths(directory, job))
    files += sum(_remove(path) for path in _unsent(store, directory, leases))
    files += sum(_remove(path) for lease in leases for path in _of_lease(directory, lease.id))
    freed = empty_cache()
    with store.write() as tx:
        secrets = _forget(tx, digest, leases)
        found = Purged(name, digest, jobs, files, freed, secrets)
        tx.execute("UPDATE study_ends SET done = ? WHERE study = ?", (_DONE, digest))
        detail = (
            f"{name}: {len(jobs)} jobs, {files} files, {secrets} secrets, "
            f"{freed} bytes of cached models; {reason}"
        )
        tx.audit(now, actor, "study.purge", digest, "deleted", detail)
    return found


def due(store: Store, days: int, today: date) -> tuple[str, ...]:
    """Return the digests of studies whose leftovers have outlived the retention time.

    That is the site's own `days` or the study's, whichever is shorter; 0 is none.
    """
    found = []
    for record in studies.list_studies(store, today):
        kept = min((d for d in (days, record.study.retention_days) if d), default=0)
        if not kept or record.state not in ENDED or not _jobs(store, record.digest):
            continue
        ended = (
            record.until if record.state == "expired" else date.fromtimestamp(record.decided)
        )
        if ended < today - timedelta(days=min(kept, _MOST_DAYS)):
            found.append(record.digest)
    return tuple(found)


def _jobs(store: Store, digest: str) -> tuple[str, ...]:
    rows = store.rows("SELECT job FROM study_jobs WHERE study = ? ORDER BY job", (digest,))
    return tuple(str(job) for (job,) in rows)


def _leases(store: Store) -> list[Lease]:
    """Return the leases whose answer is still here."""
    rows = store.rows("SELECT lease FROM leases WHERE lease IS NOT NULL")
    return [msgspec.msgpack.decode(body, type=Lease) for (body,) in rows]


def _paths(directory: Path, job: str) -> list[Path]:
    """Return what a job has in the node's folder."""
    name = file_name(job)
    logs = directory / "log" / "jobs"
    feedback = compressing.memory_of(directory / "feedback", job)
    found = [directory / "jobs" / name, feedback]
    return [*found, *(p for p in logs.glob("*") if p.name.split(".log")[0] == name)]


def _unsent(store: Store, directory: Path, leases: list[Lease]) -> list[Path]:
    mine = {lease.id for lease in leases}
    rows = store.rows("SELECT id, frame FROM leases WHERE frame IS NOT NULL")
    return [directory / "outbox" / str(frame) for id, frame in rows if id in mine]


def _of_lease(directory: Path, lease: str) -> list[Path]:
    """Return what a lease has: the memory its update would leave, an opened sum."""
    feedback = compressing.waiting_of(directory / "feedback", lease)
    return [feedback, *opening.files(directory / opening.FOLDER, lease)]


def _remove(path: Path) -> int:
    """Remove a file or folder; return how many there were. StorageError for what stays."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
            return 1
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            return 1
    except OSError as e:
        raise StorageError(
            f"{e.filename or path} cannot be deleted: {e.strerror}; it is still there, and so "
            "is the study's record: put that right and purge again"
        ) from None
    return 0


def _forget(tx: Transaction, digest: str, leases: list[Lease]) -> int:
    """Forget unsent answers, secrets and keys; an answered lease stays answered."""
    secrets = tx.execute("DELETE FROM pins WHERE study = ?", (digest,))
    for lease in leases:
        secrets += tx.execute("DELETE FROM masked WHERE lease = ?", (lease.id,))
        tx.execute(
            "UPDATE leases SET settled = 1, lease = NULL, report = NULL, frame = NULL "
            "WHERE id = ?",
            (lease.id,),
        )
    tx.execute("DELETE FROM study_jobs WHERE study = ?", (digest,))
    tx.touch()
    return secrets
