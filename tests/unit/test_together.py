"""Requests that are decided together: each gets its own answer, nobody another's."""

import asyncio
from collections.abc import Sequence

from consilia.errors import NotFound, StorageError
from consilia.hub.rest.together import Together


async def test_those_who_come_meanwhile_are_served_at_once() -> None:
    together, turns, gate = Together[int, int](), list[list[int]](), asyncio.Event()

    async def run(asked: Sequence[int]) -> list[int | Exception]:
        turns.append(list(asked))
        await gate.wait()
        return [NotFound(f"no {n}") if n % 3 == 0 else n * 10 for n in asked]

    asking = [asyncio.create_task(together.ask(1, run))]
    await asyncio.sleep(0)
    asking += [asyncio.create_task(together.ask(n, run)) for n in range(2, 7)]
    await asyncio.sleep(0)
    asking[3].cancel()  # who asks for 4 has gone
    gate.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert turns == [[1], [2, 3, 4, 5, 6]]
    assert (found[0], found[1], found[4]) == (10, 20, 50)
    assert str(found[2]) == "no 3" and str(found[5]) == "no 6"
    assert isinstance(found[3], asyncio.CancelledError)
    assert await together.ask(7, run) == 70 and turns[-1] == [7]


async def test_what_fails_fails_for_all_and_for_nobody_after() -> None:
    together, broken = Together[int, int](), [True]

    async def run(asked: Sequence[int]) -> list[int | Exception]:
        await asyncio.sleep(0)
        if broken[0]:
            raise StorageError("the disk is full")
        return list(asked)

    first = [together.ask(n, run) for n in range(3)]
    errors = await asyncio.gather(*first, return_exceptions=True)
    assert {str(e) for e in errors} == {"the disk is full"}
    assert len({id(e) for e in errors}) == 3, "each its own, with its own traceback"
    broken[0] = False
    assert await together.ask(5, run) == 5


async def test_a_hub_that_ends_leaves_nobody_waiting() -> None:
    together, serving = Together[int, int](), list[asyncio.Task[object] | None]()

    async def run(_: Sequence[int]) -> list[int | Exception]:
        serving.append(asyncio.current_task())
        await asyncio.Event().wait()
        return []

    asking = {asyncio.create_task(together.ask(n, run)) for n in range(2)}
    while not serving:
        await asyncio.sleep(0)
    asking.add(asyncio.create_task(together.ask(2, run)))
    await asyncio.sleep(0)
    assert serving[0] is not None
    serving[0].cancel()
    done, late = await asyncio.wait(asking, timeout=30)
    assert not late and all(task.cancelled() for task in done)
