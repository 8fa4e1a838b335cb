"""The experiments that the how-to shows are experiments, and would start."""

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from consilia.hub import experiments
from consilia.privacy import ckks
from consilia.wire.people import Experiment
from consilia.wire.strict import from_yaml
from consilia.wire.v1 import Study

PAGE = Path(__file__).parents[2] / "docs/how-to/protect-an-experiment.md"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
HEAD = "study: hearts\nplan: 3f9a1c2b7d10\nrounds: 20\n"
STUDY = Study("hearts", "", ("a", "b", "c", "d"), ())


@pytest.mark.parametrize("block", BLOCKS)
def test_what_the_page_shows_would_start(block: str) -> None:
    text = block if "study:" in block else HEAD + block
    found = experiments.settled(from_yaml(text, Experiment, "the page"), STUDY)
    if found.privacy is not None and found.privacy.aggregation == "ckks" and not _he():
        found = replace(found, privacy=replace(found.privacy, aggregation="secure"))
    assert experiments.problems(found) == ()


def _he() -> bool:
    try:
        ckks.require()
    except Exception:
        return False
    return True


def test_the_page_shows_some() -> None:
    assert len(BLOCKS) >= 6
