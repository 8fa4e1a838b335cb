"""What the site's people decide about the privacy ledger: caps, and a node that was put back.

The hub keeps the last ledger head that this node signed. A node whose ledger does not contain
that head was restored from a backup: what it spent in between is missing from its totals. It
refuses every charge until a person has decided. The hub can only bring about such a question;
it can neither answer it nor change a figure.
"""

from consilia.errors import AuthError, ConfigError, Conflict
from consilia.node import ledgerlog
from consilia.node.ledger import MAX_NAME, SCOPES, Scope
from consilia.node.store import Store, Transaction, printable, reason_of
from consilia.privacy.ledger import Cap, Entry, Head, check_cap
from consilia.wire import seal
from consilia.wire.v1 import Advertisement, Sealed, decode

MAX_LENGTH = 1 << 53  # of a ledger that a hub may speak of


def set_cap(  # noqa: PLR0913 - by keyword
    tx: Transaction, kind: Scope, name: str, cap: Cap, *, actor: str, reason: str, now: float
) -> None:
    """Cap one account for good; it wins over the default of node.yaml. Raises ConfigError."""
    check_cap(cap)
    text = f"epsilon {cap.epsilon:g} at delta {cap.delta:g}"
    tx.execute(
        "INSERT OR REPLACE INTO budget_caps VALUES (?, ?, ?, ?)",
        (_kind(kind), _name(name), cap.epsilon, cap.delta),
    )
    _decide(tx, "cap", kind, name, cap, actor, reason, now, text)


def drop_cap(  # noqa: PLR0913 - by keyword
    tx: Transaction, kind: Scope, name: str, *, actor: str, reason: str, now: float
) -> None:
    """Take a cap back: the default of node.yaml holds again. Conflict when none was set."""
    sql = "DELETE FROM budget_caps WHERE kind = ? AND name = ?"
    if not tx.execute(sql, (_kind(kind), _name(name))):
        raise Conflict(f"no command has set a cap for {kind} {name!r}")
    _decide(tx, "uncap", kind, name, None, actor, reason, now, "the default holds again")


def check_mirror(store: Store, mirror: Sealed, key: bytes, now: float) -> str:
    """Compare the ledger with the advertisement the hub kept; return what is wrong, or "".

    `key` is this node's public signing key. What is wrong holds the ledger until
    `accept_restore`. A mirror signed with another key counts as well: then this site has
    joined anew, and the ledger of its earlier node is not here. Raises WireError.
    """
    said = decode(mirror.payload, Advertisement)
    if said.ledger_length <= 0:
        return ""
    try:
        seal.open_sealed(mirror, "advertisement", key)
        signer = "this node"
    except AuthError:
        signer = "an earlier node of this site, or by nobody"
    length = min(said.ledger_length, MAX_LENGTH)
    return compare(store, Head(length, said.ledger_head), now, signer)


def compare(store: Store, mirror: Head, now: float, signer: str = "this node") -> str:
    """As `check_mirror`, for a head that was signed by `signer`."""
    with store.write() as tx:
        if ledgerlog.digest_at(tx, mirror.length) == mirror.digest:
            return ""
        known = tx.rows(
            "SELECT accepted FROM budget_mirrors WHERE length = ? AND digest = ?",
            (mirror.length, printable(mirror.digest, 100)),
        )
        if known and known[0][0]:
            return ""
        own = ledgerlog.head_in(tx)
        text = (
            f"the hub mirrors {mirror.length} entries, signed by {signer}; this ledger has "
            f"{own.length} and does not contain that head"
        )
        if not tx.rows("SELECT 1 FROM budget_mirrors WHERE accepted = 0"):
            tx.execute(
                "INSERT INTO budget_mirrors VALUES (?, ?, 0)",
                (mirror.length, printable(mirror.digest, 100)),
            )
            tx.audit(now, "agent", "budget.hold", str(mirror.length), "held", text)
        return text


def held(store: Store) -> Head | None:
    """Return the mirrored head that holds the ledger, None when nothing does."""
    rows = store.rows("SELECT length, digest FROM budget_mirrors WHERE accepted = 0")
    return Head(*rows[0]) if rows else None


def accept_restore(tx: Transaction, *, actor: str, reason: str, now: float) -> Head:
    """Go on with the ledger as it is; return the mirrored head that was given up.

    What the lost entries spent is not counted any more: who decides so should lower the cap
    by it. Conflict when nothing is held, ConfigError without a reason.
    """
    words = reason_of(reason)
    rows = tx.rows("SELECT length, digest FROM budget_mirrors WHERE accepted = 0")
    if not rows:
        raise Conflict("the privacy ledger is not held: there is nothing to accept")
    lost = Head(*rows[0])
    tx.execute("UPDATE budget_mirrors SET accepted = 1 WHERE accepted = 0")
    detail = f"gave up a ledger of {lost.length} entries ({lost.digest}): {words}"
    ledgerlog.append(tx, Entry(0, now, "restore", actor=actor, detail=detail))
    tx.audit(now, actor, "budget.restore", str(lost.length), "accepted", detail)
    return lost


def _decide(  # noqa: PLR0913, PLR0917 - what a decision is made of
    tx: Transaction,
    verb: str,
    kind: Scope,
    name: str,
    cap: Cap | None,
    actor: str,
    reason: str,
    now: float,
    text: str,
) -> None:
    words, names = reason_of(reason), {kind: name}
    entry = Entry(
        0,
        now,
        "cap" if cap else "uncap",
        universe=names.get("universe", ""),
        dataset=names.get("dataset", ""),
        study=names.get("study", ""),
        researcher=names.get("researcher", ""),
        epsilon=cap.epsilon if cap else 0.0,
        delta=cap.delta if cap else 0.0,
        actor=actor,
        detail=words,
    )
    ledgerlog.append(tx, entry)
    tx.audit(now, actor, f"budget.{verb}", f"{kind}:{name}", "changed", f"{text}: {words}")


def _kind(kind: str) -> str:
    if kind not in SCOPES:
        raise ConfigError(f"no cap for a {kind[:40]!r}; needed one of {', '.join(SCOPES)}")
    return kind


def _name(name: str) -> str:
    if not name or name != printable(name, MAX_NAME):
        raise ConfigError(f"{name[:80]!r} names no account: 1 to {MAX_NAME} characters")
    return name
