"""A hub that wants one site's update: what it tells a masked round's node, and gets of it.

The hub holds everything a real one holds, its CA and its line are authentic, and it knows the
protocol. Against it stand the keys that people have pinned, and a node that answers every step
once. Each attack ends in a refusal that the site can read in its audit trail; the hub learns
that there was one. What counts: no share that opens a mask has left.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core.chain import Break
from consilia.core.round import Resumed, Stopped
from consilia.hub import masking
from consilia.node import audit, peers
from consilia.privacy import secagg
from consilia.wire import masks
from consilia.wire.v1 import (
    Catalogue,
    Declined,
    Failed,
    Privacy,
    Result,
    Word,
    decode,
    encode,
    study_digest,
)
from maskedkit import HEARTS, SITES, Lab, lab
from nodekit import SITE, base_model, until

Forge = Callable[[Lab, Word], Word]
OURS = Ed25519PrivateKey.generate()  # a key that the hub has made itself


def keys_of_ours(site: str, about: bytes) -> masks.Keys:
    """Return a round's keys that the hub has made for a site, and signed with its own key."""
    _, body = secagg.join(site, about, OURS.sign, os.urandom)
    return decode(body, masks.Keys)


def roster_with(x: Lab, word: Word, *changed: masks.Keys) -> Word:
    """Return the roster with some sites' keys replaced, or sites added."""
    roster = decode(word.body, masks.Roster)
    found = {keys.site: keys for keys in (*roster.keys, *changed)}
    told = masks.Roster(roster.round, tuple(found[site] for site in sorted(found)))
    return Word(word.lease, "roster", encode(told))


def swapped_key(x: Lab, word: Word) -> Word:
    return roster_with(x, word, keys_of_ours("leuven", masking.context(x.hub.state)))


def all_swapped(x: Lab, word: Word) -> Word:
    about = masking.context(x.hub.state)
    return roster_with(x, word, *(keys_of_ours(s, about) for s in SITES if s != SITE))


def own_key_swapped(x: Lab, word: Word) -> Word:
    return roster_with(x, word, keys_of_ours(SITE, masking.context(x.hub.state)))


def phantom_added(x: Lab, word: Word) -> Word:
    return roster_with(x, word, keys_of_ours("phantom", masking.context(x.hub.state)))


def two_sites(x: Lab, word: Word) -> Word:
    keys = masking.said(x.hub.state, "keys")
    some = {site: keys[site] for site in SITES[:2]}
    return Word(word.lease, "roster", secagg.roster(masking.context(x.hub.state), some))


def of_another_round(x: Lab, word: Word) -> Word:
    """Old keys, honestly signed, of a round whose secrets the hub might have opened since."""
    about = b"another round"
    some = {}
    for site, other in x.peers.items():
        _, some[site] = secagg.join(site, about, other.key.sign, os.urandom)
    _, some[SITE] = secagg.join(SITE, about, x.node.key.sign, os.urandom)
    return Word(word.lease, "roster", secagg.roster(about, some))


def one_key_twice(x: Lab, word: Word) -> Word:
    """Leuven's keys under Oslo's name: one site in two places."""
    roster = decode(word.body, masks.Roster)
    leuven = next(keys for keys in roster.keys if keys.site == "leuven")
    return roster_with(x, word, msgspec.structs.replace(leuven, site="oslo"))


def rubbish(x: Lab, word: Word) -> Word:
    return Word(word.lease, "roster", os.urandom(200))


ROSTERS: dict[str, tuple[Forge, str]] = {
    "one site's keys swapped": (swapped_key, "are not signed with the key accepted"),
    "all other sites' keys swapped": (all_swapped, "are not signed with the key accepted"),
    "the node's own keys swapped": (own_key_swapped, "does not hold the keys that site"),
    "a site made up": (phantom_added, "whose key was not accepted here"),
    "two sites": (two_sites, "the round has 2 sites"),
    "another round's keys": (of_another_round, "of another round"),
    "one site's keys under another name": (one_key_twice, "are not signed"),
    "rubbish": (rubbish, "not a valid Roster"),
}


@pytest.mark.parametrize("attack", ROSTERS)
async def test_a_forged_roster_gets_no_share(tmp_path: Path, attack: str) -> None:
    forge, reason = ROSTERS[attack]
    async with lab(tmp_path) as x, x.node.running():
        x.hub.forge = lambda word: forge(x, word) if word.step == "roster" else word
        lease = x.hub.begin(base_model())
        await until(lambda: x.hub.settled(lease.id))
        assert x.hub.settled(lease.id) == Declined(lease.id), "a reason has left the site"
        assert x.hub.steps_said() == ["keys"] and x.hub.uploads == {}
        assert reason in x.node.details("task.stop")[0]
        await clean(x)


async def clean(x: Lab) -> None:
    """Nothing of the round is left at the node, and its audit trail holds."""
    await until(lambda: not x.node.agent.status().tasks)
    assert x.rows() == 0 and not any((x.node.directory / "outbox").iterdir())
    assert not isinstance(audit.verify(x.store), Break)
    assert all(line.detail.isprintable() for line, _ in audit.every(x.store))


# ---- after the update ------------------------------------------------------------------------


def three_of_four(x: Lab, word: Word) -> Word:
    """Consents for the set that the node agreed to, but of too few sites."""
    told = decode(word.body, masks.Consents)
    few = dict(list(told.signatures.items())[:2])
    return Word(word.lease, "consents", encode(masks.Consents(told.session, few)))


def signed_by_the_hub(x: Lab, word: Word) -> Word:
    told = decode(word.body, masks.Consents)
    forged = {site: OURS.sign(b"yes") for site in told.signatures}
    return Word(word.lease, "consents", encode(masks.Consents(told.session, forged)))


def one_signature_for_all(x: Lab, word: Word) -> Word:
    told = decode(word.body, masks.Consents)
    one = next(iter(told.signatures.values()))
    same = dict.fromkeys(told.signatures, one)
    return Word(word.lease, "consents", encode(masks.Consents(told.session, same)))


def to_other_survivors(x: Lab, word: Word) -> Word:
    """The others have honestly agreed, to a set without Oslo: the node agreed to all four."""
    told = decode(word.body, masks.Consents)
    view = masks.view_of(told.session, SITES, tuple(s for s in SITES if s != "oslo"))
    keys = {site: other.key for site, other in x.peers.items()}
    signed = {site: key.sign(masks.consent_text(view, site)) for site, key in keys.items()}
    return Word(word.lease, "consents", encode(masks.Consents(told.session, signed)))


CONSENTS: dict[str, Forge] = {
    "too few": three_of_four,
    "signed by the hub": signed_by_the_hub,
    "one signature for all": one_signature_for_all,
    "to other survivors": to_other_survivors,
}


@pytest.mark.parametrize("attack", CONSENTS)
async def test_no_share_without_a_threshold_for_these_survivors(
    tmp_path: Path, attack: str
) -> None:
    forge = CONSENTS[attack]
    async with lab(tmp_path) as x, x.node.running():
        x.hub.forge = lambda word: forge(x, word) if word.step == "consents" else word
        lease = x.hub.begin(base_model())
        await until(lambda: isinstance(x.hub.settled(lease.id), Declined))
        assert x.hub.steps_said() == ["keys", "shares", "consent"]
        (reason,) = x.node.details("release.refuse")
        assert "signed the same survivors" in reason
        await clean(x)


def without_it(x: Lab) -> tuple[str, ...]:
    return tuple(site for site in SITES if site != SITE)


SURVIVORS: dict[str, tuple[Callable[[Lab], tuple[str, ...]], str]] = {
    "without the node": (without_it, "itself one of them"),
    "too few": (lambda x: SITES[:2], "2 sites are in the sum, needs 3"),
    "the node alone": (lambda x: (SITE,), "1 sites are in the sum, needs 3"),
    "with a stranger": (lambda x: (*SITES, "phantom"), "must be sites that dealt shares"),
}


@pytest.mark.parametrize("attack", SURVIVORS)
async def test_it_agrees_to_no_sum_that_singles_sites_out(tmp_path: Path, attack: str) -> None:
    sites, reason = SURVIVORS[attack]
    async with lab(tmp_path) as x, x.node.running():

        def forge(word: Word) -> Word:
            if word.step != "survivors":
                return word
            body = secagg.survivors(masking.context(x.hub.state), sites(x))
            return Word(word.lease, "survivors", body)

        x.hub.forge = forge
        lease = x.hub.begin(base_model())
        await until(lambda: isinstance(x.hub.settled(lease.id), Declined))
        assert x.hub.steps_said() == ["keys", "shares"]
        assert reason in x.node.details("release.refuse")[0]
        await clean(x)


async def test_other_survivors_after_consent_are_not_agreed_to(tmp_path: Path) -> None:
    """From two sums of one round the hub could subtract one site's update."""
    async with lab(tmp_path) as x, x.node.running():
        x.hub.hold = frozenset({"consent"})
        lease = x.hub.begin(base_model())
        await until(lambda: "consent" in x.hub.steps_said())
        about = masking.context(x.hub.state)
        three = tuple(site for site in SITES if site != "oslo")
        x.hub.words[lease.id].append(
            Word(lease.id, "survivors", secagg.survivors(about, three))
        )
        x.hub.shouts, told = 3, len(x.hub.heard_of)
        x.hub.line(away=False)
        await until(lambda: len(x.hub.heard_of) >= told + 4)
        x.hub.go()
        await until(lambda: x.hub.closes)
        bodies = {said.body for said, _ in x.hub.said if said.step == "consent"}
        assert len(bodies) == 1
        seeds, keys = given_out(x)
        assert seeds == set(SITES) and not keys


def given_out(x: Lab) -> tuple[set[str], set[str]]:
    """Return of whom the node gave out shares: of a seed, and of a mask key."""
    found = [decode(said.body, masks.Unmask) for said, _ in x.hub.said if said.step == "unmask"]
    seeds = {site for unmask in found for site in unmask.seeds}
    return seeds, {site for unmask in found for site in unmask.keys}


async def test_a_split_roster_opens_nothing(tmp_path: Path) -> None:
    """The node is shown a round of three, the others one of four: no set of consents fits.

    The hub plays the others' part in the node's round as well as it can: it has their keys and
    an honest consent of each, to the sum of four, but can neither seal nor sign for them.
    """
    async with lab(tmp_path) as x, x.node.running():
        x.hub.hold, x.hub.lenient = frozenset({"shares"}), True
        x.hub.forge = lambda _: None  # no honest word
        lease = x.hub.begin(base_model())
        await until(lambda: len(keys_said(x)) == 4)
        about, three = masking.context(x.hub.state), SITES[:3]
        roster = secagg.roster(about, {site: keys_said(x)[site] for site in three})
        session = masks.session_of(roster)
        tell(x, Word(lease.id, "roster", roster))
        await until(lambda: "shares" in x.hub.steps_said())
        box = masks.Parcel(os.urandom(masks.BOX), os.urandom(32), os.urandom(32))
        parcels = {site: box for site in three if site != SITE}
        tell(x, Word(lease.id, "inbox", encode(masks.Inbox(session, three, parcels))))
        await until(lambda: lease.id in x.hub.uploads)
        tell(x, Word(lease.id, "survivors", secagg.survivors(about, three)))
        await until(lambda: "consent" in x.hub.steps_said())
        four = masks.view_of(masks.session_of(secagg.roster(about, keys_said(x))), SITES, SITES)
        signed = {
            site: other.key.sign(masks.consent_text(four, site))
            for site, other in x.peers.items()
            if site in three
        }
        own = decode(x.hub.said[-1][0].body, masks.Consent).signature
        consents = masks.Consents(session, {**signed, SITE: own})
        tell(x, Word(lease.id, "consents", encode(consents)))
        await until(lambda: isinstance(x.hub.settled(lease.id), Declined))
        assert "unmask" not in x.hub.steps_said()
        assert (
            "1 sites signed the same survivors, needs 3" in x.node.details("release.refuse")[0]
        )
        await clean(x)


def keys_said(x: Lab) -> dict[str, bytes]:
    """Return the keys that all sites have offered so far."""
    return masking.said(x.hub.state, "keys")


def tell(x: Lab, word: Word) -> None:
    x.hub.words[word.lease].append(word)
    x.hub.line(away=False)


# ---- around the protocol ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": Privacy(), "cohort": ()},
        {"privacy": Privacy(), "cohort": SITES},
        {"privacy": Privacy(aggregation="secure"), "cohort": ()},
        {"privacy": Privacy(aggregation="secure"), "cohort": (SITE,)},
        {"privacy": Privacy(aggregation="secure"), "cohort": (SITE, "leuven")},
        {"privacy": Privacy(aggregation="secure"), "cohort": (SITE, "ph1", "ph2", "ph3")},
    ],
)
async def test_nothing_leaves_unmasked_where_three_sites_are_invited(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    async with lab(tmp_path) as x, x.node.running():
        x.hub.changes = changes
        lease = x.hub.begin(base_model())
        await until(lambda: x.hub.settled(lease.id))
        assert x.hub.settled(lease.id) == Declined(lease.id)
        assert x.node.runs.tasks == [] and x.hub.said == [] and x.hub.uploads == {}
        assert len(x.node.details("task.refuse")) == 1
        await clean(x)


@pytest.mark.parametrize("reach", [math.nan, math.inf, 0.0, -8.0, 5e-324])
async def test_a_range_that_is_none_sends_nothing(tmp_path: Path, reach: float) -> None:
    async with lab(tmp_path) as x, x.node.running():
        x.hub.hold = frozenset({"update"})
        x.hub.privacy = Privacy(aggregation="secure", range=reach)
        lease = x.hub.begin(base_model())
        await until(lambda: x.hub.settled(lease.id))
        assert isinstance(x.hub.settled(lease.id), Declined | Failed)
        assert x.hub.uploads == {}
        await clean(x)


async def test_keys_told_anew_after_the_study_was_accepted_are_not_trusted(
    tmp_path: Path,
) -> None:
    """The hub swaps a site in its catalogue, then in the round: it is noticed at both."""
    async with lab(tmp_path) as x, x.node.running():
        told = {**x.hub.keys, "leuven": OURS.public_key().public_bytes_raw()}
        x.hub.offer = Catalogue(x.hub.offer.version + 1, (HEARTS,), (), told)
        x.hub.line(away=False)
        await until(lambda: "peer.key:changed" in x.node.actions())
        found = peers.of_study(x.store, study_digest(HEARTS), SITES)
        assert {p.site: p.state for p in found}["leuven"] == "changed"
        x.hub.forge = lambda word: swapped_key(x, word) if word.step == "roster" else word
        lease = x.hub.begin(base_model())
        await until(lambda: x.hub.settled(lease.id))
        assert x.hub.steps_said() == ["keys"]


async def test_an_attempt_gives_nothing_for_the_next(tmp_path: Path) -> None:
    """Words of a round that was stopped are worth nothing in the one that replaces it."""
    async with lab(tmp_path) as x, x.node.running():
        x.hub.hold = frozenset({"update"})
        first = x.hub.begin(base_model())
        await until(lambda: isinstance(x.hub.settled(first.id), Result))
        old = {word.step: word for word in x.hub.words[first.id]}
        sent = x.hub.uploads[first.id]
        x.hub.feed(Stopped(2.0, "by a person"))
        await until(lambda: not x.rows())
        x.hub.hold, x.hub.waiting = frozenset(), []
        x.hub.forge = lambda word: Word(word.lease, word.step, old[word.step].body)
        x.hub.feed(Resumed(3.0, None))
        again = f"job-1.1.1.{SITE}"
        await until(lambda: x.hub.settled(again))
        assert x.hub.settled(again) == Declined(again)
        assert "of another round" in x.node.details("task.stop")[0]
        keys = [decode(said.body, masks.Keys) for said, _ in x.hub.said if said.step == "keys"]
        assert len({keys[0].masking, keys[0].sealing, keys[1].masking, keys[1].sealing}) == 4
        assert sent and again not in x.hub.uploads


async def test_what_a_hub_is_sent_is_noise_without_the_others(tmp_path: Path) -> None:
    """The same update twice, in two jobs: neither number repeats, and all bytes are even."""
    seen = []
    for n in range(2):
        folder = tmp_path / str(n)
        folder.mkdir()
        async with lab(folder) as x, x.node.running():
            lease = x.hub.begin(base_model())
            await until(lambda x=x: x.hub.closes)  # type: ignore[misc]
            seen.append(x.hub.uploads[lease.id])
    for name in ("w", "frozen"):
        one, two = (np.asarray(found[name]).view(np.uint32) for found in seen)
        assert np.count_nonzero(one == two) <= 1
        for array in (one, two):
            assert np.unique(array).size >= array.size - 1
            bits = np.unpackbits(array.view(np.uint8)).astype(float)
            assert abs(bits.mean() - 0.5) < 6 * 0.5 / math.sqrt(bits.size)
