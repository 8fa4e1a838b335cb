"""Routes of live runs: what the agent works on, what it uses, what has left the site."""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from litestar import get, post
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec.structs import replace

from consilia.errors import ConfigError, Wrong
from consilia.node import memory, stops
from consilia.node.console.guard import Who, allow, anyone
from consilia.node.console.paging import MOST, number
from consilia.node.console.services import Here, Services
from consilia.node.console.trail import newest
from consilia.node.control import poke
from consilia.node.status import AgentStatus
from consilia.wire.console.runs import ReleasesView, ReleaseView, RunsView, RunView, StoppedView
from consilia.wire.console.studies import Decide

STOPS = allow("data_manager", "reviewer", "administrator")
# what the audit trail calls that something left, or was taken back before it did
ADVERTISE = "site.advertise"
LEFT = {"release": "release", "advertise": ADVERTISE, "mask": "mask.", "pool": "pool.send"}
MOST_READ = 20_000  # lines for one page: a longer row of advertisements goes on on the next
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
def list_releases(  # noqa: PLR0913, PLR0917 - a filter's fields
    here: Here,
    before: FromQuery[int | None] = None,
    least: FromQuery[int | None] = None,
    limit: FromQuery[int] = 100,
    job: FromQuery[str] = "",
    kind: FromQuery[str] = "",
    fold: FromQuery[bool] = False,
) -> ReleasesView:
    """List what left the site, newest first, of one job or kind or of all.

    `before` and `least` bound the lines' numbers. `fold` makes one line of advertisements that
    follow one another.
    """
    if kind and kind not in LEFT:
        raise ConfigError(Wrong("kind", repr(kind[:40]), f"one of {', '.join(LEFT)}, or none"))
    if not 1 <= limit <= MOST:
        raise ConfigError(Wrong("limit", f"{limit}", f"1 to {MOST}"))
    names = [LEFT[kind]] if kind else list(LEFT.values())
    where = ["(" + " OR ".join("substr(action, 1, ?) = ?" for _ in names) + ")"]
    values: list[object] = [v for name in names for v in (len(name), name)]
    if least is not None:
        where.append("seq >= ?")
        values.append(number(least))
    if job:
        where.append("substr(subject, 1, ?) = ?")
        values += [len(job) + 1, f"{job}."]
    start = None if before is None else number(before)
    return _releases(here, where, values, start, limit, fold)


def _releases(  # noqa: PLR0913, PLR0917 - a page of a filter
    here: Services,
    where: list[str],
    values: list[object],
    before: int | None,
    limit: int,
    fold: bool,
) -> ReleasesView:
    """Return a page of the lines that fit, from `before` on backwards."""
    shown: list[ReleaseView] = []
    asked, read = (MOST, 0) if fold else (limit, 0)
    while True:
        page = (where, values) if before is None else ([*where, "seq < ?"], [*values, before])
        found = newest(here.store, *page, asked)
        for seq, at, _, action, subject, outcome, detail, _ in found:
            last = shown[-1] if shown else None
            if fold and last is not None and action == last.action == ADVERTISE:
                shown[-1] = replace(last, count=last.count + 1, oldest=seq, since=at)
            elif len(shown) == limit:
                return ReleasesView(tuple(shown), shown[-1].oldest)
            else:
                shown.append(ReleaseView(seq, at, action, subject, outcome, detail, 1, seq, at))
        if len(found) <= asked:
            return ReleasesView(tuple(shown), None)
        before, read = int(found[-1][0]), read + len(found)
        if read >= MOST_READ:
            return ReleasesView(tuple(shown), before)


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
