"""From a worker's tensors to the frame that leaves, one stage after the other.

    received -> clipped -> noised (client level) -> compressed -> masked or encrypted

Each stage puts its frame in place of the one before, so what lies in the outbox at the end is
what may leave. What holds for an update on its way is in core.carried. An update that does not
have the model's schema, or is not finite, ends as a WorkerError with its cause.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from consilia.core.carried import Carried
from consilia.core.weights import DTYPES, Schema, TensorSpec, mismatch
from consilia.errors import (
    ConfigError,
    Refused,
    StorageError,
    UpdateRejected,
    WireError,
    WorkerError,
)
from consilia.node import clip, coarse, compressing, encrypting
from consilia.node.config import NodeConfig
from consilia.node.masking import Masking, encrypts
from consilia.node.spending import dp_of
from consilia.privacy import gradients
from consilia.wire import frames
from consilia.wire.v1 import Dp, Lease
from consilia.wire.worker import Done

FREE_RESERVE = 64 << 20  # bytes of disk that an update must leave free


class Updates:
    """Makes the frames of one site's updates. Methods block; any thread may call them."""

    def __init__(
        self,
        outbox: Path,
        config: NodeConfig,
        masking: Masking,
        feedback: compressing.Feedback,
        random: Callable[[int], bytes],
    ) -> None:
        """`random` gives secret bytes."""
        self._outbox = outbox
        self._config = config
        self._masking = masking
        self._feedback = feedback
        self._random = random

    def settle(self, config: NodeConfig) -> None:
        """Go by a new policy from the next update on."""
        self._config = config

    def made(
        self, lease: Lease, done: Done, tensors: int, base: Path | None, path: Path
    ) -> tuple[frames.Header, Carried]:
        """Write the frame that may leave to `path`; return its header and what holds for it.

        `tensors` is the descriptor that the worker's tensors come from, `base` the model that
        they started from, None for a first model.
        """
        known, dp = Carried(), dp_of(lease.task)
        bound = _tightest(self._config.clip_norm, lease.task.privacy.clip)
        packs = lease.task.privacy.compression if lease.task.kind == "train" else None
        private = dp is not None and dp.level == "client"  # its own clip comes first
        feeds = packs is not None or coarse.applies(lease.task.privacy)
        early = bound if not feeds or private else 0.0  # else with what is fed back
        if gradients.applies(dp):
            early = _no_bound(bound)
            if not lease.task.cohort or encrypts(lease.task):  # policy has said so before
                raise Refused("a sum of gradients leaves in a masked sum only, with its noise")
        header = self._receive(done, tensors, base, path, early)
        if dp is not None and dp.level == "client" and not dp.distributed:
            header = self._noise(dp, base, path)
        if packs is not None:
            header, known = self._pack(lease, base, path, 0.0 if private else bound)
        if lease.task.cohort:
            header, known = self._mask(lease, done, base, path, 0.0 if private else bound)
        return header, known

    def _receive(
        self, done: Done, tensors: int, base: Path | None, path: Path, bound: float
    ) -> frames.Header:
        """Stream the tensors into a frame at `path`: counted, hashed and checked on the way."""
        old = None if base is None else frames.read_header(base)
        schema = _schema(
            done, None if old is None else old.schema, self._config.limits.update_bytes
        )
        unchanged = {e.digest for e in old.entries if e.stored} if old is not None else ()
        size = sum(t.nbytes for t in schema)
        self._check_space(size)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            writer = frames.FrameWriter(fd, schema, unchanged)
            pump(tensors, size, writer.append)
            header = writer.finish()
            if base is not None and bound:
                header = _clip(fd, base, path, bound) or header
        except UpdateRejected as e:
            raise WorkerError(str(e), "not-finite") from None
        except WireError as e:
            raise WorkerError(str(e), "plan-contract") from None
        except (StorageError, OSError) as e:
            raise WorkerError(f"the update could not be written: {e}", "disk") from None
        finally:
            os.close(fd)
        return header

    def _check_space(self, size: int) -> None:
        """Raise WorkerError (disk) when the outbox has no room: better before than half-way."""
        disk = os.statvfs(self._outbox)
        free = disk.f_bavail * disk.f_frsize
        if free < size + FREE_RESERVE:
            raise WorkerError(
                f"{self._outbox} has {free >> 20} MiB free, an update of {size >> 20} MiB "
                f"needs {FREE_RESERVE >> 20} MiB more than its size; make room",
                "disk",
            )

    def _noise(self, dp: Dp, base: Path | None, path: Path) -> frames.Header:
        """Put the clipped and noised update in place of the plain one (client level)."""
        if base is None:
            raise Refused("an update with noise needs a model that it changes")
        draft = path.with_suffix(".noised")
        try:
            with frames.opened(path) as new, frames.opened(base) as old:
                header = clip.private(new, old, dp, self._random, draft)
            draft.replace(path)
            return header
        except OSError as e:
            raise WorkerError(f"the update could not be noised: {e}", "disk") from None
        finally:
            discard(draft)

    def _mask(
        self, lease: Lease, done: Done, base: Path | None, path: Path, bound: float
    ) -> tuple[frames.Header, Carried]:
        """Put the masked update in place of the plain one, which never leaves.

        `bound` is what an update is clipped to whose remainder is fed back.
        """
        if base is None:
            raise Refused("a masked update needs a model that it changes")
        draft, known = path.with_suffix(".masked"), Carried()
        try:
            if encrypts(lease.task):
                size, limit = encrypting.size(base), self._config.limits.update_bytes
                if size > limit:
                    raise WorkerError(
                        f"the encrypted update has {size} bytes, limits.update_bytes {limit}",
                        "plan-contract",
                    )
                self._check_space(size)
                turn, weight = self._masking.spend_key(lease, done.records)
                header = encrypting.encrypt(
                    lease.task, turn, path, base, draft, weight, done.metrics
                )
            elif coarse.applies(lease.task.privacy):
                feedback, told = self._feedback, (done.records, done.metrics)
                header, known = self._masking.mask_coarse(
                    lease, path, base, draft, *told, feedback, bound
                )
            else:
                header = self._masking.mask(
                    lease, path, base, draft, done.records, done.metrics
                )
            draft.replace(path)
            return header, known
        except UpdateRejected as e:
            raise WorkerError(str(e), "plan-contract") from None
        except OSError as e:
            raise WorkerError(f"the update could not be masked: {e}", "disk") from None
        finally:
            discard(draft)

    def _pack(
        self, lease: Lease, base: Path | None, path: Path, bound: float
    ) -> tuple[frames.Header, Carried]:
        """Put the compressed update in place of the whole one."""
        if base is None:
            raise Refused("a compressed update needs a model that it changes")
        draft = path.with_suffix(".packed")
        try:
            with frames.opened(path) as new, frames.opened(base) as old:
                found = compressing.pack(new, old, lease, self._feedback, draft, bound)
            draft.replace(path)
            return found.header, found.carried
        except UpdateRejected as e:
            raise WorkerError(str(e), "not-finite") from None
        except (ConfigError, WireError) as e:
            raise WorkerError(f"it cannot be compressed: {e}", "plan-contract") from None
        except OSError as e:
            raise WorkerError(f"the update could not be compressed: {e}", "disk") from None
        finally:
            discard(draft)


def _schema(done: Done, needed: Schema | None, limit: int) -> Schema:
    """Return the declared schema when it is `needed`, or a first model's within limits."""
    schema = tuple(TensorSpec(t.name, t.dtype, t.shape) for t in done.tensors)
    if needed is not None:
        if problem := mismatch(schema, needed):
            raise WorkerError(f"the update does not fit the model: {problem}", "plan-contract")
        return schema
    if not 1 <= len(schema) <= frames.MAX_TENSORS:
        raise WorkerError(f"the model has {len(schema)} tensors", "plan-contract")
    for t in schema:
        if (
            t.dtype not in DTYPES
            or len(t.shape) > frames.MAX_RANK
            or min(t.shape, default=0) < 0
        ):
            raise WorkerError(
                f"tensor {t.name[:80]!r} cannot travel: {t.dtype[:20]}{t.shape[:20]}",
                "plan-contract",
            )
    size = sum(t.nbytes for t in schema)
    if size > limit:
        raise WorkerError(f"the model has {size} bytes, limit {limit}", "plan-contract")
    return schema


def _clip(fd: int, base: Path, path: Path, bound: float) -> frames.Header | None:
    """Clip the frame at `path` to a norm; None when it was within already."""
    old = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = clip.norm(fd, old)
        if found <= bound:
            return None
        draft = path.with_suffix(".clip")
        header = clip.scaled(fd, old, bound / found, draft)
        draft.replace(path)
        return header
    finally:
        os.close(old)


def discard(frame: Path) -> None:
    """Remove a frame; a transfer that has it open finds it empty and sends no more of it."""
    with contextlib.suppress(FileNotFoundError):
        os.truncate(frame, 0)
        frame.unlink()


def _no_bound(bound: float) -> float:
    """Return no bound; Refused where the site or the job sets one on a model's change.

    Scaling a sum of gradients would take it off the whole numbers that its noise fits.
    """
    if bound:
        raise Refused(
            f"updates are clipped to a norm of {bound:g} here, and a sum of gradients with a "
            "share of the noise cannot be: dp.clip bounds each person's part of it instead. "
            "Ask for distributed: false, or set clip_norm to 0 at this site"
        )
    return 0.0


def _tightest(*bounds: float) -> float:
    """Return the least of the bounds that are set; 0 when none is."""
    return min((bound for bound in bounds if bound), default=0.0)


def pump(source: int, count: int, sink: Callable[[memoryview], None]) -> None:
    """Move exactly `count` bytes from a blocking descriptor into `sink`, in reused pieces."""
    view = memoryview(bytearray(min(frames.CHUNK, max(count, 1))))
    while count:
        want = min(len(view), count)
        filled = 0
        while filled < want:
            got = os.readv(source, [view[filled:want]])
            if not got:
                raise WorkerError(
                    f"the worker ended {count - filled} bytes before its update did"
                )
            filled += got
        sink(view[:want])
        count -= want
