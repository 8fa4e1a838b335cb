"""What every launcher and everything that runs tasks must do, sandboxed or not."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consilia.errors import ConfigError, WorkerError
from consilia.node.config import Limits
from consilia.node.inprocess import InProcess
from consilia.node.launcher import Bubblewrap, Launcher, PlainProcess, WorkerSpec
from consilia.node.processes import Place, start
from consilia.node.runner import Runner, choose_launcher
from workkit import Site, plan, processes_with, site, table, until

ADD = plan("""
    def train(weights, data, args, context):
        context.progress(0.5, seen=data.records)
        weights["w"] += 1
        return {"pid": os.getpid() % 1000}
""")
SLEEP = plan("""
    def train(weights, data, args, context):
        for i in range(600):
            context.progress(i / 600)
            time.sleep(0.1)
""")

SLOW_START = plan("""
    time.sleep(1.5)
    def train(weights, data, args, context):
        pass
""")


@pytest.fixture(params=["plain", "bubblewrap", "thread", "inline"])
async def here(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """A site with each way to run tasks."""
    if request.param in ("thread", "inline"):
        inside = InProcess(site="here", in_thread=request.param == "thread")
        yield Site(inside, tmp_path, [])
        await inside.close()
        return
    launcher: Launcher = PlainProcess() if request.param == "plain" else Bubblewrap()
    if reason := launcher.available():
        pytest.skip(reason)
    async with site(tmp_path / "node", launcher) as ready:
        yield ready


async def test_init_then_rounds(here: Site, tmp_path: Path) -> None:
    dataset = table(tmp_path / "t.csv")
    model = await here.init(ADD)
    for _ in range(3):
        done, weights = await here.train(ADD, dataset, model)
        assert done.records == 60
        assert (weights["w"] == 1).all()
    await asyncio.sleep(0)
    # a worker process tells only as often as anybody looks
    assert 1 <= len(here.steps) <= 3
    assert set(map(str, here.steps)) == {"(0.5, {'seen': 60.0})"}


async def test_a_plan_that_fails_says_why_and_the_job_goes_on(
    here: Site, tmp_path: Path
) -> None:
    dataset = table(tmp_path / "t.csv")
    body = plan("def train(w, d, a, c):\n    return {'x': 1 / a['n']}\n")
    model = await here.init(body)
    for _ in range(2):
        with pytest.raises(WorkerError, match="ZeroDivisionError") as caught:
            await here.train(body, dataset, model)
        assert caught.value.cause == "plan-error"
        done, _ = await here.train(body, dataset, model, arguments={"n": 2})
        assert done.metrics == {"x": 0.5}


async def test_a_plan_that_does_not_load(here: Site, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="ZeroDivisionError") as caught:
        await here.init(plan("1 / 0"))
    assert caught.value.cause == "plan-contract"


async def test_jobs_do_not_share(here: Site, tmp_path: Path) -> None:
    dataset = table(tmp_path / "t.csv")
    counts = plan(
        "BOX = []\ndef train(w, d, a, c):\n    BOX.append(1)\n    return {'n': len(BOX)}\n"
    )
    model = await here.init(counts, job="a")
    first = [(await here.train(counts, dataset, model, job="a"))[0].metrics["n"] for _ in "12"]
    assert first == [1.0, 2.0]  # warm
    assert (await here.train(counts, dataset, model, job="b"))[0].metrics["n"] == 1.0
    await here.runner.stop("a")
    assert (await here.train(counts, dataset, model, job="a"))[0].metrics["n"] == 1.0


async def test_another_plan_or_dataset_gets_a_new_worker(here: Site, tmp_path: Path) -> None:
    one, two = table(tmp_path / "t.csv"), table(tmp_path / "u.csv", rows=80)
    counts = (
        "BOX = []\ndef train(w, d, a, c):\n    BOX.append(1)\n"
        "    return {'n': len(BOX), 'r': d.records}\n"
    )
    model = await here.init(plan(counts))
    assert (await here.train(plan(counts), one, model))[0].metrics == {"n": 1.0, "r": 60.0}
    assert (await here.train(plan(counts), two, model))[0].metrics == {"n": 1.0, "r": 80.0}
    other = plan(counts + "# changed\n")
    assert (await here.train(other, two, model))[0].metrics == {"n": 1.0, "r": 80.0}


async def test_time_out(here: Site, tmp_path: Path) -> None:
    dataset = table(tmp_path / "t.csv")
    model = await here.init(ADD)
    with pytest.raises(WorkerError) as caught:
        await here.train(SLEEP, dataset, model, timeout=0.8)
    assert caught.value.cause == "timeout"
    done, _ = await here.train(ADD, dataset, model)
    assert done.records == 60


async def test_an_output_can_be_dropped(here: Site, tmp_path: Path) -> None:
    dataset = table(tmp_path / "t.csv")
    model = await here.init(ADD)
    output = await here.start(ADD, dataset, model=model)
    output.close(consumed=False)
    output.close(consumed=False)
    _, weights = await here.train(ADD, dataset, model)
    assert (weights["w"] == 1).all()


async def test_stopping_a_job_that_does_not_exist(here: Site) -> None:
    await here.runner.stop("nothing")


# ---- workers in processes --------------------------------------------------------------------


@pytest.fixture(params=["plain", "bubblewrap"])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    found: Launcher = PlainProcess() if request.param == "plain" else Bubblewrap()
    if reason := found.available():
        pytest.skip(reason)
    return found


async def test_a_worker_is_kept_warm(launcher: Launcher, tmp_path: Path) -> None:
    async with site(tmp_path / "node", launcher) as here:
        dataset = table(tmp_path / "t.csv")
        model = await here.init(ADD)
        assert isinstance(here.runner, Runner)
        await here.train(ADD, dataset, model)
        workers = here.runner.workers
        await here.train(ADD, dataset, model)
        assert here.runner.workers == workers
        assert len(workers) == 1
        assert not list((tmp_path / "node" / "jobs").rglob("*.frame")), "the link is removed"
    assert not (tmp_path / "node" / "jobs").exists()


async def test_a_new_worker_while_the_one_before_it_still_ends(tmp_path: Path) -> None:
    """A job that is stopped and resumed at once: what clears up keeps off the new worker."""
    lingers = plan("""
        def train(weights, data, args, context):
            if args["n"] and os.fork() == 0:
                os.setsid()  # it outlives its worker, whose log is open as long
                time.sleep(args["n"])
                os._exit(0)
    """)
    async with site(tmp_path / "node", PlainProcess()) as here:
        dataset = table(tmp_path / "t.csv")
        model = await here.init(lingers)
        await here.train(lingers, dataset, model, arguments={"n": 5})
        stopping = asyncio.create_task(here.runner.stop("job"))
        await asyncio.sleep(0)
        output = await here.start(SLOW_START, dataset, model=model)
        await stopping
        await here.take(output)
        await here.train(SLOW_START, dataset, model)


async def test_an_idle_worker_is_closed(launcher: Launcher, tmp_path: Path) -> None:
    async with site(tmp_path / "node", launcher, Limits(threads=1, idle_seconds=1)) as here:
        dataset = table(tmp_path / "t.csv")
        model = await here.init(ADD)
        assert isinstance(here.runner, Runner)
        runner = here.runner
        assert await until(lambda: runner.workers == ())
        done, _ = await here.train(ADD, dataset, model)
        assert done.records == 60


async def test_a_crash_is_told_with_its_last_words(launcher: Launcher, tmp_path: Path) -> None:
    body = plan("""
        def train(weights, data, args, context):
            print("my last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), 11)
    """)
    async with site(tmp_path / "node", launcher) as here:
        dataset = table(tmp_path / "t.csv")
        model = await here.init(ADD)
        with pytest.raises(WorkerError, match="my last words") as caught:
            await here.train(body, dataset, model)
        assert caught.value.cause == "crashed"
        log = (tmp_path / "node" / "log" / "jobs" / "job.log").read_text()
        assert "Segmentation fault" in log  # faulthandler
        done, _ = await here.train(ADD, dataset, model)
        assert done.records == 60


async def test_a_killed_worker_is_noticed_at_the_next_task(
    launcher: Launcher, tmp_path: Path
) -> None:
    async with site(tmp_path / "node", launcher) as here:
        dataset = table(tmp_path / "t.csv")
        model = await here.init(ADD)
        await here.train(ADD, dataset, model)
        assert isinstance(here.runner, Runner)
        (pid,) = here.runner.workers
        os.kill(pid, 9)
        runner = here.runner
        assert await until(lambda: runner.workers == ())
        done, _ = await here.train(ADD, dataset, model)
        assert done.records == 60


async def test_peak_memory_is_reported(launcher: Launcher, tmp_path: Path) -> None:
    body = plan("def train(w, d, a, c):\n    np.ones(8 << 20)\n")
    async with site(tmp_path / "node", launcher) as here:
        dataset = table(tmp_path / "t.csv")
        model = await here.init(ADD)
        output = await here.start(body, dataset, model=model)
        assert 64 << 20 < output.peak_rss < 200 << 20
        assert 0 < output.seconds < 30
        await here.take(output)


async def test_memory_of_one_batch_is_there_for_the_next(
    launcher: Launcher, tmp_path: Path
) -> None:
    """Arrays of a megabyte, made and dropped, are not mapped and faulted in each time."""
    body = """
        import resource
        def train(weights, data, args, context):
            for _ in range(5):
                np.ones(1 << 18, np.float32)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(100):
                np.ones(1 << 18, np.float32)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            return {"faults": faults}
    """
    pages, dataset = (1 << 20) / resource.getpagesize(), table(tmp_path / "t.csv")
    async with site(tmp_path / "node", launcher) as here:
        model = await here.init(plan(body))
        # now and then the kernel lays a process out so that its heap cannot grow
        for job in ("first", "second", "third"):
            done, _ = await here.train(plan(body), dataset, model, job=job)
            if done.metrics["faults"] < 5 * pages:
                return
    raise AssertionError("a hundred arrays cost as much as a few")


async def test_two_tasks_of_one_job_follow_each_other(
    launcher: Launcher, tmp_path: Path
) -> None:
    async with site(tmp_path / "node", launcher) as here:
        dataset = table(tmp_path / "t.csv")
        model = await here.init(ADD)
        found = await asyncio.gather(*(here.train(ADD, dataset, model) for _ in range(4)))
        assert all((weights["w"] == 1).all() for _, weights in found)


async def test_a_job_id_never_leaves_its_folder(launcher: Launcher, tmp_path: Path) -> None:
    async with site(tmp_path / "node", launcher) as here:
        await here.init(ADD, job="../../evil")
        logs = list((tmp_path / "node" / "log" / "jobs").iterdir())
        assert len(logs) == 1
    assert not (tmp_path.parent / "evil.log").exists()
    assert not (tmp_path / "evil.log").exists()


async def test_leftovers_of_a_killed_agent_are_removed(tmp_path: Path) -> None:
    old = tmp_path / "jobs" / "old"
    old.mkdir(parents=True)
    (old / "model.frame").write_bytes(b"x")
    runner = Runner(PlainProcess(), tmp_path, Limits())
    assert not old.exists()
    await runner.close()


async def test_stop_kills_children(launcher: Launcher, tmp_path: Path) -> None:
    marker = f"64.{os.getpid()}{len(launcher.name)}"
    body = plan("""
        import subprocess
        def train(weights, data, args, context):
            subprocess.run(["sleep", args["s"]])
    """)
    async with site(tmp_path / "node", launcher) as here:
        dataset = table(tmp_path / "t.csv")
        model = await here.init(ADD)
        running = asyncio.create_task(here.train(body, dataset, model, arguments={"s": marker}))
        assert await until(lambda: bool(processes_with(marker)))
        await here.runner.stop("job", "stopped")
        with pytest.raises(WorkerError) as caught:
            await running
        assert caught.value.cause == "stopped"
        assert await until(lambda: not processes_with(marker), 30)


async def test_no_descriptor_of_the_agent_is_passed_on(
    launcher: Launcher, tmp_path: Path
) -> None:
    body = plan("""
        def train(weights, data, args, context):
            links = [f"/proc/self/fd/{fd}" for fd in range(64)]
            found = [os.readlink(link) for link in links if os.path.islink(link)]
            print(found)
            return {"others": sum(not f.startswith(("pipe:", "/dev/null")) for f in found)}
    """)
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        async with site(tmp_path / "node", launcher) as here:
            dataset = table(tmp_path / "t.csv")
            model = await here.init(ADD)
            done, _ = await here.train(body, dataset, model)
            assert done.metrics == {"others": 0.0}


async def test_a_worker_that_is_just_starting_is_not_charged_for_the_machine() -> None:
    """Until bubblewrap has changed its root, its /tmp is everybody's."""
    command = ["/bin/sh", "-c", "sleep 30 & wait"]
    process = await start(command, {}, Place(str, ("/tmp", "/dev/shm")))  # noqa: S108
    try:
        assert await until(lambda: len(process.pids()) == 2)
        assert process.unmapped() == 0
    finally:
        process.kill()
        await process.wait()
        process.close()


# ---- choosing --------------------------------------------------------------------------------


def test_a_launcher_that_is_not_there_says_so() -> None:
    assert "apt-get install bubblewrap" in (Bubblewrap("no-such-bwrap").available() or "")
    assert "cannot make a sandbox here" in (Bubblewrap("false").available() or "")
    assert PlainProcess().available() is None


async def test_a_launcher_that_cannot_start_raises(tmp_path: Path) -> None:
    spec = WorkerSpec("job", tmp_path, None, Limits(), 1)
    with pytest.raises(WorkerError, match="does not start"):
        await Bubblewrap("no-such-bwrap").launch(spec)


def test_choose() -> None:
    assert choose_launcher("off").name == "none"
    if Bubblewrap().available() is None:
        assert choose_launcher("required").name == "bubblewrap"
    with pytest.raises(ConfigError, match="sandbox: off"):
        choose_launcher("required", Bubblewrap("no-such-bwrap"))
