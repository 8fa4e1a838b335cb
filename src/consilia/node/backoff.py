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
