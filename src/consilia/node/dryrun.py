"""A plan tried on invented records before anybody approves it: does it run, what does it cost?

The plan's code runs behind the same walls as after an approval, on a table that is made here:
the dataset's columns and types, filled by its mock twin where one was made, else by
placeholders, and loaded by the data loading plan that a task would load it by. No record of the
dataset is read, so a plan that encodes what it sees has seen nothing. What it made is measured
and thrown away. All files lie in DIR/dry-run and are gone at the end.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np

from consilia.core.weights import DTYPES, TensorSpec, Weights
from consilia.data import mock
from consilia.data.registry import Dataset, schema_of
from consilia.errors import (
    ConfigError,
    ConsiliaError,
    DataError,
    Refused,
    WorkerError,
)
from consilia.node import approvals, aside, config, datasets, loading, source
from consilia.node.config import NodeConfig
from consilia.node.policy import short
from consilia.node.runner import Runner, Runs, TaskOutput, choose_launcher
from consilia.node.store import Store, printable
from consilia.wire import frames
from consilia.wire.v1 import Arguments, Metrics, MockTwin, Plan
from consilia.wire.worker import Run

FOLDER = "dry-run"
LEAST, MOST = 10, 100_000  # records
SEED = 1
SECONDS = 600.0  # that one of the two tasks may take
TENSOR_BYTES = 8 << 30  # of the model it makes

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One task that ran to its end."""

    what: str  # init, one round
    seconds: float


@dataclass(frozen=True, slots=True)
class Tried:
    """How a dry run went. `error` holds the plan's traceback, for the site's eyes."""

    plan: str  # digest
    dataset: str
    records: int
    steps: tuple[Step, ...]
    memory: int  # most resident memory of the worker, bytes; 0: not measured
    tensors: tuple[TensorSpec, ...]  # of the model after the round, or after init
    metrics: Metrics
    cause: str = ""  # wire.v1.FailureCause; "" when it ran
    error: str = ""

    @property
    def ran(self) -> bool:
        """True when both tasks ended well."""
        return not self.cause


def try_plan(  # noqa: PLR0913 - by keyword
    store: Store,
    directory: Path,
    digest: str,
    dataset: str,
    *,
    records: int = 500,
    actor: str,
    now: Callable[[], float],
    tell: Tell,
    unprotected: bool = False,
) -> Tried:
    """Run init and one round of a plan, in whatever state it is, on invented records.

    Raises NotFound for plan or dataset, ConfigError for a number of records that cannot be or a
    sandbox that is not there, Conflict while another dry run goes on, and Refused where the
    node has no sandbox: nobody has approved this code, and it would run with all rights of the
    node's user. `unprotected` lets it. Blocks.
    """
    if not LEAST <= records <= MOST:
        raise ConfigError(f"records={records}; needed {LEAST} to {MOST}")
    settings = config.load(directory)
    if settings.sandbox == "off" and not unprotected:
        raise Refused(
            "this node runs plans without a sandbox (sandbox: off), and nobody has approved "
            "this one: it could read whatever this user can. Try it where there is a sandbox, "
            "or say that it may: --unprotected"
        )
    plan = approvals.get(store, digest, date.fromtimestamp(now()))
    known = datasets.get(store, dataset).dataset
    with aside.workplace(directory, FOLDER, "another dry run goes on") as folder:
        published = datasets.twin(store, known.name)
        table = _invented(known, published.twin if published else None, folder, records)
        if attached := loading.attached_to(store, known.name, plan.offered_for):
            try:
                table = loading.as_loaded(table, attached.plan)
            except DataError as e:
                raise DataError(
                    f"loading plan {attached.plan.name!r} does not fit the invented records: "
                    f"{e}; those of a mock twin are closer: consilia dataset mock {known.name}"
                ) from None
        with store.write() as tx:
            detail = f"{plan.plan.name} on {records} invented records of {dataset}"
            tx.audit(now(), actor, "plan.dry-run", plan.digest, "started", detail)
        found = asyncio.run(_tried(settings, plan.digest, plan.plan, table, folder, tell))
        with store.write() as tx:
            outcome = found.cause or "ran"
            tx.audit(now(), actor, "plan.dry-run", plan.digest, outcome, dataset)
    return replace(found, dataset=dataset)


async def _tried(  # noqa: PLR0913, PLR0917 - what is tried, with what, where
    settings: NodeConfig, digest: str, plan: Plan, table: Dataset, folder: Path, tell: Tell
) -> Tried:
    launcher = choose_launcher(settings.sandbox)
    if said := launcher.warning:
        tell(f"WARNING: the plan's code runs {said}")
    runner = Runner(launcher, folder, settings.limits, site=settings.site, cuda=settings.cuda)
    try:
        return await attempt(runner, digest, plan, table, folder, _seconds(settings))
    finally:
        await runner.close()


async def attempt(  # noqa: PLR0913, PLR0917 - what is tried, with what, where
    runner: Runs, digest: str, plan: Plan, table: Dataset, folder: Path, seconds: float
) -> Tried:
    """Run init and one round on `runner`; a failure is an outcome, not an error."""
    arguments = dict(source.declared_arguments(plan) or {})
    found = Tried(digest, table.name, table.records, (), 0, (), {})
    try:
        model: Path | None = None
        for what, kind, on in (("init", "init", None), ("one round", "train", table)):
            weights, found = await _task(
                runner, found, plan, on, _run(kind, arguments), model, seconds, what
            )
            model = folder / "model.frame"
            await asyncio.to_thread(frames.write, model, weights)
    except WorkerError as e:
        return replace(found, cause=e.cause, error=_traceback(e))
    except ConsiliaError as e:
        return replace(found, cause="plan-contract", error=_traceback(e))
    return found


async def _task(  # noqa: PLR0913, PLR0917 - the parts of one task
    runner: Runs,
    found: Tried,
    plan: Plan,
    table: Dataset | None,
    run: Run,
    model: Path | None,
    seconds: float,
    what: str,
) -> tuple[Weights, Tried]:
    job = f"dry-run-{short(found.plan)}-{run.kind}"
    output = await runner.run(job, plan, table, run, model, _unheard, seconds)
    taken = False
    try:
        weights = await asyncio.to_thread(received, output)
        taken = True
    finally:
        output.close(consumed=taken)
    tensors = tuple(TensorSpec(t.name, t.dtype, t.shape) for t in output.done.tensors)
    done = replace(
        found,
        steps=(*found.steps, Step(what, output.seconds)),
        memory=max(found.memory, output.peak_rss),
        tensors=tensors,
        metrics=output.done.metrics,
    )
    await runner.stop(job)
    return weights, done


def received(output: TaskOutput) -> Weights:
    """Read the tensors of an outcome, in its order; WorkerError when they are too large."""
    schema = tuple(TensorSpec(t.name, t.dtype, t.shape) for t in output.done.tensors)
    size = 0
    for spec in schema:
        if spec.dtype not in DTYPES or any(n < 0 for n in spec.shape):
            raise WorkerError(f"tensor {spec.name[:80]!r} is of no known type", "plan-contract")
        size += spec.nbytes
        if size > TENSOR_BYTES:
            raise WorkerError(f"the model has more than {TENSOR_BYTES} bytes", "plan-contract")
    return aside.read_tensors(output, schema)


def _run(kind: str, arguments: Arguments) -> Run:
    return Run(kind, 0 if kind == "init" else 1, arguments, None, SEED, True)


def _invented(known: Dataset, twin: MockTwin | None, folder: Path, records: int) -> Dataset:
    """Write a CSV of invented records and return its registration."""
    path = folder / "invented.csv"
    rng = np.random.default_rng(SEED)
    columns = mock.write_csv(twin or schema_of(known), path, records, rng)
    size = path.stat().st_size
    return Dataset(
        known.name, str(path), "csv", known.tags, columns, ("",), records,
        datasets.file_digest(path), size, path.stat().st_mtime, 0.0, "", known.patient,
        tuple(c for c in known.schema if c.name in columns),
    )  # fmt: skip


def _seconds(settings: NodeConfig) -> float:
    return min(settings.limits.seconds, SECONDS)


def _traceback(error: Exception) -> str:
    """Return an error's text, line by line, in characters that no terminal obeys."""
    return "\n".join(printable(line, 1000) for line in str(error).splitlines()[-200:])


def _unheard(fraction: float, metrics: Metrics) -> None:
    """Let progress pass: what people read is the outcome."""
