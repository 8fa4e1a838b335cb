"""Routes of model versions and their tensor frames."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from litestar import Request, Response, get, put
from litestar.exceptions import HTTPException
from litestar.params import FromPath, FromQuery
from litestar.response import Stream
from sqlalchemy import Connection

from consilia.errors import (
    ConfigError,
    ConsiliaError,
    NotFound,
    Refused,
    TransferError,
    WireError,
)
from consilia.hub import audit, bases, modelversions, stages, withdrawals
from consilia.hub.blobs import Blob
from consilia.hub.modelversions import Version
from consilia.hub.rest.guard import Caller, Who
from consilia.hub.rest.services import FrameAsk, FrameSpan, Hub, Services
from consilia.hub.rest.snapshot import KEPT
from consilia.hub.rest.together import Together
from consilia.hub.rest.views import released_to, sees_model
from consilia.hub.uploads import Upload
from consilia.hub.views import model_view
from consilia.wire.frames import CHUNK, Header
from consilia.wire.people import FrameView, ModelView, Page, Stage

SPOOL = "frame-"  # of base frames on their way in; see `app`, which clears what a crash left
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})?")
STALL = 60.0  # seconds without a byte after which an upload is given up
SMALL = 64 << 10  # bytes of a frame that are answered in one piece
_BATCH = 1 << 20  # bytes handed to a thread at once


def seen_version(db: Connection, who: Caller, id: str) -> tuple[Version, str]:
    """Return a model version the caller may see and its stage, else raise NotFound.

    Who is a downstream user sees what was released, of any study, and nothing else.
    """
    found = modelversions.get(db, id)
    stage = stages.current(db, (id,)).get(id, "")
    if not sees_model(db, who, found.study, stage):
        raise NotFound(f"there is no model version {id!r}")
    return found, stage


class _Frame(NamedTuple):
    """What is asked of a model version before its frame is given."""

    study: str
    digest: str
    bytes: int
    deleted: float | None
    stage: str | None


# Written out, as it is asked for every piece of a model that somebody reads.
_FRAME = """
SELECT v.study, v.digest, v.bytes, v.deleted, s.stage FROM versions v
LEFT JOIN stages s ON s.model = v.id AND s.current WHERE v.id = ?
"""
_FRAMES = {"sqlite": _FRAME, "postgresql": _FRAME.replace("?", "%s")}


def _seen_frame(db: Connection, who: Caller, id: str) -> _Frame:
    """Return where a model's frame is, for who may use it; else NotFound.

    That is who may see it (`seen_version`) by another role than auditor.
    """
    row = db.exec_driver_sql(_FRAMES[db.dialect.name], (id,)).first()
    found = None if row is None else _Frame(*row)
    if found is None or not sees_model(db, who.as_user(), found.study, found.stage):
        raise NotFound(f"there is no model version {id!r}")
    if found.deleted is not None:
        raise NotFound(
            f"the frame of model version {id} was deleted by the hub's retention rule; what "
            "it was made of is still on record"
        )
    return found


@get("/models", opt=KEPT)
async def list_models(  # noqa: PLR0913, PLR0917 - a query's parameters
    hub: Hub,
    who: Who,
    job: FromQuery[str | None] = None,
    stage: FromQuery[Stage | None] = None,
    limit: FromQuery[int] = 100,
    cursor: FromQuery[str | None] = None,
) -> Page[ModelView]:
    """List model versions, newest first: all, or those at a stage."""

    def read(db: Connection) -> Page[ModelView]:
        among = None if stage is None else stages.at_stage(stage)
        page = modelversions.page(
            db,
            job=job,
            limit=limit,
            cursor=cursor,
            author=who.only,
            among=among,
            also=released_to(who),
        )
        at = stages.current(db, [v.id for v in page.items])
        left = withdrawals.marks(db, page.items)
        items = tuple(model_view(v, at.get(v.id, ""), left.get(v.id, ())) for v in page.items)
        return Page(items=items, next=page.next)

    return await hub.store.read(read)


@get("/models/{id:str}", opt=KEPT)
async def get_model(hub: Hub, who: Who, id: FromPath[str]) -> ModelView:
    """Show one model version with its lineage."""

    def read(db: Connection) -> ModelView:
        version, stage = seen_version(db, who, id)
        return model_view(version, stage, withdrawals.marks(db, (version,)).get(id, ()))

    return await hub.store.read(read)


@get("/models/{id:str}/frame")
async def get_frame(
    hub: Hub, who: Who, id: FromPath[str], request: Request[Any, Any, Any]
) -> Stream | Response[bytes]:
    """Return the tensor frame of a model version, or the asked range of its bytes."""
    asked = request.headers.get("range", "")

    async def admit(asks: Sequence[FrameAsk]) -> list[FrameSpan | Exception]:
        return await hub.store.write(lambda db: _admitted(db, asks))

    frame = await hub.reads.ask(FrameAsk(who, id, asked, hub.now()), admit)
    start, stop = frame.start, frame.stop
    headers = {
        "Content-Length": str(stop - start),
        "Accept-Ranges": "bytes",
        "ETag": f'"{frame.digest}"',
    }
    if asked:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{frame.size}"
    if stop - start <= SMALL:
        return Response(
            await _piece(hub, frame),
            status_code=206 if asked else 200,
            media_type="application/octet-stream",
            headers=headers,
        )
    blob = await asyncio.to_thread(hub.blobs.open, frame.digest)
    return Stream(
        _pieces(blob, start, stop),
        status_code=206 if asked else 200,
        media_type="application/octet-stream",
        headers=headers,
    )


def _admitted(db: Connection, asks: Sequence[FrameAsk]) -> list[FrameSpan | Exception]:
    """Read the rows and write the lines in one transaction: no read goes unrecorded.

    Each is decided for itself, by what its caller may see.
    """
    outcomes: list[FrameSpan | Exception] = []
    events: list[audit.Event] = []
    known: dict[tuple[Caller, str], _Frame] = {}
    for ask in asks:
        try:
            if (key := (ask.who, ask.id)) not in known:
                known[key] = _seen_frame(db, ask.who, ask.id)
            frame = known[key]
            start, stop = _span(ask.range, frame.bytes)
        except (ConsiliaError, HTTPException) as e:
            outcomes.append(e)
            continue
        part = f"bytes {start}-{stop - 1}/{frame.bytes}"
        events.append(audit.Event(ask.at, ask.who.actor, "model.read", ask.id, detail=part))
        outcomes.append(FrameSpan(frame.digest, frame.bytes, start, stop))
    audit.append_all(db, events)
    return outcomes


def _span(asked: str, size: int) -> tuple[int, int]:
    """Return (start, stop) of a Range header, all of it for none; 416 for one outside."""
    if not asked:
        return 0, size
    found = _RANGE.fullmatch(asked)
    start = int(found[1]) if found else size
    stop = min(int(found[2]) + 1, size) if found and found[2] else size
    if start >= stop:
        raise HTTPException(
            f"range {asked[:80]!r} is not within the frame's {size} bytes; needed bytes=a- or "
            "bytes=a-b",
            status_code=416,
        )
    return start, stop


async def _piece(hub: Services, frame: FrameSpan) -> bytes:
    """Read a small part of a frame; parts of one frame are read together, in one thread."""
    digest = frame.digest

    def read(spans: Sequence[FrameSpan]) -> list[bytes | Exception]:
        with hub.blobs.open(digest) as blob:
            return [os.pread(blob.fd, span.stop - span.start, span.start) for span in spans]

    async def run(spans: Sequence[FrameSpan]) -> list[bytes | Exception]:
        return await asyncio.to_thread(read, spans)

    # By frame: one that has to be fetched from far away does not hold up the others.
    together = hub.pieces.setdefault(digest, Together())
    try:
        return await together.ask(frame, run)
    finally:
        if together.idle and hub.pieces.get(digest) is together:
            del hub.pieces[digest]


async def _pieces(blob: Blob, start: int, stop: int) -> AsyncIterator[bytes]:
    try:
        while start < stop:
            piece = await asyncio.to_thread(os.pread, blob.fd, min(CHUNK, stop - start), start)
            if not piece:
                return  # cut short on disk: the missing bytes make the client fail
            start += len(piece)
            yield piece
    finally:
        blob.close()


@put("/frames", request_max_body_size=None)
async def put_frame(hub: Hub, who: Who, request: Request[Any, Any, Any]) -> FrameView:
    """Store a base model's tensor frame, checked while it arrives."""
    limit = hub.config.limits.init_frame_bytes
    length = request.headers.get("content-length", "")
    if length and (not length.isascii() or not length.isdigit() or int(length) > limit):
        raise ConfigError(f"the frame has {length[:20]} bytes, at most {limit} are admitted")
    name = f"{SPOOL}{hub.random_bytes(10).hex()}"
    with await _room(hub, who, int(length) if length else limit):
        upload = await asyncio.to_thread(hub.engine.uploads.open, name, limit)
        try:
            header = await _receive(request, upload)
            if not header.whole:
                raise WireError(
                    "a base frame must hold all its tensors; this one leaves some out"
                )
            await _keep(hub, who, name, header)
        finally:
            upload.close()
            await asyncio.to_thread(hub.engine.uploads.forget, name)
    return FrameView(digest=header.digest, bytes=header.total_bytes)


async def _room(hub: Services, who: Caller, size: int) -> AbstractContextManager[None]:
    """Return the hold on `size` bytes of the caller's allowance; Refused when it is spent."""
    most = hub.config.retention.upload_bytes
    stored = await hub.store.read(lambda db: bases.uploaded_bytes(db, who.name))
    arriving = hub.arriving.get(who.name, 0)
    if stored + arriving + size > most:
        raise Refused(
            f"{who.name} has {stored} bytes of uploaded frames at the hub and {arriving} on "
            f"their way; {size} more would pass the {most} allowed. What no job uses is "
            f"deleted {hub.config.retention.upload_days:g} days after its upload"
        )
    # No await since the sum was made: two uploads cannot both count on the same room.
    hub.arriving[who.name] += size
    return _held(hub, who.name, size)


@contextmanager
def _held(hub: Services, name: str, size: int) -> Iterator[None]:
    try:
        yield
    finally:
        hub.arriving[name] -= size
        if not hub.arriving[name]:
            del hub.arriving[name]


async def _keep(hub: Services, who: Caller, name: str, header: Header) -> None:
    """Make the spool a blob and record whose it is."""
    at, digest, size = hub.now(), header.digest, header.total_bytes

    def write(db: Connection) -> None:
        bases.add_upload(db, digest, who.name, size, at)
        audit.append(db, at, who.actor, "frame.upload", digest, detail=str(size))

    async with hub.judging:  # between the two steps nothing refers to the file
        await asyncio.to_thread(hub.blobs.adopt, name, digest)
        await hub.store.write(write)


async def _receive(request: Request[Any, Any, Any], upload: Upload) -> Header:
    """Spool and verify the body in batches, off the event loop."""
    batch = bytearray()
    pieces = request.stream()
    while piece := await _next(pieces):
        batch += piece
        if len(batch) >= _BATCH:
            await asyncio.to_thread(upload.write, memoryview(bytes(batch)))
            batch.clear()
    if batch:
        await asyncio.to_thread(upload.write, memoryview(bytes(batch)))
    try:
        return await asyncio.to_thread(upload.finish)
    except TransferError as e:  # the body has ended, so nothing failed on the way
        raise WireError(f"the frame is not whole: {e}") from None


async def _next(pieces: AsyncIterator[bytes]) -> bytes:
    """Return the body's next bytes, b"" at its end; TransferError when none come for long."""
    try:
        async with asyncio.timeout(STALL):
            return await anext(pieces, b"")
    except TimeoutError:
        raise TransferError(f"no byte of the frame came for {STALL:g} s") from None
