"""Who masks with whom, and how many must stay: thresholds and the graph of neighbours.

Up to 50 sites everybody masks with everybody. Beyond, a site has k = 2 * ceil(5 * log2(n))
neighbours (78 of 200 sites, 100 of 1000): the sites stand in a circle whose order is drawn by
the digest of the roster, and each masks with the k/2 on either side. What a site's secrets are
shared among is its neighbourhood: itself and its neighbours. The same rule gives the
threshold of a neighbourhood and of the whole round.

Sources: Bonawitz et al. 2017, Practical Secure Aggregation, section 6 (threshold against an
active server: more than two thirds); Bell et al. 2020, Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead, section 3 (circulant graph in random order, k = O(log n)).
"""

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

from consilia.errors import Refused
from consilia.wire import masks

ALL_WITH_ALL = 50  # sites up to which the graph is complete
LEAST = 3  # sites; in a sum of two each learns the other's part


def threshold(count: int) -> int:
    """Return how many of `count` sites must stay: the smallest number above two thirds."""
    if count < LEAST:
        raise Refused(
            f"a masked sum of {count} sites was asked for, needs at least {LEAST}: each of two "
            "could subtract its own part; invite more sites or use another protection"
        )
    return 2 * count // 3 + 1


def degree(count: int) -> int:
    """Return how many neighbours each of `count` sites has."""
    if count <= ALL_WITH_ALL:
        return count - 1
    return min(count - 1, 2 * math.ceil(5 * math.log2(count)))


@dataclass(frozen=True, slots=True)
class Graph:
    """The circle of the sites of a session. Build it with `of`."""

    order: tuple[str, ...]
    reach: int  # neighbours on either side; all when that meets on the far side
    places: dict[str, int]

    def neighbourhood(self, site: str) -> tuple[str, ...]:
        """Return the site and its neighbours, sorted."""
        count = len(self.order)
        if 2 * self.reach + 1 >= count:
            return tuple(sorted(self.order))
        here = self.places[site]
        steps = range(here - self.reach, here + self.reach + 1)
        return tuple(sorted(self.order[step % count] for step in steps))

    def neighbours(self, site: str) -> tuple[str, ...]:
        """Return the site's neighbours, sorted."""
        return tuple(other for other in self.neighbourhood(site) if other != site)

    def threshold(self) -> int:
        """Return how many of a neighbourhood can open a share-protected secret."""
        return threshold(min(len(self.order), 2 * self.reach + 1))

    def connected(self, present: Collection[str]) -> bool:
        """Say whether masks tie all of `present` together, so that only their whole sum opens.

        Two gaps in the circle that are wider than the reach cut it in two.
        """
        count = len(self.order)
        if 2 * self.reach + 1 >= count:
            return True
        places = sorted(self.places[site] for site in present)
        steps = [b - a for a, b in itertools.pairwise(places)]
        steps.append(places[0] + count - places[-1])
        return sum(step > self.reach for step in steps) < 2


def of(session: bytes, sites: Collection[str]) -> Graph:
    """Return the graph of a session's sites: the same for everybody who has its roster."""
    order = tuple(sorted(sites, key=lambda s: masks.digest("circle", session, s.encode())))
    reach = (degree(len(order)) + 1) // 2
    return Graph(order, reach, {site: place for place, site in enumerate(order)})
