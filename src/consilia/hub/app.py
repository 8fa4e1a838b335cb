"""The hub as one process: what it is made of, how it starts, serves and ends.

    serve(directory)           until SIGTERM or SIGINT, then exit within two seconds
    build(...)                 the part that has no transport: `serve` and the simulator use it

Two listeners share one event loop: nodes (hub.listener, mutual TLS) and people (hub.rest on
uvicorn, TLS). One process per directory, held by a lock. Once both listeners are up, their
addresses stand in DIR/run/addresses.json; the file is gone when the hub is.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop
from sqlalchemy import Connection

from consilia import __version__
from consilia.core.round import JobState
from consilia.errors import ConfigError, Conflict
from consilia.hub import config as settings
from consilia.hub import probes, replica
from consilia.hub.access import Access
from consilia.hub.atrest import ANY, alone, certificate_hosts, open_access, url
from consilia.hub.blobplane import BlobPlane
from consilia.hub.blobs import Blobs, DiskBlobs
from consilia.hub.clock import Clock, LoopClock
from consilia.hub.config import Directory, HubConfig
from consilia.hub.driver import Limits
from consilia.hub.engine import Engine
from consilia.hub.federation import Federation
from consilia.hub.housekeeping import ServerCertificate, keep_house
from consilia.hub.listener import Bounds, Contexts, NodeListener, make_contexts
from consilia.hub.pool.ending import Ending
from consilia.hub.pool.relay import PoolRelay
from consilia.hub.probes import Probe, free_bytes
from consilia.hub.retention import EVERY, Collector
from consilia.hub.store import Store
from consilia.hub.telemetry import ForwardToLog, Log, Metrics, make_log, measure_lag

if TYPE_CHECKING:
    from argon2 import PasswordHasher

    from consilia.web.server import PeopleServer

PATIENCE = 1.0  # seconds that running requests are given when the hub ends
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
    every: float = EVERY  # seconds between two rounds of housekeeping
    hasher: "PasswordHasher | None" = None  # of people's passwords; None: as strong as they are


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
    relay: PoolRelay | None = None,
) -> Hub:
    """Connect engine and federation; then await `engine.recover()`.

    `signing_key(site)` is a site's registered Ed25519 key, or raises AuthError. `relay` keeps
    sealed uploads for studies' data centres.
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
    federation = Federation(engine, store, blobs, signing_key, outside.clock.now, relay)
    return Hub(store, blobs, engine, federation)


# ---- serve ----------------------------------------------------------------------------------


def serve(directory: Path) -> None:
    """Run the hub until SIGTERM or SIGINT; prints its addresses once it is ready."""

    def say(addresses: Addresses) -> None:
        sys.stdout.write(f"people {addresses.people}\nnodes  {addresses.nodes}\n")
        sys.stdout.flush()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_signal(directory, say))


async def _until_signal(directory: Path, ready: Callable[[Addresses], None]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    lost, served = asyncio.Event(), list[Addresses]()

    async def run() -> None:
        async with running(directory, lost=lost.set) as addresses:
            served.append(addresses)
            ready(addresses)
            ends = [asyncio.create_task(event.wait()) for event in (stop, lost)]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in ends:
                task.cancel()

    # A hub that waits for its turn is ended by a signal as well.
    work, asked = asyncio.create_task(run()), asyncio.create_task(stop.wait())
    await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
    if not work.done() and not served:
        work.cancel()
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    if lost.is_set():
        raise Conflict(
            "another replica has taken this hub's work over; started again, it waits its turn"
        )


@asynccontextmanager
async def running(
    directory: Path,
    outside: Outside | None = None,
    lost: Callable[[], None] = lambda: None,
) -> AsyncIterator[Addresses]:
    """Run the hub inside this block: ready when it is entered, ended when it is left.

    `lost()` is called when another replica has taken its work over: the block is to be left.
    """
    layout, config = Directory(directory), settings.load(directory)
    if outside is None:
        outside = Outside(make_log(sys.stderr, config.log_level), LoopClock())
    log = outside.log
    async with AsyncExitStack() as stack:
        stack.enter_context(alone(layout))
        stack.enter_context(_library_messages(log))
        fence: Callable[[Connection], None] = replica.unfenced
        if config.replica is not None:
            turn = _turn(layout, config, config.replica, lost, log)
            config, fence = await stack.enter_async_context(turn)
        serving = await stack.enter_async_context(_serving(layout, config, outside, fence))
        stack.enter_context(_announced(layout, serving))
        log.info("hub ready", people=serving.people, nodes=serving.nodes, version=__version__)
        yield serving
        log.info("hub ends")


@asynccontextmanager
async def _turn(
    layout: Directory,
    config: HubConfig,
    mine: settings.Replica,
    lost: Callable[[], None],
    log: Log,
) -> AsyncIterator[tuple[HubConfig, Callable[[Connection], None]]]:
    """Enter when it is this hub's turn to work: its settings, and the fence of its store."""
    where = settings.database_url(layout.root, config)
    store = await asyncio.to_thread(Store.open, where)  # its tables are there from now on
    await asyncio.to_thread(store.close)
    listen = replica.Listening(
        settings.parse_listen(config.people_listen, "people_listen"),
        settings.parse_listen(config.node_listen, "node_listen"),
    )

    def waiting(at: replica.Listening) -> AbstractContextManager[None]:
        return _announced(layout, _addresses(config, at.people[1], at.nodes[1]))

    place = replica.Place(mine.name, mine.people, mine.nodes)
    leases = replica.Leases(where, place, mine.lease_seconds)
    async with replica.turn(leases, listen, waiting, lost, log) as (number, at):
        people, nodes = (settings.listen_text(*one) for one in (at.people, at.nodes))
        yield (
            msgspec.structs.replace(config, people_listen=people, node_listen=nodes),
            replica.fence(number),
        )


@asynccontextmanager
async def _serving(
    layout: Directory,
    config: HubConfig,
    outside: Outside,
    fence: Callable[[Connection], None],
) -> AsyncIterator[Addresses]:
    """Open everything in order; on the way out close it in the reverse order."""
    from consilia.hub.rest import start  # noqa: PLC0415 - Litestar costs 0.4 s

    people_host, people_port = settings.parse_listen(config.people_listen, "people_listen")
    async with AsyncExitStack() as stack:
        metrics, relay = Metrics(), PoolRelay(layout.root / "pool")
        store, blobs = await _opened(stack, layout, config, metrics, fence)
        await asyncio.to_thread(start.clear_spools, blobs)
        access = _access(layout, config, store, outside)
        limits = Limits(
            silence=config.presence_seconds, init_bytes=config.limits.init_frame_bytes
        )
        parts = (store, blobs, access.signing_key, outside)
        hub = build(*parts, limits=limits, metrics=metrics, relay=relay)
        stack.push_async_callback(hub.engine.close)
        await hub.engine.recover()

        contexts = make_contexts(access.server_chain, access.server_key, access.ca_pem.decode())
        listener = _listener(config, contexts, access, hub, metrics, outside.log)
        node_port = await listener.start(
            *settings.parse_listen(config.node_listen, "node_listen")
        )
        if settings.parse_listen(config.node_listen, "node_listen")[1] == 0:
            # Join tokens name the port, which the system has only now chosen.
            access = _access(layout, config, store, outside, node_port)
        reached = [people_port]  # the system may choose another
        services = start.make_services(
            *(config, layout.root, hub, access, metrics, outside),
            origin=lambda: url(config.hosts[0], reached[-1]),
            probes=_probes(layout, config, store, outside.clock, node_port),
        )
        await store.write(services.people.factors.seal_all)  # of hubs before they were sealed
        tls = access.people_context()
        people = start.make_server(services, tls)
        stack.push_async_callback(_end, services.stopping, hub, listener, people)
        reached.append(await people.start(people_host, people_port))
        _watch(metrics, hub, layout.root / config.blobs)
        server = ServerCertificate(
            access,
            certificate_hosts(config),
            (tls, contexts.enrol, contexts.control, contexts.blob),
        )
        house = _house(config, hub, relay, server, outside, services.judging)
        for work in (measure_lag(metrics), house):
            stack.callback(asyncio.create_task(work).cancel)
        yield _addresses(config, reached[-1], node_port)


async def _opened(
    stack: AsyncExitStack,
    layout: Directory,
    config: HubConfig,
    metrics: Metrics,
    fence: Callable[[Connection], None],
) -> tuple[Store, Blobs]:
    """Open what a hub keeps; `stack` closes it."""
    where = settings.database_url(layout.root, config)
    store = await asyncio.to_thread(Store.open, where, committed=metrics.committed, fence=fence)
    stack.push_async_callback(asyncio.to_thread, store.close)
    blobs = await asyncio.to_thread(open_blobs, layout.root, config)
    stack.callback(blobs.close)
    return store, blobs


def _access(
    layout: Directory, config: HubConfig, store: Store, outside: Outside, port: int = 0
) -> Access:
    """Return who may come in; `port` is where nodes do, 0 for the one of the settings."""
    port = port or settings.parse_listen(config.node_listen, "node_listen")[1]
    return open_access(layout, config, store, port, outside.clock, outside.random_bytes)


def _house(  # noqa: PLR0913, PLR0917 - the parts it connects
    config: HubConfig,
    hub: Hub,
    relay: PoolRelay,
    server: ServerCertificate,
    outside: Outside,
    lock: asyncio.Lock,
) -> Coroutine[Any, Any, None]:
    """Return the housekeeping, for as long as the hub runs."""
    collector = Collector(
        hub.store,
        hub.blobs,
        config.retention,
        outside.clock.now,
        live=lambda id: _state(hub, id),
        lock=lock,
    )
    uploads = Ending(hub.store, relay, outside.clock.now)
    return keep_house(collector, uploads, server, outside.log, outside.every)


def _addresses(config: HubConfig, people_port: int, node_port: int) -> Addresses:
    host = settings.parse_listen(config.people_listen, "people_listen")[0]
    return Addresses(
        people=url(host if host not in ANY else "127.0.0.1", people_port),
        nodes=url(config.hosts[0], node_port),
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


def _listener(  # noqa: PLR0913, PLR0917 - the parts it connects
    config: HubConfig,
    contexts: Contexts,
    access: Access,
    hub: Hub,
    metrics: Metrics,
    log: Log,
) -> NodeListener:

    def moved(site: str, way: str, count: int) -> None:
        metrics.moved(way, count)
        hub.federation.moved(site, way, count)

    plane = BlobPlane(contexts.blob, access.identify, hub.federation, log, moved=moved)
    bounds = Bounds(attempts=config.limits.enrol_attempts)
    return NodeListener(
        contexts, access, hub.federation, plane, log, bounds=bounds, head=access.audit_head
    )


def _watch(metrics: Metrics, hub: Hub, blobs: Path) -> None:
    presence, counts = hub.engine.presence, hub.store.counts
    metrics.watch("sites_online", "Sites that poll", lambda: len(list(presence.all_online())))
    metrics.watch("disk_free_bytes", "Free where the blobs lie", lambda: free_bytes(blobs))
    metrics.watch("store_writes", "Writes committed since the start", lambda: counts.writes)
    metrics.watch("store_commits", "Commits since the start", lambda: counts.commits)


def _probes(
    layout: Directory, config: HubConfig, store: Store, clock: Clock, port: int
) -> dict[str, Probe]:
    """Return what readiness asks, by the part's name; `port` is the node listener's."""
    host = settings.parse_listen(config.node_listen, "node_listen")[0]
    ca = (layout.secrets / "ca.pem").read_text("ascii")
    here = "127.0.0.1" if host in ANY else host
    asked = {
        "database": probes.database(store),
        "disk": probes.disk(layout.root / config.blobs),
        "nodes": probes.node_listener(here, port, config.hosts[0], ca),
    }
    return {name: probes.seldom(clock, probe) for name, probe in asked.items()}


def _state(hub: Hub, id: str) -> JobState | None:
    """Return the state of a job in memory."""
    job = hub.engine.job(id)
    return None if job is None else job.state


def open_blobs(directory: Path, config: HubConfig, random_bytes: Random = os.urandom) -> Blobs:
    """Return where frames are kept; a bucket that does not answer is a StorageError now."""
    from consilia.hub import sealed  # noqa: PLC0415 - AES is wanted by few

    if not config.frames_key:
        return stored_blobs(directory, config, ())
    keys = sealed.load_keys(directory / config.frames_key)
    return sealed.SealedBlobs(stored_blobs(directory, config, keys.all), keys, random_bytes)


def stored_blobs(directory: Path, config: HubConfig, keys: Sequence[bytes]) -> Blobs:
    """Return the frames as they lie there, sealed or not; `keys` open what a bucket gives."""
    root = directory / config.blobs
    if config.s3 is None:
        return DiskBlobs(root)
    from consilia.hub.s3blobs import S3Blobs, bucket, check_frame  # noqa: PLC0415 - optional
    from consilia.hub.sealed import checked  # noqa: PLC0415 - as above

    s3 = config.s3
    store = bucket(
        s3.bucket,
        endpoint=s3.endpoint,
        region=s3.region,
        prefix=s3.prefix,
        key=settings.s3_key(directory, s3),
    )
    blobs = S3Blobs(
        store,
        root,
        cache_bytes=s3.cache_bytes,
        check=checked(check_frame, keys),
        share=config.replica is not None,
    )
    blobs.blobs()
    return blobs


def rotate_key(directory: Path) -> int:
    """Seal every frame of a hub that does not run under a new key; return how many."""
    from consilia.hub import sealed  # noqa: PLC0415 - as above

    layout, config = Directory(directory), settings.load(directory)
    if not config.frames_key:
        raise ConfigError(
            f"{layout.config}: frames_key is not set; name the file for the keys first, such "
            "as frames_key: secrets/frames.key"
        )
    path = directory / config.frames_key
    with alone(layout):
        known = sealed.load_keys(path).all if path.exists() else ()
        blobs = stored_blobs(directory, config, known)
        try:
            return sealed.rotate(blobs, path, os.urandom)
        finally:
            blobs.close()


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
