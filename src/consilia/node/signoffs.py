"""Approvals by several people: who has signed for a plan so far, and on which terms.

Two people who approve must approve the same: the second agrees to the first one's terms, or
says others and is told so. One name signs once, so that two people means two people; who
stands behind a name is the matter of whoever lets them in.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

from consilia.accounts.store import Reads
from consilia.errors import Conflict
from consilia.node import seconding
from consilia.node.arguments import Allowed, Interval, OneOf, describe
from consilia.node.policy import person, short
from consilia.node.store import Store, Transaction
from consilia.wire.console import Role
from consilia.wire.v1 import Scalar


@dataclass(frozen=True, slots=True)
class Terms:
    """What an approval allows beside the source as it is. `until` is inclusive."""

    until: date | None = None
    arguments: Mapping[str, Allowed | None] = field(default_factory=dict)
    studies: tuple[str, ...] = ()  # only for these; empty: any study accepted here


@dataclass(frozen=True, slots=True)
class SignOff:
    """One reviewer's word for a plan that needs more of them. Time in Unix seconds."""

    reviewer: str
    at: float
    reason: str
    terms: str  # as they are stored: all reviewers sign the same


def sign_off(
    store: Store, subject: str, given: SignOff, *, repeats: bool, needed: int
) -> tuple[SignOff, ...] | None:
    """Note one reviewer's word; return all of them once they are enough, None before.

    `subject` is a plan's digest or a class of plans. `repeats`: the reviewer gave no terms, so
    they agree to the first one's. Raises Conflict when two reviewers' terms differ, or when
    the same person signs twice.
    """
    who = person(given.reviewer)
    # One transaction: of two who sign at the same time the later one sees the other's word.
    with store.write() as tx:
        known = signoffs(tx, subject)
        before = tuple(s for s in known if person(s.reviewer) != who)
        if needed > 1 and len(before) < len(known):
            raise Conflict(
                f"{given.reviewer} has approved {_shown(subject)} already; {needed} different "
                "people are needed: somebody else has to read it too"
            )
        if before and repeats:
            given = replace(given, terms=before[0].terms)
        if before and given.terms != before[0].terms:
            raise Conflict(
                f"{before[0].reviewer} approved {_shown(subject)} on the terms "
                f"{terms_said(before[0].terms)}; these are: {terms_said(given.terms)}. Give "
                "none to agree, or reject it and begin anew"
            )
        if len(before) + 1 >= needed:
            return (*before, given)
        _note(tx, subject, given, f"{len(before) + 1} of {needed} reviewers; {given.reason}")
    return None


def _note(tx: Transaction, subject: str, given: SignOff, count: str) -> None:
    """Keep a word that waits; those that count no more go, each with a line."""
    sql = "SELECT reviewer, at FROM signoffs WHERE plan = ?"
    for name, at in tx.rows(sql, (subject,)):
        if not seconding.counts(tx, name, "reviewer", at):
            seconding.void(tx, name, "plan.sign-off", subject, now=given.at)
            tx.execute("DELETE FROM signoffs WHERE plan = ? AND reviewer = ?", (subject, name))
    tx.execute(
        "INSERT INTO signoffs VALUES (?, ?, ?, ?, ?)",
        (subject, given.reviewer, given.at, given.reason, given.terms),
    )
    tx.audit(given.at, given.reviewer, "plan.sign-off", subject, "pending", count)


def check_words(tx: Transaction, subject: str, names: Sequence[str]) -> None:
    """Raise Conflict unless the words of `names` for a subject still wait, and count.

    For the transaction that decides by them: their authors may have lost the role meanwhile.
    """
    waiting = {s.reviewer for s in signoffs(tx, subject)}
    for name in names:
        if name not in waiting:
            raise Conflict(
                f"the word of {name} for {_shown(subject)} counts no more; look at it again"
            )


def signoffs(db: Reads, subject: str, role: Role = "reviewer") -> tuple[SignOff, ...]:
    """Return who has signed so far for a plan or class that needs more of them, in order.

    A word whose author has lost the role since is not among them.
    """
    rows = db.rows(
        "SELECT reviewer, at, reason, terms FROM signoffs WHERE plan = ? ORDER BY at, reviewer",
        (subject,),
    )
    found = (SignOff(*row) for row in rows)
    return tuple(s for s in found if seconding.counts(db, s.reviewer, role, s.at))


def terms_text(terms: Terms) -> str:
    """Return terms as one text that is equal where they are."""
    until = terms.until.isoformat() if terms.until else ""
    plain = [until, json.loads(dump(terms.arguments)), sorted(terms.studies)]
    return json.dumps(plain, sort_keys=True)


def terms_of(text: str) -> Terms:
    """Return the terms that such a text describes."""
    until, arguments, studies = json.loads(text)
    last = date.fromisoformat(until) if until else None
    return Terms(last, load(json.dumps(arguments)), tuple(studies))


def terms_said(text: str) -> str:
    """Return terms as a person reads them."""
    terms = terms_of(text)
    parts = [f"until {terms.until}" if terms.until else "no end"]
    parts += [f"{name} {describe(a)}" for name, a in terms.arguments.items() if a is not None]
    parts += [f"for {', '.join(terms.studies)}"] if terms.studies else []
    return ", ".join(parts)


def _shown(subject: str) -> str:
    return f"plan {short(subject)}" if subject.startswith("sha256:") else f"class {subject}"


def dump(arguments: Mapping[str, Allowed | None]) -> str:
    """Return arguments with their bounds as JSON."""
    plain: dict[str, object] = {}
    for name, allowed in arguments.items():
        if isinstance(allowed, Interval):
            plain[name] = {"range": [allowed.least, allowed.greatest]}
        else:
            plain[name] = {"values": list(allowed.values)} if allowed else None
    return json.dumps(plain)


def load(text: str) -> dict[str, Allowed | None]:
    """Return what `dump` wrote."""
    found: dict[str, Allowed | None] = {}
    for name, plain in json.loads(text).items():
        if plain is None:
            found[name] = None
        elif "range" in plain:
            found[name] = Interval(*plain["range"])
        else:
            values: list[Scalar] = plain["values"]
            found[name] = OneOf(tuple(values))
    return found
