"""One site's part in a noised sum: its clipped update and its share of the noise, in the ring.

    units = round(change * factor * weight * scale / unit) + noise         whole numbers
    sent  = units * unit  modulo the ring, then masked

Every site weighs the same, 1 / N of the N sites that the round was opened with, so that no
count of records is told and none takes more noise than another. `factor` clips the change of
the whole model to `bound`; rounding can make it longer, up to `clip` at most, and that is what
noise is sized for: z clip / N in the sum, of which a site adds z clip / (N sqrt(h)). h is how
many shares are sure to be there and secret: of the sites that sent keys more than two thirds
survive, or no site helps to open the sum (privacy.member), and `colluding` of these may tell
their noise to the hub. The shares of all others come on top. So the hub, with every one of the
colluding sites, still finds noise of the multiplier that each site has charged to its ledger.

The numbers of a masked update are of up to three kinds:

| of the model | grid |
|---|---|
| float32, float16, bfloat16 | every integer of the ring; 32 bits round to nearest, 16 not |
| float64 | every `unit`-th integer of 64 bits: noise is at most 2^26 units wide |
| integers, bool | no change: they carry no noise, so they stay as they were |

Sources: Kairouz, Liu, Steinke 2021, "The distributed discrete Gaussian mechanism" (sums of
shares, proposition 14); McMahan et al. 2018 (equal weights, one clip for the whole update).
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from consilia.core import carried
from consilia.core.carried import Carried
from consilia.core.weights import Schema, TensorSpec
from consilia.errors import ConfigError, UpdateRejected
from consilia.privacy import adaptive, masked
from consilia.privacy.accountant import check
from consilia.privacy.noise import LEAST_SHARE, Stream, discrete_gaussian, sure_shares
from consilia.privacy.streams import Ring
from consilia.wire.v1 import Dp, Privacy

_WIDEST = 26  # binary digits of the largest standard deviation, in units
_SLACK = 1e-9  # of the clip: more than float64 errs when it sums the squares of a norm
_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the tensors of one ring lie."""

    scale: float  # units for 1.0 in the sum
    unit: int  # integers of the ring
    std: float  # of the site's noise, in units


@dataclass(frozen=True, slots=True)
class Share:
    """What a site does with its update. Made by `share`."""

    weight: float
    bound: float  # L2 norm to clip the change to
    grids: dict[str, Grid]  # by dtype of the model's tensor
    count: Grid | None  # of the bit that adaptive clipping counts
    at_random: bool  # how values are rounded
    carried: Carried  # what holds for what is sent, in units of the sum

    def factor(self, norm: float) -> float:
        """Return what to multiply a change of L2 norm `norm` with."""
        if not math.isfinite(norm) or norm < 0:
            raise UpdateRejected(f"an update has the norm {norm!r}, needed a finite number")
        return 1.0 if norm <= self.bound else self.bound / norm

    def bit(self, norm: float, stream: Stream) -> np.uint64:
        """Return the noised number that tells whether the norm was within the bound."""
        if self.count is None:
            return np.uint64(0)
        half = int(self.count.scale * self.weight / 2)  # down: within its sensitivity
        value = half if norm <= self.bound else -half
        noise = int(discrete_gaussian(self.count.std).draw(stream, 1)[0])
        return np.uint64((value + noise) % (1 << 64))


def share(dp: Dp, privacy: Privacy, schema: Schema, sites: int, keyed: int) -> Share:
    """Return what each of `sites` does in a round in which `keyed` of them sent keys.

    Raises ConfigError when the ring is too coarse for the clip, or a share of the noise for
    the sum of shares to be as good as one Gaussian; Refused for fewer than three sites.
    """
    check(dp)
    if privacy.bits == 8:
        raise ConfigError("a share of the noise is lost in steps of 8 bits: use 32 or 16")
    honest = sure_shares(dp, keyed)
    weight = 1 / sites
    std = adaptive.update_noise(dp) * dp.clip * weight / math.sqrt(honest)
    grids = {s.dtype: _grid(s, privacy, std) for s in schema if s.dtype in _FLOATS}
    at_random = privacy.bits == 16
    stages = [_stage(kind, grids[kind], schema, at_random) for kind in sorted(grids)]
    rounding = sum(step * math.sqrt(size) * most for step, size, most in stages) / weight
    bound = dp.clip * (1 - _SLACK) - rounding
    if bound < dp.clip / 2:
        raise ConfigError(
            f"rounding the update to the ring may add {rounding:.3g} to its norm, more than "
            f"half of the clip {dp.clip:g}: use 32 bits, a smaller range, or a larger clip"
        )
    known = carried.clipped(Carried(), bound * weight)
    for step, size, most in stages:
        known = carried.gridded(known, step, size, nearest=most < 1)
    return Share(
        weight,
        bound,
        grids,
        _count(dp, weight, honest) if dp.adaptive is not None else None,
        at_random,
        carried.noised(known, std) if grids else known,
    )


def named(dp: Dp | None) -> str:
    """Name the noise that sites share in one sum, "" where they share none.

    A masked round is bound to it: a hub that tells some sites of less noise than others, whose
    shares would then miss, gets no sum. A clip that adapts follows from sums that all have seen
    and is left out.
    """
    if dp is None or not dp.distributed:
        return ""
    fixed = dp if dp.adaptive is None else replace(dp, clip=1.0)
    body = msgspec.msgpack.encode(fixed)
    return " noise " + hashlib.sha256(b"consilia noise\0" + body).hexdigest()


def write(  # noqa: PLR0913, PLR0917 - what is written, how, where to, with what randomness
    part: Share,
    spec: TensorSpec,
    change: NDArray[np.floating],
    factor: float,
    out: Ring,
    stream: Stream,
    random: Callable[[int], bytes],
) -> None:
    """Write a piece of a tensor's change to `out`, clipped by `factor` and noised.

    One `stream` of noise serves the whole update; `random` gives bytes to round with.
    """
    grid = part.grids.get(spec.dtype)
    if grid is None:
        out[...] = 0
        return
    values = change.astype(np.float64) * (factor * part.weight * grid.scale)
    if part.at_random and out.dtype == np.uint16:
        values += np.frombuffer(random(4 * values.size), "<u4") * 2.0**-32
        np.floor(values, out=values)
    else:
        np.rint(values, out=values)
    units = values.astype(np.int64)
    units += discrete_gaussian(grid.std).draw(stream, units.size)
    out[...] = (units.view(np.uint64) * np.uint64(grid.unit)).astype(out.dtype)


def _grid(spec: TensorSpec, privacy: Privacy, std: float) -> Grid:
    """Return the grid of a tensor's ring, for noise of `std` in the sum's own unit."""
    scale = masked.scale(spec, privacy)
    unit = 1
    if spec.dtype == "float64":
        unit = 1 << max(0, math.frexp(std * scale)[1] - _WIDEST)
    found = Grid(scale / unit, unit, std * scale / unit)
    if found.std < LEAST_SHARE:
        raise ConfigError(
            f"a share of the noise is {found.std:.3g} steps of the {privacy.bits}-bit ring "
            f"wide, needed {LEAST_SHARE:g}: use 32 bits, a smaller range, or more noise"
        )
    return found


def _stage(kind: str, grid: Grid, schema: Schema, at_random: bool) -> tuple[float, int, float]:
    """Return step, values, and steps that rounding moves each by, of all tensors of a kind."""
    size = sum(spec.size for spec in schema if spec.dtype == kind)
    return 1 / grid.scale, size, 1.0 if at_random and kind != "float64" else 0.5


def _count(dp: Dp, weight: float, honest: int) -> Grid:
    scale = masked.extra_scale(masked.METRICS)
    return Grid(scale, 1, adaptive.count_noise(dp) * weight * scale / math.sqrt(honest))
