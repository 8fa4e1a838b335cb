"""Studies at this site: which governed projects it takes part in.

    pending --accept--> accepted --leave--> left
       |                   +--a changed version is accepted--> replaced
       +-----decline--> declined

Accepting pins the study's digest, computed here: its purpose, sites, tags, legal basis and
every other field as the person read them. A study that changes has another digest and is
pending again; `difference` shows what changed since a version was accepted, and accepting it
takes that digest, so that nobody agrees to a change unread. `until` ends a study earlier than
it says itself, and so does its end at the hub. A study that was left or declined is told to the
hub, by its digest alone.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Literal

import msgspec

from consilia.core import ids
from consilia.errors import ConfigError, Conflict, NotFound, WireError
from consilia.node import config, peers
from consilia.node.policy import StudyGrant, residency_problem, short
from consilia.node.store import Row, Store, Transaction
from consilia.wire.v1 import Study, encode, study_digest

State = Literal["pending", "accepted", "declined", "left", "replaced", "expired"]

MAX_PENDING = 1000
MAX_WITHDRAWN = 1000  # that the hub is told of; it takes no more and keeps those it knows
MAX_STUDY = 64 << 10  # bytes of an encoded study
PURGED = 2  # study_ends.done: all that a study had left here is deleted (node.purge)
_COLUMNS = "digest, name, body, state, offered, actor, reason, decided, until, datasets"


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study at this site and what was decided about it. Times are Unix seconds."""

    digest: str
    study: Study
    state: State
    offered: float
    actor: str
    reason: str
    decided: float
    until: date  # last day here, inclusive; date.max for none
    datasets: tuple[str, ...]  # names it may use; empty: any that carries its tags


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of a study that differs from the version accepted here."""

    field: str
    old: str
    new: str


def offer(store: Store, study: Study, now: float) -> bool:
    """Take in a study the hub offers; return whether it is new here.

    Raises WireError when its form is not one a node accepts; nothing is stored then.
    """
    _check_form(study)
    digest = study_digest(study)
    if store.rows("SELECT 1 FROM studies WHERE digest = ?", (digest,)):
        return False
    with store.write() as tx:
        ((count,),) = tx.rows("SELECT count(*) FROM studies WHERE state = 'pending'")
        if isinstance(count, int) and count >= MAX_PENDING:
            raise Conflict(f"{count} studies await a decision here; decline some first")
        changed = tx.execute(
            "INSERT OR IGNORE INTO studies VALUES (?, ?, ?, 'pending', ?, '', '', 0, '', '[]')",
            (digest, study.name, encode(study), now),
        )
        if changed:
            tx.audit(now, "hub", "study.offer", digest, "pending", study.name)
    return bool(changed)


def known(store: Store, name: str) -> bool:
    """Tell whether the node has heard of a study of this name, whatever was decided."""
    return bool(store.rows("SELECT 1 FROM studies WHERE name = ? LIMIT 1", (name,)))


def accept(  # noqa: PLR0913 - by keyword
    store: Store,
    name: str,
    *,
    actor: str,
    now: float,
    reason: str = "",
    until: date | None = None,
    datasets: tuple[str, ...] = (),
    words: Mapping[str, str] = MappingProxyType({}),
) -> StudyRecord:
    """Accept a study by name or digest; it replaces an earlier version of the same name.

    `words` are those of the sites' keys that the person has compared (peers.pin).

    Raises Conflict when a version that was accepted here has changed since and the new one is
    not named by its digest, when the study must stay in a region that this site is not in, or
    while what it had left here is being deleted.
    """
    record = get(store, name, date.fromtimestamp(now))
    today = date.fromtimestamp(now)
    changes = difference(store, record.digest, today)
    if changes and not name.startswith("sha256:"):
        raise Conflict(
            f"study {record.study.name!r} has changed since it was accepted here: "
            f"{', '.join(c.field for c in changes)}. Read consilia node study-diff "
            f"{record.study.name} and accept it by its digest, {record.digest}"
        )
    if record.study.until and date.fromisoformat(record.study.until) < today:
        raise Conflict(f"study {record.study.name!r} ended on {record.study.until}")
    if problem := residency_problem(record.study.residency, regions_of(store)):
        raise Conflict(f"study {record.study.name!r} {problem}")
    if until is not None and until < today:
        raise ConfigError(f"--until {until} lies in the past: today is {today}")
    for dataset in datasets:
        if not store.rows("SELECT 1 FROM datasets WHERE name = ?", (dataset,)):
            raise NotFound(f"no dataset {dataset[:80]!r} here; see: consilia dataset list")
    detail = "; ".join(
        part
        for part in (
            record.study.name,
            f"until {until}" if until else "",
            f"datasets {', '.join(datasets)}" if datasets else "",
            f"changed: {', '.join(c.field for c in changes)}" if changes else "",
            reason,
        )
        if part
    )
    with store.write() as tx:
        _begin_anew(tx, record)
        tx.execute(
            "UPDATE studies SET state = 'replaced', actor = ?, decided = ? "
            "WHERE name = ? AND digest != ? AND state = 'accepted'",
            (actor, now, record.study.name, record.digest),
        )
        tx.execute(
            "UPDATE studies SET state = 'accepted', actor = ?, reason = ?, decided = ?, "
            "until = ?, datasets = ? WHERE digest = ?",
            (
                *(actor, reason, now, until.isoformat() if until else ""),
                *(json.dumps(sorted(datasets)), record.digest),
            ),
        )
        tx.touch()
        peers.pin(tx, record.digest, record.study.sites, actor, now, words)
        tx.audit(now, actor, "study.accept", record.digest, "accepted", detail)
    return get(store, record.digest, today)


def _begin_anew(tx: Transaction, record: StudyRecord) -> None:
    """Let a study have a key again whose earlier one is destroyed; Conflict while it is not."""
    ended = tx.rows("SELECT done FROM study_ends WHERE study = ?", (record.digest,))
    if ended and ended[0][0] < PURGED:
        raise Conflict(
            f"what study {record.study.name!r} had left here is being deleted; end that first: "
            f"consilia node purge {record.digest}"
        )
    tx.execute("DELETE FROM study_ends WHERE study = ?", (record.digest,))


def regions_of(store: Store) -> tuple[str, ...]:
    """Return the regions that node.yaml says this site is in."""
    directory = store.path.parent
    if not (directory / config.FILE).exists():
        return ()
    return tuple(config.load(directory).regions)


def leave(store: Store, name: str, *, actor: str, now: float, reason: str) -> StudyRecord:
    """Leave a study that was accepted, at any time; its tasks here are stopped.

    The hub is told, and marks the models that used this site. Raises Conflict for a study that
    was not accepted, ConfigError without a reason.
    """
    record = _in_force(store, name, date.fromtimestamp(now))
    if not reason.strip():
        raise ConfigError("leaving a study needs a reason, for this site's audit trail")
    return decline(store, record.digest, actor=actor, now=now, reason=reason)


def difference(store: Store, name: str, today: date) -> tuple[FieldChange, ...]:
    """Return what differs from the version accepted last here, () when none was or is."""
    record = get(store, name, today)
    rows = _select(
        store,
        "name = ? AND digest != ? AND state IN ('accepted', 'replaced', 'left')",
        (record.study.name, record.digest),
    )
    earlier = [_record(row, today) for row in rows]
    if not earlier or record.state in ("accepted", "expired"):
        return ()
    old = max(earlier, key=lambda r: r.decided).study
    return tuple(
        FieldChange(field, _text(getattr(old, field)), _text(getattr(record.study, field)))
        for field in record.study.__struct_fields__
        if getattr(old, field) != getattr(record.study, field)
    )


def withdrawn(store: Store) -> tuple[str, ...]:
    """Return the digests of studies that this site has left, the latest MAX_WITHDRAWN."""
    return _decided(store, "left")


def declined(store: Store) -> tuple[str, ...]:
    """Return the digests of studies that this site has declined, the latest MAX_WITHDRAWN."""
    return _decided(store, "declined")


def _decided(store: Store, state: State) -> tuple[str, ...]:
    rows = store.rows(
        "SELECT digest FROM studies WHERE state = ? ORDER BY decided DESC, digest LIMIT ?",
        (state, MAX_WITHDRAWN),
    )
    return tuple(sorted(str(digest) for (digest,) in rows))


def end(store: Store, digests: Iterable[str], now: float) -> int:
    """Let today be the last day of accepted studies that the hub says are over; count them.

    Retention runs from that day. A hub that lies here loses its own study, and nothing else.
    """
    today = date.fromtimestamp(now)
    over = set(digests)
    running = [
        r
        for r in (_record(row, today) for row in _select(store, "state = 'accepted'", ()))
        if r.digest in over and r.state == "accepted" and r.until > today
    ]
    for record in running:
        with store.write() as tx:
            tx.execute(
                "UPDATE studies SET until = ? WHERE digest = ? AND state = 'accepted'",
                (today.isoformat(), record.digest),
            )
            tx.touch()
            said = f"{record.study.name}: closed, or changed, at the hub"
            tx.audit(now, "hub", "study.end", record.digest, "ended", said)
    return len(running)


def decline(
    store: Store, name: str, *, actor: str, now: float, reason: str = ""
) -> StudyRecord:
    """Decline a study, or leave one that was accepted; its tasks here are stopped."""
    record = get(store, name, date.fromtimestamp(now))
    if record.state in ("left", "replaced"):
        raise Conflict(f"study {record.study.name!r} ({short(record.digest)}) is left already")
    state: State = "left" if record.state in ("accepted", "expired") else "declined"
    with store.write() as tx:
        tx.execute(
            "UPDATE studies SET state = ?, actor = ?, reason = ?, decided = ? WHERE digest = ?",
            (state, actor, reason, now, record.digest),
        )
        tx.touch()
        verb = "leave" if state == "left" else "decline"
        detail = f"{record.study.name}: {reason}" if reason else record.study.name
        tx.audit(now, actor, f"study.{verb}", record.digest, state, detail)
    return get(store, record.digest, date.fromtimestamp(now))


def get(store: Store, name: str, today: date) -> StudyRecord:
    """Return a study by digest, or the one of a name that was offered last."""
    if name.startswith("sha256:"):
        rows = _select(store, "digest = ?", (ids.digest(name),))
    else:
        rows = _select(store, "name = ?", (ids.name(name, "study"),))
    if not rows:
        raise NotFound(f"no study {name!r} at this node; see: consilia node studies")
    return _record(rows[0], today)


def list_studies(store: Store, today: date) -> list[StudyRecord]:
    """Return every study this site was offered, newest first."""
    return [_record(row, today) for row in _select(store, "true", ())]


def grants(store: Store) -> dict[str, StudyGrant]:
    """Return every accepted study, with its last day here: what policy judges by."""
    found: dict[str, StudyGrant] = {}
    for row in _select(store, "state = 'accepted'", ()):
        record = _record(row, date.min)
        if study_digest(record.study) != record.digest:
            continue  # the file was tampered with: no acceptance covers these bytes
        found[record.digest] = StudyGrant(
            record.study.name,
            frozenset(record.study.tags),
            record.until,
            record.study.min_records,
            frozenset(record.datasets),
            record.study.sites,
            record.study.controller,
            record.study.legal_basis,
            record.study.ethics,
            record.study.residency,
            record.study.statistics,
        )
    return found


def _in_force(store: Store, name: str, today: date) -> StudyRecord:
    """Return the study, for a name its accepted version; raise Conflict when there is none."""
    if not name.startswith("sha256:"):
        rows = _select(store, "name = ? AND state = 'accepted'", (ids.name(name, "study"),))
        if rows:
            return _record(rows[0], today)
    record = get(store, name, today)
    if record.state not in ("accepted", "expired"):
        raise Conflict(
            f"study {record.study.name!r} is {record.state} here, not accepted: there is "
            "nothing to leave"
        )
    return record


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check_form(study: Study) -> None:
    """Raise WireError for a study that no hub of ours would send."""
    try:
        ids.name(study.name, "study")
        for site in study.sites:
            ids.name(site, "site")
        for tag in study.tags:
            ids.name(tag, "tag")
        if study.until:
            date.fromisoformat(study.until)
    except (ConfigError, ValueError) as e:
        raise WireError(f"the hub offers a study that is not well formed: {e}") from None
    counts = (study.min_records, study.retention_days)
    if not study.tags or min(counts) < 0 or len(encode(study)) > MAX_STUDY:
        raise WireError(
            f"the hub offers study {study.name!r} without tags, with a negative minimum or "
            f"retention, or of more than {MAX_STUDY} bytes"
        )


def _select(store: Store, where: str, values: tuple[str, ...]) -> list[Row]:
    return store.rows(
        f"SELECT {_COLUMNS} FROM studies WHERE {where} "  # noqa: S608 - constants
        "ORDER BY offered DESC, digest",
        values,
    )


def _record(row: Row, today: date) -> StudyRecord:
    digest, _, body, state, offered, actor, reason, decided, until, datasets = row
    study = msgspec.msgpack.decode(body, type=Study)
    days = [date.fromisoformat(str(day)) for day in (until, study.until) if day]
    last = min(days, default=date.max)
    if state == "accepted" and today > last:
        state = "expired"
    return StudyRecord(
        str(digest),
        study,
        msgspec.convert(state, State),
        float(offered or 0),
        str(actor),
        str(reason),
        float(decided or 0),
        last,
        tuple(json.loads(str(datasets))),
    )
