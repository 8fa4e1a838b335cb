"""Which of two hubs works: one holds the lease, and who has lost it writes nothing any more."""

import asyncio
import time
from pathlib import Path

import pytest

from consilia.errors import ConfigError, StorageError
from consilia.hub import config as settings
from consilia.hub import records
from consilia.hub.config import S3, HubConfig, Replica
from consilia.hub.relay import Relay
from consilia.hub.replica import Leases, Place, fence
from consilia.hub.store import Store
from pgkit import Postgres


def leases(url: str, name: str, seconds: float = 30.0) -> Leases:
    return Leases(url, Place(name, f"{name}:1", f"{name}:2"), seconds)


def test_one_of_two_holds_the_lease(postgres: Postgres) -> None:
    url = postgres.fresh()
    Store.open(url).close()
    one, two = leases(url, "one"), leases(url, "two")
    try:
        assert (one.take(), two.take()) == (1, None)
        assert two.holder() == ("one:1", "one:2")
        assert one.renew(1) and not two.renew(2)
        one.end(1)
        assert two.holder() is None
        assert (two.take(), one.take()) == (2, None), "a new number for each holder"
        assert not one.renew(1), "an older number is never renewed"
        two.end(1)
        assert two.renew(2), "nor can it end the lease of a newer one"
    finally:
        one.close()
        two.close()


def test_a_hub_that_wakes_up_late_writes_nothing(postgres: Postgres) -> None:
    url = postgres.fresh()
    Store.open(url).close()
    one, two = leases(url, "one", 0.1), leases(url, "two")
    number = one.take()
    assert number is not None
    store = Store.open(url, fence=fence(number))
    try:
        asyncio.run(store.write(lambda db: records.bump(db, "probe")))
        time.sleep(0.2)  # it sleeps through its lease
        asyncio.run(store.write(lambda db: records.bump(db, "probe")))  # nobody else came
        assert two.take() == 2
        with pytest.raises(StorageError, match="lease 1 was taken over"):
            asyncio.run(store.write(lambda db: records.bump(db, "probe")))
        assert store.read_now(lambda db: store.generation("probe")) == 2
    finally:
        store.close()
        one.close()
        two.close()


def test_replicas_need_one_database_and_one_bucket(tmp_path: Path) -> None:
    mine = Replica("one", "10.0.0.1:8443", "10.0.0.1:8444")
    there = "postgresql://hub@db/hub"
    with pytest.raises(ConfigError, match=r"found database: sqlite and no s3"):
        settings.check(HubConfig(replica=mine))
    with pytest.raises(ConfigError, match=r"found database: postgresql and no s3"):
        settings.check(HubConfig(replica=mine, database=there))
    good = HubConfig(replica=mine, database=there, s3=S3("frames"))
    assert settings.check(good) == good
    with pytest.raises(ConfigError, match=r"replica.people"):
        settings.check(HubConfig(replica=Replica("one", "10.0.0.1", "10.0.0.1:8444")))


def test_a_relay_passes_on_and_hangs_up() -> None:
    async def play() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                writer.write(data)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        target: list[tuple[str, int] | None] = [None]
        relay = Relay(lambda: target[0])
        port = await relay.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)  # no hub works
        writer.close()
        target[0] = server.sockets[0].getsockname()[:2]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = bytes(range(256)) * 4000
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.write_eof()
        assert await reader.read() == b"", "the end is passed on, too"
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await relay.close()  # its hub works now: everybody calls again
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        server.close()

    asyncio.run(play())
