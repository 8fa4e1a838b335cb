"""Rows of accounts and of their roles, in the transaction of whoever calls.

Password hashes and second factors leave this module only inside `Account`, which no view
shows. What changes who may do what counts up the generation "people", by which every process
notices that its knowledge is old.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.core import ids
from consilia.errors import Conflict, NotFound, Refused
from consilia.hub import records, tables
from consilia.hub.paging import Listing, Page
from consilia.hub.people.roles import Role, Roles
from consilia.wire.accounts import Kind

GENERATION = "people"
MAX_ACCOUNTS = 10_000
# names that stand for the software itself, or for the token of `hub init`
RESERVED = ("hub", "consilia", "operator", "root", "system", "site", "user", "me")
_P, _R = tables.people.c, tables.study_roles.c


@dataclass(frozen=True, slots=True)
class Account:
    """One person. `secret` is the second factor's, "" for none; `step` the one used last."""

    name: str
    kind: Kind
    provider: str
    subject: str | None
    password: str
    roles: tuple[Role, ...]  # at the hub
    site: str | None
    created: float
    actor: str
    disabled: bool
    removed: float | None
    secret: str
    proposed: str
    step: int
    last: float | None
    epoch: int

    @property
    def may_enter(self) -> bool:
        """Whether the account is in use at all."""
        return not self.disabled and self.removed is None


@dataclass(frozen=True, slots=True)
class NewAccount:
    """What somebody lets a person in with."""

    name: str
    roles: tuple[Role, ...] = ()
    site: str | None = None
    password: str = ""  # argon2id hash
    kind: Kind = "password"
    provider: str = "password"
    subject: str | None = None


def find(db: Connection, name: str) -> Account | None:
    """Return an account, also a removed one; None when there never was one."""
    row = db.execute(sa.select(tables.people).where(_P.name == name)).first()
    return None if row is None else _account(row)


def get(db: Connection, name: str) -> Account:
    """Return an account that was not removed, or raise NotFound."""
    found = find(db, name)
    if found is None or found.removed is not None:
        raise NotFound(f"there is no account {name[:80]!r}; see: consilia people list")
    return found


def by_subject(db: Connection, provider: str, subject: str) -> Account | None:
    """Return the account of somebody whom a directory knows as `subject`."""
    mine = (_P.provider == provider) & (_P.subject == subject)
    row = db.execute(sa.select(tables.people).where(mine)).first()
    return None if row is None else _account(row)


def page(db: Connection, limit: int, cursor: str | None) -> Page[Account]:
    """Return accounts by name, without the removed ones."""
    return _LISTING.page(db, limit, cursor)


def add(db: Connection, new: NewAccount, actor: str, at: float) -> Account:
    """Make an account; Conflict when its name is, or ever was, somebody's."""
    ids.name(new.name, "account")
    if new.name in RESERVED:
        raise Conflict(f"name: {new.name!r} stands for the software itself; choose another")
    if find(db, new.name) is not None:
        raise Conflict(f"name: {new.name!r} is, or was, somebody else's; choose another")
    if (db.execute(sa.select(sa.func.count()).select_from(tables.people)).scalar() or 0) >= (
        MAX_ACCOUNTS
    ):
        raise Conflict(f"{MAX_ACCOUNTS} accounts exist, the most there may be")
    db.execute(
        sa.insert(tables.people).values(
            name=new.name,
            kind=new.kind,
            provider=new.provider,
            subject=new.subject,
            password=new.password,
            roles=json.dumps(new.roles),
            site=new.site,
            created=at,
            actor=actor,
            disabled=False,
            secret="",
            proposed="",
            step=0,
            epoch=1,
        )
    )
    records.bump(db, GENERATION)
    return get(db, new.name)


def taken(db: Connection, name: str) -> bool:
    """Tell whether work at the hub carries this name: nobody may walk into it by chance."""
    for table, column in (
        (tables.tokens, tables.tokens.c.name),
        (tables.studies, tables.studies.c.author),
        (tables.plans, tables.plans.c.author),
        (tables.jobs, tables.jobs.c.author),
        (tables.uploads, tables.uploads.c.author),
    ):
        query = sa.select(sa.literal(1)).select_from(table).where(column == name).limit(1)
        if db.execute(query).first() is not None:
            return True
    return False


def change(db: Connection, name: str, **values: object) -> Account:
    """Set columns of an account; NotFound when there is none."""
    get(db, name)
    db.execute(sa.update(tables.people).where(_P.name == name).values(**values))
    records.bump(db, GENERATION)
    return get(db, name)


def set_roles(db: Connection, name: str, roles: Sequence[Role]) -> Account:
    """Give an account exactly these roles at the hub; its sessions end."""
    change(db, name, roles=json.dumps(list(roles)))
    return end_sessions(db, name)


def end_sessions(db: Connection, name: str) -> Account:
    """End every session of an account, on each one's next request."""
    s = tables.sessions
    db.execute(sa.delete(s).where(s.c.person == name))
    return change(db, name, epoch=get(db, name).epoch + 1)


def remove(db: Connection, name: str, at: float) -> None:
    """Remove an account, its roles, sessions and keys. Its name is kept, and nobody's again."""
    end_sessions(db, name)
    db.execute(sa.delete(tables.study_roles).where(_R.person == name))
    revoke_keys(db, name, at)
    r = tables.access_requests
    open_ = (r.c.person == name) & (r.c.state == "open")
    db.execute(sa.update(r).where(open_).values(state="refused", decided=at))
    db.execute(sa.delete(tables.invitations).where(tables.invitations.c.name == name))
    gone: dict[str, Any] = {
        "removed": at, "password": "", "secret": "", "proposed": "", "roles": "[]",
    }  # fmt: skip
    db.execute(sa.update(tables.people).where(_P.name == name).values(subject=None, **gone))
    records.bump(db, GENERATION)


def revoke_keys(db: Connection, name: str, at: float) -> None:
    """Void every API key of an account, from each one's next request on."""
    t = tables.tokens.c
    mine = (t.owner == name) & t.revoked.is_(None)
    db.execute(sa.update(tables.tokens).where(mine).values(revoked=at))
    records.bump(db, "access")


def keep_an_operator(db: Connection) -> None:
    """Raise Refused when no account is left that can administer, if there was one."""
    rows = db.execute(sa.select(_P.roles).where(_P.removed.is_(None), ~_P.disabled)).scalars()
    if not any("operator" in json.loads(roles) for roles in rows):
        raise Refused("nobody would be operator any more; give another account that role first")


# ---- roles in studies ------------------------------------------------------------------------


def study_roles(db: Connection, name: str) -> dict[str, Roles]:
    """Return the roles that an account holds in single studies."""
    query = sa.select(_R.study, _R.role).where(_R.person == name)
    found: dict[str, Roles] = {}
    for study, role in db.execute(query.order_by(_R.study, _R.role)):
        found[study] = found.get(study, frozenset()) | {cast(Role, role)}
    return found


def set_study_roles(
    db: Connection, name: str, study: str, roles: Sequence[Role]
) -> Mapping[str, Roles]:
    """Give an account exactly these roles in one study; none take it out of the study."""
    get(db, name)
    records.get_study(db, study)
    mine = (_R.person == name) & (_R.study == study)
    db.execute(sa.delete(tables.study_roles).where(mine))
    if roles:
        rows = [{"person": name, "study": study, "role": role} for role in roles]
        db.execute(sa.insert(tables.study_roles), rows)
    records.bump(db, GENERATION)
    return study_roles(db, name)


def _account(row: Any) -> Account:
    fields = dict(row._mapping)
    fields["roles"] = tuple(json.loads(fields["roles"]))
    return Account(**fields)


_LISTING = Listing(
    sa.select(tables.people).where(_P.removed.is_(None)), (_P.name,), _account, descending=False
)
