"""One blob connection: its requests, one after the other, from head to last byte.

    GET  /v1/blobs/{digest}    whole, or Range: bytes=a- / a-b
    HEAD /v1/uploads/{lease}   how far an upload has come
    PUT  /v1/uploads/{lease}   its next bytes; the last ones bring the verdict

Every request proves its identity again, so that a revoked site ends at its next request. What
a site may read and write is the federation's answer, never the caller's knowledge of a digest.
Time limits: a request's head, any silence within a body, and each piece (256 KiB) of an upload.
"""

import contextlib
import os
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from consilia.core import ids
from consilia.errors import AuthError, ConfigError, Conflict, ConsiliaError, NotFound, WireError
from consilia.hub.blobhttp import MAX_HEAD, Request, parse, parse_range, response
from consilia.hub.telemetry import Log
from consilia.wire.frames import Header
from consilia.wire.problem import problem

Moved = Callable[[str, str, int], None]  # site, "in" or "out", bytes
State = Literal["handshake", "idle", "busy"]
_LEASE = re.compile(r"[a-z0-9][a-z0-9._-]{0,199}")


class BlobHandle(Protocol):
    """An open frame."""

    @property
    def fd(self) -> int:
        """For pread."""

    @property
    def size(self) -> int:
        """Bytes."""

    def close(self) -> None:
        """Let go."""


class Upload(Protocol):
    """A frame on its way in; see hub.uploads."""

    @property
    def offset(self) -> int:
        """Bytes taken so far."""

    def announce(self, total: int) -> None:
        """Take note of how many bytes there will be; raise WireError when that is too many."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes."""

    def finish(self) -> Header:
        """Verify and make durable."""

    def close(self) -> None:
        """Let go, keeping what has come."""


class FrameStore(Protocol):
    """What the plane asks of the federation. Called from many threads."""

    def readable(self, site: str, digest: str) -> BlobHandle:
        """Open a frame that `site` may read now; raise Refused or NotFound."""

    def upload(self, site: str, lease: str) -> Upload:
        """Open the upload of a lease of `site`; raise Refused or NotFound."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Patience, in seconds."""

    handshake: float = 10.0
    head: float = 10.0  # from a request's first byte to its last header
    idle: float = 300.0  # between requests
    silence: float = 60.0  # within a body, either way
    drain: float = 30.0  # for the rest of a body that was refused
    dawdle: float = 2.0  # after which a handshake may be closed to make room


@dataclass(frozen=True, slots=True)
class Served:
    """What all sessions of a hub have in common."""

    identify: Callable[[bytes], str]  # whose certificate it is; raises AuthError
    frames: FrameStore
    log: Log
    moved: Moved
    timings: Timings


@dataclass(frozen=True, slots=True)
class Place:
    """A connection's place among the others, which the plane keeps."""

    peer: str
    enter: Callable[[State], None]  # what it does from now on; raises Ended when it must go
    admit: Callable[[str], None]  # whose request it answers; raises Ended: too many of them
    crowded: Callable[[], bool]  # whether it gives its thread up once it has answered


class Ended(Exception):
    """The connection is over; nothing more can be said on it."""


class Session:
    """The requests of one connection."""

    def __init__(
        self,
        served: Served,
        place: Place,
        tls: ssl.SSLSocket,
        certificate: bytes,
    ) -> None:
        self._served = served
        self._place = place
        self._known = False  # whose requests these are
        self._tls = tls
        self._certificate = certificate
        self._buffer = memoryview(b"")  # of the thread that serves it
        self._extra = 0  # bytes of the body that came with the head, at `_extra_at`
        self._extra_at = 0
        self._left = 0  # bytes of the body that are still to come
        self._keep = True

    def run(self, buffer: memoryview, again: bool) -> bool:
        """Answer requests until either side has had enough; True when it is to be parked.

        `again`: it was parked, and the next request is there.
        """
        self._buffer, timings = buffer, self._served.timings
        while self._keep:
            if not again:
                self._place.enter("idle")
            patience = timings.head if again else timings.idle
            again = False
            if not (got := self._receive(self._buffer[:MAX_HEAD], patience)):
                return False
            self._place.enter("busy")
            try:
                request = self._head(got)
            except WireError as e:
                self._keep = False
                self._fail(e)
                self._linger()
                return False
            self._keep = request.keep
            self._answer(request)
            if self._keep and self._place.crowded() and not self._tls.pending():
                return self._known
        return False

    def _answer(self, request: Request) -> None:
        try:
            site = self._served.identify(self._certificate)
            self._known = True
            self._place.admit(site)
            self._route(request, site)
        except ConsiliaError as e:
            self._served.log.info(
                "blob request refused",
                peer=self._place.peer,
                path=request.path,
                error=type(e).__name__,
                cause=str(e)[:500],
            )
            self._keep = self._keep and not isinstance(e, AuthError)
            self._fail(e, bodiless=request.method == "HEAD")
        self._linger()

    def _route(self, request: Request, site: str) -> None:
        kind, _, name = request.path.removeprefix("/v1/").partition("/")
        match request.method, kind:
            case "GET", "blobs":
                self._get(request, site, name)
            case "HEAD", "uploads":
                upload = self._served.frames.upload(site, _lease(name))
                try:
                    self._send(200, {"Upload-Offset": upload.offset})
                finally:
                    upload.close()
            case "PUT", "uploads":
                self._put(request, site, _lease(name))
            case _:
                raise NotFound(f"{request.method} {request.path[:80]!r} is not a blob road")

    # ---- download ----------------------------------------------------------------------------

    def _get(self, request: Request, site: str, digest: str) -> None:
        try:
            blob = self._served.frames.readable(site, ids.digest(digest))
        except ConfigError as e:
            raise WireError(str(e)) from None
        try:
            span = parse_range(request.range, blob.size)
            if span is None:
                self._send(416, {"Content-Range": f"bytes */{blob.size}"})
                return
            start, stop = span
            fields: dict[str, object] = {"Accept-Ranges": "bytes"}
            if request.range:
                fields["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
            self._send(206 if request.range else 200, fields, length=stop - start)
            self._send_file(blob.fd, start, stop, site)
        finally:
            blob.close()

    def _send_file(self, fd: int, start: int, stop: int, site: str) -> None:
        at = start
        try:
            while at < stop:
                view = self._buffer[: stop - at]
                if not (count := os.preadv(fd, [view], at)):
                    self._served.log.error("a stored frame is shorter than it was", site=site)
                    raise Ended("stored frame cut off")
                self._tls.sendall(view[:count])
                at += count
        finally:
            self._served.moved(site, "out", at - start)

    # ---- upload ------------------------------------------------------------------------------

    def _put(self, request: Request, site: str, lease: str) -> None:
        start, total, length = request.upload_offset, request.upload_length, request.length
        if start is None or total is None or length is None or start + length > total:
            raise WireError(
                "PUT needs Upload-Offset, Upload-Length and Content-Length, and no more bytes "
                "than Upload-Length says"
            )
        upload = self._served.frames.upload(site, lease)
        try:
            upload.announce(total)
            if start != upload.offset:
                self._send_problem(
                    Conflict(f"upload {lease} goes on at {upload.offset}, not at {start}"),
                    {"Upload-Offset": upload.offset},
                )
                return
            self._take(upload, site)
            fields: dict[str, object] = {"Upload-Offset": start + length}
            if start + length == total:
                fields["Frame-Digest"] = upload.finish().digest
            self._send(200, fields)
        finally:
            upload.close()

    def _take(self, upload: Upload, site: str) -> None:
        """Hand the body to `upload`; what came before a line broke is kept."""
        taken = 0
        try:
            while self._left:
                piece, whole = self._fill()
                upload.write(piece)
                taken += len(piece)
                if not whole:
                    raise Ended(f"line broke {self._left} bytes before the end of an upload")
        finally:
            self._served.moved(site, "in", taken)

    # ---- bytes -------------------------------------------------------------------------------

    def _receive(self, view: memoryview, patience: float) -> int:
        self._tls.settimeout(patience)
        return self._tls.recv_into(view)

    def _head(self, got: int) -> Request:
        """Read the rest of a request's head; `got` bytes of it are in the buffer."""
        end = time.monotonic() + self._served.timings.head
        while (stop := bytes(self._buffer[:got]).find(b"\r\n\r\n")) < 0:
            left = end - time.monotonic()
            if got >= MAX_HEAD or left <= 0:
                raise WireError("request head too long or too slow")
            if not (more := self._receive(self._buffer[got:MAX_HEAD], left)):
                raise Ended("line closed within a request's head")
            got += more
        request = parse(bytes(self._buffer[:stop]))
        self._extra_at = stop + 4
        self._extra = min(got - self._extra_at, request.length or 0)
        self._left = request.length or 0
        if got - self._extra_at > self._left:
            raise WireError("bytes after the end of a request: no pipelining here")
        return request

    def _fill(self) -> tuple[memoryview, bool]:
        """Return the next piece of the body, and False when the line broke within it."""
        if self._extra:
            piece = self._buffer[self._extra_at : self._extra_at + self._extra]
            self._left -= self._extra
            self._extra = 0
            return piece, True
        room = self._buffer[: self._left]
        got, receive = 0, self._tls.recv_into  # gives one TLS record, 16 KiB, at a time
        self._tls.settimeout(self._served.timings.silence)
        end = time.monotonic() + self._served.timings.silence
        with contextlib.suppress(OSError):
            while got < len(room) and (count := receive(room[got:])):
                got += count
                if got < len(room) and time.monotonic() > end:
                    break  # bytes that drip in count as silence
        self._left -= got
        return room[:got], got == len(room)

    def _linger(self) -> None:
        """Read away a refused body, so that the answer is not lost in a connection reset."""
        end = time.monotonic() + self._served.timings.drain
        self._left -= self._extra
        self._extra = 0
        while self._left:
            # The deadline holds for every read: a body that drips in must not hold the thread.
            left = end - time.monotonic()
            if left <= 0 or not (got := self._receive(self._buffer[: self._left], left)):
                raise Ended("rest of a refused body not read")
            self._left -= got

    def _fail(self, error: ConsiliaError, *, bodiless: bool = False) -> None:
        self._send_problem(error, {}, bodiless=bodiless)

    def _send_problem(
        self, error: ConsiliaError, fields: dict[str, object], *, bodiless: bool = False
    ) -> None:
        status, told = problem(error)
        if status >= 500:
            self._served.log.error("blob request failed", cause=str(error))
        body = b"" if bodiless else msgspec.msgpack.encode(told)
        self._send(status, fields, body)

    def _send(
        self,
        status: int,
        fields: dict[str, object],
        body: bytes = b"",
        *,
        length: int | None = None,
    ) -> None:
        size = len(body) if length is None else length
        self._tls.settimeout(self._served.timings.silence)
        self._tls.sendall(response(status, {"Content-Length": size, **fields}) + body)


def _lease(name: str) -> str:
    if not _LEASE.fullmatch(name):
        raise WireError(f"{name[:80]!r} is not a lease")
    return name
