"""Datasets that a study pools at its data centre: what this site has decided, kept and told.

    site         send: a person lets a dataset leave, once, to one data centre, for one study
    data centre  open: a person lets the study's sites upload
                 take: a person takes one upload in; it becomes part of the dataset pool-STUDY
    site         withdraw, or leave the study: the data centre deletes its copy

Every step is a decision of a named person and an audit line, at both ends. What the other side
is told is signed here and travels in the advertisement (wire.pool). The files move in
node.pool.transfer; here is what is known of them.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from consilia.errors import Conflict, NotFound, Refused
from consilia.node import config, identity, peers, studies
from consilia.node.config import NodeConfig
from consilia.node.identity import Identity
from consilia.node.store import Row, Store, Transaction, hashed_name, reason_of
from consilia.node.studies import StudyRecord
from consilia.privacy import sealing
from consilia.wire import pool as wire
from consilia.wire.seal import seal
from consilia.wire.v1 import Sealed, decode, encode

FOLDER = "pool"  # of the node's directory
SEALED = ".sealed"  # of an upload that is on its way: how its file's name ends
PART = ".part"  # of one that is being fetched
COLUMN = "consilia_fold"  # of a copy: the fold of each record, as its site dealt it

State = Literal["preparing", "sent", "withdrawn", "held", "deleted"]
_COLUMNS = "study, site, role, upload, state, dataset, records, digest, told, at, actor"


@dataclass(frozen=True, slots=True)
class Pooled:
    """One site's dataset in a study's pool, as this node knows it. `at` is Unix seconds."""

    study: str  # digest
    site: str  # whose records they are
    role: Literal["sender", "holder"]  # what this node is
    upload: str  # sha256:<hex> of the sealed bytes
    state: State
    dataset: str  # here: the one that was sent, or the one that holds the copy
    records: int
    digest: str  # sha256:<hex> of the table
    at: float
    actor: str


@dataclass(frozen=True, slots=True)
class Site:
    """Who this node is."""

    directory: Path
    settings: NodeConfig
    identity: Identity


def site_of(store: Store) -> Site:
    """Return who the node is whose store this is."""
    directory = store.path.parent
    settings = config.load(directory)
    return Site(directory, settings, identity.load(directory, settings.site))


def folder(directory: Path, study: str) -> Path:
    """Return where a study's copies lie, or its upload until it has arrived."""
    return directory / FOLDER / hashed_name(study)


def name_of(study: str) -> str:
    """Return the name of the dataset that holds the copies of a study."""
    return f"pool-{study}"[:63]


def in_force(store: Store, name: str, today: date) -> StudyRecord:
    """Return a study that is accepted here and has a data centre; else raise Conflict."""
    found = studies.get(store, name, today)
    if found.state != "accepted":
        raise Conflict(
            f"study {found.study.name!r} is {found.state} here, needed accepted: "
            f"consilia node accept {found.study.name}"
        )
    if not found.study.data_centre:
        raise Conflict(f"study {found.study.name!r} has no data centre: all train at home")
    return found


def partner_key(store: Store, record: StudyRecord, site: str) -> bytes:
    """Return the key that is pinned for a site of the study, and told unchanged."""
    for peer in peers.of_study(store, record.digest, record.study.sites):
        if peer.site != site:
            continue
        if peer.state == "changed":
            raise Refused(
                f"the hub tells another key of site {site!r} than the one pinned for study "
                f"{record.study.name!r}: ask them, then consilia node peers-pin"
            )
        if peer.pinned is not None:
            return peer.pinned
    raise Conflict(
        f"no key of site {site!r} is pinned for study {record.study.name!r}: compare it with "
        f"them (consilia node peers {record.study.name}) and pin it"
    )


# ---- what is known ------------------------------------------------------------------------


def every(store: Store) -> list[Pooled]:
    """Return all that this node has sent or holds, by study and site."""
    rows = store.rows(f"SELECT {_COLUMNS} FROM pooled ORDER BY study, site")  # noqa: S608 - constant
    return [_pooled(row) for row in rows]


def get(store: Store, study: str, site: str) -> Pooled:
    """Return what is known of a site's dataset in a study's pool, or raise NotFound."""
    rows = store.rows(
        f"SELECT {_COLUMNS} FROM pooled WHERE study = ? AND site = ?",  # noqa: S608 - constant
        (study, site),
    )
    if not rows:
        raise NotFound(f"nothing of site {site!r} is pooled here; see: consilia pool status")
    return _pooled(rows[0])


def copies(store: Store) -> dict[str, str]:
    """Return the datasets here that hold others' copies, with the study each is for."""
    rows = store.rows(
        "SELECT dataset, study FROM pooled WHERE role = 'holder' AND state != 'deleted'"
    )
    return {str(dataset): str(study) for dataset, study in rows}


def spent(store: Store, study: str, site: str, upload: str) -> bool:
    """Tell whether a site's upload was taken here before, or its withdrawal was heard of."""
    rows = store.rows(
        "SELECT 1 FROM pool_spent WHERE study = ? AND site = ? AND upload = ?",
        (study, site, upload),
    )
    return bool(rows)


def spend(tx: Transaction, study: str, site: str, upload: str) -> None:
    """Write down, for ever, that a site's upload is not to be taken again."""
    tx.execute("INSERT OR IGNORE INTO pool_spent VALUES (?, ?, ?)", (study, site, upload))


def discard(store: Store, study: str, ending: str) -> None:
    """Delete the files of a study's uploads that are on their way, by how their names end."""
    for path in folder(store.path.parent, study).glob(f"*{ending}"):
        path.unlink(missing_ok=True)


def keep(tx: Transaction, found: Pooled, told: Sealed) -> None:
    """Write down how a pooled dataset stands, and what the other side is told of it."""
    if found.role == "holder" and found.state != "preparing":
        spend(tx, found.study, found.site, found.upload)
    tx.execute(
        "INSERT INTO pooled VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (study, site) DO UPDATE SET role = excluded.role, "
        "upload = excluded.upload, state = excluded.state, dataset = excluded.dataset, "
        "records = excluded.records, digest = excluded.digest, told = excluded.told, "
        "at = excluded.at, actor = excluded.actor",
        (
            *(found.study, found.site, found.role, found.upload, found.state, found.dataset),
            *(found.records, found.digest, encode(told)),
            *(found.at, found.actor),
        ),
    )
    tx.touch()


def mark(tx: Transaction, found: Pooled, state: State) -> bool:
    """Write down how far an upload is; what is told of it stays. False: it has changed."""
    made = tx.execute(
        "UPDATE pooled SET state = ? WHERE study = ? AND site = ? AND upload = ? AND state = ?",
        (state, found.study, found.site, found.upload, found.state),
    )
    tx.touch()
    return made > 0


def told(store: Store, found: Pooled) -> Sealed:
    """Return what the other side is told of a pooled dataset."""
    rows = store.rows(
        "SELECT told FROM pooled WHERE study = ? AND site = ?", (found.study, found.site)
    )
    return decode(bytes(rows[0][0]), Sealed)


def channel(store: Store, study: str) -> bytes | None:
    """Return the private key that uploads of a study are sealed to, None while it is shut."""
    rows = store.rows("SELECT private FROM pool_channels WHERE study = ?", (study,))
    return bytes(rows[0][0]) if rows else None


def statements(store: Store) -> tuple[Sealed, ...]:
    """Return what this node's partners are told, as it was signed."""
    rows = store.rows(
        "SELECT told FROM pool_channels UNION ALL "
        "SELECT told FROM pooled WHERE state != 'preparing'"
    )
    return tuple(decode(bytes(body), Sealed) for (body,) in rows)


def signed(me: Identity, statement: wire.Statement) -> Sealed:
    """Return a statement in this site's name."""
    return seal(wire.CONTEXT, me.site, encode(statement), me.signing)


def rounded(records: int) -> int:
    """Return a count as the hub may read it."""
    return records // wire.ROUNDING * wire.ROUNDING


# ---- opening, withdrawing -----------------------------------------------------------------


def open_channel(  # noqa: PLR0913 - by keyword
    store: Store, name: str, private: bytes, *, actor: str, now: float, reason: str
) -> StudyRecord:
    """Let the study's sites upload to this data centre; Conflict where it is not that.

    `private` is a fresh X25519 key, used unless the channel is open already.
    """
    me, reason = site_of(store), reason_of(reason)
    record = in_force(store, name, date.fromtimestamp(now))
    if record.study.data_centre != me.settings.site:
        raise Conflict(
            f"the data centre of study {record.study.name!r} is {record.study.data_centre!r}, "
            f"not this site {me.settings.site!r}"
        )
    told = signed(me.identity, wire.Channel(record.digest, sealing.public(private)))
    with store.write() as tx:
        made = tx.execute(
            "INSERT INTO pool_channels VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (record.digest, private, encode(told), now, actor),
        )
        if made:
            tx.touch()
            detail = (
                f"{record.study.name}: uploads of {', '.join(record.study.pooled)}; {reason}"
            )
            tx.audit(now, actor, "pool.open", record.digest, "open", detail)
    return record


def channels(store: Store) -> tuple[str, ...]:
    """Return the studies, by digest, that this data centre takes uploads of."""
    rows = store.rows("SELECT study FROM pool_channels ORDER BY study")
    return tuple(str(study) for (study,) in rows)


def shut(store: Store, study: str, *, now: float, why: str) -> None:
    """Destroy the key that a study's uploads are sealed to: none of them opens any more."""
    discard(store, study, PART)
    with store.write() as tx:
        tx.execute("DELETE FROM pool_channels WHERE study = ?", (study,))
        tx.touch()
        tx.audit(now, "agent", "pool.shut", study, "shut", why)


def withdraw(store: Store, name: str, *, actor: str, now: float, reason: str) -> Pooled:
    """Take back the consent to a dataset's copy; its data centre deletes it."""
    me, reason = site_of(store), reason_of(reason)
    record = studies.get(store, name, date.fromtimestamp(now))
    found = get(store, record.digest, me.settings.site)
    if found.role != "sender" or found.state in ("withdrawn", "deleted"):
        raise Conflict(f"this site's copy in study {record.study.name!r} is {found.state}")
    return take_back(store, me.identity, found, actor=actor, now=now, reason=reason)


def take_back(  # noqa: PLR0913 - by keyword
    store: Store, me: Identity, found: Pooled, *, actor: str, now: float, reason: str
) -> Pooled:
    """Mark an upload as withdrawn, and say so."""
    told = signed(me, wire.Withdrawn(found.study, found.upload))
    gone = Pooled(
        *(found.study, found.site, found.role, found.upload, "withdrawn", found.dataset),
        *(found.records, found.digest, now, actor),
    )
    with store.write() as tx:
        keep(tx, gone, told)
        tx.audit(now, actor, "pool.withdraw", found.upload, "withdrawn", reason)
    discard(store, found.study, SEALED)
    return gone


def _pooled(row: Row) -> Pooled:
    study, site, role, upload, state, dataset, records, digest, _, at, actor = row
    return Pooled(study, site, role, upload, state, dataset, records, digest, at, actor)
