"""Lists in pages, by key instead of by count: a cursor stays right while rows are added.

A page holds at most `limit` (1 to MAX_PAGE) records. Its `next`, given back as `cursor`, asks
for the page after it, and is None on the last page.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.errors import ConfigError, Wrong

T = TypeVar("T")
MAX_PAGE = 500
MAX_LINE = (1 << 63) - 1  # the highest number that an audit line can have
_BETWEEN = "~"  # no name, id or digest has it


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list."""

    items: tuple[T, ...]
    next: str | None


def within(value: int, what: str, low: int, high: int) -> int:
    """Return `value` when it lies between `low` and `high`, else raise ConfigError."""
    if not low <= value <= high:
        found = f"{value}" if abs(value) < 10**20 else "a number of more than 20 digits"
        words = f"{what} is {found}, must be between {low} and {high}"
        raise ConfigError(Wrong(what, found, f"{low} to {high}", words))
    return value


def everything(page: Callable[[str | None], Page[T]]) -> list[T]:
    """Return the items of all pages; `page` reads the one after a cursor."""
    found: list[T] = []
    cursor: str | None = None
    while True:
        got = page(cursor)
        found += got.items
        if (cursor := got.next) is None:
            return found


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """A query, the unique keys that order it, and what a row becomes."""

    query: sa.Select[Any]
    keys: tuple[sa.ColumnElement[Any], ...]
    build: Callable[[Any], T]
    descending: bool = True

    def where(self, *conditions: sa.ColumnElement[bool]) -> Self:
        """The same list, of fewer rows."""
        return replace(self, query=self.query.where(*conditions))

    def page(self, db: Connection, limit: int, cursor: str | None) -> Page[T]:
        """Read one page; raise ConfigError for a limit or cursor that cannot be."""
        if not 1 <= limit <= MAX_PAGE:
            raise ConfigError(f"limit {limit} is out of range: a page holds 1 to {MAX_PAGE}")
        query = self.query
        if cursor is not None:
            here, after = sa.tuple_(*self.keys), sa.tuple_(*self._parse(cursor))
            query = query.where(here < after if self.descending else here > after)
        order = [key.desc() if self.descending else key for key in self.keys]
        rows = db.execute(query.order_by(*order).limit(limit + 1)).all()
        following = self._cursor(rows[limit - 1]) if len(rows) > limit else None
        return Page(tuple(map(self.build, rows[:limit])), following)

    def _cursor(self, row: Any) -> str:
        return _BETWEEN.join(str(row._mapping[key]) for key in self.keys)

    def _parse(self, cursor: str) -> list[Any]:
        try:
            if not cursor.isprintable():
                raise ValueError("no key has such a character")
            parts = zip(self.keys, cursor.split(_BETWEEN), strict=True)
            return [key.type.python_type(text) for key, text in parts]
        except ValueError:
            raise ConfigError(f"cursor {cursor[:80]!r} is not one that a list gave") from None
