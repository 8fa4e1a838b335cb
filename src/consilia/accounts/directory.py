"""The hospital's own directory decides who may sign in: its settings, and what they mean. Pure.

Two kinds: OpenID Connect (a page of the provider, consilia.accounts.oidc) and LDAP (name and
password, consilia.accounts.ldap). Either says who somebody is and in which groups; the roles
come from a map in the configuration. Who is in no mapped group is turned away: an account of
the hospital is not yet an account here.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from consilia.core import ids
from consilia.errors import ConfigError

Kind = Literal["oidc", "ldap"]
# why somebody is not let in; a page has a text for each
Reason = Literal[
    "wrong",  # name or password
    "failed",  # the provider's answer does not hold
    "expired",  # it belongs to no sign-in that was begun in this browser
    "cancelled",  # the person or the provider said no
    "unreachable",  # the directory did not answer
    "not-mapped",  # no group of the person has a role here
    "name-unusable",  # the directory's name cannot name an account
    "name-taken",  # an account of this name is somebody else's
    "disabled",  # by an administrator here
    "weak",  # the provider did not ask what the site demands (acr, amr)
]
Roles = Mapping[str, tuple[str, ...]]  # role -> groups whose members hold it

MOST_SUBJECT = 255  # characters; a longer one goes by its digest
RECHECK = (1.0, 24 * 60.0)  # minutes: least and most
_PART = "(?:[A-Za-z0-9._~:-]|%3A)+"
_SAFE_TARGET = re.compile(f"/(?:{_PART}(?:/{_PART})*/?)?")
_NOT_PAGES = ("/api", "/oidc")


class Oidc(msgspec.Struct, frozen=True):
    """An OpenID Connect provider. Relative paths are relative to the program's directory."""

    issuer: str  # https://..., exactly as the provider writes it
    client_id: str
    roles: dict[str, tuple[str, ...]]  # role -> values of the groups' claim
    client_secret_file: str = ""  # of mode 600; "" for a public client
    label: str = "Hospital account"  # what people read on the button
    ca: str = ""  # PEM file of the authority of its certificate; "" for the system's
    proxy: str = ""  # http://host:port, when the provider is reached through one
    scopes: tuple[str, ...] = ("openid", "profile")
    name_claim: str = "preferred_username"
    domain: str = ""  # taken off the end of the name: ada@hospital.example -> ada
    groups_claim: str = "groups"
    acr: tuple[str, ...] = ()  # the provider must have reached one of these
    amr: tuple[str, ...] = ()  # the provider must have used one of these
    local_second_factor: bool = False  # ask for a code here besides


class Ldap(msgspec.Struct, frozen=True):
    """An LDAP server. Relative paths are relative to the program's directory."""

    url: str  # ldaps://host[:636], or ldap://host[:389], which then speaks StartTLS
    base: str  # where people are looked for
    roles: dict[str, tuple[str, ...]]  # role -> distinguished names of groups
    label: str = "Hospital account"
    ca: str = ""  # PEM file of the authority of its certificate; "" for the system's
    plaintext: bool = False  # speak without TLS: passwords are readable on the way
    bind_dn: str = ""  # of a service account that may read people; "" with `user_dn`
    bind_password_file: str = ""  # of mode 600
    user_dn: str = ""  # instead of a service account: uid={name},ou=people,dc=...
    filter: str = "(uid={name})"  # one person; Active Directory: (sAMAccountName={name})
    subject_attribute: str = "entryUUID"  # never used again; Active Directory: objectGUID
    groups_attribute: str = "memberOf"  # of the person; "" where groups list their members
    group_base: str = ""  # where groups are looked for, with `group_filter`
    group_filter: str = "(member={dn})"
    seconds: float = 10.0  # that one question may take


class SignInBy(msgspec.Struct, frozen=True):
    """Who may sign in besides the accounts made here."""

    oidc: Oidc | None = None
    ldap: Ldap | None = None
    contact: str = ""  # whom people ask who are turned away
    recheck_minutes: float = 15.0  # so often the directory is asked about who is signed in


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody as a directory knows them, with the roles that their groups give here."""

    kind: Kind
    subject: str  # the directory's own, never used again for another
    name: str  # of the account here
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turned:
    """Somebody who is not let in; `detail` is for the log and the audit trail."""

    reason: Reason
    detail: str


def person(
    kind: Kind, subject: str, said: str, roles: tuple[str, ...], domain: str = ""
) -> Person | Turned:
    """Return the person of a directory's answer, or why it is nobody's here.

    `said` is the directory's name for them; names are compared without case.
    """
    name = account_name(said, domain)
    if name is None:
        return Turned(
            "name-unusable",
            f"the directory's name {said[:80]!r} cannot name an account: needed 1 to 63 of "
            "a-z 0-9 . _ -",
        )
    if not subject:
        return Turned("failed", f"{name}: found no usable identifier in the directory's answer")
    if len(subject) > MOST_SUBJECT:
        subject = f"sha256:{hashlib.sha256(subject.encode()).hexdigest()}"
    if not roles:
        return Turned("not-mapped", f"{name}: no group of theirs has a role here")
    return Person(kind, subject, name, roles)


def account_name(said: str, domain: str = "") -> str | None:
    """Return the account's name for a directory's name, None when it can name none."""
    name = said.strip().lower()
    if domain:
        name = name.removesuffix(f"@{domain.lower()}")
    try:
        return ids.name(name, "account")
    except ConfigError:
        return None


def roles_of(groups: Iterable[str], mapped: Roles) -> tuple[str, ...]:
    """Return the roles that the groups give, in the map's order. Compared letter by letter."""
    held = frozenset(groups)
    return tuple(role for role, wanted in mapped.items() if held & frozenset(wanted))


def target(path: str) -> str:
    """Return where a browser goes after sign-in: `path` if it is a page here, else "/"."""
    if len(path) > 500 or not _SAFE_TARGET.fullmatch(path):
        return "/"
    return "/" if path.startswith(_NOT_PAGES) or ".." in path else path


# ---- settings --------------------------------------------------------------------------------


def problems(settings: SignInBy, roles: tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong with the section; `roles` are those that the program knows."""
    least, most = RECHECK
    if not least <= settings.recheck_minutes <= most:
        found = settings.recheck_minutes
        yield f"recheck_minutes: found {found:g}, needed {least:g} to {most:g}"
    if settings.oidc is not None:
        yield from (f"oidc.{p}" for p in _oidc_problems(settings.oidc))
        yield from (f"oidc.{p}" for p in _role_problems(settings.oidc.roles, roles))
    if settings.ldap is not None:
        yield from (f"ldap.{p}" for p in _ldap_problems(settings.ldap))
        yield from (f"ldap.{p}" for p in _role_problems(settings.ldap.roles, roles))


def _role_problems(mapped: Roles, known: tuple[str, ...]) -> Iterator[str]:
    if not mapped:
        yield "roles: none given, so nobody could sign in; name each role's groups"
    for role, groups in mapped.items():
        if role not in known:
            yield f"roles: found {role[:40]!r}, which is no role; valid: {', '.join(known)}"
        if not groups or not all(group.strip() for group in groups):
            yield f"roles.{role}: needed one group or more, none of them empty"


def _oidc_problems(found: Oidc) -> Iterator[str]:
    if why := not_private(found.issuer):
        yield f"issuer: found {found.issuer[:200]!r}, {why}"
    if not found.client_id:
        yield "client_id: empty; the provider's administrator gives it"
    if "openid" not in found.scopes:
        yield "scopes: 'openid' is missing, without which the provider says nothing of people"
    for key, value in (("name_claim", found.name_claim), ("groups_claim", found.groups_claim)):
        if not value:
            yield f"{key}: empty; needed the name of a claim"
    if found.domain.startswith("@"):
        yield f"domain: found {found.domain!r}, needed it without the @"


def not_private(url: str) -> str:
    """Return why a URL does not keep what is said to it private, "" when it does.

    Plain http is for this machine only, as where a provider is tried out.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "which is no URL"
    if parts.query or parts.fragment or parts.username is not None:
        return "needed without user, query and fragment"
    if parts.scheme == "https" and host:
        return ""
    if parts.scheme == "http" and host in ("127.0.0.1", "localhost", "::1"):
        return ""
    return "needed https://host (http only for this machine itself)"


def _ldap_problems(found: Ldap) -> Iterator[str]:
    try:
        parts = urlsplit(found.url)
        good = parts.scheme in ("ldap", "ldaps") and parts.hostname and (parts.port or 1)
    except ValueError:
        good = None
    if not good or parts.path.strip("/") or parts.query:
        yield f"url: found {found.url[:200]!r}, needed ldaps://host:636 or ldap://host:389"
    elif parts.scheme == "ldaps" and found.plaintext:
        yield "plaintext: found true with ldaps://, which is never plain; remove one"
    if not found.base:
        yield "base: empty; needed where people are, as ou=people,dc=hospital,dc=example"
    if bool(found.bind_dn) == bool(found.user_dn):
        yield (
            "bind_dn: needed either bind_dn with bind_password_file (a service account), or "
            "user_dn (people's own distinguished name), and not both"
        )
    if bool(found.bind_dn) != bool(found.bind_password_file):
        yield "bind_password_file: it and bind_dn go together; one of them is missing"
    for key, text, placeholder in (
        ("filter", found.filter, "{name}"),
        ("user_dn", found.user_dn, "{name}"),
        ("group_filter", found.group_filter, "{dn}"),
    ):
        if text and text.count(placeholder) != 1:
            yield f"{key}: found {text[:200]!r}, needed {placeholder} in it, once"
    if bool(found.groups_attribute) == bool(found.group_base):
        yield (
            "group_base: needed either groups_attribute (the person lists groups) or "
            "group_base (groups list people; then groups_attribute: ''), and not both"
        )
    if not found.subject_attribute:
        yield "subject_attribute: empty; needed an attribute that is never used again"
    if not 0 < found.seconds <= 60:
        yield f"seconds: found {found.seconds:g}, needed more than 0 and at most 60"
