"""Named numbers that a task reports: one rule for the plan, the node's release and the hub.

Names are plain words, because people read them on their terminals and a free text would be a
way out for data. A plan that breaks the rule learns it where it reports, not at the hub.
"""

import math
import re
from collections.abc import Mapping

from consilia.wire.v1 import MAX_METRIC_NAME, MAX_METRICS

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_METRIC_NAME - 1}}}")


def name_misfit(name: object) -> str | None:
    """Say why something cannot name a metric, or None."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return None
    return (
        f"metric name {str(name)[:80]!r} is not allowed: 1 to {MAX_METRIC_NAME} of "
        "A-Z a-z 0-9 _ . - with a letter or digit first"
    )


def metrics_misfit(metrics: Mapping[str, float]) -> str | None:
    """Say why the named numbers of a report cannot travel or be kept, or None."""
    if len(metrics) > MAX_METRICS:
        return f"{len(metrics)} metrics, at most {MAX_METRICS} are allowed"
    for name, value in metrics.items():
        if problem := name_misfit(name):
            return problem
        if not math.isfinite(value):
            return f"metric {name!r} is {value}, needed a finite number"
    return None
