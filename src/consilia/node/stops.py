"""Jobs that the site's staff have stopped here: their tasks are refused, and running ones end.

Written in the store like every decision, so it holds for all later rounds, and after a restart.
The hub learns that the site refused, as for any refusal. A job may be let go on.
"""

from consilia.errors import ConfigError, NotFound
from consilia.node.store import Store

MAX_JOB = 100  # characters
MAX_REASON = 2000


def stop(store: Store, job: str, *, actor: str, now: float, reason: str) -> None:
    """Refuse every task of a job from now on; what runs is stopped within a second."""
    if not 0 < len(job) <= MAX_JOB or not job.isprintable():
        raise ConfigError(f"job: found {job[:80]!r}, which names no job")
    if not reason.strip() or len(reason) > MAX_REASON:
        raise ConfigError(
            f"reason: found {len(reason)} characters, needed 1 to {MAX_REASON}: why it is "
            "stopped, for this site's audit trail"
        )
    with store.write() as tx:
        tx.execute("INSERT OR IGNORE INTO stopped_jobs VALUES (?, ?, ?)", (job, now, actor))
        tx.touch()
        tx.audit(now, actor, "job.stop", job, "stopped", reason)


def resume(store: Store, job: str, *, actor: str, now: float, reason: str = "") -> None:
    """Let the tasks of a job run again; NotFound when it was not stopped."""
    with store.write() as tx:
        if not tx.execute("DELETE FROM stopped_jobs WHERE job = ?", (job,)):
            raise NotFound(f"no job {job[:80]!r} was stopped here")
        tx.touch()
        tx.audit(now, actor, "job.resume", job, "resumed", reason)


def stopped(store: Store) -> dict[str, str]:
    """Return job -> who stopped it."""
    rows = store.rows("SELECT job, actor FROM stopped_jobs")
    return {str(job): str(actor) for job, actor in rows}
