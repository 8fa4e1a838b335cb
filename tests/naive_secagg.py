"""Secure aggregation a second time, as slowly and plainly as it can be written: a test oracle.

Python integers and loops only. X25519 is the ladder of RFC 7748, HKDF is two HMACs, counter
mode encrypts one block at a time, Shamir's polynomial is solved by Lagrange's formula. It
shares no code with consilia.privacy; agreement of the two is what the tests ask for.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

P25519 = 2**255 - 19
FIELD = 2**257 - 93


def x25519(private: bytes, public: bytes) -> bytes:
    """Return the shared secret (RFC 7748, section 5)."""
    k = bytearray(private)
    k[0] &= 248
    k[31] = (k[31] & 127) | 64
    scalar = int.from_bytes(k, "little")
    x1 = int.from_bytes(public, "little") & (2**255 - 1)
    x2, z2, x3, z3 = 1, 0, x1, 1
    for bit in reversed(range(255)):
        swap = scalar >> bit & 1
        if swap:
            x2, x3, z2, z3 = x3, x2, z3, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, aa, bb = d * a, c * b, a * a, b * b
        x3, z3 = (da + cb) ** 2 % P25519, x1 * (da - cb) ** 2 % P25519
        x2, z2 = aa * bb % P25519, (aa - bb) * (aa + 121665 * (aa - bb)) % P25519
        if swap:
            x2, x3, z2, z3 = x3, x2, z3, z2
    return (x2 * pow(z2, -1, P25519) % P25519).to_bytes(32, "little")


def framed(*parts: bytes) -> bytes:
    text = b""
    for part in (b"consilia secagg 1", *parts):
        text += len(part).to_bytes(8, "little") + part
    return text


def derive(secret: bytes, salt: bytes, about: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA256 (RFC 5869)."""
    prk = hmac.new(salt, secret, "sha256").digest()
    return hmac.new(prk, about + b"\x01", "sha256").digest()


def session(roster: bytes) -> bytes:
    return hashlib.sha256(framed(b"roster", roster)).digest()


def keystream(seed: bytes, size: int) -> bytes:
    """Return `size` bytes of AES-256 over a 128-bit big-endian counter from zero."""
    out = b""
    for counter in range(-(-size // 16)):
        block = Cipher(AES(seed), CBC(counter.to_bytes(16, "big"))).encryptor()
        out += block.update(bytes(16))  # CBC enciphers its vector plus a zero block
    return out[:size]


def self_mask(seed: bytes, name: bytes, site: str) -> bytes:
    return derive(seed, name, framed(b"self", site.encode(), b""))


def pair_mask(private: bytes, public: bytes, name: bytes, sites: Iterable[str]) -> bytes:
    low, high = sorted(sites)
    return derive(x25519(private, public), name, framed(b"mask", low.encode(), high.encode()))


def degree(count: int) -> int:
    if count <= 50:
        return count - 1
    k = 0
    while 2 ** (k / 10) < count:
        k += 2
    return min(k, count - 1)


def neighbourhoods(name: bytes, sites: Iterable[str]) -> dict[str, set[str]]:
    """Return everybody's neighbours and itself."""
    circle = sorted(
        sites, key=lambda s: hashlib.sha256(framed(b"circle", name, s.encode())).digest()
    )
    count, k = len(circle), degree(len(circle))
    found = {}
    for i, site in enumerate(circle):
        near = {site}
        for j, other in enumerate(circle):
            around = min((i - j) % count, (j - i) % count)
            if k == count - 1 or around <= k // 2:
                near.add(other)
        found[site] = near
    return found


def mask(
    values: list[tuple[int, list[int]]],
    seed: bytes,
    pairs: Mapping[str, bytes],
    site: str,
) -> list[list[int]]:
    """Return masked arrays. `values` are (bits, numbers); `pairs` the seeds by peer."""
    out, at = [], 0
    size = sum(bits // 8 * len(numbers) for bits, numbers in values)
    mine = keystream(seed, size)
    theirs = {peer: keystream(s, size) for peer, s in pairs.items()}
    for bits, numbers in values:
        row, width = [], bits // 8
        for number in numbers:
            value = number + int.from_bytes(mine[at : at + width], "little")
            for peer, stream in theirs.items():
                part = int.from_bytes(stream[at : at + width], "little")
                value += part if site < peer else -part
            row.append(value % 2**bits)
            at += width
        out.append(row)
    return out


def solve(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret of the shares, by point."""
    total = 0
    for x, share in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != x:
                above, below = above * -other, below * (x - other)
        total += int.from_bytes(share, "big") * above * pow(below, -1, FIELD)
    return (total % FIELD).to_bytes(33, "big")[1:]
