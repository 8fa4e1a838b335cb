"""What nodes may say and do, and what the hub makes of lies, damage and repetition."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hubkit import Hub, Node, body_of, first_model, key_of, open_hub, serving, train

from consilia.core.round import Settled
from consilia.core.weights import Weights
from consilia.errors import (
    AuthError,
    Conflict,
    NotFound,
    Refused,
    StorageError,
    UpdateRejected,
    WireError,
)
from consilia.hub import audit, journal, records
from consilia.hub.driver import Limits
from consilia.hub.presence import Assignment
from consilia.wire import frames
from consilia.wire.seal import seal
from consilia.wire.v1 import (
    MAX_METRICS,
    Advertisement,
    Declined,
    Failed,
    Lease,
    OfferedDataset,
    Poll,
    Progress,
    Result,
    Task,
    encode,
    plan_digest,
)


@dataclass
class Round:
    """A job in its first training round, with sites a and b holding a lease each."""

    hub: Hub
    job: str
    a: Node
    b: Node
    lease_a: Lease
    lease_b: Lease

    def result(self, lease: Lease, header: frames.Header, records: int = 100) -> Result:
        return Result(lease.id, self.job, 1, header.digest, records, {"loss": 1.0})

    async def audit(self) -> list[tuple[str, str, str, str]]:
        lines = await self.hub.store.read(lambda db: [e.line for e in audit.lines(db)])
        return [(x.actor, x.action, x.outcome, x.detail) for x in lines]


async def begin(hub: Hub, **fields: object) -> Round:
    """Start a job from a base frame and hand out the first leases."""
    a, b = Node(hub, "a"), Node(hub, "b")
    await a.advertise()
    await b.advertise()
    base = await hub.put_frame(first_model())
    polls = [asyncio.create_task(node.poll()) for node in (a, b)]
    job = await hub.start(**({"rounds": 1, "base": base, "min_updates": 1} | fields))
    (lease_a,), (lease_b,) = await asyncio.gather(*polls)
    return Round(hub, job, a, b, lease_a, lease_b)


@pytest.fixture
async def round(tmp_path: Path) -> AsyncIterator[Round]:
    async with open_hub(tmp_path) as hub:
        yield await begin(hub)


def good(lease: Lease, site: str = "a") -> bytes:
    return body_of(train(site, lease.task, first_model())[0])


async def finish(r: Round, cause: str) -> None:
    """Site b delivers a sound update; the job ends with it alone and tells why a is out."""
    assert (await r.b.work(r.lease_b)).accepted
    view = await r.hub.until(r.job, "done", "failed")
    assert view.state == "done", view.cause
    assert view.rounds[0].sites == ("b",)
    assert cause in view.rounds[0].rejected["a"]
    expected = train("b", r.lease_b.task, first_model())[0]
    np.testing.assert_array_equal((await r.hub.model(r.job, 1))["w"], expected["w"])


# ---- updates that must not count -------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_an_update_that_is_not_finite_is_rejected_at_the_first_bad_value(
    round: Round, value: float
) -> None:
    weights = train("a", round.lease_a.task, first_model())[0]
    weights["w"][-1, -1] = value
    with pytest.raises(UpdateRejected, match="'w' holds NaN or infinity"):
        await asyncio.to_thread(round.a.upload, round.lease_a.id, body_of(weights))
    await finish(round, "rejected: tensor 'w' holds NaN or infinity")
    assert any(
        line[:3] == ("site:a", "lease.end", "rejected") and "NaN" in line[3]
        for line in await round.audit()
    )


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda b: b"hello" + b[5:], "not a tensor frame"),
        (lambda b: b[:8] + b"\xff\xff\xff\xff" + b[12:], "header of 4294967295"),
        (lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:], "bytes damaged"),
        (lambda b: b + b"x", "after the end"),
    ],
)
async def test_garbage_is_rejected_while_it_streams(
    round: Round, damage: Callable[[bytes], bytes], cause: str
) -> None:
    with pytest.raises(WireError, match=cause):
        await asyncio.to_thread(round.a.upload, round.lease_a.id, damage(good(round.lease_a)))
    await finish(round, "rejected: ")


async def test_a_frame_larger_than_the_model_allows_is_refused_from_its_header(
    round: Round,
) -> None:
    big: Weights = {"w": np.zeros(200_000, np.float32)}
    with pytest.raises(WireError, match="limit"):
        await asyncio.to_thread(round.a.upload, round.lease_a.id, body_of(big))
    assert (round.hub.blobs.spooled(round.lease_a.id) or 0) <= 100_000  # one piece at most
    await finish(round, "limit")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"w": np.zeros((1000, 70), np.float32)}, "'w' is float32(1000, 70), needs float32(70"),
        ({"b": np.zeros(5, np.float32)}, "'b' is float32(5,), needs float64(5,)"),
        ({"extra": np.zeros(1, np.float32)}, "tensors ['extra'] are missing or unexpected"),
    ],
)
async def test_a_wrong_shape_is_rejected_and_the_reason_told(
    round: Round, change: Weights, cause: str
) -> None:
    weights = train("a", round.lease_a.task, first_model())[0] | change
    header = await asyncio.to_thread(round.a.upload, round.lease_a.id, body_of(weights))
    verdict = await round.a.report(round.result(round.lease_a, header))
    assert not verdict.accepted
    assert cause in verdict.reason
    assert "site 'a'" in verdict.reason
    again = await round.a.report(round.result(round.lease_a, header))
    assert again == verdict
    await finish(round, cause)


async def test_a_missing_tensor_or_another_order_is_rejected(round: Round) -> None:
    weights = train("a", round.lease_a.task, first_model())[0]
    turned = dict(reversed(weights.items()))
    header = await asyncio.to_thread(round.a.upload, round.lease_a.id, body_of(turned))
    verdict = await round.a.report(round.result(round.lease_a, header))
    assert "another order" in verdict.reason
    await finish(round, "another order")


async def test_an_empty_update_is_rejected(round: Round) -> None:
    verdict = await round.a.report(Result(round.lease_a.id, round.job, 1, None, 100))
    assert not verdict.accepted
    assert "names no model" in verdict.reason
    await finish(round, "names no model")


async def test_a_tensor_left_out_must_be_the_base_s(round: Round, tmp_path: Path) -> None:
    weights = train("a", round.lease_a.task, first_model())[0]
    path = tmp_path / "u"
    whole = frames.write(path, weights)
    header = frames.write(path, weights, frozenset({whole.entries[1].digest}))
    assert not header.whole
    round.a.upload(round.lease_a.id, path.read_bytes())
    verdict = await round.a.report(round.result(round.lease_a, header))
    assert "'b' is left out as unchanged" in verdict.reason


@pytest.mark.parametrize("count", [0, -1, 105, 1 << 40])
async def test_claimed_records_are_bounded(round: Round, count: int) -> None:
    """Site a advertises 100, rounded down: it may have 104 at most."""
    header = await asyncio.to_thread(round.a.upload, round.lease_a.id, good(round.lease_a))
    verdict = await round.a.report(round.result(round.lease_a, header, count))
    assert f"claims {count} records, needed 1 to 104" in verdict.reason


@pytest.mark.parametrize("count", [1, 104])
async def test_claimed_records_at_the_bounds_are_taken(round: Round, count: int) -> None:
    header = await asyncio.to_thread(round.a.upload, round.lease_a.id, good(round.lease_a))
    assert (await round.a.report(round.result(round.lease_a, header, count))).accepted


@pytest.mark.parametrize(
    ("metrics", "cause"),
    [
        ({"loss": float("nan")}, "metric 'loss' is nan"),
        ({f"m{n}": 0.0 for n in range(MAX_METRICS + 1)}, f"{MAX_METRICS + 1} metrics"),
        ({"x" * 65: 0.0}, "is not allowed: 1 to 64"),
        ({"": 0.0}, "metric name '' is not allowed"),
    ],
)
async def test_metrics_are_bounded(round: Round, metrics: dict[str, float], cause: str) -> None:
    header = await asyncio.to_thread(round.a.upload, round.lease_a.id, good(round.lease_a))
    report = Result(round.lease_a.id, round.job, 1, header.digest, 100, metrics)
    assert cause in (await round.a.report(report)).reason
    with pytest.raises(WireError, match="metric"):
        await round.b.report(Progress(round.lease_b.id, 0.5, metrics))


async def test_metrics_at_the_bounds_are_taken(round: Round) -> None:
    header = await asyncio.to_thread(round.a.upload, round.lease_a.id, good(round.lease_a))
    metrics = {f"{n:064}": 1.0 for n in range(MAX_METRICS)}
    report = Result(round.lease_a.id, round.job, 1, header.digest, 100, metrics)
    assert (await round.a.report(report)).accepted


async def test_another_job_s_update_is_rejected(round: Round) -> None:
    header = await asyncio.to_thread(round.a.upload, round.lease_a.id, good(round.lease_a))
    other = Result(round.lease_a.id, "job-other", 1, header.digest, 100)
    assert "is of job 'job-other' round 1" in (await round.a.report(other)).reason
    header = await asyncio.to_thread(round.b.upload, round.lease_b.id, good(round.lease_b, "b"))
    late = Result(round.lease_b.id, round.job, 7, header.digest, 100)
    assert "round 7" in (await round.b.report(late)).reason


async def test_a_digest_that_was_not_uploaded_is_rejected(round: Round) -> None:
    header = await asyncio.to_thread(round.a.upload, round.lease_a.id, good(round.lease_a))
    other = "b3:" + "7" * 64
    verdict = await round.a.report(Result(round.lease_a.id, round.job, 1, other, 100))
    assert f"names frame {other}, uploaded was {header.digest}" in verdict.reason


async def test_a_lease_belongs_to_its_site(round: Round) -> None:
    with pytest.raises(Refused, match="site 'b' does not hold lease"):
        round.b.upload(round.lease_a.id, good(round.lease_a))
    header = await asyncio.to_thread(round.a.upload, round.lease_a.id, good(round.lease_a))
    verdict = await round.b.report(round.result(round.lease_a, header))
    assert not verdict.accepted
    assert "was not given to site 'b'" in verdict.reason
    lines = [line[:3] for line in await round.audit()]
    assert ("site:b", "lease.report", "refused") in lines
    assert (await round.a.report(round.result(round.lease_a, header))).accepted


async def test_twice_the_same_update_counts_once(round: Round) -> None:
    header = await asyncio.to_thread(round.a.upload, round.lease_a.id, good(round.lease_a))
    report = round.result(round.lease_a, header)
    verdicts = await asyncio.gather(*(round.a.report(report) for _ in range(5)))
    assert all(v.accepted for v in verdicts)
    other = Result(round.lease_a.id, round.job, 1, "b3:" + "7" * 64, 100)
    assert "has another update already" in (await round.a.report(other)).reason
    assert (await round.b.work(round.lease_b)).accepted
    view = await round.hub.until(round.job, "done")
    assert view.rounds[0].records == 100 + 250
    assert (await round.a.report(report)).accepted  # also when the job is over


async def test_a_late_update_is_told_that_its_round_is_over(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        r = await begin(hub, grace=0.0)
        header = await asyncio.to_thread(r.a.upload, r.lease_a.id, good(r.lease_a))
        assert (await r.b.work(r.lease_b)).accepted
        await hub.until(r.job, "done")
        verdict = await r.a.report(r.result(r.lease_a, header))
        assert not verdict.accepted
        assert "not open any more" in verdict.reason
        await hub.tidied()


async def test_a_result_before_its_upload_is_asked_to_come_again(round: Round) -> None:
    report = Result(round.lease_a.id, round.job, 1, "b3:" + "7" * 64, 100)
    with pytest.raises(Conflict, match="not complete"):
        await round.a.report(report)
    header = await asyncio.to_thread(round.a.upload, round.lease_a.id, good(round.lease_a))
    assert (await round.a.report(round.result(round.lease_a, header))).accepted


async def test_a_site_learns_nothing_of_a_site_whose_name_ends_like_its_own(
    tmp_path: Path,
) -> None:
    async with open_hub(tmp_path, sites=("a", "b", "x.b")) as hub:
        near = Node(hub, "b")
        for lease in ("job-1.1.0.x.b", "job-1.1.b", "job.b", "b", ""):
            verdict = await near.report(Failed(lease, "memory"))
            assert not verdict.accepted and "was not given to site 'b'" in verdict.reason


async def test_what_a_site_says_cannot_write_on_peoples_terminals(round: Round) -> None:
    with pytest.raises(WireError, match="is not allowed"):
        await round.a.report(Progress(round.lease_a.id, 0.5, {"loss\x1b[2J": 1.0}))
    assert (await round.a.report(Declined(round.lease_a.id, "no\x1b[2J\rbody"))).accepted
    assert (await round.b.report(Failed(round.lease_b.id, "memory"))).accepted
    view = await round.hub.until(round.job, "failed")
    assert view.cause.isprintable()


@pytest.mark.parametrize(
    "said",
    [
        Advertisement("1\x1b[2J"),
        Advertisement("1" * 1000),
        Advertisement("1", (OfferedDataset("d", ("cardio",), 1 << 63),)),
    ],
)
async def test_an_advertisement_that_would_harm_the_hub_is_refused(
    round: Round, said: Advertisement
) -> None:
    """A count over a database's integer would keep every round of its job from closing."""
    sealed = seal("advertisement", "a", encode(said), key_of("a"))
    with pytest.raises(WireError):
        await round.hub.federation.advertise("a", sealed)


async def test_failures_and_refusals_are_told_once_and_counted(round: Round) -> None:
    for _ in range(2):
        assert (await round.a.report(Failed(round.lease_a.id, "memory"))).accepted
        declined = Declined(round.lease_b.id, "not this month" + "!" * 1000)
        assert (await round.b.report(declined)).accepted
    view = await round.hub.until(round.job, "failed")
    assert "a: failed (memory)" in view.cause
    assert "b: declined (not this month" in view.cause
    lines = [line[1:3] for line in await round.audit()]
    assert lines.count(("lease.end", "failed")) == lines.count(("lease.end", "declined")) == 1


async def test_an_init_must_be_whole_and_may_have_any_shape(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        nodes = {site: Node(hub, site) for site in "ab"}
        for node in nodes.values():
            await node.advertise()
        polls = {s: asyncio.create_task(n.poll()) for s, n in nodes.items()}
        job = await hub.start(rounds=1)
        done, _ = await asyncio.wait(polls.values(), return_when=asyncio.FIRST_COMPLETED)
        site = next(s for s, p in polls.items() if p in done)
        (lease,) = polls[site].result()
        assert (lease.task.kind, lease.task.model) == ("init", None)
        model = first_model()
        path = tmp_path / "f"
        part = frames.write(path, model)
        part = frames.write(path, model, frozenset({part.entries[0].digest}))
        nodes[site].upload(lease.id, path.read_bytes())
        verdict = await nodes[site].report(Result(lease.id, job, 0, part.digest, 0))
        assert "leaves out tensor 'w'" in verdict.reason
        other = "b" if site == "a" else "a"
        (lease,) = await polls[other]  # the next ready site is asked instead
        assert (await nodes[other].work(lease)).accepted
        for poll in (nodes["a"].poll(), nodes["b"].poll()):
            (lease,) = await poll
            assert (lease.task.kind, lease.task.round) == ("train", 1)


# ---- uploads and downloads -------------------------------------------------------------------


async def test_a_broken_upload_goes_on_where_it_ended(round: Round) -> None:
    body, id = good(round.lease_a), round.lease_a.id
    upload = round.hub.federation.upload("a", id)
    upload.write(memoryview(body)[:150_001])
    upload.close()
    again = round.hub.federation.upload("a", id)
    assert again.offset == 150_001
    with pytest.raises(Exception, match="ends after 150001 bytes"):
        again.finish()
    again.write(memoryview(body)[150_001:])
    assert again.finish() == again.finish()
    again.close()
    assert round.hub.blobs.spooled(id) == len(body)


async def test_a_newer_upload_fences_the_older(round: Round) -> None:
    body, id = good(round.lease_a), round.lease_a.id
    old = round.hub.federation.upload("a", id)
    old.write(memoryview(body)[:1000])
    new = round.hub.federation.upload("a", id)
    new.write(memoryview(body)[1000:2000])
    with pytest.raises(Conflict):
        old.write(memoryview(body)[1000:2000])
    new.write(memoryview(body)[2000:])
    report = round.result(round.lease_a, new.finish())
    assert (await round.a.report(report)).accepted


async def test_an_upload_outlives_the_hub(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        r = await begin(hub)
        body, id = good(r.lease_a), r.lease_a.id
        upload = hub.federation.upload("a", id)
        upload.write(memoryview(body)[:200_000])
        upload.close()
        whole = await asyncio.to_thread(r.b.upload, r.lease_b.id, good(r.lease_b, "b"))
    with (tmp_path / "spool" / id).open("r+b") as spool:
        spool.seek(199_000)
        spool.write(b"\0" * 999)  # a power cut took the end
    async with open_hub(tmp_path) as hub:
        b = Node(hub, "b", session="s2", running=[r.lease_b.id])
        # A whole spool is verified again, and the update counts without another upload.
        assert (await b.report(r.result(r.lease_b, whole))).accepted
        upload = hub.federation.upload("a", id)
        assert upload.offset in (0, 200_000)
        if upload.offset:  # the zeros may lie within a tensor: found at its end
            with pytest.raises(WireError):
                upload.write(memoryview(body)[200_000:])


async def test_a_site_reads_only_the_models_of_its_leases(round: Round) -> None:
    model = round.lease_a.task.model
    assert model is not None
    with round.hub.federation.readable("a", model) as blob:
        assert frames.read_header(blob.fd).digest == model
    with pytest.raises(Refused, match="site 'c' has no lease"):
        round.hub.federation.readable("c", model)
    assert (await round.a.work(round.lease_a)).accepted
    with pytest.raises(Refused, match="site 'a' has no lease"):
        round.hub.federation.readable("a", model)


# ---- polls -----------------------------------------------------------------------------------


async def test_a_newer_poll_ends_an_older_one(round: Round) -> None:
    old = asyncio.create_task(round.a.poll())
    await asyncio.sleep(0)
    new = asyncio.create_task(round.a.poll(wait=0.05))
    assert await asyncio.wait_for(old, 1) == ()
    assert await asyncio.wait_for(new, 1) == ()


async def test_work_reaches_a_waiting_poll_at_once(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        loop = asyncio.get_running_loop()
        node = Node(hub, "a")
        await node.advertise()
        task = asyncio.create_task(node.poll(60.0))
        await asyncio.sleep(0.01)
        work = Task("train", "job-x", 1, "", "heart", "", {}, (), None, 1)
        spent = []
        for n in range(20):
            begun = loop.time()
            hub.engine.presence.assign(Assignment(f"job-x.{n}.0.a", "a", work, 1e12, 1))
            assert [x.id for x in await task] == [f"job-x.{n}.0.a"]
            spent.append(loop.time() - begun)
            task = asyncio.create_task(node.poll(60.0))
            await asyncio.sleep(0)
        task.cancel()
        assert sorted(spent)[10] < 0.005, spent


async def test_a_lost_answer_heals_at_the_next_poll(round: Round) -> None:
    orders = await round.hub.federation.poll("a", Poll("s1", (), round.a.catalogue, 5.0))
    assert [x.id for x in orders.leases] == [round.lease_a.id]
    running = (round.lease_a.id, "job-gone.1.0.a")
    orders = await round.hub.federation.poll("a", Poll("s2", running, round.a.catalogue, 5.0))
    assert orders.leases == ()
    assert orders.cancel == ("job-gone.1.0.a",)


async def test_a_stop_reaches_the_site_that_works(round: Round) -> None:
    poll = asyncio.create_task(round.a.poll())
    await asyncio.sleep(0)
    await round.hub.engine.stop(round.job, "ada")
    await asyncio.wait_for(poll, 1)
    assert round.a.running == []
    with pytest.raises(Refused):
        round.hub.federation.upload("a", round.lease_a.id)


async def test_an_endless_wait_is_not_a_number(round: Round) -> None:
    with pytest.raises(WireError, match="would wait nan"):
        await round.hub.federation.poll("a", Poll("s1", (), 0, float("nan")))


async def test_a_site_is_online_while_it_polls_and_a_little_longer(tmp_path: Path) -> None:
    async with open_hub(tmp_path, limits=Limits(silence=0.2)) as hub:
        node = Node(hub, "a")
        await node.advertise()
        presence = hub.engine.presence
        assert not presence.online("a")
        await node.poll(wait=0.5)  # longer than silence: a poll that waits is not silent
        assert presence.online("a")
        await asyncio.sleep(0.1)
        assert presence.online("a")
        await asyncio.sleep(0.3)
        assert not presence.online("a")
        seen = await hub.store.read(lambda db: records.get_site(db, "a").last_seen)
        assert seen == pytest.approx(presence.last_seen("a"))


async def test_a_revoked_site_is_away_at_once(round: Round) -> None:
    poll = asyncio.create_task(round.a.poll())
    await asyncio.sleep(0)
    round.hub.engine.revoked("a")
    assert await asyncio.wait_for(poll, 1) == ()
    async with asyncio.timeout(5):
        while (await round.hub.engine.reading.view(round.job)).sites["a"] != "failed":
            await asyncio.sleep(0.01)
    events = await round.hub.store.read(lambda db: journal.replay(db, round.job))
    (ended,) = [event for _, event in events if isinstance(event, Settled)]
    assert (ended.status, ended.cause) == ("rejected", "the site was revoked")


# ---- what sites say of themselves ------------------------------------------------------------


async def test_an_advertisement_is_kept_and_survives_a_restart(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        await Node(hub, "a").advertise()
        said = hub.engine.said("a")
    async with open_hub(tmp_path) as hub:
        assert hub.engine.said("a") == said is not None


async def test_a_withdrawn_approval_is_seen_at_once(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, serving(*(Node(hub, site) for site in "abc")):
        job = await hub.start(rounds=1000, min_sites=3)
        await hub.until(job, "running")
        await Node(hub, "c").advertise(plans=False)
        view = await hub.until(job, "waiting")
        assert "c has not approved the plan" in view.cause


@pytest.mark.parametrize(
    "said",
    [
        Advertisement("1", tuple(OfferedDataset(f"d{n}", (), 5) for n in range(1001))),
        Advertisement("1", (OfferedDataset("D!", (), 5),)),
        Advertisement("1", (OfferedDataset("d", ("T!",), 5),)),
        Advertisement("1", (OfferedDataset("d", (), -5),)),
        Advertisement("1", plans=("nonsense",)),
    ],
)
async def test_an_unfit_advertisement_is_refused(tmp_path: Path, said: Advertisement) -> None:
    async with open_hub(tmp_path) as hub:
        sealed = seal("advertisement", "a", encode(said), key_of("a"))
        with pytest.raises(WireError, match="site 'a'"):
            await hub.federation.advertise("a", sealed)
        assert hub.engine.said("a") is None


async def test_a_shrunken_audit_chain_is_noticed(round: Round) -> None:
    for length, head in ((7, "sha256:" + "1" * 64), (5, "sha256:" + "2" * 64)):
        said = Advertisement("1", audit_head=head, audit_length=length)
        sealed = seal("advertisement", "a", encode(said), key_of("a"))
        await round.hub.federation.advertise("a", sealed)
    broken = [line for line in await round.audit() if line[1] == "audit.head"]
    assert len(broken) == 1
    assert "has 5 lines, it had 7" in broken[0][3]


async def test_only_the_site_s_own_signature_counts(round: Round) -> None:
    report = encode(Failed(round.lease_a.id, "memory"))
    forged = seal("report", "a", report, key_of("b"))
    with pytest.raises(AuthError, match="not signed with its registered key"):
        await round.hub.federation.report("a", forged)
    with pytest.raises(AuthError, match="in the name of 'a'"):
        await round.hub.federation.report("b", forged)
    other = seal("advertisement", "a", report, key_of("a"))
    with pytest.raises(AuthError, match="needed one for 'report'"):
        await round.hub.federation.report("a", other)
    with pytest.raises(WireError, match="report of site 'a' is not valid"):
        await round.hub.federation.report("a", seal("report", "a", b"\xc1", key_of("a")))


async def test_progress_is_shown_and_not_journalled(round: Round) -> None:
    before = await round.hub.engine.reading.events(round.job)
    assert (await round.a.report(Progress(round.lease_a.id, 0.5, {"loss": 2.0}))).accepted
    view = await round.hub.engine.reading.view(round.job)
    assert view.progress == {"a": 0.5}
    feed = await round.hub.engine.reading.events(round.job, before.next, 1.0)
    shown = [item for item in feed.items if item.type == "Progress"]
    assert [item.body["metrics"] for item in shown] == [{"loss": 2.0}]
    rest = await round.hub.engine.reading.events(round.job, feed.next)
    assert not any(item.type == "Progress" for item in rest.items)
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(WireError, match="needed 0 to 1"):
            await round.a.report(Progress(round.lease_a.id, fraction))
    assert not (await round.a.report(Progress("job-x.1.0.a", 0.5))).accepted
    for fraction in (0.0, 1.0):
        assert (await round.a.report(Progress(round.lease_a.id, fraction))).accepted


async def test_a_site_sees_the_studies_and_plans_that_invite_it(tmp_path: Path) -> None:
    async with open_hub(tmp_path, sites=("a", "b")) as hub:
        mine = await hub.federation.catalogue("a")
        assert [s.name for s in mine.studies] == ["heart"]
        assert [(p.digest, p.study) for p in mine.plans] == [(plan_digest(hub.plan), "heart")]
        assert (await hub.federation.plan("a", plan_digest(hub.plan))).files == hub.plan.files
        foreign = await hub.federation.catalogue("z")
        assert (foreign.studies, foreign.plans) == ((), ())
        with pytest.raises(NotFound, match="no study that invites site 'z'"):
            await hub.federation.plan("z", plan_digest(hub.plan))
        waiting = asyncio.create_task(
            hub.federation.poll("a", Poll("s", (), mine.version, 10.0))
        )
        await asyncio.sleep(0.01)
        await hub.store.write(lambda db: records.close_study(db, "heart", 1.0))
        hub.engine.catalogue_changed()
        assert (await asyncio.wait_for(waiting, 1)).catalogue > mine.version
        assert (await hub.federation.catalogue("a")).studies == ()


# ---- disks that refuse -----------------------------------------------------------------------


async def test_a_full_disk_keeps_the_spool_and_the_upload_goes_on(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        r = await begin(hub)
        body, id = good(r.lease_a), r.lease_a.id
        upload = hub.federation.upload("a", id)
        upload.write(memoryview(body)[:100_000])
        upload.close()
    async with open_hub(tmp_path, reserve=1 << 60) as hub:  # nothing but the reserve is left
        upload = hub.federation.upload("a", id)
        with pytest.raises(StorageError, match="reserve"):
            upload.write(memoryview(body)[100_000:])
        assert upload.offset == 100_000
        upload.close()
    async with open_hub(tmp_path) as hub:
        a = Node(hub, "a", session="s2", running=[id])
        assert hub.federation.upload("a", id).offset == 100_000
        header = await asyncio.to_thread(a.upload, id, body)
        assert (await a.report(r.result(r.lease_a, header))).accepted


async def test_a_full_database_acknowledges_nothing_and_loses_nothing(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        r = await begin(hub)
        headers = [
            await asyncio.to_thread(n.upload, x.id, good(x, n.site))
            for n, x in ((r.a, r.lease_a), (r.b, r.lease_b))
        ]
        await hub.store.write(lambda db: db.exec_driver_sql("PRAGMA max_page_count=1").scalar())
        filler = {f"{n:060}": float(n) for n in range(60)}  # needs a page of its own
        reports = [
            Result(x.id, r.job, 1, h.digest, 100, filler)
            for x, h in zip((r.lease_a, r.lease_b), headers, strict=True)
        ]
        with pytest.raises(StorageError):
            await r.a.report(reports[0])
        assert (await hub.engine.reading.view(r.job)).sites["a"] in ("waiting", "training")
        await hub.store.write(
            lambda db: db.exec_driver_sql("PRAGMA max_page_count=1000000").scalar()
        )
        assert (await r.a.report(reports[0])).accepted
        assert (await r.b.report(reports[1])).accepted
        view = await hub.until(r.job, "done", "failed")
        assert view.rounds[0].records == 200
