"""A simulated site's table, as the file that a node registers."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consilia.errors import ConfigError

Table = str | Path | Mapping[str, Sequence[object]]


def as_file(table: Any, path: Path) -> Path:
    """Return the file of a table; one that is in memory is written to `path` as CSV first.

    Raises ConfigError for what is no file, DataFrame or mapping of columns.
    """
    if isinstance(table, str | Path):
        return Path(table)
    if hasattr(table, "to_csv"):  # a pandas DataFrame
        table.to_csv(path, index=False)
        return path
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"a site's table is of type {type(table).__name__}; needed a file, a DataFrame, or "
            "a mapping of column names to values"
        )
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path
