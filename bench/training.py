"""w3: one local epoch over 30 columns at every node, against the same work in one process."""

import json
import os
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb

from bench.local import STUDY, LocalFederation
from bench.rounds import events_of
from bench.watch import Watch
from consilia.wire import people
from consilia.wire.v1 import Privacy

HERE = Path(__file__).parent


def measure(root: Path, nodes: int, rows: int, rounds: int) -> dict[str, Any]:
    """Return seconds per round after the first, and their ratio to one process's epoch."""
    sites = [f"site{i}" for i in range(nodes)]
    with LocalFederation(root, {"OMP_NUM_THREADS": "1"}) as federation:
        federation.make_hub()
        federation.start_hub()

        def enter(site: str) -> None:
            federation.join(site)
            federation.register(site, _table(root, site, rows))
            federation.start_node(site)

        federation.each(sites, enter)
        with federation.client() as client:
            plan = federation.offer(client, sites, HERE / "plans" / "mlp.py")
            federation.each(sites, lambda site: federation.agree(site, plan))
            watch = Watch({name: p.pid for name, p in federation.processes.items()})
            job = client.start(
                people.Experiment(
                    study=STUDY,
                    plan=plan,
                    rounds=rounds,
                    min_updates=nodes,
                    min_sites=nodes,
                    deadline=3000,
                    privacy=Privacy(),
                )
            ).id
            view = federation.finish(client, job, 3000)
            watch.close()
            closed = [e.at for e in events_of(client, job) if e.type == "Closed"]
    seconds = [b - a for a, b in pairwise(closed)]
    median = statistics.median(seconds[1:] or seconds)
    central = _central(nodes, rows)
    return {
        "nodes": nodes,
        "rows": rows,
        "seconds_per_round": median,
        "first_round_s": seconds[0],
        "central_s": central,
        "central_threads": os.cpu_count(),
        "ratio": median / central,
        "hub_peak_rss_mb": watch.peak("hub"),
        "node_peak_rss_mb": max(watch.peak(site) for site in sites),
        "loss": [r.metrics.get("loss") for r in view.rounds if r.round],
        "correct": all(r.records == nodes * rows for r in view.rounds if r.round),
    }


def _table(root: Path, site: str, rows: int) -> Path:
    """Write `rows` records of 30 normal columns and a label that depends on three of them."""
    path = root / f"{site}.parquet"
    columns = ", ".join(
        f"CAST(sqrt(-2 * ln(1 - random())) * cos(6.283185307 * random()) AS FLOAT) AS x{i}"
        for i in range(30)
    )
    with duckdb.connect() as database:
        database.execute(f"SELECT setseed({(int(site[4:]) % 97) / 97})")
        database.execute(
            f"COPY (SELECT *, CAST(x0 + x1 + x2 > 0 AS FLOAT) AS y "
            f"FROM (SELECT {columns} FROM range({rows}))) TO '{path}' (FORMAT parquet)"
        )
    return path


def _central(nodes: int, rows: int) -> float:
    done = subprocess.run(
        [sys.executable, HERE / "central.py", str(nodes), str(rows), str(os.cpu_count())],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout)["epoch_s"])
