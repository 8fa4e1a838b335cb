"""Shares of noise in a masked sum: size, sensitivity, the sum, and the accountant."""

import json
import math
import os
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consilia.core.weights import Schema, TensorSpec
from consilia.errors import ConfigError, Refused, UpdateRejected
from consilia.privacy import accountant, adaptive, masked, ring, shares
from consilia.privacy.noise import Stream
from consilia.privacy.streams import Ring, random_of
from consilia.wire.v1 import Adaptive, Dp, Privacy

Doubles = NDArray[np.float64]
DP = Dp("client", 1.5, 2.0, distributed=True)
W, D, N = (
    TensorSpec("w", "float32", (20_000,)),
    TensorSpec("d", "float64", (20_000,)),
    TensorSpec("n", "int64", (4,)),
)
SCHEMA: Schema = (W, D, N)


def secure(bits: int = 32, dp: Dp = DP) -> Privacy:
    return Privacy(aggregation="secure", bits=16 if bits == 16 else 32, range=16.0, dp=dp)


def sent(part: shares.Share, change: dict[str, Doubles], bits: int = 32) -> dict[str, Ring]:
    """Return what a site would mask, tensor by tensor."""
    norm = math.sqrt(sum(float(np.dot(v, v)) for v in change.values()))
    stream, random, found = Stream(os.urandom), random_of(os.urandom(32)), {}
    for spec, hidden in zip(SCHEMA, masked.schema(SCHEMA, bits)[2:], strict=True):
        steps = masked.empty(hidden.dtype, spec.size)
        values = change.get(spec.name, np.zeros(spec.size))
        shares.write(part, spec, values, part.factor(norm), steps, stream, random)
        found[spec.name] = steps
    return found


def decoded(steps: Ring, spec: TensorSpec, bits: int = 32) -> Doubles:
    return ring.dequantise(steps, masked.scale(spec, secure(bits)))


def added(rings: list[Ring]) -> Ring:
    """Return the sum in the ring."""
    total = rings[0].copy()
    for other in rings[1:]:
        np.add(total, other, out=total)
    return total


def still(part: shares.Share) -> shares.Share:
    """Return the part with noise so narrow that it is always 0 (else once in e^200)."""
    grids = {kind: replace(grid, std=0.05) for kind, grid in part.grids.items()}
    return replace(part, grids=grids)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("spec", [W, D], ids=lambda spec: str(spec.dtype))
def test_the_fewest_honest_sites_reach_the_whole_noise_and_all_of_them_more(
    spec: TensorSpec, bits: int
) -> None:
    sites, honest = 5, 3  # of five sites four are sure to stay, one of these may collude
    part = shares.share(DP, secure(bits), SCHEMA, sites, sites)
    stated = DP.noise_multiplier * DP.clip / sites
    every = [sent(part, {}, bits)[spec.name] for _ in range(sites)]
    few = decoded(added(every[:honest]), spec, bits)
    most = decoded(added(every), spec, bits)
    assert few.std() == pytest.approx(stated, rel=0.03)  # six deviations of 20,000 values
    assert most.std() == pytest.approx(stated * math.sqrt(sites / honest), rel=0.03)
    assert abs(most.mean()) < 6 * most.std() / math.sqrt(most.size)
    # As normal as numbers of that many steps can be: the share beyond one and two deviations.
    for reach, beyond in ((1, 0.3173), (2, 0.0455)):
        found = float(np.mean(np.abs(few) > reach * stated))
        assert found == pytest.approx(beyond, abs=6 * math.sqrt(beyond / few.size))
    assert not sent(part, {}, bits)["n"].any()  # integers stay as they were


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 60), st.sampled_from([16, 32]), st.floats(-6, 6), st.integers(0, 2**30))
def test_the_stated_sensitivity_bounds_the_real_one(
    sites: int, bits: int, size: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # A small clip makes a coarse ring: what rounding adds is a large part of the norm.
    dp = Dp("client", 2.0, 1.0 if bits == 32 else float(sites), distributed=True)
    privacy = Privacy(
        aggregation="secure", bits=16 if bits == 16 else 32, range=9.0 * dp.clip, dp=dp
    )
    schema = (TensorSpec("w", "float32", (700,)), TensorSpec("d", "float64", (300,)))
    try:
        part = shares.share(dp, privacy, schema, sites, sites)
    except ConfigError:
        assert bits == 16  # too coarse for so many sites: refused, not promised
        return
    change = {s.name: rng.normal(size=s.size) * 10.0**size for s in schema}
    if rng.random() < 0.5:  # all of it just above half a step, where rounding adds most
        step = 1 / (part.grids["float32"].scale * part.weight)
        change = {s.name: np.full(s.size, 0.501 * step) for s in schema}
    norm = math.sqrt(sum(float(np.dot(v, v)) for v in change.values()))
    quiet, stream, random = still(part), Stream(os.urandom), random_of(os.urandom(32))
    total = 0.0
    for spec, hidden in zip(schema, masked.schema(schema, bits)[2:], strict=True):
        steps = masked.empty(hidden.dtype, spec.size)
        shares.write(quiet, spec, change[spec.name], part.factor(norm), steps, stream, random)
        found = ring.dequantise(steps, masked.scale(spec, privacy))
        total += float(np.dot(found, found))
    assert math.sqrt(total) <= part.carried.bound <= dp.clip / sites
    honest = 2 * sites // 3 + 1 - dp.colluding
    stated = dp.noise_multiplier * dp.clip / sites / math.sqrt(honest)
    assert part.carried.noise * part.carried.bound == pytest.approx(stated)


def test_what_is_within_the_clip_arrives_as_it_was_on_average() -> None:
    part = still(shares.share(DP, secure(16), SCHEMA, 3, 3))
    change = {"w": np.full(W.size, 0.003), "d": np.zeros(D.size)}
    found = decoded(sent(part, change, 16)["w"], W, 16) / part.weight
    step = 1 / (part.grids["float32"].scale * part.weight)
    assert step > 0.0004  # coarse: rounding to nearest would be off by much
    assert found.mean() == pytest.approx(0.003, abs=6 * step / math.sqrt(W.size))


def test_rounds_that_noise_cannot_protect_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dp.colluding is 3 and of 3 sites 3"):
        shares.share(replaced(colluding=3), secure(), SCHEMA, 3, 3)
    with pytest.raises(Refused, match=r"at least 3"):
        shares.share(DP, secure(), SCHEMA, 2, 2)
    with pytest.raises(ConfigError, match=r"steps of the 16-bit ring wide, needed 4"):
        shares.share(replaced(noise_multiplier=1e-3), secure(16), SCHEMA, 3, 3)
    with pytest.raises(ConfigError, match=r"more than half of the clip 0.01"):
        few = Dp("client", 20.0, 0.01, distributed=True)
        shares.share(few, secure(16), SCHEMA, 3, 3)
    with pytest.raises(UpdateRejected, match=r"norm nan"):
        shares.share(DP, secure(), SCHEMA, 3, 3).factor(float("nan"))


def test_a_level_of_persons_takes_shares_of_one_step_and_no_moving_clip() -> None:
    levels: tuple[Literal["record", "patient"], ...] = ("record", "patient")
    for level in levels:
        accountant.check(Dp(level, 1.0, 1.0, 0.1, distributed=True))
        with pytest.raises(ConfigError, match=rf"dp at {level} level .* and steps=2"):
            accountant.check(Dp(level, 1.0, 1.0, 0.1, 2, distributed=True))
        with pytest.raises(ConfigError, match=r"dp.adaptive without level client"):
            accountant.check(Dp(level, 1.0, 1.0, distributed=True, adaptive=Adaptive()))
    with pytest.raises(ConfigError, match=r"dp.adaptive without level client and distributed"):
        accountant.check(Dp("client", 1.0, 1.0, adaptive=Adaptive()))
    for wrong in (Adaptive(quantile=1.0), Adaptive(rate=0.0), Adaptive(share=-0.1)):
        with pytest.raises(ConfigError, match=r"dp.adaptive: (quantile|rate|share)="):
            accountant.check(replaced(adaptive=wrong))


# ---- the clip that follows -------------------------------------------------------------------


def replaced(
    noise_multiplier: float = 1.5, colluding: int = 1, adaptive: Adaptive | None = None
) -> Dp:
    return Dp(
        "client", noise_multiplier, 2.0, distributed=True, colluding=colluding,
        adaptive=adaptive,
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_updates_and_bits_together_cost_what_is_charged(share: float) -> None:
    dp_accounting = pytest.importorskip("dp_accounting", reason="extra: dp")
    rdp = pytest.importorskip("dp_accounting.rdp")
    dp = replaced(adaptive=Adaptive(share=share))
    orders = list(accountant.ORDERS)
    both = rdp.RdpAccountant(orders)
    for noise in (adaptive.update_noise(dp), 2 * adaptive.count_noise(dp)):
        both.compose(dp_accounting.GaussianDpEvent(noise), 10)
    alone = rdp.RdpAccountant(orders).compose(
        dp_accounting.GaussianDpEvent(dp.noise_multiplier), 10
    )
    assert both.get_epsilon(1e-5) == pytest.approx(alone.get_epsilon(1e-5), rel=1e-9)
    ours = accountant.epsilon(accountant.cost(dp, 10), 1e-5)
    assert ours == pytest.approx(alone.get_epsilon(1e-5), rel=1e-9)
    assert adaptive.update_noise(dp) > dp.noise_multiplier


def test_the_noised_bits_count_who_is_within_the_clip() -> None:
    dp = replaced(adaptive=Adaptive())
    sites, honest, within = 40, 26, 30
    part = shares.share(dp, secure(dp=dp), SCHEMA, sites, sites)
    stream, found = Stream(os.urandom), []
    for _ in range(400):
        bits = [part.bit(1.0 if i < within else 5.0, stream) for i in range(sites)]
        total = np.array(bits, np.uint64).sum(dtype=np.uint64)
        value = float(np.int64(total)) / masked.extra_scale(masked.METRICS)
        found.append(value + 0.5)  # the weights add up to 1
    stated = adaptive.count_noise(dp) / sites * math.sqrt(sites / honest)
    assert np.mean(found) == pytest.approx(within / sites, abs=6 * stated / math.sqrt(400))
    assert np.std(found) == pytest.approx(stated, rel=0.22)  # six deviations of 400


def test_the_clip_finds_the_quantile_and_a_resumed_job_goes_on_exactly() -> None:
    norms = np.random.default_rng(0).lognormal(1.0, 0.4, 200)
    start = Privacy(
        aggregation="secure", range=100.0,
        dp=Dp("client", 1.0, 0.1, distributed=True, adaptive=Adaptive(0.7, 0.3)),
    )  # fmt: skip
    kept: dict[str, float] = {}
    for _ in range(60):
        # From what is stored alone, as a hub reads it that has been started again.
        now = adaptive.of_round(start, json.loads(json.dumps(kept)))
        assert now.dp is not None and now.dp.noise_multiplier == 1.0
        within = float(np.mean(norms <= now.dp.clip))
        kept = adaptive.noted(now, {adaptive.BELOW: within - 0.5})
    assert kept[adaptive.CLIP] == pytest.approx(np.quantile(norms, 0.7), rel=0.05)


def test_the_clip_stays_where_the_ring_can_carry_it() -> None:
    dp = replaced(adaptive=Adaptive(rate=10.0))
    privacy = secure(dp=dp)
    grown = adaptive.of_round(privacy, {adaptive.CLIP: 2.0, adaptive.BELOW: -9.0})
    assert grown.dp is not None and grown.dp.clip == adaptive.ceiling(privacy)
    fallen = adaptive.of_round(privacy, {adaptive.CLIP: 1e-5, adaptive.BELOW: 1e300})
    assert fallen.dp is not None and fallen.dp.clip == adaptive.LEAST
    kept = adaptive.of_round(privacy, {adaptive.CLIP: 0.3})  # no count came out of the sum
    assert kept.dp is not None and kept.dp.clip == 0.3
