"""Runs a small job, killed at a chosen step of the hub; a child process for every attempt.

    python crash_hub.py DIRECTORY  ->  one JSON line on stdout

Interpreter and imports are paid once: each attempt is a fork of this process, ended by SIGKILL
at its step and followed by another that finds only what is on disk. A node keeps two files of
its own, as a real one does: what it has sent, and what it was told is durable.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

from hubkit import Hub, Node, body_of, open_hub, serving

from consilia.core.chain import Break
from consilia.core.round import Accepted
from consilia.hub import audit, journal, modelversions, records
from consilia.wire.v1 import Lease, Result, Verdict

SITES = ("a", "b")
ROUNDS = 2


@dataclass
class Killer:
    """Counts steps, and ends the process without ceremony at one of them."""

    at: int  # 0: never
    log: Path
    only: str = ""  # of the steps of this name; "": of all
    steps: list[str] = field(default_factory=list)

    def step(self, name: str) -> None:
        """Called at every numbered step, on any thread."""
        self.steps.append(name)
        reached = self.steps.count(self.only) if self.only else len(self.steps)
        if reached == self.at and self.only in ("", name):
            self.log.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Diary:
    """A node's own durable memory: reports sent, and reports acknowledged."""

    path: Path

    def add(self, what: str, report: Result) -> None:
        """Append one line in one write."""
        with self.path.open("ab") as file:
            file.write(what.encode() + b" " + msgspec.json.encode(report) + b"\n")

    def read(self, what: str) -> dict[str, Result]:
        """Return the reports noted as `what`, by lease."""
        if not self.path.exists():
            return {}
        lines = [line.split(b" ", 1) for line in self.path.read_bytes().splitlines()]
        reports = [msgspec.json.decode(b, type=Result) for k, b in lines if k == what.encode()]
        return {report.lease: report for report in reports}


@dataclass(kw_only=True)
class Diarist(Node):
    """A node that remembers what it sent, and asks again after a restart of the hub."""

    diary: Diary

    async def work(self, lease: Lease) -> Verdict:
        """Train, upload in small pieces, report; every piece is a step."""
        task = lease.task
        model = {} if task.model is None else await asyncio.to_thread(self.download, task.model)
        weights, count, metrics = self.train(self.site, task, model)
        header = await asyncio.to_thread(self.upload, lease.id, body_of(weights))
        report = Result(lease.id, task.job, task.round, header.digest, count, metrics)
        self.diary.add("sent", report)
        verdict = await self.tell(report)
        self.running.remove(lease.id)
        return verdict

    async def tell(self, report: Result) -> Verdict:
        """Report, and note the acknowledgement; a refusal fails the test."""
        verdict = await self.report(report)
        if not verdict.accepted:
            raise AssertionError(f"{report.lease}: {verdict.reason}")
        self.diary.add("acknowledged", report)
        return verdict

    async def tell_again(self) -> None:
        """Repeat everything that was sent: what was acknowledged stands, the rest counts."""
        for report in self.diary.read("sent").values():
            await self.tell(report)


async def attempt(directory: Path, killer: Killer, strategy: str) -> None:
    """Start the job or go on with it, to its end; write what came of it."""
    async with open_hub(directory, sites=SITES, checkpoint=killer.step) as hub:
        nodes = [
            Diarist(hub, s, step=killer.step, diary=Diary(directory / f"{s}.diary"))
            for s in SITES
        ]
        for node in nodes:
            await node.tell_again()
        jobs = (await hub.store.read(records.list_jobs)).items
        async with serving(*nodes):
            if not jobs:
                await asyncio.sleep(0.05)
            job = jobs[0].id if jobs else await start(hub, strategy)
            view = await hub.until(job, "done", "failed", timeout=120)
        await hub.tidied()
        result = await outcome(hub, job, nodes)
        result |= {"state": view.state, "cause": view.cause}
    result["steps"] = killer.steps
    (directory / "result.json").write_text(json.dumps(result))


async def start(hub: Hub, strategy: str) -> str:
    """Start the job: deterministic, both sites in every round."""
    return await hub.start(
        rounds=ROUNDS,
        min_updates=2,
        min_sites=2,
        deterministic=True,
        deadline=60.0,
        grace=60.0,
        strategy={"name": strategy, "options": {}},
    )


async def outcome(hub: Hub, job: str, nodes: list[Diarist]) -> dict[str, object]:
    """Return what must be the same whatever happened on the way."""
    versions = await hub.store.read(lambda db: modelversions.of_job(db, job))
    events = await hub.store.read(lambda db: journal.replay(db, job))
    accepted = [e.lease.split(".", 1)[1] for _, e in events if isinstance(e, Accepted)]
    known = [lease.split(".", 1)[1] for n in nodes for lease in n.diary.read("acknowledged")]
    checked = await hub.store.read(audit.check)
    return {
        "digests": [v.digest for v in versions],
        "records": [v.records for v in versions],
        "accepted": sorted(accepted),
        "acknowledged": sorted(known),
        "audit": "broken" if isinstance(checked, Break) else "intact",
    }


def fork(directory: Path, at: int, strategy: str, only: str = "") -> bool:
    """Run one attempt in a child; return whether it was killed at step `at` (of `only`)."""
    child = os.fork()
    if not child:
        code = 1
        try:
            killer = Killer(at, directory / "killed", only)
            asyncio.run(attempt(directory, killer, strategy))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    if status:
        raise SystemExit(f"step {at}: an attempt ended with status {status}")
    return False


def result_of(directory: Path) -> dict[str, object]:
    """Return what the last attempt in `directory` has written."""
    found: dict[str, object] = json.loads((directory / "result.json").read_text())
    return found


def main(root: Path, strategy: str) -> None:
    """Run the job undisturbed, then once for every step, killed there and taken up again."""
    plain = root / "plain"
    plain.mkdir()
    fork(plain, 0, strategy)
    expected = result_of(plain)
    steps = expected.pop("steps")
    assert isinstance(steps, list)
    points = []
    for at in range(1, len(steps) + 1):
        place = root / f"at-{at}"
        place.mkdir()
        name = str(steps[at - 1])  # by name: runs group their commits differently
        killed = fork(place, steps[:at].count(name), strategy, name)
        step = (place / "killed").read_text() if killed else ""
        # Every third time the recovery is killed too, a little further each time.
        again = killed and at % 3 == 0 and fork(place, 1 + at // 3 % 12, strategy)
        if killed:
            fork(place, 0, strategy)
        points.append({"at": at, "step": step, "again": again, "result": result_of(place)})
        shutil.rmtree(place)
    print(json.dumps({"expected": expected, "steps": steps, "points": points}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
