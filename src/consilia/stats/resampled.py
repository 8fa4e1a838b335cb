"""A metric over the folds of a cross-validation, and how far it can be trusted.

The folds of one cross-validation are not independent: the models of any two share most of their
training records. The variance of a mean over them is therefore larger than that of so many
independent results, and no unbiased estimate of it exists. Used here is the corrected resampled
variance: with J results of sample variance S² and training sets that are n₁ / n₂ times as large
as what was held out,

    variance = (1 / J + n₂ / n₁) S²        with Student's t of J - 1 degrees of freedom

In K folds n₂ / n₁ is 1 / (K - 1). The 1 / J alone is what independent results would have.

Sources: Nadeau, Bengio 2003, Inference for the generalization error, Machine Learning 52,
section 4.3; Bengio, Grandvalet 2004, JMLR 5, for there being no unbiased one; Abramowitz and
Stegun 1964, 26.7.3 and 26.7.4, for Student's t with whole degrees of freedom.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import atan, cos, pi, sin, sqrt

from consilia.errors import ConfigError
from consilia.stats.pooling import Z

_LARGEST = 1e6  # of a t that is looked for; with one degree of freedom it is 12.7


@dataclass(frozen=True, slots=True)
class OverFolds:
    """A mean over folds, its standard error, and how many of these a 95 % interval has."""

    value: float
    error: float
    reach: float


def over_folds(values: Sequence[float], errors: Sequence[float], folds: int) -> OverFolds:
    """Return the mean of a metric over the folds that told it; one of them at least.

    `errors` are the standard errors of the single values: what the choice of held-out records
    alone would make of them. Where folds agree by chance more than those allow, the interval
    is that of the errors. One value has no spread between folds, so it has its error alone.
    `folds` is into how many the records were dealt, 2 or more.
    """
    if folds < 2 or not 1 <= len(values) <= folds:
        raise ConfigError(
            f"folds: found {len(values)} values of {folds} folds, needed 1 or more values of 2 "
            "or more folds"
        )
    count = len(values)
    mean = sum(values) / count
    sampling = sqrt(sum(error**2 for error in errors)) / count
    if count == 1:
        return OverFolds(mean, sampling, Z)
    spread = sum((value - mean) ** 2 for value in values) / (count - 1)
    corrected = sqrt((1 / count + 1 / (folds - 1)) * spread)
    reach = student(count - 1)
    if corrected * reach >= sampling * Z:
        return OverFolds(mean, corrected, reach)
    return OverFolds(mean, sampling, Z)


@cache
def student(freedom: int, inside: float = 0.95) -> float:
    """Return the t that Student's t stays within, on both sides, with probability `inside`.

    `freedom` is 1 or more. To 1e-9.
    """
    low, high = 0.0, _LARGEST
    while high - low > 1e-9 * max(1.0, low):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < inside else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """Return the probability that Student's t lies between -t and t."""
    angle = atan(t / sqrt(freedom))
    odd = freedom % 2
    if freedom == 1:
        return 2 * angle / pi
    term = cos(angle) if odd else 1.0
    total = term
    for step in range(1, (freedom - 1) // 2 if odd else freedom // 2):
        above, below = (2 * step, 2 * step + 1) if odd else (2 * step - 1, 2 * step)
        term *= cos(angle) ** 2 * above / below
        total += term
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
