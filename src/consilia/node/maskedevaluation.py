"""A model measured here for a masked sum: the hub learns what all sites found together.

As node.evaluating, with the same rule about few records, and with stats.summedscores in place
of metrics: the vector says nothing of fewer than k records before it is masked. Where the job
is one of differential privacy, the vector is counts in cells with this site's share of the
noise; what it costs was reserved before the worker ran (node.spending).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from consilia.errors import ConfigError, DataError, Refused, WorkerError
from consilia.node.evaluating import Predictions
from consilia.privacy.disclosure import Rules
from consilia.privacy.noise import LEAST_SHARE, Stream, discrete_gaussian, sure_shares
from consilia.stats import summedscores
from consilia.stats.scores import estimates, gains
from consilia.wire.v1 import Dp, Evaluation, Task

Random = Callable[[int], bytes]


def masks_evaluation(task: Task) -> bool:
    """Tell whether a task's answer is a vector in a masked sum."""
    return task.kind == "evaluate" and task.privacy.aggregation == "secure"


def vector(found: Predictions, asked: Evaluation, rules: Rules) -> NDArray[np.uint64]:
    """Return this site's vector; Refused where it would tell of fewer than k records."""
    few = min([len(found.scores), *(int(side.sum()) for side in found.sides())])
    if few < max(rules.k, 1):
        raise Refused("the hold-out is too small for anything to be told of it")
    try:
        whole = estimates(found.predicts, found.scores, found.targets)
        alone = {}
        if found.local is not None:
            alone = estimates(found.predicts, found.local, found.targets)
        return summedscores.vector(
            found.predicts,
            found.scores,
            found.targets,
            bins=asked.bins,
            k=rules.k,
            measures=whole,
            gain=gains(whole, alone),
            local=alone,
        )
    except DataError as error:
        raise WorkerError(str(error), "plan-contract") from None


def noised(
    found: Predictions, asked: Evaluation, dp: Dp, keyed: int, random: Random
) -> NDArray[np.uint64]:
    """Return this site's vector with its share of the noise; `keyed` sites have sent keys.

    A record is in one cell, so z is the deviation of the noise that the sum must carry. Of
    `keyed` sites a threshold survives, or nothing is opened, and `dp.colluding` of these may
    tell the hub their noise: the others' shares alone make up z. Nothing about how many
    records or cases there are decides whether the site answers.
    """
    if dp.level != "record" or dp.clip != 1:
        raise Refused(
            f"an evaluation with noise at {dp.level} level and a clip of {dp.clip:g}; needed "
            "record level and 1"
        )
    try:
        # What the records are must not show in whether there is an answer: only their form.
        estimates(found.predicts, found.scores, found.targets)
        std = dp.noise_multiplier * summedscores.UNIT / math.sqrt(sure_shares(dp, keyed))
        if not std >= LEAST_SHARE:
            raise ConfigError(
                f"a share of the noise is {std:.3g} steps, needed {LEAST_SHARE:g}"
            )
        noise = discrete_gaussian(std)
        drawn = noise.draw(Stream(random), 2 * asked.bins)
        return summedscores.noised_vector(
            found.predicts, found.scores, found.targets, drawn, asked.bins
        )
    except ConfigError as error:
        raise Refused(str(error)) from None
    except DataError as error:
        raise WorkerError(str(error), "plan-contract") from None
