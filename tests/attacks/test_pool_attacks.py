"""Pooled copies against a hub that replays, hides and hangs up, a lying site, other studies."""

import asyncio
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from msgspec import structs

from consilia.data.registry import inspect_table
from consilia.errors import Conflict, TransferError, WireError
from consilia.node import datasets, loading, optout, studies
from consilia.node.config import NodeConfig
from consilia.node.policy import Request, decide
from consilia.node.pool import decisions, keeping, transfer
from consilia.node.standing import policy_of
from consilia.wire import pool as wire
from consilia.wire.v1 import Privacy, Sealed, study_digest
from poolkit import ASKED, DIGEST, NOW, STUDY, Sites, joined, table


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with joined(tmp_path) as made:
        yield made


async def again(sites: Sites, number: int) -> decisions.Pooled:
    """Send south's dataset once more, as another upload."""
    return await transfer.send(
        sites.store("south"), sites.relay, ASKED, lambda n: bytes([number]) * n
    )


def said_by_south(sites: Sites) -> tuple[Sealed, ...]:
    return tuple(s for s in decisions.statements(sites.store("south")) if s.site == "south")


def withdraw(sites: Sites) -> None:
    decisions.withdraw(
        sites.store("south"), "tumours", actor="dora", now=NOW, reason="asked to"
    )


async def test_an_old_consent_that_the_hub_tells_again_is_spent(sites: Sites) -> None:
    sites.open()
    await again(sites, 1)
    first = said_by_south(sites)
    await sites.take()
    withdraw(sites)
    assert sites.look("centre") == 1
    await again(sites, 2)  # withdrawn before it is taken
    second = said_by_south(sites)
    withdraw(sites)
    sites.look("centre")
    await again(sites, 3)
    await sites.take()
    withdraw(sites)
    assert sites.look("centre") == 1
    for old in (first, second):
        sites.relay.hidden, sites.relay.more = True, old
        with pytest.raises(Conflict, match="was withdrawn"):
            await sites.take()


async def test_a_new_upload_does_not_hush_up_a_withdrawal(sites: Sites) -> None:
    sites.open()
    await again(sites, 1)
    await sites.take()
    withdraw(sites)
    with pytest.raises(Conflict, match="has not deleted the copy"):
        await again(sites, 2)
    sites.relay.hidden = True  # so that the site does not see what the data centre holds
    sites.relay.more = tuple(
        s
        for s in decisions.statements(sites.store("centre"))
        if isinstance(wire.unverified(s), wire.Channel)
    )
    await again(sites, 2)
    sites.relay.hidden, sites.relay.more = False, ()
    assert sites.look("centre") == 1, "the first copy stays for ever"
    assert (await sites.take()).state == "held"


async def test_copies_serve_no_other_study_with_the_same_tags(sites: Sites) -> None:
    sites.open()
    await sites.send()
    await sites.take()
    centre = sites.store("centre")
    other = structs.replace(STUDY, name="other", data_centre="", pooled=())
    studies.offer(centre, other, NOW)
    studies.accept(centre, "other", actor="cora", now=NOW)
    policy = policy_of(centre, NodeConfig("centre", "https://hub.invalid:1", min_records=10))
    objections = {}
    for study in (STUDY, other):
        asked = Request(
            kind="train",
            study=study_digest(study),
            study_name=study.name,
            plan="p",
            tags=frozenset(study.tags),
            arguments={},
            model="m",
            timeout=60.0,
            privacy=Privacy(),
        )
        why = decide(asked, policy, date.fromtimestamp(NOW)).objections
        objections[study.name] = [w for w in why if "no enabled dataset" in w]
    assert objections["other"] and not objections["tumours"]


async def test_a_hub_that_does_not_answer_keeps_no_copy_alive(sites: Sites) -> None:
    sites.open()
    await sites.send()
    await sites.take()
    centre = sites.store("centre")
    studies.leave(centre, "tumours", actor="cora", now=NOW, reason="over")
    turns = iter(range(2))

    class Silent:
        async def pool_board(self) -> wire.Board:
            raise TransferError("the hub hangs up")

    async def sleep(_: float) -> None:
        if next(turns, None) is None:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await keeping.keep(
            centre, sites.me["centre"], Silent(), lambda: None, lambda: NOW, sleep
        )
    assert not list(sites.root.glob("centre/pool/*/copies/*"))
    assert decisions.get(centre, DIGEST, "south").state == "deleted"
    assert decisions.channel(centre, DIGEST) is None, "uploads can still be opened"


async def test_who_opts_out_while_the_line_is_broken_does_not_leave(sites: Sites) -> None:
    sites.open()
    sites.relay.fails_after = 0
    with pytest.raises(ConnectionError):
        await again(sites, 1)
    south = sites.store("south")
    optout.add(south, ["south3"], optout.key(sites.root / "south"), actor="dora", now=NOW)
    assert loading.refresh(south) == []
    sites.relay.fails_after = -1
    assert (await again(sites, 2)).records == 58
    assert len(list(sites.root.glob("south/pool/*/*"))) == 1, "the old file is still there"
    withdraw(sites)
    assert not list(sites.root.glob("south/pool/*/*"))


async def test_an_upload_s_name_is_no_path(sites: Sites) -> None:
    sites.open()
    await sites.send()
    (said,) = said_by_south(sites)
    sent = wire.unverified(said)
    assert isinstance(sent, wire.Sent)
    victim = sites.root / "victim.part"
    victim.write_text("kept")
    upload = "sha256:" + "../" * 3 + "victim"
    lie = wire.Sent(
        DIGEST, upload, sent.channel, sent.ephemeral, sent.session, sent.size, sent.records
    )
    sites.relay.hidden = True
    sites.relay.more = (decisions.signed(sites.me["south"], lie),)
    with pytest.raises(WireError, match="names its upload wrongly"):
        await sites.take()
    assert victim.read_text() == "kept"


async def test_copies_join_no_dataset_of_something_else(sites: Sites, tmp_path: Path) -> None:
    centre = sites.store("centre")
    path = table(tmp_path, "own")
    found = inspect_table(path, "pool-tumours", ("tumours",), now=NOW, patient="pid")
    datasets.add(centre, found, actor="cora", now=NOW)
    sites.open()
    await sites.send()
    with pytest.raises(Conflict, match="serves something else"):
        await sites.take()
    assert not list(sites.root.glob("centre/pool/*/copies/*"))
    assert datasets.get(centre, "pool-tumours").dataset.path == str(path)
    datasets.remove(centre, "pool-tumours", actor="cora", now=NOW)
    assert (await sites.take()).state == "held", "a take that failed cannot be repeated"
