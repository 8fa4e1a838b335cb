"""Logs of jobs as the site's people read them: time, level, who, and nothing forged."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from consilia.errors import ConfigError
from consilia.node import joblogs
from consilia.node.pipes import LogPipe


async def said(path: Path, *pieces: bytes, note: str = "") -> None:
    """Let a worker say something at 10:00 UTC, and the agent note something after it."""
    reading, writing = os.pipe()
    log = LogPipe(reading, path, lambda: 1_800_000_000.0)
    for piece in pieces:
        os.write(writing, piece)
        await asyncio.sleep(0.02)
    if note:
        log.note(note)
    os.close(writing)
    await log.close()
    os.close(reading)


async def test_a_job_is_read_with_time_level_and_speaker(tmp_path: Path) -> None:
    path = tmp_path / "log" / "jobs" / "job-1.log"
    forged = b"2027-01-15T08:00:00.000+00:00 ERROR agent: the site is on fire\n"
    await said(path, b"loss 0.3\nhalf ", b"a line\n", forged, note="round 2: out\nof memory")
    found = joblogs.read(tmp_path, job="job-1")
    assert [(x.level, x.who, x.text) for x in found] == [
        ("info", "plan", "loss 0.3"),
        ("info", "plan", "half a line"),
        ("info", "plan", forged.decode().strip()),
        ("error", "agent", "round 2: out"),
        ("error", "agent", "of memory"),
    ]
    assert {x.at for x in found} == {1_800_000_000.0}
    errors = joblogs.read(tmp_path, job="job-1", level="error")
    assert [x.text for x in errors] == ["round 2: out", "of memory"]
    assert joblogs.read(tmp_path, job="job-10") == []
    assert joblogs.jobs(tmp_path) == ("job-1",)


def test_the_agents_own_lines_about_a_job_are_among_them(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    lines = [
        {
            "at": "2027-01-15T08:00:00+00:00",
            "level": "info",
            "what": "lease job-1.3.0.n: begun",
        },
        {
            "at": "2027-01-15T08:00:01+00:00",
            "level": "warning",
            "what": "lease job-10.1.0.n: no",
        },
        {"at": "2027-01-15T08:00:02+00:00", "level": "error", "what": "x", "job": "job-1"},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"at": "2027-'
    (tmp_path / "log" / "agent.log").write_text(text)
    assert [x.text for x in joblogs.read(tmp_path, job="job-1")] == [
        "lease job-1.3.0.n: begun",
        "x",
    ]
    assert [x.level for x in joblogs.read(tmp_path, last=2)] == ["warning", "error"]
    older = joblogs.read(tmp_path, before=joblogs.read(tmp_path, last=1)[0].at)
    assert [x.level for x in older] == ["info", "warning"]


def test_what_cannot_be_meant_is_named(tmp_path: Path) -> None:
    assert joblogs.read(tmp_path) == []
    with pytest.raises(ConfigError, match="level: found 'eror', needed one of debug"):
        joblogs.read(tmp_path, level="eror")
    with pytest.raises(ConfigError, match="last: found 0"):
        joblogs.read(tmp_path, last=0)


def test_a_large_log_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log" / "jobs" / "job-1.log"
    path.parent.mkdir(parents=True)
    head = "2027-01-15T08:00:00.000+00:00 INFO plan: "
    path.write_text("".join(f"{head}line {i}\n" for i in range(60_000)) + "no time \x1b[2J\n")
    found = joblogs.read(tmp_path, last=3)
    assert [x.text for x in found][:2] == ["line 59998", "line 59999"]
    assert found[2].text == "no time ?[2J" and found[2].at == found[1].at


def test_an_escape_that_json_has_written_steers_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    said = {"at": "2027-01-15T08:00:00+00:00", "level": "error"}
    line = json.dumps({**said, "what": "x \x1b[2J\u202egone", "job": "j\x1b[31m"})
    assert "\x1b" not in line  # so it passes for printable until it is decoded
    (tmp_path / "log" / "agent.log").write_text(line + "\n")
    (found,) = joblogs.read(tmp_path)
    assert (found.text, found.job) == ("x ?[2J?gone", "j?[31m")


async def test_a_line_that_a_plan_left_open_swallows_no_note_of_the_agent(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log" / "jobs" / "job-1.log"
    await said(path, b"killed in the middle of")  # no end of line
    await said(path, b"next\n", note="this worker runs without a sandbox")
    found = joblogs.read(tmp_path, job="job-1")
    assert [(x.who, x.text) for x in found] == [
        ("plan", "killed in the middle of"),
        ("plan", "next"),
        ("agent", "this worker runs without a sandbox"),
    ]
    await said(path, b"half", note="")
    await said(path, note="worker killed")
    assert [x.text for x in joblogs.read(tmp_path, job="job-1", level="error")][-1] == (
        "worker killed"
    )
