"""Does an update fit its round? Pure rules; a returned text says what was found and needed."""

from consilia.algo.compress import Codec, compressed
from consilia.core.weights import mismatch
from consilia.errors import ConfigError, UpdateRejected
from consilia.privacy import hidden
from consilia.wire import frames
from consilia.wire.metrics import metrics_misfit
from consilia.wire.v1 import Advertisement, Compression, Result, Task

ROUNDING = 4  # advertised counts are rounded down to a multiple of 5


def records_limit(advertised: Advertisement | None, tags: tuple[str, ...]) -> int:
    """Return the most records a site may claim: its largest dataset with all the tags."""
    datasets = () if advertised is None else advertised.datasets
    fitting = [d.records for d in datasets if set(tags) <= set(d.tags)]
    return max(fitting, default=0) + ROUNDING


def result_misfit(
    result: Result, task: Task, update: "frames.Header", base: "frames.Header | None", most: int
) -> str | None:
    """Say why an uploaded update cannot enter the round, or None.

    `base` is the frame the round started from, None in the init round; `most` bounds the
    records that the site may claim for its update.
    """
    return (
        _of_another(result, task, update)
        or metrics_misfit(result.metrics)
        or _fit(result, task, update, base, most)
    )


def _of_another(result: Result, task: Task, update: "frames.Header") -> str | None:
    if (result.job, result.round) != (task.job, task.round):
        return (
            f"the result is of job {result.job!r} round {result.round}, "
            f"its lease of job {task.job!r} round {task.round}"
        )
    if result.model != update.digest:
        return f"the result names frame {result.model}, uploaded was {update.digest}"
    return None


def _fit(
    result: Result,
    task: Task,
    update: "frames.Header",
    base: "frames.Header | None",
    most: int,
) -> str | None:
    if base is None:
        return _absent(update)
    fits = _packed_misfit if task.privacy.compression is not None else _frame_misfit
    return _records_misfit(result, most) or fits(update, base, task)


def masked_misfit(
    result: Result, task: Task, update: "frames.Header", base: "frames.Header"
) -> str | None:
    """Say why a masked update cannot enter its round, or None.

    Only its form can be judged: the values are masked, its records and metrics within them.
    """
    if problem := _of_another(result, task, update):
        return problem
    if result.records != task.total:
        return f"the weight is taken of {result.records} records, asked for {task.total}"
    if any(result.metrics.values()):
        return "a masked update tells the values of its metrics"
    if problem := metrics_misfit(result.metrics) or _absent(update):
        return problem
    if problem := mismatch(update.schema, hidden.schema(base.schema, task.privacy)):
        return f"the masked update does not have the model's shape: {problem}"
    return None


def _records_misfit(result: Result, most: int) -> str | None:
    if 1 <= result.records <= most:
        return None
    return (
        f"the update claims {result.records} records, needed 1 to {most}, "
        "as the site's dataset is advertised"
    )


def _packed_misfit(update: frames.Header, base: frames.Header, task: Task) -> str | None:
    asked = task.privacy.compression or Compression()
    try:
        needed = compressed(base.schema, Codec(asked.bits, asked.keep))
    except ConfigError as e:
        return f"the model cannot be compressed: {e}"
    if problem := mismatch(update.schema, needed):
        return f"the compressed update does not have the model's shape: {problem}"
    return _absent(update)


def _frame_misfit(update: frames.Header, base: frames.Header, _: Task) -> str | None:
    if problem := mismatch(update.schema, base.schema):
        return f"the update does not have the model's shape: {problem}"
    try:
        frames.borrowed(update, base)
    except UpdateRejected as e:
        return str(e)
    return None


def _absent(update: "frames.Header") -> str | None:
    absent = [e.name for e in update.entries if not e.stored]
    if absent:
        return f"the update leaves out tensor {absent[0]!r}; there is no base to take it from"
    return None
