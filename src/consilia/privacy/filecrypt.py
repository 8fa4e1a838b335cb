"""Bytes at rest under a key: AES-256-GCM, a file in chunks of 1 MiB, each bound to its place.

    magic (16) | salt (32) | chunk 0 | chunk 1 | ... | last chunk     each: ciphertext, tag (16)

A file has a key of its own, HKDF-SHA256 of the key, the salt and what the file is `about`, so
chunk numbers serve as nonces and never meet a key twice. The last chunk's nonce says that it is
the last: a file that was changed, cut off, lengthened, reordered, or put in another's place
does not open. Descriptors are read and written with pread and pwrite from the start.

Sources: NIST SP 800-38D (GCM), RFC 5869 (HKDF), Hoang et al. 2015 (STREAM).
"""

import os
from collections.abc import Callable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consilia.errors import StorageError

MAGIC = b"consilia rest 1\n"
KEY = 32  # bytes of a key
CHUNK = 1 << 20
_SALT = 32
_TAG = 16
_HEAD = len(MAGIC) + _SALT

Random = Callable[[int], bytes]


def lock(key: bytes, plain: bytes, about: bytes, random: Random) -> bytes:
    """Return `plain` (a few kilobytes, not a file) sealed under `key` and bound to `about`."""
    salt = random(_SALT)
    sealed = _cipher(key, salt, about).encrypt(_nonce(0, True), plain, None)
    return MAGIC + salt + sealed


def unlock(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Return what `lock` has sealed; StorageError for anything else, or another key."""
    head, body = sealed[:_HEAD], sealed[_HEAD:]
    if not is_sealed(head):
        raise StorageError("it is not sealed: found other bytes at its start")
    return _opened(_cipher(key, head[len(MAGIC) :], about), 0, True, body)


def is_sealed(start: bytes) -> bool:
    """Tell whether the first bytes of something say that it is sealed."""
    return len(start) >= _HEAD and start.startswith(MAGIC)


def is_sealed_file(fd: int) -> bool:
    """Tell whether a file says that it is sealed."""
    return is_sealed(os.pread(fd, _HEAD, 0))


def lock_file(key: bytes, source: int, target: int, about: bytes, random: Random) -> int:
    """Seal the file of descriptor `source` into that of `target`; return bytes written."""
    salt = random(_SALT)
    cipher, at = _cipher(key, salt, about), _HEAD
    _write(target, MAGIC + salt, 0)
    for number, (piece, last) in enumerate(_pieces(source, 0, CHUNK)):
        sealed = cipher.encrypt(_nonce(number, last), piece, None)
        _write(target, sealed, at)
        at += len(sealed)
    return at


def unlock_file(key: bytes, source: int, target: int, about: bytes) -> int:
    """Open the sealed file `source` into `target`; return the bytes of plain text.

    Raises StorageError when it does not open; what is in `target` is worth nothing then.
    """
    head = os.pread(source, _HEAD, 0)
    if not is_sealed(head):
        raise StorageError("it is not sealed: found other bytes at its start")
    cipher, at = _cipher(key, head[len(MAGIC) :], about), 0
    for number, (piece, last) in enumerate(_pieces(source, _HEAD, CHUNK + _TAG)):
        plain = _opened(cipher, number, last, piece)
        _write(target, plain, at)
        at += len(plain)
    return at


def _cipher(key: bytes, salt: bytes, about: bytes) -> AESGCM:
    if len(key) != KEY:
        raise ValueError(f"a key has {KEY} bytes, found {len(key)}")
    return AESGCM(HKDF(SHA256(), KEY, salt, b"consilia at rest\0" + about).derive(key))


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "little") + bytes([last])


def _opened(cipher: AESGCM, number: int, last: bool, piece: bytes) -> bytes:
    try:
        return cipher.decrypt(_nonce(number, last), piece, None)
    except (InvalidTag, ValueError):
        raise StorageError(
            f"chunk {number} does not open: it was changed or cut off, it belongs to something "
            "else, or its key is another one by now"
        ) from None


def _pieces(fd: int, start: int, size: int) -> Iterator[tuple[bytes, bool]]:
    """Yield a file's pieces of `size` bytes, and whether each is the last; one at least."""
    piece = _read(fd, size, start)
    while True:
        start += len(piece)
        following = _read(fd, size, start) if len(piece) == size else b""
        yield piece, not following
        if not following:
            return
        piece = following


def _read(fd: int, count: int, at: int) -> bytes:
    data = os.pread(fd, count, at)
    while len(data) < count and (more := os.pread(fd, count - len(data), at + len(data))):
        data += more
    return data


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count
