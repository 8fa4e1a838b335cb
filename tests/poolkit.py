"""A data centre, two hospitals that pool and a hub between them that tests can turn bad."""

import contextlib
import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from consilia.data.holdout import Holdout
from consilia.data.registry import inspect_table
from consilia.node import config, datasets, holdout, identity, loading, peers, studies
from consilia.node.config import NodeConfig
from consilia.node.pool import decisions, keeping, transfer
from consilia.node.pool.transfer import Consent
from consilia.node.store import Store
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
        said = tuple(s for store in self.nodes.values() for s in decisions.statements(store))
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
        key = b"\x07" * 32
        decisions.open_channel(
            self.store("centre"), "tumours", key, actor="cora", now=NOW, reason="contract"
        )

    async def send(self, site: str = "south") -> decisions.Pooled:
        numbers = iter(range(1000))
        return await transfer.send(
            self.store(site), self.relay, ASKED, lambda n: bytes([next(numbers) % 256]) * n
        )

    async def take(self, site: str = "south") -> decisions.Pooled:
        return await transfer.take(
            self.store("centre"),
            self.relay,
            "tumours",
            site,
            actor="cora",
            now=NOW,
            reason="contract 7",
        )

    def look(self, site: str) -> int:
        board = self.relay.board()
        return keeping.look(self.store(site), self.me[site], board, NOW)


@contextlib.contextmanager
def joined(tmp_path: Path) -> Iterator[Sites]:
    """Give three nodes that know each other; south has a table in two folds."""
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
