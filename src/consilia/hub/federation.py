"""What a node may ask of the hub, without a transport: the listener and the simulator call it.

The caller has proved which site it speaks for. Nothing a node says is believed without its
signature (reports, advertisements), nothing it uploads without a check of every byte, and a
digest that it knows authorises nothing: a site reads the models and writes the updates of the
leases it holds.

`poll`, `report`, `advertise`, `catalogue` and `plan` run on the event loop; `readable`,
`upload` and `moved` are called from the blob plane's threads.
"""

import asyncio
import math
from collections.abc import Callable
from typing import TypeVar

import msgspec
from sqlalchemy import Connection

from consilia.core import ids
from consilia.core.round import Accepted, Settled
from consilia.errors import AuthError, ConfigError, Conflict, NotFound, Refused, WireError
from consilia.hub import (
    assessing,
    audit,
    encrypted,
    maskedevaluation,
    masking,
    packed,
    records,
    statistics,
    withdrawals,
)
from consilia.hub.blobs import Blob, Blobs
from consilia.hub.checks import (
    masked_misfit,
    records_limit,
    result_misfit,
)
from consilia.hub.engine import Engine
from consilia.hub.pool import front
from consilia.hub.pool.front import PoolFront
from consilia.hub.pool.relay import PoolRelay
from consilia.hub.presence import Assignment
from consilia.hub.siteviews import advertised
from consilia.hub.store import Store
from consilia.hub.uploads import Upload
from consilia.wire.frames import Header
from consilia.wire.metrics import metrics_misfit
from consilia.wire.offers import for_study
from consilia.wire.seal import open_sealed
from consilia.wire.v1 import (
    MAX_MESSAGE,
    MAX_MOCK,
    Advertisement,
    Catalogue,
    Declined,
    Failed,
    Orders,
    Plan,
    PlanEntry,
    Poll,
    Progress,
    Report,
    Result,
    Said,
    Sealed,
    SiteOffer,
    SiteOffers,
    Verdict,
    decode,
    encode,
)

T = TypeVar("T")
MAX_DATASETS = 1000  # in one advertisement
MAX_DISCLOSED = 500  # characters of what a site tells of a refusal
MAX_WITHDRAWN = 1000  # studies that one site may say it has left
MAX_VERSION = 100  # characters of the release a node says it is
MAX_TWINS = MAX_MESSAGE // 2  # bytes of mock twins in one answer
MAX_RECORDS = 10**12  # of one dataset: sums over all sites fit a database's integer

_REPORT: "msgspec.msgpack.Decoder[Report]" = msgspec.msgpack.Decoder(Report)
_ADVERTISEMENT = msgspec.msgpack.Decoder(Advertisement)


class Federation:
    """The hub's side of the wire, for sites that are who they say they are."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts it is made of
        self,
        engine: Engine,
        store: Store,
        blobs: Blobs,
        signing_key: Callable[[str], bytes],
        now: Callable[[], float],
        relay: PoolRelay | None = None,
    ) -> None:
        """`signing_key(site)` is the site's registered Ed25519 key, or AuthError.

        `relay` keeps sealed uploads for studies' data centres; without one none are taken.
        """
        self._relay = relay
        self._engine = engine
        self._store = store
        self._blobs = blobs
        self._signing_key = signing_key
        self._now = now
        self._reading: dict[str, str] = {}  # site -> job whose model it last opened

    # ---- control plane -----------------------------------------------------------------------

    async def poll(self, site: str, poll: Poll) -> Orders:
        """Answer with what differs from what the node does; wait for it as long as asked."""
        if not math.isfinite(poll.wait):
            raise WireError(f"site {site!r} would wait {poll.wait} seconds, needed a number")
        return await self._engine.presence.poll(site, poll, self._engine.catalogue)

    async def report(self, site: str, sealed: Sealed) -> Verdict:
        """Take a report; its answer is durable. The same report again gets the same answer."""
        report = self._opened(site, sealed, "report", _REPORT)
        assignment = self._engine.presence.holds(site, report.lease)
        if isinstance(report, Progress):
            return self._progress(site, assignment, report)
        if isinstance(report, Said):
            return await self._said(assignment, report)
        if assignment is None:
            return await self._ended(site, report)
        if isinstance(report, Result):
            return await self._result(assignment, report)
        if isinstance(report, Failed):
            done = await self._engine.settle(assignment, "failed", report.cause)
        else:
            said = report.disclosed[:MAX_DISCLOSED]  # people read it on their terminals
            cause = "".join(c if c.isprintable() else " " for c in said)
            done = await self._engine.settle(assignment, "declined", cause)
        return Verdict(True) if done else await self._ended(site, report)

    async def advertise(self, site: str, sealed: Sealed) -> Verdict:
        """Take what a site says of itself; jobs see the change at once."""
        said = self._opened(site, sealed, "advertisement", _ADVERTISEMENT)
        _check_advertisement(site, said)
        front.check(site, said, self._signing_key(site))
        before = self._engine.said(site)
        now = self._now()

        def write(db: Connection) -> None:
            records.set_advertisement(db, site, encode(said), now)
            if said.ledger_head:  # outlives the enrolment: a ledger is for ever
                records.set_mirror(db, site, encode(sealed))
            left, returned = withdrawals.note(db, site, said, now)
            for digest in left:
                audit.append(db, now, f"site:{site}", "study.leave", digest, outcome="left")
            if returned:
                audit.append(
                    db, now, f"site:{site}", "study.return", site, detail=str(returned)
                )
            if before is not None and (problem := _history(before, said)):
                audit.append(
                    db,
                    now,
                    f"site:{site}",
                    "audit.head",
                    site,
                    outcome="broken",
                    detail=problem,
                )

        await self._store.write(write)
        self._engine.advertised(site, said)
        if self._relay is not None and said.pool:
            await PoolFront(self._store, self._relay, self._now).settle(site, said)
        return Verdict(True)

    async def pool(self, site: str, method: str, path: str, body: bytes) -> object:
        """Answer what a site asks about pooled datasets (hub.pool.front)."""
        if self._relay is None:
            raise NotFound("this hub relays no uploads")
        asked = PoolFront(self._store, self._relay, self._now)
        return await asked.answer(site, method, path, body)

    async def catalogue(self, site: str) -> Catalogue:
        """Return the studies that invite the site, and the plans on offer in them."""
        version = self._engine.catalogue()
        return await self._store.read(lambda db: _catalogue(db, site, version))

    async def offers(self, site: str, study: str) -> SiteOffers:
        """Return what the sites of a study offer it, if the study invites the site."""
        return await self._store.read(lambda db: _offers(db, site, study))

    async def plan(self, site: str, digest: str) -> Plan:
        """Return a plan's source, if a study that invites the site is offered it."""

        def read(db: Connection) -> Plan:
            mine = {found.study.name for found in records.studies_of(db, site)}
            if not mine.intersection(records.plan_studies(db, digest)):
                raise NotFound(f"no study that invites site {site!r} is offered plan {digest}")
            return records.get_plan(db, digest).plan

        return await self._store.read(read)

    # ---- blob plane --------------------------------------------------------------------------

    def readable(self, site: str, digest: str) -> Blob:
        """Open the model, or the sum, of a lease that the site holds; else raise Refused."""
        assignment = self._engine.presence.may_read(site, digest)
        if assignment is None:
            raise Refused(f"site {site!r} has no lease that starts from frame {digest}")
        if digest == assignment.sum:
            blob = self._blobs.read_spool(encrypted.sum_of(assignment.lease))
        else:
            blob = self._blobs.open(digest)
        self._reading[site] = assignment.task.job
        return blob

    def upload(self, site: str, lease: str) -> Upload:
        """Begin or go on with the upload of a lease that the site holds.

        Its update, or what it has opened of an encrypted round (hub.encrypted.opened_of).
        """
        owner = encrypted.lease_of(lease)
        assignment = self._engine.presence.holds(site, owner or lease)
        if owner is not None and (assignment is None or not assignment.sum):
            raise Refused(f"site {site!r} was not asked to open a sum for {owner[:200]!r}")
        job = None if assignment is None else self._engine.job(assignment.task.job)
        if assignment is None or job is None:
            raise Refused(
                f"site {site!r} does not hold lease {lease[:200]!r}: its round is over, or it "
                "was never given"
            )
        held = assignment

        def faulty(cause: str) -> None:
            self._engine.reject_soon(held, cause)

        return self._engine.uploads.open(
            lease, held.limit, faulty=faulty, received=job.book.traffic.received
        )

    def moved(self, site: str, way: str, count: int) -> None:
        """Count frame bytes that went "out"; what comes "in" is counted as it lands."""
        if way == "out" and (job := self._engine.job(self._reading.get(site, ""))) is not None:
            job.book.traffic.sent(count)

    # ---- reports -----------------------------------------------------------------------------

    def _opened(
        self,
        site: str,
        sealed: Sealed,
        context: str,
        decoder: "msgspec.msgpack.Decoder[T]",
    ) -> T:
        if sealed.site != site:
            raise AuthError(
                f"site {site!r} sent a {context} signed in the name of {sealed.site[:63]!r}"
            )
        if len(sealed.payload) > MAX_MESSAGE:
            raise WireError(f"{context} of {len(sealed.payload)} bytes, limit {MAX_MESSAGE}")
        payload = open_sealed(sealed, context, self._signing_key(site))
        try:
            return decoder.decode(payload)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as e:
            raise WireError(f"the {context} of site {site!r} is not valid: {e}") from None

    def _progress(self, site: str, assignment: Assignment | None, report: Progress) -> Verdict:
        job = None if assignment is None else self._engine.job(assignment.task.job)
        if job is None:
            return Verdict(False, f"lease {report.lease[:200]!r} is not open")
        if not 0 <= report.fraction <= 1:
            raise WireError(f"site {site!r} reports progress {report.fraction}, needed 0 to 1")
        if problem := metrics_misfit(report.metrics):
            raise WireError(f"progress of site {site!r}: {problem}")
        job.progressed(site, report.lease, report.fraction, report.metrics)
        return Verdict(True)

    async def _said(self, held: Assignment | None, said: Said) -> Verdict:
        """Take a message of a masked round; what is malformed ends its site's part in it."""
        job = None if held is None else self._engine.job(held.task.job)
        if held is None or job is None:
            return Verdict(False, f"lease {said.lease[:200]!r} is not open")
        try:
            masking.check(job.state, held.site, said, self._signing_key(held.site))
            if job.state.config.encrypted and said.step == job.state.step == "unmask":
                opened = await self._engine.opened(held)
                encrypted.check_opened(said.body, opened, job.book.base)
        except WireError as e:
            cause = f"its {said.step} of the masked round are not valid: {e}"
            await self._engine.settle(held, "rejected", cause)
            return Verdict(False, cause)
        if await self._engine.spoke(held, said):
            return Verdict(True)
        return Verdict(False, f"{said.step} of lease {said.lease} are not asked for now")

    async def _result(self, held: Assignment, report: Result) -> Verdict:
        job = self._engine.job(held.task.job)
        if job is None:
            return await self._ended(held.site, report)
        if held.task.kind in ("evaluate", "statistics"):
            return await self._evaluated(held, report)
        header: Header | None = None
        if report.model is not None:
            header = await self._engine.uploaded(held)
            if header is None:
                raise Conflict(
                    f"upload of lease {held.lease} is not complete: send the rest first"
                )
        base = None if held.task.kind == "init" else job.book.base
        if held.task.kind != "init" and base is None:
            raise Conflict(f"job {job.id} has no model yet that {held.lease} could be of")
        most = records_limit(self._engine.said(held.site), held.task.tags)
        problem = (
            "the result names no model: an empty update cannot be averaged"
            if header is None
            else masked_misfit(report, held.task, header, base)
            if held.task.cohort and base is not None
            else result_misfit(report, held.task, header, base, most)
        )
        if problem is None and held.task.cohort and held.task.privacy.aggregation == "ckks":
            problem = await self._engine.ciphertexts_misfit(held)
        if problem is None and base is not None and held.task.privacy.compression is not None:
            problem = await asyncio.to_thread(
                packed.misfit, self._blobs, base.digest, held.lease, held.task
            )
        if problem is not None or header is None:
            cause = problem or ""
            if await self._engine.settle(held, "rejected", cause):
                return Verdict(False, f"update of site {held.site!r} rejected: {cause}")
            return await self._ended(held.site, report)
        count = report.records if base is not None else 0
        if await self._engine.accept(held, header.digest, count, report.metrics):
            return Verdict(True)
        return await self._ended(held.site, report)

    async def _evaluated(self, held: Assignment, report: Result) -> Verdict:
        """Take sums of a site's records, or what it has found of a model, masked or not."""
        task, found, what = held.task, report.evaluated, "evaluation"
        records, body = 1, ""
        if task.kind == "statistics":
            what, problem = "sums", statistics.misfit(report, task)
            body = statistics.body_of(report)
        elif task.cohort:
            problem = maskedevaluation.misfit(report, task)
            body = maskedevaluation.body_of(report)
        else:
            problem = assessing.misfit(report, task)
            if found is not None:
                records, body = found.records, assessing.body_of(found)
        if problem is not None:
            if await self._engine.settle(held, "rejected", problem):
                return Verdict(False, f"{what} of site {held.site!r} rejected: {problem}")
            return await self._ended(held.site, report)
        if await self._engine.accept(held, "", records, {}, body):
            return Verdict(True)
        return await self._ended(held.site, report)

    async def _ended(self, site: str, report: Result | Failed | Declined) -> Verdict:
        """Answer a report on a lease that is not open: again, late, or of somebody else."""
        # job.round.attempt.site: the name of a site may hold dots itself
        parts = report.lease.split(".", 3)
        if len(parts) < 4 or parts[3] != site:
            cause = f"lease {report.lease[:200]!r} was not given to site {site!r}"
            now = self._now()
            await self._store.write(
                lambda db: audit.append(
                    db,
                    now,
                    f"site:{site}",
                    "lease.report",
                    report.lease[:200],
                    outcome="refused",
                    detail=cause,
                )
            )
            return Verdict(False, cause)
        ending = await self._engine.ending(parts[0], report.lease)
        match ending, report:
            case Accepted(), Result():
                if ending.digest == (report.model or ""):
                    return Verdict(True)
                return Verdict(
                    False, f"lease {report.lease} has another update already: {ending.digest}"
                )
            case Settled(status="rejected"), Result():
                return Verdict(False, f"update of site {site!r} rejected: {ending.cause}")
            case Settled(), (Failed() | Declined()):
                return Verdict(True)
        return Verdict(
            False, f"lease {report.lease} is not open any more: its round or its job is over"
        )


def _check_advertisement(site: str, said: Advertisement) -> None:
    if len(said.datasets) > MAX_DATASETS:
        raise WireError(
            f"site {site!r} advertises {len(said.datasets)} datasets, limit {MAX_DATASETS}"
        )
    if len(said.withdrawn) > MAX_WITHDRAWN:
        raise WireError(
            f"site {site!r} says it left {len(said.withdrawn)} studies, limit {MAX_WITHDRAWN}"
        )
    if len(said.version) > MAX_VERSION or not said.version.isprintable():
        raise WireError(f"site {site!r} says its release is {said.version[:MAX_VERSION]!r}")
    try:
        for dataset in said.datasets:
            ids.name(dataset.name, "dataset")
            for tag in dataset.tags:
                ids.name(tag, "tag")
            if not 0 <= dataset.records <= MAX_RECORDS:
                raise ConfigError(f"dataset {dataset.name!r} has {dataset.records} records")
            if dataset.mock is not None and (size := len(encode(dataset.mock))) > MAX_MOCK:
                raise ConfigError(f"dataset {dataset.name!r} has a mock twin of {size} bytes")
            if any(len(encode(told.twin)) > MAX_MOCK for told in dataset.loaded):
                raise ConfigError(
                    f"dataset {dataset.name!r} has a mock twin as loaded of more than "
                    f"{MAX_MOCK} bytes"
                )
        for digest in (*said.studies, *said.plans):
            ids.digest(digest)
    except ConfigError as e:
        raise WireError(f"advertisement of site {site!r}: {e}") from None


def _history(before: Advertisement, now: Advertisement) -> str | None:
    """Say how a node's audit chain contradicts what it said before, or None."""
    if now.audit_length < before.audit_length:
        return (
            f"the node's audit chain has {now.audit_length} lines, it had "
            f"{before.audit_length}: restored from a backup, or rewritten"
        )
    if now.audit_length == before.audit_length and now.audit_head != before.audit_head:
        return f"line {now.audit_length} of the node's audit chain was rewritten"
    return None


def _offers(db: Connection, site: str, study: str) -> SiteOffers:
    """Read the offers; mock twins that would make the message too long are left out."""
    found = next((s for s in records.studies_of(db, site) if s.study.name == study), None)
    if found is None:
        raise NotFound(f"no study {study[:80]!r} invites site {site!r}")
    room, offers = MAX_TWINS, []
    for name, said in sorted(advertised(records.every_site(db)).items()):
        if name not in found.study.sites or found.digest not in said.studies:
            continue
        for dataset in said.datasets:
            if not set(found.study.tags) <= set(dataset.tags):
                continue
            told = for_study(dataset, study)
            size = sum(len(encode(twin)) for twin in (told.mock, *told.loaded) if twin)
            fits = size <= room
            room -= size if fits else 0
            if not fits:
                told = msgspec.structs.replace(told, mock=None, loaded=())
            offers.append(SiteOffer(name, told))
    return SiteOffers(tuple(offers))


def _catalogue(db: Connection, site: str, version: int) -> Catalogue:
    studies = tuple(found.study for found in records.studies_of(db, site))
    plans = (
        PlanEntry(p.digest, p.plan.name, p.study, p.author)
        for study in studies
        for p in records.study_plans(db, study.name)
    )
    invited = {site for study in studies for site in study.sites}
    keys = {
        found.name: found.signing_key
        for found in records.every_site(db)
        if found.name in invited and found.state == "enrolled" and found.signing_key
    }
    kept = records.mirror(db, site)
    mirror = None if kept is None else decode(kept, Sealed)
    ended = records.ended_terms(db, site)
    return Catalogue(version, studies, tuple(plans), keys, mirror, ended=ended)
