"""Peers' keys: told by the hub, believed when a person has pinned them; words to compare."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.errors import Conflict, Refused, WireError
from consilia.node import audit, peers, studies
from consilia.node.store import Store
from consilia.wire.v1 import Study, study_digest

KEYS = {name: bytes([n]) * 32 for n, name in enumerate(("aachen", "charite", "leuven"), 1)}
STUDY = Study("hearts", "to learn", tuple(KEYS), ("cohort",))
DIGEST = study_digest(STUDY)
NOW = 1_700_000_000.0

# People compare these by telephone, perhaps with a site of another release: they never change.
GOLDEN = {
    bytes(32): "pijod valul purok dojin nukuv pikij",
    bytes(range(32)): "nimag jaduh sobub gorum hohik kibag",
    b"\xff" * 32: "jugug zopug dajig gafal tomir kunim",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store.open(tmp_path)
    yield made
    made.close()


def lines(store: Store, action: str) -> list[str]:
    found = (line for line, _ in audit.every(store) if line.action == action)
    return [f"{line.subject} {line.outcome} {line.detail}" for line in found]


def states(store: Store) -> dict[str, str]:
    return {peer.site: peer.state for peer in peers.of_study(store, DIGEST, STUDY.sites)}


# ---- words -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", GOLDEN)
def test_the_words_of_a_key_never_change(key: bytes) -> None:
    assert peers.words(key) == GOLDEN[key]


@given(st.binary(min_size=32, max_size=32))
def test_words_can_be_spoken(key: bytes) -> None:
    words = peers.words(key).split(" ")
    assert len(words) == 6
    for word in words:
        assert len(word) == 5
        assert all(c in "bdfghjklmnprstvz" for c in word[::2])
        assert all(c in "aiou" for c in word[1::2])


def test_a_change_of_one_bit_changes_the_words() -> None:
    key = bytes(range(32))
    other = [
        bytes([*key[:n], key[n] ^ 1 << bit, *key[n + 1 :]]) for n in (0, 31) for bit in (0, 7)
    ]
    found = [peers.words(k) for k in (key, *other)]
    for one, two in itertools.combinations(found, 2):
        same = sum(a == b for a, b in zip(one.split(), two.split(), strict=True))
        assert same < 3, "two keys' words are easy to mistake for each other"


# ---- what the hub tells ----------------------------------------------------------------------


def test_what_the_hub_tells_is_kept_and_audited_but_not_believed(store: Store) -> None:
    peers.told(store, KEYS, NOW)
    assert states(store) == dict.fromkeys(KEYS, "new")
    assert peers.pins(store, DIGEST) == {}
    assert lines(store, "peer.key") == [
        f"{site} new {peers.words(key)}" for site, key in KEYS.items()
    ]
    peers.told(store, KEYS, NOW)
    assert len(lines(store, "peer.key")) == 3, "the same again is no news"


def test_accepting_a_study_pins_the_keys_of_its_sites(store: Store) -> None:
    peers.told(store, {**KEYS, "phantom": bytes(32)}, NOW)
    studies.offer(store, STUDY, NOW)
    studies.accept(store, "hearts", actor="mara", now=NOW)
    assert peers.pins(store, DIGEST) == KEYS
    assert states(store) == dict.fromkeys(KEYS, "pinned")
    assert lines(store, "peer.pin") == [
        f"{site} pinned {peers.words(key)}; study {DIGEST}" for site, key in KEYS.items()
    ]


def test_pins_of_one_study_are_not_those_of_another(store: Store) -> None:
    other = Study("lungs", "to learn", tuple(KEYS), ("cohort",))
    peers.told(store, KEYS, NOW)
    for study in (STUDY, other):
        studies.offer(store, study, NOW)
    studies.accept(store, "hearts", actor="mara", now=NOW)
    assert peers.pins(store, study_digest(other)) == {}


def test_a_site_that_enrols_later_is_pinned_by_a_person(store: Store) -> None:
    first = {site: KEYS[site] for site in ("aachen", "charite")}
    peers.told(store, first, NOW)
    studies.offer(store, STUDY, NOW)
    studies.accept(store, "hearts", actor="mara", now=NOW)
    assert states(store) == {"aachen": "pinned", "charite": "pinned", "leuven": "unknown"}
    peers.told(store, KEYS, NOW)
    assert states(store)["leuven"] == "new"
    assert peers.pins(store, DIGEST) == first
    assert peers.pin_again(store, DIGEST, STUDY.sites, "mara", NOW) == 1
    assert peers.pins(store, DIGEST) == KEYS
    with pytest.raises(Conflict, match="pinned already"):
        peers.pin_again(store, DIGEST, STUDY.sites, "mara", NOW)


def test_a_key_that_changes_is_not_believed(store: Store) -> None:
    """A hub that swaps keys, or a site that was enrolled anew: a person has to look."""
    peers.told(store, KEYS, NOW)
    studies.offer(store, STUDY, NOW)
    studies.accept(store, "hearts", actor="mara", now=NOW)
    peers.told(store, {**KEYS, "leuven": b"\x09" * 32}, NOW)
    assert peers.pins(store, DIGEST) == KEYS
    assert states(store)["leuven"] == "changed"
    assert lines(store, "peer.key")[-1].startswith("leuven changed ")
    assert peers.pin_again(store, DIGEST, STUDY.sites, "mara", NOW) == 1
    assert peers.pins(store, DIGEST)["leuven"] == b"\x09" * 32
    peers.told(store, KEYS, NOW)  # and back: changed once more
    assert states(store)["leuven"] == "changed"


def test_a_hub_that_tells_nothing_takes_no_pin_away(store: Store) -> None:
    peers.told(store, KEYS, NOW)
    studies.offer(store, STUDY, NOW)
    studies.accept(store, "hearts", actor="mara", now=NOW)
    peers.told(store, {}, NOW)
    assert peers.pins(store, DIGEST) == KEYS


def test_a_hub_that_tells_a_false_key_of_this_very_site_is_caught(store: Store) -> None:
    """What a site reads out on the telephone is its own key, not what the hub says."""
    own = peers.Peer("charite", KEYS["charite"], None)
    peers.told(store, {**KEYS, "charite": b"\x07" * 32}, NOW)
    studies.offer(store, STUDY, NOW)
    studies.accept(store, "hearts", actor="mara", now=NOW)
    mine = peers.of_study(store, DIGEST, STUDY.sites, own)[1]
    assert (mine.pinned, mine.state) == (KEYS["charite"], "changed")
    before = peers.pins(store, DIGEST)
    with pytest.raises(Refused, match="another key of this site 'charite'"):
        peers.pin_again(store, DIGEST, STUDY.sites, "mara", NOW, own)
    assert peers.pins(store, DIGEST) == before
    peers.told(store, KEYS, NOW)
    assert peers.pin_again(store, DIGEST, STUDY.sites, "mara", NOW, own) == 1


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"aachen": bytes(31)}, "31 bytes for site 'aachen', needed 32"),
        ({"aachen": bytes(33)}, "33 bytes"),
        ({"../../x": bytes(32)}, "site name '../../x' is not allowed"),
        ({"": bytes(32)}, "is not allowed"),
        ({"\x1b[2J": bytes(32)}, "is not allowed"),
    ],
)
def test_what_can_be_no_key_is_refused(
    store: Store, keys: dict[str, bytes], reason: str
) -> None:
    with pytest.raises(WireError) as refused:
        peers.told(store, {**KEYS, **keys}, NOW)
    assert reason in str(refused.value)
    assert not store.rows("SELECT 1 FROM peers")


def test_a_flood_of_keys_is_bounded(store: Store) -> None:
    """As many as fit are kept, one more is refused: in one catalogue, or in many."""
    flood = {f"s{n}": n.to_bytes(32, "big") for n in range(peers.MAX_PEERS)}
    with pytest.raises(WireError, match=f"{peers.MAX_PEERS + 1} keys"):
        peers.told(store, {**flood, "more": bytes(32)}, NOW)
    with store.write() as tx:
        for site, key in flood.items():
            tx.execute("INSERT INTO peers VALUES (?, ?)", (site, key))
    peers.told(store, flood, NOW)
    with pytest.raises(WireError, match="of more than"):
        peers.told(store, {"more": bytes(32)}, NOW)
    peers.told(store, {"s0": b"\x01" * 32}, NOW)  # a known site's key may still change


def test_a_key_that_changes_while_a_person_compares_is_not_pinned(store: Store) -> None:
    """What was compared is pinned, or nothing: a hub may tell another key at any moment."""
    shown = {site: peers.words(key) for site, key in KEYS.items()}
    studies.offer(store, STUDY, NOW)
    peers.told(store, {**KEYS, "leuven": bytes(32)}, NOW)
    with pytest.raises(Conflict, match="'leuven' is another by now"):
        studies.accept(store, DIGEST, actor="mara", now=NOW, words=shown)
    assert not studies.grants(store) and not peers.pins(store, DIGEST)
    with pytest.raises(Conflict, match="'leuven' is another by now"):
        peers.pin_again(store, DIGEST, STUDY.sites, "mara", NOW, None, shown)
    assert not peers.pins(store, DIGEST)
    peers.told(store, KEYS, NOW)
    studies.accept(store, DIGEST, actor="mara", now=NOW, words=shown)
    assert peers.pins(store, DIGEST) == KEYS
