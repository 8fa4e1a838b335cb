"""An audit trail for auditors: checked against a head they kept, or written as a file.

A file is CSV with a header, or one JSON object per line. The hub and every node write the same
form, so one tool reads both. The digests go along: who has the file can check the chain with
`core.chain.verify`.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import Literal

from consilia.core.chain import GENESIS, Break, Line, verify

Format = Literal["csv", "json"]
_COLUMNS = (*(f.name for f in fields(Line)), "digest")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a cell a formula to a spreadsheet


def export(lines: Iterable[tuple[Line, str]], format: Format) -> Iterator[str]:
    """Yield the text of (line, digest) pairs, the CSV header first."""
    if format == "csv":
        yield row(_COLUMNS)
    for line, digest in lines:
        entry = {**asdict(line), "digest": digest}
        if format == "json":
            yield json.dumps(entry, ensure_ascii=False) + "\n"
        else:
            yield row(entry.values())


def check(
    lines: Iterable[tuple[Line, str]], length: int = 0, digest: str = GENESIS
) -> Break | tuple[int, str]:
    """Check a whole chain; return its first break, or its (length, head).

    `length` and `digest` may be a head that was kept earlier: a chain that is sound in itself
    but no longer contains that head was rewritten or cut off, and is reported as broken.
    """
    found = {0: GENESIS}

    def pairs() -> Iterator[tuple[Line, str]]:
        for line, link in lines:
            if line.seq == length:
                found[length] = link
            yield line, link

    result = verify(pairs())
    if isinstance(result, Break):
        return result
    if length not in found:
        return Break(result[0] + 1, f"the chain ends before line {length}, which a head names")
    if found[length] != digest:
        return Break(length, "the line is not the one that the kept head names")
    return result


def row(cells: Iterable[object]) -> str:
    """Return a line of CSV; what a spreadsheet would take for a formula stays text."""
    out = io.StringIO()
    csv.writer(out).writerow(map(_as_text, cells))
    return out.getvalue()


def _as_text(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
