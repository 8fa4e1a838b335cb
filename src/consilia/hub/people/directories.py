"""Sign-in at the hub by a directory: an OpenID Connect provider, an LDAP server.

The lines to them are consilia.accounts'; they block, so they run in threads. What asks a
provider about somebody later (refresh tokens) is in memory only: after a restart, or at
another replica, those people sign in anew when their directory is to be asked next.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from consilia.accounts.directory import Person, SignInBy, Turned
from consilia.errors import AuthError, ConfigError, Refused, TransferError
from consilia.hub.people.accounts import Account
from consilia.hub.people.service import Directories
from consilia.hub.telemetry import Log

if TYPE_CHECKING:
    from consilia.accounts.ldapline import LdapLine
    from consilia.accounts.oidcline import OidcLine

LDAP, OIDC = "ldap", "oidc"  # providers' names: there is one of each kind
MOST = 10_000  # people remembered; the oldest go first


class Memory:
    """When a directory answered for whom, and what asks again. For one event loop."""

    def __init__(self, settings: SignInBy, now: Callable[[], float]) -> None:
        """`now` is Unix seconds."""
        self._every = 60.0 * settings.recheck_minutes
        self._now = now
        self._seen: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def note(self, subject: str, refresh: str = "") -> None:
        """Remember that the directory has just answered for somebody."""
        self._seen.pop(subject, None)
        self._seen[subject] = self._now(), refresh
        while len(self._seen) > MOST:
            self._seen.popitem(last=False)

    def age(self, subject: str) -> float:
        """Return the age of the last answer, in recheck intervals; 1 or more when due."""
        at, _ = self._seen.get(subject, (float("-inf"), ""))
        age = (self._now() - at) / self._every
        return age if age >= 0 else 1.0

    def refresh(self, subject: str) -> str:
        """Return what asks the provider about somebody, "" when there is nothing."""
        return self._seen.get(subject, (0.0, ""))[1]


class AskedLdap:
    """People who tell the hub the name and password that they have in LDAP."""

    def __init__(self, line: "LdapLine", contact: str, memory: Memory, log: Log) -> None:
        self._line = line
        self._log = log
        self._contact = contact
        self._memory = memory

    @property
    def label(self) -> str:
        """What people read beside the fields."""
        return self._line.settings.label

    async def check(self, name: str, password: str) -> Person | Turned:
        """Return who that is; Refused, with whom to ask, for one who has no role here."""
        try:
            found = await asyncio.to_thread(self._line.sign_in, name, password)
        except TransferError as e:  # a stranger reads no addresses
            self._log.warning("no sign-in", by=LDAP, cause=str(e))
            raise TransferError("the directory does not answer; try again later") from None
        if isinstance(found, Person):
            self._memory.note(found.subject)
        elif found.reason != "wrong":
            raise Refused(
                "the directory knows you, but you have no role at this hub; "
                f"{_ask(self._contact)}"
            )
        return found

    async def again(self, known: Account) -> Person | Turned | None:
        """Ask about somebody who is signed in; None where that takes their password."""
        if not self._line.asks_later:
            return None
        return await asyncio.to_thread(self._line.again, known.name)


class OidcPage:
    """People who sign in at the page of an OpenID Connect provider."""

    def __init__(self, line: "OidcLine", memory: Memory) -> None:
        self._line = line
        self._memory = memory

    @property
    def label(self) -> str:
        """What people read on the button."""
        return self._line.settings.label

    async def begin(self, back: str, secret: bytes) -> str:
        """Return where to send the browser, which comes back to the URL `back`."""
        return await asyncio.to_thread(self._line.start, back, secret)

    async def finish(
        self, back: str, secret: bytes, query: Mapping[str, str]
    ) -> Person | Turned:
        """Return who came back with this query, or why they are turned away."""
        try:
            found = await asyncio.to_thread(self._line.finish, query, back, secret)
        except TransferError as e:
            return Turned("unreachable", str(e))
        except (AuthError, ConfigError) as e:
            said_no = query.get("error") == "access_denied"
            return Turned("cancelled" if said_no else "failed", str(e))
        if isinstance(found, Turned):
            return found
        self._memory.note(found.person.subject, found.refresh)
        return found.person

    async def again(self, known: Account) -> Person | Turned | None:
        """Ask about somebody who is signed in; None where nothing was kept to ask with."""
        refresh = self._memory.refresh(known.subject or "")
        if not refresh:
            return None
        try:
            found = await asyncio.to_thread(self._line.again, refresh, known.subject or "")
        except AuthError as e:
            return Turned("failed", str(e))
        if isinstance(found, Turned):
            return found
        self._memory.note(found.person.subject, found.refresh)
        return found.person


def make_directories(
    settings: SignInBy, root: Path, now: Callable[[], float], log: Log
) -> Directories:
    """Return the configured ways to sign in; ConfigError where one is unusable. Asks nobody."""
    memory = Memory(settings, now)
    ways: dict[str, AskedLdap | OidcPage] = {}
    if settings.oidc is not None:
        from consilia.accounts.oidcline import OidcLine  # noqa: PLC0415 - only where wanted

        page = OidcPage(OidcLine(settings.oidc, root, now), memory)
        ways[OIDC] = page
    if settings.ldap is not None:
        try:
            from consilia.accounts.ldapline import LdapLine  # noqa: PLC0415 - an extra
        except ImportError:
            raise ConfigError(
                "sign_in.ldap needs the package ldap3; run: pip install consilia[ldap]"
            ) from None
        ways[LDAP] = AskedLdap(LdapLine(settings.ldap, root), settings.contact, memory, log)

    async def still(known: Account) -> Turned | None:
        return await _still(known, ways.get(known.provider), memory)

    return Directories(
        asking={name: way for name, way in ways.items() if isinstance(way, AskedLdap)},
        pages={name: way for name, way in ways.items() if isinstance(way, OidcPage)},
        still=still,
    )


async def _still(
    known: Account, way: AskedLdap | OidcPage | None, memory: Memory
) -> Turned | None:
    """Return why somebody's sessions end: gone, other roles, or nothing to ask with."""
    subject = known.subject or ""
    age = memory.age(subject)
    if way is not None and age < 1:
        return None
    try:
        found = None if way is None else await way.again(known)
    except TransferError as e:  # silent: they go on for as long again
        return Turned("unreachable", str(e)) if age >= 2 else None
    if isinstance(found, Person) and (why := _other(found, known)) is None:
        memory.note(subject, memory.refresh(subject))
        return None
    if isinstance(found, Person):
        return why
    return found or Turned("expired", "their directory is to be asked anew: sign in again")


def _other(found: Person, known: Account) -> Turned | None:
    """Return in what the directory's person is not the account's, None when it is the same."""
    if found.subject != known.subject:
        return Turned("failed", f"{known.name}: somebody else has this name there now")
    if set(found.roles) != set(known.roles):
        return Turned("not-mapped", f"roles are {', '.join(found.roles)} there now")
    return None


def _ask(contact: str) -> str:
    return f"ask {contact}" if contact else "ask an operator"
