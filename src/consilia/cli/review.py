"""`consilia node plans, approve, ...`: a hospital's review of training plans."""

import shutil
import sys
import time
from collections.abc import Sequence
from datetime import date
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import (
    Json,
    NodeDir,
    Reason,
    Until,
    actor,
    example,
    node_dir,
    pairs,
    parse_day,
)
from consilia.cli.output import (
    day,
    done,
    fields,
    listing,
    note,
    record,
    say,
    short,
    size,
    visible,
    when,
)
from consilia.errors import ConfigError
from consilia.sdk.digests import resolve

if TYPE_CHECKING:
    from consilia.node.approvals import PlanRecord, Review
    from consilia.node.arguments import Allowed
    from consilia.node.dryrun import Tried
    from consilia.node.source import FileDiff
    from consilia.node.store import Store

Digest = Annotated[str, typer.Argument(help="The plan's digest, or 8 or more of its digits.")]
Shipped = Annotated[
    bool, typer.Option("--shipped", help="Instead of one: all plans that ship with Consilia.")
]
OnlyFor = Annotated[
    list[str] | None, typer.Option(help="Only for this study; may be given again.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="NAME=LOW..HIGH or NAME=A,B,C: values a researcher may set."),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for name, command, *lines in (
        ("plans", plans, "consilia node plans", "consilia node plans --findings"),
        ("plan-show", plan_show, "consilia node plan-show 3f9a1c2b"),
        (
            *("plan-diff", plan_diff, "consilia node plan-diff 3f9a1c2b"),
            "consilia node plan-diff 3f9a1c2b --side-by-side",
        ),
        ("dry-run", dry_run, "consilia node dry-run 3f9a1c2b --dataset heart"),
        (
            *("approve", approve),
            "consilia node approve 3f9a1c2b --reason 'ethics board 2026-17' --until 2027-06-30",
            "consilia node approve 3f9a1c2b --allow lr=0.001..0.1 --allow epochs=1,2,5",
            "consilia node approve --shipped --reason 'the examples'",
        ),
        ("reject", reject, "consilia node reject 3f9a1c2b --reason 'reads files'"),
        ("revoke", revoke, "consilia node revoke 3f9a1c2b --reason 'study suspended'"),
        ("endorse", endorse, "consilia node endorse 3f9a1c2b --reviewer anna > review.txt"),
        ("endorsed", endorsed, "consilia node endorsed < review.txt"),
    ):
        app.command(name, epilog=example(*lines))(command)


def plans(
    digest: Annotated[str, typer.Argument(help="Show this plan whole, for review.")] = "",
    findings: Annotated[
        bool, typer.Option("--findings", help="Also what a reviewer should look at.")
    ] = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """List the training plans offered to this site, or show one for review."""
    from consilia.node import approvals
    from consilia.node import findings as reading

    with opened(directory) as store:
        if digest:
            _show(approvals.review(store, _digest(store, digest), date.today()), as_json)
            return
        found = approvals.list_plans(store, date.today())
    if findings:
        every = [
            {"plan": r.digest, "name": r.plan.name, "finding": f}
            for r in found
            for f in reading.findings(r.plan)
        ]
        columns = {
            "plan": lambda e: short(e["plan"]),
            "name": lambda e: e["name"],
            "severity": lambda e: e["finding"].severity,
            "kind": lambda e: e["finding"].kind,
            "where": lambda e: f"{e['finding'].file}:{e['finding'].line}",
            "what": lambda e: e["finding"].what,
        }
        listing(every, columns, as_json, "nothing to look at")
        return
    listing(
        found,
        {
            "plan": lambda r: short(r.digest),
            "name": lambda r: r.plan.name,
            "state": lambda r: r.state,
            "studies": lambda r: r.offered_for,
            "author": lambda r: r.author,
            "offered": lambda r: when(r.offered),
            "until": lambda r: day(r.until),
            "reviewer": lambda r: r.signers or r.reviewer or [s.reviewer for s in r.signoffs],
        },
        as_json,
        "no plan has been offered to this site",
    )


def plan_show(digest: Digest, directory: NodeDir = None, as_json: Json = False) -> None:
    """Show a plan for review: its source, what to look at, what changed."""
    from consilia.node import approvals

    with opened(directory) as store:
        _show(approvals.review(store, _digest(store, digest), date.today()), as_json)


def plan_diff(
    digest: Digest,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Old and new next to each other.")
    ] = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show what changed since the version of this plan approved last at this site."""
    from consilia.node import approvals

    with opened(directory) as store:
        found = approvals.review(store, _digest(store, digest), date.today())
    if as_json:
        done("", found.differences, True)
        return
    before = found.before
    note(f"against {short(before.digest)}" if before else "no earlier version is approved here")
    for diff in found.differences:
        if side_by_side and diff.lines:
            _side_by_side(diff)
        elif diff.unified:
            say(diff.unified)


def dry_run(
    digest: Digest,
    dataset: Annotated[str, typer.Option(help="Whose columns the invented records have.")],
    records: Annotated[int, typer.Option(help="How many records to invent.")] = 500,
    unprotected: Annotated[
        bool, typer.Option("--unprotected", help="Even where the sandbox is off. Dangerous.")
    ] = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Try a plan on invented records, in the sandbox, before anyone approves it.

    It makes a model and trains one round. No record of the dataset is read. Exit code 1: it
    failed.
    """
    from consilia.node import dryrun

    with opened(directory) as store:
        found = dryrun.try_plan(
            store,
            node_dir(directory),
            _digest(store, digest),
            dataset,
            records=records,
            actor=actor(),
            now=time.time,
            tell=note,
            unprotected=unprotected,
        )
    _tell_tried(found, as_json)
    if found.error:
        raise typer.Exit(1)


def approve(
    digest: Annotated[
        str, typer.Argument(help="The plan's digest, or 8 or more of its digits.")
    ] = "",
    reason: Reason = "",
    until: Until = "",
    allow: Allow = None,
    study: OnlyFor = None,
    shipped: Shipped = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Approve a plan: from now on its code may run here, in the studies you accepted.

    What may be set: the arguments keep the plan's own values, or take those allowed here or in
    node.yaml. Where node.yaml needs several reviewers, the last one's word is the approval.
    """
    from consilia.node import approvals, review

    _one(digest, shipped)
    last, studies = parse_day(until), tuple(study or ())
    given = {n: _allowed(v) for n, v in pairs(allow or (), "--allow").items()}
    if shipped and given:
        raise ConfigError("--allow names arguments of one plan; it does not go with --shipped")
    with changing(directory) as store:
        if shipped:
            found = review.approve_shipped(
                store,
                actor=actor(),
                now=time.time(),
                reason=reason,
                until=last,
                studies=studies,
            )
            _shipped_now(store, found, as_json)
            return
        one = approvals.approve(
            store,
            _digest(store, digest),
            actor=actor(),
            now=time.time(),
            reason=reason,
            until=last,
            arguments=given,
            studies=studies,
        )
        needed = approvals.reviewers_needed(store)
    _decided(one, as_json, needed)


def reject(
    digest: Digest, reason: Reason = "", directory: NodeDir = None, as_json: Json = False
) -> None:
    """Reject a plan that awaits review."""
    from consilia.node import approvals

    with changing(directory) as store:
        found = approvals.reject(
            store, _digest(store, digest), actor=actor(), now=time.time(), reason=reason
        )
    _decided(found, as_json)


def revoke(
    digest: Annotated[
        str, typer.Argument(help="The plan's digest, or 8 or more of its digits.")
    ] = "",
    reason: Reason = "",
    shipped: Shipped = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Withdraw an approval; what runs under it is stopped."""
    from consilia.node import approvals, review

    _one(digest, shipped)
    with changing(directory) as store:
        at = time.time()
        if shipped:
            gone = review.revoke_shipped(store, actor=actor(), now=at, reason=reason)
            done(f"the shipped plans are revoked, {len(gone)} of them here", gone, as_json)
            return
        found = approvals.revoke(
            store, _digest(store, digest), actor=actor(), now=at, reason=reason
        )
    _decided(found, as_json)


def endorse(
    digest: Digest,
    reviewer: Annotated[str, typer.Option(help="Who has read the plan.")],
    reason: Reason = "",
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Sign, with this site's key, that a person here has read a plan and approves of it.

    Send the line to other sites; one whose policy has consortium_review counts it.
    """
    from consilia.node import config, identity, review

    where = node_dir(directory)
    site = config.load(where).site
    with changing(directory) as store:
        line = review.endorse(
            store,
            _digest(store, digest),
            site=site,
            key=identity.load(where, site).signing,
            reviewer=reviewer,
            actor=actor(),
            now=time.time(),
            reason=reason,
        )
    done(line, {"review": line}, as_json)


def endorsed(directory: NodeDir = None, as_json: Json = False) -> None:
    """Take in a review that another site signed, from standard input."""
    from consilia.node import review

    text = sys.stdin.read()
    with changing(directory) as store:
        found = review.take(store, text, actor=actor(), now=time.time())
        signed = review.reviewers(store, found.digest)
    text = f"plan {short(found.digest)}: {found.state}; signed by {', '.join(signed)}"
    done(text, {"plan": found.digest, "state": found.state, "reviewers": signed}, as_json)


# ---- inside ----------------------------------------------------------------------------------


def _one(digest: str, shipped: bool) -> None:
    if bool(digest) == shipped:
        raise ConfigError("name one plan by its digest, or give --shipped, not both or neither")


def _digest(store: "Store", text: str) -> str:
    from consilia.node import approvals

    known = [r.digest for r in approvals.list_plans(store, date.today())]
    return resolve(text, known, "plan", "consilia node plans")


def _show(found: "Review", as_json: bool) -> None:
    from consilia.node.arguments import describe
    from consilia.node.signoffs import terms_said

    plan, before = found.plan, found.before
    allowed = {n: describe(a) for n, a in plan.arguments.items() if a is not None}
    if as_json:
        done("", {**fields(plan), "findings": found.findings, "declared": found.declared}, True)
        return
    record(
        plan,
        {
            "plan": plan.digest,
            "name": plan.plan.name,
            "state": plan.state,
            "offered by": plan.author,
            "for studies": plan.offered_for,
            "entry": plan.plan.entry,
            "requires": plan.plan.requirements or "nothing beyond Consilia",
            "arguments": "cannot be read" if found.declared is None else found.declared,
            "description": plan.plan.description,
            "decided by": plan.signers or plan.reviewer,
            "decided": when(plan.decided) if plan.decided else "",
            "reason": plan.reason,
            "until": day(plan.until) if plan.decided else "",
            "may be set": allowed,
            "only for": plan.studies,
            "waits, signed by": [
                f"{s.reviewer}, {when(s.at)}, on the terms: {terms_said(s.terms)}"
                for s in plan.signoffs
            ],
        },
        False,
    )
    for path, text in sorted(plan.plan.files.items()):
        say(f"\n==== {path}")
        say(text.rstrip())
    say("\n==== what to look at (advice, not a verdict)")
    for finding in found.findings:
        say(str(finding))
    if before is not None:
        say(f"\n==== changed since the approved {short(before.digest)}")
        changed = [d.unified for d in found.differences if d.unified]
        say("\n".join(changed) or "nothing")


def _side_by_side(diff: "FileDiff") -> None:
    """Print old and new in columns as wide as the terminal allows; longer lines go on below."""
    marks = {"same": " ", "changed": "|", "added": ">", "removed": "<"}
    width = max(40, (shutil.get_terminal_size((125, 24)).columns - 3) // 2)
    say(f"\n==== {diff.path} ({diff.change})")
    for line in diff.lines:
        old = _column(line.old_number, line.old, width)
        new = _column(line.new_number, line.new, width)
        mark = marks[line.change]
        for left, right in zip_longest(old, new, fillvalue=""):
            say(f"{left:<{width}} {mark} {right}".rstrip())


def _column(number: int, text: str, width: int) -> list[str]:
    """Return one side of a line as rows of at most `width` characters; none where it lacks."""
    if not number:
        return []
    shown, room = visible(text).expandtabs(4), width - 5
    rows = [shown[at : at + room] for at in range(0, len(shown), room)] or [""]
    return [f"{number if not i else '':>4} {row}" for i, row in enumerate(rows)]


def _tell_tried(found: "Tried", as_json: bool) -> None:
    if as_json:
        done("", found, True)
        return
    record(
        found,
        {
            "plan": found.plan,
            "records": found.records,
            "steps": [f"{s.what} in {s.seconds:.2f} s" for s in found.steps],
            "memory": size(found.memory) if found.memory else "not measured",
            "model": [f"{t.name} {t.dtype} {list(t.shape)}" for t in found.tensors],
            "metrics": found.metrics,
            "outcome": found.cause or "it ran; that says nothing about what it is for",
        },
        False,
    )
    if found.error:
        say(f"\n{found.error.rstrip()}")


def _shipped_now(store: "Store", found: "Sequence[PlanRecord]", as_json: bool) -> None:
    from consilia.node import review

    class_ = review.shipped_class(store)
    text = f"the shipped plans are approved as a class; it lets {len(found)} of them run here"
    if class_ is None:
        text = "noted; the shipped plans need another reviewer's word"
    kept = review.decided_singly(store, time.time())
    if class_ is not None and kept:
        names = ", ".join(f"{r.plan.name} {short(r.digest)} ({r.state})" for r in kept)
        note(f"what was decided before stays: {names}; approve these by their digest")
    done(text, {"class": class_, "plans": [r.digest for r in found]}, as_json)


def _decided(found: "PlanRecord", as_json: bool, needed: int = 1) -> None:
    text = f"plan {short(found.digest)} ({found.plan.name}): {found.state}"
    if found.signoffs:
        text += f"; {len(found.signoffs)} of {needed} reviewers have approved it"
    ends = found.state == "approved" and found.until != date.max
    done(f"{text} until {found.until}" if ends else text, found, as_json)


def _allowed(text: str) -> "Allowed":
    from consilia.cli.options import scalar
    from consilia.node.arguments import Interval, OneOf

    low, dots, high = text.partition("..")
    if not dots:
        return OneOf(tuple(scalar(item.strip()) for item in text.split(",")))
    try:
        interval = Interval(float(low), float(high))
    except ValueError:
        raise ConfigError(f"--allow {text!r}: needed LOW..HIGH, such as 0.001..0.1") from None
    if not interval.least <= interval.greatest:
        raise ConfigError(f"--allow {text!r} is an empty range: write the smaller number first")
    return interval
