"""Attacks on the masked sum through who takes part: keys, invented sites, cohorts."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from consilia.errors import AuthError, Refused, WireError
from consilia.privacy import sealing, secagg
from consilia.wire import masks, v1
from maskkit import Dice, Play, key_of, names, pins, signer

LOW_ORDER = bytes(32)


def member_of(play: Play, number: int) -> secagg.Member:
    return play.members[play.sites[number]]


def ask_share(play: Play, number: int, roster: bytes) -> None:
    secagg.share(member_of(play, number), roster, play.pins, Dice("victim"))


# ---- a hub that swaps keys or invents sites --------------------------------------------------


def changed(play: Play, number: int, **change: object) -> bytes:
    """Return the roster with one site's keys changed."""
    roster = masks.read_roster(play.roster)
    keys = list(roster.keys)
    keys[number] = replace(keys[number], **change)
    return v1.encode(replace(roster, keys=tuple(keys)))


@pytest.mark.parametrize("name", ["sealing", "masking"])
def test_a_swapped_key_is_noticed(name: str) -> None:
    play = Play(names(4))
    play.join()
    mine = sealing.public(b"the hub's own key, which it owns")
    with pytest.raises(AuthError, match=r"'site-002' are not signed with the key accepted"):
        ask_share(play, 0, changed(play, 2, **{name: mine}))
    with pytest.raises(AuthError, match=r"does not hold the keys that site 'site-000' sent"):
        ask_share(play, 0, changed(play, 0, **{name: mine}))


def test_keys_signed_with_another_key_than_the_pinned_one_are_refused() -> None:
    """The hub's certificate authority can certify any key; it cannot make a pin."""
    play = Play(names(4))
    play.join()
    forger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    _, body = secagg.join(play.sites[2], play.context, forger.sign, Dice("forger"))
    roster = secagg.roster(play.context, {**play.keys, play.sites[2]: body})
    with pytest.raises(AuthError, match="compare and accept its new key"):
        ask_share(play, 0, roster)
    with pytest.raises(WireError, match="not signed with its key"):
        secagg.check_keys(body, play.sites[2], play.context, play.pins[play.sites[2]])


def test_keys_of_one_site_under_another_name() -> None:
    play = Play(names(4))
    play.join()
    stolen = v1.decode(play.keys[play.sites[1]], masks.Keys)
    body = v1.encode(replace(stolen, site=play.sites[2]))
    roster = secagg.roster(play.context, {**play.keys, play.sites[2]: body})
    with pytest.raises(AuthError):
        ask_share(play, 0, roster)


def test_phantom_sites_are_refused() -> None:
    """A hub that mints sites of its own to outnumber one hospital gets no answer from it."""
    play = Play(("hospital", "phantom-1", "phantom-2", "phantom-3"))
    play.pins = pins(["hospital"])
    for site in play.sites:
        play.members[site], play.keys[site] = secagg.join(
            site, play.context, signer(site), Dice(site)
        )
    roster = secagg.roster(play.context, play.keys)
    with pytest.raises(AuthError, match="'phantom-1', whose key was not accepted here"):
        ask_share(play, 0, roster)


def test_one_key_for_two_sites_is_refused() -> None:
    """Two sites of one owner, or one site's key signed by another: each key is used once."""
    play = Play(names(4))
    play.join()
    copied = v1.decode(play.keys[play.sites[1]], masks.Keys)
    text = masks.keys_text(copied.round, play.sites[2], copied.sealing, copied.masking)
    body = v1.encode(
        replace(copied, site=play.sites[2], signature=key_of(play.sites[2]).sign(text))
    )
    roster = secagg.roster(play.context, {**play.keys, play.sites[2]: body})
    with pytest.raises(AuthError, match="'site-001' and 'site-002' bring the same key"):
        ask_share(play, 0, roster)


@pytest.mark.parametrize("name", ["sealing", "masking"])
def test_a_key_that_hides_nothing_stops_the_site_before_its_update_leaves(name: str) -> None:
    play = Play(names(3))
    play.join()
    honest = v1.decode(play.keys[play.sites[2]], masks.Keys)
    weak = replace(honest, **{name: LOW_ORDER})
    text = masks.keys_text(weak.round, weak.site, weak.sealing, weak.masking)
    weak = replace(weak, signature=key_of(weak.site).sign(text))
    play.keys[weak.site] = v1.encode(weak)
    play.roster = secagg.roster(play.context, play.keys)
    with pytest.raises(AuthError, match="key of site 'site-002' is one that hides nothing"):
        ask_share(play, 0, play.roster)
    with pytest.raises(WireError, match="a key that hides nothing"):
        secagg.check_keys(play.keys[weak.site], weak.site, play.context, play.pins[weak.site])


# ---- a cohort of one, or of two --------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2])
def test_small_cohorts_are_refused(count: int) -> None:
    play = Play(names(3))
    play.join()
    few = secagg.roster(play.context, dict(list(play.keys.items())[:count]))
    with pytest.raises(Refused, match=f"the round has {count} sites.*takes part from 3 up"):
        ask_share(play, 0, few)


def test_a_site_may_ask_for_more() -> None:
    play = Play(names(4))
    play.join()
    member, dice = member_of(play, 0), Dice("d")
    assert secagg.share(member, play.roster, play.pins, dice, 4)
    with pytest.raises(Refused, match="takes part from 5 up"):
        secagg.share(member, play.roster, play.pins, dice, 5)
    with pytest.raises(Refused, match="takes part from 3 up"):
        secagg.share(member, secagg.roster(play.context, {}), play.pins, dice, 0)


@pytest.mark.parametrize("alone", [(0,), (0, 1), (1, 2, 3), (0, 1, 2, 9), (2, 1, 0), (0, 0, 1)])
def test_survivors_that_would_give_somebody_away_are_refused(alone: tuple[int, ...]) -> None:
    """Too few, without this site, with a stranger, not sorted, one counted twice."""
    play = Play(names(4)).ready()
    sites = (*play.sites, *names(10)[4:])
    body = v1.encode(
        masks.Survivors(masks.round_of(play.context), tuple(sites[i] for i in alone))
    )
    with pytest.raises((Refused, WireError)):
        secagg.consent(member_of(play, 0), body, signer(play.sites[0]))
