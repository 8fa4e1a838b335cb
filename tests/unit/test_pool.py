"""A dataset's way to the data centre and back, over a hub that tries to read, forge and mix."""

import contextlib
import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from consilia.data.holdout import Holdout
from consilia.data.registry import inspect_table
from consilia.errors import Conflict, ConsiliaError, NotFound, Refused, WireError
from consilia.node import (
    config,
    datasets,
    holdout,
    identity,
    loading,
    optout,
    peers,
    pool,
    pooling,
    poolkeeping,
    studies,
)
from consilia.node.config import NodeConfig
from consilia.node.pooling import Consent
from consilia.node.store import Store
from consilia.privacy import sealing
from consilia.wire import pool as wire
from consilia.wire.v1 import Enrolled, Sealed, Study, study_digest

SITES = ("centre", "east", "south")
STUDY = Study(
    "tumours", "p", SITES, ("tumours",), data_centre="centre", pooled=("east", "south")
)
DIGEST = study_digest(STUDY)
NOW = 1_800_000_000.0
ASKED = Consent("tumours", "tumours", "centre", "the DPO agreed", "dora", NOW)


@dataclass
class Relay:
    """The hub as a node sees it: pieces, and what everybody has said."""

    nodes: dict[str, Store] = field(default_factory=dict)
    pieces: dict[tuple[str, int], bytes] = field(default_factory=dict)
    puts: int = 0
    fails_after: int = -1  # pieces; the line breaks then
    more: tuple[Sealed, ...] = ()  # that the hub adds
    hidden: bool = False  # whether it keeps what was said to itself
    open: tuple[str, ...] = (DIGEST,)

    async def pool_board(self) -> wire.Board:
        return self.board()

    def board(self) -> wire.Board:
        said = tuple(s for store in self.nodes.values() for s in pool.statements(store))
        return wire.Board((() if self.hidden else said) + self.more, self.open)

    async def pool_have(self, place: str) -> wire.Pieces:
        return wire.Pieces(tuple(n for p, n in self.pieces if p == place))

    async def pool_put(self, place: str, number: int, piece: bytes) -> None:
        if self.puts == self.fails_after:
            raise ConnectionError("the line broke")
        self.puts += 1
        self.pieces[place, number] = piece

    async def pool_get(self, place: str, number: int) -> bytes:
        return self.pieces[place, number]


def _certificate(
    name: str, key: ec.EllipticCurvePublicKey, ca: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    start = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
    made = x509.CertificateBuilder(named("ca"), named(name), key, 7).not_valid_before(start)
    return made.not_valid_after(start + dt.timedelta(days=9)).sign(ca, hashes.SHA256())


def join(folder: Path, site: str) -> identity.Identity:
    """Make a node's directory as `consilia node join` does."""
    keys, ca = identity.new_keys(), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("ca", ca.public_key(), ca)
    mine = _certificate(site, keys.tls.public_key(), ca)
    enrolled = Enrolled(
        mine.public_bytes(Encoding.PEM), root.public_bytes(Encoding.PEM), b"h" * 32
    )
    folder.mkdir(mode=0o700)
    made = identity.create(folder, site, keys, enrolled, root.public_bytes(Encoding.DER))
    config.save(folder, NodeConfig(site, "https://hub.invalid:1", min_records=10))
    return made


def table(folder: Path, site: str, records: int = 60) -> Path:
    path = folder / f"{site}-data" / "t.csv"
    path.parent.mkdir()
    rows = (f"{site}{i // 2},{i / 7},{i % 3},{'a' if i % 4 else ''}\n" for i in range(records))
    path.write_text("pid,x,n,ward\n" + "".join(rows))
    return path


@dataclass
class Sites:
    """Three nodes that have accepted the study, and the hub between them."""

    root: Path
    relay: Relay
    me: dict[str, identity.Identity]

    def store(self, site: str) -> Store:
        return self.relay.nodes[site]

    def prepare(self, site: str, folds: int) -> None:
        """Register a site's table."""
        store, path = self.store(site), table(self.root, site)
        found = inspect_table(path, "tumours", ("tumours",), now=NOW, patient="pid")
        datasets.add(store, found, actor="dora", now=NOW)
        declared = Holdout(seed=7, folds=folds)
        holdout.declare(store, "tumours", declared, actor="dora", now=NOW)
        assert loading.refresh(store) == []

    def open(self) -> None:
        private = b"\x07" * 32
        pair = (private, sealing.public(private))
        pool.open_channel(
            self.store("centre"), "tumours", *pair, actor="cora", now=NOW, reason="contract"
        )

    async def send(self, site: str = "south") -> pool.Pooled:
        numbers = iter(range(1000))
        return await pooling.send(
            self.store(site), self.relay, ASKED, lambda n: bytes([next(numbers) % 256]) * n
        )

    async def take(self, site: str = "south") -> pool.Pooled:
        return await pooling.take(
            self.store("centre"), self.relay, "tumours", site, actor="cora", now=NOW
        )

    def look(self, site: str) -> int:
        board = self.relay.board()
        return poolkeeping.look(self.store(site), self.me[site], board, NOW)


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with contextlib.ExitStack() as stack:
        relay = Relay()
        me = {site: join(tmp_path / site, site) for site in SITES}
        keys = {site: one.signing.public_key().public_bytes_raw() for site, one in me.items()}
        for site in SITES:
            store = stack.enter_context(contextlib.closing(Store.open(tmp_path / site)))
            relay.nodes[site] = store
            peers.told(store, keys, NOW)
            studies.offer(store, STUDY, NOW)
            studies.accept(store, "tumours", actor="dora", now=NOW)
        made = Sites(tmp_path, relay, me)
        made.prepare("south", 2)
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
        "pid": "str", "x": "float64", "n": "int64", "ward": "category", pool.COLUMN: "int64",
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
    pool.withdraw(sites.store("east"), "tumours", actor="dora", now=NOW, reason="asked to")
    assert sites.look("centre") == 1 and sites.look("centre") == 0
    found = datasets.get(centre, "pool-tumours")
    assert found.dataset.records == 60 and found.usable
    assert "east" not in "".join(p.read_text() for p in Path(found.dataset.path).iterdir())
    assert sites.look("east") == 1
    assert pool.get(sites.store("east"), DIGEST, "east").state == "deleted"
    studies.leave(sites.store("south"), "tumours", actor="dora", now=NOW, reason="over")
    assert sites.look("south") == 1, "leaving the study takes the copy back"
    assert sites.look("centre") == 1
    with pytest.raises(NotFound):
        datasets.get(centre, "pool-tumours")


async def test_a_closed_study_keeps_no_copy(sites: Sites) -> None:
    sites.open()
    await sites.send()
    await sites.take()
    sites.relay.open = ()
    assert sites.look("centre") == 1
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
    assert not any(s.site == "south" for s in pool.statements(south)), "told before it is there"
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
    pool.withdraw(sites.store("south"), "tumours", actor="dora", now=NOW, reason="asked to")
    old = pool.signed(
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
    forged = pool.signed(stranger, wire.Channel(DIGEST, sealing.public(private)))
    sites.relay.more = (forged,)
    with pytest.raises(Conflict, match="does not take uploads"):
        await sites.send()
    sites.open()
    await sites.send()
    await sites.take()
    upload = pool.get(sites.store("south"), DIGEST, "south").upload
    fake = pool.signed(stranger, wire.Withdrawn(DIGEST, upload))
    sites.relay.more = (Sealed(fake.context, "south", fake.payload, fake.signature),)
    assert sites.look("centre") == 0, "a forged withdrawal deleted a copy"
    low = pool.signed(sites.me["centre"], wire.Channel(DIGEST, b"\0" * 32))
    sites.relay.hidden, sites.relay.more = True, (low,)
    sites.prepare("east", 2)
    with pytest.raises(Conflict, match="does not take uploads"):
        await sites.send("east")


@pytest.mark.parametrize(
    ("site", "changed", "error", "said"),
    [
        ("south", {"to": "east"}, Conflict, "--to: found 'east', needed 'centre'"),
        ("south", {"reason": " "}, Conflict, "reason: found none"),
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
        await pooling.send(
            sites.store(site), sites.relay, Consent(**{**facts, **changed}), bytes
        )
    assert not sites.relay.pieces


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"dp_required": True}, "dp_required"), ({"min_records": 61}, "at least 61 are needed")],
)
async def test_the_site_s_policy_keeps_a_table_at_home(
    sites: Sites, settings: dict[str, bool | int], said: str
) -> None:
    sites.open()
    kept = {"site": "south", "hub": "https://hub.invalid:1", "min_records": 10, **settings}
    config.save(sites.root / "south", NodeConfig(**kept))  # type: ignore[arg-type]  # keys
    with pytest.raises(Refused, match=said):
        await sites.send()
    assert not sites.relay.pieces and not pool.every(sites.store("south"))


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
