"""What the hub has signed of its own audit trail, kept at the site: length and last digest.

A hub that rewrites its history, or cuts it off, then contradicts itself in its own signature.
Such a head is never taken over: it is entered in the site's trail, with both heads kept as
evidence, and shown by `consilia node hub-audit`. Whether the lines before a kept head are still
the ones it names, an auditor finds out with `consilia audit verify --head LENGTH:DIGEST`.
"""

import logging
from dataclasses import dataclass

from consilia.core import ids
from consilia.errors import AuthError, ConfigError, WireError
from consilia.node.store import Row, Store, Transaction, printable
from consilia.wire.seal import open_sealed
from consilia.wire.v1 import AuditHead, Sealed, decode, encode

CONTEXT = "audit-head"
KEPT = 1000  # sound heads; older ones are forgotten
PROTESTS = 100  # contradicting heads kept and audited; further ones are only logged
MAX_LENGTH = 1 << 53

_LOG = logging.getLogger("consilia.node.heads")


@dataclass(frozen=True, slots=True)
class Head:
    """A head that the hub signed. `at` is Unix seconds, `problem` what it contradicts."""

    length: int
    digest: str
    at: float
    problem: str
    sealed: Sealed | None  # the signature; None: the hub sent no head, or no valid one


def take(store: Store, sealed: Sealed | None, key: bytes, now: float) -> bool:
    """Take in a head that came with the catalogue; False, and a loud line, when it is unsound.

    `key` is the hub's public key, pinned when the site joined. A hub that never sent a head
    may go on without; one that did may not.
    """
    try:
        head = None if sealed is None else _opened(sealed, key)
    except (AuthError, WireError, ConfigError) as e:
        return _protest(store, Head(0, "", now, printable(str(e), 400), None))
    last = newest(store)
    if head is None or sealed is None:
        return last is None or _protest(store, Head(0, "", now, "it sent none", None))
    if last is not None and (head.length, head.digest) == (last.length, last.digest):
        return True
    problem = "" if last is None else _contradiction(head, last)
    found = Head(head.length, head.digest, now, problem, sealed)
    if problem:
        return _protest(store, found)
    with store.write() as tx:
        _keep(tx, found)
        tx.execute(
            "DELETE FROM hub_heads WHERE problem = '' AND length <= (SELECT length FROM "
            "hub_heads WHERE problem = '' ORDER BY length DESC LIMIT 1 OFFSET ?)",
            (KEPT,),
        )
    return True


def newest(store: Store) -> Head | None:
    """Return the longest sound head, None when the hub has sent none yet."""
    rows = store.rows(
        "SELECT length, digest, at, problem, sealed FROM hub_heads WHERE problem = '' "
        "ORDER BY length DESC LIMIT 1"
    )
    return _head(rows[0]) if rows else None


def unsound(store: Store) -> list[Head]:
    """Return the heads that contradict what was kept, oldest first."""
    rows = store.rows(
        "SELECT length, digest, at, problem, sealed FROM hub_heads WHERE problem != '' "
        "ORDER BY at, length"
    )
    return [_head(row) for row in rows]


def _opened(sealed: Sealed, key: bytes) -> AuditHead:
    head = decode(open_sealed(sealed, CONTEXT, key), AuditHead)
    ids.digest(head.digest)
    if not 0 <= head.length <= MAX_LENGTH:
        raise WireError(f"the hub's audit trail cannot have {head.length} lines")
    return head


def _contradiction(head: AuditHead, last: Head) -> str:
    if head.length < last.length:
        return f"it has {head.length} lines now, and had {last.length}"
    if head.length == last.length:
        return f"line {head.length} is another one than before"
    return ""


def _protest(store: Store, head: Head) -> bool:
    """Keep and audit an unsound head, once; always return False."""
    known = unsound(store)
    same = (head.length, head.digest, head.problem)
    if len(known) < PROTESTS and same not in {(h.length, h.digest, h.problem) for h in known}:
        last = newest(store)
        before = f"; kept: {last.length}:{last.digest}" if last else ""
        detail = f"{head.problem}; found: {head.length}:{head.digest or 'none'}{before}"
        with store.write() as tx:
            _keep(tx, head)
            tx.audit(head.at, "hub", "hub.audit", "audit trail of the hub", "BROKEN", detail)
    _LOG.error("the hub's audit trail is not what it was: %s", head.problem)
    return False


def _keep(tx: Transaction, head: Head) -> None:
    tx.execute(
        "INSERT OR IGNORE INTO hub_heads VALUES (?, ?, ?, ?, ?)",
        (
            *(head.length, head.digest, head.at, head.problem),
            b"" if head.sealed is None else encode(head.sealed),
        ),
    )


def _head(row: Row) -> Head:
    length, digest, at, problem, body = row
    return Head(length, digest, at, problem, decode(body, Sealed) if body else None)
