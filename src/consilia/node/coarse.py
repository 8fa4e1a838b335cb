"""A masked update of 8 bits: a quarter of float32's bytes, and what they leave out kept.

    p = change + memory     c = p cut to the clip     sent = round(weight * c * scale)
    memory' = p - sent / (weight * scale)

Each site's numbers are whole steps of a ring of 256; the site's steps are 1 / weight as large
as those of the sum. Rounding at random keeps the mean right, and what a round has lost is
tried again in the next (node.compressing keeps it, at this site only), so that over a job the
sum of what was sent is never more than one step of the site behind what was trained. The
change of one round has to be within the range as at 16 and 32 bits; what earlier rounds left
over may not fit beside it, and then waits.

The clip holds for what is sent, so it comes after the memory is added. Nothing of this hides
anything: the mask does. Noise in shares would drown in steps this wide, so it is refused.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from consilia.algo.aggregate import Accumulator
from consilia.algo.compress import GROUP
from consilia.algo.strategy import steps
from consilia.core import carried
from consilia.core.carried import Carried
from consilia.core.weights import DTYPES, Schema, TensorSpec
from consilia.errors import Refused, UpdateRejected
from consilia.node import clip
from consilia.node.compressing import Feedback, clipping
from consilia.node.spending import dp_of
from consilia.privacy import masked, ring, secagg
from consilia.privacy.streams import Ring
from consilia.wire import frames
from consilia.wire.v1 import Lease, Privacy

BITS = 8
Random = Callable[[int], bytes]
Rounding = Callable[[TensorSpec], Random]  # a tensor's own random bytes


def applies(privacy: Privacy) -> bool:
    """Tell whether updates are masked in the ring of 8 bits."""
    return privacy.aggregation == "secure" and privacy.bits == BITS


def feeds(privacy: Privacy) -> bool:
    """Tell whether what an update leaves out is kept for the next round."""
    return privacy.compression is not None or applies(privacy)


def kept(schema: Schema) -> Schema:
    """Return the tensors of which something is left out: those that go into the small ring."""
    hidden = masked.schema(schema, BITS)[len(masked.EXTRA) :]
    pairs = zip(schema, hidden, strict=True)
    return tuple(TensorSpec(s.name, "float32", s.shape) for s, h in pairs if h.dtype == "uint8")


def mask(  # noqa: PLR0913, PLR0917 - what is masked, with what, where to
    lease: Lease,
    masker: secagg.Masker,
    weight: float,
    paths: tuple[Path, Path, Path],
    feedback: Feedback,
    bound: float,
    rounding: Rounding,
    head: Callable[[frames.FrameWriter], None],
) -> tuple[frames.Header, Carried]:
    """Write the masked form of an update; return its header and what holds for it.

    `paths` are those of the update, the base model, and what is written; `bound` is the L2 norm
    to clip to, 0 for none; `head` writes what goes before the model's tensors. Raises
    UpdateRejected for a change beyond the range.
    """
    privacy = lease.task.privacy
    update, base, out = paths
    feedback.prepare()
    with frames.opened(update) as new, frames.opened(base) as old:
        schema = frames.read_header(new).schema
        left = kept(schema)
        dp = dp_of(lease.task)
        given = Carried() if dp is None else clip.carried_of(dp, schema)
        with (
            feedback.remembered(lease.task, left) as memory,
            out.open("wb") as file,
            feedback.remembering(lease, bool(left)) as rest,
        ):
            factor, known = clipping(new, old, schema, memory, bound, carried.fed_back(given))
            writer = frames.FrameWriter(file.fileno(), masked.schema(schema, BITS))
            saved = frames.FrameWriter(rest, left) if left else None
            head(writer)
            for spec in schema:
                made = _Tensor(spec, privacy, weight, factor if steps(spec) else 1.0)
                size = GROUP * DTYPES[spec.dtype].itemsize
                changes = clip.changes(new, old, spec, size)
                for numbers, lost in made.numbers(changes, memory.pieces(spec), rounding(spec)):
                    if lost is not None and saved is not None:
                        saved.append(frames.raw_bytes(lost.astype(np.float32)))
                    masker.mask(numbers)
                    writer.append(frames.raw_bytes(numbers))
            if saved is not None:
                saved.finish()
            return writer.finish(), _stated(known, schema, privacy, weight)


class _Tensor:
    """How the pieces of one tensor become numbers of the ring."""

    def __init__(
        self, spec: TensorSpec, privacy: Privacy, weight: float, factor: float
    ) -> None:
        (hidden,) = masked.schema((spec,), BITS)[len(masked.EXTRA) :]
        self._name = spec.name
        self._kind = hidden.dtype
        self._scale = masked.scale(spec, privacy)
        self._weight = weight
        self._factor = factor

    def numbers(
        self, changes: Iterator[Accumulator], waiting: Iterator[ring.Floats], random: Random
    ) -> Iterator[tuple[Ring, ring.Floats | None]]:
        """Yield a tensor's numbers, piece by piece, and what each leaves out, if anything."""
        for change in changes:
            if self._kind == "uint8":
                yield self.coarse(change, next(waiting), random)
            else:
                yield self.whole(change), None

    def whole(self, change: ring.Floats) -> Ring:
        """Return a change as numbers of the ring of 64 bits, which leaves nothing out."""
        numbers = masked.empty(self._kind, change.size)
        with _naming(self._name):
            ring.quantise(change * self._factor, self._scale, self._weight, numbers)
        return numbers

    def coarse(
        self, change: ring.Floats, waiting: ring.Floats, random: Random
    ) -> tuple[Ring, ring.Floats]:
        """Return a change, with what waited, as numbers of 8 bits, and what waits now."""
        numbers = masked.empty(self._kind, change.size)
        with _naming(self._name):
            ring.require_within(change, self._scale, BITS)
            whole = (change.astype(np.float64) + waiting) * self._factor
            return numbers, ring.coarse(whole, self._scale, self._weight, numbers, random)


@contextlib.contextmanager
def _naming(tensor: str) -> Iterator[None]:
    """Put a tensor's name before what is wrong with its values."""
    try:
        yield
    except UpdateRejected as e:
        raise UpdateRejected(f"tensor {tensor!r}: {e}") from None


def _stated(known: Carried, schema: Schema, privacy: Privacy, weight: float) -> Carried:
    """Return what holds after rounding, in the unit of the site's own change."""
    for kind in sorted({spec.dtype for spec in schema if steps(spec)}):
        of_kind = tuple(spec for spec in schema if spec.dtype == kind)
        size, nearest = sum(spec.size for spec in of_kind), kind == "float64"
        step = 1 / (masked.scale(of_kind[0], privacy) * weight)
        known = carried.gridded(known, step, size, nearest=nearest)
    return known


def require(privacy: Privacy, sites: int) -> None:
    """Raise Refused where a round of 8 bits cannot be: too many sites, or shares of noise."""
    if not applies(privacy):
        return
    if sites > ring.COARSE_SITES:
        raise Refused(
            f"{sites} sites would add up numbers of 8 bits, at most {ring.COARSE_SITES} fit"
        )
    if privacy.dp is not None and privacy.dp.distributed:
        raise Refused("a share of the noise is lost in steps of 8 bits: 16 or 32 are needed")
