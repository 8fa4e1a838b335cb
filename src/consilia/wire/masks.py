"""The messages of a masked round (secure aggregation), in the order in which they are sent.

    node -> hub   Keys      fresh public keys, signed with the site's long-term key
    hub -> nodes  Roster    everybody's keys; its digest is the session's name from here on
    node -> hub   Shares    shares of the node's two secrets, one sealed parcel a neighbour
    hub -> node   Inbox     the parcels for this node, and who has sent parcels
    node -> hub   (the masked update, as a frame)
    hub -> nodes  Survivors whose masked updates have arrived
    node -> hub   Consent   a signature over exactly that list
    hub -> nodes  Consents  the signatures
    node -> hub   Unmask    for a survivor the share of its self mask, for a site that dropped
                            out the share of its mask key; never both for one site

A round of homomorphic encryption exchanges the same messages; a `Vault` travels in the shares,
and the last two messages name the sum's frame, encrypted and opened (privacy.vault).

The rules of wire.v1 hold here as well. Sizes are checked while a body is decoded. What the
steps mean is in `privacy.secagg`; docs/explanation/secure-aggregation.md explains why.
"""

import hashlib
import itertools
from typing import Annotated

from msgspec import Meta

from consilia.errors import WireError
from consilia.wire.v1 import Record, decode

MAX_SITES = 1000  # of a masked round
SHARE = 33  # bytes of a Shamir share: an element of the field of privacy.shamir
BOX = 12 + 2 * SHARE + 16  # bytes of a sealed pair of shares: nonce, shares, tag

VAULT = 12 + (256 << 10) + 16  # bytes of a sealed key for homomorphic encryption, at most
LOCK = 12 + 32 + 16  # bytes of a sealed content key

Site = Annotated[str, Meta(min_length=1, max_length=63)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Share = Annotated[bytes, Meta(min_length=SHARE, max_length=SHARE)]
Sites = Annotated[tuple[Site, ...], Meta(max_length=MAX_SITES)]
FrameName = Annotated[str, Meta(max_length=80)]
ByShare = Annotated[dict[Site, Share], Meta(max_length=MAX_SITES)]


class Keys(Record, frozen=True):
    """A site's public keys of one round, both X25519, used in no other round."""

    round: Digest  # `round_of` the context: which masked sum of which round
    site: Site
    sealing: Key  # peers seal shares to it
    masking: Key  # pairs of sites agree on masks with it
    signature: Signature  # Ed25519 over `keys_text`, by the key that peers have pinned


class Roster(Record, frozen=True):
    """All sites of the round and their keys, sorted by site."""

    round: Digest
    keys: Annotated[tuple[Keys, ...], Meta(max_length=MAX_SITES)]


class Parcel(Record, frozen=True):
    """One neighbour's shares of a site's two secrets, and what they can be checked against."""

    box: Annotated[bytes, Meta(max_length=BOX)]  # sealed; empty for the site's own shares
    seed_check: Digest  # commitment to the share of the self mask's seed
    key_check: Digest  # commitment to the share of the mask key


class Vault(Record, frozen=True):
    """A key for homomorphic encryption, from the site that made it to all others."""

    box: Annotated[bytes, Meta(max_length=VAULT)]  # the key, under a content key
    locks: Annotated[
        dict[Site, Annotated[bytes, Meta(max_length=LOCK)]], Meta(max_length=MAX_SITES)
    ]  # the content key, sealed to each


class Shares(Record, frozen=True):
    """The shares a site deals: to each of its neighbours and to itself."""

    session: Digest
    site: Site
    seed_check: Digest  # commitment to the seed itself
    parcels: Annotated[dict[Site, Parcel], Meta(max_length=MAX_SITES)]
    vault: Vault | None = None  # of an encrypted round, from the sites that make a key


class Inbox(Record, frozen=True):
    """What a node gets of what the others dealt."""

    session: Digest
    sharers: Sites  # all sites that dealt shares, sorted; the update is masked with these
    parcels: Annotated[dict[Site, Parcel], Meta(max_length=MAX_SITES)]  # neighbours' only
    vault: Vault | None = None  # the first sharer's, with this node's lock alone


class Survivors(Record, frozen=True):
    """The sites whose masked updates are in the sum, sorted."""

    round: Digest
    sites: Sites


class Consent(Record, frozen=True):
    """A site agrees that the sum over exactly these sites is unmasked."""

    session: Digest
    site: Site
    signature: Signature  # Ed25519 over `consent_text`


class Consents(Record, frozen=True):
    """The survivors' consents."""

    session: Digest
    signatures: Annotated[dict[Site, Signature], Meta(max_length=MAX_SITES)]
    sum: FrameName = ""  # of an encrypted round: the frame that holds the survivors' sum


class Unmask(Record, frozen=True):
    """The shares that a site gives out, once, for this session."""

    session: Digest
    site: Site
    seeds: ByShare = {}  # survivor -> share of the seed of its self mask
    keys: ByShare = {}  # site that dropped out -> share of its mask key
    opened: FrameName = ""  # of an encrypted round: the frame with the opened sum


def round_of(context: bytes) -> bytes:
    """Name one masked sum by the digest of its context.

    No two sums may have the same context: it holds the job, the round, the attempt, what the
    model and study are, and the cohort.
    """
    return digest("context", context)


def keys_text(round: bytes, site: str, sealing: bytes, masking: bytes) -> bytes:
    """Return the bytes that a site signs when it offers its keys."""
    return framed("keys", round, site.encode(), sealing, masking)


def view_of(session: bytes, sharers: tuple[str, ...], survivors: tuple[str, ...]) -> bytes:
    """Return the digest of what a site believes of the round: two sorted lists of sites."""
    lists = (digest("sites", *(s.encode() for s in sites)) for sites in (sharers, survivors))
    return digest("view", session, *lists)


def consent_text(view: bytes, site: str) -> bytes:
    """Return the bytes that a site signs when it agrees to unmask what it sees (`view_of`)."""
    return framed("consent", view, site.encode())


def session_of(roster_body: bytes) -> bytes:
    """Return the session's name: the digest of the roster's bytes as they were received."""
    return digest("roster", roster_body)


def digest(purpose: str, *parts: bytes) -> bytes:
    """Return SHA-256 of `framed` parts."""
    return hashlib.sha256(framed(purpose, *parts)).digest()


def framed(purpose: str, *parts: bytes) -> bytes:
    """Join parts so that no two different lists, or purposes, give the same bytes.

    Each part is preceded by its length as 8 bytes little-endian, as in wire.seal.
    """
    every = (b"consilia secagg 1", purpose.encode(), *parts)
    return b"".join(len(part).to_bytes(8, "little") + part for part in every)


def read_roster(body: bytes) -> Roster:
    """Decode a roster; raise WireError unless its sites are sorted and of one round."""
    roster = decode(body, Roster)
    require_sorted(tuple(keys.site for keys in roster.keys), "a roster")
    for keys in roster.keys:
        if keys.round != roster.round:
            raise WireError(
                f"a roster holds keys of site {keys.site!r} for another round; a hub that "
                "replays old keys is refused"
            )
    return roster


def require_sorted(sites: tuple[str, ...], what: str) -> None:
    """Raise WireError unless `sites` are sorted and each is there once."""
    for one, other in itertools.pairwise(sites):
        if one >= other:
            raise WireError(
                f"{what} must name its sites sorted and once; found {one!r} before {other!r}"
            )
