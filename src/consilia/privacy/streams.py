"""Masks as keystreams: AES-256 in counter mode, added to arrays in the ring of their dtype.

A mask is as long as all tensors of an update together. It is never held: every seed has one
cipher context that runs on from array to array, and pieces of 256 KiB of keystream go through
one buffer that stays in the processor's cache. Bytes are read as little-endian integers of
the array's width and added modulo 2**8, 2**16, 2**32 or 2**64. How the arrays are cut does not
matter; their order and dtypes do.

Counter mode over zeros is the cipher's keystream, indistinguishable from uniform as long as a
seed is used once; a seed here serves one session. Source: NIST SP 800-38A, section 6.5.
"""

from collections.abc import Callable, Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

PIECE = 256 << 10  # bytes

Ring = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32] | NDArray[np.uint64]


class Streams:
    """The sum of some keystreams less the sum of others. Not thread-safe."""

    def __init__(self, plus: Iterable[bytes], minus: Iterable[bytes]) -> None:
        """Start every stream (of a 32-byte seed) at its first byte."""
        self._plus = [keystream(seed) for seed in plus]
        self._minus = [keystream(seed) for seed in minus]
        self._zeros = memoryview(bytes(PIECE))
        self._buffer = memoryview(bytearray(PIECE))
        self._words = {
            kind: np.frombuffer(self._buffer, np.dtype(kind).newbyteorder("<"))
            for kind in ("uint8", "uint16", "uint32", "uint64")
        }

    def add(self, values: Ring) -> None:
        """Add the next part of the streams to a flat or shaped array, in place."""
        words = self._words.get(values.dtype.name)
        if words is None or not values.flags.c_contiguous or not values.flags.writeable:
            raise ValueError(
                f"a mask was to be added to {values.dtype}{list(values.shape)}, needs a "
                "writeable C-ordered array of uint8, uint16, uint32 or uint64"
            )
        flat = values.reshape(-1)
        for start in range(0, flat.size, words.size):
            part = flat[start : start + words.size]
            zeros, buffer = self._zeros[: part.nbytes], self._buffer[: part.nbytes]
            noise = words[: part.size]
            for stream in self._plus:
                stream.update_into(zeros, buffer)
                np.add(part, noise, out=part)
            for stream in self._minus:
                stream.update_into(zeros, buffer)
                np.subtract(part, noise, out=part)


def keystream(seed: bytes) -> CipherContext:
    """Return AES-256-CTR of a 32-byte seed from counter zero; encrypt zeros with it."""
    return Cipher(AES(seed), CTR(bytes(16))).encryptor()


def random_of(seed: bytes) -> Callable[[int], bytes]:
    """Return a source of random bytes from a fresh 32-byte seed: quicker than the system's.

    For rounding, which takes as many bytes as an update has.
    """
    stream = keystream(seed)
    return lambda size: stream.update(bytes(size))
