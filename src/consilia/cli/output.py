"""How commands speak: tables on a terminal, tab-separated text in a pipe, JSON when asked.

Every command hands its answer over as plain records (msgspec structs, dataclasses, mappings);
`--json` prints exactly those, so scripts never parse what is meant for people.

Much of what is shown was written elsewhere: a plan under review, a name from another site, an
error from the hub. So every character that could move the cursor, hide or reorder text leaves
here in its escaped form: what a reviewer reads is what is there.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import TypeVar

T = TypeVar("T")
Columns = Mapping[str, Callable[[T], object]]
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def say(text: str) -> None:
    """Print one line of the answer."""
    sys.stdout.write(visible(text) + "\n")


def note(text: str) -> None:
    """Print one line that is not part of the answer."""
    sys.stderr.write(visible(text) + "\n")


def visible(text: str) -> str:
    """Return `text` with all but printable characters, tabs and line ends escaped (\\u001b).

    The form is that of JSON, so a JSON document means the same afterwards.
    """
    if text.isascii() and not _HIDDEN.search(text):
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def json_text(value: object) -> str:
    """Return `value` as indented JSON; paths as text, tuples as lists, sets sorted."""
    import msgspec

    plain = msgspec.to_builtins(value, enc_hook=str, order="deterministic")
    return msgspec.json.format(msgspec.json.encode(plain), indent=2).decode()


def listing(
    records: Sequence[T], columns: "Columns[T]", as_json: bool, empty: str = "none"
) -> None:
    """Print `records` as a table of `columns`, or as a JSON array of the whole records."""
    if as_json:
        say(json_text(records))
    elif not records:
        note(empty)
    else:
        table(columns.keys(), [[cell(get(r)) for get in columns.values()] for r in records])


def record(value: object, fields: Mapping[str, object], as_json: bool) -> None:
    """Print one record: `fields` as lines of name and value, or `value` whole as JSON."""
    if as_json:
        say(json_text(value))
        return
    width = max(map(len, fields))
    for name, content in fields.items():
        lines = cell(content).splitlines() or [""]
        for first, line in zip([name] + [""] * len(lines), lines, strict=False):
            say(f"{first:<{width}}  {line}".rstrip())


def fields(value: object) -> dict[str, object]:
    """Return a record's fields by name."""
    from dataclasses import fields as of_class
    from dataclasses import is_dataclass

    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in of_class(value)}
    return {name: getattr(value, name) for name in getattr(value, "__struct_fields__", ())}


def done(text: str, value: object, as_json: bool) -> None:
    """Print the outcome of a step: `text` for people, `value` as JSON."""
    say(json_text(value) if as_json else text)


def table(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows with a rich table on a terminal, tab-separated otherwise."""
    if not sys.stdout.isatty():
        for row in ([*headings], *rows):
            say("\t".join(text.replace("\t", " ").replace("\n", " ") for text in row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(visible(text)) for text in row))  # Text: never parsed as markup
    Console().print(grid)


def cell(value: object) -> str:
    """Return how one value is written for people."""
    if value is None or value in ("", {}, [], ()):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={cell(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return str(value)


def when(at: float | None) -> str:
    """Return Unix seconds as UTC to the second, or a dash."""
    return "-" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}Z"


def day(last: date) -> str:
    """Return a day, or a dash for "without an end"."""
    return "-" if last == date.max else last.isoformat()


def short(digest: str) -> str:
    """Return a digest's algorithm and first 12 hex digits: enough to name it again."""
    algorithm, colon, digits = digest.partition(":")
    return f"{algorithm}:{digits[:12]}" if colon else digest


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
