"""What a private task that never ran costs: nothing. And one that may have run: all of it.

The line between them is the sandbox: a reservation begins when a worker process is there and
has been sent neither plan nor task. Real agents, real worker processes, a real kill -9.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from consilia.errors import WorkerError
from consilia.node import budget, ledger
from consilia.node.config import Budgets, Limits
from consilia.node.launcher import PlainProcess, WorkerProcess, WorkerSpec
from consilia.node.runner import Runner
from consilia.node.spending import Spending
from consilia.node.store import Store
from consilia.privacy.ledger import Head
from consilia.wire.v1 import Dp, Failed, Privacy
from nodekit import STUDY, base_model, lease, make_plan, node, until

PRIVATE = Privacy(dp=Dp("client", 2.0, 1.0))
NOTHING = {"patients": 0.0}


class NoSandbox(PlainProcess):
    """A launcher of a machine on which no process starts."""

    async def launch(self, spec: WorkerSpec) -> WorkerProcess:
        del spec
        raise WorkerError("the worker does not start: no process is left", "crashed")


def spent(store: Store) -> dict[str, float]:
    return {
        s.name: s.epsilon for s in ledger.standings(store, Budgets()) if s.kind == "universe"
    }


def state(store: Store, name: str) -> str:
    found = ledger.find(store, name)
    return "" if found is None else found.state


async def test_a_sandbox_that_never_started_costs_nothing(tmp_path: Path) -> None:
    runner = Runner(NoSandbox(), tmp_path, Limits(threads=1))
    async with node(tmp_path, runner) as n, n.running():
        plan = make_plan()
        n.accept(plan)
        n.hub.offer_all((STUDY,), plan)  # with it comes the mirror of the ledger
        task = lease(n.hub, plan, model=n.hub.publish(base_model()), privacy=PRIVATE)
        n.hub.assign(task)
        await until(lambda: n.hub.settled(task.id))
        assert n.hub.settled(task.id) == Failed(task.id, "crashed")
        await until(lambda: state(n.store, task.id) == "refunded")
        assert spent(n.store) == NOTHING
        assert "budget.refund:refunded" in n.actions()


async def test_a_plan_that_crashes_while_it_loads_has_seen_the_data_and_pays(
    tmp_path: Path,
) -> None:
    """Otherwise it could look, and answer one question a time by crashing or not, for free."""
    runner = Runner(PlainProcess(), tmp_path, Limits(threads=1))
    async with node(tmp_path, runner) as n, n.running():
        plan = make_plan(("import time\n", "import os, time\nos._exit(3)\n"))
        n.accept(plan)
        n.hub.offer_all((STUDY,), plan)  # with it comes the mirror of the ledger
        task = lease(n.hub, plan, model=n.hub.publish(base_model()), privacy=PRIVATE)
        n.hub.assign(task)
        await until(lambda: n.hub.settled(task.id))
        assert n.hub.settled(task.id) == Failed(task.id, "crashed")
        assert state(n.store, task.id) == "started"
        assert spent(n.store)["patients"] > 1


DIES = """
import os, signal, sys, time
from pathlib import Path
from consilia.node.config import Budgets
from consilia.node.spending import Spending
from consilia.node.store import Store
from consilia.wire.v1 import Dp, Lease, Privacy, Task

store = Store.open(Path(sys.argv[1]))
spending = Spending(store, Budgets(), time.time)
for number in range(3):
    task = Task("train", "j", number, "sha256:5", "hearts", "sha256:7", {}, (), "b3:0", 1,
                privacy=Privacy(dp=Dp("client", 2.0, 1.0)))
    lease = Lease(f"j.{number}.0.here", task, 60.0)
    spending.reserve(lease, "cohort")
    if number == 0:
        spending.begin(lease)
print("there", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("restored", [False, True], ids=["", "put back to an older state"])
def test_what_a_killed_agent_had_not_begun_is_given_back(
    tmp_path: Path, restored: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(tmp_path)],
        env=os.environ, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("there\n", -signal.SIGKILL), done.stderr
    store = Store.open(tmp_path)
    names = [f"j.{number}.0.here" for number in range(3)]
    assert [state(store, name) for name in names] == ["started", "reserved", "reserved"]
    before = spent(store)["patients"]
    if restored:  # what this state has reserved may have begun in the one that was lost
        assert budget.compare(store, Head(99, "sha256:" + "1" * 64), 1.0)
        with store.write() as tx:
            budget.accept_restore(tx, actor="mara", reason="the disk was replaced", now=2.0)
    swept = Spending(store, Budgets(), lambda: 3.0).sweep()
    if restored:
        assert swept == () and spent(store)["patients"] == before
    else:
        assert swept == tuple(names[1:])
        assert [state(store, name) for name in names] == ["started", "refunded", "refunded"]
        assert 0 < spent(store)["patients"] < before
        assert Spending(store, Budgets(), lambda: 4.0).sweep() == ()
    store.close()
