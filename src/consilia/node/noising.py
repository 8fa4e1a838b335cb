"""A masked update with this site's share of the noise: what differs from one without.

The site weighs as much as any other, its change is clipped to one norm over the whole model,
whole numbers of noise are added in the ring, and only then the mask. No metric goes with it
but, where the clip adapts, the noised bit that says whether this update was within it.

Where a round is one step at record or patient level (privacy.gradients), what the worker gives
is not a model but its sum of clipped gradients, in whole numbers: it is noised as it is.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consilia.algo.strategy import steps
from consilia.core.weights import Array, Schema, TensorSpec
from consilia.errors import ConfigError, Refused, UpdateRejected
from consilia.node import clip
from consilia.privacy import adaptive, gradients, masked, ring, secagg, shares
from consilia.privacy.noise import Stream, discrete_gaussian
from consilia.privacy.streams import Ring, random_of
from consilia.wire import frames, masks
from consilia.wire.v1 import MAX_METRICS, Dp, Metrics, Task

Random = Callable[[int], bytes]


def metrics(dp: Dp) -> Metrics:
    """Return the metrics that such an update names: of the site's own none may leave."""
    return {adaptive.BELOW: 0.0} if dp.adaptive is not None else {}


def part(task: Task, dp: Dp, schema: Schema, roster: bytes) -> shares.Share:
    """Return this site's part in the sum; Refused when the noise would not be what is stated.

    `roster` is as the site has received it: it says how many sites have sent keys.
    """
    try:
        keyed = len(masks.read_roster(roster).keys)
        return shares.share(dp, task.privacy, schema, len(task.cohort), keyed)
    except ConfigError as e:
        raise Refused(f"shares of noise cannot protect this round: {e}") from None


def mask(  # noqa: PLR0913, PLR0917 - what is masked, with what, where to
    task: Task,
    dp: Dp,
    member: secagg.Member,
    masker: secagg.Masker,
    update: Path,
    base: Path,
    out: Path,
    random: Random,
) -> frames.Header:
    """Write the clipped, noised and masked form of an update to `out`; return its header."""
    with frames.opened(update) as new, frames.opened(base) as old, out.open("wb") as file:
        header = frames.read_header(new)
        mine = part(task, dp, header.schema, member.roster)
        writer = frames.FrameWriter(
            file.fileno(), masked.schema(header.schema, task.privacy.bits)
        )
        norm, noise, rounding = _norm(new, old, header), Stream(random), random_of(random(32))
        for numbers in _extra(mine, norm, noise):
            masker.mask(numbers)
            writer.append(frames.raw_bytes(numbers))
        factor = mine.factor(norm)
        hidden = masked.schema(header.schema, task.privacy.bits)[len(masked.EXTRA) :]
        for spec, sent in zip(header.schema, hidden, strict=True):
            for change in clip.changes(new, old, spec, frames.CHUNK):
                numbers = masked.empty(sent.dtype, change.size)
                shares.write(mine, spec, change, factor, numbers, noise, rounding)
                masker.mask(numbers)
                writer.append(frames.raw_bytes(numbers))
        return writer.finish()


def mask_sum(  # noqa: PLR0913, PLR0917 - what is masked, with what, where to
    task: Task,
    dp: Dp,
    member: secagg.Member,
    masker: secagg.Masker,
    sums: Path,
    base: Path,
    out: Path,
    weight: float,
    random: Random,
) -> frames.Header:
    """Write the noised and masked form of a sum of gradients to `out`; return its header.

    `weight` is the site's share of the units. Refused where the noise would not be what is
    stated, UpdateRejected for what is no sum of whole numbers.
    """
    with frames.opened(sums) as new, frames.opened(base) as old, out.open("wb") as file:
        header = frames.read_header(new)
        std, most = _sum_share(task, dp, header.schema, member.roster)
        hidden = masked.schema(header.schema, task.privacy.bits)
        writer, noise = frames.FrameWriter(file.fileno(), hidden), Stream(random)
        for spec, values in zip(masked.EXTRA, (np.ones(1), np.zeros(MAX_METRICS)), strict=True):
            numbers = masked.empty(spec.dtype, spec.size)
            ring.quantise(values, masked.extra_scale(spec.name), weight, numbers)
            masker.mask(numbers)
            writer.append(frames.raw_bytes(numbers))
        for spec, sent in zip(header.schema, hidden[len(masked.EXTRA) :], strict=True):
            for piece in clip.values(new, old, spec, frames.CHUNK):
                numbers = masked.empty(sent.dtype, piece.size)
                if spec.dtype in gradients.KINDS:
                    units = _whole(spec, piece, most)
                    units += discrete_gaussian(std).draw(noise, units.size)
                    numbers[...] = units.view(np.uint64).astype(numbers.dtype)
                else:
                    numbers[...] = 0
                masker.mask(numbers)
                writer.append(frames.raw_bytes(numbers))
        return writer.finish()


def _sum_share(task: Task, dp: Dp, schema: Schema, roster: bytes) -> tuple[float, int]:
    """Return the site's noise and its largest coordinate, in steps; Refused when none is."""
    try:
        if problem := gradients.misfit(schema, task.privacy):
            raise ConfigError(problem)
        return gradients.share(dp, len(task.cohort), len(masks.read_roster(roster).keys))
    except ConfigError as e:
        raise Refused(f"shares of noise cannot protect this round: {e}") from None


def _whole(spec: TensorSpec, piece: Array, most: int) -> NDArray[np.int64]:
    """Return a piece of a sum as whole numbers, each cut to `most`."""
    wide = piece.astype(np.float64)
    if not np.isfinite(wide).all() or (wide != np.rint(wide)).any():
        raise UpdateRejected(
            f"tensor {spec.name!r} is no sum of gradients in whole steps: the round asks for "
            "one, and the plan gave something else"
        )
    return np.clip(wide, -most, most).astype(np.int64)


def _norm(new: int, old: int, header: frames.Header) -> float:
    """Return the L2 norm of the very numbers that are written, over the float tensors."""
    total = 0.0
    for spec in header.schema:
        if steps(spec):
            for change in clip.changes(new, old, spec, frames.CHUNK):
                wide = change.astype(np.float64)
                total += float(np.dot(wide, wide))
    return math.sqrt(total)


def _extra(mine: shares.Share, norm: float, noise: Stream) -> Iterator[Ring]:
    """Yield the weight, and the slots of metrics: the bit in the first, zeros."""
    weight, metric = masked.EXTRA
    numbers = masked.empty(weight.dtype, weight.size)
    ring.quantise(np.ones(weight.size), masked.extra_scale(weight.name), mine.weight, numbers)
    yield numbers
    slots = np.zeros(metric.size, np.uint64)
    slots[0] = mine.bit(norm, noise)
    yield slots
