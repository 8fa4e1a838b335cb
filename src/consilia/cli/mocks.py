"""Mock twins at the terminal, for the site that makes one and the researcher who gets it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from consilia.errors import ConfigError

if TYPE_CHECKING:
    from consilia.wire.v1 import MockColumn, MockTwin


def write_mock(twin: "MockTwin", path: Path, rows: int, seed: int) -> None:
    """Write invented records to a CSV file."""
    import numpy as np

    from consilia.data.mock import write_csv

    try:
        write_csv(twin, path, rows, np.random.default_rng(seed))
    except OSError as e:
        raise ConfigError(f"{path} cannot be written: {e.strerror}") from None


def shown() -> Mapping[str, "Callable[[MockColumn], object]"]:
    """Return how a twin's columns are listed."""
    return {
        "column": lambda c: c.name,
        "type": lambda c: c.type,
        "role": lambda c: c.role,
        "unit": lambda c: c.unit,
        "absent": lambda c: c.absent,
        "tells": tells,
    }


def tells(c: "MockColumn") -> str:
    """Say in words what a twin tells of a column."""
    if c.levels:
        return ", ".join(f"{level}: {count}" for level, count in c.levels.items())
    if c.counts:
        end = c.start + c.width * len(c.counts)
        of = " days since 1970" if c.type in ("date", "timestamp") else ""
        return f"{c.start:g} to {end:g}{of} by {c.width:g}: {' '.join(map(str, c.counts))}"
    return "nothing of its values"
