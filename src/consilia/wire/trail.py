"""An audit trail as a file for auditors: CSV with a header, or one JSON object per line.

The hub and every node write the same form, so one tool reads both. The digests go along: who
has the file can check the chain with `core.chain.verify`.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import Literal

from consilia.core.chain import Line

Format = Literal["csv", "json"]
_COLUMNS = (*(f.name for f in fields(Line)), "digest")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a cell a formula to a spreadsheet


def export(lines: Iterable[tuple[Line, str]], format: Format) -> Iterator[str]:
    """Yield the text of (line, digest) pairs, the CSV header first."""
    if format == "csv":
        yield _row(_COLUMNS)
    for line, digest in lines:
        entry = {**asdict(line), "digest": digest}
        if format == "json":
            yield json.dumps(entry, ensure_ascii=False) + "\n"
        else:
            yield _row(map(_as_text, entry.values()))


def _row(cells: Iterable[object]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue()


def _as_text(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
