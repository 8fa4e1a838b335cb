"""The hash chain under every audit trail, at the hub and at each node.

digest_i = SHA-256("consilia audit" || digest_{i-1} || canonical JSON of line i)

Whoever keeps an old head notices any later change, removal, insertion or reordering before
it. A node's head goes to the hub, signed, with each advertisement; the hub's is for auditors
to keep. Lines hold who, what, on what and the outcome: never records, values or secrets.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

GENESIS = "sha256:" + "0" * 64
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@dataclass(frozen=True, slots=True)
class Line:
    """One audit event. `at` is Unix seconds."""

    seq: int
    at: float
    actor: str
    action: str
    subject: str
    outcome: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where a chain does not hold, and why."""

    seq: int
    reason: str


def link(previous: str, line: Line) -> str:
    """Return the digest of `line` after the line whose digest is `previous`."""
    fields = {
        "seq": line.seq,
        "at": line.at,
        "actor": line.actor,
        "action": line.action,
        "subject": line.subject,
        "outcome": line.outcome,
        "detail": line.detail,
    }
    body = _CANONICAL.encode(fields)
    text = f"consilia audit\0{previous}\0{body}"
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def verify(
    chain: Iterable[tuple[Line, str]], after: str = GENESIS, first: int = 1
) -> Break | tuple[int, str]:
    """Check (line, digest) pairs in order; return the first break, or (lines, head)."""
    head, count = after, 0
    for line, digest in chain:
        if line.seq != first + count:
            return Break(first + count, f"line {first + count} is missing: found {line.seq}")
        expected = link(head, line)
        if digest != expected:
            return Break(
                line.seq, "the line, or one before it, was changed after it was written"
            )
        head, count = digest, count + 1
    return count, head
