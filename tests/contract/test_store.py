"""The law of the store on SQLite (file and memory) and PostgreSQL alike."""

import asyncio
import json
import math
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

import consilia
from consilia.core import round as core
from consilia.core.chain import Break
from consilia.errors import ConfigError, Conflict, NotFound, StorageError
from consilia.hub import audit, database, journal, modelversions, records, tables
from consilia.hub.modelversions import Version
from consilia.hub.paging import Page
from consilia.hub.records import JobRecord
from consilia.hub.store import Store
from consilia.wire.people import Experiment, Strategy
from consilia.wire.v1 import Plan, Study, plan_digest, study_digest

SOURCE = str(Path(consilia.__file__).parents[1])
PLAN = Plan("train", {"plan.py": "PLAN = 1\n"}, "plan:PLAN", ("numpy",), "a plan")
STUDY = Study("hearts", "why", ("a", "b"), ("cardio",), ethics="EC \u0000 \u2713")
DIGEST = plan_digest(PLAN)
FRAME = "b3:" + "0" * 64


@pytest.fixture(params=["file", "memory", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty database."""
    if request.param == "file":
        return f"sqlite:///{tmp_path / 'hub.sqlite'}"
    if request.param == "memory":
        return "sqlite://"
    return str(request.getfixturevalue("postgres").fresh())


@pytest.fixture(params=["file", "postgresql"])
def lasting(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty database that outlives its store."""
    if request.param == "file":
        return f"sqlite:///{tmp_path / 'hub.sqlite'}"
    return str(request.getfixturevalue("postgres").fresh())


@pytest.fixture
async def store(where: str) -> AsyncIterator[Store]:
    opened = Store.open(where)
    yield opened
    opened.close()


@pytest.fixture
async def seeded(store: Store) -> Store:
    await store.write(seed)
    return store


def seed(db: Connection) -> None:
    """A submitted study with a plan and a job."""
    records.add_study(db, STUDY, "ada", 1.0)
    records.submit_study(db, "hearts", 2.0)
    records.add_plan(db, PLAN, "hearts", "ada", 3.0)
    records.add_job(db, job("job-1"))


def job(id: str, created: float = 4.0, phase: core.Phase = "waiting") -> JobRecord:
    return JobRecord(id, Experiment("hearts", DIGEST, 3), "sha256:x", "ada", created, phase)


def note(text: str) -> Callable[[Connection], int]:
    return lambda db: audit.append(db, 1.0, "user:ada", "note", text).line.seq


def adds(job: str, event: core.Event) -> Callable[[Connection], int]:
    return lambda db: journal.append(db, job, event)


def bumps(name: str) -> Callable[[Connection], int]:
    return lambda db: records.bump(db, name)


def sound(checked: Break | tuple[int, str]) -> int:
    """The length of a chain that holds."""
    assert not isinstance(checked, Break), checked
    return checked[0]


def noted(db: Connection) -> list[str]:
    return [entry.line.subject for entry in audit.lines(db)]


async def hold(store: Store) -> "tuple[asyncio.Task[bool], threading.Event]":
    """Keep the writer busy until the event is set: what is queued now waits together."""
    running, gate = threading.Event(), threading.Event()

    def wait(_: Connection) -> bool:
        running.set()
        return gate.wait(120)

    task = asyncio.create_task(store.write(wait))
    while not running.is_set():
        await asyncio.sleep(0.001)
    return task, gate


class TestWriting:
    async def test_what_was_written_is_read(self, store: Store) -> None:
        assert await store.write(note("one")) == 1
        assert await store.write(note("two")) == 2
        assert await store.read(noted) == ["one", "two"]
        assert store.read_now(noted) == ["one", "two"]

    async def test_waiting_writes_share_one_commit(self, store: Store) -> None:
        first, gate = await hold(store)
        before = store.counts.commits
        others = [asyncio.create_task(store.write(note(str(n)))) for n in range(50)]
        await asyncio.sleep(0)  # each of them queues its write
        gate.set()
        seqs = await asyncio.gather(*others)
        assert await first
        assert store.counts.commits - before == 2
        assert sorted(seqs) == list(range(1, 51))
        assert store.counts.writes == 51

    async def test_one_that_raises_harms_no_other(self, store: Store) -> None:
        def fails(db: Connection) -> None:
            note("never")(db)
            raise Conflict("no")

        def breaks(db: Connection) -> None:
            note("never")(db)
            db.execute(sa.text("SELECT * FROM no_such_table"))

        held, gate = await hold(store)
        runs: list[Callable[[Connection], Any]] = [
            note("a"),
            fails,
            note("b"),
            breaks,
            note("c"),
        ]
        tasks = [asyncio.create_task(store.write(run)) for run in runs]
        await asyncio.sleep(0)
        gate.set()
        assert await held
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], Conflict)
        assert isinstance(results[3], StorageError)
        assert [r for r in results if isinstance(r, int)] == [1, 2, 3]
        assert await store.read(noted) == ["a", "b", "c"]
        assert isinstance(await store.read(audit.check), tuple)
        assert store.counts.failed == 2

    async def test_one_alone_that_raises_is_rolled_back(self, store: Store) -> None:
        def fails(db: Connection) -> None:
            note("never")(db)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await store.write(fails)
        assert await store.read(noted) == []
        await store.write(note("after"))
        assert await store.read(noted) == ["after"]

    async def test_what_is_said_of_a_swallowed_error_is_true(self, seeded: Store) -> None:
        """PostgreSQL kills a transaction on any error, SQLite does not: neither may lie."""

        def swallows(db: Connection) -> None:
            note("before")(db)
            try:
                records.add_job(db, job("job-1"))
            except sa.exc.IntegrityError:
                return

        try:
            await seeded.write(swallows)
        except StorageError as e:
            assert "nothing of it was written" in str(e)
            assert await seeded.read(noted) == []
        else:
            assert await seeded.read(noted) == ["before"]
        await seeded.write(note("after"))

    async def test_a_row_that_is_there_is_a_conflict(self, seeded: Store) -> None:
        with pytest.raises(Conflict, match="there already"):
            await seeded.write(lambda db: records.add_job(db, job("job-1")))
        with pytest.raises(Conflict):
            await seeded.write(
                lambda db: records.add_job(
                    db, replace(job("job-2"), experiment=Experiment("nowhere", DIGEST, 1))
                )
            )

    async def test_a_cancelled_caller_does_no_harm(self, store: Store) -> None:
        first, gate = await hold(store)
        task = asyncio.create_task(store.write(note("still written")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await first
        await store.write(note("next"))
        assert await store.read(noted) == ["still written", "next"]

    async def test_reading_cannot_write(self, store: Store) -> None:
        if store.database.memory:
            pytest.skip("one connection serves both in memory")
        with pytest.raises(StorageError):
            await store.read(note("never"))
        assert await store.read(noted) == []

    async def test_a_reader_sees_one_state(self, store: Store) -> None:
        if store.database.memory:
            pytest.skip("in memory a reader excludes the writer")
        await store.write(note("one"))
        started, written = threading.Event(), threading.Event()

        def twice(db: Connection) -> tuple[int, int]:
            first = len(noted(db))
            started.set()
            assert written.wait(120)
            return first, len(noted(db))

        reading = asyncio.create_task(store.read(twice))
        while not started.is_set():
            await asyncio.sleep(0.001)
        await store.write(note("two"))
        written.set()
        assert await reading == (1, 1)

    async def test_fifty_writers_lose_nothing(self, seeded: Store) -> None:
        async def writer(number: int) -> None:
            for turn in range(10):
                event = core.Joined(float(turn), f"site-{number}")
                await seeded.write(adds("job-1", event))

        before = seeded.counts.commits
        await asyncio.gather(*(writer(n) for n in range(50)))
        events = await seeded.read(lambda db: journal.replay(db, "job-1"))
        assert [seq for seq, _ in events] == list(range(1, 501))
        for number in range(50):
            mine = [
                e.at
                for _, e in events
                if isinstance(e, core.Joined) and e.site == f"site-{number}"
            ]
            assert mine == [float(turn) for turn in range(10)]
        assert seeded.counts.commits - before < 250

    async def test_an_event_loop_that_is_gone_stops_nobody(self, store: Store) -> None:
        gate = threading.Event()

        def other_loop() -> None:
            async def leave() -> None:
                task = asyncio.create_task(store.write(lambda _: gate.wait(120)))
                await asyncio.sleep(0.02)
                task.cancel()

            asyncio.run(leave())

        thread = threading.Thread(target=other_loop)
        thread.start()
        thread.join()
        gate.set()
        assert await store.write(note("here")) == 1


class TestClosing:
    async def test_close_writes_what_is_queued(self, lasting: str) -> None:
        store = Store.open(lasting)
        tasks = [asyncio.create_task(store.write(note(str(n)))) for n in range(30)]
        await asyncio.sleep(0)
        await asyncio.to_thread(store.close)
        assert sorted(await asyncio.gather(*tasks)) == list(range(1, 31))
        again = Store.open(lasting)
        assert len(await again.read(noted)) == 30
        again.close()

    async def test_a_closed_store_says_so(self, where: str) -> None:
        store = Store.open(where)
        store.close()
        store.close()
        with pytest.raises(StorageError, match="closed"):
            await store.write(note("never"))
        with pytest.raises(StorageError, match="closed"):
            await store.read(noted)


class TestKilled:
    """A real process, killed with SIGKILL while it writes."""

    SCRIPT = """if True:
        import asyncio, os, sys
        from consilia.hub import audit
        from consilia.hub.store import Store
        store = Store.open(sys.argv[1])
        async def writer(number):
            turn = 0
            while True:
                text = f"{sys.argv[2]}.{number}.{turn}"
                await store.write(lambda db: audit.append(db, 1.0, "hub", "note", text))
                os.write(1, (text + "\\n").encode())
                turn += 1
        async def main():
            await asyncio.gather(*(writer(n) for n in range(5)))
        asyncio.run(main())
    """

    def test_everything_acknowledged_is_there(self, lasting: str) -> None:
        chance = random.Random(7)  # noqa: S311 - moments to kill at
        acknowledged: set[str] = set()
        for run in range(4):
            writer = subprocess.Popen(
                [sys.executable, "-c", self.SCRIPT, lasting, str(run)],
                env=os.environ | {"PYTHONPATH": SOURCE},
                stdout=subprocess.PIPE,
                text=True,
            )
            assert writer.stdout is not None
            acknowledged.add(writer.stdout.readline().strip())
            timer = threading.Timer(chance.uniform(0.02, 0.3), writer.kill)
            timer.start()
            acknowledged.update(line.strip() for line in writer.stdout if line.endswith("\n"))
            assert writer.wait(30) == -signal.SIGKILL
            writer.stdout.close()
            timer.join()
        store = Store.open(lasting)
        try:
            found = store.read_now(noted)
            assert acknowledged <= set(found)
            assert len(found) == len(set(found))
            assert len(acknowledged) > 20
            assert sound(store.read_now(audit.check)) == len(found)
        finally:
            store.close()


class TestRefusedByTheDisk:
    async def test_nobody_is_told_of_what_did_not_fit(self, tmp_path: Path) -> None:
        store = Store.open(tmp_path / "hub.sqlite")
        try:
            pages = await store.write(
                lambda db: int(db.exec_driver_sql("PRAGMA page_count").scalar_one())
            )
            limit = f"PRAGMA max_page_count={pages + 20}"
            await store.write(lambda db: db.exec_driver_sql(limit).scalar())
            texts = [f"{n}." + "x" * 1900 for n in range(60)]
            results = await asyncio.gather(
                *(store.write(note(t)) for t in texts), return_exceptions=True
            )
            failed = [r for r in results if not isinstance(r, int)]
            assert failed
            assert {type(r) for r in failed} == {StorageError}
            assert {"full" in str(r) for r in failed} == {True}, failed
            kept = [t for t, r in zip(texts, results, strict=True) if isinstance(r, int)]
            assert await store.read(noted) == kept
            await store.write(
                lambda db: db.exec_driver_sql("PRAGMA max_page_count=100000").scalar()
            )
            await store.write(note("room again"))
            assert isinstance(await store.read(audit.check), tuple)
        finally:
            store.close()

    def test_a_full_disk_is_survived_by_a_process(self, tmp_path: Path) -> None:
        """The kernel refuses to let a file grow, in the middle of a write."""
        script = """if True:
            import asyncio, resource, sys
            from consilia.errors import StorageError
            from consilia.hub import audit
            from consilia.hub.store import Store
            store = Store.open(sys.argv[1])
            resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))
            async def main():
                for n in range(1000):
                    text = f"{n}." + "x" * 1000
                    try:
                        await store.write(lambda db: audit.append(db, 1.0, "hub", "n", text))
                    except StorageError as e:
                        print("refused", e, flush=True)
                        return
                    print(n, flush=True)
            asyncio.run(main())
            store.close()
        """
        path = tmp_path / "hub.sqlite"
        done = subprocess.run(
            [sys.executable, "-c", script, f"sqlite:///{path}"],
            env=os.environ | {"PYTHONPATH": SOURCE},
            capture_output=True,
            text=True,
            check=False,
        )
        *acknowledged, last = done.stdout.splitlines()
        assert last.startswith("refused the hub's database refused"), (last, done.stderr)
        store = Store.open(path)
        found = [text.split(".")[0] for text in store.read_now(noted)]
        store.close()
        assert found == acknowledged
        assert len(found) > 10

    async def test_a_file_nobody_may_write(self, tmp_path: Path) -> None:
        (tmp_path / "dir").mkdir()
        with pytest.raises(StorageError, match=r"hub's database refused|cannot make"):
            Store.open(tmp_path / "dir")

    async def test_not_a_database(self, tmp_path: Path) -> None:
        (tmp_path / "hub.sqlite").write_bytes(b"not a database " * 100)
        with pytest.raises(StorageError, match="not a database"):
            Store.open(tmp_path / "hub.sqlite")

    async def test_only_its_owner_may_read_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "hub.sqlite"
        store = Store.open(path)
        await store.write(note("x"))
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        store.close()

    async def test_sqlite_is_as_durable_as_promised(self, tmp_path: Path) -> None:
        store = Store.open(tmp_path / "hub.sqlite")
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        found = await store.write(
            lambda db: [db.exec_driver_sql(f"PRAGMA {p}").scalar() for p in pragmas]
        )
        store.close()
        assert found == ["wal", 2, 1]


class TestPostgres:
    @pytest.fixture
    def url(self, request: pytest.FixtureRequest) -> str:
        return str(request.getfixturevalue("postgres").fresh())

    @staticmethod
    def _terminate_others(db: Connection) -> None:
        db.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        ).all()

    async def test_a_line_lost_while_idle_is_made_again(self, url: str) -> None:
        store, other = Store.open(url), Store.open(url)
        await store.write(note("one"))
        await other.write(self._terminate_others)
        assert await store.write(note("two")) == 2
        assert await store.read(noted) == ["one", "two"]
        store.close()
        other.close()

    async def test_a_line_lost_in_a_write_is_an_error_and_nothing_is_there(
        self, url: str
    ) -> None:
        store = Store.open(url)
        runs = 0

        def suicidal(db: Connection) -> None:
            nonlocal runs
            runs += 1
            note("never")(db)
            db.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))

        with pytest.raises(StorageError, match="hub's database refused"):
            await store.write(suicidal)
        assert runs > 1
        await store.write(note("after"))
        assert await store.read(noted) == ["after"]
        store.close()

    async def test_a_server_that_is_away(self) -> None:
        with pytest.raises(StorageError, match="hub's database refused"):
            Store.open("postgresql://nobody@127.0.0.1:1/none")

    async def test_two_hubs_share_one_audit_chain(self, url: str) -> None:
        stores = [Store.open(url), Store.open(url)]
        await asyncio.gather(
            *(stores[n % 2].write(note(f"{n}")) for n in range(100)),
            *(s.write(note("last")) for s in stores),
        )
        assert sound(await stores[0].read(audit.check)) == 102
        for store in stores:
            store.close()

    async def test_a_deadlock_is_run_again(self, url: str) -> None:
        first, second = Store.open(url), Store.open(url)
        for name in ("a", "b"):
            await first.write(bumps(name))
        meet = threading.Barrier(2, timeout=120)

        def crosswise(one: str, two: str) -> Callable[[Connection], None]:
            tried = False

            def run(db: Connection) -> None:
                nonlocal tried
                records.bump(db, one)
                if not tried:
                    tried = True
                    meet.wait()
                records.bump(db, two)

            return run

        await asyncio.gather(
            first.write(crosswise("a", "b")), second.write(crosswise("b", "a"))
        )
        values = await first.read(lambda db: [records.generation(db, n) for n in ("a", "b")])
        assert values == [3, 3]
        first.close()
        second.close()

    async def test_generations_are_asked_twice_a_second(self, url: str) -> None:
        clock = [100.0]
        store, other = Store.open(url, monotonic=lambda: clock[0]), Store.open(url)
        assert store.generation("x") == 0
        await other.write(lambda db: records.bump(db, "x"))
        clock[0] += database.STALE - 0.001
        assert store.generation("x") == 0
        clock[0] += 0.001
        assert store.generation("x") == 1
        store.close()
        other.close()


class TestGenerations:
    async def test_bump_counts(self, store: Store) -> None:
        assert store.generation("x") == 0
        assert [await store.write(lambda db: records.bump(db, "x")) for _ in range(3)] == [
            1,
            2,
            3,
        ]
        assert await store.read(lambda db: records.generation(db, "x")) == 3
        assert await store.read(lambda db: records.generation(db, "y")) == 0

    async def test_another_process_is_seen_at_once_on_sqlite(self, tmp_path: Path) -> None:
        store = Store.open(tmp_path / "hub.sqlite")
        other = Store.open(tmp_path / "hub.sqlite")
        for expected in range(1, 5):
            await other.write(lambda db: records.bump(db, "x"))
            assert (store.generation("x"), other.generation("x")) == (expected, expected)
        await store.write(lambda db: records.bump(db, "x"))
        assert (store.generation("x"), other.generation("x")) == (5, 5)
        store.close()
        other.close()


class TestMigrations:
    def test_head_is_the_newest_migration(self) -> None:
        scripts = ScriptDirectory(str(Path(database.__file__).parent / "migrations"))
        assert scripts.get_current_head() == tables.HEAD

    @pytest.mark.parametrize("migrated", [False, True])
    def test_both_ways_make_exactly_the_tables(self, where: str, migrated: bool) -> None:
        with opened(where) as made:
            if migrated:  # as an older hub comes here; a new one is made at once
                database.downgrade(made, "base")
                database.upgrade(made)
            with made.reading() as db:
                context = MigrationContext.configure(db, opts={"compare_type": True})
                assert compare_metadata(context, tables.metadata) == []

    def test_both_ways_make_the_same_constraints(self, where: str) -> None:
        with opened(where) as made:
            at_once = _constraints(made)
            database.downgrade(made, "base")
            database.upgrade(made)
            assert _constraints(made) == at_once

    def test_uploads_that_only_the_trail_knew_are_taken_over(self, where: str) -> None:
        digest = "b3:" + "0" * 64
        with opened(where) as made:
            database.downgrade(made, "r0001")
            with made.turn, made.connect() as db, db.begin():
                for at, who in ((1.0, "ada"), (2.0, "bob"), (3.0, "ada")):
                    audit.append(db, at, f"user:{who}", "frame.upload", digest, detail="70")
            database.upgrade(made)
            with made.reading() as db:
                rows = db.execute(sa.select(tables.uploads).order_by("author")).all()
            assert [tuple(row) for row in rows] == [
                (digest, "ada", 70, 3.0),
                (digest, "bob", 70, 2.0),
            ]

    def test_down_and_up_again(self, where: str) -> None:
        with opened(where) as made:
            database.downgrade(made, "base")
            with made.reading() as db:
                assert set(sa.inspect(db).get_table_names()) <= {"alembic_version"}
            assert database.revision(made) is None
            database.upgrade(made)
            assert database.revision(made) == tables.HEAD

    async def test_opening_again_changes_nothing(self, lasting: str) -> None:
        store = Store.open(lasting)
        await store.write(note("kept"))
        store.close()
        again = Store.open(lasting, migrate=False)
        assert await again.read(noted) == ["kept"]
        again.close()

    def test_an_empty_database_without_leave_to_migrate(self, where: str) -> None:
        with pytest.raises(StorageError, match=f"needs {tables.HEAD}"):
            Store.open(where, migrate=False)

    async def test_a_newer_database_is_refused(self, lasting: str) -> None:
        store = Store.open(lasting)
        await store.write(
            lambda db: (
                db.execute(sa.text("UPDATE alembic_version SET version_num = 'r9999'")) and None
            )
        )
        store.close()
        with pytest.raises(StorageError, match="newer Consilia"):
            Store.open(lasting)

    async def test_two_processes_may_make_it_at_once(self, lasting: str) -> None:
        stores = await asyncio.gather(
            *(asyncio.to_thread(Store.open, lasting) for _ in range(3))
        )
        for number, store in enumerate(stores):
            await store.write(note(str(number)))
        assert await stores[0].read(noted) == ["0", "1", "2"]
        for store in stores:
            store.close()

    @pytest.mark.parametrize("where", ["mysql://x/y", "nonsense", "postgresql+asyncpg"])
    def test_other_databases_are_refused(self, where: str) -> None:
        with pytest.raises(ConfigError):
            Store.open(where)


def _constraints(made: database.Database) -> dict[str, object]:
    """What `compare_metadata` does not look at: keys, uniqueness, NOT NULL, by table."""
    with made.reading() as db:
        found = sa.inspect(db)
        return {
            name: (
                found.get_pk_constraint(name),
                sorted(map(str, found.get_foreign_keys(name))),
                sorted(map(str, found.get_unique_constraints(name))),
                sorted((c["name"], c["nullable"]) for c in found.get_columns(name)),
            )
            for name in found.get_table_names()
        }


class opened:
    """An open database without a writer."""

    def __init__(self, where: str) -> None:
        self.database = database.open_database(where, 2, lambda: 0.0)

    def __enter__(self) -> database.Database:
        return self.database

    def __exit__(self, *_: object) -> None:
        self.database.close()


SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
METRICS = st.dictionaries(st.text(max_size=5), st.floats(), max_size=3)
ARGUMENTS = st.dictionaries(st.text(max_size=5), SCALARS, max_size=4)
TIMES = st.floats(0, 4e9)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NUMBERS = st.integers(0, 2**40)
EVENTS: dict[type[core.Event], st.SearchStrategy[core.Event]] = {
    core.Started: st.builds(core.Started, TIMES, st.none() | st.just(FRAME), ARGUMENTS),
    core.Joined: st.builds(core.Joined, TIMES, WORDS),
    core.Left: st.builds(core.Left, TIMES, WORDS),
    core.Leased: st.builds(core.Leased, TIMES, WORDS),
    core.Accepted: st.builds(
        core.Accepted, TIMES, WORDS, st.just(FRAME), NUMBERS, METRICS, WORDS
    ),
    core.Settled: st.builds(
        core.Settled, TIMES, WORDS, st.sampled_from(["rejected", "failed", "declined"]), WORDS
    ),
    core.Spoke: st.builds(
        core.Spoke,
        TIMES,
        WORDS,
        st.sampled_from(["keys", "shares", "consent", "unmask"]),
        st.text("AZaz09+/=", max_size=30),
    ),
    core.TimedOut: st.builds(core.TimedOut, TIMES, NUMBERS),
    core.Closed: st.builds(
        core.Closed,
        TIMES,
        NUMBERS,
        st.just(FRAME),
        st.lists(WORDS, max_size=2).map(tuple),
        WORDS,
    ),
    core.Assessed: st.builds(core.Assessed, TIMES, NUMBERS, WORDS, WORDS),
    core.CloseFailed: st.builds(core.CloseFailed, TIMES, NUMBERS, WORDS),
    core.Changed: st.builds(core.Changed, TIMES, ARGUMENTS),
    core.Paused: st.builds(core.Paused, TIMES, WORDS),
    core.RolledBack: st.builds(core.RolledBack, TIMES, st.just(FRAME)),
    core.Stopped: st.builds(core.Stopped, TIMES, WORDS),
    core.Resumed: st.builds(core.Resumed, TIMES, st.none() | NUMBERS),
}


class TestJournal:
    @settings(max_examples=400)
    @given(st.one_of(*EVENTS.values()))
    def test_every_event_reads_back_exactly(self, event: core.Event) -> None:
        body = journal.encode(event)
        found = journal.decode("job-1", 1, type(event).__name__, body)
        # repr tells 1 from 1.0 and True, and finds NaN equal to NaN
        assert repr(found) == repr(event)
        assert body.isascii()
        assert "\0" not in body

    def test_the_codec_knows_every_event(self) -> None:
        assert set(journal.kinds(core.Event).values()) == set(EVENTS)

    async def test_append_and_replay(self, seeded: Store) -> None:
        events: list[core.Event] = [
            core.Started(1.5, None, {"lr": 0.1, "epochs": 2, "fast": True, "name": "é\0"}),
            core.Accepted(2.5, "l", FRAME, 10, {"loss": math.inf, "x": -0.0}),
            core.Resumed(3.5, None),
        ]
        first = await seeded.write(lambda db: journal.append(db, "job-1", events[0]))
        rest = await seeded.write(
            lambda db: [journal.append(db, "job-1", event) for event in events[1:]]
        )
        assert (first, *rest) == (1, 2, 3)
        found = await seeded.read(lambda db: journal.replay(db, "job-1"))
        assert repr(found) == repr(list(enumerate(events, 1)))
        later = await seeded.read(lambda db: journal.replay(db, "job-1", after=2))
        assert later == [(3, events[2])]
        rows = await seeded.read(lambda db: journal.entries(db, "job-1", after=1, limit=1))
        assert [(r.seq, r.at, r.type, r.body["records"]) for r in rows] == [
            (2, 2.5, "Accepted", 10)
        ]

    async def test_jobs_count_apart(self, seeded: Store) -> None:
        await seeded.write(lambda db: records.add_job(db, job("job-2")))
        for name in ("job-1", "job-2", "job-1"):
            await seeded.write(adds(name, core.Joined(1.0, "a")))
        counts = await seeded.read(
            lambda db: [len(journal.replay(db, n)) for n in ("job-1", "job-2")]
        )
        assert counts == [2, 1]

    async def test_no_journal_without_a_job(self, seeded: Store) -> None:
        with pytest.raises(Conflict):
            await seeded.write(lambda db: journal.append(db, "job-9", core.Joined(1.0, "a")))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("type = 'Melted'", "'Melted', which this version does not know"),
            ("type = 'Left', body = '{}'", "does not read back"),
            ('body = \'{"at": 1.0, "site": "a", "mood": 1}\'', "unknown fields"),
            ("body = '{'", "does not read back"),
            ("body = '[1]'", "does not read back"),
            ('body = \'{"at": "x", "site": "a"}\'', "does not read back"),
            ("seq = 7", "event 2 is missing, found 7"),
        ],
    )
    async def test_a_damaged_row_stops_the_replay(
        self, seeded: Store, change: str, message: str
    ) -> None:
        for site in ("a", "b"):
            await seeded.write(adds("job-1", core.Joined(1.0, site)))
        damage = sa.text(f"UPDATE journal SET {change} WHERE seq = 2")  # noqa: S608
        await seeded.write(lambda db: db.execute(damage) and None)
        with pytest.raises(StorageError, match=message):
            await seeded.read(lambda db: journal.replay(db, "job-1"))

    def test_only_plain_values_are_journalled(self) -> None:
        class Odd(core.Joined):
            pass

        with pytest.raises(TypeError, match="not an event"):
            journal.encode(Odd(1.0, "a"))
        with pytest.raises(TypeError, match="cannot be journalled"):
            journal.encode(core.Changed(1.0, {"x": b"bytes"}))  # type: ignore[dict-item]


class TestRecords:
    async def test_a_study_is_drafted_submitted_and_closed(self, store: Store) -> None:
        made = await store.write(lambda db: records.add_study(db, STUDY, "ada", 1.0))
        assert (made.state, made.digest) == ("draft", None)
        with pytest.raises(Conflict, match="exists already"):
            await store.write(lambda db: records.add_study(db, STUDY, "bob", 1.0))
        with pytest.raises(Conflict, match="is draft"):
            await store.write(lambda db: records.add_plan(db, PLAN, "hearts", "ada", 1.0))
        assert await store.read(lambda db: records.studies_of(db, "a")) == ()
        wider = Study("hearts", "why", ("a", "b", "c"), ("cardio",))
        changed = await store.write(lambda db: records.change_study(db, wider, 2.0))
        assert (changed.study, changed.author, changed.changed) == (wider, "ada", 2.0)
        before = store.generation("catalogue")
        sent = await store.write(lambda db: records.submit_study(db, "hearts", 3.0))
        assert (sent.state, sent.digest) == ("submitted", study_digest(wider))
        assert await store.read(lambda db: records.generation(db, "catalogue")) == before + 1
        with pytest.raises(Conflict, match="is submitted: only a study that is draft"):
            await store.write(lambda db: records.change_study(db, STUDY, 4.0))
        assert await store.read(lambda db: records.studies_of(db, "c")) == (sent,)
        assert await store.read(lambda db: records.studies_of(db, "d")) == ()
        closed = await store.write(lambda db: records.close_study(db, "hearts", 5.0))
        assert (closed.state, closed.digest) == ("closed", sent.digest)
        assert await store.read(lambda db: records.get_study(db, "hearts")) == closed
        with pytest.raises(Conflict):
            await store.write(lambda db: records.close_study(db, "hearts", 6.0))
        with pytest.raises(NotFound, match="'lungs'"):
            await store.read(lambda db: records.get_study(db, "lungs"))
        assert await store.read(lambda db: records.studies_of(db, "c")) == ()

    async def test_what_every_site_reads_whole_is_bounded(self, store: Store) -> None:
        def fill(db: Connection) -> None:
            for n in range(records.MAX_STUDIES):
                records.add_study(db, Study(f"s{n}", "p", ("a",), ("t",)), "ada", 1.0)
            with pytest.raises(Conflict, match=f"ada has {records.MAX_STUDIES} studies"):
                records.add_study(db, Study("more", "p", ("a",), ("t",)), "ada", 1.0)
            records.add_study(db, Study("bobs", "p", ("a",), ("t",)), "bob", 1.0)
            records.submit_study(db, "s0", 1.0)
            records.close_study(db, "s0", 1.0)
            records.add_study(db, Study("more", "p", ("a",), ("t",)), "ada", 1.0)
            records.submit_study(db, "bobs", 1.0)
            for n in range(records.MAX_PLANS):
                plan = Plan("p", {"plan.py": f"PLAN = {n}\n"}, "plan:PLAN")
                records.add_plan(db, plan, "bobs", "bob", 1.0)
            with pytest.raises(Conflict, match=f"'bobs' has {records.MAX_PLANS} plans"):
                records.add_plan(db, Plan("p", {"plan.py": ""}, "plan:PLAN"), "bobs", "bob", 1)

        await store.write(fill)

    async def test_one_plan_for_two_studies(self, seeded: Store) -> None:
        def second(db: Connection) -> None:
            records.add_study(db, Study("lungs", "why", ("a",), ("x",)), "bob", 1.0)
            records.submit_study(db, "lungs", 1.0)
            records.add_plan(
                db, Plan("other name", PLAN.files, PLAN.entry, ("numpy",)), "lungs", "bob", 9.0
            )

        await seeded.write(second)
        with pytest.raises(Conflict, match="offered to study 'lungs' already"):
            await seeded.write(lambda db: records.add_plan(db, PLAN, "lungs", "bob", 9.0))
        first = await seeded.read(lambda db: records.get_plan(db, DIGEST))
        assert (first.plan, first.study, first.digest) == (PLAN, "hearts", DIGEST)
        assert await seeded.read(lambda db: records.plan_studies(db, DIGEST)) == (
            "hearts",
            "lungs",
        )
        offers = await seeded.read(records.list_plans)
        assert [(p.plan.name, p.study) for p in offers.items] == [
            ("other name", "lungs"),
            ("train", "hearts"),
        ]
        only = await seeded.read(lambda db: records.list_plans(db, study="hearts"))
        assert [p.study for p in only.items] == ["hearts"]
        with pytest.raises(NotFound):
            await seeded.read(lambda db: records.get_plan(db, "sha256:" + "0" * 64))

    async def test_jobs(self, seeded: Store) -> None:
        experiment = Experiment(
            "hearts",
            DIGEST,
            7,
            {"lr": 0.5, "n": 1},
            Strategy("fedadam", {"tau": 1e-3}),
            base=FRAME,
        )
        second = JobRecord("job-2", experiment, "sha256:x", "bob", 5.0)
        await seeded.write(lambda db: records.add_job(db, second))
        assert await seeded.read(lambda db: records.get_job(db, "job-2")) == second
        await seeded.write(lambda db: records.set_phase(db, "job-2", "failed", "no quorum"))
        found = await seeded.read(lambda db: records.get_job(db, "job-2"))
        assert (found.phase, found.cause) == ("failed", "no quorum")
        waiting = await seeded.read(records.unfinished_jobs)
        assert [j.id for j in waiting] == ["job-1"]
        failed = await seeded.read(lambda db: records.list_jobs(db, phases=("failed",)))
        assert [j.id for j in failed.items] == ["job-2"]
        assert (await seeded.read(lambda db: records.list_jobs(db, study="x"))).items == ()
        with pytest.raises(NotFound, match="job-3"):
            await seeded.write(lambda db: records.set_phase(db, "job-3", "done"))
        with pytest.raises(NotFound, match="job-3"):
            await seeded.read(lambda db: records.get_job(db, "job-3"))

    async def test_model_versions(self, seeded: Store) -> None:
        made = [version(n) for n in range(3)]
        for one in made:
            await seeded.write(partial(modelversions.add, version=one))
        found = await seeded.read(lambda db: modelversions.get(db, "job-1.1"))
        assert repr(found) == repr(made[1])
        assert repr(await seeded.read(lambda db: modelversions.of_job(db, "job-1"))) == repr(
            tuple(made)
        )
        latest = await seeded.read(lambda db: modelversions.latest(db, "job-1"))
        assert latest is not None
        assert latest.id == "job-1.2"
        assert await seeded.read(lambda db: modelversions.latest(db, "job-2")) is None
        newest = await seeded.read(lambda db: modelversions.page(db, job="job-1"))
        assert [v.round for v in newest.items] == [2, 1, 0]
        with pytest.raises(Conflict):
            await seeded.write(lambda db: modelversions.add(db, replace(made[2], id="again")))
        with pytest.raises(NotFound):
            await seeded.read(lambda db: modelversions.get(db, "job-1.9"))

    async def test_what_sites_say_is_kept(self, store: Store) -> None:
        with pytest.raises(NotFound, match="no site 'a'"):
            await store.write(lambda db: records.set_seen(db, {"a": 1.0}))
        await store.write(
            lambda db: (
                db.execute(
                    sa.insert(tables.sites).values(name="a", state="invited", created=1.0)
                )
                and None
            )
        )
        await store.write(lambda db: records.set_advertisement(db, "a", b"\x00\xff", 5.0))
        await store.write(lambda db: records.set_seen(db, {"a": 6.0}))
        site = await store.read(lambda db: records.get_site(db, "a"))
        assert (site.advertisement, site.advertised, site.last_seen) == (b"\x00\xff", 5.0, 6.0)
        assert (site.state, site.signing_key, site.certificate_expires) == (
            "invited",
            None,
            None,
        )


def version(number: int) -> Version:
    return Version(
        id=f"job-1.{number}",
        job="job-1",
        round=number,
        digest=f"b3:{number:064x}",
        bytes=2**40,
        parent=f"job-1.{number - 1}" if number else None,
        study="hearts",
        study_digest="sha256:x",
        plan=DIGEST,
        arguments={"lr": 0.5, "n": 3, "on": True, "word": "w"},
        strategy=Strategy("fedadam", {"tau": 1e-3}),
        sites=("a", "b"),
        records=100,
        metrics={"loss": math.nan, "auc": 0.9},
        created=10.0,
        seconds=1.25,
        optimizer=f"b3:{number + 100:064x}" if number else None,
        rejected={"c": "not finite"},
        bytes_in=5,
        bytes_out=6,
    )


class TestPages:
    """Every list, walked in pages of two, gives each record once and in order."""

    @staticmethod
    def walk(store: Store, ask: Callable[..., Page[Any]]) -> Iterator[Any]:
        cursor = None
        while True:
            page = store.read_now(partial(ask, cursor=cursor))
            assert len(page.items) <= 2
            yield from page.items
            cursor = page.next
            if cursor is None:
                return
            assert len(page.items) == 2

    async def test_jobs_and_versions_with_equal_times(self, seeded: Store) -> None:
        def fill(db: Connection) -> None:
            for n in range(2, 8):
                records.add_job(db, job(f"job-{n}", created=4.0 + n // 3 / 10))
                modelversions.add(db, version(n))

        await seeded.write(fill)
        jobs = self.walk(seeded, partial(records.list_jobs, limit=2))
        assert [j.id for j in jobs] == [f"job-{n}" for n in (7, 6, 5, 4, 3, 2, 1)]
        versions = self.walk(seeded, partial(modelversions.page, limit=2))
        assert [v.round for v in versions] == [7, 6, 5, 4, 3, 2]

    async def test_studies_plans_and_sites(self, seeded: Store) -> None:
        def fill(db: Connection) -> None:
            for n in range(5):
                records.add_study(db, Study(f"s{n}", "why", ("a",), ("t",)), "ada", 1.0)
                records.submit_study(db, f"s{n}", 1.0)
                records.add_plan(db, PLAN, f"s{n}", "ada", 1.0)
                row = {"name": f"site-{n}", "state": "invited", "created": 1.0}
                db.execute(sa.insert(tables.sites), row)

        await seeded.write(fill)
        studies = self.walk(seeded, partial(records.list_studies, limit=2))
        assert [s.study.name for s in studies] == ["hearts", "s0", "s1", "s2", "s3", "s4"]
        plans = self.walk(seeded, partial(records.list_plans, limit=2))
        assert [p.study for p in plans] == ["hearts", "s4", "s3", "s2", "s1", "s0"]
        sites = self.walk(seeded, partial(records.list_sites, limit=2))
        assert [s.name for s in sites] == [f"site-{n}" for n in range(5)]

    @pytest.mark.parametrize("cursor", ["", "x", "1.0", "1.0~a~b", "~", "NaN?~a"])
    async def test_a_made_up_cursor_is_refused(self, seeded: Store, cursor: str) -> None:
        with pytest.raises(ConfigError, match="not one that a list gave"):
            await seeded.read(lambda db: records.list_jobs(db, cursor=cursor))

    async def test_limits(self, seeded: Store) -> None:
        for limit in (1, 500):
            assert (await seeded.read(partial(records.list_jobs, limit=limit))).items
        for limit in (0, -1, 501):
            with pytest.raises(ConfigError, match="1 to 500"):
                await seeded.read(partial(records.list_jobs, limit=limit))

    def test_every_list_has_its_index(self, tmp_path: Path) -> None:
        """SQLite tells how it would find the rows: by an index, without sorting them."""
        path = tmp_path / "hub.sqlite"
        store = Store.open(path)
        seen: list[str] = []
        engine = store.database.reader
        sa.event.listen(engine, "before_cursor_execute", lambda *a: seen.append(a[2]))
        after = "1.0~x"

        def ask(db: Connection) -> None:
            records.list_jobs(db, cursor=after)
            records.list_jobs(db, study="s", cursor=after)
            records.list_jobs(db, phases=("done",), cursor=after)
            modelversions.page(db, cursor=after)
            records.list_plans(db, cursor=after + "~y")
            records.list_studies(db, cursor="x")
            records.list_sites(db, cursor="x")
            list(audit.lines(db, 5, 10))
            journal.entries(db, "job-1", 5)

        store.read_now(ask)
        store.close()
        with sqlite3.connect(path) as db:
            for query in (q for q in seen if q.startswith("SELECT")):
                rows = db.execute(f"EXPLAIN QUERY PLAN {query}", [None] * query.count("?"))
                plan = json.dumps([row[3] for row in rows])
                assert "TEMP B-TREE" not in plan, (query, plan)
                assert "INDEX" in plan or "PRIMARY KEY" in plan, (query, plan)
        db.close()
