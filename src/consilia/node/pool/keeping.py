"""What an agent does by itself about pooled datasets: take back, note, delete. Never: send.

    at the site          a study left or over -> Withdrawn; Held and Deleted are noted, audited
    at the data centre   Withdrawn, or a study left, over or closed -> the copy goes, Deleted;
                         with the study goes the key of its uploads

What this node knows itself counts whether or not the hub answers.
A copy's file goes first and the audit line last, so one that was cut short is done again.
Nodes that pool nothing ask the hub nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import date
from typing import Protocol

from consilia.errors import ConsiliaError
from consilia.files import sync_folder
from consilia.node import peers
from consilia.node.identity import Identity
from consilia.node.pool import decisions
from consilia.node.pool.decisions import Pooled
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
            if not await asyncio.to_thread(_concerned, store):
                continue
            board = await _board(line)
            if await asyncio.to_thread(look, store, me, board, now()):
                changed()
        except (ConsiliaError, OSError) as e:
            _LOG.info("pooled datasets: %s; looking again", e)


async def _board(line: Boards) -> wire.Board | None:
    """Return what the partners say; None where the hub does not tell."""
    try:
        return await line.pool_board()
    except (ConsiliaError, OSError) as e:
        _LOG.info("pooled datasets: %s; looking at what this node knows itself", e)
        return None


def look(store: Store, me: Identity, board: wire.Board | None, now: float) -> int:
    """Take the steps that are due; return how many. Blocks, and may read a table."""
    studies = {s.digest: s for s in list_studies(store, date.fromtimestamp(now))}
    steps = 0
    for found in decisions.every(store):
        record = studies.get(found.study)
        if record is None or not _alive(found):
            continue
        try:
            if found.role == "sender":
                steps += _of_sender(store, me, found, record, board, now)
            elif why := _over(store, found, record, board):
                delete(store, me, found, record, why, now)
                steps += 1
        except (ConsiliaError, OSError) as e:  # one that fails holds up no other
            _LOG.warning("pooled dataset of site %s: %s; trying again", found.site, e)
    return steps + _of_channels(store, studies, board, now)


def _of_channels(
    store: Store,
    studies: Mapping[str, StudyRecord],
    board: wire.Board | None,
    now: float,
) -> int:
    """Note withdrawals; destroy the keys of studies that hold no copies any more."""
    steps = 0
    for study in decisions.channels(store):
        record = studies.get(study)
        why = f"study {study} is not here" if record is None else _ended(record, board)
        if why:
            decisions.shut(store, study, now=now, why=why)
            steps += 1
        elif record is not None and board is not None:
            _remember(store, record, board)
    return steps


def _concerned(store: Store) -> bool:
    return bool(decisions.channels(store)) or any(map(_alive, decisions.every(store)))


def _alive(found: Pooled) -> bool:
    return found.state != "deleted"


def _remember(store: Store, record: StudyRecord, board: wire.Board) -> None:
    """Note what sites take back, taken or not: it is not taken when it is told again."""
    keys = peers.pins(store, record.digest)
    for site in record.study.pooled:
        said = wire.newest(board.statements, keys, site, wire.Withdrawn, record.digest)
        if said and not decisions.spent(store, record.digest, site, said.upload):
            with store.write() as tx:
                decisions.spend(tx, record.digest, site, said.upload)


def _of_sender(  # noqa: PLR0913, PLR0917 - one upload, and what bears on it
    store: Store,
    me: Identity,
    found: Pooled,
    record: StudyRecord,
    board: wire.Board | None,
    now: float,
) -> int:
    """Take an upload of a study that is over back; note what the data centre has done."""
    if found.state != "withdrawn" and record.state != "accepted":
        reason = f"study {record.study.name} is {record.state} here"
        decisions.take_back(store, me, found, actor="agent", now=now, reason=reason)
        return 1
    if board is None:
        return 0
    centre, keys = record.study.data_centre, peers.pins(store, found.study)
    held = wire.newest(board.statements, keys, centre, wire.Held, found.study, found.site)
    gone = wire.newest(board.statements, keys, centre, wire.Deleted, found.study, found.site)
    if gone is not None and gone.upload == found.upload:
        return _note(store, found, "deleted", centre, now)
    if found.state == "sent" and held is not None and held.upload == found.upload:
        decisions.discard(store, found.study, decisions.SEALED)
        return _note(store, found, "held", centre, now)
    return 0


def _note(store: Store, found: Pooled, state: decisions.State, centre: str, now: float) -> int:
    with store.write() as tx:
        if not decisions.mark(tx, found, state):
            return 0  # taken back meanwhile
        action = "pool.held" if state == "held" else "pool.deleted"
        tx.audit(now, f"site:{centre}", action, found.upload, state, f"dataset {found.dataset}")
    return 1


def _ended(record: StudyRecord, board: wire.Board | None) -> str:
    """Say why a study holds no copies any more, "" while it may."""
    if record.state != "accepted":
        return f"study {record.study.name} is {record.state} here"
    if board is not None and record.digest not in board.open:
        return f"study {record.study.name} is closed"
    return ""


def _over(store: Store, found: Pooled, record: StudyRecord, board: wire.Board | None) -> str:
    """Say why a copy must go, "" when it may stay."""
    if (why := _ended(record, board)) or board is None:
        return why
    keys = peers.pins(store, found.study)
    said = wire.newest(board.statements, keys, found.site, wire.Withdrawn, found.study)
    if said is not None and said.upload == found.upload:
        return f"site {found.site} has withdrawn it"
    sent = wire.newest(board.statements, keys, found.site, wire.Sent, found.study)
    if sent is not None and sent.upload != found.upload:
        return f"site {found.site} has sent another in its place"
    return ""


def delete(  # noqa: PLR0913, PLR0917 - whose copy, and why
    store: Store, me: Identity, found: Pooled, record: StudyRecord, why: str, now: float
) -> None:
    """Delete a copy, settle the dataset it was part of, and say so."""
    from consilia.node.pool import copies  # noqa: PLC0415 - reads tables: only when it must

    part = copies.part(store.path.parent, found.study, found.site)
    part.unlink(missing_ok=True)
    if part.parent.exists():
        sync_folder(part.parent)
    try:
        copies.settle(store, found.dataset, part.parent, actor="agent", now=now)
    except ConsiliaError as e:  # its file is gone; the others wait until they are measured
        _LOG.warning("dataset %s: %s; see consilia dataset refresh", found.dataset, e)
    told = wire.Deleted(found.study, found.site, found.upload)
    gone = Pooled(
        *(found.study, found.site, found.role, found.upload, "deleted", found.dataset),
        *(found.records, found.digest, now, "agent"),
    )
    with store.write() as tx:
        decisions.keep(tx, gone, decisions.signed(me, told))
        detail = f"{found.records} records of site {found.site}, {record.study.name}: {why}"
        tx.audit(now, "agent", "pool.delete", found.upload, "deleted", detail)
