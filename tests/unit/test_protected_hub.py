"""Compressed rounds and adapting clips at a hub that is killed and started again."""

import asyncio
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hubkit import Hub, Node, Outcome, open_hub, serving, train

from consilia.core.weights import Weights
from consilia.hub import modelversions
from consilia.hub.modelversions import Version
from consilia.node.compressing import Feedback, pack
from consilia.node.studykeys import Rest
from consilia.privacy import adaptive
from consilia.wire import frames
from consilia.wire.people import Strategy
from consilia.wire.v1 import Lease, Task

REST = Rest(lambda study: hashlib.sha256(study.encode()).digest(), os.urandom)
SHARES = {
    "aggregation": "secure",
    "range": 64.0,
    "dp": {
        "level": "client",
        "noise_multiplier": 2.0,
        "clip": 2.0,
        "distributed": True,
        "adaptive": {"quantile": 0.5, "rate": 0.4},
    },
}


def packing(site: str, task: Task, model: Weights) -> Outcome:
    """Train as usual, and compress as a node does whose memory is empty."""
    new, count, metrics = train(site, task, model)
    if task.kind == "init":
        return new, count, metrics
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames.write(folder / "new", new)
        frames.write(folder / "old", model)
        with frames.opened(folder / "new") as a, frames.opened(folder / "old") as b:
            feedback = Feedback(folder / "feedback", lambda: 0.0, REST)
            pack(a, b, Lease("l", task, 1.0), feedback, folder / "out", 0.0)
        return frames.read(folder / "out"), count, metrics


async def test_a_compressed_job_goes_on_after_the_hub_was_started_again(
    tmp_path: Path,
) -> None:
    async def settled(hub: Hub, **fields: object) -> str:
        return await hub.start(
            rounds=3, compress="int16", deterministic=True, seed=7, min_sites=3, min_updates=3,
            **fields,
        )  # fmt: skip

    (tmp_path / "whole").mkdir()
    async with open_hub(tmp_path / "whole") as hub:
        async with serving(*(Node(hub, site, packing) for site in "abc")):
            job = await settled(hub)
            view = await hub.until(job, "done", "failed")
        assert view.state == "done", view.cause
        expected = await hub.model(job, 3)
        assert all(r.bytes_in > 0 for r in view.rounds)
    (tmp_path / "cut").mkdir()
    async with open_hub(tmp_path / "cut") as hub:
        nodes = [Node(hub, site, packing) for site in "abc"]
        for node in nodes:
            await node.advertise()
        job = await settled(hub)
        for _ in range(3):  # init by one site, then all of round 1, then one of round 2
            for node in nodes:
                for lease in await node.poll(0.3):
                    if lease.task.round < 2 or node.site == "a":
                        await node.work(lease)
        assert (await hub.engine.reading.view(job)).round == 2
    async with open_hub(tmp_path / "cut") as hub:
        async with serving(*(Node(hub, site, packing) for site in "abc")):
            assert (await hub.until(job, "done", "failed")).state == "done"
        found = await hub.model(job, 3)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


async def test_an_update_that_cannot_be_unpacked_is_its_site_s_alone(tmp_path: Path) -> None:
    def broken(site: str, task: Task, model: Weights) -> Outcome:
        parts, count, metrics = packing(site, task, model)
        if site == "b" and task.kind != "init":
            at = next(name for name in parts if name.endswith("/at") and parts[name].size > 1)
            parts = {**parts, at: parts[at][::-1].copy()}
        return parts, count, metrics

    async with open_hub(tmp_path) as hub:
        async with serving(*(Node(hub, site, broken) for site in "abc")):
            job = await hub.start(
                rounds=1, compress="int8+top-50%", min_sites=3, min_updates=2, grace=0.2
            )
            view = await hub.until(job, "done", "failed")
        assert view.state == "done", view.cause
        assert "not ascending" in view.rounds[-1].rejected["b"]
        assert view.rounds[-1].sites == ("a", "c")


async def test_a_clip_goes_on_from_what_the_last_version_says(tmp_path: Path) -> None:
    async def told(hub: Hub) -> float:
        """Return the clip that a site is told once all are there; none of them works."""
        nodes = [Node(hub, site, session="anew") for site in "abcd"]
        for node in nodes:
            await node.advertise()
        for _ in range(20):
            for node in nodes:
                for lease in await node.poll(0.1):
                    assert lease.task.privacy.dp is not None
                    return lease.task.privacy.dp.clip
        raise AssertionError("no site was given a lease")

    model: Weights = {"w": np.zeros(4, np.float32)}
    async with open_hub(tmp_path) as hub:
        base = await hub.put_frame(model)
        job = await hub.start(base=base, privacy=SHARES, rounds=5, min_sites=3, min_updates=3)
        assert await told(hub) == 2.0
        noted = {adaptive.CLIP: 3.0, adaptive.BELOW: 0.25}
        made = Version(
            id=f"{job}.1", job=job, round=1, digest=base, bytes=0, parent=None, study="heart",
            study_digest="", plan="", arguments={}, strategy=Strategy(), sites=(), records=0,
            metrics=noted, created=0.0, seconds=0.0, optimizer=None,
        )  # fmt: skip
        await hub.store.write(lambda db: modelversions.add(db, made))
    async with open_hub(tmp_path) as hub:
        await asyncio.sleep(0)
        assert await told(hub) == pytest.approx(3.0 * np.exp(-0.4 * (0.25 - 0.5)), rel=1e-15)
