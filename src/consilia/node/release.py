"""The one door out of a site: every byte that leaves passes here.

An update leaves only when the worker's tensors have exactly the model's schema, are finite
(and clipped, where the site says so), were computed on no fewer records than the site's and
the study's minimum and no more than the dataset has, and its metrics are a few short names
with finite numbers, of which disclosure control lets leave what may (node.numbers). It is
then written to DIR/outbox (one that is not masked under its study's key), signed, and entered
in the audit trail in one transaction; only after that commit may a byte of it be sent.

The answer to a lease is kept until the hub has acknowledged it, so a restarted agent sends
the same answer again instead of training again. The frame itself is not synced: after a power
cut an answer whose frame is damaged is dropped, and its task runs again.

What fails tells the hub one word of a closed list; durations are rounded up to a few buckets:
both would otherwise carry information out.
"""

import contextlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import get_args

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core.carried import Carried
from consilia.errors import (
    ConsiliaError,
    Refused,
    WorkerError,
)
from consilia.node import (
    audit,
    budget,
    coarse,
    compressing,
    evaluating,
    figures,
    ledger,
    ledgerlog,
    noising,
    segments,
    studykeys,
    summing,
)
from consilia.node.config import NodeConfig
from consilia.node.disclosure import Answerer
from consilia.node.masking import Masking, encrypts, forget
from consilia.node.numbers import Numbers, Told
from consilia.node.policy import short
from consilia.node.runner import TaskOutput
from consilia.node.spending import dp_of
from consilia.node.store import Store, Transaction, hashed_name
from consilia.node.updates import Updates, discard
from consilia.privacy import disclosure
from consilia.stats import sums
from consilia.wire import frames, seal
from consilia.wire.metrics import metrics_misfit
from consilia.wire.v1 import (
    Advertisement,
    Declined,
    Evaluation,
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What the node says on a lease, durable and audited; `frame` goes with a result."""

    lease: Lease
    report: Sealed
    frame: Path | None = None
    listens: bool = False  # a masked round goes on with it, without a frame


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
        self.opening = outbox.parent / "opening"  # sums of encrypted rounds (node.opening)
        self.masking = Masking(store, config.site, key, now, random)
        self._random = random
        self._mirrored = False
        self._numbers = Numbers(store, config.disclosure)
        self._answers = Answerer(store, config.disclosure, now, random)
        self._rest = studykeys.rest_of(store, random)
        self._feedback = compressing.Feedback(outbox.parent / "feedback", now, self._rest)
        self._updates = Updates(outbox, config, self.masking, self._feedback, random)
        self._lock = threading.Lock()
        self._acknowledged: dict[str, Path | None] = {}  # settled, not yet noted on disk
        self._views: set[tuple[Path, int]] = set()  # frames being sent, opened: descriptors
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
            if (dp := dp_of(lease.task)) is not None and dp.distributed:
                done = msgspec.structs.replace(done, metrics=noising.metrics(dp))
            header, known = self._updates.made(lease, done, tensors, base, path)
            if not lease.task.cohort:  # a masked one hides itself
                self._rest.keep_in_place(lease.task.study, path, _outgoing(lease))
            return self._keep_result(lease, done, header, path, seconds, told, known)
        except BaseException:
            discard(path)
            self._feedback.lost(lease)
            raise

    def evaluated(
        self, lease: Lease, output: TaskOutput, *, records: int, dataset: str, seconds: float
    ) -> Answer:
        """Measure a model from a worker's predictions for a hold-out, and make the answer.

        No frame goes with it. Raises Refused when nothing may be told, WorkerError.
        """
        asked = lease.task.evaluation or Evaluation()
        predictions = evaluating.taken(output, asked, records)
        today = date.fromtimestamp(self._now())
        if summing.masks_evaluation(lease.task):
            told = self._numbers.summed(dataset=dataset, today=today)
            return self._summed(lease, predictions, asked, told, seconds)
        found, told = self._numbers.evaluated(predictions, asked, dataset=dataset, today=today)
        job, took = lease.task.job, disclosure.release_duration(seconds)
        report = self._seal(
            Result(lease.id, job, lease.task.round, None, found.records, {}, took, found)
        )
        detail = (
            f"metrics {', '.join(sorted(told.metrics))} on a hold-out of {records} records; "
            f"{_about(lease)}{'; kept back: ' if told.note else ''}{told.note}"
        )
        with self._committing() as (tx, _):
            self._keep(tx, lease, report, None)
            self._numbers.count(tx, told)
            tx.audit(self._now(), "agent", "release", lease.id, "released", detail)
        self._numbers.ended(lease.id)
        return Answer(lease, report)

    def _summed(
        self,
        lease: Lease,
        found: evaluating.Predictions,
        asked: Evaluation,
        told: Told,
        seconds: float,
    ) -> Answer:
        """Make the answer of a masked evaluation: a vector that only the others' can open."""
        task, dp = lease.task, dp_of(lease.task)
        if dp is None:
            numbers = summing.vector(found, asked, self._numbers.rules)
        else:
            keyed = self.masking.keyed(lease)
            numbers = summing.noised(found, asked, dp, keyed, self._random)
        hidden = self.masking.mask_numbers(lease, numbers)
        took = disclosure.release_duration(seconds)
        report = self._seal(
            Result(lease.id, task.job, task.round, None, task.total, {}, took, None, hidden)
        )
        noise = "" if dp is None else f"noise of {dp.noise_multiplier:g} a cell in shares; "
        detail = (
            f"metrics of a hold-out of {len(found.scores)} records, masked among "
            f"{len(task.cohort)} sites; {noise}{_about(lease)}"
        )
        with self._committing() as (tx, _):
            self._keep(tx, lease, report, None, listens=True)
            self._numbers.count(tx, told)
            if dp is not None:
                ledger.settle_in(tx, lease.id, now=self._now())
            tx.audit(self._now(), "agent", "release", lease.id, "released", detail)
        self._numbers.ended(lease.id)
        return Answer(lease, report, listens=True)

    def statistics(
        self, lease: Lease, output: TaskOutput, *, dataset: str, seconds: float
    ) -> Answer:
        """Make the answer to a question for sums from the columns that a worker has read.

        Masked where there is a cohort. Raises Refused when nothing may be told, WorkerError.
        """
        task, asked = lease.task, lease.task.privacy.statistics
        if asked is None:
            raise Refused("a task of kind 'statistics' without a question")
        universe = ledger.universe_of(self._config.privacy, dataset)
        about = figures.About(task.study, universe, dataset)
        columns = figures.taken(output, asked)
        told = figures.answered(columns, asked, about, self._answers)
        body = sums.coded(asked, told)
        masked = bool(task.cohort)
        sent = self.masking.mask_numbers(lease, body) if masked else body.tobytes()
        took = disclosure.release_duration(seconds)
        records = task.total if masked else 1
        report = self._seal(
            Result(lease.id, task.job, task.round, None, records, {}, took, None, sent)
        )
        detail = f"{figures.described(asked, told)}; {'masked' if masked else 'plain'}; "
        with self._committing() as (tx, _):
            self._keep(tx, lease, report, None, listens=masked)
            tx.audit(
                self._now(), "agent", "release", lease.id, "released", detail + _about(lease)
            )
        return Answer(lease, report, listens=masked)

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
        self._discard(self._frame_path(lease.id))
        self._feedback.lost(lease)
        return Answer(lease, report)

    def settle(self, config: NodeConfig) -> None:
        """Go on under another configuration: its clip_norm and disclose_reasons hold now."""
        self._config = config
        self._updates.settle(config)

    def declined(
        self, lease: Lease, objections: Iterable[str], action: str, told: Iterable[str] = ()
    ) -> Answer:
        """Make the answer for a task that policy forbids; the reasons go to the audit trail.

        `action` is task.refuse (never started), task.stop (while running) or release.refuse.
        `told` leaves even where the site discloses nothing (policy.TOLD).
        """
        reasons = "; ".join(objections)
        disclosed = (reasons if self._config.disclose_reasons else "; ".join(told))[:1000]
        report = self._seal(Declined(lease.id, disclosed))
        with self._committing() as (tx, _):
            self._keep(tx, lease, report, None)
            detail = f"{reasons}; {_about(lease)}"
            tx.audit(self._now(), "agent", action, lease.id, "refused", detail)
        self._discard(self._frame_path(lease.id))
        self._feedback.lost(lease)
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

    def close_segment(self) -> None:
        """Close the part of the audit trail that has grown large enough; see node.segments."""
        segments.close(self._store, self._key, self._config.site, self._now())

    # ---- the outbox ------------------------------------------------------------------------

    @contextmanager
    def plain(self, answer: Answer, frame: Path) -> Iterator[Path]:
        """Yield where the frame of an answer can be read while it is sent; FileNotFoundError.

        Once the answer is withdrawn it reads as empty: no more of it is sent.
        """
        about = _outgoing(answer.lease)
        with self._rest.opened(answer.lease.task.study, frame, about) as fd:
            view = (frame, fd)
            with self._lock:
                self._views.add(view)
            try:
                yield Path(f"/proc/self/fd/{fd}")
            finally:
                with self._lock:
                    self._views.discard(view)

    def _discard(self, frame: Path) -> None:
        """Remove a frame, and empty what a transfer is reading of it."""
        discard(frame)
        with self._lock:
            for path, fd in self._views:
                if path == frame:
                    with contextlib.suppress(OSError):
                        os.truncate(f"/proc/self/fd/{fd}", 0)

    def answered(self, lease: str) -> bool:
        """Tell whether this node has ever answered a lease: it never does so twice."""
        return bool(self._store.rows("SELECT 1 FROM leases WHERE id = ?", (lease,)))

    def acknowledged(self, answer: Answer, taken: bool = True) -> None:
        """Note that the hub has the answer: written with the next transaction or `flush`."""
        if coarse.feeds(answer.lease.task.privacy) and answer.frame is not None:
            (self._feedback.taken if taken else self._feedback.lost)(answer.lease)
        with self._lock:
            self._acknowledged[answer.lease.id] = answer.frame

    def withdraw(self, answer: Answer, reason: str) -> None:
        """Drop an answer that was not sent: its lease was taken back, or policy changed."""
        self._feedback.lost(answer.lease)
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
            answer = Answer(lease, sealed, path, self._listens(lease))
            if path is not None and not self._sound(answer, path):
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

    def _keep_result(  # noqa: PLR0913, PLR0917 - the parts of one result
        self,
        lease: Lease,
        done: Done,
        header: frames.Header,
        path: Path,
        seconds: float,
        told: Told,
        known: Carried,
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
        how = "encrypted" if encrypts(lease.task) else "masked"
        hidden = f"{how} among {len(lease.task.cohort)} sites; " if masked else ""
        hidden += f"{known.text()}; " if known.path else ""
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

    def _keep(
        self,
        tx: Transaction,
        lease: Lease,
        report: Sealed,
        frame: str | None,
        listens: bool = False,
    ) -> None:
        if frame is None and not listens:
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
                self._discard(frame)

    def _forget(self, answer: Answer) -> None:
        """Remove an answer whose frame a power cut has damaged: the task may run again."""
        with self._store.write() as tx:
            tx.execute("DELETE FROM leases WHERE id = ?", (answer.lease.id,))
            tx.audit(
                self._now(), "agent", "release.withdraw", answer.lease.id, "dropped",
                "its frame was damaged before it was sent",
            )  # fmt: skip

    def _sound(self, answer: Answer, path: Path) -> bool:
        """Tell whether a kept frame is whole and the one the signed result names."""
        result = decode(answer.report.payload, Result)
        if result.model is None:
            return False
        try:
            with self.plain(answer, path) as view, frames.opened(view) as fd:
                size = os.fstat(fd).st_size
                verifier = frames.Verifier(size, expected=result.model)
                verifier.feed_file(fd, size)
        except (ConsiliaError, OSError):
            return False
        return verifier.complete

    def _listens(self, lease: Lease) -> bool:
        """Tell whether a masked round goes on after an answer without a frame.

        One that declines or fails has deleted the round's secrets with the answer.
        """
        if not (summing.masks_evaluation(lease.task) or lease.task.kind == "statistics"):
            return False
        return bool(self._store.rows("SELECT 1 FROM masked WHERE lease = ?", (lease.id,)))

    def _frame_path(self, lease: str) -> Path:
        return self._outbox / f"{hashed_name(lease)}.frame"

    def _seal(self, report: Report) -> Sealed:
        return seal.seal(REPORT, self._config.site, encode(report), self._key)


def check_metrics(metrics: Metrics) -> None:
    """Raise WorkerError unless metrics are a few short names with finite numbers."""
    if problem := metrics_misfit(metrics):
        broken = any(not math.isfinite(value) for value in metrics.values())
        raise WorkerError(problem, "not-finite" if broken else "plan-contract")


def _outgoing(lease: Lease) -> str:
    return f"update of lease {lease.id}"


def _about(lease: Lease) -> str:
    t = lease.task
    return (
        f"{t.kind} of job {t.job}, round {t.round}, study {t.study_name}, "
        f"study digest {short(t.study)}, plan {short(t.plan)}"
    )
