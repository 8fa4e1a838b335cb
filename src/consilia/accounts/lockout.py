"""How long an account rests after wrong attempts, and how fast anybody may ask. Pure.

An attempt is counted before its password is looked at, so that a hundred at once are not a
hundred tries for the price of one; a right one takes its own count back.
"""

from dataclasses import dataclass

FREE = 5  # wrong attempts in a row without a rest
FIRST = 60.0  # seconds of the first rest; it doubles with each further attempt
LONGEST = 3600.0


@dataclass(frozen=True, slots=True)
class Attempts:
    """Wrong attempts in a row, and until when (Unix seconds) nobody may try."""

    failures: int = 0
    until: float = 0.0


def counted(before: Attempts, now: float, free: int = FREE) -> Attempts:
    """Return the count with one more attempt, wrong until the contrary is known."""
    failures = before.failures + 1
    if failures < free:
        return Attempts(failures, 0.0)
    rest = min(FIRST * 2.0 ** min(failures - free, 16), LONGEST)
    return Attempts(failures, now + rest)


def resting(attempts: Attempts, now: float) -> float:
    """Return how many seconds nobody may try yet, 0 when one may."""
    return max(0.0, attempts.until - now)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: `level` requests may come at once at the time `at`."""

    level: float
    at: float


def drawn(bucket: Bucket, now: float, rate: float, size: float) -> tuple[Bucket, bool]:
    """Take one from a bucket refilled at `rate` per second up to `size`; tell if there was."""
    level = min(size, bucket.level + max(0.0, now - bucket.at) * rate)
    return (Bucket(level - 1, now), True) if level >= 1 else (Bucket(level, now), False)
