"""What an agent does by itself about pooled datasets: take back, note, delete. Never: send.

    at the site          a study left or over -> Withdrawn; Held and Deleted are noted, audited
    at the data centre   Withdrawn, or a study left, over or closed -> the copy goes, Deleted

A copy's file goes first and the audit line last, so one that was cut short is done again.
Nodes that pool nothing ask the hub nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import date
from typing import Protocol

from consilia.errors import ConsiliaError
from consilia.files import sync_folder
from consilia.node import peers, pool
from consilia.node.identity import Identity
from consilia.node.pool import Pooled
from consilia.node.pooling import SEALED
from consilia.node.store import Store
from consilia.node.studies import StudyRecord, list_studies
from consilia.wire import pool as wire

EVERY = 5.0  # seconds between looks, at nodes that pool something

_LOG = logging.getLogger("consilia.node.pool")


class Boards(Protocol):
    """Where the partners' statements are read (node.link)."""

    async def pool_board(self) -> wire.Board:
        """Return what the partners have said."""


async def keep(  # noqa: PLR0913, PLR0917 - the agent's parts
    store: Store,
    me: Identity,
    line: Boards,
    changed: Callable[[], None],
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> None:
    """Look again and again; never returns. `changed` is called after a step was taken."""
    while True:
        await sleep(EVERY)
        try:
            if not any(_alive(p) for p in await asyncio.to_thread(pool.every, store)):
                continue
            board = await line.pool_board()
            if await asyncio.to_thread(look, store, me, board, now()):
                changed()
        except (ConsiliaError, OSError) as e:
            _LOG.info("pooled datasets: %s; looking again", e)


def look(store: Store, me: Identity, board: wire.Board, now: float) -> int:
    """Take the steps that are due; return how many. Blocks, and may read a table."""
    studies = {s.digest: s for s in list_studies(store, date.fromtimestamp(now))}
    steps = 0
    for found in pool.every(store):
        record = studies.get(found.study)
        if record is None or not _alive(found):
            continue
        if found.role == "sender":
            steps += _of_sender(store, me, found, record, board, now)
        elif why := _over(store, found, record, board):
            delete(store, me, found, record, why, now)
            steps += 1
    return steps


def _alive(found: Pooled) -> bool:
    return found.state in ("sent", "held", "withdrawn")


def _of_sender(  # noqa: PLR0913, PLR0917 - one upload, and what bears on it
    store: Store,
    me: Identity,
    found: Pooled,
    record: StudyRecord,
    board: wire.Board,
    now: float,
) -> int:
    """Take an upload of a study that is over back; note what the data centre has done."""
    if found.state != "withdrawn" and record.state != "accepted":
        reason = f"study {record.study.name} is {record.state} here"
        pool.take_back(store, me, found, actor="agent", now=now, reason=reason)
        return 1
    centre, keys = record.study.data_centre, peers.pins(store, found.study)
    held = wire.newest(board.statements, keys, centre, wire.Held, found.study, found.site)
    gone = wire.newest(board.statements, keys, centre, wire.Deleted, found.study, found.site)
    if gone is not None and gone.upload == found.upload:
        return _note(store, found, "deleted", centre, now)
    if found.state == "sent" and held is not None and held.upload == found.upload:
        (pool.folder(store.path.parent, found.study) / SEALED).unlink(missing_ok=True)
        return _note(store, found, "held", centre, now)
    return 0


def _note(store: Store, found: Pooled, state: pool.State, centre: str, now: float) -> int:
    with store.write() as tx:
        pool.mark(tx, found, state)
        action = "pool.held" if state == "held" else "pool.deleted"
        tx.audit(now, f"site:{centre}", action, found.upload, state, f"dataset {found.dataset}")
    return 1


def _over(store: Store, found: Pooled, record: StudyRecord, board: wire.Board) -> str:
    """Say why a copy must go, "" when it may stay."""
    if record.state != "accepted":
        return f"study {record.study.name} is {record.state} here"
    if found.study not in board.open:
        return f"study {record.study.name} is closed"
    keys = peers.pins(store, found.study)
    said = wire.newest(board.statements, keys, found.site, wire.Withdrawn, found.study)
    gone = said is not None and said.upload == found.upload
    return f"site {found.site} has withdrawn it" if gone else ""


def delete(  # noqa: PLR0913, PLR0917 - whose copy, and why
    store: Store, me: Identity, found: Pooled, record: StudyRecord, why: str, now: float
) -> None:
    """Delete a copy, settle the dataset it was part of, and say so."""
    from consilia.node import poolcopies  # noqa: PLC0415 - reads tables: only when it must

    part = poolcopies.part(store.path.parent, found.study, found.site)
    part.unlink(missing_ok=True)
    if part.parent.exists():
        sync_folder(part.parent)
    poolcopies.settle(store, found.dataset, part.parent, actor="agent", now=now)
    told = wire.Deleted(found.study, found.site, found.upload)
    gone = Pooled(
        *(found.study, found.site, found.role, found.upload, "deleted", found.dataset),
        *(found.records, found.digest, now, "agent"),
    )
    with store.write() as tx:
        pool.keep(tx, gone, pool.signed(me, told))
        detail = f"{found.records} records of site {found.site}, {record.study.name}: {why}"
        tx.audit(now, "agent", "pool.delete", found.upload, "deleted", detail)
