"""Each attempt of a hostile hub stands in the site's audit trail, by kind, with its words.

What it may not do is driven in test_hostile_hub; here every road it has to the site is walked
once, and the trail is read afterwards, as a data protection officer would.
"""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from consilia.core.chain import Break
from consilia.node import approvals, audit, studies
from consilia.wire.v1 import (
    MAX_MESSAGE,
    AuditHead,
    Plan,
    PlanEntry,
    Sealed,
    Study,
    encode,
    plan_digest,
    study_digest,
)
from nodekit import SITE, STUDY, Node, base_model, lease, make_plan, node, until

PLAN = make_plan()
OTHER = make_plan(("np.float32(args", "np.float32(2) * np.float32(args"), name="other")
Attack = Callable[[Node], Awaitable[None]]


def answering(n: Node, body: bytes) -> None:
    """Have the hub answer one poll with `body`, read as a node's line reads it."""
    n.hub.forged = body
    n.hub.offer_all((STUDY,), PLAN)  # ends the poll that is open


def changed(**fields: object) -> Attack:
    """Hand out the honest lease with other fields of its task."""

    async def attack(n: Node) -> None:
        honest = lease(n.hub, PLAN, model=n.hub.publish(base_model()))
        task = msgspec.structs.replace(honest.task, **fields)
        n.hub.assign(msgspec.structs.replace(honest, task=task))

    return attack


def offering(study: Study = STUDY, plan: Plan = PLAN, entry: PlanEntry | None = None) -> Attack:
    async def attack(n: Node) -> None:
        n.hub.offer_all((study,), plan)
        if entry is not None:
            plans = (*n.hub.offer.plans, entry)
            n.hub.offer = msgspec.structs.replace(n.hub.offer, plans=plans)

    return attack


async def swapped_bytes(n: Node) -> None:
    n.hub.offer_all((STUDY,), OTHER)
    n.hub.plans[plan_digest(OTHER)] = Plan(OTHER.name, {"plan.py": "PLAN = 2"}, OTHER.entry)


async def replayed_approval(n: Node) -> None:
    approvals.revoke(n.store, plan_digest(PLAN), actor="mara", now=n.now(), reason="doubts")
    n.hub.offer_all((STUDY,), PLAN)
    await changed()(n)


async def replayed_acceptance(n: Node) -> None:
    studies.leave(n.store, STUDY.name, actor="mara", now=n.now(), reason="over")
    n.hub.offer_all((STUDY,), PLAN)
    await changed()(n)


async def endless_id(n: Node) -> None:
    honest = lease(n.hub, PLAN, model=n.hub.publish(base_model()))
    n.hub.assign(msgspec.structs.replace(honest, id="x" * 100_000))


async def rewritten_history(n: Node) -> None:
    head = encode(AuditHead(7, "sha256:" + "0" * 64))
    n.hub.offer_all((STUDY,), PLAN)
    forged = Sealed("audit-head", "hub", head, os.urandom(64))
    n.hub.offer = msgspec.structs.replace(n.hub.offer, head=forged)


async def oversized(n: Node) -> None:
    answering(n, bytes(MAX_MESSAGE + 1))


async def malformed(n: Node) -> None:
    answering(n, b"\x81\xa6leases\xdd\xff\xff\xff\xff")


async def leases_as_text(n: Node) -> None:
    answering(n, encode({"leases": "all of them"}))


LUNGS = Study("lungs", "another purpose", (SITE,), ("cohort",))
ATTEMPTS: dict[str, tuple[Attack, str, str]] = {
    "a study nobody accepted": (
        changed(study=study_digest(LUNGS), study_name="lungs"),
        "task.refuse",
        "is not accepted here",
    ),
    "a study that does not invite the site": (
        offering(Study("far", "p", ("leuven",), ("cohort",))),
        "study.offer",
        "does not invite this site",
    ),
    "a study of odd form": (
        offering(Study("odd", "p", (SITE,), ("cohort",), retention_days=-1)),
        "study.offer",
        "negative minimum or retention",
    ),
    "a study with a path for a name": (
        offering(Study("../../etc", "p", (SITE,), ("cohort",))),
        "study.offer",
        "not well formed",
    ),
    "an acceptance that was taken back": (
        replayed_acceptance,
        "task.refuse",
        "is not accepted here",
    ),
    "an approval that was revoked": (replayed_approval, "task.refuse", "no approval in force"),
    "a plan's bytes swapped": (swapped_bytes, "plan.offer", "under the digest"),
    "a plan named by a path": (
        offering(entry=PlanEntry("../../x", "x", STUDY.name)),
        "plan.offer",
        "../../x",
    ),
    "a plan with a path in it": (
        offering(plan=Plan("evil", {"plan.py": "x", "../evil.py": "x"}, "plan:PLAN")),
        "plan.offer",
        "cannot be imported",
    ),
    "an argument in configuration": (
        changed(arguments={"lr.__class__": 1.0}),
        "task.refuse",
        "not among those the approval names",
    ),
    "an argument out of range": (
        changed(arguments={"lr": 9.0}),
        "task.refuse",
        "allowed here: 0 to 2",
    ),
    "a model named by a path": (
        changed(model="b3:../../../../etc/passwd"),
        "task.refuse",
        "etc/passwd",
    ),
    "a job with an endless name": (changed(job="j" * 5000), "task.refuse", "job name"),
    "an endless lease id": (endless_id, "task.refuse", "100000 characters"),
    "an answer too large": (oversized, "hub.message", "over the limit"),
    "an answer that is none": (malformed, "hub.message", "not a valid Orders"),
    "an answer of another form": (leases_as_text, "hub.message", "not a valid Orders"),
    "a rewritten history": (rewritten_history, "hub.audit", "not signed"),
}


@pytest.mark.parametrize("what", ATTEMPTS)
async def test_the_attempt_is_in_the_trail_and_nothing_ran(tmp_path: Path, what: str) -> None:
    attack, action, words = ATTEMPTS[what]
    async with node(tmp_path) as n:
        (n.directory / "secrets").mkdir(mode=0o700)
        (n.directory / "secrets" / "hub.pub").write_text("00" * 32)
        n.accept(PLAN)
        async with n.running():
            await until(lambda: n.agent.status().connected)
            await attack(n)
            await until(lambda: any(words in d for d in n.details(action)))
            assert n.runs.tasks == [] and n.hub.uploads == {}
            assert not isinstance(audit.verify(n.store), Break)
