"""People with accounts at a hub under test: made in its database, signed in over its API."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import argon2
import httpx
import sqlalchemy as sa

from consilia.accounts import passwords
from consilia.hub import atrest
from consilia.hub.people import accounts, sessions
from consilia.hub.people.accounts import NewAccount
from consilia.hub.people.roles import Role

PASSWORD = "four unrelated words here"  # noqa: S105 - of accounts that exist in tests alone
CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@dataclass(frozen=True)
class Somebody:
    """An account to make: roles at the hub and in studies, and a data manager's site."""

    name: str
    roles: tuple[Role, ...] = ()
    studies: Mapping[str, tuple[Role, ...]] = field(default_factory=dict)
    site: str | None = None


def settle(directory: Path, people: tuple[Somebody, ...], at: float) -> dict[str, str]:
    """Make accounts in the database of a hub that does not run; return refresh tokens."""
    tokens = {}
    kept = passwords.hashed(PASSWORD, CHEAP)
    with atrest.at_rest(directory) as (store, _):
        for one in people:
            id, secret = f"ses-{one.name}", os.urandom(8).hex()
            tokens[one.name] = f"{id}.{secret}"

            def write(
                db: sa.Connection, one: Somebody = one, id: str = id, secret: str = secret
            ) -> None:
                new = NewAccount(one.name, one.roles, one.site, kept)
                account = accounts.add(db, new, "test", at)
                for study, roles in one.studies.items():
                    accounts.set_study_roles(db, one.name, study, roles)
                sessions.begin(db, account, at, id, secret)

            asyncio.run(store.write(write))
    return tokens


def access_token(http: httpx.Client, refresh: str) -> str:
    """Return an access token for a refresh token."""
    answer = http.post("/api/v1/auth/refresh", json={"refresh_token": refresh})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])
