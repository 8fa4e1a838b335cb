"""Updates on their way in: spooled, checked while they stream, resumed after a broken line.

    upload = uploads.open(lease, limit)      # offset tells where to go on
    upload.write(piece) ... upload.finish()  # verified and durable

Called from the blob plane's threads. A newer upload of a lease fences the older one, whose
thread then fails at its next write. After a hub restart the spool is read back through a
fresh verifier, so a resumed upload is checked from its first byte like any other.
"""

import os
import threading
from collections.abc import Callable

from consilia.errors import StorageError, TransferError, UpdateRejected, WireError
from consilia.hub.blobs import Blobs, Spool
from consilia.wire.frames import Header, Verifier


class _Transfer:
    """What is known of one lease's upload across its connections. `lock` guards the rest."""

    def __init__(self, limit: int) -> None:
        self.lock = threading.Lock()
        self.limit = limit
        self.verifier = Verifier(limit)
        self.durable: Header | None = None


class Upload:
    """One connection's hold on an upload. Not shared between threads."""

    def __init__(
        self,
        transfer: _Transfer,
        spool: Spool,
        limit: int,
        faulty: Callable[[str], None],
        received: Callable[[int], None],
    ) -> None:
        self._transfer = transfer
        self._spool = spool
        self._faulty = faulty
        self._received = received
        self.limit = limit

    @property
    def offset(self) -> int:
        """Bytes spooled and checked so far; the next `write` continues there."""
        return self._transfer.verifier.position

    def announce(self, total: int) -> None:
        """Raise WireError, and settle the lease as rejected, when `total` is too much."""
        if total > self.limit:
            cause = f"frame of {total} bytes is over the limit of {self.limit}"
            self._faulty(cause)
            raise WireError(cause)

    def write(self, data: memoryview) -> None:
        """Spool and check the next bytes.

        Raises WireError or UpdateRejected when the frame is unsound (its lease is then settled
        as rejected), StorageError when the disk refuses (the spool is kept), Conflict when a
        newer connection has taken over.
        """
        with self._transfer.lock:
            self._spool.append(data)
            try:
                self._transfer.verifier.feed(data)
            except (WireError, UpdateRejected) as e:
                self._faulty(str(e))
                raise
        self._received(len(data))

    def finish(self) -> Header:
        """Return the header once the frame is whole, sound and durable; idempotent."""
        with self._transfer.lock:
            transfer = self._transfer
            if transfer.durable is None:
                header = transfer.verifier.header
                if header is None or not transfer.verifier.complete:
                    needed = "its header" if header is None else f"{header.total_bytes} bytes"
                    raise TransferError(
                        f"upload {self._spool.name} ends after {transfer.verifier.position} "
                        f"bytes, needed {needed}; send the rest"
                    )
                self._spool.sync()
                transfer.durable = header
            return transfer.durable

    def close(self) -> None:
        """Let go and keep the spool for a later connection; harmless when called twice."""
        self._spool.close()


class Uploads:
    """The uploads of all open leases. Every method may be called from any thread."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()
        self._transfers: dict[str, _Transfer] = {}

    def open(
        self,
        lease: str,
        limit: int,
        faulty: Callable[[str], None] = lambda _: None,
        received: Callable[[int], None] = lambda _: None,
    ) -> Upload:
        """Begin or go on with the upload of `lease`, at most `limit` bytes in all.

        `faulty(cause)` is called when the frame turns out unsound, `received(bytes)` for every
        piece; both on the caller's thread.
        """
        transfer = self._transfer(lease, limit)
        with transfer.lock:
            spool = self._blobs.open_spool(lease)
            try:
                if transfer.verifier.position != spool.offset:
                    self._catch_up(transfer, spool)
            except BaseException:
                spool.close()
                raise
        return Upload(transfer, spool, limit, faulty, received)

    def known(self, lease: str) -> Header | None:
        """Return the header of an upload that this process has seen finished. Never blocks."""
        with self._lock:
            transfer = self._transfers.get(lease)
        return None if transfer is None else transfer.durable

    def durable(self, lease: str, limit: int) -> Header | None:
        """Return the header of a whole, sound and durable upload, else None.

        Reads the spool when this process has not seen the upload itself (after a restart).
        """
        if (known := self.known(lease)) is not None:
            return known
        if not self._blobs.spooled(lease):
            return None
        upload = self.open(lease, limit)
        try:
            return upload.finish()
        except TransferError:
            return None
        finally:
            upload.close()

    def forget(self, lease: str) -> None:
        """Drop what is known of a lease, and its spool."""
        with self._lock:
            self._transfers.pop(lease, None)
        self._blobs.discard(lease)

    def _transfer(self, lease: str, limit: int) -> _Transfer:
        with self._lock:
            if (known := self._transfers.get(lease)) is None:
                known = self._transfers[lease] = _Transfer(limit)
            return known

    def _catch_up(self, transfer: _Transfer, spool: Spool) -> None:
        """Check again what the spool holds; bytes a power cut has damaged are sent again."""
        transfer.verifier, transfer.durable = Verifier(transfer.limit), None
        try:
            transfer.verifier.feed_file(spool.fd, spool.offset)
        except (WireError, UpdateRejected):
            transfer.verifier = Verifier(transfer.limit)
            _empty(spool)


def _empty(spool: Spool) -> None:
    try:
        os.ftruncate(spool.fd, 0)
    except OSError as e:
        raise StorageError(f"could not empty damaged spool {spool.name}: {e.strerror}") from e
