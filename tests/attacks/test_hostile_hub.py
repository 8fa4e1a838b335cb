"""A forged or lying hub: what it asks is refused, the reason stays at home, nothing is run.

The hub here holds every key a real one holds: its line is authentic. What protects the site is
its own store of decisions and the digests it computes itself.
"""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from consilia.core.chain import Break
from consilia.errors import Conflict, WireError
from consilia.node import approvals, audit, datasets, studies
from consilia.node.config import Limits
from consilia.node.launcher import PlainProcess
from consilia.node.runner import Runner
from consilia.wire.v1 import (
    MAX_MESSAGE,
    Catalogue,
    Declined,
    Lease,
    Orders,
    Plan,
    PlanEntry,
    Poll,
    Result,
    Study,
    decode,
    encode,
    plan_digest,
    study_digest,
)
from nodekit import SITE, STUDY, Node, base_model, lease, make_plan, node, until

PLAN = make_plan()
OTHER = make_plan(("np.float32(args", "np.float32(2) * np.float32(args"), name="other")
OTHER_STUDY = Study("lungs", "another purpose", (SITE,), ("cohort",))
CHANGED_STUDY = msgspec.structs.replace(STUDY, purpose="to sell")

Asks = Callable[[Node, str], Lease]

ATTACKS: dict[str, tuple[Asks, str]] = {
    "unapproved plan": (
        lambda n, m: lease(n.hub, OTHER, model=m),
        "no approval in force",
    ),
    "plan that does not exist": (
        lambda n, m: lease(n.hub, PLAN, model=m, plan="sha256:" + "0" * 64),
        "no approval in force",
    ),
    "study not accepted": (
        lambda n, m: lease(
            n.hub, PLAN, model=m, study=study_digest(OTHER_STUDY), study_name="lungs"
        ),
        "is not accepted here",
    ),
    "study changed after it was accepted": (
        lambda n, m: lease(n.hub, PLAN, model=m, study=study_digest(CHANGED_STUDY)),
        "is not accepted here",
    ),
    "accepted digest under another name": (
        lambda n, m: lease(n.hub, PLAN, model=m, study_name="lungs"),
        "is 'hearts', not 'lungs'",
    ),
    "tags of another dataset": (
        lambda n, m: lease(n.hub, PLAN, model=m, tags=("secret",)),
        "the study says ['cohort']",
    ),
    "more tags": (
        lambda n, m: lease(n.hub, PLAN, model=m, tags=("cohort", "secret")),
        "the study says ['cohort']",
    ),
    "no tags": (
        lambda n, m: lease(n.hub, PLAN, model=m, tags=()),
        "the study says ['cohort']",
    ),
    "argument out of range": (
        lambda n, m: lease(n.hub, PLAN, model=m, arguments={"lr": 2.0000001}),
        "allowed here: 0 to 2",
    ),
    "argument of another type": (
        lambda n, m: lease(n.hub, PLAN, model=m, arguments={"lr": "1.0"}),
        "allowed here: 0 to 2",
    ),
    "truth value for a number": (
        lambda n, m: lease(n.hub, PLAN, model=m, arguments={"lr": True}),
        "allowed here: 0 to 2",
    ),
    "argument not a number": (
        lambda n, m: lease(n.hub, PLAN, model=m, arguments={"lr": math.nan}),
        "not a finite number",
    ),
    "infinite argument": (
        lambda n, m: lease(n.hub, PLAN, model=m, arguments={"lr": math.inf}),
        "not a finite number",
    ),
    "argument the plan does not declare": (
        lambda n, m: lease(n.hub, PLAN, model=m, arguments={"lr": 1.0, "leak": 1}),
        "not among those the approval names",
    ),
    "argument of endless text": (
        lambda n, m: lease(n.hub, PLAN, model=m, arguments={"lr": "x" * 100_000}),
        "is a text of 100000 characters",
    ),
    "thousands of arguments": (
        lambda n, m: lease(n.hub, PLAN, model=m, arguments={f"a{i}": 1 for i in range(5000)}),
        "5000 arguments",
    ),
    "training without a model": (
        lambda n, m: lease(n.hub, PLAN, kind="train", model=None),
        "names no model",
    ),
    "a path instead of a plan": (
        lambda n, m: lease(n.hub, PLAN, model=m, plan="../../etc/passwd"),
        "no approval in force",
    ),
    "no time limit": (
        lambda n, m: lease(n.hub, PLAN, model=m, timeout=math.nan),
        "is none",
    ),
    "endless time": (
        lambda n, m: lease(n.hub, PLAN, model=m, timeout=math.inf),
        "is none",
    ),
    "a name that fools a terminal": (
        lambda n, m: lease(n.hub, OTHER, model=m, study_name="\x1b[2Jhearts\nok: allowed"),
        "no approval in force",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_what_was_not_allowed_does_not_run(tmp_path: Path, attack: str) -> None:
    """Refused, audited with the reason, told without it, and no process was started."""
    runner = Runner(PlainProcess(), tmp_path, Limits(threads=1))
    async with node(tmp_path, runner) as n, n.running():
        n.accept(PLAN)
        approvals.offer(
            n.store, OTHER, plan_digest(OTHER), study=STUDY.name, author="eve", now=n.now()
        )
        studies.offer(n.store, OTHER_STUDY, n.now())
        secret = datasets.get(n.store, "cohort").dataset
        assert secret.records == 120
        ask, reason = ATTACKS[attack]
        task = ask(n, n.hub.publish(base_model()))
        n.hub.assign(task)
        await until(lambda: n.hub.settled(task.id))
        told = reason if "argument" in attack or "truth" in attack else ""
        settled = n.hub.settled(task.id)
        assert isinstance(settled, Declined)
        # a bound follows from what was asked and from settings; any other reason stays here
        assert told in settled.disclosed if told else not settled.disclosed
        assert n.runs.tasks == [] and runner.workers == () and n.hub.uploads == {}
        assert reason in n.details("task.refuse")[0]
        assert all(line.detail.isprintable() for line, _ in audit.every(n.store))
        assert not isinstance(audit.verify(n.store), Break)


async def test_reasons_are_told_only_where_the_site_says_so(tmp_path: Path) -> None:
    async with node(tmp_path, disclose_reasons=True) as n, n.running():
        n.accept(PLAN)
        n.hub.assign(task := lease(n.hub, OTHER, model=n.hub.publish(base_model())))
        await until(lambda: n.hub.settled(task.id))
        told = n.hub.settled(task.id)
        assert isinstance(told, Declined) and "no approval in force" in told.disclosed


@pytest.mark.parametrize(
    "model", ["b3:../../../../etc/passwd", "../secrets/tls.key", "b3:" + "A" * 64, "", "b3:"]
)
async def test_a_model_cannot_name_a_path(tmp_path: Path, model: str) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        before = sorted(p for p in tmp_path.rglob("*"))
        n.hub.assign(task := lease(n.hub, PLAN, model=model or "x"))
        await until(lambda: n.hub.settled(task.id))
        assert not isinstance(n.hub.settled(task.id), Result)
        assert n.runs.tasks == []
        assert [p for p in sorted(tmp_path.rglob("*")) if p not in before] == []


async def test_a_lease_id_cannot_name_a_path(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        honest = lease(n.hub, PLAN, model=n.hub.publish(base_model()))
        evil = msgspec.structs.replace(honest, id="../../../../tmp/evil\x00\n" * 3)
        n.hub.assign(evil)
        await until(lambda: n.hub.settled(evil.id))
        assert not (tmp_path / "evil").exists()
        assert {p.name for p in (n.directory).iterdir()} <= {
            *("cache", "outbox", "cohort.csv", "secrets", "studykeys"),
            *("node.sqlite", "node.sqlite-wal", "node.sqlite-shm"),
        }
        assert all(line.subject.isprintable() for line, _ in audit.every(n.store))


async def test_a_long_job_name_cannot_crowd_the_plan_out_of_the_audit_trail(
    tmp_path: Path,
) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        honest = lease(n.hub, PLAN, model=n.hub.publish(base_model()))
        task = msgspec.structs.replace(honest.task, job="j" * 5000)
        n.hub.assign(msgspec.structs.replace(honest, task=task))
        await until(lambda: n.hub.settled(honest.id))
        assert isinstance(n.hub.settled(honest.id), Declined) and n.runs.tasks == []
        assert n.details("task.refuse")[0].startswith("job name")


async def test_a_lease_with_an_endless_id_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        honest = lease(n.hub, PLAN, model=n.hub.publish(base_model()))
        n.hub.assign(msgspec.structs.replace(honest, id="x" * 100_000))
        n.hub.assign(honest)
        await until(lambda: n.hub.settled(honest.id))
        assert [len(id) for (id,) in n.store.rows("SELECT id FROM leases")] == [len(honest.id)]


async def test_swapped_plan_bytes_are_caught_and_audited(tmp_path: Path) -> None:
    """The hub offers one source under the digest of another."""
    async with node(tmp_path) as n, n.running():
        n.hub.offer_all((STUDY,), PLAN)
        n.hub.plans[plan_digest(PLAN)] = OTHER
        await until(lambda: "plan.offer:refused" in n.actions())
        assert not approvals.known(n.store, plan_digest(PLAN))
        assert plan_digest(OTHER) in n.details("plan.offer")[0]


async def test_bytes_changed_in_the_store_lose_their_approval(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        with n.store.write() as tx:
            tx.execute("UPDATE plans SET body = ?", (encode(OTHER),))
            tx.touch()
        n.hub.assign(task := lease(n.hub, PLAN, model=n.hub.publish(base_model())))
        await until(lambda: n.hub.settled(task.id))
        assert isinstance(n.hub.settled(task.id), Declined) and n.runs.tasks == []


@pytest.mark.parametrize(
    "path",
    ["../evil.py", "/etc/cron.d/evil", "a/../../evil.py", "a\\b.py", ".hidden", "a//b.py"],
)
async def test_plan_files_are_plain_relative_paths(tmp_path: Path, path: str) -> None:
    evil = Plan("evil", {"plan.py": "PLAN = 1", path: "x"}, "plan:PLAN")
    async with node(tmp_path) as n, n.running():
        n.hub.offer_all((STUDY,), evil, PLAN)
        await until(lambda: approvals.known(n.store, plan_digest(PLAN)))
        assert not approvals.known(n.store, plan_digest(evil))


async def test_a_malformed_catalogue_hides_no_honest_offer(tmp_path: Path) -> None:
    evil = (
        Study("../x", "p", (SITE,), ("cohort",)),
        Study("elsewhere", "p", ("leuven",), ("cohort",)),
        Study("negative", "p", (SITE,), ("cohort",), min_records=-5),
        Study("tagless", "p", (SITE,), ()),
        Study("huge", "p" * 100_000, (SITE,), ("cohort",)),
        Study("dated", "p", (SITE,), ("cohort",), until="31.12.2030"),
    )
    async with node(tmp_path) as n, n.running():
        n.hub.offer_all((STUDY, *evil), PLAN)
        n.hub.offer = msgspec.structs.replace(
            n.hub.offer, plans=(PlanEntry("../../x", "x", "hearts"), *n.hub.offer.plans)
        )
        await until(lambda: approvals.known(n.store, plan_digest(PLAN)))
        today = approvals.day(n.now())
        assert [r.study.name for r in studies.list_studies(n.store, today)] == ["hearts"]


async def test_a_flood_of_offers_is_bounded(tmp_path: Path) -> None:
    flood = tuple(Study(f"s{i}", "p", (SITE,), ("cohort",)) for i in range(1100))
    async with node(tmp_path) as n:
        for study in flood[:1000]:
            assert studies.offer(n.store, study, n.now())
        n.hub.offer = Catalogue(1, flood)
        async with n.running():
            await until(lambda: n.agent.status().connected)
            await asyncio.sleep(0.2)
        assert len(studies.list_studies(n.store, approvals.day(n.now()))) == 1000


async def test_a_replayed_lease_runs_once(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        n.hub.assign(task := lease(n.hub, PLAN, model=n.hub.publish(base_model())))
        await until(lambda: n.hub.settled(task.id))
        assert isinstance(n.hub.settled(task.id), Result)
        # Until the node has let go of it, it says that it works on the lease, and this hub, as
        # any, would not hand it out again.
        await until(lambda: not n.agent.status().tasks)
        n.hub.assign(task)
        await until(lambda: isinstance(n.hub.settled(task.id), Declined))
        assert n.runs.tasks == ["job-1.1"]
        assert n.details("task.refuse")[0].startswith("this lease was answered before")


async def test_a_flood_of_refused_leases_is_slowed_down(tmp_path: Path) -> None:
    """Each refusal is an audit line: a hub must not fill the site's disk with them."""
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        n.hub.repeat = (lease(n.hub, OTHER, model=n.hub.publish(base_model())),)
        await asyncio.sleep(2.0)
        assert n.runs.tasks == []
        assert len(n.details("task.refuse")) < 30 and n.hub.polls < 150


def test_oversized_and_malformed_orders_are_refused_before_they_are_read() -> None:
    with pytest.raises(WireError, match="over the limit"):
        decode(bytes(MAX_MESSAGE + 1), Orders)
    for body in (b"", b"\x00", encode(Poll("s")), b"\x81\xa6leases\xdd\xff\xff\xff\xff"):
        with pytest.raises(WireError):
            decode(body, Lease)


async def caught_up(n: Node) -> None:
    """Wait until the node has taken in what its hub offers now."""
    await until(lambda: n.agent._catalogue == n.hub.offer.version)


# ---- every attempt is in the audit trail, and no hub fills the disk with them ----------------

EVIL_PLANS: dict[str, tuple[dict[str, str], str]] = {
    "parent folder": ({"plan.py": "PLAN = 1", "../evil.py": "x"}, "cannot be imported"),
    "absolute path": (
        {"plan.py": "PLAN = 1", "/etc/cron.d/evil.py": "x"},
        "cannot be imported",
    ),
    "hidden in a folder": ({"plan.py": "PLAN = 1", "a/../../b.py": "x"}, "cannot be imported"),
    "null byte": ({"plan.py": "PLAN = 1", "a\x00.py": "x"}, "cannot be imported"),
    "keyword": ({"plan.py": "PLAN = 1", "class/x.py": "x"}, "cannot be imported"),
    "too large": ({"plan.py": "x" * ((1 << 20) + 1)}, "at most"),
    "no files": ({}, "a plan has 1 to"),
}


@pytest.mark.parametrize("trick", EVIL_PLANS)
async def test_a_malformed_plan_is_audited_once_however_often_it_comes(
    tmp_path: Path, trick: str
) -> None:
    files, words = EVIL_PLANS[trick]
    evil = Plan("evil", files, "plan:PLAN")
    async with node(tmp_path) as n, n.running():
        before = sorted(p for p in tmp_path.rglob("*"))
        for _ in range(3):
            n.hub.offer_all((STUDY,), evil, PLAN)
            await caught_up(n)
        assert not approvals.known(n.store, plan_digest(evil))
        refused = [line for line, _ in audit.every(n.store) if line.outcome == "refused"]
        assert [line.subject for line in refused] == [plan_digest(evil)]
        assert words in refused[0].detail
        made = {p.suffix for p in sorted(tmp_path.rglob("*")) if p not in before}
        assert made <= {".sqlite-wal", ".sqlite-shm"}


async def test_a_forged_study_is_audited_and_a_flood_of_them_bounded(tmp_path: Path) -> None:
    evil = tuple(Study(f"s{i}", "p", ("leuven",), ("cohort",)) for i in range(300))
    async with node(tmp_path) as n, n.running():
        n.hub.offer_all(evil, PLAN)
        await caught_up(n)
        lines = n.details("study.offer")
        assert len(lines) == 100 and "does not invite this site" in lines[0]
        assert "further attempts of this day are not listed" in lines[-1]
        assert studies.list_studies(n.store, approvals.day(n.now())) == []


async def test_a_revoked_plan_offered_again_stays_revoked(tmp_path: Path) -> None:
    """Replayed: the same bytes, the same digest, for the same study and for another."""
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        approvals.revoke(n.store, plan_digest(PLAN), actor="mara", now=n.now(), reason="doubts")
        for offered in ((STUDY,), (OTHER_STUDY, STUDY)):
            n.hub.offer_all(offered, PLAN)
            await caught_up(n)
        n.hub.assign(task := lease(n.hub, PLAN, model=n.hub.publish(base_model())))
        await until(lambda: n.hub.settled(task.id))
        assert n.runs.tasks == [] and isinstance(n.hub.settled(task.id), Declined)
        assert (
            approvals.get(n.store, plan_digest(PLAN), approvals.day(n.now())).state == "revoked"
        )


async def test_a_changed_study_does_not_inherit_the_acceptance(tmp_path: Path) -> None:
    """The same name with another purpose waits, and is accepted by its digest only."""
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        n.hub.offer_all((CHANGED_STUDY,), PLAN)
        await caught_up(n)
        with pytest.raises(Conflict, match="purpose"):
            studies.accept(n.store, "hearts", actor="mara", now=n.now())
        evil = lease(n.hub, PLAN, model=n.hub.publish(base_model()))
        evil = msgspec.structs.replace(
            evil, task=msgspec.structs.replace(evil.task, study=study_digest(CHANGED_STUDY))
        )
        n.hub.assign(evil)
        await until(lambda: n.hub.settled(evil.id))
        assert n.runs.tasks == [] and "not accepted here" in n.details("task.refuse")[0]


@pytest.mark.parametrize(
    "arguments",
    [{"lr.__class__": 1.0}, {"": 1.0}, {"proximal_mu": 0.5}, {"LR": 1.0}, {"lr ": 1.0}],
)
async def test_arguments_are_not_smuggled(tmp_path: Path, arguments: dict[str, float]) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        model = n.hub.publish(base_model())
        n.hub.assign(task := lease(n.hub, PLAN, model=model, arguments=arguments))
        await until(lambda: n.hub.settled(task.id))
        assert n.runs.tasks == [] and "argument" in n.details("task.refuse")[0]
