"""Caps of the privacy ledger by two people: one asks for a higher one, another agrees.

A lower cap protects and holds at once. A higher one, or none where one held, lets more be told
about patients for ever; where this site wants two people for a training plan
(`reviewers_needed` of 2 or more), it wants two for that as well. What waits changes nothing.
"""

from dataclasses import dataclass

from consilia.accounts.store import Reads
from consilia.errors import ConfigError, Wrong
from consilia.node import budget, seconding
from consilia.node.approvals import reviewers_needed
from consilia.node.config import Budgets
from consilia.node.ledger import MAX_NAME, SCOPES, Scope
from consilia.node.policy import person
from consilia.node.store import Store, Transaction, printable, reason_of
from consilia.privacy.ledger import Cap, check_cap


@dataclass(frozen=True, slots=True)
class Proposal:
    """A higher cap that waits for a second person; `cap` None: to take the cap back."""

    kind: Scope
    name: str
    cap: Cap | None
    actor: str
    at: float  # Unix seconds
    reason: str


def decide(  # noqa: PLR0913 - by keyword
    store: Store,
    kind: Scope,
    name: str,
    cap: Cap | None,
    budgets: Budgets,
    *,
    actor: str,
    reason: str,
    now: float,
) -> Proposal | None:
    """Put a cap (None: the default) in force, or let it wait for a second person.

    Returns what waits, None when it is in force. The same figures asked for by somebody else
    are the second person's word; other figures take the place of what waited.
    """
    if cap is not None:
        check_cap(cap)
    if kind not in SCOPES:
        raise ConfigError(Wrong("kind", repr(kind[:40]), f"one of {', '.join(SCOPES)}"))
    if not name or name != printable(name, MAX_NAME):
        raise ConfigError(Wrong("name", repr(name[:80]), f"1 to {MAX_NAME} characters"))
    reason = reason_of(reason)
    default: Cap | None = getattr(budgets, kind)
    two = reviewers_needed(store) > 1
    # One transaction: the cap that a raise is held against, the word that waits, and what
    # becomes of both. Nothing that others decide meanwhile comes in between.
    with store.write() as tx:
        held, new = in_force(tx, kind, name, default), cap or default
        waits = waiting(tx, kind, name)
        second = waits is not None and waits.cap == cap and person(waits.actor) != person(actor)
        if two and raises(held, new) and not second:
            return _wait(tx, Proposal(kind, name, cap, actor, now, reason))
        words = (
            f"{reason} (asked for by {waits.actor}: {waits.reason})"
            if second and waits
            else reason
        )
        if cap is None:
            budget.drop_cap(tx, kind, name, actor=actor, reason=words, now=now)
        else:
            budget.set_cap(tx, kind, name, cap, actor=actor, reason=words, now=now)
        _forget(tx, kind, name)
        return None


def raises(held: Cap | None, new: Cap | None) -> bool:
    """Tell whether a change of a cap lets more be spent; either figure counts."""
    if held is None:
        return False
    return new is None or new.epsilon > held.epsilon or new.delta > held.delta


def in_force(db: Reads, kind: Scope, name: str, default: Cap | None) -> Cap | None:
    """Return the cap of an account: its own, else the default of node.yaml."""
    sql = "SELECT epsilon, delta FROM budget_caps WHERE kind = ? AND name = ?"
    rows = db.rows(sql, (kind, name))
    return Cap(float(rows[0][0]), float(rows[0][1])) if rows else default


def proposals(db: Reads) -> list[Proposal]:
    """Return what waits for a second person, oldest first.

    What somebody asked for who may not decide any more is not among it.
    """
    rows = db.rows(
        "SELECT kind, name, epsilon, delta, actor, at, reason FROM cap_proposals ORDER BY at"
    )
    return [
        Proposal(
            kind, str(name), None if epsilon is None else Cap(epsilon, delta),
            str(actor), float(at), str(reason),
        )
        for kind, name, epsilon, delta, actor, at, reason in rows
        if seconding.counts(db, actor, "data_manager", at)
    ]  # fmt: skip


def waiting(db: Reads, kind: Scope, name: str) -> Proposal | None:
    """Return what waits for one account, None for nothing."""
    return next((p for p in proposals(db) if (p.kind, p.name) == (kind, name)), None)


def withdraw(store: Store, kind: Scope, name: str, *, actor: str, now: float) -> None:
    """Forget what waits for an account; the cap in force stays."""
    with store.write() as tx:
        sql = "DELETE FROM cap_proposals WHERE kind = ? AND name = ?"
        if tx.execute(sql, (kind, name)):
            tx.audit(now, actor, "budget.propose", f"{kind}:{name}", "withdrawn")


def _wait(tx: Transaction, asked: Proposal) -> Proposal:
    epsilon, delta = (asked.cap.epsilon, asked.cap.delta) if asked.cap else (None, None)
    subject = f"{asked.kind}:{asked.name}"
    sql = "SELECT actor, at FROM cap_proposals WHERE kind = ? AND name = ?"
    for before, at in tx.rows(sql, (asked.kind, asked.name)):
        if not seconding.counts(tx, before, "data_manager", at):
            seconding.void(tx, before, "budget.propose", subject, now=asked.at)
    tx.execute(
        "INSERT OR REPLACE INTO cap_proposals VALUES (?, ?, ?, ?, ?, ?, ?)",
        (asked.kind, asked.name, epsilon, delta, asked.actor, asked.at, asked.reason),
    )
    shown = f"epsilon {epsilon:g} at delta {delta:g}" if asked.cap else "the default"
    detail = f"{shown}; waits for a second person: {asked.reason}"
    tx.audit(asked.at, asked.actor, "budget.propose", subject, "waits", detail)
    return asked


def _forget(tx: Transaction, kind: Scope, name: str) -> None:
    tx.execute("DELETE FROM cap_proposals WHERE kind = ? AND name = ?", (kind, name))
