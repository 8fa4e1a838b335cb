"""The node's logs turn over by themselves and stay within their size."""

import io
import json
import logging
from pathlib import Path

import pytest

from consilia.node import logs


def test_a_log_turns_over_and_keeps_its_size(tmp_path: Path) -> None:
    people, total = io.StringIO(), 1 << 18
    logs.start(tmp_path / "log", "info", total, people)
    try:
        log = logging.getLogger("consilia.node.test")
        for number in range(4000):
            log.info("line %d %s", number, "x" * 100)
        log.debug("not at this level")
    finally:
        logs.stop()
    files = sorted((tmp_path / "log").iterdir())
    assert [f.name for f in files] == ["agent.log", *(f"agent.log.{n}" for n in (1, 2, 3))]
    assert sum(f.stat().st_size for f in files) <= total
    newest = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert newest[-1]["what"].startswith("line 3999 ")
    oldest = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert int(oldest[-1]["what"].split()[1]) + 1 == int(newest[0]["what"].split()[1]), "lost"
    assert oct((tmp_path / "log").stat().st_mode)[-3:] == "700"
    assert people.getvalue().count("\n") == 4000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_on_a_full_disk_stops_no_agent(tmp_path: Path) -> None:
    """A line that cannot be written is lost, as nothing of it is evidence: the trail is."""
    (tmp_path / "agent.log").symlink_to("/dev/full")
    people = io.StringIO()
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        logs.start(tmp_path, "info", 1 << 18, people)
        logging.getLogger("consilia.node.test").warning("the disk is full")
    finally:
        logs.stop()
        logging.raiseExceptions = before
    assert "the disk is full" in people.getvalue()
