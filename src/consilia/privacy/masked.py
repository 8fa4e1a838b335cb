"""What a masked update is made of: its schema, its context, its numbers in the ring.

A site sends, for every tensor of the model, its change weighted by the site's share of the
records: w * (new - old) with w = n / total, n its own records and `total` what the whole
cohort advertises. The shares of a cohort add up to 1 at most, so a sum stays within the range
that each change keeps to, and no bits are set aside for it. The sum of the w is one more masked
number; the mean is the sum of the changes over it. Nobody learns a site's n.

| of the model | of the masked update | numbers |
|---|---|---|
| - | `WEIGHT`, uint64, 1 element | w * 1, in steps of 2**-62 |
| - | `METRICS`, uint64, MAX_METRICS elements | w * value, in steps of 2**-24, by sorted name |
| float32, float16, bfloat16 | uint32, 16 or 8, same shape | w * change, as far as `range` |
| float64 | uint64, same shape | w * change, as far as `range` |
| integers, bool | uint64, same shape | w * change, in steps of 2**-24 |

Where sites share the noise of one step (privacy.gradients), floats are sums of gradients in
whole steps, and not weighted: their sum over the units is what w tells.
"""

import msgspec
import numpy as np

from consilia.core.weights import Schema, TensorSpec
from consilia.errors import WireError
from consilia.privacy import gradients, ring
from consilia.privacy.streams import Ring
from consilia.wire.v1 import MAX_METRICS, Privacy

WEIGHT, METRICS = "consilia.weight", "consilia.metrics"
_DOMAIN = "consilia masked round 1"
_COUNT_SCALE = float(1 << 24)  # of integers and metrics: they reach to 2**39
_WEIGHT_SCALE = float(1 << 62)
EXTRA: Schema = (
    TensorSpec(WEIGHT, "uint64", (1,)),
    TensorSpec(METRICS, "uint64", (MAX_METRICS,)),
)
_SMALL = ("float32", "float16", "bfloat16")


def schema(base: Schema, bits: int) -> Schema:
    """Return the schema of a masked update of a model of schema `base`."""
    return (*EXTRA, *(_masked(spec, bits) for spec in base))


def scale(spec: TensorSpec, privacy: Privacy, total: int = 1) -> float:
    """Return how many steps of the ring a change of 1.0 in the model's tensor `spec` takes.

    `total` counts what weights are shares of: sums of gradients depend on it.
    """
    if (
        spec.dtype in gradients.KINDS
        and privacy.dp is not None
        and gradients.applies(privacy.dp)
    ):
        return gradients.scale(privacy.dp, total)
    if spec.dtype in _SMALL:
        return ring.scale_of(privacy.bits, privacy.range)
    if spec.dtype == "float64":
        return ring.scale_of(64, privacy.range)
    return _COUNT_SCALE


def extra_scale(name: str) -> float:
    """Return how many steps of the ring 1.0 takes in WEIGHT or METRICS."""
    return _WEIGHT_SCALE if name == WEIGHT else _COUNT_SCALE


def empty(dtype: str, size: int) -> Ring:
    """Return `size` numbers of a masked tensor's ring, not set yet."""
    if dtype == "uint8":
        return np.empty(size, np.uint8)
    if dtype == "uint16":
        return np.empty(size, np.uint16)
    return np.empty(size, np.uint32) if dtype == "uint32" else np.empty(size, np.uint64)


def context(lease: str, model: str, cohort: tuple[str, ...]) -> bytes:
    """Return what binds keys, shares and signatures to one attempt at one round of one job.

    Raises WireError for a lease's id that does not tell job, round and attempt.
    """
    parts = lease.split(".", 3)
    if len(parts) < 4:
        raise WireError(f"lease {lease[:80]!r} does not name job, round, attempt and site")
    return msgspec.msgpack.encode((_DOMAIN, *parts[:3], model, cohort))


def _masked(spec: TensorSpec, bits: int) -> TensorSpec:
    return TensorSpec(spec.name, f"uint{bits if spec.dtype in _SMALL else 64}", spec.shape)
