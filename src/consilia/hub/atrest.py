"""A hub that does not run: how one is made, and how its database is worked on.

    init(directory, config)    settings, keys, database, the first operator's token
    at_rest(directory)         its store and identities, for `hub invite` and the like
    alone(layout)              one process per directory, held by a lock

A person waits for these commands, so nothing is imported here that only serving needs: no
web framework, no metrics, no numpy.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection

from consilia.core import ids
from consilia.errors import Conflict, StorageError
from consilia.files import write_whole
from consilia.hub import audit
from consilia.hub import config as settings
from consilia.hub.access import Access
from consilia.hub.clock import Clock, LoopClock
from consilia.hub.config import Directory, HubConfig
from consilia.hub.credentials import hashed
from consilia.hub.keyfiles import Random
from consilia.hub.people import doors
from consilia.hub.store import Store
from consilia.wire.accounts import InvitationLink

FIRST_HOURS = 72.0  # that the first operator's link works
OPERATOR_DAYS = 366  # that the first token is valid
ANY = ("", "0.0.0.0", "::")  # noqa: S104 - recognised, not bound
_LOCAL = ("localhost", "127.0.0.1")


def init(directory: Path, config: HubConfig) -> InvitationLink:
    """Make a hub in `directory`; raise Conflict when there is one. Blocks.

    Leaves DIR/secrets/operator.token (0600), the API token of the hub's own machine, and
    returns the one-time link with which the first operator makes their account.
    """
    layout = Directory(directory)
    settings.write(directory, config)
    Access.create(
        layout.secrets,
        certificate_hosts(config),
        name=config.name,
        at=LoopClock().now(),
        random_bytes=os.urandom,
    )
    with at_rest(directory) as (store, access):
        token = asyncio.run(access.make_token("operator", "operator", OPERATOR_DAYS))
        link = asyncio.run(_first_operator(config, store))
    write_whole(layout.operator_token, f"{token.secret}\n".encode())
    return link


async def _first_operator(config: HubConfig, store: Store) -> InvitationLink:
    """Invite the first operator; whoever has the link becomes it."""
    at, secret = LoopClock().now(), doors.secret(os.urandom(doors.SECRET_BYTES))
    id, expires = ids.new_id("inv", os.urandom(10)), at + FIRST_HOURS * 3600
    made = doors.Invitation(id, None, ("operator",), None, None, "hub", expires)

    def write(db: Connection) -> None:
        doors.add_invitation(db, made, hashed(secret), at)
        audit.append(db, at, "hub", "account.invite", id, detail="operator, the first")

    await store.write(write)
    origin = url(config.hosts[0], settings.parse_listen(config.people_listen, "listen")[1])
    return InvitationLink(id, f"{origin}/invitation#{secret}", secret, expires)


@contextmanager
def at_rest(directory: Path) -> Iterator[tuple[Store, Access]]:
    """Open store and identities of a hub that does not run; Conflict while it does."""
    layout, config = Directory(directory), settings.load(directory)
    with alone(layout):
        store = Store.open(settings.database_url(directory, config), readers=1)
        try:
            port = settings.parse_listen(config.node_listen, "node_listen")[1]
            yield store, open_access(layout, config, store, port, LoopClock(), os.urandom)
        finally:
            store.close()


def open_access(  # noqa: PLR0913, PLR0917 - clock and randomness are arguments too
    layout: Directory,
    config: HubConfig,
    store: Store,
    port: int,
    clock: Clock,
    random_bytes: Random,
) -> Access:
    """Load the hub's identities; `port` is the node listener's, which join tokens name."""
    return Access.load(
        layout.secrets,
        store,
        url=url(config.hosts[0], port),
        hosts=certificate_hosts(config),
        now=clock.now,
        random_bytes=random_bytes,
    )


def certificate_hosts(config: HubConfig) -> tuple[str, ...]:
    """Return the names the hub's certificate is for: those configured, and this machine's."""
    listen = [
        settings.parse_listen(text, "listen")[0]
        for text in (config.people_listen, config.node_listen)
    ]
    named = (*config.hosts, *(h for h in listen if h not in ANY), *_LOCAL)
    return tuple(dict.fromkeys(named))


def url(host: str, port: int) -> str:
    """Return the HTTPS address of a host name or an IP address."""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


@contextmanager
def alone(layout: Directory) -> Iterator[None]:
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
