"""w1 and w2: what a round costs beyond the training, at 1 MB and at 100 to 400 MB.

Nodes add an amount to every weight that follows from job seed, round and site (plans/echo.py),
so the final model is known: initial model plus the rounds' mean amounts. Journal, durability,
sandbox and mutual TLS are on. The floor is measured in the same run (floor.py).
"""

import os
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench import floor
from bench.local import STUDY, LocalFederation
from bench.watch import Watch, resident
from consilia.core.select import site_seed
from consilia.sdk.client import Client
from consilia.wire import frames, people
from consilia.wire.v1 import Privacy

HERE = Path(__file__).parent
SEED = 7


PLAIN, SECURE = Privacy(), Privacy(aggregation="secure")


def measure(
    root: Path, nodes: int, mb: float, rounds: int, secure: bool = False
) -> dict[str, Any]:
    """Run `rounds` rounds of a model of `mb` MB (1e6 bytes x 1.048576) over `nodes` nodes.

    `secure`: as many masked rounds after the plain ones, and their ratio.
    """
    parameters = int(mb * (1 << 20)) // 4 // 8 * 8
    sites = [f"site{i}" for i in range(nodes)]
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with LocalFederation(root, environment) as federation:
        plan = _ready(federation, sites)
        agent_rss = max(resident(federation.processes[s].pid) for s in sites)
        hub_idle = resident(federation.processes["hub"].pid)
        with federation.client() as client:
            found = _rounds(federation, client, plan, parameters, rounds)
            again = _second_job(federation, client, plan, found["job"], parameters)
            if secure:
                plain = found["seconds_per_round"]
                found = _rounds(federation, client, plan, parameters, rounds, SECURE)
                found |= {
                    "secure": True,
                    "plain_seconds_per_round": plain,
                    "ratio_to_plain": found["seconds_per_round"] / plain,
                }
    size = parameters * 4
    found["floor_s"] = floor.median(nodes, size, max(3, min(rounds, 20)), root)
    del found["job"]
    return {
        "nodes": nodes,
        "mb": mb,
        "rounds": rounds,
        **found,
        "ratio": found["seconds_per_round"] / found["floor_s"],
        "agent_rss_mb": agent_rss,
        "hub_idle_rss_mb": hub_idle,
        "fsync_ms": _fsync_ms(root),
        "second_job_bytes_share": again,
    }


def _ready(federation: LocalFederation, sites: list[str]) -> str:
    """Start hub and nodes; get study and plan accepted everywhere; return the plan's digest."""
    table = federation.root / "table.csv"
    table.write_text("x,y\n" + "\n".join(f"{i % 7},{i % 2}" for i in range(200)) + "\n")
    federation.make_hub()
    federation.start_hub()

    def enter(site: str) -> None:
        federation.join(site)
        federation.register(site, table)
        federation.start_node(site)

    federation.each(sites, enter)
    with federation.client() as client:
        plan = federation.offer(client, sites, HERE / "plans" / "echo.py")
    allow = "parameters=1..1000000000"
    federation.each(sites, lambda site: federation.agree(site, plan, allow))
    return plan


def _experiment(
    plan: str,
    nodes: int,
    parameters: int,
    rounds: int,
    *,
    base: str | None = None,
    privacy: Privacy = PLAIN,
) -> people.Experiment:
    return people.Experiment(
        study=STUDY,
        plan=plan,
        rounds=rounds,
        arguments={"parameters": parameters},
        min_updates=nodes,
        min_sites=nodes,
        seed=SEED,
        base=base,
        privacy=privacy,
    )


def _rounds(  # noqa: PLR0917
    federation: LocalFederation,
    client: Client,
    plan: str,
    parameters: int,
    rounds: int,
    privacy: Privacy = PLAIN,
) -> dict[str, Any]:
    sites = sorted(name for name in federation.processes if name != "hub")
    watch = Watch({name: process.pid for name, process in federation.processes.items()})
    start = time.monotonic()
    experiment = _experiment(plan, len(sites), parameters, rounds, privacy=privacy)
    job = client.start(experiment).id
    view = federation.finish(client, job, 600)
    wall = time.monotonic() - start
    cpu = watch.cpu()
    watch.close()
    closed = [e.at for e in events_of(client, job) if e.type == "Closed"]
    seconds = [b - a for a, b in pairwise(closed)]
    return {
        "job": job,
        "seconds_per_round": statistics.median(seconds[1:] or seconds),
        "first_round_s": seconds[0],
        "job_s": wall,
        "hub_peak_rss_mb": watch.peak("hub"),
        "node_peak_rss_mb": max(watch.peak(site) for site in sites),
        "cpu_s_per_round": cpu / (rounds + 1),
        "updates_aggregated": sum(len(r.sites) for r in view.rounds if r.round),
        "correct": _correct(federation, client, view, sites),
    }


def events_of(client: Client, job: str) -> list[people.EventView]:
    found: list[people.EventView] = []
    after = 0
    while page := client.events(job, after, 0.0):
        found.extend(page)
        after = page[-1].seq
    return found


def _correct(
    federation: LocalFederation, client: Client, view: people.JobView, sites: list[str]
) -> bool:
    """Whether the last model is the first one plus the mean amount of every round."""
    last = view.rounds[-1].round
    expected = sum(
        float(np.mean([np.float32((site_seed(SEED, r, s) % 1000) / 1e6) for s in sites]))
        for r in range(1, last + 1)
    )
    models = []
    for round in (0, last):
        path = federation.root / f"model{round}.frame"
        client.download_model(f"{view.id}.{round}", path)
        models.append(frames.read(path))
    gap = max(
        float(np.abs(np.subtract(models[1][name], models[0][name]) - expected).max())
        for name in models[0]
    )
    updates = sum(len(r.sites) for r in view.rounds if r.round)
    return gap < 1e-5 and expected > 0 and updates == last * len(sites)


def _second_job(
    federation: LocalFederation, client: Client, plan: str, first: str, parameters: int
) -> float:
    """Share of the model's bytes that a second job on the first job's base model sends out."""
    nodes = len(federation.processes) - 1
    experiment = _experiment(plan, nodes, parameters, 1, base=f"{first}.0")
    view = federation.finish(client, client.start(experiment).id, 600)
    return view.rounds[-1].bytes_out / (nodes * parameters * 4)


def _fsync_ms(root: Path) -> float:
    """Median milliseconds to make 4 KiB durable on the disk that was used."""
    fd = os.open(root / "fsync", os.O_CREAT | os.O_WRONLY)
    seconds = []
    try:
        for i in range(50):
            os.pwrite(fd, b"\1" * 4096, i * 4096)
            start = time.perf_counter()
            os.fdatasync(fd)
            seconds.append(time.perf_counter() - start)
    finally:
        os.close(fd)
    return statistics.median(seconds) * 1e3
