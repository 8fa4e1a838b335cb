"""Which sites are there, and what each is to work on: the state behind the long poll.

A site is online while it polls and for `silence` seconds after its last poll ended. Work is
reconciled by state, never by messages: the hub keeps the leases assigned to a site, the site
says which it is running, and every answer is the difference. Lost answers, restarted agents
and restarted hubs heal by the next poll.

Everything runs on the event loop, except `holds` and `may_read`, which any thread may call:
a site's assignments are replaced whole, never changed in place.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from consilia.hub.clock import Clock
from consilia.wire.v1 import Lease, Orders, Poll, Task, Word

LONGEST_WAIT = 60.0  # seconds a poll is held at most, whatever the node asks
MIN_TIMEOUT = 1.0  # seconds a redelivered task is given at least


@dataclass(frozen=True, slots=True)
class Assignment:
    """A lease as the hub keeps it: `until` in Unix seconds, `limit` on the update's bytes."""

    lease: str
    site: str
    task: Task
    until: float
    limit: int
    sum: str = ""  # frame with the encrypted sum that the site may open


@dataclass(slots=True)
class _Site:
    assigned: Mapping[str, Assignment] = field(default_factory=dict)
    settled: dict[str, None] = field(default_factory=dict)  # reported on, newest last
    words: dict[str, tuple[Word, ...]] = field(default_factory=dict)  # by lease, in order
    online: bool = False
    last_seen: float | None = None
    waiter: "asyncio.Future[bool] | None" = None  # True: answer with what is new
    watched: bool = False  # a silence timer is running


class Presence:
    """The sites' polls, assignments and whether they are online."""

    def __init__(
        self,
        clock: Clock,
        changed: Callable[[str], None],
        delivered: Callable[[str], None],
        silence: float = 15.0,
    ) -> None:
        """`changed(site)`: it came or went; `delivered(lease)`: a poll has carried it."""
        self._clock = clock
        self._changed = changed
        self._delivered = delivered
        self._silence = silence
        self._sites: dict[str, _Site] = {}
        self._closed = False

    # ---- what others ask ---------------------------------------------------------------------

    def online(self, site: str) -> bool:
        """Return whether the site polls, or did within the last `silence` seconds."""
        entry = self._sites.get(site)
        return entry is not None and entry.online

    def all_online(self) -> Iterator[str]:
        """Yield the sites that are online."""
        return (name for name, entry in self._sites.items() if entry.online)

    def last_seen(self, site: str) -> float | None:
        """Return when the site was last in touch, Unix seconds; None when never."""
        entry = self._sites.get(site)
        if entry is None:
            return None
        return self._clock.now() if entry.waiter else entry.last_seen

    def holds(self, site: str, lease: str) -> Assignment | None:
        """Return the site's assignment of that id, or None. Any thread may call."""
        entry = self._sites.get(site)
        return None if entry is None else entry.assigned.get(lease)

    def may_read(self, site: str, digest: str) -> Assignment | None:
        """Return an assignment that frame `digest` is for: its model, its sum. Any thread."""
        entry = self._sites.get(site)
        assigned = () if entry is None else tuple(entry.assigned.values())
        return next((a for a in assigned if digest and digest in (a.task.model, a.sum)), None)

    # ---- what the engine does ----------------------------------------------------------------

    def assign(self, assignment: Assignment) -> None:
        """Give a lease to its site; a waiting poll answers at once."""
        entry = self._entry(assignment.site)
        entry.assigned = {**entry.assigned, assignment.lease: assignment}
        _wake(entry)

    def allow(self, site: str, lease: str, digest: str) -> None:
        """Let a site read the frame of the encrypted sum of its round."""
        entry = self._entry(site)
        if (held := entry.assigned.get(lease)) is not None:
            entry.assigned = {**entry.assigned, lease: replace(held, sum=digest)}

    def withdraw(self, site: str, lease: str) -> None:
        """Take a lease back; a waiting poll tells the site at once."""
        if self._remove(site, lease):
            _wake(self._entry(site))

    def tell(self, site: str, word: Word) -> None:
        """Pass a word on to the site of a lease; a waiting poll answers at once."""
        entry = self._entry(site)
        if word.lease in entry.assigned:
            entry.words[word.lease] = (*entry.words.get(word.lease, ()), word)
            _wake(entry)

    def settle(self, site: str, lease: str) -> None:
        """End a lease on the site's own report: it knows, so its poll is left waiting."""
        if self._remove(site, lease):
            settled = self._entry(site).settled
            settled[lease] = None
            if len(settled) > 256:
                del settled[next(iter(settled))]

    def expect(self, site: str) -> None:
        """Count a site as online after a hub restart, until `silence` has passed."""
        entry = self._entry(site)
        entry.online, entry.last_seen = True, self._clock.now()
        self._watch(site, entry)

    def drop(self, site: str) -> tuple[Assignment, ...]:
        """Send a revoked site away: its poll ends, it is offline; return what it was on."""
        entry = self._entry(site)
        held, entry.assigned, entry.words = tuple(entry.assigned.values()), {}, {}
        if entry.waiter and not entry.waiter.done():
            entry.waiter.set_result(False)
        self._set_online(site, entry, False)
        return held

    def wake_all(self) -> None:
        """Answer every waiting poll: the catalogue changed, or the hub goes down."""
        for entry in self._sites.values():
            _wake(entry)

    def close(self) -> None:
        """End every poll; nobody is told of any change from now on."""
        self._closed = True
        self.wake_all()

    # ---- the long poll -----------------------------------------------------------------------

    async def poll(self, site: str, poll: Poll, catalogue: Callable[[], int]) -> Orders:
        """Answer with what differs from `poll`, at once or when there is something.

        A newer poll of the site ends an older one, which then answers with nothing: an agent
        whose line broke is not kept waiting by its own ghost.
        """
        entry = self._entry(site)
        if entry.waiter and not entry.waiter.done():
            entry.waiter.set_result(False)
        self._set_online(site, entry, True)
        news = self._news(entry, poll, catalogue())
        if news is None:
            mine: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            entry.waiter = mine
            timer = self._clock.call_later(
                min(max(poll.wait, 0.0), LONGEST_WAIT), lambda: _wake(entry, mine)
            )
            try:
                current = await mine
            finally:
                timer.cancel()
                if entry.waiter is mine:
                    entry.waiter = None
                entry.last_seen = self._clock.now()
                self._watch(site, entry)
            if not current:
                return Orders(catalogue=poll.catalogue)
            version = catalogue()
            news = self._news(entry, poll, version) or Orders(catalogue=version)
        else:
            entry.last_seen = self._clock.now()
            self._watch(site, entry)
        for lease in news.leases:
            self._delivered(lease.id)
        return news

    def _news(self, entry: _Site, poll: Poll, catalogue: int) -> Orders | None:
        now = self._clock.now()
        running = set(poll.running)
        leases = tuple(
            Lease(id=a.lease, task=a.task, timeout=max(MIN_TIMEOUT, a.until - now))
            for a in entry.assigned.values()
            if a.lease not in running
        )
        cancel = tuple(sorted(running - entry.assigned.keys() - entry.settled.keys()))
        words = tuple(
            word
            for lease in entry.words.keys() & running
            for word in _after(entry.words[lease], poll.heard.get(lease, ""))
        )
        if not leases and not cancel and not words and catalogue == poll.catalogue:
            return None
        return Orders(leases=leases, cancel=cancel, catalogue=catalogue, words=words)

    # ---- coming and going --------------------------------------------------------------------

    def _entry(self, site: str) -> _Site:
        return self._sites.setdefault(site, _Site())

    def _remove(self, site: str, lease: str) -> bool:
        entry = self._entry(site)
        if lease not in entry.assigned:
            return False
        entry.assigned = {k: a for k, a in entry.assigned.items() if k != lease}
        entry.words.pop(lease, None)
        return True

    def _set_online(self, site: str, entry: _Site, online: bool) -> None:
        if entry.online != online and not self._closed:
            entry.online = online
            self._changed(site)

    def _watch(self, site: str, entry: _Site) -> None:
        """Keep one timer per quiet site; it looks again when the site polled meanwhile."""
        if entry.watched or not entry.online or self._closed:
            return
        entry.watched = True
        due = (entry.last_seen or 0.0) + self._silence - self._clock.now()
        self._clock.call_later(max(due, 0.0), lambda: self._look(site, entry))

    def _look(self, site: str, entry: _Site) -> None:
        entry.watched = False
        if entry.waiter is not None:
            return  # it polls; the end of that poll starts the next watch
        if (entry.last_seen or 0.0) + self._silence <= self._clock.now():
            self._set_online(site, entry, False)
        else:
            self._watch(site, entry)


def _after(words: tuple[Word, ...], heard: str) -> tuple[Word, ...]:
    """Return the words that follow the step heard last; all when it is not among them."""
    steps = [word.step for word in words]
    return words[steps.index(heard) + 1 :] if heard in steps else words


def _wake(entry: _Site, only: "asyncio.Future[bool] | None" = None) -> None:
    waiter = entry.waiter
    if waiter and not waiter.done() and (only is None or waiter is only):
        waiter.set_result(True)
