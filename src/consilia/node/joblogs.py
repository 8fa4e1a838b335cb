"""What happened to jobs here, line by line: time, level, who says it. For the site's eyes.

Two kinds of files are read: the agent's own log (node.logs, JSON lines), and one of each job
with what its plan printed and what the agent noted of its worker (node.pipes). They may hold
whatever a plan printed, so nothing of them leaves the site. They are read from their ends, a
bounded part of each, and put in order of time.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from consilia.errors import ConfigError, Wrong
from consilia.node.runner import file_name

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)
MOST = 1000  # lines of one answer
MAX_TEXT = 4000  # characters of one line that are shown
_BLOCK = 1 << 16
_READ = 4 << 20  # bytes of one file that are looked at, from its end
_FILES = 50  # logs of jobs that are looked at when no job is named, the newest
_LINE = re.compile(r"(\S+) (DEBUG|INFO|WARNING|ERROR) (plan|agent): (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Line:
    """One line. `at` is Unix seconds; of a line without a time, that of the one before it."""

    at: float
    level: Level
    job: str  # "": it names none
    who: Literal["plan", "agent"]
    text: str


def read(
    directory: Path,
    *,
    job: str = "",
    level: str = "debug",
    before: float = 0.0,
    last: int = 200,
) -> list[Line]:
    """Return the newest `last` lines, oldest first, of one job or of all.

    `level` is the least that is shown; `before`, where not 0, the time they are older than.
    Raises ConfigError for a level that does not exist.
    """
    least = next((i for i, name in enumerate(LEVELS) if name == level), None)
    if least is None:
        raise ConfigError(Wrong("level", f"{level[:40]!r}", f"one of {', '.join(LEVELS)}"))
    if not 1 <= last <= MOST:
        raise ConfigError(Wrong("last", f"{last}", f"1 to {MOST}"))
    wanted = LEVELS[least:]

    def fits(line: Line) -> bool:
        return line.level in wanted and (not before or line.at < before)

    found: list[Line] = []
    for lines in _sources(directory, job):
        found += islice((line for line in lines if fits(line)), last)
    found.reverse()  # lines of one moment in their order: the sort keeps it
    found.sort(key=lambda line: line.at)
    return found[-last:]


def jobs(directory: Path) -> tuple[str, ...]:
    """Return the jobs that have a log of their own, the one that was written last first."""
    return tuple(path.name.removesuffix(".log") for path in _newest(directory))


# ---- inside --------------------------------------------------------------------------------


def _sources(directory: Path, job: str) -> Iterator[Iterable[Line]]:
    """Yield the lines of each log, the newest first."""
    folder = directory / "log"
    names = [folder / "agent.log", *(folder / f"agent.log.{n}" for n in range(1, 10))]
    yield (line for path in names for line in _agents(path, job))
    most = _READ if job else _READ // 16
    own = [folder / "jobs" / f"{file_name(job)}.log"] if job else _newest(directory)
    for path in own:
        name = job or path.name.removesuffix(".log")
        yield (
            line for p in (path, path.with_suffix(".log.1")) for line in _jobs(p, name, most)
        )


def _newest(directory: Path) -> list[Path]:
    found = list((directory / "log" / "jobs").glob("*.log"))
    return sorted(found, key=_written, reverse=True)[:_FILES]


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # it has just gone, with its study


def _agents(path: Path, job: str) -> Iterator[Line]:
    """Yield the agent's lines about a job, or all of them."""
    named = re.compile(rf"(?<![\w-]){re.escape(job)}(?![\w-])") if job else None
    for text in _backwards(path, _READ):
        try:
            found = json.loads(text)
            at = datetime.fromisoformat(found["at"]).timestamp()
            level: Level = found["level"] if found["level"] in LEVELS else "error"
            # JSON writes a terminal's escapes as \u001b, so they are there again only now
            said = _steady("\n".join(str(found[k]) for k in ("what", "error") if k in found))
        except (ValueError, KeyError, TypeError):
            continue  # half a line, of a disk that was full
        about = _steady(str(found.get("job", "")))
        if named is None or about == job or named.search(said):
            yield Line(at, level, job or about, "agent", said[:MAX_TEXT])


def _jobs(path: Path, job: str, most: int) -> Iterator[Line]:
    """Yield the lines of a job's own log; those without a time get that of the one above."""
    bare: list[str] = []
    for text in _backwards(path, most):
        found = _LINE.fullmatch(text)
        at = _time(found[1]) if found else None
        if found is None or at is None:
            bare.append(text)
            continue
        for below in bare:
            yield Line(at, "info", job, "plan", below[:MAX_TEXT])
        bare = []
        level: Level = next(name for name in LEVELS if name == found[2].lower())
        who: Literal["plan", "agent"] = "agent" if found[3] == "agent" else "plan"
        yield Line(at, level, job, who, found[4][:MAX_TEXT])
    for below in bare:  # of a release that wrote no times
        yield Line(_written(path), "info", job, "plan", below[:MAX_TEXT])


def _time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _backwards(path: Path, most: int) -> Iterator[str]:
    """Yield a file's lines from its end, of at most `most` bytes; none where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        end = os.fstat(fd).st_size
        least, rest = max(0, end - most), b""
        while end > least:
            start = max(least, end - _BLOCK)
            first, *lines = (os.pread(fd, end - start, start) + rest).split(b"\n")
            end, rest = start, first
            yield from (_shown(line) for line in reversed(lines) if line.strip())
        if rest.strip() and end == 0:
            yield _shown(rest)
    finally:
        os.close(fd)


def _shown(line: bytes) -> str:
    """Return a line as text that moves no cursor."""
    return _steady(line.decode(errors="replace").rstrip("\r"))


def _steady(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
