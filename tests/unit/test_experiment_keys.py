"""Every key of an experiment is in the reference, and nothing else."""

import re
from pathlib import Path
from typing import get_args

import msgspec

from consilia.wire.people import Experiment

PAGE = Path(__file__).parents[2] / "docs/reference/experiment.md"
ELSEWHERE = (
    "strategy.",
    "aggregate.",
    "privacy.compression",
    "privacy.final",
    "privacy.evaluation",
    "privacy.fold",
    "privacy.statistics",
)


def keys(kind: type[msgspec.Struct], before: str = "") -> set[str]:
    """The names of a record's fields and of those of the records in it."""
    found: set[str] = set()
    for field in msgspec.structs.fields(kind):
        found.add(before + field.name)
        for part in (field.type, *get_args(field.type)):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                found |= keys(part, f"{before}{field.name}.")
    return found


def test_every_key_is_documented() -> None:
    shown = {
        key
        for line in PAGE.read_text("utf-8").splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`([a-z_.]+)`", line.split(" | ")[0])
    }
    real = {k for k in keys(Experiment) if not k.startswith(ELSEWHERE)}
    nested = {k for k in real if k.startswith("privacy.dp.adaptive.")}
    assert shown == real - nested
