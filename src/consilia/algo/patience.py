"""Early stopping: has a metric stopped getting better?

The rule of Prechelt (1998, "Early stopping - but when?", criterion UP in its simplest form):
training ends when the best value lies `rounds` rounds back. A value counts as better only by
more than `least`. Rounds without the metric count as no better, NaN likewise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Literal

from consilia.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Patience:
    """When to stop waiting for a better value."""

    metric: str
    better: Literal["lower", "higher"]
    rounds: int
    least: float


def check(patience: Patience) -> None:
    """Raise ConfigError naming the first setting that makes no sense."""
    if not patience.metric:
        raise ConfigError("early_stop.metric is empty; name a metric that the plan reports")
    if patience.rounds < 1:
        raise ConfigError(f"early_stop.rounds is {patience.rounds}, needs to be 1 or more")
    if not 0 <= patience.least < inf:
        raise ConfigError(f"early_stop.least is {patience.least:g}, needs to be 0 or more")


def enough(values: Sequence[float | None], patience: Patience) -> str:
    """Return why training ends after the last of `values`, one a round; "" when it goes on."""
    sign = 1.0 if patience.better == "lower" else -1.0
    best, at = inf, 0
    for number, value in enumerate(values, 1):
        if value is not None and not isnan(value) and sign * value < best - patience.least:
            best, at = sign * value, number
    if not at or len(values) - at < patience.rounds:
        return ""
    return (
        f"ended early: {patience.metric} was best, {sign * best:.6g}, {patience.rounds} rounds "
        f"before"
    )
