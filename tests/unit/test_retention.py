"""Retention: what goes, what must never go, and what a cut leaves behind."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa
from hubkit import Hub, Node, first_model, open_hub, serving
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from consilia.core.round import JobState
from consilia.errors import Conflict, StorageError
from consilia.hub import audit, bases, modelversions, records, tables
from consilia.hub.blobs import Blobs, DiskBlobs
from consilia.hub.config import Retention
from consilia.hub.modelversions import Version
from consilia.hub.records import JobRecord
from consilia.hub.retention import DAY, SETTLE, Collector, Kept, given_up
from consilia.hub.store import Store
from consilia.wire import frames
from consilia.wire.people import Experiment, Strategy
from consilia.wire.v1 import Plan, Study, plan_digest, study_digest

STUDY = Study(name="s", purpose="p", sites=("a", "b"), tags=("t",))
PLAN = Plan(name="p", files={"plan.py": "PLAN = 1\n"}, entry="plan:PLAN")


# ---- the rule --------------------------------------------------------------------------------


def kept(*metrics: float | None) -> list[Kept]:
    return [Kept(f"j.{n}", n, f"d{n}", metric) for n, metric in enumerate(metrics)]


def rounds(versions: Iterable[Kept]) -> list[int]:
    return sorted(v.round for v in versions)


def test_the_last_and_the_best_stay() -> None:
    versions = kept(None, 0.1, 0.5, 0.2, 0.3)
    assert rounds(given_up(versions, 2, lowest=True)) == [0, 2]
    assert rounds(given_up(versions, 2, lowest=False)) == [0, 1]
    assert rounds(given_up(versions, 5, lowest=True)) == []
    assert rounds(given_up(versions, 4, lowest=True)) == [0]


def test_of_equal_ones_the_newest_is_best() -> None:
    assert rounds(given_up(kept(0.1, 0.1, 0.9, 0.9), 1, lowest=True)) == [0, 2]


def test_nan_and_what_was_not_measured_are_never_best() -> None:
    assert rounds(given_up(kept(float("nan"), None, 0.9, 0.8, 0.7), 1, lowest=True)) == [
        0,
        1,
        2,
        3,
    ]


@given(st.lists(st.one_of(st.none(), st.floats()), min_size=1, max_size=30), st.integers(1, 40))
def test_the_newest_always_stays(metrics: list[float | None], last: int) -> None:
    versions = kept(*metrics)
    gone = given_up(versions, last, lowest=True)
    assert versions[-1] not in gone
    assert len(gone) >= len(versions) - last - 1
    assert not {v.round for v in gone} & set(range(len(versions) - last, len(versions)))


# ---- a hub's database and files --------------------------------------------------------------


@dataclass
class Place:
    """A store, frames on disk, and a clock that tests move."""

    store: Store
    blobs: Blobs
    at: list[float] = field(default_factory=lambda: [1_000_000.0])

    def collector(self, rule: Retention) -> Collector:
        return Collector(self.store, self.blobs, rule, lambda: self.at[0])

    async def job(self, id: str, phase: str = "done", **fields: object) -> None:
        plain = {"study": "s", "plan": plan_digest(PLAN), "rounds": 9, **fields}
        experiment = msgspec.convert(plain, Experiment)
        record = JobRecord(id, experiment, study_digest(STUDY), "ada", self.at[0])
        await self.store.write(lambda db: records.add_job(db, record))
        await self.store.write(lambda db: _set_phase(db, id, phase))

    async def version(self, job: str, round: int, loss: float, optimizer: bool = False) -> str:
        made = Version(
            f"{job}.{round}", job, round, self.frame(f"{job}.{round}"), 1, None, "s",
            study_digest(STUDY), plan_digest(PLAN), {}, Strategy(), ("a", "b"), 2,
            {"loss": loss}, self.at[0],
            optimizer=self.frame(f"{job}.{round}.opt") if optimizer else None,
        )  # fmt: skip
        await self.store.write(lambda db: modelversions.add(db, made))
        return made.digest

    def frame(self, seed: str) -> str:
        """Store a frame that only `seed` has and return its digest."""
        with self.blobs.open_spool("t") as spool:
            values = np.frombuffer(seed.encode().ljust(64, b"."), np.uint8)
            header = frames.write(spool.fd, {"w": values.astype(np.float32)})
        self.blobs.adopt("t", header.digest)
        return header.digest

    def there(self) -> set[str]:
        return set(self.blobs.blobs())

    async def lines(self, action: str) -> list[str]:
        found = await self.store.read(lambda db: list(audit.lines(db)))
        return [entry.line.subject for entry in found if entry.line.action == action]

    async def marked(self) -> set[str]:
        v = tables.versions.c
        query = sa.select(v.id).where(v.deleted.is_not(None))
        return set(await self.store.read(lambda db: db.execute(query).scalars().all()))


def _set_phase(db: Connection, id: str, phase: str) -> None:
    db.execute(sa.update(tables.jobs).where(tables.jobs.c.id == id).values(phase=phase))


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    store = Store.open(tmp_path / "hub.sqlite")
    blobs = DiskBlobs(tmp_path, reserve=0)

    def fill(db: Connection) -> None:
        records.add_study(db, STUDY, "ada", 0.0)
        records.submit_study(db, "s", 0.0)
        records.add_plan(db, PLAN, "s", "ada", 0.0)

    await store.write(fill)
    yield Place(store, blobs)
    await asyncio.to_thread(store.close)
    blobs.close()


async def settled(place: Place, collector: Collector) -> Sequence[str]:
    """Sweep, let SETTLE pass, sweep again; return the files that went."""
    await collector.sweep()
    place.at[0] += SETTLE
    return (await collector.sweep()).files


async def test_without_a_rule_every_version_stays(place: Place) -> None:
    await place.job("job-1")
    digests = {await place.version("job-1", n, 1.0) for n in range(5)}
    assert await settled(place, place.collector(Retention())) == ()
    assert place.there() == digests
    assert await place.marked() == set()


async def test_versions_go_with_an_audit_line_and_stay_on_record(place: Place) -> None:
    await place.job("job-1")
    digests = [await place.version("job-1", n, loss) for n, loss in enumerate((3, 1, 2, 5, 4))]
    collector = place.collector(Retention(versions=2))
    swept = await collector.sweep()
    assert set(swept.versions) == {"job-1.0", "job-1.2"}  # 1 is the best
    assert place.there() == set(digests)  # not yet
    assert await place.lines("frame.delete") == ["job-1.2", "job-1.0"]
    place.at[0] += SETTLE - 1
    assert (await collector.sweep()).files == ()
    place.at[0] += 1
    assert set((await collector.sweep()).files) == {digests[0], digests[2]}
    assert place.there() == {digests[1], digests[3], digests[4]}
    assert len(await place.lines("frame.delete")) == 2  # no second line for the file
    page = await place.store.read(lambda db: modelversions.page(db, job="job-1"))
    assert [v.deleted is not None for v in page.items] == [False, False, True, False, True]
    place.at[0] += DAY
    assert await collector.sweep() == replace(swept, versions=(), files=())


async def test_each_job_for_itself_and_as_few_as_it_asks_for(place: Place) -> None:
    for job, wish in (("job-1", None), ("job-2", 1), ("job-3", 3)):
        await place.job(job, keep=wish)
        for n in range(4):
            await place.version(job, n, float(n))
    await place.collector(Retention(versions=2, best="")).sweep()
    assert await place.marked() == {
        *("job-1.0", "job-1.1"),
        *("job-2.0", "job-2.1", "job-2.2"),
        *("job-3.0", "job-3.1"),  # more than the hub's rule nobody gets
    }


async def test_an_experiment_may_ask_where_the_hub_keeps_all(place: Place) -> None:
    await place.job("job-1")
    await place.job("job-2", keep=1, arguments={"keep": 7})
    for job in ("job-1", "job-2"):
        for n in range(3):
            await place.version(job, n, 0.0)
    await place.collector(Retention(best="")).sweep()
    assert await place.marked() == {"job-2.0", "job-2.1"}


async def test_what_any_job_started_from_stays(place: Place) -> None:
    await place.job("job-1")
    digests = [await place.version("job-1", n, 9.0 - n) for n in range(4)]
    await place.job("job-2", base="job-1.0")
    await place.job("job-3", base=digests[1])
    assert await settled(place, place.collector(Retention(versions=1))) == (digests[2],)
    assert await place.marked() == {"job-1.2"}


async def test_the_optimizer_state_of_the_newest_stays_and_older_ones_go(place: Place) -> None:
    await place.job("job-1", "stopped")
    for n in range(3):
        await place.version("job-1", n, 0.0, optimizer=True)
    v = tables.versions.c
    older = sa.update(tables.versions).where(v.round < 2).values(optimizer=None)
    await place.store.write(lambda db: db.execute(older).rowcount)
    gone = await settled(place, place.collector(Retention()))
    assert set(gone) == {place.frame("job-1.0.opt"), place.frame("job-1.1.opt")}
    assert len(await place.lines("frame.delete")) == 2


async def test_a_job_that_may_go_back_keeps_all_until_it_is_done(place: Place) -> None:
    watched = {"rollback": True}
    for job, phase in (("job-1", "stopped"), ("job-2", "done")):
        await place.job(job, phase, watch=watched)
        for n in range(3):
            await place.version(job, n, 0.0)
    await place.collector(Retention(versions=1, best="")).sweep()
    assert await place.marked() == {"job-2.0", "job-2.1"}


async def test_a_file_that_is_referred_to_in_time_stays(place: Place) -> None:
    """As that of a close whose row is written only later."""
    await place.job("job-1")
    place.frame("job-1.0")
    collector = place.collector(Retention())
    await collector.sweep()
    place.at[0] += SETTLE / 2
    digest = await place.version("job-1", 0, 0.0)
    place.at[0] += SETTLE
    assert (await collector.sweep()).files == ()
    assert place.there() == {digest}


async def test_what_a_failed_sweep_suspected_is_not_held_against_it(
    place: Place, tmp_path: Path
) -> None:
    loose, disk = place.frame("loose"), _Refusing(tmp_path, reserve=0)
    collector = Collector(place.store, disk, Retention(), lambda: place.at[0])
    await collector.sweep()
    disk.refuse = True
    with pytest.raises(StorageError):
        await collector.sweep()
    disk.refuse = False
    place.at[0] += SETTLE
    assert (await collector.sweep()).files == ()  # it counts anew
    assert await settled(place, collector) == (loose,)


async def test_a_marked_base_cannot_be_started_from(place: Place) -> None:
    await place.job("job-1")
    first = await place.version("job-1", 0, 5.0)
    await place.version("job-1", 1, 1.0)
    await place.collector(Retention(versions=1)).sweep()
    for base in ("job-1.0", first):
        with pytest.raises(Conflict, match="deleted by the hub's retention rule"):
            await place.job(f"job-{base[-5:]}", base=base)
    await place.job("job-9", base="job-1.1")


async def test_a_job_that_was_just_quick_enough_gets_its_base_back(place: Place) -> None:
    """Its check saw the frame, the mark came before its row was written."""
    await place.job("job-1")
    first = await place.version("job-1", 0, 5.0)
    await place.version("job-1", 1, 1.0)
    await place.job("job-2", base="job-1.0")
    v = tables.versions.c
    mark = sa.update(tables.versions).where(v.id == "job-1.0").values(deleted=place.at[0])
    await place.store.write(lambda db: db.execute(mark).rowcount)
    assert await settled(place, place.collector(Retention(versions=1))) == ()
    assert first in place.there()
    assert await place.marked() == set()
    assert await place.lines("frame.restore") == ["job-1.0"]


async def test_unused_uploads_go_when_they_are_old(place: Place) -> None:
    used, idle = place.frame("used"), place.frame("idle")

    def sent(db: Connection) -> None:
        bases.add_upload(db, used, "ada", 10, place.at[0])
        bases.add_upload(db, idle, "ada", 20, place.at[0])
        bases.add_upload(db, idle, "bob", 20, place.at[0] + DAY)

    await place.store.write(sent)
    await place.job("job-1", base=used)
    collector = place.collector(Retention(upload_days=2))
    place.at[0] += 2 * DAY
    assert (await collector.sweep()).uploads == ()
    place.at[0] += 1
    assert (await collector.sweep()).uploads == (idle,)  # ada's; bob's is newer
    assert await place.store.read(lambda db: bases.uploaded_bytes(db, "ada")) == 10
    assert await settled(place, collector) == ()
    place.at[0] += DAY
    assert (await collector.sweep()).uploads == (idle,)
    place.at[0] += SETTLE
    assert (await collector.sweep()).files == (idle,)
    assert place.there() == {used}


class _Cut(BaseException):
    """The process ends here."""


class _Cutting(DiskBlobs):
    """Frames whose deletion ends the process at the n-th file."""

    left = 1

    def delete(self, digest: str) -> bool:
        if not self.left:
            raise _Cut
        self.left -= 1
        return super().delete(digest)


class _Refusing(DiskBlobs):
    """Frames on a disk that can be made to refuse."""

    refuse = False

    def blobs(self) -> dict[str, int]:
        if self.refuse:
            raise StorageError("the disk refuses")
        return super().blobs()


@pytest.mark.parametrize("files", range(4))
async def test_a_cut_between_two_deletions_leaves_the_rest_for_later(
    place: Place, tmp_path: Path, files: int
) -> None:
    await place.job("job-1")
    digests = [await place.version("job-1", n, float(n)) for n in range(5)]
    cutting = _Cutting(tmp_path, reserve=0)
    cutting.left = files
    rule = Retention(versions=1, best="")
    first = Collector(place.store, cutting, rule, lambda: place.at[0])
    await first.sweep()
    place.at[0] += SETTLE
    with pytest.raises(_Cut):
        await first.sweep()
    assert len(place.there()) == 5 - files
    assert await settled(place, place.collector(rule))
    assert place.there() == {digests[4]}
    assert len(await place.lines("frame.delete")) == 4


# ---- with live jobs --------------------------------------------------------------------------


def live_collector(hub: Hub, at: list[float]) -> Collector:
    def state(id: str) -> JobState | None:
        job = hub.engine.job(id)
        return None if job is None else job.state

    rule = Retention(versions=1, best="")
    return Collector(hub.store, hub.blobs, rule, lambda: at[0], live=state)


async def test_a_job_stops_is_swept_and_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    fields = {"seed": 3, "deterministic": True, "strategy": {"name": "fedadam", "options": {}}}
    finals: list[bytes] = []
    for swept in (False, True):
        async with open_hub(tmp_path / str(swept)) as hub:
            at = [1e9]
            collector = live_collector(hub, at)
            async with serving(*(Node(hub, site) for site in hub.study.sites)):
                job = await hub.start(rounds=4, **fields)
                await hub.until(job, "done")
                if swept:
                    await collector.sweep()
                    at[0] += SETTLE
                    assert len((await collector.sweep()).files) >= 4
                await hub.engine.resume(job, 6, "ada")
                await hub.until(job, "done")
            finals.append((await hub.model(job, 6))["w"].tobytes())
    assert finals[0] == finals[1]


async def test_a_job_that_does_the_same_does_not_take_anothers_state(tmp_path: Path) -> None:
    """Equal states have one digest, and the first job goes on from what the second had."""
    same = {"seed": 3, "deterministic": True, "strategy": {"name": "fedadam", "options": {}}}
    async with open_hub(tmp_path) as hub:
        async with serving(*(Node(hub, site) for site in hub.study.sites)):
            first = await hub.start(rounds=2, **same)
            await hub.until(first, "done")
            second = await hub.start(rounds=4, **same)
            await hub.until(second, "done")
            await hub.engine.resume(first, 4, "ada")
            view = await hub.until(first, "done", "failed")
        assert view.state == "done", view.cause
        models = [(await hub.model(job, 4))["w"].tobytes() for job in (first, second)]
    assert models[0] == models[1]


async def test_sweeping_while_rounds_run_breaks_none(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        at = [1e9]
        collector = live_collector(hub, at)
        base = await hub.put_frame(first_model(5))
        async with serving(*(Node(hub, site) for site in hub.study.sites)):
            job = await hub.start(rounds=12, base=base, strategy={"name": "fedyogi"})
            while (await hub.engine.reading.view(job)).state != "done":
                await collector.sweep()
                at[0] += SETTLE
                await asyncio.sleep(0.01)
        view = await hub.until(job, "done")
        assert view.round == 12
        assert base in hub.blobs.blobs()
