"""How long to wait before trying again: exponential with jitter, so that nodes spread out."""

import random
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Delays in seconds: each twice the last, up to `longest`, then shortened by up to half."""

    rng: random.Random
    first: float = 0.25
    longest: float = 10.0
    _next: float = 0.0

    def delay(self) -> float:
        """Return the next delay."""
        self._next = min(self.longest, self._next * 2 or self.first)
        return self._next * self.rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start over: something has worked."""
        self._next = 0.0


class Restraint:
    """Slows a node down whose hub answers at once, time and again, with nothing of use.

    An answer that took its time cost nobody anything: an idle hub holds each poll.
    """

    PATIENCE = 5  # such answers that are free
    QUICK = 1.0  # seconds under which an answer came at once
    LONGEST = 25.0  # seconds

    def __init__(self) -> None:
        """Start without a grudge."""
        self._useless = 0

    def pause(self, useful: bool, took: float, refused: int) -> float:
        """Return how many seconds to wait after an answer that took `took` seconds.

        `refused` tasks in a row were not allowed here, which counts as useless too.
        """
        self._useless = self._useless + 1 if not useful and took < self.QUICK else 0
        idle = max(self._useless, refused) - self.PATIENCE
        return min(self.LONGEST, 0.05 * 2.0 ** min(idle, 10)) if idle > 0 else 0.0
