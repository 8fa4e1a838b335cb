"""Accounts: passwords, one-time codes, lockout, invitations and sessions."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.accounts import lockout, passwords, totp
from consilia.accounts import store as accounts
from consilia.accounts.lockout import Attempts, Bucket
from consilia.accounts.store import Lifetime
from consilia.errors import AuthError, ConfigError, Conflict, NotFound, Refused
from consilia.node.store import Store

NOW = 1_800_000_000.0
LIFE = Lifetime(idle=1800, whole=43200)
PASSWORD = "correct horse battery staple"  # noqa: S105 - of a test
RFC_SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # noqa: S105 - "12345678901234567890"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.open(tmp_path)) as opened:
        yield opened


def enter(store: Store, name: str, roles: tuple[str, ...] = ("reviewer",)) -> accounts.Account:
    with store.write() as tx:
        _, token = accounts.invite(
            tx, roles=roles, actor="root", now=NOW, seconds=60, random=os.urandom(32)
        )
        return accounts.accept(tx, token, name, "hash", NOW)


@pytest.mark.parametrize(
    ("at", "code"),  # RFC 6238, appendix B, SHA-1; the last six of its eight digits
    [(59, "287082"), (1111111109, "081804"), (1234567890, "005924"), (20000000000, "353130")],
)
def test_codes_are_those_of_the_rfc(at: int, code: str) -> None:
    assert totp.code(RFC_SECRET, at // 30) == code


def test_a_code_works_once_and_one_step_late_or_early() -> None:
    here = 1234567890
    for drift, works in ((-60, False), (-30, True), (0, True), (30, True), (60, False)):
        found = totp.accepted(RFC_SECRET, "005924", here + drift, 0)
        assert (found == here // 30) is works, drift
    assert totp.accepted(RFC_SECRET, "005924", here, here // 30) is None
    for wrong in ("005925", "", "5924", "\u0660\u0660\u0665\u0669\u0662\u0664"):
        assert totp.accepted(RFC_SECRET, wrong, here, 0) is None
    assert totp.new_secret(bytes(20)) == "A" * 32
    assert "secret=AB&issuer=Consilia%20x" in totp.uri("AB", "mara", "Consilia x")


def test_passwords_are_argon2id_and_salted() -> None:
    one, two = passwords.hashed(PASSWORD), passwords.hashed(PASSWORD)
    assert one.startswith("$argon2id$v=19$m=65536,t=3,p=4$") and one != two
    assert passwords.matches(one, PASSWORD) and not passwords.matches(one, PASSWORD + "x")
    assert not passwords.matches(one, "x" * 10_000)
    assert not passwords.matches("not a hash", PASSWORD)
    assert not passwords.outdated(one)
    assert passwords.outdated("$argon2id$v=19$m=1024,t=1,p=1$c29tZXNhbHQ$" + "A" * 43)


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("short", "found 5 characters, needed 12"),
        ("x" * 201, "found 201 characters"),
        ("aaaaaaaabbbbbbbb", "different characters"),
        ("passwordpassword1", "'password'"),
        ("charitecharite12", "'charite'"),
    ],
)
def test_passwords_that_are_guessed_first_are_refused(password: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        passwords.check(password, ("mara", "charite"))
    passwords.check(PASSWORD, ("mara", "charite"))


def test_rests_double_up_to_an_hour() -> None:
    found, rests = Attempts(), []
    for _ in range(13):
        found = lockout.counted(found, NOW)
        rests.append(lockout.resting(found, NOW))
    assert rests == [0, 0, 0, 0, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert lockout.resting(found, NOW + 3601) == 0


@given(st.lists(st.floats(0, 10), max_size=200))
def test_a_bucket_never_lets_more_through_than_it_was_filled_with(gaps: list[float]) -> None:
    bucket, now, taken = Bucket(5, 0), 0.0, 0
    for gap in gaps:
        now += gap
        bucket, free = lockout.drawn(bucket, now, rate=0.5, size=5)
        taken += free
        assert taken <= 5 + 0.5 * now + 1e-6


def test_an_invitation_works_once_and_in_time(store: Store) -> None:
    with store.write() as tx:
        made, token = accounts.invite(
            tx, roles=("dpo",), actor="root", now=NOW, seconds=60, random=os.urandom(32)
        )
    assert accounts.invited(store, token, NOW + 59).id == made.id
    with pytest.raises(AuthError, match="too old"):
        accounts.invited(store, token, NOW + 60)
    with store.write() as tx, pytest.raises(ConfigError, match="account"):
        accounts.accept(tx, token, "no name!", "hash", NOW)
    with store.write() as tx:
        assert accounts.accept(tx, token, "mara", "hash", NOW).roles == ("dpo",)
    with store.write() as tx, pytest.raises(AuthError, match="used already"):
        accounts.accept(tx, token, "moritz", "hash", NOW)
    with pytest.raises(Conflict, match="'mara' exists"):
        enter(store, "mara")
    with store.write() as tx, pytest.raises(ConfigError, match="roles"):
        accounts.invite(tx, roles=(), actor="r", now=NOW, seconds=1, random=bytes(32))
    with store.write() as tx, pytest.raises(NotFound):
        accounts.withdraw(tx, made.id)


def test_a_session_ends_in_every_way_it_should(store: Store) -> None:
    account = enter(store, "mara")

    def opened() -> str:
        with store.write() as tx:
            return accounts.open_session(tx, accounts.get(tx, "mara"), NOW, os.urandom(32))

    def alive(token: str, at: float) -> bool:
        try:
            return accounts.session(store, token, at, LIFE).account.name == account.name
        except AuthError:
            return False

    token = opened()
    assert alive(token, NOW + 1799) and not alive(token, NOW + 1800)
    assert not alive("", NOW) and not alive(accounts.digest(token), NOW)
    with store.write() as tx:
        accounts.touch(tx, accounts.session(tx, token, NOW, LIFE), NOW + 43000)
    assert alive(token, NOW + 43199) and not alive(token, NOW + 43200)
    changes = (
        lambda tx: accounts.set_roles(tx, "mara", ("dpo",)),
        lambda tx: accounts.change(tx, "mara", disabled=1),
        lambda tx: accounts.remove(tx, "mara"),
    )
    for change in changes:
        with store.write() as tx:
            accounts.change(tx, "mara", disabled=0)
        token = opened()
        assert alive(token, NOW)
        with store.write() as tx:
            change(tx)
        assert not alive(token, NOW)


def test_wrong_attempts_are_counted_before_they_are_looked_at(store: Store) -> None:
    for _ in range(5):
        with store.write() as tx:
            found = accounts.count_attempt(tx, "mara", NOW)
    assert found.until == NOW + 60
    with store.write() as tx, pytest.raises(Refused, match=r"again in 6[01] seconds"):
        accounts.count_attempt(tx, "mara", NOW)
    with store.write() as tx:
        assert accounts.count_attempt(tx, "mara", NOW + 61).failures == 6
        accounts.forgive(tx, "mara", NOW + 61, whole=False)
        assert accounts.attempts(tx, "mara") == Attempts(5)
        accounts.forgive(tx, "mara", NOW + 61, whole=True)
    assert store.rows("SELECT * FROM account_attempts") == []


def test_the_database_opens_nothing(store: Store) -> None:
    account = enter(store, "mara")
    with store.write() as tx:
        cookie = accounts.open_session(tx, account, NOW, os.urandom(32))
        _, link = accounts.invite(
            tx, roles=("dpo",), actor="root", now=NOW, seconds=60, random=os.urandom(32)
        )
        accounts.count_attempt(tx, "a password in the wrong field", NOW)
    tables = ("accounts", "account_sessions", "account_invitations", "account_attempts")
    kept = repr([store.rows(f"SELECT * FROM {table}") for table in tables])  # noqa: S608
    for secret in (cookie, link, accounts.csrf_token(cookie), "wrong field"):
        assert secret not in kept
