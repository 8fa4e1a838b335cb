"""Homomorphic encryption, pure: sums are right, hostile bytes are refused, no more opens."""

import contextlib
import os
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as changed

pytest.importorskip("tenseal", reason="needs the extra consilia[he]")

import tenseal
from numpy.typing import NDArray

from consilia.core.weights import Schema, TensorSpec
from consilia.errors import Refused, UpdateRejected, WireError
from consilia.privacy import ckks, encrypted, secagg, vault
from consilia.privacy.noise import Stream
from consilia.wire import masks
from consilia.wire.v1 import decode, encode
from maskkit import Dice, Play, names

Floats = NDArray[np.float64]
MODEL: Schema = (
    TensorSpec("w", "float32", (50, 90)),
    TensorSpec("count", "int64", (3,)),
    TensorSpec("b", "float64", (7,)),
)
SITES = ("a", "b", "c")
SESSION = b"s" * 32


@pytest.fixture(scope="module")
def key() -> bytes:
    return ckks.make_key()


@pytest.fixture(scope="module")
def cipher(key: bytes) -> ckks.Cipher:
    return ckks.Cipher(key)


# ---- ciphertexts -----------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    sites=st.integers(1, 6),
    size=st.integers(1, ckks.SLOTS),
    reach=st.sampled_from((1e-6, 1.0, 1e3, ckks.REACH / 8)),
    seed=st.integers(0, 1000),
)
def test_a_sum_is_exact_far_below_its_noise(
    cipher: ckks.Cipher, sites: int, size: int, reach: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.uniform(-reach, reach, (sites, size))
    cells = [cipher.encrypt(row) for row in values]
    assert {len(cell) for cell in cells} == {ckks.CELL}
    found = cipher.open(ckks.Adder().add(cells))
    assert np.abs(found[:size] - values.sum(0)).max() < max(1.0, sites * reach) * 2.0**-40
    assert not found[size:].any() or np.abs(found[size:]).max() < max(1.0, reach) * 2.0**-40


def test_equal_numbers_give_other_ciphertexts(cipher: ckks.Cipher) -> None:
    first, second = cipher.encrypt(np.ones(9)), cipher.encrypt(np.ones(9))
    same = np.frombuffer(first, np.uint8) == np.frombuffer(second, np.uint8)
    assert same[200 : ckks.CELL - 600].mean() < 0.08  # bytes that agree by chance


def test_another_key_opens_nothing(cipher: ckks.Cipher) -> None:
    found = ckks.Cipher(ckks.make_key()).open(cipher.encrypt(np.full(ckks.SLOTS, 0.5)))
    assert np.abs(found - 0.5).min() > 1e-3 and np.abs(found).max() > 1e3


def test_the_hubs_parameters_hold_no_key_and_encrypt_nothing() -> None:
    context = ckks.Adder()._context
    assert not context.is_private() and len(context.serialize()) < 200
    with pytest.raises(ValueError, match="encryption"):
        tenseal.ckks_vector(context, [1.0])


def test_what_is_released_carries_the_noise_it_should() -> None:
    exact = np.linspace(-4, 4, 20_000)
    found = ckks.flood(exact, Stream(Dice("flood")))
    noise = found - exact
    assert abs(noise.std() / ckks.FLOOD - 1) < 0.03 and abs(noise.mean()) < 4e-8
    assert (found / ckks.STEP == np.rint(found / ckks.STEP)).all()  # no low bits of floats
    assert np.abs(noise).max() < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2 * ckks.REACH, -2 * ckks.REACH])
def test_numbers_that_no_slot_holds_are_refused(cipher: ckks.Cipher, bad: float) -> None:
    with pytest.raises(UpdateRejected, match="needed at most"):
        cipher.encrypt(np.array([0.0, bad]))


def _other(moduli: Sequence[int], scale: float, size: int = ckks.SLOTS) -> bytes:
    """A well-formed cell of other parameters."""
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=list(moduli)
    )
    context.global_scale = scale
    body = tenseal.ckks_vector(context, [1.0] * size).serialize()
    return _cell(body)


def _cell(body: bytes) -> bytes:
    return (len(body).to_bytes(4, "little") + body).ljust(ckks.CELL, b"\0")


@pytest.mark.parametrize(
    "cell",
    [
        b"",
        bytes(ckks.CELL - 1),
        bytes(ckks.CELL),
        b"\xff" * ckks.CELL,
        _cell(b"\x08" * 300),
        _cell(os.urandom(1000)),
        _other((60, 40, 40), 2.0**40),
        _other(ckks.MODULI, 2.0**40),
        _other(ckks.MODULI, ckks.SCALE, size=10),
    ],
    ids=["empty", "short", "zeros", "ones", "tags", "noise", "moduli", "scale", "slots"],
)
def test_hostile_cells_are_refused_and_named(cell: bytes) -> None:
    with pytest.raises(UpdateRejected, match=r"cell|ciphertext"):
        ckks.Adder().check(cell)


@settings(max_examples=40, deadline=None)
@given(at=st.integers(0, 400), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_head_never_crashes(
    cipher: ckks.Cipher, at: int, bit: int
) -> None:
    cell = bytearray(cipher.encrypt(np.ones(3)))
    cell[at] ^= 1 << bit
    with contextlib.suppress(UpdateRejected):  # else only the numbers in it are others
        ckks.Adder().check(bytes(cell))
        assert ckks.Adder().add([bytes(cell)])


@pytest.mark.parametrize("bad", [b"", b"key", bytes(200), bytes(ckks.KEY_BYTES + 1)])
def test_a_key_that_is_none_is_refused(bad: bytes) -> None:
    with pytest.raises(UpdateRejected, match="key"):
        ckks.Cipher(bad)


def test_public_parameters_are_no_key() -> None:
    public = ckks.Adder()._context.serialize()
    with pytest.raises(UpdateRejected, match="key"):
        ckks.Cipher(public)


# ---- updates and their sum -------------------------------------------------------------------


def numbers(site: str, weight: float) -> list[list[Floats]]:
    rng = np.random.default_rng(ord(site))
    sizes = [sum(s.size for s in group) for group in encrypted.groups(MODEL)]
    extra = np.concatenate(([1.0], rng.random(sizes[0] - 1)))
    rest = [rng.normal(0, 0.1, size) for size in sizes[1:]]
    return [np.array_split(values * weight, 5) for values in (extra, *rest)]


def cells_of(cipher: ckks.Cipher, key: bytes, site: str, weight: float) -> list[bytes]:
    found = encrypted.marks(key, SESSION, sum(encrypted.counts(MODEL)))
    return list(encrypted.encrypt(cipher, found, site, numbers(site, weight)))


@pytest.fixture(scope="module")
def updates(cipher: ckks.Cipher, key: bytes) -> dict[str, list[bytes]]:
    return {site: cells_of(cipher, key, site, 0.25) for site in SITES}


def opened(
    cipher: ckks.Cipher, key: bytes, cells: Sequence[bytes], sites: Sequence[str] = SITES
) -> Floats:
    found = encrypted.marks(key, SESSION, sum(encrypted.counts(MODEL)))
    stream = Stream(Dice("open"))
    return np.concatenate(
        list(encrypted.open_sum(cipher, found, sites, cells, MODEL, reach=8.0, stream=stream))
    )


def added(*parts: Sequence[bytes]) -> list[bytes]:
    adder = ckks.Adder()
    return [adder.add(cells) for cells in zip(*parts, strict=True)]


def test_the_sum_of_updates_opens(
    cipher: ckks.Cipher, key: bytes, updates: dict[str, list[bytes]]
) -> None:
    found = opened(cipher, key, added(*updates.values()))
    exact = sum(
        np.concatenate([np.concatenate(group) for group in numbers(site, 0.25)])
        for site in SITES
    )
    assert found.size == sum(spec.size for spec in encrypted.opened(MODEL))
    assert np.abs(found - exact).max() < 1e-5
    assert found[0] == pytest.approx(0.75, abs=1e-5)


def test_a_hub_that_passes_on_another_sum_is_refused(
    cipher: ckks.Cipher, key: bytes, updates: dict[str, list[bytes]]
) -> None:
    a, b, c = updates.values()
    other = cells_of(ckks.Cipher(ckks.make_key()), key, "c", 0.25)
    frauds = {
        "one update alone": a,
        "one left out": added(a, b),
        "one twice": added(a, b, c, c),
        "one instead of another": added(a, b, b),
        "cells in another order": added(a, b, c)[::-1],
        "one cell of one site": [*added(a, b, c)[:-1], a[-1]],
        "another key": added(a, b, other),
    }
    for what, cells in frauds.items():
        with pytest.raises(Refused, match=r"not the sum|needed"):
            opened(cipher, key, cells)
            pytest.fail(what)


def test_a_sum_of_other_survivors_is_refused(
    cipher: ckks.Cipher, key: bytes, updates: dict[str, list[bytes]]
) -> None:
    with pytest.raises(Refused, match="not the sum of the updates of a, b"):
        opened(cipher, key, added(*updates.values()), sites=("a", "b"))


def test_weights_and_ranges_are_judged_before_release(cipher: ckks.Cipher, key: bytes) -> None:
    heavy = added(*(cells_of(cipher, key, site, 0.5) for site in SITES))
    with pytest.raises(Refused, match=r"add up to 1\.5"):
        opened(cipher, key, heavy)
    found = encrypted.marks(key, SESSION, sum(encrypted.counts(MODEL)))
    wild = numbers("a", 0.25)
    wild[1][0][5] = 9.0
    cells = list(encrypted.encrypt(cipher, found, "a", wild))
    with pytest.raises(Refused, match="is 9, needed at most 8"):
        opened(cipher, key, cells, sites=("a",))


def test_marks_are_hidden_and_differ(key: bytes) -> None:
    found = encrypted.marks(key, SESSION, 500)
    other = encrypted.marks(key, b"t" * 32, 500)
    assert len(set(found.places)) > 400 and (found.places == other.places).mean() < 0.02
    assert np.abs(found.of("a") - found.of("b")).min() > encrypted.OFF
    assert not np.array_equal(found.of("a"), other.of("a"))


@given(sizes=st.lists(st.integers(0, 40), max_size=9), width=st.integers(1, 17))
def test_cutting_changes_no_number(sizes: list[int], width: int) -> None:
    pieces = np.split(np.arange(sum(sizes), dtype=np.float64), np.cumsum(sizes)[:-1])
    parts = [part.copy() for part in encrypted.cut(pieces, width)]
    assert all(part.size == width for part in parts[:-1])
    assert np.array_equal(np.concatenate([*parts, np.empty(0)]), np.arange(sum(sizes)))


# ---- the vault -------------------------------------------------------------------------------

SECRET = b"a key for homomorphic encryption" * 100


def dealt(count: int = 4) -> tuple[Play, dict[str, bytes]]:
    """A round whose first two sites have put a key into their shares; the hub's inboxes."""
    play = Play(names(count))
    play.join()
    play.share()
    for site in play.sites:
        member = play.members[site]
        assert vault.deals(member) == (site in play.sites[:2])
        if vault.deals(member):
            play.members[site], play.shares[site] = vault.deal(
                member, play.shares[site], SECRET + site.encode(), Dice(site)
            )
    return play, vault.passed_on(play.shares, secagg.inboxes(play.shares))


def test_every_site_gets_the_first_dealers_key() -> None:
    play, boxes = dealt()
    first = play.sites[0]
    for site in play.sites:
        vault.check(play.shares[site], site, play.roster, encrypted=True)
        found = vault.take(play.members[site], boxes[site])
        assert found.cipher_key == SECRET + first.encode()
        assert first == site or SECRET not in boxes[site]
    assert vault.dealt(play.shares)


def test_the_second_dealers_key_serves_when_the_first_is_lost() -> None:
    play, _ = dealt()
    del play.shares[play.sites[0]]
    boxes = vault.passed_on(play.shares, secagg.inboxes(play.shares))
    for site in play.sites[1:]:
        assert vault.take(play.members[site], boxes[site]).cipher_key.endswith(b"001")
    del play.shares[play.sites[1]]
    assert not vault.dealt(play.shares)
    last = play.sites[-1]
    with pytest.raises(Refused, match="were lost"):
        vault.take(play.members[last], secagg.inboxes(play.shares)[last])


def test_a_vault_that_was_changed_opens_for_nobody() -> None:
    play, boxes = dealt()
    site, first = play.sites[2], play.sites[0]
    inbox = decode(boxes[site], masks.Inbox)
    assert inbox.vault is not None
    of_second = decode(play.shares[play.sites[1]], masks.Shares).vault
    of_first = decode(play.shares[first], masks.Shares).vault
    assert of_first is not None and of_second is not None
    box, locks = inbox.vault.box, inbox.vault.locks
    flipped = bytes([box[20] ^ 1])
    for wrong in (
        None,
        masks.Vault(box, {}),
        masks.Vault(box[:20] + flipped + box[21:], locks),
        masks.Vault(of_second.box, locks),
        masks.Vault(of_second.box, {site: of_second.locks[site]}),
        masks.Vault(box, {site: of_first.locks[play.sites[3]]}),
    ):
        with pytest.raises(Refused, match=r"holds back|not as site"):
            vault.take(play.members[site], encode(changed(inbox, vault=wrong)))


def test_the_hub_refuses_vaults_that_do_not_belong() -> None:
    play, _ = dealt()
    first, last = play.sites[0], play.sites[-1]
    body = decode(play.shares[first], masks.Shares)
    assert body.vault is not None
    few = masks.Vault(body.vault.box, {last: body.vault.locks[last]})
    with pytest.raises(WireError, match="nobody asked for"):
        vault.check(play.shares[first], first, play.roster, encrypted=False)
    with pytest.raises(WireError, match="brings no key"):
        vault.check(encode(changed(body, vault=None)), first, play.roster, encrypted=True)
    with pytest.raises(WireError, match="sealed to 1 sites"):
        vault.check(encode(changed(body, vault=few)), first, play.roster, encrypted=True)
