"""The hub as one process: what it is made of, how it starts, serves and ends.

    init(directory, config)    settings, keys, database, the first operator's token
    serve(directory)           until SIGTERM or SIGINT, then exit within two seconds
    build(...)                 the part that has no transport: `serve` and the simulator use it

Two listeners share one event loop: nodes (hub.listener, mutual TLS) and people (hub.rest on
uvicorn, TLS). One process per directory, held by a lock. Once both listeners are up, their
addresses stand in DIR/run/addresses.json; the file is gone when the hub is.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from consilia import __version__
from consilia.errors import Conflict, StorageError
from consilia.hub import config as settings
from consilia.hub import records
from consilia.hub.access import Access
from consilia.hub.blobplane import BlobPlane
from consilia.hub.blobs import RESERVE, Blobs, DiskBlobs
from consilia.hub.clock import Clock, LoopClock
from consilia.hub.config import Directory, HubConfig
from consilia.hub.driver import Limits
from consilia.hub.engine import Engine
from consilia.hub.federation import Federation
from consilia.hub.keyfiles import write_secret
from consilia.hub.listener import Bounds, NodeListener, make_contexts
from consilia.hub.store import Store
from consilia.hub.telemetry import ForwardToLog, Log, Metrics, make_log, measure_lag

if TYPE_CHECKING:
    from consilia.hub.rest.server import PeopleServer
    from consilia.hub.rest.services import Probe

OPERATOR_DAYS = 366  # that the first token is valid
PATIENCE = 1.0  # seconds that running requests are given when the hub ends
_LOCAL = ("localhost", "127.0.0.1")
_ANY = ("", "0.0.0.0", "::")  # noqa: S104 - recognised, not bound
Random = Callable[[int], bytes]


class Addresses(msgspec.Struct, frozen=True):
    """Where a running hub listens: `people` for this machine, `nodes` for the sites."""

    people: str
    nodes: str
    pid: int


@dataclass(frozen=True, slots=True)
class Outside:
    """What a hub takes from outside itself; tests and simulations give their own."""

    log: Log
    clock: Clock
    random_bytes: Random = os.urandom
    checkpoint: Callable[[str], None] = lambda _: None  # called wherever a crash may cut


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub without its listeners."""

    store: Store
    blobs: Blobs
    engine: Engine
    federation: Federation


def build(  # noqa: PLR0913 - the parts it connects
    store: Store,
    blobs: Blobs,
    signing_key: Callable[[str], bytes],
    outside: Outside,
    *,
    limits: Limits | None = None,
    metrics: Metrics | None = None,
) -> Hub:
    """Connect engine and federation; then await `engine.recover()`.

    `signing_key(site)` is a site's registered Ed25519 key, or raises AuthError.
    """
    engine = Engine(
        store,
        blobs,
        outside.clock,
        outside.random_bytes,
        limits=limits,
        meter=metrics,
        checkpoint=outside.checkpoint,
    )
    federation = Federation(engine, store, blobs, signing_key, outside.clock.now)
    return Hub(store, blobs, engine, federation)


# ---- init -----------------------------------------------------------------------------------


def init(directory: Path, config: HubConfig) -> None:
    """Make a hub in `directory`; raise Conflict when there is one. Blocks.

    Leaves DIR/secrets/operator.token (0600), the API token of the first operator.
    """
    layout, outside = Directory(directory), Outside(make_log(sys.stderr), LoopClock())
    settings.write(directory, config)
    Access.create(
        layout.secrets,
        certificate_hosts(config),
        name=config.name,
        at=outside.clock.now(),
        random_bytes=outside.random_bytes,
    )
    with at_rest(directory) as (_, access):
        token = asyncio.run(access.make_token("operator", "operator", OPERATOR_DAYS))
    write_secret(layout.operator_token, f"{token.secret}\n".encode())


@contextmanager
def at_rest(directory: Path) -> Iterator[tuple[Store, Access]]:
    """Open store and identities of a hub that does not run; Conflict while it does."""
    layout, config = Directory(directory), settings.load(directory)
    outside = Outside(make_log(sys.stderr, config.log_level), LoopClock())
    with _lock(layout):
        store = Store.open(settings.database_url(directory, config))
        try:
            port = settings.parse_listen(config.node_listen, "node_listen")[1]
            yield store, _access(layout, config, store, port, outside)
        finally:
            store.close()


def certificate_hosts(config: HubConfig) -> tuple[str, ...]:
    """Return the names the hub's certificate is for: those configured, and this machine's."""
    listen = [
        settings.parse_listen(text, "listen")[0]
        for text in (config.people_listen, config.node_listen)
    ]
    named = (*config.hosts, *(h for h in listen if h not in _ANY), *_LOCAL)
    return tuple(dict.fromkeys(named))


def _access(
    layout: Directory, config: HubConfig, store: Store, port: int, outside: Outside
) -> Access:
    return Access.load(
        layout.secrets,
        store,
        url=_url(config.hosts[0], port),
        hosts=certificate_hosts(config),
        now=outside.clock.now,
        random_bytes=outside.random_bytes,
    )


# ---- serve ----------------------------------------------------------------------------------


def serve(directory: Path) -> None:
    """Run the hub until SIGTERM or SIGINT; prints its addresses once it is ready."""

    def say(addresses: Addresses) -> None:
        sys.stdout.write(f"people {addresses.people}\nnodes  {addresses.nodes}\n")
        sys.stdout.flush()

    asyncio.run(_until_signal(directory, say))


async def _until_signal(directory: Path, ready: Callable[[Addresses], None]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(directory) as addresses:
        ready(addresses)
        await stop.wait()


@asynccontextmanager
async def running(directory: Path, outside: Outside | None = None) -> AsyncIterator[Addresses]:
    """Run the hub inside this block: ready when it is entered, ended when it is left."""
    layout, config = Directory(directory), settings.load(directory)
    if outside is None:
        outside = Outside(make_log(sys.stderr, config.log_level), LoopClock())
    log = outside.log
    async with AsyncExitStack() as stack:
        stack.enter_context(_lock(layout))
        stack.enter_context(_library_messages(log))
        serving = await stack.enter_async_context(_serving(layout, config, outside))
        stack.enter_context(_announced(layout, serving))
        log.info("hub ready", people=serving.people, nodes=serving.nodes, version=__version__)
        yield serving
        log.info("hub ends")


@asynccontextmanager
async def _serving(
    layout: Directory, config: HubConfig, outside: Outside
) -> AsyncIterator[Addresses]:
    """Open everything in order; on the way out close it in the reverse order."""
    from consilia.hub.rest.api import make_app  # noqa: PLC0415 - Litestar costs 0.4 s
    from consilia.hub.rest.models import SPOOL  # noqa: PLC0415
    from consilia.hub.rest.server import PeopleServer  # noqa: PLC0415
    from consilia.hub.rest.services import Services  # noqa: PLC0415

    people_host, people_port = settings.parse_listen(config.people_listen, "people_listen")
    node_host, node_port = settings.parse_listen(config.node_listen, "node_listen")
    async with AsyncExitStack() as stack:
        metrics, stopping = Metrics(), asyncio.Event()
        url = settings.database_url(layout.root, config)
        store = await asyncio.to_thread(Store.open, url, committed=metrics.committed)
        stack.push_async_callback(asyncio.to_thread, store.close)
        access = _access(layout, config, store, node_port, outside)
        blobs = DiskBlobs(layout.root / config.blobs)
        stack.callback(blobs.close)
        await asyncio.to_thread(_clear_spools, blobs, SPOOL)
        limits = Limits(
            silence=config.presence_seconds, init_bytes=config.limits.init_frame_bytes
        )
        hub = build(store, blobs, access.signing_key, outside, limits=limits, metrics=metrics)
        stack.push_async_callback(hub.engine.close)
        await hub.engine.recover()

        listener = _listener(config, access, hub, metrics, outside.log)
        node_port = await listener.start(node_host, node_port)
        if settings.parse_listen(config.node_listen, "node_listen")[1] == 0:
            # Join tokens name the port, which the system has only now chosen.
            access = _access(layout, config, store, node_port, outside)
        services = Services(
            config=config,
            store=store,
            access=access,
            blobs=blobs,
            engine=hub.engine,
            metrics=metrics,
            log=outside.log,
            now=outside.clock.now,
            random_bytes=outside.random_bytes,
            stopping=stopping,
            probes=_probes(outside.clock, store, layout.root / config.blobs),
        )
        people = PeopleServer(
            make_app(services), access.people_context(), config.limits.people_connections
        )
        stack.push_async_callback(_end, stopping, hub, listener, people)
        people_port = await people.start(people_host, people_port)
        _watch(metrics, hub, layout.root / config.blobs)
        lag = asyncio.create_task(measure_lag(metrics))
        stack.callback(lag.cancel)
        local = people_host if people_host not in _ANY else "127.0.0.1"
        yield Addresses(
            people=_url(local, people_port),
            nodes=_url(config.hosts[0], node_port),
            pid=os.getpid(),
        )


async def _end(
    stopping: asyncio.Event, hub: Hub, listener: NodeListener, people: "PeopleServer"
) -> None:
    """Stop accepting; let what runs end for PATIENCE seconds."""
    stopping.set()
    hub.engine.presence.wake_all()
    await asyncio.gather(
        listener.close(PATIENCE), people.stop(PATIENCE), return_exceptions=True
    )


def _listener(
    config: HubConfig, access: Access, hub: Hub, metrics: Metrics, log: Log
) -> NodeListener:
    contexts = make_contexts(access.server_chain, access.server_key, access.ca_pem.decode())

    def moved(site: str, way: str, count: int) -> None:
        metrics.moved(way, count)
        hub.federation.moved(site, way, count)

    plane = BlobPlane(contexts.blob, access.identify, hub.federation, log, moved=moved)
    bounds = Bounds(attempts=config.limits.enrol_attempts)
    return NodeListener(contexts, access, hub.federation, plane, log, bounds=bounds)


def _watch(metrics: Metrics, hub: Hub, blobs: Path) -> None:
    presence, counts = hub.engine.presence, hub.store.counts
    metrics.watch("sites_online", "Sites that poll", lambda: len(list(presence.all_online())))
    metrics.watch("disk_free_bytes", "Free where the blobs lie", lambda: _free(blobs))
    metrics.watch("store_writes", "Writes committed since the start", lambda: counts.writes)
    metrics.watch("store_commits", "Commits since the start", lambda: counts.commits)


def _probes(clock: Clock, store: Store, blobs: Path) -> "dict[str, Probe]":
    """Return what readiness asks. Anybody may ask, so each looks at most once a second."""

    async def database() -> str | None:
        await store.write(lambda db: records.bump(db, "probe"))
        return None

    async def disk() -> str | None:
        free = await asyncio.to_thread(_free, blobs)
        return None if free > 2 * RESERVE else f"{free} bytes are free in {blobs}"

    return {"database": _seldom(clock, database), "disk": _seldom(clock, disk)}


def _seldom(clock: Clock, probe: "Probe", every: float = 1.0) -> "Probe":
    """Return `probe`, answering again what it found when that is at most `every` s old."""
    lock = asyncio.Lock()
    last: tuple[float, str | None] | None = None

    async def asked() -> str | None:
        nonlocal last
        async with lock:
            if last is None or clock.now() - last[0] >= every:
                last = (clock.now(), await probe())
            return last[1]

    return asked


def _free(path: Path) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def _clear_spools(blobs: Blobs, prefix: str) -> None:
    """Drop base frames whose upload a crash cut short; people upload them again, whole."""
    for name in blobs.spools():
        if name.startswith(prefix):
            blobs.discard(name)


def _url(host: str, port: int) -> str:
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


# ---- one process per directory --------------------------------------------------------------


@contextmanager
def _lock(layout: Directory) -> Iterator[None]:
    """Hold DIR/run/hub.lock; raise Conflict while another process does."""
    import fcntl  # noqa: PLC0415 - there is none on Windows, where `hub init` still explains

    path = layout.run / "hub.lock"
    try:
        layout.run.mkdir(mode=0o750, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as e:
        raise StorageError(f"{path} cannot be opened: {e.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            raise Conflict(
                f"a process works on the hub in {layout.root} already (pid {pid}): end that "
                "one first, or use another directory"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


@contextmanager
def _announced(layout: Directory, addresses: Addresses) -> Iterator[None]:
    """Keep DIR/run/addresses.json while the block runs."""
    part = layout.addresses.with_suffix(".new")
    part.write_bytes(msgspec.json.encode(addresses))
    part.replace(layout.addresses)
    try:
        yield
    finally:
        layout.addresses.unlink(missing_ok=True)


@contextmanager
def _library_messages(log: Log) -> Iterator[None]:
    """Turn what libraries log through `logging` into lines of our log."""
    handler, root = ForwardToLog(log), logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
