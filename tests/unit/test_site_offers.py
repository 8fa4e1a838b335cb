"""What a site may learn of the other sites of a study, to compare its table with theirs."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubkit import Hub, Node, key_of, open_hub

from consilia.errors import NotFound, WireError
from consilia.hub import federation
from consilia.wire.seal import seal
from consilia.wire.v1 import (
    Advertisement,
    LoadedTwin,
    MockColumn,
    MockTwin,
    OfferedDataset,
    encode,
    study_digest,
)

TWIN = MockTwin((MockColumn("age", "float64", start=0.0, width=10.0, counts=(5, 10)),))


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with open_hub(tmp_path) as made:
        yield made


async def tell(hub: Hub, site: str, *datasets: OfferedDataset) -> None:
    """Let a site that accepted the study say what it has."""
    said = Advertisement("1", datasets, (study_digest(hub.study),))
    sealed = seal("advertisement", site, encode(said), key_of(site))
    await hub.federation.advertise(site, sealed)


async def test_a_site_sees_what_those_offer_that_accepted_the_study(hub: Hub) -> None:
    await tell(hub, "a", OfferedDataset("heart", ("cardio",), 100, {}, TWIN))
    await tell(hub, "b", OfferedDataset("lung", ("pulmo",), 100, {}, TWIN))  # another tag
    await Node(hub, "c").advertise(studies=False)  # has not accepted
    found = await hub.federation.offers("b", hub.study.name)
    assert [(o.site, o.dataset.name, o.dataset.mock) for o in found.offers] == [
        ("a", "heart", TWIN)
    ]


async def test_nobody_else_is_told(hub: Hub) -> None:
    await tell(hub, "a", OfferedDataset("heart", ("cardio",), 100, {}, TWIN))
    for site, study in (("stranger", hub.study.name), ("a", "another")):
        with pytest.raises(NotFound, match="invites site"):
            await hub.federation.offers(site, study)


async def test_twins_that_are_too_many_are_left_out(hub: Hub) -> None:
    await tell(hub, "a", *many(TWIN))
    found = await hub.federation.offers("b", hub.study.name)
    assert all(o.dataset.mock is not None for o in found.offers) and len(found.offers) == 30
    levels = {f"{i:05d}" + "x" * 90: 5 for i in range(1100)}
    large = MockTwin((MockColumn("code", "str", levels=levels),))
    await tell(hub, "a", *many(large))
    found = await hub.federation.offers("b", hub.study.name)
    told = sum(o.dataset.mock is not None for o in found.offers)
    assert len(found.offers) == 30 and 0 < told < 30
    assert len(encode(found)) < federation.MAX_TWINS + 30 * 200


async def test_a_study_hears_of_its_own_loading_plans_only(hub: Hub) -> None:
    loaded = tuple(LoadedTwin(study, TWIN) for study in ("", "another", hub.study.name))
    await tell(hub, "a", OfferedDataset("heart", ("cardio",), 100, {}, TWIN, loaded))
    (found,) = (await hub.federation.offers("b", hub.study.name)).offers
    assert [twin.study for twin in found.dataset.loaded] == [hub.study.name]
    large = MockTwin((MockColumn("x", "str", levels={"y" * 64: 5, "z" * (1 << 18): 5}),))
    with pytest.raises(WireError, match="as loaded of more than"):
        await tell(
            *(hub, "a"),
            OfferedDataset("heart", ("cardio",), 100, {}, TWIN, (LoadedTwin("", large),)),
        )


def many(twin: MockTwin) -> list[OfferedDataset]:
    return [OfferedDataset(f"d{i}", ("cardio",), 5, {}, twin) for i in range(30)]
