"""How often strangers may try, and how often a site may ask."""

from collections import OrderedDict


class Attempts:
    """Failed attempts of the last minute by address; forgets the oldest of many addresses."""

    ADDRESSES = 4096
    SECONDS = 60.0

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failed: OrderedDict[str, list[float]] = OrderedDict()

    def spent(self, address: str, now: float) -> bool:
        """Say whether `address` has used up its attempts at monotonic time `now`."""
        recent = [t for t in self._failed.get(address, ()) if now - t < self.SECONDS]
        return len(recent) >= self._limit

    def failed(self, address: str, now: float) -> None:
        """Count one more failure."""
        recent = [t for t in self._failed.pop(address, ()) if now - t < self.SECONDS]
        self._failed[address] = [*recent, now][-self._limit :]
        while len(self._failed) > self.ADDRESSES:
            self._failed.popitem(last=False)


class Pace:
    """A token bucket for each site: `rate` requests a second, `burst` of them at once.

    A request beyond that waits its turn, if that comes within `queue` seconds. Keeps two
    numbers for each site that is enrolled here.
    """

    def __init__(self, rate: float, burst: int, queue: float) -> None:
        self._rate = rate
        self._burst = burst
        self._least = -rate * queue
        self._left: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def wait(self, site: str, now: float) -> float | None:
        """Return the seconds until the site's next request has its turn; None: refuse it."""
        tokens, then = self._left.get(site, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - then) * self._rate) - 1
        if tokens < self._least:
            return None  # and takes nothing: it would never be heard again otherwise
        self._left[site] = (tokens, now)
        return max(0.0, -tokens / self._rate)
