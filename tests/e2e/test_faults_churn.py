"""Twenty nodes come and go at random for fifty rounds; the model is exact all the same."""

import random
import signal
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest
from faultkit import Lab, accepted

SITES = tuple(f"s{i:02}" for i in range(20))
ROUNDS = 50
LEAST = 8  # nodes that are left running
SEED = 20


class Churn(threading.Thread):
    """Kills, ends and starts agents, as `seed` says, until it is stopped."""

    def __init__(self, lab: Lab, seed: int) -> None:
        super().__init__()
        self._lab = lab
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._over = threading.Event()
        self.done: Counter[str] = Counter()
        self.orphans: list[psutil.Process] = []  # workers of agents that are gone
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do something to a node about twice a second."""
        try:
            while not self._over.wait(self._random.uniform(0.2, 0.8)):
                self._act(self._random.choice(SITES))
        except BaseException as e:
            self.error = e
            raise

    def stop(self) -> None:
        """Stop, and raise what went wrong meanwhile."""
        self._over.set()
        self.join()
        if self.error is not None:
            raise self.error

    def _act(self, site: str) -> None:
        lab = self._lab
        if site not in lab.processes:
            lab.start_node(site)
            self.done["start"] += 1
        elif len(lab.processes) > LEAST + 1:  # and the hub
            number = self._random.choice((signal.SIGKILL, signal.SIGTERM))
            self.orphans += lab.children(site)
            lab.end(site, number)
            self.done[number.name] += 1


@pytest.mark.slow(60)
def test_twenty_nodes_that_come_and_go_for_fifty_rounds(tmp_path: Path) -> None:
    with Lab(tmp_path, sandbox="off") as lab:
        lab.open(SITES)
        churn = Churn(lab, SEED)
        with lab.client() as client:
            changes = {"min_updates": 3, "min_sites": 3, "fraction": 0.5, "grace": 0.5}
            job = lab.start(client, ROUNDS, arguments={"wait": 0.3}, **changes)
            churn.start()
            try:
                view = lab.finish(client, job, 400)
            finally:
                churn.stop()
            assert [r.round for r in view.rounds] == list(range(ROUNDS + 1))
            trained = view.rounds[1:]
            assert all(len(r.sites) >= 3 for r in trained)
            lab.check(client, view)
            # Each update that was accepted is in its round, once.
            leases = sorted(lease.split(".", 1)[1] for lease in accepted(client, job))[1:]
            assert leases == sorted(f"{r.round}.0.{s}" for r in trained for s in r.sites)
            assert len({site for r in trained for site in r.sites}) > len(SITES) * 3 // 4
        assert churn.done["SIGKILL"] >= 10 and churn.done["SIGTERM"] >= 10, churn.done
        assert churn.done["start"] >= 20, churn.done
        for site in SITES:
            lab.audit_lines(site, "release")  # raises when the chain is broken
        lab.intact()
        _, left = psutil.wait_procs(churn.orphans, timeout=60)
        assert not left, "workers outlived their agents"
