"""kill -9 of the hub, of agents and of a worker in every step of masked rounds.

A step is held open by what happens in hospitals too: an agent that stands still, a training
that takes long, a disk that takes no write. Four sites: one may be lost, with two lost the
round fails closed, says so, and is done again with fresh keys.
"""

import base64
import contextlib
import itertools
import os
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from bench.local import STUDY
from faultkit import Lab, accepted, journal, until

from consilia.core.select import site_seed
from consilia.sdk.client import Client
from consilia.wire import frames, masks
from consilia.wire.people import JobView
from consilia.wire.v1 import Privacy, decode

SITES = ("a", "b", "c", "d")
SECURE = Privacy(aggregation="secure")
STEPS = ("keys", "shares", "update", "consent", "unmask")
ERROR = 4 * 8 * 2.0**-31 * 1.05 + 2.0**-22  # the ring's, and float32's, of one round
SEED = 7

sizes = itertools.count(8192, 4)


def start(lab: Lab, client: Client, rounds: int = 1, **changes: object) -> str:
    """Start a masked job of a model of its own: a sum of one model is opened once only."""
    arguments = {"parameters": next(sizes), **changes.pop("arguments", {})}  # type: ignore[dict-item]
    usual = {"privacy": SECURE, "min_updates": 3, "min_sites": 4, "grace": 3.0}
    return lab.start(client, rounds, **{**usual, **changes}, arguments=arguments)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("masked")) as lab:
        lab.open(SITES, presence=4.0)
        yield lab


def check(lab: Lab, client: Client, view: JobView) -> None:
    """The exact mean of the recorded sites, within what the ring and float32 round off."""
    lab.check(client, view)
    first, last = view.rounds[0].round, view.rounds[-1].round
    models = [model(lab, client, f"{view.id}.{n}") for n in (first, last)]
    amount = sum(mean(lab, r.round, r.sites) for r in view.rounds if r.round)
    for name, old in models[0].items():
        gap = np.abs(models[1][name].astype(np.float64) - old - amount).max()
        assert gap < last * ERROR, f"{name} is off by {gap} after {last} rounds"


def mean(lab: Lab, round: int, sites: Sequence[str]) -> float:
    amounts = [amount(round, site) for site in sites]
    return float(np.average(amounts, weights=[lab.sizes[site] for site in sites]))


def amount(round: int, site: str) -> float:
    """What a site adds to every weight in a round, as known.py has it."""
    return float(np.float32(site_seed(SEED, round, site) % 1000 / 1000))


def model(lab: Lab, client: Client, id: str) -> "dict[str, np.ndarray]":  # type: ignore[type-arg]
    path = lab.root / "found.frame"
    path.unlink(missing_ok=True)
    client.download_model(id, path)
    return {name: np.asarray(array) for name, array in frames.read(path).items()}


def said(client: Client, job: str, step: str, attempt: int = 0) -> dict[str, bytes]:
    """What sites have said in a step of an attempt at round 1, by site."""
    bodies = [e.body for e in journal(client, job, "Spoke") if e.body["step"] == step]
    stem = f"{job}.1.{attempt}."
    return {
        str(b["lease"]).removeprefix(stem): base64.b64decode(str(b["body"]))
        for b in bodies
        if str(b["lease"]).startswith(stem)
    }


# ---- holding a step open ---------------------------------------------------------------------


@dataclass
class Hold:
    """What keeps a step from ending; `release` lets go of it."""

    lab: Lab
    frozen: list[str] = field(default_factory=list)
    disks: dict[str, sqlite3.Connection] = field(default_factory=dict)

    def freeze(self, site: str) -> None:
        os.killpg(self.lab.processes[site].pid, signal.SIGSTOP)
        self.frozen.append(site)

    def fill(self, *sites: str) -> None:
        """Let a node's disk take no write: nothing that has to be stored first is said."""
        for site in sites:
            path = self.lab.node_directory(site) / "node.sqlite"
            self.disks[site] = sqlite3.connect(path, timeout=20, isolation_level=None)
            self.disks[site].execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        for site in self.frozen:
            if site in self.lab.processes:
                os.killpg(self.lab.processes[site].pid, signal.SIGCONT)
        for disk in self.disks.values():
            disk.execute("ROLLBACK")
            disk.close()
        self.frozen, self.disks = [], {}


@contextlib.contextmanager
def held(lab: Lab, client: Client, step: str, **changes: object) -> Iterator[tuple[str, Hold]]:
    """Start a job and hold its first round in a step that c and d have not done.

    Where one site is enough to hold a step, c has done it.
    """
    lab.ready(*SITES)
    hold = Hold(lab)
    slow = {"wait": 4.0, "slow": lab.sizes["a"], "slow_round": 1}
    usual: dict[str, object] = {"grace": 30.0, "arguments": slow}
    try:
        if step == "keys":
            hold.freeze("d")
        job = start(lab, client, **{**usual, **changes})
        if step == "keys":
            until(lab, "the others' keys", lambda: set(said(client, job, "keys")) == set("abc"))
        elif step == "shares":
            pass
        yield job, hold
    finally:
        hold.release()
