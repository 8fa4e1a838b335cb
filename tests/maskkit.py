"""A masked sum among sites in one process, each with keys of its own: for tests.

`Cast` holds the sites' long-term keys; `Play` walks a round step by step and keeps what every
party has said, so that a test can stop anywhere and change anything.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from consilia.privacy import secagg
from consilia.privacy.streams import Ring


class Dice:
    """Bytes that look random and come out the same again: SHAKE-256 of a name and a count."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0

    def __call__(self, size: int) -> bytes:
        self.count += 1
        return hashlib.shake_256(f"{self.name}/{self.count}".encode()).digest(size)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"site-{number:03}" for number in range(count))


def key_of(site: str) -> Ed25519PrivateKey:
    """Return a site's long-term key, the same in all tests."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(site.encode()).digest())


def signer(site: str) -> Callable[[bytes], bytes]:
    return key_of(site).sign


def pins(sites: Iterable[str]) -> dict[str, bytes]:
    return {site: key_of(site).public_key().public_bytes_raw() for site in sites}


@dataclass
class Play:
    """One masked sum: what everybody has said so far."""

    sites: tuple[str, ...]
    context: bytes = b"job-1.1.0"
    seed: str = "play"
    members: dict[str, secagg.Member] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    roster: bytes = b""
    shares: dict[str, bytes] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    consents: dict[str, bytes] = field(default_factory=dict)
    unmasks: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pins = pins(self.sites)

    def dice(self, site: str, step: str) -> Dice:
        return Dice(f"{self.seed}/{site}/{step}")

    def join(self, sites: Iterable[str] | None = None) -> None:
        for site in self.sites if sites is None else sites:
            dice = self.dice(site, "join")
            self.members[site], body = secagg.join(site, self.context, signer(site), dice)
            secagg.check_keys(body, site, self.context, self.pins[site])
            self.keys[site] = body
        self.roster = secagg.roster(self.context, self.keys)

    def share(self, sites: Iterable[str] | None = None) -> None:
        for site in self.keys if sites is None else sites:
            dice = self.dice(site, "share")
            self.members[site], body = secagg.share(
                self.members[site], self.roster, self.pins, dice
            )
            secagg.check_shares(body, site, self.roster)
            self.shares[site] = body

    def receive(self, sites: Iterable[str] | None = None) -> None:
        inboxes = secagg.inboxes(self.shares)
        for site in self.shares if sites is None else sites:
            self.members[site] = secagg.receive(self.members[site], inboxes[site])

    def masked(self, site: str, arrays: Iterable[Ring]) -> list[Ring]:
        masker = secagg.masker(self.members[site])
        self.members[site] = secagg.spend(self.members[site])
        found: list[Ring] = [array.copy() for array in arrays]
        for array in found:
            masker.mask(array)
        return found

    def hidden(self, site: str, values: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Mask one array of 32 bits."""
        out = values.copy()
        masker = secagg.masker(self.members[site])
        self.members[site] = secagg.spend(self.members[site])
        masker.mask(out)
        return out

    @property
    def parties(self) -> secagg.Parties:
        return secagg.Parties(self.shares, self.survivors)

    def consent(self, survivors: Iterable[str], sites: Iterable[str] | None = None) -> None:
        self.survivors = tuple(sorted(survivors))
        told = secagg.survivors(self.context, self.survivors)
        for site in self.survivors if sites is None else sites:
            self.members[site], body = secagg.consent(self.members[site], told, signer(site))
            secagg.check_consent(body, site, self.roster, self.parties, self.pins[site])
            self.consents[site] = body

    def unmask(self, sites: Iterable[str] | None = None) -> None:
        told = secagg.consents(self.consents)
        for site in self.consents if sites is None else sites:
            self.members[site], body = secagg.unmask(self.members[site], told, self.pins)
            secagg.check_unmask(body, site, self.roster, self.parties)
            self.unmasks[site] = body

    def unmasker(self) -> secagg.Unmasker:
        return secagg.unmasker(
            self.context, self.roster, self.shares, self.survivors, self.unmasks
        )

    def ready(self) -> "Play":
        """Walk to where updates are masked, nobody missing."""
        self.join()
        self.share()
        self.receive()
        return self

    def finish(self, survivors: Iterable[str]) -> "Play":
        """Walk on to the end with these survivors, all of whom answer."""
        self.consent(survivors)
        self.unmask()
        return self


def vectors(sites: Iterable[str], size: int = 5) -> dict[str, NDArray[np.uint32]]:
    """Return an update for every site."""
    rng = np.random.default_rng(7)
    return {site: rng.integers(0, 1 << 32, size, np.uint32) for site in sites}


def total(updates: Mapping[str, NDArray[np.uint32]]) -> NDArray[np.uint32]:
    """Return the sum in the ring."""
    found: NDArray[np.uint32] = np.add.reduce(list(updates.values()), dtype=np.uint32)
    return found
