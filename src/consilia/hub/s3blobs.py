"""Blobs in an S3-compatible bucket, with a folder on this machine before it.

A frame arrives in a spool on the local disk, goes to the bucket when it is adopted, and is
only then a blob: `adopt` returns when the bucket has it whole. Reads come from the folder; what
is not there is fetched, checked against its digest and kept, the least recently used going
first. So several hubs on one bucket see one set of blobs, and losing the disk loses nothing
but what was still arriving.

Where several hubs stand in for each other (`share`, see hub.replica), the spool of a lease goes
into the bucket as well when it is made durable: an update that was acknowledged survives the
hub that took it. The hub that goes on finds it there.

Requests are those of obstore (Rust's object_store), which retries them itself.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from consilia.core import ids
from consilia.errors import ConfigError, NotFound, StorageError, UpdateRejected, WireError
from consilia.hub.blobs import RESERVE, Blob, DiskBlobs, Spool
from consilia.wire.frames import Verifier

if TYPE_CHECKING:
    from obstore.store import S3Store

PIECE = 16 << 20  # bytes of one part of an upload, and of one read
_FOLDER = "blobs/"
_SPOOLS = "spool/"
_FETCH = "s3-fetch-"  # spools of what is being fetched; not anybody's upload

Check = Callable[[int, str], None]


def bucket(  # noqa: PLR0913 - what names a bucket
    name: str,
    *,
    endpoint: str = "",
    region: str = "",
    prefix: str = "",
    key: tuple[str, str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> "S3Store":
    """Return a bucket; raise ConfigError where obstore is missing.

    `key` is (access key id, secret); without one, credentials come from the environment or the
    machine's role, as with every S3 client. Plain http is spoken to loopback addresses only.
    """
    try:
        from obstore.store import S3Store  # noqa: PLC0415  # an optional extra
    except ImportError:
        raise ConfigError(
            "s3 is set but obstore is not installed: pip install 'consilia[s3]'"
        ) from None
    asked = urlsplit(endpoint)  # in http://127.0.0.1:1@host, 127.0.0.1 is no machine
    http = asked.scheme == "http" and asked.hostname in ("127.0.0.1", "localhost", "::1")
    if endpoint and not http and not endpoint.startswith("https://"):
        raise ConfigError(f"s3.endpoint: {endpoint!r} must begin with https://")
    config: dict[str, object] = {
        "region": region or environ.get("AWS_REGION", "us-east-1"),
        "virtual_hosted_style_request": not endpoint,
    }
    if endpoint:
        config["endpoint"] = endpoint
    if key is not None:
        config["access_key_id"], config["secret_access_key"] = key
    options = {"allow_http": True} if http else {}
    return S3Store(
        name,
        prefix=prefix or None,
        config=config,  # type: ignore[arg-type]  # typed by literal keys
        client_options=options,  # type: ignore[arg-type]
    )


def check_frame(fd: int, digest: str) -> None:
    """Raise WireError or UpdateRejected unless the file is the frame of that digest."""
    size = os.fstat(fd).st_size
    verifier = Verifier(size, check_finite=False, expected=digest)
    verifier.feed_file(fd, size)
    if not verifier.complete:
        raise WireError(f"the frame ends after {size} bytes")


class S3Blobs:
    """Blobs in `store`, cached under `root` in at most `cache_bytes` unless all is in use."""

    def __init__(  # noqa: PLR0913 - where, how much, how checked
        self,
        store: "S3Store",
        root: Path,
        *,
        cache_bytes: int,
        check: Check = check_frame,
        reserve: int = RESERVE,
        share: bool = False,
    ) -> None:
        """`check(fd, digest)` raises for a fetched file that is not what its name says.

        `share`: this hub alone writes to the bucket now, and others may go on after it.
        """
        self._store = store
        self._disk = DiskBlobs(root, reserve)
        self._check = check
        self._cap = cache_bytes
        self._fetching: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        for name in self._disk.spools():
            if name.startswith(_FETCH):
                self._disk.discard(name)
        self._share = share
        # Those that another hub has left. Nobody adds to them while this one works; what is of
        # an older time on this disk is not believed, as the other may have gone on with it.
        self._left = self._listed(_SPOOLS) if share else {}
        for name in self._disk.spools() if share else ():
            if _lasting(name):
                self._disk.discard(name)

    def open(self, digest: str) -> Blob:
        """Open a finished blob, fetching it first if need be; raise NotFound for none."""
        with contextlib.suppress(NotFound):
            return self._used(self._disk.open(digest))
        with self._alone(digest):
            with contextlib.suppress(NotFound):  # another thread has fetched it meanwhile
                return self._used(self._disk.open(digest))
            self._fetch(digest)
            blob = self._disk.open(digest)
        self._evict(keep=digest)
        return blob

    def size(self, digest: str) -> int | None:
        """Bytes of a finished blob, None when there is none."""
        import obstore  # noqa: PLC0415

        try:
            with _asked("look for", digest):
                return obstore.head(self._store, _key(digest))["size"]
        except NotFound:
            return None

    def open_spool(self, name: str) -> Spool:
        """Create a spool or go on with it, fencing any older handle."""
        self._bring(name)
        spool = self._disk.open_spool(name)
        if self._share and _lasting(name):
            spool.synced = lambda: self._put_spool(name, spool.fd)
        return spool

    def read_spool(self, name: str) -> Blob:
        """Open a spool for reading; raise NotFound when there is none."""
        self._bring(name)
        return self._disk.read_spool(name)

    def spooled(self, name: str) -> int | None:
        """Bytes in a spool, None when there is none."""
        return self._left.get(name) or self._disk.spooled(name)

    def adopt(self, name: str, digest: str) -> None:
        """Make the spool the blob `digest`, durably; see Blobs.adopt."""
        import obstore  # noqa: PLC0415

        path = _key(digest)
        try:
            spool = self._disk.read_spool(name)
        except NotFound:
            if self.size(digest) is None:
                raise NotFound(f"there is no spool {name} and no blob {digest}") from None
            return
        with spool, os.fdopen(os.dup(spool.fd), "rb") as file:
            file.seek(0)
            try:
                with _asked("store", digest):
                    obstore.put(self._store, path, file, chunk_size=PIECE)
            except NotFound:  # S3's 404 to a PUT
                raise StorageError(
                    "the bucket does not exist: make it, or correct s3"
                ) from None
        self._disk.adopt(name, digest)
        self._evict(keep=digest)

    def discard(self, name: str) -> None:
        """Drop a spool if it is there."""
        import obstore  # noqa: PLC0415

        self._disk.discard(name)
        if self._share and _lasting(name):
            self._left.pop(name, None)
            with contextlib.suppress(NotFound), _asked("delete spool", name):
                obstore.delete(self._store, _SPOOLS + name)

    def delete(self, digest: str) -> bool:
        """Drop a blob; say whether it was there. Who has it open reads on."""
        import obstore  # noqa: PLC0415

        there = self.size(digest) is not None
        with _asked("delete", digest):
            obstore.delete(self._store, _key(digest))
        self._disk.delete(digest)
        return there

    def blobs(self) -> dict[str, int]:
        """Digest -> bytes of every finished blob of the bucket."""
        found = self._listed(_FOLDER)
        return {name.replace("-", ":", 1): size for name, size in found.items()}

    def spools(self) -> dict[str, int]:
        """Name -> bytes of every spool on this machine, or left by another hub."""
        found = {**self._disk.spools(), **self._left}
        return {name: size for name, size in found.items() if not name.startswith(_FETCH)}

    def close(self) -> None:
        """Fence all open spools."""
        self._disk.close()

    # ---- the folder --------------------------------------------------------------------------

    def _fetch(self, digest: str) -> None:
        """Bring a blob into the folder, whole and checked."""
        import obstore  # noqa: PLC0415

        name = _FETCH + ids.digest(digest).replace(":", "-", 1)
        self._disk.discard(name)
        with _asked("read", digest):
            with self._disk.open_spool(name) as spool:
                for piece in obstore.get(self._store, _key(digest)).stream(PIECE):
                    spool.append(memoryview(piece))
                try:
                    self._check(spool.fd, digest)
                except (WireError, UpdateRejected) as e:
                    raise StorageError(
                        f"the bucket's object {_key(digest)} is not blob {digest}: {e}; "
                        "restore it from a copy of the bucket"
                    ) from None
            self._disk.adopt(name, digest)

    def _listed(self, folder: str) -> dict[str, int]:
        """Object name, without its folder -> bytes."""
        import obstore  # noqa: PLC0415

        found: dict[str, int] = {}
        with _asked("list", "the bucket"):
            for page in obstore.list(self._store, prefix=folder):
                for item in page:
                    found[item["path"].rpartition("/")[2]] = item["size"]
        return found

    def _put_spool(self, name: str, fd: int) -> None:
        import obstore  # noqa: PLC0415

        with os.fdopen(os.dup(fd), "rb") as file, _asked("store spool", name):
            file.seek(0)
            obstore.put(self._store, _SPOOLS + name, file, chunk_size=PIECE)

    def _bring(self, name: str) -> None:
        """Fetch the spool that another hub has left, once."""
        import obstore  # noqa: PLC0415

        if name not in self._left:
            return
        with self._alone(name):
            if name not in self._left:
                return
            with _asked("read spool", name), self._disk.open_spool(name) as spool:
                os.ftruncate(spool.fd, 0)  # what a fetch that broke has left
                for piece in obstore.get(self._store, _SPOOLS + name).stream(PIECE):
                    spool.append(memoryview(piece))
                spool.sync()
            del self._left[name]

    def _used(self, blob: Blob) -> Blob:
        os.utime(blob.fd)  # what was read last goes last
        return blob

    def _evict(self, keep: str) -> None:
        """Drop what was used longest ago until the cap holds; open files stay readable."""
        with self._lock:
            held = self._disk.blobs()
            total = sum(held.values())
            for digest in sorted(held, key=self._disk.used):
                if total <= self._cap:
                    return
                if digest != keep and self._disk.delete(digest):
                    total -= held[digest]

    @contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        """One thread at a time for one digest: a frame is fetched once."""
        with self._lock:
            mine = self._fetching.setdefault(digest, threading.Lock())
        with mine:
            yield
        with self._lock:
            self._fetching.pop(digest, None)


def _lasting(name: str) -> bool:
    """Return whether a spool is what a site has sent; others are made anew after a restart."""
    return name.startswith("job-")


def _key(digest: str) -> str:
    return _FOLDER + ids.digest(digest).replace(":", "-", 1)


@contextmanager
def _asked(what: str, digest: str) -> Iterator[None]:
    """Raise NotFound for what the bucket does not have, StorageError for all else it says."""
    from obstore.exceptions import BaseError  # noqa: PLC0415

    try:
        yield
    except FileNotFoundError:  # as which obstore raises S3's 404
        raise NotFound(f"there is no blob {digest}") from None
    except (BaseError, OSError) as e:
        words = str(e).partition("\n")[0][:300]
        raise StorageError(
            f"cannot {what} {digest} in the bucket: {words}; check the line to the S3 service, "
            "its credentials and its quota"
        ) from e
