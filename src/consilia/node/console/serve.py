"""The console as a process: open the node's store, listen, end with SIGTERM or SIGINT."""

import asyncio
import contextlib
import os
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from consilia.errors import ConfigError
from consilia.node import config, logs
from consilia.node.console import log, outside, signing
from consilia.node.console.app import make_app
from consilia.node.console.services import Place, Services
from consilia.node.console.settings import Console, address, origins
from consilia.node.store import Store
from consilia.web.server import PeopleServer
from consilia.wire import strict
from consilia.wire.console import ROLES
from consilia.wire.console.accounts import InvitationLink

STATIC = Path(__file__).parent / "static"
ORIGIN = "console.url"  # file in the node's directory while a console runs
CONNECTIONS = 200
THREADS = 32  # routes that block at the same time: a health check takes seconds
PATIENCE = 1.0  # seconds that running requests may take when the console ends


def serve(
    directory: Path, listen: str = "", ready: Callable[[str], None] | None = None
) -> None:
    """Serve the console of the node in `directory` until a signal comes.

    `listen` (host:port) wins over node.yaml, under the same rules. `ready` is called with the
    console's address once it answers.
    """
    settings = config.load(directory)
    if listen:
        settings = _elsewhere(settings, listen, str(directory / config.FILE))
    logs.start(directory / "log", settings.log_level, settings.log_bytes, name="console.log")
    try:
        console = settings.console
        reached = outside.lines(console.sign_in, directory, time.time)
        with _opened(directory, settings.site, console, reached) as here:
            asyncio.run(_serve(here, ready))
    finally:
        logs.stop()


@contextlib.contextmanager
def _opened(
    directory: Path, site: str, console: Console, reached: outside.Outside
) -> Iterator[Services]:
    with contextlib.closing(Store.open(directory)) as store:
        yield Services(
            directory=directory,
            site=site,
            settings=console,
            store=store,
            now=time.time,
            random_bytes=os.urandom,
            log=log.logger(),
            place=placed(console, address(console)[1]),
            static=STATIC,
            outside=reached,
        )


def placed(console: Console, port: int) -> Place:
    """Return where browsers reach a console that listens on `port`."""
    host, _ = address(console)
    scheme = "https" if console.certificate else "http"
    shown = console.names[0] if console.names else f"[{host}]" if ":" in host else host
    return Place(f"{scheme}://{shown}:{port}", origins(console, port))


async def _serve(here: Services, ready: Callable[[str], None] | None) -> None:
    server = PeopleServer(
        make_app(here, time.monotonic), tls_context(here.settings, here.directory), CONNECTIONS
    )
    host, port = address(here.settings)
    open_port = await server.start(host, port)
    found = placed(here.settings, open_port)
    here.place.origin, here.place.origins = found.origin, found.origins
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, "console"))
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    here.log.info("the console serves", at=found.origin)
    try:
        with _announced(here.directory, found.origin):
            if ready is not None:
                ready(found.origin)
            await ended.wait()
    finally:
        here.stopping.set()
        await server.stop(PATIENCE)
        here.log.info("the console has ended")


@contextlib.contextmanager
def _announced(directory: Path, origin: str) -> Iterator[None]:
    """Tell commands where the console is, for the time of a block."""
    path = directory / ORIGIN
    path.write_text(f"{origin}\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def tls_context(console: Console, directory: Path) -> ssl.SSLContext | None:
    """Return the context of the configured certificate, None without one.

    Raises ConfigError for files that cannot be used, or a key that others can read.
    """
    if not console.certificate:
        return None
    certificate, key = directory / console.certificate, directory / console.key
    try:
        if key.stat().st_mode & 0o077:
            raise ConfigError(f"{key} is readable by others; run: chmod 600 {key}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # hospitals' browsers may be old
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(
            f"console: {certificate} and {key} cannot be used: {e}; needed are a PEM "
            "certificate, with its chain, and its key without a password"
        ) from None
    return context


def _elsewhere(settings: config.NodeConfig, listen: str, source: str) -> config.NodeConfig:
    """Return the configuration with another address to listen on, checked."""
    console = msgspec.structs.replace(settings.console, listen=listen)
    found = msgspec.structs.replace(settings, console=console)
    config.check(found, source)
    return found


def invite(directory: Path, roles: tuple[str, ...], hours: float, actor: str) -> InvitationLink:
    """Make a one-time link to an account with `roles`, in the name of who holds the machine."""
    for role in roles:
        if role not in ROLES:
            raise ConfigError(f"role {role[:40]!r}{strict.nearest(role, ROLES)}")
    settings = config.load(directory)
    # without the directory: this is how one gets in where that is out of order
    with _opened(directory, settings.site, settings.console, outside.Outside()) as here:
        with contextlib.suppress(OSError):  # a console that runs knows best where it is
            here.place.origin = (directory / ORIGIN).read_text().strip()
        return signing.invite(
            here, tuple(role for role in ROLES if role in roles), hours, actor
        )
