"""One encrypted round among sites' stores and a hub's spools, and what they refuse in it."""

import base64
import contextlib
import os
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

pytest.importorskip("tenseal", reason="needs the extra consilia[he]")

from consilia.core.events import Event, Step
from consilia.core.round import (
    Accepted,
    GiveLease,
    JobState,
    Joined,
    RoundConfig,
    Settled,
    Spoke,
    Started,
    Tell,
    advance,
    new_job,
)
from consilia.core.weights import Weights, schema_of
from consilia.errors import Refused, TransferError, UpdateRejected, WireError
from consilia.hub import encrypted, masking
from consilia.hub.blobs import MemoryBlobs
from consilia.node import encrypting, opening
from consilia.node.link import HubLink
from consilia.node.masking import Masking
from consilia.node.opening import Opening, Tools
from consilia.node.store import Store
from consilia.privacy import secagg
from consilia.privacy.encrypted import opened, schema
from consilia.wire import frames, masks, seal
from consilia.wire.v1 import Lease, Privacy, Said, Sealed, Task, Word, decode, encode
from maskedkit import peer, reader

SITES = ("aachen", "genf", "leuven", "oslo")
RECORDS = {"aachen": 200, "genf": 120, "leuven": 350, "oslo": 80}
CONFIG = RoundConfig(1, min_updates=3, min_sites=4, masked=True, encrypted=True)
CKKS = Privacy(aggregation="ckks")
BASE: dict[str, Any] = {
    "w": np.linspace(-1, 1, 4200, dtype=np.float32).reshape(42, 100),
    "half": np.linspace(0, 1, 9, dtype=np.float16),
    "count": np.array([7, -3], np.int64),
    "bias": np.array([0.25]),
}


class Play:
    """The hub's machine, words and spools, and four sites; stops wherever a test wants."""

    def __init__(self, folder: Path, job: str = "job-1") -> None:
        self.folder, self.blobs = folder, MemoryBlobs()
        self.peers = {site: peer(site, folder) for site in SITES}
        keys = {site: one.public for site, one in self.peers.items()}
        for one in self.peers.values():
            one.pin(keys, "sha256:study")
        self.words, self.heard = masking.Words(), dict.fromkeys(SITES, Word("", "roster", b""))
        self.base = folder / "base"
        frames.write(self.base, BASE)
        self.begin(job)

    def begin(self, job: str) -> "Play":
        self.tells: dict[str, Tell] = {}
        self.leases: dict[str, Lease] = {}
        self.state: JobState = new_job(job, CONFIG)
        for site in SITES:
            self.feed(Joined(0.0, site))
        self.feed(Started(0.0, frames.read_header(self.base).digest, {}))
        return self

    def feed(self, event: Event) -> None:
        self.state, commands = advance(self.state, event)
        for command in commands:
            if isinstance(command, GiveLease):
                task = Task(
                    "train", self.state.job, 1, "sha256:study", "study", "sha256:plan", {}, (),
                    command.model, 1, privacy=CKKS, cohort=command.cohort, total=766,
                )  # fmt: skip
                self.leases[command.site] = Lease(command.lease, task, 60.0)
            elif isinstance(command, Tell):
                self.tells[command.site] = command

    def word(self, site: str, total: str = "") -> Word:
        return self.words.word(self.state, self.tells[site], total)

    def hear(self, site: str, word: Word, opened: str = "") -> None:
        one = self.peers[site]
        self.say(site, one.masking.hear(self.leases[site], word, opened).said)

    def say(self, site: str, sealed: Sealed) -> None:
        key = self.peers[site].public
        message = decode(seal.open_sealed(sealed, "report", key), Said)
        masking.check(self.state, site, message, key)
        body = base64.b64encode(message.body).decode()
        self.feed(Spoke(1.0, message.lease, message.step, body))

    def go(self, upto: Step, gone: Iterable[str] = ()) -> "Play":
        """Walk until `upto` is asked for; who is `gone` sends no update."""
        for site in SITES:
            self.say(site, self.peers[site].masking.begin(self.leases[site]).said)
        words = {site: self.word(site) for site in SITES}
        for site in SITES:
            self.hear(site, words[site])
        if upto == "update":
            return self
        words = {site: self.word(site) for site in SITES}
        for site in SITES:
            self.peers[site].masking.hear(self.leases[site], words[site])
            if site in gone:
                self.feed(Settled(1.0, self.leases[site].id, "failed", "disk"))
            else:
                self.send(site)
        if upto == "consent":
            return self
        alive = [site for site in SITES if site not in gone]
        words = {site: self.word(site) for site in alive}
        for site in alive:
            self.hear(site, words[site])
        return self

    def send(self, site: str) -> None:
        lease, one = self.leases[site], self.peers[site]
        plain, out = self.folder / "plain", self.folder / "cells"
        frames.write(plain, trained(site))
        turn, weight = one.masking.spend_key(lease, RECORDS[site])
        header = encrypting.encrypt(
            lease.task, turn, plain, self.base, out, weight, {"loss": RECORDS[site] / 100}
        )
        assert "key=hidden" in repr(turn)
        with contextlib.closing(self.blobs.open_spool(lease.id)) as spool:
            spool.append(out.read_bytes())
        self.feed(Accepted(1.0, lease.id, header.digest, 766, {"loss": 0.0}))

    def sum(self, sites: Iterable[str]) -> tuple[str, Path]:
        """Add the updates of `sites` as the hub does; return the frame's name and a copy."""
        leases = [self.leases[site].id for site in sites]
        header = encrypted.write_sum(self.blobs, schema_of(BASE), leases)
        copy = self.folder / "sum"
        with self.blobs.read_spool(encrypted.sum_of(leases[0])) as blob:
            copy.write_bytes(os.pread(blob.fd, blob.size, 0))
        return header.digest, copy

    def open(self, site: str, total: Path, word: Word) -> frames.Header:
        lease, out = self.leases[site], self.folder / "opened"
        turn = self.peers[site].masking.turn(lease, word)
        return encrypting.open_sum(lease.task, turn, total, self.base, out, os.urandom)


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Play:
    """A round in which all is said but the last word; tests only ask for it."""
    return Play(tmp_path_factory.mktemp("round")).go("unmask")


def trained(site: str) -> Weights:
    n = RECORDS[site]
    return {
        "w": BASE["w"] + np.float32(n / 1000),
        "half": BASE["half"] + np.float16(n / 1000),
        "count": BASE["count"] + n,
        "bias": BASE["bias"] - n / 1000,
    }


def test_the_mean_is_that_of_the_survivors(tmp_path: Path) -> None:
    play = Play(tmp_path).go("unmask", gone=("genf",))
    alive = ("aachen", "leuven", "oslo")
    name, total = play.sum(alive)
    word = play.word("leuven", name)
    header = play.open("leuven", total, word)
    lease = play.leases["leuven"].id
    play.hear("leuven", word, header.digest)
    assert play.state.phase == "closing"
    with contextlib.closing(play.blobs.open_spool(encrypted.opened_of(lease))) as spool:
        spool.append((tmp_path / "opened").read_bytes())
    fold = encrypted.OpenedFold(schema_of(BASE))
    encrypted.opener(play.state, play.blobs, fold, reader(BASE))
    weights = [RECORDS[site] for site in alive]
    assert fold.weight == pytest.approx(sum(weights) / 766, abs=1e-5)
    assert fold.metrics[0] == pytest.approx(
        np.average(weights, weights=weights) / 100, abs=1e-4
    )
    for spec in schema_of(BASE):
        parts: Any = [trained(site)[spec.name].astype(np.float64) for site in alive]
        exact = np.average(parts, axis=0, weights=weights).reshape(-1)
        found = fold.result_chunk(spec, 0, spec.size)
        if spec.dtype == "int64":
            assert np.array_equal(found, np.rint(exact))
        else:
            assert np.abs(found - exact).max() < (1e-3 if spec.dtype == "float16" else 1e-5)


def test_the_loss_of_the_site_that_makes_the_key_ends_no_round(tmp_path: Path) -> None:
    """It is gone before it has dealt: the others use the second site's key."""
    play, rest = Play(tmp_path), SITES[1:]
    for site in SITES:
        play.say(site, play.peers[site].masking.begin(play.leases[site]).said)
    words = {site: play.word(site) for site in rest}
    for site in rest:
        play.hear(site, words[site])
    play.feed(Settled(1.0, play.leases["aachen"].id, "failed", "disk"))
    inboxes = {site: play.word(site) for site in rest}
    for site in rest:
        play.peers[site].masking.hear(play.leases[site], inboxes[site])
        play.send(site)
    words = {site: play.word(site) for site in rest}
    for site in rest:
        play.hear(site, words[site])
    name, total = play.sum(rest)
    header = play.open("genf", total, play.word("genf", name))
    found = dict(frames.read(tmp_path / "opened"))
    assert header.schema == opened(schema_of(BASE))
    share = sum(RECORDS[site] for site in rest) / 766
    assert found["consilia.extra"][0] == pytest.approx(share, abs=1e-5)


def test_an_opener_refuses_what_is_not_the_survivors_sum(play: Play) -> None:
    name, _ = play.sum(SITES)
    word = play.word("aachen", name)
    for sites in (("genf",), ("aachen", "genf", "leuven"), ("genf", "genf", "genf", "genf")):
        _, other = play.sum(sites)
        with pytest.raises(Refused, match="not the sum of the updates of aachen, genf"):
            play.open("aachen", other, word)
    with pytest.raises(Refused, match="does not have the model's form"):
        play.open("aachen", play.base, word)


def test_an_opener_refuses_few_or_other_survivors(tmp_path: Path) -> None:
    play = Play(tmp_path).go("consent")
    lease, about = play.leases["aachen"], masking.context(play.state)
    hear = play.peers["aachen"].masking.hear
    for few in (("aachen", "genf"), ("aachen",), ("genf", "leuven", "oslo")):
        with pytest.raises(Refused, match=r"are in the sum|itself one of them"):
            hear(lease, Word(lease.id, "survivors", secagg.survivors(about, few)))
    for site in SITES:
        if play.state.step == "consent":
            play.hear(site, play.word(site))
    name, _ = play.sum(SITES)
    word = play.word("aachen", name)
    told = decode(word.body, masks.Consents)
    two = msgspec.structs.replace(told, signatures=dict(list(told.signatures.items())[:2]))
    turn = play.peers["aachen"].masking.turn
    with pytest.raises(Refused, match="2 sites signed the same survivors, needs 3"):
        turn(lease, Word(lease.id, "consents", encode(two)))
    with pytest.raises(Refused, match="was not opened at this site"):
        hear(lease, word)


def test_another_set_of_survivors_for_the_same_model_is_refused(tmp_path: Path) -> None:
    """One sum of a plan and a model, for ever: the rule of masked rounds."""
    play = Play(tmp_path).go("unmask")
    name, total = play.sum(SITES)
    word = play.word("aachen", name)
    play.hear("aachen", word, play.open("aachen", total, word).digest)
    play.begin("job-2").go("consent", gone=("oslo",))
    with pytest.raises(Refused, match="helped to open the sum of aachen genf leuven oslo"):
        play.hear("aachen", play.word("aachen"))


def test_a_change_beyond_the_range_stays_at_the_site(tmp_path: Path) -> None:
    play = Play(tmp_path).go("update")
    site, plain = "genf", tmp_path / "plain"
    play.peers[site].masking.hear(play.leases[site], play.word(site))
    frames.write(plain, {**trained(site), "w": BASE["w"] + np.float32(8.5)})
    turn, weight = play.peers[site].masking.spend_key(play.leases[site], RECORDS[site])
    task = play.leases[site].task
    with pytest.raises(UpdateRejected, match=r"'w'.*by 8\.5, encryption carries 8"):
        encrypting.encrypt(task, turn, plain, play.base, tmp_path / "o", weight, {})
    with pytest.raises(Refused, match="900 records would be weighed against 766"):
        play.peers[site].masking.spend_key(play.leases[site], 900)


def test_the_hub_names_the_cell_that_is_no_ciphertext(tmp_path: Path) -> None:
    play = Play(tmp_path).go("consent")
    name = play.leases["genf"].id
    assert encrypted.update_misfit(play.blobs, name) is None
    with play.blobs.read_spool(name) as blob:
        header = frames.read_header(blob.fd)
        raw = bytearray(os.pread(blob.fd, blob.size, 0))
    (spec,) = schema(schema_of(BASE))
    cells = np.frombuffer(raw[header.data_start :][: spec.nbytes], np.uint8)
    bad = cells.reshape(spec.shape).copy()
    bad[1, 4:100] = 7
    frames.write(tmp_path / "bad", {spec.name: bad})
    with contextlib.closing(play.blobs.open_spool("bad")) as spool:
        spool.append((tmp_path / "bad").read_bytes())
    found = encrypted.update_misfit(play.blobs, "bad")
    assert found is not None and found.startswith("cell 1 of the encrypted update: ")


def test_the_hub_refuses_an_opened_sum_of_another_form(play: Play) -> None:
    name, total = play.sum(SITES)
    header = play.open("genf", total, play.word("genf", name))
    base = frames.read_header(play.base)
    body = encode(masks.Unmask(b"s" * 32, "genf", opened=header.digest))
    encrypted.check_opened(body, header, base)
    for found, problem in ((None, "nothing whole"), (base, "uploaded was b3:")):
        with pytest.raises(WireError, match=problem):
            encrypted.check_opened(body, found, base)
    wrong = encode(masks.Unmask(b"s" * 32, "genf", opened=base.digest))
    with pytest.raises(WireError, match="does not have the model's form"):
        encrypted.check_opened(wrong, base, base)


def test_no_site_has_the_names_of_sums() -> None:
    lease = "job-1.2.0.st.opened"
    assert encrypted.lease_of(encrypted.opened_of(lease)) == lease
    assert encrypted.lease_of(lease) is None and not encrypted.is_sum(lease)
    assert encrypted.sum_of(lease) == "job-1.2.0.sum-" and encrypted.is_sum("job-1.2.0.sum-")


@dataclass
class Line:
    """A node's way to the hub that fails once in each direction."""

    frame: Path
    uploads: dict[str, str] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def fetch(self, digest: str, path: Path, have: Sequence[Path] = ()) -> frames.Header:
        self._fail("down", Refused("no lease for this frame: the hub was restarted"))
        if not path.exists():
            path.write_bytes(self.frame.read_bytes())
        return frames.read_header(path)

    def upload(self, lease: str, path: Path) -> str:
        self._fail("up", TransferError("the line is down"))
        self.uploads[lease] = frames.read_header(path).digest
        return self.uploads[lease]

    def _fail(self, way: str, error: Exception) -> None:
        if way not in self.failed:
            self.failed.add(way)
            raise error


async def test_an_opening_survives_lines_and_restarts(play: Play, tmp_path: Path) -> None:
    name, total = play.sum(SITES)
    lease, line, folder = play.leases["aachen"], Line(total), tmp_path / "opening"

    async def pause(_: float) -> None:
        return None

    with ThreadPoolExecutor(1) as threads:
        tools = Tools(
            play.peers["aachen"].masking,
            cast(HubLink, line),
            folder,
            lambda _: play.base,
            threads,
            pause,
            random.Random(1),  # noqa: S311 - jitter
            os.urandom,
        )
        digest = await Opening(lease, tools).opened(play.word("aachen", name))
        assert line.failed == {"down"} and not line.uploads
        opening.sweep(folder, [lease.id])  # an agent that starts again keeps what it has made
        await Opening(lease, tools).brought()
        await Opening(lease, tools).brought()
    assert line.uploads == {encrypted.opened_of(lease.id): digest}
    assert [path.suffix for path in folder.iterdir()] == [".plain"]
    opening.sweep(folder, ["job-1.1.0.genf"])
    opening.forget(folder, lease.id)
    assert not any(folder.iterdir())


def test_a_restarted_site_says_the_same_and_still_has_the_key(play: Play) -> None:
    name, total = play.sum(SITES)
    word = play.word("oslo", name)
    old = play.peers["oslo"]
    before = old.masking.turn(play.leases["oslo"], word)
    again = Masking(Store.open(old.folder), "oslo", old.key, lambda: 1.0, os.urandom)
    assert again.turn(play.leases["oslo"], word) == before and before.place == 3
    header = play.open("oslo", total, word)
    said = again.hear(play.leases["oslo"], word, header.digest)
    assert again.hear(play.leases["oslo"], word, "b3:another") == said
    play.say("oslo", said.said)
