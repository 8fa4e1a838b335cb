"""Lists by number, newest first: which numbers a page holds."""

from consilia.errors import ConfigError, Wrong

MOST = 1000


def number(before: int) -> int:
    """Return a number of a line as the database can hold it; what is beyond names no line."""
    return max(0, min(before, 1 << 62))


def bounds(length: int, before: int | None, limit: int) -> tuple[int, int]:
    """Return (after, count): the page holds the numbers after+1 to after+count.

    `before` is the number that the page before ended with; None for the newest.
    """
    if not 1 <= limit <= MOST:
        raise ConfigError(Wrong("limit", f"{limit}", f"1 to {MOST}"))
    last = length if before is None else min(length, max(0, before - 1))
    after = max(0, last - limit)
    return after, last - after
