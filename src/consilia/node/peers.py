"""The other sites' signing keys: told by the hub, believed only when a person has pinned them.

A certificate of the hub's CA proves nothing to a peer: whoever runs the hub could make sites
up, and learn the one real site's update from a sum of its own. So each site pins, when it
accepts a study, the Ed25519 keys of the study's sites, shown as words that two people compare
by telephone. A key that changes later is refused until somebody pins it again.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from consilia.core import ids
from consilia.errors import ConfigError, Conflict, Refused, WireError
from consilia.node.store import Store, Transaction

MAX_PEERS = 10_000
KEY_BYTES = 32  # of an Ed25519 public key
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"


@dataclass(frozen=True, slots=True)
class Peer:
    """A site of a study: the key that is pinned, and the one the hub tells now."""

    site: str
    pinned: bytes | None
    told: bytes | None

    @property
    def state(self) -> str:
        """Return pinned, changed, new or unknown."""
        if self.pinned is None:
            return "unknown" if self.told is None else "new"
        return "pinned" if self.told in (None, self.pinned) else "changed"


def words(key: bytes) -> str:
    """Return a key's fingerprint as six words of five letters: 96 bits of its SHA-256.

    Proquints (Wilkerson 2009, arXiv:0901.4016): 16 bits each, consonant and vowel in turn, so
    that they can be spoken and heard.
    """
    digest = hashlib.sha256(b"consilia signing key\0" + key).digest()
    numbers = (int.from_bytes(digest[i : i + 2], "big") for i in range(0, 12, 2))
    return " ".join(
        _CONSONANTS[n >> 12]
        + _VOWELS[n >> 10 & 3]
        + _CONSONANTS[n >> 6 & 15]
        + _VOWELS[n >> 4 & 3]
        + _CONSONANTS[n & 15]
        for n in numbers
    )


def told(store: Store, keys: Mapping[str, bytes], now: float) -> None:
    """Keep what the hub says the sites' keys are; nothing is believed by it."""
    _check(keys)
    known = {str(site): key for site, key in store.rows("SELECT site, key FROM peers")}
    fresh = {site: key for site, key in keys.items() if known.get(site) != key}
    if not fresh:
        return
    if len(known.keys() | fresh.keys()) > MAX_PEERS:
        raise WireError(f"the hub has told the keys of more than {MAX_PEERS} sites by now")
    with store.write() as tx:
        for site, key in fresh.items():
            tx.execute(
                "INSERT INTO peers VALUES (?, ?) ON CONFLICT (site) DO UPDATE SET "
                "key = excluded.key",
                (site, key),
            )
            what = "changed" if site in known else "new"
            tx.audit(now, "hub", "peer.key", site, what, words(key))


def _check(keys: Mapping[str, bytes]) -> None:
    """Raise WireError for keys that cannot be sites' keys."""
    if len(keys) > MAX_PEERS:
        raise WireError(f"the hub's catalogue names {len(keys)} keys, limit {MAX_PEERS}")
    for site, key in keys.items():
        try:
            ids.name(site, "site")
        except ConfigError as e:
            raise WireError(f"the hub's catalogue names a key: {e}") from None
        if len(key) != KEY_BYTES:
            raise WireError(
                f"the hub tells a key of {len(key)} bytes for site {site!r}, needed {KEY_BYTES}"
            )


def of_study(
    store: Store, digest: str, sites: tuple[str, ...], own: Peer | None = None
) -> list[Peer]:
    """Return the study's sites with their keys; `own` is this site, with the key it has."""
    pinned = pins(store, digest)
    if own is not None and own.pinned is not None:
        pinned[own.site] = own.pinned
    known = {str(site): bytes(key) for site, key in store.rows("SELECT site, key FROM peers")}
    return [Peer(site, pinned.get(site), known.get(site)) for site in sites]


def pins(store: Store, digest: str) -> dict[str, bytes]:
    """Return the keys pinned for a study."""
    rows = store.rows("SELECT site, key FROM pins WHERE study = ?", (digest,))
    return {str(site): bytes(key) for site, key in rows}


def pin(  # noqa: PLR0913, PLR0917 - whose keys, who, when, and what they were shown
    tx: Transaction,
    digest: str,
    sites: tuple[str, ...],
    actor: str,
    now: float,
    shown: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Pin what the hub tells now of a study's sites, in a person's name; return how many.

    `shown` are the words the person has compared, by site; none, nothing is looked at. Raises
    Conflict when the hub tells another key by now.
    """
    known = {str(site): bytes(key) for site, key in tx.rows("SELECT site, key FROM peers")}
    rows = tx.rows("SELECT site, key FROM pins WHERE study = ?", (digest,))
    before = {str(site): bytes(key) for site, key in rows}
    fresh = {s: known[s] for s in sites if s in known and before.get(s) != known[s]}
    for site, key in sorted(fresh.items()):
        if site in shown and shown[site] != words(key):
            raise Conflict(
                f"words: the key of site {site!r} is another by now than the one shown; "
                "load the page again and compare once more"
            )
        tx.execute(
            "INSERT INTO pins VALUES (?, ?, ?) ON CONFLICT (study, site) DO UPDATE SET "
            "key = excluded.key",
            (digest, site, key),
        )
        tx.audit(now, actor, "peer.pin", site, "pinned", f"{words(key)}; study {digest}")
    return len(fresh)


def pin_again(  # noqa: PLR0913, PLR0917 - who, what, when, and this site's own key
    store: Store,
    digest: str,
    sites: tuple[str, ...],
    actor: str,
    now: float,
    own: Peer | None = None,
    shown: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Pin a study's keys anew, those `shown`; Conflict when nothing is new.

    Raises Refused when the hub tells another key of this very site than `own`.
    """
    for peer in of_study(store, digest, sites, own):
        if own is not None and peer.site == own.site and peer.state == "changed":
            raise Refused(
                f"the hub tells another key of this site {own.site!r} than its own, so others "
                "may have pinned a stranger: pin nothing and ask the hub's operator"
            )
    with store.write() as tx:
        count = pin(tx, digest, sites, actor, now, shown)
    if not count:
        raise Conflict("every key that the hub tells of this study's sites is pinned already")
    return count
