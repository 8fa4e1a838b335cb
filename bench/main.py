"""`./run bench NAME ...`: run one benchmark; its last line of output is one JSON object."""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import agent, api, compressing, he, many, pages, rounds, secagg, training

HERE = Path(__file__).parent


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark named first; return the exit status."""
    chosen = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="consilia-bench-") as root:
        if chosen.name in ("w1", "w2"):
            found = rounds.measure(
                Path(root), chosen.nodes, chosen.mb, chosen.rounds, chosen.secure
            )
        elif chosen.name == "w3":
            found = training.measure(Path(root), chosen.nodes, chosen.rows, chosen.rounds)
        elif chosen.name == "secagg":
            found = secagg.measure(chosen.nodes, chosen.params, chosen.bits, chosen.peers)
        elif chosen.name == "he":
            found = he.measure(chosen.nodes, chosen.params)
        elif chosen.name == "api":
            found = api.measure(Path(root), chosen.seconds, chosen.subscribers, chosen.jobs)
        elif chosen.name == "many":
            found = many.measure(
                Path(root), chosen.nodes, chosen.mb, chosen.rounds, chosen.idle
            )
        elif chosen.name == "pages":
            found = pages.measure(Path(root), chosen.visits)
        elif chosen.name == "compress":
            found = compressing.measure(Path(root), chosen.params)
        else:
            found = agent.measure(Path(root))
    print(json.dumps({"name": chosen.name, **found, **_where()}))
    return 0 if found.get("correct", True) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    w1 = names.add_parser("w1", help="N nodes, a small model")
    w1.add_argument("--nodes", type=int, default=4)
    w1.add_argument("--mb", type=float, default=1.0)
    w1.add_argument("--rounds", type=int, default=20)
    w1.add_argument("--secure", action="store_true", help="masked rounds, and plain ones too")
    w2 = names.add_parser("w2", help="4 nodes, a large model")
    w2.add_argument("--nodes", type=int, default=4)
    w2.add_argument("--mb", type=float, default=100.0)
    w2.add_argument("--rounds", type=int, default=5)
    w2.add_argument("--secure", action="store_true", help="masked rounds, and plain ones too")
    w3 = names.add_parser("w3", help="N nodes train on 30 columns, against one process")
    w3.add_argument("--nodes", type=int, default=10)
    w3.add_argument("--rows", type=int, default=1_000_000)
    w3.add_argument("--rounds", type=int, default=3)
    masks = names.add_parser("secagg", help="masking and unmasking, beside the peers'")
    masks.add_argument("--nodes", type=int, default=10)
    masks.add_argument("--params", type=int, default=1_000_000)
    masks.add_argument("--bits", type=int, default=32, choices=(8, 16, 32))
    masks.add_argument("--peers", default=sys.executable, help="a python with their packages")
    ciphers = names.add_parser("he", help="homomorphic encryption, beside masking")
    ciphers.add_argument("--nodes", type=int, default=4)
    ciphers.add_argument("--params", type=int, default=100_000)
    packs = names.add_parser("compress", help="bytes saved by compression, and its cost")
    packs.add_argument("--params", type=int, default=1_000_000)
    people = names.add_parser("api", help="the people's REST API under load")
    people.add_argument("--seconds", type=float, default=8.0, help="of each load")
    people.add_argument("--subscribers", type=int, default=1000)
    people.add_argument("--jobs", type=int, default=2000, help="that the hub knows")
    paint = names.add_parser("pages", help="first paint of the dashboard, in Chromium")
    paint.add_argument("--visits", type=int, default=7)
    crowd = names.add_parser("many", help="a hub with many sites")
    crowd.add_argument("--nodes", type=int, default=1000)
    crowd.add_argument("--mb", type=float, default=1.0)
    crowd.add_argument("--rounds", type=int, default=2)
    crowd.add_argument("--idle", type=float, default=20.0, help="seconds to watch it idle")
    names.add_parser("agent", help="start time and memory of agent, hub and command")
    return parser


def _where() -> dict[str, Any]:
    """Return what the figures depend on: machine, versions, commit, date."""
    commit = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    model = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "machine": f"{len(model)} x {model[0] if model else platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": commit.stdout.strip() or "none",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
