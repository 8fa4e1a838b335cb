"""A node's console in this process: the real application, store and identity, no agent."""

import contextlib
import datetime as dt
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import structlog
from argon2 import PasswordHasher
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from consilia.node import config, identity
from consilia.node.config import NodeConfig
from consilia.node.console import outside, signing
from consilia.node.console.app import make_app
from consilia.node.console.serve import placed
from consilia.node.console.services import Services
from consilia.node.console.settings import Console as Settings
from consilia.node.store import Store
from consilia.wire.console import ROLES, Role
from consilia.wire.v1 import Enrolled

SITE = "charite"
PASSWORD = "four unrelated words, truly"  # noqa: S105 - of a test
ORIGIN = "http://127.0.0.1:8445"


@dataclass
class Clock:
    """Unix seconds, moved by hand; it stands where the machine's clock is at first."""

    at: float = field(default_factory=lambda: dt.datetime.now().timestamp())

    def __call__(self) -> float:
        return self.at


@dataclass
class Person:
    """A browser: its cookies, and the token of the page."""

    http: httpx.AsyncClient
    csrf: str = ""

    async def ask(self, method: str, path: str, body: object = None, **more: Any) -> Any:
        """Send a request as a page of the console does; return the response."""
        headers = {"Origin": ORIGIN, "X-CSRF-Token": self.csrf, **more.pop("headers", {})}
        if body is not None:
            more["json"] = body
        return await self.http.request(method, path, headers=headers, **more)

    async def get(self, path: str, **more: Any) -> Any:
        """Return the JSON that a path answers; fails for a problem."""
        return self._good(await self.ask("GET", path, **more))

    async def do(self, method: str, path: str, body: object = None) -> Any:
        """Change something; return the JSON of the answer; fails for a problem."""
        return self._good(await self.ask(method, path, body))

    async def refused(self, method: str, path: str, body: object, status: int) -> str:
        """Ask for what is refused with `status`; return the detail a person reads."""
        answer = await self.ask(method, path, body)
        assert answer.status_code == status, (answer.status_code, answer.text)
        return str(answer.json()["detail"])

    @staticmethod
    def _good(answer: httpx.Response) -> Any:
        assert answer.is_success, (answer.status_code, answer.text)
        return answer.json() if answer.content else None


@dataclass
class Console:
    """One console and whoever has opened it."""

    here: Services
    clock: Clock
    app: Any
    stack: contextlib.AsyncExitStack

    async def stranger(self) -> Person:
        """Return a browser in which nobody is signed in."""
        transport = httpx.ASGITransport(app=self.app)
        made = httpx.AsyncClient(transport=transport, base_url=ORIGIN)
        return Person(await self.stack.enter_async_context(made))

    async def enter(self, name: str, *roles: Role) -> Person:
        """Make an account by invitation, all roles unless some are given, and sign in."""
        link = signing.invite(self.here, roles or ROLES, 1.0, "root").link
        person = await self.stranger()
        body = {"token": link.partition("#")[2], "name": name, "password": PASSWORD}
        person.csrf = (await person.do("POST", "/api/invitation/accept", body))["csrf"]
        return person

    def actions(self) -> list[tuple[str, str]]:
        """Return (actor, action) of every audit line."""
        return self.here.store.rows("SELECT actor, action FROM audit ORDER BY seq")


@contextlib.asynccontextmanager
async def console(folder: Path, **settings: Any) -> AsyncIterator[Console]:
    """Run a console over a node's directory made in `folder`."""
    directory, clock = folder / "node", Clock()
    make_node(directory, **settings)
    found = config.load(directory)
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(contextlib.closing(Store.open(directory)))
        here = Services(
            directory=directory,
            site=SITE,
            settings=found.console,
            store=store,
            now=clock,
            random_bytes=os.urandom,
            log=structlog.get_logger("test"),
            place=placed(found.console, 8445),
            static=folder / "static",
            outside=outside.lines(found.console.sign_in, directory, clock),
            hasher=PasswordHasher(time_cost=1, memory_cost=8, parallelism=1),
        )
        # the gate's clock runs on by itself: tests ask faster than people
        yield Console(here, clock, make_app(here, _Hours()), stack)


class _Hours:
    """A monotonic clock that goes on an hour with each look: no request is one too many."""

    def __init__(self) -> None:
        self._at = 0.0

    def __call__(self) -> float:
        self._at += 3600
        return self._at


def make_node(directory: Path, **settings: Any) -> None:
    """Make what `consilia node join` makes, certified by an authority of this test."""
    directory.mkdir(mode=0o700)
    keys = identity.new_keys()
    authority = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("ca", authority.public_key(), authority)
    tls = _certificate(SITE, keys.tls.public_key(), authority)
    enrolled = Enrolled(tls, ca, b"h" * 32)
    identity.create(
        directory,
        SITE,
        keys,
        enrolled,
        x509.load_pem_x509_certificate(ca).public_bytes(Encoding.DER),
    )
    found = NodeConfig(SITE, "https://hub.invalid:1", **{"console": Settings(), **settings})
    config.save(directory, found)


def _certificate(
    name: str, key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey
) -> bytes:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    start = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    made = x509.CertificateBuilder(named("ca"), named(name), key, 7)
    made = made.not_valid_before(start).not_valid_after(start + dt.timedelta(days=30))
    return made.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)
