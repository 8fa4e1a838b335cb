"""The hub's rows as typed records, and the functions that read and change them.

Each function takes a Connection first, to be called inside `Store.write` or `Store.read`; what
belongs together goes into one function given to `write`. Times are Unix seconds, given by
the caller. Model versions are in hub/modelversions, journals in hub/journal, audit lines in
hub/audit.

Lists answer a `Page` (hub/paging), newest first or by name.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.core.ids import name as checked_name
from consilia.errors import Conflict, NotFound
from consilia.hub import bases
from consilia.hub import tables as t
from consilia.hub.paging import MAX_PAGE, Listing, Page, everything
from consilia.hub.people.roles import Seeing
from consilia.wire.people import Experiment
from consilia.wire.v1 import Plan, Study, plan_digest, study_digest

if TYPE_CHECKING:
    from consilia.core.events import Phase  # making its records costs 40 ms

T = TypeVar("T")
MAX_STUDIES = 1000  # of one author, drafts and submitted ones
MAX_PLANS = 1000  # offered to one study
MAX_ENDED = 1000  # ended studies that a site is told of
StudyState = Literal["draft", "submitted", "closed", "replaced"]  # replaced: earlier terms
SiteState = Literal["invited", "enrolled", "revoked"]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job. Its rounds are in the journal; `phase` and `cause` are kept here for lists."""

    id: str
    experiment: Experiment
    study_digest: str
    author: str
    created: float
    phase: "Phase" = "waiting"
    cause: str = ""


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study; `digest` is None while it is a draft."""

    study: Study
    digest: str | None
    state: StudyState
    author: str
    created: float
    changed: float


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A plan offered to a study; `study` is the study's name."""

    plan: Plan
    digest: str
    study: str
    author: str
    created: float


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """A site. `advertisement` is the msgpack of its last wire.v1.Advertisement."""

    name: str
    state: SiteState
    signing_key: bytes | None
    advertisement: bytes | None
    advertised: float | None
    last_seen: float | None
    created: float
    certificate_expires: float | None  # of its newest certificate in force


# ---- generations ----------------------------------------------------------------------------


def bump(db: Connection, what: str) -> int:
    """Count one more change of `what` ("catalogue", "access") and return the new value."""
    row = t.generations
    changed = db.execute(
        sa.update(row)
        .where(row.c.name == what)
        .values(value=row.c.value + 1)
        .returning(row.c.value)
    ).scalar()
    if changed is None:
        db.execute(sa.insert(row).values(name=what, value=1))
        return 1
    return int(changed)


def generation(db: Connection, what: str) -> int:
    """How often `what` has changed, as of this transaction."""
    row = t.generations
    return int(db.execute(sa.select(row.c.value).where(row.c.name == what)).scalar() or 0)


# ---- jobs -----------------------------------------------------------------------------------


def add_job(db: Connection, job: JobRecord) -> None:
    """Record a new job; its study and plan are there already.

    Raises Conflict when the frame that it would start from is gone, or about to go.
    """
    bases.check_base(db, job.experiment.base)
    if not job.experiment.plan:  # statistics: a row that stands for none
        _keep_source(db, "", Plan("statistics", {}, ""))
    db.execute(
        sa.insert(t.jobs).values(
            id=job.id,
            study=job.experiment.study,
            study_digest=job.study_digest,
            plan=job.experiment.plan,
            experiment=document(job.experiment),
            author=job.author,
            created=job.created,
            phase=job.phase,
            cause=job.cause,
        )
    )


def get_job(db: Connection, id: str) -> JobRecord:
    """Return a job or raise NotFound."""
    return _job(one(db, sa.select(t.jobs).where(t.jobs.c.id == id), f"job {id!r}"))


def set_phase(db: Connection, id: str, phase: "Phase", cause: str = "") -> None:
    """Note where a job is, for lists; the journal is what counts."""
    done = db.execute(_SET_PHASE, {"job": id, "new_phase": phase, "new_cause": cause})
    if not done.rowcount:
        raise NotFound(f"there is no job {id!r}")


def list_jobs(  # noqa: PLR0913 - each narrows the list
    db: Connection,
    *,
    limit: int = 50,
    cursor: str | None = None,
    study: str | None = None,
    phases: Sequence["Phase"] | None = None,
    author: Seeing | None = None,
) -> Page[JobRecord]:
    """Jobs, newest first: all, or those in an author's studies."""
    found = _JOBS if author is None else _JOBS.where(t.jobs.c.study.in_(seen_studies(author)))
    if study is not None:
        found = found.where(t.jobs.c.study == study)
    if phases is not None:
        found = found.where(t.jobs.c.phase.in_(phases))
    return found.page(db, limit, cursor)


def unfinished_jobs(db: Connection) -> tuple[JobRecord, ...]:
    """Jobs a starting hub has to go on with, oldest first."""
    query = sa.select(t.jobs).where(t.jobs.c.phase.in_(("waiting", "running", "closing")))
    return tuple(map(_job, db.execute(query.order_by(t.jobs.c.created, t.jobs.c.id))))


# ---- studies --------------------------------------------------------------------------------


def add_study(db: Connection, study: Study, author: str, at: float) -> StudyRecord:
    """Record a draft; raise Conflict when the name is taken."""
    checked_name(study.name, "study")
    mine = (t.studies.c.author == author) & (t.studies.c.state != "closed")
    _need_room(
        db, sa.select(t.studies.c.name).where(mine), MAX_STUDIES, f"{author} has", "studies"
    )
    if db.execute(sa.select(t.studies.c.name).where(t.studies.c.name == study.name)).first():
        raise Conflict(f"study {study.name!r} exists already: choose another name")
    db.execute(
        sa.insert(t.studies).values(
            name=study.name,
            body=document(study),
            digest=None,
            state="draft",
            author=author,
            created=at,
            changed=at,
        )
    )
    return StudyRecord(study, None, "draft", author, at, at)


def change_study(db: Connection, study: Study, at: float) -> StudyRecord:
    """Replace a draft; raise Conflict once it is submitted."""
    found = get_study(db, study.name)
    _need_state(found, "draft", "changed")
    db.execute(
        sa.update(t.studies)
        .where(t.studies.c.name == study.name)
        .values(body=document(study), changed=at)
    )
    return StudyRecord(study, None, "draft", found.author, found.created, at)


def submit_study(db: Connection, name: str, at: float) -> StudyRecord:
    """Lock a draft under its digest and offer it to its sites."""
    found = get_study(db, name)
    _need_state(found, "draft", "submitted")
    return _move_study(db, found, "submitted", study_digest(found.study), at)


def revise_study(db: Connection, study: Study, at: float) -> StudyRecord:
    """Offer a submitted study under changed terms; each of its sites decides anew.

    The terms of before are kept. Raises Conflict while a job runs under them, and when the
    terms are today's or those of an earlier time.
    """
    found = get_study(db, study.name)
    _need_state(found, "submitted", "offered under changed terms")
    digest, old, j = study_digest(study), t.earlier_terms, t.jobs.c
    if digest == found.digest:
        raise Conflict(f"study {study.name!r} has these very terms: nothing is changed")
    if db.execute(sa.select(old.c.digest).where(old.c.digest == digest)).first():
        raise Conflict(
            f"study {study.name!r} had these very terms before, and its sites have decided on "
            "them: let the new ones differ, if only in the words of the purpose"
        )
    unfinished = j.phase.in_(("waiting", "running", "closing"))
    running = sa.select(j.id).where((j.study == study.name) & unfinished)
    if job := db.execute(running.order_by(j.id)).scalar():
        raise Conflict(
            f"job {job} runs under the terms of today: stop it, or wait for its end, before "
            f"study {study.name!r} is changed"
        )
    db.execute(
        sa.insert(old).values(
            digest=found.digest, study=study.name, body=document(found.study), replaced=at
        )
    )
    row = sa.update(t.studies).where(t.studies.c.name == study.name)
    db.execute(row.values(body=document(study)))
    changed = StudyRecord(study, digest, "submitted", found.author, found.created, at)
    return _move_study(db, changed, "submitted", digest, at)


def need_terms(db: Connection, job: JobRecord) -> None:
    """Raise Conflict when a job's study has other terms now than when the job was started."""
    now = get_study(db, job.experiment.study)
    if now.digest != job.study_digest:
        raise Conflict(
            f"job {job.id} was started under earlier terms of study {now.study.name!r}, which "
            "no site works by any more: start a new job"
        )


def ended_terms(db: Connection, site: str) -> tuple[str, ...]:
    """Return the digests under which a site was invited and nothing runs any more, newest last.

    Those of closed studies and those that were replaced; the latest MAX_ENDED.
    """
    s, old = t.studies.c, t.earlier_terms.c
    closed = sa.select(s.digest, s.body, s.changed).where(_named(s.body, site))
    closed = closed.where(s.state == "closed")
    replaced = sa.select(old.digest, old.body, old.replaced).where(_named(old.body, site))
    ends = sorted(
        (at, digest)
        for query in (closed, replaced)
        for digest, body, at in db.execute(query)
        if digest is not None and site in read_document(body, Study).sites
    )
    return tuple(digest for _, digest in ends[-MAX_ENDED:])


def close_study(db: Connection, name: str, at: float) -> StudyRecord:
    """End a submitted study: nothing new runs in it."""
    found = get_study(db, name)
    _need_state(found, "submitted", "closed")
    return _move_study(db, found, "closed", found.digest, at)


def get_study(db: Connection, name: str) -> StudyRecord:
    """Return a study or raise NotFound."""
    query = sa.select(t.studies).where(t.studies.c.name == name)
    return _study(one(db, query, f"study {name!r}"))


def list_studies(
    db: Connection,
    *,
    limit: int = 50,
    cursor: str | None = None,
    state: StudyState | None = None,
    author: Seeing | None = None,
) -> Page[StudyRecord]:
    """Studies by name: all, or those that somebody sees."""
    found = _STUDIES if state is None else _STUDIES.where(t.studies.c.state == state)
    if author is not None:
        found = found.where(_is_seen(author))
    return found.page(db, limit, cursor)


def every_study_of(db: Connection, site: str) -> tuple[StudyRecord, ...]:
    """The studies that invite a site and were submitted, also the closed ones, by name."""
    query = sa.select(t.studies).where(t.studies.c.state != "draft")
    named = query.where(_named(t.studies.c.body, site))
    every = map(_study, db.execute(named.order_by(t.studies.c.name)))
    return tuple(s for s in every if site in s.study.sites)


def _named(body: sa.Column[str], site: str) -> sa.ColumnElement[bool]:
    """Leave most studies out by their text; which of the rest name a site, the record tells."""
    return body.contains(f'"{site}"', autoescape=True)


def every_submitted(db: Connection) -> Iterator[StudyRecord]:
    """Yield the studies that were submitted, also the closed ones and all earlier terms."""
    query = sa.select(t.studies).where(t.studies.c.state != "draft")
    yield from map(_study, db.execute(query.order_by(t.studies.c.name)))
    for row in db.execute(sa.select(t.earlier_terms).order_by(t.earlier_terms.c.study)):
        study = read_document(row.body, Study)
        yield StudyRecord(study, row.digest, "replaced", "", row.replaced, row.replaced)


def studies_of(db: Connection, site: str) -> tuple[StudyRecord, ...]:
    """The submitted studies that invite a site, by name."""
    query = sa.select(t.studies).where(t.studies.c.state == "submitted")
    every = map(_study, db.execute(query.order_by(t.studies.c.name)))
    return tuple(s for s in every if site in s.study.sites)


# ---- plans ----------------------------------------------------------------------------------


def _keep_source(db: Connection, digest: str, plan: Plan) -> None:
    known = sa.select(t.plan_sources.c.digest).where(t.plan_sources.c.digest == digest)
    if not db.execute(known).first():
        db.execute(sa.insert(t.plan_sources).values(digest=digest, body=document(plan)))


def add_plan(db: Connection, plan: Plan, study: str, author: str, at: float) -> PlanRecord:
    """Offer a plan to a submitted study; raise Conflict when it is offered there already."""
    _need_state(get_study(db, study), "submitted", "offered a plan")
    digest, p = plan_digest(plan), t.plans
    mine = (p.c.digest == digest) & (p.c.study == study)
    if db.execute(sa.select(p.c.digest).where(mine)).first():
        raise Conflict(f"plan {digest} is offered to study {study!r} already")
    offered = sa.select(p.c.digest).where(p.c.study == study)
    _need_room(db, offered, MAX_PLANS, f"study {study!r} has", "plans")
    _keep_source(db, digest, plan)
    db.execute(
        sa.insert(p).values(
            digest=digest, study=study, name=plan.name, author=author, created=at
        )
    )
    bump(db, "catalogue")
    return PlanRecord(plan, digest, study, author, at)


def get_plan(db: Connection, digest: str) -> PlanRecord:
    """Return a plan as it was first offered, or raise NotFound."""
    query = _PLANS.where(t.plans.c.digest == digest).order_by(t.plans.c.created).limit(1)
    return _plan(one(db, query, f"plan {digest}"))


def plan_studies(db: Connection, digest: str) -> tuple[str, ...]:
    """Names of the studies a plan is offered to, sorted; () for an unknown plan."""
    query = sa.select(t.plans.c.study).where(t.plans.c.digest == digest)
    return tuple(db.execute(query.order_by(t.plans.c.study)).scalars())


def study_plans(db: Connection, study: str) -> list[PlanRecord]:
    """Return all plans on offer in a study, newest first."""
    return everything(lambda cursor: list_plans(db, study=study, limit=MAX_PAGE, cursor=cursor))


def list_plans(
    db: Connection,
    *,
    study: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
    author: Seeing | None = None,
) -> Page[PlanRecord]:
    """Plans on offer, newest first: all, or those in an author's studies.

    One that is offered to two studies is there twice.
    """
    found = _OFFERS if study is None else _OFFERS.where(t.plans.c.study == study)
    if author is not None:
        found = found.where(t.plans.c.study.in_(seen_studies(author)))
    return found.page(db, limit, cursor)


# ---- sites ----------------------------------------------------------------------------------


def get_site(db: Connection, name: str) -> SiteRecord:
    """Return a site or raise NotFound."""
    return _site(one(db, _SITES.where(t.sites.c.name == name), f"site {name!r}"))


def list_sites(
    db: Connection, *, limit: int = MAX_PAGE, cursor: str | None = None
) -> Page[SiteRecord]:
    """Sites by name, the revoked ones too."""
    return Listing(_SITES, (t.sites.c.name,), _site, descending=False).page(db, limit, cursor)


def every_site(db: Connection) -> list[SiteRecord]:
    """Return all sites by name, the revoked ones too."""
    return everything(lambda cursor: list_sites(db, cursor=cursor))


def set_advertisement(db: Connection, name: str, body: bytes, at: float) -> None:
    """Keep what a site last said of itself: the msgpack of a wire.v1.Advertisement."""
    _change_site(db, name, advertisement=body, advertised=at, last_seen=at)


def set_mirror(db: Connection, name: str, sealed: bytes) -> None:
    """Keep what a site last signed of its privacy ledger's head: the msgpack of a Sealed."""
    row = t.mirrors
    if not db.execute(sa.update(row).where(row.c.site == name).values(sealed=sealed)).rowcount:
        db.execute(sa.insert(row).values(site=name, sealed=sealed))


def mirror(db: Connection, name: str) -> bytes | None:
    """Return what a site last signed of its privacy ledger's head; None before it ever did."""
    row = t.mirrors
    return db.execute(sa.select(row.c.sealed).where(row.c.site == name)).scalar()


def set_seen(db: Connection, seen: Mapping[str, float]) -> None:
    """Note when sites were last heard of; for a batch now and then, not for every request."""
    for name, at in seen.items():
        _change_site(db, name, last_seen=at)


def _change_site(db: Connection, name: str, **values: object) -> None:
    if not db.execute(
        sa.update(t.sites).where(t.sites.c.name == name).values(**values)
    ).rowcount:
        raise NotFound(f"there is no site {name!r}")


# ---- rows and pages -------------------------------------------------------------------------

_SET_PHASE = (
    sa.update(t.jobs)
    .where(t.jobs.c.id == sa.bindparam("job"))
    .values(phase=sa.bindparam("new_phase"), cause=sa.bindparam("new_cause"))
)
_PLANS = sa.select(t.plans, t.plan_sources.c.body).join(t.plan_sources)
_SITES = sa.select(
    t.sites,
    sa.select(sa.func.max(t.certificates.c.expires))
    .where(t.certificates.c.site == t.sites.c.name, t.certificates.c.revoked.is_(None))
    .scalar_subquery()
    .label("certificate_expires"),
)


def document(value: object) -> str:
    """JSON text, by the standard encoder: it keeps NaN, which a node's metrics may hold."""
    return json.dumps(msgspec.to_builtins(value), separators=(",", ":"))


def read_document(text: str, kind: type[T]) -> T:
    """Return what `document` has written."""
    return msgspec.convert(json.loads(text), kind)


def _job(row: Any) -> JobRecord:
    return JobRecord(
        row.id,
        read_document(row.experiment, Experiment),
        row.study_digest,
        row.author,
        row.created,
        row.phase,
        row.cause,
    )


def _study(row: Any) -> StudyRecord:
    study = read_document(row.body, Study)
    return StudyRecord(study, row.digest, row.state, row.author, row.created, row.changed)


def _plan(row: Any) -> PlanRecord:
    # The source is shared by all who offer it; name and description are each offer's own.
    plan = msgspec.structs.replace(read_document(row.body, Plan), name=row.name)
    return PlanRecord(plan, row.digest, row.study, row.author, row.created)


def _site(row: Any) -> SiteRecord:
    return SiteRecord(**row._mapping)


def seen_studies(seeing: Seeing) -> sa.Select[Any]:
    """Return the query of the names of the studies that somebody sees."""
    return sa.select(t.studies.c.name).where(_is_seen(seeing))


def _is_seen(seeing: Seeing) -> sa.ColumnElement[bool]:
    s = t.studies.c
    seen: sa.ColumnElement[bool] = s.name.in_(sorted(seeing.studies))
    if seeing.author is not None:
        seen |= s.author == seeing.author
    return seen & (s.name == seeing.within) if seeing.within else seen


def _need_room(db: Connection, query: sa.Select[Any], most: int, whose: str, what: str) -> None:
    """Raise Conflict when there are `most` rows: every site reads what is on offer, whole."""
    found = db.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar() or 0
    if found >= most:
        raise Conflict(f"{whose} {found} {what}, at most {most} are allowed; close a study")


def _need_state(study: StudyRecord, needed: StudyState, step: str) -> None:
    if study.state != needed:
        raise Conflict(
            f"study {study.study.name!r} is {study.state}: "
            f"only a study that is {needed} can be {step}"
        )


def _move_study(
    db: Connection, found: StudyRecord, state: StudyState, digest: str | None, at: float
) -> StudyRecord:
    db.execute(
        sa.update(t.studies)
        .where(t.studies.c.name == found.study.name)
        .values(state=state, digest=digest, changed=at)
    )
    bump(db, "catalogue")
    return StudyRecord(found.study, digest, state, found.author, found.created, at)


def one(db: Connection, query: sa.Select[Any], what: str) -> Any:
    """Return the row of a query, or raise NotFound naming `what`."""
    row = db.execute(query).first()
    if row is None:
        raise NotFound(f"there is no {what}")
    return row


_JOBS = Listing(sa.select(t.jobs), (t.jobs.c.created, t.jobs.c.id), _job)
_STUDIES = Listing(sa.select(t.studies), (t.studies.c.name,), _study, descending=False)
_OFFERS = Listing(_PLANS, (t.plans.c.created, t.plans.c.digest, t.plans.c.study), _plan)
