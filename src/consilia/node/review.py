"""Approvals that rest on others' reading: plans that ship with Consilia, and a consortium's.

Shipped plans are known by digest (shipped.json, in the package). Whoever runs the package
trusts its code already, so a digest in it is as good as a signature over it: a person approves
the class once, and every plan of it that the hub offers is approved by that word.

A consortium's review: reviewers of other sites sign a plan's digest with their node's key.
Where node.yaml accepts that (`consortium_review`), enough of them approve the plan here. A
signature counts when its key is pinned for a study that this site has accepted and for which
the plan is offered; the hub's word about keys or reviews counts for nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.errors import AuthError, ConfigError, Conflict, NotFound, Refused
from consilia.node import approvals, config, peers, studies
from consilia.node.approvals import PlanRecord
from consilia.node.policy import ConsortiumReview, reviewed, short
from consilia.node.signoffs import (
    SignOff,
    Terms,
    check_words,
    sign_off,
    terms_of,
    terms_text,
)
from consilia.node.store import Store, printable
from consilia.wire import seal
from consilia.wire.planreview import CONTEXT, PlanReview, from_text, to_text
from consilia.wire.v1 import Sealed, decode, encode

SHIPPED = "shipped"
MAX_REVIEWER = 100  # characters of a name


@dataclass(frozen=True, slots=True)
class ClassRecord:
    """The approval of a class of plans. Time in Unix seconds; `until` is inclusive."""

    name: str
    at: float
    signers: tuple[str, ...]
    reason: str
    until: date
    studies: tuple[str, ...]  # only for these; empty: any study accepted here


# ---- plans that ship with Consilia -----------------------------------------------------------


def shipped() -> Mapping[str, str]:
    """Return the plans that ship with this release: digest -> what it is."""
    text = Path(__file__).with_name("shipped.json").read_text("utf-8")
    found: dict[str, str] = json.loads(text)
    return found


def approve_shipped(  # noqa: PLR0913 - by keyword
    store: Store,
    *,
    actor: str,
    now: float,
    reason: str = "",
    until: date | None = None,
    studies: tuple[str, ...] = (),
    needed: int | None = None,
) -> tuple[PlanRecord, ...]:
    """Approve the class of shipped plans; return those of it that are approved by that now.

    Empty while more reviewers are needed (`class_signoffs` tells who has signed), and where the
    hub has offered none yet.
    """
    today = approvals.day(now)
    if until is not None and until < today:
        raise ConfigError(f"--until {until} lies in the past: today is {today}")
    terms = Terms(until, {}, tuple(sorted(studies)))
    signers = sign_off(
        store,
        SHIPPED,
        SignOff(actor, now, reason, terms_text(terms)),
        repeats=until is None and not studies,
        needed=approvals.reviewers_needed(store) if needed is None else needed,
    )
    if signers is None:
        return ()
    agreed, names = terms_of(signers[0].terms), [s.reviewer for s in signers]
    last = agreed.until.isoformat() if agreed.until else ""
    with store.write() as tx:
        check_words(tx, SHIPPED, names[:-1])
        tx.execute("DELETE FROM signoffs WHERE plan = ?", (SHIPPED,))
        tx.execute(
            "INSERT OR REPLACE INTO plan_classes VALUES (?, ?, ?, ?, ?, ?)",
            (SHIPPED, now, json.dumps(names), reason, last, json.dumps(agreed.studies)),
        )
        detail = f"{len(shipped())} plans, by {', '.join(names)}; {reason}"
        tx.audit(now, actor, "plan.approve-class", SHIPPED, "approved", detail)
    pending = approvals.list_plans(store, today, "pending")
    done = [consider(store, record.digest, now) for record in pending]
    return tuple(record for record in done if record is not None)


def revoke_shipped(
    store: Store, *, actor: str, now: float, reason: str
) -> tuple[PlanRecord, ...]:
    """Withdraw the approval of the class and of every plan approved by it; return these."""
    if shipped_class(store) is None:
        raise Conflict("the plans that ship with Consilia are not approved as a class here")
    with store.write() as tx:
        tx.execute("DELETE FROM plan_classes WHERE name = ?", (SHIPPED,))
        tx.audit(now, actor, "plan.revoke-class", SHIPPED, "revoked", reason)
    found = [
        record
        for record in approvals.list_plans(store, approvals.day(now))
        if record.via == SHIPPED and record.state in ("approved", "expired")
    ]
    return tuple(
        approvals.revoke(store, record.digest, actor=actor, now=now, reason=reason)
        for record in found
    )


def decided_singly(store: Store, now: float) -> tuple[PlanRecord, ...]:
    """Return the shipped plans that were rejected or revoked here: no class moves them."""
    found = approvals.list_plans(store, approvals.day(now))
    return tuple(
        r for r in found if r.digest in shipped() and r.state in ("rejected", "revoked")
    )


def shipped_class(store: Store) -> ClassRecord | None:
    """Return the approval of the class of shipped plans, None when there is none."""
    rows = store.rows(
        "SELECT name, at, names, reason, until, studies FROM plan_classes WHERE name = ?",
        (SHIPPED,),
    )
    if not rows:
        return None
    name, at, names, reason, until, studies_ = rows[0]
    last = date.fromisoformat(until) if until else date.max
    signers, only = tuple(json.loads(names)), tuple(json.loads(studies_))
    return ClassRecord(name, at, signers, reason, last, only)


# ---- what other sites' reviewers say ---------------------------------------------------------


def endorse(  # noqa: PLR0913 - by keyword
    store: Store,
    digest: str,
    *,
    site: str,
    key: Ed25519PrivateKey,
    reviewer: str,
    actor: str,
    now: float,
    reason: str = "",
) -> str:
    """Sign that a person of this site has read a plan and approves; return it as one line.

    `actor` is who signs for the `reviewer` that they name: the audit trail has both.
    """
    record = approvals.get(store, digest, approvals.day(now))
    review = PlanReview(record.digest, _name(reviewer), str(approvals.day(now)), reason[:2000])
    sealed = seal.seal(CONTEXT, site, encode(review), key)
    with store.write() as tx:
        tx.execute(
            "INSERT OR REPLACE INTO plan_reviews VALUES (?, ?, ?, ?, ?)",
            (record.digest, site, review.reviewer, now, encode(sealed)),
        )
        detail = f"{review.reviewer}: {reason}"
        tx.audit(now, actor, "plan.endorse", record.digest, "signed", detail)
    consider(store, record.digest, now)
    return to_text(sealed)


def take(store: Store, text: str, *, actor: str, now: float) -> PlanRecord:
    """Take in a review signed at another site; approve the plan when that makes enough.

    Raises WireError for no review, Refused for one whose signature or key does not hold (after
    an audit line), NotFound for a plan that was not offered here.
    """
    sealed = from_text(text)
    review = decode(sealed.payload, PlanReview)
    try:
        record = approvals.get(store, review.plan, approvals.day(now))
        keys = _keys(store, record, sealed.site)
        if not any(_signed(sealed, key) for key in keys):
            raise Refused(
                f"the review of plan {short(record.digest)} is not signed with a key that is "
                f"pinned here for site {sealed.site[:63]!r} in a study of this plan"
            )
        name = _name(review.reviewer)
    except (Refused, NotFound, ConfigError) as e:
        with store.write() as tx:
            tx.audit(now, actor, "plan.review", review.plan, "refused", str(e))
        raise
    with store.write() as tx:
        tx.execute(
            "INSERT OR REPLACE INTO plan_reviews VALUES (?, ?, ?, ?, ?)",
            (record.digest, sealed.site, name, now, encode(sealed)),
        )
        detail = f"{name}@{sealed.site} on {review.day}: {review.reason}"
        tx.audit(now, actor, "plan.review", record.digest, "taken", detail)
    return consider(store, record.digest, now) or record


def reviewers(store: Store, digest: str) -> tuple[str, ...]:
    """Return who has signed for a plan, at this site or at others, each as name@site."""
    rows = store.rows(
        "SELECT reviewer, site FROM plan_reviews WHERE plan = ? ORDER BY site, reviewer",
        (digest,),
    )
    return tuple(f"{reviewer}@{site}" for reviewer, site in rows)


def consider(store: Store, digest: str, now: float) -> PlanRecord | None:
    """Approve a pending plan where a class or a consortium's review does; None otherwise.

    A plan that a person here has rejected or revoked stays what they made it.
    """
    today = approvals.day(now)
    record = approvals.get(store, digest, today)
    if record.state != "pending":
        return None
    class_ = shipped_class(store)
    if class_ is not None and today <= class_.until and record.digest in shipped():
        until = None if class_.until == date.max else class_.until
        terms = Terms(until, approvals.argument_names(record.plan, {}), class_.studies)
        words = tuple(SignOff(name, class_.at, class_.reason, "") for name in class_.signers)
        return approvals.settle(
            store, record, terms, words, via="shipped", actor=class_.signers[-1], now=now
        )
    signers = reviewers(store, record.digest)
    needed = _needed(store)
    if needed is None or not reviewed(frozenset(signers), needed):
        return None
    terms = Terms(None, approvals.argument_names(record.plan, {}), ())
    words = tuple(SignOff(name, now, "", "") for name in signers)
    return approvals.settle(
        store, record, terms, words, via="consortium", actor="consortium", now=now
    )


def _needed(store: Store) -> ConsortiumReview | None:
    directory = store.path.parent
    if not (directory / config.FILE).exists():
        return None
    return config.load(directory).consortium_review


def _keys(store: Store, record: PlanRecord, site: str) -> set[bytes]:
    """Return the site's keys pinned for accepted studies that the plan is offered for."""
    accepted = {d for d, g in studies.grants(store).items() if g.name in record.offered_for}
    return {key for d in accepted if (key := peers.pins(store, d).get(site)) is not None}


def _signed(sealed: Sealed, key: bytes) -> bool:
    try:
        seal.open_sealed(sealed, CONTEXT, key)
    except AuthError:
        return False
    return True


def _name(reviewer: str) -> str:
    clean = printable(reviewer, MAX_REVIEWER)
    if not clean or clean != reviewer or "@" in clean:
        raise ConfigError(
            f"reviewer {clean!r}: needed 1 to {MAX_REVIEWER} printable characters without @"
        )
    return clean
