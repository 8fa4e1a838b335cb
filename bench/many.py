"""many: what a hub costs with many sites connected, and how long a round with all takes.

One real hub process; light agents (bench/agents) in two processes, each with its own
certificate, its own mutual TLS lines and its own long poll. A round: every site brings a model
of 1 MB and sends 1 MB back, all of it durable and verified at the hub. The agents take their
share of the same machine, and of its time: `hub_cpu_s` and `nodes_cpu_s` are the processor
seconds of a round at each, the mean of all rounds; `hub_cpu_ms_per_node` is the hub's share of
them for one site. `seconds_per_round` is the median after the
first round, in which every site opens its line for models.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from cryptography.hazmat.primitives import serialization
from sqlalchemy import Connection

from bench.agents import TAG
from bench.api import hub_address
from consilia.hub import atrest, records
from consilia.hub.access import Access
from consilia.hub.config import Directory, HubConfig
from consilia.node import identity
from consilia.sdk.client import Client
from consilia.wire import frames
from consilia.wire.people import Experiment, JobView
from consilia.wire.token import decode_token
from consilia.wire.v1 import Enrol, Plan, Privacy, Study, plan_digest, study_digest

PROCESSES = 2
PATIENCE = 300.0  # seconds for all agents to be there, and for a job
PLAN = Plan(name="many", files={"plan.py": "PLAN = 1\n"}, entry="plan:PLAN")


def measure(root: Path, nodes: int, mb: float, rounds: int, idle: float) -> dict[str, Any]:
    """Connect `nodes` agents, watch the hub idle for `idle` seconds, run `rounds` rounds."""
    layout = Directory(root / "hub")
    sites = tuple(f"site{n}" for n in range(nodes))
    study = Study("many", "To be measured", tuple(sorted(sites)), (TAG,))
    config = HubConfig(
        people_listen="127.0.0.1:0",
        node_listen="127.0.0.1:0",
        hosts=("127.0.0.1",),
        log_level="warning",
    )
    atrest.init(layout.root, config)
    _enrol(root, layout, sites, study)
    parameters = int(mb * (1 << 20)) // 4
    base, update = (np.full(parameters, value, np.float32) for value in (0.0, 1.0))
    frames.write(root / "base.frame", {"w": base})
    sent = frames.write(root / "update.frame", {"w": update})
    processes: list[subprocess.Popen[bytes]] = []
    try:
        hub = _start("consilia.cli.main", "hub", "serve", "--dir", str(layout.root))
        processes.append(hub)
        people = hub_address(layout.root, hub)
        nodes_at = hub_address(layout.root, hub, "nodes")
        each = -(-nodes // PROCESSES)
        for first in range(0, nodes, each):
            count = str(min(each, nodes - first))
            words = (str(root), str(first), count, nodes_at, study_digest(study))
            processes.append(_start("bench.agents", *words, plan_digest(PLAN)))
        token = layout.operator_token.read_text().strip()
        with Client(
            people, token, (layout.secrets / "ca.pem").read_text(), environ={}
        ) as client:
            _until_online(client, nodes, processes)
            cpu = _cpu(hub.pid)
            time.sleep(idle)
            idle_cpu = (_cpu(hub.pid) - cpu) / idle
            view, spent = _run(client, root, rounds, nodes, processes)
            version = client.model(view.rounds[-1].model or "")
        trained = [r for r in view.rounds if r.round]
        later = [r.seconds for r in trained[1:]] or [trained[0].seconds]
        return {
            "nodes": nodes,
            "mb": mb,
            "idle_cpu": round(idle_cpu, 4),
            "seconds_per_round": round(statistics.median(later), 2),
            "first_round_s": round(trained[0].seconds, 2),
            "hub_cpu_s": round(spent[0] / rounds, 2),
            "hub_cpu_ms_per_node": round(spent[0] / rounds / nodes * 1e3, 2),
            "nodes_cpu_s": round(sum(spent[1:]) / rounds, 2),
            "hub_peak_rss_mb": round(_peak(hub.pid) / 1e6, 1),
            "correct": all(len(r.sites) == nodes for r in trained)
            and version.digest == sent.digest,
        }
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def _start(*words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL)


def _enrol(root: Path, layout: Directory, sites: tuple[str, ...], study: Study) -> None:
    """Let every site join, as a node would, but in this process; enter study and plan."""

    def govern(db: Connection) -> None:
        records.add_study(db, study, "operator", 1.0)
        records.submit_study(db, study.name, 1.0)
        records.add_plan(db, PLAN, study.name, "operator", 1.0)

    with atrest.at_rest(layout.root) as (store, access):
        (root / "ca.pem").write_bytes(access.ca_pem)

        async def all_of_them() -> None:
            for begin in range(0, len(sites), 50):
                batch = sites[begin : begin + 50]
                await asyncio.gather(*(_join(root, access, site) for site in batch))
            await store.write(govern)

        asyncio.run(all_of_them())


async def _join(root: Path, access: Access, site: str) -> None:
    token = decode_token((await access.invite(site)).token)
    keys = identity.new_keys()
    public = keys.signing.public_key().public_bytes_raw()
    request = identity.request(keys.tls, site)
    enrolled = await access.enrol(Enrol(site, token.secret, request, public))
    folder = root / site
    folder.mkdir()
    (folder / "node.pem").write_bytes(enrolled.certificate)
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "node.key").write_bytes(
        keys.tls.private_bytes(*pem, serialization.NoEncryption())
    )
    (folder / "signing.key").write_bytes(keys.signing.private_bytes_raw())


def _until_online(
    client: Client, nodes: int, processes: list["subprocess.Popen[bytes]"]
) -> None:
    deadline = time.monotonic() + PATIENCE
    while sum(site.online for site in client.sites()) < nodes:
        if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
            raise RuntimeError("not all agents came")
        time.sleep(1)


def _run(
    client: Client,
    root: Path,
    rounds: int,
    nodes: int,
    processes: list["subprocess.Popen[bytes]"],
) -> tuple[JobView, list[float]]:
    """Run a job; return it, and the CPU seconds that each process took for it."""
    base = client.upload_frame(root / "base.frame").digest
    experiment = Experiment(
        study="many",
        plan=plan_digest(PLAN),
        rounds=rounds,
        base=base,
        min_updates=nodes,
        min_sites=nodes,
        grace=PATIENCE,
        deadline=PATIENCE,
        privacy=Privacy(),
    )
    before = [_cpu(p.pid) for p in processes]
    job, deadline = client.start(experiment).id, time.monotonic() + PATIENCE
    while (view := client.job(job)).state != "done":
        if view.state == "failed" or time.monotonic() > deadline:
            raise RuntimeError(f"the job {view.state}: {view.cause}")
        if any(p.poll() is not None for p in processes):
            raise RuntimeError("a process has ended")
        time.sleep(0.5)
    return view, [_cpu(p.pid) - was for p, was in zip(processes, before, strict=True)]


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _peak(pid: int) -> float:
    """Return the largest resident set a process has had, bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024
    return 0.0
