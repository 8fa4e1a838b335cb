"""Whole jobs on a real store and real frames, with nodes in the same process."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hubkit import SITES, Hub, Node, Outcome, first_model, open_hub, serving, train
from numpy.typing import NDArray

from consilia.core.round import Accepted
from consilia.core.select import site_seed
from consilia.core.weights import Weights
from consilia.errors import ConfigError, Conflict, NotFound
from consilia.hub import journal, modelversions
from consilia.hub.driver import Limits
from consilia.wire import frames
from consilia.wire.v1 import Failed, Result, Task

Float = NDArray[np.float64]


def trained(
    round: int, model: Weights, sites: Sequence[str] = SITES, seed: int = 0
) -> list[Outcome]:
    """Return what the nodes' training makes of `model`, in site order."""

    def one(site: str) -> Outcome:
        own = site_seed(seed, round, site)
        return train(site, Task("train", "", round, "", "", "", {}, (), "", own), model)

    return [one(site) for site in sites]


def mean(outcomes: list[Outcome], name: str) -> Float:
    """Return the record-weighted mean of a tensor in float64."""
    stacked = np.stack([weights[name].astype(np.float64) for weights, _, _ in outcomes])
    return np.average(stacked, axis=0, weights=[count for _, count, _ in outcomes])


def moved(name: str, rounds: list[tuple[Weights, list[Outcome]]], tensor: str) -> Float:
    """Return the last round's tensor by the published rules, in float64 throughout."""
    shape = rounds[0][0][tensor].shape
    m, v, new = np.zeros(shape), np.full(shape, 1e-3**2), np.zeros(shape)
    for model, outcomes in rounds:
        old = model[tensor].astype(np.float64)
        d = mean(outcomes, tensor) - old
        if name in ("fedavg", "fedprox"):
            new = old + d
            continue
        if name == "fedavgm":
            m = 0.9 * m + d
            new = old + m
            continue
        beta1, rate = (0.0, 0.1) if name == "fedadagrad" else (0.9, 0.01)
        m = beta1 * m + (1 - beta1) * d
        if name == "fedadagrad":
            v = v + d * d
        elif name == "fedyogi":
            v = v - 0.01 * d * d * np.sign(v - d * d)
        else:
            v = 0.99 * v + 0.01 * d * d
        new = old + rate * m / (np.sqrt(v) + 1e-3)
    return new


@pytest.mark.parametrize(
    "name", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"]
)
async def test_every_strategy_follows_its_published_rule(tmp_path: Path, name: str) -> None:
    async with open_hub(tmp_path) as hub:
        nodes = [Node(hub, site) for site in SITES]
        async with serving(*nodes):
            job = await hub.start(
                strategy={"name": name, "options": {}}, min_sites=4, rounds=3, seed=0
            )
            view = await hub.until(job, "done", "failed")
        assert view.state == "done", view.cause
        assert [r.sites for r in view.rounds[1:]] == [SITES] * 3
        assert [r.records for r in view.rounds] == [0, 785, 785, 785]
        models = [await hub.model(job, round) for round in range(4)]
        history = [(models[r - 1], trained(r, models[r - 1])) for r in (1, 2, 3)]
        for tensor, close in (("w", 2e-5), ("b", 1e-9), ("h", 3e-3)):
            expected = moved(name, history, tensor)
            np.testing.assert_allclose(models[3][tensor].astype(float), expected, close, close)
        np.testing.assert_array_equal(models[3]["n"], np.rint(mean(history[-1][1], "n")))
        losses = [metrics["loss"] for _, _, metrics in history[-1][1]]
        weights = [count for _, count, _ in history[-1][1]]
        assert view.rounds[3].metrics["loss"] == pytest.approx(
            np.average(losses, weights=weights)
        )
        if name == "fedprox":
            assert {x.task.arguments["proximal_mu"] for x in nodes[0].seen} == {0.01}


async def test_bytes_and_lineage_are_recorded(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        async with serving(*(Node(hub, site) for site in SITES)):
            job = await hub.start(min_sites=4, rounds=2)
            view = await hub.until(job, "done")
        versions = await hub.store.read(lambda db: modelversions.of_job(db, job))
        assert [(v.id, v.parent) for v in versions] == [
            (f"{job}.0", None),
            (f"{job}.1", f"{job}.0"),
            (f"{job}.2", f"{job}.1"),
        ]
        newest = versions[-1]
        assert (view.rounds[2].bytes_in, view.rounds[2].bytes_out) == (newest.bytes * 4,) * 2
        with hub.blobs.open(newest.digest) as blob:
            assert blob.size == newest.bytes
        (listed,) = (await hub.engine.reading.list()).items
        assert (listed.state, listed.round, listed.rounds) == ("done", 2, ())
        await hub.tidied()


async def test_a_late_joiner_trains_from_the_next_round(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        early = [Node(hub, site) for site in "ab"]
        async with serving(*early):
            job = await hub.start(rounds=30)
            while (await hub.engine.reading.view(job)).round < 2:
                await asyncio.sleep(0)
            async with serving(Node(hub, "c")):
                view = await hub.until(job, "done", "failed")
    took_part = ["c" in r.sites for r in view.rounds]
    assert not any(took_part[:2])
    assert all(took_part[took_part.index(True) :])


async def test_a_site_that_falls_silent_is_waited_for_until_grace_is_over(
    tmp_path: Path,
) -> None:
    async with open_hub(tmp_path, limits=Limits(silence=0.2)) as hub:
        lost = Node(hub, "c")
        await lost.advertise()
        async with serving(*(Node(hub, site) for site in "ab")):
            polling = asyncio.create_task(lost.poll())
            job = await hub.start(rounds=3, grace=0.3, min_sites=3)
            async with asyncio.timeout(10):
                while not any(x.task.kind == "train" for x in lost.seen):
                    for lease in await polling:
                        if lease.task.kind == "init":
                            await lost.work(lease)
                    if not lost.running:
                        polling = asyncio.create_task(lost.poll())
            view = await hub.until(job, "waiting", "done", "failed")
            assert view.state == "waiting"  # min_sites is 3, and c has gone
            assert "waits for 3 ready sites" in view.cause
            assert "c is offline" in view.cause
            assert view.rounds[1].sites == ("a", "b")
            assert view.sites["c"] == "away"
            async with serving(Node(hub, "c", session="s2")):
                view = await hub.until(job, "done", "failed")
    assert view.state == "done", view.cause
    assert view.rounds[3].sites == ("a", "b", "c")


async def test_a_lost_node_comes_back_to_the_same_lease(tmp_path: Path) -> None:
    async with open_hub(tmp_path, limits=Limits(silence=0.1)) as hub:
        lost = Node(hub, "c")
        await lost.advertise()
        async with serving(*(Node(hub, site) for site in "ab")):
            first = asyncio.create_task(lost.poll())
            model = await hub.put_frame(first_model())
            job = await hub.start(rounds=1, grace=10.0, min_sites=3, base=model)
            (lease,) = await first
            while (await hub.engine.reading.view(job)).sites["c"] != "away":
                await asyncio.sleep(0.02)
            back = Node(hub, "c", session="s2")
            (again,) = await back.poll()
            assert again.id == lease.id
            assert again.task == lease.task
            assert again.timeout < lease.timeout
            assert (await back.work(again)).accepted
            view = await hub.until(job, "done", "failed")
    assert view.rounds[0].sites == ("a", "b", "c")


async def test_below_quorum_the_job_fails_says_why_and_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    async with open_hub(tmp_path) as hub:
        a, b = Node(hub, "a"), Node(hub, "b")
        for node in (a, b):
            await node.advertise()
        base = await hub.put_frame(first_model())
        waiting = [asyncio.create_task(node.poll()) for node in (a, b)]
        job = await hub.start(rounds=1, base=base, min_updates=2)
        (lease_a,), (lease_b,) = await asyncio.gather(*waiting)
        assert (await a.work(lease_a)).accepted
        assert (await b.report(Failed(lease_b.id, "memory"))).accepted
        b.running.clear()
        view = await hub.until(job, "failed")
        assert "found 1 of 2 updates" in view.cause
        assert "b: failed (memory)" in view.cause
        again = asyncio.create_task(b.poll())
        await hub.engine.resume(job, None, "ada")
        (lease,) = await again
        assert lease.id == f"{job}.1.1.b"
        assert (await b.work(lease)).accepted
        view = await hub.until(job, "done", "failed")
        assert view.rounds[0].sites == ("a", "b")
        assert len(a.seen) == 1  # its update was kept


async def _digests(hub: Hub, job: str) -> list[str]:
    return [v.digest for v in await hub.store.read(lambda db: modelversions.of_job(db, job))]


@pytest.mark.parametrize("name", ["fedavg", "fedadam"])
async def test_stop_and_resume_give_the_same_model_bit_for_bit(
    tmp_path: Path, name: str
) -> None:
    wanted: dict[str, object] = {
        "rounds": 4,
        "min_sites": 4,
        "deterministic": True,
        "min_updates": 4,
        "strategy": {"name": name, "options": {}},
    }
    async with open_hub(tmp_path / "one") as hub:
        async with serving(*(Node(hub, site) for site in SITES)):
            job = await hub.start(**wanted)
            assert (await hub.until(job, "done", "failed")).state == "done"
        digests = await _digests(hub, job)
    # The same job again: stopped in round 2 with two updates in, the hub restarted, resumed.
    async with open_hub(tmp_path / "two") as hub:
        nodes = {site: Node(hub, site) for site in SITES}
        async with serving(*nodes.values()):
            job = await hub.start(**(wanted | {"rounds": 1}))
            await hub.until(job, "done")
        polls = {s: asyncio.create_task(nodes[s].poll()) for s in SITES}
        await hub.engine.resume(job, 4, "ada")
        for site in ("d", "b"):
            (lease,) = await polls[site]
            assert (await nodes[site].work(lease)).accepted
        await asyncio.gather(*polls.values())
        await hub.engine.stop(job, "ada")
        assert (await nodes["a"].poll()) == ()
        assert nodes["a"].running == []  # told to stop
        assert (await hub.engine.reading.view(job)).cause == "stopped by ada"
        with pytest.raises(Conflict, match="stopped"):
            await hub.engine.stop(job, "ada")
    async with open_hub(tmp_path / "two") as hub:
        async with serving(*(Node(hub, site) for site in SITES)):
            await asyncio.sleep(0.05)
            await hub.engine.resume(job, None, "ada")
            view = await hub.until(job, "done", "failed")
        assert view.state == "done", view.cause
        assert await _digests(hub, job) == digests
        events = await hub.store.read(lambda db: journal.replay(db, job))
        twice = [e.lease for _, e in events if isinstance(e, Accepted)]
        assert len(twice) == len(set(twice)) == 17  # one init, four rounds of four sites


async def test_sites_that_come_while_a_resume_is_written_take_part(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, serving(*(Node(hub, site) for site in SITES)):
        job = await hub.start(rounds=1, min_sites=4)
        await hub.until(job, "done")
    armed = False

    def step(name: str) -> None:
        nonlocal armed
        if armed and name == "journal.before":
            armed = False
            for site in SITES:
                said = hub.engine.said(site)
                assert said is not None
                hub.engine.presence.expect(site)
                hub.engine.advertised(site, said)

    async with open_hub(tmp_path, checkpoint=step) as hub:
        armed = True
        await hub.engine.resume(job, 2, "ada")
        assert (await hub.until(job, "running", timeout=5)).round == 2


async def test_two_jobs_run_side_by_side(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        async with serving(*(Node(hub, site) for site in SITES)):
            jobs = [await hub.start(rounds=4, seed=seed) for seed in (1, 2)]
            views = [await hub.until(job, "done", "failed") for job in jobs]
        assert [v.state for v in views] == ["done", "done"]
        one, two = [await hub.model(job, 4) for job in jobs]
        assert not np.array_equal(one["w"], two["w"])


async def test_changed_arguments_hold_from_the_next_round(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        nodes = [Node(hub, site) for site in "ab"]
        for node in nodes:
            await node.advertise()
        base = await hub.put_frame(first_model())
        polls = [asyncio.create_task(node.poll()) for node in nodes]
        job = await hub.start(rounds=2, base=base, arguments={"lr": 0.5, "epochs": 2})
        first = [(await poll)[0] for poll in polls]
        await hub.engine.change(job, {"lr": 0.25}, "ada")
        for node, lease in zip(nodes, first, strict=True):
            assert lease.task.arguments == {"lr": 0.5, "epochs": 2}
            assert (await node.work(lease)).accepted
        for node in nodes:
            (lease,) = await node.poll()
            assert lease.task.arguments == {"lr": 0.25, "epochs": 2}
            assert (await node.work(lease)).accepted
        await hub.until(job, "done")
        versions = await hub.store.read(lambda db: modelversions.of_job(db, job))
        assert [v.arguments["lr"] for v in versions] == [0.5, 0.25]
        assert versions[0].parent == base
        with pytest.raises(ConfigError, match=r"arguments\.lr: found nan"):
            await hub.engine.change(job, {"lr": float("nan")}, "ada")
        with pytest.raises(Conflict, match="done"):
            await hub.engine.change(job, {"lr": 0.1}, "ada")


async def test_unchanged_tensors_need_not_be_sent(tmp_path: Path) -> None:
    """An update may leave out tensors that equal the base's; the mean is the same."""
    async with open_hub(tmp_path) as hub:
        nodes = [Node(hub, site) for site in "ab"]
        for node in nodes:
            await node.advertise()
        base = await hub.put_frame(first_model())
        polls = [asyncio.create_task(node.poll()) for node in nodes]
        job = await hub.start(rounds=1, base=base)
        for node, poll in zip(nodes, polls, strict=True):
            (lease,) = await poll
            with hub.blobs.open(base) as blob:
                known = frozenset(e.digest for e in frames.read_header(blob.fd).entries)
            model = node.download(base)
            model["b"] = model["b"].astype(float) + (1 if node.site == "a" else 8)
            path = tmp_path / "update"
            header = frames.write(path, model, known)
            assert [e.name for e in header.entries if e.stored] == ["b"]
            node.upload(lease.id, path.read_bytes())
            report = Result(lease.id, job, 1, header.digest, 30)
            assert (await node.report(report)).accepted
        view = await hub.until(job, "done", "failed")
        assert view.state == "done", view.cause
        model = await hub.model(job, 1)
        np.testing.assert_allclose(
            model["b"].astype(float), first_model()["b"].astype(float) + 4.5
        )
        np.testing.assert_array_equal(model["w"], first_model()["w"])


async def test_a_model_that_overflows_fails_the_round_with_its_cause(tmp_path: Path) -> None:
    def explode(site: str, task: Task, model: Weights) -> Outcome:
        weights, count, _ = train(site, task, model)
        if task.kind == "train":
            weights["w"][0, 0] = 3e38 if site == "a" else -3e38
        return weights, count, {}

    async with open_hub(tmp_path) as hub:
        async with serving(*(Node(hub, site, explode) for site in "ab")):
            options = {"server_lr": 100.0, "momentum": 0.9}
            job = await hub.start(rounds=2, strategy={"name": "fedavgm", "options": options})
            view = await hub.until(job, "done", "failed")
        assert view.state == "failed"
        assert "round 1 could not be closed" in view.cause
        assert "'w'" in view.cause
        assert [r.round for r in view.rounds] == [0]
        assert len(hub.blobs.spools()) >= 2  # what was accepted is kept


async def test_a_hung_disk_does_not_hang_the_jobs(tmp_path: Path) -> None:
    hung, once = threading.Event(), threading.Lock()

    def checkpoint(name: str) -> None:
        if name == "close.folded" and once.acquire(blocking=False):
            hung.wait(20)

    limits = Limits(close=0.5)
    async with open_hub(tmp_path, limits=limits, checkpoint=checkpoint) as hub:
        async with serving(*(Node(hub, site) for site in "ab")):
            jobs = [await hub.start(rounds=1), await hub.start(rounds=1, seed=1)]
            ended = [await hub.until(job, "failed", "done") for job in jobs]
            assert sorted(view.state for view in ended) in (["done", "failed"], ["failed"] * 2)
            causes = [view.cause for view in ended if view.state == "failed"]
            assert all("not made in 0.5 s" in cause for cause in causes)
            hung.set()
            for job, view in zip(jobs, ended, strict=True):
                if view.state == "failed":
                    await hub.engine.resume(job, None, "ada")
            ended = [await hub.until(job, "done", "failed") for job in jobs]
        assert [view.state for view in ended] == ["done", "done"], [v.cause for v in ended]
        for job in jobs:
            model, first = await hub.model(job, 1), await hub.model(job, 0)
            seed = 0 if job == jobs[0] else 1
            expected = mean(trained(1, first, "ab", seed), "b")
            np.testing.assert_allclose(model["b"].astype(float), expected)


async def test_an_experiment_s_problems_are_told_all_at_once(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        wrong = hub.experiment(
            rounds=0,
            fraction=1.5,
            min_sites=5,
            deadline=float("inf"),
            seed=-1,
            strategy={"name": "fedavgg", "options": {}},
            arguments={"lr": float("inf")},
            base="job-nowhere.3",
        )
        found = {p.field: str(p) for p in await hub.engine.validate(wrong)}
        assert found.keys() == {
            "rounds",
            "fraction",
            "min_sites",
            "deadline",
            "seed",
            "strategy",
            "arguments.lr",
            "base",
        }
        assert "did you mean 'fedavg'" in found["strategy"]
        assert "found 5, needed at most 4" in found["min_sites"]
        with pytest.raises(ConfigError, match="rounds: found 0"):
            await hub.engine.start(wrong, "ada", hub.study, hub.plan)
        assert await hub.engine.validate(hub.experiment()) == ()
        limit = hub.experiment(fraction=1.0, min_sites=4, min_updates=4, rounds=1, grace=0)
        assert await hub.engine.validate(limit) == ()
        other = hub.experiment(plan="sha256:" + "0" * 64, study="liver")
        found = {p.field: str(p) for p in await hub.engine.validate(other)}
        assert "an unknown one" in found["plan"]
        assert "needed the name of a submitted study" in found["study"]
        with pytest.raises(ConfigError, match="'liver', not 'heart'"):
            await hub.engine.start(other, "ada", hub.study, hub.plan)
        with pytest.raises(ConfigError, match="not stored"):
            await hub.start(base="b3:" + "0" * 64)
        assert (await hub.engine.reading.list()).items == ()


async def test_a_waiting_job_says_what_each_site_lacks(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        nodes = [Node(hub, site) for site in SITES]
        await nodes[0].advertise()
        await nodes[1].advertise(studies=False)
        await nodes[2].advertise(plans=False)
        await nodes[3].advertise(tags=("neuro",))
        polls = [asyncio.create_task(node.poll()) for node in nodes[1:]]
        await asyncio.sleep(0)
        job = await hub.start()
        view = await hub.engine.reading.view(job)
        assert view.state == "waiting"
        for text in (
            "a is offline",
            "b has not accepted the study",
            "c has not approved the plan",
            "d offers no dataset with the tags cardio",
        ):
            assert text in view.cause
        assert view.sites == {"a": "away", "b": "waiting", "c": "waiting", "d": "waiting"}
        # Whatever was missing starts the job the moment it is there.
        for node in nodes[1:3]:
            await node.advertise()
        view = await hub.until(job, "running")
        while "training" not in view.sites.values():
            await asyncio.sleep(0.01)
            view = await hub.engine.reading.view(job)
        assert sorted(view.sites.values()) == ["away", "ready", "training", "waiting"]
        for poll in polls:
            poll.cancel()


async def test_events_can_be_followed_across_a_restart(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        async with serving(*(Node(hub, site) for site in "ab")):
            job = await hub.start(rounds=1)
            await hub.until(job, "done")
        every = await hub.engine.reading.events(job)
        kinds = [item.type for item in every.items]
        assert kinds.count("Closed") == 2
        assert kinds.count("Accepted") == 3
    async with open_hub(tmp_path) as hub:
        assert await hub.engine.reading.events(job) == every
        rest = await hub.engine.reading.events(job, every.items[3].seq)
        assert rest.items == every.items[4:]
        assert (await hub.engine.reading.events(job, every.next, 0.05)).items == ()
        with pytest.raises(NotFound):
            await hub.engine.reading.events("job-0000000000000000")
        view = await hub.engine.reading.view(job)
        assert (view.state, view.round, len(view.rounds)) == ("done", 1, 2)
