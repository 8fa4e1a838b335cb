"""The agent against a complete hub in memory: rounds, restarts, silence, stops and failures."""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from consilia.core.chain import Break
from consilia.errors import StorageError
from consilia.node import approvals, audit, control, datasets, studies
from consilia.node.config import Limits
from consilia.node.launcher import PlainProcess
from consilia.node.runner import Runner
from consilia.node.store import Store, Transaction
from consilia.wire.v1 import (
    Declined,
    Failed,
    FailureCause,
    Progress,
    Result,
    plan_digest,
    study_digest,
)
from nodekit import (
    SITE,
    STUDY,
    base_model,
    lease,
    make_plan,
    node,
    until,
)

PLAN = make_plan()


async def test_a_round_from_init_to_the_next(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        n.hub.assign(first := lease(n.hub, PLAN, round=0))
        await until(lambda: n.hub.settled(first.id))
        made = n.hub.settled(first.id)
        assert isinstance(made, Result) and made.records == 0 and made.metrics == {}
        np.testing.assert_array_equal(n.hub.uploads[first.id]["frozen"], np.arange(500))

        model = n.hub.publish(base_model())
        for round in (1, 2):
            task = lease(n.hub, PLAN, model=model, round=round, arguments={"lr": 0.5})
            n.hub.assign(task)
            await until(partial(n.hub.settled, task.id))
            result = n.hub.settled(task.id)
            assert isinstance(result, Result)
            assert (result.records, result.metrics, result.round) == (120, {"loss": 0.5}, round)
            sent = n.hub.uploads[task.id]
            assert list(sent) == ["w"], "an unchanged tensor was sent again"
            np.testing.assert_array_equal(sent["w"], np.full(1000, 0.5, np.float32))
        # The use of the data is noted once for the same facts, each release by itself.
        assert n.actions().count("task.start:allowed") == 2
        assert n.actions().count("release:released") == 3
        assert not isinstance(audit.verify(n.store), Break)
    assert list((n.directory / "outbox").iterdir()) == []


async def test_offers_become_pending_and_decisions_are_advertised(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.hub.offer_all((STUDY,), PLAN)
        await until(lambda: approvals.known(n.store, plan_digest(PLAN)))
        await until(lambda: n.hub.states)
        assert n.hub.states[-1].studies == n.hub.states[-1].plans == ()
        n.accept(PLAN)
        n.agent.changed()
        await until(lambda: n.hub.states[-1].plans)
        state = n.hub.states[-1]
        assert state.studies == (study_digest(STUDY),) and state.plans == (plan_digest(PLAN),)
        assert [(d.name, d.records) for d in state.datasets] == [("cohort", 120)]
        assert state.audit_length >= 5 and state.audit_head == audit.head(n.store)[1]
        polls = n.hub.polls
        await asyncio.sleep(0.3)
        assert n.hub.polls - polls <= 1, "the agent polls without a reason"


async def test_training_goes_on_while_the_hub_is_away(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        model = n.hub.publish(base_model())
        n.hub.assign(task := lease(n.hub, PLAN, model=model, arguments={"wait": 0.3}))
        await until(lambda: n.runs.tasks)
        n.hub.line(away=True)
        await until(lambda: "release:released" in n.actions())
        assert n.hub.settled(task.id) is None and not n.agent.status().connected
        n.hub.line(away=False)
        await until(lambda: n.hub.settled(task.id))
        assert n.runs.tasks == ["job-1.1"]


async def test_a_restarted_agent_sends_the_same_answer_without_training_again(
    tmp_path: Path,
) -> None:
    async with node(tmp_path) as n:
        async with n.running():
            n.accept(PLAN)
            model = n.hub.publish(base_model())
            n.hub.upload_gate = lambda: n.hub.line(away=True)  # the hub dies at the upload
            n.hub.assign(task := lease(n.hub, PLAN, model=model))
            await until(lambda: "release:released" in n.actions())
        assert len(list((n.directory / "outbox").iterdir())) == 1
        n.hub.upload_gate = lambda: None
        n.hub.line(away=False)
        async with n.running():
            await until(lambda: n.hub.settled(task.id))
        assert n.runs.tasks == ["job-1.1"]
        assert list(n.hub.uploads[task.id]) == ["w"]


async def test_an_answer_that_a_power_cut_damaged_is_made_again(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        async with n.running():
            n.accept(PLAN)
            model = n.hub.publish(base_model())
            n.hub.upload_gate = lambda: n.hub.line(away=True)
            n.hub.assign(task := lease(n.hub, PLAN, model=model))
            await until(lambda: "release:released" in n.actions())
        (frame,) = (n.directory / "outbox").iterdir()
        data = bytearray(frame.read_bytes())
        data[-1] ^= 1
        frame.write_bytes(data)
        n.hub.upload_gate = lambda: None
        n.hub.line(away=False)
        async with n.running():
            await until(lambda: n.hub.settled(task.id))
        assert n.runs.tasks == ["job-1.1", "job-1.1"]
        assert "release.withdraw:dropped" in n.actions()


@pytest.mark.parametrize("how", ["revoke", "leave", "disable"])
async def test_a_decision_stops_running_work_at_once(tmp_path: Path, how: str) -> None:
    runner = Runner(PlainProcess(), tmp_path, Limits(threads=1))
    async with node(tmp_path, runner) as n, n.running():
        n.accept(PLAN)
        model = n.hub.publish(base_model())
        n.hub.assign(task := lease(n.hub, PLAN, model=model, arguments={"wait": 60.0}))
        await until(lambda: any(t.fraction for t in n.agent.status().tasks))
        (pid,) = runner.workers
        other = Store.open(n.directory)  # as the command's own process has it
        try:
            now, digest = time.time(), plan_digest(PLAN)
            if how == "revoke":
                approvals.revoke(other, digest, actor="mara", now=now, reason="doubts")
            elif how == "leave":
                studies.decline(other, STUDY.name, actor="mara", now=now)
            else:
                datasets.disable(other, "cohort", actor="mara", now=now)
        finally:
            other.close()
        begun = time.monotonic()
        n.agent.changed()
        await until(lambda: n.hub.settled(task.id) and not Path(f"/proc/{pid}").exists())
        assert time.monotonic() - begun < 40  # of 60; a second where nothing else runs
        assert n.hub.settled(task.id) == Declined(task.id), "a reason has left the site"
        assert len(n.details("task.stop")) == 1


async def test_a_decision_is_noticed_without_a_poke(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        model = n.hub.publish(base_model())
        n.hub.assign(task := lease(n.hub, PLAN, model=model, arguments={"wait": 20.0}))
        await until(lambda: n.runs.tasks)
        approvals.revoke(n.store, plan_digest(PLAN), actor="mara", now=time.time(), reason="no")
        await until(lambda: n.hub.settled(task.id))
        assert isinstance(n.hub.settled(task.id), Declined)


async def test_an_update_may_not_leave_after_its_plan_was_revoked(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        sending, go = threading.Event(), threading.Event()

        def gate() -> None:
            sending.set()
            go.wait(120)

        n.hub.upload_gate = gate
        n.hub.assign(task := lease(n.hub, PLAN, model=n.hub.publish(base_model())))
        await until(sending.is_set)
        approvals.revoke(n.store, plan_digest(PLAN), actor="mara", now=time.time(), reason="no")
        n.agent.changed()
        await until(lambda: n.hub.settled(task.id))
        go.set()
        assert isinstance(n.hub.settled(task.id), Declined)
        await asyncio.sleep(0.1)
        assert task.id not in n.hub.uploads, "the update left after the revocation"
        assert list((n.directory / "outbox").iterdir()) == []


async def test_what_the_hub_takes_back_is_stopped_and_not_answered(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        model = n.hub.publish(base_model())
        n.hub.assign(task := lease(n.hub, PLAN, model=model, arguments={"wait": 20.0}))
        await until(lambda: n.runs.tasks)
        n.hub.assign()
        await until(lambda: not n.agent.status().tasks)
        assert n.hub.settled(task.id) is None
        assert n.actions()[-1] == "task.stop:dropped"


async def test_staff_can_stop_a_job(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        model = n.hub.publish(base_model())
        n.hub.assign(task := lease(n.hub, PLAN, model=model, arguments={"wait": 20.0}))
        await until(lambda: n.runs.tasks)
        assert n.agent.stop_job("another") == 0
        assert n.agent.stop_job("job-1") == 1
        await until(lambda: n.hub.settled(task.id))
        assert n.hub.settled(task.id) == Failed(task.id, "stopped")


async def test_jobs_run_side_by_side_up_to_the_limit(tmp_path: Path) -> None:
    async with node(tmp_path, limits={"tasks": 2}) as n, n.running():
        n.accept(PLAN)
        model = n.hub.publish(base_model())
        tasks = [
            lease(n.hub, PLAN, job=f"job-{i}", model=model, arguments={"wait": 0.4})
            for i in range(3)
        ]
        n.hub.assign(*tasks)
        await until(lambda: len(n.runs.tasks) == 2)
        phases = sorted(t.phase for t in n.agent.status().tasks)
        assert phases == ["training", "training", "waiting"]
        await until(lambda: all(n.hub.settled(t.id) for t in tasks))


FAULTS: dict[FailureCause, tuple[str, str]] = {
    "plan-error": ("w = weights", "raise RuntimeError('patient 7'); w = weights"),
    "not-finite": ("np.float32(args", "np.float32('nan') + np.float32(args"),
    "plan-contract": ('{"w": w,', '{"v": w,'),
}


@pytest.mark.parametrize("cause", FAULTS)
async def test_a_failure_tells_the_hub_one_word(tmp_path: Path, cause: FailureCause) -> None:
    plan = make_plan(FAULTS[cause])
    async with node(tmp_path) as n, n.running():
        n.accept(plan)
        n.hub.assign(task := lease(n.hub, plan, model=n.hub.publish(base_model())))
        await until(lambda: n.hub.settled(task.id))
        assert n.hub.settled(task.id) == Failed(task.id, cause)
        assert n.hub.uploads == {} and list((n.directory / "outbox").iterdir()) == []
        assert n.actions()[-1] == f"task.fail:{cause}"


@pytest.mark.parametrize(("records", "released"), [(99, False), (100, True), (120, True)])
async def test_an_update_on_too_few_records_stays(
    tmp_path: Path, records: int, released: bool
) -> None:
    plan = make_plan(("data.records", str(records)))
    async with node(tmp_path) as n, n.running():
        n.accept(plan)
        n.hub.assign(task := lease(n.hub, plan, model=n.hub.publish(base_model())))
        await until(lambda: n.hub.settled(task.id))
        kind = Result if released else Declined
        assert isinstance(n.hub.settled(task.id), kind)
        assert (task.id in n.hub.uploads) == released


async def test_more_records_than_the_dataset_has_are_not_believed(tmp_path: Path) -> None:
    plan = make_plan(("data.records", "121"))
    async with node(tmp_path) as n, n.running():
        n.accept(plan)
        n.hub.assign(task := lease(n.hub, plan, model=n.hub.publish(base_model())))
        await until(lambda: n.hub.settled(task.id))
        assert n.hub.settled(task.id) == Failed(task.id, "plan-contract")


async def test_failures_are_counted_and_limited(tmp_path: Path) -> None:
    plan = make_plan(FAULTS["plan-error"])
    async with node(tmp_path, failures_per_day=2) as n, n.running():
        n.accept(plan)
        model = n.hub.publish(base_model())
        for round in (1, 2, 3):
            n.hub.assign(task := lease(n.hub, plan, model=model, round=round))
            await until(partial(n.hub.settled, task.id))
        kinds = [type(n.hub.settled(f"job-1.{i}.0.{SITE}")) for i in (1, 2, 3)]
        assert kinds == [Failed, Failed, Declined] and len(n.runs.tasks) == 2


async def test_a_dataset_that_changed_is_not_used(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        with (n.directory / "cohort.csv").open("a") as file:
            file.write("1,1\n")
        n.hub.assign(task := lease(n.hub, PLAN, model=n.hub.publish(base_model())))
        await until(lambda: n.hub.settled(task.id))
        # Whoever looks first: the worker that reads it, or the watch that has it declined.
        assert n.hub.settled(task.id) in (Failed(task.id, "data-error"), Declined(task.id))
        assert n.runs.tasks == []


async def test_progress_is_told_at_most_once_a_second(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        model = n.hub.publish(base_model())
        n.hub.assign(task := lease(n.hub, PLAN, model=model, arguments={"wait": 2.3}))
        await until(lambda: n.hub.settled(task.id))
        told = [r for r in n.hub.reports if isinstance(r, Progress)]
        assert 1 <= len(told) <= 2 and all(r.metrics == {} for r in told)


class Meter(Store):
    """Counts transactions; refuses them while `full`, as a full disk does."""

    commits = 0
    full = False

    @contextlib.contextmanager
    def write(self) -> Iterator[Transaction]:
        if self.full:
            raise StorageError("no space left on device") from sqlite3.OperationalError()
        with super().write() as tx:
            yield tx
        self.commits += 1


async def test_a_task_costs_one_transaction(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        n.store.close()
        n.store = store = Meter.open(n.directory)
        async with n.running():
            n.accept(PLAN)
            model = n.hub.publish(base_model())
            counts = []
            for round in range(1, 6):
                n.hub.assign(task := lease(n.hub, PLAN, model=model, round=round))
                await until(partial(n.hub.settled, task.id))
                counts.append(store.commits)
        assert [b - a for a, b in pairwise(counts[1:])] == [1, 1, 1]


async def test_on_a_full_disk_nothing_leaves_until_it_can_be_audited(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        n.store.close()
        n.store = store = Meter.open(n.directory)
        async with n.running():
            n.accept(PLAN)
            model = n.hub.publish(base_model())
            n.hub.assign(task := lease(n.hub, PLAN, model=model, arguments={"wait": 0.4}))
            await until(lambda: n.runs.tasks)
            store.full = True
            await asyncio.sleep(1.0)
            assert n.hub.settled(task.id) is None and n.hub.uploads == {}
            store.full = False
            await until(lambda: n.hub.settled(task.id))
            assert n.hub.settled(task.id) == Failed(task.id, "disk")


async def test_the_control_socket_answers_and_is_private(tmp_path: Path) -> None:
    directory = tmp_path / ("deep" * 30)  # longer than a socket address holds
    directory.mkdir()
    assert control.poke(directory) is None
    asked: list[object] = []

    def handle(message: object) -> dict[str, object]:
        asked.append(message)
        return {"ok": True}

    async with control.listening(directory, handle):
        assert (directory / "control.sock").stat().st_mode & 0o777 == 0o600
        answer = await asyncio.to_thread(control.poke, directory, "stop-job", job="j")
    assert answer == {"ok": True} and asked == [{"do": "stop-job", "job": "j"}]
    assert control.poke(directory) is None
