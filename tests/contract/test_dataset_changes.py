"""Datasets while jobs run: removed, changed on disk, accepted again; folders in the sandbox."""

import time
from pathlib import Path

from consilia.node import datasets, measuring
from consilia.node.config import Limits
from consilia.node.launcher import Bubblewrap, PlainProcess
from consilia.node.measuring import Wanted
from consilia.node.runner import Runner
from consilia.node.store import Store
from consilia.wire.v1 import Declined, Failed, Result
from nodekit import base_model, lease, make_plan, node, until
from sandboxkit import needs_bubblewrap

PLAN = make_plan()


async def test_removing_a_dataset_stops_its_running_task_at_once(tmp_path: Path) -> None:
    runner = Runner(PlainProcess(), tmp_path, Limits(threads=1))
    async with node(tmp_path, runner) as n, n.running():
        n.accept(PLAN)
        model = n.hub.publish(base_model())
        n.hub.assign(task := lease(n.hub, PLAN, model=model, arguments={"wait": 60.0}))
        await until(lambda: any(t.fraction for t in n.agent.status().tasks))
        (pid,) = runner.workers
        other = Store.open(n.directory)  # as the command's own process has it
        try:
            datasets.remove(other, "cohort", actor="mara", now=time.time())
        finally:
            other.close()
        begun = time.monotonic()
        n.agent.changed()
        await until(lambda: n.hub.settled(task.id) and not Path(f"/proc/{pid}").exists())
        assert time.monotonic() - begun < 40  # of 60; a second where nothing else runs
        assert n.hub.settled(task.id) == Declined(task.id)
        assert len(n.details("task.stop")) == 1


async def test_no_task_runs_on_changed_files_until_they_are_accepted(tmp_path: Path) -> None:
    async with node(tmp_path) as n, n.running():
        n.accept(PLAN)
        await until(lambda: n.hub.states and n.hub.states[-1].datasets)
        path, model = n.directory / "cohort.csv", n.hub.publish(base_model())
        path.write_text(path.read_text() + "120,1\n")
        n.hub.assign(first := lease(n.hub, PLAN, model=model))
        await until(lambda: n.hub.settled(first.id))
        assert n.hub.settled(first.id) == Failed(first.id, "data-error")
        await until(lambda: not n.hub.states[-1].datasets)  # it is offered no more
        n.hub.assign(second := lease(n.hub, PLAN, model=model, job="job-2"))
        await until(lambda: n.hub.settled(second.id))
        assert n.hub.settled(second.id) == Declined(second.id)
        assert n.runs.tasks == [], "a task ran on content that nobody accepted"
        measuring.refresh(n.store, "cohort", actor="mara", now=time.time())
        n.agent.changed()
        n.hub.assign(third := lease(n.hub, PLAN, model=model, job="job-3"))
        await until(lambda: n.hub.settled(third.id))
        assert isinstance(n.hub.settled(third.id), Result)
        assert "dataset.files:changed" in n.actions()


@needs_bubblewrap
async def test_a_folder_is_read_inside_the_sandbox(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "visits"
    folder.mkdir(parents=True)
    for year in (2023, 2024):
        lines = "".join(f"{i},{i % 2}\n" for i in range(60))
        (folder / f"{year}.csv").write_text("x,y\n" + lines)
    body = 'w = weights["w"] + np.float32(args["lr"])'
    all_of_it = body[:-1] + ' * data.column("x").sum() / 3540)'
    reads = make_plan((body, all_of_it))
    runner = Runner(Bubblewrap(), tmp_path, Limits(threads=1))
    async with node(tmp_path, runner) as n, n.running():
        asked = Wanted("visits", ("cohort",), str(folder))
        measuring.register(n.store, asked, actor="mara", now=time.time())
        n.accept(reads)
        model = n.hub.publish(base_model())
        n.hub.assign(task := lease(n.hub, reads, model=model))
        await until(lambda: n.hub.settled(task.id))
        assert isinstance(n.hub.settled(task.id), Result), n.details("task.fail")
        assert n.hub.uploads[task.id]["w"][0] == 1.0, "not every file's records were read"
