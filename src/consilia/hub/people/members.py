"""Who belongs to a hub: accounts, invitations, requests for access, and keys for machines.

Each step is one transaction with its audit line. An operator may do all of it; the researcher
who made a study decides about roles in that study. Lines name roles, never secrets.
"""

from collections.abc import Iterable

from sqlalchemy import Connection

from consilia.accounts import passwords
from consilia.core import ids
from consilia.errors import ConfigError, Conflict, NotFound, Refused, Wrong
from consilia.hub import audit, credentials, records
from consilia.hub.authority import DAY
from consilia.hub.credentials import Token, hashed
from consilia.hub.paging import Page, within
from consilia.hub.people import accounts, attempts, doors, signin
from consilia.hub.people.accounts import Account, NewAccount
from consilia.hub.people.doors import Invitation
from consilia.hub.people.roles import Caller, Role, checked, checked_for_study
from consilia.hub.people.service import People
from consilia.hub.people.signin import Entered
from consilia.wire.accounts import (
    AcceptInvitation,
    AccessRequestView,
    AskAccess,
    ChangeUser,
    InvitationLink,
    KeyView,
    NewInvitation,
    NewKey,
    NewUser,
)

MAX_HOURS = 30 * 24.0  # of an invitation
MAX_DAYS = 366  # of a key
MAX_KEYS = 50  # of one person
MAX_REASON = 500  # characters


# ---- accounts --------------------------------------------------------------------------------


async def make_user(people: People, who: Caller, said: NewUser) -> InvitationLink:
    """Make an account without a password, and the code with which its person sets one."""
    roles = _roles(said.roles, said.site)
    new, at = NewAccount(said.name, roles, said.site), people.now()

    def write(db: Connection) -> None:
        accounts.add(db, new, who.name, at)
        detail = f"roles {', '.join(roles) or 'none'}"
        audit.append(db, at, who.actor, "account.create", said.name, detail=detail)

    await people.store.write(write)
    await people.knowledge.refresh()
    return await invite(people, who, NewInvitation(name=said.name, hours=said.hours))


async def change_user(people: People, who: Caller, name: str, said: ChangeUser) -> Account:
    """Change another person's account; Refused where nobody could administer afterwards."""
    if said.remove_second_factor and name == who.name:  # a stolen session must not get so far
        raise Refused(
            "remove_second_factor: your own is removed with password and code, in the settings"
        )
    at = people.now()

    def write(db: Connection) -> Account:
        before = accounts.get(db, name)
        changes = list(_changes(db, before, said))
        if not changes:
            raise ConfigError(
                "nothing to change: needed one of roles, studies, site, disabled, "
                "remove_second_factor, unlock"
            )
        accounts.end_sessions(db, name)
        if "operator" in before.roles:
            accounts.keep_an_operator(db)
        detail = "; ".join(changes)
        audit.append(db, at, who.actor, "account.change", name, detail=detail)
        return accounts.get(db, name)

    changed = await people.store.write(write)
    await people.knowledge.refresh()
    return changed


def _changes(db: Connection, before: Account, said: ChangeUser) -> Iterable[str]:
    """Make the changes and say each in a few words."""
    name = before.name
    if said.roles is not None:
        roles = _roles(said.roles, said.site or before.site)
        accounts.set_roles(db, name, roles)
        yield f"roles {', '.join(roles) or 'none'}"
    for study, held in said.studies.items():
        wanted = checked_for_study(held) if held else ()
        accounts.set_study_roles(db, name, study, wanted)
        yield f"in study {study} {', '.join(wanted) or 'nothing'}"
    if said.site is not None:
        if said.site:
            ids.name(said.site, "site")
        accounts.change(db, name, site=said.site or None)
        yield f"site {said.site or 'none'}"
    if said.disabled is not None:
        accounts.change(db, name, disabled=said.disabled)
        yield "disabled" if said.disabled else "enabled"
    if said.unlock:
        attempts.forget(db, name)
        yield "failed attempts forgotten"
    if said.remove_second_factor:
        accounts.change(db, name, secret="", step=0, proposed="")
        yield "second factor removed"


async def end_sessions(people: People, who: Caller, name: str) -> None:
    """End all sessions of an account."""
    at = people.now()

    def write(db: Connection) -> None:
        accounts.end_sessions(db, name)
        audit.append(db, at, who.actor, "account.end-sessions", name)

    await people.store.write(write)
    await people.knowledge.refresh()


async def remove_user(people: People, who: Caller, name: str) -> None:
    """Remove an account with its roles, sessions and keys; its name stays taken."""
    at = people.now()

    def write(db: Connection) -> None:
        before = accounts.get(db, name)
        accounts.remove(db, name, at)
        if "operator" in before.roles:
            accounts.keep_an_operator(db)
        audit.append(db, at, who.actor, "account.remove", name)

    await people.store.write(write)
    await people.knowledge.refresh()


# ---- invitations -----------------------------------------------------------------------------


async def invite(people: People, who: Caller, said: NewInvitation) -> InvitationLink:
    """Make a one-time code: to an account, to roles, or to a new password."""
    if not 0 < said.hours <= MAX_HOURS:
        raise ConfigError(
            Wrong("hours", f"{said.hours:g}", f"more than 0 and at most {MAX_HOURS:g}")
        )
    roles = checked_for_study(said.roles) if said.study else _roles(said.roles, said.site)
    at, secret = people.now(), doors.secret(people.random_bytes(doors.SECRET_BYTES))
    made = Invitation(
        ids.new_id("inv", people.random_bytes(10)),
        said.name,
        roles,
        said.study,
        said.site,
        who.name,
        at + said.hours * 3600,
    )

    def write(db: Connection) -> None:
        may_decide(db, who, said.study)
        _check_invited(db, made, who)
        doors.add_invitation(db, made, hashed(secret), at)
        detail = f"{', '.join(roles) or 'a new password'}" + (
            f" in study {said.study}" if said.study else ""
        )
        audit.append(db, at, who.actor, "account.invite", said.name or made.id, detail=detail)

    await people.store.write(write)
    link = f"{people.origin()}/invitation#{secret}"  # after #: it is in no server's log
    return InvitationLink(made.id, link, secret, made.expires, said.name)


async def accept(people: People, said: AcceptInvitation, address: str) -> Entered:
    """Make the account of an invitation, or set its new password, and sign in."""
    at, kept = people.now(), hashed(said.code)
    found = await people.store.read(lambda db: doors.invited(db, kept, at))
    if found.name is not None and found.name != said.name:
        raise ConfigError(f"name: this invitation is for {found.name!r}")
    passwords.check(said.password, (said.name, people.config.name))
    hash_ = await signin.hashed(people, said.password)

    def write(db: Connection) -> Account:
        invited = doors.use(db, kept, at)
        doors.check_inviter(db, invited, at)
        account = _opened(db, invited, said.name, hash_, at)
        detail = f"{', '.join(account.roles) or 'no role at the hub'}; invited by {found.actor}"
        audit.append(db, at, f"user:{said.name}", "account.enter", said.name, detail=detail)
        return account

    account = await people.store.write(write)
    if account.secret:  # a new password does not stand in for the second factor
        await people.knowledge.refresh()
        raise Conflict("the password is set; sign in with it and a code of the second factor")
    return await signin.enter(people, account, address, "by invitation")


def _opened(db: Connection, found: Invitation, name: str, hash_: str, at: float) -> Account:
    """Return the account of an invitation, made or with its new password."""
    before = accounts.find(db, name)
    if before is None or before.removed is not None:
        if found.name is None and accounts.taken(db, name):
            raise Conflict(f"name: {name!r} is somebody else's at this hub; choose another")
        roles = () if found.study else found.roles
        accounts.add(db, NewAccount(name, roles, found.site, hash_), found.actor, at)
    elif found.name is None:  # whoever has the link must not take over who is there
        raise Conflict(f"name: an account {name!r} exists already; choose another")
    elif found.roles or before.kind != "password":  # nor who came meanwhile by another door
        raise Conflict(
            f"name: an account {name!r} was made since this invitation; ask for a new one"
        )
    else:
        accounts.change(db, name, password=hash_)
        accounts.end_sessions(db, name)
    if found.study:
        held = accounts.study_roles(db, name).get(found.study, frozenset())
        accounts.set_study_roles(db, name, found.study, sorted(held | set(found.roles)))
    return accounts.get(db, name)


def _check_invited(db: Connection, made: Invitation, who: Caller) -> None:
    """Raise where an invitation would let somebody in too far."""
    known = accounts.find(db, made.name) if made.name else None
    if made.name is not None:
        ids.name(made.name, "account")
    if made.study is not None and made.site is not None:
        raise ConfigError("site: roles in a study have none; leave it out")
    stranger = made.name is not None and known is None and accounts.taken(db, made.name)
    if stranger and "operator" not in who.roles:
        raise Conflict(f"name: {made.name!r} is somebody else's at this hub")
    if known is not None and "operator" not in who.roles:
        raise Conflict(
            f"name: {made.name!r} has an account; it is given the role with "
            "PATCH /users, or asks for it"
        )
    if known is not None and known.kind != "password":
        raise Conflict(f"name: {made.name!r} signs in at {known.provider}")
    if known is not None and made.roles:
        raise ConfigError("roles: the account is there; change its roles with PATCH /users")
    if known is None and not made.roles:
        raise ConfigError("roles: none given; an invited person needs one")


async def withdraw(people: People, who: Caller, id: str) -> None:
    """Void an invitation that was not accepted."""
    at = people.now()

    def write(db: Connection) -> None:
        doors.withdraw(db, id)
        audit.append(db, at, who.actor, "account.uninvite", id)

    await people.store.write(write)


# ---- requests for access ---------------------------------------------------------------------


async def ask(people: People, who: Caller, said: AskAccess) -> AccessRequestView:
    """Ask for a role. That a study exists is not told to who may not see it."""
    (role,) = checked_for_study((said.role,)) if said.study else checked((said.role,))
    if said.study:
        ids.name(said.study, "study")
    reason, at = _reason(said.reason), people.now()
    await signin.person(people, who)
    id = ids.new_id("req", people.random_bytes(10))

    def write(db: Connection) -> AccessRequestView:
        made = doors.add_request(db, id, who.name, said.study, role, reason, at)
        where = f" in study {said.study}" if said.study else ""
        audit.append(db, at, who.actor, "access.ask", id, detail=f"{role}{where}")
        return made

    return await people.store.write(write)


async def decide(
    people: People, who: Caller, id: str, reason: str, *, grant: bool
) -> AccessRequestView:
    """Grant or refuse a request; NotFound for one that is not the caller's to decide."""
    answer, at = _reason(reason), people.now()

    def write(db: Connection) -> AccessRequestView:
        asked = doors.get_request(db, id)
        try:
            may_decide(db, who, asked.study)
        except (NotFound, Refused):
            raise NotFound(f"there is no access request {id[:80]!r}") from None
        if asked.person == who.name:
            raise Refused("nobody decides on their own request; ask somebody else")
        state = "granted" if grant else "refused"
        done = doors.decide(db, asked, state, who.name, answer, at)
        if grant:
            _grant(db, asked)
        detail = f"{asked.role} to {asked.person}: {answer}"
        audit.append(db, at, who.actor, f"access.{'grant' if grant else 'refuse'}", id,
                     detail=detail)  # fmt: skip
        return done

    done = await people.store.write(write)
    await people.knowledge.refresh()
    return done


def _grant(db: Connection, asked: AccessRequestView) -> None:
    account = accounts.get(db, asked.person)
    if asked.study:
        held = accounts.study_roles(db, account.name).get(asked.study, frozenset())
        roles = checked_for_study({*held, asked.role})
        accounts.set_study_roles(db, account.name, asked.study, roles)
        return
    accounts.set_roles(db, account.name, _roles((*account.roles, asked.role), account.site))


def may_decide(db: Connection, who: Caller, study: str | None) -> None:
    """Raise unless the caller may give roles: an operator, or who made the study."""
    if study is None:
        if "operator" not in who.roles:
            raise Refused(f"{who.name} is no operator; roles at the hub are theirs to give")
        return
    found = records.get_study(db, study)
    if not who.sees(found.author, study, found.study.sites):
        raise NotFound(f"there is no study {study[:80]!r}")
    if not who.owns(found.author, study):
        raise Refused(f"study {study!r} is {found.author}'s: they or an operator give roles")


# ---- keys ------------------------------------------------------------------------------------


async def make_key(people: People, who: Caller, said: NewKey) -> KeyView:
    """Make an API key with some of one's own roles; its secret is in the answer alone."""
    await signin.person(people, who)
    ids.name(said.name, "key")
    roles, at = checked(said.roles), people.now()
    within(said.days, "days", 1, MAX_DAYS)
    held = who.every if said.study is None else who.decides_in(said.study)
    if beyond := [role for role in roles if role not in held]:
        raise Refused(
            f"roles: {who.name} is not {', '.join(beyond)}; a key has at most its owner's roles"
        )

    def check(db: Connection) -> None:
        if said.study is not None:
            found = records.get_study(db, said.study)
            if not who.sees(found.author, said.study, found.study.sites):
                raise NotFound(f"there is no study {said.study[:80]!r}")
        if credentials.count_keys(db, who.name, at) >= MAX_KEYS:
            raise Conflict(f"{who.name} has {MAX_KEYS} keys; revoke one first")

    await people.store.read(check)
    key = Token(
        ids.new_id("key", people.random_bytes(10)),
        said.name,
        roles[0],
        at,
        at + said.days * DAY,
        owner=who.name,
        roles=roles,
        study=said.study,
    )
    made = await people.access.make_key(key, who.actor)
    return key_view(key, made.secret)


async def revoke_key(people: People, who: Caller, id: str) -> None:
    """Void a key: one's own, or for an operator anybody's."""

    def check(db: Connection) -> None:
        if credentials.get_key(db, id).owner != who.name and "operator" not in who.roles:
            raise NotFound(f"there is no API key {id[:80]!r} of yours")

    await people.store.read(check)
    await people.access.revoke_token(id, who.actor)


def keys(people: People, who: Caller, limit: int, cursor: str | None) -> Page[KeyView]:
    """Return keys in force: one's own; for operators and auditors all. Blocks."""
    owner = None if who.roles & {"operator", "auditor"} else who.name
    page = people.store.read_now(
        lambda db: credentials.list_keys(db, owner, people.now(), limit, cursor)
    )
    return Page(tuple(map(key_view, page.items)), page.next)


def key_view(key: Token, secret: str | None = None) -> KeyView:
    """Return a key as people see it."""
    return KeyView(key.id, key.name, key.owner or "", key.roles, key.study, key.expires, secret)


# ---- inside ----------------------------------------------------------------------------------


def _roles(roles: Iterable[str], site: str | None) -> tuple[Role, ...]:
    """Return roles at the hub, perhaps none; a data manager needs a site."""
    found = checked(roles) if roles else ()
    if "data-manager" in found and not site:
        raise ConfigError("site: a data manager belongs to one; name it")
    if site:
        ids.name(site, "site")
    return found


def _reason(text: str) -> str:
    text = text.strip()
    if not 1 <= len(text) <= MAX_REASON:
        raise ConfigError(Wrong("reason", f"{len(text)} characters", f"1 to {MAX_REASON}"))
    return text
