"""Shamir's secret sharing: any `threshold` shares give the secret, fewer say nothing of it.

A secret is an integer below PRIME, the constant term of a polynomial of degree threshold - 1
whose other coefficients are uniform; the share at point x (1, 2, ...) is its value there. The
field is the integers modulo 2**257 - 93, which holds every 32-byte secret.

Sums at one set of points share their Lagrange coefficients: compute them once (`weights`) and
each further secret costs one short dot product.

Python's integers take time that depends on their values: a program on the same machine that
could time single multiplications is outside the threat model.

Source: Shamir 1979, How to share a secret, CACM 22(11).
"""

from collections.abc import Callable, Iterable, Sequence

from consilia.errors import WireError

PRIME = (1 << 257) - 93
SIZE = 33  # bytes of a share, big-endian
_WIDE = 49  # random bytes per coefficient: modulo PRIME they are uniform to 2**-128

Random = Callable[[int], bytes]


def split(secret: bytes, threshold: int, points: Iterable[int], random: Random) -> list[bytes]:
    """Return one share of SIZE bytes for every point; `secret` has at most 32 bytes."""
    coefficients = [int.from_bytes(random(_WIDE), "big") % PRIME for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))
    return [_value(coefficients, point).to_bytes(SIZE, "big") for point in points]


def _value(coefficients: Sequence[int], point: int) -> int:
    """Evaluate a polynomial, its highest coefficient first (Horner)."""
    value = 0
    for coefficient in coefficients:
        value = (value * point + coefficient) % PRIME
    return value


def weights(points: Sequence[int]) -> tuple[int, ...]:
    """Return the Lagrange coefficients at zero of distinct points, none of them 0."""
    found = []
    for one in points:
        above, below = 1, 1
        for other in points:
            if other != one:
                above = above * other % PRIME
                below = below * (other - one) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(found)


def combine(coefficients: Sequence[int], shares: Sequence[bytes]) -> bytes:
    """Return the 32-byte secret of shares taken at the points of `coefficients`.

    Raises WireError when the shares give no 32 bytes: at least one of them is wrong. Shares
    that are wrong may also give a wrong secret; the caller must be able to tell.
    """
    total = sum(
        weight * int.from_bytes(share, "big")
        for weight, share in zip(coefficients, shares, strict=True)
    )
    try:
        return (total % PRIME).to_bytes(32, "big")
    except OverflowError:
        raise WireError(
            "these shares belong to no 32-byte secret; one of them is wrong"
        ) from None
