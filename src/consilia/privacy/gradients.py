"""One noisy step of all sites together: what is summed is gradients, what is noised their sum.

At record and patient level a site that trains by itself needs all of the noise at every step,
since its second step builds on its first. When a round is one step, sites can share it:

    draw each unit with probability q                                   privacy.sampling
    x_i = gradient * min(1, bound / |gradient|), in whole steps         plans.dp
    S   = - sum of x_i over the drawn, each coordinate cut to `most`    at each site
    S + share of the noise, masked                                      node.noising
    change = sum over the sites / (q * units)                           hub.masking

and the hub's strategy takes its step along the change. That is DP-SGD over all records of all
sites, with noise z clip / (q units) for the whole consortium instead of for each site. Nobody,
the hub included, ever sees a sum without noise.

**Sensitivity.** One unit changes the sum of the sites by one x_i, of norm `clip` at most, in
whole steps of clip / UNITS. Cutting a coordinate moves no two sums further apart, so `most`
costs nothing; it keeps a site's sum exact in a float32 and the consortium's within the ring.

**Noise.** A site adds a discrete Gaussian of z UNITS / sqrt(h) steps, h the shares that are
sure to be there and secret (privacy.shares): the sum carries noise of z clip at least. With
Poisson sampling each round costs what one step of DP-SGD costs, and rounds add up, so the
accountant and the ledger charge this as they charge a private round of one step.

Sources: Abadi et al. 2016 (DP-SGD); Kairouz, Liu, Steinke 2021, "The distributed discrete
Gaussian mechanism" (shares in a masked sum); McMahan et al. 2017 (FedSGD, one step a round).
"""

import math

from consilia.core.weights import Schema
from consilia.errors import ConfigError
from consilia.privacy.noise import LEAST_SHARE, Grid, sure_shares, whole_grid
from consilia.wire.v1 import Dp, Privacy

UNITS = 1 << 14  # whole steps in one clip
EXACT = 1 << 24  # whole numbers up to it are exact in float32
KINDS = ("float32", "float64")  # of the model's tensors that can carry a sum
_RING = 1 << 31  # the sum stays below it: rings of 32 bits, or 64
_REACH = 12  # standard deviations of the noise that a sum leaves room for


def applies(dp: Dp | None) -> bool:
    """Tell whether a round sums gradients of persons, with shares of the noise."""
    return dp is not None and dp.distributed and dp.level != "client"


def grid(dp: Dp, size: int) -> Grid:
    """Return how gradients of `size` coordinates become whole steps.

    Raises ConfigError where rounding would take more than half of the clip.
    """
    return whole_grid(dp, size, dp.clip / UNITS, dp.noise_multiplier * UNITS)


def scale(dp: Dp, total: int) -> float:
    """Return how many steps of the sum a change of 1.0 takes, if the sites' weights add to 1.

    `total` counts the units that weights are shares of.
    """
    return dp.sampling * total * UNITS / dp.clip


def share(dp: Dp, sites: int, keyed: int) -> tuple[float, int]:
    """Return a site's noise and the largest coordinate of its sum, both in steps.

    `keyed` of `sites` have sent keys. Raises ConfigError when no share is left to count on, or
    the sum of so many sites has no room.
    """
    honest = sure_shares(dp, keyed)
    std = dp.noise_multiplier * UNITS / math.sqrt(honest)
    if std < LEAST_SHARE:
        raise ConfigError(
            f"a share of the noise is {std:.3g} steps wide, needed {LEAST_SHARE:g}: "
            "ask for a larger noise_multiplier"
        )
    room = _RING - math.ceil(_REACH * std * math.sqrt(sites)) - 1
    most = min(EXACT, room // sites)
    if most < UNITS:
        raise ConfigError(
            f"the gradients of {sites} sites with noise_multiplier {dp.noise_multiplier:g} do "
            f"not fit a ring of 32 bits: {most} steps are left for each, needed {UNITS}; ask "
            "for less noise"
        )
    return std, most


def misfit(schema: Schema, privacy: Privacy) -> str | None:
    """Say why sums of gradients of a model of `schema` cannot travel, or None."""
    if privacy.bits != 32:
        return f"sums of gradients need privacy.bits 32, found {privacy.bits}"
    odd = [s for s in schema if s.dtype in ("float16", "bfloat16")]
    if odd:
        return (
            f"tensor {odd[0].name!r} is {odd[0].dtype}, which holds no sum of gradients: "
            "keep the model in float32"
        )
    return None
