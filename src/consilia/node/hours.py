"""When tasks may run: windows of the week, such as "mon-fri 19:00-07:00", by the site's clock.

A window that ends at or before its start goes on past midnight and belongs to the day it began
on: "fri 19:00-07:00" holds on Saturday at 03:00. No window at all means at any time.
"""

import re
from dataclasses import dataclass

from consilia.errors import ConfigError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY = 24 * 60  # minutes
_FORM = re.compile(r"([a-z,-]+) +(\d\d):(\d\d)-(\d\d):(\d\d)")


@dataclass(frozen=True, slots=True)
class Window:
    """Minutes of the day from `start` to before `end`, on `days` (0 is Monday)."""

    days: frozenset[int]
    start: int
    end: int
    text: str = ""  # as it was written

    def holds(self, weekday: int, minute: int) -> bool:
        """Tell whether a minute of a weekday lies in the window."""
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        began_today = weekday in self.days and minute >= self.start
        return began_today or ((weekday - 1) % 7 in self.days and minute < self.end)


def parse(text: str) -> Window:
    """Return the window that `text` describes; raise ConfigError saying what is needed."""
    form = _FORM.fullmatch(text.strip().lower())
    if form is None:
        raise ConfigError(f"{text[:80]!r} is no window; write it as 'mon-fri 19:00-07:00'")
    start, end = (int(form[h]) * 60 + int(form[h + 1]) for h in (2, 4))
    for hour, minute in ((form[2], form[3]), (form[4], form[5])):
        if int(minute) > 59 or int(hour) * 60 + int(minute) > DAY:
            raise ConfigError(f"{text!r}: {hour}:{minute} is no time; write 00:00 to 24:00")
    if start in {end, DAY}:
        raise ConfigError(f"{text!r} is empty; for whole days write 00:00-24:00")
    days = frozenset(day for part in form[1].split(",") for day in _days(part, text))
    return Window(days, start, end, text)


def open_at(windows: tuple[Window, ...], weekday: int, minute: int) -> bool:
    """Tell whether tasks may run at a minute (0 to 1439) of a weekday (0 is Monday)."""
    return not windows or any(w.holds(weekday, minute) for w in windows)


def _days(part: str, text: str) -> list[int]:
    first, dash, last = part.partition("-")
    for name in (first, last) if dash else (first,):
        if name not in DAYS:
            raise ConfigError(f"{text!r}: {name!r} is no day; valid: {', '.join(DAYS)}")
    start = DAYS.index(first)
    count = (DAYS.index(last) - start) % 7 + 1 if dash else 1
    return [(start + i) % 7 for i in range(count)]
