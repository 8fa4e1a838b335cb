"""One worker process of the runner: its pipes, its task's clock, and why it was killed.

What it says is not trusted: its messages are bounded in size and number, its memory, processes
and time are watched while it has a task, and less often while it has none. The first cause for
which it is killed is the one that is told.
"""

import asyncio
import contextlib
import errno
import os
import shutil
from pathlib import Path

import msgspec

from consilia.errors import WireError, WorkerError
from consilia.node import memory
from consilia.node.config import Limits
from consilia.node.launcher import WorkerProcess
from consilia.node.pipes import LogPipe, MessagePipe, send
from consilia.wire.v1 import FailureCause
from consilia.wire.worker import Done, FromWorker, ToWorker

_WATCH = 0.1  # seconds between looks at a worker with a task; a shorter task is never looked at
_WATCH_IDLE = 1.0
_DEATH = 5.0  # seconds the kernel may take to end a killed worker


class Worker:
    """A worker process, from its start to its end. Everything is on the event loop."""

    def __init__(
        self,
        process: WorkerProcess,
        log: LogPipe,
        key: object,
        models: Path,
        limits: Limits,
    ) -> None:
        self.process = process
        self.log = log
        self.key = key
        self.failure: WorkerError | None = None
        self.peak = 0
        self._models = models
        self._limits = limits
        self._messages = MessagePipe(process.stdout)
        self._shown: Path | None = None
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time()
        self._busy = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        os.set_blocking(process.stdin, False)

    @property
    def alive(self) -> bool:
        """False once it was killed or has ended."""
        return self.failure is None and self.process.running

    def begin(self, deadline: float) -> None:
        """Start the clock of a task; the worker is killed at `deadline` of the loop's time."""
        self._busy, self._deadline = True, deadline
        self._again(min(_WATCH, max(0.0, deadline - self._loop.time())))

    def end(self) -> None:
        """Stop the clock; from now on an idle worker is looked at, and closed in the end."""
        self._busy = False
        if self._shown is not None:
            self._shown.unlink(missing_ok=True)
            self._shown = None
        self._deadline = self._loop.time() + self._limits.idle_seconds
        if self.failure is None:
            self._again(_WATCH_IDLE)

    async def show(self, model: Path | None) -> str | None:
        """Link `model` into the folder the worker sees; return its path there."""
        if model is None:
            return None
        shown = self._models / model.name
        try:
            shown.hardlink_to(model)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                raise self.fail("disk", f"the model cannot be shown: {error}") from None
            await asyncio.to_thread(shutil.copyfile, model, shown)
        self._shown = shown
        return self.process.inside(shown)

    async def send(self, message: ToWorker) -> None:
        """Send one message."""
        body = msgspec.msgpack.encode(message)
        with contextlib.suppress(OSError):  # a dead worker is found by `receive`
            await send(self.process.stdin, len(body).to_bytes(4, "little") + body)

    async def receive(self) -> FromWorker:
        """Return the next message; raise WorkerError when it is none or the worker is dead."""
        try:
            message = await self._messages.receive()
        except WireError as error:
            raise self.fail("plan-contract", str(error)) from None
        if message is not None and self.failure is None:
            return message  # what a killed worker left in the pipe is of no interest
        if self.failure is None:
            try:
                code = await asyncio.wait_for(self.process.wait(), _DEATH)
            except TimeoutError:
                raise self.fail("crashed", "the worker closed its pipe") from None
            said = f"; it said last:\n{self.log.tail}" if self.log.tail else ""
            if self.process.starved:
                self.fail("memory", "the kernel ended the worker at its limit of memory")
            else:
                self.fail("crashed", f"the worker ended with exit code {code}{said}")
        raise self.failure or WorkerError("the worker ended")

    def fail(self, cause: FailureCause, message: str) -> WorkerError:
        """Kill the worker for `cause` (the first one counts) and return the error to raise."""
        if self.failure is None:
            self.peak = max(self.peak, memory.peak(self.process.pids()))
            self.failure = WorkerError(message, cause)
            if self._busy:
                level = "warning" if cause == "stopped" else "error"
                self.log.note(f"worker killed: {cause}: {message}", level)
        if self._timer is not None:
            self._timer.cancel()
        self.process.kill()
        return self.failure

    async def close(self) -> None:
        """Wait for its end, close pipes and log. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.process.kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), _DEATH)
        await self.log.close()
        shutil.rmtree(self._models, ignore_errors=True)
        with contextlib.suppress(OSError):  # unless the job has another worker by now
            self._models.parent.rmdir()
        self.process.close()

    def _again(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        """Kill the worker that is over a limit; else look again soon."""
        pids = self.process.pids()
        if not pids:
            return
        usage = memory.usage(pids, self._limits.memory_bytes, self.process.unmapped())
        used = usage.memory
        self.peak = max(self.peak, used)
        left = self._deadline - self._loop.time()
        if used > self._limits.memory_bytes:
            limit = self._limits.memory_bytes >> 20
            self.fail(
                "memory", f"the worker uses {used >> 20} MiB of memory, limit {limit} MiB"
            )
        elif usage.threads > self._limits.processes + 2:  # bubblewrap's own two
            limit = self._limits.processes
            self.fail("crashed", f"the worker started over {limit} processes and threads")
        elif left <= 0 and self._busy:
            self.fail("timeout", "the task took longer than it may")
        elif left <= 0:
            self.fail("stopped", "idle for too long")
        else:
            self._again(min(_WATCH if self._busy else _WATCH_IDLE, max(left, 0.001)))


class Output:
    """What a finished task of a worker left (node.runner.TaskOutput)."""

    def __init__(self, worker: Worker, lock: asyncio.Lock, done: Done, seconds: float) -> None:
        self._worker = worker
        self._lock = lock
        self._open = True
        self.done = done
        self.seconds = seconds
        # a descriptor of its own: it outlives the worker, however the task ends
        self.tensors = os.dup(worker.process.stdout)
        os.set_blocking(self.tensors, True)

    @property
    def failure(self) -> WorkerError | None:
        """Why the worker was killed meanwhile."""
        return self._worker.failure

    @property
    def peak_rss(self) -> int:
        """The worker's most resident memory so far, bytes. Asks /proc."""
        return max(self._worker.peak, memory.peak(self._worker.process.pids()))

    def close(self, *, consumed: bool) -> None:
        """End the task."""
        if not self._open:
            return
        self._open = False
        os.close(self.tensors)
        if not consumed:
            self._worker.fail("stopped", "its output was not taken")
        elif self._worker.failure is None:
            os.set_blocking(self._worker.process.stdout, False)
        self._worker.end()
        self._lock.release()
