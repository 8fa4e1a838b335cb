"""Attacks on the masked sum: by a hub that looks, a hub that lies, and sites that lie.

Each test plays the attacker as far as the protocol lets it, and then looks at what it has.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace
from numpy.typing import NDArray

from consilia.errors import AuthError, EmptyRound, Refused, WireError
from consilia.privacy import graph, sealing, secagg, shamir
from consilia.privacy.streams import Streams
from consilia.wire import masks, v1
from maskkit import Dice, Play, names, signer, total, vectors

U32 = NDArray[np.uint32]
LOW_ORDER = bytes(32)


def masked(play: Play, data: Mapping[str, U32]) -> dict[str, U32]:
    return {site: play.hidden(site, values) for site, values in data.items()}


def member_of(play: Play, number: int) -> secagg.Member:
    return play.members[play.sites[number]]


def ask_share(play: Play, number: int, roster: bytes) -> None:
    secagg.share(member_of(play, number), roster, play.pins, Dice("victim"))


# ---- a hub that keeps to the rules and looks -------------------------------------------------


def chi_square(values: U32) -> float:
    """Return how far the bytes are from uniform: about 255 +- 23 when they are."""
    counts = np.bincount(values.view(np.uint8), minlength=256)
    mean = values.nbytes / 256
    return float(((counts - mean) ** 2 / mean).sum())


def transcript(update: U32, seed: str) -> tuple[Play, dict[str, U32]]:
    """Play a round of five in which site 0 sends `update`; site 4 drops out after masking."""
    play = Play(names(5), seed=seed).ready()
    data = vectors(play.sites, update.size)
    data[play.sites[0]] = update
    sent = masked(play, data)
    play.finish(play.sites[:4])
    return play, sent


def test_what_the_hub_gets_but_the_update_itself_does_not_depend_on_the_update() -> None:
    """By construction: with the same randomness all messages are the same, byte for byte,
    and the masked update differs by exactly the difference of the updates."""
    zeros, other = np.zeros(64, np.uint32), np.full(64, 0xDEADBEEF, np.uint32)
    one, sent_one = transcript(zeros, "same")
    two, sent_two = transcript(other, "same")
    for name in ("keys", "roster", "shares", "survivors", "consents", "unmasks"):
        assert getattr(one, name) == getattr(two, name)
    site = one.sites[0]
    assert (sent_two[site] - sent_one[site] == other).all()
    assert all((sent_one[s] == sent_two[s]).all() for s in one.sites[1:])


def peeled(play: Play, site: str, sent: U32) -> U32:
    """Take everything off a site's masked update that the hub knows after the round."""
    session = masks.session_of(play.roster)
    keys = {k.site: k for k in masks.read_roster(play.roster).keys}
    answers = {s: v1.decode(b, masks.Unmask) for s, b in play.unmasks.items()}
    points = {s: i for i, s in enumerate(sorted(keys), 1)}

    def solve(dealer: str, kind: str) -> bytes:
        found = {
            points[s]: (a.seeds if kind == "seed" else a.keys)[dealer]
            for s, a in answers.items()
        }
        return shamir.combine(shamir.weights(tuple(found)), list(found.values()))

    out = sent.copy()
    Streams([], [sealing.self_seed(solve(site, "seed"), session, site)]).add(out)
    for gone in set(play.sites) - set(play.survivors):
        private = solve(gone, "key")
        pair = sealing.pair_seed(private, keys[site].masking, session, gone, site)
        (Streams([], [pair]) if site < gone else Streams([pair], [])).add(out)
    return out


@pytest.mark.parametrize("word", [0, 1, 0xFFFFFFFF])
def test_what_is_left_of_one_update_is_noise(word: int) -> None:
    """Statistically: with all opened masks taken off, no byte value is more frequent, two
    different updates look the same, and what is left is not correlated with the update."""
    update = np.full(60_000, word, np.uint32)
    update[::2] = 0
    play, sent = transcript(update, "noise")
    site = play.sites[0]
    for view in (sent[site], peeled(play, site, sent[site])):
        assert 160 < chi_square(view) < 360
        assert not (view == update).mean() > 1e-3
        high, low = view[1::2] / 2.0**32, view[::2] / 2.0**32
        spread = (1 / 12 * 2 / 30_000) ** 0.5
        assert abs(high.mean() - low.mean()) < 4 * spread
    together = total({s: sent[s] for s in play.survivors})
    play.unmasker().subtract(together)
    others = vectors(play.sites, update.size)
    rest = total({s: others[s] for s in play.survivors[1:]})
    assert (together - rest == update).all(), "what was attacked is the right update"


def test_two_updates_with_one_sum_fit_the_same_view() -> None:
    """By construction: shift d from one honest update to another and their pair mask by d;
    the hub then sees the very same numbers, so these cannot tell the two worlds apart."""
    play = Play(names(4)).ready()
    data = vectors(play.sites, 16)
    a, b = play.sites[:2]
    shift = np.arange(16, dtype=np.uint32) * 7919
    sent = masked(play, data)
    play.finish(play.sites)
    other = {**data, a: data[a] + shift, b: data[b] - shift}
    # In the other world a's and b's pair mask, which is never opened, is smaller by `shift`.
    mask = {s: sent[s] - data[s] for s in (a, b)}
    assert (other[a] + (mask[a] - shift) == sent[a]).all()
    assert (other[b] + (mask[b] + shift) == sent[b]).all()
    assert (total(other) == total(data)).all()
    answers = [v1.decode(body, masks.Unmask) for body in play.unmasks.values()]
    assert not any(answer.keys for answer in answers), "no mask key of a survivor came out"


# ---- split views -----------------------------------------------------------------------------


def test_another_roster_for_everybody_opens_nothing() -> None:
    """A site that plots with the hub signs two keys; each honest site sees another roster."""
    play = Play(names(4))
    play.join()
    plotter = play.sites[3]
    _, second = secagg.join(plotter, play.context, signer(plotter), Dice("second"))
    rosters = {
        site: secagg.roster(
            play.context, {**play.keys, plotter: play.keys[plotter] if i % 2 else second}
        )
        for i, site in enumerate(play.sites)
    }
    for site in play.sites:
        play.members[site], play.shares[site] = secagg.share(
            play.members[site], rosters[site], play.pins, play.dice(site, "share")
        )
    by_view: dict[bytes, dict[str, bytes]] = {}
    for site, body in play.shares.items():
        by_view.setdefault(rosters[site], {})[site] = body
    for shares in by_view.values():
        for site, inbox in secagg.inboxes(shares).items():
            with pytest.raises(Refused, match="dealt shares, needs 3"):
                secagg.receive(play.members[site], inbox)
    inboxes = secagg.inboxes(play.shares)
    refused = 0
    for site in play.sites:
        try:
            secagg.receive(play.members[site], inboxes[site])
        except WireError:
            refused += 1
    assert refused == 2, "half of the sites are in another session than the inboxes say"


def test_another_inbox_for_everybody_opens_nothing() -> None:
    """Sites that believe in different sharers never gather the consents to unmask."""
    play = Play(names(7))
    play.join()
    play.share()
    for site in play.sites:
        left_out = play.sites[6] if site < play.sites[3] else play.sites[5]
        shown = {s: b for s, b in play.shares.items() if s != left_out}
        if site in shown:
            play.members[site] = secagg.receive(play.members[site], secagg.inboxes(shown)[site])
    alive = play.sites[:5]
    told = secagg.survivors(play.context, alive)
    for site in alive:
        play.members[site], play.consents[site] = secagg.consent(
            play.members[site], told, signer(site)
        )
    for site in alive:
        with pytest.raises(Refused, match=r"[23] sites signed the same survivors, needs 5"):
            secagg.unmask(play.members[site], secagg.consents(play.consents), play.pins)


@pytest.mark.parametrize("count", [4, 5, 6])
def test_at_most_one_of_two_survivor_sets_opens(count: int) -> None:
    """However the hub divides the sites between two sets, at most one set is unmasked."""
    start = Play(names(count)).ready()
    needed = graph.threshold(count)
    both = (start.sites[:needed], start.sites[count - needed :])
    for side in itertools.product((0, 1), repeat=count):
        members: dict[str, secagg.Member] = {}
        consents: tuple[dict[str, bytes], dict[str, bytes]] = ({}, {})
        for site, which in zip(start.sites, side, strict=True):
            if site in both[which]:
                told = secagg.survivors(start.context, both[which])
                members[site], body = secagg.consent(start.members[site], told, signer(site))
                consents[which][site] = body
        opened = set()
        for site, which in zip(start.sites, side, strict=True):
            if site in members:
                try:
                    told = secagg.consents(consents[which])
                    secagg.unmask(members[site], told, start.pins)
                    opened.add(which)
                except Refused:
                    pass
        assert len(opened) < 2
        assert (len(opened) == 1) == (max(map(len, consents)) >= needed)


def test_consents_cannot_be_made_up_moved_or_replayed() -> None:
    play = Play(names(4)).ready()
    play.consent(play.sites)
    member = member_of(play, 0)
    session = masks.session_of(play.roster)
    real = {s: v1.decode(b, masks.Consent).signature for s, b in play.consents.items()}
    forger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    view = masks.view_of(session, play.sites, play.sites)
    forged = {s: forger.sign(masks.consent_text(view, s)) for s in play.sites}
    moved = dict(zip(play.sites, (*list(real.values())[1:], real[play.sites[0]]), strict=True))
    earlier = Play(names(4), b"an earlier round", seed="earlier").ready()
    earlier.consent(earlier.sites)
    old = {s: v1.decode(b, masks.Consent).signature for s, b in earlier.consents.items()}
    for signatures in (forged, moved, old, {}, dict(list(real.items())[:2])):
        body = v1.encode(masks.Consents(session, signatures))
        with pytest.raises(Refused, match="signed the same survivors, needs 3"):
            secagg.unmask(member, body, play.pins)
    with pytest.raises(WireError, match="another session"):
        secagg.unmask(member, secagg.consents(earlier.consents), play.pins)
    with pytest.raises(Refused, match="signed the same survivors"):
        secagg.unmask(member, secagg.consents(play.consents), {})
    assert secagg.unmask(member, secagg.consents(play.consents), play.pins)


# ---- both kinds of share for one site --------------------------------------------------------


def test_a_site_is_a_survivor_or_gone_and_stays_so_after_a_restart() -> None:
    """The hub has everybody's update, opens it with site 4 gone, then asks for 4 alive."""
    play = Play(names(6)).ready()
    target = play.sites[5]
    play.finish(play.sites[:5])
    again = secagg.survivors(play.context, play.sites)
    for site in play.sites[:5]:
        stored = v1.decode(v1.encode(play.members[site]), secagg.Member)
        with pytest.raises(Refused, match="agreed to another set of survivors"):
            secagg.consent(stored, again, signer(site))
        answer = v1.decode(play.unmasks[site], masks.Unmask)
        assert not answer.seeds.keys() & answer.keys.keys()
        assert target in answer.keys and target not in answer.seeds
    with pytest.raises(EmptyRound, match=r"0 good shares of the seed of site 'site-005'"):
        secagg.unmasker(play.context, play.roster, play.shares, play.sites, play.unmasks)


def test_a_late_update_stays_hidden_though_its_mask_key_was_opened() -> None:
    play = Play(names(6)).ready()
    late = play.sites[5]
    update = np.zeros(60_000, np.uint32)
    sent = play.hidden(late, update)
    play.finish(play.sites[:5])
    session = masks.session_of(play.roster)
    keys = {k.site: k for k in masks.read_roster(play.roster).keys}
    private = member_of(play, 5).masking  # what the hub can reconstruct
    for peer in play.sites[:5]:
        pair = sealing.pair_seed(private, keys[peer].masking, session, late, peer)
        (Streams([], [pair]) if late < peer else Streams([pair], [])).add(sent)
    assert 160 < chi_square(sent) < 360, "the self mask is still on"


def test_no_second_update_under_the_same_masks() -> None:
    play = Play(names(3)).ready()
    play.masked(play.sites[0], [np.zeros(4, np.uint32)])
    stored = v1.decode(v1.encode(member_of(play, 0)), secagg.Member)
    with pytest.raises(Refused, match="would give away their difference"):
        secagg.masker(stored)


# ---- replay ----------------------------------------------------------------------------------


def test_nothing_of_an_earlier_round_is_taken() -> None:
    old = Play(names(4), b"job-1.1.0", seed="old").ready()
    old.finish(old.sites)
    new = Play(names(4), b"job-1.2.0", seed="new")
    new.join()
    member = member_of(new, 0)
    with pytest.raises(WireError, match="roster of another round"):
        ask_share(new, 0, old.roster)
    mixed = {**new.keys, new.sites[2]: old.keys[new.sites[2]]}
    with pytest.raises(WireError, match="replays old keys"):
        ask_share(new, 0, secagg.roster(new.context, mixed))
    relabelled = v1.encode(
        masks.Roster(
            masks.round_of(new.context),
            tuple(
                replace(k, round=masks.round_of(new.context))
                for k in masks.read_roster(old.roster).keys
            ),
        )
    )
    with pytest.raises(AuthError):
        ask_share(new, 0, relabelled)
    new.share()
    site = new.sites[0]
    with pytest.raises(WireError, match="shares of another session"):
        secagg.receive(new.members[site], secagg.inboxes(old.shares)[site])
    new.receive()
    with pytest.raises(WireError, match="survivors of another round"):
        old_told = secagg.survivors(old.context, old.sites)
        secagg.consent(new.members[site], old_told, signer(site))
    assert member.keys.masking != member_of(old, 0).keys.masking


def test_a_second_roster_or_inbox_in_one_round_is_refused() -> None:
    play = Play(names(5))
    play.join()
    play.share()
    site = play.sites[0]
    smaller = secagg.roster(play.context, dict(list(play.keys.items())[:4]))
    with pytest.raises(Refused, match="a second view is never answered"):
        ask_share(play, 0, smaller)
    play.receive()
    shown = {s: play.shares[s] for s in play.sites[:4]}
    with pytest.raises(Refused, match="a second view is never answered"):
        secagg.receive(play.members[site], secagg.inboxes(shown)[site])


def test_secrets_opened_in_one_round_open_nothing_of_another() -> None:
    """The same sites, the same long-term keys: what round 2 opens is no use in round 1."""
    first = Play(names(4), b"job-1.1.0", seed="first").ready()
    data = vectors(first.sites, 50_000)
    sent = masked(first, data)
    second = Play(names(4), b"job-1.2.0", seed="second").ready()
    second.finish(second.sites[:3])
    late = first.sites[3]
    one, two = first.members[late], second.members[late]
    secrets = [
        (m.sealing, m.masking, m.seed) for p in (first, second) for m in p.members.values()
    ]
    assert len({s for row in secrets for s in row}) == 3 * 8
    keys = {k.site: k for k in masks.read_roster(first.roster).keys}
    session = masks.session_of(first.roster)
    tried = sent[late].copy()
    for peer in first.sites[:3]:
        pair = sealing.pair_seed(two.masking, keys[peer].masking, session, late, peer)
        (Streams([], [pair]) if late < peer else Streams([pair], [])).add(tried)
    Streams([], [sealing.self_seed(two.seed, session, late)]).add(tried)
    assert not (tried == data[late]).any() or (tried == data[late]).mean() < 1e-3
    assert 160 < chi_square(tried) < 360
    for site in first.sites[:3]:  # nor do parcels of round 1 open with keys of round 2
        parcel = v1.decode(first.shares[site], masks.Shares).parcels[late]
        key = sealing.box_key(two.sealing, keys[site].sealing, session, (site, late))
        about = parcel.seed_check + parcel.key_check
        assert sealing.unlock(key, parcel.box, about) is None
        right = sealing.box_key(one.sealing, keys[site].sealing, session, (site, late))
        assert sealing.unlock(right, parcel.box, about) is not None


# ---- plots below a third ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 7, 10])
def test_fewer_than_a_third_and_the_hub_cannot_open_an_honest_site(count: int) -> None:
    """What plotters hold are too few shares of an honest site's secrets, of either kind."""
    plotters = (count - 1) // 3
    play = Play(names(count)).ready()
    bad, honest = play.sites[:plotters], play.sites[plotters:]
    play.finish(play.sites)
    target = honest[0]
    mask_keys = [play.members[site].held[target][1] for site in bad]
    for site in honest:
        answer = v1.decode(play.unmasks[site], masks.Unmask)
        mask_keys += [share for s, share in answer.keys.items() if s == target]
    assert len(mask_keys) == plotters < graph.threshold(count)
    with pytest.raises(Refused):  # and they cannot make an honest site sign a smaller sum
        told = secagg.survivors(play.context, [*bad, target])
        secagg.consent(play.members[target], told, signer(target))


def test_survivors_in_two_parts_are_refused() -> None:
    """Above 250 sites the hub could name survivors whose masks tie them into two groups, and
    each group's sum would open by itself. The node sees it and refuses."""
    play = Play(names(300))
    play.join()
    site = play.sites[0]
    play.share([site])
    session = masks.session_of(play.roster)
    ring = graph.of(session, play.sites)
    junk = masks.Parcel(bytes(masks.BOX), bytes(32), bytes(32))
    inbox = masks.Inbox(session, play.sites, {s: junk for s in ring.neighbours(site)})
    member = secagg.receive(play.members[site], v1.encode(inbox))
    here = ring.places[site]

    def told(width: int) -> bytes:
        gaps = {(here + start + i) % 300 for start in (1, 150) for i in range(width)}
        return secagg.survivors(
            play.context, [s for s in play.sites if ring.places[s] not in gaps]
        )

    assert secagg.consent(member, told(ring.reach - 1), signer(site))
    with pytest.raises(Refused, match="would open in two parts"):
        secagg.consent(member, told(ring.reach), signer(site))


def test_sharers_too_few_around_a_site_are_refused() -> None:
    """Above 50 sites: enough sites dealt shares, but not enough of this site's neighbours."""
    play = Play(names(80))
    play.join()
    site = play.sites[0]
    play.share([site])
    session = masks.session_of(play.roster)
    ring = graph.of(session, play.sites)
    near = [site, *ring.neighbours(site)]
    far = [s for s in play.sites if s not in near]
    junk = masks.Parcel(bytes(masks.BOX), bytes(32), bytes(32))

    def shown(count: int) -> bytes:
        here = near[:count]
        sharers = tuple(sorted([*here, *far]))
        assert len(sharers) >= graph.threshold(80)
        return v1.encode(masks.Inbox(session, sharers, {s: junk for s in here[1:]}))

    assert secagg.receive(play.members[site], shown(ring.threshold()))
    with pytest.raises(Refused, match="dealt shares next to site 'site-000', needs 44"):
        secagg.receive(play.members[site], shown(ring.threshold() - 1))
