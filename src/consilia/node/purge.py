"""Deleting a study at the node: what its jobs left on this disk goes; the record of it stays.

    goes    workers' logs and files, models in the cache, unsent updates, secrets of masked
            rounds, what compression remembers of a job, the keys pinned for the study
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
from consilia.node import compressing, opening, studies
from consilia.node.runner import file_name
from consilia.node.store import Store, Transaction
from consilia.wire.v1 import Lease

ENDED = ("left", "declined", "replaced", "expired")


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
    gone before the audit line that says so.
    """
    today = date.fromtimestamp(now)
    record = studies.get(store, name, today)
    if record.state not in ENDED:
        raise Conflict(
            f"study {record.study.name!r} is {record.state} here; needed one that is over: "
            f"consilia node leave {record.study.name}"
        )
    jobs = _jobs(store, record.digest)
    leases = [lease for lease in _leases(store) if lease.task.study == record.digest]
    files = sum(_remove(path) for job in jobs for path in _paths(directory, job))
    files += sum(_remove(path) for path in _unsent(store, directory, leases))
    files += sum(_remove(path) for lease in leases for path in _of_lease(directory, lease.id))
    freed = empty_cache()
    with store.write() as tx:
        secrets = _forget(tx, record.digest, leases)
        found = Purged(record.study.name, record.digest, jobs, files, freed, secrets)
        detail = (
            f"{record.study.name}: {len(jobs)} jobs, {files} files, {secrets} secrets, "
            f"{freed} bytes of cached models; {reason}"
        )
        tx.audit(now, actor, "study.purge", record.digest, "deleted", detail)
    return found


def due(store: Store, days: int, today: date) -> tuple[str, ...]:
    """Return the digests of studies whose leftovers have outlived the retention time."""
    if not days:
        return ()
    before = today - timedelta(days=days)
    found = []
    for record in studies.list_studies(store, today):
        if record.state not in ENDED or not _jobs(store, record.digest):
            continue
        ended = (
            record.until if record.state == "expired" else date.fromtimestamp(record.decided)
        )
        if ended < before:
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
    feedback = compressing.Feedback(directory / "feedback", lambda: 0.0)
    found = [directory / "jobs" / name, feedback.memory(job)]
    return [*found, *(p for p in logs.glob("*") if p.name.split(".log")[0] == name)]


def _unsent(store: Store, directory: Path, leases: list[Lease]) -> list[Path]:
    mine = {lease.id for lease in leases}
    rows = store.rows("SELECT id, frame FROM leases WHERE frame IS NOT NULL")
    return [directory / "outbox" / str(frame) for id, frame in rows if id in mine]


def _of_lease(directory: Path, lease: str) -> list[Path]:
    """Return what a lease has: the memory its update would leave, an opened sum."""
    feedback = compressing.Feedback(directory / "feedback", lambda: 0.0)
    return [feedback.waiting(lease), *opening.files(directory / opening.FOLDER, lease)]


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
