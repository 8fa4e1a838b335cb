"""The masked sum: right for every way sites can drop out, and nothing when too few stay."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import naive_secagg as naive
from consilia.errors import ConsiliaError, EmptyRound, Refused, WireError
from consilia.privacy import graph, secagg
from consilia.privacy.streams import Ring
from consilia.wire import masks, v1
from maskkit import Dice, Play, names, signer, total, vectors

VECTORS = Path(__file__).parent.parent / "vectors"


def test_three() -> None:
    play = Play(names(3)).ready()
    data = vectors(play.sites)
    masked = {site: play.hidden(site, data[site]) for site in play.sites}
    out = total(masked)
    play.finish(play.sites)
    unmasker = play.unmasker()
    unmasker.subtract(out)
    assert (out == total(data)).all()
    assert unmasker.liars == ()
    for site in play.sites:
        assert (masked[site] != data[site]).all()


def summed(arrays: list[Ring]) -> Ring:
    """Return the sum in the ring of the arrays' own dtype."""
    found: Ring = np.add.reduce(arrays, dtype=arrays[0].dtype)
    return found


# ---- against the naive implementation --------------------------------------------------------


def naive_masks(play: Play, site: str) -> tuple[bytes, dict[str, bytes]]:
    """Return the seeds of a site's masks, from its secrets, by the oracle."""
    member, name = play.members[site], naive.session(play.roster)
    keys = {k.site: k for k in masks.read_roster(play.roster).keys}
    near = naive.neighbourhoods(name, keys)[site] & play.shares.keys() - {site}
    pairs = {
        peer: naive.pair_mask(member.masking, keys[peer].masking, name, (site, peer))
        for peer in near
    }
    return naive.self_mask(member.seed, name, site), pairs


def naive_sum(play: Play, masked: dict[str, list[Ring]]) -> list[list[int]]:
    """Take the masks off the sum with what came back, by the oracle."""
    name = naive.session(play.roster)
    keys = {k.site: k for k in masks.read_roster(play.roster).keys}
    points = {site: i for i, site in enumerate(sorted(keys), 1)}
    answers = {points[s]: v1.decode(b, masks.Unmask) for s, b in play.unmasks.items()}
    rows = [[0] * array.size for array in next(iter(masked.values()))]
    zeros = [(a.dtype.itemsize * 8, [0] * a.size) for a in next(iter(masked.values()))]
    dropped = {
        site: naive.solve({x: a.keys[site] for x, a in answers.items()})
        for site in play.shares.keys() - set(play.survivors)
    }
    for site in play.survivors:
        seed = naive.solve({x: a.seeds[site] for x, a in answers.items()})
        pairs = {
            gone: naive.pair_mask(private, keys[site].masking, name, (site, gone))
            for gone, private in dropped.items()
        }
        mine = naive.mask(zeros, naive.self_mask(seed, name, site), pairs, site)
        for row, array, mask in zip(rows, masked[site], mine, strict=True):
            for i, (value, hidden) in enumerate(zip(array.tolist(), mask, strict=True)):
                row[i] += value - hidden
    return [[v % 2**b for v in row] for row, (b, _) in zip(rows, zeros, strict=True)]


def test_every_number_is_the_oracles() -> None:
    """Masked updates and their sum, with two sites gone, in all three rings."""
    play = Play(names(7)).ready()
    rng = np.random.default_rng(3)
    data: dict[str, list[Ring]] = {
        site: [rng.integers(0, 1 << b, 9, f"u{b // 8}") for b in (64, 32, 16)]
        for site in play.sites
    }
    masked = {}
    for site in play.sites:
        seed, pairs = naive_masks(play, site)
        values = [(a.dtype.itemsize * 8, a.tolist()) for a in data[site]]
        masked[site] = play.masked(site, data[site])
        assert [a.tolist() for a in masked[site]] == naive.mask(values, seed, pairs, site)
    alive = play.sites[1:6]
    sums = [summed([masked[s][i] for s in alive]) for i in range(3)]
    play.finish(alive)
    unmasker = play.unmasker()
    for array in sums:
        unmasker.subtract(array)
    assert [a.tolist() for a in sums] == naive_sum(play, {s: masked[s] for s in alive})
    for i, array in enumerate(sums):
        assert (array == summed([data[s][i] for s in alive])).all()


# ---- dropouts at every step ------------------------------------------------------------------


def walk(play: Play, stages: Sequence[Sequence[str]], size: int = 5) -> bool:
    """Play a round in which only `stages[i]` do step i; say whether it was summed right.

    Steps: join, share, update, consent, unmask. False: it stopped, closed, at some step.
    """
    joined, shared, updated, consented, unmasked = stages
    data = vectors(updated, size)
    try:
        play.join(joined)
        play.share(shared)
        play.receive()
        masked = {site: play.hidden(site, data[site]) for site in updated}
        play.consent(updated, consented)
        play.unmask(unmasked)
        unmasker = play.unmasker()
    except (Refused, EmptyRound):
        return False
    out = total(masked)
    unmasker.subtract(out)
    assert (out == total(data)).all()
    return True


def expected(play: Play, stages: Sequence[Sequence[str]]) -> bool:
    """Say, by the rules alone, whether a round must end with a sum."""
    joined, shared, updated, consented, unmasked = (set(stage) for stage in stages)
    if len(joined) < 3:
        return False
    needed = graph.threshold(len(joined))
    if min(map(len, (shared, updated, consented, unmasked))) < needed:
        return False
    near = naive.neighbourhoods(naive.session(play.roster), joined)
    quorum = graph.threshold(len(next(iter(near.values()))))
    if any(len(near[site] & shared) < quorum for site in shared):
        return False
    if not graph.of(naive.session(play.roster), joined).connected(updated):
        return False
    wanted = [s for s in shared if s in updated or near[s] & updated]
    return all(len(near[site] & unmasked) >= quorum for site in wanted)


@st.composite
def stages(draw: st.DrawFn, least: int, most: int) -> tuple[tuple[str, ...], ...]:
    """Draw who does each of the five steps: always some of those who did the one before."""
    here = names(draw(st.integers(least, most)))
    found = []
    for _ in range(5):
        gone = draw(st.sets(st.sampled_from(here), max_size=max(1, len(here) // 6)))
        here = tuple(site for site in here if site not in gone) or here
        found.append(here)
    return tuple(found)


@settings(max_examples=80, deadline=None)
@given(stages(3, 12))
def test_a_sum_or_nothing_whoever_is_missing(who: tuple[tuple[str, ...], ...]) -> None:
    play = Play(who[0])
    assert walk(play, who) == expected(play, who)


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(stages(40, 70))
def test_around_fifty_where_the_graph_thins(who: tuple[tuple[str, ...], ...]) -> None:
    play = Play(who[0])
    assert walk(play, who) == expected(play, who)


@pytest.mark.slow
@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck))
@given(stages(95, 100))
def test_a_hundred(who: tuple[tuple[str, ...], ...]) -> None:
    play = Play(who[0])
    assert walk(play, who) == expected(play, who)


@pytest.mark.slow
def test_two_hundred_with_a_tenth_gone() -> None:
    """Ten gone before the update, ten before they answer: the sum comes out."""
    sites = names(200)
    who = (sites, sites, sites[10:], sites[10:], sites[20:])
    assert walk(Play(sites), who)


@pytest.mark.parametrize("count", [4, 5, 6, 7, 9, 10, 16])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_at_the_threshold_and_one_below(count: int, step: int) -> None:
    """N - t sites may go at any step after the keys; one more and nothing opens."""
    sites, needed = names(count), graph.threshold(count)
    for stay, opens in ((needed, True), (needed - 1, False)):
        left = sites[count - stay :]
        who = tuple(sites if i < step else left for i in range(5))
        assert walk(Play(sites), who) is opens


# ---- restarts --------------------------------------------------------------------------------


def again(member: secagg.Member) -> secagg.Member:
    """Store a member and read it back, as a node that was restarted does."""
    return v1.decode(v1.encode(member), secagg.Member)


def test_a_restart_at_every_step_gives_the_same_answers() -> None:
    play, other = Play(names(4)), Play(names(4))
    site = play.sites[0]
    dice = Dice("the node draws other bytes after its restart")
    for p in (play, other):
        p.join()
    play.share()
    other.share()
    member, body = secagg.share(again(play.members[site]), play.roster, play.pins, dice)
    assert body == play.shares[site] == other.shares[site]
    inbox = secagg.inboxes(play.shares)[site]
    play.receive()
    member = secagg.receive(again(member), inbox)
    assert member == play.members[site] == secagg.receive(again(member), inbox)
    first, second = (np.zeros(9, np.uint32) for _ in range(2))
    secagg.masker(member).mask(first)
    secagg.masker(again(member)).mask(second)
    assert (first == second).all()
    member = again(secagg.spend(member))
    assert member == secagg.spend(member)
    told = secagg.survivors(play.context, play.sites)
    one, said = secagg.consent(member, told, signer(site))
    two, repeated = secagg.consent(again(one), told, signer(site))
    assert (one, said) == (two, repeated)
    play.members[site] = member
    play.consent(play.sites)
    told = secagg.consents(play.consents)
    one, said = secagg.unmask(again(play.members[site]), told, play.pins)
    two, repeated = secagg.unmask(again(one), told, play.pins)
    assert (one, said) == (two, repeated)


def test_steps_out_of_order_are_refused() -> None:
    play = Play(names(3))
    play.join()
    member = play.members[play.sites[0]]
    told = secagg.survivors(play.context, play.sites)
    asks: tuple[Callable[[], object], ...] = (
        lambda: secagg.receive(member, b""),
        lambda: secagg.masker(member),
        lambda: secagg.spend(member),
        lambda: secagg.consent(member, told, signer(member.site)),
        lambda: secagg.unmask(member, b"", play.pins),
    )
    for ask in asks:
        with pytest.raises(Refused, match="asked for a step before it had"):
            ask()


def test_a_member_shows_no_secret() -> None:
    play = Play(names(3)).ready()
    member = play.members[play.sites[0]]
    shown = (repr(member), str(member), f"{[member]}", str(member.__rich_repr__()))
    for secret in (member.sealing, member.masking, member.seed, *member.held[member.site]):
        for text in shown:
            assert repr(secret)[2:10] not in text and secret.hex()[:8] not in text
    assert "site-000" in repr(member)


# ---- golden bytes ----------------------------------------------------------------------------


def story() -> dict[str, str]:
    """Return every message of a round of four sites with one gone, as hex."""
    play = Play(names(4), b"golden").ready()
    data = vectors(play.sites, 4)
    masked = {site: play.hidden(site, data[site]) for site in play.sites}
    inboxes = secagg.inboxes(play.shares)
    alive = play.sites[:3]
    play.finish(alive)
    out = total({site: masked[site] for site in alive})
    play.unmasker().subtract(out)
    site = play.sites[1]
    return {
        "keys": play.keys[site].hex(),
        "roster": play.roster.hex(),
        "shares": play.shares[site].hex(),
        "inbox": inboxes[site].hex(),
        "update": masked[site].astype("<u4").tobytes().hex(),
        "survivors": secagg.survivors(play.context, alive).hex(),
        "consent": play.consents[site].hex(),
        "consents": secagg.consents(play.consents).hex(),
        "unmask": play.unmasks[site].hex(),
        "sum": out.astype("<u4").tobytes().hex(),
    }


def test_golden_round() -> None:
    """The bytes of the first release: a node of it and one of today must get along."""
    assert story() == json.loads((VECTORS / "secagg-v1.json").read_text())


# ---- what is no message ----------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_at_all_are_refused_at_every_door(body: bytes) -> None:
    play = Play(names(3)).ready()
    site = play.sites[0]
    parties, key = secagg.Parties(play.sites, play.sites), play.pins[site]
    checks: tuple[Callable[[], None], ...] = (
        lambda: secagg.check_keys(body, site, play.context, key),
        lambda: secagg.check_shares(body, site, play.roster),
        lambda: secagg.check_consent(body, site, play.roster, parties, key),
        lambda: secagg.check_unmask(body, site, play.roster, parties),
    )
    for check in checks:
        with pytest.raises(WireError):
            check()
    fresh, _ = secagg.join(site, play.context, signer(site), Dice("d"))
    member = play.members[site]
    shared = Play(names(3))
    shared.join()
    shared.share()
    with pytest.raises(ConsiliaError):
        secagg.share(fresh, body, play.pins, Dice("d"))
    with pytest.raises(ConsiliaError):
        secagg.receive(shared.members[site], body)
    with pytest.raises(ConsiliaError):
        secagg.consent(member, body, signer(site))


def test_sizes_at_their_limits() -> None:
    """What is a byte too long for its field is no message, before anything is made of it."""
    play = Play(names(3)).ready().finish(names(3))
    keys = v1.decode(play.keys["site-000"], masks.Keys)
    for name, size in (("round", 32), ("sealing", 32), ("masking", 32), ("signature", 64)):
        for wrong in (size - 1, size + 1):
            with pytest.raises(WireError):
                v1.decode(v1.encode(replace(keys, **{name: bytes(wrong)})), masks.Keys)
    for length, fits in ((0, False), (1, True), (63, True), (64, False)):
        body = v1.encode(masks.Survivors(keys.round, ("s" * length,)))
        if fits:
            assert v1.decode(body, masks.Survivors)
        else:
            with pytest.raises(WireError):
                v1.decode(body, masks.Survivors)
    most = tuple(f"{i:04}" for i in range(masks.MAX_SITES))
    assert v1.decode(v1.encode(masks.Survivors(keys.round, most)), masks.Survivors)
    with pytest.raises(WireError):
        v1.decode(v1.encode(masks.Survivors(keys.round, (*most, "x"))), masks.Survivors)
    answer = v1.decode(play.unmasks["site-000"], masks.Unmask)
    for size in (masks.SHARE - 1, masks.SHARE + 1):
        with pytest.raises(WireError):
            v1.decode(v1.encode(replace(answer, seeds={"s": bytes(size)})), masks.Unmask)


def test_the_largest_round_fits_a_message() -> None:
    """A thousand sites with the longest names: a roster and an inbox are below the limit."""
    sites = tuple(f"{i:04}" + "s" * 59 for i in range(masks.MAX_SITES))
    keys = tuple(masks.Keys(bytes(32), s, bytes(32), bytes(32), bytes(64)) for s in sites)
    assert len(v1.encode(masks.Roster(bytes(32), keys))) < v1.MAX_MESSAGE / 4
    parcel = masks.Parcel(bytes(masks.BOX), bytes(32), bytes(32))
    near = {site: parcel for site in sites[: graph.degree(masks.MAX_SITES)]}
    assert len(v1.encode(masks.Inbox(bytes(32), sites, near))) < v1.MAX_MESSAGE / 4
    signatures = {site: bytes(64) for site in sites}
    assert len(v1.encode(masks.Consents(bytes(32), signatures))) < v1.MAX_MESSAGE / 4
