"""What the process that runs researcher code does; node.confine is how it begins.

The runner starts it. It takes wire.worker messages on stdin and answers on what was stdout at
the start; from then on everything printed goes to stderr, the site's log of the job. One
worker serves one job: plan and dataset are loaded once, then come tasks. A task that fails is
reported and the worker goes on; only the kernel, the runner or the end of stdin end it.

`Tasks` is the same without pipes, for the simulator and for tests.
"""

import errno
import gc
import io
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from consilia.core.weights import DTYPES, Array, Weights, schema_of
from consilia.data.table import Table
from consilia.errors import ConsiliaError, DataError, PlanError, WireError, WorkerError
from consilia.plans.contract import Context, Outcome, contiguous, run_task
from consilia.plans.evaluate import evaluate
from consilia.plans.load import fresh_plan, load_plan
from consilia.plans.requirements import missing_requirements
from consilia.stats.columns import columns
from consilia.wire import frames
from consilia.wire.v1 import FailureCause, Metrics
from consilia.wire.worker import (
    Broke,
    Done,
    Load,
    Ready,
    Run,
    Step,
    ToWorker,
    WorkerTensor,
    read,
    write,
)

_STEP_SECONDS = 0.1  # between two progress messages
_DETAIL = 64 << 10  # characters of a traceback
_WRITE = 1 << 20

_CAUSES: tuple[tuple[type[BaseException], FailureCause], ...] = (
    (PlanError, "plan-contract"),
    (DataError, "data-error"),
    (ConsiliaError, "internal"),
    (FloatingPointError, "not-finite"),
    (MemoryError, "memory"),
)

Report = Callable[[float, Metrics], None]


class Tasks:
    """A loaded plan with its dataset, and the arrays that models are read into."""

    def __init__(self, load: Load) -> None:
        """Load plan and dataset; raise PlanError, DataError or WorkerError (requirements)."""
        self._load = load
        if missing := missing_requirements(load.plan.requirements):
            raise WorkerError(
                f"plan {load.plan.name!r} needs what this site lacks: {'; '.join(missing)}",
                "requirements",
            )
        try:
            self._plan = load_plan(load.plan)
        except PlanError as error:
            if isinstance(error.__cause__, ModuleNotFoundError):
                raise WorkerError(str(error), "requirements") from error.__cause__
            raise
        self._table = Table(load.dataset, load.threads) if load.dataset else None
        if self._table is not None and self._plan.selection is not None:
            self._table.features(self._plan.selection)
        self._holdout = _holdout(load)
        self._buffers: Weights = {}

    @property
    def ready(self) -> Ready:
        """What was loaded."""
        records = self._table.records if self._table else 0
        plan = self._plan
        return Ready(plan.framework, records, dict(plan.arguments), plan.private)

    def run(self, task: Run, report: Report) -> Outcome:
        """Run one task. The arrays of the outcome are valid until the next."""
        context = Context(
            round=task.round,
            seed=task.seed,
            site=self._load.site,
            deterministic=task.deterministic,
            cuda=self._load.cuda,
            threads=self._load.threads,
            report=report,
            dp=task.dp,
            patient=self._load.dataset.patient if self._load.dataset else "",
        )
        weights = None if task.model is None else self._read(Path(task.model))
        if task.kind == "audit":
            return self._audit(task, weights, context)
        if task.kind == "evaluate":
            return self._evaluate(task, weights, context)
        if task.kind == "statistics":
            return self._statistics(task)
        if (task.kind == "init") is not (weights is None):
            raise WireError(f"task of kind {task.kind!r} with model {task.model!r}")
        # the buffers are handed over: what comes back (often the same arrays) replaces them
        self._buffers = {}
        outcome = run_task(self._plan, weights, self._table, task.arguments, context)
        kept = {name: contiguous(array) for name, array in outcome.weights.items()}
        self._buffers = kept
        return Outcome(kept, outcome.records, outcome.metrics)

    def _audit(self, task: Run, weights: Weights | None, context: Context) -> Outcome:
        """Run a task of an audit of privacy."""
        if task.audit is None or self._table is None:
            raise WireError("a task of kind 'audit' needs to say of what, on a dataset")

        def of_round(number: int) -> Context:
            return replace(context, round=number, seed=context.seed + number)

        # a plan of its own: what one task keeps of its records is not for the next
        with fresh_plan(self._load.plan) as plan:
            if plan.audit is None:
                raise PlanError(
                    f"this {plan.framework} plan does not tell the loss of one record, from "
                    "which every attack starts; needed torch_plan(dp=DpParts(loss=...)), or "
                    "loss= and optimizer="
                )
            data, given = self._table, task.arguments
            found = plan.audit(plan, task.audit, weights, data, given, of_round)
        del plan
        gc.collect()
        return Outcome({n: contiguous(a) for n, a in found.items()}, self._table.records, {})

    def _evaluate(self, task: Run, weights: Weights | None, context: Context) -> Outcome:
        """Let the plan predict for the hold-out; the agent measures."""
        if task.evaluation is None or weights is None:
            raise WireError("a task of kind 'evaluate' needs a model, and to say what is asked")
        if self._holdout is None:
            raise DataError("the dataset has no hold-out")
        # a plan of its own: what it keeps between rounds is of the training records
        with fresh_plan(self._load.plan) as plan:
            asked, given = task.evaluation, task.arguments
            table, held = self._table, self._holdout
            found = evaluate(plan, asked, weights, held, table, given, context)
        del plan
        gc.collect()
        return Outcome(found, held.records, {})

    def _statistics(self, task: Run) -> Outcome:
        """Read what sums are asked of; the agent makes them. No plan's code takes part."""
        if task.statistics is None or self._table is None or self._load.dataset is None:
            raise WireError("a task of kind 'statistics' needs a question, on a dataset")
        found = columns(self._table, task.statistics, self._load.dataset.patient)
        kept = {name: contiguous(array) for name, array in found.items()}
        return Outcome(kept, self._table.records, {})

    def forget(self) -> None:
        """Drop the model's memory."""
        self._buffers = {}
        gc.collect()

    def _read(self, path: Path) -> Weights:
        """Read a frame into the arrays of the task before, where they fit."""
        with path.open("rb") as stream:
            fd = stream.fileno()
            header = frames.read_header(fd)
            if schema_of(self._buffers) != header.schema:
                self._buffers = {}
            weights: Weights = {}
            for entry in header.entries:
                out = self._buffers.get(entry.name)
                if out is None or not out.flags.writeable:
                    out = np.empty(entry.shape, DTYPES[entry.dtype])
                frames.read_tensor(fd, header, entry, out)
                weights[entry.name] = out
            return weights


def _holdout(load: Load) -> Table | None:
    """Open the dataset's hold-out, None when it declares none."""
    if load.dataset is None or not load.dataset.holdout:
        return None
    source = load.dataset
    held = msgspec.structs.replace(
        source, without=source.holdout, records=source.holdout_records
    )
    return Table(held, load.threads)


def broke(error: BaseException) -> Broke:
    """Return the message about a failure: a cause of the closed list, details for the site."""
    text = "".join(traceback.format_exception(error))
    return Broke(cause(error), text[-_DETAIL:])


def cause(error: BaseException) -> FailureCause:
    """Return the one word of wire.v1 that may leave the site for `error`."""
    if isinstance(error, WorkerError):
        return error.cause  # type: ignore[return-value]  # made in this module
    for kind, word in _CAUSES:
        if isinstance(error, kind):
            return word
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "memory"  # torch has its own ways to say so
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG):
        return "disk"
    return "plan-error"


class _Channel:
    """The worker's side of the pipes."""

    def __init__(self) -> None:
        """Take stdin and stdout away from everything else in this process."""
        self._in = io.BufferedReader(io.FileIO(os.dup(0), "rb"))
        self._fd = os.dup(1)
        self._out = io.BufferedWriter(io.FileIO(os.dup(1), "wb"))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        os.close(null)
        self._last = 0.0

    def receive(self, kind: object) -> object | None:
        """Return the next message, None when the agent has closed the pipe."""
        return read(self._in, kind)

    def send(self, message: Ready | Done | Broke | Step) -> None:
        """Send one message."""
        write(self._out, message)

    def step(self, fraction: float, metrics: Metrics) -> None:
        """Send progress, but no more often than anybody looks."""
        now = time.monotonic()
        if fraction >= 1.0 or now - self._last >= _STEP_SECONDS:
            self._last = now
            self.send(Step(fraction, metrics))

    def tensors(self, arrays: Sequence[Array]) -> None:
        """Send the bytes of contiguous arrays, one after the other, without a copy."""
        for array in arrays:
            view = frames.raw_bytes(array)
            while view:
                view = view[os.write(self._fd, view[:_WRITE]) :]


def serve(channel: _Channel) -> None:
    """Load what the first message names, then run tasks until the agent closes the pipe."""
    load = channel.receive(Load)
    if not isinstance(load, Load):
        return
    try:
        tasks = Tasks(load)
    except BaseException as error:  # researcher code may raise anything, SystemExit too
        channel.send(broke(error))
        return
    channel.send(tasks.ready)
    while isinstance(task := channel.receive(ToWorker), Run):
        try:
            outcome = tasks.run(task, channel.step)
        except BaseException as error:
            message = broke(error)
            del error
            tasks.forget()
            channel.send(message)
            continue
        schema = schema_of(outcome.weights)
        tensors = tuple(WorkerTensor(t.name, t.dtype, t.shape) for t in schema)
        channel.send(Done(outcome.records, outcome.metrics, tensors))
        channel.tensors(tuple(outcome.weights.values()))


def main() -> None:
    """Run a worker in this process, which node.confine has confined."""
    serve(_Channel())
