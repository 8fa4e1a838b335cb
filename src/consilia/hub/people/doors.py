"""Rows of invitations and of requests for access, in the transaction of whoever calls.

Of an invitation's code only SHA-256 is stored; it works once and not after its time.
"""

import json
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.accounts.store import token_text
from consilia.errors import AuthError, Conflict, NotFound
from consilia.hub import records, tables
from consilia.hub.paging import Listing, Page
from consilia.hub.people import accounts
from consilia.hub.people.roles import Caller, Role
from consilia.wire.accounts import AccessRequestView

SECRET_BYTES = 24
MAX_INVITATIONS = 1000
MAX_REQUESTS = 20  # open ones of a person
_I, _Q = tables.invitations.c, tables.access_requests.c


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation that may still be accepted."""

    id: str
    name: str | None
    roles: tuple[Role, ...]
    study: str | None
    site: str | None
    actor: str
    expires: float


def secret(random: bytes) -> str:
    """Return the code of an invitation."""
    return token_text(random)


def add_invitation(db: Connection, made: Invitation, secret_hash: str, at: float) -> None:
    """Record an invitation. An earlier one for the same name is void."""
    old = _I.expires <= at
    if made.name is not None:
        old |= _I.name == made.name
    db.execute(sa.delete(tables.invitations).where(old))
    count = db.execute(sa.select(sa.func.count()).select_from(tables.invitations)).scalar()
    if (count or 0) >= MAX_INVITATIONS:
        raise Conflict(f"{count} invitations are open; withdraw some first")
    db.execute(
        sa.insert(tables.invitations).values(
            id=made.id,
            secret_hash=secret_hash,
            name=made.name,
            roles=json.dumps(made.roles),
            study=made.study,
            site=made.site,
            actor=made.actor,
            created=at,
            expires=made.expires,
        )
    )


def invited(db: Connection, secret_hash: str, at: float) -> Invitation:
    """Return the invitation of a code; AuthError when it is unknown, used or too old."""
    mine = (_I.secret_hash == secret_hash) & (_I.expires > at)
    row = db.execute(sa.select(tables.invitations).where(mine)).first()
    if row is None:
        raise AuthError(
            "this invitation is unknown, used already, or too old; ask for a new one"
        )
    return _invitation(row)


def use(db: Connection, secret_hash: str, at: float) -> Invitation:
    """Use an invitation up and return it."""
    found = invited(db, secret_hash, at)
    if not db.execute(sa.delete(tables.invitations).where(_I.id == found.id)).rowcount:
        raise AuthError("this invitation was used at the same moment; ask for a new one")
    return found


def check_inviter(db: Connection, made: Invitation, at: float) -> None:
    """Raise AuthError when who made an invitation could not make it any more.

    A link outlives its maker's account by weeks: an operator who has left, or is none any
    more, lets nobody in, and sets nobody's password.
    """
    maker = _maker(db, made.actor, at)
    author = records.get_study(db, made.study).author if made.study else None
    if maker is None or "operator" in maker.roles:
        return
    if author is None or made.study is None or not maker.owns(author, made.study):
        raise AuthError(
            f"this invitation is void: {made.actor}, who made it, may not any more; ask for a "
            "new one"
        )


def _maker(db: Connection, name: str, at: float) -> Caller | None:
    """Return somebody with the roles of this moment; None for the hub itself."""
    account = accounts.find(db, name)
    if account is not None:
        if not account.may_enter:
            return Caller(name, frozenset())
        return Caller(name, frozenset(account.roles), accounts.study_roles(db, name))
    t = tables.tokens.c  # made by an operator, for whoever has this name
    rows = db.execute(
        sa.select(t.role, t.revoked, t.expires).where(t.name == name, t.owner.is_(None))
    )
    found = rows.all()
    held = frozenset(cast(Role, r.role) for r in found if r.revoked is None and r.expires > at)
    return Caller(name, held) if found else None


def invitations(db: Connection, at: float, limit: int, cursor: str | None) -> Page[Invitation]:
    """Return the invitations that may still be accepted, newest first."""
    return _INVITATIONS.where(_I.expires > at).page(db, limit, cursor)


def withdraw(db: Connection, id: str) -> None:
    """Void an invitation."""
    if not db.execute(sa.delete(tables.invitations).where(_I.id == id)).rowcount:
        raise NotFound(f"there is no open invitation {id[:80]!r}")


def _invitation(row: Any) -> Invitation:
    roles = tuple(json.loads(row.roles))
    return Invitation(row.id, row.name, roles, row.study, row.site, row.actor, row.expires)


# ---- requests for access ---------------------------------------------------------------------


def add_request(  # noqa: PLR0913, PLR0917 - a row has this many parts
    db: Connection, id: str, person: str, study: str | None, role: str, reason: str, at: float
) -> AccessRequestView:
    """Record a request; Conflict when the same is open already, or too many are."""
    mine = sa.select(_Q.study, _Q.role).where(_Q.person == person, _Q.state == "open")
    open_ = [(row.study, row.role) for row in db.execute(mine)]
    if (study, role) in open_:
        raise Conflict(f"{person} has asked for {role} already; it is not decided yet")
    if len(open_) >= MAX_REQUESTS:
        raise Conflict(f"{person} has {MAX_REQUESTS} open requests; wait for their answers")
    db.execute(
        sa.insert(tables.access_requests).values(
            id=id, person=person, study=study, role=role, reason=reason, created=at,
            state="open", answer="",
        )
    )  # fmt: skip
    return get_request(db, id)


def get_request(db: Connection, id: str) -> AccessRequestView:
    """Return a request, or raise NotFound."""
    row = db.execute(sa.select(tables.access_requests).where(_Q.id == id)).first()
    if row is None:
        raise NotFound(f"there is no access request {id[:80]!r}")
    return _request(row)


def requests(
    db: Connection, person: str | None, owner: str | None, limit: int, cursor: str | None
) -> Page[AccessRequestView]:
    """Return requests, newest first: all, or those of `person` and for studies of `owner`."""
    if person is None:
        return _REQUESTS.page(db, limit, cursor)
    s = tables.studies.c
    theirs = _Q.person == person
    if owner is not None:
        theirs |= _Q.study.in_(sa.select(s.name).where(s.author == owner))
    return _REQUESTS.where(theirs).page(db, limit, cursor)


def decide(  # noqa: PLR0913, PLR0917 - a decision has this many parts
    db: Connection, asked: AccessRequestView, state: str, by: str, answer: str, at: float
) -> AccessRequestView:
    """Close an open request; Conflict when it was decided already."""
    mine = (_Q.id == asked.id) & (_Q.state == "open")
    values = {"state": state, "decided_by": by, "decided": at, "answer": answer}
    if not db.execute(sa.update(tables.access_requests).where(mine).values(values)).rowcount:
        raise Conflict(f"request {asked.id} was {asked.state} already")
    return get_request(db, asked.id)


def _request(row: Any) -> AccessRequestView:
    return AccessRequestView(**row._mapping)


_INVITATIONS = Listing(sa.select(tables.invitations), (_I.created, _I.id), _invitation)
_REQUESTS = Listing(sa.select(tables.access_requests), (_Q.created, _Q.id), _request)
