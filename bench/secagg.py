"""`./run bench secagg`: what secure aggregation costs a node and the hub, without a network.

N members walk through the protocol in this process. `protect_ms` is one node's work on its
update: agreeing on masks with everybody, quantising, masking. `hub_ms` is the hub's work on
the round: adding N masked updates, opening the masks, taking them off, turning the sum into
the mean; `hub_two_gone_ms` the same when two sites drop out after the shares were dealt. The
floor is the keystream alone: AES-256-CTR over as many bytes as each mask has, in the same
pieces. Floor and work are measured in turn, many times. The milliseconds are the best of each,
since other programs only ever add time; `floor_ratio` is the median of work over the floor
measured right before it, since what disturbs one disturbs the other.

`bytes_ratio` is everything a node sends (masked update and messages) over the update as
float32. The peers protect the same vector (its first million numbers) in the same run, by
bench/secagg_peers.py under the interpreter given with --peers; one that it cannot import is
reported as absent.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from consilia.privacy import graph, ring, secagg
from consilia.privacy.streams import PIECE, Ring, keystream, random_of
from consilia.wire import frames

CLIP = 0.08  # range of the changes
PEERS_MOST = 1_000_000  # parameters; larger vectors take some peers minutes
CONTEXT = b"bench"
CHANGES = frames.CHUNK // 4  # float32 changes that a node reads, rounds and masks at a time


def measure(nodes: int, params: int, bits: int, peers: str) -> dict[str, Any]:
    """Return the figures of `nodes` sites with `params` float32 parameters each."""
    cast = _Cast(nodes)
    updates = _Updates(params, nodes, bits)
    first = cast.members[cast.sites[0]]
    streams = graph.degree(nodes) + 1  # the neighbours' masks and its own
    floor, protect = [], []
    for _ in range(_repeats(params)):
        floor.append(_seconds(lambda: _floor(streams, updates.steps.nbytes)))
        protect.append(_seconds(lambda: updates.protect(first, 0)))
    hub, error = _hub(cast, updates, 0)
    late, late_error = _hub(cast, updates, min(2, nodes - secagg.threshold(nodes)))
    worst = max(error, late_error)
    found = {
        "nodes": nodes,
        "params": params,
        "bits": bits,
        "protect_ms": round(min(protect) * 1e3, 2),
        "floor_ms": round(min(floor) * 1e3, 2),
        "floor_ratio": round(median(p / f for p, f in zip(protect, floor, strict=True)), 2),
        "hub_ms": round(hub * 1e3, 1),
        "hub_two_gone_ms": round(late * 1e3, 1),
        "bytes_ratio": round((updates.steps.nbytes + cast.sent()) / (4 * params), 4),
        "max_error": worst,
        "correct": worst <= (1e-8 if bits == 32 else nodes / updates.scale),
    }
    return {**found, "peers": _peers(peers, nodes, min(params, PEERS_MOST))}


def alone(nodes: int, params: int) -> dict[str, float]:
    """Return the figures without peers and without the floor, at 32 bits."""
    cast, updates = _Cast(nodes), _Updates(params, nodes, 32)
    first = cast.members[cast.sites[0]]
    protect = min(_seconds(lambda: updates.protect(first, 0)) for _ in range(5))
    hub, error = _hub(cast, updates, 0)
    return {
        "protect_ms": round(protect * 1e3, 2),
        "hub_ms": round(hub * 1e3, 1),
        "bytes_ratio": round((updates.steps.nbytes + cast.sent()) / (4 * params), 4),
        "max_error": error,
    }


def _repeats(params: int) -> int:
    """Return how often to measure: the best of many is steady on a busy machine."""
    return min(50, max(9, 50_000_000 // params))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _floor(count: int, size: int) -> None:
    """Make the keystreams of a node's masks and throw them away."""
    zeros, buffer = memoryview(bytes(PIECE)), memoryview(bytearray(PIECE))
    streams = [keystream(os.urandom(32)) for _ in range(count)]
    for start in range(0, size, PIECE):
        part = min(PIECE, size - start)
        for stream in streams:
            stream.update_into(zeros[:part], buffer[:part])


class _Updates:
    """The sites' updates, and one array into which they are masked in turn."""

    def __init__(self, params: int, nodes: int, bits: int) -> None:
        self.params, self.weight = params, 1 / nodes
        self.scale = ring.scale_of(bits, CLIP)
        self.steps: Ring = np.empty(params, f"u{bits // 8}")
        self.random = random_of(os.urandom(32)) if bits < 32 else None
        self.drawn = self.values(0)

    def values(self, number: int) -> NDArray[np.float32]:
        """Return the update of a site: clipped normal, as gradients are."""
        rng = np.random.default_rng(number)
        drawn = rng.standard_normal(self.params, np.float32) * np.float32(0.03)
        return np.clip(drawn, -CLIP, CLIP, dtype=np.float32, out=drawn)

    def protect(self, member: secagg.Member, number: int) -> None:
        """Write the masked update of a site to `steps`: a node's work."""
        values = self.drawn if number == 0 else self.values(number)
        masker = secagg.masker(member)
        for start in range(0, self.params, CHANGES):
            part = values[start : start + CHANGES]
            steps = self.steps[start : start + CHANGES]
            if steps.itemsize == 1 and self.random is not None:  # what is left over is dropped
                ring.coarse(part, self.scale, self.weight, steps, self.random)
            else:
                ring.quantise(part, self.scale, self.weight, steps, self.random)
            masker.mask(steps)


class _Cast:
    """The sites of a round, walked to where updates are masked."""

    def __init__(self, nodes: int) -> None:
        self.sites = tuple(f"site-{number:03}" for number in range(nodes))
        self.signers = {site: Ed25519PrivateKey.generate() for site in self.sites}
        self.pins = {s: k.public_key().public_bytes_raw() for s, k in self.signers.items()}
        self.members: dict[str, secagg.Member] = {}
        self.keys: dict[str, bytes] = {}
        self.shares: dict[str, bytes] = {}
        for site, key in self.signers.items():
            self.members[site], self.keys[site] = secagg.join(
                site, CONTEXT, key.sign, os.urandom
            )
        self.roster = secagg.roster(CONTEXT, self.keys)
        for site in self.sites:
            self.members[site], self.shares[site] = secagg.share(
                self.members[site], self.roster, self.pins, os.urandom
            )
        for site, inbox in secagg.inboxes(self.shares).items():
            self.members[site] = secagg.receive(self.members[site], inbox)

    def answers(self, alive: tuple[str, ...]) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Return what the survivors say: `Consent` and `Unmask`, by site."""
        told = secagg.survivors(CONTEXT, alive)
        agreed = {
            site: secagg.consent(self.members[site], told, self.signers[site].sign)
            for site in alive
        }
        consents = {site: body for site, (_, body) in agreed.items()}
        every = secagg.consents(consents)
        return consents, {
            site: secagg.unmask(member, every, self.pins)[1]
            for site, (member, _) in agreed.items()
        }

    def sent(self) -> int:
        """Return the bytes of all messages of the first site."""
        consents, unmasks = self.answers(self.sites)
        every = (self.keys, self.shares, consents, unmasks)
        return sum(len(bodies[self.sites[0]]) for bodies in every)


def _hub(cast: _Cast, updates: _Updates, gone: int) -> tuple[float, float]:
    """Return the hub's seconds for a round that `gone` sites leave, and the largest error."""
    alive = cast.sites[: len(cast.sites) - gone]
    total = np.zeros_like(updates.steps)
    exact = np.zeros(updates.params)
    spent = 0.0
    for number, site in enumerate(alive):
        updates.protect(cast.members[site], number)
        exact += updates.values(number)
        spent += _seconds(lambda: np.add(total, updates.steps, out=total))
    exact /= len(alive)
    unmasks = cast.answers(alive)[1]
    mean = np.empty(updates.params, np.float32)
    step = updates.scale * updates.weight * len(alive)

    def finish() -> None:
        unmasker = secagg.unmasker(CONTEXT, cast.roster, cast.shares, alive, unmasks)
        for start in range(0, updates.params, ring.PIECE):
            part = total[start : start + ring.PIECE]
            unmasker.subtract(part)
            mean[start : start + ring.PIECE] = ring.dequantise(part, step, np.float32)

    masked = total.copy()
    opened = []
    for _ in range(3):
        total[...] = masked
        opened.append(_seconds(finish))
    return spent + min(opened), float(np.abs(mean - exact).max())


def _peers(interpreter: str, nodes: int, params: int) -> dict[str, Any]:
    """Measure the peers on `params` numbers; each with its time over ours on the same ones."""
    script = Path(__file__).with_name("secagg_peers.py")
    updates, cast = _Updates(params, nodes, 32), _Cast(nodes)
    with tempfile.NamedTemporaryFile(suffix=".npy") as vector:
        np.save(vector, updates.drawn)
        vector.flush()
        done = subprocess.run(
            [interpreter, str(script), str(nodes), vector.name],
            capture_output=True,
            text=True,
            check=True,
            timeout=900,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    member = cast.members[cast.sites[0]]
    ours = (
        min(_seconds(lambda: updates.protect(member, 0)) for _ in range(_repeats(params))) * 1e3
    )
    for peer in found.values():
        if "protect_ms" in peer:
            peer["times_ours"] = round(peer["protect_ms"] / ours, 1)
    return {"params": params, "ours_ms": round(ours, 2), **found}
