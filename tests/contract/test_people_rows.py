"""Accounts, sessions and keys on SQLite and PostgreSQL, and the migration with data in it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.accounts import totp
from consilia.errors import Conflict, StorageError, TooMany
from consilia.hub import credentials, database, records, tables
from consilia.hub.credentials import Token, hashed
from consilia.hub.database import Database, open_database
from consilia.hub.people import accounts, attempts, doors, sessions
from consilia.hub.people.accounts import NewAccount
from consilia.hub.people.factors import Factors
from consilia.hub.people.sessions import Lifetime, Session
from consilia.wire.v1 import Study

LIFE = Lifetime()
BEFORE = "r0005"  # the migration before there were people


@pytest.fixture(params=["file", "postgresql"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    where = f"sqlite:///{tmp_path / 'hub.sqlite'}"
    if request.param == "postgresql":
        where = str(request.getfixturevalue("postgres").fresh())
    opened = open_database(where, 1, lambda: 0.0)
    yield opened
    opened.close()


def settle(db: sa.Connection) -> None:
    """A study, a token of an operator's making, a person with a role in it, a key of theirs."""
    records.add_study(db, Study("heart", "to test", ("north",), ("x",)), "ada", 1.0)
    credentials.add_token(db, Token("tok-1", "ada", "researcher", 1.0, 9.0), hashed("old"))
    ada = accounts.add(db, NewAccount("bob", ("researcher",), password="h"), "olga", 2.0)  # noqa: S106
    accounts.set_study_roles(db, "bob", "heart", ("reviewer",))
    sessions.begin(db, ada, 3.0, "ses-1", "first")
    key = Token("key-1", "ci", "researcher", 1.0, 9.0, None, "bob", ("researcher",), "heart")
    credentials.add_token(db, key, hashed("new"))
    doors.add_request(db, "req-1", "bob", "heart", "auditor", "why", 4.0)


def test_the_people_come_and_go_and_the_tokens_stay(made: Database) -> None:
    with made.connect() as db, db.begin():
        settle(db)
    database.downgrade(made, BEFORE)
    with made.reading() as db:
        assert "people" not in sa.inspect(db).get_table_names()
        rows = db.execute(sa.text("SELECT id, revoked FROM tokens ORDER BY id")).all()
        assert rows[0].revoked is not None, "an older hub would let a bound key do everything"
        assert tuple(rows[1]) == ("tok-1", None)
    database.upgrade(made)
    assert database.revision(made) == tables.HEAD
    with made.reading() as db:
        found = credentials.snapshot(db).tokens
        assert found[hashed("old")] == Token("tok-1", "ada", "researcher", 1.0, 9.0)
        assert hashed("new") not in found
        assert accounts.page(db, 10, None).items == ()
    with made.connect() as db, db.begin():
        assert accounts.add(db, NewAccount("bob"), "olga", 5.0).epoch == 1


def test_removing_a_person_leaves_nothing_that_opens(made: Database) -> None:
    with made.connect() as db, db.begin():
        settle(db)
        accounts.remove(db, "bob", 5.0)
        assert accounts.study_roles(db, "bob") == {}
        assert sessions.renew(db, "ses-1", "first", fresh="x", at=6.0, life=LIFE) is None
        assert hashed("new") not in credentials.snapshot(db).tokens
        assert doors.get_request(db, "req-1").state == "refused"
        with pytest.raises(Conflict, match="was, somebody"):
            accounts.add(db, NewAccount("bob"), "olga", 7.0)
        assert accounts.taken(db, "ada")
        assert not accounts.taken(db, "zoe")


def test_a_refresh_token_is_renewed_and_an_old_one_ends_it(made: Database) -> None:
    with made.connect() as db, db.begin():
        settle(db)
        kept = sessions.renew(db, "ses-1", "first", fresh="second", at=4.0, life=LIFE)
        assert kept == Session("ses-1", "bob", 3.0, 1)
        assert sessions.renew(db, "ses-1", "first", fresh="third", at=5.0, life=LIFE) == "bob"
        assert sessions.renew(db, "ses-1", "second", fresh="third", at=5.0, life=LIFE) is None


def test_an_account_keeps_its_newest_sessions(made: Database) -> None:
    with made.connect() as db, db.begin():
        settle(db)
        bob = accounts.get(db, "bob")
        for number in range(sessions.SESSIONS_EACH):
            sessions.begin(db, bob, 10.0 + number, f"ses-n{number}", "s")
        left = db.execute(sa.select(tables.sessions.c.id)).scalars().all()
        assert len(left) == sessions.SESSIONS_EACH
        assert "ses-1" not in left
        sessions.sweep(db, 10_000.0, LIFE)
        assert db.execute(sa.select(tables.sessions.c.id)).first() is None


def test_an_address_rests_whatever_names_it_tries(made: Database) -> None:
    with made.connect() as db, db.begin():
        for number in range(20):
            attempts.count(db, f"name-{number}", "192.0.2.1", 1.0, 20)
        with pytest.raises(TooMany, match="60 seconds"):
            attempts.count(db, "another", "192.0.2.1", 1.0, 20)
        attempts.count(db, "another", "192.0.2.2", 1.0, 20)
        attempts.forgive(db, "another", "192.0.2.1", 1.0, whole=True)
        attempts.count(db, "another", "192.0.2.1", 1.0, 20)
        kept = db.execute(sa.select(tables.attempts.c.key)).scalars().all()
        assert all(len(key) == 64 for key in kept), "names are kept as hashes"


def test_second_factors_are_sealed_for_their_account_and_old_ones_at_the_start(
    made: Database,
) -> None:
    key, secret = Ed25519PrivateKey.generate(), totp.new_secret(bytes(range(20)))
    factors = Factors(key, os.urandom)
    with made.connect() as db, db.begin():
        for name, kept in (("ada", secret), ("bob", factors.seal(secret, "bob")), ("eve", "")):
            accounts.add(db, NewAccount(name, password="h"), "olga", 1.0)  # noqa: S106
            accounts.change(db, name, secret=kept, proposed=kept)
        assert factors.seal_all(db) == 1
        assert factors.seal_all(db) == 0
        rows = {name: accounts.get(db, name).secret for name in ("ada", "bob", "eve")}
    assert all(secret not in kept for kept in rows.values())
    assert {name: factors.open(kept, name) for name, kept in rows.items()} == {
        "ada": secret, "bob": secret, "eve": "",
    }  # fmt: skip
    with pytest.raises(StorageError, match="second factor of 'bob'"):  # put in another's row
        factors.open(rows["ada"], "bob")
    with pytest.raises(StorageError, match=r"cannot be opened with this hub\.key"):
        Factors(Ed25519PrivateKey.generate(), os.urandom).open(rows["ada"], "ada")
