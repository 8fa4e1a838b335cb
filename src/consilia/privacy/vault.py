"""The key of a round of homomorphic encryption: made at a site, sealed from site to site.

The key exchange is that of a masked round: fresh X25519 keys, signed by the sites and compared
with what people have pinned (privacy.member). The first `DEALERS` sites of the roster each
make a CKKS key and put it, sealed, into the message with their shares; the vault of the first
site that dealt shares is the one all use. Which sites dealt shares is part of what everybody
signs before the sum is opened, so sites that were shown different vaults never agree on it.
A second dealer is there so that the loss of one site before it has dealt ends no round.

    box    the key, under a random content key, bound to session and dealer
    locks  the content key, sealed to each other site of the roster

The hub passes vaults on and can open none; a key serves one attempt at one round.
"""

from collections.abc import Mapping

from msgspec.structs import replace

from consilia.errors import Refused, WireError
from consilia.privacy import sealing
from consilia.privacy.member import Member
from consilia.privacy.shamir import Random
from consilia.wire import masks
from consilia.wire.v1 import decode, encode

DEALERS = 2
_CONTENT = 32  # bytes of a content key


def deals(member: Member) -> bool:
    """Say whether the member's site is one of those that make a key."""
    return member.site in _dealers(masks.read_roster(member.roster))


def deal(
    member: Member, shares_body: bytes, key: bytes, random: Random
) -> tuple[Member, bytes]:
    """Put `key`, sealed, into the member's `Shares`; return the member and that message."""
    roster = masks.read_roster(member.roster)
    session, me, content = masks.session_of(member.roster), member.site, random(_CONTENT)
    box = sealing.lock(content, random(sealing.NONCE), key, _about(session, me))
    locks = {}
    for keys in roster.keys:
        if keys.site != me:
            way = sealing.vault_key(member.sealing, keys.sealing, session, (me, keys.site))
            locks[keys.site] = sealing.lock(way, random(sealing.NONCE), content, b"")
    shares = decode(shares_body, masks.Shares)
    body = encode(replace(shares, vault=masks.Vault(box, locks)))
    return replace(member, shares=body, cipher_key=key), body


def take(member: Member, inbox_body: bytes) -> Member:
    """Open the vault that the round uses; return the member with its key.

    The inbox is one that privacy.member has accepted. Raises Refused when its vault is not
    there, not from the site that must have made it, or does not open.
    """
    inbox, session = decode(inbox_body, masks.Inbox), masks.session_of(member.roster)
    roster, dealer = masks.read_roster(member.roster), inbox.sharers[0]
    if dealer not in _dealers(roster):
        raise Refused(
            f"sites {' and '.join(_dealers(roster))} should have made the round's key, and "
            "were lost before they could: start the round again"
        )
    if dealer == member.site:
        return member
    if inbox.vault is None or member.site not in inbox.vault.locks:
        raise Refused(f"the hub holds back the round's key, which site {dealer!r} has made")
    keys = next(keys for keys in roster.keys if keys.site == dealer)
    way = sealing.vault_key(member.sealing, keys.sealing, session, (dealer, member.site))
    content = sealing.unlock(way, inbox.vault.locks[member.site], b"")
    about = _about(session, dealer)
    key = None if content is None else sealing.unlock(content, inbox.vault.box, about)
    if key is None:
        raise Refused(
            f"the round's key is not as site {dealer!r} has sealed it for {member.site!r}: "
            "somebody between them has changed it"
        )
    return replace(member, cipher_key=key)


def check(body: bytes, site: str, roster_body: bytes, encrypted: bool) -> None:
    """Raise WireError unless a site's `Shares` hold a vault exactly when they must."""
    vault, roster = decode(body, masks.Shares).vault, masks.read_roster(roster_body)
    needed = encrypted and site in _dealers(roster)
    if (vault is not None) != needed:
        what = "brings no key" if needed else "brings a key that nobody asked for"
        raise WireError(f"site {site!r} {what} for the round's homomorphic encryption")
    others = {keys.site for keys in roster.keys} - {site}
    if vault is None:
        return
    if vault.locks.keys() != others or any(len(k) != masks.LOCK for k in vault.locks.values()):
        raise WireError(
            f"the key of site {site!r} is sealed to {len(vault.locks)} sites, needed exactly "
            f"the {len(others)} others of the roster"
        )


def named(unmask_body: bytes, opened: str) -> bytes:
    """Return an `Unmask` that names the frame with the opened sum; Refused for none."""
    if not opened:
        raise Refused("the encrypted sum was not opened at this site")
    return encode(replace(decode(unmask_body, masks.Unmask), opened=opened))


def dealt(shares: Mapping[str, bytes]) -> bool:
    """Say whether the first of the sites that dealt shares has brought the round's key."""
    return bool(shares) and decode(shares[min(shares)], masks.Shares).vault is not None


def passed_on(shares: Mapping[str, bytes], inboxes: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the sites' inboxes with the round's vault in each, as far as it is theirs."""
    vault = decode(shares[min(shares)], masks.Shares).vault
    if vault is None:
        return dict(inboxes)
    found = {}
    for site, body in inboxes.items():
        locks = {site: vault.locks[site]} if site in vault.locks else {}
        mine = masks.Vault(vault.box, locks) if locks else None
        found[site] = encode(replace(decode(body, masks.Inbox), vault=mine))
    return found


def _dealers(roster: masks.Roster) -> tuple[str, ...]:
    return tuple(keys.site for keys in roster.keys[:DEALERS])


def _about(session: bytes, dealer: str) -> bytes:
    return masks.framed("vault", session, dealer.encode())
