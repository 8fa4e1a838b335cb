"""How fast anybody may ask: token buckets per person and per address, in memory.

Answers that the hub keeps ready (rest/snapshot) cost next to nothing and are not counted.
Each replica of a hub counts by itself.
"""

from collections.abc import Callable

from consilia.accounts.lockout import Bucket, drawn
from consilia.errors import TooMany
from consilia.hub.config import PeopleRules

MOST = 20_000  # buckets; when there are more, all begin anew
PROBES = ("GET /healthz", "GET /readyz")
ENTRIES = (
    "POST /api/v1/auth/login",
    "POST /api/v1/auth/refresh",
    "POST /api/v1/invitations/accept",
    "GET /api/v1/auth/oidc/{provider}/callback",
)


class Limiter:
    """The buckets of one hub. Belongs to one event loop."""

    def __init__(self, rules: PeopleRules, now: Callable[[], float]) -> None:
        """`now` is in seconds."""
        self._rules = rules
        self._now = now
        self._buckets: dict[str, Bucket] = {}

    def person(self, name: str) -> None:
        """Count a request of a person or their keys; TooMany when it is one too many."""
        self._any(f"person {name}", f"{name} has")

    def stranger(self, address: str) -> None:
        """Count a request that nobody known sent."""
        self._any(f"address {address}", f"{address} has")

    def open(self, operation: str, address: str) -> None:
        """Count a request that asks for no token; sign-ins have a smaller bucket besides."""
        if operation in PROBES:
            return
        self.stranger(address)
        if operation in ENTRIES:
            each = self._rules.sign_ins_per_minute
            self._draw(f"entry {address}", each / 60, each, f"{address} has tried to sign in")

    def _any(self, key: str, who: str) -> None:
        if self._rules.requests_per_second:
            rate, size = self._rules.requests_per_second, self._rules.requests_at_once
            self._draw(key, rate, size, f"{who} asked")

    def _draw(self, key: str, rate: float, size: float, what: str) -> None:
        now = self._now()
        bucket, there = drawn(self._buckets.get(key) or Bucket(size, now), now, rate, size)
        if len(self._buckets) >= MOST and key not in self._buckets:
            self._buckets.clear()
        self._buckets[key] = bucket
        if not there:
            raise TooMany(f"{what} too often; wait a little", (1 - bucket.level) / rate)
