"""The node as its people start it: join a hub, serve, ask how it is.

DIR/node.yaml     what the administrator decides (node.config)
DIR/secrets/      keys and certificates (node.identity)
DIR/node.sqlite   decisions, audit trail, outbox's register (node.store)
DIR/audit/        closed parts of that trail (node.segments)
DIR/studykeys/    a key for each study's bytes at rest (node.studykeys)
DIR/cache/        models by digest      DIR/outbox/  answers until acknowledged
DIR/pool/         uploads to a study's data centre, or the copies that are there (node.pool)
DIR/opening/      sums of encrypted rounds, while they are opened (node.opening)
DIR/log/          agent.log, and what plans printed    DIR/control.sock  for commands
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from consilia.core import ids
from consilia.errors import Conflict, ConsiliaError, StorageError
from consilia.files import write_whole
from consilia.node import config, control, hubline, identity, logs, policyhistory, runner
from consilia.node.agent import Agent
from consilia.node.cache import Cache
from consilia.node.config import NodeConfig, Sandbox
from consilia.node.identity import Identity
from consilia.node.line import with_password
from consilia.node.link import enrol
from consilia.node.pool import keeping
from consilia.node.release import Release
from consilia.node.store import Store
from consilia.wire.token import decode_token
from consilia.wire.v1 import Enrolled, Renew, Scalar

PASSWORD = f"{identity.FOLDER}/proxy.password"  # the proxy's, within the node's directory
RENEW_RETRY = 3600.0  # seconds between attempts to renew the certificate

_LOG = logging.getLogger("consilia.node")

# What researchers may vary at a freshly joined site; it stands in node.yaml, to be changed.
RANGES: Mapping[str, list[Scalar]] = {
    "batch_size": [1, 65536],
    "epochs": [1, 100],
    "learning_rate": [0.0, 1.0],
    "lr": [0.0, 1.0],
    "momentum": [0.0, 1.0],
    "proximal_mu": [0.0, 10.0],
    "weight_decay": [0.0, 1.0],
}
_COMMENTS = """\
# This site's node. Every key is explained in docs/reference/node-config.md.
# `arguments`: the range in which a researcher may set an argument of an approved plan without
# a new approval; a name without a range keeps the value that the plan's source gives it.
"""


def join(
    token: str,
    directory: Path,
    proxy: str | None = None,
    sandbox: Sandbox = "required",
    proxy_password: str = "",
) -> NodeConfig:
    """Make this site's keys in `directory`, have them certified, and write node.yaml.

    `proxy_password` is kept in a file of its own among the node's secrets.

    The join token works once, so everything that can fail here is tried before it is sent.
    Raises Conflict when the directory is a node's already.
    """
    asked = decode_token(token)
    settings = NodeConfig(
        ids.name(asked.site, "site"),
        asked.url,
        proxy or "",
        PASSWORD if proxy_password else "",
        sandbox,
        arguments={name: list(values) for name, values in RANGES.items()},
    )
    config.check(settings, config.FILE)
    way = with_password(settings.proxy, proxy_password) if proxy_password else settings.proxy
    identity.refuse_overwrite(directory)
    if (directory / config.FILE).exists():
        raise Conflict(f"{directory / config.FILE} exists: this directory is a node's already")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as e:
        raise StorageError(f"{directory} cannot be made: {e.strerror}") from None
    store = Store.open(directory)
    try:
        keys = identity.new_keys()
        request = identity.request(keys.tls, settings.site)
        enrolled = asyncio.run(enrol(asked, request, keys.signing_public, proxy=way))
        identity.create(directory, settings.site, keys, enrolled, asked.ca)
        if proxy_password:
            write_whole(directory / PASSWORD, f"{proxy_password}\n".encode())
        config.save(directory, settings, _COMMENTS)
        with store.write() as tx:
            tx.audit(time.time(), "agent", "node.join", settings.site, "joined", asked.url)
    finally:
        store.close()
    return settings


def serve(directory: Path, ready: Callable[[Agent], None] | None = None) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises Conflict when one runs here already.

    `ready` is called on the event loop once commands are answered.
    """
    settings = config.load(directory)
    with _alone(directory):
        logs.start(directory / "log", settings.log_level, settings.log_bytes)
        try:
            asyncio.run(_serve(directory, settings, ready))
        finally:
            logs.stop()


async def _serve(
    directory: Path, settings: NodeConfig, ready: Callable[[Agent], None] | None
) -> None:
    """Put the parts together and run them until a signal comes."""
    me = identity.load(directory, settings.site)
    launcher = runner.choose_launcher(settings.sandbox)
    store = Store.open(directory)
    policyhistory.started(store, directory, time.time())
    rng = random.Random(int.from_bytes(os.urandom(8), "big"))  # noqa: S311 - jitter only
    link = hubline.connect(directory, settings, me.secrets, rng.random)
    running = runner.Runner(
        launcher, directory, settings.limits, site=settings.site, cuda=settings.cuda
    )
    agent = Agent(
        config=settings,
        store=store,
        release=Release(
            store, directory / "outbox", settings, me.signing, time.time, os.urandom
        ),
        cache=Cache(directory / "cache", settings.cache_bytes),
        link=link,
        runner=running,
        now=time.time,
        random_bytes=os.urandom,
    )
    if work := asyncio.current_task():
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    try:
        async with control.listening(directory, lambda asked: _control(agent, running, asked)):
            _LOG.info("node of site %s serves; hub %s", settings.site, settings.hub)
            if settings.sandbox == "off":
                _LOG.warning("the sandbox is OFF: approved code can read what this user can")
            if ready is not None:
                ready(agent)
            pooling = keeping.keep(store, me, link, agent.changed, time.time, asyncio.sleep)
            beside = [
                asyncio.create_task(keep_certified(me, link, time.time, asyncio.sleep)),
                asyncio.create_task(pooling),
            ]
            try:
                await agent.run()
            finally:
                for task in beside:
                    task.cancel()
    except asyncio.CancelledError:
        _LOG.info("node of site %s has ended", settings.site)
    finally:
        store.close()


class Renews(Protocol):
    """What a certificate is renewed over (node.link)."""

    async def renew(self, renew: Renew) -> Enrolled:
        """Have the hub certify the node's key anew."""

    def renewed(self) -> None:
        """Show the new certificate from the next connection on."""


async def keep_certified(
    me: Identity,
    link: Renews,
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> None:
    """Renew the certificate at two thirds of its life; try again hourly while that fails.

    Never returns; `now` gives Unix seconds.
    """
    while True:
        due = me.renew_at - now()
        if due > 0:
            await sleep(min(due, RENEW_RETRY))
            continue
        try:
            enrolled = await link.renew(Renew(identity.renewal_request(me)))
            me = await asyncio.to_thread(identity.renewed, me, enrolled)
            link.renewed()
            _LOG.info("the certificate was renewed")
        except (ConsiliaError, OSError) as e:
            _LOG.warning("the certificate could not be renewed: %s", e)
            await sleep(RENEW_RETRY)


def _control(
    agent: Agent, running: runner.Runner, asked: Mapping[str, object]
) -> Mapping[str, object]:
    """Do what a command asks of the running agent."""
    do = asked.get("do")
    if do == "changed":
        agent.changed()
        return {"ok": True}
    if do == "status":
        found: dict[str, object] = msgspec.to_builtins(agent.status())
        return {**found, "workers": running.processes()}
    if do == "stop-job":
        return {"stopped": agent.stop_job(str(asked.get("job", "")))}
    if do == "empty-cache":
        return {"bytes": agent.empty_cache()}
    return {"error": f"unknown request {str(do)[:40]!r}"}


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: two agents would answer each lease twice."""
    try:
        fd = os.open(directory / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StorageError(f"{directory / 'agent.lock'}: {e.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"an agent runs in {directory} already") from None
        yield
    finally:
        os.close(fd)
