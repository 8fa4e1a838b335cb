"""CKKS ciphertexts of 4096 numbers: make a key, encrypt, add without the key, open, flood.

A thin, pure layer over TenSEAL (`pip install 'consilia[he]'`), which is imported when it is
first needed. Ciphertexts travel as *cells* of one size, so that sizes are known and checked
before a byte is parsed.

**Parameters.** Degree 8192 with moduli of 60 + 60 bits (and 60 for SEAL's own use): 180 bits
of the 218 that the homomorphic encryption standard allows for 128-bit security. Only additions
are done, so no modulus is spent on multiplying: the scale is 2**88, and what encryption adds
to a sum of a thousand sites stays below 2**-72. The numbers may reach `REACH`.

**Symmetric.** Every site that encrypts holds the key, so no public key is made: who adds needs
the public parameters only (93 bytes), and cannot encrypt anything of its own choice.

**Flooding.** An exact CKKS decryption tells the encryption's noise, and from it the key (Li and
Micciancio, eprint 2020/1533). What `flood` returns is rounded to steps of 2**-32 and carries
discrete Gaussian noise of standard deviation 2**-20: 2**52 times the noise it hides, by the
measure of Li, Micciancio, Schultz and Sorrell (eprint 2022/816).

**Randomness.** Keys and encryption noise are drawn inside SEAL, from the system's generator;
TenSEAL takes none from its caller. The flooding noise is ours.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilia.errors import ConfigError, UpdateRejected
from consilia.privacy.noise import Stream, discrete_gaussian

DEGREE = 8192
MODULI = (60, 60, 60)  # bits; the last is for SEAL's own use and never travels
SCALE = 2.0**88
SLOTS = DEGREE // 2  # numbers in a ciphertext
REACH = float(1 << 24)  # largest number that a slot, and a sum in it, may hold
FLOOD = 2.0**-20  # standard deviation of the noise on what is opened
STEP = 2.0**-32  # what is opened is a multiple of it
KEY_BYTES = 256 << 10  # a key has at most; TenSEAL's have 196,812
CELL = 2 * 2 * DEGREE * 8 + 512  # bytes of a ciphertext as it travels, its padding included

_PREFIX = 4  # bytes in which a cell says how long its ciphertext is
_REMEDY = "homomorphic encryption needs TenSEAL; install it with: pip install 'consilia[he]'"


def require() -> None:
    """Raise ConfigError, with the remedy, unless TenSEAL can be imported."""
    _kit()


def make_key() -> bytes:
    """Return a fresh secret key, at most KEY_BYTES. Store it as keys are stored."""
    context = _context()
    key: bytes = context.serialize(
        save_public_key=False,
        save_secret_key=True,
        save_galois_keys=False,
        save_relin_keys=False,
    )
    return key


class Adder:
    """Checks and adds cells; holds no key. Not thread-safe."""

    def __init__(self) -> None:
        """Make the public parameters; ConfigError without TenSEAL."""
        self._kit = _kit()
        public = _context().serialize(
            save_public_key=False,
            save_secret_key=False,
            save_galois_keys=False,
            save_relin_keys=False,
        )
        self._context = self._kit.context_from(public)

    def check(self, cell: bytes) -> None:
        """Raise UpdateRejected unless `cell` holds one ciphertext of these parameters."""
        _parsed(self._kit, self._context, cell)

    def add(self, cells: Iterable[bytes]) -> bytes:
        """Return the cell of the sum of one or more cells; UpdateRejected for a broken one."""
        total = None
        for cell in cells:
            found = _parsed(self._kit, self._context, cell)
            if total is None:
                total = found
            else:
                total += found
        if total is None:
            raise UpdateRejected("no ciphertext to add; a sum is made of one at least")
        return _packed(total.serialize())


class Cipher:
    """Encrypts and opens cells with a key. Not thread-safe."""

    def __init__(self, key: bytes) -> None:
        """Take a key as `make_key` makes it; UpdateRejected for anything else."""
        self._kit = _kit()
        if not 0 < len(key) <= KEY_BYTES:
            raise UpdateRejected(
                f"a key of {len(key)} bytes for homomorphic encryption, needed 1 to {KEY_BYTES}"
            )
        try:
            self._context = self._kit.context_from(key)
            self._context.global_scale = SCALE
            probe = _packed(self._kit.ckks_vector(self._context, [0.0] * SLOTS).serialize())
            private = self._context.is_private()
        except (ValueError, RuntimeError) as e:
            raise UpdateRejected(
                f"the key for homomorphic encryption cannot be used: {e}"
            ) from None
        if not private:
            raise UpdateRejected("the key for homomorphic encryption has no secret part")
        Adder().check(probe)  # of other parameters, its ciphertexts would be

    def encrypt(self, values: NDArray[np.float64]) -> bytes:
        """Return the cell of at most SLOTS numbers within REACH; the rest of it is zero."""
        full = np.zeros(SLOTS)
        full[: values.size] = values
        worst = float(np.abs(full).max())
        if not worst <= REACH:  # False for NaN
            raise UpdateRejected(
                f"a number to be encrypted is {worst:g}, needed at most {REACH:g} either way"
            )
        return _packed(self._kit.ckks_vector(self._context, full.tolist()).serialize())

    def open(self, cell: bytes) -> NDArray[np.float64]:
        """Return the SLOTS numbers of a cell. They tell the key: `flood` them to release."""
        found = _parsed(self._kit, self._context, cell)
        return np.array(found.decrypt(), np.float64)


def flood(values: Sequence[float] | NDArray[np.float64], stream: Stream) -> NDArray[np.float64]:
    """Return opened numbers as they may be released: on a grid, and with noise."""
    exact = np.asarray(values, np.float64)
    steps = np.rint(exact / STEP).astype(np.int64)
    steps += discrete_gaussian(FLOOD / STEP).draw(stream, steps.size)
    return steps.astype(np.float64) * STEP


def _kit() -> Any:
    try:
        import tenseal  # noqa: PLC0415  # an extra, and heavy
    except ImportError:
        raise ConfigError(_REMEDY) from None
    return tenseal


def _context() -> Any:
    kit = _kit()
    context = kit.context(
        kit.SCHEME_TYPE.CKKS,
        poly_modulus_degree=DEGREE,
        coeff_mod_bit_sizes=list(MODULI),
        encryption_type=kit.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.global_scale = SCALE
    return context


def _packed(ciphertext: bytes) -> bytes:
    room = CELL - _PREFIX
    if len(ciphertext) > room:
        raise ConfigError(
            f"TenSEAL made a ciphertext of {len(ciphertext)} bytes, a cell holds {room}; use "
            "the release that consilia[he] names"
        )
    padding = bytes(room - len(ciphertext))
    return len(ciphertext).to_bytes(_PREFIX, "little") + ciphertext + padding


def _parsed(kit: Any, context: Any, cell: bytes) -> Any:
    """Parse a cell; sizes first, then SEAL's own checks, then ours."""
    if len(cell) != CELL:
        raise UpdateRejected(f"a ciphertext's cell has {len(cell)} bytes, needed {CELL}")
    size = int.from_bytes(cell[:_PREFIX], "little")
    body, padding = cell[_PREFIX : _PREFIX + size], cell[_PREFIX + size :]
    if not 0 < size <= CELL - _PREFIX or any(padding):
        raise UpdateRejected(
            f"a cell says that its ciphertext has {size} bytes, which it lacks"
        )
    try:
        found = kit.ckks_vector_from(context, body)
        parts = found.ciphertext()
    except (ValueError, RuntimeError) as e:
        raise UpdateRejected(f"a cell holds no ciphertext of these parameters: {e}") from None
    if len(parts) != 1 or found.size() != SLOTS:
        raise UpdateRejected(
            f"a cell holds {found.size()} numbers in {len(parts)} ciphertexts, needed {SLOTS} "
            "in one"
        )
    (only,) = parts
    shape = (only.size(), only.coeff_modulus_size(), float(only.scale))
    if shape != (2, len(MODULI) - 1, SCALE):
        raise UpdateRejected(
            f"a ciphertext has parts, moduli and scale {shape}, needed "
            f"{(2, len(MODULI) - 1, SCALE)}"
        )
    return found
