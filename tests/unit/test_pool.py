"""A dataset's way to the data centre and back, over a hub that tries to read, forge and mix."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consilia.data.registry import inspect_table
from consilia.errors import ConfigError, Conflict, ConsiliaError, NotFound, Refused, WireError
from consilia.node import config, datasets, loading, optout, studies
from consilia.node.config import NodeConfig
from consilia.node.policy import Terms
from consilia.node.pool import decisions, transfer
from consilia.node.pool.transfer import Consent
from consilia.privacy import sealing
from consilia.wire import pool as wire
from consilia.wire.v1 import Sealed
from poolkit import ASKED, DIGEST, NOW, Sites, join, joined


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with joined(tmp_path) as made:
        yield made


async def test_what_arrives_is_what_a_task_would_have_loaded(sites: Sites) -> None:
    south, centre = sites.store("south"), sites.store("centre")
    optout.add(south, ["south3"], optout.key(sites.root / "south"), actor="dora", now=NOW)
    assert loading.refresh(south) == []
    sites.open()
    sent = await sites.send()
    held = await sites.take()
    assert (sent.state, sent.records, held.records) == ("sent", 58, 58)
    assert sent.digest == held.digest and held.dataset == "pool-tumours"
    assert b"south" not in b"".join(sites.relay.pieces.values())
    copy = datasets.get(centre, "pool-tumours").dataset
    assert {**copy.columns} == {
        "pid": "str", "x": "float64", "n": "int64", "ward": "category",
        decisions.COLUMN: "int64",
    }  # fmt: skip
    text = (next(Path(copy.path).glob("*.csv"))).read_text()
    assert "south3," not in text and "south:" in text, "ids have left as they are"
    for fold in (1, 2):  # the same patients, though nobody at the centre knows who they are
        home = loading.Loading(south).prepared(
            datasets.get(south, "tumours").dataset, "tumours", fold
        )
        there = loading.Loading(centre).prepared(copy, "tumours", fold)
        assert home.dataset.records == there.dataset.records > 10
        assert home.dataset.held_records == there.dataset.held_records > 10


async def test_copies_of_several_sites_are_one_dataset_until_one_goes(sites: Sites) -> None:
    sites.open()
    sites.prepare("east", 2)
    for site in ("south", "east"):
        await sites.send(site)
        await sites.take(site)
    centre = sites.store("centre")
    assert datasets.get(centre, "pool-tumours").dataset.records == 120
    decisions.withdraw(sites.store("east"), "tumours", actor="dora", now=NOW, reason="asked to")
    assert sites.look("centre") == 1 and sites.look("centre") == 0
    found = datasets.get(centre, "pool-tumours")
    assert found.dataset.records == 60 and found.usable
    assert "east" not in "".join(p.read_text() for p in Path(found.dataset.path).iterdir())
    assert sites.look("east") == 1
    assert decisions.get(sites.store("east"), DIGEST, "east").state == "deleted"
    studies.leave(sites.store("south"), "tumours", actor="dora", now=NOW, reason="over")
    assert sites.look("south") == 1, "leaving the study takes the copy back"
    assert sites.look("centre") == 1
    with pytest.raises(NotFound):
        datasets.get(centre, "pool-tumours")


async def test_every_step_needs_a_reason(sites: Sites) -> None:
    centre, south = sites.store("centre"), sites.store("south")
    who: dict[str, Any] = {"actor": "cora", "now": NOW, "reason": " \n"}
    with pytest.raises(ConfigError, match="reason: found none"):
        decisions.open_channel(centre, "tumours", b"\x07" * 32, **who)
    assert decisions.channels(centre) == ()
    sites.open()
    await sites.send()
    with pytest.raises(ConfigError, match="reason: found none"):
        await transfer.take(centre, sites.relay, "tumours", "south", **who)
    with pytest.raises(ConfigError, match="reason: found none"):
        decisions.withdraw(south, "tumours", **who)
    assert decisions.get(south, DIGEST, "south").state == "sent"


async def test_a_closed_study_keeps_no_copy(sites: Sites) -> None:
    sites.open()
    await sites.send()
    await sites.take()
    sites.relay.open = ()
    assert sites.look("centre") == 2, "the copy, and the key of uploads"
    assert decisions.channel(sites.store("centre"), DIGEST) is None
    assert not list(sites.root.glob("centre/pool/*/copies"))


async def test_a_broken_line_costs_the_missing_pieces_only(sites: Sites) -> None:
    sites.open()
    path = sites.root / "south-data" / "t.csv"
    rows = "".join(f"s{i},{i / 7},{i % 3},w{i:01000d}\n" for i in range(2500))
    path.write_text("pid,x,n,ward\n" + rows)
    south = sites.store("south")
    found = inspect_table(path, "tumours", ("tumours",), now=NOW, patient="pid")
    datasets.edit(south, "tumours", actor="dora", now=NOW, measured=found)
    assert loading.refresh(south) == []
    sites.relay.fails_after = 1
    with pytest.raises(ConnectionError):
        await sites.send()
    assert not any(s.site == "south" for s in decisions.statements(south)), (
        "told before it is there"
    )
    sites.relay.fails_after = -1
    await sites.send()
    assert sites.relay.puts == len(sites.relay.pieces) >= 3, "a piece was sent twice"
    assert (await sites.take()).records == 2500


async def test_what_the_hub_changes_is_not_taken(sites: Sites) -> None:
    sites.open()
    sent = await sites.send()
    ((place, _),) = sites.relay.pieces
    good = sites.relay.pieces[place, 0]
    sites.relay.pieces[place, 0] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(WireError, match="signed"):
        await sites.take()
    sites.relay.pieces[place, 0] = good
    await sites.take()
    decisions.withdraw(
        sites.store("south"), "tumours", actor="dora", now=NOW, reason="asked to"
    )
    old = decisions.signed(
        sites.me["south"],
        wire.Sent(DIGEST, sent.upload, b"k" * 32, b"e" * 32, b"s" * 32, 100, 60),
    )
    assert sites.look("centre") == 1
    sites.relay.more = (old,)  # replayed after the withdrawal
    with pytest.raises(Conflict, match="was withdrawn"):
        await sites.take()


async def test_a_channel_or_word_of_somebody_else_counts_for_nothing(sites: Sites) -> None:
    stranger = join(sites.root / "stranger", "centre")
    private = b"\x09" * 32
    forged = decisions.signed(stranger, wire.Channel(DIGEST, sealing.public(private)))
    sites.relay.more = (forged,)
    with pytest.raises(Conflict, match="does not take uploads"):
        await sites.send()
    sites.open()
    await sites.send()
    await sites.take()
    upload = decisions.get(sites.store("south"), DIGEST, "south").upload
    fake = decisions.signed(stranger, wire.Withdrawn(DIGEST, upload))
    sites.relay.more = (Sealed(fake.context, "south", fake.payload, fake.signature),)
    assert sites.look("centre") == 0, "a forged withdrawal deleted a copy"
    low = decisions.signed(sites.me["centre"], wire.Channel(DIGEST, b"\0" * 32))
    sites.relay.hidden, sites.relay.more = True, (low,)
    sites.prepare("east", 2)
    with pytest.raises(Conflict, match="does not take uploads"):
        await sites.send("east")


@pytest.mark.parametrize(
    ("site", "changed", "error", "said"),
    [
        ("south", {"to": "east"}, Conflict, "--to: found 'east', needed 'centre'"),
        ("south", {"reason": " "}, ConfigError, "reason: found none"),
        ("south", {"dataset": "other"}, NotFound, "no dataset 'other'"),
        ("centre", {}, Conflict, "asks east, south to pool, not 'centre'"),
    ],
)
async def test_a_consent_that_does_not_fit_is_refused(
    sites: Sites, site: str, changed: dict[str, str], error: type[ConsiliaError], said: str
) -> None:
    sites.open()
    facts = {f: getattr(ASKED, f) for f in ("study", "dataset", "to", "reason", "actor", "at")}
    with pytest.raises(error, match=said):
        await transfer.send(
            sites.store(site), sites.relay, Consent(**{**facts, **changed}), bytes
        )
    assert not sites.relay.pieces


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dp_required": True}, "dp_required"),
        ({"min_records": 61}, "at least 61 are needed"),
        ({"permitted_studies": ["other"]}, "not among those this site's policy permits"),
        ({"terms": Terms(ethics_required=True)}, "names no ethics vote"),
    ],
)
async def test_the_site_s_policy_keeps_a_table_at_home(
    sites: Sites, settings: dict[str, object], said: str
) -> None:
    sites.open()
    kept = {"site": "south", "hub": "https://hub.invalid:1", "min_records": 10, **settings}
    config.save(sites.root / "south", NodeConfig(**kept))  # type: ignore[arg-type]  # keys
    with pytest.raises(Refused, match=said):
        await sites.send()
    assert not sites.relay.pieces and not decisions.every(sites.store("south"))


async def test_sites_of_a_pool_have_the_same_folds(sites: Sites) -> None:
    sites.open()
    sites.prepare("east", 3)
    await sites.send("south")
    await sites.take("south")
    await sites.send("east")
    with pytest.raises(ConsiliaError, match="3 folds"):
        await sites.take("east")
    found = datasets.get(sites.store("centre"), "pool-tumours")
    assert found.dataset.records == 60 and len(list(Path(found.dataset.path).iterdir())) == 1
    ready = loading.Loading(sites.store("centre")).prepared(found.dataset, "tumours", 1)
    assert not ready.problem
