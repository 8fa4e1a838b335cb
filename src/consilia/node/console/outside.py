"""The lines to the hospital's own directory, and what the console remembers of them.

It is all in memory: refresh tokens of signed-in people are on no disk, so a stolen copy of the
node's directory opens nothing at the provider. After a restart those people sign in anew when
the directory is to be asked about them next.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilia.accounts.directory import SignInBy
from consilia.errors import ConfigError

if TYPE_CHECKING:
    from consilia.accounts.ldapline import LdapLine
    from consilia.accounts.oidcline import OidcLine

MOST = 2000  # of each kind that is remembered; the oldest goes first
SILENCE = 30.0  # seconds that a directory which does not answer is left alone


@dataclass(frozen=True, slots=True)
class Waiting:
    """Somebody whom the provider has signed in and whose code is still to come."""

    account: str
    epoch: int
    refresh: str
    until: float


@dataclass(slots=True)
class Outside:
    """The directories that are configured; none by default."""

    settings: SignInBy = field(default_factory=SignInBy)
    oidc: "OidcLine | None" = None
    ldap: "LdapLine | None" = None
    tokens: OrderedDict[str, str] = field(default_factory=OrderedDict)  # session -> refresh
    waiting: OrderedDict[str, Waiting] = field(default_factory=OrderedDict)  # by ticket
    used: OrderedDict[str, None] = field(default_factory=OrderedDict)  # states that came back
    silent_until: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)

    def keep(self, session: str, refresh: str) -> None:
        """Remember what asks about a session's person later; "" forgets it."""
        with self._lock:
            self.tokens.pop(session, None)
            if refresh:
                self.tokens[session] = refresh
            _bounded(self.tokens)

    def wait(self, ticket: str, waiting: Waiting) -> None:
        """Remember whose code is to come."""
        with self._lock:
            self.waiting[ticket] = waiting
            _bounded(self.waiting)

    def use(self, state: str) -> bool:
        """Note that a state has come back; tell whether it had not before."""
        with self._lock:
            new = state not in self.used
            self.used[state] = None
            _bounded(self.used)
            return new

    def lock_of(self, account: str) -> threading.Lock:
        """Return the lock under which the directory is asked about one account."""
        with self._lock:
            return self._locks.setdefault(account, threading.Lock())


def _bounded(memory: "OrderedDict[str, Any]") -> None:
    while len(memory) > MOST:
        memory.popitem(last=False)


def lines(settings: SignInBy, directory: Path, now: Callable[[], float]) -> Outside:
    """Return the lines that are configured; ConfigError where one cannot be used.

    Nobody is asked yet: a console starts while the hospital's directory rests.
    """
    made = Outside(settings)
    if settings.oidc is not None:
        from consilia.accounts.oidcline import OidcLine  # noqa: PLC0415 - only where wanted

        made.oidc = OidcLine(settings.oidc, directory, now)
    if settings.ldap is not None:
        try:
            from consilia.accounts.ldapline import LdapLine  # noqa: PLC0415 - an extra
        except ImportError:
            raise ConfigError(
                "console.sign_in.ldap needs the package ldap3; run: pip install consilia[ldap]"
            ) from None
        made.ldap = LdapLine(settings.ldap, directory)
    return made
