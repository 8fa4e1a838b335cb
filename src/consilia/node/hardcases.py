"""The records of a site that a model is most wrong about, for the site's own staff.

It runs as a privacy report does: by an approved plan, on a registered dataset as it is loaded,
in the sandbox; an audit line says that it began and ended. What it shows are records, so it is
shown here and nowhere else: nothing of it is sent, and no file is left.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from consilia.core.weights import TensorSpec, Weights
from consilia.errors import ConfigError, WorkerError
from consilia.node import aside, config, evidence
from consilia.node.config import NodeConfig
from consilia.node.evidence import Asked
from consilia.node.policy import short
from consilia.node.privacyreport import BUSY, FOLDER, Tell, Wanted, prepared
from consilia.node.runner import Runner, choose_launcher
from consilia.node.store import Store
from consilia.wire import frames
from consilia.wire.v1 import plan_digest
from consilia.wire.worker import Audit, Run, WorkerTensor

ACTION = "hard.cases"
MOST = 200  # records at once: more is a table, not a look
_MAX_NAMES = 4 << 20  # bytes
_MAX_VALUES = 1 << 24
_DTYPES = {
    "losses": "float64",
    "rows": "int64",
    "values": "float64",
    "shares": "float64",
    "targets": "float64",
    "names": "uint8",
    "patients": "uint8",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One value of a record, and its share in the record's loss (plans.explain)."""

    name: str
    value: float
    share: float


@dataclass(frozen=True, slots=True)
class Case:
    """One record: its place in the table as it is loaded, from 1, and what makes it hard."""

    row: int
    patient: str  # "" where the dataset declares no patient column
    loss: float
    target: tuple[float, ...]
    parts: tuple[Part, ...]  # largest shares first, whatever their sign


@dataclass(frozen=True, slots=True)
class Cases:
    """The hardest records, and the losses of all to compare them with."""

    dataset: str
    model: str  # digest of its frame
    records: int
    median: float  # of all records' losses
    worst: tuple[Case, ...]


def find(  # noqa: PLR0913  by keyword
    store: Store,
    directory: Path,
    wanted: Wanted,
    *,
    most: int,
    actor: str,
    today: date,
    now: Callable[[], float],
    tell: Tell,
) -> Cases:
    """Return the `most` records with the highest loss.

    Raises Refused for a plan that is not approved, NotFound and DataError for the dataset,
    ConfigError for a number that makes no sense, WorkerError when the task fails.
    """
    if not 1 <= most <= MOST:
        raise ConfigError(f"top: found {most}, needed 1 to {MOST}")
    settings = config.load(directory)
    with aside.workplace(directory, FOLDER, BUSY) as folder:
        asked = prepared(store, settings, wanted, folder, today)
        digest = frames.read_header(asked.model).digest
        about = f"plan {short(plan_digest(asked.plan))}, model {digest}, {most} records"
        with store.write() as tx:
            tx.audit(now(), actor, ACTION, wanted.dataset, "started", about)
        try:
            found = asyncio.run(_found(settings, asked, folder, digest, most, tell))
        except BaseException as error:
            with store.write() as tx:
                tx.audit(now(), actor, ACTION, wanted.dataset, "failed", type(error).__name__)
            raise
        with store.write() as tx:
            tx.audit(now(), actor, ACTION, wanted.dataset, "shown", about)
    return found


async def _found(  # noqa: PLR0913, PLR0917 - what the task needs
    settings: NodeConfig, asked: Asked, folder: Path, digest: str, most: int, tell: Tell
) -> Cases:
    launcher = choose_launcher(settings.sandbox)
    if said := launcher.warning:
        tell(f"WARNING: the plan's code runs {said}")
    runner = Runner(launcher, folder, settings.limits, site=settings.site, cuda=settings.cuda)
    seed = int.from_bytes(os.urandom(4), "big") >> 1
    audit = Audit("explain", most=most)
    task = Run("audit", 1, asked.arguments, None, seed, False, audit=audit)
    job = f"audit-{asked.dataset.name}"[:63].rstrip("-._")
    try:
        output = await runner.run(
            job, asked.plan, asked.dataset, task, asked.model, evidence.unheard, asked.seconds
        )
        taken = False
        try:
            schema = tuple(_checked(t, most) for t in output.done.tensors)
            arrays = await asyncio.to_thread(aside.read_tensors, output, schema)
            taken = True
        finally:
            output.close(consumed=taken)
    except WorkerError as error:
        raise WorkerError(evidence.last_line(error), error.cause) from None
    finally:
        await runner.close()
    return _cases(asked.dataset.name, digest, arrays)


def _checked(tensor: WorkerTensor, most: int) -> TensorSpec:
    """Return what a worker may send of a tensor; it runs a plan's code, and is not trusted."""
    spec = TensorSpec(tensor.name, tensor.dtype, tensor.shape)
    dtype = _DTYPES.get(tensor.name)
    sound = dtype == tensor.dtype and min(tensor.shape, default=0) >= 0
    rank = 2 if tensor.name in ("values", "shares", "targets") else 1
    limit = _MAX_NAMES if dtype == "uint8" else _MAX_VALUES
    few = tensor.name == "losses" or dtype == "uint8" or tensor.shape[:1] <= (most,)
    if not sound or len(tensor.shape) != rank or spec.nbytes > limit * 8 or not few:
        raise WorkerError(
            f"the worker's answer {tensor.name[:40]!r} is not what was asked", "plan-contract"
        )
    return spec


def _cases(dataset: str, digest: str, arrays: Weights) -> Cases:
    if set(arrays) != set(_DTYPES):
        raise WorkerError("the worker's answer lacks a part", "plan-contract")
    losses, values, shares, targets = (
        np.asarray(arrays[name], np.float64)
        for name in ("losses", "values", "shares", "targets")
    )
    rows = np.asarray(arrays["rows"], np.int64)
    names = bytes(arrays["names"]).decode("utf-8", "replace").split("\n")
    text = bytes(arrays["patients"]).decode("utf-8", "replace")
    patients = text.split("\n") if text else [""] * len(rows)
    fits = (
        values.shape == shares.shape == (len(rows), len(names))
        and len(patients) == len(targets) == len(rows)
        and len(rows) <= len(losses)
        and bool(((rows >= 0) & (rows < len(losses))).all())
    )
    if not fits:
        raise WorkerError("the parts of the worker's answer do not fit", "plan-contract")
    worst = []
    for at, row in enumerate(rows):
        order = np.argsort(-np.abs(shares[at]), kind="stable")
        parts = tuple(Part(names[i], float(values[at, i]), float(shares[at, i])) for i in order)
        target = tuple(float(t) for t in targets[at])
        worst.append(Case(int(row) + 1, patients[at], float(losses[row]), target, parts))
    median = float(np.median(losses)) if len(losses) else float("nan")
    return Cases(dataset, digest, len(losses), median, tuple(worst))
