"""A whole hub in this process, behind its real listeners, and people with real tokens."""

import asyncio
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import sqlalchemy as sa

from consilia.core.weights import Weights
from consilia.hub import app, atrest, modelversions, records
from consilia.hub.app import Addresses, Outside
from consilia.hub.blobs import DiskBlobs
from consilia.hub.clock import LoopClock
from consilia.hub.config import Directory, HubConfig, Limits
from consilia.hub.modelversions import Version
from consilia.hub.records import JobRecord
from consilia.hub.telemetry import make_log
from consilia.sdk.client import Client
from consilia.wire import frames
from consilia.wire.people import Experiment, Strategy
from consilia.wire.v1 import Plan, Study, plan_digest, study_digest
from peoplekit import CHEAP

CONFIG = HubConfig(
    people_listen="127.0.0.1:0",
    node_listen="127.0.0.1:0",
    limits=Limits(init_frame_bytes=1 << 20, poll_wait=5),
    log_level="debug",
)
SOURCE = "PLAN = 1\n"


class ShiftedClock(LoopClock):
    """The real clock, moved by as many seconds as a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = 0.0

    def now(self) -> float:
        return super().now() + self.shift


@dataclass
class RestHub:
    """A running hub; `tokens` are by name."""

    directory: Path
    addresses: Addresses
    clock: ShiftedClock
    log: io.StringIO
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def ca(self) -> str:
        return (self.directory / "secrets" / "ca.pem").read_text("ascii")

    def client(self, name: str, **more: Any) -> Client:
        return Client(self.addresses.people, self.tokens[name], self.ca, environ={}, **more)

    def http(self, name: str | None = None) -> httpx.Client:
        """Return a plain HTTP client, for what no well-behaved program sends."""
        headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name else {}
        context = _context(self.ca)
        return httpx.Client(
            base_url=self.addresses.people, headers=headers, verify=context, trust_env=False
        )

    def add(self, name: str, role: str) -> None:
        """Make a token through the API."""
        with self.client("operator") as client:
            secret = client.new_token(name, role).secret
        assert secret is not None
        self.tokens[name] = secret

    def lines(self, action: str) -> list[tuple[str, str]]:
        """Return (actor, subject) of the audit lines of one action."""
        with self.client("operator") as client:
            return [(v.actor, v.subject) for v in client.audit() if v.action == action]


def _context(ca: str) -> Any:
    import ssl  # noqa: PLC0415

    return ssl.create_default_context(cadata=ca)


@contextmanager
def running_hub(
    directory: Path, config: HubConfig = CONFIG, every: float = 300.0
) -> Iterator[RestHub]:
    """Make a hub unless it is there, run it in a thread of its own, and end it.

    `every` is how often it does its housekeeping, in seconds.
    """
    if not Directory(directory).config.exists():
        atrest.init(directory, config)
    clock, text = ShiftedClock(), io.StringIO()
    ready, stop = threading.Event(), threading.Event()
    found: list[Addresses] = []
    failed: list[BaseException] = []

    async def run() -> None:
        outside = Outside(make_log(text, "debug"), clock, os.urandom, every=every, hasher=CHEAP)
        async with app.running(directory, outside) as addresses:
            found.append(addresses)
            ready.set()
            await asyncio.to_thread(stop.wait)

    def body() -> None:
        try:
            asyncio.run(run())
        except BaseException as e:
            failed.append(e)
        finally:
            ready.set()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        assert ready.wait(120), "the hub was not ready in time"
        if failed:
            raise failed[0]
        hub = RestHub(directory, found[0], clock, text)
        hub.tokens["operator"] = Directory(directory).operator_token.read_text().strip()
        yield hub
    finally:
        stop.set()
        thread.join(20)
    if failed:
        raise failed[0]


def study(name: str = "heart", **changes: Any) -> Study:
    fields: dict[str, Any] = {
        "name": name,
        "purpose": "to test",
        "sites": ("north", "south"),
        "tags": ("cardiology",),
    }
    return Study(**(fields | changes))


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "name": "plan",
        "files": {"plan.py": SOURCE},
        "entry": "plan:PLAN",
    }
    return Plan(**(fields | changes))


def weights(seed: int = 0, size: int = 1000) -> Weights:
    generator = np.random.default_rng(seed)
    return {"w": generator.normal(size=size).astype(np.float32), "b": np.zeros(3, np.float32)}


def put_version(directory: Path, author: str, model: Weights) -> Version:
    """Enter a finished job with one model version, as a hub that ran it has left it."""
    governed, offered = study("finished"), plan(name="finished")
    blobs = DiskBlobs(directory)
    spool = blobs.open_spool("seed")
    header = frames.write(spool.fd, model)
    spool.close()
    blobs.adopt("seed", header.digest)
    blobs.close()
    experiment = Experiment(study="finished", plan=plan_digest(offered), rounds=1)
    version = Version(
        id="job-0000000000000001.1",
        job="job-0000000000000001",
        round=1,
        digest=header.digest,
        bytes=header.total_bytes,
        parent=None,
        study="finished",
        study_digest=study_digest(governed),
        plan=plan_digest(offered),
        arguments={"lr": 0.1},
        strategy=Strategy(),
        sites=("north", "south"),
        records=100,
        metrics={"loss": 0.5},
        created=2.0,
        seconds=1.0,
    )

    def enter(db: sa.Connection) -> None:
        records.add_study(db, governed, author, 1.0)
        records.submit_study(db, "finished", 1.0)
        records.add_plan(db, offered, "finished", author, 1.0)
        job = JobRecord(version.job, experiment, version.study_digest, author, 1.0, "done")
        records.add_job(db, job)
        modelversions.add(db, version)

    with atrest.at_rest(directory) as (store, _):
        asyncio.run(store.write(enter))
    return version
