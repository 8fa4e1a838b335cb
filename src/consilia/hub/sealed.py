"""Frames at rest under AES-256-GCM: on the disk, or in the bucket, they open with a key only.

A sealed file is a head of 64 bytes and chunks of 1 MiB, each with its tag:

    magic (8) | key id (8) | salt (32) | bytes of the frame, big endian (8) | zero (8)

Each file has a key of its own, HKDF-SHA256 of the hub's key and the salt, so a nonce is simply
the chunk's number. A tag also binds the head, the blob's digest and the chunk's place: nothing
can be swapped, cut off or reordered unseen. Opened frames lie in anonymous memory (memfd),
shared by all who read them at once, never on a disk.

Keys are in a file, one of 64 hex digits a line: the first seals, all of them open. `rotate`
seals everything anew and forgets the older keys; killed at any moment, it is run again and goes
on. Frames from before sealing was switched on are opened as they are, until `rotate` seals
them. Spools are not sealed: they are what sites are just sending, and go when a round closes.
"""

import contextlib
import hashlib
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consilia.errors import ConfigError, NotFound, StorageError
from consilia.files import write_whole
from consilia.hub.blobs import Blob, Blobs, Spool
from consilia.hub.keyfiles import Random

MAGIC = b"CSEALED1"
CHUNK = 1 << 20  # bytes of a frame in one chunk
TAG = 16  # bytes that AES-GCM adds to each
_HEAD = struct.Struct(">8s8s32sQ8x")
_SEALED = ".sealed"  # of the spool that becomes the blob


@dataclass(frozen=True, slots=True)
class Keys:
    """The hub's keys for frames, newest first; 32 bytes each."""

    all: tuple[bytes, ...]

    def __repr__(self) -> str:
        """Name the keys without showing them."""
        return f"Keys({', '.join(key_id(key).hex() for key in self.all)})"

    @property
    def newest(self) -> bytes:
        """The key that seals."""
        return self.all[0]

    def named(self, id: bytes) -> bytes | None:
        """Return the key of that id, None when it is not here."""
        return next((key for key in self.all if key_id(key) == id), None)


def key_id(key: bytes) -> bytes:
    """Return what a sealed file says of its key: 8 bytes that tell nothing about it."""
    return hashlib.sha256(b"consilia frame key" + key).digest()[:8]


def load_keys(path: Path) -> Keys:
    """Read the key file; ConfigError when it is missing, damaged or readable by others."""
    try:
        lines = path.read_text("ascii").split()
        readable = path.stat().st_mode & 0o077
        keys = tuple(bytes.fromhex(line) for line in lines)
    except (OSError, UnicodeDecodeError, ValueError) as e:
        raise ConfigError(f"the frames' key file {path} cannot be read: {e}") from None
    if readable:
        raise ConfigError(f"others may read {path}: chmod 600 {path}")
    if not keys or any(len(key) != 32 for key in keys):
        raise ConfigError(f"{path} must hold keys of 64 hex digits, one a line")
    return Keys(keys)


def save_keys(path: Path, keys: Keys) -> None:
    """Write the key file, durably, whole or not at all."""
    write_whole(path, "".join(f"{key.hex()}\n" for key in keys.all).encode())


class SealedBlobs:
    """Blobs over other blobs, which hold them sealed. Safe from any thread, as those are."""

    def __init__(
        self, inner: Blobs, keys: Keys, random_bytes: Random, *, cache_bytes: int = 512 << 20
    ) -> None:
        """At most `cache_bytes` of opened frames are kept beyond those that are being read."""
        self._inner = inner
        self._keys = keys
        self._random = random_bytes
        self._cap = cache_bytes
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, Blob] = OrderedDict()

    def open(self, digest: str) -> Blob:
        """Open a finished blob; raise NotFound for none, StorageError for a damaged one."""
        with self._lock:
            if (known := self._opened.get(digest)) is not None:
                self._opened.move_to_end(digest)
                return Blob(os.dup(known.fd))
        with self._inner.open(digest) as file:
            found = unseal(file, digest, self._keys)
            if found is None:
                return Blob(os.dup(file.fd))
        with self._lock:
            self._forget(digest)
            self._opened[digest] = found
            held = Blob(os.dup(found.fd))
            while sum(b.size for b in self._opened.values()) > self._cap:
                self._forget(next(iter(self._opened)))
        return held

    def size(self, digest: str) -> int | None:
        """Bytes of a finished blob, None when there is none."""
        found = self._inner.size(digest)
        return None if found is None else _plain_size(found)

    def open_spool(self, name: str) -> Spool:
        """Create a spool or go on with it, fencing any older handle."""
        return self._inner.open_spool(name)

    def read_spool(self, name: str) -> Blob:
        """Open a spool for reading; raise NotFound when there is none."""
        return self._inner.read_spool(name)

    def spooled(self, name: str) -> int | None:
        """Bytes in a spool, None when there is none."""
        return self._inner.spooled(name)

    def adopt(self, name: str, digest: str) -> None:
        """Make the spool the blob `digest`, sealed and durable; see Blobs.adopt."""
        if self._inner.spooled(name) is None:
            if self._inner.size(digest) is None:
                raise NotFound(f"there is no spool {name} and no blob {digest}")
            return
        with self._inner.open_spool(name) as spool, Blob(os.dup(spool.fd)) as plain:
            self.seal(plain, name + _SEALED, digest)  # who wrote to the spool is fenced
        self._inner.discard(name)

    def seal(self, plain: Blob, name: str, digest: str) -> None:
        """Seal an open frame as blob `digest` under the newest key, by way of spool `name`."""
        with self._inner.open_spool(name) as spool:
            os.ftruncate(spool.fd, 0)  # what a crash has left
            salt, key = self._random(32), self._keys.newest
            head = _HEAD.pack(MAGIC, key_id(key), salt, plain.size)
            cipher = _cipher(key, salt)
            spool.append(head)
            for number in range(_chunks(plain.size)):
                data = os.pread(plain.fd, CHUNK, number * CHUNK)
                spool.append(cipher.encrypt(_nonce(number), data, _bound(head, digest)))
        self._inner.adopt(name, digest)

    def discard(self, name: str) -> None:
        """Drop a spool if it is there."""
        self._inner.discard(name)

    def delete(self, digest: str) -> bool:
        """Drop a blob; say whether it was there. Who has it open reads on."""
        with self._lock:
            self._forget(digest)
        return self._inner.delete(digest)

    def blobs(self) -> dict[str, int]:
        """Digest -> bytes of every finished blob (of one not sealed yet, nearly)."""
        return {digest: _plain_size(size) for digest, size in self._inner.blobs().items()}

    def spools(self) -> dict[str, int]:
        """Name -> bytes of every spool."""
        return self._inner.spools()

    def close(self) -> None:
        """Forget every opened frame and close what holds them."""
        with self._lock:
            for digest in tuple(self._opened):
                self._forget(digest)
        self._inner.close()

    def _forget(self, digest: str) -> None:
        if (known := self._opened.pop(digest, None)) is not None:
            known.close()  # those who read it have descriptors of their own


def rotate(
    inner: Blobs,
    path: Path,
    random_bytes: Random,
    step: Callable[[str], None] = lambda _: None,
) -> int:
    """Seal every frame under a new key, made here, and forget the older ones.

    Returns how many were sealed.

    Goes on where an earlier run was cut short. `step(what)` is called wherever that may be.
    """
    keys = load_keys(path) if path.exists() else Keys(())
    if len(keys.all) < 2:  # else an earlier run has begun with the first of them
        keys = Keys((random_bytes(32), *keys.all))
        save_keys(path, keys)
    step("new key")
    blobs, count = SealedBlobs(inner, keys, random_bytes, cache_bytes=0), 0
    for digest in sorted(inner.blobs()):
        with contextlib.suppress(NotFound), inner.open(digest) as file:
            if _key_of(file) == key_id(keys.newest):
                continue
            plain = unseal(file, digest, keys)
            with plain or Blob(os.dup(file.fd)) as frame:
                step("opened")
                blobs.seal(frame, f"rotate-{digest.replace(':', '-', 1)}", digest)
            count += 1
            step("sealed")
    save_keys(path, Keys((keys.newest,)))
    step("done")
    for name in inner.spools():
        if name.startswith("rotate-"):
            inner.discard(name)
    return count


def unseal(file: Blob, digest: str, keys: Keys) -> Blob | None:
    """Return the frame of a sealed file, in anonymous memory; None for a file not sealed.

    StorageError when its key is not here or it was changed.
    """
    head = os.pread(file.fd, _HEAD.size, 0)
    if not head.startswith(MAGIC) or len(head) < _HEAD.size:
        return None
    _, id, salt, size = _HEAD.unpack(head)
    if (key := keys.named(id)) is None:
        raise StorageError(
            f"blob {digest} is sealed under key {id.hex()}, which the frames' key file does "
            "not hold: restore that file"
        )
    cipher, bound = _cipher(key, salt), _bound(head, digest)
    if file.size != _HEAD.size + size + TAG * _chunks(size):
        raise _damaged(digest)
    memory = os.memfd_create("consilia-frame", os.MFD_CLOEXEC)
    try:
        for number in range(_chunks(size)):
            at = _HEAD.size + number * (CHUNK + TAG)
            data = cipher.decrypt(_nonce(number), os.pread(file.fd, CHUNK + TAG, at), bound)
            os.pwrite(memory, data, number * CHUNK)
    except InvalidTag:
        os.close(memory)
        raise _damaged(digest) from None
    except BaseException:
        os.close(memory)
        raise
    return Blob(memory)


def checked(
    check: Callable[[int, str], None], keys: Sequence[bytes]
) -> Callable[[int, str], None]:
    """Return the check of a fetched file: opens with a key of ours, and passes `check`."""

    def both(fd: int, digest: str) -> None:
        with Blob(os.dup(fd)) as file:
            frame = unseal(file, digest, Keys(tuple(keys)))
            with frame or Blob(os.dup(fd)) as plain:
                check(plain.fd, digest)

    return both


def _damaged(digest: str) -> StorageError:
    return StorageError(
        f"blob {digest} does not open: the file was changed or damaged; restore it from a "
        "backup"
    )


def _key_of(file: Blob) -> bytes:
    head = os.pread(file.fd, 16, 0)
    return head[8:] if head.startswith(MAGIC) else b""


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, salt, b"consilia frame at rest").derive(key))


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _bound(head: bytes, digest: str) -> bytes:
    return head + digest.encode()


def _chunks(size: int) -> int:
    return max(1, -(-size // CHUNK))


def _plain_size(size: int) -> int:
    inside = max(0, size - _HEAD.size)
    return max(0, inside - TAG * max(1, -(-inside // (CHUNK + TAG))))
