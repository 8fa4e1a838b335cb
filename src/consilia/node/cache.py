"""Models at the node, by digest: a folder with a size cap. What is in use is never evicted.

The least recently used frame goes first. The link gives a file its name only once it was
verified whole (node.blobline), so a file under its name is complete; what a broken transfer
has left lies beside it under another. Methods are thread-safe and block only on the disk.
"""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consilia.core import ids
from consilia.errors import ConsiliaError, StorageError, WireError
from consilia.wire import frames

_FRAME = ".frame"


class Cache:
    """Frames in `root`, together at most `cap` bytes unless more are in use at once."""

    def __init__(self, root: Path, cap: int) -> None:
        """Open the folder (made 0700 when missing) and take stock of it."""
        root.mkdir(mode=0o700, exist_ok=True)
        self._root = root
        self._cap = cap
        self._lock = threading.Lock()
        self._users: dict[str, int] = {}
        self._checked: dict[str, int] = {}  # size of each frame whose header was looked at
        self._sizes: OrderedDict[str, int] = OrderedDict()  # by digest, oldest use first
        self._jobs: dict[str, list[str]] = {}  # of each job: its first model, and its newest
        found = [(p.stat(), p) for p in root.iterdir() if p.suffix == _FRAME]
        for status, path in sorted(found, key=lambda item: item[0].st_mtime):
            self._sizes["b3:" + path.stem] = status.st_size

    @contextmanager
    def using(self, digest: str) -> Iterator[Path | None]:
        """Yield the frame's path, or None when it is not here; it stays while it is used."""
        with self._lock:
            self._users[digest] = self._users.get(digest, 0) + 1
        try:
            yield self._find(digest)
        finally:
            with self._lock:
                self._users[digest] -= 1
                if not self._users[digest]:
                    del self._users[digest]

    def path(self, digest: str) -> Path:
        """Return where the frame is, or has to be brought; raise ConfigError for no digest."""
        return self._root / (ids.digest(digest).removeprefix("b3:") + _FRAME)

    def newest(self, job: str, digest: str) -> None:
        """Note that `digest` is now the job's model; those between it and the first may go.

        Jobs start from others' first and last models, hardly ever from one in between; and a
        frame that is dropped before the disk has it costs no writing.
        """
        with self._lock:
            models = self._jobs.setdefault(job, [])
            if digest in models:
                return
            middle = [m for m in models[1:] if m not in self._users]
            self._jobs[job] = [m for m in models if m not in middle] + [digest]
            kept = {m for models in self._jobs.values() for m in models}
            for model in middle:
                if model not in kept:
                    self._drop(model)

    def ended(self, job: str) -> None:
        """Forget the job; its models stay until they are evicted."""
        with self._lock:
            self._jobs.pop(job, None)

    def adopt(self, digest: str) -> Path:
        """Count in a frame that was just brought, evict others if need be; return its path."""
        path = self.path(digest)
        try:
            size = path.stat().st_size
        except OSError as e:
            raise StorageError(f"{path} is not in the cache: {e.strerror}") from None
        with self._lock:
            self._checked[digest] = self._sizes[digest] = size
            self._sizes.move_to_end(digest)
            self._evict()
        return path

    def paths(self) -> list[Path]:
        """Return the frames that are here, most recently used first."""
        with self._lock:
            return [self.path(digest) for digest in reversed(self._sizes)]

    def clear(self) -> int:
        """Remove every frame that is not in use; return how many bytes they took."""
        with self._lock:
            unused = [digest for digest in self._sizes if digest not in self._users]
            freed = sum(self._sizes[digest] for digest in unused)
            for digest in unused:
                self._drop(digest)
            return freed

    @property
    def bytes(self) -> int:
        """How much the frames take."""
        with self._lock:
            return sum(self._sizes.values())

    def _find(self, digest: str) -> Path | None:
        path = self.path(digest)
        with contextlib.suppress(ConsiliaError, OSError):
            size = path.stat().st_size
            if self._checked.get(digest) != size:
                self._check(digest, path, size)
            os.utime(path)
            return self.adopt(digest)
        # Not here, damaged, or removed by hand: it is fetched again.
        with self._lock:
            self._sizes.pop(digest, None)
            self._checked.pop(digest, None)
        return None

    def _check(self, digest: str, path: Path, size: int) -> None:
        """Remove a frame that the disk has damaged, and raise.

        Only what was read and found wrong is removed: another thread may be bringing the same
        frame, and what it has just named is whole.
        """
        try:
            header = frames.read_header(path)
            if header.digest != digest or size != header.total_bytes:
                raise WireError(f"{path} is not what its name says")
        except WireError:
            path.unlink(missing_ok=True)
            raise

    def _evict(self) -> None:
        total = sum(self._sizes.values())
        for digest in list(self._sizes):
            if total <= self._cap:
                return
            if digest not in self._users:
                total -= self._sizes[digest]
                self._drop(digest)

    def _drop(self, digest: str) -> None:
        self._sizes.pop(digest, None)
        self._checked.pop(digest, None)
        self.path(digest).unlink(missing_ok=True)
