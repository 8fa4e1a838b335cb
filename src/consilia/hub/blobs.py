"""Tensor frames at rest: spools while they arrive, blobs named by digest once they are whole.

    open_spool(name) -> append ... append -> sync -> adopt(name, digest) -> open(digest)

- A spool is named by what it belongs to (mostly a lease), survives a restart, and goes on where
  it ended. Opening it again fences the older handle: a half-dead connection can append nothing
  once its node has come back on a new one.
- `sync` returns when a spool is durable: its data and its directory entry. So does `adopt`,
  which gives the spool its digest as name; repeating it after a crash is harmless.
- The caller has verified the digest (wire.frames). This module never looks into the bytes.
- When the disk refuses, the spool is cut back to where it was and StorageError raised, so
  nothing half-written counts. `reserve` bytes stay free for the database on the same disk.

Every method blocks (call it from a thread) and is safe from any thread.
"""

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, Self

from consilia.core import ids
from consilia.errors import ConfigError, Conflict, NotFound, StorageError
from consilia.files import sync_folder

_SPOOL = re.compile(r"[a-z0-9][a-z0-9._-]{0,199}")
RESERVE = 64 << 20  # bytes


class Blob:
    """An open, finished frame (or a spool open for reading): `fd` for pread, `size` in bytes.

    Stays readable when the blob is deleted meanwhile. Close it, or use it in a `with`.
    """

    def __init__(self, fd: int) -> None:
        """Take over `fd`."""
        self.fd = fd
        self.size = os.fstat(fd).st_size

    def close(self) -> None:
        """Close the descriptor; closing twice is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Spool:
    """A frame in the making, open for writing. One writer; the newest handle wins.

    `fd` may also be written with pwrite (wire.frames.write does); `offset` follows the file.
    """

    def __init__(self, name: str, fd: int, where: Path | None, reserve: int) -> None:
        """Take over `fd`; `where` is the spool's directory, None in memory."""
        self.name = name
        self.fd = fd
        self._where = where
        self._reserve = reserve
        self._lock = threading.Lock()
        self._fenced = False
        self._listed = False  # the directory entry is durable
        self.synced: Callable[[], None] = lambda: None  # called when `sync` has

    @property
    def offset(self) -> int:
        """Bytes received so far."""
        return os.fstat(self.fd).st_size

    def append(self, data: bytes | bytearray | memoryview) -> int:
        """Write all of `data` at the end and return the new offset.

        Raises Conflict when a newer handle has taken over, StorageError when the disk is full;
        the spool then ends where it ended before.
        """
        with self._lock:
            self._check()
            start = end = self.offset
            view = memoryview(data).cast("B")
            try:
                self._check_room(len(view))
                while len(view):
                    written = os.pwrite(self.fd, view, end)
                    end, view = end + written, view[written:]
            except OSError as e:
                with contextlib.suppress(OSError):
                    os.ftruncate(self.fd, start)
                raise _refused(f"write {self.name}", self._where, e) from e
            return end

    def expect(self, count: int) -> None:
        """Raise StorageError unless `count` more bytes fit beside the reserve.

        For those who write through `fd`: better refused before than half-way.
        """
        try:
            self._check_room(count)
        except OSError as e:
            raise _refused(f"write {count} bytes of {self.name}", self._where, e) from e

    def sync(self) -> None:
        """Return when everything written so far survives a power cut."""
        with self._lock:
            self._check()
            if self._where is None:
                return
            try:
                os.fdatasync(self.fd)
                if not self._listed:
                    sync_folder(self._where)
                    self._listed = True
            except OSError as e:
                raise _refused(f"sync {self.name}", self._where, e) from e
            self.synced()

    def fence(self) -> None:
        """Forbid any further append; returns when a running one has ended."""
        with self._lock:
            self._fenced = True

    def close(self) -> None:
        """Close the handle and keep the spool; closing twice is harmless."""
        with self._lock:
            self._fenced = True
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        if self._fenced:
            raise Conflict(f"spool {self.name} is closed, or was taken over by a newer upload")

    def _check_room(self, needed: int) -> None:
        if self._where is None or not self._reserve:
            return
        disk = os.fstatvfs(self.fd)
        if disk.f_bavail * disk.f_frsize < needed + self._reserve:
            raise OSError(errno.ENOSPC, f"only the reserve of {self._reserve} bytes is left")


class Blobs(Protocol):
    """Where the hub keeps frames. Digests are checked by core.ids, spool names likewise."""

    def open(self, digest: str) -> Blob:
        """Open a finished blob; raise NotFound when there is none."""

    def size(self, digest: str) -> int | None:
        """Bytes of a finished blob, None when there is none."""

    def open_spool(self, name: str) -> Spool:
        """Create a spool or go on with it, fencing any older handle."""

    def read_spool(self, name: str) -> Blob:
        """Open a spool for reading; raise NotFound when there is none."""

    def spooled(self, name: str) -> int | None:
        """Bytes in a spool, None when there is none."""

    def adopt(self, name: str, digest: str) -> None:
        """Make the spool the blob `digest`, durably.

        Done already (the blob is there, the spool gone): nothing. NotFound when neither is.
        """

    def discard(self, name: str) -> None:
        """Drop a spool if it is there."""

    def delete(self, digest: str) -> bool:
        """Drop a blob; say whether it was there. Who has it open reads on."""

    def blobs(self) -> dict[str, int]:
        """Digest -> bytes of every finished blob."""

    def spools(self) -> dict[str, int]:
        """Name -> bytes of every spool."""

    def close(self) -> None:
        """Fence all open spools and release what the store itself holds."""


class DiskBlobs:
    """Blobs under ROOT/blobs and ROOT/spool, which must be one file system."""

    def __init__(self, root: Path, reserve: int = RESERVE) -> None:
        """Open, making the two directories (mode 0700) when they are missing."""
        self._blobs, self._spool = root / "blobs", root / "spool"
        self._reserve = reserve
        self._lock = threading.Lock()
        self._open: dict[str, Spool] = {}
        for directory in (self._blobs, self._spool):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_folder(directory.parent)
            except OSError as e:
                raise _refused(f"make {directory}", root, e) from e
        if self._blobs.stat().st_dev != self._spool.stat().st_dev:
            raise ConfigError(
                f"{self._blobs} and {self._spool} are on different file systems; they must "
                "share one, so that a finished upload moves by a rename"
            )

    def open(self, digest: str) -> Blob:
        """Open a finished blob; raise NotFound when there is none."""
        return self._read(self._path(digest), f"blob {digest}")

    def size(self, digest: str) -> int | None:
        """Bytes of a finished blob, None when there is none."""
        return _size(self._path(digest))

    def open_spool(self, name: str) -> Spool:
        """Create a spool or go on with it, fencing any older handle."""
        path = self._spool_path(name)
        with self._lock:
            self._fence(name)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as e:
                raise _refused(f"open spool {name}", self._spool, e) from e
            spool = Spool(name, fd, self._spool, self._reserve)
            self._open[name] = spool
            return spool

    def read_spool(self, name: str) -> Blob:
        """Open a spool for reading; raise NotFound when there is none."""
        return self._read(self._spool_path(name), f"spool {name}")

    def spooled(self, name: str) -> int | None:
        """Bytes in a spool, None when there is none."""
        return _size(self._spool_path(name))

    def adopt(self, name: str, digest: str) -> None:
        """Make the spool the blob `digest`, durably; see Blobs.adopt."""
        source, target = self._spool_path(name), self._path(digest)
        with self._lock:
            self._fence(name)
            try:
                fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                if target.exists():
                    return
                raise NotFound(f"there is no spool {name} and no blob {digest}") from None
            except OSError as e:
                raise _refused(f"adopt {name}", self._spool, e) from e
            try:
                os.fdatasync(fd)
                # Always by rename, also over an equal blob: a delete() beside us then
                # comes before or after, and never takes the only copy.
                source.replace(target)
                sync_folder(self._blobs)
            except OSError as e:
                raise _refused(f"adopt {name} as {digest}", self._blobs, e) from e
            finally:
                os.close(fd)

    def discard(self, name: str) -> None:
        """Drop a spool if it is there."""
        path = self._spool_path(name)
        with self._lock:
            self._fence(name)
            try:
                path.unlink(missing_ok=True)
            except OSError as e:
                raise _refused(f"discard {name}", self._spool, e) from e

    def delete(self, digest: str) -> bool:
        """Drop a blob; say whether it was there. Who has it open reads on."""
        try:
            self._path(digest).unlink()
        except FileNotFoundError:
            return False
        except OSError as e:
            raise _refused(f"delete {digest}", self._blobs, e) from e
        return True

    def used(self, digest: str) -> float:
        """When a blob was last adopted or touched, Unix seconds; 0 when there is none."""
        try:
            return self._path(digest).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def blobs(self) -> dict[str, int]:
        """Digest -> bytes of every finished blob."""
        return {n.replace("-", ":", 1): s for n, s in self._scan(self._blobs)}

    def spools(self) -> dict[str, int]:
        """Name -> bytes of every spool."""
        return dict(self._scan(self._spool))

    def close(self) -> None:
        """Fence all open spools."""
        with self._lock:
            for name in list(self._open):
                self._fence(name)

    def _path(self, digest: str) -> Path:
        return self._blobs / ids.digest(digest).replace(":", "-", 1)

    def _spool_path(self, name: str) -> Path:
        return self._spool / _spool_name(name)

    def _fence(self, name: str) -> None:
        if older := self._open.pop(name, None):
            older.fence()

    def _read(self, path: Path, what: str) -> Blob:
        try:
            return Blob(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except FileNotFoundError:
            raise NotFound(f"there is no {what}") from None
        except OSError as e:
            raise _refused(f"open {what}", path.parent, e) from e

    def _scan(self, directory: Path) -> Iterator[tuple[str, int]]:
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    yield entry.name, entry.stat(follow_symlinks=False).st_size


class MemoryBlobs:
    """Blobs in anonymous memory files, for simulations: real descriptors, nothing on disk."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._blobs: dict[str, int] = {}
        self._spools: dict[str, int] = {}
        self._open: dict[str, Spool] = {}

    def open(self, digest: str) -> Blob:
        """Open a finished blob; raise NotFound when there is none."""
        with self._lock:
            if (fd := self._blobs.get(ids.digest(digest))) is None:
                raise NotFound(f"there is no blob {digest}")
            return Blob(os.dup(fd))

    def size(self, digest: str) -> int | None:
        """Bytes of a finished blob, None when there is none."""
        with self._lock:
            fd = self._blobs.get(ids.digest(digest))
            return None if fd is None else os.fstat(fd).st_size

    def open_spool(self, name: str) -> Spool:
        """Create a spool or go on with it, fencing any older handle."""
        with self._lock:
            self._fence(name)
            if (fd := self._spools.get(_spool_name(name))) is None:
                fd = self._spools[name] = os.memfd_create(f"spool {name}", os.MFD_CLOEXEC)
            spool = self._open[name] = Spool(name, os.dup(fd), None, 0)
            return spool

    def read_spool(self, name: str) -> Blob:
        """Open a spool for reading; raise NotFound when there is none."""
        with self._lock:
            if (fd := self._spools.get(_spool_name(name))) is None:
                raise NotFound(f"there is no spool {name}")
            return Blob(os.dup(fd))

    def spooled(self, name: str) -> int | None:
        """Bytes in a spool, None when there is none."""
        with self._lock:
            fd = self._spools.get(_spool_name(name))
            return None if fd is None else os.fstat(fd).st_size

    def adopt(self, name: str, digest: str) -> None:
        """Make the spool the blob `digest`; see Blobs.adopt."""
        ids.digest(digest)
        with self._lock:
            self._fence(name)
            fd = self._spools.pop(_spool_name(name), None)
            if fd is None and digest not in self._blobs:
                raise NotFound(f"there is no spool {name} and no blob {digest}")
            if fd is not None:
                if (older := self._blobs.pop(digest, None)) is not None:
                    os.close(older)
                self._blobs[digest] = fd

    def discard(self, name: str) -> None:
        """Drop a spool if it is there."""
        with self._lock:
            self._fence(name)
            if (fd := self._spools.pop(_spool_name(name), None)) is not None:
                os.close(fd)

    def delete(self, digest: str) -> bool:
        """Drop a blob; say whether it was there. Who has it open reads on."""
        with self._lock:
            if (fd := self._blobs.pop(ids.digest(digest), None)) is not None:
                os.close(fd)
            return fd is not None

    def blobs(self) -> dict[str, int]:
        """Digest -> bytes of every finished blob."""
        with self._lock:
            return {digest: os.fstat(fd).st_size for digest, fd in self._blobs.items()}

    def spools(self) -> dict[str, int]:
        """Name -> bytes of every spool."""
        with self._lock:
            return {name: os.fstat(fd).st_size for name, fd in self._spools.items()}

    def close(self) -> None:
        """Fence all open spools and give the memory back."""
        with self._lock:
            for name in list(self._open):
                self._fence(name)
            for fd in (*self._blobs.values(), *self._spools.values()):
                os.close(fd)
            self._blobs.clear()
            self._spools.clear()

    def _fence(self, name: str) -> None:
        if older := self._open.pop(name, None):
            older.fence()


def _spool_name(name: str) -> str:
    if not _SPOOL.fullmatch(name):
        raise ConfigError(
            f"spool name {name[:80]!r} is not allowed: use 1 to 200 of a-z 0-9 . _ - "
            "with a letter or digit first"
        )
    return name


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _refused(what: str, where: Path | None, e: OSError) -> StorageError:
    full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cure = "the disk is full: free some space, then try again" if full else "check the disk"
    return StorageError(f"cannot {what} in {where or 'memory'}: {e.strerror}; {cure}")
