"""The one door out of a site: every byte that leaves passes here.

An update leaves only when the worker's tensors have exactly the model's schema, are finite
(and clipped, where the site says so), were computed on no fewer records than the site's and
the study's minimum and no more than the dataset has, and its metrics are a few short names
with finite numbers, of which disclosure control lets leave what may (node.numbers). It is
then written to the outbox (node.outbox), signed, and entered in the audit trail in one
transaction; only after that commit may a byte of it be sent.

What fails tells the hub one word of a closed list; durations are rounded up to a few buckets:
both would otherwise carry information out.
"""

import logging
import math
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import get_args

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core.carried import Carried
from consilia.errors import Refused, WorkerError
from consilia.node import (
    audit,
    budget,
    coarse,
    compressing,
    evaluating,
    ledger,
    ledgerlog,
    maskedevaluation,
    noising,
    privatestatistics,
    segments,
    statistics,
    studykeys,
)
from consilia.node.config import NodeConfig
from consilia.node.disclosure import Answerer
from consilia.node.masking import Masking, encrypts
from consilia.node.numbers import Numbers, Told
from consilia.node.outbox import Answer, Outbox
from consilia.node.policy import short
from consilia.node.runner import TaskOutput
from consilia.node.spending import dp_of
from consilia.node.store import Store, Transaction
from consilia.node.updates import Updates, discard
from consilia.privacy import disclosure
from consilia.stats import private, sums
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
    encode,
)
from consilia.wire.worker import Done

REPORT, ADVERTISEMENT = "report", "advertisement"
_LOG = logging.getLogger("consilia.node.release")


class Release:
    """Makes and withdraws answers; `outbox` keeps them. Methods block, on any thread."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts it is made of
        self,
        store: Store,
        outbox: Path,
        config: NodeConfig,
        key: Ed25519PrivateKey,
        now: Callable[[], float],
        random: Callable[[int], bytes],
    ) -> None:
        """Open the folder `outbox`; `random` gives secret bytes."""
        self._store = store
        self._config = config
        self._key = key
        self._now = now
        self.opening = outbox.parent / "opening"  # sums of encrypted rounds (node.opening)
        self.masking = Masking(store, config.site, key, now, random)
        self._random = random
        self._mirrored = False
        self._numbers = Numbers(store, config.disclosure)
        self._answers = Answerer(store, config.disclosure, now, random)
        rest = studykeys.rest_of(store, random)
        self.outbox = Outbox(store, outbox, rest, now)
        self._feedback = compressing.Feedback(outbox.parent / "feedback", now, rest)
        self._updates = Updates(outbox, config, self.masking, self._feedback, random)
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
        path = self.outbox.path(lease.id)
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
                self.outbox.seal(lease)
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
        if maskedevaluation.masks_evaluation(lease.task):
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
        with self.outbox.committing() as (tx, _):
            _check_not_withdrawn(tx, lease)
            self.outbox.keep(tx, lease, report, None)
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
            numbers = maskedevaluation.vector(found, asked, self._numbers.rules)
        else:
            keyed = self.masking.keyed(lease)
            numbers = maskedevaluation.noised(found, asked, dp, keyed, self._random)
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
        with self.outbox.committing() as (tx, _):
            _check_not_withdrawn(tx, lease)
            self.outbox.keep(tx, lease, report, None, listens=True)
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
        columns, dp, masked = statistics.taken(output, asked), dp_of(task), bool(task.cohort)
        if dp is None:
            universe = ledger.universe_of(self._config.privacy, dataset)
            about = statistics.About(task.study, universe, dataset)
            told = statistics.answered(columns, asked, about, self._answers)
            body, noise = sums.coded(asked, told), ""
        else:
            keyed = self.masking.keyed(lease) if masked else 0
            body = privatestatistics.noised(columns, asked, dp, keyed, self._random)
            told = dict.fromkeys(private.items(asked), 0.0)
            noise = f"{privatestatistics.described(asked, dp)}; "
        sent = self.masking.mask_numbers(lease, body) if masked else body.tobytes()
        took = disclosure.release_duration(seconds)
        records = task.total if masked else 1
        report = self._seal(
            Result(lease.id, task.job, task.round, None, records, {}, took, None, sent)
        )
        how = "masked" if masked else "plain"
        detail = f"{statistics.described(asked, told)}; {noise}{how}; "
        with self.outbox.committing() as (tx, _):
            _check_not_withdrawn(tx, lease)
            self.outbox.keep(tx, lease, report, None, listens=masked)
            if dp is not None:
                ledger.settle_in(tx, lease.id, now=self._now())
            tx.audit(
                self._now(), "agent", "release", lease.id, "released", detail + _about(lease)
            )
        return Answer(lease, report, listens=masked)

    def failed(self, lease: Lease, cause: FailureCause) -> Answer:
        """Make the answer for a task that did not finish; the reason in words stays here."""
        cause = disclosure.release_cause(cause, get_args(FailureCause), "internal")
        report = self._seal(Failed(lease.id, cause))
        now = self._now()
        with self.outbox.committing() as (tx, _):
            self.outbox.keep(tx, lease, report, None)
            tx.execute(
                "INSERT INTO failures VALUES (?, ?, 1) "
                "ON CONFLICT (plan, day) DO UPDATE SET count = count + 1",
                (lease.task.plan[:80], date.fromtimestamp(now).isoformat()),
            )
            tx.audit(now, "agent", "task.fail", lease.id, cause, _about(lease))
        self.outbox.discard(self.outbox.path(lease.id))
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
        with self.outbox.committing() as (tx, _):
            self.outbox.keep(tx, lease, report, None)
            detail = f"{reasons}; {_about(lease)}"
            tx.audit(self._now(), "agent", action, lease.id, "refused", detail)
        self.outbox.discard(self.outbox.path(lease.id))
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

    # ---- once it is made -------------------------------------------------------------------

    def acknowledged(self, answer: Answer, taken: bool = True) -> None:
        """Note that the hub has the answer: written with the next transaction or `flush`."""
        if coarse.feeds(answer.lease.task.privacy) and answer.frame is not None:
            (self._feedback.taken if taken else self._feedback.lost)(answer.lease)
        self.outbox.acknowledged(answer)

    def withdraw(self, answer: Answer, reason: str) -> None:
        """Drop an answer that was not sent: its lease was taken back, or policy changed."""
        self._feedback.lost(answer.lease)
        with self.outbox.committing() as (tx, settle):
            settle(answer.lease.id, answer.frame)
            tx.audit(
                self._now(), "agent", "release.withdraw", answer.lease.id, "dropped", reason
            )

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
        with self.outbox.committing() as (tx, _):
            _check_not_withdrawn(tx, lease)
            self.outbox.keep(tx, lease, report, path.name)
            self._numbers.count(tx, told)
            if dp_of(lease.task) is not None:
                ledger.settle_in(tx, lease.id, now=self._now())
            tx.audit(self._now(), "agent", "release", lease.id, "released", detail)
        self._numbers.ended(lease.id)
        return Answer(lease, report, path)

    def _seal(self, report: Report) -> Sealed:
        return seal.seal(REPORT, self._config.site, encode(report), self._key)


def check_metrics(metrics: Metrics) -> None:
    """Raise WorkerError unless metrics are a few short names with finite numbers."""
    if problem := metrics_misfit(metrics):
        broken = any(not math.isfinite(value) for value in metrics.values())
        raise WorkerError(problem, "not-finite" if broken else "plan-contract")


def _check_not_withdrawn(tx: Transaction, lease: Lease) -> None:
    """Raise Refused when the site's word for a task was taken back while its answer was made.

    The agent stops such a task at once; an answer that was all but written is caught here, in
    the transaction that releases it: in the trail no release follows the line of a revocation.
    """
    rows = tx.rows(
        "SELECT 'plan', state FROM plans WHERE digest = ? AND state IN ('revoked', 'rejected') "
        "UNION ALL SELECT 'study', state FROM studies WHERE digest = ? AND "
        "state IN ('left', 'declined')",
        (lease.task.plan, lease.task.study),
    )
    if rows:
        what, state = rows[0]
        raise Refused(f"the task's {what} was {state} before its answer was written")


def _about(lease: Lease) -> str:
    t = lease.task
    return (
        f"{t.kind} of job {t.job}, round {t.round}, study {t.study_name}, "
        f"study digest {short(t.study)}" + (f", plan {short(t.plan)}" if t.plan else "")
    )
