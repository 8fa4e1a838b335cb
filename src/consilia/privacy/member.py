"""A node's side of a masked sum: five answers, each given once.

Every function takes the `Member` of the step before and returns the next. The caller stores
what it gets before it sends the message; a node that was cut off goes on from what it stored.
A message that comes again gets the same answer again; another message for a step that is
answered is refused. So no restart and no hub can make a node answer in two ways.

The hub is not trusted with anything here but delivery.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import field
from msgspec.structs import replace

from consilia.errors import AuthError, Refused, WireError
from consilia.privacy import graph, sealing, shamir
from consilia.privacy.shamir import Random
from consilia.privacy.streams import Ring, Streams
from consilia.wire import masks
from consilia.wire.v1 import Record, decode, encode

Sign = Callable[[bytes], bytes]  # Ed25519 by the site's long-term key
Pair = tuple[bytes, bytes]  # a holder's shares of a site's seed and of its mask key
Secret = Literal["seed", "key"]  # of a self mask; of the pair masks


class Member(Record, frozen=True):
    """What a node knows of one masked sum. It holds secrets: store it as keys are stored."""

    keys: masks.Keys
    sealing: bytes  # X25519 private
    masking: bytes  # X25519 private
    seed: bytes = b""  # of the self mask
    roster: bytes = b""  # as received
    shares: bytes = b""  # the answer to it
    inbox: bytes = b""  # digest of what was received
    sharers: tuple[str, ...] = ()  # whom the update is masked with
    held: dict[str, Pair] = field(
        default_factory=dict
    )  # site -> shares of its seed and its mask key
    unreadable: tuple[str, ...] = ()  # sites whose parcels did not open: nothing to give out
    spent: bool = False  # an update has been masked
    survivors: tuple[str, ...] = ()  # whom the node has agreed to
    cipher_key: bytes = b""  # of an encrypted round (privacy.vault)

    @property
    def site(self) -> str:
        """The node's own site."""
        return self.keys.site

    def __repr__(self) -> str:
        """Name the member without its secrets, so that no log shows them."""
        return f"Member(site={self.site!r}, secrets=hidden)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show as little to rich, which prints tracebacks."""
        return [("site", self.site)]


def join(site: str, context: bytes, sign: Sign, random: Random) -> tuple[Member, bytes]:
    """Make fresh keys for the masked sum named by `context`; return the member and `Keys`."""
    seal, mask = random(32), random(32)
    public = sealing.public(seal), sealing.public(mask)
    round = masks.round_of(context)
    signature = sign(masks.keys_text(round, site, *public))
    keys = masks.Keys(round, site, public[0], public[1], signature)
    return Member(keys, seal, mask), encode(keys)


def share(
    member: Member,
    roster_body: bytes,
    pins: Mapping[str, bytes],
    random: Random,
    least: int = graph.LEAST,
) -> tuple[Member, bytes]:
    """Check everybody's keys, deal shares to the neighbours; return the member and `Shares`.

    `pins` are the Ed25519 public keys that this site's people have accepted, by site. Raises
    AuthError for a site that is not among them, is not signed by its key, or brings keys that
    hide nothing; Refused for fewer than `least` sites and for a second, different roster;
    WireError for what is malformed or of another round.
    """
    if member.roster:
        if member.roster != roster_body:
            raise Refused(
                f"site {member.site!r} has answered a roster of this round already and is "
                "shown another; a second view is never answered"
            )
        return member, member.shares
    roster = masks.read_roster(roster_body)
    _check_roster(member, roster, pins, least)
    session = masks.session_of(roster_body)
    ring = graph.of(session, [keys.site for keys in roster.keys])
    seed = random(32)
    dealt, own = _deal(replace(member, seed=seed), roster, session, ring, random)
    check = masks.digest("seed", session, member.site.encode(), seed)
    body = encode(masks.Shares(session, member.site, check, dealt))
    made = replace(member, seed=seed, roster=roster_body, shares=body, held={member.site: own})
    return made, body


def _check_roster(
    member: Member, roster: masks.Roster, pins: Mapping[str, bytes], least: int
) -> None:
    if roster.round != member.keys.round:
        raise WireError(
            f"site {member.site!r} got a roster of another round; a hub that replays an old "
            "round is refused"
        )
    if len(roster.keys) < max(least, graph.LEAST):
        raise Refused(
            f"the round has {len(roster.keys)} sites, site {member.site!r} takes part from "
            f"{max(least, graph.LEAST)} up"
        )
    if member.keys not in roster.keys:
        raise AuthError(
            f"the roster does not hold the keys that site {member.site!r} sent; whoever "
            "changed them wants to read its update"
        )
    seen: dict[bytes, str] = {}
    for keys in roster.keys:
        _check_keys(keys, pins)
        for key in (keys.sealing, keys.masking):
            if key in seen:
                raise AuthError(
                    f"sites {seen[key]!r} and {keys.site!r} bring the same key; each key must "
                    "be fresh and used once"
                )
            seen[key] = keys.site


def _check_keys(keys: masks.Keys, pins: Mapping[str, bytes]) -> None:
    pin = pins.get(keys.site)
    if pin is None:
        raise AuthError(
            f"the roster names site {keys.site!r}, whose key was not accepted here; a hub can "
            "invent sites, so a new one must be accepted with the study"
        )
    if any(map(sealing.hides_nothing, (keys.sealing, keys.masking))):
        raise AuthError(
            f"a key of site {keys.site!r} is one that hides nothing (a point of low order); "
            "its node is broken or hostile: ask that site"
        )
    text = masks.keys_text(keys.round, keys.site, keys.sealing, keys.masking)
    if not sealing.signed(pin, keys.signature, text):
        raise AuthError(
            f"the round's keys of site {keys.site!r} are not signed with the key accepted for "
            "it; if the site was enrolled again, compare and accept its new key"
        )


def _deal(
    member: Member,
    roster: masks.Roster,
    session: bytes,
    ring: graph.Graph,
    random: Random,
) -> tuple[dict[str, masks.Parcel], Pair]:
    """Return a parcel for everybody in the neighbourhood, and the member's own two shares."""
    points = {keys.site: point for point, keys in enumerate(roster.keys, 1)}
    keys_of = {keys.site: keys for keys in roster.keys}
    me, holders = member.site, ring.neighbourhood(member.site)
    at = [points[holder] for holder in holders]
    seeds = shamir.split(member.seed, ring.threshold(), at, random)
    keys = shamir.split(member.masking, ring.threshold(), at, random)
    parcels: dict[str, masks.Parcel] = {}
    own: Pair = (b"", b"")
    for holder, pair in zip(holders, zip(seeds, keys, strict=True), strict=True):
        checks = _checks(session, me, holder, pair)
        box = b""
        if holder == me:
            own = pair
        else:
            key = sealing.box_key(
                member.sealing, keys_of[holder].sealing, session, (me, holder)
            )
            box = sealing.lock(key, random(sealing.NONCE), b"".join(pair), b"".join(checks))
        parcels[holder] = masks.Parcel(box, *checks)
    return parcels, own


def check_of(session: bytes, dealer: str, holder: str, kind: Secret, share: bytes) -> bytes:
    """Return the commitment to a share; it hides the share, which is uniform in 2**257."""
    return masks.digest(f"{kind} share", session, dealer.encode(), holder.encode(), share)


def _checks(session: bytes, dealer: str, holder: str, pair: Pair) -> tuple[bytes, bytes]:
    seed, key = pair
    return (
        check_of(session, dealer, holder, "seed", seed),
        check_of(session, dealer, holder, "key", key),
    )


def receive(member: Member, inbox_body: bytes) -> Member:
    """Open the parcels; from here on it is fixed whom the update is masked with.

    Raises Refused for fewer sites than the threshold, for parcels that the hub holds back
    and for a second, different inbox. A parcel that does not open, or whose shares are not
    those its dealer committed to, is noted in `unreadable`; the others' shares stand in.
    """
    member = _at_step(member, bool(member.roster), "the roster")
    told = masks.digest("inbox", inbox_body)
    if member.inbox:
        if member.inbox != told:
            raise Refused(
                f"site {member.site!r} has taken its shares of this round already and is shown "
                "others; a second view is never answered"
            )
        return member
    inbox = decode(inbox_body, masks.Inbox)
    roster, session, ring = _session(member)
    _check_inbox(member, inbox, session, ring)
    held, unreadable = dict(member.held), []
    for keys in roster.keys:
        if keys.site in inbox.parcels:
            pair = _opened(member, keys, inbox.parcels[keys.site], session)
            if pair is None:
                unreadable.append(keys.site)
            else:
                held[keys.site] = pair
    return replace(
        member,
        inbox=told,
        sharers=inbox.sharers,
        held=held,
        unreadable=tuple(unreadable),
    )


def _check_inbox(member: Member, inbox: masks.Inbox, session: bytes, ring: graph.Graph) -> None:
    if inbox.session != session:
        raise WireError(f"site {member.site!r} got shares of another session")
    masks.require_sorted(inbox.sharers, "an inbox")
    sharers = set(inbox.sharers)
    if foreign := sharers - set(ring.order):
        raise WireError(f"an inbox names {sorted(foreign)[:3]}, who are not in the roster")
    if member.site not in sharers:
        raise Refused(f"site {member.site!r} dealt shares and is not named among the sharers")
    _enough(len(sharers), graph.threshold(len(ring.order)), "dealt shares")
    near = sharers.intersection(ring.neighbourhood(member.site))
    _enough(len(near), ring.threshold(), f"dealt shares next to site {member.site!r}")
    if inbox.parcels.keys() != near - {member.site}:
        raise Refused(
            f"the hub says who dealt shares, but the parcels for site {member.site!r} are not "
            "theirs: some are held back or too many"
        )


def _enough(found: int, needed: int, what: str) -> None:
    if found < needed:
        raise Refused(
            f"{found} sites {what}, needs {needed}; the round stops here and reveals nothing"
        )


def _opened(
    member: Member, dealer: masks.Keys, parcel: masks.Parcel, session: bytes
) -> Pair | None:
    key = sealing.box_key(member.sealing, dealer.sealing, session, (dealer.site, member.site))
    checks = (parcel.seed_check, parcel.key_check)
    plain = sealing.unlock(key, parcel.box, b"".join(checks))
    if plain is None or len(plain) != 2 * masks.SHARE:
        return None
    pair = (plain[: masks.SHARE], plain[masks.SHARE :])
    return pair if _checks(session, dealer.site, member.site, pair) == checks else None


def spend(member: Member) -> Member:
    """Return the member after its masks were used; store it before the first number is masked.

    Two different updates under the same masks would give away their difference. So what a
    restarted node may send is the update it has stored, or nothing.
    """
    return replace(_at_step(member, bool(member.inbox), "its shares"), spent=True)


class Masker:
    """Adds a site's masks to the arrays of its update, in their order. Not thread-safe."""

    def __init__(self, streams: Streams) -> None:
        """Start at the first number; `masker` makes one."""
        self._streams = streams

    def mask(self, values: Ring) -> None:
        """Add the masks to the next array of the update (or piece of one), in place."""
        self._streams.add(values)


def masker(member: Member) -> Masker:
    """Return the masks of this sum; Refused when they are `spent`."""
    member = _at_step(member, bool(member.inbox), "its shares")
    if member.spent:
        raise Refused(
            f"site {member.site!r} has masked an update of this round already; a second one "
            "under the same masks would give away their difference: send the stored one"
        )
    roster, session, ring = _session(member)
    keys_of = {keys.site: keys for keys in roster.keys}
    plus, minus = [sealing.self_seed(member.seed, session, member.site)], list[bytes]()
    for peer in ring.neighbours(member.site):
        if peer in member.sharers:
            seed = sealing.pair_seed(
                member.masking, keys_of[peer].masking, session, member.site, peer
            )
            (plus if member.site < peer else minus).append(seed)
    return Masker(Streams(plus, minus))


def consent(member: Member, survivors_body: bytes, sign: Sign) -> tuple[Member, bytes]:
    """Agree to unmask the sum over exactly these sites; return the member and `Consent`.

    Raises Refused for a set that is too small, holds a site that dealt no shares, leaves this
    site out, or differs from the one agreed to before.
    """
    member = _at_step(member, bool(member.inbox), "its shares")
    told = decode(survivors_body, masks.Survivors)
    roster, session, ring = _session(member)
    if told.round != roster.round:
        raise WireError(f"site {member.site!r} got survivors of another round")
    if member.survivors and member.survivors != told.sites:
        raise Refused(
            f"site {member.site!r} has agreed to another set of survivors; from two sums the "
            "hub could subtract one site's update"
        )
    masks.require_sorted(told.sites, "a list of survivors")
    _enough(len(told.sites), graph.threshold(len(ring.order)), "are in the sum")
    if not set(told.sites) <= set(member.sharers) or member.site not in told.sites:
        raise Refused(
            f"the survivors shown to site {member.site!r} must be sites that dealt shares, "
            "and itself one of them"
        )
    if not ring.connected(told.sites):
        raise Refused("too many neighbouring sites are gone: the sum would open in two parts")
    view = masks.view_of(session, member.sharers, told.sites)
    text = masks.consent_text(view, member.site)
    body = encode(masks.Consent(session, member.site, sign(text)))
    return replace(member, survivors=told.sites), body


def unmask(
    member: Member, consents_body: bytes, pins: Mapping[str, bytes]
) -> tuple[Member, bytes]:
    """Give out what unmasks the agreed sum, once a threshold has agreed to the very same.

    Returns the member and `Unmask`: for every survivor of the neighbourhood the share of its
    seed, for every other site there that dealt shares the share of its mask key. The two
    groups are disjoint and fixed. Raises Refused below the threshold.
    """
    member = _at_step(member, bool(member.survivors), "the survivors")
    told = decode(consents_body, masks.Consents)
    roster, session, _ = _session(member)
    if told.session != session:
        raise WireError(f"site {member.site!r} got consents of another session")
    needed = graph.threshold(len(roster.keys))
    _enough(_valid(member, told, session, pins, needed), needed, "signed the same survivors")
    alive = set(member.survivors)
    seeds = {site: pair[0] for site, pair in member.held.items() if site in alive}
    keys = {site: pair[1] for site, pair in member.held.items() if site not in alive}
    return member, encode(masks.Unmask(session, member.site, seeds, keys))


def _valid(
    member: Member,
    told: masks.Consents,
    session: bytes,
    pins: Mapping[str, bytes],
    needed: int,
) -> int:
    """Count the survivors who signed what this member agreed to; stop at `needed`."""
    count = 0
    view = masks.view_of(session, member.sharers, member.survivors)
    for site in member.survivors:
        signature, pin = told.signatures.get(site), pins.get(site)
        if signature is None or pin is None:
            continue
        count += sealing.signed(pin, signature, masks.consent_text(view, site))
        if count == needed:
            break
    return count


def _at_step(member: Member, reached: bool, needed: str) -> Member:
    if not reached:
        raise Refused(f"site {member.site!r} was asked for a step before it had {needed}")
    return member


def _session(member: Member) -> tuple[masks.Roster, bytes, graph.Graph]:
    roster = masks.read_roster(member.roster)
    session = masks.session_of(member.roster)
    return roster, session, graph.of(session, [keys.site for keys in roster.keys])
