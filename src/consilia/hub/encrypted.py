"""Encrypted rounds at the hub: check ciphertexts, add them, take in the sum a site has opened.

The hub holds public parameters, sealed keys and ciphertexts. It adds the survivors' updates
cell by cell, straight from their spools into a frame that the survivors may fetch: in memory
are two ciphertexts, however large the model. One survivor opens that sum and uploads it, which
is all that the hub ever sees in the clear.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np

from consilia.algo.aggregate import Accumulator, Read, accumulator, cast, widen_into
from consilia.core.round import JobState
from consilia.core.weights import Array, Schema, TensorSpec, mismatch
from consilia.errors import EmptyRound, StorageError, UpdateRejected, WireError
from consilia.hub.blobs import Blob, Blobs
from consilia.privacy import ckks, encrypted
from consilia.privacy.masked import EXTRA
from consilia.wire import frames, masks
from consilia.wire.frames import Header
from consilia.wire.v1 import decode

# No lease has these endings: the name of a site never ends in a hyphen.
_OPENED, _SUM = ".opened-", ".sum-"
_SLACK = 1e-3  # of the weights' sum: the flooding noise is far less


def opened_of(lease: str) -> str:
    """Return the name under which the opened sum is uploaded by the site of a lease."""
    return lease + _OPENED


def lease_of(name: str) -> str | None:
    """Return the lease of an opened sum's name, None for a name that is none."""
    return name.removesuffix(_OPENED) if name.endswith(_OPENED) else None


def sum_of(lease: str) -> str:
    """Return the name of the spool with the encrypted sum of a lease's round."""
    return ".".join(lease.split(".", 3)[:3]) + _SUM


def is_sum(spool: str) -> bool:
    """Tell whether a spool holds an encrypted sum: it is made anew when a hub restarts."""
    return spool.endswith(_SUM)


# ---- what sites send -------------------------------------------------------------------------


def update_misfit(blobs: Blobs, lease: str) -> str | None:
    """Say which cell of a spooled update holds no good ciphertext, or None. Blocks."""
    adder = ckks.Adder()
    with blobs.read_spool(lease) as spool:
        for number, cell in enumerate(_cells(spool, frames.read_header(spool.fd))):
            try:
                adder.check(cell)
            except UpdateRejected as e:
                return f"cell {number} of the encrypted update: {e}"
    return None


def check_opened(body: bytes, found: Header | None, base: Header | None) -> None:
    """Raise WireError unless the `Unmask` names a whole opened sum of the model's form."""
    named = decode(body, masks.Unmask).opened
    if found is None or found.digest != named:
        what = "nothing whole" if found is None else found.digest
        raise WireError(f"the opened sum is named {named[:80]!r}, uploaded was {what}")
    if base is None:
        raise WireError("a sum was opened of a job that has no model yet")
    if problem := mismatch(found.schema, encrypted.opened(base.schema)):
        raise WireError(f"the opened sum does not have the model's form: {problem}")


# ---- the sum ---------------------------------------------------------------------------------


def write_sum(blobs: Blobs, base: Schema, leases: Sequence[str]) -> Header:
    """Add the updates of `leases`, of one round, into a frame in the spool `sum_of` them.

    Raises UpdateRejected for a broken ciphertext, StorageError when disk or spools refuse.
    """
    adder, schema, name = ckks.Adder(), encrypted.schema(base), sum_of(leases[0])
    try:
        with contextlib.ExitStack() as stack:
            spools = [stack.enter_context(blobs.read_spool(lease)) for lease in leases]
            out = stack.enter_context(blobs.open_spool(name))
            out.expect(schema[0].nbytes)
            writer = frames.FrameWriter(out.fd, schema)
            sources = [_cells(spool, frames.read_header(spool.fd)) for spool in spools]
            for cells in zip(*sources, strict=True):
                writer.append(adder.add(cells))
            return writer.finish()
    except BaseException:
        with contextlib.suppress(StorageError):
            blobs.discard(name)
        raise


def _cells(spool: Blob, header: Header) -> Iterator[bytes]:
    (entry,) = header.entries
    for cell in frames.chunks(spool.fd, header, entry, bytearray(ckks.CELL)):
        yield cell.tobytes()


# ---- the opened sum --------------------------------------------------------------------------


class OpenedFold:
    """The mean of an encrypted round, once `open` has read the sum that a site has opened.

    Updates are only counted: their sum was made by `write_sum`. Memory: one model.
    """

    def __init__(self, schema: Schema) -> None:
        """Start empty, for a model of `schema`."""
        self._schema = schema
        self._means: dict[str, Accumulator] = {}
        self.weight = 0.0  # of all survivors together, once opened
        self.metrics: tuple[float, ...] = ()
        self.updates = 0

    def clear(self) -> None:
        """Start again, empty."""
        self._means, self.updates = {}, 0

    def add(self, records: int, read: Read) -> None:
        """Count one update; neither its records nor its numbers can be read here."""
        self.updates += 1

    def open(self, total: Blob, old: Callable[[TensorSpec], Iterator[Array]]) -> None:
        """Read the opened sum and turn it into the mean model; `old` yields the base's tensors.

        Raises UpdateRejected when the weights in it do not add up to a share of the records.
        """
        tape = _Tape(total)
        for spec in EXTRA:
            values = tape.take(spec.size)
            if spec is EXTRA[0]:
                self.weight = float(values[0])
                if not 0 < self.weight <= 1 + _SLACK:
                    raise UpdateRejected(
                        f"the encrypted weights add up to {self.weight:g}, needed above 0 and "
                        "at most 1: a site did not weigh its update by its share"
                    )
            else:
                self.metrics = tuple(float(v) / self.weight for v in values)
        _, floats, others = encrypted.groups(self._schema)
        for spec in chain(floats, others):
            kind = accumulator(spec.dtype)
            mean, done = np.empty(spec.size, kind), 0
            for piece in old(spec):
                part = mean[done : done + piece.size]
                widen_into(piece, part, spec)
                part += (tape.take(piece.size) / self.weight).astype(kind)
                done += piece.size
            self._means[spec.name] = mean

    def mean(self, spec: TensorSpec) -> Accumulator:
        """Return the tensor's mean, flat, float32 or float64; EmptyRound before `open`."""
        if spec.name not in self._means:
            raise EmptyRound("the encrypted sum was not opened, so there is no mean")
        return self._means[spec.name]

    def result_chunk(self, spec: TensorSpec, start: int, stop: int) -> Array:
        """Return elements `start` to `stop` of the tensor's mean in its own dtype, flat."""
        return cast(self.mean(spec)[start:stop], spec.dtype)


class _Tape:
    """The numbers of a frame's tensors, one after the other."""

    def __init__(self, blob: Blob) -> None:
        header, buffer = frames.read_header(blob.fd), bytearray(frames.CHUNK)
        self._pieces = (
            piece
            for entry in header.entries
            for piece in frames.chunks(blob.fd, header, entry, buffer)
        )
        self._left: Array = np.empty(0)

    def take(self, count: int) -> Accumulator:
        """Return the next `count` numbers; StorageError when there are fewer."""
        out, filled = np.empty(count), 0
        while filled < count:
            if not self._left.size:
                piece = next(self._pieces, None)
                if piece is None:
                    raise StorageError(f"the opened sum ended {count - filled} numbers early")
                self._left = piece
            part = self._left[: count - filled]
            out[filled : filled + part.size] = part
            filled, self._left = filled + part.size, self._left[part.size :]
        return out


def opener(
    state: JobState,
    blobs: Blobs,
    fold: OpenedFold,
    old: Callable[[TensorSpec], Iterator[Array]],
) -> None:
    """Read the sum that the first site to do so has opened, of the open round."""
    for lease in sorted(state.leases.values(), key=lambda lease: lease.site):
        if "unmask" in lease.words:
            with blobs.read_spool(opened_of(lease.id)) as total:
                fold.open(total, old)
            return
    raise EmptyRound("no site has opened the encrypted sum")
