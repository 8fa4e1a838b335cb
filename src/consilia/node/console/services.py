"""What the console's routes work with."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from argon2 import PasswordHasher
from litestar.di import NamedDependency
from litestar.params import SkipValidation

from consilia.accounts.passwords import HASHER
from consilia.accounts.store import Lifetime
from consilia.node import config
from consilia.node.config import NodeConfig
from consilia.node.console.outside import Outside
from consilia.node.console.settings import Console
from consilia.node.control import poke
from consilia.node.store import Store

HASHES = 2  # passwords looked at together: each takes 64 MiB and a core


class Log(Protocol):
    """Where the console writes what its people are not told."""

    def error(self, event: str, **fields: Any) -> Any:
        """Write a defect down."""

    def info(self, event: str, **fields: Any) -> Any:
        """Write an event down."""


@dataclass(slots=True)
class Place:
    """Where the console is reached; known once its port is open."""

    origin: str = ""
    origins: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Services:
    """The console's parts. Methods block; routes that use them run in threads."""

    directory: Path  # the node's
    site: str
    settings: Console
    store: Store
    now: Callable[[], float]
    random_bytes: Callable[[int], bytes]
    log: Log
    place: Place
    static: Path
    outside: Outside = field(default_factory=Outside)
    hasher: PasswordHasher = HASHER  # tests take one that costs little
    looked: dict[str, tuple[float, str]] = field(default_factory=dict)  # see home
    # what the closed segments of the audit trail hold never changes: see trail
    actions: dict[str, frozenset[str]] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)
    hashing: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(HASHES)
    )

    @property
    def life(self) -> Lifetime:
        """How long sessions last."""
        return Lifetime(60.0 * self.settings.idle_minutes, 3600.0 * self.settings.session_hours)

    def config(self) -> NodeConfig:
        """Return node.yaml as it is now."""
        return config.load(self.directory)

    def tell_agent(self) -> None:
        """Let a running agent act on a change at once; it would notice by itself, later."""
        poke(self.directory)


Here = NamedDependency[SkipValidation[Services]]  # how a route asks for it
