"""Fold updates into their record-weighted mean, one at a time, in constant memory.

The hub holds one running mean and one scratch chunk, however many sites report. With n_k
records at site k and N_k = n_1 + ... + n_k:

    mean_k = mean_{k-1} + (n_k / N_k) * (x_k - mean_{k-1})

The mean is valid after every update, so a round may close early or admit a late site; equal
updates give exactly that update. Each element is computed on its own by IEEE operations, so
the result is bit-identical for the same updates in the same order, however they are chunked;
another order changes it by rounding only. The deterministic mode folds in order of site.

| tensor | mean is held in | result |
|---|---|---|
| float32, float16, bfloat16 | float32 | rounded to nearest even |
| float64 | float64 | as it is |
| integers | float64 | rounded half to even, clipped to the type's range |
| bool | float64 | true where more than half of the records say so; a tie is false |

`records` is the site's own claim. The caller caps it at what the site has advertised,
otherwise one site could drown out the rest.

Sources: McMahan et al. 2017 (FedAvg), algorithm 1; West 1979, CACM 22(9), for the recurrence.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import DTYPES, Array, Schema, TensorSpec, narrow
from consilia.errors import EmptyRound, UpdateRejected

SCRATCH = 128 << 10  # bytes: part, scratch and mean stay in the second-level cache
_EXACT = 1 << 53  # beyond it float64 does not hold every integer
_RANGES = (
    {f"uint{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32)}
    | {f"int{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32)}
    | {"int64": (-_EXACT, _EXACT), "uint64": (0, _EXACT)}
)

Accumulator = NDArray[np.float32] | NDArray[np.float64]
Read = Callable[[TensorSpec], Iterator[Array]]


class Fold:
    """The record-weighted mean of the updates added so far. Not thread-safe.

    Memory: one model (float16 and bfloat16 count double, integers and bool as float64) and
    SCRATCH bytes, whatever the number of updates.
    """

    def __init__(self, schema: Schema) -> None:
        """Start empty; every update must match `schema` exactly."""
        self._means = {
            spec.name: np.empty(spec.size, accumulator(spec.dtype)) for spec in schema
        }
        self._schema = schema
        self._scratch = np.empty(SCRATCH, np.uint8)
        self.clear()

    def clear(self) -> None:
        """Start again, empty, in the same memory: fresh pages cost more than the folding."""
        self._broken = ""
        self.records = 0  # N_k
        self.updates = 0

    def add(self, records: int, read: Read) -> None:
        """Fold one update of `records` records.

        `read(spec)` yields the tensor's elements in order, as flat arrays of its dtype and of
        any length; each is used before the next is asked for, so a reader may reuse its
        buffer. Values must be finite (the frame verifier has checked it).

        A wrong `records` raises UpdateRejected and changes nothing. When a tensor turns out
        too short, too long or of another dtype, cannot be averaged, or `read` itself raises,
        the mean is half done: the error is raised, every later call raises UpdateRejected,
        and the caller folds the other updates anew from their spools.
        """
        if records < 1:
            raise UpdateRejected(f"update claims {records} records, needs at least 1")
        self._check()
        share = records / (self.records + records)
        self._broken = "an update failed while it was folded"
        for spec in self._schema:
            try:
                with np.errstate(over="raise", invalid="raise"):
                    self._fold(spec, read(spec), share)
            except FloatingPointError:
                kind = self._means[spec.name].dtype
                raise UpdateRejected(
                    f"tensor {spec.name!r} overflows {kind} when it is averaged; "
                    "training diverged at this site or at an earlier one"
                ) from None
        self._broken = ""
        self.records += records
        self.updates += 1

    def mean(self, spec: TensorSpec) -> Accumulator:
        """Return the tensor's mean, flat: a view of the accumulator, float32 or float64.

        Raises EmptyRound when nothing was added.
        """
        self._check()
        if not self.updates:
            raise EmptyRound("no update was accepted, so there is nothing to average")
        return self._means[spec.name]

    def result_chunk(self, spec: TensorSpec, start: int, stop: int) -> Array:
        """Return elements `start` to `stop` of the tensor's mean in its own dtype, flat."""
        return cast(self.mean(spec)[start:stop], spec.dtype)

    def _check(self) -> None:
        if self._broken:
            raise UpdateRejected(f"this fold cannot be used: {self._broken}; fold anew")

    def _fold(self, spec: TensorSpec, chunks: Iterator[Array], share: float) -> None:
        mean = self._means[spec.name]
        scratch = self._scratch.view(mean.dtype)
        length, done, dtype = scratch.size, 0, DTYPES[spec.dtype]
        for chunk in chunks:
            if chunk.dtype != dtype or chunk.ndim != 1 or chunk.size > mean.size - done:
                raise UpdateRejected(
                    f"tensor {spec.name!r} got {chunk.dtype}{list(chunk.shape)} after {done} "
                    f"elements, needs {mean.size} elements of {spec.dtype} in all"
                )
            for start in range(0, chunk.size, length):
                part = chunk[start : start + length]
                _step(mean[done : done + part.size], part, scratch[: part.size], share, spec)
                done += part.size
        if done != mean.size:
            raise UpdateRejected(
                f"tensor {spec.name!r} ended after {done} elements, needs {mean.size}"
            )


def _step(
    mean: Accumulator, part: Array, scratch: Accumulator, share: float, spec: TensorSpec
) -> None:
    """Advance `mean` by one update's `part`; `scratch` is overwritten."""
    if share == 1.0:  # the first update: also spares reading a mean that is not set yet
        widen_into(part, mean, spec)
        return
    if part.dtype == mean.dtype:
        np.subtract(part, mean, out=scratch)
    else:
        widen_into(part, scratch, spec)
        np.subtract(scratch, mean, out=scratch)
    np.multiply(scratch, scratch.dtype.type(share), out=scratch)
    np.add(mean, scratch, out=mean)


def accumulator(dtype: str) -> "np.dtype[np.float32] | np.dtype[np.float64]":
    """Return the dtype that the mean of a `dtype` tensor is held in."""
    if dtype in ("float32", "float16", "bfloat16"):
        return np.dtype(np.float32)
    return np.dtype(np.float64)


def widen_into(part: Array, out: Accumulator, spec: TensorSpec) -> None:
    """Write the values of a flat `part` of tensor `spec` to `out`, in the accumulator's dtype.

    Raises UpdateRejected for integers beyond 2**53, which float64 cannot hold exactly.
    """
    if spec.dtype == "bfloat16":
        bits = out.view(np.uint32)
        bits[...] = part.view(np.uint16)
        np.left_shift(bits, np.uint32(16), out=bits)
        return
    if spec.dtype in ("int64", "uint64") and part.size:
        low, high = int(part.min()), int(part.max())
        if max(-low, high) > _EXACT:
            raise UpdateRejected(
                f"tensor {spec.name!r} holds the integer {high if high > _EXACT else low}; "
                "beyond 2**53 it cannot be averaged: keep such constants out of the weights"
            )
    out[...] = part


def cast(values: Accumulator, dtype: str) -> Array:
    """Return accumulator values in `dtype`: how a mean becomes a tensor again.

    Floats round to nearest even (beyond the range of float16 and bfloat16: infinity),
    integers half to even and are clipped to their range, bool is true above one half.
    """
    if dtype == "bfloat16":
        return narrow(values.astype(np.float32, copy=False))
    target = DTYPES[dtype]
    if target.kind == "b":
        return values > 0.5
    if target.kind in "iu":
        low, high = _RANGES[dtype]
        return np.clip(np.rint(values), low, high).astype(target)
    with np.errstate(over="ignore"):
        return values.astype(target)
