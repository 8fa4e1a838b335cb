"""A site helps to open one sum only of what a plan makes of a model."""

import asyncio
from pathlib import Path

import msgspec

from consilia.core.round import TimedOut
from consilia.core.weights import Weights
from consilia.errors import Refused
from consilia.wire.v1 import Dp
from maskedkit import CONFIG, SECURE, SITES, MaskedHub, lab, usual
from nodekit import SITE, base_model, until

LOST = next(site for site in SITES if site != SITE)


async def whole(hub: MaskedHub, base: Weights, job: str) -> None:
    """Run a job's round with all sites."""
    before = len(hub.closes)
    hub.begin(base, job=job)
    await until(lambda: len(hub.closes) == before + 1)
    assert len(hub.closes[-1].updates) == len(SITES)


async def lacking(hub: MaskedHub, base: Weights, job: str) -> None:
    """Run a job's round as far as it goes when one site sends no update."""
    hub.silent = {LOST: "update"}
    hub.begin(base, job=job)
    await until(lambda: hub.state.step == "update" and hub.state.quorum_at is not None)
    hub.feed(TimedOut(1.0 + CONFIG.grace, 1))


async def test_a_second_sum_of_other_survivors_is_refused(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def note(_: object, about: dict[str, object]) -> None:
        error = about["exception"]
        assert isinstance(error, Refused), error
        refused.append(error)

    asyncio.get_running_loop().set_exception_handler(note)
    async with lab(tmp_path) as x:
        x.hub.all_peers(tmp_path)
        await whole(x.hub, base_model(), "job-1")
        await whole(x.hub, base_model(), "job-2")  # the very same sites: nothing new is told
        await lacking(x.hub, base_model(), "job-3")
        await until(lambda: len(refused) == len(SITES) - 1)
        assert all("single sites' updates" in str(error) for error in refused)
        assert len(x.hub.closes) == 2 and x.hub.state.step == "consent"


async def test_another_model_is_another_sum(tmp_path: Path) -> None:
    async with lab(tmp_path) as x:
        x.hub.all_peers(tmp_path)
        await whole(x.hub, base_model(), "job-1")
        await lacking(x.hub, usual(base_model(), SITE), "job-2")
        await until(lambda: len(x.hub.closes) == 2)
        assert len(x.hub.closes[1].updates) == len(SITES) - 1


async def test_with_noise_of_its_own_each_update_is_another_one(tmp_path: Path) -> None:
    async with lab(tmp_path) as x:
        x.hub.privacy = msgspec.structs.replace(SECURE, dp=Dp("record", 1.0, 1.0, 0.1, 1))
        x.hub.all_peers(tmp_path)
        await whole(x.hub, base_model(), "job-1")
        await lacking(x.hub, base_model(), "job-2")
        await until(lambda: len(x.hub.closes) == 2)
