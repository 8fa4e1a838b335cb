"""The one door out of a site: every byte that leaves passes here.

An update leaves only when the worker's tensors have exactly the model's schema, are finite
(and clipped, where the site says so), were computed on no fewer records than the site's and
the study's minimum and no more than the dataset has, and its metrics are a few short names
with finite numbers, of which disclosure control lets leave what may (node.numbers). It is
then written to DIR/outbox, signed, and entered in the audit trail
in one transaction; only after that commit may a byte of it be sent.

The answer to a lease is kept until the hub has acknowledged it, so a restarted agent sends
the same answer again instead of training again. The frame itself is not synced: after a power
cut an answer whose frame is damaged is dropped, and its task runs again.

What fails tells the hub one word of a closed list; durations are rounded up to a few buckets:
both would otherwise carry information out.
"""

import contextlib
import hashlib
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import get_args

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core.weights import DTYPES, Schema, TensorSpec, mismatch
from consilia.errors import (
    ConsiliaError,
    Refused,
    StorageError,
    UpdateRejected,
    WireError,
    WorkerError,
)
from consilia.node import audit, budget, clip, ledger, ledgerlog
from consilia.node.config import NodeConfig
from consilia.node.masking import Masking, forget
from consilia.node.numbers import Numbers, Told
from consilia.node.policy import short
from consilia.node.spending import dp_of
from consilia.node.store import Store, Transaction
from consilia.privacy import disclosure
from consilia.wire import frames, seal
from consilia.wire.v1 import (
    MAX_METRICS,
    Advertisement,
    Declined,
    Dp,
    Failed,
    FailureCause,
    Lease,
    Metrics,
    Progress,
    Report,
    Result,
    Sealed,
    Task,
    decode,
    encode,
)
from consilia.wire.worker import Done

REPORT, ADVERTISEMENT = "report", "advertisement"
_LOG = logging.getLogger("consilia.node.release")
FREE_RESERVE = 64 << 20  # bytes of disk that an update must leave free
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the node says on a lease, durable and audited; `frame` goes with a result."""

    lease: Lease
    report: Sealed
    frame: Path | None = None


class Release:
    """Makes, keeps and withdraws answers. Methods block; any thread may call them."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts it is made of
        self,
        store: Store,
        outbox: Path,
        config: NodeConfig,
        key: Ed25519PrivateKey,
        now: Callable[[], float],
        random: Callable[[int], bytes],
    ) -> None:
        """Open the outbox folder (made 0700 when missing); `random` gives secret bytes."""
        outbox.mkdir(mode=0o700, exist_ok=True)
        self._store = store
        self._outbox = outbox
        self._config = config
        self._key = key
        self._now = now
        self.masking = Masking(store, config.site, key, now, random)
        self._random = random
        self._mirrored = False
        self._numbers = Numbers(store, config.disclosure)
        self._lock = threading.Lock()
        self._acknowledged: dict[str, Path | None] = {}  # settled, not yet noted on disk
        self._advertised: bytes = b""

    # ---- answers ---------------------------------------------------------------------------

    def result(  # noqa: PLR0913 - by keyword
        self,
        lease: Lease,
        done: Done,
        tensors: int,
        *,
        base: Path | None,
        available: int,
        least: int,
        seconds: float,
        dataset: str = "",
    ) -> Answer:
        """Take the worker's outcome, its tensors from a descriptor, and make the answer.

        `available` is the dataset's record count, `least` the minimum in force; how often
        `dataset` tells metrics is counted under its name. Raises Refused
        (too few records), WorkerError with its cause, or StorageError; nothing has left then.
        """
        path = self._frame_path(lease.id)
        try:
            self._check_records(lease, done, available, least)
            check_metrics(done.metrics)
            told = self._numbers.result(
                lease.task,
                done.metrics,
                dataset=dataset,
                records=done.records,
                today=date.fromtimestamp(self._now()),
            )
            done = msgspec.structs.replace(done, metrics=told.metrics)
            bound = _tightest(self._config.clip_norm, lease.task.privacy.clip)
            header = self._receive(done, tensors, base, path, bound)
            if (dp := dp_of(lease.task)) is not None and dp.level == "client":
                header = self._noise(dp, base, path)
            if lease.task.cohort:
                header = self._mask(lease, done, base, path)
            return self._keep_result(lease, done, header, path, seconds, told)
        except BaseException:
            discard(path)
            raise

    def failed(self, lease: Lease, cause: FailureCause) -> Answer:
        """Make the answer for a task that did not finish; the reason in words stays here."""
        cause = disclosure.release_cause(cause, get_args(FailureCause), "internal")
        report = self._seal(Failed(lease.id, cause))
        now = self._now()
        with self._committing() as (tx, _):
            self._keep(tx, lease, report, None)
            tx.execute(
                "INSERT INTO failures VALUES (?, ?, 1) "
                "ON CONFLICT (plan, day) DO UPDATE SET count = count + 1",
                (lease.task.plan[:80], date.fromtimestamp(now).isoformat()),
            )
            tx.audit(now, "agent", "task.fail", lease.id, cause, _about(lease))
        discard(self._frame_path(lease.id))
        return Answer(lease, report)

    def declined(self, lease: Lease, objections: Iterable[str], action: str) -> Answer:
        """Make the answer for a task that policy forbids; the reasons go to the audit trail.

        `action` is task.refuse (never started), task.stop (while running) or release.refuse.
        """
        reasons = "; ".join(objections)
        disclosed = reasons[:1000] if self._config.disclose_reasons else ""
        report = self._seal(Declined(lease.id, disclosed))
        with self._committing() as (tx, _):
            self._keep(tx, lease, report, None)
            detail = f"{reasons}; {_about(lease)}"
            tx.audit(self._now(), "agent", action, lease.id, "refused", detail)
        discard(self._frame_path(lease.id))
        return Answer(lease, report)

    def dropped(self, lease: Lease, reason: str) -> None:
        """Note that a task was given up before it had an answer; the hub is told nothing."""
        with self._store.write() as tx:
            detail = f"{reason}; {_about(lease)}"
            tx.audit(self._now(), "agent", "task.stop", lease.id, "dropped", detail)

    def progress(
        self,
        lease: str,
        fraction: float,
        metrics: Metrics,
        task: Task | None = None,
        records: int = 0,
    ) -> Sealed:
        """Return a signed progress message, or raise WorkerError for what may not leave.

        Metrics go with it only where the site says so, and are judged by `task` and by how
        many `records` its dataset has: without these none does.
        """
        if not 0 <= fraction <= 1:
            raise WorkerError("progress is not a fraction from 0 to 1", "plan-contract")
        check_metrics(metrics)
        step, kept, first = self._numbers.progress(lease, task, fraction, metrics, records)
        if first:
            with self._store.write() as tx:
                detail = f"metrics {', '.join(sorted(kept))} while the task runs"
                tx.audit(self._now(), "agent", "release.progress", lease, "released", detail)
        return self._seal(Progress(lease, step, kept))

    def take_mirror(self, mirror: Sealed | None) -> None:
        """Compare the privacy ledger with what the hub kept of its head.

        From then on advertisements tell the head: one that did so before would let a node
        restored from a backup overwrite the proof of it.
        """
        if mirror is not None:
            public = self._key.public_key().public_bytes_raw()
            if problem := budget.check_mirror(self._store, mirror, public, self._now()):
                _LOG.error("%s", problem)
        self._mirrored = True

    def advertisement(self, message: Advertisement) -> Sealed:
        """Return the signed public state, with the heads of audit trail and privacy ledger.

        Audited whenever what it offers has changed.
        """
        rules = self._numbers.rules
        offered = (
            msgspec.structs.replace(d, records=disclosure.release_offer(d.records, rules))
            for d in message.datasets
        )
        message = msgspec.structs.replace(message, datasets=tuple(offered))
        offer = encode(message)
        if offer != self._advertised:
            with self._store.write() as tx:
                names = ", ".join(d.name for d in message.datasets) or "none"
                detail = (
                    f"datasets {names}; {len(message.studies)} studies, "
                    f"{len(message.plans)} plans in force"
                )
                site = self._config.site
                tx.audit(self._now(), "agent", "site.advertise", site, "sent", detail)
            self._advertised = offer
        length, head = audit.head(self._store)
        signed = msgspec.structs.replace(message, audit_head=head, audit_length=length)
        if self._mirrored and (own := ledgerlog.head(self._store)).length:
            signed = msgspec.structs.replace(
                signed, ledger_head=own.digest, ledger_length=own.length
            )
        return seal.seal(ADVERTISEMENT, self._config.site, encode(signed), self._key)

    # ---- the outbox ------------------------------------------------------------------------

    def answered(self, lease: str) -> bool:
        """Tell whether this node has ever answered a lease: it never does so twice."""
        return bool(self._store.rows("SELECT 1 FROM leases WHERE id = ?", (lease,)))

    def acknowledged(self, answer: Answer) -> None:
        """Note that the hub has the answer: written with the next transaction or `flush`."""
        with self._lock:
            self._acknowledged[answer.lease.id] = answer.frame

    def withdraw(self, answer: Answer, reason: str) -> None:
        """Drop an answer that was not sent: its lease was taken back, or policy changed."""
        with self._committing() as (tx, settle):
            settle(answer.lease.id, answer.frame)
            tx.audit(
                self._now(), "agent", "release.withdraw", answer.lease.id, "dropped", reason
            )

    def flush(self) -> None:
        """Write down all acknowledgements and remove their frames."""
        with self._lock:
            idle = not self._acknowledged
        if not idle:
            with self._committing():
                pass

    def pending(self) -> list[Answer]:
        """After a restart: return the answers not acknowledged; drop the broken ones."""
        rows = self._store.rows(
            "SELECT lease, report, frame FROM leases WHERE settled = 0 ORDER BY at"
        )
        answers, kept = [], set()
        for lease_bytes, report, name in rows:
            lease, sealed = decode(lease_bytes, Lease), decode(report, Sealed)
            path = None if name is None else self._outbox / str(name)
            answer = Answer(lease, sealed, path)
            if path is not None and not self._sound(path, sealed):
                self._forget(answer)
                continue
            if path is not None:
                kept.add(path.name)
            answers.append(answer)
        for stray in self._outbox.iterdir():
            if stray.name not in kept:
                stray.unlink()
        return answers

    # ---- inside ----------------------------------------------------------------------------

    def _check_records(self, lease: Lease, done: Done, available: int, least: int) -> None:
        if lease.task.kind == "init":
            if done.records:
                raise WorkerError("init claims records; it has no data", "plan-contract")
        elif done.records > available:
            raise WorkerError(
                f"the plan claims {done.records} records, the dataset has {available}",
                "plan-contract",
            )
        # A private task tells a rounded count: it is the dataset that must be large enough.
        elif (available if dp_of(lease.task) else done.records) < max(least, 1):
            raise Refused(
                f"the update was computed on {done.records} records, needed at least {least}"
            )

    def _receive(
        self, done: Done, tensors: int, base: Path | None, path: Path, bound: float
    ) -> frames.Header:
        """Stream the tensors into a frame at `path`: counted, hashed and checked on the way."""
        old = None if base is None else frames.read_header(base)
        schema = self._schema(done, None if old is None else old.schema)
        unchanged = {e.digest for e in old.entries if e.stored} if old is not None else ()
        size = sum(t.nbytes for t in schema)
        self._check_space(size)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            writer = frames.FrameWriter(fd, schema, unchanged)
            pump(tensors, size, writer.append)
            header = writer.finish()
            if base is not None and bound:
                header = self._clip(fd, base, path, bound) or header
        except UpdateRejected as e:
            raise WorkerError(str(e), "not-finite") from None
        except WireError as e:
            raise WorkerError(str(e), "plan-contract") from None
        except (StorageError, OSError) as e:
            raise WorkerError(f"the update could not be written: {e}", "disk") from None
        finally:
            os.close(fd)
        return header

    def _schema(self, done: Done, needed: Schema | None) -> Schema:
        """Return the declared schema when it is `needed`, or a first model's within limits."""
        schema = tuple(TensorSpec(t.name, t.dtype, t.shape) for t in done.tensors)
        if needed is not None:
            if problem := mismatch(schema, needed):
                raise WorkerError(
                    f"the update does not fit the model: {problem}", "plan-contract"
                )
            return schema
        if not 1 <= len(schema) <= frames.MAX_TENSORS:
            raise WorkerError(f"the model has {len(schema)} tensors", "plan-contract")
        for t in schema:
            if (
                t.dtype not in DTYPES
                or len(t.shape) > frames.MAX_RANK
                or min(t.shape, default=0) < 0
            ):
                raise WorkerError(
                    f"tensor {t.name[:80]!r} cannot travel: {t.dtype[:20]}{t.shape[:20]}",
                    "plan-contract",
                )
        size, limit = sum(t.nbytes for t in schema), self._config.limits.update_bytes
        if size > limit:
            raise WorkerError(f"the model has {size} bytes, limit {limit}", "plan-contract")
        return schema

    def _check_space(self, size: int) -> None:
        """Raise WorkerError (disk) when the outbox has no room: better before than half-way."""
        disk = os.statvfs(self._outbox)
        free = disk.f_bavail * disk.f_frsize
        if free < size + FREE_RESERVE:
            raise WorkerError(
                f"{self._outbox} has {free >> 20} MiB free, an update of {size >> 20} MiB "
                f"needs {FREE_RESERVE >> 20} MiB more than its size; make room",
                "disk",
            )

    def _noise(self, dp: Dp, base: Path | None, path: Path) -> frames.Header:
        """Put the clipped and noised update in place of the plain one (client level)."""
        if base is None:
            raise Refused("an update with noise needs a model that it changes")
        draft = path.with_suffix(".noised")
        try:
            with frames.opened(path) as new, frames.opened(base) as old:
                header = clip.private(new, old, dp, self._random, draft)
            draft.replace(path)
            return header
        except OSError as e:
            raise WorkerError(f"the update could not be noised: {e}", "disk") from None
        finally:
            discard(draft)

    def _mask(self, lease: Lease, done: Done, base: Path | None, path: Path) -> frames.Header:
        """Put the masked update in place of the plain one, which never leaves."""
        if base is None:
            raise Refused("a masked update needs a model that it changes")
        draft = path.with_suffix(".masked")
        try:
            header = self.masking.mask(lease, path, base, draft, done.records, done.metrics)
            draft.replace(path)
            return header
        except UpdateRejected as e:
            raise WorkerError(str(e), "plan-contract") from None
        except OSError as e:
            raise WorkerError(f"the update could not be masked: {e}", "disk") from None
        finally:
            discard(draft)

    def _clip(self, fd: int, base: Path, path: Path, bound: float) -> frames.Header | None:
        """Clip the frame at `path` to a norm; None when it was within already."""
        old = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = clip.norm(fd, old)
            if found <= bound:
                return None
            draft = path.with_suffix(".clip")
            header = clip.scaled(fd, old, bound / found, draft)
            draft.replace(path)
            return header
        finally:
            os.close(old)

    def _keep_result(  # noqa: PLR0913, PLR0917 - the parts of one result
        self,
        lease: Lease,
        done: Done,
        header: frames.Header,
        path: Path,
        seconds: float,
        told: Told,
    ) -> Answer:
        masked = bool(lease.task.cohort)
        result = Result(
            lease.id,
            lease.task.job,
            lease.task.round,
            header.digest,
            lease.task.total
            if masked
            else disclosure.release_records(done.records, self._numbers.rules),
            dict.fromkeys(done.metrics, 0.0) if masked else done.metrics,
            disclosure.release_duration(seconds),
        )
        report = self._seal(result)
        hidden = f"masked among {len(lease.task.cohort)} sites; " if masked else ""
        detail = (
            f"{header.digest}, {header.total_bytes} bytes, {done.records} records, "
            f"metrics {', '.join(sorted(done.metrics)) or 'none'}; {hidden}{_about(lease)}"
            f"{'; kept back: ' if told.note else ''}{told.note}"
        )
        with self._committing() as (tx, _):
            self._keep(tx, lease, report, path.name)
            self._numbers.count(tx, told)
            if dp_of(lease.task) is not None:
                ledger.settle_in(tx, lease.id, now=self._now())
            tx.audit(self._now(), "agent", "release", lease.id, "released", detail)
        self._numbers.ended(lease.id)
        return Answer(lease, report, path)

    def _keep(self, tx: Transaction, lease: Lease, report: Sealed, frame: str | None) -> None:
        if frame is None:
            forget(tx, lease.id)  # a site that has declined or failed gives out no share
        tx.execute(
            "INSERT INTO leases VALUES (?, ?, 0, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "at = excluded.at, settled = 0, report = excluded.report, frame = excluded.frame",
            (lease.id, self._now(), encode(lease), encode(report), frame),
        )

    @contextmanager
    def _committing(
        self,
    ) -> Iterator[tuple[Transaction, Callable[[str, Path | None], None]]]:
        """One transaction that also notes what was acknowledged; frames go after the commit."""
        with self._lock:
            noted, self._acknowledged = self._acknowledged, {}
        done = dict(noted)
        try:
            with self._store.write() as tx:
                yield tx, done.__setitem__
                for lease in done:
                    tx.execute(
                        "UPDATE leases SET settled = 1, lease = NULL, report = NULL, "
                        "frame = NULL WHERE id = ?",
                        (lease,),
                    )
        except BaseException:
            with self._lock:
                self._acknowledged = {**noted, **self._acknowledged}
            raise
        for frame in done.values():
            if frame is not None:
                discard(frame)

    def _forget(self, answer: Answer) -> None:
        """Remove an answer whose frame a power cut has damaged: the task may run again."""
        with self._store.write() as tx:
            tx.execute("DELETE FROM leases WHERE id = ?", (answer.lease.id,))
            tx.audit(
                self._now(), "agent", "release.withdraw", answer.lease.id, "dropped",
                "its frame was damaged before it was sent",
            )  # fmt: skip

    def _sound(self, path: Path, sealed: Sealed) -> bool:
        """Tell whether a kept frame is whole and the one the signed result names."""
        result = decode(sealed.payload, Result)
        if result.model is None:
            return False
        try:
            size = path.stat().st_size
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            verifier = frames.Verifier(size, expected=result.model)
            verifier.feed_file(fd, size)
        except ConsiliaError:
            return False
        finally:
            os.close(fd)
        return verifier.complete

    def _frame_path(self, lease: str) -> Path:
        # A lease id comes from outside: its hash is a file name that cannot leave the folder.
        return self._outbox / (hashlib.sha256(lease.encode()).hexdigest()[:32] + ".frame")

    def _seal(self, report: Report) -> Sealed:
        return seal.seal(REPORT, self._config.site, encode(report), self._key)


def check_metrics(metrics: Metrics) -> None:
    """Raise WorkerError unless metrics are a few short names with finite numbers."""
    if len(metrics) > MAX_METRICS:
        raise WorkerError(f"{len(metrics)} metrics, limit {MAX_METRICS}", "plan-contract")
    for name, value in metrics.items():
        if not _METRIC.fullmatch(name):
            raise WorkerError(
                f"metric name {name[:80]!r} is not allowed: 1 to 64 of A-Z a-z 0-9 _ . - "
                "with a letter or digit first",
                "plan-contract",
            )
        if not math.isfinite(value):
            raise WorkerError(f"metric {name!r} is not a finite number", "not-finite")


def discard(frame: Path) -> None:
    """Remove a frame; a transfer that has it open finds it empty and sends no more of it."""
    with contextlib.suppress(FileNotFoundError):
        os.truncate(frame, 0)
        frame.unlink()


def _tightest(*bounds: float) -> float:
    """Return the least of the bounds that are set; 0 when none is."""
    return min((bound for bound in bounds if bound), default=0.0)


def pump(source: int, count: int, sink: Callable[[memoryview], None]) -> None:
    """Move exactly `count` bytes from a blocking descriptor into `sink`, in reused pieces."""
    view = memoryview(bytearray(min(frames.CHUNK, max(count, 1))))
    while count:
        want = min(len(view), count)
        filled = 0
        while filled < want:
            got = os.readv(source, [view[filled:want]])
            if not got:
                raise WorkerError(
                    f"the worker ended {count - filled} bytes before its update did"
                )
            filled += got
        sink(view[:want])
        count -= want


def _about(lease: Lease) -> str:
    t = lease.task
    return (
        f"{t.kind} of job {t.job}, round {t.round}, study {t.study_name}, "
        f"study digest {short(t.study)}, plan {short(t.plan)}"
    )
