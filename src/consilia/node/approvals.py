"""Approvals: which training plans a person at this site has read and allowed.

    pending --approve--> approved --revoke--> revoked
       |                    | (its last day passes)
       +--reject-> rejected +-> expired

A plan is named by the digest of its source, declared requirements and entry point, computed
here from the bytes the reviewer reads: changing one character makes another, pending plan.
A rejected, revoked or expired plan may be approved again. An approval names the arguments
that may be set; the others keep what the source says.

Where node.yaml asks for several reviewers, each signs off in their own name on the same terms,
and the last one's word is the approval; until then the plan stays what it was. An approval
keeps who signed it, so that policy can ask again when the rule becomes stricter.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

import msgspec

from consilia.core import ids
from consilia.errors import ConfigError, Conflict, NotFound, WireError
from consilia.node import attempts, config, source
from consilia.node.arguments import Allowed, describe
from consilia.node.findings import Finding, findings
from consilia.node.policy import PlanGrant, Via, short
from consilia.node.signoffs import (
    SignOff,
    Terms,
    check_words,
    dump,
    load,
    sign_off,
    signoffs,
    terms_of,
    terms_text,
)
from consilia.node.store import Row, Store, Transaction, printable
from consilia.wire.planform import check_form
from consilia.wire.v1 import Plan, Scalar, encode, plan_digest

State = Literal["pending", "approved", "rejected", "revoked", "expired"]

MAX_REASON = 2000
MAX_OFFERS = 100  # studies that one plan is offered for
MAX_PENDING = 1000  # plans awaiting review; a hub cannot fill the disk with offers
_COLUMNS = (
    "digest, name, body, author, state, offered, actor, reason, decided, approved, until, "
    "arguments, studies"
)


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A plan at this site and what was decided about it. Times are Unix seconds."""

    digest: str
    plan: Plan
    author: str  # as the hub tells it
    state: State
    offered: float
    offered_for: tuple[str, ...]  # studies
    reviewer: str
    reason: str
    decided: float
    until: date  # last day of an approval, inclusive; date.max for none
    arguments: Mapping[str, Allowed | None]  # names that may be set; None: the site's range
    studies: tuple[str, ...]  # only for these; empty: any study accepted here
    via: Via = "site"  # how an approval in force came about
    signers: tuple[str, ...] = ()  # of that approval
    signoffs: tuple[SignOff, ...] = ()  # of an approval that needs more reviewers


@dataclass(frozen=True, slots=True)
class Review:
    """All that a reviewer reads before deciding."""

    plan: PlanRecord
    findings: tuple[Finding, ...]
    declared: Mapping[str, Scalar] | None  # arguments with defaults; None: not readable
    before: PlanRecord | None  # the version of this name approved last here
    differences: tuple[source.FileDiff, ...]  # against it; all of the plan without one


def offer(  # noqa: PLR0913 - by keyword
    store: Store, plan: Plan, digest: str, *, study: str, author: str, now: float
) -> bool:
    """Take in a plan that the hub offers under `digest`; return whether it is new here.

    Raises WireError, after an audit line, when the bytes have another digest; PlanError when
    the plan's form is not one a node accepts.
    """
    found = plan_digest(plan)
    if found != digest:
        words = f"the hub sent plan {found} under the digest {digest[:80]}; ignored"
        attempts.note(store, "plan.offer", digest[:200], words, now)
        raise WireError(words)
    check_form(plan)
    with store.write() as tx:
        if tx.rows("SELECT 1 FROM plans WHERE digest = ?", (digest,)):
            _offered(tx, digest, study)
            return False
        ((count,),) = tx.rows("SELECT count(*) FROM plans WHERE state = 'pending'")
        if isinstance(count, int) and count >= MAX_PENDING:
            raise Conflict(
                f"{count} plans await review here; reject some before more are taken in"
            )
        tx.execute(
            "INSERT INTO plans VALUES (?, ?, ?, ?, 'pending', ?, '', '', 0, 0, '', '{}', '[]')",
            (digest, plan.name, encode(plan), printable(author, 200), now),
        )
        _offered(tx, digest, study)
        tx.audit(now, "hub", "plan.offer", digest, "pending", f"{plan.name} for {study}")
    return True


def approve(  # noqa: PLR0913 - by keyword
    store: Store,
    digest: str,
    *,
    actor: str,
    now: float,
    reason: str = "",
    until: date | None = None,
    arguments: Mapping[str, Allowed | None] | None = None,
    studies: tuple[str, ...] = (),
    needed: int | None = None,
    seen: str = "",
) -> PlanRecord:
    """Approve a plan until a day (inclusive; None: no end).

    `needed` different people must do so on the same terms, None for as many as node.yaml says;
    before the last one the record comes back as it was, with one more of its `signoffs`.

    `arguments` adds or narrows: name -> range or choice, None for the site's own range. The
    names with defaults that the source declares are always among them. `studies` restricts
    the approval to studies of these names. `seen`: see `mark`.
    """
    record = get(store, digest, day(now))
    _check_seen(record, seen)
    _check_reason(reason)
    _check_studies(store, record, studies)
    if until is not None and until < day(now):
        raise ConfigError(f"--until {until} lies in the past: today is {day(now)}")
    names = argument_names(record.plan, arguments or {})
    terms = Terms(until, names, tuple(sorted(studies)))
    asked = None if until is None and not arguments and not studies else terms
    signers = sign_off(
        store,
        record.digest,
        SignOff(actor, now, reason, terms_text(terms)),
        repeats=asked is None,
        needed=reviewers_needed(store) if needed is None else needed,
    )
    if signers is None:
        return get(store, record.digest, day(now))
    agreed = terms_of(signers[0].terms)
    return settle(store, record, agreed, signers, via="site", actor=actor, now=now)


def reviewers_needed(store: Store) -> int:
    """Return how many people must approve a plan, as node.yaml beside the store says; or 1."""
    directory = store.path.parent
    if not (directory / config.FILE).exists():
        return 1  # a store without a node, as the simulator has
    return config.load(directory).reviewers_needed


def settle(  # noqa: PLR0913 - by keyword
    store: Store,
    record: PlanRecord,
    terms: Terms,
    signers: tuple[SignOff, ...],
    *,
    via: Via,
    actor: str,
    now: float,
) -> PlanRecord:
    """Make an approval of enough reviewers' words; it holds at once."""
    shown = {n: a for n, a in terms.arguments.items() if a is not None}
    reason = "; ".join(dict.fromkeys(s.reason for s in signers if s.reason))
    detail = "; ".join(
        part
        for part in (
            f"until {terms.until}" if terms.until else "",
            f"for {', '.join(terms.studies)}" if terms.studies else "",
            ", ".join(f"{n}: {describe(a)}" for n, a in shown.items()),
            "" if via == "site" else f"via {via}",
            f"by {', '.join(s.reviewer for s in signers)}" if len(signers) > 1 else "",
            reason,
        )
        if part
    )
    return _decide(
        store,
        record,
        _Verdict("approved", actor, reason[:MAX_REASON], now),
        detail,
        (via, tuple(s.reviewer for s in signers)),
        until=terms.until.isoformat() if terms.until else "",
        arguments=dump(terms.arguments),
        studies=json.dumps(sorted(terms.studies)),
    )


def reject(  # noqa: PLR0913 - by keyword
    store: Store, digest: str, *, actor: str, now: float, reason: str, seen: str = ""
) -> PlanRecord:
    """Reject a plan that is pending, and what others signed for it; it cannot run."""
    record = get(store, digest, day(now))
    _check_seen(record, seen)
    if record.state == "approved":
        raise Conflict(f"plan {short(record.digest)} is approved: revoke it instead")
    return _decide(store, record, _Verdict("rejected", actor, reason, now), reason)


def mark(record: PlanRecord) -> str:
    """Return what names all that has been decided about a plan up to now.

    Whoever decides on a page they opened a while ago sends it back as `seen`: when somebody
    else has decided since, their decision raises Conflict instead of going over the other's.
    """
    signed = [(s.reviewer, s.at, s.terms) for s in record.signoffs]
    plain = json.dumps([record.state, record.decided, record.reviewer, signed])
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def revoke(store: Store, digest: str, *, actor: str, now: float, reason: str) -> PlanRecord:
    """Withdraw an approval; what runs under it is stopped by the agent within a second.

    It is never too late for that, so it takes no `seen`.
    """
    record = get(store, digest, day(now))
    if record.state not in ("approved", "expired"):
        raise Conflict(f"plan {short(record.digest)} is {record.state}, not approved")
    return _decide(store, record, _Verdict("revoked", actor, reason, now), reason)


def get(store: Store, digest: str, today: date) -> PlanRecord:
    """Return the plan of a digest, or of a prefix of 6 or more hex digits that only it has."""
    if digest.startswith("sha256:") and len(digest) == 71:
        rows = _select(store, "digest = ?", (ids.digest(digest),))
    else:
        stem = digest.removeprefix("sha256:").lower()
        if len(stem) < 6 or not all(c in "0123456789abcdef" for c in stem):
            raise ConfigError(
                f"{digest[:80]!r} is no plan: give its digest, or 6 or more of its hex digits"
            )
        rows = _select(store, "substr(digest, 8, ?) = ?", (len(stem), stem))
    if not rows:
        raise NotFound(f"no plan {digest[:80]} at this node; see: consilia node plans")
    if len(rows) > 1:
        raise ConfigError(f"{digest[:80]} is the start of {len(rows)} plans; give more digits")
    return _record(store, rows[0], today)


def list_plans(store: Store, today: date, state: State | None = None) -> list[PlanRecord]:
    """Return the plans at this site, newest offer first, of one state or of all."""
    records = [_record(store, row, today) for row in _select(store, "true", ())]
    return [r for r in records if state is None or r.state == state]


def known(store: Store, digest: str) -> bool:
    """Tell whether the node has the plan's source, whatever was decided."""
    return bool(store.rows("SELECT 1 FROM plans WHERE digest = ?", (digest,)))


def note_offer(store: Store, digest: str, study: str) -> bool:
    """Remember that a known plan is offered to a study too; return whether that is new.

    Raises Conflict when it is offered to too many.
    """
    if store.rows("SELECT 1 FROM offers WHERE plan = ? AND study = ?", (digest, study)):
        return False
    with store.write() as tx:
        _offered(tx, digest, study)
    return True


def previous(store: Store, digest: str, today: date) -> PlanRecord | None:
    """Return the version of the same name that was approved last, other than this one."""
    record = get(store, digest, today)
    rows = _select(
        store,
        "name = ? AND digest != ? AND approved > 0 ORDER BY approved DESC LIMIT 1",
        (record.plan.name, record.digest),
    )
    return _record(store, rows[0], today) if rows else None


def review(store: Store, digest: str, today: date) -> Review:
    """Return what a reviewer of a plan reads: source, findings, differences."""
    record, before = get(store, digest, today), previous(store, digest, today)
    old = before.plan if before else Plan(record.plan.name, {}, "")
    return Review(
        record,
        findings(record.plan),
        source.declared_arguments(record.plan),
        before,
        source.file_diffs(old, record.plan),
    )


def grants(store: Store) -> dict[str, PlanGrant]:
    """Return every approval, expired ones with their last day: what policy judges by."""
    found: dict[str, PlanGrant] = {}
    for row in _select(store, "state = 'approved'", ()):
        record = _record(store, row, date.min)
        if plan_digest(record.plan) != record.digest:
            continue  # the file was tampered with: no approval covers these bytes
        defaults = source.declared_arguments(record.plan) or {}
        found[record.digest] = PlanGrant(
            record.plan.name,
            frozenset(record.studies),
            record.until,
            dict(defaults),
            record.arguments,
            frozenset(record.signers),
            record.via,
        )
    return found


@dataclass(frozen=True, slots=True)
class _Verdict:
    state: Literal["approved", "rejected", "revoked"]
    actor: str
    reason: str
    at: float


_VERBS = {"approved": "approve", "rejected": "reject", "revoked": "revoke"}


def _decide(
    store: Store,
    record: PlanRecord,
    verdict: _Verdict,
    detail: str,
    signed: tuple[Via, tuple[str, ...]] | None = None,
    **fields: str,
) -> PlanRecord:
    """Write a decision, what an approval adds (`signed`, `fields`), and its audit line."""
    _check_reason(verdict.reason)
    values: dict[str, str | float] = {
        "state": verdict.state,
        "actor": verdict.actor,
        "reason": verdict.reason,
        "decided": verdict.at,
        **({"approved": verdict.at} if verdict.state == "approved" else {}),
        **fields,
    }
    sets = ", ".join(f"{column} = ?" for column in values)
    with store.write() as tx:
        rows = tx.rows("SELECT decided FROM plans WHERE digest = ?", (record.digest,))
        if float(rows[0][0] or 0) != record.decided:
            raise Conflict(
                f"somebody else has decided about plan {short(record.digest)} meanwhile; look "
                "at it again"
            )
        if signed is not None and signed[0] == "site":
            check_words(tx, record.digest, signed[1][:-1])
        tx.execute(
            f"UPDATE plans SET {sets} WHERE digest = ?",  # noqa: S608 - our column names
            (*values.values(), record.digest),
        )
        tx.execute("DELETE FROM signoffs WHERE plan = ?", (record.digest,))
        tx.execute("DELETE FROM plan_signers WHERE plan = ?", (record.digest,))
        if signed is not None:
            tx.execute(
                "INSERT INTO plan_signers VALUES (?, ?, ?)",
                (record.digest, signed[0], json.dumps(signed[1])),
            )
        tx.touch()
        tx.audit(
            verdict.at,
            verdict.actor,
            f"plan.{_VERBS[verdict.state]}",
            record.digest,
            verdict.state,
            f"{record.plan.name}: {detail}",
        )
    return get(store, record.digest, day(verdict.at))


def _offered(tx: Transaction, digest: str, study: str) -> None:
    ((count,),) = tx.rows("SELECT count(*) FROM offers WHERE plan = ?", (digest,))
    if isinstance(count, int) and count >= MAX_OFFERS:
        raise Conflict(f"plan {short(digest)} is offered for {count} studies already")
    tx.execute("INSERT OR IGNORE INTO offers VALUES (?, ?)", (digest, study))


def _select(store: Store, where: str, values: tuple[str | int, ...]) -> list[Row]:
    order = "" if "ORDER BY" in where else " ORDER BY offered DESC, digest"
    sql = f"SELECT {_COLUMNS} FROM plans WHERE {where}{order}"  # noqa: S608 - constants
    return store.rows(sql, values)


def _record(store: Store, row: Row, today: date) -> PlanRecord:
    digest, _, body, author, state, offered, actor, reason, decided, _, until, args, only = row
    last = date.fromisoformat(str(until)) if until else date.max
    if state == "approved" and today > last:
        state = "expired"
    offers = store.rows("SELECT study FROM offers WHERE plan = ? ORDER BY study", (digest,))
    via, signers = _signers(store, str(digest), str(actor), str(state))
    return PlanRecord(
        str(digest),
        msgspec.msgpack.decode(body, type=Plan),
        str(author),
        msgspec.convert(state, State),
        float(offered or 0),
        tuple(str(name) for (name,) in offers),
        str(actor),
        str(reason),
        float(decided or 0),
        last,
        load(str(args)),
        tuple(json.loads(str(only))),
        via,
        signers,
        signoffs(store, str(digest)),
    )


def _signers(store: Store, digest: str, actor: str, state: str) -> tuple[Via, tuple[str, ...]]:
    """Return how an approval came about and who signed; one without a note has one signer."""
    rows = store.rows("SELECT via, names FROM plan_signers WHERE plan = ?", (digest,))
    if rows:
        return msgspec.convert(rows[0][0], Via), tuple(json.loads(str(rows[0][1])))
    return "site", (actor,) if state in ("approved", "expired") else ()


def argument_names(
    plan: Plan, given: Mapping[str, Allowed | None]
) -> dict[str, Allowed | None]:
    """Return the names that may be set: those declared, and those `given` with their bounds."""
    declared = source.declared_arguments(plan)
    names: dict[str, Allowed | None] = dict.fromkeys(declared or ())
    for name, allowed in given.items():
        if declared is not None and name not in declared:
            raise ConfigError(
                f"argument {name!r} is not declared by the plan; declared: "
                f"{', '.join(sorted(declared)) or 'none'}"
            )
        names[name] = allowed
    return names


def _check_seen(record: PlanRecord, seen: str) -> None:
    """Raise Conflict when something was decided that whoever decides now has not seen."""
    if not seen or seen == mark(record):
        return
    words = [f"it is {record.state}"]
    if record.reviewer:
        words.append(f"decided by {record.reviewer}")
    if record.signoffs:
        words.append(f"signed by {', '.join(s.reviewer for s in record.signoffs)}")
    reason = f" ({record.reason})" if record.reason else ""
    raise Conflict(
        f"plan {short(record.digest)} was decided about since you opened it: "
        f"{', '.join(words)}{reason}; look at it again, then decide"
    )


def _check_studies(store: Store, record: PlanRecord, studies: tuple[str, ...]) -> None:
    """Raise ConfigError for a study that nobody offered: its name is misspelt, most likely."""
    for name in studies:
        if name not in record.offered_for and not store.rows(
            "SELECT 1 FROM studies WHERE name = ?", (name,)
        ):
            raise ConfigError(
                f"study {name[:80]!r} was not offered here; plan {short(record.digest)} is "
                f"offered for: {', '.join(record.offered_for) or 'none'}"
            )


def _check_reason(reason: str) -> None:
    if len(reason) > MAX_REASON:
        raise ConfigError(f"a reason of {len(reason)} characters, limit {MAX_REASON}")


def day(now: float) -> date:
    """Return the site's calendar day at `now`."""
    return date.fromtimestamp(now)
