"""The line to an LDAP server: who has this name and password, and in which groups.

Everything blocks; callers run it in threads. Each question has a connection of its own: the
service account's is never bound as anybody else. Referrals are not followed, since they would
carry a password to a server that nobody configured.
"""

import contextlib
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from consilia.accounts import ldap
from consilia.accounts.authorities import authority
from consilia.accounts.directory import Ldap, Person, Turned, account_name, person
from consilia.errors import TransferError
from consilia.files import first_line

with warnings.catch_warnings():  # ldap3 uses names that pyasn1 calls by others today
    warnings.simplefilter("ignore", DeprecationWarning)
    import ldap3
    from ldap3.core.exceptions import LDAPException

_WRONG = (19, 32, 34, 48, 49, 50)  # what servers say of a name and password that do not fit
_SUCCESS, _TOO_MANY = 0, 4
_STATE = ("userAccountControl", "nsAccountLock", "pwdAccountLockedTime")
MOST_GROUPS = 10_000


class LdapLine:
    """One LDAP server; safe for threads."""

    def __init__(self, settings: Ldap, directory: Path) -> None:
        """Read the service account's password and the authority; ConfigError if unusable."""
        self.settings = settings
        parts = urlsplit(settings.url)
        self._host = parts.hostname or ""
        self._private = parts.scheme == "ldaps"
        self._port = parts.port or (636 if self._private else 389)
        self._context = authority(directory, settings.ca, "ldap.ca")
        self._password = (
            first_line(directory / settings.bind_password_file, "ldap.bind_password_file")
            if settings.bind_dn
            else ""
        )

    @property
    def asks_later(self) -> bool:
        """Whether people can be looked up without their password."""
        return bool(self.settings.bind_dn)

    def sign_in(self, said: str, password: str) -> Person | Turned:
        """Return who has this name and password; TransferError where nobody answers.

        An empty password is refused here: to a server it means "anonymous", and it would say
        yes (RFC 4513, 5.1.2).
        """
        name = account_name(said)
        if name is None or not password or len(password) > 1000 or "\0" in password:
            return Turned("wrong", "name or password cannot be anybody's")
        if not self.settings.user_dn:
            found = self._found_by_service(name)
            if isinstance(found, Turned):
                return found
            with self._opened() as line:
                if not self._bound(line, found[0], password):
                    return Turned("wrong", f"{name}: the directory refuses the password")
            return self._person(name, *found)
        own = ldap.in_name(self.settings.user_dn, "{name}", name)
        with self._opened() as line:
            if not self._bound(line, own, password):
                return Turned("wrong", f"{name}: the directory refuses the password")
            found = self._one(line, name, own, ldap3.BASE)
            return found if isinstance(found, Turned) else self._person(name, *found)

    def again(self, name: str) -> Person | Turned:
        """Look up somebody who is signed in, as the service account."""
        found = self._found_by_service(name)
        return found if isinstance(found, Turned) else self._person(name, *found)

    # ---- questions -----------------------------------------------------------------------

    def _found_by_service(
        self, name: str
    ) -> tuple[str, ldap.Attributes, tuple[str, ...]] | Turned:
        with self._opened() as line:
            if not self._bound(line, self.settings.bind_dn, self._password):
                raise TransferError(
                    f"the LDAP server {self.settings.url} refuses the service account "
                    f"{self.settings.bind_dn}; check ldap.bind_dn and the password's file"
                )
            return self._one(line, name, self.settings.base, ldap3.SUBTREE)

    def _one(
        self, line: Any, name: str, base: str, scope: Any
    ) -> tuple[str, ldap.Attributes, tuple[str, ...]] | Turned:
        """Return the one person of a name (dn, attributes, groups), looked for below `base`."""
        settings = self.settings
        wanted = [settings.subject_attribute, *_STATE]
        if settings.groups_attribute:
            wanted.append(settings.groups_attribute)
        asked = ldap.in_filter(settings.filter, "{name}", name)
        found = self._search(line, base, asked, scope, wanted, 2)
        if len(found) != 1:
            many = "nobody" if not found else "more than one person"
            return Turned("wrong", f"{name}: {many} of this name in the directory")
        own, attributes = found[0]
        if settings.groups_attribute:
            return own, attributes, ldap.texts(attributes, settings.groups_attribute)
        asked = ldap.in_filter(settings.group_filter, "{dn}", own)
        groups = self._search(
            line, settings.group_base, asked, ldap3.SUBTREE, ["1.1"], MOST_GROUPS
        )
        return own, attributes, tuple(group for group, _ in groups)

    def _person(
        self, name: str, _own: str, attributes: ldap.Attributes, groups: tuple[str, ...]
    ) -> Person | Turned:
        if ldap.switched_off(attributes):
            return Turned("wrong", f"{name}: disabled in the directory")
        lasting = ldap.subject(attributes, self.settings.subject_attribute)
        if lasting:  # who it is among all directories that may ever be configured here
            lasting = f"{self.settings.base} {lasting}"
        return person("ldap", lasting, name, ldap.roles_of(groups, self.settings.roles))

    def _search(  # noqa: PLR0913, PLR0917 - as LDAP asks
        self, line: Any, base: str, asked: str, scope: Any, wanted: list[str], most: int
    ) -> list[tuple[str, ldap.Attributes]]:
        try:
            line.search(
                base, asked, search_scope=scope, attributes=wanted, size_limit=most,
                time_limit=max(1, int(self.settings.seconds)),
            )  # fmt: skip
        except LDAPException as e:
            raise self._silent(e) from None
        code = line.result["result"]
        if code not in (_SUCCESS, _TOO_MANY, 32):  # 32: nothing there
            raise TransferError(
                f"the LDAP server {self.settings.url} refuses to look below {base}: "
                f"{line.result['description']}"
            )
        return [
            (entry["dn"], entry["raw_attributes"])
            for entry in line.response or ()
            if entry["type"] == "searchResEntry"
        ]

    # ---- the line ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """Connect, with TLS unless plaintext was spelled out; nobody is bound yet."""
        settings = self.settings
        server = ldap3.Server(
            self._host,
            self._port,
            use_ssl=self._private,
            tls=_CheckedTls(self._context, self._host),
            get_info=ldap3.NONE,
            connect_timeout=settings.seconds,
        )
        line = ldap3.Connection(
            server,
            client_strategy=ldap3.SYNC,
            auto_referrals=False,
            read_only=True,
            check_names=False,
            receive_timeout=max(1, int(settings.seconds)),
            raise_exceptions=False,
        )
        try:
            line.open(read_server_info=False)
            if not self._private and not settings.plaintext:
                line.start_tls(read_server_info=False)
                if not line.tls_started:
                    raise TransferError(f"the LDAP server {settings.url} does not begin TLS")
            yield line
        except (LDAPException, OSError) as e:
            raise self._silent(e) from None
        finally:
            with contextlib.suppress(LDAPException, OSError):
                line.unbind()
            if line.socket is not None:  # ldap3 leaves one that never connected open
                line.socket.close()

    def _bound(self, line: Any, name: str, password: str) -> bool:
        """Bind; tell whether the server knows name and password."""
        line.user, line.password, line.authentication = name, password, ldap3.SIMPLE
        line.bind(read_server_info=False)
        code = line.result["result"]
        if code not in (_SUCCESS, *_WRONG):
            raise TransferError(
                f"the LDAP server {self.settings.url} does not take a password: "
                f"{line.result['description']}"
            )
        return bool(code == _SUCCESS)

    def _silent(self, error: Exception) -> TransferError:
        return TransferError(f"the LDAP server {self.settings.url} cannot be asked: {error}")


class _CheckedTls(ldap3.Tls):
    """ldap3's TLS with Python's own check of certificate and host name in place of its own.

    Its own knows no addresses, trusts the common name, and turns the standard check off.
    """

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._context = context
        self._host = host

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """Speak TLS on a connection's socket."""
        connection.socket = self._context.wrap_socket(
            connection.socket, server_hostname=self._host
        )
