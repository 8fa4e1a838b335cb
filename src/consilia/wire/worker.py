"""Messages between a node's agent and its sandboxed worker, over the worker's stdin and stdout.

The worker runs researcher code, so the agent trusts nothing it says. Each message is a
4-byte little-endian length and that many bytes of msgpack. After a `Done` with tensors, their
raw bytes follow in order, without padding; the agent counts them, checks them, and writes the
tensor frame itself (node.release). Models go the other way as files in a read-only folder.
"""

from typing import BinaryIO, Literal

import msgspec

from consilia.errors import WireError
from consilia.wire.v1 import (
    Arguments,
    Dp,
    Evaluation,
    FailureCause,
    Metrics,
    Plan,
    Record,
    Statistics,
)

MAX_WORKER_MESSAGE = 8 << 20


class TableSource(Record, frozen=True):
    """A registered table as the worker sees it: read-only files and the declared columns."""

    path: str  # of a file, or of a folder of files
    format: str  # csv, tsv, parquet
    columns: dict[str, str]  # name -> type of data.contract
    missing: tuple[str, ...] = ("",)
    records: int = 0
    patient: str = ""  # column of patient ids, a text; "" when the dataset declares none
    codes: dict[str, tuple[str, ...]] = {}  # column -> its own missing codes
    units: dict[str, str] = {}  # column -> its declared unit
    loading: bytes = b""  # the data loading plan (data.loading.blocks), b"" for none
    without: bytes = b""  # records to leave out before it (data.loading.table.pack_rows)
    holdout: bytes = b""  # those to leave out for the hold-out; b"": there is none
    holdout_records: int = 0  # in the hold-out


class Load(Record, frozen=True, tag="load"):
    """First message to a worker: the plan, and the dataset it may read (None for init)."""

    plan: Plan
    dataset: TableSource | None
    threads: int
    cuda: bool
    site: str = ""


class Audit(Record, frozen=True):
    """What a task of kind "audit" does (plans.attack). Its outcome never leaves the site.

    losses: of each record under the model. fit: the plan's model after `rounds` rounds on the
    records, from its own start. invert: one round's update turned back into records. explain:
    the records of highest loss, and what makes it high.
    """

    do: Literal["losses", "fit", "invert", "explain"]
    rounds: int = 1
    canaries: int = 0  # records that never were, after those of the table
    seed: int = 0  # of the canaries' values
    inside: bytes = b""  # which records and canaries, a bit each, as numpy packs; empty: all
    most: int = 20  # records that are explained


class Run(Record, frozen=True, tag="run"):
    """One task. `model` is the path of a tensor frame inside the sandbox; None for init."""

    kind: str
    round: int
    arguments: Arguments
    model: str | None
    seed: int
    deterministic: bool
    dp: Dp | None = None  # the privacy that the worker's own loop gives the round
    audit: Audit | None = None  # of a task of kind "audit"
    evaluation: Evaluation | None = None  # of a task of kind "evaluate"
    statistics: Statistics | None = None  # of a task of kind "statistics"


ToWorker = Load | Run


class Ready(Record, frozen=True, tag="ready"):
    """The plan is loaded and the dataset opened; tells what was declared."""

    framework: str
    records: int  # of the dataset; 0 without one
    arguments: Arguments = {}  # declared names and defaults
    private: bool = False  # can train with privacy at record and patient level


class Step(Record, frozen=True, tag="step"):
    """Progress inside a task."""

    fraction: float
    metrics: Metrics = {}


class WorkerTensor(Record, frozen=True):
    """One tensor that follows a Done."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Done(Record, frozen=True, tag="done"):
    """The task's outcome; the tensors' bytes follow."""

    records: int
    metrics: Metrics
    tensors: tuple[WorkerTensor, ...]


class Broke(Record, frozen=True, tag="broke"):
    """The plan failed. `detail` (with the traceback) is for the site's eyes only."""

    cause: FailureCause
    detail: str


FromWorker = Ready | Step | Done | Broke


def write(stream: BinaryIO, message: ToWorker | FromWorker) -> None:
    """Write one message and flush."""
    body = msgspec.msgpack.encode(message)
    stream.write(len(body).to_bytes(4, "little") + body)
    stream.flush()


def read(stream: BinaryIO, kind: type[msgspec.Struct] | object) -> object | None:
    """Read one message of union `kind`, None at end of stream; raise WireError otherwise."""
    head = stream.read(4)
    if not head:
        return None
    size = int.from_bytes(head, "little")
    if len(head) < 4 or size > MAX_WORKER_MESSAGE:
        raise WireError(f"worker message of {size} bytes, limit {MAX_WORKER_MESSAGE}")
    body = stream.read(size)
    if len(body) < size:
        raise WireError(f"worker message cut off after {len(body)} of {size} bytes")
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeError) as e:
        raise WireError(f"worker message is not valid: {e}") from None
