"""What every request is held against: accounts, roles, sessions and keys, in memory.

Asked on every request and answered in microseconds, on any thread. Each answer first makes
sure that memory is current (`Store.generation`), so a person who was disabled, a role that was
taken, a session that was ended count from the next request on, whichever process did it. When
the database cannot be asked, StorageError: nobody is let in on old knowledge.
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import cast

import sqlalchemy as sa
from sqlalchemy import Connection

from consilia.errors import AuthError
from consilia.hub import credentials, records, tables
from consilia.hub.access import TOKEN_PREFIX, Access
from consilia.hub.credentials import Token
from consilia.hub.people.accounts import GENERATION
from consilia.hub.people.roles import NONE, Caller, Role, Roles
from consilia.hub.people.sessions import ENDED, Claims, Lifetime, Signer
from consilia.hub.store import Store
from consilia.wire.accounts import Kind

DAYS = 30  # that a directory's word on somebody lasts for their keys, which it knows nothing of
REMEMBERED = 20_000  # access tokens whose signature was checked


@dataclass(frozen=True, slots=True)
class Known:
    """One account in use."""

    name: str
    roles: Roles
    studies: Mapping[str, Roles]
    site: str
    epoch: int
    second_factor: bool
    kind: Kind
    last: float  # signed in, Unix seconds

    @property
    def local(self) -> bool:
        """Whether it signs in here, not at a directory."""
        return self.kind == "password"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The accounts in use and the sessions that were not ended, as of one generation."""

    generation: int
    people: Mapping[str, Known]
    sessions: Mapping[str, tuple[str, float]]  # id -> (person, started)
    shut: frozenset[str]  # names of accounts that were disabled or removed


def snapshot(db: Connection) -> Snapshot:
    """Read everything that is in force."""
    p, r, s = tables.people.c, tables.study_roles.c, tables.sessions.c
    studies: dict[str, dict[str, Roles]] = {}
    for person, study, role in db.execute(sa.select(r.person, r.study, r.role)):
        held = studies.setdefault(person, {})
        held[study] = held.get(study, frozenset()) | {cast(Role, role)}
    shut = sa.select(p.name).where(p.removed.is_not(None) | p.disabled)
    sessions = sa.select(s.id, s.person, s.started)
    rows = db.execute(sa.select(tables.people).where(p.removed.is_(None), ~p.disabled))
    return Snapshot(
        records.generation(db, GENERATION),
        {
            row.name: Known(
                row.name,
                frozenset(json.loads(row.roles)),
                studies.get(row.name, NONE),
                row.site or "",
                row.epoch,
                bool(row.secret),
                row.kind,
                row.last or 0.0,
            )
            for row in rows
        },
        {row.id: (row.person, row.started) for row in db.execute(sessions)},
        frozenset(db.execute(shut).scalars()),
    )


@dataclass(frozen=True, slots=True)
class _Standing:
    """Who a secret belongs to, as long as nothing changes: from `since` to before `until`."""

    caller: Caller
    since: float  # Unix seconds
    until: float


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found with two snapshots, by secret. With other ones nothing of it counts."""

    people: Snapshot
    keys: credentials.Snapshot
    standing: dict[str, _Standing]


class Knowledge:
    """Says who a secret belongs to."""

    def __init__(
        self,
        store: Store,
        access: Access,
        signer: Signer,
        life: Lifetime,
        now: Callable[[], float],
    ) -> None:
        """`access` knows the API keys."""
        self._store = store
        self._access = access
        self._signer = signer
        self._life = life
        self._now = now
        self._lock = threading.Lock()
        self._read: dict[str, Claims] = {}  # access tokens whose signature is known to be good
        self._snapshot: Snapshot = store.read_now(snapshot)
        self._found = _Found(self._snapshot, access.current(), {})

    def caller(self, secret: str) -> Caller:
        """Return who sends this API key or access token, or raise AuthError.

        What a secret stands for follows from the accounts, the keys and the time. The same
        secret, with the same two snapshots and within the times that were found, is not
        looked up again: this is asked some thousand times a second.
        """
        people, keys, now = self.current(), self._access.current(), self._now()
        found = self._found
        if found.people is not people or found.keys is not keys:
            found = self._found = _Found(people, keys, {})
        standing = found.standing.get(secret)
        if standing is None or not standing.since <= now < standing.until:
            by_key = secret.startswith(TOKEN_PREFIX) or "." not in secret
            standing = (self._by_key if by_key else self._by_session)(secret, people, now)
            if len(found.standing) >= REMEMBERED:
                found.standing.clear()
            found.standing[secret] = standing
        return standing.caller

    def _by_session(self, secret: str, current: Snapshot, now: float) -> _Standing:
        claims = self._claims(secret)
        account = current.people.get(claims.name)
        session = current.sessions.get(claims.session)
        if (
            account is None
            or session is None
            or session[0] != account.name
            or claims.epoch != account.epoch
        ):
            raise AuthError(ENDED)
        since, until = session[1] - 60, min(claims.expires, session[1] + self._life.whole)
        if not since <= now < until:
            raise AuthError(ENDED)
        caller = Caller(
            account.name, account.roles, account.studies, account.site, session=claims.session
        )
        return _Standing(caller, since, until)

    def known(self, name: str) -> Known | None:
        """Return an account in use."""
        return self.current().people.get(name)

    def current(self) -> Snapshot:
        """Return the snapshot, read anew when something has changed."""
        if self._store.generation(GENERATION) > self._snapshot.generation:
            self._take(self._store.read_now(snapshot))
        return self._snapshot

    async def refresh(self) -> None:
        """After a change of our own: at once, whatever the database's staleness."""
        self._take(await self._store.read(snapshot))

    def _by_key(self, secret: str, current: Snapshot, now: float) -> _Standing:
        token = self._access.token(secret)
        if token.owner is None:  # made by an operator for whoever has this name
            if token.name in current.shut:
                raise AuthError("the account of this API token's name is not in use any more")
            caller = Caller(token.name, frozenset({cast(Role, token.role)}))
            return _Standing(caller, -inf, token.expires)
        owner = current.people.get(token.owner)
        if owner is None:
            raise AuthError("the owner of this API key has no account in use any more")
        seen = inf if owner.local else owner.last + DAYS * 86400
        if now >= seen:
            raise AuthError(
                f"{owner.name}, whose API key this is, has not signed in for {DAYS} days: "
                f"nobody knows whether {owner.kind} still has them; sign in once"
            )
        return _Standing(narrowed(owner, token), -inf, min(token.expires, seen))

    def _claims(self, secret: str) -> Claims:
        found = self._read.get(secret)
        if found is None:
            found = self._signer.read(secret)
            with self._lock:
                if len(self._read) >= REMEMBERED:
                    self._read.clear()
                self._read[secret] = found
        return found

    def _take(self, fresh: Snapshot) -> None:
        with self._lock:  # two threads may have read; the newer wins
            if fresh.generation >= self._snapshot.generation:
                self._snapshot = fresh


def narrowed(owner: Known, key: Token) -> Caller:
    """Return what a key may do: its roles as far as its owner has them, in its study alone."""
    roles = frozenset(cast(tuple[Role, ...], key.roles))
    return Caller(
        owner.name,
        owner.roles & roles,
        {study: held & roles for study, held in owner.studies.items()},
        owner.site,
        key=key.name,
        within=key.study or "",
    )
