"""Masked rounds in one process: a hub in memory that runs the real machine, and real sites.

`MaskedHub` is a MemoryHub for one masked job: the real round machine decides, hub.masking
checks and passes on, the sum is folded and opened as the hub does it. One site is a whole node
(of nodekit), the others are `Peer`s: the real masking of a site over a store of its own,
without an agent. What peers do in a step can be held back, what sites are told can be forged.
"""

import asyncio
import base64
import contextlib
import os
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core.events import Event, Step
from consilia.core.round import (
    Accepted,
    CancelLease,
    Close,
    Command,
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
    outstanding,
)
from consilia.core.weights import Array, TensorSpec, Weights, schema_of
from consilia.hub import masking
from consilia.node import peers
from consilia.node.config import NodeConfig
from consilia.node.inprocess import InProcess
from consilia.node.masking import Masking
from consilia.node.runner import Runs
from consilia.node.store import Store
from consilia.wire import frames, seal
from consilia.wire.v1 import (
    Declined,
    Failed,
    Lease,
    Metrics,
    Orders,
    Poll,
    Privacy,
    Progress,
    Report,
    Result,
    Said,
    Sealed,
    Study,
    Task,
    Verdict,
    Word,
    decode,
    plan_digest,
    study_digest,
)
from nodekit import SITE, CountingRuns, MemoryHub, Node, make_plan

SITES = ("aachen", SITE, "leuven", "oslo")
HEARTS = Study("four-hearts", "to learn", SITES, ("cohort",))
PLAN = make_plan()
RECORDS = {"aachen": 200, SITE: 120, "leuven": 350, "oslo": 80}
AMOUNTS = {"aachen": 0.25, SITE: 1.0, "leuven": -0.5, "oslo": 1.5}  # added to each weight
TOTAL = sum(RECORDS.values()) + 16  # as the hub adds up what sites advertise
SECURE = Privacy(aggregation="secure")
CONFIG = RoundConfig(
    rounds=1, min_updates=3, min_sites=4, grace=3600.0, deadline=7200.0, masked=True
)
CHUNK = 700  # elements of the pieces in which updates are read: no tensor is a multiple


@dataclass
class Peer:
    """A site without an agent: its keys, its store, and what it does when it is asked."""

    site: str
    store: Store
    folder: Path
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        self.masking = Masking(self.store, self.site, self.key, time.time, os.urandom)

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def pin(self, keys: dict[str, bytes], study: str = study_digest(HEARTS)) -> None:
        """Pin these keys for the study, as its people would."""
        peers.told(self.store, keys, 0.0)
        with self.store.write() as tx:
            peers.pin(tx, study, tuple(keys), "mara", 0.0)

    def update(
        self, lease: Lease, base: Path, new: Weights, records: int, metrics: Metrics
    ) -> Weights:
        """Return the masked form of an update, as it would be uploaded."""
        plain, out = self.folder / "plain", self.folder / "masked"
        frames.write(plain, new)
        self.masking.mask(lease, plain, base, out, records, metrics)
        return dict(frames.read(out))


def peer(site: str, folder: Path) -> Peer:
    directory = folder / f"peer-{site}"
    directory.mkdir()
    made = Peer(site, Store.open(directory), directory)
    weakref.finalize(made, made.store.close)
    return made


class MaskedHub(MemoryHub):
    """A hub in memory for masked rounds. Polls are answered from the real machine's state."""

    def __init__(self, folder: Path, signing_key: bytes) -> None:
        super().__init__(folder, signing_key)
        self.keys = {SITE: signing_key}
        self.peers: dict[str, Peer] = {}
        self.state: JobState = new_job("job-1", CONFIG)
        self.privacy = SECURE
        self.changes: dict[str, object] = {}  # of every task, against honesty
        self.leases: dict[str, Lease] = {}
        self.words: dict[str, list[Word]] = {}
        self.said: list[tuple[Said, Sealed]] = []  # by the node, in order, every time
        self.heard_of: list[str] = []  # every word that was handed to the node
        self.closes: list[Close] = []
        self.hold: frozenset[str] = frozenset()  # steps that the peers do not do yet
        self.waiting: list[Tell | GiveLease] = []
        self.forge: Callable[[Word], Word | None] = lambda word: word
        self.updates: dict[str, Weights] = {}
        self.lenient = False  # let pass whatever the node says: a hub that has made it say so
        self.own = SITE  # the site that is a whole node
        self.silent: dict[str, str] = {}  # peer -> the step from which on it says nothing
        self.trained: Callable[[Weights, str], Weights] = usual
        self.shouts = 0  # polls that are told every word once more, whatever was heard
        self._telling = masking.Words()

    # ---- one job -----------------------------------------------------------------------------

    def begin(self, base: Weights, config: RoundConfig = CONFIG, job: str = "job-1") -> Lease:
        """Open round 1 of a job from a base model; return the node's lease."""
        self.base = base
        digest = self.publish(base)
        self.state = new_job(job, config)
        for site in SITES:
            self.feed(Joined(0.0, site))
        self.feed(Started(0.0, digest, {}))
        return self.leases[f"{job}.1.0.{SITE}"]

    def feed(self, event: Event) -> None:
        """Let the machine move and do what it commands."""
        self.state, commands = advance(self.state, event)
        for command in commands:
            self.obey(command)
        self._changed.set()

    def obey(self, command: Command) -> None:
        match command:
            case GiveLease():
                self.leases[command.lease] = self._lease(command)
                self.words[command.lease] = []
                self._ask(command, "keys")
                if command.site == self.own:
                    self.assign(self.leases[command.lease])
            case Tell():
                self._ask(command, command.step)
            case CancelLease():
                self.assigned.pop(command.lease, None)
            case Close():
                self.closes.append(command)
            case _:
                pass

    def all_peers(self, folder: Path) -> None:
        """Make the node's site a peer as well: no agent runs."""
        self.own, mine = "", peer(SITE, folder)
        self.keys[SITE] = mine.public
        self.peers = {**self.peers, SITE: mine}
        for other in self.peers.values():
            other.pin(self.keys)

    def restart(self) -> None:
        """Come back as a hub does that was killed: with the journal's state alone."""
        self.assigned.clear()
        self.words = {lease: [] for lease in self.words}
        self.waiting = []
        for command in outstanding(self.state):
            if isinstance(command, GiveLease | Tell | Close):
                self.obey(command)
        self._changed.set()

    def go(self) -> None:
        """Let the peers do what they held back."""
        self.hold = frozenset()
        waiting, self.waiting = self.waiting, []
        for command in waiting:
            self._peer_does(command)

    def sum(self) -> tuple[Weights, masking.MaskedFold]:
        """Fold the accepted updates and take the masks off; return the mean."""
        schema = schema_of(self.base)
        fold = masking.MaskedFold(schema, self.privacy)
        accepted = [x for x in self.state.leases.values() if x.status == "accepted"]
        for lease in accepted:
            fold.add(lease.records, reader(self.updates[lease.id]))
        masking.opener(self.state, fold, reader(self.base))
        mean = {s.name: fold.result_chunk(s, 0, s.size).reshape(s.shape) for s in schema}
        return mean, fold

    def _lease(self, command: GiveLease) -> Lease:
        task = Task(
            command.kind,
            self.state.job,
            command.round,
            study_digest(HEARTS),
            HEARTS.name,
            plan_digest(PLAN),
            {},
            HEARTS.tags,
            command.model,
            command.seed,
            privacy=self.privacy,
            cohort=command.cohort,
            total=TOTAL,
        )
        return Lease(command.lease, msgspec.structs.replace(task, **self.changes), 3600.0)

    # ---- what sites do -----------------------------------------------------------------------

    def _ask(self, command: GiveLease | Tell, step: Step) -> None:
        if command.site == self.own:
            if isinstance(command, Tell):
                word = self.forge(self._telling.word(self.state, command))
                if word is not None:
                    self.words[command.lease].append(word)
        elif self.silent.get(command.site) == step:
            del self.peers[command.site]
        elif step in self.hold:
            self.waiting.append(command)
        else:
            asyncio.get_running_loop().call_soon(self._peer_does, command)

    def _peer_does(self, command: GiveLease | Tell) -> None:
        if command.lease not in self.state.leases or command.site not in self.peers:
            return
        lease, peer = self.leases[command.lease], self.peers[command.site]
        if isinstance(command, GiveLease):
            spoken = peer.masking.begin(lease)
        else:
            word = self._telling.word(self.state, command)
            spoken = peer.masking.hear(lease, word)
            if word.step == "inbox":
                self._peer_sends(lease, peer)
                return
        self.take(seal.open_sealed(spoken.said, "report", peer.public), peer.site)

    def _peer_sends(self, lease: Lease, peer: Peer) -> None:
        new = self.trained(self.base, peer.site)
        model = self._folder / (lease.task.model or "").removeprefix("b3:")
        self.updates[lease.id] = peer.update(
            lease, model, new, RECORDS[peer.site], {"loss": 0.25}
        )
        self.feed(Accepted(1.0, lease.id, "b3:0", TOTAL, {"loss": 0.0}))

    def take(self, payload: bytes, site: str) -> None:
        """Take a site's word as hub.federation does."""
        said = decode(payload, Said)
        if site != self.own or not self.lenient:
            masking.check(self.state, site, said, self.keys[site])
        body = base64.b64encode(said.body).decode()
        self.feed(Spoke(1.0, said.lease, said.step, body))

    # ---- the node's line ---------------------------------------------------------------------

    async def poll(self, poll: Poll) -> Orders:
        self.polls += 1
        until = self._loop.time() + min(poll.wait, 5.0)
        while True:
            self._check()
            fresh = tuple(x for i, x in self.assigned.items() if i not in poll.running)
            gone = tuple(i for i in poll.running if i not in self.assigned)
            words = tuple(self._news(poll))
            if fresh or gone or words or poll.catalogue != self.offer.version:
                self.heard_of += [word.step for word in words]
                await asyncio.sleep(0)
                return Orders(fresh, gone, self.offer.version, words)
            self._changed.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                return Orders(catalogue=self.offer.version)

    def _news(self, poll: Poll) -> Iterator[Word]:
        """Yield the words of running leases that follow what the node has heard."""
        again, self.shouts = self.shouts > 0, max(0, self.shouts - 1)
        for lease in poll.running:
            words = self.words.get(lease, []) if lease in self.assigned else []
            if again:
                yield from words
                continue
            heard = [word.step for word in words]
            last = poll.heard.get(lease, "")
            yield from words[heard.index(last) + 1 :] if last in heard else words

    async def report(self, sealed: Sealed) -> Verdict:
        self._check()
        payload = seal.open_sealed(sealed, "report", self.keys[SITE])
        report: Report = msgspec.msgpack.decode(payload, type=Report)
        self.reports.append(report)
        if isinstance(report, Said):
            self.said.append((report, sealed))
            if report.lease not in self.assigned:
                return Verdict(False, "not open")
            before = self.state
            self.take(payload, SITE)
            again = self.state.leases[report.lease].words.get(report.step)
            done = self.state is not before or again is not None
            return Verdict(done, "" if done else "not asked for now")
        return Verdict(self._ended(report))

    def _ended(self, report: Progress | Result | Failed | Declined) -> bool:
        if isinstance(report, Progress) or report.lease not in self.assigned:
            return isinstance(report, Progress)
        if isinstance(report, Result):
            assert report.model is not None and report.records == TOTAL
            self.updates[report.lease] = self.uploads[report.lease]
            event: Event = Accepted(1.0, report.lease, report.model, TOTAL, report.metrics)
        else:
            del self.assigned[report.lease]
            failed = isinstance(report, Failed)
            cause = report.cause if isinstance(report, Failed) else ""
            event = Settled(1.0, report.lease, "failed" if failed else "declined", cause)
        self.feed(event)
        return True

    def settled(self, lease: str) -> Report | None:
        """Return the node's last word on a lease itself."""
        found = [r for r in self.reports if not isinstance(r, Progress | Said)]
        return next((r for r in reversed(found) if r.lease == lease), None)

    def steps_said(self) -> list[str]:
        """Return the steps the node spoke in, in order, each as often as it did."""
        return [said.step for said, _ in self.said]


def reader(tensors: Weights) -> Callable[[TensorSpec], Iterator[Array]]:
    """Return how a fold reads tensors: in pieces that are reused, as from a disk."""

    def read(spec: TensorSpec) -> Iterator[Array]:
        flat = tensors[spec.name].reshape(-1)
        piece = np.empty(CHUNK, flat.dtype)
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            piece[: part.size] = part
            yield piece[: part.size]

    return read


def usual(base: Weights, site: str) -> Weights:
    """Return what a peer's training makes of a model."""
    amount = AMOUNTS[site]
    return {n: (w.astype(np.float64) + amount).astype(w.dtype) for n, w in base.items()}


def mean_amount(sites: tuple[str, ...] = SITES) -> float:
    """Return what a round of these sites adds to every weight of `w`."""
    counts = [RECORDS[site] for site in sites]
    return float(np.average([AMOUNTS[site] for site in sites], weights=counts))


@dataclass
class Lab:
    """A node with its masked hub and the peers of its study."""

    node: Node
    hub: MaskedHub
    peers: dict[str, Peer]

    @property
    def store(self) -> Store:
        return self.node.store

    def rows(self) -> int:
        """Return how many rounds' secrets lie in the node's store."""
        return len(self.store.rows("SELECT lease FROM masked"))


@contextlib.asynccontextmanager
async def lab(
    folder: Path, *, pinned: bool = True, runner: Runs | None = None, **settings: object
) -> AsyncIterator[Lab]:
    """Make a node that has accepted the study of four sites, and its hub and peers."""
    directory = folder / "node"
    directory.mkdir()
    ranges: dict[str, list[object]] = {"lr": [0.0, 2.0], "wait": [0.0, 60.0]}
    given = {"min_records": 100, "arguments": ranges, **settings}
    config = msgspec.convert({"site": SITE, "hub": "https://hub:1", **given}, NodeConfig)
    key = Ed25519PrivateKey.generate()
    hub = MaskedHub(folder / "hub", key.public_key().public_bytes_raw())
    others = {site: peer(site, folder) for site in SITES if site != SITE}
    hub.peers = others
    hub.keys |= {site: other.public for site, other in others.items()}
    with contextlib.ExitStack() as stack:
        store = Store.open(directory)
        stack.callback(store.close)
        for other in others.values():
            stack.callback(other.store.close)
            other.pin(hub.keys)
        runs = CountingRuns(runner or InProcess(site=SITE))
        node = Node(directory, config, store, hub, key, runs, hub)
        if pinned:
            peers.told(store, hub.keys, 0.0)
        node.accept(PLAN, HEARTS, RECORDS[SITE])
        yield Lab(node, hub, others)
