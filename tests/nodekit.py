"""A whole node in one process, and a small complete hub in memory for it to talk to.

Nothing of the node is faked: store, policy, release, cache and agent are the real ones, reports
are signed and checked, frames lie on disk. The hub obeys whatever a test tells it to ask for,
which an honest hub would not.
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core.weights import Weights
from consilia.data.registry import Dataset
from consilia.errors import NotFound, TransferError
from consilia.node import approvals, audit, datasets, studies
from consilia.node.agent import Agent
from consilia.node.cache import Cache
from consilia.node.config import NodeConfig
from consilia.node.inprocess import InProcess
from consilia.node.link import HubLink
from consilia.node.release import Release
from consilia.node.runner import Runs
from consilia.node.store import Store
from consilia.wire import frames, seal
from consilia.wire.v1 import (
    Advertisement,
    Catalogue,
    Declined,
    Enrolled,
    Failed,
    Lease,
    Orders,
    Plan,
    PlanEntry,
    Poll,
    Progress,
    Renew,
    Report,
    Result,
    Sealed,
    Study,
    Task,
    Verdict,
    plan_digest,
    study_digest,
)

SITE = "charite"
STUDY = Study("hearts", "to learn", (SITE, "leuven"), ("cohort",))
SOURCE = """
import os, time
import numpy as np
from consilia.plans.contract import Outcome
from consilia.plans.numpy import numpy_plan

def init(args, seed):
    return {"w": np.zeros(1000, np.float32), "frozen": np.arange(500, dtype=np.float32)}

def train(weights, data, args, context):
    if args["wait"]:
        for i in range(int(args["wait"] * 50)):
            context.progress(i / (args["wait"] * 50), loss=1.0)
            time.sleep(0.02)
    return Outcome(
        {"w": weights["w"] + np.float32(args["lr"]), "frozen": weights["frozen"]},
        BODY_RECORDS,
        {"loss": 0.5},
    )

PLAN = numpy_plan(init, train, arguments={"lr": 1.0, "wait": 0.0})
"""


def make_plan(records: str = "args.get('n', 120)", name: str = "line", source: str = "") -> Plan:
    """Return the usual plan, or one with another source."""
    text = source or SOURCE.replace("BODY_RECORDS", "len(data)" if not records else records)
    return Plan(name, {"plan.py": text}, "plan:PLAN")


def write_table(path: Path, rows: int, name: str = "cohort", tags: tuple[str, ...] = ("cohort",)) -> Dataset:
    """Write a CSV and return its registration, made without DuckDB."""
    path.write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(rows)))
    status = path.stat()
    return Dataset(
        name,
        str(path),
        "csv",
        tags,
        {"x": "float32", "y": "float32"},
        ("",),
        rows,
        datasets.file_digest(path),
        status.st_size,
        status.st_mtime,
        time.time(),
    )
