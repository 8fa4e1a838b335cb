"""Whole jobs with a site that poisons its updates: what the mean does, what the rules do."""

import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hubkit import Hub, Node, Outcome, Train, body_of, open_hub, serving

from consilia.algo.robust import rule
from consilia.algo.strategy import strategy
from consilia.core.events import Close, Lease
from consilia.core.select import site_seed
from consilia.core.weights import Array, Weights
from consilia.errors import ConfigError, EmptyRound
from consilia.hub import audit, closing, experiments, modelversions, watching
from consilia.hub.blobs import MemoryBlobs
from consilia.hub.combining import Choice
from consilia.hub.folding import Aggregate, Recipe, Update
from consilia.wire import frames
from consilia.wire.people import JobView
from consilia.wire.v1 import Task

SEVEN = tuple("abcdefg")
OPTIONS: Mapping[str, dict[str, float]] = {"krum": {"f": 1}, "multi-krum": {"f": 1}}
ROBUST = ("median", "trimmed-mean", "krum", "multi-krum", "geometric-median")
GOAL = 3.0


def honest(site: str, task: Task, model: Weights) -> Outcome:
    """Go half of the way to GOAL, a little differently at each site."""
    if task.kind == "init":
        start: Weights = {"w": np.zeros((90, 1000), np.float32), "n": np.zeros(3, np.int64)}
        return {**start, "b": np.zeros(4)}, 0, {}
    noise = np.random.default_rng(site_seed(task.seed, 0, site))
    new: Weights = {"n": model["n"] + 1}
    for name in ("w", "b"):
        old = model[name].astype(np.float64)
        moved = old + 0.5 * (GOAL - old) + noise.normal(size=old.shape) * 0.01
        new[name] = moved.astype(model[name].dtype)
    gap = float(np.abs(GOAL - model["w"].astype(np.float64)).mean())
    return {name: new[name] for name in model}, 100, {"loss": gap}


def off_goal(tensor: Array) -> float:
    """Return how far the furthest value is from GOAL."""
    return float(np.abs(tensor.astype(np.float64) - GOAL).max())


def pushed(site: str, task: Task, model: Weights, amount: float) -> Outcome:
    """Return honest training with `amount` added to every value of w."""
    new, count, metrics = honest(site, task, model)
    new["w"] = (new["w"].astype(np.float64) + amount).astype(np.float32)
    return new, count, metrics


def poisoned(bad: str, how: Callable[[Weights, Task], Outcome], since: int = 1) -> Train:
    """Return training in which one site returns what `how` makes of the model."""

    def train(site: str, task: Task, model: Weights) -> Outcome:
        if site == bad and task.kind == "train" and task.round >= since:
            return how(model, task)
        return honest(site, task, model)

    return train


def huge(model: Weights, task: Task) -> Outcome:
    """The worst that is finite, with a made-up loss."""
    new: Weights = {
        "w": np.full((90, 1000), 3e38, np.float32),
        "n": np.full(3, (1 << 63) - 1, np.int64),
        "b": np.full(4, -1.7e308),
    }
    return new, 100, {"loss": -1e9}


def turned(model: Weights, task: Task) -> Outcome:
    """Three times the honest step, the other way."""
    new, count, metrics = honest("x", task, model)
    for name in ("w", "b"):
        old = model[name].astype(np.float64)
        step = new[name].astype(np.float64) - old
        new[name] = (old - 3.0 * step).astype(model[name].dtype)
    return new, count, metrics


async def run(
    hub: Hub, train: Train, sites: Sequence[str] = SEVEN, **fields: object
) -> tuple[str, JobView]:
    """Run a job of all sites; its view is read before the first round, and to the end."""
    usual = {"min_sites": len(sites), "min_updates": len(sites), "rounds": 6}
    job = await hub.start(**{**usual, "privacy": {"aggregation": "plain"}, **fields})
    await hub.engine.reading.view(job)
    async with serving(*(Node(hub, site, train, records=100) for site in sites)):
        return job, await hub.until(job, "done", "failed")


async def versions_of(hub: Hub, job: str) -> tuple[modelversions.Version, ...]:
    return await hub.store.read(lambda db: modelversions.of_job(db, job))


@pytest.mark.parametrize("how", [huge, turned])
@pytest.mark.parametrize("name", ROBUST)
async def test_one_bad_site_of_seven_cannot_keep_the_others_from_the_goal(
    tmp_path: Path, name: str, how: Callable[[Weights, Task], Outcome]
) -> None:
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        chosen = {"name": name, "options": OPTIONS.get(name, {})}
        job, view = await run(hub, poisoned("c", how), aggregate=chosen)
        assert view.state == "done", view.cause
        model = await hub.model(job, 6)
        assert [r.sites for r in view.rounds[1:]] == [SEVEN] * 6
    for tensor in ("w", "b"):
        assert off_goal(model[tensor]) < 0.3
    assert model["n"].tolist() == [6, 6, 6]


async def test_the_mean_follows_the_bad_site(tmp_path: Path) -> None:
    """What the rules above are for: the same attack, without them."""
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        job, view = await run(hub, poisoned("c", turned))
        assert view.state == "done"
        model = await hub.model(job, 6)
    # Six go half of the way, one one and a half times back: 3/14 of the way a round.
    expected = GOAL * (1 - (11 / 14) ** 6)
    assert float(model["w"].mean()) == pytest.approx(expected, abs=0.02)
    assert expected < GOAL - 0.6


async def test_the_median_of_a_round_is_the_median(tmp_path: Path) -> None:
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        job, _ = await run(
            hub, poisoned("c", huge), rounds=1, aggregate={"name": "median"}, seed=5
        )
        start, model = await hub.model(job, 0), await hub.model(job, 1)
    each = []
    for site in SEVEN:
        task = Task("train", "", 1, "", "", "", {}, (), "", site_seed(5, 1, site))
        each.append(poisoned("c", huge)(site, task, start)[0])
    for name in start:
        expected = np.median(np.stack([update[name].astype(np.float64) for update in each]), 0)
        np.testing.assert_array_equal(model[name], expected.astype(model[name].dtype))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ROBUST)
async def test_who_reports_first_does_not_change_a_bit(
    tmp_path: Path, name: str, deterministic: bool
) -> None:
    found = []
    for number, order in enumerate((SEVEN, SEVEN[::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with open_hub(folder, sites=SEVEN) as hub:
            chosen = {"name": name, "options": OPTIONS.get(name, {})}
            job, _ = await run(
                hub, honest, order, rounds=2, aggregate=chosen, deterministic=deterministic
            )
            found.append((await versions_of(hub, job))[2].digest)
    assert found[0] == found[1]


# ---- one round, without the road around it ---------------------------------------------------


def frame(blobs: MemoryBlobs, name: str, weights: Weights) -> str:
    """Store weights as a spool; return the frame's digest."""
    with blobs.open_spool(name) as spool:
        spool.append(body_of(weights))
        return frames.read_header(spool.fd).digest


def stored(blobs: MemoryBlobs, weights: Weights) -> str:
    digest = frame(blobs, "base", weights)
    blobs.adopt("base", digest)
    return digest


def recipe() -> Recipe:
    return Recipe(*strategy("fedavg", {}), None)


@pytest.fixture(scope="module")
def large() -> tuple[MemoryBlobs, str, tuple[Update, ...]]:
    """A model of 16 MB and the updates of twelve sites, in memory."""
    blobs, rng = MemoryBlobs(), np.random.default_rng(0)

    def weights() -> Weights:
        return {f"t{i}": rng.random(500_000, np.float32) for i in range(8)}

    base = stored(blobs, weights())
    names = (f"s{i}" for i in range(12))
    return (
        blobs,
        base,
        tuple(
            Update(site, f"u{site}", frame(blobs, f"u{site}", weights()), 10) for site in names
        ),
    )


@pytest.mark.parametrize("name", ROBUST)
def test_memory_is_pieces_and_one_tensor_however_many_sites(
    name: str, large: tuple[MemoryBlobs, str, tuple[Update, ...]]
) -> None:
    blobs, base, updates = large
    aggregate = Aggregate(blobs, base)
    chosen = Choice(*rule(name, OPTIONS.get(name, {})))
    tracemalloc.start()
    aggregate.combine(f"close.{name}.1.0", 1, updates, recipe(), chosen)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 12 pieces of 256 KiB, as they are and as float64, and a tensor of 2 MB. The model has 16.
    assert peak < 14 << 20


def test_tensors_left_out_as_unchanged_take_part() -> None:
    blobs = MemoryBlobs()
    base: Weights = {"w": np.arange(5, dtype=np.float32), "v": np.ones(3, np.float32)}
    aggregate = Aggregate(blobs, stored(blobs, base))
    updates = []
    for i, shift in enumerate((0.0, 1.0, 5.0)):
        new: Weights = {"w": np.arange(5, dtype=np.float32) + np.float32(shift)}
        new["v"] = base["v"]
        name = f"u{i}"
        with blobs.open_spool(name) as spool:
            known = {e.digest for e in aggregate.header.entries}
            header = frames.write(spool.fd, new, known)
        updates.append(Update(f"s{i}", name, header.digest, 1))
    made = aggregate.combine("close.j.1.0", 1, updates, recipe(), Choice(*rule("median", {})))
    with blobs.open(made.header.digest) as blob:
        found = frames.read(blob.fd)
    np.testing.assert_array_equal(found["w"], np.arange(5) + 1.0)
    np.testing.assert_array_equal(found["v"], base["v"])
    with pytest.raises(EmptyRound, match="needs at least 3"):
        aggregate.combine("close.j.1.1", 1, updates[:2], recipe(), Choice(*rule("median", {})))


# ---- alarms and going back -------------------------------------------------------------------

WATCH = {"rollback": True, "rounds": 2}


async def test_a_poisoned_round_is_thrown_away_and_the_job_goes_on(tmp_path: Path) -> None:
    def once(model: Weights, task: Task) -> Outcome:
        new, count, _ = pushed("c", task, model, 1e4 if task.round == 4 else 0.0)
        return new, count, {"loss": 0.0}

    async with open_hub(tmp_path, sites=SEVEN) as hub:
        job, view = await run(hub, poisoned("c", once), watch=WATCH, rounds=7)
        assert view.state == "done", view.cause
        versions = await versions_of(hub, job)
        model = await hub.model(job, 7)
    back = [v.round for v in versions if watching.BACK in v.metrics]
    assert back == [4]
    assert versions[4].digest == versions[3].digest and versions[4].parent == versions[3].id
    assert versions[5].parent == versions[4].id
    assert versions[4].metrics[watching.STEP] > 1e4
    assert off_goal(model["w"]) < 0.3


async def test_without_rollback_the_alarm_is_counted_and_the_model_stays(
    tmp_path: Path,
) -> None:
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        job, _ = await run(hub, poisoned("c", turned, since=2), watch={}, rounds=2)
        versions = await versions_of(hub, job)
    assert modelversions.ALARMS not in versions[1].metrics
    assert versions[2].metrics[modelversions.ALARMS] == 1.0
    assert watching.BACK not in versions[2].metrics
    assert versions[2].digest != versions[1].digest


async def test_the_optimizer_goes_back_with_the_model(tmp_path: Path) -> None:
    """With momentum: a round that led back leaves the state as if it had never been."""

    def wild(model: Weights, task: Task) -> Outcome:
        return pushed("c", task, model, 1e4 if task.round == 3 else 0.0)

    chosen = {"name": "fedavgm", "options": {"momentum": 0.5}}
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        job, view = await run(hub, poisoned("c", wild), watch=WATCH, rounds=5, strategy=chosen)
        assert view.state == "done", view.cause
        versions = await versions_of(hub, job)
        model = await hub.model(job, 5)
        kept = {v.round: v.optimizer for v in versions if v.optimizer}
        assert list(kept) == [5]
        assert hub.blobs.size(kept[5]) is not None
    assert watching.BACK in versions[3].metrics
    x, m = 0.0, 0.0
    for _ in range(4):  # the third of five rounds does not count
        m = 0.5 * m + 0.5 * (GOAL - x)
        x += m
    assert float(model["w"].mean()) == pytest.approx(x, abs=0.02)


async def test_a_site_cannot_make_up_what_the_hub_notes(tmp_path: Path) -> None:
    def lying(model: Weights, task: Task) -> Outcome:
        new, count, _ = honest("c", task, model)
        return new, count, {"hub.back": 1.0, "hub.step": 0.0, "loss": -1e9}

    async with open_hub(tmp_path, sites=SEVEN) as hub:
        job, view = await run(hub, poisoned("c", lying), rounds=2)
        assert all(not name.startswith("hub.") for r in view.rounds for name in r.metrics)
        job, view = await run(hub, poisoned("c", lying), rounds=4, watch=WATCH)
        versions = await versions_of(hub, job)
    assert not any(watching.BACK in v.metrics for v in versions)
    assert all(v.metrics[watching.STEP] > 0.1 for v in versions[1:])
    assert all(v.metrics[watching.WATCHED] > 0 for v in versions[1:])


async def test_a_metric_that_rises_leads_back_past_the_rounds_it_rose_in(
    tmp_path: Path,
) -> None:
    def creeping(model: Weights, task: Task) -> Outcome:
        return pushed("c", task, model, 100.0)

    only_metric = {**WATCH, "jump": 1e9, "norm": 1e9, "cosine": -1.0}
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        job, _ = await run(hub, poisoned("c", creeping, since=3), watch=only_metric)
        versions = await versions_of(hub, job)
    # Rounds 4 and 5 report a worse loss than round 3, which started from the model of round 2.
    assert [v.round for v in versions if watching.BACK in v.metrics] == [5]
    assert versions[5].digest == versions[2].digest and versions[5].parent == versions[2].id
    assert versions[6].metrics["loss"] == pytest.approx(versions[3].metrics["loss"])


async def test_a_restarted_hub_knows_the_rounds_before_and_audits_its_alarms(
    tmp_path: Path,
) -> None:
    def late(model: Weights, task: Task) -> Outcome:
        return pushed("c", task, model, 1e4 if task.round == 5 else 0.0)

    async with open_hub(tmp_path, sites=SEVEN) as hub:
        job, _ = await run(hub, honest, watch={**WATCH, "norm": 1e9, "cosine": -1.0}, rounds=4)
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        await hub.engine.resume(job, 5, "ada")
        train = poisoned("c", late)
        async with serving(*(Node(hub, site, train, records=100) for site in SEVEN)):
            await hub.until(job, "done", "failed")
        versions = await versions_of(hub, job)
        entries = await hub.store.read(lambda db: list(audit.lines(db)))
    assert versions[5].digest == versions[4].digest and watching.BACK in versions[5].metrics
    alarms = [e.line for e in entries if e.line.action == "round.alarm"]
    assert {(line.subject, line.outcome) for line in alarms} == {(f"{job}.5", "back")}
    assert [line.detail.split(":")[0] for line in alarms] == ["step", "back to b3"]
    assert alarms[-1].detail.startswith(f"back to {versions[4].digest}; the model thrown away")


async def test_an_evaluation_of_the_received_model_leads_back_in_one_round(
    tmp_path: Path,
) -> None:
    """Canaries: every site judges what the hub made, on records that it does not train on."""

    def judging(site: str, task: Task, model: Weights) -> Outcome:
        amount = 100.0 if (site, task.round) == ("c", 4) else 0.0
        if task.kind == "init":
            return honest(site, task, model)
        new, count, _ = pushed(site, task, model, amount)
        gap = float(np.abs(GOAL - model["w"].astype(np.float64)).mean())
        return new, count, {"received_auc": 1 / (1 + gap), "loss": 0.0}

    watch = {
        "metric": "received_auc", "better": "higher", "factor": 1.1, "rounds": 1,
        "rollback": True, "jump": 1e9, "norm": 1e9, "cosine": -1.0,
    }  # fmt: skip
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        job, view = await run(hub, judging, watch=watch, rounds=6)
        assert view.state == "done", view.cause
        versions = await versions_of(hub, job)
        model = await hub.model(job, 6)
    # Round 4 makes the bad model; the sites say so in round 5, which goes back to round 3's.
    assert [v.round for v in versions if watching.BACK in v.metrics] == [5]
    assert versions[5].digest == versions[3].digest != versions[4].digest
    assert versions[5].alarms[0].startswith("metric: received_auc was")
    assert off_goal(model["w"]) < 0.5


async def test_people_see_alarms_in_the_rounds_and_the_events_but_no_sites_name(
    tmp_path: Path,
) -> None:
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        train = poisoned("c", lambda model, task: pushed("c", task, model, 1e4), since=4)
        job, view = await run(hub, train, watch=WATCH, rounds=4)
        events = (await hub.engine.reading.events(job, 0)).items
        lines = [e.line for e in await hub.store.read(lambda db: list(audit.lines(db)))]
    closed = {e.body["round"]: e.body["alarms"] for e in events if e.type == "Closed"}
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        again = await hub.engine.reading.view(job)
    assert [r.alarms for r in again.rounds] == [r.alarms for r in view.rounds]
    assert [len(r.alarms) for r in again.rounds] == [0, 0, 0, 0, 3]
    step, norm, back = again.rounds[4].alarms
    assert step.startswith("step: the model moved by") and back.startswith(
        "back to the model b3:"
    )
    assert norm == "norm: a site's update is far longer than the others'; the audit names it"
    assert closed[4] == list(again.rounds[4].alarms) and closed[3] == []
    audited = [line.detail for line in lines if line.action == "round.alarm"]
    assert any("the update of site 'c' is" in detail for detail in audited)


async def test_alarms_stand_in_the_audit(tmp_path: Path) -> None:
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        job, _ = await run(hub, honest, rounds=1)
        made = (await versions_of(hub, job))[1]
        again = replace(made, id=f"{job}.2", round=2, metrics={watching.BACK: 1.0})
        texts = ("norm: too long", "back to b3:1")
        command = Close(2, "train", ())
        await hub.store.write(lambda db: closing.enter(db, again, command, texts))
        entries = await hub.store.read(lambda db: list(audit.lines(db)))
    alarms = [entry.line for entry in entries if entry.line.action == "round.alarm"]
    assert [(line.subject, line.outcome, line.detail) for line in alarms] == [
        (f"{job}.2", "back", text) for text in texts
    ]


# ---- what may be chosen ----------------------------------------------------------------------


async def problems(hub: Hub, **fields: object) -> list[str]:
    usual: dict[str, object] = {"privacy": {"aggregation": "plain"}, "min_updates": 5}
    experiment = hub.experiment(**{**usual, **fields})
    return [str(problem) for problem in experiments.problems(experiment)]


async def test_what_may_be_chosen(tmp_path: Path) -> None:
    async with open_hub(tmp_path, sites=SEVEN) as hub:
        for name in ROBUST:
            assert not await problems(hub, aggregate={"name": name})
        (said,) = await problems(hub, aggregate={"name": "medina"})
        assert "did you mean 'median'" in said
        (said,) = await problems(hub, aggregate={"name": "krum", "options": {"f": 2}})
        assert said == "min_updates: found 5, needed at least 7 for krum"
        for how in ("secure", "ckks"):
            said = "; ".join(
                await problems(hub, aggregate={"name": "krum"}, privacy={"aggregation": how})
            )
            assert f"krum with privacy.aggregation '{how}'" in said
            assert "a masked update shows nothing to compare" in said
        (said,) = await problems(hub, aggregate={"name": "krum"}, privacy=None)
        assert "'left open'" in said
        assert not await problems(hub, aggregate={"name": "mean"}, privacy=None)
        (said,) = await problems(hub, watch={"factor": 0.5})
        assert "watch.factor is 0.5, needs to be above 1" in said
        with pytest.raises(ConfigError, match="did you mean"):
            await hub.start(aggregate={"name": "krumm"})


def test_the_watched_metric_is_what_most_sites_say() -> None:
    def leases(*values: float) -> list[Lease]:
        each = ({"loss": value} for value in values)
        return [Lease(f"l{i}", f"s{i}", "accepted", metrics=m) for i, m in enumerate(each)]

    nan = float("nan")
    assert watching.observed("loss", leases(1.0, 2.0, -1e9), None) == 1.0
    assert watching.observed("loss", leases(1.0, 2.0, nan), None) == 1.5
    assert np.isnan(watching.observed("loss", leases(1.0, nan), None) or 0.0)
    assert watching.observed("auc", leases(1.0), None) is None
    assert watching.observed("loss", leases(1.0), {"loss": 7.0}) == 7.0
