"""Attacks on the masked sum by sites: wrong shares, bent parcels, foreign messages."""

from collections.abc import Iterable, Mapping

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from consilia.errors import EmptyRound, Refused, UpdateRejected, WireError
from consilia.privacy import sealing, secagg
from consilia.wire import masks, v1
from maskkit import Play, key_of, names, total, vectors

U32 = NDArray[np.uint32]


def masked(play: Play, data: Mapping[str, U32]) -> dict[str, U32]:
    return {site: play.hidden(site, values) for site, values in data.items()}


# ---- sites that lie --------------------------------------------------------------------------


def lie(body: bytes, kind: str, about: Iterable[str]) -> bytes:
    """Return an `Unmask` whose shares about some sites are wrong."""
    answer = v1.decode(body, masks.Unmask)
    wrong = {s: bytes(31) + b"\1\2" for s in about if s in getattr(answer, kind)}
    return v1.encode(replace(answer, **{kind: {**getattr(answer, kind), **wrong}}))


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_a_wrong_share_is_found_and_the_sum_is_right(kind: str) -> None:
    play = Play(names(7)).ready()
    data = vectors(play.sites[:6])
    sent = masked(play, data)
    play.finish(play.sites[:6])
    liar = play.sites[2]
    play.unmasks[liar] = lie(play.unmasks[liar], kind, play.sites)
    unmasker = play.unmasker()
    assert unmasker.liars == (liar,)
    out = total(sent)
    unmasker.subtract(out)
    assert (out == total(data)).all()


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_one_liar_too_many_and_nothing_opens(kind: str) -> None:
    play = Play(names(7)).ready()
    play.finish(play.sites[:6])
    for site in play.sites[:2]:
        play.unmasks[site] = lie(play.unmasks[site], kind, play.sites)
    with pytest.raises(EmptyRound, match=r"needs 5 \(site-000, site-001 sent wrong ones\)"):
        play.unmasker()


def cheated(play: Play, dealer: str, to: Iterable[str]) -> None:
    """Let a dealer deal shares of something else to some sites, and commit to them."""
    member = play.members[dealer]
    roster = masks.read_roster(play.roster)
    keys, session = {k.site: k for k in roster.keys}, masks.session_of(play.roster)
    shares = v1.decode(play.shares[dealer], masks.Shares)
    parcels = dict(shares.parcels)
    for holder in to:
        pair = (bytes(31) + b"\1\7", bytes(31) + b"\1\x08")
        who = (session, dealer.encode(), holder.encode())
        checks = [
            masks.digest(f"{kind} share", *who, share)
            for kind, share in zip(("seed", "key"), pair, strict=True)
        ]
        key = sealing.box_key(member.sealing, keys[holder].sealing, session, (dealer, holder))
        box = sealing.lock(key, bytes(12), b"".join(pair), b"".join(checks))
        parcels[holder] = masks.Parcel(box, checks[0], checks[1])
    play.shares[dealer] = v1.encode(replace(shares, parcels=parcels))
    secagg.check_shares(play.shares[dealer], dealer, play.roster)


@pytest.mark.parametrize("alive", [True, False])
def test_a_dealer_who_contradicts_itself_is_named(alive: bool) -> None:
    play = Play(names(7))
    play.join()
    play.share()
    dealer = play.sites[6]
    cheated(play, dealer, play.sites[:3])
    play.receive()
    play.finish(play.sites if alive else play.sites[:6])
    with pytest.raises(UpdateRejected, match=r"site 'site-006' dealt .* contradict each other"):
        play.unmasker()


def test_one_bad_share_of_a_dealer_is_got_round() -> None:
    play = Play(names(7))
    play.join()
    play.share()
    cheated(play, play.sites[6], play.sites[:1])
    play.receive()
    data = vectors(play.sites)
    out = total(masked(play, data))
    play.finish(play.sites)
    play.unmasker().subtract(out)
    assert (out == total(data)).all()


def bend(play: Play, dealer: str, holders: Iterable[str]) -> None:
    """Change one bit of the parcels that a dealer sent to some sites."""
    shares = v1.decode(play.shares[dealer], masks.Shares)
    parcels = dict(shares.parcels)
    for holder in holders:
        box = parcels[holder].box
        parcels[holder] = replace(parcels[holder], box=box[:-1] + bytes([box[-1] ^ 1]))
    play.shares[dealer] = v1.encode(replace(shares, parcels=parcels))


@pytest.mark.parametrize(("count", "opens"), [(0, True), (2, True), (3, False)])
def test_parcels_that_do_not_open_are_noted(count: int, opens: bool) -> None:
    """The shares of the others stand in, as long as they are enough; else the round closes."""
    play = Play(names(7))
    play.join()
    play.share()
    dealer, victims = play.sites[6], play.sites[:count]
    bend(play, dealer, victims)
    play.receive()
    data = vectors(play.sites)
    out = total(masked(play, data))
    for site in play.sites:
        assert play.members[site].unreadable == ((dealer,) if site in victims else ())
    play.finish(play.sites)
    if opens:
        play.unmasker().subtract(out)
        assert (out == total(data)).all()
    else:
        with pytest.raises(EmptyRound, match="4 good shares of the seed of site 'site-006'"):
            play.unmasker()


def test_a_parcel_for_one_site_opens_at_no_other() -> None:
    play = Play(names(5))
    play.join()
    play.share()
    dealer, (a, b) = play.sites[4], play.sites[:2]
    shares = v1.decode(play.shares[dealer], masks.Shares)
    crossed = {**shares.parcels, a: shares.parcels[b], b: shares.parcels[a]}
    play.shares[dealer] = v1.encode(replace(shares, parcels=crossed))
    play.receive()
    assert play.members[a].unreadable == play.members[b].unreadable == (dealer,)
    assert not play.members[play.sites[2]].unreadable


def test_a_hub_that_holds_parcels_back_is_noticed() -> None:
    play = Play(names(4))
    play.join()
    play.share()
    site = play.sites[0]
    inbox = v1.decode(secagg.inboxes(play.shares)[site], masks.Inbox)
    few = {s: p for s, p in inbox.parcels.items() if s != play.sites[2]}
    many = {**inbox.parcels, site: inbox.parcels[play.sites[2]]}
    for parcels in (few, many, {}):
        with pytest.raises(Refused, match="held back or too many"):
            secagg.receive(play.members[site], v1.encode(replace(inbox, parcels=parcels)))
    for sharers in (play.sites[1:], (*play.sites, "stranger")):
        with pytest.raises((Refused, WireError)):
            body = v1.encode(replace(inbox, sharers=sharers))
            secagg.receive(play.members[site], body)


# ---- the hub's own doors ---------------------------------------------------------------------


def test_messages_of_other_sites_and_rounds_do_not_count() -> None:
    play = Play(names(4)).ready()
    play.finish(play.sites[:3])
    a, b, gone = play.sites[0], play.sites[1], play.sites[3]
    other = Play(names(4), b"other", seed="other").ready()
    other.finish(other.sites[:3])
    parties, key = play.parties, play.pins
    for site, p in ((a, other), (b, play)):
        with pytest.raises(WireError):
            secagg.check_keys(p.keys[a], site, play.context, key[site])
        with pytest.raises(WireError):
            secagg.check_shares(p.shares[a], site, play.roster)
        with pytest.raises(WireError):
            secagg.check_consent(p.consents[a], site, play.roster, parties, key[site])
        with pytest.raises(WireError):
            secagg.check_unmask(p.unmasks[a], site, play.roster, parties)
    with pytest.raises(WireError, match="its update is not in the sum"):
        body = v1.encode(replace(v1.decode(play.unmasks[a], masks.Unmask), site=gone))
        secagg.check_unmask(body, gone, play.roster, parties)
    with pytest.raises(WireError, match="its update is not in the sum"):
        session = masks.session_of(play.roster)
        view = masks.view_of(session, play.sites, play.survivors)
        signature = key_of(gone).sign(masks.consent_text(view, gone))
        body = v1.encode(masks.Consent(session, gone, signature))
        secagg.check_consent(body, gone, play.roster, parties, key[gone])
    for context, shares in ((b"other", play.shares), (play.context, other.shares)):
        with pytest.raises(WireError):
            secagg.unmasker(context, play.roster, shares, play.survivors, play.unmasks)


def test_the_hub_opens_nothing_from_what_does_not_belong_together() -> None:
    play = Play(names(4)).ready().finish(names(4)[:3])
    other = Play(names(4), b"other", seed="other").ready().finish(names(4)[:3])
    said = (play.context, play.roster, play.shares)
    with pytest.raises(WireError, match="the unmasking of site 'site-000' belong"):
        secagg.unmasker(*said, play.survivors, other.unmasks)
    with pytest.raises(WireError, match="sent the unmasking of site"):
        swapped = dict(zip(play.survivors, reversed(play.unmasks.values()), strict=True))
        secagg.unmasker(*said, play.survivors, swapped)
    with pytest.raises(WireError, match=r"survivors \('stranger',\) dealt no shares"):
        secagg.unmasker(*said, (*play.survivors, "stranger"), play.unmasks)
    few = dict(list(play.unmasks.items())[:2])
    with pytest.raises(EmptyRound, match="2 sites answered to unmask the sum, needs 3"):
        secagg.unmasker(*said, play.survivors, few)


def test_a_holder_is_not_blamed_for_what_its_dealer_did() -> None:
    """A parcel that opens, but holds other shares than its dealer committed to."""
    play = Play(names(7))
    play.join()
    play.share()
    dealer, holder = play.sites[6], play.sites[0]
    roster = masks.read_roster(play.roster)
    keys, session = {k.site: k for k in roster.keys}, masks.session_of(play.roster)
    shares = v1.decode(play.shares[dealer], masks.Shares)
    parcel = shares.parcels[holder]
    key = sealing.box_key(
        play.members[dealer].sealing, keys[holder].sealing, session, (dealer, holder)
    )
    about = parcel.seed_check + parcel.key_check
    box = sealing.lock(key, bytes(12), bytes(2 * masks.SHARE), about)
    parcels = {**shares.parcels, holder: replace(parcel, box=box)}
    play.shares[dealer] = v1.encode(replace(shares, parcels=parcels))
    play.receive()
    assert play.members[holder].unreadable == (dealer,)
    data = vectors(play.sites)
    out = total(masked(play, data))
    unmasker = play.finish(play.sites).unmasker()
    unmasker.subtract(out)
    assert (out == total(data)).all()
    assert unmasker.liars == ()


def test_shares_nobody_asked_for_are_not_taken() -> None:
    play = Play(names(4)).ready()
    play.finish(play.sites[:3])
    a, gone = play.sites[0], play.sites[3]
    answer = v1.decode(play.unmasks[a], masks.Unmask)
    share = answer.keys[gone]
    for change in (
        {"seeds": {**answer.seeds, gone: share}},
        {"keys": {**answer.keys, a: share}},
        {"keys": {**answer.keys, "stranger": share}},
    ):
        with pytest.raises(WireError, match="was not asked for"):
            body = v1.encode(replace(answer, **change))
            secagg.check_unmask(body, a, play.roster, play.parties)


def test_no_share_is_taken_of_a_site_that_dealt_none() -> None:
    play = Play(names(5))
    play.join()
    play.share(play.sites[:4])
    play.receive()
    play.finish(play.sites[:4])
    a, mute = play.sites[0], play.sites[4]
    answer = v1.decode(play.unmasks[a], masks.Unmask)
    assert mute not in answer.keys
    with pytest.raises(WireError, match="was not asked for"):
        body = v1.encode(replace(answer, keys={mute: bytes(masks.SHARE)}))
        secagg.check_unmask(body, a, play.roster, play.parties)


def test_shares_for_too_few_too_many_or_of_a_wrong_size() -> None:
    play = Play(names(4))
    play.join()
    play.share()
    a, b = play.sites[:2]
    shares = v1.decode(play.shares[a], masks.Shares)
    parcel = shares.parcels[b]
    for parcels in (
        {s: p for s, p in shares.parcels.items() if s != b},
        {**shares.parcels, "stranger": parcel},
        {**shares.parcels, b: replace(parcel, box=parcel.box[:-1])},
        {**shares.parcels, a: parcel},
    ):
        with pytest.raises(WireError, match="needs"):
            secagg.check_shares(v1.encode(replace(shares, parcels=parcels)), a, play.roster)
    with pytest.raises(WireError):
        big = replace(parcel, box=bytes(masks.BOX + 1))
        body = v1.encode(replace(shares, parcels={**shares.parcels, b: big}))
        secagg.check_shares(body, a, play.roster)


def test_one_key_for_two_purposes_is_refused() -> None:
    play = Play(names(3))
    play.join()
    site = play.sites[0]
    keys = v1.decode(play.keys[site], masks.Keys)
    text = masks.keys_text(keys.round, site, keys.masking, keys.masking)
    body = v1.encode(replace(keys, sealing=keys.masking, signature=key_of(site).sign(text)))
    with pytest.raises(WireError, match="one key for two purposes"):
        secagg.check_keys(body, site, play.context, play.pins[site])
