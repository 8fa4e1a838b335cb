"""Weights as the federation sees them: named arrays, and the schema that an update must match.

Arrays are C-contiguous and little-endian. numpy has no bfloat16, so those tensors carry the
one-field dtype `BFLOAT16` (16-bit storage, never mistaken for uint16); `widen` and `narrow`
convert to and from float32, rounding to nearest even.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from consilia.errors import UpdateRejected

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
DTYPES: Mapping[str, "np.dtype[np.generic]"] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": BFLOAT16,
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint64": np.dtype("<u8"),
    "uint32": np.dtype("<u4"),
    "uint16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Array = NDArray[np.generic]
Weights = dict[str, Array]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (a key of DTYPES) and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * DTYPES[self.dtype].itemsize


Schema = tuple[TensorSpec, ...]


def dtype_name(dtype: "np.dtype[np.generic]") -> str:
    """Return the key of DTYPES for `dtype`; raise UpdateRejected when it cannot travel."""
    try:
        return _NAMES[dtype]
    except KeyError:
        raise UpdateRejected(
            f"dtype {dtype} cannot travel; convert to one of {', '.join(DTYPES)}"
        ) from None


def schema_of(weights: Weights) -> Schema:
    """Return the schema of `weights`, in their order."""
    return tuple(TensorSpec(n, dtype_name(a.dtype), a.shape) for n, a in weights.items())


def mismatch(found: Schema, needed: Schema) -> str | None:
    """Say how `found` differs from `needed` (names, order, dtype, shape), or None."""
    if found == needed:
        return None
    have, want = {t.name: t for t in found}, {t.name: t for t in needed}
    if odd := have.keys() ^ want.keys():
        return f"tensors {sorted(odd)[:5]} are missing or unexpected"
    for name, spec in want.items():
        if have[name] != spec:
            f = have[name]
            return f"tensor {name!r} is {f.dtype}{f.shape}, needs {spec.dtype}{spec.shape}"
    return "tensors are in another order than the model's"


def widen(bits: Array) -> NDArray[np.float32]:
    """Return the float32 values of a BFLOAT16 array, in its shape."""
    out = bits.view("<u2").astype("<u4")
    np.left_shift(out, np.uint32(16), out=out)
    return out.view("<f4")


def narrow(values: NDArray[np.float32]) -> Array:
    """Round float32 to BFLOAT16 of the same shape, nearest even; NaN stays NaN."""
    flat = np.ascontiguousarray(values, "<f4").reshape(-1)
    bits = flat.view("<u4")
    even = (bits >> np.uint32(16)) & np.uint32(1)
    out = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype("<u2")
    out[np.isnan(flat)] = 0x7FC0
    return out.view(BFLOAT16).reshape(np.shape(values))
