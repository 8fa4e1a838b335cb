"""What one party writes and another reads or runs: nothing may deceive or reach further."""

import logging
import os
import sys
from pathlib import Path

import msgspec
import pytest

from consilia.cli.output import json_text, record, say, visible
from consilia.errors import ConfigError
from consilia.node.config import Limits
from consilia.node.launcher import Bubblewrap, shown_within
from consilia.node.logs import Plain
from consilia.node.pipes import LogPipe
from consilia.node.runner import Runner

# moves up a line, overwrites from its start, reverses the reading order, C1 control sequence
TRICKS = ("x = 1\x1b[1A\x1b[2K", "steal()\r# harmless", "\u202eevil", "\x9b2J", "a\u2028b")


@pytest.mark.parametrize("trick", TRICKS)
def test_a_plan_under_review_cannot_hide_a_line(
    trick: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say(trick)
    record(None, {"description": trick}, False)
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)


@pytest.mark.parametrize("trick", TRICKS)
def test_json_for_scripts_means_the_same_when_its_controls_are_escaped(trick: str) -> None:
    assert msgspec.json.decode(visible(json_text({"text": trick}))) == {"text": trick}


def test_text_of_other_languages_is_left_as_it_is() -> None:
    for text in ("Charité, Zürich\n\t患者 ข้อมูล", "plain"):
        assert visible(text) == text


@pytest.mark.parametrize("folder", [sys.prefix, "/usr/local/share"])
def test_a_node_whose_keys_workers_could_read_does_not_start(folder: str) -> None:
    with pytest.raises(ConfigError, match="move the node's directory"):
        Runner(Bubblewrap(), Path(folder, "consilia-node"), Limits())
    assert not Path(folder, "consilia-node").exists()


def test_a_folder_of_its_own_is_not_shown_to_workers(tmp_path: Path) -> None:
    assert shown_within(tmp_path) is None


async def test_what_a_plan_prints_cannot_steer_the_terminal_of_who_reads_it(
    tmp_path: Path,
) -> None:
    reading, writing = os.pipe()
    log = LogPipe(reading, tmp_path / "job.log")
    os.write(writing, "loss\t0.5 é\r\n\x1b]0;title\x07\x1b[2J".encode())
    os.close(writing)
    await log.close()
    os.close(reading)
    kept = (tmp_path / "job.log").read_bytes().decode().split("\n")
    assert [line.partition(" INFO plan: ")[2] for line in kept] == [
        "loss\t0.5 é\r",
        "?]0;title??[2J",
    ]
    told = logging.makeLogRecord({"msg": "failed: \x1b[2J\u202e", "levelno": logging.ERROR})
    assert all(c.isprintable() for c in Plain().format(told))
