"""The agent's small parts: what it is on, how a task may end, how blocking work is awaited."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, ParamSpec, Protocol, TypeVar, get_args

from consilia.errors import (
    AuthError,
    DataError,
    NotFound,
    PlanError,
    StorageError,
    TransferError,
    WireError,
    WorkerError,
)
from consilia.node.outbox import Answer
from consilia.node.policy import short
from consilia.node.status import TaskStatus
from consilia.wire.v1 import FailureCause, Lease, Word

P = ParamSpec("P")
R = TypeVar("R")
Phase = Literal["waiting", "preparing", "training", "releasing", "sending", "listening"]


class NotAllowed(Exception):
    """The site lets a task not run, or its result not leave; `action` is the audit's word.

    `told` are the objections that the hub may hear, whatever the site discloses otherwise.
    """

    def __init__(
        self, objections: tuple[str, ...], action: str, told: tuple[str, ...] = ()
    ) -> None:
        super().__init__("; ".join(objections))
        self.objections = objections
        self.action = action
        self.told = told


class Talk(Protocol):
    """What a work needs of node.exchange."""

    heard: str

    def take(self, word: Word) -> None:
        """Take a word of the hub's."""

    async def ready(self, seconds: float) -> None:
        """Return when an update can be masked."""

    async def ended(self) -> None:
        """Return when the round is over."""

    def end(self) -> None:
        """The round is over."""

    async def close(self) -> None:
        """Stop."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a task is stopped before its time, and by whom."""

    by: Literal["hub", "policy", "staff"]
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        """The reasons as one line."""
        return "; ".join(self.reasons)


@dataclass(slots=True, eq=False)
class Work:
    """One lease the node is on, from its arrival until the hub has its answer."""

    lease: Lease
    since: float  # Unix seconds
    deadline: float  # loop time
    answer: Answer | None = None
    phase: Phase = "waiting"
    fraction: float = 0.0
    records: int = 0  # of its dataset
    told: float = 0.0  # loop time of the last progress message
    task: "asyncio.Task[None] | None" = None
    ending: Ending | None = None
    exchange: "Talk | None" = None  # of a masked round

    @property
    def left(self) -> float:
        """Seconds until the task has to be finished."""
        return self.deadline - asyncio.get_running_loop().time()

    def status(self) -> TaskStatus:
        """Return what the site's staff see of it."""
        task = self.lease.task
        return TaskStatus(
            self.lease.id,
            task.job,
            task.kind,
            task.round,
            task.study_name,
            short(task.plan),
            self.phase,
            self.fraction,
            self.since,
        )


@dataclass(slots=True)
class Job:
    """What the agent remembers of a job."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # one task of a job at a time
    used: float = 0.0  # loop time
    granted: object = None  # the facts last entered in the audit trail
    lease: Lease | None = None  # the last that was allowed: its worker may still be warm


_CAUSES: tuple[tuple[tuple[type[Exception], ...], FailureCause], ...] = (
    ((PlanError,), "plan-error"),
    ((DataError,), "data-error"),
    ((TransferError, WireError, NotFound, AuthError), "transfer"),
    ((StorageError, OSError), "disk"),
)


def cause_of(e: Exception) -> FailureCause:
    """Return the word of the closed list that may leave the site for an error."""
    if isinstance(e, WorkerError):
        return next((cause for cause in get_args(FailureCause) if cause == e.cause), "internal")
    return next((cause for kinds, cause in _CAUSES if isinstance(e, kinds)), "internal")


def uncancel() -> None:
    """Go on after a cancellation that was meant for what this task was doing."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a short blocking function in a thread; a cancellation waits for its end."""
    call = partial(function, *args, **kwargs)
    future = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


async def transfer(
    threads: Executor, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Run a long blocking transfer in a thread; a cancellation leaves it to end by itself."""
    call = partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(threads, call)
