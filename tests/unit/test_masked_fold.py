"""The masked sum at the hub against exact arithmetic: every dtype, both rings, whole rounds.

The oracle computes with Python's integers and fractions only. First the fold alone, fed with
ring numbers that the oracle has made and real masks; then whole rounds of real sites, whose
masked updates go through their own stores and files.
"""

import asyncio
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consilia.core.round import TimedOut
from consilia.core.weights import (
    BFLOAT16,
    DTYPES,
    Array,
    Weights,
    dtype_name,
    narrow,
    schema_of,
    widen,
)
from consilia.errors import EmptyRound, UpdateRejected
from consilia.hub.masking import MaskedFold
from consilia.privacy import masked
from consilia.privacy.streams import Ring
from consilia.wire.v1 import MAX_METRICS, Privacy
from maskedkit import CONFIG, RECORDS, SITES, TOTAL, lab, reader
from maskkit import Play, names

SIZES = {"float32": (13, 170), "float16": (37,), "bfloat16": (5, 9), "float64": (1501,)}
INTEGERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
ULPS = {"float64": 2.0**-51, "float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}
METRICS = (0.25, -3.5, 1000.0)


def model(seed: int, only: tuple[str, ...] = ()) -> Weights:
    """Return a model with a tensor of every dtype, an empty one and a scalar."""
    rng = np.random.default_rng(seed)
    tensors: Weights = {
        "float32": rng.normal(size=SIZES["float32"]).astype(np.float32),
        "float16": rng.normal(size=SIZES["float16"]).astype(np.float16),
        "bfloat16": narrow(rng.normal(size=SIZES["bfloat16"]).astype(np.float32)),
        "float64": rng.normal(size=SIZES["float64"]),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(rng.normal(), np.float32),
        "bool": rng.integers(0, 2, 21).astype(bool),
    }
    for name in INTEGERS:
        low, high = (0, 100) if name.startswith("u") else (-50, 50)
        tensors[name] = rng.integers(low, high, 19).astype(DTYPES[name])
    return {name: tensors[name] for name in only} if only else tensors


def exact(array: "NDArray[np.generic]") -> list[Fraction]:
    """Return an array's values as fractions."""
    if array.dtype == BFLOAT16:
        array = widen(array)
    return [Fraction(value.item()) for value in array.reshape(-1)]


def steps_of(value: Fraction, weight: Fraction, scale: float, bits: int) -> int:
    """Return round(weight * value * scale) modulo 2**bits, half to even, in integers alone."""
    return round(weight * value * Fraction(scale)) % (1 << bits)


def signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) else number


Rings = dict[str, Ring]
Site = tuple[Fraction, dict[str, list[Fraction]], tuple[float, ...]]  # weight, changes, metrics


def ring_update(base: Weights, privacy: Privacy, site: Site) -> Rings:
    """Return what a site would send, not masked, made without numpy's arithmetic."""
    weight, changes, metrics = site
    slots = [*map(Fraction, metrics), *[Fraction(0)] * (MAX_METRICS - len(metrics))]
    values = {masked.WEIGHT: [Fraction(1)], masked.METRICS: slots, **changes}
    scales = {n: masked.extra_scale(n) for n in (masked.WEIGHT, masked.METRICS)}
    scales |= {spec.name: masked.scale(spec, privacy) for spec in schema_of(base)}
    found: Rings = {}
    for spec in masked.schema(schema_of(base), privacy.bits):
        bits = DTYPES[spec.dtype].itemsize * 8
        numbers = [steps_of(v, weight, scales[spec.name], bits) for v in values[spec.name]]
        found[spec.name] = ring_of(numbers, bits)
    return found


def ring_of(numbers: list[int], bits: int) -> Ring:
    if bits == 16:
        return np.array(numbers, np.uint16)
    return np.array(numbers, np.uint32) if bits == 32 else np.array(numbers, np.uint64)


def expected(
    base: Weights, privacy: Privacy, updates: Mapping[str, Rings], weight: Fraction
) -> dict[str, list[Fraction]]:
    """Return the exact mean that a sum of ring numbers stands for."""
    means: dict[str, list[Fraction]] = {}
    for spec in schema_of(base):
        arrays = [update[spec.name].reshape(-1).tolist() for update in updates.values()]
        bits = next(iter(updates.values()))[spec.name].dtype.itemsize * 8
        sums = [signed(sum(column) % (1 << bits), bits) for column in zip(*arrays, strict=True)]
        step = Fraction(masked.scale(spec, privacy)) * weight
        old = exact(base[spec.name])
        means[spec.name] = [o + Fraction(s) / step for o, s in zip(old, sums, strict=True)]
    return means


def check(found: Weights, means: Mapping[str, list[Fraction]], slack: float = 0.0) -> None:
    """Assert that a mean is the exact one in its dtype; `slack` for what was lost before."""
    for name, array in found.items():
        for value, mean in zip(exact(array), means[name], strict=True):
            assert fits(array.dtype, value, mean, Fraction(slack)), (name, value, mean)


def fits(
    dtype: "np.dtype[np.generic]", value: Fraction, mean: Fraction, slack: Fraction
) -> bool:
    if dtype.kind == "b":
        near = abs(mean - Fraction(1, 2)) <= slack + Fraction(1, 1 << 20)
        return near or (value == 1) == (mean > Fraction(1, 2))
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype.str)
        kept = min(max(mean, Fraction(bounds.min)), Fraction(bounds.max))
        return abs(value - kept) <= Fraction(1, 2) + slack + Fraction(1, 1 << 20)
    ulp = Fraction(ULPS[dtype_name(dtype)])
    return abs(value - mean) <= ulp * max(abs(mean), Fraction(1)) + slack


def dot(weights: Iterable[Fraction], values: Iterable[Fraction]) -> Fraction:
    return sum((w * v for w, v in zip(weights, values, strict=True)), Fraction(0))


def drawn(base: Weights, rng: np.random.Generator, reach: float) -> dict[str, list[Fraction]]:
    """Return a change for every element: floats up to `reach`, integers whole."""
    changes = {}
    for spec in schema_of(base):
        if DTYPES[spec.dtype].kind in "iub" and spec.dtype != "bfloat16":
            values = rng.integers(-1, 2, spec.size).astype(float)
        else:
            values = rng.uniform(-reach, reach, spec.size)
        changes[spec.name] = [Fraction(float(v)) for v in values]
    return changes


def folded(
    base: Weights,
    privacy: Privacy,
    updates: Mapping[str, Rings],
    gone: tuple[str, ...] = (),
) -> MaskedFold:
    """Mask updates with real masks, fold those that are not `gone`, take the masks off."""
    play = Play(names(len(updates) + len(gone))).ready()
    fold = MaskedFold(schema_of(base), privacy)
    survivors = [site for site in play.sites if site not in gone]
    for site, update in zip(survivors, updates.values(), strict=True):
        fold.add(7, reader(hidden(play, site, update)))
    play.finish(survivors)
    fold.open(play.unmasker(), reader(base))
    return fold


def hidden(play: Play, site: str, update: Rings) -> Weights:
    """Return an update with the site's real masks on."""
    return dict(zip(update, play.masked(site, update.values()), strict=True))


def results(fold: MaskedFold, base: Weights) -> Weights:
    return {s.name: fold.result_chunk(s, 0, s.size).reshape(s.shape) for s in schema_of(base)}


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("gone", [(), ("site-001",)])
def test_the_sum_of_masked_updates_is_the_exact_mean(bits: int, gone: tuple[str, ...]) -> None:
    privacy = Privacy(aggregation="secure", bits=16 if bits == 16 else 32, range=2.0)
    base, rng = model(1), np.random.default_rng(2)
    counts = (120, 5, 4001)
    total = 4200  # more than they have: the fourth, who is gone or rounds down, has the rest
    sites: list[Site] = [
        (Fraction(count / total), drawn(base, rng, 2.0), METRICS) for count in counts
    ]
    updates = {str(n): ring_update(base, privacy, site) for n, site in enumerate(sites)}
    fold = folded(base, privacy, updates, gone)
    weight = sum((w for w, _, _ in sites), Fraction(0))
    assert abs(Fraction(fold.weight) - weight) < Fraction(1, 1 << 50)
    assert fold.updates == 3
    check(results(fold, base), expected(base, privacy, updates, weight))
    for slot, value in enumerate(METRICS):
        assert fold.metrics[slot] == pytest.approx(value, abs=4 * 2.0**-24)
    assert not any(fold.metrics[len(METRICS) :])


@settings(max_examples=15, deadline=None)
@given(
    counts=st.lists(st.integers(1, 10**6), min_size=3, max_size=6),
    seed=st.integers(0, 1000),
    bits=st.sampled_from((16, 32)),
    reach=st.sampled_from((0.01, 1.0, 8.0, 1000.0)),
)
def test_any_weights_and_ranges(counts: list[int], seed: int, bits: int, reach: float) -> None:
    """The mean is that of the true changes, but for the rounding of each site to a step."""
    privacy = Privacy(aggregation="secure", bits=16 if bits == 16 else 32, range=reach)
    base, rng = model(seed, ("float64", "int32")), np.random.default_rng(seed)
    base["small"] = rng.normal(size=11).astype(np.float32)
    total = sum(counts)
    sites: list[Site] = [(Fraction(n / total), drawn(base, rng, reach), ()) for n in counts]
    updates = {str(n): ring_update(base, privacy, site) for n, site in enumerate(sites)}
    found = results(folded(base, privacy, updates), base)
    weight = sum((w for w, _, _ in sites), Fraction(0))
    for name in ("small", "float64", "int32"):
        changes = zip(*(site[1][name] for site in sites), strict=True)
        means = [
            old + dot([w for w, _, _ in sites], each) / weight
            for old, each in zip(exact(base[name]), changes, strict=True)
        ]
        step = 1 / masked.scale(next(s for s in schema_of(base) if s.name == name), privacy)
        check({name: found[name]}, {name: means}, slack=len(counts) * step + reach * 2.0**-22)


def test_a_sum_at_the_edge_of_the_ring_does_not_wrap() -> None:
    """All sites change everything by the whole range, in one direction."""
    for bits in (16, 32):
        for sign in (1, -1):
            privacy = Privacy(aggregation="secure", bits=16 if bits == 16 else 32, range=0.5)
            base: Weights = {"w": np.zeros(9, np.float32), "d": np.zeros(9)}
            change = {name: [Fraction(sign, 2)] * 9 for name in base}
            weights = [Fraction(1 / 3), Fraction(1 / 3), Fraction(1 - 2 / 3)]
            updates = {
                str(n): ring_update(base, privacy, (w, change, ()))
                for n, w in enumerate(weights)
            }
            found = results(folded(base, privacy, updates), base)
            for name in base:
                np.testing.assert_allclose(
                    found[name].astype(np.float64), sign / 2, atol=3 * 0.5 / 2 ** (bits - 2)
                )


@pytest.mark.parametrize("weight", [0.0, 1.0001, -0.25])
def test_weights_that_are_no_shares_are_refused(weight: float) -> None:
    privacy = Privacy(aggregation="secure")
    base: Weights = {"w": np.zeros(4, np.float32)}
    change = {"w": [Fraction(0)] * 4}
    sites: list[Site] = [(Fraction(weight) / 3, change, ()) for _ in range(3)]
    updates = {str(n): ring_update(base, privacy, site) for n, site in enumerate(sites)}
    with pytest.raises(UpdateRejected, match="the masked weights add up to"):
        folded(base, privacy, updates)


def test_the_fold_starts_again_in_the_same_memory() -> None:
    """A round whose memory held another round's mean before."""
    privacy = Privacy(aggregation="secure")
    base = model(3)
    rng = np.random.default_rng(4)
    third = Fraction(1 / 3)
    fold = MaskedFold(schema_of(base), privacy)
    for seed in ("first", "second"):
        sites: list[Site] = [(third, drawn(base, rng, 1.0), ()) for _ in range(3)]
        updates = {str(n): ring_update(base, privacy, site) for n, site in enumerate(sites)}
        play = Play(names(3), seed=seed).ready()
        fold.clear()
        with pytest.raises(EmptyRound):
            fold.mean(schema_of(base)[0])
        for site, update in zip(play.sites, updates.values(), strict=True):
            fold.add(1, reader(hidden(play, site, update)))
        play.finish(play.sites)
        fold.open(play.unmasker(), reader(base))
        check(results(fold, base), expected(base, privacy, updates, 3 * third))


def test_a_tensor_of_another_length_or_dtype_is_refused() -> None:
    privacy = Privacy(aggregation="secure")
    base: Weights = {"w": np.zeros(1000, np.float32)}
    good = ring_update(base, privacy, (Fraction(1), {"w": [Fraction(0)] * 1000}, ()))
    for wrong in (
        np.zeros(999, np.uint32),
        np.zeros(1001, np.uint32),
        np.zeros(1000, np.uint16),
        np.zeros(0, np.uint32),
    ):
        fold = MaskedFold(schema_of(base), privacy)
        with pytest.raises(UpdateRejected, match="masked tensor 'w'"):
            fold.add(1, reader({**good, "w": wrong}))
    with pytest.raises(EmptyRound, match="nothing to unmask"):
        play = Play(names(3)).ready()
        play.finish(play.sites)
        MaskedFold(schema_of(base), privacy).open(play.unmasker(), reader(base))


# ---- whole rounds ----------------------------------------------------------------------------


def trained(base: Weights, site: str) -> Weights:
    """Return a site's model: every float moved by noise, integers by whole steps."""
    rng = np.random.default_rng(RECORDS[site])
    return {name: moved(old, rng) for name, old in base.items()}


def moved(old: Array, rng: np.random.Generator) -> Array:
    if old.dtype == BFLOAT16:
        return narrow(widen(old) + rng.normal(size=old.shape).astype(np.float32))
    if old.dtype.kind == "f":
        return (old.astype(np.float64) + rng.normal(size=old.shape)).astype(old.dtype)
    if old.dtype.kind == "b":
        return rng.integers(0, 2, old.shape).astype(bool)
    whole = old.astype(np.int64)
    return (whole + np.maximum(rng.integers(-5, 6, old.shape), -abs(whole))).astype(old.dtype)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("gone", ["", "leuven"])
async def test_a_whole_round_of_real_sites_gives_the_exact_mean(
    tmp_path: Path, bits: int, gone: str
) -> None:
    """Through the sites' stores, files, keys and masks, and the hub's checks and fold."""
    async with lab(tmp_path) as x:
        x.hub.all_peers(tmp_path)
        x.hub.privacy = Privacy(aggregation="secure", bits=16 if bits == 16 else 32, range=16.0)
        x.hub.trained = trained
        x.hub.silent = {gone: "update"}
        base = model(5)
        x.hub.begin(base)
        while not x.hub.closes:
            await asyncio.sleep(0.01)
            if gone and len(x.hub.updates) == 3 and x.hub.state.step == "update":
                x.hub.feed(TimedOut(CONFIG.grace + 2.0, 1))
        mean, fold = x.hub.sum()
    present = [site for site in SITES if site != gone]
    count = sum(RECORDS[site] for site in present)
    assert fold.weight * TOTAL == pytest.approx(count, rel=1e-12)
    assert fold.metrics[0] == pytest.approx(0.25, abs=4 * 2.0**-24 * TOTAL / count)
    for name, old in base.items():
        news = zip(*(exact(trained(base, site)[name]) for site in present), strict=True)
        shares = [Fraction(RECORDS[site], count) for site in present]
        means = [dot(shares, each) for each in news]
        spec = next(s for s in schema_of(base) if s.name == name)
        step = 1 / masked.scale(spec, x.hub.privacy)
        assert len(means) == old.size
        # 16 bits round up or down by chance: a whole step for each site, not half of one.
        slack = 4 * step * TOTAL / count + (2.0**-21 if step > 2.0**-40 else 0.0)
        check({name: mean[name]}, {name: means}, slack=slack)
