"""A node that was put back: going on with its older privacy ledger, by two people.

What the lost entries spent is not counted any more, so more can be told about patients. Where
this site wants two people for a training plan (`reviewers_needed` of 2 or more), it wants two
for this as well: the first one's word waits, and the ledger stays held meanwhile.
"""

from dataclasses import dataclass

from consilia.errors import Conflict
from consilia.node import budget
from consilia.node.approvals import reviewers_needed
from consilia.node.ledger import MAX_REASON
from consilia.node.policy import person
from consilia.node.store import Store, printable
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
    held = budget.held(store)
    words = budget.reason_of(reason)
    if held is None:
        raise Conflict("the privacy ledger is not held: there is nothing to accept")
    asked = waiting(store)
    if reviewers_needed(store) > 1:
        if asked is None:
            _wait(store, Asked(held.length, held.digest, actor, now, words))
            return None
        if person(asked.actor) == person(actor):
            raise Conflict(
                f"{actor} has said so already; a second person has to agree: "
                "consilia node budget accept-restore"
            )
        words = printable(f"{words} (asked for by {asked.actor}: {asked.reason})", MAX_REASON)
    lost = budget.accept_restore(store, actor=actor, reason=words, now=now)
    _forget(store)
    return lost


def waiting(store: Store) -> Asked | None:
    """Return the word that waits for a second person; one about another head counts no more."""
    held = budget.held(store)
    rows = store.rows("SELECT length, digest, actor, at, reason FROM restores_asked")
    asked = Asked(*rows[0]) if rows else None
    if (
        held is None
        or asked is None
        or (asked.length, asked.digest) != (held.length, held.digest)
    ):
        return None
    return asked


def withdraw(store: Store, *, actor: str, now: float) -> None:
    """Take back the word that waits; the ledger stays held."""
    asked = waiting(store)
    if asked is None:
        raise Conflict(
            "nobody has asked to go on with the ledger: there is nothing to withdraw"
        )
    _forget(store)
    with store.write() as tx:
        tx.audit(now, actor, "budget.restore", str(asked.length), "withdrawn")


def _wait(store: Store, asked: Asked) -> None:
    with store.write() as tx:
        tx.execute("DELETE FROM restores_asked")
        tx.execute(
            "INSERT INTO restores_asked VALUES (1, ?, ?, ?, ?, ?)",
            (asked.length, asked.digest, asked.actor, asked.at, asked.reason),
        )
        detail = f"waits for a second person: {asked.reason}"
        tx.audit(asked.at, asked.actor, "budget.restore", str(asked.length), "waits", detail)


def _forget(store: Store) -> None:
    with store.write() as tx:
        tx.execute("DELETE FROM restores_asked")
