"""Routes of live runs: what the agent works on, what it uses, what has left the site."""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from litestar import get, post
from litestar.params import FromPath, FromQuery, JSONBody

from consilia.node import memory, stops
from consilia.node.console.guard import Who, allow, anyone
from consilia.node.console.paging import number
from consilia.node.console.services import Here, Services
from consilia.node.console.trail import newest
from consilia.node.control import poke
from consilia.node.status import AgentStatus
from consilia.wire.console.runs import ReleasesView, ReleaseView, RunsView, RunView, StoppedView
from consilia.wire.console.studies import Decide

STOPS = allow("data_manager", "reviewer", "administrator")
# what the audit trail calls that something left, or was taken back before it did
LEFT = ("release", "site.advertise", "mask.", "pool.send")
_TICKS = os.sysconf("SC_CLK_TCK")


@get("/runs", opt=anyone(), sync_to_thread=True)
def get_runs(here: Here) -> RunsView:
    """Return what the agent works on now."""
    return view(here)


@post("/runs/{job:str}/stop", opt=STOPS, status_code=200, sync_to_thread=True)
def stop(here: Here, who: Who, job: FromPath[str], data: JSONBody[Decide]) -> StoppedView:
    """Refuse every task of a job from now on; what runs is stopped within a second."""
    running = sum(run.job == job for run in view(here).runs)
    stops.stop(here.store, job, actor=who.name, now=here.now(), reason=data.reason)
    here.tell_agent()
    return StoppedView(running)


@post("/runs/{job:str}/resume", opt=STOPS, status_code=204, sync_to_thread=True)
def resume(here: Here, who: Who, job: FromPath[str], data: JSONBody[Decide]) -> None:
    """Let the tasks of a stopped job run again."""
    stops.resume(here.store, job, actor=who.name, now=here.now(), reason=data.reason)
    here.tell_agent()


@get("/releases", opt=anyone(), sync_to_thread=True)
def list_releases(
    here: Here,
    before: FromQuery[int | None] = None,
    limit: FromQuery[int] = 100,
    job: FromQuery[str] = "",
) -> ReleasesView:
    """List what left the site, newest first, of one job or of all."""
    where = ["(" + " OR ".join("substr(action, 1, ?) = ?" for _ in LEFT) + ")"]
    values: list[object] = [v for name in LEFT for v in (len(name), name)]
    if before is not None:
        where.append("seq < ?")
        values.append(number(before))
    if job:
        where.append("substr(subject, 1, ?) = ?")
        values += [len(job) + 1, f"{job}."]
    found = newest(here.store, where, values, limit)
    shown = tuple(ReleaseView(s, a, act, sub, out, d) for s, a, _, act, sub, out, d, _ in found)
    shown = shown[:limit]
    return ReleasesView(shown, shown[-1].seq if len(found) > limit else None)


def view(here: Services) -> RunsView:
    """Return the agent's tasks with what their workers use."""
    answer = poke(here.directory, "status")
    stopped = tuple(sorted(stops.stopped(here.store)))
    if answer is None:
        return RunsView(False, False, "the agent does not run", (), stopped)
    found = msgspec.convert(answer, AgentStatus)
    workers = msgspec.convert(answer.get("workers", {}), dict[str, tuple[int, ...]])
    return RunsView(
        True,
        found.connected,
        found.problem,
        tuple(
            RunView(
                t.lease, t.job, t.kind, t.round, t.study, t.plan, t.phase, t.fraction, t.since,
                _cpu(workers.get(t.job, ())),
                memory.usage(pids, 1 << 62).memory if (pids := workers.get(t.job)) else None,
            )
            for t in found.tasks
        ),
        stopped,
    )  # fmt: skip


def _cpu(pids: Iterable[int]) -> float | None:
    """Return the processor seconds that the processes have used so far, None without any."""
    total, any_left = 0, False
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        total += int(fields[11]) + int(fields[12])  # utime and stime: proc(5), fields 14 and 15
        any_left = True
    return total / _TICKS if any_left else None


ROUTES = (get_runs, stop, resume, list_releases)
