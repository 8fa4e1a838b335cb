"""Which ready sites take part in a round: a pure function of seed, round and the sites."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class Selection:
    """A fraction (0, 1] of the ready sites, at least `minimum` when there are as many."""

    fraction: float = 1.0
    minimum: int = 1


def select(ready: Iterable[str], rule: Selection, seed: int, round: int) -> tuple[str, ...]:
    """Return the selected sites, sorted."""
    ranked = order(ready, seed, round)
    share = ceil(rule.fraction * len(ranked) - 1e-9)  # 0.07 * 100 is a little above 7
    count = max(rule.minimum, share)
    return tuple(sorted(ranked[:count]))


def order(sites: Iterable[str], seed: int, round: int) -> tuple[str, ...]:
    """Return the sites by rank, the first to be asked first.

    The rank is the SHA-256 of seed, round and name: uniform, independent between rounds,
    the same on every machine, and one site's coming or going moves no other's rank.
    """
    return tuple(sorted(set(sites), key=lambda site: _rank(seed, round, site)))


def threshold(sites: int) -> int:
    """Return how many of a masked round's sites must go on to its end: floor(2n/3) + 1.

    More than two thirds: two disjoint groups of sites can never both be enough, so a hub that
    tells different sites different stories completes none (Bonawitz et al. 2017, section 6).
    """
    return 2 * sites // 3 + 1


def site_seed(seed: int, round: int, site: str) -> int:
    """Seed (63 bits) of one site's task in one round."""
    return int.from_bytes(_rank(seed, round, "seed/" + site)[:8], "big") >> 1


def _rank(seed: int, round: int, text: str) -> bytes:
    return hashlib.sha256(f"consilia select {seed} {round} {text}".encode()).digest()
