"""Routes of training plans: read them whole, decide about them."""

from dataclasses import replace
from datetime import date

from litestar import get, post
from litestar.params import FromPath, JSONBody

from consilia.node import approvals, dryrun, source
from consilia.node.approvals import PlanRecord, Review
from consilia.node.arguments import allowed_values, describe
from consilia.node.console.guard import Who, allow, anyone
from consilia.node.console.services import Here, Services
from consilia.node.console.studies import day_text, last_day
from consilia.node.signoffs import terms_of
from consilia.wire.console.studies import (
    ApprovePlan,
    ArgumentView,
    Decide,
    DiffLine,
    DiffView,
    DryRun,
    DryRunView,
    FileDiff,
    FindingView,
    PlanSummary,
    PlansView,
    PlanView,
    RejectPlan,
    SourceFile,
)

REVIEWER = allow("reviewer")


@get("/plans", opt=anyone(), sync_to_thread=True)
def list_plans(here: Here) -> PlansView:
    """List the training plans offered to this site, newest first."""
    found = approvals.list_plans(here.store, approvals.day(here.now()))
    return PlansView(tuple(summary(record) for record in found))


@get("/plans/{digest:str}", opt=anyone(), sync_to_thread=True)
def get_plan(here: Here, digest: FromPath[str]) -> PlanView:
    """Return a plan whole, with what a reviewer should look at."""
    found = approvals.review(here.store, digest, approvals.day(here.now()))
    plan, record = found.plan.plan, _so_far(found.plan)
    waiting = tuple(s.reviewer for s in record.signoffs)
    signed = record.signers if record.state == "approved" else waiting
    return PlanView(
        summary(record),
        plan.description,
        plan.entry,
        tuple(plan.requirements),
        tuple(SourceFile(path, text) for path, text in sorted(plan.files.items())),
        tuple(FindingView(f.file, f.line, f.what, f.severity, f.kind) for f in found.findings),
        _arguments(here, found, record),
        record.studies,
        found.before.digest if found.before else "",
        signed,
        here.config().reviewers_needed,
        record.via,
        approvals.mark(found.plan),
    )


@get("/plans/{digest:str}/diff", opt=anyone(), sync_to_thread=True)
def diff(here: Here, digest: FromPath[str]) -> DiffView:
    """Return a plan side by side with the version approved last at this site."""
    found = approvals.review(here.store, digest, approvals.day(here.now()))
    return DiffView(
        found.before.digest if found.before else "",
        tuple(
            FileDiff(d.path, d.change, tuple(_line(line) for line in d.lines))
            for d in found.differences
        ),
    )


@post("/plans/{digest:str}/approve", opt=REVIEWER, status_code=200, sync_to_thread=True)
def approve(
    here: Here, who: Who, digest: FromPath[str], data: JSONBody[ApprovePlan]
) -> PlanSummary:
    """Approve a plan: its code may run here, in the studies that were accepted."""
    found = approvals.approve(
        here.store,
        digest,
        actor=who.name,
        now=here.now(),
        reason=data.reason,
        until=last_day(data.until),
        arguments={name: allowed_values(values) for name, values in data.arguments.items()},
        studies=data.studies,
        seen=data.seen,
    )
    here.tell_agent()
    return summary(found)


@post("/plans/{digest:str}/reject", opt=REVIEWER, status_code=200, sync_to_thread=True)
def reject(
    here: Here, who: Who, digest: FromPath[str], data: JSONBody[RejectPlan]
) -> PlanSummary:
    """Reject a plan that awaits review."""
    found = approvals.reject(
        here.store,
        digest,
        actor=who.name,
        now=here.now(),
        reason=data.reason,
        seen=data.seen,
    )
    here.tell_agent()
    return summary(found)


@post("/plans/{digest:str}/revoke", opt=REVIEWER, status_code=200, sync_to_thread=True)
def revoke(here: Here, who: Who, digest: FromPath[str], data: JSONBody[Decide]) -> PlanSummary:
    """Withdraw an approval; what runs under it is stopped."""
    found = approvals.revoke(
        here.store, digest, actor=who.name, now=here.now(), reason=data.reason
    )
    here.tell_agent()
    return summary(found)


@post("/plans/{digest:str}/dry-run", opt=REVIEWER, status_code=200, sync_to_thread=True)
def dry_run(here: Here, who: Who, digest: FromPath[str], data: JSONBody[DryRun]) -> DryRunView:
    """Run init and one round of a plan on invented records, in the sandbox; takes minutes."""
    said: list[str] = []
    found = dryrun.try_plan(
        here.store,
        here.directory,
        digest,
        data.dataset,
        records=data.records,
        actor=who.name,
        now=here.now,
        tell=said.append,
    )
    return DryRunView(
        found.ran,
        sum(step.seconds for step in found.steps),
        found.memory,
        tuple((t.name, f"{t.dtype} {list(t.shape)}") for t in found.tensors),
        dict(found.metrics),
        found.error,
        found.cause,
        found.records,
        tuple(said),
    )


def summary(record: PlanRecord) -> PlanSummary:
    """Return a plan without its source."""
    return PlanSummary(
        record.digest,
        record.plan.name,
        record.state,
        record.author,
        record.offered,
        record.offered_for,
        ", ".join(record.signers) or record.reviewer,
        record.reason,
        record.decided,
        day_text(record.until),
    )


def _line(line: source.Line) -> DiffLine:
    """Return a row of a diff; a side that has no such line is None."""
    old, new = line.old_number, line.new_number
    return DiffLine(
        line.change,
        old or None,
        line.old if old else None,
        new or None,
        line.new if new else None,
    )


def _so_far(record: PlanRecord) -> PlanRecord:
    """Return a plan with the terms that its first reviewer signed, while it needs another.

    Who gives no terms of their own agrees to these, and has to see them.
    """
    if record.state == "approved" or not record.signoffs:
        return record
    terms = terms_of(record.signoffs[0].terms)
    return replace(
        record,
        reason=record.signoffs[0].reason,
        until=terms.until or date.max,
        arguments=terms.arguments,
        studies=terms.studies,
    )


def _arguments(here: Services, found: Review, record: PlanRecord) -> tuple[ArgumentView, ...]:
    defaults = found.declared or {}
    ranges = here.config().arguments
    views = []
    for name in sorted({*defaults, *record.arguments}):
        approved, values = record.arguments.get(name), ranges.get(name)
        views.append(
            ArgumentView(
                name,
                defaults.get(name),
                describe(allowed_values(values)) if values else "",
                describe(approved) if approved else "",
            )
        )
    return tuple(views)


ROUTES = (list_plans, get_plan, diff, dry_run, approve, reject, revoke)
