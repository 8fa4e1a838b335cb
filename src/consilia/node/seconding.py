"""Whose word counts where a decision takes two people: whose author may still decide.

A word that waits for a second one is read again whenever somebody asks. What a person said at
the console counts while their account is there, is not disabled, and holds the role that the
decision needs; an account made since is another person's, whatever its name. What was said by
command (user:NAME) has no account: it counts for whoever may use this machine.
"""

from consilia.accounts import store as accounts
from consilia.accounts.store import Reads
from consilia.node.store import Transaction
from consilia.wire.console import Role

COMMAND = "user:"  # how the actor of a command is written


def counts(db: Reads, actor: str, role: Role, at: float) -> bool:
    """Tell whether what `actor` said `at` still counts for what people of `role` decide."""
    if actor.startswith(COMMAND):
        return True
    found = accounts.find(db, actor)
    if found is None or found.disabled or found.created > at:
        return False
    return role in found.roles


def forget(tx: Transaction, actor: str, *, now: float) -> None:
    """Take back every word of an account that waits for a second one, each with a line.

    For whom the hospital's directory turns away: the account stays here as it was.
    """
    asked = (
        ("signoffs", "plan", "reviewer", "plan.sign-off"),
        ("cap_proposals", "kind || ':' || name", "actor", "budget.propose"),
        ("restores_asked", "length", "actor", "budget.restore"),
    )
    for table, subject, column, action in asked:
        rows = tx.rows(f"SELECT {subject} FROM {table} WHERE {column} = ?", (actor,))  # noqa: S608 - constants
        for (about,) in rows:
            void(tx, actor, action, str(about), now=now)
        tx.execute(f"DELETE FROM {table} WHERE {column} = ?", (actor,))  # noqa: S608 - constants


def void(tx: Transaction, actor: str, action: str, subject: str, *, now: float) -> None:
    """Note that a word which waited counts no more."""
    detail = f"{actor} may not decide this any more: the word that waited counts no longer"
    tx.audit(now, "console", action, subject, "void", detail)
