"""Numbers as integers modulo 2**8, 2**16, 2**32 or 2**64, so that masks hide them perfectly.

A change of a weight is sent as round(weight * change * scale), two's complement, and the
integers are summed modulo 2**bits. The sum comes out right as long as the true sum fits, and
no bits need to be set aside for the number of sites: each site's weight is its share n / W
of the records, W public, the weights add up to 1 at most, so

    |sum of w_i * x_i| <= max |x_i| <= range.

What rounding can add is at most one step a site; `scale_of` leaves room for 1000 sites, at 8
bits for 32. A
change beyond the range is refused and named, never clipped: a wrapped sum would be noise.

32 bits round to nearest: the error of a sum is at most half a step a site, about
range * 2**-32 each. 16 bits round stochastically (up or down with the probability that makes
the mean exact), so that errors of many rounds and sites cancel instead of adding up. 8 bits
do so too, and what a number has lost is handed back (`coarse`), for the site to add to the
next round's: over many rounds a site is never more than one of its steps behind.

Statistics are summed with weight 1 in the 64-bit ring, as fixed-point numbers
(`encode64`, `decode64`).

Sources: Bonawitz et al. 2017, section 3.1 (sums in a ring); Gupta et al. 2015, Deep Learning
with Limited Numerical Precision, section 3 (stochastic rounding); Seide et al. 2014, 1-Bit
Stochastic Gradient Descent (error feedback).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilia.errors import ConfigError, UpdateRejected
from consilia.privacy.streams import Ring
from consilia.wire.masks import MAX_SITES

PIECE = 32 << 10  # elements worked on at a time: they stay in the cache
FRACTION = 20  # bits behind the point of a statistic
COARSE_SITES = 32  # in a ring of 8 bits: each may round by a step, of 127
EXACT = 1 << 53  # steps a site may add to a 64-bit sum: float64 holds each, 1000 fit

# Above the range there is room for a float32's rounding of it and a step for every site.
_TOLERANCE = 1 + 2.0**-22
_TOPS = {
    8: (1 << 7) - 1 - COARSE_SITES,
    16: (1 << 15) - MAX_SITES - 24,
    32: (1 << 31) - (1 << 11),
    64: (1 << 63) - (1 << 43),
}

Floats = NDArray[np.float32] | NDArray[np.float64]
Random = Callable[[int], bytes]


def scale_of(bits: int, reach: float) -> float:
    """Return how many steps of a `bits` wide ring 1.0 takes when changes keep to +-`reach`.

    `reach` is the range of wire.v1.Privacy. Raises ConfigError for what gives no ring.
    """
    if bits not in _TOPS:
        raise ConfigError(f"a ring of {bits} bits was asked for; there are {sorted(_TOPS)}")
    if not 0 < reach < float("inf"):
        raise ConfigError(f"the range of masked changes is {reach!r}, needs a number above 0")
    return _TOPS[bits] / reach


def check_sites(bits: int, sites: int) -> None:
    """Raise ConfigError when the sum of so many sites may not fit a ring of `bits`."""
    most = COARSE_SITES if bits == 8 else MAX_SITES
    if sites > most:
        raise ConfigError(
            f"{sites} sites would add up numbers of {bits} bits; at most {most} fit: "
            + ("ask for privacy.bits 16" if bits == 8 else "ask fewer sites for each round")
        )


def quantise(
    values: Floats,
    scale: float,
    weight: float,
    out: Ring,
    random: Random | None = None,
) -> None:
    """Write round(values * weight * scale) to `out`, in two's complement.

    `values` and `out` are flat and of one length; `scale` is `scale_of` the ring of `out`,
    `weight` the site's share of the records, 0 to 1. With `random` (n -> n random bytes) the
    rounding is stochastic, without it to nearest even. Raises UpdateRejected, with what was
    found and what is allowed, for NaN, infinity and whatever is beyond the range; `out` is
    then to be thrown away.
    """
    bits = out.dtype.itemsize * 8
    if not 0 <= weight <= 1:
        raise UpdateRejected(f"the weight of an update is {weight!r}, needs 0 to 1")
    if out.shape != values.shape or values.ndim != 1:
        raise ValueError(f"{values.shape} values were to go to {out.shape} places")
    limit = _TOPS[bits] / scale * _TOLERANCE
    if bits == 16 and random is not None and values.dtype == np.float32:
        _quantise16(values, scale * weight, limit, out.view(np.int16), random)
        return
    signed = out.view(f"i{bits // 8}")
    scratch = np.empty(min(PIECE, values.size))
    for start in range(0, values.size, PIECE):
        part = values[start : start + PIECE]
        _require_within(part, limit)
        steps = scratch[: part.size]
        np.multiply(part, weight * scale, out=steps, dtype=np.float64)
        if random is None:
            np.rint(steps, out=steps)
        else:
            steps += _uniform(part.size, random)
            np.floor(steps, out=steps)
        signed[start : start + part.size] = steps


def coarse(
    values: Floats, scale: float, weight: float, out: Ring, random: Random
) -> NDArray[np.float64]:
    """Write values * weight * scale to `out`, of 8 bits; return what each value has lost.

    What is beyond the range is cut there, and lost with the rest: `values` are a change, which
    the caller has found within the range, and what earlier rounds have lost. Rounding is
    stochastic. Raises UpdateRejected for what is not finite.
    """
    factor, reach = weight * scale, _TOPS[8] / scale
    if out.dtype != np.uint8 or out.shape != values.shape or not factor > 0:
        raise ValueError(f"{values.shape} values of weight {weight} for {out.dtype}{out.shape}")
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise UpdateRejected("an update holds NaN or infinity; training diverged")
    steps = np.clip(wide, -reach, reach) * factor
    steps += _uniform(steps.size, random)
    np.floor(steps, out=steps)
    out.view(np.int8)[...] = steps
    left: NDArray[np.float64] = wide - steps / factor
    return left


def require_within(values: Floats, scale: float, bits: int) -> None:
    """Raise UpdateRejected, as `quantise` does, for what is beyond the range or not finite."""
    if values.size:
        _require_within(values, _TOPS[bits] / scale * _TOLERANCE)


def _quantise16(
    values: Floats,  # of float32
    factor: float,
    limit: float,
    out: NDArray[np.int16],
    random: Random,
) -> None:
    """Round values * factor at random, in integers of 32 bits, 16 of them for the fraction.

    v + u with u uniform in 0 ... 2**16 - 1, shifted right, is floor(v / 2**16 + u / 2**16). A
    float32 has 24 bits, so the product is right to a 500th of a step at least, as often too
    large as too small.
    """
    size = min(PIECE, values.size)
    steps, whole = np.empty(size, np.float32), np.empty(size, np.int32)
    by = np.float32(factor * 65536.0)
    for start in range(0, values.size, PIECE):
        part = values[start : start + PIECE]
        _require_within(part, limit)
        s, w = steps[: part.size], whole[: part.size]
        np.multiply(part, by, out=s)
        w[...] = s
        np.add(w, np.frombuffer(random(2 * part.size), "<u2"), out=w)
        np.right_shift(w, 16, out=w)
        out[start : start + part.size] = w


def _require_within(part: Floats, limit: float) -> None:
    low, high = float(part.min()), float(part.max())
    if not -limit <= low <= high <= limit:  # False for NaN
        worst = low if not -limit <= low else high
        raise UpdateRejected(
            f"an update changes a weight by {worst:g}, masking carries {-limit:.6g} to "
            f"{limit:.6g}: clip the update, or raise privacy.range (which makes steps coarser)"
        )


def _uniform(count: int, random: Random) -> NDArray[np.float64]:
    """Return numbers uniform in [0, 1), in steps of 2**-32."""
    drawn = np.frombuffer(random(4 * count), "<u4")
    return drawn * 2.0**-32


def dequantise(total: Ring, scale: float, kind: Any = np.float64) -> NDArray[Any]:
    """Return an unmasked sum as floats of dtype `kind`: the sum of weight * value.

    Divide by the survivors' sum of weights (or fold it into `scale`) for their mean.
    """
    signed = total.view(f"i{total.dtype.itemsize}")
    floats: NDArray[Any] = np.divide(signed, scale, dtype=np.float64)
    return floats.astype(kind, copy=False)


def encode64(values: NDArray[Any], fraction: int = FRACTION) -> NDArray[np.uint64]:
    """Return numbers as fixed point with `fraction` bits behind the point, for plain sums.

    Integers come through exactly with fraction 0 and up to 2**53. Raises UpdateRejected for
    NaN and for numbers whose fixed point exceeds 2**53 steps: beyond, float64 is not exact
    and a sum over 1000 sites would not fit.
    """
    limit = EXACT * 2.0**-fraction
    for edge in (values.max(), values.min()) if values.size else ():
        found = edge.item()  # of Python's: it compares integers with floats exactly
        if not -limit <= found <= limit:
            raise UpdateRejected(
                f"a number to be summed is {found:g}, {fraction} bits behind the point carry "
                f"{-limit:g} to {limit:g}: use another unit or fewer bits"
            )
    steps = np.rint(np.ldexp(values.astype(np.float64), fraction))
    return steps.astype(np.int64).view(np.uint64)


def decode64(total: NDArray[np.uint64], fraction: int = FRACTION) -> NDArray[np.float64]:
    """Return an unmasked 64-bit sum as float64, exact up to 2**53 steps."""
    return np.ldexp(total.view(np.int64).astype(np.float64), -fraction)
