"""The parts of a masked sum, each for itself: shares, graph, keystreams, sealed parcels."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive_secagg as naive
from consilia.errors import AuthError, Refused, WireError
from consilia.privacy import graph, sealing, shamir
from consilia.privacy.streams import PIECE, Streams
from maskkit import Dice, names, pins, signer

# ---- Shamir ----------------------------------------------------------------------------------


def test_the_field_is_one() -> None:
    """Miller-Rabin with the first primes: 2**257 - 93 has no witness among them."""
    odd, twos = shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
        powers = [pow(base, odd << i, shamir.PRIME) for i in range(twos)]
        assert powers[0] == 1 or shamir.PRIME - 1 in powers


@given(st.binary(min_size=32, max_size=32), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 12))
    threshold = data.draw(st.integers(2, count))
    points = data.draw(st.permutations(range(1, count + 1)))
    shares = dict(zip(points, shamir.split(secret, threshold, points, Dice("s")), strict=True))
    chosen = points[:threshold]
    weights = shamir.weights(chosen)
    assert shamir.combine(weights, [shares[p] for p in chosen]) == secret
    assert naive.solve({p: shares[p] for p in chosen}) == secret


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**256 - 1))
def test_one_share_less_fits_every_secret(secret: bytes, other: int) -> None:
    """Below the threshold the shares say nothing: for any secret there is a missing share."""
    points, threshold = (1, 2, 3, 4), 4
    shares = shamir.split(secret, threshold, points, Dice("x"))
    weights = shamir.weights(points)
    known = sum(
        w * int.from_bytes(s, "big") for w, s in zip(weights[:3], shares[:3], strict=True)
    )
    last = (other - known) * pow(weights[3], -1, shamir.PRIME) % shamir.PRIME
    made = [*shares[:3], last.to_bytes(shamir.SIZE, "big")]
    assert shamir.combine(weights, made) == other.to_bytes(32, "big")


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_smallest_and_the_largest_secret(secret: bytes) -> None:
    shares = shamir.split(secret, 2, (1, 1000), Dice("e"))
    assert shamir.combine(shamir.weights((1, 1000)), shares) == secret


def test_shares_of_no_secret_are_noticed() -> None:
    beyond = (1 << 256).to_bytes(shamir.SIZE, "big")
    with pytest.raises(WireError, match="one of them is wrong"):
        shamir.combine((1,), [beyond])


# ---- graph -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "needed"), [(3, 3), (4, 3), (5, 4), (6, 5), (9, 7), (10, 7), (200, 134)]
)
def test_threshold(count: int, needed: int) -> None:
    assert graph.threshold(count) == needed
    assert 3 * needed > 2 * count >= 3 * (needed - 1)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_sum_of_fewer_than_three(count: int) -> None:
    with pytest.raises(Refused, match=f"masked sum of {count} sites.*needs at least 3"):
        graph.threshold(count)


def test_two_quorums_share_an_honest_site() -> None:
    """Whatever fewer than a third do, two sets of a threshold have an honest site in common."""
    for count in range(3, 1001):
        colluding = (count - 1) // 3
        assert 2 * graph.threshold(count) - count > colluding


@pytest.mark.parametrize("count", [3, 4, 49, 50, 51, 60, 61, 62, 77, 200])
def test_neighbours_are_mutual_and_as_the_oracle_says(count: int) -> None:
    session, sites = bytes(32), names(count)
    ring, oracle = graph.of(session, sites), naive.neighbourhoods(session, sites)
    for site in sites:
        near = ring.neighbourhood(site)
        assert set(near) == oracle[site]
        assert list(near) == sorted(near)
        assert len(near) == graph.degree(count) + 1
        assert ring.neighbours(site) == tuple(s for s in near if s != site)
        assert all(site in oracle[other] for other in near)
    assert ring.threshold() == graph.threshold(graph.degree(count) + 1)


@pytest.mark.parametrize(
    ("count", "neighbours"), [(3, 2), (50, 49), (51, 50), (64, 60), (200, 78), (1000, 100)]
)
def test_degree(count: int, neighbours: int) -> None:
    assert graph.degree(count) == neighbours == naive.degree(count)


def test_another_session_is_another_circle() -> None:
    sites = names(100)
    first, second = (graph.of(bytes([i]) * 32, sites) for i in (1, 2))
    assert first.order != second.order
    assert first == graph.of(b"\1" * 32, tuple(reversed(sites)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_connected_is_what_a_walk_finds(data: st.DataObject) -> None:
    session, sites = bytes(32), names(70)
    ring = graph.of(session, sites)
    gone: set[str] = set()
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, 69))
        length = data.draw(st.integers(0, 33))
        gone |= {ring.order[(start + i) % 70] for i in range(length)}
    present = sorted(set(sites) - gone)
    if not present:
        return
    reached, edge = {present[0]}, [present[0]]
    while edge:
        near = set(ring.neighbours(edge.pop())).intersection(present) - reached
        reached |= near
        edge.extend(near)
    assert ring.connected(present) == (len(reached) == len(present))


# ---- keystreams ------------------------------------------------------------------------------


def test_counter_mode_is_the_standard_one() -> None:
    """First block of AES-256 over a zero block with a zero key (NIST AESAVS, appendix C)."""
    values = np.zeros(4, np.uint32)
    Streams([bytes(32)], []).add(values)
    assert values.tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_cuts_do_not_matter_and_the_oracle_agrees(data: st.DataObject) -> None:
    bits = st.sampled_from([16, 32, 64])
    shape = data.draw(st.lists(st.tuples(bits, st.integers(0, 40)), min_size=1, max_size=4))
    seed, pairs = b"\1" * 32, {"a": b"\2" * 32, "c": b"\3" * 32}
    rng = np.random.default_rng(5)
    arrays = [rng.integers(0, 1 << b, n, f"u{b // 8}", endpoint=False) for b, n in shape]
    expected = naive.mask(
        [(b, a.tolist()) for (b, _), a in zip(shape, arrays, strict=True)], seed, pairs, "b"
    )
    streams = Streams([seed, pairs["c"]], [pairs["a"]])
    for array in arrays:
        cut = data.draw(st.integers(0, array.size))
        streams.add(array[:cut])
        streams.add(array[cut:])
    assert [a.tolist() for a in arrays] == expected


@pytest.mark.parametrize("size", [PIECE // 4 - 1, PIECE // 4, PIECE // 4 + 1, PIECE])
def test_pieces_join_without_a_seam(size: int) -> None:
    whole, cut = np.zeros(size, np.uint32), np.zeros(size, np.uint32)
    Streams([b"\7" * 32], []).add(whole)
    streams = Streams([b"\7" * 32], [])
    for start in range(0, size, 1001):
        streams.add(cut[start : start + 1001])
    assert (whole == cut).all()
    Streams([], [b"\7" * 32]).add(whole)
    assert not whole.any()


def test_shapes_are_kept() -> None:
    values = np.zeros((3, 4), np.uint16)
    Streams([b"\7" * 32], []).add(values)
    flat = np.zeros(12, np.uint16)
    Streams([b"\7" * 32], []).add(flat)
    assert (values.reshape(-1) == flat).all()


def test_what_cannot_be_masked_in_place() -> None:
    streams = Streams([bytes(32)], [])
    fixed = np.zeros(4, np.uint32)
    fixed.flags.writeable = False
    for values in (np.zeros(4, np.int32), np.zeros((4, 4), np.uint32).T[:2], fixed):
        with pytest.raises(ValueError, match="needs a writeable C-ordered array"):
            streams.add(values)  # type: ignore[arg-type]  # that is what is tested


# ---- keys between two sites ------------------------------------------------------------------


def test_both_sites_get_the_seed_that_the_oracle_gets() -> None:
    one, two = bytes(range(32)), bytes(range(1, 33))
    session = b"s" * 32
    seed = sealing.pair_seed(one, sealing.public(two), session, "a", "b")
    assert seed == sealing.pair_seed(two, sealing.public(one), session, "b", "a")
    assert seed == naive.pair_mask(one, sealing.public(two), session, ("b", "a"))
    assert sealing.self_seed(one, session, "a") == naive.self_mask(one, session, "a")


def test_every_key_is_for_one_thing_only() -> None:
    one, two = bytes(range(32)), sealing.public(bytes(range(1, 33)))
    found = {
        *(sealing.pair_seed(one, two, s, "a", "b") for s in (b"s" * 32, b"t" * 32)),
        *(sealing.box_key(one, two, s, ("a", "b")) for s in (b"s" * 32, b"t" * 32)),
        sealing.box_key(one, two, b"s" * 32, ("b", "a")),
        sealing.pair_seed(one, two, b"s" * 32, "a", "c"),
        sealing.self_seed(one, b"s" * 32, "a"),
    }
    assert len(found) == 7


LOW_ORDER = (  # all points of low order of Curve25519 (https://cr.yp.to/ecdh.html#validate)
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_keys_that_hide_nothing_are_refused(point: bytes) -> None:
    assert sealing.hides_nothing(point)
    assert sealing.hides_nothing(point[:31] + bytes([point[31] | 128]))
    assert not sealing.hides_nothing(sealing.public(bytes(32)))
    with pytest.raises(AuthError, match=r"site 'b'.*hides nothing"):
        sealing.pair_seed(bytes(range(32)), point, bytes(32), "a", "b")


def test_a_box_opens_as_it_was_locked_only() -> None:
    key, other = b"k" * 32, b"o" * 32
    box = sealing.lock(key, bytes(12), b"plain", b"about")
    assert sealing.unlock(key, box, b"about") == b"plain"
    assert sealing.unlock(other, box, b"about") is None
    assert sealing.unlock(key, box, b"another") is None
    for index in range(len(box)):
        bent = box[:index] + bytes([box[index] ^ 1]) + box[index + 1 :]
        assert sealing.unlock(key, bent, b"about") is None
    for cut in (0, 5, 12, 20, len(box) - 1):
        assert sealing.unlock(key, box[:cut], b"about") is None


def test_signatures() -> None:
    key, text = pins(["a"])["a"], b"text"
    good = signer("a")(text)
    assert sealing.signed(key, good, text)
    assert not sealing.signed(key, good, b"texts")
    for bad_key, bad in itertools.product((b"", key[:31], key), (b"", good[:63], bytes(64))):
        assert not sealing.signed(bad_key, bad, text)
