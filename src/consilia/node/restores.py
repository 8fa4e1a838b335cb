"""A node that was put back: going on with its older privacy ledger, by two people.

What the lost entries spent is not counted any more, so more can be told about patients. Where
this site wants two people for a training plan (`reviewers_needed` of 2 or more), it wants two
for this as well: the first one's word waits, and the ledger stays held meanwhile.
"""

from dataclasses import dataclass

from consilia.accounts.store import Reads
from consilia.errors import Conflict
from consilia.node import budget, seconding
from consilia.node.approvals import reviewers_needed
from consilia.node.policy import person
from consilia.node.store import Store, Transaction, reason_of
from consilia.privacy.ledger import Head


@dataclass(frozen=True, slots=True)
class Asked:
    """One person's word to go on without what a ledger of `length` entries held."""

    length: int
    digest: str
    actor: str
    at: float  # Unix seconds
    reason: str


def decide(store: Store, *, actor: str, reason: str, now: float) -> Head | None:
    """Go on with the ledger as it is, or let one person's word wait for a second person's.

    Returns the head that was given up, None where the word waits. Raises Conflict when nothing
    is held, or for the same person again, ConfigError without a reason.
    """
    words = reason_of(reason)
    two = reviewers_needed(store) > 1
    # One transaction: what the second person agrees to is what the first one asked for, and
    # neither the head nor the first word can go in between.
    with store.write() as tx:
        held = _held(tx)
        if held is None:
            raise Conflict("the privacy ledger is not held: there is nothing to accept")
        asked = _waiting(tx)
        if two and asked is None:
            _wait(tx, Asked(held.length, held.digest, actor, now, words))
            return None
        if two and asked is not None:
            if person(asked.actor) == person(actor):
                raise Conflict(
                    f"{actor} has said so already; a second person has to agree: "
                    "consilia node budget accept-restore"
                )
            words = f"{words} (asked for by {asked.actor}: {asked.reason})"
        lost = budget.accept_restore(tx, actor=actor, reason=words, now=now)
        _forget(tx)
        return lost


def waiting(store: Store) -> Asked | None:
    """Return the word that waits for a second person.

    One about another head counts no more, nor one whose author may not decide any more.
    """
    return _waiting(store)


def withdraw(store: Store, *, actor: str, now: float) -> None:
    """Take back the word that waits; the ledger stays held."""
    with store.write() as tx:
        asked = _waiting(tx)
        if asked is None:
            raise Conflict(
                "nobody has asked to go on with the ledger: there is nothing to withdraw"
            )
        _forget(tx)
        tx.audit(now, actor, "budget.restore", str(asked.length), "withdrawn")


def _held(db: Reads) -> Head | None:
    found = db.rows("SELECT length, digest FROM budget_mirrors WHERE accepted = 0")
    return Head(*found[0]) if found else None


def _waiting(db: Reads) -> Asked | None:
    held = _held(db)
    found = db.rows("SELECT length, digest, actor, at, reason FROM restores_asked")
    asked = Asked(*found[0]) if found else None
    if held is None or asked is None:
        return None
    if not seconding.counts(db, asked.actor, "data_manager", asked.at):
        return None
    return asked if (asked.length, asked.digest) == (held.length, held.digest) else None


def _wait(tx: Transaction, asked: Asked) -> None:
    for length, actor, at in tx.rows("SELECT length, actor, at FROM restores_asked"):
        if not seconding.counts(tx, actor, "data_manager", at):
            seconding.void(tx, actor, "budget.restore", str(length), now=asked.at)
    _forget(tx)
    tx.execute(
        "INSERT INTO restores_asked VALUES (1, ?, ?, ?, ?, ?)",
        (asked.length, asked.digest, asked.actor, asked.at, asked.reason),
    )
    detail = f"waits for a second person: {asked.reason}"
    tx.audit(asked.at, asked.actor, "budget.restore", str(asked.length), "waits", detail)


def _forget(tx: Transaction) -> None:
    tx.execute("DELETE FROM restores_asked")
