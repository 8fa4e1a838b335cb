"""What the steps of people's accounts work with, as one record, and the settings of it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import argon2

from consilia.accounts import passwords
from consilia.accounts.directory import Person, Turned
from consilia.hub.access import Access
from consilia.hub.config import HubConfig
from consilia.hub.people.accounts import Account
from consilia.hub.people.factors import Factors
from consilia.hub.people.knowledge import Knowledge
from consilia.hub.people.roles import Caller
from consilia.hub.people.sessions import Lifetime, Signer
from consilia.hub.store import Store


class PasswordDirectory(Protocol):
    """A directory that is told name and password, such as LDAP."""

    @property
    def label(self) -> str:
        """What people read beside the fields."""

    async def check(self, name: str, password: str) -> Person | Turned:
        """Return who that is and what roles they have here, or why they are turned away."""


class PageDirectory(Protocol):
    """A directory with a page of its own, such as an OpenID Connect provider."""

    @property
    def label(self) -> str:
        """What people read on the button."""

    async def begin(self, back: str, secret: bytes) -> str:
        """Return where to send the browser, which comes back to the URL `back`.

        `secret` is 32 random bytes that this browser keeps in a cookie until it comes back:
        state, nonce and code verifier are to be made of it.
        """

    async def finish(
        self, back: str, secret: bytes, query: Mapping[str, str]
    ) -> Person | Turned:
        """Return who came back with this query."""


async def nobody_asked(known: Account) -> Turned | None:
    """Ask no directory about a person who is signed in."""
    return None


@dataclass(frozen=True, slots=True)
class Directories:
    """The ways to sign in besides accounts of the hub's own, by name."""

    asking: Mapping[str, PasswordDirectory] = field(default_factory=dict)
    pages: Mapping[str, PageDirectory] = field(default_factory=dict)
    # why the sessions of somebody end whose directory was asked again; None: they go on
    still: Callable[[Account], Awaitable[Turned | None]] = nobody_asked

    def kind(self, name: str) -> Literal["ldap", "oidc"] | None:
        """Return what kind of directory has this name."""
        if name in self.asking:
            return "ldap"
        return "oidc" if name in self.pages else None


@dataclass(frozen=True, slots=True)
class People:
    """The people's side of one hub."""

    store: Store
    access: Access
    knowledge: Knowledge
    signer: Signer
    factors: Factors
    config: HubConfig
    life: Lifetime
    origin: Callable[[], str]  # where browsers reach the hub: https://host:port
    now: Callable[[], float]
    random_bytes: Callable[[int], bytes]
    directories: Directories = Directories()
    hasher: argon2.PasswordHasher = passwords.HASHER
    # a hash takes 64 MiB and 0.1 s of four cores: strangers must not start a hundred
    hashing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    def must_enrol(self, who: Caller) -> bool:
        """Whether the person has yet to set up the second factor that their roles ask for."""
        if not who.session or not who.every.intersection(self.config.people.second_factor):
            return False
        known = self.knowledge.known(who.name)
        return known is not None and known.local and not known.second_factor


def make_people(  # noqa: PLR0913 - clock and randomness are arguments too
    config: HubConfig,
    store: Store,
    access: Access,
    *,
    origin: Callable[[], str],
    now: Callable[[], float],
    random_bytes: Callable[[int], bytes],
    directories: Directories | None = None,
    hasher: argon2.PasswordHasher | None = None,
) -> People:
    """Return the people's side of a hub. Blocks: it reads who there is."""
    life = Lifetime(config.people.idle_minutes * 60, config.people.session_hours * 3600)
    signer = Signer(access.hub_key, config.name)
    return People(
        store=store,
        access=access,
        knowledge=Knowledge(store, access, signer, life, now),
        signer=signer,
        factors=Factors(access.hub_key, random_bytes),
        config=config,
        life=life,
        origin=origin,
        now=now,
        random_bytes=random_bytes,
        directories=directories or Directories(),
        hasher=hasher or passwords.HASHER,
    )
