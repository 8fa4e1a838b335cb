"""The hub's side of a masked sum: check what sites send, pass it on, take the masks off.

The hub holds no secret of a site and none of these functions needs one. `check_*` are asked
before a message counts, so that one broken node cannot make the others refuse: each raises
WireError for what is malformed, too large, of another round or of another site.

The masks come off the sum only. Every share that comes back is compared with the commitment
of the site that dealt it, and every secret that shares give with the site's own: a mask key
must have the public key of the roster. So a share that lies is left out and its sender named.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from consilia.errors import EmptyRound, UpdateRejected, WireError
from consilia.privacy import graph, sealing, shamir
from consilia.privacy.member import Secret, check_of
from consilia.privacy.streams import Ring, Streams
from consilia.wire import masks
from consilia.wire.v1 import decode, encode

# ---- what sites send -------------------------------------------------------------------------


def check_keys(body: bytes, site: str, context: bytes, public_key: bytes) -> None:
    """Check `Keys`: of this round, of this site, signed with the site's Ed25519 key."""
    keys = decode(body, masks.Keys)
    _same(keys.round == masks.round_of(context), keys.site, site, "keys")
    text = masks.keys_text(keys.round, site, keys.sealing, keys.masking)
    if not sealing.signed(public_key, keys.signature, text):
        raise WireError(f"the round's keys of site {site!r} are not signed with its key")
    if any(map(sealing.hides_nothing, (keys.sealing, keys.masking))):
        raise WireError(f"site {site!r} sent a key that hides nothing (a point of low order)")
    if keys.sealing == keys.masking:
        raise WireError(f"site {site!r} sent one key for two purposes")


def check_shares(body: bytes, site: str, roster_body: bytes) -> None:
    """Check `Shares`: one parcel for each of the site's neighbourhood and for nobody else."""
    shares = decode(body, masks.Shares)
    ring = _graph(roster_body)
    _same(shares.session == masks.session_of(roster_body), shares.site, site, "shares")
    _require_in_roster(site, ring)
    if shares.parcels.keys() != set(ring.neighbourhood(site)):
        raise WireError(
            f"site {site!r} dealt shares to {len(shares.parcels)} sites, needs exactly its "
            f"neighbourhood of {len(ring.neighbourhood(site))}"
        )
    for holder, parcel in shares.parcels.items():
        needed = 0 if holder == site else masks.BOX
        if len(parcel.box) != needed:
            raise WireError(
                f"the parcel of site {site!r} for {holder!r} has {len(parcel.box)} bytes, "
                f"needs {needed}"
            )


@dataclass(frozen=True, slots=True)
class Parties:
    """Who dealt shares, and whose masked updates are in the sum."""

    sharers: Collection[str]
    survivors: Collection[str]


def check_consent(
    body: bytes, site: str, roster_body: bytes, parties: Parties, public_key: bytes
) -> None:
    """Check `Consent`: a survivor's, who signed exactly these parties with its Ed25519 key."""
    consent = decode(body, masks.Consent)
    session = masks.session_of(roster_body)
    _same(consent.session == session, consent.site, site, "consent")
    _require_survivor(site, parties)
    view = masks.view_of(session, _sorted(parties.sharers), _sorted(parties.survivors))
    if not sealing.signed(public_key, consent.signature, masks.consent_text(view, site)):
        raise WireError(f"site {site!r} has not signed this set of survivors with its key")


def check_unmask(body: bytes, site: str, roster_body: bytes, parties: Parties) -> None:
    """Check `Unmask`: a survivor's; seeds of survivors, keys of others, neighbours only."""
    unmask = decode(body, masks.Unmask)
    ring = _graph(roster_body)
    _same(unmask.session == masks.session_of(roster_body), unmask.site, site, "unmasking")
    _require_survivor(site, parties)
    _require_in_roster(site, ring)
    alive = set(parties.survivors)
    near = set(ring.neighbourhood(site)).intersection(parties.sharers)
    if not (unmask.seeds.keys() <= near & alive and unmask.keys.keys() <= near - alive):
        raise WireError(f"site {site!r} gives out shares that it was not asked for")


def _require_survivor(site: str, parties: Parties) -> None:
    if site not in parties.survivors:
        raise WireError(f"site {site!r} answers, but its update is not in the sum")


def _same(session: bool, found: str, site: str, what: str) -> None:
    if not session:
        raise WireError(f"the {what} of site {site!r} belong to another round or roster")
    if found != site:
        raise WireError(f"site {site!r} sent the {what} of site {found!r}")


def _require_in_roster(site: str, ring: graph.Graph) -> None:
    if site not in ring.places:
        raise WireError(f"site {site!r} is not in the round's roster")


def _graph(roster_body: bytes) -> graph.Graph:
    found = masks.read_roster(roster_body)
    return graph.of(masks.session_of(roster_body), [keys.site for keys in found.keys])


# ---- what sites are told ---------------------------------------------------------------------


def roster(context: bytes, keys: Mapping[str, bytes]) -> bytes:
    """Return the `Roster` of the sites' `Keys`; the same bytes for everybody."""
    every = tuple(decode(keys[site], masks.Keys) for site in sorted(keys))
    return encode(masks.Roster(masks.round_of(context), every))


def inboxes(shares: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return for every site that dealt `Shares` the `Inbox` of what was dealt to it."""
    sharers = _sorted(shares)
    parcels: dict[str, dict[str, masks.Parcel]] = {site: {} for site in sharers}
    session = b""
    for dealer in sharers:
        dealt = decode(shares[dealer], masks.Shares)
        session = dealt.session
        for holder, parcel in dealt.parcels.items():
            if holder != dealer and holder in parcels:
                parcels[holder][dealer] = parcel
    return {site: encode(masks.Inbox(session, sharers, parcels[site])) for site in sharers}


def survivors(context: bytes, sites: Iterable[str]) -> bytes:
    """Return the `Survivors`: the sites whose masked updates are in the sum."""
    return encode(masks.Survivors(masks.round_of(context), _sorted(sites)))


def consents(bodies: Mapping[str, bytes]) -> bytes:
    """Return the `Consents` of the survivors' `Consent`s."""
    found = {site: decode(bodies[site], masks.Consent) for site in sorted(bodies)}
    sessions = {consent.session for consent in found.values()}
    if len(sessions) != 1:
        raise WireError(f"the consents are of {len(sessions)} sessions, needs one")
    signatures = {site: consent.signature for site, consent in found.items()}
    return encode(masks.Consents(sessions.pop(), signatures))


def _sorted(sites: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(sites))


# ---- taking the masks off --------------------------------------------------------------------


class Unmasker:
    """Takes the masks off the arrays of a sum, in their order. Not thread-safe."""

    def __init__(self, streams: Streams, liars: tuple[str, ...]) -> None:
        """Start at the first number; `unmasker` makes one."""
        self._streams = streams
        self.liars = liars  # sites whose answer held a share that was never dealt

    def subtract(self, values: Ring) -> None:
        """Take the masks off the next array of the sum (or piece of one), in place."""
        self._streams.add(values)


@dataclass(frozen=True)
class _Round:
    """What the hub was told, decoded, and what it finds out while it opens secrets."""

    keys: Mapping[str, masks.Keys]
    points: Mapping[str, int]  # site -> where its shares were taken
    session: bytes
    ring: graph.Graph
    dealt: Mapping[str, masks.Shares]
    answers: Mapping[str, masks.Unmask]
    liars: set[str] = field(default_factory=set)
    weights: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)


def unmasker(
    context: bytes,
    roster_body: bytes,
    shares: Mapping[str, bytes],
    survivors: Sequence[str],
    unmasks: Mapping[str, bytes],
) -> Unmasker:
    """Open the survivors' seeds and the mask keys of who dropped out; return the masks.

    `shares` and `unmasks` are the sites' `Shares` and `Unmask` bodies. Raises EmptyRound below
    a threshold, UpdateRejected when a site's own shares contradict each other (it is named;
    the round must go without it), WireError for what is of another round.
    """
    round = _round(context, roster_body, shares, unmasks)
    if foreign := set(survivors) - round.dealt.keys():
        raise WireError(f"survivors {_sorted(foreign)[:3]} dealt no shares")
    needed = graph.threshold(len(round.keys))
    if len(round.answers) < needed:
        raise EmptyRound(
            f"{len(round.answers)} sites answered to unmask the sum, needs {needed}; the sum "
            "stays masked, start the round again"
        )
    plus: list[bytes] = []
    minus: list[bytes] = []
    for site in _sorted(survivors):
        minus.append(sealing.self_seed(_seed(round, site), round.session, site))
    for gone in _sorted(round.dealt.keys() - set(survivors)):
        near = [site for site in round.ring.neighbours(gone) if site in survivors]
        if near:  # else nobody in the sum has a mask with it
            _pair_masks(round, gone, near, plus, minus)
    return Unmasker(Streams(plus, minus), _sorted(round.liars))


def _round(
    context: bytes,
    roster_body: bytes,
    shares: Mapping[str, bytes],
    unmasks: Mapping[str, bytes],
) -> _Round:
    roster = masks.read_roster(roster_body)
    if roster.round != masks.round_of(context):
        raise WireError("the roster belongs to another round")
    ring, session = _graph(roster_body), masks.session_of(roster_body)
    dealt = {site: decode(body, masks.Shares) for site, body in shares.items()}
    answers = {site: decode(body, masks.Unmask) for site, body in unmasks.items()}
    for site, one in dealt.items():
        _same(one.session == session, one.site, site, "shares")
        _require_in_roster(site, ring)
    for site, other in answers.items():
        _same(other.session == session, other.site, site, "unmasking")
    keys = {key.site: key for key in roster.keys}
    points = {site: point for point, site in enumerate(keys, 1)}
    return _Round(keys, points, session, ring, dealt, answers)


def _seed(round: _Round, site: str) -> bytes:
    """Open the seed of a survivor's self mask."""
    who = site.encode()

    def proof(seed: bytes) -> bool:
        return masks.digest("seed", round.session, who, seed) == round.dealt[site].seed_check

    return _open(round, site, "seed", proof)


def _pair_masks(
    round: _Round, gone: str, near: Iterable[str], plus: list[bytes], minus: list[bytes]
) -> None:
    """Open the mask key of a site that dropped out; add what undoes its masks in the sum."""
    public = round.keys[gone].masking
    private = _open(round, gone, "key", lambda key: sealing.public(key) == public)
    for site in near:
        peer = round.keys[site].masking
        seed = sealing.pair_seed(private, peer, round.session, gone, site)
        (minus if site < gone else plus).append(seed)


def _open(
    round: _Round,
    dealer: str,
    what: Secret,
    proof: Callable[[bytes], bool],
) -> bytes:
    """Return a secret of `dealer` from the shares that came back for it."""
    found = _shares(round, dealer, what)
    needed = round.ring.threshold()
    if len(found) < needed:
        raise EmptyRound(
            f"{len(found)} good shares of the {what} of site {dealer!r} came back, needs "
            f"{needed}{_lied(round)}; the sum stays masked, start the round again"
        )
    # All these are shares that the dealer committed to. When they do not lie on one curve the
    # dealer has cheated; another choice may still do, and each site gets to be left out once.
    for turn in range(len(found) if len(found) > needed else 1):
        chosen = (found[turn:] + found[:turn])[:needed]
        points = tuple(point for point, _ in chosen)
        if points not in round.weights:
            round.weights[points] = shamir.weights(points)
        with contextlib.suppress(WireError):
            secret = shamir.combine(round.weights[points], [share for _, share in chosen])
            if proof(secret):
                return secret
    raise UpdateRejected(
        f"the shares that site {dealer!r} dealt of its {what} contradict each other; start the "
        "round again without it"
    )


def _shares(round: _Round, dealer: str, what: Secret) -> list[tuple[int, bytes]]:
    """Return point and share of all answers that match what the dealer committed to."""
    found = []
    for holder in round.ring.neighbourhood(dealer):
        answer = round.answers.get(holder)
        parcel = round.dealt[dealer].parcels.get(holder)
        if answer is None or parcel is None:
            continue
        shares, check = (
            (answer.seeds, parcel.seed_check)
            if what == "seed"
            else (answer.keys, parcel.key_check)
        )
        share = shares.get(dealer)
        if share is None:
            continue
        if check_of(round.session, dealer, holder, what, share) == check:
            found.append((round.points[holder], share))
        else:
            round.liars.add(holder)
    return found


def _lied(round: _Round) -> str:
    return f" ({', '.join(sorted(round.liars))} sent wrong ones)" if round.liars else ""
