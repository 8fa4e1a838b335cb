"""What people see of a protected job: its card, its lineage, its events."""

from pathlib import Path

import msgspec
import pytest
from hubkit import Hub, Node, open_hub, serving
from sqlalchemy import Connection

from consilia.hub import modelcard, modelversions, views
from consilia.hub.journal import Entry
from consilia.privacy import accountant
from consilia.sdk.card import markdown
from consilia.wire.people import ModelCard
from consilia.wire.v1 import Dp

PRIVATE = {
    "aggregation": "plain",
    "dp": {"level": "client", "noise_multiplier": 4.0, "clip": 1.0},
}


async def card_of(hub: Hub, model: str) -> ModelCard:
    def read(db: Connection) -> ModelCard:
        return modelcard.card(db, modelversions.get(db, model))

    return await hub.store.read(read)


async def test_a_card_tells_how_every_job_in_the_lineage_was_protected(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, serving(*(Node(hub, site) for site in "abc")):
        first = await hub.start(rounds=2, min_sites=3, min_updates=3)
        await hub.until(first, "done", "failed")
        again = {"base": f"{first}.1", "privacy": PRIVATE}
        second = await hub.start(rounds=2, min_sites=3, min_updates=3, **again)
        assert (await hub.until(second, "done", "failed")).state == "done"
        card = await card_of(hub, f"{second}.2")
        alone = await card_of(hub, f"{first}.2")
    own, before = card.protection
    spent = accountant.epsilon(accountant.cost(Dp("client", 4.0, 1.0), 2), 1e-5)
    assert (own.job, own.round, own.aggregation, own.bits) == (second, 2, "plain", None)
    assert (own.level, own.distributed, own.delta) == ("client", False, 1e-5)
    assert own.epsilon == pytest.approx(spent) == card.epsilon
    assert (before.job, before.round, before.level, before.epsilon) == (first, 1, "", None)
    assert any(f"{first}, which it was trained from" in line for line in card.caveats)
    assert not any("which it was trained from" in line for line in alone.caveats)
    text = markdown(card)
    assert f"client level, epsilon {spent:.3g}" in text
    assert f"{first} up to round 1: plain, no differential privacy" in text.replace("\\", "")
    masked = replace_own(card, "secure", 8)
    assert "secure, 8 bits, each site a share of the noise" in markdown(masked)


def replace_own(card: ModelCard, aggregation: str, bits: int) -> ModelCard:
    shown = msgspec.structs.replace(
        card.protection[0], aggregation=aggregation, bits=bits, distributed=True
    )
    return msgspec.structs.replace(card, protection=(shown, *card.protection[1:]))


def test_what_sites_say_to_each_other_is_no_news() -> None:
    said = {"at": 1.0, "lease": "j.1.0.a", "step": "shares", "body": "QUJD" * 1000}
    joined = {"at": 0.5, "site": "a"}
    entries = [Entry(1, 0.5, "Joined", joined), Entry(2, 1.0, "Spoke", said)]
    first, second = views.feed(entries, (), 0).items
    assert first.body == joined
    assert second.body == {"at": 1.0, "lease": "j.1.0.a", "step": "shares", "characters": 4000}
    assert second.seq == 2 * (first.seq) and said["body"] == "QUJD" * 1000


def test_a_site_that_tells_sums_only_has_no_figure_of_its_own() -> None:
    told = {"at": 1.0, "lease": "j.1.0.a", "records": 9, "metrics": {"loss": 0.0}}
    entries = [Entry(1, 1.0, "Accepted", told)]
    (masked,) = views.feed(entries, (), 0, sums=True).items
    (plain,) = views.feed(entries, (), 0).items
    assert masked.body == {**told, "metrics": {}} and plain.body == told
