"""A job's events as a stream: nothing is missed, nothing is sent to whom it is not for."""

import asyncio
import threading
from collections.abc import Iterator

import httpx
import msgspec
import pytest
from restkit import CONFIG, RestHub, plan, running_hub, study

from consilia.hub import atrest
from consilia.hub.rest.streams import Shared
from consilia.sdk.client import Client
from consilia.wire.people import EventView, Experiment


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestHub]:
    directory = tmp_path_factory.mktemp("live") / "hub"
    atrest.init(directory, CONFIG)
    with running_hub(directory) as hub:
        hub.add("ada", "researcher")
        hub.add("bob", "researcher")
        yield hub


@pytest.fixture(scope="module")
def ada(hub: RestHub) -> Iterator[Client]:
    with hub.client("ada") as client:
        yield client


def waiting_job(ada: Client, name: str) -> str:
    """A job that waits for its sites: it has one event."""
    ada.create_study(study(name))
    ada.submit_study(name)
    digest = ada.submit_plan(name, plan(description=name)).digest
    return ada.start(Experiment(study=name, plan=digest, rounds=1)).id


def events(answer: httpx.Response) -> Iterator[tuple[str, str, bytes]]:
    """Yield (id, type, data) of a stream; comments are passed over."""
    id = kind = ""
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            id = value
        elif name == "event":
            kind = value
        elif name == "data":
            yield id, kind, value.encode()


def test_a_stream_tells_everything_until_the_end(hub: RestHub, ada: Client) -> None:
    job = waiting_job(ada, "whole")
    with (
        hub.http("ada") as client,
        client.stream("GET", f"/api/v1/jobs/{job}/stream") as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        news = events(answer)
        first = msgspec.json.decode(next(news)[2], type=EventView)
        assert first == ada.events(job)[0]
        ada.change_arguments(job, {"lr": 0.5})
        assert "lr" in next(news)[2].decode()
        ada.stop(job)
        rest = list(news)
    assert rest[-1][1:] == ("end", b'{"state":"stopped"}')
    assert [int(id) for id, _, _ in rest[:-1]] == [e.seq for e in ada.events(job)][2:]


def test_who_comes_back_misses_nothing(hub: RestHub, ada: Client) -> None:
    job = waiting_job(ada, "again")
    ada.change_arguments(job, {"lr": 0.5})
    ada.stop(job)
    all_of_it = [e.seq for e in ada.events(job)]
    with hub.http("ada") as client:
        path, header = f"/api/v1/jobs/{job}/stream", {"Last-Event-ID": str(all_of_it[0])}
        with client.stream("GET", path, headers=header) as answer:
            assert [int(id) for id, kind, _ in events(answer) if kind != "end"] == all_of_it[1:]
        for wrong in ("x", "-1", "9" * 30):
            assert client.get(path, headers={"Last-Event-ID": wrong}).status_code == 400
        assert client.get(path, params={"after": -1}).status_code == 400


def test_nobody_else_gets_it(hub: RestHub, ada: Client) -> None:
    job = waiting_job(ada, "private")
    with hub.http("bob") as client:
        assert client.get(f"/api/v1/jobs/{job}/stream").status_code == 404


def test_a_revoked_token_ends_its_stream(hub: RestHub, ada: Client) -> None:
    job = waiting_job(ada, "revoked")
    with hub.client("operator") as operator:
        made = operator.new_token("ada", "researcher")
        hub.tokens["ada-2"] = made.secret or ""
        with (
            hub.http("ada-2") as client,
            client.stream("GET", f"/api/v1/jobs/{job}/stream", timeout=120) as answer,
        ):
            news = events(answer)
            next(news)
            operator.revoke_token(made.id)
            ada.change_arguments(job, {"lr": 0.25})  # wakes the stream, which looks again
            seen = [data for _, _, data in news]
    assert len(seen) <= 1, "at most what was on its way"
    assert "0.25" not in repr(seen), "what happened since is not told, though it was waited for"


def test_fifty_watch_one_job(hub: RestHub, ada: Client) -> None:
    job = waiting_job(ada, "crowd")
    got: list[list[str]] = []
    ready = threading.Barrier(51)

    def watch() -> None:
        path = f"/api/v1/jobs/{job}/stream"
        with hub.http("ada") as client, client.stream("GET", path, timeout=120) as answer:
            news = events(answer)
            seen = [next(news)[0]]
            ready.wait(120)
            got.append(seen + [id for id, kind, _ in news if kind != "end"])

    threads = [threading.Thread(target=watch) for _ in range(50)]
    for thread in threads:
        thread.start()
    ready.wait(120)
    ada.change_arguments(job, {"lr": 0.5})
    ada.stop(job)
    for thread in threads:
        thread.join(30)
    whole = [str(e.seq) for e in ada.events(job)]
    assert got == [whole] * 50


async def test_equal_work_is_done_once() -> None:
    shared: Shared[str, int] = Shared()
    calls: list[str] = []
    gate = asyncio.Event()

    async def make() -> int:
        calls.append("once")
        await gate.wait()
        return 7

    waiters = [asyncio.create_task(shared.get("a", make)) for _ in range(5)]
    await asyncio.sleep(0)
    waiters[0].cancel()  # who began it leaves: the others still get it
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*waiters[1:]) == [7] * 4
    assert calls == ["once"]

    async def fail() -> int:
        raise ValueError("no")

    for _ in range(2):  # a failure is not kept
        with pytest.raises(ValueError, match="no"):
            await shared.get("a", fail)


def test_no_stream_ended_badly(hub: RestHub) -> None:
    assert '"stream ended"' not in hub.log.getvalue()
