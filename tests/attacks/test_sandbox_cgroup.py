"""Where the agent may make control groups, the kernel itself bounds a worker."""

from pathlib import Path

import pytest

from consilia.node import cgroup
from consilia.node.config import Limits
from consilia.node.launcher import Bubblewrap
from sandboxkit import HONEST, MIB, broken, honest, needs_bubblewrap
from workkit import plan, site, table

pytestmark = [
    needs_bubblewrap,
    pytest.mark.skipif(
        (reason := cgroup.missing()) is not None, reason=f"no control groups here: {reason}"
    ),
]


async def test_a_worker_is_in_a_group_that_goes_with_it(tmp_path: Path) -> None:
    limits = Limits(threads=1, memory_bytes=300 * MIB, processes=40)
    launcher = Bubblewrap()
    async with site(tmp_path / "node", launcher, limits) as here:
        model = await here.init(HONEST, job="honest")
        base = cgroup.find()
        (group,) = base.glob("worker-*")
        assert int((group / "memory.max").read_text()) == 300 * MIB
        assert int((group / "pids.max").read_text()) == 40 + 4 + 2
        assert len((group / "cgroup.procs").read_text().split()) >= 2
        await honest(here, tmp_path, model)
        assert not [lack for lack in launcher.lacks() if "control group" in lack]
    assert list(base.glob("worker-*")) == []


async def test_the_kernel_ends_what_grows_too_fast_to_be_seen(tmp_path: Path) -> None:
    """Filled with one call, between two looks of the watcher."""
    body = """
        import mmap
        def train(weights, data, args, context):
            page = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(23)  # MADV_POPULATE_WRITE
            time.sleep(600)
    """
    limits = Limits(threads=1, memory_bytes=300 * MIB)
    cause, seconds = await broken(tmp_path, body, limits)
    assert cause == "memory"
    assert seconds < 300


async def test_the_kernel_refuses_processes_of_root_too(tmp_path: Path) -> None:
    """RLIMIT_NPROC does not bind root; a group's pids.max does."""
    body = plan("""
        def train(weights, data, args, context):
            children = []
            try:
                while len(children) < 200:
                    child = os.fork()
                    if child == 0:
                        time.sleep(30)
                        os._exit(0)
                    children.append(child)
            except OSError:
                pass
            for child in children:
                os.kill(child, 9)
                os.waitpid(child, 0)
            return {"children": len(children)}
    """)
    limits = Limits(threads=1, processes=24)
    async with site(tmp_path / "node", Bubblewrap(), limits) as here:
        model = await here.init(HONEST, job="honest")
        dataset = table(tmp_path / "cohort.csv")
        done, _ = await here.train(body, dataset, model)
        assert 5 < done.metrics["children"] < 24 + 4 + 2
        await honest(here, tmp_path, model)
