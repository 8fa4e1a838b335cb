"""Moving a dataset into a study's pool: sealed at its site, relayed by the hub, opened once.

    site: checks -> table (node.pool.table) -> sealed file -> pieces at the hub -> Sent
    data centre: Sent -> pieces -> opened, its digest compared -> part of pool-STUDY -> Held

The sealed file is made once and kept until the data centre holds the copy: a broken line, and
a hub that lost what it had, cost only the pieces that are missing. The plain table touches the
data centre's disk alone. Sealing: X25519 with a key of the upload's own against the data
centre's key of the study, itself signed with the key that is pinned (node.peers);
privacy.sealing derives, privacy.filecrypt seals.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Protocol

import msgspec

from consilia.core import ids
from consilia.errors import (
    AuthError,
    ConfigError,
    Conflict,
    NotFound,
    Refused,
    StorageError,
    WireError,
)
from consilia.files import write_whole
from consilia.node import datasets, loading
from consilia.node.policy import of_study
from consilia.node.pool import decisions
from consilia.node.pool.decisions import Pooled, Site
from consilia.node.pool.table import digest, export
from consilia.node.standing import policy_of
from consilia.node.store import Store, reason_of
from consilia.node.studies import StudyRecord
from consilia.privacy import filecrypt, sealing
from consilia.wire import masks
from consilia.wire import pool as wire
from consilia.wire.v1 import decode, encode

_LENGTH = 8  # bytes that tell how long what stands before the table is
_MAX_CONTENTS = 4 << 20

Random = Callable[[int], bytes]
Shown = Callable[[int, int], None]  # pieces done, of how many


class Line(Protocol):
    """What is asked of the hub (node.link)."""

    async def pool_board(self) -> wire.Board:
        """Return what the partners have said."""

    async def pool_have(self, place: str) -> wire.Pieces:
        """Return which pieces the hub has."""

    async def pool_put(self, place: str, number: int, piece: bytes) -> None:
        """Leave a piece."""

    async def pool_get(self, place: str, number: int) -> bytes:
        """Return a piece."""


@dataclass(frozen=True, slots=True)
class Consent:
    """What a person agrees to: this dataset goes to this site for this study."""

    study: str  # name or digest
    dataset: str
    to: str  # the data centre, named again
    reason: str
    actor: str
    at: float  # Unix seconds


# ---- at the site --------------------------------------------------------------------------


async def send(
    store: Store, line: Line, asked: Consent, random: Random, shown: Shown = lambda *_: None
) -> Pooled:
    """Seal a dataset to the study's data centre and leave it at the hub.

    Asked again after a broken line it goes on with the pieces that are missing. Raises Refused
    or Conflict, before a byte has left, for what study or policy do not allow.
    """
    me = decisions.site_of(store)
    record = _sending(store, me, asked)
    key = decisions.partner_key(store, record, asked.to)
    board = await line.pool_board()
    keys = {asked.to: key}
    channel = wire.newest(board.statements, keys, asked.to, wire.Channel, record.digest)
    if channel is None or sealing.hides_nothing(channel.key):
        raise Conflict(
            f"the data centre {asked.to!r} does not take uploads of study "
            f"{record.study.name!r} yet: its people run consilia pool open {record.study.name}"
        )
    _settled(
        store,
        record,
        me,
        wire.newest(
            board.statements, keys, asked.to, wire.Held, record.digest, me.settings.site
        ),
    )
    ready = _loaded(store, record, asked)
    path = decisions.folder(me.directory, record.digest) / _file_of(ready)
    begun = _begun(store, record, me, asked, channel, path) or _seal(
        store, record, me, asked, channel, ready, path, random
    )
    await _deliver(line, begun, path, shown)
    with store.write() as tx:
        if not decisions.mark(tx, begun, "sent"):
            raise Conflict(f"the upload of dataset {begun.dataset!r} was taken back meanwhile")
        detail = f"{begun.records} records of {begun.dataset}, {begun.digest}, to {asked.to}"
        tx.audit(asked.at, asked.actor, "pool.send", begun.upload, "sent", detail)
    return decisions.get(store, record.digest, me.settings.site)


def _sending(store: Store, me: Site, asked: Consent) -> StudyRecord:
    """Return the study, having held the consent against study and policy."""
    today = date.fromtimestamp(asked.at)
    record = decisions.in_force(store, asked.study, today)
    study, site = record.study, me.settings.site
    if against := of_study(record.digest, study.name, policy_of(store, me.settings), today):
        raise Refused("; ".join(against))
    if site not in study.pooled:
        raise Conflict(
            f"study {study.name!r} asks {', '.join(study.pooled)} to pool, not {site!r}"
        )
    if asked.to != study.data_centre:
        raise Conflict(
            f"--to: found {asked.to[:63]!r}, needed {study.data_centre!r}, the data centre of "
            f"study {study.name!r}"
        )
    reason_of(asked.reason)
    if me.settings.dp_required:
        raise Refused(
            "this site's policy (dp_required) lets only differentially private results "
            "leave; a copy of its records is none"
        )
    found = datasets.get(store, asked.dataset)
    tags = set(study.tags)
    if not found.usable or not tags <= set(found.dataset.tags):
        raise Conflict(
            f"dataset {asked.dataset!r} is disabled, changed, or lacks one of the study's "
            f"tags: {', '.join(sorted(tags))}"
        )
    if record.datasets and asked.dataset not in record.datasets:
        raise Conflict(
            f"study {study.name!r} was accepted for {', '.join(record.datasets)} only, not "
            f"for dataset {asked.dataset!r}"
        )
    return record


def _settled(store: Store, record: StudyRecord, me: Site, held: wire.Held | None) -> None:
    """Raise Conflict while the data centre still holds a copy that was withdrawn."""
    with contextlib.suppress(NotFound):
        found = decisions.get(store, record.digest, me.settings.site)
        if found.state == "withdrawn" and held is not None and held.upload == found.upload:
            raise Conflict(
                "the data centre has not deleted the copy that was withdrawn yet: send another "
                "one when consilia pool status says deleted"
            )


def _loaded(store: Store, record: StudyRecord, asked: Consent) -> loading.Prepared:
    known = datasets.get(store, asked.dataset).dataset
    datasets.check_unchanged(known)
    ready = loading.Loading(store).prepared(known, record.study.name)
    if ready.problem:
        raise Conflict(ready.problem)
    return ready


def _file_of(ready: loading.Prepared) -> str:
    """Name the sealed file by its contents: an old one does not serve after an opt-out."""
    what = msgspec.msgpack.encode((ready.dataset, ready.digest, sorted(ready.patients)))
    return hashlib.sha256(what).hexdigest()[:32] + decisions.SEALED


def _enough(me: Site, record: StudyRecord, dataset: str, records: int) -> None:
    least = max(me.settings.min_records, record.study.min_records, 1)
    if records < least:
        raise Refused(
            f"dataset {dataset!r} has {records} records as it is loaded, at least {least} are "
            "needed here"
        )


def _begun(  # noqa: PLR0913, PLR0917 - one consent, to one key
    store: Store,
    record: StudyRecord,
    me: Site,
    asked: Consent,
    channel: wire.Channel,
    path: Path,
) -> Pooled | None:
    """Return an upload that was begun and may go on, None to begin; Conflict if one is done."""
    try:
        found = decisions.get(store, record.digest, me.settings.site)
    except NotFound:
        return None
    if found.state in ("sent", "held"):
        raise Conflict(
            f"dataset {found.dataset!r} is pooled already ({found.state}); to send another "
            f"copy: consilia pool withdraw {record.study.name}"
        )
    said = wire.unverified(decisions.told(store, found))
    fits = isinstance(said, wire.Sent) and said.channel == channel.key
    wanted = found.state == "preparing" and found.dataset == asked.dataset
    if not (wanted and fits and path.exists()):
        return None
    _enough(me, record, asked.dataset, found.records)
    return found


def _seal(  # noqa: PLR0913, PLR0917 - one consent, to one key
    store: Store,
    record: StudyRecord,
    me: Site,
    asked: Consent,
    channel: wire.Channel,
    ready: loading.Prepared,
    path: Path,
    random: Random,
) -> Pooled:
    """Make the sealed file, and write the consent down; nothing has left yet."""
    site, study = me.settings.site, record.study
    contents, table = export(ready.dataset, site, record.digest, ready.plan, random)
    _enough(me, record, asked.dataset, contents.records)
    private, session = random(32), random(32)
    head = encode(contents)
    plain = len(head).to_bytes(_LENGTH, "little") + head + table
    way = (site, study.data_centre)
    key = sealing.box_key(private, channel.key, session, way)
    decisions.discard(store, record.digest, decisions.SEALED)
    path.parent.parent.mkdir(mode=0o700, exist_ok=True)
    upload = _sealed_file(path, key, plain, _about(record.digest, way), random)
    said = wire.Sent(
        record.digest,
        upload,
        channel.key,
        sealing.public(private),
        session,
        path.stat().st_size,
        decisions.rounded(contents.records),
    )
    found = Pooled(
        *(record.digest, site, "sender", upload, "preparing", asked.dataset),
        *(contents.records, contents.digest, asked.at, asked.actor),
    )
    if wire.pieces(said.size) > wire.MAX_PIECES:
        path.unlink()
        raise Refused(
            f"dataset {asked.dataset!r} makes {wire.pieces(said.size)} pieces of "
            f"{wire.PIECE} bytes, at most {wire.MAX_PIECES} are relayed"
        )
    with store.write() as tx:
        decisions.keep(tx, found, decisions.signed(me.identity, said))
        detail = (
            f"{contents.records} records of {asked.dataset} ({contents.digest}) may leave to "
            f"{asked.to} for study {study.name}; loading plan {ready.plan or 'none'}; "
            f"{reason_of(asked.reason)}"
        )
        tx.audit(asked.at, asked.actor, "pool.consent", upload, "approved", detail)
    return found


def _sealed_file(path: Path, key: bytes, plain: bytes, about: bytes, random: Random) -> str:
    """Write `plain` sealed to `path`; return the digest of the sealed bytes."""
    source = os.memfd_create("consilia-pool")  # the plain table is on no disk
    try:
        with os.fdopen(os.dup(source), "wb") as out:
            out.write(plain)
        draft = path.with_name(f".{path.name}.new")
        path.parent.mkdir(mode=0o700, exist_ok=True)
        target = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            filecrypt.lock_file(key, source, target, about, random)
            os.fsync(target)
        finally:
            os.close(target)
        draft.replace(path)
        with path.open("rb") as stream:
            return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as e:
        raise StorageError(f"{path} cannot be written: {e.strerror}") from e
    finally:
        os.close(source)


def _about(study: str, way: tuple[str, str]) -> bytes:
    return masks.framed("pool", study.encode(), way[0].encode(), way[1].encode())


async def _deliver(line: Line, found: Pooled, path: Path, shown: Shown) -> None:
    place = f"{found.study}/{found.site}/{found.upload}"
    have = set((await line.pool_have(place)).have)
    count = wire.pieces(path.stat().st_size)
    with path.open("rb") as stream:
        for number in range(count):
            if number not in have:
                stream.seek(number * wire.PIECE)
                await line.pool_put(place, number, stream.read(wire.PIECE))
            shown(number + 1, count)


# ---- at the data centre -------------------------------------------------------------------


async def take(  # noqa: PLR0913 - whose upload, who takes it, how
    store: Store,
    line: Line,
    name: str,
    site: str,
    *,
    actor: str,
    now: float,
    reason: str,
    shown: Shown = lambda *_: None,
) -> Pooled:
    """Fetch a site's upload, open it, and make it part of the study's pooled dataset.

    Raises NotFound while there is none, AuthError or WireError for one that is not what its
    site has signed; nothing is kept then.
    """
    me, reason = decisions.site_of(store), reason_of(reason)
    record = decisions.in_force(store, name, date.fromtimestamp(now))
    private = decisions.channel(store, record.digest)
    if record.study.data_centre != me.settings.site or private is None:
        raise Conflict(
            f"this site takes no uploads of study {record.study.name!r}: consilia pool open"
        )
    if site not in record.study.pooled:
        raise Conflict(f"study {record.study.name!r} does not ask site {site[:63]!r} to pool")
    key = decisions.partner_key(store, record, site)
    said = await _sent(store, line, record, site, key)
    sealed = await _fetched(line, me, record, said, site, shown)
    try:
        contents, table = _opened(sealed, private, said, (site, me.settings.site))
    finally:
        sealed.unlink()
    if (contents.site, contents.study) != (site, record.digest):
        raise AuthError(f"the upload of site {site!r} holds another site's or study's table")
    return _registered(store, me, record, said, contents, table, (actor, now, reason))


async def _sent(
    store: Store, line: Line, record: StudyRecord, site: str, key: bytes
) -> wire.Sent:
    board = await line.pool_board()
    said = wire.newest(board.statements, {site: key}, site, wire.Sent, record.digest)
    if said is None:
        raise NotFound(f"site {site!r} has sent nothing for study {record.study.name!r} yet")
    with contextlib.suppress(NotFound):
        before = decisions.get(store, record.digest, site)
        if before.upload == said.upload:
            if before.state == "held":
                raise Conflict(f"the upload {said.upload} of site {site!r} is here already")
        elif before.state == "held":
            raise Conflict(
                f"another upload of site {site!r} is here still: it goes within a minute of "
                "its withdrawal"
            )
    over = wire.newest(board.statements, {site: key}, site, wire.Withdrawn, record.digest)
    if (over is not None and over.upload == said.upload) or decisions.spent(
        store, record.digest, site, said.upload
    ):
        raise Conflict(f"the upload {said.upload[:80]} of site {site!r} was withdrawn")
    try:
        ids.digest(said.upload)  # it names a file here
    except ConfigError as e:
        raise WireError(f"site {site!r} names its upload wrongly: {e}") from None
    if not 0 < wire.pieces(said.size) <= wire.MAX_PIECES:
        raise WireError(f"site {site!r} says its upload has {said.size} bytes")
    return said


async def _fetched(  # noqa: PLR0913, PLR0917 - what, whose, where to
    line: Line, me: Site, record: StudyRecord, said: wire.Sent, site: str, shown: Shown
) -> Path:
    """Bring a sealed upload here, going on where an earlier try ended; compare its digest."""
    folder = decisions.folder(me.directory, record.digest)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{said.upload.rpartition(':')[2]}{decisions.PART}"
    place, count = f"{record.digest}/{site}/{said.upload}", wire.pieces(said.size)
    with path.open("ab") as out:
        first = out.tell() // wire.PIECE
        out.truncate(first * wire.PIECE)
        for number in range(first, count):
            out.write(await line.pool_get(place, number))
            shown(number + 1, count)
    with path.open("rb") as stream:
        found = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
    if found != said.upload:
        path.unlink()
        raise WireError(
            f"the hub gave an upload of digest {found}, site {site!r} signed {said.upload}"
        )
    return path


def _opened(
    path: Path, private: bytes, said: wire.Sent, way: tuple[str, str]
) -> tuple[wire.Contents, bytes]:
    key = sealing.box_key(private, said.ephemeral, said.session, way)
    target = os.memfd_create("consilia-pool")
    try:
        with path.open("rb") as source:
            size = filecrypt.unlock_file(key, source.fileno(), target, _about(said.study, way))
        plain = os.pread(target, size, 0)
    finally:
        os.close(target)
    end = _LENGTH + int.from_bytes(plain[:_LENGTH], "little")
    contents = decode(plain[_LENGTH:end], wire.Contents, _MAX_CONTENTS)
    table = plain[end:]
    if digest(table) != contents.digest:
        raise WireError(f"the table of site {way[0]!r} is another than its digest names")
    return contents, table


def _registered(  # noqa: PLR0913, PLR0917 - what came, from whom, who took it
    store: Store,
    me: Site,
    record: StudyRecord,
    said: wire.Sent,
    contents: wire.Contents,
    table: bytes,
    who: tuple[str, float, str],
) -> Pooled:
    """Make a table a part of the study's dataset here, and tell its site."""
    from consilia.node.pool import copies  # noqa: PLC0415 - reads tables: not for the agent

    actor, now, reason = who
    site = contents.site
    part = copies.part(me.directory, record.digest, site)
    name = decisions.name_of(record.study.name)
    found = Pooled(
        *(record.digest, site, "holder", said.upload, "preparing", name),
        *(contents.records, contents.digest, now, actor),
    )
    told = wire.Held(record.digest, site, said.upload, decisions.rounded(contents.records))
    sealed = decisions.signed(me.identity, told)
    with store.write() as tx:  # known before it is there: a copy that nobody knows stays
        decisions.keep(tx, found, sealed)
    part.parent.mkdir(mode=0o700, exist_ok=True)
    write_whole(part, table)
    try:
        copies.register(store, part.parent, record, contents, actor=actor, now=now)
    except BaseException:
        part.unlink()
        copies.settle(store, name, part.parent, actor=actor, now=now)
        raise
    found = replace(found, state="held")
    with store.write() as tx:
        decisions.keep(tx, found, sealed)
        detail = (
            f"{contents.records} records of site {site}, its dataset {contents.dataset} "
            f"({contents.digest}), study {record.study.name}; {reason}"
        )
        tx.audit(now, actor, "pool.take", said.upload, "held", detail)
    return found
