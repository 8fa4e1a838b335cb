"""Sums over a site's records with differential privacy: what leaves for a question with noise.

As node.statistics, but for the rules: there are no thresholds and no memory of answers. What
the answer costs is reserved in the site's ledger before the worker runs (node.spending), and
settled as it leaves. Noise is whole numbers, added before the mask: all of it at each site, or
in a masked sum this site's share. Nothing about the records decides whether there is an answer.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Weights
from consilia.data.loading import blocks
from consilia.errors import ConfigError, Refused
from consilia.node.spending import dp_of
from consilia.privacy.noise import Stream, discrete_gaussian
from consilia.stats import private
from consilia.wire.v1 import Dp, Statistics, Task


def objection(task: Task, patient: str, plan: bytes = b"") -> str:
    """Say why a dataset cannot answer with the privacy asked for, "" where it can.

    `patient` is its column of patient ids, "" for none; `plan` its data loading plan, b"" for
    none. Where that fills gaps with a median, one person can change the values of all whose
    own is missing: no noise is sized for that, in training as little as here.
    """
    dp = dp_of(task)
    if dp is None or dp.level == "client":
        return ""
    if plan and blocks.mixes(blocks.from_bytes(plan)):
        return (
            "the dataset's loading plan fills missing values with a median of all its records: "
            "one of them may change many, and differential privacy would not hold; needed is "
            "do: constant, drop or keep"
        )
    if task.kind != "statistics" or dp.level != "patient" or patient:
        return ""
    return (
        "patient level needs a dataset that is registered with its column of patient ids "
        "(consilia dataset add --patient); or ask at record level"
    )


def noised(
    columns: Weights, asked: Statistics, dp: Dp, keyed: int, random: Callable[[int], bytes]
) -> NDArray[np.uint64]:
    """Return the answer of a site's records, with noise; `keyed` sites have sent keys.

    `random` gives secret bytes. Raises Refused where the noise would not be what is promised.
    """
    try:
        std = private.share(asked, dp, keyed)
        found = private.totals(columns, asked, int(dp.clip))
        found += discrete_gaussian(std).draw(Stream(random), found.size)
    except ConfigError as error:
        raise Refused(f"noise cannot protect this answer: {error}") from None
    return found.view(np.uint64)


def described(asked: Statistics, dp: Dp) -> str:
    """Say for the site's trail what noise an answer carries."""
    how = "a share of the noise" if dp.distributed else "all of the noise"
    return (
        f"{how} of {dp.noise_multiplier:g} times {private.sensitivity(asked, dp):.4g} records "
        f"({private.blocks(asked)} blocks, {dp.clip:g} records of a patient), {dp.level} level"
    )
