"""Steering at the hub: pause, going back, evaluations; each outlives the hub."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hubkit import SITES, Hub, Node, open_hub, serving

from consilia.core.round import RolledBack
from consilia.errors import ConfigError, Conflict, NotFound
from consilia.hub import assessing, journal, modelversions
from consilia.wire.people import EvaluationView, JobView
from consilia.wire.v1 import Declined, Evaluated, Lease, Measure, Result, Verdict

STEADY = {"deterministic": True, "min_sites": 4, "min_updates": 4, "seed": 5}


@dataclass
class Judge(Node):
    """A node that evaluates too: a site whose name is "d" has no hold-out."""

    aucs: dict[int, float] = field(default_factory=dict)  # by round; 0.8 for others

    async def work(self, lease: Lease) -> Verdict:
        """Train, or tell what an evaluation has found."""
        task = lease.task
        if task.kind != "evaluate":
            return await super().work(lease)
        assert task.privacy.aggregation == "plain"
        assert task.model is not None
        await asyncio.to_thread(self.download, task.model)
        report: Result | Declined = Declined(lease.id, "no hold-out")
        if self.site != "d":
            value = self.aucs.get(task.round, 0.8)
            measures = {"auc": Measure(value, 0.1, 20), "accuracy": Measure(value, 0.1, 20)}
            local = task.evaluation is not None and task.evaluation.local > 0
            gain = {"auc": Measure(0.1, 0.05, 20)} if local else {}
            found = Evaluated("probability", 20, measures, gain=gain)
            report = Result(
                lease.id, task.job, task.round, None, 20, {}, 0.1, self.changed(found)
            )
        verdict = await self.report(report)
        self.verdicts.append(verdict)
        self.running.remove(lease.id)
        return verdict

    def changed(self, found: Evaluated) -> Evaluated:
        """Say what it has found."""
        return found


def nodes(hub: Hub, aucs: dict[int, float] | None = None) -> list[Judge]:
    """Return a node for each site."""
    return [Judge(hub, site, aucs=aucs or {}) for site in SITES]


async def told(hub: Hub, job: str) -> tuple[EvaluationView, ...]:
    """Return a job's evaluations."""
    return await hub.store.read(lambda db: assessing.of_job(db, job))


async def closed(hub: Hub, job: str, round: int) -> JobView:
    """Return the job once a round is closed."""
    while True:
        view = await hub.engine.reading.view(job)
        if any(r.round == round for r in view.rounds):
            return view
        await asyncio.sleep(0.005)


async def test_a_paused_job_goes_on_to_the_same_bits_after_the_hub_was_killed(
    tmp_path: Path,
) -> None:
    async with open_hub(tmp_path / "whole") as hub:
        async with serving(*nodes(hub)):
            job = await hub.start(rounds=4, **STEADY)
            await hub.until(job, "done")
        straight = await hub.model(job, 4)
    async with open_hub(tmp_path / "paused") as hub:
        async with serving(*nodes(hub)):
            job = await hub.start(rounds=4, **STEADY)
            await closed(hub, job, 1)
            await hub.engine.pause(job, "ada")
            view = await hub.until(job, "paused", "done")
            assert view.state == "paused"
            assert view.cause == "paused by ada"
            rounds = len(view.rounds)
            await asyncio.sleep(0.05)
            assert len((await hub.engine.reading.view(job)).rounds) == rounds < 5
            with pytest.raises(Conflict, match="is paused: there is nothing to pause"):
                await hub.engine.pause(job, "ada")
        await hub.engine.close()  # nothing is written down on the way out
    async with open_hub(tmp_path / "paused") as hub:
        assert (await hub.engine.reading.view(job)).state == "paused"
        async with serving(*nodes(hub)):
            await hub.engine.change(job, {}, "ada")
            await hub.engine.resume(job, None, "ada")
            await hub.until(job, "done")
        again = await hub.model(job, 4)
    for name, tensor in straight.items():
        np.testing.assert_array_equal(again[name], tensor)


async def test_going_back_starts_from_the_old_model_and_counts_on(tmp_path: Path) -> None:
    momentum = {"strategy": {"name": "fedavgm", "options": {}}, **STEADY}
    async with open_hub(tmp_path) as hub:
        async with serving(*nodes(hub)):
            job = await hub.start(rounds=3, **momentum)
            await hub.until(job, "done")
            with pytest.raises(NotFound, match=r"\.7"):
                await hub.engine.roll_back(job, 7, "ada")
            await hub.engine.roll_back(job, 1, "ada")
        events = await hub.store.read(lambda db: journal.replay(db, job))
        assert isinstance(events[-1][1], RolledBack)
    async with open_hub(tmp_path) as hub, serving(*(ready := nodes(hub))):
        await hub.engine.resume(job, 4, "ada")
        view = await hub.until(job, "done")
        versions = await hub.store.read(lambda db: modelversions.of_job(db, job))
        assert [v.round for v in versions] == [0, 1, 2, 3, 4]
        assert versions[-1].parent == f"{job}.1"
        assert view.rounds[-1].round == 4
        given = [le.task.model for n in ready for le in n.seen if le.task.round == 4]
        assert set(given) == {versions[1].digest}
        # what momentum remembered is gone: the step is that of a first round, from model 1
        other = await hub.start(rounds=1, base=f"{job}.1", **momentum)
        await hub.until(other, "done")
        with pytest.raises(Conflict, match="pause or stop it before it goes back"):
            busy = await hub.start(rounds=500, **momentum)
            await closed(hub, busy, 1)
            await hub.engine.roll_back(busy, 1, "ada")


async def test_models_are_evaluated_while_they_are_trained(tmp_path: Path) -> None:
    wanted = {"every": 2, "benefit": True, "subgroups": {"sex": ["F", "M"], "age": [40, 60]}}
    async with open_hub(tmp_path) as hub, serving(*(ready := nodes(hub))):
        job = await hub.start(rounds=3, evaluate=wanted, **STEADY)
        view = await hub.until(job, "done", "failed")
        assert view.state == "done", view.cause
        first, last = await told(hub, job)
    assert (first.round, last.round) == (2, 3)
    assert last.model == f"{job}.3"
    assert set(last.sites) == {"a", "b", "c"}
    assert last.without == {"d": "declined: no hold-out"}
    pooled = last.pooled["accuracy"]
    assert pooled.value == pytest.approx(0.8)
    assert (pooled.sites, pooled.records) == (3, 60)
    assert pooled.method == "all records"
    assert 0.68 < pooled.low < 0.8 < pooled.high < 0.92
    asked = [le.task for n in ready for le in n.seen if le.task.kind == "evaluate"]
    assert {t.evaluation.local for t in asked if t.evaluation} == {0, 3}
    (sex, age) = asked[0].evaluation.subgroups if asked[0].evaluation else ()
    assert (sex.levels, age.cuts) == (("F", "M"), (40.0, 60.0))
    metrics = {r.round: r.metrics for r in view.rounds}
    assert "holdout_auc" not in metrics[1]
    assert metrics[2]["holdout_auc"] == pytest.approx(0.8)
    assert "loss" in metrics[2]


async def test_a_model_is_evaluated_afterwards_at_a_named_site(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, serving(*(ready := nodes(hub))):
        job = await hub.start(rounds=2, sites=["a", "b", "d"], min_sites=2)
        view = await hub.until(job, "done")
        assert {site for r in view.rounds for site in r.sites} == {"a", "b", "d"}
        judged = await hub.start(rounds=0, base=f"{job}.1", evaluate={"at": ["c"]})
        view = await hub.until(judged, "done", "failed")
        assert view.state == "done", view.cause
        (found,) = await told(hub, judged)
        assert (found.model, set(found.sites)) == (f"{job}.1", {"c"})
        trained = [n.site for n in ready for le in n.seen if le.task.kind == "train"]
        assert "c" not in trained


async def test_training_ends_when_hold_outs_get_no_better(tmp_path: Path) -> None:
    aucs = {1: 0.6, 2: 0.7, 3: 0.69, 4: 0.68, 5: 0.9}
    stop = {"metric": "holdout_auc", "better": "higher", "rounds": 2}
    async with open_hub(tmp_path) as hub, serving(*nodes(hub, aucs=aucs)):
        job = await hub.start(rounds=9, evaluate={"every": 1}, early_stop=stop, **STEADY)
        view = await hub.until(job, "done", "failed")
    assert view.round == 4
    assert "holdout_auc was best, 0.7, 2 rounds before" in view.cause


async def test_an_answer_that_was_not_asked_for_is_rejected(tmp_path: Path) -> None:
    class Liar(Judge):
        def changed(self, found: Evaluated) -> Evaluated:
            lies: dict[str, dict[str, Any]] = {
                "a": {"measures": {"patients": Measure(1.0, 0.1, 20)}},
                "b": {"measures": {"auc": Measure(float("nan"), 0.1, 20)}},
                "c": {"records": 0},
            }
            return msgspec.structs.replace(found, **lies[self.site])

    async with open_hub(tmp_path) as hub, serving(*(Liar(hub, site) for site in SITES)):
        job = await hub.start(rounds=1, evaluate={}, **STEADY)
        view = await hub.until(job, "done", "failed")
        assert view.state == "failed"
        assert "evaluation of round 1: too few sites are left" in view.cause
        assert "a: rejected (it tells a metric 'patients'" in view.cause
        assert "b: rejected (metric 'auc' is nan" in view.cause
        assert await told(hub, job) == ()
        assert (await hub.engine.reading.view(job)).rounds[-1].round == 1  # the model is there


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rounds": 0}, "rounds: found 0, needed 1"),
        ({"evaluate": {"every": -1}}, "evaluate.every: found -1, needed 0 to"),
        ({"evaluate": {"at": ["z"]}}, "evaluate.at: found z, needed sites of the study"),
        ({"sites": ["a"]}, "sites: found 1, needed as many as min_sites"),
        ({"evaluate": {"subgroups": {"age": [60, 40]}}}, "rising cut points"),
        ({"evaluate": {"subgroups": {"sex": []}}}, "found 0 values"),
        (
            {"early_stop": {"metric": "holdout_auc"}},
            "early_stop.metric: found 'holdout_auc', needed evaluate: {every: 1}",
        ),
    ],
)
async def test_what_makes_no_sense_does_not_start(
    tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    async with open_hub(tmp_path) as hub:
        with pytest.raises(ConfigError) as caught:
            await hub.start(**fields)
    assert said in str(caught.value)
