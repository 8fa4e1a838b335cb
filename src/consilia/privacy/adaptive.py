"""A clip that follows the updates: a private count of who is within it, round by round.

At client level a clip that is too small holds the model back, and one that is too large drowns
it in noise. So each site counts one bit, whether its update was within the clip; their sum is
masked and noised as the updates are, and the clip moves towards the quantile g of the norms:

    b = (sum of (bit - 1/2) + noise) / sites + 1/2        the share within, as the hub learns it
    C' = C exp(-rate (b - g))          b taken as 0 to 1, C' from LEAST to `ceiling`

**What it costs.** The bits are one more coordinate, of sensitivity 1/2, with noise of standard
deviation sigma. Together with the updates' noise multiplier z' they cost what one Gaussian of
multiplier z = noise_multiplier costs, as 1/z^2 = 1/z'^2 + 1/(2 sigma)^2. `share` of 1/z^2 goes
to the bits: the ledger charges z, whatever the share is.

The clip is no secret: it follows from released sums. The hub keeps two numbers of each version,
the clip and b, and from these alone comes the next clip: a job that is resumed goes on exactly.

Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially private learning with adaptive
clipping" (arXiv:1905.03871), algorithm 1 and theorem 1.
"""

import math
from collections.abc import Mapping

import msgspec

from consilia.errors import ConfigError
from consilia.wire.v1 import Adaptive, Dp, Privacy

BELOW = "below_clip"  # the metric that carries b
CLIP = "hub.clip"  # what the hub notes beside it
REACH = 4.0  # clips that the noise of a sum of three sites and more may add, per multiplier
LEAST = 1e-6  # a clip below it is noise alone


def check(adaptive: Adaptive) -> Adaptive:
    """Return `adaptive`, or raise ConfigError naming the value that makes no rule."""
    for name, found in (("quantile", adaptive.quantile), ("share", adaptive.share)):
        if not 0 < found < 1:
            raise ConfigError(f"dp.adaptive: {name}={found!r}; needed above 0, below 1")
    if not 0 < adaptive.rate <= 10:
        raise ConfigError(f"dp.adaptive: rate={adaptive.rate!r}; needed above 0, at most 10")
    return adaptive


def update_noise(dp: Dp) -> float:
    """Return z', the multiplier of the updates' noise."""
    share = 0.0 if dp.adaptive is None else check(dp.adaptive).share
    return dp.noise_multiplier / math.sqrt(1 - share)


def count_noise(dp: Dp) -> float:
    """Return sigma, the standard deviation of the noise of the count of bits."""
    if dp.adaptive is None:
        raise ConfigError("the clip of this dp is fixed: there is no count to noise")
    return dp.noise_multiplier / (2 * math.sqrt(check(dp.adaptive).share))


def ceiling(privacy: Privacy) -> float:
    """Return the largest clip whose noised sum the ring of `privacy` carries."""
    if privacy.dp is None:
        return privacy.range
    return privacy.range / (1 + REACH * update_noise(privacy.dp))


def moved(clip: float, below: float, adaptive: Adaptive, most: float) -> float:
    """Return the next clip, given the noisy share of sites that were `below` this one."""
    share = min(1.0, max(0.0, below))  # with few sites the noise reaches far beyond
    return min(most, max(LEAST, clip * math.exp(-adaptive.rate * (share - adaptive.quantile))))


def of_round(privacy: Privacy, noted: Mapping[str, float]) -> Privacy:
    """Return the privacy of the next round, given what the last version's metrics are."""
    dp = privacy.dp
    if dp is None or dp.adaptive is None:
        return privacy
    clip, below = noted.get(CLIP), noted.get(BELOW)
    if clip is None:
        return privacy
    most = ceiling(privacy)
    following = clip if below is None else moved(clip, below, dp.adaptive, most)
    return msgspec.structs.replace(privacy, dp=msgspec.structs.replace(dp, clip=following))


def noted(privacy: Privacy, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return what the hub notes of a round under `privacy`: the clip and the share within.

    `metrics` are those of the unmasked sum, where the mean of (bit - 1/2) is under BELOW.
    """
    dp = privacy.dp
    if dp is None or dp.adaptive is None:
        return {}
    below = {BELOW: metrics[BELOW] + 0.5} if BELOW in metrics else {}
    return {CLIP: dp.clip, **below}
